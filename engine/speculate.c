#include "engine/speculate.h"
#include "core/error.h"
#include "core/progress.h"
#include "engine/parts.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- opening ---- */

/* Ids must mean the same text in both models. */
static int check_tokens(const engine *e, const tokenizer *draft) {
    const tokenizer *t = e->o.tok;
    int n = tokenizer_vocab(t) < tokenizer_vocab(draft) ? tokenizer_vocab(t) : tokenizer_vocab(draft);
    for (int i = 0; i < n; i++) {
        int a, b;
        const char *x = tokenizer_bytes(t, i, &a), *y = tokenizer_bytes(draft, i, &b);
        if (a != b || memcmp(x, y, (size_t)a) != 0)
            return fail(EXIT_INPUT,
                        "%s: token %d is '%.*s', but '%.*s' in %s: a draft model needs the tokenizer of the model",
                        e->o.draft->path, i, b, y, a, x, e->o.src->path);
    }
    return 0;
}

static int check_draft(const engine *e) {
    if (!e->o.tok && e->o.draft->hp.vocab == e->o.src->hp.vocab) return 0;
    if (!e->o.tok)
        return fail(EXIT_INPUT, "%s: %ld tokens, but the model has %ld: a draft model needs the tokenizer of the model",
                    e->o.draft->path, (long)e->o.draft->hp.vocab, (long)e->o.src->hp.vocab);
    tokenizer *t = model_tokenizer(e->o.draft, NULL);
    int bad = !t || check_tokens(e, t);
    tokenizer_close(t);
    return bad;
}

int speculator_open(engine *e) {
    speculator *d = &e->spec;
    d->lookup = e->o.lookup;
    if (!e->o.draft) return 0;
    if (check_draft(e)) return -1;
    if (e->o.draft->hp.context < e->o.context)
        return fail(EXIT_USAGE, "%s: %ld positions are fewer than the context of %d", e->o.draft->path,
                    (long)e->o.draft->hp.context, e->o.context);
    runner_options r = {.src = e->o.draft, .how = e->o.how, .logit_rows = e->o.sequences};
    r.how.adapters = 0;
    r.kv = e->r.kv.s;
    r.kv.type = KV_F32, r.kv.pages = r.kv.seqs_max * e->r.kv.columns;
    sampler_open(&d->w, (int)e->o.draft->hp.vocab);
    d->model = true;
    return runner_open(&d->r, &r);
}

void speculator_close(engine *e) {
    if (e->spec.model) runner_close(&e->spec.r);
    sampler_close(&e->spec.w);
}

void speculation_begin(engine *e, sequence *s) {
    if (!e->spec.model) return;
    for (int i = 0; i < s->n; i++) s->spec.foreign |= s->token[i] >= e->spec.w.vocab;
    for (int i = 0; i < s->sampling.biases; i++) s->spec.foreign |= s->sampling.bias[i].id >= e->spec.w.vocab;
    if (s->spec.foreign) return;
    if (!s->spec.at.page) track_open(&s->spec.at, &e->spec.r);
    track_match(&s->spec.at, &e->spec.r, 0, s->token, s->n);
}

void speculation_clear(engine *e, sequence *s) {
    if (s->spec.at.page) track_clear(&s->spec.at, &e->spec.r);
}

void speculation_end(engine *e, sequence *s) {
    if (s->spec.at.page) track_close(&s->spec.at, &e->spec.r);
}

/* ---- look-up ---- */

enum { MATCH_MIN = 2, MATCH_MIDDLE = 4, MATCH_LONG = 8, MATCH_MAX = 16 };

/* Tokens that agree, backwards from token[i] and from the last one. */
static int agreeing(const int32_t *token, int n, int i) {
    int m = 0;
    while (m < MATCH_MAX && m <= i && token[i - m] == token[n - 1 - m]) m++;
    return m;
}

/* Where the longest agreement ends, the latest of them; -1: none of MATCH_MIN. */
static int find_match(const int32_t *token, int n, int *length) {
    int best = -1;
    *length = MATCH_MIN - 1;
    for (int i = n - 2; i >= 0 && *length < MATCH_MAX; i--) {
        if (token[i] != token[n - 1]) continue;
        int m = agreeing(token, n, i);
        if (m > *length) best = i, *length = m;
    }
    return best;
}

