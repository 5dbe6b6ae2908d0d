/* cuBLAS as far as kernels/cuda/blas.cu calls it: one product of column-major matrices, in plain loops with fp32 sums
 * in order over k. Signatures are the toolkit's own header's. */
#include "kernels/emu/emu_parts.h"

#include <cublas_v2.h>
#include <cuda_bf16.h>

struct cublasContext {
    cudaStream_t stream;
};

static float read(const void *p, cudaDataType_t type, int64_t i) {
    if (type == CUDA_R_32F) return static_cast<const float *>(p)[i];
    return __bfloat162float(static_cast<const __nv_bfloat16 *>(p)[i]);
}

static void write(void *p, cudaDataType_t type, int64_t i, float v) {
    if (type == CUDA_R_32F)
        static_cast<float *>(p)[i] = v;
    else
        static_cast<__nv_bfloat16 *>(p)[i] = __float2bfloat16_rn(v);
}

extern "C" {

cublasStatus_t cublasCreate_v2(cublasHandle_t *h) {
    *h = new cublasContext();
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasDestroy_v2(cublasHandle_t h) {
    delete h;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetStream_v2(cublasHandle_t h, cudaStream_t s) {
    h->stream = s;
    return CUBLAS_STATUS_SUCCESS;
}
cublasStatus_t cublasSetWorkspace_v2(cublasHandle_t, void *p, size_t n) {
    const char *e = emu_range_error(p, n, true);
    return *e ? CUBLAS_STATUS_INVALID_VALUE : CUBLAS_STATUS_SUCCESS;
}
const char *cublasGetStatusString(cublasStatus_t s) { return s == CUBLAS_STATUS_SUCCESS ? "success" : "invalid value"; }

cublasStatus_t cublasGemmEx(cublasHandle_t h, cublasOperation_t ta, cublasOperation_t tb, int m, int n, int k,
                            const void *alpha, const void *a, cudaDataType at, int lda, const void *b, cudaDataType bt,
                            int ldb, const void *beta, void *c, cudaDataType ct, int ldc, cublasComputeType_t compute,
                            cublasGemmAlgo_t) {
    const float x = *static_cast<const float *>(alpha), y = *static_cast<const float *>(beta);
    if (compute != CUBLAS_COMPUTE_32F || lda < (ta == CUBLAS_OP_N ? m : k) || ldb < (tb == CUBLAS_OP_N ? k : n) ||
        ldc < m)
        return CUBLAS_STATUS_INVALID_VALUE;
    emu_submit(h->stream, [=] {
        for (int64_t j = 0; j < n; j++)
            for (int64_t i = 0; i < m; i++) {
                float sum = 0;
                for (int64_t l = 0; l < k; l++)
                    sum += read(a, at, ta == CUBLAS_OP_N ? i + l * lda : l + i * lda) *
                           read(b, bt, tb == CUBLAS_OP_N ? l + j * ldb : j + l * ldb);
                write(c, ct, i + j * ldc, x * sum + (y != 0 ? y * read(c, ct, i + j * ldc) : 0));
            }
    });
    return CUBLAS_STATUS_SUCCESS;
}
} /* extern "C" */
