/* Reading a Hugging Face directory: the parts of tokenizer.json and of the files beside it. */
#ifndef PEFT_DATA_TOKENIZER_HF_H
#define PEFT_DATA_TOKENIZER_HF_H

#include "core/json.h"
#include "data/tokenizer_parts.h"

typedef struct {
    tokenizer *t;
    const char *where; /* path of tokenizer.json */
    bool saw_bytes, saw_decoder;
} hf_reader;

int hf_read_components(hf_reader *r, const json_t *root); /* normalizer, pre_tokenizer, post_processor, decoder */
/* Flags of an added token's object: special, lstrip, rstrip, single_word, normalized. -1 after fail(). */
int hf_added_flags(const char *where, const json_t *o, uint32_t *flags);

#endif
