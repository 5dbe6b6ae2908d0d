/* y[i, :] = W[token[i], :], W in any storage format: a thread dequantises 8 elements (dequant.cuh) and stores them as one. */
#include "kernels/cuda/dequant.cuh"
#include "kernels/cuda/eights.cuh"
#include "kernels/cuda/gemm.cuh"

/* V = 1: rows that are no whole eights, or that y does not hold at multiples of 16 bytes; the eight around each element */
template <int F, class T, int V>
static __global__ void __launch_bounds__(BLOCK) embed_rows(mat y, wview w, const int32_t *token) {
    for (int64_t i = blockIdx.y; i < y.rows; i += gridDim.y) {
        const int32_t word = token[i];
        DEVICE_CHECK(word >= 0 && word < w.rows);
        for (int64_t k = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * V; k < w.cols; k += (int64_t)gridDim.x * BLOCK * V) {
            const int64_t at = word * w.cols + k;
            float v[8], one[1] = {0};
            decode8(format<F>(), w, at / 8 * 8, v);
            if constexpr (V == 8) {
                give(row_of<T>(y, i) + k, v);
            } else {
#pragma unroll
                for (int e = 0; e < 8; e++)
                    if (e == at % 8) one[0] = v[e];
                give(row_of<T>(y, i) + k, one);
            }
        }
    }
}

template <int F> static void launch_embed(kctx *c, mat y, const wview &w, const int32_t *token) {
    const bool wide = eights(y, w.cols);
    WITH_VALUES(y.type, T, BY_EIGHTS(wide, V, {
                    LAUNCH((embed_rows<F, T, V>), grid_for_rows(y.rows, w.cols, V), BLOCK, 0, c, y, w, token);
                }));
}

/* by FMT_*: formats.def lists its rows in that order */
static void (*const embed_of[FORMATS])(kctx *, mat, const wview &, const int32_t *) = {
#define F(id, name, ggml, block, bytes, dequant, quant) launch_embed<FMT_##id>,
#include "kernels/formats.def"
#undef F
};

extern "C" void embed_fwd_cuda(kctx *c, mat y, const weight *w, const int32_t *token) {
    if (y.rows == 0) return;
    CHECK(y.cols == w->cols, "rows of %ld elements, wanted %ld", (long)w->cols, (long)y.cols);
    embed_of[w->fmt->id](c, y, view_of(w), token);
}
