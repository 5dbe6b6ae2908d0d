/* The blocked matrix product: register tiles (gemm_tile.h), the walk over blocks, and the split over threads.
 * Goto & van de Geijn 2008, "Anatomy of high-performance matrix multiplication". Rows of A are copied without being
 * transposed: only their distance must change, so that the rows of a tile share no cache set. */
#include "kernels/cpu/gemm.h"
#include "core/error.h"
#include "kernels/cpu/gemm_tile.h"

#include <omp.h>

#define TILES(m) TILE_ROW(m, 1) TILE_ROW(m, 2) TILE_COL(m, 1) TILE_COL(m, 2)
EACH_TILE(TILES)

/* [rows of the tile][0: VN columns, 1: 2 VN columns] */
#define BY_ROWS(m) [m] = {tile_row_##m##_1, tile_row_##m##_2},
#define BY_COLS(m) [m] = {tile_col_##m##_1, tile_col_##m##_2},
static tile_fn *const by_rows[TILE_ROWS + 1][2] = {EACH_TILE(BY_ROWS)};
static tile_fn *const by_cols[TILE_ROWS + 1][2] = {EACH_TILE(BY_COLS)};

/* One block of a product: all that a walk over its tiles needs. */
typedef struct {
    int64_t m, n, k;
    const float *a;
    int64_t as;
    bool a_cols, a_packed; /* packed columns: tile after tile, [k][rows of the tile] */
    const float *b;
    int64_t bs, sliver; /* from one sliver to the next */
    float *c;
    int64_t cs;
} block;

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
static inline int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

/* Tiles of nearly equal height: 16 rows are 8 + 8, not 14 + 2, which would starve the pipeline. */
static inline int64_t tiles_of(int64_t m) { return ceil_div(m, TILE_ROWS); }
static inline int64_t tile_at(int64_t m, int64_t t) { return m * t / tiles_of(m); }

static void edge_tile(tile_fn *const f[2], int64_t m, int64_t n, const block *b, const float *a, int64_t as,
                      const float *sliver, float *c) {
    float t[TILE_ROWS * NR] = {0};
    for (int64_t i = 0; i < m; i++) memcpy(t + i * NR, c + i * b->cs, (size_t)n * sizeof *c);
    f[n > VN](b->k, a, as, sliver, b->bs, t, NR, t);
    for (int64_t i = 0; i < m; i++) memcpy(c + i * b->cs, t + i * NR, (size_t)n * sizeof *c);
}

/* tile t of the rows times sliver j */
static inline void run_tile(const block *b, int64_t t, int64_t j, const float *next) {
    const float *sliver = b->b + j / NR * b->sliver;
    int64_t i = tile_at(b->m, t), m = tile_at(b->m, t + 1) - i, n = smaller(NR, b->n - j);
    const float *a = b->a + (b->a_packed ? i * b->k : b->a_cols ? i : i * b->as);
    int64_t as = b->a_packed ? m : b->as;
    tile_fn *const *f = b->a_cols ? by_cols[m] : by_rows[m];
    float *c = b->c + i * b->cs + j;
    if (n == NR || n == VN)
        f[n > VN](b->k, a, as, sliver, b->bs, c, b->cs, next);
    else
        edge_tile(f, m, n, b, a, as, sliver, c);
}

/* A sliver of B stays in the first-level cache while all tiles of A pass; or, where k is short, a tile of A does, and C
 * is read and written along its rows. */
static void run_block(const block *b) {
    int64_t tiles = tiles_of(b->m);
    if (b->k > K_SHORT) {
        for (int64_t j = 0; j < b->n; j += NR)
            for (int64_t t = 0; t < tiles; t++)
                run_tile(b, t, j, b->c + (t + 1 < tiles ? tile_at(b->m, t + 1) * b->cs + j : j + NR));
        return;
    }
    for (int64_t t = 0; t < tiles; t++)
        for (int64_t j = 0; j < b->n; j += NR)
            run_tile(b, t, j,
                     b->c + (j + NR < b->n ? tile_at(b->m, t) * b->cs + j + NR : tile_at(b->m, t + 1) * b->cs));
}

static inline void copy_floats(float *restrict y, const float *restrict x, int64_t n) {
    int64_t i = 0;
    for (; i + VN <= n; i += VN) vn_store(y + i, vn_load(x + i));
    for (; i < n; i++) y[i] = x[i];
}

