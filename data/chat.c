/* Renders conversations by a row of chat_templates.def. Whitespace is Jinja's; `trim` is Python's str.strip(), which
 * knows Unicode's spaces. */
#include "data/chat.h"
#include "core/arena.h"
#include "core/error.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

enum { ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT, ROLE_TOOL, ROLES };
static const char *const role_names[ROLES] = {"system", "user", "assistant", "tool"};

/* Inside fields a mark stands between a byte that says its kind and MARK_END; no template text holds control
 * bytes 1..4. */
#define MARK_END "\4"
#define MARK(token) "\1" token MARK_END
#define BOS(token) "\2" token MARK_END
#define EOS(token) "\3" token MARK_END

struct chat_template {
    const char *name;
    const char *bos;         /* before the first turn, or NULL */
    const char *system;      /* content of the turn put first when the first turn is not the system's, or NULL */
    const char *head[ROLES]; /* before the content; NULL: the template cannot take this role */
    const char *end, *tail;  /* end-of-turn token; what follows it */
    const char *prompt;      /* the assistant's header for generation */
    bool trim;               /* content | trim */
    bool prompt_always;      /* the template writes the header whether asked to or not */
    bool prompt_needs_turn;  /* the template writes it inside its loop: not without a turn */
};

#define TEMPLATE(id, ...) static const struct chat_template template_##id = {.name = #id, __VA_ARGS__};
#define TEXT(id, text)
#include "data/chat_templates.def"
#undef TEMPLATE
#undef TEXT

static const struct chat_template *const templates[] = {
#define TEMPLATE(id, ...) &template_##id,
#define TEXT(id, text)
#include "data/chat_templates.def"
#undef TEMPLATE
#undef TEXT
    NULL};

static const struct {
    const struct chat_template *row;
    const char *text;
} texts[] = {
#define TEMPLATE(id, ...)
#define TEXT(id, text) {&template_##id, text},
#include "data/chat_templates.def"
#undef TEMPLATE
#undef TEXT
    {NULL, NULL}};

static const char *const names[] = {
#define TEMPLATE(id, ...) #id,
#define TEXT(id, text)
#include "data/chat_templates.def"
#undef TEMPLATE
#undef TEXT
    NULL};

const chat_template *chat_template_find(const char *text, const char *where) {
    size_t n = strlen(text);
    if (n && text[n - 1] == '\n') n--; /* Jinja's keep_trailing_newline is off */
    for (int i = 0; texts[i].text; i++)
        if (strlen(texts[i].text) == n && !memcmp(texts[i].text, text, n)) return texts[i].row;
    char known[512];
    size_t used = 0;
    for (int i = 0; names[i] && used < sizeof known; i++)
        used += (size_t)snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", names[i]);
    fail(EXIT_INPUT,
         "%s: the chat template is not one of the known texts (it begins \"%.60s\"): set chat_template to the "
         "one that this model was trained with: %s",
         where, text, known);
    return NULL;
}

const chat_template *chat_template_by_name(const char *name) {
    for (int i = 0; templates[i]; i++)
        if (!strcmp(templates[i]->name, name)) return templates[i];
    return NULL;
}

const char *const *chat_template_names(void) { return names; }
const char *chat_template_name(const chat_template *c) { return c->name; }

static int role_of(const char *role) {
    for (int i = 0; i < ROLES; i++)
        if (!strcmp(role_names[i], role)) return i;
    return -1;
}

bool chat_template_takes(const chat_template *c, const char *role) {
    int i = role_of(role);
    return i >= 0 && c->head[i];
}

/* The text under construction and the room of its arrays. */
typedef struct {
    chat_text *t;
    int64_t cap;
    int marks_cap, spans_cap;
} pen;

static void put(pen *p, const char *s, size_t n) {
    if (p->t->n + (int64_t)n + 1 > p->cap) {
        p->cap = (p->t->n + (int64_t)n + 1) * 2;
        p->t->text = xrealloc(p->t->text, (size_t)p->cap, 1);
    }
    memcpy(p->t->text + p->t->n, s, n);
    p->t->n += (int64_t)n;
    p->t->text[p->t->n] = 0;
}

