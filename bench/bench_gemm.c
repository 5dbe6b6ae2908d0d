/* Speed of single products with weights, and of the head, as a share of the machine's FMA peak: for work on one kernel.
 * The figure over whole layers is bench_layer's.
 *
 *   bench_gemm [--isa NAME] [--threads N] [--rows T] [--runs N] [WORD]      only lines whose name contains WORD */
#include "bench/measure.h"
#include "core/error.h"

#include <string.h>

typedef struct {
    kctx c;
    mat x, y;
    made_weight w;
    float *rows;
    int32_t *target;
} problem;
static void fwd(void *ctx) {
    problem *p = ctx;
    p->c.be->weight_fwd(&p->c, p->y, p->x, &p->w.w);
}
static void bwd(void *ctx) {
    problem *p = ctx;
    p->c.be->weight_bwd(&p->c, p->x, p->y, &p->w.w);
}
static void grad(void *ctx) {
    problem *p = ctx;
    p->c.be->weight_grad(&p->c, mat_f32((float *)p->w.w.data, p->w.w.rows, p->w.w.cols), p->y, p->x);
}
static void head(void *ctx) {
    problem *p = ctx;
    p->c.be->head_loss(&p->c, p->rows, mat_f32(p->y.data, p->x.rows, p->x.cols), p->x, &p->w.w, p->target);
}

static const struct {
    const char *name;
    timed *run;
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

static void bench_case(const bench_options *o, size_t i) {
    const int64_t out = cases[i].out, in = cases[i].in, n = out * in, rows = o->rows;
    problem p = {.c = {.be = o->be, .threads = o->threads, .scratch_bytes = backend_scratch(o->threads)}};
    const int64_t wide = out > in && cases[i].run != head ? out : in; /* of x or y, whichever is larger */
    arena a;
    CHECK(!arena_open(&a, "bench",
                      p.c.scratch_bytes + (size_t)(4 * (2 * rows * wide + 2 * rows)) +
                          made_weight_bytes(cases[i].fmt, out, in) + (1 << 20)),
          "%s", fail_text());
    p.c.scratch = arena_alloc(&a, p.c.scratch_bytes);
    p.x = mat_f32(filled(&a, rows * wide), rows, in);
    p.y = mat_f32(filled(&a, rows * wide), rows, cases[i].run == head ? in : out);
    p.rows = filled(&a, rows), p.target = arena_array(&a, (size_t)rows, sizeof *p.target);
    memset(p.target, 0, (size_t)rows * sizeof *p.target);
    make_weight(&p.w, &a, cases[i].fmt, out, in, NULL);
    const double flops = 2.0 * (double)rows * (double)n * cases[i].products;
    figure f;
    figure_measure(&f, cases[i].run, &p, flops, o);
    const double seconds = samples_median(&f.seconds), ratio = samples_median(&f.ratio);
    printf("%-20s %-7s %d threads %7.1f GFLOPS %5.1f %% of peak (%.1f .. %.1f)\n", cases[i].name, o->be->name,
           o->threads, 1e-9 * flops / seconds, 100 * ratio, 100 * f.ratio.x[0], 100 * f.ratio.x[f.ratio.n - 1]);
    fflush(stdout);
    arena_close(&a);
}

int main(int argc, char **argv) {
    bench_options o = {.isa = "auto", .word = "", .rows = 1024, .runs = 9};
    (void)argc;
    if (bench_begin(&o, argv)) return fail_report("bench_gemm");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (strstr(cases[i].name, o.word)) bench_case(&o, i);
    return 0;
}
