/* Products of up to GEMV_ROWS rows of bf16 with stored weights of one format, a group of projections in one launch. */
#ifndef PEFT_KERNELS_CUDA_GEMV_CUH
#define PEFT_KERNELS_CUDA_GEMV_CUH

#include "kernels/cuda/dequant.cuh"

enum { GEMV_ROWS = 16 };

/* y = start + x W^T + h up^T; start is y where add, else bias or 0 */
typedef struct gemv_member {
    wview w;
    mat y;
    const float *bias;
    mat h, up; /* data NULL: none */
    bool add;
    int first; /* block of the launch; gemv_run fills it */
} gemv_member;

typedef struct gemv_group {
    mat x; /* BF16, rows at multiples of 16 bytes */
    int n;
    gemv_member member[PROJ_MAX];
} gemv_group;

bool gemv_serves(const weight *w); /* its format and shape */
void gemv_run(kctx *c, const gemv_group *group,
              const weight *any); /* all members have the format of any, which is served */

#endif