static void put_mark(pen *p, chat_mark_kind kind, const char *token, size_t n) {
    if (p->t->n_marks == p->marks_cap) {
        p->marks_cap = p->marks_cap ? p->marks_cap * 2 : 16;
        p->t->marks = xrealloc(p->t->marks, (size_t)p->marks_cap, sizeof *p->t->marks);
    }
    p->t->marks[p->t->n_marks++] = (chat_mark){p->t->n, p->t->n + (int64_t)n, kind};
    put(p, token, n);
}

/* A template's own field: plain text with marks. */
static void put_field(pen *p, const char *field) {
    while (*field) {
        size_t plain = strcspn(field, "\1\2\3");
        put(p, field, plain);
        field += plain;
        if (!*field) break;
        chat_mark_kind kind = *field == '\1' ? CHAT_TOKEN : *field == '\2' ? CHAT_BOS : CHAT_EOS;
        size_t n = strcspn(++field, MARK_END);
        put_mark(p, kind, field, n);
        field += n + 1;
    }
}

static void put_span(pen *p, int64_t begin, int turn) {
    if (p->t->n_spans == p->spans_cap) {
        p->spans_cap = p->spans_cap ? p->spans_cap * 2 : 8;
        p->t->spans = xrealloc(p->t->spans, (size_t)p->spans_cap, sizeof *p->t->spans);
    }
    p->t->spans[p->t->n_spans++] = (chat_span){begin, p->t->n, turn};
}

/* Python's str.isspace(): White_Space and the four separators 1C..1F. */
static bool is_space(utf8proc_int32_t c) {
    return (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

/* The part of s[0, *n) that str.strip() leaves; every space is at most three bytes long. */
static const char *strip(const char *s, size_t *n) {
    utf8proc_int32_t c;
    utf8proc_ssize_t k;
    while (*n && (k = utf8proc_iterate((const utf8proc_uint8_t *)s, (utf8proc_ssize_t)*n, &c)) > 0 && is_space(c))
        s += k, *n -= (size_t)k;
    while (*n) {
        size_t back = 1;
        while (back < 4 && back < *n && ((unsigned char)s[*n - back] & 0xc0) == 0x80) back++;
        k = utf8proc_iterate((const utf8proc_uint8_t *)s + *n - back, (utf8proc_ssize_t)back, &c);
        if (k != (utf8proc_ssize_t)back || !is_space(c)) break;
        *n -= back;
    }
    return s;
}

static void put_turn(pen *p, const chat_template *c, int role, const char *content, bool train, int turn) {
    size_t n = strlen(content);
    if (c->trim) content = strip(content, &n);
    put_field(p, c->head[role]);
    int64_t begin = p->t->n;
    put(p, content, n);
    put_field(p, c->end);
    if (train && role == ROLE_ASSISTANT) put_span(p, begin, turn);
    put_field(p, c->tail);
}

int chat_render(const chat_template *c, const chat_turn *turns, int n, bool add_generation_prompt, chat_text *out) {
    *out = (chat_text){.from = c};
    for (int i = 0; i < n; i++)
        if (!chat_template_takes(c, turns[i].role))
            return fail(EXIT_INPUT, "turn %d: role '%s': the chat template '%s' cannot take it", i + 1, turns[i].role,
                        c->name);
    pen p = {.t = out};
    put(&p, "", 0);
    if (n && c->bos) put_field(&p, c->bos);
    if (n && c->system && role_of(turns[0].role) != ROLE_SYSTEM) put_turn(&p, c, ROLE_SYSTEM, c->system, false, -1);
    for (int i = 0; i < n; i++) put_turn(&p, c, role_of(turns[i].role), turns[i].content, turns[i].train, i);
    if ((add_generation_prompt || c->prompt_always) && (n || !c->prompt_needs_turn)) put_field(&p, c->prompt);
    return 0;
}

void chat_text_free(chat_text *t) {
    free(t->text), free(t->spans), free(t->marks);
    *t = (chat_text){0};
}
