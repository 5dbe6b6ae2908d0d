/* y += x W^T with a packed W: the rounding of the activations, the walk over slivers and tiles, and the split over
 * threads. One parallel region a call; a few rows are rounded by every thread for itself, which is cheaper than
 * waiting. */
#include "core/error.h"
#include "kernels/int8/int8_tile.h"

#include <omp.h>

enum {
    BLOCK = ROWS16_BLOCK,
    LANES = ROWS16_LANES,
    PASS_BYTES = 640 << 10, /* of rounded activations: they stay in the second-level cache while the slivers pass */
    OWN_VALUES = 8192,      /* activations that every thread rounds for itself */
    ALONE = 1 << 18,        /* multiply-adds below which one thread does it all */
    CHUNK = 4               /* slivers */
};

void ISA(int8_round)(int8_block *dst, int64_t step, const float *x, int64_t blocks, const int8_kind *kind) {
    const v16 shift = v16_set1(0x1.8p23f); /* the addition rounds to an integer, left in the low bits */
    const v16i sign = v16i_set1(0x7fffffff);
    for (int64_t b = 0; b < blocks; b++, x += BLOCK, dst += step) {
        const v16 lo = v16_load(x), hi = v16_load(x + 16);
        const v16 size = v16_max(v16_of_bits(v16i_and(v16_bits(lo), sign)), v16_of_bits(v16i_and(v16_bits(hi), sign)));
        const float a = v16_hmax(size), r = a > INT8_SMALLEST ? 127.0f / a : 0;
        const float bad = v16_sum(v16_fma(hi, v16_zero(), v16_mul(lo, v16_zero()))); /* 0 or NaN */
        const v16 s = v16_add(v16_mul(lo, v16_set1(r)), shift), t = v16_add(v16_mul(hi, v16_set1(r)), shift);
        int8_t q[BLOCK];
        v16i_put_bytes(q, v16_bits(s));
        v16i_put_bytes(q + 16, v16_bits(t));
        const float s0 = v16_sum(v16_sub(s, shift)), s1 = v16_sum(v16_sub(t, shift)); /* exact */
        dst->scale = a / 127.0f + bad;
        dst->sum = dst->scale * (s0 + s1);
        const int32_t x0 = bad == 0 ? (int32_t)s0 : 0, x1 = bad == 0 ? (int32_t)s1 : 0;
        dst->start[0] = -kind->bias * (kind->halves ? x0 : x0 + x1);
        dst->start[1] = -kind->bias * x1;
        if (kind->odd_even)
            for (int i = 0; i < 16; i++) dst->q[i] = q[2 * i + 1], dst->q[16 + i] = q[2 * i];
        else
            memcpy(dst->q, q, sizeof q);
    }
}

typedef struct {
    const rows16 *r;
    const int8_kind *kind;
    int8_tile *const *tiles;
    mat x, y; /* of this pass */
} product;

/* log2 of the tokens of the tile that begins at token t of n */
static int tile_size(int64_t t, int64_t n) {
    int i = 0;
    while (2 << i <= ISA(int8_tile_max) && 2 << i <= n - t) i++;
    return i;
}

static void round_tile(const product *p, int8_block *q, int64_t t, int64_t tokens) {
    for (int64_t i = 0; i < tokens; i++)
        ISA(int8_round)(q + t * p->r->blocks + i, tokens, mat_row(p->x, t + i), p->r->blocks, p->kind);
}

static void slivers(const product *p, const int8_block *q, int64_t from, int64_t to) {
    const int64_t tokens = p->x.rows;
    for (int64_t i = from; i < to; i++) {
        const int64_t left = p->y.cols - i * LANES;
        const int n = left < LANES ? (int)left : LANES;
        for (int64_t t = 0; t < tokens;) {
            const int size = tile_size(t, tokens);
            p->tiles[size](p->r, rows16_sliver(p->r, i), q + t * p->r->blocks, mat_row(p->y, t) + i * LANES, p->y.ld,
                           n);
            t += 1 << size;
        }
    }
}

static void round_all(const product *p, int8_block *q) {
    for (int64_t t = 0; t < p->x.rows;) {
        const int size = tile_size(t, p->x.rows);
        round_tile(p, q, t, 1 << size);
        t += 1 << size;
    }
}

static void few_rows(kctx *c, const product *p) {
    const int64_t n = p->r->slivers;
    const int threads = p->x.rows * p->x.cols * p->y.cols < ALONE ? 1 : c->threads;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const int me = omp_get_thread_num(), all = omp_get_num_threads();
        int8_block *q = (int8_block *)(void *)(c->scratch + (size_t)me * THREAD_SCRATCH);
        round_all(p, q);
        slivers(p, q, n * me / all, n * (me + 1) / all);
    }
}

static void many_rows(kctx *c, const product *p) {
    int8_block *q = (int8_block *)(void *)c->scratch;
    const int64_t n = p->r->slivers, step = ISA(int8_tile_max), tiles = (p->x.rows + step - 1) / step;
#pragma omp parallel num_threads(c->threads) if (c->threads > 1)
    {
#pragma omp for schedule(static)
        for (int64_t i = 0; i < tiles; i++) {
            product part = *p; /* a whole tile, or the smaller ones of the end */
            const int64_t left = p->x.rows - i * step;
            part.x = mat_rows(p->x, i * step, left < step ? left : step);
            round_all(&part, q + i * step * p->r->blocks);
        }
#pragma omp for schedule(dynamic, CHUNK) nowait
        for (int64_t i = 0; i < n; i++) slivers(p, q, i, i + 1);
    }
}

void ISA(weight_fwd_int8)(kctx *c, mat y, mat x, const weight *w) {
    const rows16 *r = weight_rows16(w);
    if (!r) {
        BASE(weight_fwd)(c, y, x, w);
        return;
    }
    CHECK(x.cols == w->cols && y.cols == w->rows && x.rows == y.rows, "x %ldx%ld y %ldx%ld W %ldx%ld", (long)x.rows,
          (long)x.cols, (long)y.rows, (long)y.cols, (long)w->rows, (long)w->cols);
    const int64_t row_bytes = r->blocks * (int64_t)sizeof(int8_block), step = ISA(int8_tile_max);
    int64_t pass = PASS_BYTES / row_bytes / step * step;
    if (pass < step) pass = step;
    CHECK(pass * row_bytes <= THREAD_SCRATCH, "%ld columns", (long)x.cols);
    for (int64_t t = 0; t < x.rows; t += pass) {
        const int64_t n = x.rows - t < pass ? x.rows - t : pass;
        const product p = {r, &ISA(int8_kinds)[r->kind], ISA(int8_tiles)[r->kind], mat_rows(x, t, n),
                           mat_rows(y, t, n)};
        if (n * x.cols <= OWN_VALUES)
            few_rows(c, &p);
        else
            many_rows(c, &p);
    }
}
