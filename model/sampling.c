/* Probabilities are taken in double in a fixed order, so the same logits give the same token everywhere. */
#include "model/sampling.h"
#include "core/arena.h"
#include "core/error.h"
#include "core/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int bad_number(const char *where, const char *name, double x, const char *expected) {
    return fail(EXIT_USAGE, "%s%s: found %g, expected %s", where, name, x, expected);
}

int sampling_check(const sampling *s, int vocab, const char *where) {
    if (!(s->temperature >= 0 && s->temperature <= 1e6))
        return bad_number(where, "temperature", s->temperature, "0 or more");
    if (!(s->top_p > 0 && s->top_p <= 1)) return bad_number(where, "top-p", s->top_p, "more than 0 and at most 1");
    if (!(s->min_p >= 0 && s->min_p <= 1)) return bad_number(where, "min-p", s->min_p, "0 to 1");
    if (s->top_k < 0) return bad_number(where, "top-k", s->top_k, "0 (all) or more");
    if (!(s->repetition > 0 && s->repetition <= 1e6))
        return bad_number(where, "repetition penalty", s->repetition, "more than 0");
    if (s->repeat_last_n < -1) return bad_number(where, "repeat-last-n", s->repeat_last_n, "-1 (all) or more");
    if (!(fabs(s->presence) <= 1e6)) return bad_number(where, "presence penalty", s->presence, "a number");
    if (!(fabs(s->frequency) <= 1e6)) return bad_number(where, "frequency penalty", s->frequency, "a number");
    for (int i = 0; i < s->biases; i++) {
        if (s->bias[i].id < 0 || s->bias[i].id >= vocab)
            return fail(EXIT_USAGE, "%slogit bias: token %d is none of this model (0 to %d)", where, s->bias[i].id,
                        vocab - 1);
        if (s->bias[i].bias != s->bias[i].bias || s->bias[i].bias == INFINITY)
            return bad_number(where, "logit bias", (double)s->bias[i].bias, "a number or -inf");
    }
    return 0;
}

void sampler_open(sampler *w, int vocab) {
    size_t n = (size_t)vocab;
    *w = (sampler){.vocab = vocab,
                   .logit = xcalloc(n, sizeof *w->logit),
                   .c = xcalloc(n, sizeof *w->c),
                   .count = xcalloc(n, sizeof *w->count)};
}

void sampler_close(sampler *w) {
    free(w->logit), free(w->c), free(w->count);
    *w = (sampler){0};
}

/* ---- bias and penalties ---- */

static void penalise_repetition(sampler *w, const sampling *s, const int32_t *token, int n) {
    int from = s->repeat_last_n < 0 || s->repeat_last_n > n ? 0 : n - s->repeat_last_n;
    for (int i = from; i < n; i++) {
        float *x = &w->logit[token[i]];
        if (!w->count[token[i]]++) *x = (float)(*x > 0 ? (double)*x / s->repetition : (double)*x * s->repetition);
    }
    for (int i = from; i < n; i++) w->count[token[i]] = 0;
}

static void penalise_answer(sampler *w, const sampling *s, const int32_t *token, int prompt, int n) {
    for (int i = prompt; i < n; i++) w->count[token[i]]++;
    for (int i = prompt; i < n; i++) {
        int32_t *count = &w->count[token[i]];
        if (*count) w->logit[token[i]] -= (float)(*count * s->frequency + s->presence);
        *count = 0;
    }
}

static void adjust(sampler *w, const float *logits, const sampling *s, const int32_t *token, int prompt, int n) {
    memcpy(w->logit, logits, (size_t)w->vocab * sizeof *logits);
    for (int i = 0; i < w->vocab; i++)
        if (w->logit[i] != w->logit[i]) w->logit[i] = -INFINITY;
    for (int i = 0; i < s->biases; i++) w->logit[s->bias[i].id] += s->bias[i].bias;
    if (s->repetition != 1 && s->repeat_last_n) penalise_repetition(w, s, token, n);
    if (s->presence != 0 || s->frequency != 0) penalise_answer(w, s, token, prompt, n);
}

/* ---- the largest ---- */

static int before(candidate a, candidate b) { return a.logit > b.logit || (a.logit == b.logit && a.id < b.id); }

/* c[0, n) is a heap with its last candidate on top; `at` may be out of order */
static void sift(candidate *c, int n, int at) {
    candidate x = c[at];
    for (int child; (child = 2 * at + 1) < n; at = child) {
        if (child + 1 < n && before(c[child], c[child + 1])) child++;
        if (!before(x, c[child])) break;
        c[at] = c[child];
    }
    c[at] = x;
}

