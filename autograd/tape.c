#include "autograd/tape.h"
#include "core/error.h"
#include "core/num.h"

#include <string.h>

tape tape_begin(kctx *k, arena *act, arena *tmp, arena *host, bool training, bool checkpoint) {
    return (tape){.k = k,
                  .act = act,
                  .tmp = tmp,
                  .host = host,
                  .recording = training,
                  .training = training,
                  .checkpoint = checkpoint};
}

static mat alloc_mat(arena *a, dtype type, int64_t rows, int64_t cols) {
    int64_t n = mul_checked(rows, cols);
    CHECK(n >= 0, "tensor of %ld x %ld", (long)rows, (long)cols);
    return mat_of(arena_array(a, (size_t)n, (size_t)mat_bytes(type)), type, rows, cols);
}

void *tape_host(tape *t, size_t bytes) { return memset(arena_alloc(t->host, bytes), 0, bytes); }

tensor *tape_wrap(tape *t, mat val, bool needs_grad) {
    tensor *x = tape_host(t, sizeof *x);
    *x = (tensor){.val = val, .needs_grad = needs_grad};
    return x;
}

tensor *tape_tensor(tape *t, int64_t rows, int64_t cols, bool needs_grad) {
    return tape_wrap(t, alloc_mat(t->act, t->type, rows, cols), needs_grad);
}

tensor *tape_result(tape *t, int64_t rows, int64_t cols, bool needs_grad) {
    if (t->replaying) return tape_wrap(t, mat_of(NULL, t->type, rows, cols), needs_grad);
    if (!t->border.data) return tape_tensor(t, rows, cols, needs_grad);
    CHECK(rows == t->border.rows && cols == t->border.cols, "a result of %ld x %ld", (long)rows, (long)cols);
    return tape_wrap(t, t->border, needs_grad);
}

mat tape_sum(tape *t, int64_t rows, int64_t cols) { return alloc_mat(t->act, F32, rows, cols); }

tensor *tape_transient(tape *t, int64_t rows, int64_t cols, bool needs_grad, tensor_remake *remake, const void *maker) {
    const bool kept = !t->in_segment || !t->recording || t->replaying;
    tensor *x = tape_wrap(t, alloc_mat(kept ? t->act : t->tmp, t->type, rows, cols), needs_grad);
    x->transient = true;
    if (!kept) x->remake = remake, x->maker = maker;
    return x;
}

void *tape_record(tape *t, size_t bytes, backward_fn *backward, tensor *out) {
    if (!t->recording || !out->needs_grad) return NULL;
    node *n = tape_host(t, bytes);
    *n = (node){.prev = t->last, .backward = backward, .out = out};
    return t->last = n;
}

float *tape_floats(tape *t, int64_t n) {
    return arena_array(t->main_act ? t->main_act : t->act, (size_t)n, sizeof(float));
}

mat tape_scratch_as(tape *t, dtype type, int64_t rows, int64_t cols) { return alloc_mat(t->tmp, type, rows, cols); }
mat tape_scratch(tape *t, int64_t rows, int64_t cols) { return tape_scratch_as(t, F32, rows, cols); }

const void *tape_put(tape *t, const void *from, size_t bytes) {
    if (!t->act->mem) return from;
    CHECK(!t->in_segment, "%zu bytes put inside a segment", bytes);
    void *to = arena_alloc(t->act, bytes);
    arena_put(t->act, to, from, bytes);
    return to;
}

const batch *tape_batch(tape *t, const batch *b) {
    if (!t->act->mem) return b;
    batch *d = tape_host(t, sizeof *d);
    size_t rows = (size_t)b->rows, seqs = (size_t)b->seqs;
    *d = *b;
    d->token = (int32_t *)tape_put(t, b->token, rows * sizeof *b->token);
    d->pos = (int32_t *)tape_put(t, b->pos, rows * sizeof *b->pos);
    d->row_sample = (uint64_t *)tape_put(t, b->row_sample, rows * sizeof *b->row_sample);
    d->start = (int32_t *)tape_put(t, b->start, (seqs + 1) * sizeof *b->start);
    d->past = (int32_t *)tape_put(t, b->past, seqs * sizeof *b->past);
    return d;
}

mat tape_value(tape *t, tensor *x) {
    const bool alone = x->transient && x->readers == 1 && x->needs_grad && !x->grad.data && x->val.type == F32;
    if (alone) x->room = x->remake ? alloc_mat(t->act, F32, x->val.rows, x->val.cols) : x->val;
    if (!x->remake) return x->val;
    mat v = alone ? x->room : alloc_mat(t->tmp, x->val.type, x->val.rows, x->val.cols);
    x->remake(t, x->maker, v);
    return v;
}

mat tape_grad_fresh(tape *t, tensor *x, bool *fresh) {
    *fresh = x->needs_grad && !x->grad.data;
    if (*fresh) x->grad = x->room.data ? x->room : alloc_mat(t->act, F32, x->val.rows, x->val.cols);
    return x->needs_grad ? x->grad : mat_none();
}

mat tape_grad(tape *t, tensor *x) {
    bool fresh;
    mat g = tape_grad_fresh(t, x, &fresh);
    if (fresh) t->k->be->zero(t->k, g.data, (size_t)(g.rows * g.cols) * sizeof(float));
    return g;
}

