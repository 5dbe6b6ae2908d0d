/* AdamW with 8-bit moments; ref_adamw8.c has the arithmetic, equal to the bit. A thread has one element, a block of 256
 * threads one block of moments after another: decode by the maps, update, the block's new scales, code by binary search
 * among the midpoints of the map. Maps and midpoints lie in shared memory, where a lane-dependent index is cheap. */
#include "kernels/cuda/adamw.cuh"

static_assert((int)BLOCK == (int)ADAMW8_BLOCK, "a thread an element");
static const int64_t GRID = 2048; /* blocks that fill any device; each makes its tables once */

typedef struct maps {
    float mean[256], square[256];
} maps; /* passed by value: constant memory */

/* the tensor that holds this block: the last one that does not begin after it */
static __device__ adamw8_tensor tensor_of(const adamw8 &s, int64_t block) {
    int64_t lo = 0, hi = s.tensors - 1;
    while (lo < hi) {
        const int64_t at = (lo + hi + 1) / 2;
        if (s.tensor[at].block <= block)
            lo = at;
        else
            hi = at - 1;
    }
    return s.tensor[lo];
}

/* the number of midpoints below x / top, at most 1; mid[255] is infinite */
static __device__ __forceinline__ uint8_t code_of(const float *mid, float x, float top) {
    const float r = __fdiv_rn(x, top > 0 ? top : 1), y = r < 1 ? r : 1;
    int lo = 0;
#pragma unroll
    for (int half = 128; half; half /= 2)
        if (mid[lo + half - 1] < y) lo += half;
    return (uint8_t)lo;
}

static __global__ void __launch_bounds__(BLOCK)
    adamw8_update(float *p, const float *g, adamw8 s, adam a, maps map) {
    __shared__ float mean[256], square[256], mean_mid[256], square_mid[256], partial[WARP];
    const int e = (int)threadIdx.x;
    mean[e] = map.mean[e], square[e] = map.square[e];
    mean_mid[e] = e < 255 ? (map.mean[e] + map.mean[e + 1]) / 2 : INFINITY;
    square_mid[e] = e < 255 ? (map.square[e] + map.square[e + 1]) / 2 : INFINITY;
    __syncthreads();
    if (a.sums->nonfinite) return;
    const float scale = (float)a.sums->grad_scale;
    for (int64_t b = blockIdx.x; b < s.blocks; b += gridDim.x) {
        const adamw8_tensor t = tensor_of(s, b);
        const int64_t at = (b - t.block) * ADAMW8_BLOCK + e;
        const bool mine = at < t.n;
        float m = 0, v = 0;
        if (mine) {
            float pi = p[t.begin + at];
            m = mean[s.m[t.code + at]] * s.m_scale[b], v = square[s.v[t.code + at]] * s.v_scale[b];
            adam_step(a, scale, g[t.begin + at], pi, m, v);
            p[t.begin + at] = pi;
        }
        const float m_top = block_max(fabsf(m), partial), v_top = block_max(v, partial);
        if (mine) s.m[t.code + at] = code_of(mean_mid, m, m_top), s.v[t.code + at] = code_of(square_mid, v, v_top);
        if (e == 0) s.m_scale[b] = m_top, s.v_scale[b] = v_top;
    }
}

extern "C" void adamw_8bit_cuda(kctx *c, float *p, const float *g, const adamw8 *s, const adamw_hp *hp) {
    maps map;
    if (s->blocks == 0) return;
    for (int i = 0; i < 256; i++) map.mean[i] = nf4_dynamic_map[i], map.square[i] = adamw8_map[i];
    LAUNCH(adamw8_update, (unsigned)(s->blocks < GRID ? s->blocks : GRID), BLOCK, 0, c, p, g, *s, adam_of(hp), map);
}
