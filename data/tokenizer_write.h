/* A GGUF file's tokenizer as the files of a Hugging Face directory. */
#ifndef PEFT_DATA_TOKENIZER_WRITE_H
#define PEFT_DATA_TOKENIZER_WRITE_H

#include "core/file_set.h"
#include "core/gguf.h"

/* Adds tokenizer.json, tokenizer_config.json, special_tokens_map.json, generation_config.json and, where the file has a
 * template, chat_template.jinja to set. context: model_max_length. A file without a tokenizer adds nothing. */
int tokenizer_write_gguf(const gguf *g, int64_t context, file_set *set);

#endif
