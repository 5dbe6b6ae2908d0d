/* Opening templates and rendering conversations. */
#include "data/chat.h"
#include "core/arena.h"
#include "core/error.h"
#include "data/chat_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TOKENS_MAX = 4 };
static const struct {
    const char *name, *text, *tokens[TOKENS_MAX]; /* tokens: special ones that the text spells */
} named[] = {
#define TEMPLATE(name, text, ...) {#name, text, {__VA_ARGS__}},
#include "data/chat_templates.def"
#undef TEMPLATE
};
enum { NAMED = sizeof named / sizeof *named };

static const char *const names[] = {
#define TEMPLATE(name, text, ...) #name,
#include "data/chat_templates.def"
#undef TEMPLATE
    NULL};

const char *const *chat_template_names(void) { return names; }

static char *token_text(const tokenizer *tok, int id) {
    int n;
    if (id < 0) return NULL;
    const char *s = tokenizer_bytes(tok, id, &n);
    return memcpy(xcalloc((size_t)n + 1, 1), s, (size_t)n);
}

chat_template *chat_open(const char *text, const char *where, const tokenizer *tok) {
    jinja *j = jinja_compile(where, text, strlen(text));
    if (!j) return NULL;
    chat_template *c = xcalloc(1, sizeof *c);
    *c = (chat_template){.j = j, .where = xstrdup(where), .tok = tok};
    c->bos = token_text(tok, tokenizer_bos(tok)), c->eos = token_text(tok, tokenizer_eos(tok));
    c->pad = token_text(tok, tokenizer_pad(tok));
    return c;
}

static chat_template *unknown(const char *name, const char *where) {
    char known[512];
    size_t used = 0;
    for (int i = 0; i < NAMED && used < sizeof known; i++)
        used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", names[i]);
    fail(EXIT_USAGE, "%s: chat template '%.64s' is unknown, expected tokenizer_default or one of %s", where, name,
         known);
    return NULL;
}

chat_template *chat_open_named(const char *name, const char *where, const tokenizer *tok) {
    if (!*name || !strcmp(name, "tokenizer_default")) {
        if (tokenizer_template(tok)) return chat_open(tokenizer_template(tok), "chat template", tok);
        fail(EXIT_INPUT, "%s: the model has no chat template: name one with chat_template", where);
        return NULL;
    }
    int i = 0;
    while (i < NAMED && strcmp(named[i].name, name)) i++;
    if (i == NAMED) return unknown(name, where);
    for (int k = 0; k < TOKENS_MAX && named[i].tokens[k]; k++)
        if (tokenizer_id(tok, named[i].tokens[k]) < 0) {
            fail(EXIT_INPUT,
                 "%s: the chat template '%s' writes '%s', which is no token of this tokenizer: choose the "
                 "chat_template that this model was trained with",
                 where, name, named[i].tokens[k]);
            return NULL;
        }
    return chat_open(named[i].text, name, tok);
}

void chat_close(chat_template *c) {
    if (!c) return;
    jinja_free(c->j);
    free(c->where), free(c->bos), free(c->eos), free(c->pad);
    free(c);
}

int chat_draw(const chat_template *c, const guard *g, const json_t *messages, const json_t *tools,
              const chat_options *o, chat_text *out, jinja_span **blocks, int *n_blocks) {
    json_t *context = o->variables ? json_copy((json_t *)(uintptr_t)o->variables) : json_object();
    const struct {
        const char *name, *text;
    } texts[] = {{"bos_token", c->bos}, {"eos_token", c->eos}, {"pad_token", c->pad}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        if (texts[i].text) json_object_set_new_nocheck(context, texts[i].name, json_string_nocheck(texts[i].text));
    json_object_set_nocheck(context, "messages", (json_t *)(uintptr_t)messages);
    json_object_set_new_nocheck(context, "tools", tools ? json_incref((json_t *)(uintptr_t)tools) : json_null());
    json_object_set_new_nocheck(context, "documents", json_null());
    json_object_set_new_nocheck(context, "add_generation_prompt", json_boolean(o->add_generation_prompt));
    jinja_text r;
    int bad = jinja_render(c->j, context, NULL, &r);
    json_decref(context);
    *out = (chat_text){0};
    if (bad) return -1;
    *n_blocks = r.n_spans;
    *blocks = xcalloc((size_t)r.n_spans, sizeof **blocks);
    guard_restore(g, &r, out, *blocks);
    jinja_text_free(&r);
    return 0;
}

int chat_render(const chat_template *c, const json_t *messages, const chat_options *o, chat_text *out) {
    guard g;
    jinja_span *blocks = NULL;
    json_t *turns = NULL, *tools = NULL;
    int n_blocks = 0, bad = -1;
    *out = (chat_text){0};
    if (guard_open(&g, messages, o->tools)) return -1;
    if (!(turns = guard_copy(&g, c->tok, messages)) || (o->tools && !(tools = guard_copy(&g, c->tok, o->tools))))
        goto out;
    if (chat_draw(c, &g, turns, tools, o, out, &blocks, &n_blocks)) goto out;
    bad = o->train ? chat_find_spans(c, &g, turns, tools, o, blocks, n_blocks, out) : 0;
out:
    if (bad) chat_text_free(out);
    json_decref(turns), json_decref(tools);
    free(blocks);
    return bad;
}

void chat_text_free(chat_text *t) {
    free(t->text), free(t->spans), free(t->plain);
    *t = (chat_text){0};
}

int chat_encode(const chat_text *t, const tokenizer *tok, token_list *out) {
    return tokenizer_encode_around(tok, t->text, t->n, TOKENIZE_SPECIAL, t->plain, t->n_plain, out);
}
