/* Forward, for the projections i of a group (T rows):
 *     h = scale * (x [A_0; A_1; ...]^T)            [T, sum r_i]   one product: x is read once
 *     y_i = x W_i^T + bias_i + h_i B_i^T
 * Backward:
 *     dB_i += dy_i^T h_i        dh = scale * [dy_0 B_0, dy_1 B_1, ...]        dA += dh^T x        dx += sum dy_i W_i +
 * dh A Kept: x (or its recipe) and h. There is no dW. With dropout every module has its own mask, made again from the
 * counter in the backward pass, and the products with A run module by module. */
#include "peft/proj.h"
#include "autograd/ops.h"
#include "core/error.h"
#include "peft/served.h"

typedef struct {
    node head;
    tensor *x, *y[PROJ_MAX];
    const proj *p;
    int n;
    const batch *b;
    mat h;
} proj_node;

static int64_t rank_of(const proj *p) { return p->lora ? p->lora->a.rows : 0; }

/* The A's of a group as one matrix, where they lie side by side and nothing is dropped; else rows == 0. */
static param joint_a(const tape *t, const proj *p, int n) {
    param joint = {0};
    for (int i = 0; i < n; i++) {
        const lora *l = p[i].lora;
        if (!l) continue;
        if (l->dropout > 0 && t->training) return (param){0};
        if (!joint.val)
            joint = l->a;
        else if (l->a.val == joint.val + joint.rows * joint.cols)
            joint.rows += l->a.rows;
        else
            return (param){0};
    }
    return joint;
}

static mat dropped(tape *t, const lora *l, mat x, const batch *b) {
    if (!(l->dropout > 0 && t->training)) return x;
    mat y = tape_scratch_as(t, x.type, x.rows, x.cols);
    dropout d = {l->dropout, l->seed, b->epoch, l->site, b->row_sample, b->pos};
    t->k->be->dropout_fwd(t->k, y, x, &d);
    return y;
}

static mat param_mat(const param *p) { return mat_f32(p->val, p->rows, p->cols); }

/* y = x A^T */
static void down(kctx *k, mat y, mat x, const param *a) {
    const weight w = param_weight(a);
    k->be->proj_fwd(k, &(proj_fwd_args){.n = 1, .x = x, .y = {y}, .w = {&w}});
}

/* h[:, cols of i] = scale_i * drop_i(x) A_i^T */
static void project_down(tape *t, const proj *p, int n, mat x, const batch *b, mat h) {
    param joint = joint_a(t, p, n);
    if (joint.rows) down(t->k, h, x, &joint);
    int64_t at = 0;
    for (int i = 0; i < n; i++) {
        const lora *l = p[i].lora;
        if (!l) continue;
        mat hi = mat_cols(h, at, l->a.rows);
        if (!joint.rows) {
            size_t mark = t->tmp->used;
            down(t->k, hi, dropped(t, l, x, b), &l->a);
            arena_release(t->tmp, mark);
        }
        t->k->be->scale(t->k, hi, hi, l->scale);
        at += l->a.rows;
    }
}

/* Gradients of B_i, and dh_i = scale_i dy_i B_i; zeros where no dy came. */
static void backward_up(tape *t, const proj_node *s, mat dh) {
    kctx *k = t->k;
    int64_t at = 0;
    for (int i = 0; i < s->n; i++) {
        const lora *l = s->p[i].lora;
        if (!l) continue;
        mat dy = s->y[i]->grad, dhi = mat_cols(dh, at, l->a.rows);
        weight b = param_weight(&l->b);
        if (dy.data) k->be->weight_grad(k, param_grad(&l->b), dy, mat_cols(s->h, at, l->a.rows));
        k->be->proj_bwd(k, &(proj_bwd_args){.n = 1, .fresh = true, .dx = dhi, .dy = {dy}, .w = {&b}});
        k->be->scale(k, dhi, dhi, l->scale);
        at += l->a.rows;
    }
}

