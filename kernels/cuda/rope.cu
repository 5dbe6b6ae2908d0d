/* Rotary embedding (Su et al. 2021): the pairs (d, d + dim / 2) of each head turned by sign * the angle of the row's
 * position. A thread turns V pairs; y may be x. */
#include "kernels/cuda/eights.cuh"

template <class T, int V>
static __global__ void __launch_bounds__(BLOCK) rope_turn(mat y, mat x, const int32_t *pos, rope r, float sign) {
    const int half = r.dim / 2, each = half / V;
    const int64_t groups = x.cols / r.dim * each;
    for (int64_t i = blockIdx.y; i < x.rows; i += gridDim.y) {
        const int32_t at = pos[i];
        DEVICE_CHECK(at >= 0 && at < r.positions);
        for (int64_t n = (int64_t)blockIdx.x * BLOCK + threadIdx.x; n < groups; n += (int64_t)gridDim.x * BLOCK) {
            const int d = (int)(n % each) * V;
            const int64_t k = n / each * r.dim + d;
            float a[V], b[V], cs[V], sn[V], ya[V], yb[V];
            take(a, row_of<const T>(x, i) + k), take(b, row_of<const T>(x, i) + k + half);
            take(cs, r.cos + (int64_t)at * half + d), take(sn, r.sin + (int64_t)at * half + d);
#pragma unroll
            for (int e = 0; e < V; e++) {
                const float s = sign * sn[e];
                ya[e] = fmaf(-s, b[e], __fmul_rn(a[e], cs[e]));
                yb[e] = fmaf(s, a[e], __fmul_rn(b[e], cs[e]));
            }
            give(row_of<T>(y, i) + k, ya), give(row_of<T>(y, i) + k + half, yb);
        }
    }
}

extern "C" void rope_fwd_cuda(kctx *c, mat y, mat x, const int32_t *pos, const rope *r, float sign) {
    if (x.rows == 0) return;
    CHECK(y.type == x.type && x.cols % r->dim == 0, "%ld columns as heads of %d", (long)x.cols, r->dim);
    const bool wide = r->dim % 16 == 0 && eights(x, x.cols) && eights(y, x.cols) && (uintptr_t)r->cos % 16 == 0 &&
                      (uintptr_t)r->sin % 16 == 0;
    WITH_VALUES(x.type, T, BY_EIGHTS(wide, V, {
                    LAUNCH((rope_turn<T, V>), grid_for_rows(x.rows, x.cols, 2 * V), BLOCK, 0, c, y, x, pos, *r, sign);
                }));
}
