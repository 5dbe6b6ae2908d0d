/* What the engine's files share and nobody else. */
#ifndef PEFT_ENGINE_PARTS_H
#define PEFT_ENGINE_PARTS_H

#include "engine/adapters.h"
#include "engine/answer.h"
#include "engine/engine.h"
#include "engine/runner.h"
#include "engine/speculate.h"
#include "model/merged.h"

struct sequence {
    int64_t id;
    sampling sampling; /* bias: heap */
    int32_t *token;    /* [context]; heap */
    int n, prompt;     /* tokens; of the prompt */
    int most;          /* tokens at the end at most */
    int logprobs;
    bool ignore_eog, cancelled;
    int set;      /* adapters; -1: none */
    uint64_t key; /* what its keys and values depend on beside the tokens */
    track at;
    int rows, row;  /* of the present step; the first of its rows of logits */
    int drafts;     /* of these rows: guesses, in token[n .. n + drafts) */
    int draft_rows; /* of the present batch of the draft model */
    speculation spec;
    answer text;
    request_stats stats;
    double added, admitted, first; /* seconds_now */
    sequence *next;                /* in the queue of those who wait */
};

typedef struct event {
    engine_event ev;
    size_t text, logprobs; /* offsets in the engine's buffers: they may move while a step goes on */
} event;

struct engine {
    engine_options o;
    runner r;
    adapters ad;
    adapter_share all[SHARES_MAX]; /* how.adapter, `alls` of them beside the base */
    int alls;
    merged merged;
    sampler w;
    speculator spec;
    sequence **running; /* [sequences] in the order of arrival */
    int n_running, n_waiting;
    sequence *waiting; /* in the order of arrival */
    int64_t ids;
    event *event;
    int events, events_cap, events_taken;
    char *text;
    size_t text_n, text_cap;
    token_logprob *logprob;
    size_t logprob_n, logprob_cap;
    engine_stats stats;
};

void sequence_free(engine *e, sequence *s);
void queue_insert(engine *e, sequence *s); /* by number: the order of arrival */
void event_add(engine *e, sequence *s, engine_event ev, const token_logprob *logprobs);

#endif
