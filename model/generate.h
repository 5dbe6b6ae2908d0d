/* Inference over a model with or without an adapter: the same forward pass as training with recording off. A generator
 * holds one sequence in a KV cache; a scorer gives log-probabilities of whole rows. */
#ifndef PEFT_MODEL_GENERATE_H
#define PEFT_MODEL_GENERATE_H

#include "model/quant_cache.h"
#include "model/sampling.h"
#include "model/session.h"

enum { PREFILL_ROWS = 512 }; /* tokens of a prompt that go through the model at once */

typedef struct inference_options {
    const char *adapter; /* PEFT directory or NULL */
    const char *backend;
    int threads;
    bool base_given; /* load_in_4bit was said; else the base is what the adapter was trained on */
    bool load_in_4bit, double_quant;
    quant_cache_options cache; /* of a 4-bit base */
} inference_options;

typedef struct generator {
    session s;
    quant_cache quant; /* of the base, when it is in NF4 and kept in a file */
    kv_cache kv;
    batch b;
    int32_t *ids; /* [context] tokens in the cache */
    int n, context;
    float *logits; /* [vocab] after the last token; in the run arena */
    float *seen;   /* [vocab] the same on the host */
    candidate *candidates;
} generator;

int generator_open(generator *g, const model_source *src, const inference_options *o, int context);
void generator_close(generator *g);
void generator_rewind(generator *g, int n);                  /* keep the first n tokens */
int generator_feed(generator *g, const int32_t *ids, int n); /* -1: the context is full */
int generator_resume(generator *g, const int32_t *ids,
                     int n); /* feed what differs from the cache; returns how many were fed, or -1 */
int32_t generator_next(generator *g, const sampling *s); /* chosen from logits; not yet fed */

typedef struct scorer {
    session s;
    quant_cache quant;
    batch b;
    int32_t *rows, *target;
    float *row_weight, *logprob; /* [longest] */
    float *made;                 /* [longest] logprob where the kernels write it, and their sums: in the run arena */
    step_sums *sums;
} scorer;

int scorer_open(scorer *r, const model_source *src, const inference_options *o, int longest);
void scorer_close(scorer *r);
/* r->logprob[i] = log p(ids[i + 1] | ids[0..i]), i < n - 1. */
void scorer_run(scorer *r, const int32_t *ids, int n);

#endif
