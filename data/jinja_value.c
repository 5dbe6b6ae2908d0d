/* Values of the Jinja interpreter: memory, strings, lists, dicts, equality, order and iteration as Python's. */
#include "core/error.h"
#include "data/jinja_parts.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct jinja_chunk {
    jinja_chunk *next;
    _Alignas(16) char data[];
};
enum { CHUNK = 64 << 10 };

_Noreturn void jinja_stop(jinja_mem *m, const char *fmt, ...) {
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    fail(EXIT_INPUT, "%s:%d:%d: %s", m->where, m->pos.line, m->pos.col, text);
    longjmp(m->stop, 1);
}

void *jinja_alloc(jinja_mem *m, size_t n) {
    if (n > m->limit || m->used + n > m->limit) jinja_stop(m, "needs more than %zu MiB of memory", m->limit >> 20);
    n = (n + 15) & ~(size_t)15;
    if (n > m->left) {
        size_t size = n > CHUNK / 4 ? n : CHUNK; /* large things get a chunk of their own; the current one stays */
        jinja_chunk *c = calloc(1, sizeof *c + size);
        if (!c) jinja_stop(m, "out of memory");
        c->next = m->chunks;
        m->chunks = c;
        m->used += size;
        if (size != CHUNK) return c->data;
        m->at = c->data;
        m->left = size;
    }
    void *p = m->at;
    m->at += n;
    m->left -= n;
    return p;
}

void jinja_mem_free(jinja_mem *m) {
    for (jinja_chunk *c = m->chunks, *next; c; c = next) {
        next = c->next;
        free(c);
    }
    m->chunks = NULL;
}

jstr *jinja_str_new(jinja_mem *m, const char *p, int64_t n, bool copy) {
    jstr *s = jinja_alloc(m, sizeof *s);
    if (copy) {
        char *mine = jinja_alloc(m, (size_t)n + 1);
        if (n) memcpy(mine, p, (size_t)n);
        p = mine;
    }
    int64_t chars = 0;
    for (int64_t i = 0; i < n; i++) chars += (p[i] & 0xc0) != 0x80;
    *s = (jstr){.p = p, .n = n, .chars = chars};
    return s;
}

jval jinja_str(jrun *r, const char *p, int64_t n) {
    jinja_step(r, n >> 10);
    return (jval){J_STRING, {.s = jinja_str_new(&r->mem, p, n, true)}};
}

jval jinja_text_of(jrun *r, const char *s) {
    return (jval){J_STRING, {.s = jinja_str_new(&r->mem, s, (int64_t)strlen(s), false)}};
}

void jinja_put(jrun *r, jout *o, const char *p, int64_t n) {
    if (o->n + (size_t)n > r->limits.output) jinja_stop(&r->mem, "writes more than %zu bytes", r->limits.output);
    if (o->n + (size_t)n > o->room) {
        size_t room = o->room ? o->room : 256;
        while (room < o->n + (size_t)n) room *= 2;
        char *more = jinja_alloc(&r->mem, room);
        if (o->n) memcpy(more, o->p, o->n);
        o->p = more;
        o->room = room;
    }
    if (n) memcpy(o->p + o->n, p, (size_t)n);
    o->n += (size_t)n;
    jinja_step(r, n >> 10);
}

void jinja_puts(jrun *r, jout *o, const char *s) { jinja_put(r, o, s, (int64_t)strlen(s)); }

jval jinja_take(jrun *r, jout *o) {
    return (jval){J_STRING, {.s = jinja_str_new(&r->mem, o->n ? o->p : "", (int64_t)o->n, false)}};
}

jval jinja_list(jrun *r, int64_t room, jseq kind) {
    jlist *l = jinja_alloc(&r->mem, sizeof *l);
    if (room > (int64_t)(r->mem.limit / sizeof *l->at))
        jinja_stop(&r->mem, "list of %lld items is too long", (long long)room);
    l->at = jinja_alloc(&r->mem, (size_t)room * sizeof *l->at + 1);
    l->kind = kind;
    jinja_step(r, room >> 4);
    return (jval){J_LIST, {.l = l}};
}

void jinja_add(jval list, jval x) { list.u.l->at[list.u.l->n++] = x; }

jval jinja_dict(jrun *r, jtype type) { return (jval){type, {.d = jinja_alloc(&r->mem, sizeof(jdict))}}; }

static void dict_append(jrun *r, jdict *d, jval key, jval value) {
    if (d->n == d->room) {
        int64_t room = d->room ? 2 * d->room : 8;
        void *more = jinja_alloc(&r->mem, (size_t)room * sizeof *d->at);
        if (d->n) memcpy(more, d->at, (size_t)d->n * sizeof *d->at);
        d->at = more;
        d->room = room;
    }
    d->at[d->n].key = key;
    d->at[d->n++].value = value;
}

