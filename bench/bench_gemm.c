/* Speed of the products with weights, as a share of the machine's FMA peak. Peak and kernel are measured in turn in the
 * same process, because a shared machine changes its clock by the second; the figure is the median of the ratios.
 *
 *   bench_gemm [--isa NAME] [--threads N] [--rows T] [--runs N] [WORD]      only lines whose name contains WORD */
#include "core/arena.h"
#include "core/error.h"
#include "core/num.h"
#include "kernels/backend.h"

#include <omp.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { RUNS_MAX = 101 };

static bool one_thread; /* set once by main */

/* One thread is timed by its own processor time, which holds on a busy machine; several by the wall clock. */
static double now(void) {
    struct timespec t;
    clock_gettime(one_thread ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Ten independent chains of fma in registers, in assembly so that nothing reorders, merges or spills them. */
#define TEN(X) X("0") X("1") X("2") X("3") X("4") X("5") X("6") X("7") X("8") X("9")
enum { CHAINS = 10, PEAK_STEPS = 400000 };
#if defined(__x86_64__)
#define FMA_512(i) "vfmadd231ps %%zmm15, %%zmm14, %%zmm" i "\n\t"
#define FMA_256(i) "vfmadd231ps %%ymm15, %%ymm14, %%ymm" i "\n\t"
#define ZERO(i) "vpxor %%xmm" i ", %%xmm" i ", %%xmm" i "\n\t"
#define USED "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm14", "xmm15"
#define PEAK_LOOP(FMA)                                                                                                 \
    long n = PEAK_STEPS;                                                                                               \
    __asm__ volatile(TEN(ZERO) ZERO("14") ZERO("15") "1:\n\t" TEN(FMA) "dec %0\n\tjnz 1b\n\tvzeroupper"                \
                     : "+r"(n)                                                                                         \
                     :                                                                                                 \
                     : USED)
static void spin_512(void) { PEAK_LOOP(FMA_512); }
static void spin_256(void) { PEAK_LOOP(FMA_256); }
static const struct {
    const char *isa;
    void (*spin)(void);
    int lanes;
} peaks[] = {{"avx512", spin_512, 16}, {"avx2", spin_256, 8}, {"ref", spin_256, 8}};
#else
#define FMA_128(i) "fmla v" i ".4s, v30.4s, v31.4s\n\t"
static void spin_128(void) {
    long n = PEAK_STEPS;
    __asm__ volatile("1:\n\t" TEN(FMA_128) "subs %0, %0, #1\n\tb.ne 1b"
                     : "+r"(n)
                     :
                     : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "cc");
}
static const struct {
    const char *isa;
    void (*spin)(void);
    int lanes;
} peaks[] = {{"neon", spin_128, 4}, {"ref", spin_128, 4}};
#endif

/* floating point operations per second that all threads reach together */
static double peak(const char *isa, int threads) {
    size_t i = 0;
    while (i + 1 < sizeof peaks / sizeof *peaks && strcmp(peaks[i].isa, isa) != 0) i++;
    double t = now();
#pragma omp parallel num_threads(threads)
    peaks[i].spin();
    return 2.0 * CHAINS * PEAK_STEPS * peaks[i].lanes * threads / (now() - t);
}

typedef struct {
    kctx c;
    mat x, y;
    weight w;
    float *rows;
    int32_t *target;
} problem;
typedef void op(problem *p);
static void fwd(problem *p) { p->c.be->weight_fwd(&p->c, p->y, p->x, &p->w); }
static void bwd(problem *p) { p->c.be->weight_bwd(&p->c, p->x, p->y, &p->w); }
static void grad(problem *p) {
    p->c.be->weight_grad(&p->c, mat_f32((float *)p->w.data, p->w.rows, p->w.cols), p->y, p->x);
}
static void head(problem *p) {
    p->c.be->head_loss(&p->c, p->rows, mat_f32(p->y.data, p->x.rows, p->x.cols), p->x, &p->w, p->target);
}

static const struct {
    const char *name;
    op *run;
    int fmt;
    int64_t out, in;
    int products;
} cases[] = {
    {"smollm2 qo fwd", fwd, FMT_NF4, 576, 576, 1},
    {"smollm2 gate fwd", fwd, FMT_NF4, 1536, 576, 1},
    {"smollm2 down fwd", fwd, FMT_NF4, 576, 1536, 1},
    {"smollm2 qo dx", bwd, FMT_NF4, 576, 576, 1},
    {"smollm2 gate dx", bwd, FMT_NF4, 1536, 576, 1},
    {"smollm2 down dx", bwd, FMT_NF4, 576, 1536, 1},
    {"tinyllama gate fwd", fwd, FMT_NF4, 5632, 2048, 1},
    {"tinyllama gate dx", bwd, FMT_NF4, 5632, 2048, 1},
    {"llama2 gate fwd", fwd, FMT_NF4, 11008, 4096, 1},
    {"llama2 gate dx", bwd, FMT_NF4, 11008, 4096, 1},
    {"q4_1 gate fwd", fwd, FMT_Q4_1, 1536, 576, 1},
    {"q4_1 gate dx", bwd, FMT_Q4_1, 1536, 576, 1},
    {"f32 gate fwd", fwd, FMT_F32, 1536, 576, 1},
    {"f32 gate dx", bwd, FMT_F32, 1536, 576, 1},
    {"f32 gate dw", grad, FMT_F32, 1536, 576, 1},
    {"lora A fwd", fwd, FMT_F32, 16, 576, 1},
    {"lora B fwd", fwd, FMT_F32, 576, 16, 1},
    {"lora B wide fwd", fwd, FMT_F32, 1536, 16, 1},
    {"lora A dx", bwd, FMT_F32, 16, 576, 1},
    {"lora B dx", bwd, FMT_F32, 576, 16, 1},
    {"lora A dw", grad, FMT_F32, 16, 576, 1},
    {"lora B dw", grad, FMT_F32, 576, 16, 1},
    {"lora B wide dw", grad, FMT_F32, 1536, 16, 1},
    {"head bf16", head, FMT_BF16, 49152, 576, 2},
    {"head q8_0", head, FMT_Q8_0, 49152, 576, 2},
};

static float *filled(arena *a, int64_t n) {
    float *x = arena_array(a, (size_t)n, sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = (float)((i * 2654435761u >> 8) & 1023) * 0x1p-15f - 0x1p-6f;
    return x;
}

static int by_value(const void *a, const void *b) {
    double d = *(const double *)a - *(const double *)b;
    return (d > 0) - (d < 0);
}

/* runs enough calls for about 2 ms, so that the clock's resolution and the wake-up of threads do not count */
static void measure(problem *p, op *run, double flops, int runs, const char *name) {
    double ratio[RUNS_MAX], rate[RUNS_MAX];
    run(p);
    double t = now();
    run(p);
    const int calls = (int)(2e-3 / (now() - t)) + 1;
    for (int r = 0; r < runs; r++) {
        const double before = peak(p->c.be->name, p->c.threads);
        t = now();
        for (int i = 0; i < calls; i++) run(p);
        rate[r] = flops * calls / (now() - t);
        ratio[r] = 2 * rate[r] / (before + peak(p->c.be->name, p->c.threads));
    }
    qsort(ratio, (size_t)runs, sizeof *ratio, by_value);
    qsort(rate, (size_t)runs, sizeof *rate, by_value);
    printf("%-20s %-7s %d threads %7.1f GFLOPS %5.1f %% of peak (%.1f .. %.1f)\n", name, p->c.be->name, p->c.threads,
           1e-9 * rate[runs / 2], 100 * ratio[runs / 2], 100 * ratio[0], 100 * ratio[runs - 1]);
    fflush(stdout);
}

static void bench_case(const backend *be, int threads, int64_t rows, int runs, size_t i) {
    const weight_format *f = &weight_formats[cases[i].fmt];
    const int64_t out = cases[i].out, in = cases[i].in, n = out * in;
    problem p = {.c = {be, threads, NULL, backend_scratch(threads)}, .w = {f, out, in, 1, NULL, NULL}};
    const int64_t wide = out > in && cases[i].run != head ? out : in; /* of x or y, whichever is larger */
    arena a;
    CHECK(!arena_open(&a, "bench", p.c.scratch_bytes + (size_t)(4 * (2 * rows * wide + 2 * rows) + 9 * n) + (1 << 20)),
          "%s", fail_text());
    p.c.scratch = arena_alloc(&a, p.c.scratch_bytes);
    p.x = mat_f32(filled(&a, rows * wide), rows, in);
    p.y = mat_f32(filled(&a, rows * wide), rows, cases[i].run == head ? in : out);
    p.rows = filled(&a, rows), p.target = arena_array(&a, (size_t)rows, sizeof *p.target);
    memset(p.target, 0, (size_t)rows * sizeof *p.target);
    uint8_t *data = arena_array(&a, (size_t)(n / f->block), (size_t)f->bytes);
    float *x = filled(&a, n), *absmax = arena_array(&a, (size_t)n / 64 + 1, sizeof *absmax);
    uint8_t *code = arena_alloc(&a, (size_t)n / 64 + 1);
    float *nested = arena_array(&a, (size_t)n / 64 / 256 + 1, sizeof *nested);
    nf4_meta meta = {
        .blocksize = 64, .nested_block = 256, .code = code, .nested_absmax = nested, .map = nf4_dynamic_map};
    if (cases[i].fmt == FMT_NF4) {
        nf4_quant(x, n, data, absmax);
        meta.offset = nf4_quant_scales(absmax, n / 64, code, nested);
        p.w.meta = &meta;
    } else {
        f->quant(x, n, data);
    }
    p.w.data = data;
    measure(&p, cases[i].run, 2.0 * (double)rows * (double)n * cases[i].products, runs, cases[i].name);
    arena_close(&a);
}

int main(int argc, char **argv) {
    const char *isa = "auto", *word = "";
    long threads = omp_get_max_threads(), rows = 1024, runs = 9;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--isa") && i + 1 < argc)
            isa = argv[++i];
        else if (!strcmp(argv[i], "--threads") && i + 1 < argc)
            threads = strtol(argv[++i], NULL, 10);
        else if (!strcmp(argv[i], "--rows") && i + 1 < argc)
            rows = strtol(argv[++i], NULL, 10);
        else if (!strcmp(argv[i], "--runs") && i + 1 < argc)
            runs = strtol(argv[++i], NULL, 10);
        else
            word = argv[i];
    }
    const backend *be = backend_open(isa);
    if (!be) return fail_report("bench_gemm");
    if (threads < 1 || threads > THREADS_MAX || rows < 1 || runs < 1 || runs > RUNS_MAX) {
        fail(EXIT_USAGE, "--threads 1..%d, --rows from 1, --runs 1..%d", THREADS_MAX, RUNS_MAX);
        return fail_report("bench_gemm");
    }
    one_thread = threads == 1;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (strstr(cases[i].name, word)) bench_case(be, (int)threads, rows, (int)runs, i);
    return 0;
}
