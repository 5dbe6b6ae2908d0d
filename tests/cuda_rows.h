/* What cuda_parity takes from the shared object with the kernels: symbol cuda_rows_here. */
#ifndef PEFT_TESTS_CUDA_ROWS_H
#define PEFT_TESTS_CUDA_ROWS_H

#include "kernels/backend.h"

typedef struct cuda_rows {
    const backend *be;
    void *(*map_shared)(size_t bytes); /* memory that host and device see */
    void *(*map)(size_t bytes);        /* memory of the device */
    void (*settle)(void);              /* waits for the device */
} cuda_rows;

#endif
