/* What every head kernel does alike: the walk over the vocabulary in chunks with an online softmax (ref_loss.c has the
 * operations and their order), by one thread or by a team that shares a block of rows. A kernel brings the products.
 *
 * A row never mixes with another, so threads take rows. Where rows are few, that would have every thread decode all of
 * W: then the team walks one block of rows together, split over words for the logits and over features for dh. */
#ifndef PEFT_KERNELS_CPU_HEAD_WALK_H
#define PEFT_KERNELS_CPU_HEAD_WALK_H

#include "core/error.h"
#include "kernels/cpu/simd.h"

#include <stdbool.h>

enum { HEAD_ROWS = 512, TEAM_ROWS = 64 /* rows per thread below which it works as a team */ };

/* One block of rows, and which thread of how many the caller is. The arrays lie in the scratch of the block's owner. */
typedef struct head_walk {
    mat h, dh;
    const weight *w;
    const int32_t *target;
    float *logprob;
    float *m, *s, *hit, *corr; /* [rows] maximum, sum, logit of the target, correction of the chunk */
    int member, members;
} head_walk;

/* The kernel's own block begins with its head_walk. Rows are those of this member's part, a chunk is [word, word +
 * words). */
typedef struct head_steps {
    void (*begin)(const head_walk *b, int64_t i0, int64_t i1);
    void (*logits)(const head_walk *b, int64_t word, int64_t words);
    void (*softmax)(const head_walk *b, int64_t i, int64_t word, int64_t words);
    void (*gradient)(const head_walk *b, int64_t word, int64_t words);
    void (*finish)(const head_walk *b, int64_t i);
} head_steps;

static inline int64_t head_least(int64_t a, int64_t b) { return a < b ? a : b; }

static inline void head_meet(const head_walk *b) {
    if (b->members > 1) {
#pragma omp barrier
    }
}

/* the member's part of n things in units of `unit` */
static inline void head_part(const head_walk *b, int64_t n, int64_t unit, int64_t *from, int64_t *to) {
    const int64_t units = (n + unit - 1) / unit;
    *from = head_least(n, units * b->member / b->members * unit);
    *to = head_least(n, units * (b->member + 1) / b->members * unit);
}

/* Logits z of row i, against the maximum so far: put(to, j, probabilities of the words j .. j + 31). What pads a chunk
 * up to 32 holds exp(-inf) = 0. */
typedef void head_put(void *to, int64_t j, v16 lo, v16 hi);
static inline __attribute__((always_inline)) void head_softmax(const head_walk *b, float *z, int64_t i, int64_t word,
                                                               int64_t words, head_put *put, void *to) {
    const int64_t at = b->target[i] - word;
    if (at >= 0 && at < words) b->hit[i] = z[at];
    for (int64_t j = words; j % 32; j++) z[j] = -INFINITY;
    v16 top = v16_set1(b->m[i]);
    for (int64_t j = 0; j < words; j += 16) top = v16_max(v16_load(z + j), top);
    const float max = v16_hmax(top);
    v16 sum = v16_zero(), shift = v16_set1(max);
    for (int64_t j = 0; j < words; j += 32) {
        const v16 lo = v16_exp(v16_sub(v16_load(z + j), shift)), hi = v16_exp(v16_sub(v16_load(z + j + 16), shift));
        sum = v16_add(v16_add(sum, lo), hi);
        put(to, j, lo, hi);
    }
    float l[16];
    v16_store(l, v16_exp(v16_set1(b->m[i] - max)));
    b->corr[i] = l[0];
    b->s[i] = fmaf(b->s[i], b->corr[i], v16_sum(sum));
    b->m[i] = max;
}

static inline float head_logprob(const head_walk *b, int64_t i) {
    return (float)((double)b->hit[i] - ((double)b->m[i] + log((double)b->s[i])));
}

/* row_unit: rows of a member begin at multiples of it */
static inline void head_run(const head_walk *b, const head_steps *f, int64_t row_unit) {
    int64_t i0, i1;
    head_part(b, b->h.rows, row_unit, &i0, &i1);
    f->begin(b, i0, i1);
    for (int64_t i = i0; i < i1; i++) b->m[i] = -INFINITY, b->s[i] = 0;
    for (int64_t word = 0; word < b->w->rows; word += HEAD_CHUNK) {
        const int64_t words = head_least(HEAD_CHUNK, b->w->rows - word);
        head_meet(b);
        f->logits(b, word, words);
        head_meet(b);
        for (int64_t i = i0; i < i1; i++) f->softmax(b, i, word, words);
        head_meet(b);
        if (b->dh.data) f->gradient(b, word, words);
    }
    head_meet(b);
    for (int64_t i = i0; i < i1; i++) f->finish(b, i);
    head_meet(b);
}

static inline void head_check(mat dh, mat h, const weight *w, const int32_t *target) {
    CHECK(h.cols == w->cols && (!dh.data || (dh.cols == h.cols && dh.rows == h.rows)), "h %ldx%ld dh %ldx%ld W %ldx%ld",
          (long)h.rows, (long)h.cols, (long)dh.rows, (long)dh.cols, (long)w->rows, (long)w->cols);
    for (int64_t i = 0; i < h.rows; i++)
        CHECK(target[i] >= 0 && target[i] < w->rows, "target %d of %ld words", target[i], (long)w->rows);
}

#endif
