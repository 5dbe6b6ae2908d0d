/* The ways to multiply bf16 rows with a stored weight, and which of them is expected to be the fastest. */
#ifndef PEFT_KERNELS_CUDA_CHOICE_CUH
#define PEFT_KERNELS_CUDA_CHOICE_CUH

#include "kernels/cuda/gemm.cuh"

/* W(name, what): FEW, STORED and PANEL give a row's result as a function of that row alone; LIBRARY does not. */
#define PRODUCT_WAYS(W)                                                                                                \
    W(FEW, "few")         /* gemv.cu: up to 16 rows, forward, bound by reading W */                                    \
    W(STORED, "stored")   /* gemm_quant.cu: dequantised inside the product */                                          \
    W(PANEL, "panel")     /* dequantised to a panel, then gemm_bf16.cu */                                              \
    W(LIBRARY, "library") /* dequantised to a panel, then cuBLAS */

typedef enum way {
#define W(id, name) WAY_##id,
    PRODUCT_WAYS(W)
#undef W
        WAYS
} way;

/* rows [rows, k] times W: forward with x W^T, else with dy W */
typedef struct way_question {
    const weight *w;
    int64_t rows;
    bool back;
} way_question;

bool way_serves(way v, const way_question *q);
/* Seconds by the model of choice.cu on compute capability 10 * major + minor: a prediction from nominal figures. */
double way_seconds(way v, int capability, const way_question *q);
/* The fastest of those that serve; a way that $PEFT_CUDA_PRODUCTS names comes first where it serves (tests and
 * gpu-check compare the ways so). */
way way_of(const kctx *c, const way_question *q);

/* multiply(p), or cuBLAS where that is expected to be faster and p allows it (bf16, one piece, no bias): for the head
 * and for gradients of large matrices, whose rows are many. */
void multiply_large(kctx *c, const product *p, dtype t);

#endif
