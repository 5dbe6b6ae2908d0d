/* Products of dense matrices by cuBLAS. It knows columns where mats are rows, so it is asked for y^T = B A^T: the
 * transpose of a row-major matrix is the same memory read by columns. */
#include "kernels/cuda/device.cuh"

#include <cublas_v2.h>

#define BLAS(call)                                                                                                     \
    do {                                                                                                               \
        cublasStatus_t blas_code = (call);                                                                             \
        CHECK(blas_code == CUBLAS_STATUS_SUCCESS, "%s: %s", #call, cublasGetStatusString(blas_code));                  \
    } while (0)

int blas_open(device *d) {
    cublasHandle_t h;
    const cublasStatus_t s = cublasCreate(&h);
    if (s != CUBLAS_STATUS_SUCCESS) return fail(EXIT_DEVICE, "cuBLAS cannot be started: %s", cublasGetStatusString(s));
    d->blas = h;
    d->workspace = d->mem.map(&d->mem, "cuBLAS's workspace", DEVICE_WORKSPACE);
    if (!d->workspace) return -1;
    BLAS(cublasSetStream(h, d->stream));
    BLAS(cublasSetWorkspace(h, d->workspace,
                            DEVICE_WORKSPACE)); /* its own would be allocated, and differ from run to run */
    return 0;
}

void blas_close(device *d) {
    if (d->blas) cublasDestroy(static_cast<cublasHandle_t>(d->blas));
    if (d->workspace) CU(cudaFree(d->workspace));
}

static cudaDataType_t type_of(mat m) { return m.type == F32 ? CUDA_R_32F : CUDA_R_16BF; }

void blas_product(const kctx *c, mat y, mat a, bool a_across, mat b, bool b_across, bool add) {
    const int64_t m = y.rows, n = y.cols, k = a_across ? a.rows : a.cols;
    CHECK(m == (a_across ? a.cols : a.rows) && n == (b_across ? b.cols : b.rows) && k == (b_across ? b.rows : b.cols),
          "y %ldx%ld a %ldx%ld b %ldx%ld", (long)m, (long)n, (long)a.rows, (long)a.cols, (long)b.rows, (long)b.cols);
    CHECK(a.type == b.type && (y.type == F32 || a.type == BF16), "a product of types %d and %d into %d", (int)a.type,
          (int)b.type, (int)y.type);
    if (!m || !n) return;
    const float one = 1, beta = add ? 1 : 0;
    BLAS(cublasGemmEx(static_cast<cublasHandle_t>(device_of(c)->blas), b_across ? CUBLAS_OP_N : CUBLAS_OP_T,
                      a_across ? CUBLAS_OP_T : CUBLAS_OP_N, (int)n, (int)m, (int)k, &one, b.data, type_of(b), (int)b.ld,
                      a.data, type_of(a), (int)a.ld, &beta, y.data, type_of(y), (int)y.ld, CUBLAS_COMPUTE_32F,
                      CUBLAS_GEMM_DEFAULT));
}
