/* Which bytes of a rendered conversation an assistant's turn owns. Three ways, the surest first; each is checked
 * against the text itself, and what none of them explains is an error, not a guess:
 *   1. the template says it: {% generation %} blocks, one for each assistant turn;
 *   2. rendered once more with a mark in place of every assistant's content: what stands between the marks must stand
 *      around the contents (as they are, or stripped) in the text;
 *   3. rendered up to the turn's header and up to its end: both must be how the whole text begins. For turns whose
 *      content the template takes apart (reasoning, tool calls).
 * The end-of-turn token behind the content belongs to the turn, white space between them too. */
#include "core/arena.h"
#include "core/error.h"
#include "data/chat_parts.h"
#include "data/jinja_parts.h"
#include "data/utf8.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    const chat_template *c;
    const guard *g;
    const json_t *messages, *tools;
    const chat_options *o;
    chat_text *t;
    int turns;
} finder;

static bool is_assistant(const json_t *turn) {
    const char *role = json_string_value(json_object_get(turn, "role"));
    return role && !strcmp(role, "assistant");
}

static void add_span(finder *f, int turn, int64_t begin, int64_t end) {
    if (!f->o->train[turn]) return;
    f->t->spans = xrealloc(f->t->spans, (size_t)f->t->n_spans + 1, sizeof *f->t->spans);
    f->t->spans[f->t->n_spans++] = (chat_span){begin, end, turn};
}

static bool is_plain(const chat_text *t, int64_t at) {
    for (int64_t i = 0; i < t->n_plain; i++)
        if (t->plain[i] == at) return true;
    return false;
}

static int64_t special_at(const finder *f, int64_t at) {
    return is_plain(f->t, at) ? 0 : tokenizer_special_at(f->c->tok, f->t->text + at, f->t->n - at);
}

/* The end of the special token that follows `at` behind nothing but white space; else at. */
static int64_t past_end_token(const finder *f, int64_t at) {
    int64_t begin = at + jinja_strip_left(f->t->text + at, f->t->n - at),
            n = begin < f->t->n ? special_at(f, begin) : 0;
    return n ? begin + n : at;
}

/* ---- 1 ---- */

static int from_blocks(finder *f, const jinja_span *blocks, int n) {
    int k = 0, assistants = 0;
    for (int i = 0; i < f->turns; i++) assistants += is_assistant(json_array_get(f->messages, (size_t)i));
    if (assistants != n)
        return fail(EXIT_INPUT, "%s: writes %d generation blocks for %d assistant turns", f->c->where, n, assistants);
    for (int i = 0; i < f->turns; i++)
        if (is_assistant(json_array_get(f->messages, (size_t)i))) {
            add_span(f, i, blocks[k].begin, past_end_token(f, blocks[k].end));
            k++;
        }
    return 0;
}

/* ---- 2 ---- */

/* the mark of the i-th assistant turn: an opening character, digits, a closing one */
static size_t mark_text(const guard *g, int i, char *out) {
    size_t n = (size_t)utf8_encode(g->base + GUARD_MARK, out);
    for (int digit = 4; digit >= 0; digit--)
        n += (size_t)utf8_encode(g->base + GUARD_MARK + 1 + (i >> 3 * digit & 7), out + n);
    return n + (size_t)utf8_encode(g->base + GUARD_MARK + 9, out + n);
}

static json_t *marked(const finder *f) {
    json_t *copy = json_array();
    for (int i = 0; i < f->turns; i++) {
        json_t *turn = json_array_get(f->messages, (size_t)i);
        if (!is_assistant(turn)) {
            json_array_append(copy, turn);
            continue;
        }
        char text[64];
        size_t n = mark_text(f->g, i, text);
        json_t *made = json_copy(turn);
        json_object_set_new_nocheck(made, "content", json_stringn_nocheck(text, n));
        json_array_append_new(copy, made);
    }
    return copy;
}

static bool starts(const chat_text *t, int64_t at, const char *s, int64_t n) {
    return at + n <= t->n && !memcmp(t->text + at, s, (size_t)n);
}

/* The end of a content at `at` that `piece` follows: as it is, or stripped at either side; -1 when none fits. */
static int64_t content_end(const chat_text *t, int64_t at, const char *s, int64_t n, const char *piece,
                           int64_t piece_n) {
    int64_t left = jinja_strip_left(s, n), right = jinja_strip_right(s, n), both = right > left ? right - left : 0;
    const struct { int64_t from, n; } way[] = {{0, n}, {left, both}, {0, right}, {left, n - left}};
    for (int i = 0; i < 4; i++) {
        int64_t end = at + way[i].n;
        if (starts(t, at, s + way[i].from, way[i].n) && starts(t, end, piece, piece_n) && (piece_n || end == t->n))
            return end;
    }
    return -1;
}