/* Rows [m0, m0 + m) and columns [k0, k0 + kc) of A, moved to where they are cheap to walk. */
static void copy_a(block *b, const gemm *g, float *dst, int64_t m0, int64_t k0) {
    if (!g->a_cols) {
        for (int64_t i = 0; i < b->m; i++) copy_floats(dst + i * A_PITCH, g->a + (m0 + i) * g->as + k0, b->k);
        b->a = dst, b->as = A_PITCH;
        return;
    }
    for (int64_t t = 0; t < tiles_of(b->m); t++) {
        int64_t i = tile_at(b->m, t), m = tile_at(b->m, t + 1) - i;
        for (int64_t k = 0; k < b->k; k++) copy_floats(dst + i * b->k + k * m, g->a + (k0 + k) * g->as + m0 + i, m);
    }
    b->a = dst, b->a_packed = true;
}

/* Slivers of a dense B: columns [n0, n0 + nc). */
void ISA(pack_dense)(float *restrict dst, const float *restrict b, int64_t bs, int64_t kc, int64_t nc) {
    for (int64_t j = 0; j < nc; j += NR, dst += kc * NR) {
        int64_t n = smaller(NR, nc - j);
        for (int64_t k = 0; k < kc; k++) {
            const float *src = b + k * bs + j;
            float *d = dst + k * NR;
            if (n == NR) {
                vn_store(d, vn_load(src)), vn_store(d + VN, vn_load(src + VN));
                continue;
            }
            memset(d, 0, NR * sizeof *d);
            memcpy(d, src, (size_t)n * sizeof *d);
        }
    }
}

/* A is worth copying when it is read many times, or when its rows lie a multiple of a page apart. */
static bool wants_copy(const gemm *g, int64_t m, int64_t n) {
    if (m <= TILE_ROWS && !g->a_cols) return false;
    return n > 2 * NR || g->as % 1024 == 0;
}

/* A B that few rows of A meet is not worth a copy. */
static bool uses_in_place(const gemm *g, int64_t m) { return !g->pack && m <= ROWS_IN_PLACE; }

/* where the slivers of B of this panel are; the columns used in place are returned, the rest is packed */
static int64_t panel_of(const gemm *g, block *b, float *panel, float *tmp, int64_t m, int64_t k0, int64_t n0,
                        int64_t nc) {
    bool in_place = uses_in_place(g, m);
    int64_t full = in_place ? nc / NR * NR : 0;
    if (full) {
        b->b = g->b + k0 * g->bs + n0, b->bs = g->bs, b->sliver = NR;
        return full;
    }
    if (g->pack)
        g->pack(panel, tmp, g->w, g->w_k0 + k0, b->k, g->w_n0 + n0, nc);
    else
        ISA(pack_dense)(panel, g->b + k0 * g->bs + n0, g->bs, b->k, nc);
    b->b = panel, b->bs = NR, b->sliver = b->k * NR;
    return nc;
}

static void rows_range(const gemm *g, float *scratch, int64_t m0, int64_t m1, int64_t n0, int64_t n1) {
    float *copy = scratch, *panel = copy + A_FLOATS, *tmp = panel + B_FLOATS;
    int64_t m = m1 - m0, mc = round_up(ceil_div(m, ceil_div(m, MC)), TILE_ROWS);
    int64_t k_max = uses_in_place(g, m) ? KC_IN_PLACE : KC, kc = round_up(ceil_div(g->k, ceil_div(g->k, k_max)), 64);
    int64_t nc = smaller(NC_MAX, B_FLOATS / smaller(kc, g->k) / NR * NR);
    bool copied = wants_copy(g, m, n1 - n0);
    for (int64_t k0 = 0; k0 < g->k; k0 += kc) {
        block b = {.k = smaller(kc, g->k - k0), .a_cols = g->a_cols, .cs = g->cs};
        for (int64_t j = n0; j < n1; j += b.n) {
            b.n = panel_of(g, &b, panel, tmp, m, k0, j, smaller(nc, n1 - j));
            for (int64_t i = m0; i < m1; i += mc) {
                float *at = copy + (i - m0) * (g->a_cols ? b.k : A_PITCH);
                b.m = smaller(mc, m1 - i), b.c = g->c + i * g->cs + j;
                if (!copied)
                    b.a = g->a + (g->a_cols ? k0 * g->as + i : i * g->as + k0), b.as = g->as;
                else if (j == n0)
                    copy_a(&b, g, at, i, k0);
                else
                    b.a = at;
                run_block(&b);
            }
        }
    }
}

enum { FEW_ROWS = 4, FEW_KC = 64, WIDE = 4 };

