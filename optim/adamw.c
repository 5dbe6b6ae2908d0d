#include "optim/adamw.h"
#include "core/error.h"

#include <math.h>
#include <stdlib.h>

static void *zeros(kctx *k, arena *run, int64_t n, size_t each) {
    void *p = arena_array(run, (size_t)n, each);
    k->be->zero(k, p, (size_t)n * each);
    return p;
}

static int64_t blocks_of(int64_t n) { return (n + ADAMW8_BLOCK - 1) / ADAMW8_BLOCK; }

/* Copies the tensors of lo <= elements < hi to the heap and gives them their places in moments of their own. */
static adamw8_tensor *place(const adamw_range *tensor, int64_t tensors, int64_t lo, int64_t hi, int64_t *count,
                            int64_t *n, int64_t *blocks) {
    *count = *n = *blocks = 0;
    for (int64_t i = 0; i < tensors; i++) *count += tensor[i].n >= lo && tensor[i].n < hi;
    adamw8_tensor *placed = xcalloc((size_t)*count, sizeof *placed), *next = placed;
    for (int64_t i = 0; i < tensors; i++) {
        if (tensor[i].n < lo || tensor[i].n >= hi) continue;
        *next++ = (adamw8_tensor){tensor[i].begin, tensor[i].n, *n, *blocks};
        *n += tensor[i].n, *blocks += blocks_of(tensor[i].n);
    }
    return placed;
}

/* Tensors of `least` elements and more get 8-bit moments. */
static void open_moments(adamw *o, const adamw_range *tensor, int64_t tensors, int64_t least, kctx *k, arena *run) {
    const size_t before = run->used;
    int64_t coded, unused;
    o->wide = place(tensor, tensors, 0, least, &o->wides, &o->wide_n, &unused);
    adamw8_tensor *small = place(tensor, tensors, least, INT64_MAX, &o->q.tensors, &coded, &o->q.blocks);
    const size_t listed = (size_t)o->q.tensors * sizeof *small;
    o->q.tensor = arena_alloc(run, listed);
    arena_put(run, (void *)(uintptr_t)o->q.tensor, small, listed);
    free(small);
    CHECK(o->wide_n + coded == o->n, "tensors of %ld elements in a vector of %ld", (long)(o->wide_n + coded),
          (long)o->n);
    o->m = zeros(k, run, o->wide_n, sizeof *o->m), o->v = zeros(k, run, o->wide_n, sizeof *o->v);
    o->q.m = zeros(k, run, coded, 1), o->q.v = zeros(k, run, coded, 1);
    o->q.m_scale = zeros(k, run, o->q.blocks, sizeof *o->q.m_scale);
    o->q.v_scale = zeros(k, run, o->q.blocks, sizeof *o->q.v_scale);
    o->bytes = run->used - before;
}

void adamw_open(adamw *o, float *param, float *grad, int64_t n, kctx *k, arena *run) {
    const adamw_range all = {0, n};
    *o = (adamw){.param = param, .grad = grad, .n = n};
    open_moments(o, &all, 1, INT64_MAX, k, run);
}

void adamw_open_8bit(adamw *o, float *param, float *grad, int64_t n, const adamw_range *tensor, int64_t tensors,
                     kctx *k, arena *run) {
    *o = (adamw){.param = param, .grad = grad, .n = n};
    open_moments(o, tensor, tensors, ADAMW8_MIN, k, run);
}

static void update(adamw *o, kctx *k, const adamw_hp *hp) {
    for (int64_t i = 0; i < o->wides; i++) {
        const adamw8_tensor *w = &o->wide[i];
        k->be->adamw(k, o->param + w->begin, o->grad + w->begin, o->m + w->code, o->v + w->code, w->n, hp);
    }
    if (o->q.tensors) k->be->adamw_8bit(k, o->param, o->grad, &o->q, hp);
}

void adamw_step(adamw *o, kctx *k, double lr, step_sums *sums) {
    k->be->zero(k, &sums->sumsq, sizeof sums->sumsq);
    k->be->sumsq(k, sums, o->grad, o->n);
    k->be->step_end(k, sums, o->max_norm);
    o->t++;
    adamw_hp hp = {.lr = lr,
                   .beta1 = o->beta1,
                   .beta2 = o->beta2,
                   .eps = o->eps,
                   .weight_decay = o->weight_decay,
                   .bias1 = 1 - pow(o->beta1, (double)o->t),
                   .bias2_sqrt = sqrt(1 - pow(o->beta2, (double)o->t)),
                   .sums = sums};
    update(o, k, &hp);
}

void adamw_close(adamw *o) {
    free(o->wide);
    *o = (adamw){0};
}
