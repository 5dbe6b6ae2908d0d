/* o = softmax(scale q k^T + causal mask, per sequence) v, tiled with the log-sum-exp of each row kept (Dao et al. 2022;
 * FlashAttention-2 for the backward pass). Kept: q, k, v, o and lse [rows, heads]; no rows x rows matrix anywhere. */
#include "autograd/ops.h"

typedef struct {
    node head;
    tensor *q, *k, *v;
    const attn *a;
    float *lse;
} attention_node;

static void attention_backward(tape *t, node *n) {
    attention_node *s = (attention_node *)n;
    mat dq = tape_grad(t, s->q), dk = tape_grad(t, s->k), dv = tape_grad(t, s->v);
    t->k->be->attn_bwd(t->k, dq, dk, dv, n->out->grad, s->q->val, s->k->val, s->v->val, n->out->val, s->lse, s->a);
}

tensor *op_attention(tape *t, tensor *q, tensor *k, tensor *v, const attn *a) {
    int64_t rows = q->val.rows;
    bool needs_grad = q->needs_grad || k->needs_grad || v->needs_grad;
    tensor *o = tape_tensor(t, rows, q->val.cols, needs_grad);
    float *lse = t->recording && needs_grad ? tape_floats(t, rows * a->heads) : NULL;
    attention_node *s = tape_record(t, sizeof *s, attention_backward, o);
    if (s) s->q = q, s->k = k, s->v = v, s->a = a, s->lse = lse;
    t->k->be->attn_fwd(t->k, o->val, lse, q->val, k->val, v->val, a);
    return o;
}

static attn *case_attn(op_fixture *f, tape *t, int heads, int kv_heads, int dim, int window) {
    static const int lengths[] = {4, 1, 7};
    const batch *b = tape_batch(t, fixture_batch(f, lengths, 3));
    attn *a = tape_host(t, sizeof *a);
    *a = (attn){heads, kv_heads, dim, 0.4f, window, b->seqs, b->start, b->past, b->start};
    return a;
}

static tensor *mha_run(op_fixture *f, tape *t, tensor **in, param *p) {
    (void)p;
    return op_attention(t, in[0], in[1], in[2], case_attn(f, t, 2, 2, 8, 0));
}

static tensor *gqa_run(op_fixture *f, tape *t, tensor **in, param *p) {
    (void)p;
    return op_attention(t, in[0], in[1], in[2], case_attn(f, t, 6, 2, 4, 0));
}

static tensor *window_run(op_fixture *f, tape *t, tensor **in, param *p) {
    (void)p;
    return op_attention(t, in[0], in[1], in[2], case_attn(f, t, 2, 1, 8, 3));
}

/* softmax of scores of size 1 has third derivatives of order 1; the quotient's error at a step of 2^-6 is below 1e-3 */
static const op_case cases[] = {
    {.name = "heads", .in = {{12, 16}, {12, 16}, {12, 16}}, .run = mha_run, .fd_step = 0x1p-6, .fd_error = 2e-3},
    {.name = "grouped", .in = {{12, 24}, {12, 8}, {12, 8}}, .run = gqa_run, .fd_step = 0x1p-6, .fd_error = 2e-3},
    {.name = "window", .in = {{12, 16}, {12, 8}, {12, 8}}, .run = window_run, .fd_step = 0x1p-6, .fd_error = 2e-3},
};
const op_cases op_attention_cases = {"attention", cases, 3};
