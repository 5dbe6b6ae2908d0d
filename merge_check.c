/* --check: base and adapter apart against what was written, on a text: perplexity of both, and KL(apart || written) of
 * the next token's distribution at every position, in nats. Both run on the canonical fp32 path, so that nothing but
 * the written numbers differs. */
#include "core/error.h"
#include "merge_parts.h"
#include "model/inference.h"
#include "model/text_rows.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { PIECE = 512 /* tokens of a row of plain text */, SLICE = 32 /* rows of logits at a time */ };

/* A model that gives all logits of a row of tokens, a slice at a time. */
typedef struct {
    session s;
    quant_cache quant;
    batch b;
    adapter_sum sum;
    tape t;
    tensor *h;
    float *made, *logits; /* [SLICE, vocab]: run arena, host */
} judge;

static void judge_row(judge *j, const int32_t *ids, int n) {
    batch_clear(&j->b);
    batch_add(&j->b, ids, NULL, n, 0);
    batch_find_runs(&j->b);
    j->t = session_tape(&j->s, false, false);
    j->h = model_forward(&j->t, &j->s.m, &j->b, NULL);
}

/* Logits of positions [at, at + n) of the row. */
static void judge_slice(judge *j, int at, int n) {
    int32_t rows[SLICE];
    size_t act = j->s.act.used, tmp = j->s.tmp.used, host = j->s.host.used;
    int64_t vocab = j->s.m.hp.vocab;
    for (int i = 0; i < n; i++) rows[i] = at + i;
    model_logits(&j->t, &j->s.m, j->h, rows, n, mat_f32(j->made, n, vocab));
    arena_get(&j->s.run, j->logits, j->made, (size_t)(n * vocab) * sizeof *j->made);
    arena_release(&j->s.act, act), arena_release(&j->s.tmp, tmp), arena_release(&j->s.host, host);
}

static int build(judge *j, const model_source *src, const inference_options *o) {
    if (inference_load(&j->s, &j->quant, src, o, j->b.rows_max)) return -1;
    j->made = arena_array(&j->s.run, (size_t)SLICE * (size_t)src->hp.vocab, sizeof *j->made);
    return 0;
}

static int judge_open(judge *j, const model_source *src, const inference_options *o, int longest) {
    int32_t *worst = xcalloc((size_t)longest, sizeof *worst);
    *j = (judge){.logits = xcalloc((size_t)SLICE * (size_t)src->hp.vocab, sizeof *j->logits)};
    batch_open(&j->b, longest, 1);
    adapter_sum_plan(&j->sum, &j->b);
    int bad = inference_base(&j->quant, src, o) || session_plan(&j->s, o->backend, false) || build(j, src, o);
    if (!bad) {
        judge_row(j, worst, longest);
        judge_slice(j, 0, longest < SLICE ? longest : SLICE);
        session planned = j->s;
        bad = session_open(&j->s, &planned, o->backend, o->threads);
        session_close(&planned);
        if (!bad) bad = build(j, src, o) || adapter_sum_open(&j->sum, &j->s, src, o);
    }
    free(worst);
    return bad ? -1 : 0;
}

static void judge_close(judge *j) {
    adapter_sum_close(&j->sum);
    session_close(&j->s);
    quant_cache_close(&j->quant);
    batch_close(&j->b);
    free(j->logits);
    *j = (judge){0};
}

/* ---- two distributions ---- */

typedef struct {
    double nll[2], kl, kl_max;
    int64_t positions, same_top, scored;
} check_sum;

static double log_sum(const float *z, int64_t n, int64_t *top) {
    double max = (double)z[0], sum = 1; /* the largest itself */
    *top = 0;
    for (int64_t i = 1; i < n; i++)
        if ((double)z[i] > max) max = (double)z[i], *top = i;
    for (int64_t i = 0; i < n; i++) sum += i == *top ? 0 : exp((double)z[i] - max);
    return max + log(sum);
}

