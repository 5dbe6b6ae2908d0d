/* Tokenizers from one container to the other. */
#ifndef PEFT_DATA_TOKENIZER_WRITE_H
#define PEFT_DATA_TOKENIZER_WRITE_H

#include "core/file_set.h"
#include "core/gguf_write.h"

/* Adds tokenizer.json, tokenizer_config.json, special_tokens_map.json, generation_config.json and, where the file has a
 * template, chat_template.jinja to set. context: model_max_length. A file without a tokenizer adds nothing. */
int tokenizer_write_gguf(const gguf *g, int64_t context, file_set *set);
/* The tokenizer of a Hugging Face directory as GGUF's keys. tokenizer.ggml.pre, the name of how text is split, is found
 * by trying: the known one that cuts a probe in many scripts into this tokenizer's words. -1: none does, or what the
 * tokenizer puts around a text has no key. vocab: rows of the embedding; ids that no token has become unused ones. */
int tokenizer_write_keys(const char *dir, int64_t vocab, gguf_meta *m);

#endif
