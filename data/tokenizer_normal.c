/* Normalisers: Unicode normal forms (UAX 15, tables of utf8proc), lower case, a prefix, replacement. Each keeps, for
 * every byte it writes, the span of the text it came from: exactly where a character is unchanged or replaced alone,
 * and the span of its whole grapheme cluster where a normal form changed anything inside one. */
#include "core/arena.h"
#include "core/error.h"
#include "data/tokenizer_parts.h"
#include "data/utf8.h"

#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#define CLUSTER_MAX 65536 /* characters; canonical ordering is quadratic in them */

/* The piece that a step writes. */
typedef struct {
    char *s;
    int64_t *begin, *end, n, cap;
} builder;

static void put(builder *w, const char *s, int64_t n, int64_t begin, int64_t end) {
    if (!n) return;
    if (!w->s || w->n + n > w->cap) {
        w->cap = (w->n + n) * 3 / 2 + 64;
        w->s = xrealloc(w->s, (size_t)w->cap, 1);
        w->begin = xrealloc(w->begin, (size_t)w->cap, sizeof *w->begin);
        w->end = xrealloc(w->end, (size_t)w->cap, sizeof *w->end);
    }
    memcpy(w->s + w->n, s, (size_t)n);
    for (int64_t i = w->n; i < w->n + n; i++) w->begin[i] = begin, w->end[i] = end;
    w->n += n;
}

static int64_t origin_begin(const piece *p, int64_t i) {
    if (!p->begin) return p->base + i;
    return i < p->n ? p->begin[i] : p->n ? p->end[p->n - 1] : p->base;
}
static int64_t origin_end(const piece *p, int64_t i) { /* of the bytes before i */
    return !p->begin ? p->base + i : i ? p->end[i - 1] : p->base;
}

static void put_same(builder *w, const piece *p, int64_t from, int64_t to) {
    for (int64_t i = from; i < to; i++) put(w, p->s + i, 1, origin_begin(p, i), origin_end(p, i + 1));
}

void piece_free(piece *p) {
    free(p->owned);
    free(p->begin);
    free(p->end);
}

static piece built(builder *w, int64_t base) {
    if (!w->s) w->s = xcalloc(1, 1); /* nothing was left */
    return (piece){.s = w->s, .n = w->n, .base = base, .begin = w->begin, .end = w->end, .owned = w->s};
}

piece piece_prefix_space(const piece *p, int64_t from, int64_t to) {
    builder w = {0};
    int64_t at = origin_begin(p, from);
    put(&w, " ", 1, at, at);
    put_same(&w, p, from, to);
    return built(&w, p->base);
}

static int64_t ascii_run(const char *s, int64_t i, int64_t n) {
    while (i < n && (unsigned char)s[i] < 0x80) i++;
    return i;
}

/* tokenizers normalises by Unicode 9's tables: marks and decompositions that came later it leaves where they are, and
 * so must we for the same ids. (Found by trying every code point of utf8proc's Unicode 15.) */
