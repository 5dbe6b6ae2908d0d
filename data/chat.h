/* Chat templates: the model's own Jinja text (data/jinja.h), or one of a few by name (chat_templates.def).
 *
 * A rendered text is what transformers' apply_chat_template gives, byte for byte, and knows two things more:
 *   - where content spells a special token. Such places stay text when the conversation is encoded: a user who types
 *     "<|im_start|>" cannot write the template's tokens (chat_guard.c says how this is known);
 *   - which bytes an assistant's turn owns: its content and the end-of-turn token behind it (chat_span.c). */
#ifndef PEFT_DATA_CHAT_H
#define PEFT_DATA_CHAT_H

#include "data/tokenizer.h"
#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct chat_template chat_template; /* constant once opened; borrows the tokenizer */

/* Compiles a template whose special tokens, bos_token and eos_token are the tokenizer's. `where` names it in messages
 * and is copied. NULL after fail(). */
chat_template *chat_open(const char *text, const char *where, const tokenizer *tok);
/* A template by name ("chatml", "llama3" ...; YAML chat_template); "" or "tokenizer_default": the tokenizer's own.
 * NULL after fail(): unknown, or a token that it writes is none of the tokenizer's. `where` is for the message. */
chat_template *chat_open_named(const char *name, const char *where, const tokenizer *tok);
void chat_close(chat_template *c);            /* NULL is allowed */
const char *const *chat_template_names(void); /* ends with NULL */

typedef struct {
    bool add_generation_prompt;
    const json_t *tools;     /* an array, or NULL */
    const json_t *variables; /* more variables of the template (chat_template_kwargs), an object, or NULL */
    const bool *train;       /* [turns] which assistant turns shall carry loss; NULL: no spans are looked for */
} chat_options;

typedef struct {
    int64_t begin, end;
    int turn;
} chat_span; /* bytes of the rendered text */
typedef struct {
    char *text; /* n bytes and a 0 */
    int64_t n;
    chat_span *spans; /* of the turns to train, in order */
    int n_spans;
    int64_t *plain; /* ascending offsets where content spells a special token */
    int64_t n_plain;
} chat_text; /* heap */

/* Renders a conversation: an array of objects with "role" and "content" and whatever else the template reads
 * (tool_calls, name, reasoning_content ...). -1 after fail() with *out empty: what the template itself raises, or a
 * turn whose bytes cannot be told from the others'. */
int chat_render(const chat_template *c, const json_t *messages, const chat_options *o, chat_text *out);
void chat_text_free(chat_text *t);

/* Appends the tokens of a rendered text to out, with byte spans of the text. Nothing is added (no BOS, no EOS) but what
 * the template wrote. -1 after fail(). */
int chat_encode(const chat_text *t, const tokenizer *tok, token_list *out);

#endif
