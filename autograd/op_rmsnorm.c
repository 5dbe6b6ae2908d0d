/* y = x * rstd * g, rstd = 1 / sqrt(mean(x^2) + eps) per row (Zhang & Sennrich 2019). Kept: x and rstd [rows]; y is
 * made again when the projection behind it asks for it. g is frozen. dx += rstd * (dy g) - x * rstd^3 / n * sum(dy g
 * x). */
#include "autograd/ops.h"

typedef struct {
    node head;
    tensor *x;
    float *rstd;
    const float *g;
    float eps;
} rmsnorm_node;
typedef struct {
    const tensor *x;
    const float *g;
    float eps;
} rmsnorm_maker;

static void rmsnorm_remake(tape *t, const void *maker, mat out) {
    const rmsnorm_maker *m = maker;
    t->k->be->rmsnorm_fwd(t->k, out, NULL, m->x->val, m->g, m->eps);
}

static void rmsnorm_backward(tape *t, node *n) {
    rmsnorm_node *s = (rmsnorm_node *)n;
    t->k->be->rmsnorm_bwd(t->k, tape_grad(t, s->x), n->out->grad, s->x->val, s->rstd, s->g);
}

tensor *op_rmsnorm(tape *t, tensor *x, const float *g, float eps) {
    rmsnorm_maker *m = tape_host(t, sizeof *m);
    *m = (rmsnorm_maker){x, g, eps};
    float *rstd = t->recording && x->needs_grad ? tape_floats(t, x->val.rows) : NULL;
    tensor *y = tape_transient(t, x->val.rows, x->val.cols, x->needs_grad, rmsnorm_remake, m);
    rmsnorm_node *s = tape_record(t, sizeof *s, rmsnorm_backward, y);
    if (s) s->x = x, s->g = g, s->eps = eps, s->rstd = rstd;
    t->k->be->rmsnorm_fwd(t->k, y->val, rstd, x->val, g, eps);
    return y;
}

static tensor *rmsnorm_run(op_fixture *f, tape *t, tensor **in, param *p) {
    (void)p;
    return op_rmsnorm(t, in[0], fixture_floats(f, in[0]->val.cols, 1, 0.3f), 1e-5f);
}

/* second derivative of order 1 in x of size 1: the quotient's error at a step of 2^-7 is 1e-4 */
static const op_case cases[] = {
    {.name = "4x40", .in = {{4, 40}}, .run = rmsnorm_run, .fd_step = 0x1p-7, .fd_error = 1e-3},
    {.name = "3x17", .in = {{3, 17}}, .run = rmsnorm_run, .fd_step = 0x1p-7, .fd_error = 1e-3},
};
const op_cases op_rmsnorm_cases = {"rmsnorm", cases, 2};
