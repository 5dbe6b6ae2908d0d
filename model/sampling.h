/* Choosing the next token from logits, in llama.cpp's vocabulary and order: top-k, top-p, then temperature. */
#ifndef PEFT_MODEL_SAMPLING_H
#define PEFT_MODEL_SAMPLING_H

#include <stdint.h>

typedef struct sampling {
    double temperature; /* 0: the most probable token */
    double top_p;       /* smallest set of tokens whose probability reaches it; 1 = all */
    int top_k;          /* 0 = all */
    uint64_t seed;
} sampling;

typedef struct candidate {
    float logit;
    int32_t id;
} candidate;

/* The token after `position` tokens. Equal logits: the smaller id first. A pure function of its arguments. scratch
 * [vocab]. */
int32_t sample_token(const float *logits, int vocab, const sampling *s, uint64_t position, candidate *scratch);

#endif
