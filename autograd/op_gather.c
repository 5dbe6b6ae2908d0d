/* y[i,:] = x[row[i],:]; dx[row[i],:] = dy[i,:], the other rows of dx are zero. Rows that are no targets end here:
 * neither the final norm nor the head ever sees them. */
#include "autograd/ops.h"
#include "core/error.h"

typedef struct {
    node head;
    tensor *x;
    const int32_t *row;
} gather_node;

static void gather_backward(tape *t, node *n) {
    gather_node *s = (gather_node *)n;
    CHECK(!s->x->grad.data, "gather must be the last reader of its input%s", "");
    t->k->be->scatter_rows(t->k, tape_grad(t, s->x), n->out->grad, s->row);
}

tensor *op_gather(tape *t, tensor *x, const int32_t *row, int rows) {
    tensor *y = tape_tensor(t, rows, x->val.cols, x->needs_grad);
    gather_node *s = tape_record(t, sizeof *s, gather_backward, y);
    if (s) s->x = x, s->row = row;
    t->k->be->gather_rows(t->k, y->val, x->val, row);
    return y;
}

static tensor *gather_run(op_fixture *f, tape *t, tensor **in, param *p) {
    static const int32_t row[] = {0, 2, 5};
    (void)f, (void)p;
    return op_gather(t, in[0], tape_put(t, row, sizeof row), 3);
}

/* linear, as op_add */
static const op_case cases[] = {
    {.name = "3 of 6", .in = {{6, 5}}, .run = gather_run, .fd_step = 0x1p-6, .fd_error = 1e-4}};
const op_cases op_gather_cases = {"gather", cases, 1};
