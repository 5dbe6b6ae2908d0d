/* The language-model head and its loss in one: log softmax(h W^T)[target] per row, the logits living one chunk of the
 * vocabulary at a time. dh of each row comes out of the same walk over W and is kept unscaled ([rows, dim]), so that
 * any loss that is a function of the rows' log-probabilities can be built on it; here loss = -sum weight[i] logprob[i].
 */
#include "autograd/ops.h"

typedef struct {
    node head;
    tensor *h;
    mat dh;
    const float *weight;
} head_loss_node;

static void head_loss_backward(tape *t, node *n) {
    head_loss_node *s = (head_loss_node *)n;
    t->k->be->scale_rows(t->k, s->dh, s->dh, s->weight);
    s->h->grad = s->dh;
}

void op_head_loss(tape *t, const weight *head, tensor *h, const int32_t *target, const float *row_weight,
                  float *logprob, step_sums *sums) {
    kctx *k = t->k;
    int64_t rows = h->val.rows;
    tensor *loss = tape_wrap(t, mat_none(), h->needs_grad);
    head_loss_node *s = tape_record(t, sizeof *s, head_loss_backward, loss);
    mat dh = mat_none();
    if (s) {
        dh = tape_sum(t, rows, h->val.cols);
        s->h = h, s->dh = dh, s->weight = row_weight;
        loss->grad = dh; /* not NULL: the walk begins here */
    }
    k->be->head_loss(k, logprob, dh, h->val, head, target);
    k->be->loss_sum(k, sums, logprob, row_weight, rows);
}

/* The case's result is the log-probabilities; their gradient is given, -weight, since the op starts the backward pass.
 */
static tensor *head_run(op_fixture *f, tape *t, tensor **in, param *p) {
    static const int lengths[] = {6};
    (void)p;
    int64_t rows = in[0]->val.rows;
    mat logprob = tape_tensor(t, rows, 1, false)->val, dy = tape_tensor(t, rows, 1, false)->val;
    const float *w = fixture_floats(f, rows, 1, 0.3f);
    step_sums *sums = tape_host(t, sizeof *sums);
    op_head_loss(t, fixture_weight(f, FMT_F32, 50, in[0]->val.cols), in[0],
                 tape_batch(t, fixture_batch(f, lengths, 1))->token, w, logprob.data, sums);
    t->k->be->scale(t->k, dy, mat_f32((float *)w, rows, 1), -1);
    tensor *y = tape_wrap(t, logprob, false);
    y->grad = dy;
    return y;
}

/* as attention: the loss is a log-softmax of scores of size 1 */
static const op_case cases[] = {
    {.name = "50 words", .in = {{6, 20}}, .run = head_run, .fd_step = 0x1p-6, .fd_error = 2e-3, .scale = 0.3f}};
const op_cases op_head_loss_cases = {"head_loss", cases, 1};
