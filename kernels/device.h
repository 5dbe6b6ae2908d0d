/* What a device takes besides the arenas, known to the plan on machines that have none. */
#ifndef PEFT_KERNELS_DEVICE_H
#define PEFT_KERNELS_DEVICE_H

#include <stddef.h>

#define DEVICE_SCRATCH ((size_t)96 << 20) /* kctx.scratch: panels, partial sums, matrices decoded piece by piece */
#define DEVICE_WORKSPACE                                                                                               \
    ((size_t)32 << 20) /* cuBLAS's own, as NVIDIA advises for its fastest kernels on compute capability 9.0 */
/* The driver's context, loaded kernels and cuBLAS's handle: an allowance, since only a device tells (300 to 500 MiB
 * seen with CUDA 12 and 13 by others; docs/CUDA.md). */
#define DEVICE_CONTEXT ((size_t)480 << 20)
#define DEVICE_STAGE ((size_t)8 << 20) /* pinned host memory through which puts go */

#endif
