/* Every kernel of a device, in fp32 and in bf16, against the reference on the same inputs (kernel_cases.h).
 *
 *   cuda_parity KERNELS.so [--small] [--scratch BYTES] [NAME...]
 *       NAME: only cases whose name begins so; --small: none whose name says that it is large; --scratch:
 * kctx.scratch_bytes is that
 *
 * An element is right when |got - want| <= tolerance * (|want| + mean |want| of its array): a sum's rounding errors are
 * relative to its terms, not to a result that cancels. Infinities must be equal, a NaN where the reference has none is
 * never right, and what the reference left poisoned must be poisoned still. Bytes must be equal. Ends with "N passed, N
 * failed". */
#include "core/error.h"
#include "tests/cuda_rows.h"
#include "tests/kernel_cases.h"

#include <dlfcn.h>

typedef struct tolerance {
    void (*run)(lab *l, const int *s);
    double f32, bf16;
    const char *why;
} tolerance;

/* One rounding to bf16 is 2^-9 = 0.002 of the value. */
static const tolerance tolerances[] = {
    {run_zero, 0, 0, "moved, not computed"},
    {run_copy, 0, 0, "moved, not computed"},
    {run_add, 0, 0.008,
     "one operation, rounded as the reference; bf16: then rounded once more, for three results in a row"},
    {run_scale, 0, 0.008, "one operation, rounded as the reference; bf16: up to four roundings in a row"},
    {run_bf16, 0, 0, "one rounding, to nearest even"},
    {run_bias, 0, 0.004, "one operation; bf16: one rounding"},
    {run_dropout, 0, 0.004, "one operation; bf16: one rounding"},
    {run_gather, 0, 0, "moved, not computed"},
    {run_norm, 3e-6, 0.006, "another order of the sum over a row; bf16: one rounding of y"},
    {run_layernorm, 5e-6, 0.006, "another order of the sums over a row; bf16: one rounding of y"},
    {run_rope, 1e-6, 0.004, "contraction; bf16: one rounding"},
    {run_glu, 3e-6, 0.006, "exp of the device: 2 ulp; bf16: one rounding of y"},
    {run_weight_fwd, 0, 0.01, "one chain as the reference; bf16: weights and result rounded"},
    {run_weight_bwd, 0, 0.02,
     "one chain as the reference; bf16: weights and dy rounded, 5 deviations of the sum of that"},
    {run_weight_grad, 0, 0.02, "one chain as the reference; bf16: dy rounded for the tensor cores"},
    {run_embed, 0, 0.004, "dequantised as the reference; bf16: one rounding"},
    {run_proj, 0, 0.02,
     "one chain as the reference; bf16: weights, adapters and dy rounded for the tensor cores, y once"},
    {run_lora, 2e-5, 0.03,
     "another order over k; bf16: A, h and B rounded for the tensor cores one after another, y once for each of its items; "
     "rows without an adapter make the mean smaller than the sums"},
    {run_head, 1e-7, 0.06,
     "the reference's operations but for log; bf16: weights rounded, so logits of deviation 8 are off by up to 0.03, "
     "which exp makes a relative error of the probabilities"},
    {run_loss_sum, 1e-12, 1e-12, "another order of a sum in double"},
    {run_sumsq, 1e-12, 1e-12, "another order of a sum in double"},
    {run_step_end, 1e-12, 1e-12, "the same operations in double"},
    {run_adamw, 1e-6, 1e-6, "the same operations but for contraction"},
    {run_adamw8, 1e-6, 1e-6, "the same operations but for contraction"},
    {run_attention_fwd, 2e-5, 0.01, "another order of sums; bf16: probabilities and o rounded"},
    {run_pages, 2e-5, 0.01, "as attention; what pages hold is rounded once, to the same bits"},
    {run_attention, 5e-5, 0.06,
     "another order of sums; bf16: probabilities, their gradients, dout and o rounded, where dk sums products with queries "
     "of which a seventh are 40 times the others (of dk's norm the error is 0.003)"},
};

static const tolerance *tolerance_of(const kernel_case *k) {
    for (size_t i = 0; i < sizeof tolerances / sizeof *tolerances; i++)
        if (tolerances[i].run == k->run) return &tolerances[i];
    fail_msg("no tolerance for case %s", k->name);
    return NULL;
}

