/* exp as every backend has it: ref_exp of kernels/ref/ref.h, operation for operation, so that fp32 results can be
 * compared with ref to the bit. */
#ifndef PEFT_KERNELS_CUDA_MATH_CUH
#define PEFT_KERNELS_CUDA_MATH_CUH

#include "kernels/cuda/cuda.h"

static __device__ __forceinline__ float exp_ref(float x) {
    if (x != x) return x;
    if (x < -87.3f) return 0;
    if (x > 88.7f) return INFINITY;
    const float t = fmaf(x, 0x1.715476p+0f, 0x1.8p23f), n = t - 0x1.8p23f;
    const float r = fmaf(n, -0x1.7f7d1cp-20f, fmaf(n, -0x1.62e4p-1f, x));
    float p = 0x1.6a23dp-10f;
    p = fmaf(p, r, 0x1.123a2p-7f);
    p = fmaf(p, r, 0x1.5558f2p-5f);
    p = fmaf(p, r, 0x1.555492p-3f);
    p = fmaf(p, r, 0x1.fffffcp-2f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    return __uint_as_float(__float_as_uint(p) + (__float_as_uint(t) << 23));
}

#endif