/* The text goes on as it did there; where that runs into its own end it is repeated. */
static int look_up(sequence *s, int most, draft_source *source) {
    int length, at = find_match(s->token, s->n, &length);
    if (at < 0) return 0;
    *source = length >= MATCH_LONG ? LOOKUP_LONG : length >= MATCH_MIDDLE ? LOOKUP_MIDDLE : LOOKUP_SHORT;
    for (int i = 0; i < most; i++) s->token[s->n + i] = s->token[at + 1 + i];
    return most;
}

/* ---- how many ---- */

enum { PRIOR = 2 }; /* guesses that the first estimate is worth */
#define PRIOR_SHARE(source) ((source) >= LOOKUP_LONG ? 0.75 : 0.5)
#define FADE 0.9     /* of the counts, with each guess that was tried */
#define FORGET 0.99  /* with each token that was not guessed, so that a source is tried again */
#define ROW_COST 0.3 /* of a row more, as a share of a batch of one: until it has been measured */

static double share_of(const sequence *s, draft_source x) {
    return (PRIOR * PRIOR_SHARE(x) + s->spec.kept[x]) / (PRIOR + s->spec.tried[x]);
}

/* Seconds of a batch of `rows` <= TIMED_ROWS, out of the nearest that were seen. */
static double time_of(const speculator *d, int rows) {
    int below = rows, above = rows;
    while (below > 0 && !(d->step[below] > 0)) below--;
    while (above <= TIMED_ROWS && !(d->step[above] > 0)) above++;
    if (below == rows) return d->step[rows];
    if (!below) return 1 + ROW_COST * (rows - 1); /* nothing yet: any unit will do */
    if (above <= TIMED_ROWS)
        return d->step[below] + (d->step[above] - d->step[below]) * (rows - below) / (above - below);
    return d->step[below] * (1 + ROW_COST * (rows - below) / (1 + ROW_COST * (below - 1)));
}

/* The length that brings most tokens a second, `rows` of others in the batch; each guess costs `guess` seconds. */
static int best_length(const engine *e, double a, int rows, int most, double guess) {
    double tokens = 1, power = 1, best = 1 / time_of(&e->spec, rows + 1);
    int length = 0;
    for (int k = 1; k <= most; k++) {
        tokens += power *= a;
        double speed = tokens / (time_of(&e->spec, rows + 1 + k) + k * guess);
        if (speed > best) best = speed, length = k;
    }
    return length;
}

void speculator_time(engine *e, int rows, double seconds) {
    if (rows > TIMED_ROWS) return;
    double *t = &e->spec.step[rows];
    *t = *t > 0 ? *t + 0.2 * (seconds - *t) : seconds;
}

void speculation_learn(engine *e, sequence *s, int drafts, int kept) {
    speculation *p = &s->spec;
    if (p->at.page) { /* what the draft model has cached beyond is of guesses */
        int valid = p->at.cached < s->n - 1 ? p->at.cached : s->n - 1;
        track_advance(&p->at, &e->spec.r, 0, s->token, valid);
    }
    if (!drafts) {
        for (int x = 0; x < SOURCES; x++) p->kept[x] *= FORGET, p->tried[x] *= FORGET;
        return;
    }
    int judged = kept < drafts ? kept + 1 : kept; /* those behind the first wrong one say nothing */
    for (int i = 0; i < judged; i++) {
        p->kept[p->source] = FADE * p->kept[p->source] + (i < kept);
        p->tried[p->source] = FADE * p->tried[p->source] + 1;
    }
    s->stats.drafted += drafts, s->stats.accepted += kept;
    e->stats.drafted += drafts, e->stats.accepted += kept;
}

/* ---- the draft model ---- */