/* The content of a turn with guards put back; heap, NULL when it has none. */
static char *content_of(const finder *f, int turn, int64_t *n) {
    const json_t *content = json_object_get(json_array_get(f->messages, (size_t)turn), "content");
    if (!json_is_string(content)) return NULL;
    jinja_text raw = {.text = (char *)(uintptr_t)json_string_value(content), .n = json_string_length(content)};
    chat_text back = {0};
    guard_restore(f->g, &raw, &back, NULL);
    free(back.plain);
    *n = back.n;
    return back.text;
}

/* Walks the text along the pieces between the marks; -1 (no message) where they do not explain it. */
static int walk(finder *f, const chat_text *m, const int *turn, int n) {
    char mark[64];
    int64_t at = 0, from = 0;
    for (int i = 0; i <= n; i++) {
        size_t mark_n = i < n ? mark_text(f->g, turn[i], mark) : 0;
        const char *next = i < n ? memmem(m->text + from, (size_t)(m->n - from), mark, mark_n) : m->text + m->n;
        if (!next) return -1;
        int64_t piece = next - (m->text + from), content_n = 0;
        if (!i && !starts(f->t, 0, m->text, piece)) return -1;
        if (i) {
            char *content = content_of(f, turn[i - 1], &content_n);
            int64_t end = content ? content_end(f->t, at, content, content_n, m->text + from, piece) : -1;
            free(content);
            if (end < 0) return -1;
            add_span(f, turn[i - 1], at, past_end_token(f, end));
            at = end;
        }
        at += piece, from += piece + (int64_t)mark_n;
    }
    return at == f->t->n ? 0 : -1;
}

static int from_marks(finder *f) {
    int *turn = xcalloc((size_t)f->turns, sizeof *turn), n = 0, blocks = 0;
    for (int i = 0; i < f->turns; i++)
        if (is_assistant(json_array_get(f->messages, (size_t)i))) turn[n++] = i;
    json_t *messages = marked(f);
    chat_text m;
    jinja_span *unused = NULL;
    int bad = chat_draw(f->c, f->g, messages, f->tools, f->o, &m, &unused, &blocks);
    if (!bad) bad = walk(f, &m, turn, n);
    if (bad) fail_clear(), f->t->n_spans = 0;
    chat_text_free(&m);
    json_decref(messages);
    free(unused), free(turn);
    return bad;
}

/* ---- 3 ---- */

/* Length of the first n turns' text when the whole text begins with it, else -1. */
static int64_t prefix(const finder *f, int n, bool header) {
    json_t *some = json_array();
    for (int i = 0; i < n; i++) json_array_append(some, json_array_get(f->messages, (size_t)i));
    chat_options o = *f->o;
    o.add_generation_prompt = header;
    chat_text p;
    jinja_span *unused = NULL;
    int blocks;
    int64_t len = -1;
    if (!chat_draw(f->c, f->g, some, f->tools, &o, &p, &unused, &blocks) && starts(f->t, 0, p.text, p.n)) len = p.n;
    chat_text_free(&p);
    json_decref(some);
    free(unused);
    return len;
}

static int from_prefixes(finder *f) {
    for (int i = 0; i < f->turns; i++) {
        if (!f->o->train[i] || !is_assistant(json_array_get(f->messages, (size_t)i))) continue;
        int64_t begin = prefix(f, i, true), end = prefix(f, i + 1, false);
        fail_clear();
        if (begin < 0 || end < begin)
            return fail(
                EXIT_INPUT,
                "turn %d: the chat template (%s) writes this turn in another way when more follows, so that the "
                "tokens it would be trained on are unknown: train it as the last turn of its row, or mark it "
                "\"train\": false",
                i + 1, f->c->where);
        int64_t last = begin + jinja_strip_right(f->t->text + begin, end - begin); /* a line feed after the end token */
        for (int64_t k = begin; k < last; k++)
            if (special_at(f, k) && k + special_at(f, k) == last) end = last;
        add_span(f, i, begin, end);
    }
    return 0;
}

int chat_find_spans(const chat_template *c, const guard *g, const json_t *messages, const json_t *tools,
                    const chat_options *o, const jinja_span *blocks, int n_blocks, chat_text *t) {
    finder f = {c, g, messages, tools, o, t, (int)json_array_size(messages)};
    if (n_blocks) return from_blocks(&f, blocks, n_blocks);
    return from_marks(&f) ? from_prefixes(&f) : 0;
}
