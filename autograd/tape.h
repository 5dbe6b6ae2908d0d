/* Reverse-mode autograd. An op runs its forward at once and, if recording, appends a node; tape_backward walks the
 * nodes in reverse. Nothing is kept for what needs no gradient: an op none of whose inputs needs one records no node.
 *
 * Memory. Values, nodes and gradients live in the `act` arena, which is a stack: tape_segment marks it. Scratch of one
 * op lives in `tmp` and is released when the op returns. A tensor that is cheap to make again (a norm's result, an
 * activation product) has a `remake`: it lives in tmp during the forward pass of its segment only, and tape_value makes
 * it again in the backward pass, so that nothing is saved which the backward pass can rebuild from what is there
 * anyway. Where one node alone reads it there, that node's gradient of it takes the same memory.
 *
 * A segment (one layer) is the unit of gradient memory and of checkpointing: gradients of tensors made inside are
 * released when its backward pass is done, and with t->checkpoint only its input and output survive the forward pass; f
 * is run again, recorded, in the backward pass (Chen et al. 2016). With t->window the values inside a segment are made
 * in the window, kept as bf16, and brought back to the same addresses for the backward pass: half the memory, and
 * gradients that see rounded values. */
#ifndef PEFT_AUTOGRAD_TAPE_H
#define PEFT_AUTOGRAD_TAPE_H

#include "core/batch.h"
#include "kernels/backend.h"

typedef struct tape tape;
typedef struct tensor tensor;
typedef struct node node;
typedef void tensor_remake(tape *t, const void *maker, mat out);

/* grad.data is NULL until something flows into it. remake != NULL: val is only valid until the segment's forward pass
 * ends, then through tape_value. */
struct tensor {
    mat val, grad, room; /* room: memory set aside for grad, data NULL: none */
    bool needs_grad, transient;
    int readers;           /* nodes that read val through tape_value, each counted when it is recorded */
    tensor_remake *remake; /* writes val again */
    const void *maker;     /* what remake reads */
};

/* A trainable matrix: a view into the adapter's flat vectors. Accepted where a weight is (param_weight). */
typedef struct param {
    float *val, *grad;
    int64_t rows, cols;
} param;
static inline weight param_weight(const param *p) { return weight_f32(p->val, p->rows, p->cols); }
static inline mat param_grad(const param *p) { return mat_f32(p->grad, p->rows, p->cols); }

typedef tensor *segment_fn(tape *t, tensor *x, void *ctx);
typedef void backward_fn(tape *t, node *n); /* reads n->out->grad, adds into gradients of inputs and parameters */

/* Every node's struct begins with this; an op defines struct NAME_node { node head; what backward needs }. */
struct node {
    node *prev;
    backward_fn *backward;
    tensor *out;
};

struct tape {
    kctx *k;
    arena *act, *tmp; /* device memory: values and gradients; scratch */
    arena *host;      /* tensors and nodes themselves */
    arena *window;    /* activation_dtype: bf16: where a segment's values are made before act keeps them; else NULL */
    dtype type;       /* of values: F32, or BF16 on a device; gradients and sums are F32 everywhere */
    bool recording;   /* false: inference, evaluation, the first run of a checkpointed segment */
    bool checkpoint;  /* run segments again in the backward pass */
    bool training;    /* dropout is on */
    arena *main_act;  /* act itself while a segment runs in the window */
    bool in_segment, replaying; /* replaying: a checkpointed segment is run again, just before its backward pass */
    mat border;                 /* where the running segment's result belongs; data NULL: anywhere */
    node *last;                 /* most recent node */
    struct proj_watch *watch;   /* NULL, or who sees what projections are given (peft/proj.h) */
};

/* Begins a step at the arenas' current marks; values are F32 unless the caller sets t.type. */
tape tape_begin(kctx *k, arena *act, arena *tmp, arena *host, bool training, bool checkpoint);

tensor *tape_tensor(tape *t, int64_t rows, int64_t cols, bool needs_grad); /* from act; of t->type; values undefined */
mat tape_sum(tape *t, int64_t rows, int64_t cols);    /* from act, F32: what kernels add into; values undefined */
tensor *tape_wrap(tape *t, mat val, bool needs_grad); /* over memory that outlives its use */
/* A segment's result, once a segment: in the memory that the tape has for it, or as tape_tensor. When a segment is run
 * again nobody reads it, and it has no values. */
tensor *tape_result(tape *t, int64_t rows, int64_t cols, bool needs_grad);
/* Inside a segment that is recorded once: memory from tmp, and tape_value makes it again from `maker` (any host memory
 * from tape_host); elsewhere the same as tape_tensor. No backward pass but through tape_value reads it. */
tensor *tape_transient(tape *t, int64_t rows, int64_t cols, bool needs_grad, tensor_remake *remake, const void *maker);
/* n floats that stay fp32 whatever activation_dtype says: statistics that the backward pass divides or exponentiates.
 */
float *tape_floats(tape *t, int64_t n);
void *tape_host(tape *t, size_t bytes); /* zeroed; lives as long as the nodes around it */
/* A node of `bytes` (header included), linked in when the tape records and out needs a gradient; else NULL. */
void *tape_record(tape *t, size_t bytes, backward_fn *backward, tensor *out);

/* In a backward function, before the gradient of x is asked for: val, remade where needed. What a single node reads is
 * made where its gradient will be: read it before writing that. */
mat tape_value(tape *t, tensor *x);
mat tape_grad(tape *t, tensor *x); /* allocated and zeroed on first use; data NULL when x needs no gradient */
mat tape_grad_fresh(tape *t, tensor *x, bool *fresh); /* *fresh: first use, not zeroed: write, do not add */
/* Scratch of the running op, F32: released when the op or its backward function returns to mark. */
mat tape_scratch(tape *t, int64_t rows, int64_t cols);
mat tape_scratch_as(tape *t, dtype type, int64_t rows, int64_t cols);

/* Host memory of a batch (tokens, positions, rows ...) as kernels can read it: itself, or on a device a copy in act,
 * which lives as long as the step. Outside segments only; the caller may write over `from` when the tape is done. */
const void *tape_put(tape *t, const void *from, size_t bytes);
/* The batch with tape_put's copies in place of the arrays that kernels read: token, pos, row_sample, start, past. */
const batch *tape_batch(tape *t, const batch *b);

/* All that act gets from here on is released as soon as the nodes recorded from here on have run backward, and with
 * them x's gradient is whole. Nothing else reads it then. */
void tape_scope(tape *t, tensor *x);

/* y = f(x). trainable: f has parameters of its own that need gradients. x and y have the same shape, and where nothing
 * needs a gradient the same memory: x has no other reader. */
tensor *tape_segment(tape *t, segment_fn *f, void *ctx, tensor *x, bool trainable);
void tape_backward(tape *t); /* walks every node; the last op has set its own gradient (op_head_loss) */

#endif
