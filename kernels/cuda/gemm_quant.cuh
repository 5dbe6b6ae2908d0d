/* Products with a weight that is dequantised inside the kernel. */
#ifndef PEFT_KERNELS_CUDA_GEMM_QUANT_CUH
#define PEFT_KERNELS_CUDA_GEMM_QUANT_CUH

#include "kernels/cuda/gemm.cuh"

/* whether the kernel has w's format and shape */
bool quant_serves(const weight *w);
/* How many pieces k is cut into where the tiles would be few: by the shape of W and the class of the rows, up to
 * QUANT_FEW, up to QUANT_SOME, or more. */
enum { QUANT_FEW = 64, QUANT_SOME = 256 };
int quant_pieces(const weight *w, int64_t rows, bool back);
/* multiply(p) with b[0] = W, all of it, across or not as p says; b[1] (where k[1] is not 0) is F32, and lies as b[0]
 * does. The bits are product_bf16's on the dequantised weight. */
void product_quant(kctx *c, const product *p, const weight *w);

#endif