static void compare(const float *p, const float *q, int64_t vocab, int32_t next, check_sum *c) {
    int64_t top_p, top_q;
    double zp = log_sum(p, vocab, &top_p), zq = log_sum(q, vocab, &top_q), kl = 0;
    for (int64_t i = 0; i < vocab; i++) {
        double lp = (double)p[i] - zp;
        kl += exp(lp) * (lp - ((double)q[i] - zq));
    }
    c->kl += kl, c->positions++, c->same_top += top_p == top_q;
    if (kl > c->kl_max) c->kl_max = kl;
    if (next < 0) return;
    c->nll[0] += zp - (double)p[next], c->nll[1] += zq - (double)q[next], c->scored++;
}

static void check_row(judge two[2], const text_row *r, check_sum *c) {
    int64_t vocab = two[0].s.m.hp.vocab;
    for (int k = 0; k < 2; k++) judge_row(&two[k], r->ids, r->n);
    for (int at = 0; at < r->n; at += SLICE) {
        int n = r->n - at < SLICE ? r->n - at : SLICE;
        check_sum part[SLICE];
        memset(part, 0, sizeof part);
        for (int k = 0; k < 2; k++) judge_slice(&two[k], at, n);
#pragma omp parallel for num_threads(two[0].s.k.threads)
        for (int i = 0; i < n; i++)
            compare(two[0].logits + i * vocab, two[1].logits + i * vocab, vocab,
                    at + i + 1 < r->n ? r->ids[at + i + 1] : -1, &part[i]);
        for (int i = 0; i < n; i++) {
            c->nll[0] += part[i].nll[0], c->nll[1] += part[i].nll[1], c->kl += part[i].kl;
            c->positions += part[i].positions, c->same_top += part[i].same_top, c->scored += part[i].scored;
            if (part[i].kl_max > c->kl_max) c->kl_max = part[i].kl_max;
        }
    }
}

static int report(const merge_options *o, const text_rows *rows, const check_sum *c) {
    if (!isfinite(c->kl)) return fail(EXIT_DIVERGED, "%s: what was written gives values that are not finite", o->out);
    double n = (double)c->scored, a = exp(c->nll[0] / n), b = exp(c->nll[1] / n);
    printf("check on %ld tokens of %s:\n", (long)rows->tokens, o->check);
    printf("  perplexity: %.4f %s, %.4f written (%+.2f %%)\n", a, o->adapter ? "unmerged" : "before", b,
           100 * (b / a - 1));
    printf("  KL divergence: %.3g nats a token, at most %.3g; the same first choice at %.2f %%\n",
           c->kl / (double)c->positions, c->kl_max, 100 * (double)c->same_top / (double)c->positions);
    return 0;
}

int merge_check(const merge_options *o, const model_source *src, base_quant base) {
    const inference_options apart = {.adapter = {{o->adapter, 1}},
                                     .adapters = o->adapter != NULL,
                                     .backend = o->backend,
                                     .threads = o->threads,
                                     .base_given = true,
                                     .load_in_4bit = base != BASE_AS_IS,
                                     .double_quant = base == BASE_NF4_DOUBLE,
                                     .cache = {QUANT_CACHE_READ, NULL, QUANT_CACHE_MIN_BYTES}},
                            written = {.backend = o->backend, .threads = o->threads, .base_given = true};
    text_rows rows = {0};
    model_source out = {0};
    judge two[2] = {{.h = NULL}, {.h = NULL}};
    check_sum c = {.positions = 0};
    int bad = text_rows_read(&rows, src, o->check, PIECE);
    if (!bad && rows.tokens == rows.n) bad = fail(EXIT_INPUT, "%s: expected rows of two tokens or more", o->check);
    bool opened = !bad;
    if (!bad) bad = model_source_open(&out, o->out);
    if (!bad) bad = judge_open(&two[0], src, &apart, rows.longest) || judge_open(&two[1], &out, &written, rows.longest);
    for (int i = 0; i < rows.n && !bad; i++) {
        check_row(two, &rows.row[i], &c);
        if (isatty(STDERR_FILENO)) fprintf(stderr, "\r  %d of %d rows%s", i + 1, rows.n, i + 1 < rows.n ? "" : "\n");
    }
    if (!bad) bad = report(o, &rows, &c);
    for (int k = 0; k < 2; k++)
        if (two[k].logits) judge_close(&two[k]);
    if (opened) model_source_close(&out);
    text_rows_free(&rows);
    return bad ? -1 : 0;
}
