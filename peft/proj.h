/* A projection: a frozen linear that may carry a low-rank adapter (LoRA, Hu et al. 2021). One type for every weight
 * format, so there is no product of adapter kinds and formats.
 *
 *     y = x W^T + bias + scale * (dropout(x) A^T) B^T        W [out, in], A [r, in], B [out, r]
 *
 * as PEFT's lora.Linear: dropout on the adapter's input only, one mask per module; scale = alpha / r (rsLoRA:
 * alpha / sqrt(r), Kalajdzievski 2023). */
#ifndef PEFT_PEFT_PROJ_H
#define PEFT_PEFT_PROJ_H

#include "autograd/tape.h"

typedef struct lora {
    param a, b; /* [r, in], [out, r]: views into the adapter's flat vectors */
    float scale;
    float dropout; /* probability; 0 = none */
    uint64_t seed; /* of the dropout masks */
    uint32_t site; /* which module: a hash of its name */
} lora;

typedef struct proj {
    char *name; /* Hugging Face module path: "model.layers.0.self_attn.q_proj"; owned by the model */
    weight w;
    const float *bias; /* [out] or NULL */
    const lora *lora;  /* NULL = bare; owned by the adapter */
    int group;         /* number of its group in the model: which part of a served adapter is for it */
} proj;

/* y[i] = proj p[i] of x, i < n <= PROJ_MAX: x is read once for all the A's when they lie side by side in the adapter
 * (adapter_attach lays them so) and drop nothing. Results live in act. */
void proj_group(tape *t, const proj *p, int n, tensor *x, const batch *b, tensor **y);
/* y = x + p(h), the end of a residual block. When a segment is replayed nobody will read y: only what the backward pass
 * needs is made, and y has no values. */
tensor *proj_residual(tape *t, const proj *p, tensor *x, tensor *h, const batch *b);

/* Whoever wants to see the input x [rows, in] of every group p[0, n) of a forward pass, as an importance matrix does,
 * puts itself into tape.watch. x lies in the tape's arenas: the host reads it through arena_get. */
typedef struct proj_watch proj_watch;
struct proj_watch {
    void (*see)(proj_watch *w, const tape *t, const proj *p, int n, mat x);
};

#endif
