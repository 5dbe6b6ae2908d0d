/* Chat templates as a table by exact text: a row renders turns and says which spans a role owns. A template that is not in
 * the table is an error (never guessed). */
#ifndef PEFT_DATA_CHAT_H
#define PEFT_DATA_CHAT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct { const char *role, *content; bool train; } chat_turn; /* borrowed, NUL-free UTF-8; role system|user|assistant|tool */
typedef struct chat_template chat_template;

/* Row whose text equals `text` byte for byte; NULL after fail() naming the known ones. `where` is for the message. */
const chat_template *chat_template_find(const char *text, const char *where);
const chat_template *chat_template_by_name(const char *name); /* "chatml", "smollm2" ...; YAML chat_template; NULL = unknown */
const char *const *chat_template_names(void);
const char *chat_template_name(const chat_template *c);

typedef struct { int64_t begin, end; int turn; } chat_span; /* bytes of the rendered text that carry loss: content + end-of-turn token */
typedef struct { char *text; int64_t n; chat_span *spans; int n_spans; } chat_text; /* heap */
/* Renders the whole conversation once. add_generation_prompt ends with the assistant's header. Spans cover each assistant
 * turn: its content and its end-of-turn token (not the newline after it). -1 after fail(): a role the template cannot take. */
int chat_render(const chat_template *c, const chat_turn *turns, int n, bool add_generation_prompt, chat_text *out);
void chat_text_free(chat_text *t);

#endif
