/* RMSNorm (Zhang & Sennrich 2019): rstd = 1 / sqrt(mean(x^2) + eps), y = x rstd g; backward with t = dy g:
 * dx += rstd t - (rstd^3 mean(t x)) x. LayerNorm (Ba et al. 2016): h = (x - mean) rstd, y = h g + b; backward
 * dx += rstd (t - mean(t) - h mean(t h)). One warp a row where rows are short (heads, small models), one block a row else.
 * A row is read again from the cache for each sum; sums take an order that cols and alignment fix. */
#include "kernels/cuda/eights.cuh"

enum { SHORT_ROW = 1024, ROWS_A_BLOCK = BLOCK / WARP };

/* threads of a row */
template <bool ONE_WARP> static constexpr int LANES = ONE_WARP ? (int)WARP : (int)BLOCK;

template <bool ONE_WARP> static __device__ __forceinline__ int64_t row_index(void) {
    return ONE_WARP ? (int64_t)blockIdx.x * ROWS_A_BLOCK + threadIdx.x / WARP : (int64_t)blockIdx.x;
}
/* all threads of the block call it, also those without a row */
template <bool ONE_WARP> static __device__ __forceinline__ float row_sum(float v) {
    __shared__ float partial[WARP];
    return ONE_WARP ? warp_sum(v) : block_sum(v, partial);
}

template <class T, int V, bool ONE_WARP>
static __global__ void __launch_bounds__(BLOCK)
    rmsnorm_forward(mat y, float *rstd, mat x, const float *g, float eps) {
    const int64_t i = row_index<ONE_WARP>(), cols = x.cols;
    const int first = (int)threadIdx.x % LANES<ONE_WARP> * V, step = LANES<ONE_WARP> * V;
    const T *xi = row_of<const T>(x, i);
    const bool mine = i < x.rows;
    float sum = 0;
    for (int64_t k = first; mine && k < cols; k += step) {
        float v[V];
        take(v, xi + k);
#pragma unroll
        for (int e = 0; e < V; e++) sum = fmaf(v[e], v[e], sum);
    }
    const float r = 1.0f / sqrtf(row_sum<ONE_WARP>(sum) / (float)cols + eps);
    if (mine && rstd && first == 0) rstd[i] = r;
    for (int64_t k = first; mine && k < cols; k += step) {
        float v[V], w[V];
        take(v, xi + k), take(w, g + k);
#pragma unroll
        for (int e = 0; e < V; e++) v[e] = v[e] * r * w[e];
        give(row_of<T>(y, i) + k, v);
    }
}

template <class T, int V, bool ONE_WARP>
static __global__ void __launch_bounds__(BLOCK)
    rmsnorm_backward(mat dx, mat dy, mat x, const float *rstd, const float *g) {
    const int64_t i = row_index<ONE_WARP>(), cols = x.cols;
    const int first = (int)threadIdx.x % LANES<ONE_WARP> * V, step = LANES<ONE_WARP> * V;
    const T *xi = row_of<const T>(x, i);
    const float *di = row_of<const float>(dy, i);
    const bool mine = i < x.rows;
    float sum = 0;
    for (int64_t k = first; mine && k < cols; k += step) {
        float v[V], w[V], d[V];
        take(v, xi + k), take(w, g + k), take(d, di + k);
#pragma unroll
        for (int e = 0; e < V; e++) sum = fmaf(d[e] * w[e], v[e], sum);
    }
    const float r = mine ? rstd[i] : 0, coef = r * r * r * (row_sum<ONE_WARP>(sum) / (float)cols);
    for (int64_t k = first; mine && k < cols; k += step) {
        float v[V], w[V], d[V], out[V];
        float *to = row_of<float>(dx, i) + k;
        take(v, xi + k), take(w, g + k), take(d, di + k), take(out, to);
#pragma unroll
        for (int e = 0; e < V; e++) out[e] += fmaf(r, d[e] * w[e], -(coef * v[e]));
        give(to, out);
    }
}

template <class T, int V, bool ONE_WARP>
static __global__ void __launch_bounds__(BLOCK)
    layernorm_forward(mat y, float *stats, mat x, const float *g, const float *b, float eps) {
    const int64_t i = row_index<ONE_WARP>(), cols = x.cols;
    const int first = (int)threadIdx.x % LANES<ONE_WARP> * V, step = LANES<ONE_WARP> * V;
    const T *xi = row_of<const T>(x, i);
    const bool mine = i < x.rows;
    float sum = 0, square = 0;
    for (int64_t k = first; mine && k < cols; k += step) {
        float v[V];
        take(v, xi + k);
#pragma unroll
        for (int e = 0; e < V; e++) sum += v[e];
    }
    const float mean = row_sum<ONE_WARP>(sum) / (float)cols;
    for (int64_t k = first; mine && k < cols; k += step) {
        float v[V];
        take(v, xi + k);
#pragma unroll
        for (int e = 0; e < V; e++) square = fmaf(v[e] - mean, v[e] - mean, square);
    }
    const float r = 1.0f / sqrtf(row_sum<ONE_WARP>(square) / (float)cols + eps);
    if (mine && stats && first == 0) stats[2 * i] = mean, stats[2 * i + 1] = r;
    for (int64_t k = first; mine && k < cols; k += step) {
        float v[V], w[V], add[V] = {};
        take(v, xi + k), take(w, g + k);
        if (b) take(add, b + k);
#pragma unroll
        for (int e = 0; e < V; e++) v[e] = fmaf((v[e] - mean) * r, w[e], add[e]);
        give(row_of<T>(y, i) + k, v);
    }
}

