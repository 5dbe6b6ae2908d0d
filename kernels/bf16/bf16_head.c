/* Head and loss as kernels/cpu/head_loss.c walks them, with h, W and the probabilities of a chunk rounded to bf16 for
 * the two products; maximum, exp and sums are fp32 and the sum takes the probabilities unrounded. dh subtracts the
 * rounded row of the target, which p W cancels where p goes to 1. */
#include "core/error.h"
#include "kernels/bf16/bf16.h"

#include <omp.h>

enum {
    HEAD_ROWS = 512,
    HEAD_B_VALUES = 384 << 10,
    P_PANEL = HEAD_CHUNK / STEP * TILE_VALUES,
    TEAM_ROWS = 64, /* rows per thread below which the threads share one block, as in fp32 */
    HEAD_FIXED = HEAD_B_VALUES * 2 + PACK_TMP * 4
};
_Static_assert(HEAD_CHUNK % STEP == 0, "a chunk is whole steps");

/* One block of rows, and which thread of how many the caller is. The arrays lie in the scratch of the block's owner. */
typedef struct {
    const bf16_engine *e;
    mat h, dh;
    const weight *w;
    const int32_t *target;
    float *logprob;
    uint16_t *packed, *p;      /* panels of h and of the chunk's probabilities */
    float *z;                  /* [rows, HEAD_CHUNK] logits */
    float *m, *s, *hit, *corr; /* [rows] maximum, sum, logit of the target, correction of the chunk */
    bf16_room room;            /* of this thread */
    int member, members;
} head_block;

static void meet(const head_block *b) {
    if (b->members > 1) {
#pragma omp barrier
    }
}

/* the member's part of n things in units of `unit` */
static void part(const head_block *b, int64_t n, int64_t unit, int64_t *from, int64_t *to) {
    const int64_t units = (n + unit - 1) / unit;
    *from = at_most(n, units * b->member / b->members * unit);
    *to = at_most(n, units * (b->member + 1) / b->members * unit);
}

static inline float exp_of(float x) {
    float l[16];
    v16_store(l, v16_exp(v16_set1(x)));
    return l[0];
}

static void logits(const head_block *b, int64_t word, int64_t words) {
    int64_t n0, n1;
    part(b, words, TILE, &n0, &n1);
    const bf16_gemm g = {.m = b->h.rows,
                         .n = words,
                         .k = b->w->cols,
                         .side = A_PACKED,
                         .packed = b->packed,
                         .panel = steps_of(b->h.cols) * TILE_VALUES,
                         .c = b->z,
                         .cs = HEAD_CHUNK,
                         .fresh = true,
                         .pack = bf16_pack_fwd,
                         .source.w = b->w,
                         .n0 = word};
    bf16_range(b->e, &g, &b->room, 0, g.m, n0, n1);
}

/* Logits of row i become probabilities against the maximum so far. What pads a step holds exp(-inf) = 0. */
static void softmax_row(const head_block *b, int64_t i, int64_t word, int64_t words) {
    float *z = b->z + i * HEAD_CHUNK;
    uint16_t *p = b->p + i / TILE * P_PANEL + i % TILE * STEP;
    const int64_t at = b->target[i] - word;
    if (at >= 0 && at < words) b->hit[i] = z[at];
    for (int64_t j = words; j % STEP; j++) z[j] = -INFINITY;
    v16 top = v16_set1(b->m[i]);
    for (int64_t j = 0; j < words; j += 16) top = v16_max(v16_load(z + j), top);
    const float max = v16_hmax(top);
    v16 sum = v16_zero(), shift = v16_set1(max);
    for (int64_t j = 0; j < words; j += STEP, p += TILE_VALUES) {
        const v16 lo = v16_exp(v16_sub(v16_load(z + j), shift)), hi = v16_exp(v16_sub(v16_load(z + j + 16), shift));
        sum = v16_add(v16_add(sum, lo), hi);
        _mm512_store_si512(p, pair_bf16(lo, hi));
    }
    b->corr[i] = exp_of(b->m[i] - max);
    b->s[i] = fmaf(b->s[i], b->corr[i], v16_sum(sum));
    b->m[i] = max;
}

static void gradient(const head_block *b, int64_t word, int64_t words) {
    int64_t n0, n1;
    part(b, b->dh.cols, TILE, &n0, &n1);
    for (int64_t i = 0; i < b->dh.rows; i++) {
        float *y = mat_row(b->dh, i), corr = b->corr[i];
        if (corr == 1 || word == 0) continue;
        for (int64_t k = n0; k < n1; k++) y[k] *= corr;
    }
    const bf16_gemm g = {.m = b->dh.rows,
                         .n = b->dh.cols,
                         .k = words,
                         .side = A_PACKED,
                         .packed = b->p,
                         .panel = P_PANEL,
                         .c = b->dh.data,
                         .cs = b->dh.ld,
                         .fresh = word == 0,
                         .pack = bf16_pack_bwd,
                         .source.w = b->w,
                         .k0 = word};
    bf16_range(b->e, &g, &b->room, 0, g.m, n0, n1);
}

