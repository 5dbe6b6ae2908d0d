/* What becomes of a failed call of CUDA, and where kernels queue. */
#include "kernels/cuda/cuda.h"

#include <stdlib.h>

void cuda_failed(const char *file, int line, const char *call, int code) {
    fail(EXIT_DEVICE, "%s:%d: %s: %s (%s)", file, line, call, cudaGetErrorString((cudaError_t)code),
         cudaGetErrorName((cudaError_t)code));
    exit(fail_report("cuda"));
}

cudaStream_t kstream(const kctx *) { return NULL; }
