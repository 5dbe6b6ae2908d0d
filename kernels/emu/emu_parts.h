/* What the files of the emulation tell each other. */
#ifndef PEFT_KERNELS_EMU_EMU_PARTS_H
#define PEFT_KERNELS_EMU_EMU_PARTS_H

#include "kernels/cuda/cuda.h"

/* executes all blocks of a launch; returns when they are done (emu_sched.cpp) */
void emu_run(const emu_launch *l, const std::function<void()> &body);

/* puts work into a stream, which runs it at once or when something waits for it (emu_runtime.cpp) */
void emu_submit(cudaStream_t s, std::function<void()> work);
cudaError_t emu_error(cudaError_t e); /* remembers it for cudaGetLastError and returns it */

/* The allocation that holds p, or NULL; an address just behind its end belongs to it. */
typedef struct emu_allocation {
    char *base;
    size_t size;
    bool device; /* else host memory that the device can reach */
} emu_allocation;
const emu_allocation *emu_find(const void *p);
/* "" where [p, p + n) lies in one allocation of the wanted kind, else what is wrong */
const char *emu_range_error(const void *p, size_t n, bool device);

const char *emu_option(const char *name, const char *fallback); /* of the environment */

#endif
