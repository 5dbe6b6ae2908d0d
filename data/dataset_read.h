/* Rows of JSON to rows of ids and labels, by a table of row types (dataset_read.c). Internal to the data set. */
#ifndef PEFT_DATA_DATASET_READ_H
#define PEFT_DATA_DATASET_READ_H

#include "core/json.h"
#include "data/chat.h"
#include "data/tokenizer.h"

/* The row under construction and what making it needs. */
typedef struct {
    const tokenizer *tok;
    const chat_template *chat;
    int vocab;
    bool train_on_inputs;
    int bos, eos;      /* what the tokenizer puts before a text (-1 = nothing); its end of sequence */
    const char *field; /* key of the text or of the turns */
    const char *path;  /* place, for messages */
    int line;
    int32_t *ids, *labels; /* [n] */
    int64_t n, cap;
    token_list tokens;
    bool *train; /* [turns of the row] */
    size_t train_cap;
} row_builder;

typedef struct {
    const char *name;
    const char *field; /* default key of the text or the turns; NULL: the type has none to choose */
    bool chat, text;   /* needs a chat template; needs a tokenizer */
    int (*read)(row_builder *r, const json_t *row);
} row_type;

const row_type *row_type_find(const char *name); /* NULL = unknown */
const char *row_type_names(void);

int row_builder_open(row_builder *r, const tokenizer *tok, const chat_template *chat, int vocab, bool train_on_inputs);
void row_builder_close(row_builder *r);
int row_build(row_builder *r, const row_type *type, const json_t *row); /* fills ids, labels, n; -1 after fail() */

#endif
