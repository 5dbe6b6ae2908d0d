/* Byte-pair encoding of one word (Sennrich et al. 2016): again and again the adjacent pair with the lowest rank,
 * leftmost first, becomes one token. Short words scan their pairs; long ones keep a heap of (rank, position), n log n
 * for any input. */
#include "core/arena.h"
#include "core/error.h"
#include "data/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

#define SHORT_WORD 64 /* up to here a scan of all pairs per merge beats the heap */
#define NO_RANK UINT32_MAX

static uint64_t pair_of(int32_t left, int32_t right) { return (uint64_t)(uint32_t)left << 32 | (uint32_t)right; }

static uint64_t pair_hash(uint64_t pair) {
    pair *= 0x9e3779b97f4a7c15u;
    return pair ^ pair >> 29;
}

void merges_init(merge_table *m, int64_t expected) {
    uint64_t size = 64;
    while (size < 2 * (uint64_t)expected) size *= 2;
    m->slot = xcalloc(size, sizeof *m->slot);
    m->mask = size - 1;
    m->n = 0;
    for (uint64_t i = 0; i < size; i++) m->slot[i].id = -1;
}

void merges_free(merge_table *m) { free(m->slot); }

static merge_slot *merges_slot(const merge_table *m, uint64_t pair) {
    uint64_t i = pair_hash(pair) & m->mask;
    while (m->slot[i].id >= 0 && m->slot[i].pair != pair) i = (i + 1) & m->mask;
    return &m->slot[i];
}

static int merge_part(const vocab *v, const char *where, uint32_t rank, const char *what, const char *s, size_t n) {
    int id = vocab_find(v, s, n);
    if (id < 0)
        fail(EXIT_INPUT, "%s: merge %u: %s '%.*s' is not in the vocabulary", where, rank, what, (int)(n > 64 ? 64 : n),
             s);
    return id;
}

int merges_add(merge_table *m, const vocab *v, const char *where, uint32_t rank, const char *left, size_t left_n,
               const char *right, size_t right_n, bool last_wins) {
    char both[2 * TOKEN_TEXT_MAX];
    if (!left_n || !right_n || left_n > TOKEN_TEXT_MAX || right_n > TOKEN_TEXT_MAX)
        return fail(EXIT_INPUT, "%s: merge %u is not a pair of tokens", where, rank);
    int a = merge_part(v, where, rank, "left side", left, left_n);
    if (a < 0) return -1;
    int b = merge_part(v, where, rank, "right side", right, right_n);
    if (b < 0) return -1;
    memcpy(both, left, left_n);
    memcpy(both + left_n, right, right_n);
    int ab = merge_part(v, where, rank, "result", both, left_n + right_n);
    if (ab < 0) return -1;
    merge_slot *s = merges_slot(m, pair_of(a, b));
    if (s->id >= 0 && !last_wins) return 0;
    CHECK(s->id >= 0 || 2 * (uint64_t)m->n <= m->mask, "merge table of %ld is full", (long)m->n);
    m->n += s->id < 0;
    *s = (merge_slot){pair_of(a, b), rank, ab};
    return 0;
}

static const merge_slot none = {0, NO_RANK, -1};

static const merge_slot *merge_of(const merge_table *m, int32_t left, int32_t right) {
    if (left < 0 || right < 0) return &none;
    const merge_slot *s = merges_slot(m, pair_of(left, right));
    return s->id >= 0 ? s : &none;
}

/* First symbols of a word: the tokens of its bytes. id[i] begins at byte at[i]; at[count] = n. Returns the count. */
static int64_t symbols(const tokenizer *t, const char *s, int64_t n, int32_t *id, int32_t *at) {
    int64_t k = 0;
    bool after_unk = false;
    for (int64_t i = 0; i < n; i++) {
        int32_t b = t->v.byte_id[(unsigned char)s[i]];
        bool unk = b < 0;
        if (unk && t->unk >= 0) {
            if (after_unk && t->fuse_unk) continue;
            b = t->unk;
        } else if (unk && !t->keep_unknown) {
            continue;
        }
        after_unk = unk;
        id[k] = b;
        at[k++] = (int32_t)i;
    }
    at[k] = (int32_t)n;
    return k;
}