/* dx (+)= sum dy_i W_i + dh A; a is NULL where masks stand between dx and A */
static void backward_x(tape *t, const proj_node *s, mat dx, bool fresh, mat dh, const param *a) {
    proj_bwd_args p = {.n = s->n, .fresh = fresh, .dx = dx};
    for (int i = 0; i < s->n; i++) p.dy[i] = s->y[i]->grad, p.w[i] = &s->p[i].w;
    if (a) p.dh = dh, p.down = param_mat(a);
    t->k->be->proj_bwd(t->k, &p);
}

/* Gradients of the A_i. */
static void backward_down(tape *t, const proj_node *s, mat x, mat dh, const param *joint) {
    kctx *k = t->k;
    if (joint->rows) {
        k->be->weight_grad(k, param_grad(joint), dh, x);
        return;
    }
    int64_t at = 0;
    for (int i = 0; i < s->n; i++) {
        const lora *l = s->p[i].lora;
        if (!l) continue;
        size_t mark = t->tmp->used;
        k->be->weight_grad(k, param_grad(&l->a), mat_cols(dh, at, l->a.rows), dropped(t, l, x, s->b));
        arena_release(t->tmp, mark);
        at += l->a.rows;
    }
}

/* dx's part through the adapters, with a mask per module */
static void backward_x_dropped(tape *t, const proj_node *s, mat dx, mat dh) {
    kctx *k = t->k;
    int64_t at = 0;
    for (int i = 0; i < s->n; i++) {
        const lora *l = s->p[i].lora;
        if (!l) continue;
        size_t mark = t->tmp->used;
        mat d = tape_scratch(t, dx.rows, dx.cols), dhi = mat_cols(dh, at, l->a.rows);
        weight a = param_weight(&l->a);
        k->be->proj_bwd(k, &(proj_bwd_args){.n = 1, .fresh = true, .dx = d, .dy = {dhi}, .w = {&a}});
        k->be->add(k, dx, dx, dropped(t, l, d, s->b));
        arena_release(t->tmp, mark);
        at += l->a.rows;
    }
}

/* x is read before dx is written: they may be the same memory */
static void proj_backward(tape *t, node *n) {
    proj_node *s = (proj_node *)n;
    mat dh = mat_none();
    param joint = joint_a(t, s->p, s->n);
    if (s->h.cols) {
        mat x = tape_value(t, s->x);
        dh = tape_scratch(t, s->h.rows, s->h.cols);
        backward_up(t, s, dh);
        backward_down(t, s, x, dh, &joint);
    }
    bool fresh;
    mat dx = tape_grad_fresh(t, s->x, &fresh);
    if (!dx.data) return;
    backward_x(t, s, dx, fresh, dh, joint.rows ? &joint : NULL);
    if (s->h.cols && !joint.rows) backward_x_dropped(t, s, dx, dh);
}

/* y[i]: made by the caller; one without memory is recorded but not computed. */
static void forward(tape *t, const proj *p, int n, tensor *x, const batch *b, tensor **y) {
    int64_t rows = x->val.rows, ranks = 0, at = 0;
    tensor *carrier = NULL; /* any result that needs a gradient carries the node */
    CHECK(n <= PROJ_MAX, "%d projections in a group", n);
    if (t->watch) t->watch->see(t->watch, t, p, n, x->val);
    for (int i = 0; i < n; i++) {
        ranks += rank_of(&p[i]);
        if (!carrier && y[i]->needs_grad) carrier = y[i];
    }
    size_t mark = t->tmp->used;
    proj_node *s = carrier ? tape_record(t, sizeof *s, proj_backward, carrier) : NULL;
    mat h = mat_of(NULL, F32, rows, 0);
    if (ranks) {
        h = s ? tape_sum(t, rows, ranks) : tape_scratch(t, rows, ranks);
        project_down(t, p, n, x->val, b, h);
    }
    if (s) s->x = x, s->p = p, s->n = n, s->b = b, s->h = h, x->readers++;
    proj_fwd_args up = {.x = x->val};
    for (int i = 0; i < n; i++) {
        int64_t r = rank_of(&p[i]);
        if (s) s->y[i] = y[i];
        if (y[i]->val.data) {
            up.y[up.n] = y[i]->val, up.w[up.n] = &p[i].w, up.bias[up.n] = p[i].bias;
            if (r) up.h[up.n] = mat_cols(h, at, r), up.up[up.n] = param_mat(&p[i].lora->b);
            up.n++;
        }
        at += r;
    }
    t->k->be->proj_fwd(t->k, &up);
    if (b->sets) served_forward(t, p->group, n, x->val, y, b);
    arena_release(t->tmp, mark);
}