/* Runs every node after `stop`, last first. An op's backward may use tmp freely: it is released behind it. */
static void walk(tape *t, node *stop) {
    size_t tmp = t->tmp->used;
    for (node *n = t->last; n != stop; n = n->prev) {
        if (n->out->grad.data) n->backward(t, n); /* no gradient reached it: nothing depends on it */
        arena_release(t->tmp, tmp);
    }
    t->last = stop;
}

void tape_backward(tape *t) { walk(t, NULL); }

typedef struct {
    node head;
    size_t act;
} scope_node;

static void scope_backward(tape *t, node *n) { arena_release(t->act, ((scope_node *)n)->act); }

void tape_scope(tape *t, tensor *x) {
    scope_node *s = tape_record(t, sizeof *s, scope_backward, x);
    if (!s) return;
    x->room = alloc_mat(t->act, F32, x->val.rows, x->val.cols);
    s->act = t->act->used;
}

/* A segment is one node. Kept: `inner` is the chain that its forward pass recorded. Checkpointed: inner is NULL and f
 * is run again. Either way dx is made before the mark and every other gradient is released to it. */
typedef struct {
    node head;
    segment_fn *f;
    void *ctx;
    tensor *x, *inner_y;
    node *inner;
    uint16_t *packed; /* the window's first `floats` floats, when the tape has one */
    int64_t floats;
} segment_node;

static void segment_backward(tape *t, node *n) {
    segment_node *s = (segment_node *)n;
    node *outer = t->last;
    size_t act, host = t->host->used;
    tensor *x = s->x, *y = s->inner_y;
    if (s->inner) {
        act = t->act->used;
        if (s->packed) t->k->be->bf16_unpack(t->k, (float *)t->window->base, s->packed, s->floats);
        t->last = s->inner;
    } else {
        act = t->act->used;
        x = tape_wrap(t, s->x->val, s->x->needs_grad);
        t->last = NULL;
        t->recording = t->replaying = t->in_segment = true;
        y = s->f(t, x, s->ctx);
        t->recording = t->replaying = t->in_segment = false;
    }
    y->grad = s->head.out->grad; /* the border: the same memory */
    walk(t, NULL);
    s->x->grad = x->grad;
    CHECK(!x->needs_grad || x->grad.data == y->grad.data, "segment: dx must take over dy's memory (op_add at its end)");
    arena_release(t->act, act);
    arena_release(t->host, host);
    t->last = outer;
}

/* y: where the result belongs */
static tensor *segment_run(tape *t, segment_fn *f, void *ctx, tensor *x, mat y) {
    size_t tmp = t->tmp->used;
    t->in_segment = true, t->border = y;
    tensor *made = f(t, x, ctx);
    t->in_segment = false, t->border = mat_none();
    arena_release(t->tmp, tmp);
    if (y.data && made->val.data != y.data) t->k->be->copy(t->k, y, made->val);
    return made;
}

/* Runs f unrecorded and keeps only y. */
static tensor *segment_bare(tape *t, segment_fn *f, void *ctx, tensor *x, bool needs_grad) {
    tensor *y = needs_grad ? tape_tensor(t, x->val.rows, x->val.cols, true) : tape_wrap(t, x->val, false);
    size_t act = t->act->used, host = t->host->used;
    bool recording = t->recording;
    t->recording = false;
    tensor *made = segment_run(t, f, ctx, x, needs_grad ? y->val : mat_none());
    if (!needs_grad) t->k->be->copy(t->k, y->val, made->val);
    t->recording = recording;
    arena_release(t->act, act);
    arena_release(t->host, host);
    return y;
}

static void enter_window(tape *t) {
    if (!t->window) return;
    t->main_act = t->act, t->act = t->window;
}

static void leave_window(tape *t, segment_node *s) {
    if (!t->window) return;
    s->floats = (int64_t)(t->window->used / sizeof(float)); /* a multiple of 16: arenas hand out whole cache lines */
    t->act = t->main_act, t->main_act = NULL;
    s->packed = arena_array(t->act, (size_t)s->floats, sizeof *s->packed);
    t->k->be->bf16_pack(t->k, s->packed, (const float *)t->window->base, s->floats);
    arena_release(t->window, 0);
}

tensor *tape_segment(tape *t, segment_fn *f, void *ctx, tensor *x, bool trainable) {
    CHECK(!t->in_segment, "segments do not nest%s", "");
    bool needs_grad = t->recording && (x->needs_grad || trainable);
    if (!needs_grad || t->checkpoint) {
        tensor *y = segment_bare(t, f, ctx, x, needs_grad);
        segment_node *s = tape_record(t, sizeof *s, segment_backward, y);
        if (s) s->f = f, s->ctx = ctx, s->x = x;
        return y;
    }
    node *outer = t->last;
    t->last = NULL;
    tensor *y = t->window ? tape_tensor(t, x->val.rows, x->val.cols, true) : NULL;
    enter_window(t);
    tensor *made = segment_run(t, f, ctx, x, y ? y->val : mat_none());
    node *inner = t->last;
    t->last = outer;
    if (!y) y = tape_wrap(t, made->val, true);
    segment_node *s = tape_record(t, sizeof *s, segment_backward, y);
    s->f = f, s->ctx = ctx, s->x = x, s->inner = inner, s->inner_y = made;
    leave_window(t, s);
    return y;
}