static bool is_late(int32_t cp) {
    static const int32_t ranges[][2] = {
        {0x7fd, 0x7fd},     {0x898, 0x89f},     {0x8ca, 0x8d3},     {0x9fe, 0x9fe},     {0xc3c, 0xc3c},
        {0xd3b, 0xd3c},     {0xeba, 0xeba},     {0x1715, 0x1715},   {0x1abf, 0x1ace},   {0x1df6, 0x1dfa},
        {0x32ff, 0x32ff},   {0xa7f2, 0xa7f4},   {0xa82c, 0xa82c},   {0xab69, 0xab69},   {0x10781, 0x10785},
        {0x10787, 0x107b0}, {0x107b2, 0x107ba}, {0x10d24, 0x10d27}, {0x10eab, 0x10eac}, {0x10efd, 0x10eff},
        {0x10f46, 0x10f50}, {0x10f82, 0x10f85}, {0x11070, 0x11070}, {0x1133b, 0x1133b}, {0x1145e, 0x1145e},
        {0x11839, 0x1183a}, {0x11930, 0x11930}, {0x11938, 0x11938}, {0x1193d, 0x1193e}, {0x11943, 0x11943},
        {0x119e0, 0x119e0}, {0x11a34, 0x11a34}, {0x11a47, 0x11a47}, {0x11a99, 0x11a99}, {0x11d42, 0x11d42},
        {0x11d44, 0x11d45}, {0x11d97, 0x11d97}, {0x11f41, 0x11f42}, {0x16ff0, 0x16ff1}, {0x1e030, 0x1e06d},
        {0x1e08f, 0x1e08f}, {0x1e130, 0x1e136}, {0x1e2ae, 0x1e2ae}, {0x1e2ec, 0x1e2ef}, {0x1e4ec, 0x1e4ef},
        {0x1f16c, 0x1f16c}, {0x1fbf0, 0x1fbf9}};
    int lo = 0, hi = sizeof ranges / sizeof *ranges;
    while (lo < hi) {
        int mid = (lo + hi) / 2;
        if (cp > ranges[mid][1])
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < (int)(sizeof ranges / sizeof *ranges) && cp >= ranges[lo][0];
}

/* Hangul whose compatibility form is conjoining jamo, which then compose with what is beside it. */
static bool becomes_jamo(int32_t cp) {
    return (cp >= 0x3131 && cp <= 0x318e) || (cp >= 0xffa0 && cp <= 0xffdc) || (cp >= 0x3260 && cp <= 0x327e);
}

static bool joins(int32_t cp, int32_t next, utf8proc_option_t options) {
    return options & UTF8PROC_COMPAT && (becomes_jamo(next) || (becomes_jamo(cp) && next >= 0x1160 && next <= 0x11ff));
}

/* End of the grapheme cluster at i (UAX 29), or of its part before a late character; normal forms never compose or
 * reorder across one. */
static int64_t cluster_end(const piece *p, int64_t i, utf8proc_option_t options, int *count) {
    utf8proc_int32_t state = 0;
    int k;
    int32_t cp = utf8_decode(p->s + i, &k);
    for (*count = 1, i += k; i < p->n; i += k, ++*count) {
        int32_t next = utf8_decode(p->s + i, &k);
        if (is_late(cp) || is_late(next)) break;
        if (utf8proc_grapheme_break_stateful(cp, next, &state) && !joins(cp, next, options)) break;
        cp = next;
    }
    return i;
}

/* A character alone that every form leaves as it is. */
static bool is_stable(const piece *p, int64_t i) {
    int k;
    int32_t cp = utf8_decode(p->s + i, &k);
    return cp < 0x80 || is_late(cp) ||
           (utf8proc_get_property(cp)->decomp_seqindex == UINT16_MAX && !(cp >= 0xac00 && cp <= 0xd7a3));
}

/* Normal form of [i, to) (heap); NULL after fail(). */
static char *cluster_form(const piece *p, int64_t i, int64_t to, utf8proc_option_t options, int64_t *n) {
    utf8proc_uint8_t *out = NULL;
    utf8proc_ssize_t k = utf8proc_map((const utf8proc_uint8_t *)p->s + i, (utf8proc_ssize_t)(to - i), &out, options);
    if (k < 0) {
        fail(EXIT_INPUT, "tokenizer: normalising text: %s", utf8proc_errmsg(k));
        return NULL;
    }
    *n = k;
    return (char *)out;
}

static int apply_form(builder *w, const piece *p, utf8proc_option_t options) {
    for (int64_t i = 0; i < p->n;) {
        int64_t plain = ascii_run(p->s, i, p->n);
        if (plain < p->n && plain > i) plain--; /* the last one may carry marks */
        put_same(w, p, i, plain);
        if ((i = plain) == p->n) break;
        int count;
        int64_t to = cluster_end(p, i, options, &count), n;
        if (count > CLUSTER_MAX)
            return fail(EXIT_INPUT, "tokenizer: %d combining characters in a row, expected at most %d", count,
                        CLUSTER_MAX);
        if (count == 1 && is_stable(p, i)) {
            put_same(w, p, i, to);
            i = to;
            continue;
        }
        char *form = cluster_form(p, i, to, options, &n);
        if (!form) return -1;
        if (n == to - i && !memcmp(form, p->s + i, (size_t)n))
            put_same(w, p, i, to);
        else
            put(w, form, n, origin_begin(p, i), origin_end(p, to));
        free(form);
        i = to;
    }
    return 0;
}

static void apply_lowercase(builder *w, const piece *p) {
    for (int64_t i = 0, k; i < p->n; i += k) {
        int len;
        int32_t cp = utf8_decode(p->s + i, &len), low = utf8proc_tolower(cp);
        char out[4];
        k = len;
        if (low == cp && cp != 0x130)
            put_same(w, p, i, i + k);
        else if (cp == 0x130)
            put(w, "i\xcc\x87", 3, origin_begin(p, i), origin_end(p, i + k)); /* the one of two characters */
        else
            put(w, out, utf8_encode(low, out), origin_begin(p, i), origin_end(p, i + k));
    }
}

static int apply_replace(builder *w, const piece *p, const normal_step *s, regex_scratch *rs) {
    int64_t from = 0, a, b;
    while (from < p->n) {
        int found;
        if (s->has_re) {
            found = regex_find(&s->re, rs, p->s, p->n, from, &a, &b);
        } else {
            const char *at = memmem(p->s + from, (size_t)(p->n - from), s->from, s->from_n);
            found = at != NULL;
            if (at) a = at - p->s, b = a + (int64_t)s->from_n;
        }
        if (found < 0) return -1;
        if (!found) break;
        put_same(w, p, from, a);
        if (a < b)
            put(w, s->to, (int64_t)s->to_n, origin_begin(p, a), origin_end(p, b));
        else if (b < p->n)
            put_same(w, p, b, b + 1), b++; /* an empty match replaces nothing */
        else
            break;
        from = b;
    }
    put_same(w, p, from, p->n);
    return 0;
}

static const utf8proc_option_t forms[] = {
    [NORMAL_NFC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE,
    [NORMAL_NFD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE,
    [NORMAL_NFKC] = UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT,
    [NORMAL_NFKD] = UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT,
};

int normal_apply(const normal_step *steps, int n, regex_scratch *rs, piece *p) {
    for (int i = 0; i < n && p->n; i++) {
        const normal_step *s = &steps[i];
        if (s->kind <= NORMAL_NFKD && ascii_run(p->s, 0, p->n) == p->n) continue; /* every form of ASCII is itself */
        builder w = {0};
        int rc = 0;
        if (s->kind <= NORMAL_NFKD)
            rc = apply_form(&w, p, forms[s->kind]);
        else if (s->kind == NORMAL_LOWERCASE)
            apply_lowercase(&w, p);
        else if (s->kind == NORMAL_REPLACE)
            rc = apply_replace(&w, p, s, rs);
        else
            put(&w, s->to, (int64_t)s->to_n, origin_begin(p, 0), origin_begin(p, 0)), put_same(&w, p, 0, p->n);
        piece next = built(&w, p->base);
        piece_free(p);
        *p = next;
        if (rc) return -1;
    }
    return 0;
}

char *normal_text(const normal_step *steps, int n, const char *text, size_t len, size_t *out_n) {
    regex_scratch rs;
    regex_scratch_init(&rs, (int64_t)len);
    piece p = {.s = text, .n = (int64_t)len};
    char *out = NULL;
    if (!normal_apply(steps, n, &rs, &p)) {
        *out_n = (size_t)p.n;
        out = memcpy(xcalloc((size_t)p.n + 1, 1), p.s, (size_t)p.n);
    }
    piece_free(&p);
    regex_scratch_free(&rs);
    return out;
}
