/* Every differentiable operation on a device, in fp32, case by case: values and gradients against the reference
 * backend, and gradients against four-point differences of the device's own forward pass.
 *
 *   cuda_ops BACKEND [STRIDE]     emu, or cuda where there is one; STRIDE: every how manieth element is differentiated
 * (7)
 *
 * Tolerances: sums in another order, relative to the norm of the array. Ends with "N passed, N failed". */
#include "tests/op_driver.h"

/* 50 products of size 1 in another order: 50 roundings of 2^-24 at most, of the norm */
static const double tolerance = 5e-6;

static double distance(const float *got, const float *want, int64_t n) {
    double error = 0, norm = 0;
    for (int64_t i = 0; i < n; i++) {
        const double d = (double)got[i] - (double)want[i];
        error += d * d, norm += (double)want[i] * (double)want[i];
    }
    return sqrt(error / norm);
}

static int failed, passed;
static void verdict(const op_cases *op, const op_case *c, const char *what, double error, double allowed) {
    if (error <= allowed)
        passed++;
    else
        failed++, printf("  %s, %s: %s %.2e, allowed %.2e\n", op->name, c->name, what, error, allowed);
}

static void one_case(const op_cases *op, const op_case *c, const kctx *ref, const kctx *device, int stride) {
    setup a, b;
    open_setup(&a, c, ref), open_setup(&b, c, device);
    evaluate(&a, true), evaluate(&b, true);
    verdict(op, c, "value", distance(b.y, a.y, a.n_y), tolerance);
    verdict(op, c, "gradient", distance(b.g, a.g, a.n), tolerance);
    memcpy(a.g, b.g, (size_t)a.n * sizeof *a.g);
    verdict(op, c, "differences", differences(&b, a.g, stride), c->fd_error);
    close_setup(&a), close_setup(&b);
}

int main(int argc, char **argv) {
    if (argc < 2) return fprintf(stderr, "usage: cuda_ops emu|cuda [STRIDE]\n"), 2;
    const backend *be = backend_open(argv[1]);
    const int stride = argc > 2 ? atoi(argv[2]) : 7;
    kctx ref, device;
    if (!be || kctx_open(&ref, &backend_ref, 1) || kctx_open(&device, be, 1)) return fail_report("cuda_ops");
    for (int i = 0; i < OPS; i++)
        for (int k = 0; k < all[i]->n; k++) one_case(all[i], &all[i]->cases[k], &ref, &device, stride);
    kctx_close(&ref), kctx_close(&device);
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
