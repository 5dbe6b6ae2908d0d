/* Probabilities are taken in double in the order of the candidates, so the same logits give the same token everywhere.
 */
#include "model/sampling.h"
#include "core/rng.h"

#include <math.h>
#include <stdlib.h>

static int32_t most_probable(const float *logits, int vocab) {
    int32_t best = 0;
    for (int32_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best]) best = i;
    return best;
}

static int by_logit(const void *a, const void *b) {
    const candidate *x = a, *y = b;
    if (x->logit > y->logit) return -1;
    return x->logit < y->logit || x->id > y->id;
}

/* How many of the sorted candidates top-p keeps; p is a probability at temperature 1. */
static int nucleus(const candidate *c, int n, double top_p) {
    double sum = 0, seen = 0;
    for (int i = 0; i < n; i++) sum += exp((double)c[i].logit - (double)c[0].logit);
    for (int i = 0; i < n; i++)
        if ((seen += exp((double)c[i].logit - (double)c[0].logit)) >= top_p * sum) return i + 1;
    return n;
}

int32_t sample_token(const float *logits, int vocab, const sampling *s, uint64_t position, candidate *c) {
    if (s->temperature <= 0) return most_probable(logits, vocab);
    for (int32_t i = 0; i < vocab; i++) c[i] = (candidate){logits[i], i};
    qsort(c, (size_t)vocab, sizeof *c, by_logit);
    int n = s->top_k > 0 && s->top_k < vocab ? s->top_k : vocab;
    if (s->top_p < 1) n = nucleus(c, n, s->top_p);
    double sum = 0, at = 0;
    for (int i = 0; i < n; i++) sum += exp(((double)c[i].logit - (double)c[0].logit) / s->temperature);
    double want = (double)rng_uniform(s->seed, STREAM_SAMPLE, position) * sum;
    for (int i = 0; i < n; i++)
        if ((at += exp(((double)c[i].logit - (double)c[0].logit) / s->temperature)) > want) return c[i].id;
    return c[n - 1].id;
}
