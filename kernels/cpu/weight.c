/* Products with a weight matrix W[out, in] of any format: y += x W^T, dx += dy W, and dW += dy^T x for what is trained.
 */
#include "core/error.h"
#include "kernels/cpu/gemm.h"

#include <omp.h>

void ISA(weight_fwd)(kctx *c, mat y, mat x, const weight *w) {
    CHECK(x.cols == w->cols && y.cols == w->rows && x.rows == y.rows, "x %ldx%ld y %ldx%ld W %ldx%ld", (long)x.rows,
          (long)x.cols, (long)y.rows, (long)y.cols, (long)w->rows, (long)w->cols);
    gemm g = {.m = x.rows,
              .n = w->rows,
              .k = w->cols,
              .a = x.data,
              .as = x.ld,
              .c = y.data,
              .cs = y.ld,
              .pack = ISA(pack_fwd),
              .w = w,
              .pack_cost = ISA(pack_cost)(w)};
    ISA(gemm_run)(c, &g);
}

void ISA(weight_bwd)(kctx *c, mat dx, mat dy, const weight *w) {
    CHECK(dx.cols == w->cols && dy.cols == w->rows && dx.rows == dy.rows, "dx %ldx%ld dy %ldx%ld W %ldx%ld",
          (long)dx.rows, (long)dx.cols, (long)dy.rows, (long)dy.cols, (long)w->rows, (long)w->cols);
    gemm g = {.m = dy.rows,
              .n = w->cols,
              .k = w->rows,
              .a = dy.data,
              .as = dy.ld,
              .c = dx.data,
              .cs = dx.ld,
              .pack = ISA(pack_bwd),
              .w = w,
              .pack_cost = ISA(pack_cost)(w)};
    ISA(gemm_run)(c, &g);
}

void ISA(proj_fwd)(kctx *c, const proj_fwd_args *p) { proj_fwd_compose(c, p); }
void ISA(proj_bwd)(kctx *c, const proj_bwd_args *p) { proj_bwd_compose(c, p); }

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
        gemm g = {.m = dw.cols,
                  .n = n,
                  .k = x.rows,
                  .a = x.data,
                  .as = x.ld,
                  .a_cols = true,
                  .c = t,
                  .cs = STRIP,
                  .b = (const float *)dy.data + o,
                  .bs = dy.ld};
        transpose(t, STRIP, mat_row(dw, o), dw.ld, n, dw.cols);
        ISA(gemm_range)(&g, scratch, 0, g.m, 0, n);
        transpose(mat_row(dw, o), dw.ld, t, STRIP, dw.cols, n);
    }
}

void ISA(weight_grad)(kctx *c, mat dw, mat dy, mat x) {
    CHECK(dw.rows == dy.cols && dw.cols == x.cols && dy.rows == x.rows, "dW %ldx%ld dy %ldx%ld x %ldx%ld",
          (long)dw.rows, (long)dw.cols, (long)dy.rows, (long)dy.cols, (long)x.rows, (long)x.cols);
    if (dw.cols > NARROW || dw.rows <= dw.cols) {
        gemm g = {.m = dw.rows,
                  .n = dw.cols,
                  .k = x.rows,
                  .a = dy.data,
                  .as = dy.ld,
                  .a_cols = true,
                  .c = dw.data,
                  .cs = dw.ld,
                  .b = x.data,
                  .bs = x.ld,
                  .pack_cost = 2};
        ISA(gemm_run)(c, &g);
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
