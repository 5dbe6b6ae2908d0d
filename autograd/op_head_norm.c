/* The RMS norm of op_rmsnorm for every head by itself, as Qwen3 has it on q and k before the rotation (Dehghani et al.
 * 2023 on why). Kept: x, rstd [rows * heads] and y, whose memory the rotation turns and attention reads. */
#include "autograd/ops.h"
#include "core/error.h"

typedef struct {
    node head;
    tensor *x;
    float *rstd;
    const float *g;
    int dim;
} head_norm_node;

/* [rows, heads * dim] as [rows * heads, dim] */
static mat by_head(mat m, int dim) {
    CHECK(m.ld == m.cols && m.cols % dim == 0, "%ld columns as heads of %d", (long)m.cols, dim);
    return mat_of(m.data, m.type, m.rows * (m.cols / dim), dim);
}

static void head_norm_backward(tape *t, node *n) {
    head_norm_node *s = (head_norm_node *)n;
    mat dx = by_head(tape_grad(t, s->x), s->dim), dy = by_head(n->out->grad, s->dim);
    t->k->be->rmsnorm_bwd(t->k, dx, dy, by_head(s->x->val, s->dim), s->rstd, s->g);
}

tensor *op_head_norm(tape *t, tensor *x, const float *g, int dim, float eps) {
    mat in = by_head(x->val, dim);
    float *rstd = t->recording && x->needs_grad ? tape_floats(t, in.rows) : NULL;
    tensor *y = tape_tensor(t, x->val.rows, x->val.cols, x->needs_grad);
    head_norm_node *s = tape_record(t, sizeof *s, head_norm_backward, y);
    if (s) s->x = x, s->g = g, s->dim = dim, s->rstd = rstd;
    t->k->be->rmsnorm_fwd(t->k, by_head(y->val, dim), rstd, in, g, eps);
    return y;
}

static tensor *heads_run(op_fixture *f, tape *t, tensor **in, param *p) {
    (void)p;
    return op_head_norm(t, in[0], fixture_floats(f, 24, 1, 0.3f), 24, 1e-5f);
}

/* the rotation turns y where it lies: nothing of the backward pass may read it */
static tensor *turned_run(op_fixture *f, tape *t, tensor **in, param *p) {
    static const int lengths[] = {2, 3};
    (void)p;
    tensor *y = op_head_norm(t, in[0], fixture_floats(f, 16, 1, 0.3f), 16, 1e-5f);
    return op_rope(t, y, tape_batch(t, fixture_batch(f, lengths, 2))->pos, fixture_rope(f, 16, 16));
}

/* as op_rmsnorm */
static const op_case cases[] = {
    {.name = "3 heads of 24", .in = {{4, 72}}, .run = heads_run, .fd_step = 0x1p-7, .fd_error = 1e-3},
    {.name = "turned", .in = {{5, 32}}, .run = turned_run, .fd_step = 0x1p-7, .fd_error = 1e-3},
};
const op_cases op_head_norm_cases = {"head_norm", cases, 2};