static int64_t dict_index(jrun *r, const jdict *d, jval key) {
    if (key.type == J_LIST && key.u.l->kind != SEQ_TUPLE && key.u.l->kind != SEQ_RANGE)
        jinja_stop(&r->mem, "a list cannot be a key");
    if (key.type == J_DICT) jinja_stop(&r->mem, "a dict cannot be a key");
    jinja_step(r, d->n >> 5);
    for (int64_t i = 0; i < d->n; i++) {
        if (key.type == J_STRING) { /* the usual case, without a call */
            const jval *k = &d->at[i].key;
            if (k->type == J_STRING && k->u.s->n == key.u.s->n && !memcmp(k->u.s->p, key.u.s->p, (size_t)key.u.s->n))
                return i;
        } else if (jinja_equal(r, d->at[i].key, key)) {
            return i;
        }
    }
    return -1;
}

void jinja_dict_set(jrun *r, jdict *d, jval key, jval value) {
    int64_t i = dict_index(r, d, key);
    if (i < 0)
        dict_append(r, d, key, value);
    else
        d->at[i].value = value;
}

bool jinja_dict_find(jrun *r, const jdict *d, jval key, jval *out) {
    int64_t i = dict_index(r, d, key);
    if (i < 0) return false;
    *out = d->at[i].value;
    return true;
}

static jval from_object(jrun *r, const json_t *j) {
    jval d = jinja_dict(r, J_DICT);
    const char *key;
    json_t *member;
    size_t n;
    json_object_keylen_foreach((json_t *)j, key, n, member)
        dict_append(r, d.u.d, jinja_str(r, key, (int64_t)n), jinja_from_json(r, member)); /* keys differ already */
    return d;
}

jval jinja_from_json(jrun *r, const json_t *j) {
    jval v = j_none();
    jinja_enter(r);
    switch (json_typeof(j)) {
    case JSON_OBJECT: v = from_object(r, j); break;
    case JSON_ARRAY:
        v = jinja_list(r, (int64_t)json_array_size(j), SEQ_LIST);
        for (size_t i = 0; i < json_array_size(j); i++) jinja_add(v, jinja_from_json(r, json_array_get(j, i)));
        break;
    case JSON_STRING: v = jinja_str(r, json_string_value(j), (int64_t)json_string_length(j)); break;
    case JSON_INTEGER: v = j_int(json_integer_value(j)); break;
    case JSON_REAL: v = j_float(json_real_value(j)); break;
    case JSON_TRUE: v = j_bool(true); break;
    case JSON_FALSE: v = j_bool(false); break;
    case JSON_NULL: break;
    }
    jinja_leave(r);
    return v;
}

bool jinja_same(const jstr *s, const char *word) {
    size_t n = strlen(word);
    return s->n == (int64_t)n && !memcmp(s->p, word, n);
}

bool jinja_true(jval v) {
    switch (v.type) {
    case J_ABSENT:
    case J_UNDEFINED:
    case J_NONE: return false;
    case J_BOOL: return v.u.b;
    case J_INT: return v.u.i != 0;
    case J_FLOAT: return v.u.f != 0;
    case J_STRING: return v.u.s->n > 0;
    case J_LIST: return v.u.l->kind == SEQ_ITERATOR || v.u.l->n > 0; /* an iterator is true even when empty */
    case J_DICT: return v.u.d->n > 0;
    default: return true;
    }
}

static bool equal_lists(jrun *r, const jlist *a, const jlist *b) {
    if (a == b) return true;
    if (a->kind != b->kind || a->kind == SEQ_ITERATOR || a->kind == SEQ_VALUES || a->n != b->n) return false;
    for (int64_t i = 0; i < a->n; i++)
        if (!jinja_equal(r, a->at[i], b->at[i])) return false;
    return true;
}

static bool equal_dicts(jrun *r, const jdict *a, const jdict *b) {
    if (a == b) return true;
    if (a->n != b->n) return false;
    for (int64_t i = 0; i < a->n; i++) {
        jval other;
        if (!jinja_dict_find(r, b, a->at[i].key, &other) || !jinja_equal(r, a->at[i].value, other)) return false;
    }
    return true;
}

bool jinja_equal(jrun *r, jval a, jval b) {
    if (j_is_number(a) && j_is_number(b))
        return a.type == J_FLOAT || b.type == J_FLOAT ? j_real(a) == j_real(b) : j_integer(a) == j_integer(b);
    if (a.type != b.type) return false;
    jinja_step(r, 1);
    bool same;
    jinja_enter(r);
    switch (a.type) {
    case J_NONE:
    case J_UNDEFINED: same = true; break;
    case J_STRING:
        jinja_step(r, a.u.s->n >> 10);
        same = a.u.s->n == b.u.s->n && !memcmp(a.u.s->p, b.u.s->p, (size_t)a.u.s->n);
        break;
    case J_LIST: same = equal_lists(r, a.u.l, b.u.l); break;
    case J_DICT: same = equal_dicts(r, a.u.d, b.u.d); break;
    default: same = a.u.d == b.u.d; break; /* the same thing */
    }
    jinja_leave(r);
    return same;
}

static bool less_lists(jrun *r, const jlist *a, const jlist *b) {
    for (int64_t i = 0; i < a->n && i < b->n; i++)
        if (!jinja_equal(r, a->at[i], b->at[i])) return jinja_less(r, a->at[i], b->at[i]);
    return a->n < b->n;
}