template <class T, int V, bool ONE_WARP>
static __global__ void __launch_bounds__(BLOCK)
    layernorm_backward(mat dx, mat dy, mat x, const float *stats, const float *g) {
    const int64_t i = row_index<ONE_WARP>(), cols = x.cols;
    const int first = (int)threadIdx.x % LANES<ONE_WARP> * V, step = LANES<ONE_WARP> * V;
    const T *xi = row_of<const T>(x, i);
    const float *di = row_of<const float>(dy, i);
    const bool mine = i < x.rows;
    const float mean = mine ? stats[2 * i] : 0, r = mine ? stats[2 * i + 1] : 0;
    float sum = 0, dot = 0;
    for (int64_t k = first; mine && k < cols; k += step) {
        float v[V], w[V], d[V];
        take(v, xi + k), take(w, g + k), take(d, di + k);
#pragma unroll
        for (int e = 0; e < V; e++) sum = fmaf(d[e], w[e], sum), dot = fmaf(d[e] * w[e], (v[e] - mean) * r, dot);
    }
    const float a = row_sum<ONE_WARP>(sum) / (float)cols, along = row_sum<ONE_WARP>(dot) / (float)cols;
    for (int64_t k = first; mine && k < cols; k += step) {
        float v[V], w[V], d[V], out[V];
        float *to = row_of<float>(dx, i) + k;
        take(v, xi + k), take(w, g + k), take(d, di + k), take(out, to);
#pragma unroll
        for (int e = 0; e < V; e++) out[e] += r * fmaf(-((v[e] - mean) * r), along, d[e] * w[e] - a);
        give(to, out);
    }
}

/* the launch for rows of x, with V and ONE_WARP chosen */
#define LAUNCH_ROWS(kernel, T, wide, c, x, ...)                                                                        \
    BY_EIGHTS(wide, V, {                                                                                               \
        if ((x).cols <= SHORT_ROW)                                                                                     \
            LAUNCH((kernel<T, V, true>), (unsigned)(((x).rows + ROWS_A_BLOCK - 1) / ROWS_A_BLOCK), BLOCK, 0, c,        \
                   __VA_ARGS__);                                                                                       \
        else                                                                                                           \
            LAUNCH((kernel<T, V, false>), (unsigned)(x).rows, BLOCK, 0, c, __VA_ARGS__);                               \
    })

extern "C" void rmsnorm_fwd_cuda(kctx *c, mat y, float *rstd, mat x, const float *g, float eps) {
    if (x.rows == 0) return;
    CHECK(y.type == x.type && y.cols == x.cols, "%ld columns of type %d", (long)y.cols, (int)y.type);
    const bool wide = eights(x, x.cols) && eights(y, x.cols) && (uintptr_t)g % 16 == 0;
    WITH_VALUES(x.type, T, LAUNCH_ROWS(rmsnorm_forward, T, wide, c, x, y, rstd, x, g, eps));
}

extern "C" void rmsnorm_bwd_cuda(kctx *c, mat dx, mat dy, mat x, const float *rstd, const float *g) {
    if (x.rows == 0) return;
    CHECK(dx.type == F32 && dy.type == F32, "gradients of types %d and %d", (int)dx.type, (int)dy.type);
    const bool wide = eights(x, x.cols) && eights(dx, x.cols) && eights(dy, x.cols) && (uintptr_t)g % 16 == 0;
    WITH_VALUES(x.type, T, LAUNCH_ROWS(rmsnorm_backward, T, wide, c, x, dx, dy, x, rstd, g));
}

extern "C" void layernorm_fwd_cuda(kctx *c, mat y, float *stats, mat x, const float *g, const float *b, float eps) {
    if (x.rows == 0) return;
    CHECK(y.type == x.type && y.cols == x.cols, "%ld columns of type %d", (long)y.cols, (int)y.type);
    const bool wide = eights(x, x.cols) && eights(y, x.cols) && (uintptr_t)g % 16 == 0 && (uintptr_t)b % 16 == 0;
    WITH_VALUES(x.type, T, LAUNCH_ROWS(layernorm_forward, T, wide, c, x, y, stats, x, g, b, eps));
}

extern "C" void layernorm_bwd_cuda(kctx *c, mat dx, mat dy, mat x, const float *stats, const float *g) {
    if (x.rows == 0) return;
    CHECK(dx.type == F32 && dy.type == F32, "gradients of types %d and %d", (int)dx.type, (int)dy.type);
    const bool wide = eights(x, x.cols) && eights(dx, x.cols) && eights(dy, x.cols) && (uintptr_t)g % 16 == 0;
    WITH_VALUES(x.type, T, LAUNCH_ROWS(layernorm_backward, T, wide, c, x, dx, dy, x, stats, g));
}
