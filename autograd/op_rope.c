/* Rotary embedding (Su et al. 2021): each pair (i, i + dim/2) of each head turned by pos * theta_i; in place, since the
 * rotation is undone by the opposite angle: dx is dy turned back, in dy's memory. */
#include "autograd/ops.h"

typedef struct {
    node head;
    tensor *x;
    const int32_t *pos;
    const rope *r;
} rope_node;

static void rope_backward(tape *t, node *n) {
    rope_node *s = (rope_node *)n;
    s->x->grad = n->out->grad;
    t->k->be->rope_fwd(t->k, s->x->grad, s->x->grad, s->pos, s->r, -1);
}

tensor *op_rope(tape *t, tensor *x, const int32_t *pos, const rope *r) {
    tensor *y = tape_wrap(t, x->val, x->needs_grad);
    rope_node *s = tape_record(t, sizeof *s, rope_backward, y);
    if (s) s->x = x, s->pos = pos, s->r = r;
    t->k->be->rope_fwd(t->k, y->val, x->val, pos, r, 1);
    return y;
}

static tensor *rope_run(op_fixture *f, tape *t, tensor **in, param *p) {
    static const int lengths[] = {3, 5};
    (void)p;
    return op_rope(t, in[0], tape_batch(t, fixture_batch(f, lengths, 2))->pos, fixture_rope(f, 8, 16));
}

/* linear, as op_add */
static const op_case cases[] = {
    {.name = "3 heads of 8", .in = {{8, 24}}, .run = rope_run, .fd_step = 0x1p-6, .fd_error = 1e-4}};
const op_cases op_rope_cases = {"rope", cases, 1};