void proj_group(tape *t, const proj *p, int n, tensor *x, const batch *b, tensor **y) {
    for (int i = 0; i < n; i++) y[i] = tape_tensor(t, x->val.rows, p[i].w.rows, x->needs_grad || p[i].lora);
    forward(t, p, n, x, b, y);
}

tensor *proj_residual(tape *t, const proj *p, tensor *x, tensor *h, const batch *b) {
    CHECK(x != h, "%s: a residual of its own input", p->name);
    bool needs_grad = h->needs_grad || p->lora;
    tensor *z = tape_result(t, h->val.rows, p->w.rows, needs_grad);
    forward(t, p, 1, h, b, &z);
    return op_add(t, x, z);
}

/* ---- test cases: parameters A_0, A_1, B_0, B_1 side by side, as adapter_attach lays them ---- */

static tensor *case_run(op_fixture *f, tape *t, tensor **in, param *prm, int fmt, float drop) {
    static const int lengths[] = {3, 4};
    int64_t cols = in[0]->val.cols;
    proj *p = tape_host(t, 2 * sizeof *p);
    lora *l = tape_host(t, 2 * sizeof *l);
    for (int i = 0; i < 2; i++) {
        l[i] = (lora){prm[i], prm[2 + i], 0.5f + (float)i, drop, 7, (uint32_t)i + 1};
        p[i] = (proj){.w = *fixture_weight(f, fmt, prm[2 + i].rows, cols), .lora = &l[i]};
    }
    p[1].bias = fixture_floats(f, p[1].w.rows, 0, 1);
    tensor *y[2];
    proj_group(t, p, 2, in[0], tape_batch(t, fixture_batch(f, lengths, 2)), y);
    return op_glu(t, y[0], y[1], ACT_SILU);
}

static tensor *f32_run(op_fixture *f, tape *t, tensor **in, param *p) { return case_run(f, t, in, p, FMT_F32, 0); }
static tensor *nf4_run(op_fixture *f, tape *t, tensor **in, param *p) { return case_run(f, t, in, p, FMT_NF4, 0); }
static tensor *drop_run(op_fixture *f, tape *t, tensor **in, param *p) { return case_run(f, t, in, p, FMT_F32, 0.3f); }

/* The gated unit behind the group has second derivatives of order 1 in y, and y grows with sqrt(in): as op_glu,
 * doubled. */
#define SHAPES .in = {{7, 64}}, .param = {{4, 64}, {3, 64}, {24, 4}, {24, 3}}, .scale = 0.2f
static const op_case cases[] = {
    {.name = "two, f32", SHAPES, .run = f32_run, .fd_step = 0x1p-8, .fd_error = 2e-3},
    {.name = "two, nf4", SHAPES, .run = nf4_run, .fd_step = 0x1p-8, .fd_error = 2e-3},
    {.name = "two, dropout", SHAPES, .run = drop_run, .fd_step = 0x1p-8, .fd_error = 2e-3},
};
const op_cases op_proj_cases = {"proj", cases, 3};
