/* The arithmetic that adamw.cu and adamw8.cu share: ref_dense.c's, operation by operation, so that equal inputs give equal
 * bits. Scalars are made in double on the host and rounded once. */
#ifndef PEFT_KERNELS_CUDA_ADAMW_CUH
#define PEFT_KERNELS_CUDA_ADAMW_CUH

#include "kernels/cuda/cuda.h"

typedef struct adam {
    float keep, step, a1, a2, b2, root, eps;
    const step_sums *sums; /* device memory */
} adam;

static inline adam adam_of(const adamw_hp *hp) {
    adam a;
    a.keep = (float)(1.0 - hp->lr * hp->weight_decay), a.step = (float)(hp->lr / hp->bias1);
    a.a1 = (float)(1.0 - hp->beta1), a.a2 = (float)(1.0 - hp->beta2), a.b2 = (float)hp->beta2;
    a.root = (float)hp->bias2_sqrt, a.eps = (float)hp->eps, a.sums = hp->sums;
    return a;
}

/* no product here is left to the compiler to fuse */
static __device__ __forceinline__ void adam_step(const adam &a, float scale, float g, float &p, float &m, float &v) {
    const float grad = __fmul_rn(g, scale), decayed = __fmul_rn(p, a.keep);
    m = fmaf(a.a1, __fsub_rn(grad, m), m);
    v = fmaf(__fmul_rn(a.a2, grad), grad, __fmul_rn(a.b2, v));
    p = fmaf(-a.step, __fdiv_rn(m, __fadd_rn(__fdiv_rn(__fsqrt_rn(v), a.root), a.eps)), decayed);
}

#endif
