/* The differentiable operations: one file op_NAME.c each, with forward, backward and its own test cases (ops.def lists
 * them; tests/test_ops.c runs ops x cases x backends and finite differences, with no code per op). x, y are [rows,
 * cols] tensors; rows are the tokens of the batch. Results live as tape.h says. */
#ifndef PEFT_AUTOGRAD_OPS_H
#define PEFT_AUTOGRAD_OPS_H

#include "autograd/tape.h"

/* y = w[token]: frozen, so y needs no gradient. */
tensor *op_embed(tape *t, const weight *w, const int32_t *token, int rows);
/* y = x + z, written over z's memory. z must be the newest result, made from anything but x itself, and have no other
 * reader. z without memory: y is recorded but has no values. */
tensor *op_add(tape *t, tensor *x, tensor *z);
/* y[i] = x[row[i]]; row [n] ascending, no repeats, and lives as long as the tape. */
tensor *op_gather(tape *t, tensor *x, const int32_t *row, int n);
/* y = x / rms(x) * g; transient. */
tensor *op_rmsnorm(tape *t, tensor *x, const float *g, float eps);
/* y = (x - mean) * rstd * g + b, b may be NULL; transient. */
tensor *op_layernorm(tape *t, tensor *x, const float *g, const float *b, float eps);
/* op_rmsnorm of every run of dim columns (a head) by itself, g [dim]. Not transient: y may be rotated in place. */
tensor *op_head_norm(tape *t, tensor *x, const float *g, int dim, float eps);
/* Rotates in place: y shares x's memory, x must have no other reader. */
tensor *op_rope(tape *t, tensor *x, const int32_t *pos, const rope *r);
/* o = softmax(scale q k^T) v. In training k and v are rows of the batch; with a cache they are its memory (see attn).
 */
tensor *op_attention(tape *t, tensor *q, tensor *k, tensor *v, const attn *a);
/* y = act(gate) * up; transient. gate and up must have no other reader: the backward pass writes their gradients over
 * them. */
tensor *op_glu(tape *t, tensor *gate, tensor *up, activation act);
/* Adds -sum weight[i] log p(target[i] | h[i]) and the counts to sums, and writes logprob [rows of h]. All targets >= 0.
 * When recording it sets h's gradient: this is where the backward pass begins. */
void op_head_loss(tape *t, const weight *head, tensor *h, const int32_t *target, const float *weight, float *logprob,
                  step_sums *sums);

/* What the test driver runs. run() builds the op from inputs (leaf tensors that need gradients) and parameters;
 * everything else it needs (batches, frozen weights) it takes from op_fixture's seeded makers. */
typedef struct {
    int64_t rows, cols;
} op_shape;
typedef struct op_fixture op_fixture;
typedef struct op_case {
    const char *name;
    op_shape in[4];    /* rows 0 ends the list */
    op_shape param[6]; /* likewise */
    tensor *(*run)(op_fixture *f, tape *t, tensor **in, param *p);
    double fd_step; /* step of the central difference */
    double
        fd_error; /* allowed |analytic - numeric| relative to the norm of the gradient, with its reason in the file */
    float scale;  /* inputs are normal(0, scale); 0 = 1 */
} op_case;
typedef struct op_cases {
    const char *name;
    const op_case *cases;
    int n;
} op_cases;

const weight *fixture_weight(op_fixture *f, int fmt, int64_t rows, int64_t cols); /* frozen, seeded */
const float *fixture_floats(op_fixture *f, int64_t n, float mean, float scale);
const batch *fixture_batch(op_fixture *f, const int *lengths, int seqs); /* tokens, positions, targets < 32 */
const rope *fixture_rope(op_fixture *f, int dim, int positions);

#endif
