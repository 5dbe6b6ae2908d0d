/* What the test cases beside the ops are made of: seeded floats, frozen weights, batches, rotary tables. Part of the
 * library so that a case can stand in its op's own file; no program calls it, and the linker drops it from them. */
#ifndef PEFT_AUTOGRAD_FIXTURE_H
#define PEFT_AUTOGRAD_FIXTURE_H

#include "autograd/ops.h"

enum { FIXTURE_BATCHES = 4 };

struct op_fixture {
    arena mem;
    uint64_t draws; /* random numbers taken so far */
    batch batches[FIXTURE_BATCHES];
    int n_batches;
};

void fixture_release(op_fixture *f); /* everything made so far; the next run draws the same values again */

#endif