/* Merges id[0, k) in place; returns the new count. */
static int merge_short(const merge_table *m, int32_t *id, int32_t *at, int k) {
    uint32_t rank[SHORT_WORD];
    int32_t to[SHORT_WORD];
    for (int i = 0; i + 1 < k; i++) {
        const merge_slot *s = merge_of(m, id[i], id[i + 1]);
        rank[i] = s->rank;
        to[i] = s->id;
    }
    while (k > 1) {
        int best = 0;
        for (int i = 1; i + 1 < k; i++)
            if (rank[i] < rank[best]) best = i;
        if (rank[best] == NO_RANK) break;
        id[best] = to[best];
        size_t tail = (size_t)(k - best - 2);
        memmove(id + best + 1, id + best + 2, tail * sizeof *id);
        memmove(at + best + 1, at + best + 2, (tail + 1) * sizeof *at);
        memmove(rank + best, rank + best + 1, tail * sizeof *rank);
        memmove(to + best, to + best + 1, tail * sizeof *to);
        k--;
        for (int i = best - 1; i <= best; i++) {
            if (i < 0 || i + 1 >= k) continue;
            const merge_slot *s = merge_of(m, id[i], id[i + 1]);
            rank[i] = s->rank;
            to[i] = s->id;
        }
    }
    return k;
}

/* A min-heap of rank << 32 | position. Entries are not removed when their pair goes: whoever pops one looks again. */
static void heap_down(uint64_t *heap, int64_t n, int64_t i) {
    uint64_t x = heap[i];
    for (int64_t c; (c = 2 * i + 1) < n; i = c) {
        if (c + 1 < n && heap[c + 1] < heap[c]) c++;
        if (heap[c] >= x) break;
        heap[i] = heap[c];
    }
    heap[i] = x;
}

static uint64_t heap_pop(bpe_scratch *w) {
    uint64_t top = w->heap[0], last = w->heap[--w->heap_n];
    if (w->heap_n) {
        w->heap[0] = last;
        heap_down(w->heap, w->heap_n, 0);
    }
    return top;
}

static void heap_push(bpe_scratch *w, uint64_t x) {
    if (w->heap_n == w->heap_cap) {
        w->heap_cap = w->heap_cap ? w->heap_cap + w->heap_cap / 2 : 1024;
        w->heap = xrealloc(w->heap, (size_t)w->heap_cap, sizeof *w->heap);
    }
    int64_t i = w->heap_n++;
    for (int64_t up; i && w->heap[up = (i - 1) / 2] > x; i = up) w->heap[i] = w->heap[up];
    w->heap[i] = x;
}

static void heap_push_pair(bpe_scratch *w, const merge_table *m, int64_t i, int64_t j) {
    const merge_slot *s = merge_of(m, w->id[i], w->id[j]);
    if (s->id >= 0) heap_push(w, (uint64_t)s->rank << 32 | (uint64_t)i);
}

static void heap_fill(bpe_scratch *w, const merge_table *m, int64_t k) {
    w->heap_n = 0;
    for (int64_t i = 0; i + 1 < k; i++) {
        const merge_slot *s = merge_of(m, w->id[i], w->id[i + 1]);
        if (s->id < 0) continue;
        if (w->heap_n == w->heap_cap) {
            w->heap_cap = w->heap_cap ? w->heap_cap + w->heap_cap / 2 : 1024;
            w->heap = xrealloc(w->heap, (size_t)w->heap_cap, sizeof *w->heap);
        }
        w->heap[w->heap_n++] = (uint64_t)s->rank << 32 | (uint64_t)i;
    }
    for (int64_t i = w->heap_n / 2 - 1; i >= 0; i--) heap_down(w->heap, w->heap_n, i);
}

/* Symbols stay in their cells: one of len symbols has len at its first and its last cell, so both neighbours are found
 * without links; a cell that no symbol starts at has len 0 or less. */
