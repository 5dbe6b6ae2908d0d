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
    GROUP = 4,              /* slivers that a tile meets in turn */
    CHUNK = 2 * GROUP       /* slivers of a work item */
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

/* one matrix of a product, and what its activations are rounded to */
typedef struct {
    const rows16 *r;
    int8_tile *const *tiles;
    mat y;
    const float *bias;
    int64_t first; /* sliver, of all matrices one after another */
    int rounding;
} part;

typedef struct {
    part part[PROJ_MAX];
    int parts;
    const int8_kind *kind[PROJ_MAX]; /* of the roundings */
    int roundings;
    mat x; /* of this pass */
    int64_t blocks, slivers;
    bool fresh; /* y = bias or 0, then +=; not fresh: += */
} product;

/* log2 of the tokens of the tile that begins at token t of n */
static int tile_size(int64_t t, int64_t n) {
    int i = 0;
    while (2 << i <= ISA(int8_tile_max) && 2 << i <= n - t) i++;
    return i;
}

static int64_t rounding_blocks(const product *p) { return p->x.rows * p->blocks; }

/* Rows [from, to) of x, `from` the beginning of a tile, for every rounding; q: of row 0. */
static void round_rows(const product *p, int8_block *q, int64_t from, int64_t to) {
    for (int i = 0; i < p->roundings; i++, q += rounding_blocks(p))
        for (int64_t t = from; t < to;) {
            const int64_t tokens = 1 << tile_size(t, to);
            for (int64_t k = 0; k < tokens; k++)
                ISA(int8_round)(q + t * p->blocks + k, tokens, mat_row(p->x, t + k), p->blocks, p->kind[i]);
            t += tokens;
        }
}

static void start_y(const part *w, int64_t t, int64_t tokens, int64_t column, int n) {
    const v16 bias = w->bias ? v16_load_n(w->bias + column, n) : v16_zero();
    for (int64_t k = 0; k < tokens; k++) v16_store_n(mat_row(w->y, t + k) + column, bias, n);
}

/* Slivers [i, i + count) of one matrix: a tile of activations meets all of them while it is in the first-level cache.
 */
static void group(const product *p, const part *w, const int8_block *q, int64_t i, int64_t count) {
    for (int64_t t = 0; t < p->x.rows;) {
        const int size = tile_size(t, p->x.rows);
        for (int64_t s = i; s < i + count; s++) {
            const int64_t column = s * LANES, left = w->y.cols - column;
            const int n = left < LANES ? (int)left : LANES;
            if (p->fresh) start_y(w, t, 1 << size, column, n);
            w->tiles[size](w->r, rows16_sliver(w->r, s), q + t * p->blocks, mat_row(w->y, t) + column, w->y.ld, n);
        }
        t += 1 << size;
    }
}

/* Slivers [from, to) of all matrices one after another. */
static void slivers(const product *p, const int8_block *rounded, int64_t from, int64_t to) {
    const part *w = p->part;
    for (int64_t i = from, count; i < to; i += count) {
        while (i >= w->first + w->r->slivers) w++;
        count = w->first + w->r->slivers - i;
        if (count > to - i) count = to - i;
        if (count > GROUP) count = GROUP;
        group(p, w, rounded + w->rounding * rounding_blocks(p), i - w->first, count);
    }
}

static void few_rows(kctx *c, const product *p) {
    const int64_t n = p->slivers;
    const int threads = p->x.rows * p->x.cols * n * LANES < ALONE ? 1 : c->threads;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        const int me = omp_get_thread_num(), all = omp_get_num_threads();
        int8_block *q = (int8_block *)(void *)(c->scratch + (size_t)me * THREAD_SCRATCH);
        round_rows(p, q, 0, p->x.rows);
        slivers(p, q, n * me / all, n * (me + 1) / all);
    }
}

static void many_rows(kctx *c, const product *p) {
    int8_block *q = (int8_block *)(void *)c->scratch;
    const int64_t step = ISA(int8_tile_max);
#pragma omp parallel num_threads(c->threads) if (c->threads > 1)
    {
#pragma omp for schedule(static)
        for (int64_t t = 0; t < p->x.rows; t += step) /* a whole tile, or the smaller ones of the end */
            round_rows(p, q, t, t + step < p->x.rows ? t + step : p->x.rows);
#pragma omp for schedule(dynamic, 1) nowait
        for (int64_t i = 0; i < p->slivers; i += CHUNK)
            slivers(p, q, i, i + CHUNK < p->slivers ? i + CHUNK : p->slivers);
    }
}

static bool same_kind(const int8_kind *a, const int8_kind *b) {
    return a->bias == b->bias && a->halves == b->halves && a->odd_even == b->odd_even;
}

static void add_part(product *p, mat y, const weight *w, const float *bias) {
    const rows16 *r = weight_rows16(w);
    const int8_kind *kind = &ISA(int8_kinds)[r->kind];
    CHECK(p->x.cols == w->cols && y.cols == w->rows && p->x.rows == y.rows, "x %ldx%ld y %ldx%ld W %ldx%ld",
          (long)p->x.rows, (long)p->x.cols, (long)y.rows, (long)y.cols, (long)w->rows, (long)w->cols);
    int i = 0;
    while (i < p->roundings && !same_kind(p->kind[i], kind)) i++;
    if (i == p->roundings) p->kind[p->roundings++] = kind;
    p->part[p->parts++] = (part){r, ISA(int8_tiles)[r->kind], y, bias, p->slivers, i};
    p->slivers += r->slivers, p->blocks = r->blocks;
}

/* in passes over the rows */
static void run(kctx *c, const product *p) {
    const int64_t row_bytes = p->blocks * (int64_t)sizeof(int8_block) * p->roundings, step = ISA(int8_tile_max);
    CHECK(row_bytes > 0, "%ld columns", (long)p->x.cols);
    int64_t most = PASS_BYTES / row_bytes / step * step;
    if (most < step) most = step;
    CHECK(most * row_bytes <= THREAD_SCRATCH, "%ld columns", (long)p->x.cols);
    for (int64_t t = 0; t < p->x.rows; t += most) {
        const int64_t n = p->x.rows - t < most ? p->x.rows - t : most;
        product pass = *p;
        pass.x = mat_rows(p->x, t, n);
        for (int i = 0; i < p->parts; i++) pass.part[i].y = mat_rows(p->part[i].y, t, n);
        if (n * p->x.cols <= OWN_VALUES)
            few_rows(c, &pass);
        else
            many_rows(c, &pass);
    }
}

void ISA(weight_fwd_int8)(kctx *c, mat y, mat x, const weight *w) {
    product p = {.x = x};
    if (!weight_rows16(w)) {
        BASE(weight_fwd)(c, y, x, w);
        return;
    }
    add_part(&p, y, w, NULL);
    run(c, &p);
}

/* The whole group in one region. What an adapter adds comes behind, in fp32. */
void ISA(proj_fwd_int8)(kctx *c, const proj_fwd_args *a) {
    product p = {.x = a->x, .fresh = true};
    for (int i = 0; i < a->n; i++)
        if (!weight_rows16(a->w[i])) {
            proj_fwd_compose(c, a);
            return;
        }
    for (int i = 0; i < a->n; i++) add_part(&p, a->y[i], a->w[i], a->bias[i]);
    run(c, &p);
    for (int i = 0; i < a->n; i++) {
        if (!a->h[i].data) continue;
        const weight up = weight_f32(a->up[i].data, a->up[i].rows, a->up[i].cols);
        BASE(weight_fwd)(c, a->y[i], a->h[i], &up);
    }
}
