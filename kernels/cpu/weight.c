/* Products with a weight matrix W[out, in] of any format: y += x W^T, dx += dy W, and dW += dy^T x for what is trained.
 */
#include "core/error.h"
#include "kernels/cpu/gemm.h"

#include <omp.h>

/* one more term of the chain: += A W^T, or += A W where `transposed` is false */
static void add_term(gemm *g, mat a, const weight *w, bool transposed) {
    g->term[g->terms++] =
        (gemm_term){.k = a.cols, .a = a.data, .as = a.ld, .pack = transposed ? ISA(pack_fwd) : ISA(pack_bwd), .w = w};
    if (g->terms == 1) g->pack_cost = ISA(pack_cost)(w);
}

static gemm product_of(mat c) { return (gemm){.m = c.rows, .n = c.cols, .c = c.data, .cs = c.ld}; }

static void check_shapes(mat y, mat x, const weight *w) {
    CHECK(x.cols == w->cols && y.cols == w->rows && x.rows == y.rows, "%ldx%ld and %ldx%ld of W %ldx%ld", (long)x.rows,
          (long)x.cols, (long)y.rows, (long)y.cols, (long)w->rows, (long)w->cols);
}

void ISA(weight_fwd)(kctx *c, mat y, mat x, const weight *w) {
    check_shapes(y, x, w);
    gemm g = product_of(y);
    add_term(&g, x, w, true);
    ISA(gemm_run)(c, &g, 1);
}

void ISA(weight_bwd)(kctx *c, mat dx, mat dy, const weight *w) {
    check_shapes(dy, dx, w);
    gemm g = product_of(dx);
    add_term(&g, dy, w, false);
    ISA(gemm_run)(c, &g, 1);
}

static weight adapter_weight(mat m) {
    CHECK(m.ld == m.cols && m.type == F32, "an adapter's %ldx%ld with gaps", (long)m.rows, (long)m.cols);
    return weight_f32(m.data, m.rows, m.cols);
}

void ISA(proj_fwd)(kctx *c, const proj_fwd_args *p) {
    gemm g[PROJ_MAX];
    weight up[PROJ_MAX];
    for (int i = 0; i < p->n; i++) {
        check_shapes(p->y[i], p->x, p->w[i]);
        g[i] = product_of(p->y[i]), g[i].fresh = true, g[i].start = p->bias[i];
        add_term(&g[i], p->x, p->w[i], true);
        if (!p->h[i].data) continue;
        up[i] = adapter_weight(p->up[i]);
        check_shapes(p->y[i], p->h[i], &up[i]);
        add_term(&g[i], p->h[i], &up[i], true);
    }
    ISA(gemm_run)(c, g, p->n);
}

void ISA(proj_bwd)(kctx *c, const proj_bwd_args *p) {
    gemm g = product_of(p->dx);
    weight down;
    g.fresh = p->fresh;
    for (int i = 0; i < p->n; i++) {
        if (!p->dy[i].data) continue;
        check_shapes(p->dy[i], p->dx, p->w[i]);
        add_term(&g, p->dy[i], p->w[i], false);
    }
    if (p->dh.data) {
        down = adapter_weight(p->down);
        check_shapes(p->dh, p->dx, &down);
        add_term(&g, p->dh, &down, false);
    }
    if (g.terms)
        ISA(gemm_run)(c, &g, 1);
    else
        proj_bwd_compose(c, p); /* nothing but a start at 0 */
}

enum { ALONE = 1 << 19 }; /* multiply-adds below which one thread does it all */
enum { NARROW = 64, STRIP = (THREAD_SCRATCH / 4 - GEMM_FLOATS) / NARROW / NR * NR };

/* y[j][i] = x[i][j] */
static void transpose(float *y, int64_t ly, const float *x, int64_t lx, int64_t rows, int64_t cols) {
    for (int64_t i = 0; i < rows; i += VN)
        for (int64_t j = 0; j < cols; j += VN) {
            if (i + VN <= rows && j + VN <= cols) {
                vn_transpose(y + j * ly + i, ly, x + i * lx + j, lx);
                continue;
            }
            for (int64_t r = i; r < i + VN && r < rows; r++)
                for (int64_t s = j; s < j + VN && s < cols; s++) y[s * ly + r] = x[r * lx + s];
        }
}

/* dW[out, in] with few columns: dW^T += x^T dy, so that vectors lie along `out`. A strip of dW^T is held in scratch. */
static void grad_narrow(float *scratch, mat dw, mat dy, mat x) {
    float *t = scratch + GEMM_FLOATS;
    for (int64_t o = 0; o < dw.rows; o += STRIP) {
        int64_t n = dw.rows - o < STRIP ? dw.rows - o : STRIP;
        gemm g = {.m = dw.cols, .n = n, .c = t, .cs = STRIP, .a_cols = true, .terms = 1};
        g.term[0] = (gemm_term){.k = x.rows, .a = x.data, .as = x.ld, .b = (const float *)dy.data + o, .bs = dy.ld};
        transpose(t, STRIP, mat_row(dw, o), dw.ld, n, dw.cols);
        ISA(gemm_range)(&g, 1, scratch, 0, g.m, 0, (n + NR - 1) / NR);
        transpose(mat_row(dw, o), dw.ld, t, STRIP, dw.cols, n);
    }
}

void ISA(weight_grad)(kctx *c, mat dw, mat dy, mat x) {
    CHECK(dw.rows == dy.cols && dw.cols == x.cols && dy.rows == x.rows, "dW %ldx%ld dy %ldx%ld x %ldx%ld",
          (long)dw.rows, (long)dw.cols, (long)dy.rows, (long)dy.cols, (long)x.rows, (long)x.cols);
    if (dw.cols > NARROW || dw.rows <= dw.cols) {
        gemm g = product_of(dw);
        g.a_cols = true, g.terms = 1, g.pack_cost = 2;
        g.term[0] = (gemm_term){.k = x.rows, .a = dy.data, .as = dy.ld, .b = x.data, .bs = x.ld};
        ISA(gemm_run)(c, &g, 1);
        return;
    }
    int64_t parts = dw.rows * dw.cols * x.rows < ALONE ? 1 : c->threads, units = (dw.rows + NR - 1) / NR;
#pragma omp parallel for num_threads((int)parts) if (parts > 1)
    for (int64_t p = 0; p < parts; p++) {
        int64_t from = units * p / parts * NR, to = units * (p + 1) / parts * NR;
        if (to > dw.rows) to = dw.rows;
        if (from < to)
            grad_narrow(thread_scratch(c, omp_get_thread_num()), mat_rows(dw, from, to - from),
                        mat_cols(dy, from, to - from), x);
    }
}