static void finish_row(const head_block *b, int64_t i) {
    b->logprob[i] = (float)((double)b->hit[i] - ((double)b->m[i] + log((double)b->s[i])));
    if (!b->dh.data) return;
    const float inv = 1.0f / b->s[i];
    float *y = mat_row(b->dh, i), *row = b->room.tmp;
    for (int64_t k = 0; k < b->dh.cols; k += PACK_TMP) {
        const int64_t n = at_most(PACK_TMP, b->dh.cols - k);
        b->w->fmt->dequant(b->w, b->target[i] * b->w->cols + k, n, row);
        for (int64_t j = 0; j < n; j++) y[k + j] = fmaf(y[k + j], inv, -bf16_to_float(float_to_bf16(row[j])));
    }
}

static void run_block(const head_block *b) {
    const int64_t panel = steps_of(b->h.cols) * TILE_VALUES;
    int64_t i0, i1;
    part(b, b->h.rows, TILE, &i0, &i1);
    for (int64_t i = i0; i < i1; i += TILE)
        bf16_pack_rows(b->packed + i / TILE * panel, mat_row(b->h, i), b->h.ld, at_most(TILE, i1 - i), b->h.cols);
    for (int64_t i = i0; i < i1; i++) b->m[i] = -INFINITY, b->s[i] = 0;
    for (int64_t word = 0; word < b->w->rows; word += HEAD_CHUNK) {
        const int64_t words = at_most(HEAD_CHUNK, b->w->rows - word);
        meet(b);
        logits(b, word, words);
        meet(b);
        for (int64_t i = i0; i < i1; i++) softmax_row(b, i, word, words);
        meet(b);
        if (b->dh.data) gradient(b, word, words);
    }
    meet(b);
    for (int64_t i = i0; i < i1; i++) finish_row(b, i);
    meet(b);
}

/* what a row of a block takes of the scratch, in bytes */
static int64_t row_bytes(int64_t dim) { return HEAD_CHUNK * 6 + up_to(dim, STEP) * 2 + 4 * 4; }

/* Rows [i, i + n) of the call; `owner` is the scratch that holds what the block's threads share. */
static void place(head_block *b, char *owner, char *own, int64_t n) {
    const int64_t rows = up_to(n, TILE);
    b->room = (bf16_room){.b = (uint16_t *)(void *)own, .b_values = HEAD_B_VALUES};
    b->room.tmp = (float *)(void *)(own + HEAD_B_VALUES * 2);
    b->packed = (uint16_t *)(void *)(owner + HEAD_FIXED);
    b->p = b->packed + rows * up_to(b->w->cols, STEP);
    b->z = (float *)(void *)(b->p + rows * HEAD_CHUNK);
    b->m = b->z + rows * HEAD_CHUNK;
    b->s = b->m + rows, b->hit = b->s + rows, b->corr = b->hit + rows;
}

void bf16_head_loss(const bf16_engine *e, kctx *c, float *logprob, mat dh, mat h, const weight *w,
                    const int32_t *target) {
    CHECK(h.cols == w->cols && (!dh.data || (dh.cols == h.cols && dh.rows == h.rows)), "h %ldx%ld dh %ldx%ld W %ldx%ld",
          (long)h.rows, (long)h.cols, (long)dh.rows, (long)dh.cols, (long)w->rows, (long)w->cols);
    for (int64_t i = 0; i < h.rows; i++)
        CHECK(target[i] >= 0 && target[i] < w->rows, "target %d of %ld words", target[i], (long)w->rows);
    if (!h.rows) return;
    const int64_t fit = (THREAD_SCRATCH - HEAD_FIXED) / row_bytes(h.cols) / (2 * TILE) * 2 * TILE;
    CHECK(fit > 0, "a head of %ld columns", (long)h.cols);
    const int64_t most = at_most(HEAD_ROWS, fit);
#pragma omp parallel num_threads(c->threads) if (c->threads > 1)
    {
        const int threads = omp_get_num_threads(), self = omp_get_thread_num();
        const bool team = threads > 1 && h.rows < (int64_t)threads * TEAM_ROWS;
        const int64_t each = team ? h.rows : (h.rows + threads - 1) / threads, rounds = (each + most - 1) / most;
        const int64_t n = at_most(most, up_to((each + rounds - 1) / rounds, 2 * TILE));
        char *own = c->scratch + (size_t)self * THREAD_SCRATCH;
        e->begin();
        for (int64_t i = team ? 0 : self * n; i < h.rows; i += team ? n : threads * n) {
            const int64_t rows = at_most(n, h.rows - i);
            head_block b = {.e = e, .h = mat_rows(h, i, rows), .dh = dh.data ? mat_rows(dh, i, rows) : dh, .w = w};
            b.target = target + i, b.logprob = logprob + i;
            b.member = team ? self : 0, b.members = team ? threads : 1;
            place(&b, team ? c->scratch : own, own, rows);
            run_block(&b);
        }
        e->end();
    }
}
