/* The walk over blocks of a product, the split over threads, and the products with a weight matrix W[out, in].
 * Tiles are fast enough that moving numbers is the work: A is converted once per call and kept for all panels of B, a
 * panel of B is made in the second-level cache and meets all rows, and k is cut only where A would not fit. */
#include "core/error.h"
#include "kernels/bf16/bf16.h"

#include <omp.h>

enum {
    ROWS_MAX = 1024, /* rows of A converted per pass over B */
    A_VALUES = ROWS_MAX * 768,
    B_VALUES = 448 << 10,
    FEW_ROWS = 2 * TILE, /* up to here a panel is used once: it stays in the first-level cache */
    FEW_B_VALUES = 16 << 10
};
_Static_assert((A_VALUES + B_VALUES) * sizeof(uint16_t) + PACK_TMP * sizeof(float) <= THREAD_SCRATCH, "a product fits");

static bf16_room room_of(const kctx *c, int thread) {
    uint16_t *a = (uint16_t *)(void *)(c->scratch + (size_t)thread * THREAD_SCRATCH), *b = a + A_VALUES;
    return (bf16_room){a, b, A_VALUES, B_VALUES, (float *)(void *)(b + B_VALUES)};
}

/* Rows [i, i + 32) of A times a panel of B; a: their two panels. */
static void run_rows(const bf16_engine *e, const bf16_gemm *g, bf16_block *t, const uint16_t *b, int64_t m, float *c,
                     int64_t n) {
    const int64_t sliver = t->steps * TILE_VALUES;
    t->m = (int)m, t->cs = g->cs;
    for (int64_t j = 0; j < n; j += 2 * TILE, b += 2 * sliver) {
        t->n = (int)at_most(2 * TILE, n - j);
        t->b0 = b, t->b1 = b + sliver, t->c = c + j;
        e->block(t);
    }
}

static void pack_a(const bf16_gemm *g, uint16_t *dst, int64_t i, int64_t m, int64_t k0, int64_t kc) {
    for (int64_t end = i + m; i < end; i += TILE, dst += steps_of(kc) * TILE_VALUES) {
        const int64_t rows = at_most(TILE, end - i);
        if (g->side == A_ROWS)
            bf16_pack_rows(dst, g->a + i * g->as + k0, g->as, rows, kc);
        else
            bf16_pack_cols(dst, g->a + k0 * g->as + i, g->as, rows, kc);
    }
}

/* held: the rows stand in room->a already, whole */
static void rows_range(const bf16_engine *e, const bf16_gemm *g, const bf16_room *room, int64_t m0, int64_t m1,
                       int64_t n0, int64_t n1, bool held) {
    const int64_t rows = up_to(m1 - m0, TILE), b_values = rows <= FEW_ROWS ? FEW_B_VALUES : room->b_values;
    const int64_t fits = g->side == A_PACKED ? KC_MAX : at_most(KC_MAX, room->a_values / rows / 64 * 64);
    const int64_t parts = (g->k + fits - 1) / fits, kc = up_to((g->k + parts - 1) / parts, 64);
    const int64_t slivers = b_values / (steps_of(at_most(kc, g->k)) * TILE_VALUES);
    const int64_t nc = at_most(NC_MAX, slivers < 2 ? 2 * TILE : slivers / 2 * 2 * TILE);
    for (int64_t k0 = 0; k0 < g->k; k0 += kc) {
        const int64_t k = at_most(kc, g->k - k0), panel = steps_of(k) * TILE_VALUES;
        bf16_block t = {.steps = steps_of(k), .fresh = g->fresh && k0 == 0};
        for (int64_t j = n0; j < n1; j += nc) {
            const int64_t n = at_most(nc, n1 - j);
            g->pack(room->b, room->tmp, &g->source, g->k0 + k0, k, g->n0 + j, n);
            for (int64_t i = m0; i < m1; i += 2 * TILE) {
                const int64_t m = at_most(2 * TILE, m1 - i);
                uint16_t *a = room->a + (i - m0) / TILE * panel;
                if (g->side == A_PACKED) {
                    t.a0 = g->packed + i / TILE * g->panel + k0 / STEP * TILE_VALUES, t.a1 = t.a0 + g->panel;
                } else {
                    if (j == n0 && !held) pack_a(g, a, i, m, k0, k);
                    t.a0 = a, t.a1 = a + panel;
                }
                run_rows(e, g, &t, room->b, m, g->c + i * g->cs + j, n);
            }
        }
    }
}

