/* One driver for every differentiable operation: ops x cases x backends x threads. Values and gradients equal the
 * reference backend's to the bit, and the reference's gradients equal four-point differences of its own forward pass.
 * An op brings its cases in its own file; nothing here knows an op. */
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

/* A case with its memory: leaf i holds inputs first, then parameters, all in one vector x with one gradient g. */
typedef struct {
    const op_case *c;
    kctx k;
    arena act, tmp, host;
    op_fixture fix;
    int n_in, n_leaf;
    op_shape shape[LEAVES];
    int64_t n;
    float *x, *g;
    double loss;
    mat y;
} setup;

static void open_setup(setup *s, const op_case *c, const backend *be, int threads) {
    *s = (setup){.c = c, .k = {.be = be, .threads = threads, .scratch_bytes = backend_scratch(threads)}};
    s->k.scratch = aligned_alloc(64, (s->k.scratch_bytes + 63) / 64 * 64);
    assert_int_equal(arena_open(&s->act, "act", 1 << 22) | arena_open(&s->tmp, "tmp", 1 << 22) |
                         arena_open(&s->host, "host", 1 << 20) | arena_open(&s->fix.mem, "fixture", 1 << 22),
                     0);
    for (int i = 0; i < 4 && c->in[i].rows; i++) s->shape[s->n_leaf++] = c->in[i];
    s->n_in = s->n_leaf;
    for (int i = 0; i < 6 && c->param[i].rows; i++) s->shape[s->n_leaf++] = c->param[i];
    for (int i = 0; i < s->n_leaf; i++) s->n += s->shape[i].rows * s->shape[i].cols;
    s->x = xcalloc((size_t)s->n, sizeof *s->x), s->g = xcalloc((size_t)s->n, sizeof *s->g);
    float scale = c->scale > 0 ? c->scale : 1;
    for (int64_t i = 0; i < s->n; i++) s->x[i] = scale * rng_normal(3, STREAM_TEST, (uint64_t)i);
}

static void close_setup(setup *s) {
    arena_close(&s->act), arena_close(&s->tmp), arena_close(&s->host), arena_close(&s->fix.mem);
    free(s->k.scratch), free(s->x), free(s->g);
}

/* Forward (and backward into s->g): s->loss = sum(dy * y) with a fixed random dy. Ops may overwrite their inputs. */
static void evaluate(setup *s, bool backward) {
    tensor leaf[LEAVES], *in[LEAVES];
    param prm[LEAVES];
    arena_release(&s->act, 0), arena_release(&s->tmp, 0), arena_release(&s->host, 0);
    float *x = arena_array(&s->act, (size_t)s->n, sizeof *x);
    memcpy(x, s->x, (size_t)s->n * sizeof *x);
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
    tensor *y = s->c->run(&s->fix, &t, in, prm);
    s->y = y->val;
    if (!y->grad.data) {
        tape_grad(&t, y);
        for (int64_t i = 0; i < y->val.rows * y->val.cols; i++)
            ((float *)y->grad.data)[i] = rng_normal(4, STREAM_TEST, (uint64_t)i);
    }
    s->loss = 0;
    for (int64_t i = 0; i < y->val.rows * y->val.cols; i++)
        s->loss += (double)((float *)y->val.data)[i] * (double)((float *)y->grad.data)[i];
    if (backward) tape_backward(&t);
    at = 0;
    for (int i = 0; i < s->n_leaf; i++) {
        int64_t n = s->shape[i].rows * s->shape[i].cols;
        if (i < s->n_in && leaf[i].grad.data && backward)
            memcpy(s->g + at, leaf[i].grad.data, (size_t)n * sizeof(float));
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

static void finite_differences(const op_cases *op, const op_case *c) {
    setup s;
    open_setup(&s, c, &backend_ref, 1);
    evaluate(&s, true);
    float *g = xcalloc((size_t)s.n, sizeof *g);
    memcpy(g, s.g, (size_t)s.n * sizeof *g);
    float h = (float)c->fd_step;
    double error = 0, norm = 0;
    for (int64_t i = 0; i < s.n; i++) {
        float x = s.x[i];
        double near = loss_at(&s, i, x + h) - loss_at(&s, i, x - h),
               far = loss_at(&s, i, x + 2 * h) - loss_at(&s, i, x - 2 * h);
        double numeric = (8 * near - far) / (12 * (double)h);
        error += ((double)g[i] - numeric) * ((double)g[i] - numeric), norm += numeric * numeric;
    }
    error = sqrt(error / norm);
    if (!(error <= c->fd_error) || !(norm > 0))
        fail_msg("%s, %s: differences %.2e, allowed %.2e", op->name, c->name, error, c->fd_error);
    free(g);
    close_setup(&s);
}

static void same_bits(const op_cases *op, const op_case *c, const char *name, int threads) {
    setup a, b;
    const backend *be = backend_open(name);
    assert_non_null(be);
    open_setup(&a, c, &backend_ref, 1), open_setup(&b, c, be, threads);
    evaluate(&a, true), evaluate(&b, true);
    int64_t n = a.y.rows * a.y.cols;
    if (memcmp(a.y.data, b.y.data, (size_t)n * sizeof(float)))
        fail_msg("%s, %s, %s, %d threads: value differs from ref", op->name, c->name, name, threads);
    for (int64_t i = 0; i < a.n; i++)
        if (bits_of(a.g[i]) != bits_of(b.g[i]))
            fail_msg("%s, %s, %s, %d threads: gradient %ld: %a, ref %a", op->name, c->name, name, threads, (long)i,
                     (double)b.g[i], (double)a.g[i]);
    close_setup(&a), close_setup(&b);
}

static void test_op(void **state) {
    const op_cases *op = *state;
    for (int i = 0; i < op->n; i++) {
        finite_differences(op, &op->cases[i]);
        for (const char *const *name = backend_names(); *name; name++)
            for (int threads = 1; threads <= 3; threads++) same_bits(op, &op->cases[i], *name, threads);
    }
}

int main(void) {
    struct CMUnitTest tests[OPS];
    for (int i = 0; i < OPS; i++) tests[i] = (struct CMUnitTest){all[i]->name, test_op, NULL, NULL, (void *)all[i]};
    return cmocka_run_group_tests_name("ops", tests, NULL, NULL);
}
