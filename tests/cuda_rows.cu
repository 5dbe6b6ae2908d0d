/* The kernels that exist so far as a table, for cuda_parity: a row of kernels.def without a kernel stays NULL here. */
#include "kernels/cuda/device.cuh"
#include "tests/cuda_rows.h"

#define K(name, args) extern "C" __attribute__((weak)) void name##_cuda args;
#include "kernels/kernels.def"
#undef K

static void settle(void) { CU(cudaDeviceSynchronize()); }

static backend table(void) {
    backend b = {};
    b.name = "device";
#define K(name, args) b.name = name##_cuda;
#include "kernels/kernels.def"
#undef K
    return b;
}
static const backend here = table();

extern "C" __attribute__((visibility("default"))) const cuda_rows cuda_rows_here = {&here, device_open, settle};