void bf16_range(const bf16_engine *e, const bf16_gemm *g, const bf16_room *room, int64_t m0, int64_t m1, int64_t n0,
                int64_t n1) {
    if (n0 >= n1) return;
    for (int64_t m = m0; m < m1; m += ROWS_MAX) rows_range(e, g, room, m, at_most(m + ROWS_MAX, m1), n0, n1, false);
}

/* Cycles of a thread when rows are split tm ways and columns tn ways. */
static double share(const bf16_engine *e, const bf16_gemm *g, int64_t tm, int64_t tn) {
    const double m = (double)up_to((g->m + tm - 1) / tm, TILE), n = (double)up_to((g->n + tn - 1) / tn, TILE);
    const double k = (double)g->k, passes = (double)((int64_t)(m + ROWS_MAX - 1) / ROWS_MAX);
    return m * n * k / e->macs + 0.25 * m * k + 0.5 * m * n + passes * n * k * g->pack_cost;
}

enum { SHARE_MIN = 20000 }; /* cycles worth waking a thread for */

/* Rows [m0, m1) of a thread by all of n products of the same A, which is converted once where its rows fit whole. */
static void run_rows_of(const bf16_engine *e, const bf16_gemm *g, int n, const bf16_room *room, int64_t m0, int64_t m1,
                        int64_t j, int64_t tn) {
    const int64_t whole = room->a_values / up_to(g->k, 64) / TILE * TILE;
    const bool fits = g->k <= KC_MAX && at_most(ROWS_MAX, m1 - m0) <= whole;
    for (int64_t m = m0; m < m1; m += ROWS_MAX) {
        bool held = false;
        for (int o = 0; o < n; o++) {
            const int64_t cols = (g[o].n + TILE - 1) / TILE;
            const int64_t n0 = cols * j / tn * TILE, n1 = at_most(cols * (j + 1) / tn * TILE, g[o].n);
            if (n0 >= n1) continue;
            rows_range(e, &g[o], room, m, at_most(m + ROWS_MAX, m1), n0, n1, held);
            held = fits;
        }
    }
}

/* n products of the same A */
static void run(const bf16_engine *e, kctx *c, const bf16_gemm *g, int n) {
    if (n <= 0 || g->m <= 0 || g->n <= 0 || g->k <= 0) return;
    int64_t threads = share(e, g, 1, 1) * n < SHARE_MIN ? 1 : c->threads, tm = 1;
    for (int64_t t = 2; t <= threads; t++)
        if (threads % t == 0 && share(e, g, t, threads / t) < share(e, g, tm, threads / tm)) tm = t;
    const int64_t tn = threads / tm, rows = (g->m + TILE - 1) / TILE;
#pragma omp parallel num_threads((int)threads) if (threads > 1)
    {
        const bf16_room room = room_of(c, omp_get_thread_num());
        e->begin();
        for (int64_t p = omp_get_thread_num(); p < threads; p += omp_get_num_threads()) {
            const int64_t i = p / tn;
            run_rows_of(e, g, n, &room, rows * i / tm * TILE, at_most(rows * (i + 1) / tm * TILE, g->m), p % tn, tn);
        }
        e->end();
    }
}

/* c (+)= a W^T (pack: bf16_pack_fwd) or a W (bf16_pack_bwd) */
static bf16_gemm product_of(mat c, mat a, const weight *w, bf16_pack_fn *pack) {
    const int64_t from = pack == bf16_pack_fwd ? w->cols : w->rows, to = pack == bf16_pack_fwd ? w->rows : w->cols;
    CHECK(a.cols == from && c.cols == to && a.rows == c.rows, "%ldx%ld to %ldx%ld by W %ldx%ld", (long)a.rows,
          (long)a.cols, (long)c.rows, (long)c.cols, (long)w->rows, (long)w->cols);
    return (bf16_gemm){.m = a.rows,
                       .n = to,
                       .k = from,
                       .a = a.data,
                       .as = a.ld,
                       .c = c.data,
                       .cs = c.ld,
                       .pack = pack,
                       .source.w = w,
                       .pack_cost = bf16_pack_cost(w)};
}

void bf16_weight_fwd(const bf16_engine *e, kctx *c, mat y, mat x, const weight *w) {
    const bf16_gemm g = product_of(y, x, w, bf16_pack_fwd);
    run(e, c, &g, 1);
}

