/* y = act(gate) * up (Shazeer 2020). Kept: gate and up, which the projections made anyway; y is made again when the
 * down projection asks for it. dgate = dy up act'(gate), dup = dy act(gate), written over gate and up. */
#include "autograd/ops.h"

typedef struct {
    node head;
    tensor *gate, *up;
    activation act;
} glu_node;
typedef struct {
    const tensor *gate, *up;
    activation act;
} glu_maker;

static void glu_remake(tape *t, const void *maker, mat out) {
    const glu_maker *m = maker;
    t->k->be->glu_fwd(t->k, out, m->gate->val, m->up->val, m->act);
}

static void glu_backward(tape *t, node *n) {
    glu_node *s = (glu_node *)n;
    mat gate = s->gate->val, up = s->up->val; /* nobody reads them again: in fp32 their memory takes the gradients */
    const bool over = gate.type == F32;
    s->gate->grad = !s->gate->needs_grad ? mat_none() : over ? gate : tape_sum(t, gate.rows, gate.cols);
    s->up->grad = !s->up->needs_grad ? mat_none() : over ? up : tape_sum(t, up.rows, up.cols);
    t->k->be->glu_bwd(t->k, s->gate->grad, s->up->grad, n->out->grad, gate, up, s->act);
}

tensor *op_glu(tape *t, tensor *gate, tensor *up, activation act) {
    glu_maker *m = tape_host(t, sizeof *m);
    *m = (glu_maker){gate, up, act};
    bool needs_grad = gate->needs_grad || up->needs_grad;
    tensor *y = tape_transient(t, gate->val.rows, gate->val.cols, needs_grad, glu_remake, m);
    glu_node *s = tape_record(t, sizeof *s, glu_backward, y);
    if (s) s->gate = gate, s->up = up, s->act = act;
    t->k->be->glu_fwd(t->k, y->val, gate->val, up->val, act);
    return y;
}

static tensor *silu_run(op_fixture *f, tape *t, tensor **in, param *p) {
    (void)f, (void)p;
    return op_glu(t, in[0], in[1], ACT_SILU);
}

static tensor *gelu_run(op_fixture *f, tape *t, tensor **in, param *p) {
    (void)f, (void)p;
    return op_glu(t, in[0], in[1], ACT_GELU_TANH);
}

/* third derivatives of order 1: error of the quotient at a step of 2^-7 is 1e-4 */
static const op_case cases[] = {
    {.name = "silu", .in = {{5, 19}, {5, 19}}, .run = silu_run, .fd_step = 0x1p-7, .fd_error = 1e-3},
    {.name = "gelu_tanh", .in = {{3, 33}, {3, 33}}, .run = gelu_run, .fd_step = 0x1p-7, .fd_error = 1e-3},
};
const op_cases op_glu_cases = {"glu", cases, 2};
