/* How far two ways of computing a model's next-token distributions are from each other, over the tokens of a text. */
#ifndef PEFT_BENCH_DIVERGENCE_H
#define PEFT_BENCH_DIVERGENCE_H

#include "core/error.h"
#include "engine/runner.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* KL(p || q), nats: sum over words of p (log p - log q), its mean and largest over the tokens; the share of tokens
 * whose most probable word is the same; perplexities exp(mean -log p(next token)). */
typedef struct divergence {
    double mean, max, agree, perplexity_p, perplexity_q;
} divergence;

static inline double log_sum(const float *x, int64_t n, int64_t *top) {
    double sum = 0;
    *top = 0;
    if (n <= 0) return -INFINITY;
    for (int64_t i = 1; i < n; i++)
        if (x[i] > x[*top]) *top = i;
    for (int64_t i = 0; i < n; i++) sum += exp((double)(x[i] - x[*top]));
    return (double)x[*top] + log(sum);
}

/* logits p, q [n, vocab] after each of the n tokens */
static inline divergence diverge(const float *p, const float *q, const int32_t *ids, int n, int64_t vocab) {
    divergence d = {0};
    double nll_p = 0, nll_q = 0;
    for (int i = 0; i < n; i++, p += vocab, q += vocab) {
        int64_t top_p, top_q;
        const double zp = log_sum(p, vocab, &top_p), zq = log_sum(q, vocab, &top_q);
        double kl = 0;
        for (int64_t v = 0; v < vocab; v++) {
            const double lp = (double)p[v] - zp, lq = (double)q[v] - zq;
            kl += exp(lp) * (lp - lq);
        }
        d.mean += kl / n, d.agree += (double)(top_p == top_q) / n;
        if (kl > d.max) d.max = kl;
        if (i + 1 < n) nll_p -= (double)p[ids[i + 1]] - zp, nll_q -= (double)q[ids[i + 1]] - zq;
    }
    d.perplexity_p = exp(nll_p / (n > 1 ? n - 1 : 1)), d.perplexity_q = exp(nll_q / (n > 1 ? n - 1 : 1));
    return d;
}

/* Logits [n, vocab] after each token, fed in pieces of at most `piece` tokens; heap, NULL after fail(). */
static inline float *all_logits(const model_source *src, const inference_options *how, const int32_t *ids, int n,
                                int piece) {
    const runner_options o = {.src = src,
                              .how = *how,
                              .kv = {.pages = n, .rows_max = piece, .seqs_max = 1, .context = n},
                              .logit_rows = piece};
    const int64_t vocab = src->hp.vocab;
    runner r;
    track at;
    if (runner_open(&r, &o)) return NULL;
    float *all = xcalloc((size_t)n * (size_t)vocab, sizeof *all);
    track_open(&at, &r);
    for (int t = 0; t < n; t += piece) {
        const int rows = n - t < piece ? n - t : piece;
        CHECK(!track_reserve(&at, &r, t + rows), "%d pages", n);
        runner_begin(&r);
        runner_add(&r, &at, ids, rows, -1, rows);
        runner_run(&r);
        track_advance(&at, &r, 0, ids, t + rows);
        for (int i = 0; i < rows; i++) memcpy(all + (t + i) * vocab, runner_logits(&r, i), (size_t)vocab * sizeof *all);
    }
    track_close(&at, &r);
    runner_close(&r);
    return all;
}

#endif
