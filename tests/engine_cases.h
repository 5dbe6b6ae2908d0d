/* What the engine's tests share: requests, engines on golden models, and what came of the requests. */
#ifndef PEFT_TESTS_ENGINE_CASES_H
#define PEFT_TESTS_ENGINE_CASES_H

#include "core/error.h"
#include "core/rng.h"
#include "engine/engine.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define GOLDEN "tests/golden/"
enum { VOCAB = 320, CONTEXT = 96, REQUESTS = 7, ANSWER = 24 };

typedef struct {
    int32_t token[CONTEXT];
    uint64_t logits; /* hash of all logits the tokens were chosen from */
    int n;
    finish_reason finish;
    request_stats stats;
} outcome;

static inline void prompt_of(int which, int32_t *ids, int *n) {
    static const int lengths[REQUESTS] = {1, 40, 17, 5, 33, 64, 16};
    *n = lengths[which];
    for (int i = 0; i < *n; i++) ids[i] = (int32_t)rng_below(3, STREAM_TEST, (uint64_t)(1000 * which + i), VOCAB);
    if (which == 4) prompt_of(1, ids, &(int){0}); /* the beginning of another one */
}

static inline request request_of(int which, int32_t *ids) {
    request q = REQUEST_PLAIN;
    prompt_of(which, ids, &q.n);
    q.prompt = ids, q.max_tokens = ANSWER, q.sampling.seed = (uint64_t)which, q.ignore_eog = true;
    if (which % 3 == 0) q.sampling.temperature = 0;
    if (which % 3 == 1) q.sampling.top_k = 40, q.sampling.top_p = 0.9, q.sampling.repetition = 1.3;
    return q;
}

static inline engine *open_engine(model_source *src, const char *model, engine_options o) {
    if (model_source_open(src, model)) fail_msg("%s", fail_text());
    o.src = src, o.how.backend = o.how.backend ? o.how.backend : "auto", o.how.double_quant = true;
    if (!o.how.threads) o.how.threads = 2;
    if (!o.context) o.context = CONTEXT;
    engine *e = engine_open(&o);
    if (!e) fail_msg("%s", fail_text());
    return e;
}

/* Runs to the end; out[id - 1]. */
static inline void drain(engine *e, outcome *out) {
    for (engine_event ev; engine_step(e);)
        while (engine_next(e, &ev)) {
            outcome *o = &out[ev.id - 1];
            if (ev.token >= 0) {
                o->token[o->n++] = ev.token;
                o->logits = hash_bytes(o->logits, ev.logits, VOCAB * sizeof(float));
            }
            o->finish = ev.finish, o->stats = ev.stats;
        }
}

static inline void same(const outcome *a, const outcome *b, const char *what, int which) {
    if (a->n != b->n || memcmp(a->token, b->token, (size_t)a->n * sizeof *a->token))
        fail_msg("%s: request %d: other tokens (%d and %d)", what, which, a->n, b->n);
    if (a->logits != b->logits) fail_msg("%s: request %d: other logits", what, which);
    assert_int_equal(a->finish, b->finish);
}

#endif
