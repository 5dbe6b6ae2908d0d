/* What cuda_parity takes from the shared object with the kernels: symbol cuda_rows_here. */
#ifndef PEFT_TESTS_CUDA_ROWS_H
#define PEFT_TESTS_CUDA_ROWS_H

#include "kernels/backend.h"

typedef struct cuda_rows {
    const backend *be;
    int (*open)(kctx *c); /* gives c the device: memory, stream, scratch */
    void (*settle)(void); /* waits for the device */
} cuda_rows;

#endif
