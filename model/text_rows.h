/* A file of text as rows of tokens: JSON lines with "text" or "input_ids", or plain text cut into pieces. */
#ifndef PEFT_MODEL_TEXT_ROWS_H
#define PEFT_MODEL_TEXT_ROWS_H

#include "model/model.h"

typedef struct text_row {
    int32_t *ids;
    int n;
} text_row;

typedef struct text_rows {
    text_row *row;
    int n, longest;
    int64_t tokens;
} text_rows;

/* One row a line. The tokenizer is the model's; it is opened only where a row has text. */
int text_rows_read_jsonl(text_rows *r, const model_source *src, const char *path);
/* A path that ends in .jsonl as above; else the whole text is tokenized and cut into rows of at most `piece` tokens,
 * each beginning with what the tokenizer puts before a text (llama-imatrix and llama-perplexity cut so). */
int text_rows_read(text_rows *r, const model_source *src, const char *path, int piece);
void text_rows_free(text_rows *r);

#endif
