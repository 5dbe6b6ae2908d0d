/* Chat templates as a table by exact text (chat_templates.def): a row renders turns and says which spans a role owns. A
 * template that is not in the table is an error (never guessed).
 *
 * Rendering equals Jinja's with transformers' settings (trim_blocks, lstrip_blocks). A rendered text knows which of its
 * bytes are special tokens that the template wrote (marks). Only these become special tokens: a user who types
 * "<|im_start|>" gets plain text. Since specials cut the text for the tokenizer anyway, and everything between two
 * marks is encoded as one piece, ids equal those of the whole string wherever no content holds the text of a special
 * token. */
#ifndef PEFT_DATA_CHAT_H
#define PEFT_DATA_CHAT_H

#include "data/tokenizer.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* borrowed, NUL-free UTF-8; role system|user|assistant|tool; train: an assistant turn that shall carry loss */
typedef struct {
    const char *role, *content;
    bool train;
} chat_turn;
typedef struct chat_template chat_template;

/* Row whose text equals `text` byte for byte (but for one newline at the end, which Jinja drops); NULL after fail()
 * naming the known ones. `where` is for the message. */
const chat_template *chat_template_find(const char *text, const char *where);
const chat_template *
chat_template_by_name(const char *name);      /* "chatml", "smollm2" ...; YAML chat_template; NULL = unknown */
const char *const *chat_template_names(void); /* ends with NULL */
const char *chat_template_name(const chat_template *c);
bool chat_template_takes(const chat_template *c, const char *role);

typedef struct {
    int64_t begin, end;
    int turn;
} chat_span; /* bytes of the rendered text that carry loss: content + end-of-turn token */
typedef enum {
    CHAT_TOKEN,
    CHAT_BOS,
    CHAT_EOS
} chat_mark_kind; /* a token by its own text | the template's bos_token, eos_token */
typedef struct {
    int64_t begin, end;
    chat_mark_kind kind;
} chat_mark;
typedef struct {
    char *text;
    int64_t n;
    chat_span *spans;
    int n_spans;
    chat_mark *marks;
    int n_marks;
    const chat_template *from;
} chat_text; /* heap */
/* Renders the whole conversation once. add_generation_prompt ends with the assistant's header. Spans cover each
 * assistant turn with `train`: its content and its end-of-turn token (not the newline after it). -1 after fail(): a
 * role the template cannot take. */
int chat_render(const chat_template *c, const chat_turn *turns, int n, bool add_generation_prompt, chat_text *out);
void chat_text_free(chat_text *t);

/* Appends the tokens of a rendered text to out, with byte spans of the text. Nothing is added (no BOS, no EOS) but what
 * the template wrote. -1 after fail(): a mark is no token of this tokenizer, or its BOS or EOS is another token. */
int chat_encode(const chat_text *t, const tokenizer *tok, token_list *out);

#endif