/* c[0, k) = the k first of all in order; k <= vocab */
static void largest(candidate *c, const float *logit, int vocab, int k) {
    for (int i = 0; i < k; i++) c[i] = (candidate){logit[i], i};
    for (int i = k / 2 - 1; i >= 0; i--) sift(c, k, i);
    for (int i = k; i < vocab; i++) {
        if (!(logit[i] > c[0].logit)) continue; /* equal ones come later, by id */
        c[0] = (candidate){logit[i], i};
        sift(c, k, 0);
    }
    for (int i = k - 1; i > 0; i--) {
        candidate last = c[0];
        c[0] = c[i], c[i] = last;
        sift(c, i, 0);
    }
}

static int32_t most_probable(const float *logits, int vocab) {
    int32_t best = 0;
    for (int32_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best] || logits[best] != logits[best]) best = i;
    return best;
}

static double mass(candidate c, float top) { return exp((double)c.logit - (double)top); }

/* How many of the n sorted candidates reach top_p of `sum`; n + 1: not all of them together. */
static int nucleus(const candidate *c, int n, double top_p, double sum) {
    double seen = 0;
    for (int i = 0; i < n; i++)
        if ((seen += mass(c[i], c[0].logit)) >= top_p * sum) return i + 1;
    return n + 1;
}

/* top_k and top_p. Without top_k the sum is over all words and the sort goes no further than it must. */
static int keep_first(sampler *w, const sampling *s) {
    int vocab = w->vocab, k = s->top_k > 0 && s->top_k < vocab ? s->top_k : vocab;
    double sum = 0;
    if (k < vocab || s->top_p >= 1) {
        largest(w->c, w->logit, vocab, k);
        if (s->top_p >= 1) return k;
        for (int i = 0; i < k; i++) sum += mass(w->c[i], w->c[0].logit);
        int n = nucleus(w->c, k, s->top_p, sum);
        return n < k ? n : k;
    }
    float top = w->logit[most_probable(w->logit, vocab)];
    for (int32_t i = 0; i < vocab; i++) sum += mass((candidate){w->logit[i], i}, top);
    for (k = vocab < 64 ? vocab : 64;; k = 8 * (int64_t)k < vocab ? 8 * k : vocab) {
        largest(w->c, w->logit, vocab, k);
        int n = nucleus(w->c, k, s->top_p, sum);
        if (n <= k || k == vocab) return n < k ? n : k;
    }
}

int sampler_filter(sampler *w, const float *logits, const sampling *s, const int32_t *token, int prompt, int n) {
    int kept = w->vocab, left = 0;
    adjust(w, logits, s, token, prompt, n);
    if (s->top_k > 0 || s->top_p < 1)
        kept = keep_first(w, s);
    else
        for (int32_t i = 0; i < kept; i++) w->c[i] = (candidate){w->logit[i], i};
    if (s->min_p <= 0) return kept;
    double bound = (double)w->logit[most_probable(w->logit, w->vocab)] + log(s->min_p);
    for (int i = 0; i < kept; i++)
        if ((double)w->c[i].logit >= bound) w->c[left++] = w->c[i];
    return left ? left : kept; /* nothing but infinities */
}

/* ---- the draw ---- */

double sampling_noise(uint64_t seed, int n, int32_t id) {
    uint32_t u = rng_philox(seed, STREAM_SAMPLE, (uint64_t)(uint32_t)n << 32 | (uint32_t)id / 4).v[id % 4];
    return -log(-log(((double)u + 0.5) * 0x1p-32));
}

int32_t sampler_next(sampler *w, const float *logits, const sampling *s, const int32_t *token, int prompt, int n) {
    if (s->temperature <= 0) {
        adjust(w, logits, s, token, prompt, n);
        return most_probable(w->logit, w->vocab);
    }
    int kept = sampler_filter(w, logits, s, token, prompt, n);
    double best = -INFINITY;
    float top = w->c[0].logit;
    int32_t chosen = w->c[0].id;
    for (int i = 1; i < kept; i++)
        if (w->c[i].logit > top) top = w->c[i].logit;
    for (int i = 0; i < kept; i++) {
        double x = ((double)w->c[i].logit - (double)top) / s->temperature;
        if (x + 23 < best) continue; /* more than the noise can make good */
        x += sampling_noise(s->seed, n, w->c[i].id);
        if (x > best || (x == best && w->c[i].id < chosen)) best = x, chosen = w->c[i].id;
    }
    return chosen;
}

void sampler_logprobs(sampler *w, const float *logits, int32_t chosen, int top, token_logprob *out) {
    double sum = 0, high = (double)logits[most_probable(logits, w->vocab)];
    for (int i = 0; i < w->vocab; i++)
        if (logits[i] == logits[i]) sum += exp((double)logits[i] - high);
    double lse = high + (sum > 0 ? log(sum) : 0); /* 0: nothing but NaN */
    out[0] = (token_logprob){chosen, (float)((double)logits[chosen] - lse)};
    if (top > w->vocab) top = w->vocab;
    if (top > 0) largest(w->c, logits, w->vocab, top);
    for (int i = 0; i < top; i++) out[i + 1] = (token_logprob){w->c[i].id, (float)((double)w->c[i].logit - lse)};
}