/* rows that are not there */

static jmp_buf no_row;

static void missing(const char *name) {
    static const char *last = "";
    if (strcmp(last, name) != 0) printf("  there is no kernel %s yet\n", name);
    last = name;
    longjmp(no_row, 1);
}
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wshadow"
#define K(name, args)                                                                                                  \
    static void name##_missing args { missing(#name); }
#include "kernels/kernels.def"
#undef K
#pragma GCC diagnostic pop

static backend complete(const backend *be) {
    backend b = *be;
#define K(name, args)                                                                                                  \
    if (!b.name) b.name = name##_missing;
#include "kernels/kernels.def"
#undef K
    return b;
}

/* comparison: 0 when right, else a line about the first wrong element is printed */

static int wrong(const kernel_case *k, const char *what, size_t i, double got, double want) {
    printf("  %s, %s: element %zu is %.9g, the reference has %.9g\n", k->name, what, i, got, want);
    return 1;
}

static bool close_enough(double got, double want, double tol, double scale) {
    if (isnan(want)) return isnan(got);
    if (isinf(want)) return got == want;
    if (isnan(got)) return false;
    return fabs(got - want) <= tol * (fabs(want) + scale);
}

static double mean_of(const float *want, size_t n) {
    double sum = 0;
    size_t used = 0;
    for (size_t i = 0; i < n; i++)
        if (fabsf(want[i]) < 1e6f) sum += fabs((double)want[i]), used++;
    return used ? sum / (double)used : 0;
}

static int compare_floats(const kernel_case *k, const char *what, const char *got, const float *want, size_t n,
                          bool half, double tol) {
    const double scale = mean_of(want, n);
    for (size_t i = 0; i < n; i++) {
        const bool untouched = bits_of(want[i]) == UINT32_MAX;
        float g;
        if (half) {
            uint16_t h;
            memcpy(&h, got + 2 * i, 2);
            g = untouched && h == UINT16_MAX ? want[i] : bf16_to_float(h);
        } else
            memcpy(&g, got + 4 * i, 4);
        if (untouched ? bits_of(g) != UINT32_MAX : !close_enough((double)g, (double)want[i], tol, scale))
            return wrong(k, what, i, (double)g, (double)want[i]);
    }
    return 0;
}

static int compare_bytes(const kernel_case *k, const char *what, const char *got, const char *want, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (got[i] != want[i]) return wrong(k, what, i, (double)(unsigned char)got[i], (double)(unsigned char)want[i]);
    return 0;
}

static int compare_sums(const kernel_case *k, const step_sums *got, const step_sums *want, size_t bytes, double tol) {
    for (size_t i = 0; i < bytes / sizeof *got; i++) {
        if (!close_enough(got[i].loss, want[i].loss, tol, 1)) return wrong(k, "loss", i, got[i].loss, want[i].loss);
        if (!close_enough(got[i].weight, want[i].weight, tol, 1))
            return wrong(k, "weight", i, got[i].weight, want[i].weight);
        if (!close_enough(got[i].sumsq, want[i].sumsq, tol, 1))
            return wrong(k, "sumsq", i, got[i].sumsq, want[i].sumsq);
        if (!close_enough(got[i].norm, want[i].norm, tol, 1)) return wrong(k, "norm", i, got[i].norm, want[i].norm);
        if (!close_enough(got[i].grad_scale, want[i].grad_scale, tol, 0))
            return wrong(k, "grad_scale", i, got[i].grad_scale, want[i].grad_scale);
        if (got[i].targets != want[i].targets || got[i].nonfinite != want[i].nonfinite)
            return wrong(k, "targets or nonfinite", i, (double)got[i].targets, (double)want[i].targets);
    }
    return 0;
}

