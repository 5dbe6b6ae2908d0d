/* What a cached 4-bit base is found by (quant_cache.h says what goes into it and why). */
#ifndef PEFT_MODEL_QUANT_KEY_H
#define PEFT_MODEL_QUANT_KEY_H

#include "model/quant_cache.h"

typedef struct quant_key {
    char text[320]; /* every part, for comparison and for people */
    uint64_t hash;  /* of text */
} quant_key;

/* Reads the base's files unless their hashes are remembered in dir; remembers them there if it can. */
void quant_key_make(quant_key *k, const model_source *s, const char *dir, bool verify, const quant_module *modules,
                    int n, bool double_quant);
const file_map *model_source_files(const model_source *s, int *n);

#endif
