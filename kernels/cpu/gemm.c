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
    const float *from;  /* of a chain: C itself, or a row for all */
    int64_t fs;
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
                      const float *sliver, const float *from, float *c) {
    float t[TILE_ROWS * NR] = {0};
    for (int64_t i = 0; i < m; i++) memcpy(t + i * NR, from + i * b->fs, (size_t)n * sizeof *c);
    f[n > VN](b->k, a, as, sliver, b->bs, t, NR, t, NR, t);
    for (int64_t i = 0; i < m; i++) memcpy(c + i * b->cs, t + i * NR, (size_t)n * sizeof *c);
}

/* tile t of the rows times sliver j */
static inline void run_tile(const block *b, int64_t t, int64_t j, const float *next) {
    const float *sliver = b->b + j / NR * b->sliver;
    int64_t i = tile_at(b->m, t), m = tile_at(b->m, t + 1) - i, n = smaller(NR, b->n - j);
    const float *a = b->a + (b->a_packed ? i * b->k : b->a_cols ? i : i * b->as);
    int64_t as = b->a_packed ? m : b->as;
    tile_fn *const *f = b->a_cols ? by_cols[m] : by_rows[m];
    const float *from = b->from + i * b->fs + j;
    float *c = b->c + i * b->cs + j;
    if (n == NR || n == VN)
        f[n > VN](b->k, a, as, sliver, b->bs, from, b->fs, c, b->cs, next);
    else
        edge_tile(f, m, n, b, a, as, sliver, from, c);
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

/* dst[k][m of the tile] after dst[k][m of the tile before]: columns of A, from row m0 of A and k0 on */
static void copy_columns(const block *b, const gemm_term *t, float *dst, int64_t m0, int64_t k0) {
    for (int64_t p = 0; p < tiles_of(b->m); p++) {
        int64_t i = tile_at(b->m, p), m = tile_at(b->m, p + 1) - i;
        for (int64_t k = 0; k < b->k; k++) copy_floats(dst + i * b->k + k * m, t->a + (k0 + k) * t->as + m0 + i, m);
    }
}

/* Slivers of a dense B: columns [n0, n0 + nc). */
void ISA(pack_dense)(float *restrict dst, int64_t sliver, const float *restrict b, int64_t bs, int64_t kc, int64_t nc) {
    for (int64_t j = 0; j < nc; j += NR, dst += sliver) {
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

static int64_t depth(const gemm *g) {
    int64_t k = 0;
    for (int t = 0; t < g->terms; t++) k += g->term[t].k;
    return k;
}

/* The part of one term in a block of k: its k [from, from + k), which are the block's [at, at + k). */
typedef struct {
    const gemm_term *term;
    int64_t from, at, k;
} piece;

static int pieces_of(const gemm *g, int64_t k0, int64_t k1, piece p[TERMS_MAX]) {
    int n = 0;
    for (int64_t t = 0, begin = 0; t < g->terms; begin += g->term[t++].k) {
        int64_t from = k0 > begin ? k0 : begin, to = smaller(k1, begin + g->term[t].k);
        if (from < to) p[n++] = (piece){&g->term[t], from - begin, from - k0, to - from};
    }
    return n;
}

/* What a thread works on: rows [m0, m1), columns [n0, n1) of one product, and its memory. */
typedef struct {
    float *copy, *panel, *tmp;
    bool copied;         /* A is */
    int64_t m0, m1, mc;  /* rows, in blocks of mc */
    const float *shared; /* the A whose columns [shared_k0, shared_k1) stand in copy */
    int64_t shared_k0, shared_k1;
} walk;

/* A is worth copying when it is read many times, or when its rows lie a multiple of a page apart. */
static bool wants_copy(const gemm *g, int64_t m, int64_t n) {
    if (m <= TILE_ROWS && !g->a_cols) return false;
    return n > 2 * NR || g->term[0].as % 1024 == 0;
}

/* A B that few rows of A meet is not worth a copy. */
static bool uses_in_place(const gemm *g, int64_t m) { return !g->term[0].pack && m <= ROWS_IN_PLACE; }

/* Rows of the block of k, moved to where they are cheap to walk; of the first term only when it is not there yet. */
static void copy_a(const walk *w, const piece *p, int pieces, int64_t i, int64_t m, bool first_too) {
    for (int n = first_too ? 0 : 1; n < pieces; n++) {
        const gemm_term *t = p[n].term;
        for (int64_t r = 0; r < m; r++)
            copy_floats(w->copy + (i - w->m0 + r) * A_PITCH + p[n].at, t->a + (i + r) * t->as + p[n].from, p[n].k);
    }
}

/* Puts the slivers of B of columns [j, j + n) in place; the columns served are returned, all of them where it is
 * packed. */
static int64_t panel_of(const walk *w, const gemm *g, block *b, const piece *p, int pieces, int64_t j, int64_t n) {
    if (uses_in_place(g, w->m1 - w->m0) && n >= NR) {
        b->b = p->term->b + p->from * p->term->bs + j, b->bs = p->term->bs, b->sliver = NR;
        return n / NR * NR;
    }
    b->b = w->panel, b->bs = NR, b->sliver = b->k * NR;
    for (int i = 0; i < pieces; i++) {
        const gemm_term *t = p[i].term;
        float *dst = w->panel + p[i].at * NR;
        if (t->pack)
            t->pack(dst, b->sliver, w->tmp, t->w, t->w_k0 + p[i].from, p[i].k, t->w_n0 + j, n);
        else
            ISA(pack_dense)(dst, b->sliver, t->b + p[i].from * t->bs + j, t->bs, p[i].k, n);
    }
    return n;
}

/* Where the chains of columns [j, j + n) start: in C, or at a row made in tmp (0 + start: -0 would be no sum). */
static void start_of(const walk *w, const gemm *g, block *b, int64_t j, bool first) {
    b->from = NULL, b->fs = b->cs;
    if (!first || !g->fresh) return;
    for (int64_t i = 0; i < b->n; i++) w->tmp[i] = g->start ? 0.0f + g->start[j + i] : 0.0f;
    b->from = w->tmp, b->fs = 0;
}

/* k in [k0, k1) of columns [n0, n1). */
static void run_depth(walk *w, const gemm *g, int64_t k0, int64_t k1, int64_t n0, int64_t n1) {
    piece p[TERMS_MAX];
    const int pieces = pieces_of(g, k0, k1, p);
    const bool same = w->shared == p->term->a && w->shared_k0 == p->from && w->shared_k1 == p->from + p->k;
    block b = {.k = k1 - k0, .a_cols = g->a_cols, .a_packed = g->a_cols && w->copied, .cs = g->cs};
    const int64_t nc = smaller(NC_MAX, B_FLOATS / b.k / NR * NR);
    for (int64_t j = n0; j < n1; j += b.n) {
        b.n = panel_of(w, g, &b, p, pieces, j, smaller(nc, n1 - j));
        start_of(w, g, &b, j, k0 == 0);
        for (int64_t i = w->m0; i < w->m1; i += w->mc) {
            b.m = smaller(w->mc, w->m1 - i), b.c = g->c + i * g->cs + j;
            if (b.fs) b.from = b.c;
            if (!w->copied) {
                b.a = p->term->a + (g->a_cols ? p->from * p->term->as + i : i * p->term->as + p->from);
                b.as = p->term->as;
            } else if (g->a_cols) {
                b.a = w->copy + (i - w->m0) * b.k;
                if (j == n0) copy_columns(&b, p->term, w->copy + (i - w->m0) * b.k, i, p->from);
            } else {
                b.a = w->copy + (i - w->m0) * A_PITCH, b.as = A_PITCH;
                if (j == n0) copy_a(w, p, pieces, i, b.m, !same);
            }
            run_block(&b);
        }
    }
    w->shared = p->term->a, w->shared_k0 = p->from, w->shared_k1 = p->from + p->k;
}

/* the columns of product g among the slivers [s0, s1), which *at counts */
static bool columns_of(const gemm *g, int64_t s0, int64_t s1, int64_t *at, int64_t *n0, int64_t *n1) {
    int64_t from = s0 > *at ? s0 - *at : 0, to = s1 - *at;
    *at += ceil_div(g->n, NR);
    *n0 = from * NR, *n1 = smaller(to * NR, g->n);
    return *n0 < *n1;
}

/* Blocks of k by whole terms and pieces of kc: A is used where it lies, so no block may reach into another. */
static void run_in_place(walk *w, const gemm *g, int64_t k_max, int64_t n0, int64_t n1) {
    for (int64_t t = 0, k0 = 0; t < g->terms; t++) {
        const int64_t k = g->term[t].k, kc = round_up(ceil_div(k, ceil_div(k, k_max)), 64);
        for (int64_t from = 0; from < k; from += kc) run_depth(w, g, k0 + from, k0 + smaller(from + kc, k), n0, n1);
        k0 += k;
    }
}

/* A rest of at most TAIL belongs to the block before it. */
static void run_copied(walk *w, const gemm *g, int products, int64_t s0, int64_t s1) {
    int64_t deepest = 0;
    for (int o = 0; o < products; o++) deepest = depth(&g[o]) > deepest ? depth(&g[o]) : deepest;
    const int64_t parts = deepest <= KC_MAX ? 1 : ceil_div(deepest - TAIL, KC);
    const int64_t kc = smaller(KC, round_up(ceil_div(deepest, parts), 64));
    for (int64_t k0 = 0; k0 < deepest; k0 += kc)
        for (int64_t o = 0, at = 0, n0, n1; o < products; o++) {
            const int64_t k = depth(&g[o]);
            if (!columns_of(&g[o], s0, s1, &at, &n0, &n1) || k0 >= k || (k0 && k - k0 <= TAIL)) continue;
            run_depth(w, &g[o], k0, k - k0 - kc <= TAIL ? k : k0 + kc, n0, n1);
        }
}

static void rows_range(const gemm *g, int products, float *scratch, int64_t m0, int64_t m1, int64_t s0, int64_t s1) {
    const int64_t m = m1 - m0;
    walk w = {.copy = scratch, .panel = scratch + A_FLOATS, .tmp = scratch + A_FLOATS + B_FLOATS, .m0 = m0, .m1 = m1};
    w.mc = round_up(ceil_div(m, ceil_div(m, MC)), TILE_ROWS);
    w.copied = wants_copy(g, m, (s1 - s0) * NR);
    if (w.copied && !uses_in_place(g, m)) {
        run_copied(&w, g, products, s0, s1);
        return;
    }
    for (int64_t o = 0, at = 0, n0, n1; o < products; o++)
        if (columns_of(&g[o], s0, s1, &at, &n0, &n1))
            run_in_place(&w, &g[o], uses_in_place(&g[o], m) ? KC_IN_PLACE : KC, n0, n1);
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
    for (int64_t j = n0; j < n1; j += WIDE * NR) {
        block b = {.m = m1 - m0, .n = smaller(WIDE * NR, n1 - j), .b = panel, .bs = NR, .cs = g->cs};
        b.c = g->c + m0 * g->cs + j, b.from = b.c, b.fs = b.cs;
        for (int64_t i = 0; g->fresh && i < b.m; i++)
            for (int64_t e = 0; e < b.n; e++) b.c[i * b.cs + e] = g->start ? 0.0f + g->start[j + e] : 0.0f;
        for (const gemm_term *t = g->term; t < g->term + g->terms; t++)
            for (int64_t k0 = 0; k0 < t->k; k0 += FEW_KC) {
                b.k = smaller(FEW_KC, t->k - k0), b.sliver = b.k * NR, b.as = t->as, b.a = t->a + m0 * t->as + k0;
                t->pack(panel, b.sliver, tmp, t->w, t->w_k0 + k0, b.k, t->w_n0 + j, b.n);
                if (b.n < WIDE * NR || b.m == FEW_ROWS)
                    run_block(&b);
                else
                    for (int64_t i = 0; i < b.m; i++) wide_row(b.k, b.a + i * b.as, panel, b.sliver, b.c + i * b.cs);
            }
    }
}

void ISA(gemm_range)(const gemm *g, int n, float *scratch, int64_t m0, int64_t m1, int64_t s0, int64_t s1) {
    if (s0 >= s1) return;
    if (m1 - m0 <= FEW_ROWS && g->term[0].pack && g->pack_cost < PACK_SLOW) {
        for (int64_t o = 0, at = 0, n0, n1; o < n; o++)
            if (columns_of(&g[o], s0, s1, &at, &n0, &n1)) few_rows(&g[o], scratch, m0, m1, n0, n1);
        return;
    }
    for (int64_t m = m0; m < m1; m += ROWS_MAX) rows_range(g, n, scratch, m, smaller(m + ROWS_MAX, m1), s0, s1);
}

/* What a thread does, in vector operations per k, when rows are split `tm` ways and columns tn ways. */
static double share(const gemm *g, int64_t slivers, int64_t tm, int64_t tn) {
    double m = (double)ceil_div(g->m, tm), n = (double)(ceil_div(slivers, tn) * NR);
    double passes = (double)ceil_div((int64_t)m, ROWS_MAX);
    return (m * n + 2 * m + passes * n * (double)g->pack_cost) / VN;
}

enum { SHARE_MIN = 40000 }; /* vector operations worth waking a thread for */

void ISA(gemm_run)(kctx *c, const gemm *g, int n) {
    _Static_assert(GEMM_FLOATS * sizeof(float) <= THREAD_SCRATCH, "blocks fit the scratch of a thread");
    int64_t threads = c->threads, tm = 1, slivers = 0;
    for (int o = 0; o < n; o++) slivers += ceil_div(g[o].n, NR);
    if (g->m <= 0 || slivers <= 0 || depth(g) <= 0) return;
    if (share(g, slivers, 1, 1) * (double)depth(g) < SHARE_MIN) threads = 1;
    for (int64_t t = 2; t <= threads; t++)
        if (threads % t == 0 && share(g, slivers, t, threads / t) < share(g, slivers, tm, threads / tm)) tm = t;
    int64_t tn = threads / tm;
#pragma omp parallel num_threads((int)threads) if (threads > 1)
    for (int64_t p = omp_get_thread_num(); p < threads; p += omp_get_num_threads()) {
        int64_t i = p / tn, j = p % tn;
        ISA(gemm_range)
        (g, n, thread_scratch(c, omp_get_thread_num()), g->m * i / tm, g->m * (i + 1) / tm, slivers * j / tn,
         slivers * (j + 1) / tn);
    }
}
