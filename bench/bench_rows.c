/* Speed of products with packed rows (kernels/rows16.h), format by format: decode (one row of activations, matrices
 * that together do not fit the caches) as a share of the read bandwidth, prefill (--rows) as a share of the fp32 FMA
 * peak; both measured in this process around every run. SmolLM2's shape of an MLP's matrix, or TinyLlama's.
 *
 *   bench_rows [--isa NAME] [--threads N] [--rows T] [--runs N] [WORD]      only formats whose name contains WORD */
#include "bench/measure.h"
#include "core/error.h"
#include "kernels/rows16.h"

#include <stdlib.h>
#include <string.h>

enum { COPIES_BYTES = 100 << 20 };

typedef struct {
    kctx c;
    mat x, y;
    weight *w;
    int n, at;
} problem;

static void decode(void *ctx) {
    problem *p = ctx;
    for (int i = 0; i < p->n; i++) p->c.be->weight_fwd(&p->c, mat_rows(p->y, 0, 1), mat_rows(p->x, 0, 1), &p->w[i]);
}

static void prefill(void *ctx) {
    problem *p = ctx;
    p->c.be->weight_fwd(&p->c, p->y, p->x, &p->w[p->at++ % p->n]);
}

static void share_of_bandwidth(problem *p, double bytes, const bench_options *o) {
    samples ratio = {0}, rate = {0};
    decode(p);
    for (int r = 0; r < o->runs; r++) {
        const double before = read_bandwidth(o->threads, 5e-3), t = bench_now(o->threads);
        decode(p);
        const double got = bytes / (bench_now(o->threads) - t);
        samples_add(&rate, got);
        samples_add(&ratio, got / (0.5 * (before + read_bandwidth(o->threads, 5e-3))));
    }
    printf("decode %6.1f GB/s %5.1f %% of reading (%.1f .. %.1f)  ", 1e-9 * samples_median(&rate),
           100 * samples_median(&ratio), 100 * ratio.x[0], 100 * ratio.x[ratio.n - 1]);
}

static void bench_format(const bench_options *o, int fmt, int64_t out, int64_t in) {
    problem p = {.c = {.be = o->be, .threads = o->threads, .scratch_bytes = backend_scratch(o->threads)}};
    arena a;
    made_weight *m = xcalloc(1, sizeof *m);
    CHECK(!arena_open(&a, "bench",
                      (size_t)COPIES_BYTES * 2 + p.c.scratch_bytes + (size_t)(4 * o->rows * (in + out)) + (64 << 20)),
          "%s", fail_text());
    p.c.scratch = arena_alloc(&a, p.c.scratch_bytes);
    p.x = mat_f32(filled(&a, o->rows * in), o->rows, in), p.y = mat_f32(filled(&a, o->rows * out), o->rows, out);
    make_weight(m, &a, fmt, out, in, NULL);
    const int64_t bytes = rows16_bytes(&m->w, true);
    p.n = (int)(COPIES_BYTES / bytes);
    p.w = xcalloc((size_t)p.n, sizeof *p.w);
    for (int i = 0; i < p.n; i++) p.w[i] = rows16_pack(&m->w, 0, true, &a);
    printf("%-7s %ldx%ld %-16s %d threads  ", weight_formats[fmt].name, (long)out, (long)in, o->be->name, o->threads);
    share_of_bandwidth(&p, (double)bytes * p.n, o);
    figure f;
    const double flops = 2.0 * (double)(o->rows * out * in);
    figure_measure(&f, prefill, &p, flops, o);
    printf("%ld rows %7.1f GFLOPS %5.1f %% of fp32's peak\n", (long)o->rows, 1e-9 * flops / samples_median(&f.seconds),
           100 * samples_median(&f.ratio));
    fflush(stdout);
    for (int i = 0; i < p.n; i++) free((void *)p.w[i].meta);
    free(p.w), free(m);
    arena_close(&a);
}

int main(int argc, char **argv) {
    static const int fmts[] = {FMT_NF4,  FMT_Q4_0, FMT_IQ4_NL, FMT_Q4_1, FMT_Q5_0,
                               FMT_Q5_1, FMT_Q8_0, FMT_Q4_K,   FMT_Q5_K, FMT_Q6_K};
    bench_options o = {.isa = "int8", .word = "", .rows = 512, .runs = 9};
    (void)argc;
    if (bench_begin(&o, argv)) return fail_report("bench_rows");
    for (size_t i = 0; i < sizeof fmts / sizeof *fmts; i++) {
        const bool k = weight_formats[fmts[i]].block == 256;
        if (strstr(weight_formats[fmts[i]].name, o.word)) bench_format(&o, fmts[i], k ? 5632 : 1536, k ? 2048 : 576);
    }
    return 0;
}
