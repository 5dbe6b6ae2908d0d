/* Special tokens in content stay text. The interpreter does not know where the bytes of a string come from, so what
 * content spells is made unlike a special token before rendering: its first character is replaced by a private one
 * (plane 15) that occurs nowhere in the conversation, one code point for one, and put back afterwards. Lengths, slices
 * and white space are those of the content, and no text that a template compares content with begins there, but for
 * special tokens themselves. */
#include "core/arena.h"
#include "core/error.h"
#include "data/chat_parts.h"
#include "data/utf8.h"

#include <stdlib.h>
#include <string.h>

enum { PLANE = 0xf0000, BLOCK = 256 };

static void used_blocks(const json_t *v, bool *used) {
    const char *key;
    json_t *x, *o = (json_t *)(uintptr_t)v;
    size_t i;
    if (json_is_string(v)) {
        const char *s = json_string_value(v);
        for (size_t at = 0, n = json_string_length(v); at + 3 < n; at++)
            if ((unsigned char)s[at] == 0xf3 && ((unsigned char)s[at + 1] & 0xf0) == 0xb0) {
                int len;
                used[(utf8_decode(s + at, &len) - PLANE) / BLOCK] = true;
            }
    }
    json_array_foreach(o, i, x) used_blocks(x, used);
    json_object_foreach(o, key, x) used_blocks(x, used);
}

int guard_open(guard *g, const json_t *messages, const json_t *tools) {
    bool used[65536 / BLOCK] = {false};
    used_blocks(messages, used), used_blocks(tools, used);
    int b = 0;
    while (b < 65536 / BLOCK && used[b]) b++;
    *g = (guard){.base = PLANE + b * BLOCK};
    return b < 65536 / BLOCK ? 0
                             : fail(EXIT_INPUT, "the conversation uses every block of private characters of plane 15");
}

static int sign_of(guard *g, int32_t c) {
    for (int i = 0; i < g->signs; i++)
        if (g->sign[i] == c) return i;
    if (g->signs == GUARD_SIGNS) return -1;
    g->sign[g->signs] = c;
    return g->signs++;
}

static json_t *guard_string(guard *g, const tokenizer *tok, const json_t *v) {
    const char *s = json_string_value(v);
    size_t n = json_string_length(v), w = 0;
    char *out = xcalloc(4 * n + 1, 1);
    json_t *made = NULL;
    for (size_t at = 0; at < n;) {
        int len, sign = 0;
        int32_t c = utf8_decode(s + at, &len);
        bool special = tokenizer_special_at(tok, s + at, (int64_t)(n - at)) > 0;
        if (special && (sign = sign_of(g, c)) < 0) {
            fail(EXIT_INPUT, "special tokens that content spells begin with more than %d different characters",
                 GUARD_SIGNS);
            goto out;
        }
        if (special)
            w += (size_t)utf8_encode(g->base + sign, out + w);
        else
            memcpy(out + w, s + at, (size_t)len), w += (size_t)len;
        at += (size_t)len;
    }
    made = json_stringn_nocheck(out, w);
out:
    free(out);
    return made;
}

json_t *guard_copy(guard *g, const tokenizer *tok, const json_t *v) {
    json_t *x, *made = NULL, *o = (json_t *)(uintptr_t)v;
    const char *key;
    size_t i;
    if (json_is_string(v)) return guard_string(g, tok, v);
    if (json_is_array(v)) {
        made = json_array();
        json_array_foreach(o, i, x) if (json_array_append_new(made, guard_copy(g, tok, x))) goto bad;
        return made;
    }
    if (!json_is_object(v)) return json_deep_copy(v);
    made = json_object();
    json_object_foreach(o, key, x) if (json_object_set_new_nocheck(made, key, guard_copy(g, tok, x))) goto bad;
    return made;
bad:
    json_decref(made);
    return NULL;
}

static bool is_guard(const guard *g, const char *s, int32_t *c) {
    int len;
    if ((unsigned char)*s != 0xf3) return false;
    *c = utf8_decode(s, &len) - g->base;
    return *c >= 0 && *c < g->signs;
}

void guard_restore(const guard *g, const jinja_text *r, chat_text *t, jinja_span *spans) {
    t->text = xcalloc(r->n + 1, 1);
    int64_t room = 0;
    int32_t c;
    size_t w = 0;
    int ends = 0; /* ends of spans passed: begin, end, begin, end ... */
    for (size_t at = 0; at <= r->n; at++) {
        for (; ends < 2 * r->n_spans; ends++) {
            int64_t *end = ends % 2 ? &spans[ends / 2].end : &spans[ends / 2].begin;
            int64_t from = ends % 2 ? r->spans[ends / 2].end : r->spans[ends / 2].begin;
            if (from > (int64_t)at) break;
            *end = (int64_t)w;
        }
        if (at == r->n) break;
        if (!is_guard(g, r->text + at, &c)) {
            t->text[w++] = r->text[at];
            continue;
        }
        if (t->n_plain == room) {
            room = room ? 2 * room : 8;
            t->plain = xrealloc(t->plain, (size_t)room, sizeof *t->plain);
        }
        t->plain[t->n_plain++] = (int64_t)w;
        w += (size_t)utf8_encode(g->sign[c], t->text + w);
        at += 3;
    }
    t->n = (int64_t)w;
}
