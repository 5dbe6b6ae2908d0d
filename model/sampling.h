/* Choosing the next token from logits, in the vocabulary of llama.cpp and vLLM. In this order:
 *
 *   1. logit bias                 logit += bias
 *   2. repetition penalty         of each token among the last repeat_last_n of prompt and answer: a positive logit is
 *                                 divided by it, another one multiplied (Keskar et al. 2019)
 *   3. frequency, presence        of each token of the answer: logit -= count * frequency + presence
 *   4. top_k                      the k largest logits
 *   5. top_p                      of those the smallest set whose probability reaches it (Holtzman et al. 2020)
 *   6. min_p                      of those the ones with min_p times the largest probability (Nguyen et al. 2024)
 *   7. temperature                probabilities are softmax(logit / temperature) over what is left; 0: the largest
 * logit
 *
 * The draw is the Gumbel-max trick: the token with the largest logit / temperature + G, where G = -log(-log u) and u is
 * a pure function of (seed, number of tokens before, token). So a token depends on nothing but the logits, the tokens
 * before it and the seed: not on threads or the batch, and a draft model that uses the same G agrees with the target as
 * often as two samplers without communication can (Daliri, Musco, Suresh 2025): engine/speculate.h. */
#ifndef PEFT_MODEL_SAMPLING_H
#define PEFT_MODEL_SAMPLING_H

#include <stdint.h>

typedef struct token_bias {
    int32_t id;
    float bias; /* -INFINITY bans the token */
} token_bias;

typedef struct sampling {
    double temperature;         /* 0: the most probable token */
    double top_p, min_p;        /* 1 and 0: all */
    int top_k;                  /* 0: all */
    double repetition;          /* 1: none */
    int repeat_last_n;          /* -1: all tokens, 0: none */
    double presence, frequency; /* 0: none */
    const token_bias *bias;     /* borrowed */
    int biases;
    uint64_t seed;
} sampling;
/* Temperature 1 and nothing else: the distribution of the model. */
#define SAMPLING_PLAIN ((sampling){.temperature = 1, .top_p = 1, .repetition = 1, .repeat_last_n = 64})

/* -1 after fail(EXIT_USAGE, "WHERE: ...") where a number makes no sense or a bias names no token. */
int sampling_check(const sampling *s, int vocab, const char *where);

typedef struct candidate {
    float logit;
    int32_t id;
} candidate;

typedef struct sampler {
    int vocab;
    float *logit;   /* [vocab] after bias and penalties */
    candidate *c;   /* [vocab] */
    int32_t *count; /* [vocab] zeros between calls */
} sampler;
void sampler_open(sampler *w, int vocab); /* heap */
void sampler_close(sampler *w);

/* The token after token[0, n), of which the first `prompt` are the prompt's. Equal logits: the smaller id first. NaN is
 * never chosen while there is another. */
int32_t sampler_next(sampler *w, const float *logits, const sampling *s, const int32_t *token, int prompt, int n);
/* Steps 1 to 6: what is left in w->c, the largest first where top_k or top_p sorted them; returns how many. */
int sampler_filter(sampler *w, const float *logits, const sampling *s, const int32_t *token, int prompt, int n);
/* G of a token: in (-3.2, 22.9). */
double sampling_noise(uint64_t seed, int n, int32_t id);

typedef struct token_logprob {
    int32_t id;
    float logprob;
} token_logprob;
/* Of the model itself, before bias, penalties and temperature: out[0] is the chosen token, out[1 .. top] are the most
 * probable ones in order. */
void sampler_logprobs(sampler *w, const float *logits, int32_t chosen, int top, token_logprob *out);

#endif
