/* Products with a weight matrix W[out, in] of any format: y += x W^T, dx += dy W, and dW += dy^T x for what is trained.
 */
#include "core/error.h"
#include "kernels/cpu/gemm.h"

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

void ISA(weight_grad)(kctx *c, mat dw, mat dy, mat x) {
    CHECK(dw.rows == dy.cols && dw.cols == x.cols && dy.rows == x.rows, "dW %ldx%ld dy %ldx%ld x %ldx%ld",
          (long)dw.rows, (long)dw.cols, (long)dy.rows, (long)dy.cols, (long)x.rows, (long)x.cols);
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
}
