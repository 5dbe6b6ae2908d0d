/* y = (x - mean) * rstd * g + b per row, rstd = 1 / sqrt(mean of (x - mean)^2 + eps) (Ba et al. 2016). Kept: x and
 * stats [rows, 2]; y is made again when the projection behind it asks for it. g and b are frozen. With n = (x - mean) *
 * rstd and t = dy * g: dx += rstd * (t - mean(t) - n * mean(t n)). */
#include "autograd/ops.h"

typedef struct {
    node head;
    tensor *x;
    float *stats;
    const float *g;
} layernorm_node;
typedef struct {
    const tensor *x;
    const float *g, *b;
    float eps;
} layernorm_maker;

static void layernorm_remake(tape *t, const void *maker, mat out) {
    const layernorm_maker *m = maker;
    t->k->be->layernorm_fwd(t->k, out, NULL, m->x->val, m->g, m->b, m->eps);
}

static void layernorm_backward(tape *t, node *n) {
    layernorm_node *s = (layernorm_node *)n;
    t->k->be->layernorm_bwd(t->k, tape_grad(t, s->x), n->out->grad, s->x->val, s->stats, s->g);
}

tensor *op_layernorm(tape *t, tensor *x, const float *g, const float *b, float eps) {
    layernorm_maker *m = tape_host(t, sizeof *m);
    *m = (layernorm_maker){x, g, b, eps};
    float *stats = t->recording && x->needs_grad ? tape_floats(t, 2 * x->val.rows) : NULL;
    tensor *y = tape_transient(t, x->val.rows, x->val.cols, x->needs_grad, layernorm_remake, m);
    layernorm_node *s = tape_record(t, sizeof *s, layernorm_backward, y);
    if (s) s->x = x, s->g = g, s->stats = stats;
    t->k->be->layernorm_fwd(t->k, y->val, stats, x->val, g, b, eps);
    return y;
}

static tensor *layernorm_run(op_fixture *f, tape *t, tensor **in, param *p) {
    (void)p;
    const int64_t n = in[0]->val.cols;
    return op_layernorm(t, in[0], fixture_floats(f, n, 1, 0.3f), fixture_floats(f, n, 0, 0.5f), 1e-5f);
}
static tensor *unbiased_run(op_fixture *f, tape *t, tensor **in, param *p) {
    (void)p;
    return op_layernorm(t, in[0], fixture_floats(f, in[0]->val.cols, 1, 0.3f), NULL, 1e-5f);
}

/* as op_rmsnorm */
static const op_case cases[] = {
    {.name = "4x40", .in = {{4, 40}}, .run = layernorm_run, .fd_step = 0x1p-7, .fd_error = 1e-3},
    {.name = "3x17", .in = {{3, 17}}, .run = unbiased_run, .fd_step = 0x1p-7, .fd_error = 1e-3},
};
const op_cases op_layernorm_cases = {"layernorm", cases, 2};
