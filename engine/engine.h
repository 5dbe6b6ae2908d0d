/* The inference engine: any number of requests, each at its own position with its own sampling, computed together in
 * one mixed batch of prompts and answers per step. What a request gets does not depend on what else is in the batch.
 *
 *     engine_open; engine_add ...; while (engine_step(e)) while (engine_next(e, &ev)) use(ev);
 *
 * One thread owns an engine; nothing in it blocks but the computation of a step. Requests may be added and cancelled
 * between steps at any time.
 *
 * A step (engine/schedule.c) takes one row for each running answer (more where a draft is checked), then fills up to
 * batch_rows with pieces of prompts, in the order of arrival. Prompts that do not fit wait. Keys and values lie in
 * pages of KV_PAGE tokens that are shared by content (engine/pages.h); when none is left, the request that came last
 * gives its pages back and is computed again later, which changes no bit of its answer. */
#ifndef PEFT_ENGINE_ENGINE_H
#define PEFT_ENGINE_ENGINE_H

#include "data/tokenizer.h"
#include "model/inference.h"
#include "model/sampling.h"

typedef struct engine engine;

typedef struct engine_options {
    const model_source *src; /* outlives the engine */
    inference_options how;
    const tokenizer *tok; /* outlives the engine; NULL: no text, no end tokens, no stop strings */
    int context;          /* tokens of a request at most, prompt and answer; 0: the model's, at most 4096 */
    int sequences;        /* requests computed at once at most (1) */
    int batch_rows;       /* tokens of a step at most (512) */
    kv_type kv_type;
    int kv_pages;              /* 0: what `sequences` times `context` tokens need; at least one request must fit */
    bool merge;                /* how.adapter is merged into the base instead of standing beside it */
    bool lookup;               /* speculative decoding: guess that text goes on as it did before; changes no answer */
    const model_source *draft; /* likewise, guesses by a smaller model with the same tokenizer; or NULL; outlives it */
} engine_options;

/* NULL after fail(). */
engine *engine_open(const engine_options *o);
void engine_close(engine *e);
const session *engine_session(const engine *e); /* the model: for notes and figures */
int engine_context(const engine *e);

/* ---- adapters ---- */

/* Adapters stand beside the base, which stays as it is; requests choose among them. The first ones are how.adapter:
 * numbers 0, 1 ... Loading and unloading is possible between any two steps. */
int engine_adapter_load(engine *e,
                        const char *path);         /* PEFT directory or GGUF LoRA file; its number; -1 after fail() */
int engine_adapter_unload(engine *e, int adapter); /* -1 after fail(): unknown, or a request that uses it goes on */

/* Puts adapters into the base's matrices, in memory of their own, and takes them out again, exactly. Requests then add
 * theirs on top. -1 after fail(): a request is unfinished, something is merged already, or the adapter is bad. */
int engine_merge(engine *e, const adapter_choice *a, int n);
int engine_unmerge(engine *e);

typedef struct adapter_share {
    int adapter;
    float scale; /* times the adapter's own alpha / r */
} adapter_share;

/* ---- requests ---- */

enum { LOGPROBS_MAX = 100 };

typedef struct request {
    const int32_t *prompt; /* n tokens, 0 < n < context; copied, as everything here is */
    int n;
    int max_tokens; /* 0: until the context is full */
    sampling sampling;
    bool ignore_eog;         /* go on past end tokens */
    const char *const *stop; /* the answer ends before any of these */
    int stops;
    const adapter_share *adapter; /* their sum, `adapters` of them at most SHARES_MAX; none: the base model */
    int adapters;
    int logprobs; /* log-probabilities of the model: -1 none; else the chosen token and so many of the most probable */
} request;
#define REQUEST_PLAIN ((request){.sampling = SAMPLING_PLAIN, .logprobs = -1})

/* A request for all of how.adapter with their scales, as ./infer makes it: fills in r->adapter (static for e). */
void engine_default_adapters(const engine *e, request *r);

/* The request's number, 1, 2 ..., or -1 after fail(EXIT_USAGE). */
int64_t engine_add(engine *e, const request *r);
/* Ends it with FINISH_CANCELLED in the next step; a request that is over already is left alone. */
void engine_cancel(engine *e, int64_t id);
/* A second request with the tokens so far of a running one and a seed of its own; they share their pages until they
 * differ. -1: no such request, or it has ended. */
int64_t engine_fork(engine *e, int64_t id, uint64_t seed);

/* ---- steps and what they bring ---- */

/* Computes one batch. Returns how many requests are unfinished, counted before this step: 0 = there was nothing to do.
 */
int engine_step(engine *e);

typedef enum {
    FINISH_NOT,    /* goes on */
    FINISH_STOP,   /* an end token, or a stop string */
    FINISH_LENGTH, /* max_tokens, or the context is full */
    FINISH_CANCELLED,
    FINISHES
} finish_reason;
extern const char *const finish_names[FINISHES]; /* "", "stop", "length", "cancelled" */

typedef struct request_stats {
    int prompt_tokens, cached_tokens; /* cached: taken from earlier requests */
    int completion_tokens;            /* the end token included */
    int preemptions;
    int drafted, accepted;                                 /* guesses of speculative decoding; those that were right */
    double queue_seconds, prefill_seconds, decode_seconds; /* waiting; to the first token; from there to the last */
} request_stats;

/* One token of one request, or its end. Pointers are valid until the next engine_step. */
typedef struct engine_event {
    int64_t id;
    int32_t token;    /* -1: none, only the end */
    const char *text; /* what may be shown now: whole characters, nothing that may become a stop string; "" often */
    int bytes;        /* of text; NUL-terminated */
    finish_reason finish;
    const token_logprob *logprobs; /* [0] the token, [1 .. top] the most probable ones; NULL where not asked for */
    int top;
    const float *logits; /* [vocab] that the token was chosen from, raw; NULL without a token */
    request_stats stats; /* so far */
} engine_event;
bool engine_next(engine *e, engine_event *ev); /* the events of the last step in order; false: no more */

typedef struct engine_stats {
    int64_t steps, rows; /* batches; tokens computed in them */
    int64_t prompt_tokens, cached_tokens, completion_tokens, preemptions;
    int64_t drafted, accepted;
    int running, waiting, pages, pages_held;
} engine_stats;
engine_stats engine_figures(const engine *e);

#endif
