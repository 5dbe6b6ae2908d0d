/* How the row-wise kernels share work: one parallel region per kernel, none where waking threads costs more than it
 * saves. */
#ifndef PEFT_KERNELS_CPU_TEAM_H
#define PEFT_KERNELS_CPU_TEAM_H

#include "kernels/cpu/simd.h"

enum { TEAM_MIN = 16384 }; /* elements below which one thread does it all */

static inline int team(const kctx *c, int64_t elements) { return elements < TEAM_MIN ? 1 : c->threads; }

/* the next 16 of `left` elements, or the tail */
static inline v16 part_load(const float *p, int64_t left) {
    return left >= 16 ? v16_load(p) : v16_load_n(p, (int)left);
}
static inline void part_store(float *p, v16 a, int64_t left) {
    if (left >= 16)
        v16_store(p, a);
    else
        v16_store_n(p, a, (int)left);
}

#endif
