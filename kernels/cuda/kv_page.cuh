/* Pages of cached keys and values on a device: what backend.h says of struct kv_pages. Tiles of bf16 are filled from pages of
 * any type; keys stay transposed, as they lie, so that a piece of eight tokens of one feature is one access. */
#ifndef PEFT_KERNELS_CUDA_KV_PAGE_CUH
#define PEFT_KERNELS_CUDA_KV_PAGE_CUH

#include "kernels/cuda/attention.cuh"

static __device__ __forceinline__ float page_half(const char *p, int64_t at) {
    return __half2float(reinterpret_cast<const __half *>(p)[at]);
}
static __device__ __forceinline__ int64_t page_width(const kv_pages &p) { return (int64_t)p.heads * p.dim; }
static __device__ __forceinline__ const char *page_scales(const kv_pages &p, const char *page) {
    return page + page_width(p) * KV_PAGE;
}
static __device__ __forceinline__ int64_t page_at(const kv_pages &p, int seq, int key) {
    return p.table[(int64_t)seq * p.columns + key / KV_PAGE] * p.stride;
}

/* one element: feature f of token t of a page of keys, of values */
static __device__ __forceinline__ float page_number(const kv_pages &p, const char *page, int64_t at, int64_t scale) {
    if (p.type == KV_F32) return reinterpret_cast<const float *>(page)[at];
    if (p.type == KV_BF16) return load(reinterpret_cast<const bf16 *>(page) + at);
    return (float)reinterpret_cast<const signed char *>(page)[at] * page_half(page_scales(p, page), scale);
}
static __device__ __forceinline__ float page_key(const kv_pages &p, int seq, int key, int64_t f) {
    const int t = key % KV_PAGE;
    return page_number(p, p.k + page_at(p, seq, key), f * KV_PAGE + t, f / KV_BLOCK * KV_PAGE + t);
}
static __device__ __forceinline__ float page_value(const kv_pages &p, int seq, int key, int64_t f) {
    const int64_t t = key % KV_PAGE, width = page_width(p);
    return page_number(p, p.v + page_at(p, seq, key), t * width + f, t * (width / KV_BLOCK) + f / KV_BLOCK);
}

static __device__ __forceinline__ void put_eight(bf16 *to, const float (&v)[8]) {
    *reinterpret_cast<uint4 *>(to) =
        make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
}
/* eight elements at a multiple of eight, of floats or codes */
static __device__ __forceinline__ void page_eight(const kv_pages &p, const char *page, int64_t at, float (&v)[8]) {
    if (p.type == KV_F32) {
        const float4 *q = reinterpret_cast<const float4 *>(reinterpret_cast<const float *>(page) + at);
        const float4 a = q[0], b = q[1];
        v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    } else {
        const uint2 q = *reinterpret_cast<const uint2 *>(page + at);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = (float)(signed char)((i < 4 ? q.x : q.y) >> i % 4 * 8 & 255);
    }
}

/* to[d][key - from] of KEYS keys and DP features of the head at `column`: rows of KEYS + LANE_PAD. Pages without a key in
 * [lo, hi) are not looked up; what is written for keys outside is of no use and may be NaN. */
template <int DP, int KEYS, int THREADS>
static __device__ __forceinline__ void page_keys_begin(bf16 *to, const kv_pages &p, int seq, int64_t column, int from, int lo,
                                                       int hi) {
    constexpr int UNITS = KEYS / 8, LD = KEYS + LANE_PAD;
#pragma unroll 2
    for (int n = 0; n < DP * UNITS / THREADS; n++) {
        const int u = n * THREADS + (int)threadIdx.x, d = u / UNITS, i = u % UNITS * 8;
        const int key = from + i, begin = key / KV_PAGE * KV_PAGE;
        const bool wanted = d < p.dim && begin + KV_PAGE > lo && begin < hi;
        const char *page = p.k + (wanted ? page_at(p, seq, key) : 0);
        const int64_t f = column + d, at = wanted ? f * KV_PAGE + key % KV_PAGE : 0;
        bf16 *place = to + d * LD + i;
        if (p.type == KV_BF16) {
            cp_async16(place, reinterpret_cast<const bf16 *>(page) + at, wanted);
            continue;
        }
        float v[8] = {};
        if (wanted) page_eight(p, page, at, v);
        if (wanted && p.type == KV_Q8_0) {
            const char *scales = page_scales(p, page);
#pragma unroll
            for (int e = 0; e < 8; e++) v[e] *= page_half(scales, f / KV_BLOCK * KV_PAGE + key % KV_PAGE + e);
        }
        put_eight(place, v);
    }
}

/* to[key - from][d] in rows of DP + LANE_PAD; zeros for keys outside [lo, hi) */
template <int DP, int KEYS, int THREADS>
static __device__ __forceinline__ void page_values_begin(bf16 *to, const kv_pages &p, int seq, int64_t column, int from, int lo,
                                                         int hi) {
    constexpr int UNITS = DP / 8, LD = DP + LANE_PAD;
    const int64_t width = page_width(p);
#pragma unroll 2
    for (int n = 0; n < KEYS * UNITS / THREADS; n++) {
        const int u = n * THREADS + (int)threadIdx.x, i = u / UNITS, d = u % UNITS * 8, key = from + i;
        const bool wanted = d < p.dim && key >= lo && key < hi;
        const char *page = p.v + (wanted ? page_at(p, seq, key) : 0);
        const int64_t t = key % KV_PAGE, at = wanted ? t * width + column + d : 0;
        bf16 *place = to + i * LD + d;
        if (p.dim % 8 == 0 && p.type == KV_BF16) {
            cp_async16(place, reinterpret_cast<const bf16 *>(page) + at, wanted);
            continue;
        }
        float v[8] = {};
        if (wanted && p.dim % 8 == 0) {
            page_eight(p, page, at, v);
            const float scale =
                p.type == KV_Q8_0 ? page_half(page_scales(p, page), t * (width / KV_BLOCK) + (column + d) / KV_BLOCK) : 1.0f;
#pragma unroll
            for (int e = 0; e < 8; e++) v[e] *= scale;
        } else if (wanted) {
#pragma unroll
            for (int e = 0; e < 8; e++)
                if (d + e < p.dim) v[e] = page_value(p, seq, key, column + d + e);
        }
        put_eight(place, v);
    }
}

#endif
