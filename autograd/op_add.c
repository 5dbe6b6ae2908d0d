/* y = x + z over z's memory (the residual connection: z is what the block has just made).
 * Backward: dz = dy, dx += dy. When nothing has flowed into x yet, dx takes over dy's memory: along a residual stream
 * one buffer is then the gradient of every layer border. dz is the same memory too, because the node that made z runs
 * next and dx grows only behind it. */
#include "autograd/ops.h"
#include "core/error.h"

typedef struct {
    node head;
    tensor *x, *z;
} add_node;

static void add_backward(tape *t, node *n) {
    add_node *s = (add_node *)n;
    kctx *k = t->k;
    mat dy = n->out->grad;
    if (s->z->needs_grad) s->z->grad = dy;
    if (!s->x->needs_grad) return;
    if (s->x->grad.data)
        k->be->add(k, s->x->grad, s->x->grad, dy);
    else
        s->x->grad = dy;
}

tensor *op_add(tape *t, tensor *x, tensor *z) {
    CHECK(!t->recording || !z->needs_grad || !t->last || t->last->out == z, "z must be the newest result%s", "");
    tensor *y = tape_wrap(t, z->val, x->needs_grad || z->needs_grad);
    add_node *s = tape_record(t, sizeof *s, add_backward, y);
    if (s) s->x = x, s->z = z;
    if (z->val.data) t->k->be->add(t->k, y->val, x->val, z->val);
    return y;
}

static tensor *add_run(op_fixture *f, tape *t, tensor **in, param *p) {
    (void)f, (void)p;
    return op_add(t, in[0], in[1]);
}

/* linear: the difference quotient is exact but for rounding of inputs of size 1 at a step of 2^-6 */
static const op_case cases[] = {
    {.name = "5x7", .in = {{5, 7}, {5, 7}}, .run = add_run, .fd_step = 0x1p-6, .fd_error = 1e-4}};
const op_cases op_add_cases = {"add", cases, 1};
