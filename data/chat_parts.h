/* What the files of the chat templates share. */
#ifndef PEFT_DATA_CHAT_PARTS_H
#define PEFT_DATA_CHAT_PARTS_H

#include "data/chat.h"
#include "data/jinja.h"

struct chat_template {
    jinja *j;
    char *where;
    const tokenizer *tok;
    char *bos, *eos, *pad; /* texts; NULL: the tokenizer has none */
};

/* --- chat_guard.c --- */
enum { GUARD_SIGNS = 64, GUARD_MARK = 192 };
/* Code points [base, base + 256) stand in no string of the conversation. base + i stands for the i-th first character
 * of a special token that content spells; base + GUARD_MARK + i is free for others. */
typedef struct {
    int32_t base, sign[GUARD_SIGNS]; /* sign: the characters that are replaced */
    int signs;
} guard;
int guard_open(guard *g, const json_t *messages, const json_t *tools);
/* A copy of v with the first character of each special token in its strings replaced. NULL after fail(). */
json_t *guard_copy(guard *g, const tokenizer *tok, const json_t *v);
/* Puts the characters back: t gets text, n and plain; offsets in spans are moved along. */
void guard_restore(const guard *g, const jinja_text *r, chat_text *t, jinja_span *spans);

/* --- chat_span.c --- */
/* Renders guarded messages; -1 after fail(). out->text is restored, `blocks` [*n_blocks] are the template's generation
 * blocks (heap). */
int chat_draw(const chat_template *c, const guard *g, const json_t *messages, const json_t *tools,
              const chat_options *o, chat_text *out, jinja_span **blocks, int *n_blocks);
int chat_find_spans(const chat_template *c, const guard *g, const json_t *messages, const json_t *tools,
                    const chat_options *o, const jinja_span *blocks, int n_blocks, chat_text *t);

#endif