static int64_t merge_long(bpe_scratch *w, const merge_table *m, int64_t k) {
    for (int64_t i = 0; i < k; i++) w->len[i] = 1;
    heap_fill(w, m, k);
    while (w->heap_n) {
        uint64_t top = heap_pop(w);
        int64_t i = (int64_t)(top & UINT32_MAX), len = w->len[i], j = i + len;
        if (len <= 0 || j >= k) continue;
        const merge_slot *s = merge_of(m, w->id[i], w->id[j]);
        if (s->id < 0 || s->rank != top >> 32) continue;
        int64_t both = len + w->len[j];
        w->id[i] = s->id;
        if (len > 1) w->len[i + len - 1] = 0;
        w->len[j] = 0;
        w->len[i + both - 1] = (int32_t)-both; /* negative: an end, not a start */
        w->len[i] = (int32_t)both;
        if (i > 0) {
            int64_t before = w->len[i - 1];
            heap_push_pair(w, m, i - (before < 0 ? -before : 1), i);
        }
        if (i + both < k) heap_push_pair(w, m, i, i + both);
    }
    int64_t n = 0;
    for (int64_t i = 0, step; i < k; i += step) {
        step = w->len[i];
        w->id[n] = w->id[i];
        w->at[n++] = w->at[i];
    }
    w->at[n] = w->at[k];
    return n;
}

static void scratch_reserve(bpe_scratch *w, int64_t n) {
    if (w->id && n < w->cap) return;
    w->cap = n + 1;
    w->id = xrealloc(w->id, (size_t)w->cap, sizeof *w->id);
    w->len = xrealloc(w->len, (size_t)w->cap, sizeof *w->len);
    w->at = xrealloc(w->at, (size_t)w->cap, sizeof *w->at);
}

void bpe_scratch_free(bpe_scratch *w) {
    free(w->id);
    free(w->len);
    free(w->at);
    free(w->heap);
}

void bpe_word(encoding *e, int64_t begin, int64_t end) {
    const tokenizer *t = e->t;
    const char *s = e->p->s + begin;
    int64_t n = end - begin;
    if (n <= TOKEN_TEXT_MAX) { /* most words are tokens: found once at opening that merging gives them back */
        int whole = vocab_find_bytes(&t->v, s, (size_t)n);
        if (whole >= 0 && (t->ignore_merges || t->v.row[whole].flags & TOKEN_WHOLE)) {
            token_emit(e, whole, begin, end);
            return;
        }
    }
    int32_t short_id[SHORT_WORD], short_at[SHORT_WORD + 1], *id = short_id, *at = short_at;
    int64_t k;
    if (n <= SHORT_WORD) {
        k = merge_short(&t->merges, id, at, (int)symbols(t, s, n, id, at));
    } else {
        scratch_reserve(&e->bpe, n);
        id = e->bpe.id, at = e->bpe.at;
        k = merge_long(&e->bpe, &t->merges, symbols(t, s, n, id, at));
    }
    for (int64_t i = 0; i < k; i++)
        if (id[i] >= 0) token_emit(e, id[i], begin + at[i], begin + at[i + 1]);
}

void bpe_mark_whole(tokenizer *t) {
    bpe_scratch w = {0};
    for (int i = 0; i < t->v.n; i++) {
        token_row *r = &t->v.row[i];
        if (!(r->flags & TOKEN_ALPHABET) || vocab_find_bytes(&t->v, r->bytes, (size_t)r->bytes_n) != i) continue;
        scratch_reserve(&w, r->bytes_n);
        int64_t k = symbols(t, r->bytes, r->bytes_n, w.id, w.at);
        k = k <= SHORT_WORD ? merge_short(&t->merges, w.id, w.at, (int)k) : merge_long(&w, &t->merges, k);
        if (k == 1 && w.id[0] == i && r->bytes_n > 0) r->flags |= TOKEN_WHOLE;
    }
    bpe_scratch_free(&w);
}
