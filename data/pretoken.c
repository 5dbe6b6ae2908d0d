/* Pre-tokenisation: a list of stages, each cutting what the one before left, down to words. A stage finds its matches
 * and treats them by one of five behaviours; what lies between matches is kept. Depth first, so no list of words is
 * made. */
#include "data/tokenizer_parts.h"

#include <string.h>

typedef struct {
    encoding *e;
    int next; /* stage that takes what this one cuts */
    split_behaviour how;
    int64_t begin, end; /* the part held back until it is known whether the next one joins it */
    bool held, match;   /* is one held; was it a match */
} cutter;

static int cut_flush(cutter *c) {
    if (!c->held) return 0;
    c->held = false;
    return pretoken_run(c->e, c->next, c->begin, c->end);
}

/* Takes the next part of the text, in order; `match` says which kind it is. */
static int cut(cutter *c, int64_t begin, int64_t end, bool match) {
    bool join = false;
    switch (c->how) {
    case SPLIT_REMOVED:
        if (match) return cut_flush(c);
        break;
    case SPLIT_ISOLATED: break;
    case SPLIT_CONTIGUOUS: join = c->held && match == c->match; break;
    case SPLIT_PREVIOUS: join = c->held && match && !c->match; break;
    case SPLIT_NEXT: join = c->held && !match && c->match; break;
    }
    c->match = match;
    if (join) return c->end = end, 0;
    if (cut_flush(c)) return -1;
    c->begin = begin;
    c->end = end;
    c->held = true;
    return 0;
}

static int find(const pre_stage *s, regex_scratch *rs, const char *text, int64_t n, int64_t from, int64_t *begin,
                int64_t *end) {
    if (s->re.code) return regex_find(&s->re, rs, text, n, from, begin, end);
    const char *at = from < n ? memmem(text + from, (size_t)(n - from), s->literal, s->literal_n) : NULL;
    if (!at) return 0;
    *begin = at - text;
    *end = *begin + (int64_t)s->literal_n;
    return 1;
}

static int64_t char_after(const char *s, int64_t n, int64_t i) {
    i++;
    while (i < n && (s[i] & 0xc0) == 0x80) i++;
    return i;
}

/* All matches of a stage in [begin, end), which it sees as a text of its own: lookaround ends at the edges. An empty
 * match cuts, but not right behind the match before it. */
static int split_run(encoding *e, int stage, int64_t begin, int64_t end) {
    const pre_stage *s = &e->t->pre[stage];
    const char *text = e->p->s + begin;
    int64_t n = end - begin, done = 0, from = 0, last = -1, a, b;
    cutter c = {.e = e, .next = stage + 1, .how = s->behaviour};
    while (from <= n) {
        int found = find(s, &e->rs, text, n, from, &a, &b);
        if (found < 0) return -1;
        if (!found) break;
        if (a == b && b == last) {
            from = char_after(text, n, from);
            continue;
        }
        if (a > done && cut(&c, begin + done, begin + a, s->invert)) return -1;
        if (cut(&c, begin + a, begin + b, !s->invert)) return -1;
        done = from = last = b;
    }
    if (n > done && cut(&c, begin + done, end, s->invert)) return -1;
    return cut_flush(&c);
}

static int prefix_run(encoding *e, int stage, int64_t begin, int64_t end) {
    if (e->p->s[begin] == ' ') return pretoken_run(e, stage + 1, begin, end);
    const piece *outer = e->p;
    piece p = piece_prefix_space(outer, begin, end);
    e->p = &p;
    int rc = pretoken_run(e, stage + 1, 0, p.n);
    e->p = outer;
    piece_free(&p);
    return rc;
}

int pretoken_run(encoding *e, int stage, int64_t begin, int64_t end) {
    if (begin == end) return 0;
    if (stage == e->t->n_pre) return bpe_word(e, begin, end), 0;
    return e->t->pre[stage].prefix_space ? prefix_run(e, stage, begin, end) : split_run(e, stage, begin, end);
}
