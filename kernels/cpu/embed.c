/* y[i,:] = W[token[i],:], the row decoded from W's format. */
#include "core/error.h"
#include "kernels/cpu/gemm.h"

enum { ELEMENTS_MIN = 16384 }; /* below, one thread */

void ISA(embed_fwd)(kctx *c, mat y, const weight *w, const int32_t *token) {
    CHECK(y.cols == w->cols, "y %ldx%ld W %ldx%ld", (long)y.rows, (long)y.cols, (long)w->rows, (long)w->cols);
    for (int64_t i = 0; i < y.rows; i++)
        CHECK(token[i] >= 0 && token[i] < w->rows, "token %d of %ld", token[i], (long)w->rows);
    int threads = y.rows * y.cols < ELEMENTS_MIN ? 1 : c->threads;
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < y.rows; i++) ISA(weight_row)(w, token[i], 0, w->cols, mat_row(y, i));
}
