/* What a run takes, by what it is for, from a session that was only planned: ./train --plan, and the memory_limit of a
 * run. */
#ifndef PEFT_TRAIN_PLAN_H
#define PEFT_TRAIN_PLAN_H

#include "model/session.h"
#include "optim/adamw.h"

#include <stdio.h>

/* Of a planned step: bytes of `act` that the forward pass of all layers left, and that the head added. */
typedef struct plan_step {
    size_t layers, head;
} plan_step;

/* Bytes. `mapped` lies in files and is resident only as far as it is read; on a device everything is copied there. */
typedef struct plan_bytes {
    double mapped, weights, scales, vectors; /* of the base: in files; codes and numbers; 4-bit scales; norms, tables */
    double cached;                           /* of mapped: NF4 of an earlier start */
    double adapter, gradients, optimiser;
    double layer, layers, head, working; /* kept by one layer, by all; by the head; on top in the backward pass */
    double scratch, kernels;             /* of operations; of kernels, with the logits of a chunk */
    double workspace, context,
        pinned; /* a device's: cuBLAS's, the driver's (an allowance); of the host, not in total */
    double total;
} plan_bytes;

/* scratch_bytes: of the kernels, where the backend is open; a device's is known without it */
plan_bytes plan_measure(const session *planned, const adamw *opt, plan_step step, size_t scratch_bytes);

/* What a run prints before its first step; rows: tokens of its largest batch. */
void plan_print_run(const plan_bytes *b, const kctx *k, int rows);

typedef struct plan_size {
    int64_t sequence_len, micro_batch_size;
} plan_size;
typedef int plan_fn(void *ctx, plan_size size, plan_bytes *out); /* -1 after fail() */

/* The largest of each that stays within limit while the other is as given; 0: not even the smallest does. -1 after
 * fail(). More never takes less. */
int plan_largest(plan_fn *f, void *ctx, plan_size given, plan_size most, int64_t limit, plan_size *largest);

typedef struct plan_text {
    const char *backend, *activations;
    plan_size size, largest;
    int64_t limit; /* CONFIG_UNSET: none, and largest says nothing */
    bool device, assumed;
} plan_text;
void plan_print(const plan_bytes *b, const plan_text *t, FILE *f);
int plan_print_json(const plan_bytes *b, const plan_text *t, FILE *f); /* one object on one line */

#endif