/* One row times WIDE slivers: with fewer columns the chain's latency would be the speed. */
static void wide_row(int64_t k, const float *restrict a, const float *restrict b, int64_t sliver, float *restrict c) {
    vn c0 = vn_load(c), c1 = vn_load(c + VN), c2 = vn_load(c + 2 * VN), c3 = vn_load(c + 3 * VN);
    vn c4 = vn_load(c + 4 * VN), c5 = vn_load(c + 5 * VN), c6 = vn_load(c + 6 * VN), c7 = vn_load(c + 7 * VN);
    const float *b1 = b + sliver, *b2 = b1 + sliver, *b3 = b2 + sliver;
    for (; k > 0; k--, a++, b += NR, b1 += NR, b2 += NR, b3 += NR) {
        vn s = vn_set1(*a);
        c0 = vn_fma(s, vn_load(b), c0), c1 = vn_fma(s, vn_load(b + VN), c1);
        c2 = vn_fma(s, vn_load(b1), c2), c3 = vn_fma(s, vn_load(b1 + VN), c3);
        c4 = vn_fma(s, vn_load(b2), c4), c5 = vn_fma(s, vn_load(b2 + VN), c5);
        c6 = vn_fma(s, vn_load(b3), c6), c7 = vn_fma(s, vn_load(b3 + VN), c7);
    }
    vn_store(c, c0), vn_store(c + VN, c1), vn_store(c + 2 * VN, c2), vn_store(c + 3 * VN, c3);
    vn_store(c + 4 * VN, c4), vn_store(c + 5 * VN, c5), vn_store(c + 6 * VN, c6), vn_store(c + 7 * VN, c7);
}

/* Decoding: making B is the work. A panel small enough for the first-level cache is used up at once, and W is read
 * along its rows. */
static void few_rows(const gemm *g, float *scratch, int64_t m0, int64_t m1, int64_t n0, int64_t n1) {
    float *panel = scratch + A_FLOATS, *tmp = panel + B_FLOATS;
    for (int64_t j = n0; j < n1; j += WIDE * NR)
        for (int64_t k0 = 0; k0 < g->k; k0 += FEW_KC) {
            block b = {.m = m1 - m0,
                       .n = smaller(WIDE * NR, n1 - j),
                       .k = smaller(FEW_KC, g->k - k0),
                       .as = g->as,
                       .a = g->a + m0 * g->as + k0,
                       .b = panel,
                       .bs = NR,
                       .c = g->c + m0 * g->cs + j,
                       .cs = g->cs};
            b.sliver = b.k * NR;
            g->pack(panel, tmp, g->w, g->w_k0 + k0, b.k, g->w_n0 + j, b.n);
            if (b.n < WIDE * NR || b.m == FEW_ROWS)
                run_block(&b);
            else
                for (int64_t i = 0; i < b.m; i++) wide_row(b.k, b.a + i * b.as, panel, b.sliver, b.c + i * b.cs);
        }
}

void ISA(gemm_range)(const gemm *g, float *scratch, int64_t m0, int64_t m1, int64_t n0, int64_t n1) {
    if (n0 >= n1) return;
    if (m1 - m0 <= FEW_ROWS && g->pack && !g->a_cols && g->pack_cost < PACK_SLOW) {
        few_rows(g, scratch, m0, m1, n0, n1);
        return;
    }
    for (int64_t m = m0; m < m1; m += ROWS_MAX) rows_range(g, scratch, m, smaller(m + ROWS_MAX, m1), n0, n1);
}

/* What a thread does, in vector operations per k, when rows are split `tm` ways and columns tn ways. */
static double share(const gemm *g, int64_t tm, int64_t tn) {
    double m = (double)ceil_div(g->m, tm), n = (double)round_up(ceil_div(ceil_div(g->n, NR), tn) * NR, NR);
    double passes = (double)ceil_div((int64_t)m, ROWS_MAX);
    return (m * n + 2 * m + passes * n * (double)g->pack_cost) / VN;
}

enum { SHARE_MIN = 40000 }; /* vector operations worth waking a thread for */

void ISA(gemm_run)(kctx *c, const gemm *g) {
    _Static_assert(GEMM_FLOATS * sizeof(float) <= THREAD_SCRATCH, "blocks fit the scratch of a thread");
    if (g->m <= 0 || g->n <= 0 || g->k <= 0) return;
    int64_t threads = c->threads, tm = 1;
    if (share(g, 1, 1) * (double)g->k < SHARE_MIN) threads = 1;
    for (int64_t t = 2; t <= threads; t++)
        if (threads % t == 0 && share(g, t, threads / t) < share(g, tm, threads / tm)) tm = t;
    int64_t tn = threads / tm, slivers = ceil_div(g->n, NR);
#pragma omp parallel num_threads((int)threads) if (threads > 1)
    for (int64_t p = omp_get_thread_num(); p < threads; p += omp_get_num_threads()) {
        int64_t i = p / tn, j = p % tn;
        ISA(gemm_range)
        (g, thread_scratch(c, omp_get_thread_num()), g->m * i / tm, g->m * (i + 1) / tm, slivers * j / tn * NR,
         smaller(slivers * (j + 1) / tn * NR, g->n));
    }
}
