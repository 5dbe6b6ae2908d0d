/* The command line of ./infer: one table gives parsing, ranges and --help. */
#ifndef PEFT_INFER_OPTIONS_H
#define PEFT_INFER_OPTIONS_H

#include "engine/engine.h"

enum { STOPS_MAX = 16, BIASES_MAX = 256 };

typedef struct infer_options {
    const char *model, *tokenizer;
    /* what to do: one of these */
    const char *prompt, *file; /* with chat: the first turn */
    bool chat;
    const char *batch, *score;
    const char *imatrix, *text; /* where it goes; what it is made from */
    /* how */
    const char *system, *chat_template;
    inference_options how;
    sampling sampling;
    const char *stop[STOPS_MAX];
    int stops;
    token_bias bias[BIASES_MAX];
    int biases;
    int64_t max_tokens, context, parallel, threads, logprobs, seed, top_k, repeat_last_n;
    kv_type kv_type;
    bool adapter_type_given;
    const char *draft_model;
    bool json, ignore_eos, precise, merge, lookup;
} infer_options;

/* -1 after fail(EXIT_USAGE). --help prints and leaves. Texts stay those of argv. */
int infer_options_parse(infer_options *o, int argc, char **argv);
/* One option by name, as /set gives it; the same checks. */
int infer_options_set(infer_options *o, const char *name, const char *text);
/* A request with the options' sampling, limits and stop strings; the prompt is the caller's. */
request infer_request(const infer_options *o);

#endif
