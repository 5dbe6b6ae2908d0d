/* Runs a case of a differentiable operation on a backend: values, gradients, four-point differences. For test_ops.c
 * (backends of the CPU) and cuda_ops.c (a device). */
#ifndef PEFT_TESTS_OP_DRIVER_H
#define PEFT_TESTS_OP_DRIVER_H

#include "autograd/fixture.h"
#include "core/error.h"
#include "core/rng.h"
#include "kernels/ref/ref.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define O(name) extern const op_cases op_##name##_cases;
#include "autograd/ops.def"
#undef O

static const op_cases *const all[] = {
#define O(name) &op_##name##_cases,
#include "autograd/ops.def"
#undef O
};
enum { OPS = sizeof all / sizeof *all, LEAVES = 10 };

/* A case with its memory: leaf i holds inputs first, then parameters, all in one vector x with one gradient g. What
 * cases make by themselves (own, host, fix) is seen by host and backend both, act and tmp are the backend's. */
typedef struct {
    const op_case *c;
    kctx k;
    arena act, tmp, host, own;
    op_fixture fix;
    int n_in, n_leaf;
    op_shape shape[LEAVES];
    int64_t n;
    float *x, *g;
    double loss;
    float *y; /* [n_y] values of the result */
    int64_t n_y;
} setup;

static void open_arena(arena *a, const kctx *k, const char *name, size_t size) {
    *a = (arena){.name = name, .base = memory_shared(k->mem, size), .size = size};
    assert_non_null(a->base);
}

/* k: opened by kctx_open, the caller's */
static void open_setup(setup *s, const op_case *c, const kctx *k) {
    *s = (setup){.c = c, .k = *k};
    assert_int_equal(arena_open_in(&s->act, k->mem, "act", 1 << 22) | arena_open_in(&s->tmp, k->mem, "tmp", 1 << 22),
                     0);
    open_arena(&s->host, k, "host", 1 << 20), open_arena(&s->own, k, "own", 1 << 20);
    open_arena(&s->fix.mem, k, "fixture", 1 << 22);
    for (int i = 0; i < 4 && c->in[i].rows; i++) s->shape[s->n_leaf++] = c->in[i];
    s->n_in = s->n_leaf;
    for (int i = 0; i < 6 && c->param[i].rows; i++) s->shape[s->n_leaf++] = c->param[i];
    for (int i = 0; i < s->n_leaf; i++) s->n += s->shape[i].rows * s->shape[i].cols;
    s->x = arena_array(&s->own, (size_t)s->n, sizeof *s->x), s->g = arena_array(&s->own, (size_t)s->n, sizeof *s->g);
    float scale = c->scale > 0 ? c->scale : 1;
    for (int64_t i = 0; i < s->n; i++) s->x[i] = scale * rng_normal(3, STREAM_TEST, (uint64_t)i);
}

static void close_setup(setup *s) {
    arena *const shared[] = {&s->host, &s->own, &s->fix.mem};
    for (int i = 0; i < 3; i++) memory_shared_free(s->k.mem, shared[i]->base);
    arena_close(&s->act), arena_close(&s->tmp), free(s->y);
}

/* waits until the kernels so far are done */
static void settle(const setup *s) {
    char byte;
    memory_get(s->k.mem, &byte, s->k.scratch, 1);
}

/* The loss s->loss = sum(dy * y) of the result y, with a fixed random dy where the op has none; leaves y in s. */
static void take_result(setup *s, tape *t, tensor *y) {
    const int64_t n = y->val.rows * y->val.cols;
    const size_t bytes = (size_t)n * sizeof(float);
    float *dy = xcalloc((size_t)n, sizeof *dy);
    s->y = xrealloc(s->y, (size_t)n, sizeof *s->y), s->n_y = n;
    if (!y->grad.data) {
        for (int64_t i = 0; i < n; i++) dy[i] = rng_normal(4, STREAM_TEST, (uint64_t)i);
        arena_put(&s->act, tape_grad(t, y).data, dy, bytes);
    }
    arena_get(&s->act, s->y, y->val.data, bytes), arena_get(&s->act, dy, y->grad.data, bytes);
    s->loss = 0;
    for (int64_t i = 0; i < n; i++) s->loss += (double)s->y[i] * (double)dy[i];
    free(dy);
}

/* Forward (and backward into s->g). Ops may overwrite their inputs. */
static void evaluate(setup *s, bool backward) {
    tensor leaf[LEAVES], *in[LEAVES];
    param prm[LEAVES];
    arena_release(&s->act, 0), arena_release(&s->tmp, 0), arena_release(&s->host, 0);
    float *x = arena_copy(&s->act, s->x, (size_t)s->n * sizeof *x);
    memset(s->g, 0, (size_t)s->n * sizeof *s->g);
    int64_t at = 0;
    for (int i = 0; i < s->n_leaf; i++) {
        op_shape p = s->shape[i];
        leaf[i] = (tensor){.val = mat_f32(x + at, p.rows, p.cols), .needs_grad = true};
        in[i] = &leaf[i];
        if (i >= s->n_in) prm[i - s->n_in] = (param){x + at, s->g + at, p.rows, p.cols};
        at += p.rows * p.cols;
    }
    tape t = tape_begin(&s->k, &s->act, &s->tmp, &s->host, true, false);
    take_result(s, &t, s->c->run(&s->fix, &t, in, prm));
    if (backward) tape_backward(&t), settle(s);
    at = 0;
    for (int i = 0; i < s->n_leaf; i++) {
        int64_t n = s->shape[i].rows * s->shape[i].cols;
        if (i < s->n_in && leaf[i].grad.data && backward)
            arena_get(&s->act, s->g + at, leaf[i].grad.data, (size_t)n * sizeof(float));
        at += n;
    }
    fixture_release(&s->fix);
}

static double loss_at(setup *s, int64_t i, float x) {
    float kept = s->x[i];
    s->x[i] = x;
    evaluate(s, false);
    s->x[i] = kept;
    return s->loss;
}

/* The gradient g of the case against four-point differences of its own forward pass, at every `stride`-th element: the
 * error relative to the norm of what was looked at. */
static double differences(setup *s, const float *g, int stride) {
    const float h = (float)s->c->fd_step;
    double error = 0, norm = 0;
    for (int64_t i = 0; i < s->n; i += stride) {
        const float x = s->x[i];
        double near = loss_at(s, i, x + h) - loss_at(s, i, x - h),
               far = loss_at(s, i, x + 2 * h) - loss_at(s, i, x - 2 * h);
        double numeric = (8 * near - far) / (12 * (double)h);
        error += ((double)g[i] - numeric) * ((double)g[i] - numeric), norm += numeric * numeric;
    }
    assert_true(norm > 0);
    return sqrt(error / norm);
}

#endif