bool jinja_less(jrun *r, jval a, jval b) {
    jinja_step(r, 1);
    if (j_is_number(a) && j_is_number(b))
        return a.type == J_FLOAT || b.type == J_FLOAT ? j_real(a) < j_real(b) : j_integer(a) < j_integer(b);
    if (a.type == J_STRING && b.type == J_STRING) { /* UTF-8 orders as code points do */
        int64_t n = a.u.s->n < b.u.s->n ? a.u.s->n : b.u.s->n;
        jinja_step(r, n >> 10);
        int c = memcmp(a.u.s->p, b.u.s->p, (size_t)n);
        return c ? c < 0 : a.u.s->n < b.u.s->n;
    }
    if (a.type != J_LIST || b.type != J_LIST || a.u.l->kind != b.u.l->kind || a.u.l->kind > SEQ_TUPLE)
        jinja_stop(&r->mem, "cannot order %s and %s", jinja_type_name(a), jinja_type_name(b));
    jinja_enter(r);
    bool less = less_lists(r, a.u.l, b.u.l);
    jinja_leave(r);
    return less;
}

bool jinja_contains(jrun *r, jval in, jval x) {
    jval ignored;
    switch (in.type) {
    case J_STRING:
        if (x.type != J_STRING) jinja_stop(&r->mem, "cannot look for %s in a string", jinja_type_name(x));
        jinja_step(r, in.u.s->n >> 8);
        return memmem(in.u.s->p, (size_t)in.u.s->n, x.u.s->p, (size_t)x.u.s->n) != NULL;
    case J_DICT: return jinja_dict_find(r, in.u.d, x, &ignored);
    default: break;
    }
    jlist *l = jinja_iterate(r, in);
    for (int64_t i = 0; i < l->n; i++)
        if (jinja_equal(r, l->at[i], x)) return true;
    return false;
}

static jval chars_of(jrun *r, const jstr *s) {
    jval l = jinja_list(r, s->chars, SEQ_LIST);
    for (int64_t i = 0, end; i < s->n; i = end) {
        for (end = i + 1; end < s->n && (s->p[end] & 0xc0) == 0x80; end++) {}
        jinja_add(l, (jval){J_STRING, {.s = jinja_str_new(&r->mem, s->p + i, end - i, false)}});
    }
    return l;
}

static jval keys_of(jrun *r, const jdict *d) {
    jval l = jinja_list(r, d->n, SEQ_KEYS);
    for (int64_t i = 0; i < d->n; i++) jinja_add(l, d->at[i].key);
    return l;
}

static jlist *iterate_list(jrun *r, jlist *l) {
    if (l->kind != SEQ_ITERATOR) return l;
    jval items = jinja_list(r, 0, SEQ_LIST);
    if (!l->spent) {
        items.u.l->at = l->at;
        items.u.l->n = l->n;
    }
    l->spent = true;
    return items.u.l;
}

jlist *jinja_iterate(jrun *r, jval v) {
    switch (v.type) {
    case J_UNDEFINED: return jinja_list(r, 0, SEQ_LIST).u.l;
    case J_STRING: return chars_of(r, v.u.s).u.l;
    case J_LIST: return iterate_list(r, v.u.l);
    case J_DICT: return keys_of(r, v.u.d).u.l;
    default: jinja_stop(&r->mem, "%s is not iterable", jinja_type_name(v));
    }
}

int64_t jinja_length(jrun *r, jval v) {
    if (v.type == J_UNDEFINED) return 0;
    if (v.type == J_STRING) return v.u.s->chars;
    if (v.type == J_DICT) return v.u.d->n;
    if (v.type == J_LOOP) return j_integer(jinja_loop_attribute(r, v.u.loop, jinja_text_of(r, "length").u.s));
    if (v.type != J_LIST || v.u.l->kind == SEQ_ITERATOR) jinja_stop(&r->mem, "%s has no length", jinja_type_name(v));
    return v.u.l->n;
}

const char *jinja_type_name(jval v) {
    static const char *const names[] = {[J_ABSENT] = "nothing",      [J_UNDEFINED] = "an undefined value",
                                        [J_NONE] = "none",           [J_BOOL] = "a boolean",
                                        [J_INT] = "an integer",      [J_FLOAT] = "a float",
                                        [J_STRING] = "a string",     [J_LIST] = "a list",
                                        [J_DICT] = "a dict",         [J_NAMESPACE] = "a namespace",
                                        [J_MACRO] = "a macro",       [J_METHOD] = "a method",
                                        [J_FUNCTION] = "a function", [J_LOOP] = "a loop",
                                        [J_JOINER] = "a joiner",     [J_CYCLER] = "a cycler"};
    static const char *const sequences[] = {
        "a list",     "a tuple", "a range", "the keys of a dict", "the values of a dict", "the items of a dict",
        "an iterator"};
    return v.type == J_LIST ? sequences[v.u.l->kind] : names[v.type];
}
