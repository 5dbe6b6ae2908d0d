/* The text of an answer as it grows, token by token: only whole characters leave, and nothing that a stop string may
 * begin with until it is clear that it does not. Stop strings may lie across the borders of tokens. */
#ifndef PEFT_ENGINE_ANSWER_H
#define PEFT_ENGINE_ANSWER_H

#include "data/utf8.h"
#include "data/tokenizer.h"

typedef struct answer {
    char **stop; /* heap */
    int stops;
    char *held; /* bytes that have not left */
    size_t n, cap;
    utf8_stream whole;
    char *out; /* what left last; NUL-terminated */
    size_t out_cap;
} answer;

void answer_open(answer *a, const char *const *stop, int stops); /* copies; empty strings are left out */
void answer_close(answer *a);
void answer_copy(answer *to, const answer *from); /* to is not open */
/* Adds bytes; returns what may be shown now (borrowed until the next call), its length in *n. *stopped: a stop string
 * was found, what stands before it has been returned, and the answer is over. last: nothing more will come, so nothing
 * is held back. */
const char *answer_feed(answer *a, const char *bytes, int size, bool last, int *n, bool *stopped);

#endif