static int compare(const kernel_case *k, const lab *got, const lab *want) {
    const tolerance *t = tolerance_of(k);
    const double tol = got->bf16 ? t->bf16 : t->f32;
    size_t end = 0;
    if (got->used != want->used) return wrong(k, "memory taken", 0, (double)got->used, (double)want->used);
    for (int i = 0; i < want->n_regions; i++) {
        const region r = want->regions[i];
        const char *g = got->pool + r.at, *w = want->pool + r.at;
        const bool half = r.kind == VALUES && got->value == BF16;
        char what[64];
        snprintf(what, sizeof what, "array %d%s", i, got->bf16 ? " (bf16)" : "");
        if (r.at > end && compare_bytes(k, "the gap before an array", got->pool + end, want->pool + end, r.at - end))
            return 1;
        int bad = r.kind == BYTES  ? compare_bytes(k, what, g, w, r.bytes)
                  : r.kind == SUMS ? compare_sums(k, (const step_sums *)g, (const step_sums *)w, r.bytes, tol)
                                   : compare_floats(k, what, g, (const float *)w, r.bytes / sizeof(float), half, tol);
        if (bad) return 1;
        end = r.at + r.bytes;
    }
    return 0;
}

/* runs */

/* *dirty: how much of the pool the last case took; the rest is poison */
static void run_case(const kernel_case *k, lab *l, size_t *dirty) {
    memset(l->pool, POISON, *dirty);
    *dirty = POOL;
    k->run(l, k->s);
    settle(l);
    *dirty = l->used;
}

static bool wanted(const char *name, bool small, char **only) {
    static const char *const big[] = {"large", "wide", "long", "576", "rows", "blocks", "rank", "1001", "whole"};
    for (size_t i = 0; small && i < sizeof big / sizeof *big; i++)
        if (strstr(name, big[i])) return false;
    if (!*only) return true;
    for (; *only; only++)
        if (!strncmp(name, *only, strlen(*only))) return true;
    return false;
}

typedef struct counts {
    int passed, failed, skipped;
} counts;

static void both(const kernel_case *k, bool bf16, kctx *ref, kctx *dev, char *want, char *got, void (*wait)(void),
                 counts *n) {
    static lab a, b;
    static size_t dirty[2] = {POOL, POOL};
    a = (lab){.c = ref, .pool = want, .bf16 = bf16, .value = F32, .seed = 1234};
    b = (lab){.c = dev, .pool = got, .bf16 = bf16, .value = bf16 ? BF16 : F32, .settle = wait, .seed = 1234};
    dev->products = b.value;
    if (setjmp(no_row)) {
        wait();
        n->skipped++;
        return;
    }
    run_case(k, &a, &dirty[0]);
    run_case(k, &b, &dirty[1]);
    if (compare(k, &b, &a))
        n->failed++;
    else
        n->passed++;
}

int main(int argc, char **argv) {
    if (argc < 2) return printf("usage: cuda_parity KERNELS.so [--small] [--scratch BYTES] [NAME...]\n"), 2;
    void *so = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    const cuda_rows *rows = so ? (const cuda_rows *)dlsym(so, "cuda_rows_here") : NULL;
    if (!rows) return printf("%s\n", dlerror()), 2;
    backend be = complete(rows->be);
    size_t bytes = backend_scratch(1);
    kctx ref = {.be = backend_open("ref"), .threads = 1, .scratch = aligned_alloc(64, bytes), .scratch_bytes = bytes};
    kctx dev = {.be = &be, .threads = 1};
    if (rows->open(&dev)) return fail_report("cuda_parity");
    char *want = aligned_alloc(64, POOL), *got = memory_shared(dev.mem, POOL);
    counts n = {0};
    char **only = argv + 2;
    const bool small = *only && !strcmp(*only, "--small");
    if (small) only++;
    if (only[0] && only[1] && !strcmp(only[0], "--scratch")) {
        const size_t wanted_bytes = strtoul(only[1], NULL, 10);
        dev.scratch_bytes = wanted_bytes < dev.scratch_bytes ? wanted_bytes : dev.scratch_bytes;
        only += 2;
    }
    for (int i = 0; i < CASES; i++)
        for (int bf16 = 0; bf16 < 2; bf16++)
            if (wanted(cases[i].name, small, only)) both(&cases[i], bf16, &ref, &dev, want, got, rows->settle, &n);
    free(ref.scratch), free(want);
    if (n.skipped) printf("%d cases wait for their kernels\n", n.skipped);
    printf("%d passed, %d failed\n", n.passed, n.failed);
    return n.failed != 0;
}
