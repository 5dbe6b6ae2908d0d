/* Which way a product with a stored weight goes. The time of a way is modelled as the longest of what it must move,
 * multiply and decode, plus what it does before that:
 *
 *     FEW       bytes of W / memory, for every 16 outputs the rows of x from the cache
 *     STORED    max(bytes of W / memory, multiply-adds of whole tiles / (own * tensor), decoding W once per row of
 * tiles), the last two stretched where the tiles are too few for the processors PANEL     (bytes of W + 2 bytes an
 * element written and read) / memory + multiply-adds of whole tiles / (own * tensor) LIBRARY   the same with the
 * library's share of the peak, and two more launches
 *
 * The table has each architecture's usual board: nominal figures of NVIDIA's data sheets (dense bf16 with fp32 sums),
 * and shares of the peak that mma.sync kernels and cuBLAS are known to reach. Hopper and Blackwell reach their peak by
 * other instructions than mma.sync, so `own` is small there. Nothing here was measured by this project yet: gpu-check
 * prints every way's time beside this prediction. */
#include "kernels/cuda/choice.cuh"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gemm_quant.cuh"
#include "kernels/cuda/gemv.cuh"

#include <string.h>

typedef struct board {
    int capability, processors;
    double tensor, memory, cache; /* flop/s, bytes/s, bytes/s of the second-level cache */
    double own, library;          /* shares of tensor */
    double decode;                /* elements/s */
} board;

static const board boards[] = {
    {80, 108, 312e12, 1.94e12, 4.5e12, 0.55, 0.80, 1.8e12},  /* A100 80 GB */
    {86, 82, 71e12, 0.936e12, 2.5e12, 0.75, 0.85, 3.0e12},   /* RTX 3090 */
    {89, 128, 165e12, 1.008e12, 5.0e12, 0.70, 0.85, 6.5e12}, /* RTX 4090 */
    {90, 132, 989e12, 3.35e12, 5.5e12, 0.35, 0.70, 4.5e12},  /* H100 SXM */
    {100, 148, 2250e12, 8.0e12, 12e12, 0.17, 0.70, 5.5e12},  /* B200 */
    {120, 170, 210e12, 1.79e12, 6.0e12, 0.65, 0.80, 8.0e12}, /* RTX 5090 */
};

/* the row of the architecture, or of the newest one before it */
static const board *board_of(int capability) {
    const board *b = boards;
    for (size_t i = 0; i < sizeof boards / sizeof *boards; i++)
        if (boards[i].capability <= capability) b = &boards[i];
    return b;
}

static const double LAUNCH_SECONDS = 3e-6, READ = 0.85 /* of memory, by a kernel that streams */;

static double larger(double a, double b) { return a > b ? a : b; }

/* multiply-adds of whole tiles of BM rows by 128 columns, where few tiles leave processors idle */
static double tiles_seconds(const board *b, double rows, double n, double k, double bm, double cuts) {
    const double tiles = ceil(rows / bm) * ceil(n / 128) * cuts,
                 busy = tiles < b->processors ? tiles / b->processors : 1;
    return 2 * ceil(rows / bm) * bm * ceil(n / 128) * 128 * k / (b->own * b->tensor) / busy;
}

double way_seconds(way v, int capability, const way_question *q) {
    const board *b = board_of(capability);
    const double rows = (double)q->rows, n = (double)(q->back ? q->w->cols : q->w->rows);
    const double k = (double)(q->back ? q->w->rows : q->w->cols), bytes = (double)weight_bytes(q->w), all = n * k;
    const double read = bytes / (READ * b->memory), bm = q->rows <= QUANT_SOME ? 64 : 128;
    if (v == WAY_FEW) return LAUNCH_SECONDS + larger(read, n / 16 * rows * k * 2 / b->cache);
    if (v == WAY_STORED) {
        const double cuts = (double)quant_pieces(q->w, q->rows, q->back), tiles = ceil(rows / bm);
        const double work = larger(tiles_seconds(b, rows, n, k, bm, cuts), tiles * all / b->decode);
        return LAUNCH_SECONDS + larger(read, work) + (cuts > 1 ? LAUNCH_SECONDS + cuts * rows * n * 8 / b->cache : 0);
    }
    const bool dense = weight_fits(q->w, BF16);
    const double panel = dense ? 0 : LAUNCH_SECONDS + read + 2 * all / (READ * b->memory);
    const double again = 2 * all / (READ * b->memory);
    if (v == WAY_PANEL) return panel + LAUNCH_SECONDS + larger(again, tiles_seconds(b, rows, n, k, 128, 1));
    return panel + 3 * LAUNCH_SECONDS + larger(again, 2 * rows * n * k / (b->library * b->tensor));
}

bool way_serves(way v, const way_question *q) {
    if (v == WAY_FEW) return !q->back && q->rows <= GEMV_ROWS && gemv_serves(q->w);
    if (v == WAY_STORED) return quant_serves(q->w);
    if (v == WAY_LIBRARY) return q->rows >= 16 && q->w->rows >= 64 && q->w->cols >= 64 && q->w->cols % 8 == 0;
    return true;
}

way way_of(const kctx *c, const way_question *q) {
    const device *d = device_of(c);
    if (d->way >= 0 && way_serves((way)d->way, q)) return (way)d->way;
    way best = WAY_PANEL;
    for (int v = 0; v < WAYS; v++)
        if (way_serves((way)v, q) && way_seconds((way)v, d->capability, q) < way_seconds(best, d->capability, q))
            best = (way)v;
    return best;
}

/* -1: no way named */
int way_named(const char *name) {
    static const char *const names[] = {
#define W(id, name) name,
        PRODUCT_WAYS(W)
#undef W
    };
    for (int v = 0; name && v < WAYS; v++)
        if (strcmp(name, names[v]) == 0) return v;
    return -1;
}

enum { LIBRARY_SIDE = 128, LIBRARY_ROWS = 256 }; /* below, own tiles are as good and a row's result is its own */

static mat mat_of_side(side s, int64_t rows, int64_t k) {
    mat m = mat_of(const_cast<void *>(s.data), BF16, s.across ? k : rows, s.across ? rows : k);
    m.ld = s.ld;
    return m;
}

void multiply_large(kctx *c, const product *p, dtype t) {
    const int way = device_of(c)->way;
    const bool large = p->m >= LIBRARY_ROWS && p->n >= LIBRARY_SIDE && p->k[0] >= LIBRARY_SIDE;
    const bool allowed = t == BF16 && !p->k[1] && !p->bias && p->splits <= 1;
    if (!allowed || way == WAY_PANEL || (way != WAY_LIBRARY && !large)) {
        multiply(c, p, t);
        return;
    }
    mat y = mat_of(p->c, p->type, p->m, p->n);
    y.ld = p->cs;
    blas_product(c, y, mat_of_side(p->a[0], p->m, p->k[0]), p->a[0].across, mat_of_side(p->b[0], p->n, p->k[0]),
                 p->b[0].across, p->add);
}
