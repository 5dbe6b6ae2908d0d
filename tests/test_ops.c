/* One driver for every differentiable operation: ops x cases x backends x threads. Values and gradients equal the
 * reference backend's to the bit, and the reference's gradients equal four-point differences of its own forward pass.
 * An op brings its cases in its own file; nothing here knows an op. */
#include "tests/op_driver.h"

static void finite_differences(const op_cases *op, const op_case *c) {
    setup s;
    kctx k;
    assert_int_equal(kctx_open(&k, &backend_ref, 1), 0);
    open_setup(&s, c, &k);
    evaluate(&s, true);
    float *g = xcalloc((size_t)s.n, sizeof *g);
    memcpy(g, s.g, (size_t)s.n * sizeof *g);
    const double error = differences(&s, g, 1);
    if (!(error <= c->fd_error))
        fail_msg("%s, %s: differences %.2e, allowed %.2e", op->name, c->name, error, c->fd_error);
    free(g);
    close_setup(&s), kctx_close(&k);
}

static void same_bits(const op_cases *op, const op_case *c, const char *name, int threads) {
    setup a, b;
    kctx ref, other;
    const backend *be = backend_open(name);
    assert_non_null(be);
    assert_int_equal(kctx_open(&ref, &backend_ref, 1) | kctx_open(&other, be, threads), 0);
    open_setup(&a, c, &ref), open_setup(&b, c, &other);
    evaluate(&a, true), evaluate(&b, true);
    if (memcmp(a.y, b.y, (size_t)a.n_y * sizeof(float)))
        fail_msg("%s, %s, %s, %d threads: value differs from ref", op->name, c->name, name, threads);
    for (int64_t i = 0; i < a.n; i++)
        if (bits_of(a.g[i]) != bits_of(b.g[i]))
            fail_msg("%s, %s, %s, %d threads: gradient %ld: %a, ref %a", op->name, c->name, name, threads, (long)i,
                     (double)b.g[i], (double)a.g[i]);
    close_setup(&a), close_setup(&b);
    kctx_close(&ref), kctx_close(&other);
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
