/* Head and loss as kernels/cpu/head_loss.c walks them, with h, W and the probabilities of a chunk rounded to bf16 for
 * the two products; maximum, exp and sums are fp32 and the sum takes the probabilities unrounded. dh subtracts the
 * rounded row of the target, which p W cancels where p goes to 1. */
#include "kernels/bf16/bf16.h"
#include "kernels/cpu/head_walk.h"

#include <omp.h>

enum {
    HEAD_B_VALUES = 384 << 10,
    P_PANEL = HEAD_CHUNK / STEP * TILE_VALUES,
    HEAD_FIXED = HEAD_B_VALUES * 2 + PACK_TMP * 4
};
_Static_assert(HEAD_CHUNK % STEP == 0, "a chunk is whole steps");

typedef struct {
    head_walk walk;
    const bf16_engine *e;
    uint16_t *packed, *p; /* panels of h and of the chunk's probabilities */
    float *z;             /* [rows, HEAD_CHUNK] logits */
    bf16_room room;       /* of this thread */
} head_block;

static void begin_rows(const head_walk *b, int64_t i0, int64_t i1) {
    const int64_t panel = steps_of(b->h.cols) * TILE_VALUES;
    uint16_t *packed = ((const head_block *)b)->packed;
    for (int64_t i = i0; i < i1; i += TILE)
        bf16_pack_rows(packed + i / TILE * panel, mat_row(b->h, i), b->h.ld, at_most(TILE, i1 - i), b->h.cols);
}

static void logits(const head_walk *b, int64_t word, int64_t words) {
    const head_block *own = (const head_block *)b;
    int64_t n0, n1;
    head_part(b, words, TILE, &n0, &n1);
    const bf16_gemm g = {.m = b->h.rows,
                         .n = words,
                         .k = b->w->cols,
                         .side = A_PACKED,
                         .packed = own->packed,
                         .panel = steps_of(b->h.cols) * TILE_VALUES,
                         .c = own->z,
                         .cs = HEAD_CHUNK,
                         .fresh = true,
                         .pack = bf16_pack_fwd,
                         .source.w = b->w,
                         .n0 = word};
    bf16_range(own->e, &g, &own->room, 0, g.m, n0, n1);
}

/* j is a multiple of STEP: one tile further each */
static inline void put(void *to, int64_t j, v16 lo, v16 hi) {
    _mm512_store_si512((uint16_t *)to + j / STEP * TILE_VALUES, pair_bf16(lo, hi));
}

static void softmax_row(const head_walk *b, int64_t i, int64_t word, int64_t words) {
    const head_block *own = (const head_block *)b;
    head_softmax(b, own->z + i * HEAD_CHUNK, i, word, words, put, own->p + i / TILE * P_PANEL + i % TILE * STEP);
}

static void gradient(const head_walk *b, int64_t word, int64_t words) {
    const head_block *own = (const head_block *)b;
    int64_t n0, n1;
    head_part(b, b->dh.cols, TILE, &n0, &n1);
    for (int64_t i = 0; i < b->dh.rows; i++) {
        float *y = mat_row(b->dh, i), corr = b->corr[i];
        if (corr == 1 || word == 0) continue;
        for (int64_t k = n0; k < n1; k++) y[k] *= corr;
    }
    const bf16_gemm g = {.m = b->dh.rows,
                         .n = b->dh.cols,
                         .k = words,
                         .side = A_PACKED,
                         .packed = own->p,
                         .panel = P_PANEL,
                         .c = b->dh.data,
                         .cs = b->dh.ld,
                         .fresh = word == 0,
                         .pack = bf16_pack_bwd,
                         .source.w = b->w,
                         .k0 = word};
    bf16_range(own->e, &g, &own->room, 0, g.m, n0, n1);
}

static void finish_row(const head_walk *b, int64_t i) {
    b->logprob[i] = head_logprob(b, i);
    if (!b->dh.data) return;
    const float inv = 1.0f / b->s[i];
    float *y = mat_row(b->dh, i), *row = ((const head_block *)b)->room.tmp;
    for (int64_t k = 0; k < b->dh.cols; k += PACK_TMP) {
        const int64_t n = at_most(PACK_TMP, b->dh.cols - k);
        b->w->fmt->dequant(b->w, b->target[i] * b->w->cols + k, n, row);
        for (int64_t j = 0; j < n; j++) y[k + j] = fmaf(y[k + j], inv, -bf16_to_float(float_to_bf16(row[j])));
    }
}

static const head_steps steps = {begin_rows, logits, softmax_row, gradient, finish_row};

/* what a row of a block takes of the scratch, in bytes */
static int64_t row_bytes(int64_t dim) { return HEAD_CHUNK * 6 + up_to(dim, STEP) * 2 + 4 * 4; }

/* Rows [i, i + n) of the call; `owner` is the scratch that holds what the block's threads share. */
static void place(head_block *b, char *owner, char *own, int64_t n) {
    const int64_t rows = up_to(n, TILE);
    head_walk *w = &b->walk;
    b->room = (bf16_room){.b = (uint16_t *)(void *)own, .b_values = HEAD_B_VALUES};
    b->room.tmp = (float *)(void *)(own + HEAD_B_VALUES * 2);
    b->packed = (uint16_t *)(void *)(owner + HEAD_FIXED);
    b->p = b->packed + rows * up_to(w->w->cols, STEP);
    b->z = (float *)(void *)(b->p + rows * HEAD_CHUNK);
    w->m = b->z + rows * HEAD_CHUNK;
    w->s = w->m + rows, w->hit = w->s + rows, w->corr = w->hit + rows;
}

void bf16_head_loss(const bf16_engine *e, kctx *c, float *logprob, mat dh, mat h, const weight *w,
                    const int32_t *target) {
    head_check(dh, h, w, target);
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
            head_block b = {.e = e,
                            .walk = {.h = mat_rows(h, i, rows),
                                     .dh = dh.data ? mat_rows(dh, i, rows) : dh,
                                     .w = w,
                                     .target = target + i,
                                     .logprob = logprob + i,
                                     .member = team ? self : 0,
                                     .members = team ? threads : 1}};
            place(&b, team ? c->scratch : own, own, rows);
            head_run(&b.walk, &steps, TILE);
        }
        e->end();
    }
}
