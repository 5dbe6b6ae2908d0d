/* Reverse-mode autograd. An op runs its forward at once and, if recording, appends a node; tape_backward walks the nodes in
 * reverse. Nothing is kept for what needs no gradient: an op whose inputs all have needs_grad == false records no node.
 *
 * Memory: values and saved state live in the `act` arena, scratch of one op in `tmp` (released when the op returns). A
 * segment is the unit of recomputation and of gradient memory: tape_segment(t, f, ctx, x) runs y = f(x); with
 * t->checkpoint only x and y survive the forward pass and f is run again, recorded, in the backward pass. Gradients of
 * tensors made inside a segment are released when its backward is done; only dx and dy cross its border. */
#ifndef PEFT_AUTOGRAD_TAPE_H
#define PEFT_AUTOGRAD_TAPE_H

#include "core/batch.h"
#include "kernels/backend.h"

typedef struct tensor { mat val, grad; bool needs_grad; } tensor; /* grad.data NULL until something flows into it */

/* A trainable matrix: a view into the adapter's flat vectors. Accepted where a weight is (param_weight). */
typedef struct param { float *val, *grad; int64_t rows, cols; } param;
static inline weight param_weight(const param *p) { return weight_f32(p->val, p->rows, p->cols); }

typedef struct tape tape;
typedef tensor *segment_fn(tape *t, tensor *x, void *ctx);
typedef void backward_fn(tape *t, void *node); /* reads out->grad, adds into the inputs' grads and params' grads */

/* Every node's struct begins with this header; an op defines struct NAME_node { node head; saved fields }. */
typedef struct node { struct node *prev; backward_fn *backward; tensor *out; } node;

struct tape {
    kctx *k;
    arena *act, *tmp;
    bool recording;  /* false: inference, or the first run of a checkpointed segment */
    bool checkpoint; /* recompute segments in the backward pass */
    bool training;   /* dropout is on */
    uint64_t seed;
    node *last; /* most recent node */
};

void tape_begin(tape *t, kctx *k, arena *act, arena *tmp);
/* A tensor with memory from act; values undefined. */
tensor *tape_tensor(tape *t, int64_t rows, int64_t cols, bool needs_grad);
tensor *tape_wrap(tape *t, mat val, bool needs_grad); /* a tensor over memory that outlives the step */
/* Appends a node of `bytes` bytes (header included) when recording and out->needs_grad, else NULL. */
void *tape_record(tape *t, size_t bytes, backward_fn *backward, tensor *out);
/* The gradient of x: allocated and zeroed on first use. */
mat tape_grad(tape *t, tensor *x);
tensor *tape_segment(tape *t, segment_fn *f, void *ctx, tensor *x);
void tape_backward(tape *t); /* every recorded node; gradients of the last outputs were set by their op (op_head_loss) */

#endif
