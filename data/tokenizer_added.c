/* Added tokens: whole strings that are cut out of the text before anything else sees it. All occurrences are collected
 * first; then tokenizers' rule (leftmost, longest there) or llama.cpp's (longest token first) says which ones count. */
#include "core/arena.h"
#include "core/error.h"
#include "data/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

static int by_text(const void *a, const void *b) {
    const added_pattern *x = a, *y = b;
    int c = memcmp(x->text, y->text, (size_t)(x->n < y->n ? x->n : y->n));
    return c ? c : (x->n > y->n) - (x->n < y->n);
}

static char *pattern_text(const tokenizer *t, const token_row *r, bool normalised, size_t *n) {
    if (normalised) return normal_text(t->normal, t->n_normal, r->text, (size_t)r->text_n, n);
    *n = (size_t)r->text_n;
    return memcpy(xcalloc(*n + 1, 1), r->text, *n);
}

int added_build(added_set *a, const tokenizer *t, bool normalised) {
    int count = 0;
    for (int i = 0; i < t->v.n; i++) count += !!(t->v.row[i].flags & TOKEN_ADDED);
    a->row = xcalloc((size_t)count, sizeof *a->row);
    for (int i = 0; i < t->v.n; i++) {
        const token_row *r = &t->v.row[i];
        if (!(r->flags & TOKEN_ADDED) || !!(r->flags & TOKEN_NORMALIZED) != normalised) continue;
        size_t n;
        char *text = pattern_text(t, r, normalised, &n);
        if (!text) return -1;
        a->row[a->n++] = (added_pattern){text, (int32_t)n, i};
        if (n) a->first[(unsigned char)text[0]] = true;
        a->not_special += !(r->flags & TOKEN_SPECIAL);
    }
    qsort(a->row, (size_t)a->n, sizeof *a->row, by_text);
    return 0;
}

void added_free(added_set *a) {
    for (int i = 0; i < a->n; i++) free((char *)(uintptr_t)a->row[i].text);
    free(a->row);
}

/* First row in [lo, hi) whose byte at depth d is at least c; rows there share their first d bytes and are longer than
 * d. */
