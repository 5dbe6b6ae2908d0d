/* Rows eight elements at a time: accesses of 16 bytes, two of them for F32. Kernels are templates on V, 8 where the rows
 * allow it and 1 elsewhere; BY_EIGHTS chooses. */
#ifndef PEFT_KERNELS_CUDA_EIGHTS_CUH
#define PEFT_KERNELS_CUDA_EIGHTS_CUH

#include "kernels/cuda/cuda.h"

static __device__ __forceinline__ void take(float (&v)[1], const float *p) { v[0] = *p; }
static __device__ __forceinline__ void take(float (&v)[1], const bf16 *p) { v[0] = __bfloat162float(*p); }
static __device__ __forceinline__ void give(float *p, const float (&v)[1]) { *p = v[0]; }
static __device__ __forceinline__ void give(bf16 *p, const float (&v)[1]) { *p = __float2bfloat16_rn(v[0]); }

static __device__ __forceinline__ void take(float (&v)[8], const float *p) {
    const float4 a = reinterpret_cast<const float4 *>(p)[0], b = reinterpret_cast<const float4 *>(p)[1];
    v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}
static __device__ __forceinline__ void take(float (&v)[8], const bf16 *p) {
    const uint4 q = *reinterpret_cast<const uint4 *>(p);
    const unsigned word[4] = {q.x, q.y, q.z, q.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        v[2 * i] = __uint_as_float(word[i] << 16);
        v[2 * i + 1] = __uint_as_float(word[i] & 0xffff0000u);
    }
}
static __device__ __forceinline__ void give(float *p, const float (&v)[8]) {
    reinterpret_cast<float4 *>(p)[0] = make_float4(v[0], v[1], v[2], v[3]);
    reinterpret_cast<float4 *>(p)[1] = make_float4(v[4], v[5], v[6], v[7]);
}
static __device__ __forceinline__ void give(bf16 *p, const float (&v)[8]) {
    *reinterpret_cast<uint4 *>(p) =
        make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
}

/* whether every row of m begins at a multiple of 16 bytes, and n elements are whole eights; a mat that is not wanted may */
static inline bool eights(mat m, int64_t n) {
    return !m.data || (n % 8 == 0 && m.ld % 8 == 0 && (uintptr_t)m.data % 16 == 0);
}

/* The statement with the constant V = 8 where cond, else 1 */
#define BY_EIGHTS(cond, V, ...)                                                                                        \
    do {                                                                                                               \
        if (cond) {                                                                                                    \
            enum { V = 8 };                                                                                            \
            __VA_ARGS__;                                                                                               \
        } else {                                                                                                       \
            enum { V = 1 };                                                                                            \
            __VA_ARGS__;                                                                                               \
        }                                                                                                              \
    } while (0)

#endif