void bf16_weight_bwd(const bf16_engine *e, kctx *c, mat dx, mat dy, const weight *w) {
    const bf16_gemm g = product_of(dx, dy, w, bf16_pack_bwd);
    run(e, c, &g, 1);
}

/* The chain of an output starts at a bias only as a sum in memory; where there is none the product itself is fresh. */
void bf16_proj_fwd(const bf16_engine *e, kctx *c, const proj_fwd_args *p) {
    bf16_gemm g[PROJ_MAX];
    for (int i = 0; i < p->n; i++) {
        g[i] = product_of(p->y[i], p->x, p->w[i], bf16_pack_fwd), g[i].fresh = !p->bias[i];
        for (int64_t t = 0; p->bias[i] && t < p->y[i].rows; t++)
            for (int64_t k = 0; k < p->y[i].cols; k++) mat_row(p->y[i], t)[k] = 0.0f + p->bias[i][k];
    }
    run(e, c, g, p->n);
    for (int i = 0; i < p->n; i++) {
        if (!p->h[i].data) continue;
        const weight up = weight_f32(p->up[i].data, p->up[i].rows, p->up[i].cols);
        bf16_weight_fwd(e, c, p->y[i], p->h[i], &up);
    }
}

/* ---- dW += dy^T x ---- */

enum { NARROW = 64, STRIP = 1024, STRIP_VALUES = 2 * NARROW * STRIP };
_Static_assert((int)STRIP_VALUES < (int)A_VALUES, "a strip of dW^T fits");

/* dW with few columns: dW^T += x^T dy, so that the wide matrix is the one that needs no turning. A strip of dW^T takes
 * the end of A's room. */
static void grad_narrow(const bf16_engine *e, bf16_room room, mat dw, mat dy, mat x) {
    room.a_values -= STRIP_VALUES;
    float *t = (float *)(void *)(room.a + room.a_values);
    for (int64_t o = 0; o < dw.rows; o += STRIP) {
        const int64_t n = at_most(STRIP, dw.rows - o);
        const bf16_gemm g = {.m = dw.cols,
                             .n = n,
                             .k = x.rows,
                             .side = A_COLS,
                             .a = x.data,
                             .as = x.ld,
                             .c = t,
                             .cs = STRIP,
                             .pack = bf16_pack_dense,
                             .source = {.b = (const float *)dy.data + o, .ld = dy.ld}};
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < dw.cols; j++) t[j * STRIP + i] = mat_row(dw, o + i)[j];
        bf16_range(e, &g, &room, 0, g.m, 0, n);
        for (int64_t i = 0; i < n; i++)
            for (int64_t j = 0; j < dw.cols; j++) mat_row(dw, o + i)[j] = t[j * STRIP + i];
    }
}

void bf16_weight_grad(const bf16_engine *e, kctx *c, mat dw, mat dy, mat x) {
    CHECK(dw.rows == dy.cols && dw.cols == x.cols && dy.rows == x.rows, "dW %ldx%ld dy %ldx%ld x %ldx%ld",
          (long)dw.rows, (long)dw.cols, (long)dy.rows, (long)dy.cols, (long)x.rows, (long)x.cols);
    const bf16_gemm g = {.m = dw.rows,
                         .n = dw.cols,
                         .k = x.rows,
                         .side = A_COLS,
                         .a = dy.data,
                         .as = dy.ld,
                         .c = dw.data,
                         .cs = dw.ld,
                         .pack = bf16_pack_dense,
                         .source = {.b = x.data, .ld = x.ld},
                         .pack_cost = 0.3};
    if (dw.cols > NARROW || dw.rows <= dw.cols) {
        run(e, c, &g, 1);
        return;
    }
    if (!x.rows) return;
    const int64_t parts = share(e, &g, 1, 1) < SHARE_MIN ? 1 : c->threads, units = (dw.rows + TILE - 1) / TILE;
#pragma omp parallel num_threads((int)parts) if (parts > 1)
    {
        const bf16_room room = room_of(c, omp_get_thread_num());
        e->begin();
        for (int64_t p = omp_get_thread_num(); p < parts; p += omp_get_num_threads()) {
            const int64_t from = units * p / parts * TILE, to = at_most(units * (p + 1) / parts * TILE, dw.rows);
            if (from < to) grad_narrow(e, room, mat_rows(dw, from, to - from), mat_cols(dy, from, to - from), x);
        }
        e->end();
    }
}