static int lower(const added_set *a, int lo, int hi, int d, int c) {
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2;
        if ((unsigned char)a->row[mid].text[d] < c)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

typedef struct {
    added_hit *hit;
    int64_t n, cap;
} hit_list;

static void hit_add(hit_list *h, int64_t begin, int64_t end, int32_t id) {
    if (h->n == h->cap) h->hit = xrealloc(h->hit, (size_t)(h->cap = h->cap ? 2 * h->cap : 16), sizeof *h->hit);
    h->hit[h->n++] = (added_hit){begin, end, id};
}

/* Every pattern that begins at s[i], shortest first: the range of rows that still agree shrinks byte by byte. */
static void hits_at(const added_set *a, const char *s, int64_t n, int64_t i, hit_list *h) {
    int lo = 0, hi = a->n;
    while (lo < hi && a->row[lo].n == 0) lo++; /* what the normaliser left nothing of */
    for (int d = 0; i + d < n && lo < hi; d++) {
        int c = (unsigned char)s[i + d];
        lo = lower(a, lo, hi, d, c);
        hi = lower(a, lo, hi, d, c + 1);
        for (; lo < hi && a->row[lo].n == d + 1; lo++) hit_add(h, i, i + d + 1, a->row[lo].id);
    }
}

static int leftmost_longest(const void *a, const void *b) {
    const added_hit *x = a, *y = b;
    if (x->begin != y->begin) return x->begin < y->begin ? -1 : 1;
    if (x->end != y->end) return x->end > y->end ? -1 : 1;
    return (x->id > y->id) - (x->id < y->id);
}

static int longest_first(const void *a, const void *b) {
    const added_hit *x = a, *y = b;
    int64_t m = x->end - x->begin, n = y->end - y->begin;
    if (m != n) return m > n ? -1 : 1;
    if (x->id != y->id) return x->id < y->id ? -1 : 1;
    return (x->begin > y->begin) - (x->begin < y->begin);
}

/* llama.cpp: for each token, longest first, every place that no token has taken yet. */
static int64_t keep_longest(hit_list *h, int64_t n) {
    uint8_t *taken = xcalloc((size_t)n, 1);
    int64_t kept = 0;
    qsort(h->hit, (size_t)h->n, sizeof *h->hit, longest_first);
    for (int64_t i = 0; i < h->n; i++) {
        added_hit x = h->hit[i];
        /* what was taken before is at least as long, so it covers an end of x if it touches x at all */
        if (taken[x.begin] || taken[x.end - 1]) continue;
        memset(taken + x.begin, 1, (size_t)(x.end - x.begin));
        h->hit[kept++] = x;
    }
    free(taken);
    qsort(h->hit, (size_t)kept, sizeof *h->hit, leftmost_longest);
    return kept;
}

/* 1 when the token is one for single words and has a word character beside it; -1 after fail(). */
static int inside_word(const tokenizer *t, regex_scratch *rs, const char *s, int64_t n, const added_hit *x) {
    int64_t a, b, from = x->begin;
    if (!(t->v.row[x->id].flags & TOKEN_SINGLE_WORD)) return 0;
    while (from > 0 && (s[--from] & 0xc0) == 0x80) {} /* the character before */
    int before = x->begin ? regex_find(&t->word, rs, s + from, x->begin - from, 0, &a, &b) : 0;
    if (before) return before;
    return x->end < n ? regex_find(&t->word, rs, s + x->end, n - x->end, 0, &a, &b) : 0;
}

/* Length of the White_Space character at s, 0 for any other. */
static int space_at(const char *s, int64_t n) {
    static const char *const wide[] = {"\xc2\x85",     "\xc2\xa0",     "\xe1\x9a\x80", "\xe2\x80\x80", "\xe2\x80\x81",
                                       "\xe2\x80\x82", "\xe2\x80\x83", "\xe2\x80\x84", "\xe2\x80\x85", "\xe2\x80\x86",
                                       "\xe2\x80\x87", "\xe2\x80\x88", "\xe2\x80\x89", "\xe2\x80\x8a", "\xe2\x80\xa8",
                                       "\xe2\x80\xa9", "\xe2\x80\xaf", "\xe2\x81\x9f", "\xe3\x80\x80"};
    if (n > 0 && (*s == ' ' || (*s >= '\t' && *s <= '\r'))) return 1;
    for (size_t i = 0; i < sizeof wide / sizeof *wide; i++) {
        size_t k = strlen(wide[i]);
        if ((int64_t)k <= n && !memcmp(s, wide[i], k)) return (int)k;
    }
    return 0;
}

static int64_t strip_left(const char *s, int64_t from, int64_t at) {
    while (at > from) {
        int64_t c = at - 1;
        while (c > from && (s[c] & 0xc0) == 0x80) c--;
        if (space_at(s + c, at - c) != at - c) break;
        at = c;
    }
    return at;
}

static int64_t strip_right(const char *s, int64_t n, int64_t at) {
    for (int k; (k = space_at(s + at, n - at));) at += k;
    return at;
}

/* tokenizers: from left to right, the longest at each place; one that is then refused still hides what it overlaps. */
static int64_t keep_leftmost(const tokenizer *t, regex_scratch *rs, hit_list *h, const char *s, int64_t n,
                             bool special) {
    int64_t kept = 0, scanned = 0, done = 0;
    qsort(h->hit, (size_t)h->n, sizeof *h->hit, leftmost_longest);
    for (int64_t i = 0; i < h->n; i++) {
        added_hit x = h->hit[i];
        uint32_t flags = t->v.row[x.id].flags;
        if (x.begin < scanned) continue;
        scanned = x.end;
        if (!special && flags & TOKEN_SPECIAL) continue;
        int word = inside_word(t, rs, s, n, &x);
        if (word < 0) return -1;
        if (word) continue;
        if (flags & TOKEN_LSTRIP) x.begin = strip_left(s, done, x.begin);
        if (flags & TOKEN_RSTRIP) x.end = strip_right(s, n, x.end);
        if (flags & TOKEN_LSTRIP && x.begin < done) x.begin = done < x.end ? done : x.end;
        done = x.end; /* may lie before the end of a token that stripped further: what it took then counts twice, as
                         there */
        h->hit[kept++] = x;
    }
    return kept;
}

static bool is_plain(const encoding *e, const piece *p, int64_t at) {
    int64_t lo = 0, hi = e->n_plain, x = !p ? at : p->begin ? p->begin[at] : p->base + at;
    while (lo < hi) {
        int64_t mid = (lo + hi) / 2;
        if (e->plain[mid] < x)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo < e->n_plain && e->plain[lo] == x;
}

/* Takes special tokens out that do not exist at their place: none does for llama.cpp where they are not asked for. */
static void drop_specials(const encoding *e, const piece *p, bool all, hit_list *h) {
    int64_t k = 0;
    for (int64_t i = 0; i < h->n; i++)
        if (!(e->t->v.row[h->hit[i].id].flags & TOKEN_SPECIAL) || !(all || is_plain(e, p, h->hit[i].begin)))
            h->hit[k++] = h->hit[i];
    h->n = k;
}

int64_t added_find(encoding *e, const added_set *a, const piece *p, const char *s, int64_t n, bool special,
                   added_hit **out) {
    const tokenizer *t = e->t;
    *out = NULL;
    if (!a->n || (!special && !a->not_special)) return 0;
    hit_list h = {0};
    for (int64_t i = 0; i < n; i++)
        if (a->first[(unsigned char)s[i]]) hits_at(a, s, n, i, &h);
    bool none = t->longest_first && !special;
    if (none || e->n_plain) drop_specials(e, p, none, &h);
    if (!h.n) return free(h.hit), 0;
    int64_t kept = t->longest_first ? keep_longest(&h, n) : keep_leftmost(t, &e->rs, &h, s, n, special);
    *out = h.hit;
    return kept;
}

int64_t tokenizer_special_at(const tokenizer *t, const char *s, int64_t n) {
    const added_set *sets[] = {&t->raw, &t->normalised};
    int64_t longest = 0;
    for (int k = 0; k < 2; k++) {
        if (!n || !sets[k]->first[(unsigned char)*s]) continue;
        hit_list h = {0};
        hits_at(sets[k], s, n, 0, &h);
        for (int64_t i = 0; i < h.n; i++)
            if (t->v.row[h.hit[i].id].flags & TOKEN_SPECIAL && h.hit[i].end > longest) longest = h.hit[i].end;
        free(h.hit);
    }
    return longest;
}
