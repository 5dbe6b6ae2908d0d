/* A model that computes one mixed batch at a time over paged sequences: the target, or the model that drafts for it. */
#ifndef PEFT_ENGINE_RUNNER_H
#define PEFT_ENGINE_RUNNER_H

#include "engine/pages.h"
#include "model/inference.h"

typedef struct runner_options {
    const model_source *src;
    inference_options how;
    kv_shape kv;                  /* type, pages, rows_max, seqs_max, context; the rest is the model's */
    int logit_rows;               /* rows of a batch whose logits may be asked for */
    const struct lora_sets *sets; /* of the adapters of its batches; NULL: none */
} runner_options;

typedef struct runner {
    session s;
    quant_cache quant; /* of the base, when it is in NF4 and kept in a file */
    kv_cache kv;
    page_pool pool;
    batch b;
    int32_t *want; /* [logit_rows] rows whose logits are asked for */
    int wants, logit_rows;
    float *logits;     /* [logit_rows, vocab] of the last batch, in the order of want; run arena */
    float *seen;       /* the same on the host where the arena is not; heap */
    const float *view; /* of both the one that the host reads */
} runner;

int runner_open(runner *r, const runner_options *o);
void runner_close(runner *r);

/* A sequence's place in a runner. */
typedef struct track {
    int32_t *page; /* [columns] heap; -1: dropped, out of every window */
    int pages;     /* allocated */
    int cached;    /* tokens whose keys and values are in them */
    int named;     /* pages that have their names */
    int gone;      /* pages dropped at the beginning */
} track;
void track_open(track *t, const runner *r);
void track_close(track *t, runner *r);
void track_clear(track *t, runner *r); /* holds nothing, nothing is cached */
/* Takes over pages that hold the beginning of token[0, n), whole pages and never all of the n tokens. t is clear. */
void track_match(track *t, runner *r, uint64_t key, const int32_t *token, int n);
/* Pages for the tokens up to n, and the one that the next token goes to is this sequence's alone. -1: none is left. */
int track_reserve(track *t, runner *r, int n);
void track_fork(track *to, const track *from, runner *r); /* shares every page; to is clear */
/* The tokens up to n are cached and final: names what is full, drops what no later token sees. */
void track_advance(track *t, runner *r, uint64_t key, const int32_t *token, int n);

void runner_begin(runner *r); /* an empty batch */
/* The tokens [past, past + rows) of a sequence; the last `logits` rows of them are asked for. */
void runner_add(runner *r, const track *t, const int32_t *token, int rows, int adapter, int logits);
void runner_run(runner *r);
const float *runner_logits(const runner *r, int i); /* [vocab] of the i-th row asked for */

#endif