/* Computes tokens of those that draft until only the last one of each is missing. */
static void catch_up(engine *e) {
    runner *r = &e->spec.r;
    for (;;) {
        int left = r->b.rows_max;
        runner_begin(r);
        for (int i = 0; i < e->n_running; i++) {
            sequence *s = e->running[i];
            int more = s->drafts && s->spec.source == DRAFT_MODEL ? s->n - 1 - s->spec.at.cached : 0;
            s->draft_rows = more < left ? more : left;
            left -= s->draft_rows;
            if (!s->draft_rows) continue;
            int bad = track_reserve(&s->spec.at, r, s->spec.at.cached + s->draft_rows);
            CHECK(!bad, "pages of the draft model%s", "");
            runner_add(r, &s->spec.at, s->token, s->draft_rows, -1, 0);
        }
        if (!r->b.rows) return;
        runner_run(r);
        for (int i = 0; i < e->n_running; i++) {
            sequence *s = e->running[i];
            if (s->draft_rows) track_advance(&s->spec.at, r, 0, s->token, s->spec.at.cached + s->draft_rows);
        }
    }
}

/* Guess number `round` of each draft that is so long. */
static bool draft_round(engine *e, int round) {
    runner *r = &e->spec.r;
    runner_begin(r);
    for (int i = 0; i < e->n_running; i++) {
        sequence *s = e->running[i];
        if (s->drafts <= round || s->spec.source != DRAFT_MODEL) continue;
        int bad = track_reserve(&s->spec.at, r, s->n + round);
        CHECK(!bad, "pages of the draft model%s", "");
        s->draft_rows = r->wants;
        runner_add(r, &s->spec.at, s->token, 1, -1, 1);
    }
    if (!r->b.rows) return false;
    runner_run(r);
    for (int i = 0; i < e->n_running; i++) {
        sequence *s = e->running[i];
        if (s->drafts <= round || s->spec.source != DRAFT_MODEL) continue;
        const float *logits = runner_logits(r, s->draft_rows);
        int32_t guess = sampler_next(&e->spec.w, logits, &s->sampling, s->token, s->prompt, s->n + round);
        if (guess >= e->w.vocab) guess = 0; /* a row of the draft's embedding that no token has */
        s->token[s->n + round] = guess;
        s->spec.at.cached++;
    }
    return true;
}

static void draft_tokens(engine *e) {
    catch_up(e);
    double before = seconds_now();
    for (int round = 0; draft_round(e, round); round++) {
        double now = seconds_now(), took = now - before;
        double *t = &e->spec.draft_step;
        *t = *t > 0 ? *t + 0.2 * (took - *t) : took;
        before = now;
    }
}

/* ---- a step ---- */

static int smaller(int a, int b) { return a < b ? a : b; }

/* One request's draft: what look-up finds, or as many guesses as the draft model will make. */
static int choose_draft(engine *e, sequence *s, int rows, int most) {
    draft_source source = DRAFT_MODEL;
    int k = 0;
    if (e->spec.lookup && look_up(s, most, &source)) k = best_length(e, share_of(s, source), rows, most, 0);
    s->spec.foreign |= e->spec.model && s->token[s->n - 1] >= e->spec.w.vocab;
    if (!k && e->spec.model && !s->spec.foreign) {
        double guess = e->spec.draft_step > 0 ? e->spec.draft_step : 0.25 * time_of(&e->spec, rows + 1);
        source = DRAFT_MODEL;
        k = best_length(e, share_of(s, source), rows, most, guess);
    }
    s->spec.source = source;
    return k;
}

void speculate(engine *e) {
    int rows = 0, left = smaller(DRAFT_ROWS, e->r.b.rows_max);
    bool drafting = false;
    if (!e->spec.lookup && !e->spec.model) return;
    for (int i = 0; i < e->n_running; i++) rows += e->running[i]->rows;
    left = smaller(left, smaller(e->r.b.rows_max, TIMED_ROWS) - rows);
    for (int i = 0; i < e->n_running; i++) {
        sequence *s = e->running[i];
        if (s->rows != 1 || s->at.cached + 1 != s->n) continue;
        int most = smaller(smaller(DRAFT_MAX, left), s->most - s->n - 1);
        if (most <= 0) continue;
        s->drafts = choose_draft(e, s, rows - 1, most);
        s->rows += s->drafts, rows += s->drafts, left -= s->drafts;
        drafting |= s->drafts && s->spec.source == DRAFT_MODEL;
    }
    if (drafting) draft_tokens(e);
}
