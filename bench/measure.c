#include "bench/measure.h"
#include "core/error.h"
#include "core/threads.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

double bench_now(int threads) {
    struct timespec t;
    clock_gettime(threads == 1 ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- the machine's peak: ten independent chains of fma in registers, in assembly so that nothing reorders, merges or
 * spills them ---- */

#define TEN(X) X("0") X("1") X("2") X("3") X("4") X("5") X("6") X("7") X("8") X("9")
enum { CHAINS = 10, PEAK_STEPS = 50000 };
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

/* The fastest round counts: a round that one thread spent off its core says nothing of the machine. The clock starts
 * when every thread is awake: a fork may take as long as a short measurement. */
double fma_peak(const char *isa, int threads, double seconds) {
    size_t i = 0;
    while (i + 1 < sizeof peaks / sizeof *peaks && strncmp(peaks[i].isa, isa, strlen(peaks[i].isa)) != 0) i++;
    double began = 0, last = 0, shortest = HUGE_VAL;
    bool more = true;
#pragma omp parallel num_threads(threads)
    {
#pragma omp barrier
#pragma omp master
        began = last = bench_now(threads);
        while (more) {
            peaks[i].spin();
#pragma omp barrier
#pragma omp master
            {
                const double now = bench_now(threads);
                shortest = fmin(shortest, now - last), last = now;
                more = now - began < seconds;
            }
#pragma omp barrier
        }
    }
    return 2.0 * CHAINS * PEAK_STEPS * peaks[i].lanes * threads / shortest;
}

bool peaks_agree(double a, double b) { return fabs(a - b) <= 0.1 * fmax(a, b); }

/* ---- reading memory ---- */

enum { READ_BYTES = 256 << 20, READ_STEP = 512, READ_PIECE = 1 << 20 };
#if defined(__x86_64__)
#define READ_256(i) "vmovups " #i "*32(%0), %%ymm" #i "\n\t"
#define FETCH_64(i) "prefetcht0 " #i "*64+2048(%0)\n\t"
#define EIGHT(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7)
/* half a step of 32-byte loads at a time, which every machine here has */
static void read_piece(const char *p, const char *end) {
    __asm__ volatile("1:\n\t" EIGHT(FETCH_64) EIGHT(READ_256) "add $256, %0\n\t" EIGHT(
                         READ_256) "add $256, %0\n\tcmp %1, %0\n\tjb 1b\n\tvzeroupper"
                     : "+r"(p)
                     : "r"(end)
                     : "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "memory", "cc");
}
#else
static void read_piece(const char *p, const char *end) {
    for (; p < end; p += 64) {
        __builtin_prefetch(p + 2048);
        __asm__ volatile("ldp q0, q1, [%0]\n\tldp q2, q3, [%0, #32]" : : "r"(p) : "v0", "v1", "v2", "v3", "memory");
    }
}
#endif

double read_bandwidth(int threads, double seconds) {
    static char *bytes; /* made once: its pages are first touched by the threads that read them */
    const int64_t mine = READ_BYTES / threads / READ_STEP * READ_STEP;
    double took = 0, began = 0;
    int64_t at = 0, total = 0;
    bool more = true;
    if (!bytes) {
        bytes = aligned_alloc(2 << 20, READ_BYTES);
        CHECK(bytes, "%d bytes", READ_BYTES);
#pragma omp parallel num_threads(threads)
        memset(bytes + omp_get_thread_num() * mine, 1, (size_t)mine);
    }
#pragma omp parallel num_threads(threads)
    {
        const char *p = bytes + omp_get_thread_num() * mine;
#pragma omp barrier
#pragma omp master
        began = bench_now(threads);
        while (more) {
            read_piece(p + at, p + at + READ_PIECE);
#pragma omp barrier
#pragma omp master
            {
                at += READ_PIECE, total += READ_PIECE;
                if (at + READ_PIECE > mine) at = 0;
                took = bench_now(threads) - began;
                more = took < seconds;
            }
#pragma omp barrier
        }
    }
    return (double)total * threads / took;
}

/* ---- medians ---- */

void samples_add(samples *s, double x) {
    CHECK(s->n < SAMPLES_MAX, "%d samples", s->n);
    s->x[s->n++] = x;
}

static int by_value(const void *a, const void *b) {
    const double d = *(const double *)a - *(const double *)b;
    return (d > 0) - (d < 0);
}

double samples_median(samples *s) {
    CHECK(s->n > 0, "the median of nothing");
    qsort(s->x, (size_t)s->n, sizeof *s->x, by_value);
    return 0.5 * (s->x[(s->n - 1) / 2] + s->x[s->n / 2]);
}

enum { PEAK_US = 1500, RUN_US = 2000, TRIES = 8 };

int figure_calls(timed *run, void *ctx, int threads) {
    run(ctx);
    const double t = bench_now(threads);
    run(ctx);
    return (int)(1e-6 * RUN_US / (bench_now(threads) - t)) + 1;
}

void figure_add(figure *f, timed *run, void *ctx, double flops, int calls, const bench_options *o) {
    double before, after, seconds;
    int tries = 0;
    do {
        before = fma_peak(o->be->name, o->threads, 1e-6 * PEAK_US);
        const double t = bench_now(o->threads);
        for (int i = 0; i < calls; i++) run(ctx);
        seconds = (bench_now(o->threads) - t) / calls;
        after = fma_peak(o->be->name, o->threads, 1e-6 * PEAK_US);
    } while (!peaks_agree(before, after) && ++tries < TRIES);
    const double peak = 0.5 * (before + after);
    f->disturbed += tries == TRIES;
    samples_add(&f->seconds, seconds), samples_add(&f->peak, peak), samples_add(&f->ratio, flops / seconds / peak);
}

void figure_measure(figure *f, timed *run, void *ctx, double flops, const bench_options *o) {
    const int calls = figure_calls(run, ctx, o->threads);
    *f = (figure){0};
    for (int r = 0; r < o->runs; r++) figure_add(f, run, ctx, flops, calls, o);
}

void figure_print(figure *f, double flops, const bench_options *o) {
    const double seconds = samples_median(&f->seconds), ratio = samples_median(&f->ratio);
    printf(
        "\"isa\": \"%s\", \"threads\": %d, \"runs\": %d, \"seconds\": %.6g, \"gflops\": %.1f, \"peak_gflops\": %.1f, "
        "\"peak_percent\": %.1f, \"peak_percent_low\": %.1f, \"peak_percent_high\": %.1f, \"disturbed\": %d",
        o->be->name, o->threads, f->ratio.n, seconds, 1e-9 * flops / seconds, 1e-9 * samples_median(&f->peak),
        100 * ratio, 100 * f->ratio.x[0], 100 * f->ratio.x[f->ratio.n - 1], f->disturbed);
}

/* ---- data ---- */

void fill_floats(float *x, int64_t n) {
    for (int64_t i = 0; i < n; i++) x[i] = (float)((i * 2654435761u >> 8) & 1023) * 0x1p-15f - 0x1p-6f;
}

float *filled(arena *a, int64_t n) {
    float *x = arena_array(a, (size_t)n, sizeof *x);
    fill_floats(x, n);
    return x;
}

size_t made_weight_bytes(int fmt, int64_t out, int64_t in) {
    const weight_format *f = &weight_formats[fmt];
    const int64_t n = out * in;
    return (size_t)(n / f->block * f->bytes + (fmt == FMT_NF4 ? n / 64 + n / 4096 : 0)) + 4096;
}

/* Heap memory for what is only needed while quantising, so that the arena holds what a model would hold. */
void make_weight(made_weight *m, arena *a, int fmt, int64_t out, int64_t in, float *values) {
    const weight_format *f = &weight_formats[fmt];
    const int64_t n = out * in, blocks = n / 64;
    uint8_t *data = arena_array(a, (size_t)(n / f->block), (size_t)f->bytes);
    float *x = xcalloc((size_t)n, sizeof *x);
    fill_floats(x, n);
    m->w = (weight){f, out, in, 1, data, NULL};
    if (fmt == FMT_NF4) {
        float *absmax = xcalloc((size_t)blocks, sizeof *absmax);
        uint8_t *code = arena_alloc(a, (size_t)blocks);
        float *nested = arena_array(a, (size_t)(blocks + 255) / 256, sizeof *nested);
        nf4_quant(x, n, data, absmax);
        m->meta = (nf4_meta){
            .blocksize = 64, .nested_block = 256, .code = code, .nested_absmax = nested, .map = nf4_dynamic_map};
        m->meta.offset = nf4_quant_scales(absmax, blocks, code, nested);
        m->w.meta = &m->meta;
        free(absmax);
    } else {
        f->quant(x, n, data);
    }
    free(x);
    if (values) f->dequant(&m->w, 0, n, values);
}

/* ---- memory ---- */

resident resident_memory(void) {
    resident r = {0};
    char line[256];
    FILE *f = fopen("/proc/self/status", "r");
    if (!f) return r;
    while (fgets(line, sizeof line, f)) {
        if (!strncmp(line, "VmRSS:", 6)) r.now = 1024 * strtod(line + 6, NULL);
        if (!strncmp(line, "VmHWM:", 6)) r.peak = 1024 * strtod(line + 6, NULL);
    }
    fclose(f);
    return r;
}

bool resident_reset(void) {
    FILE *f = fopen("/proc/self/clear_refs", "w");
    if (!f) return false;
    const bool put = fputs("5", f) >= 0;
    return fclose(f) == 0 && put;
}

/* ---- the command line ---- */

static int read_number(const char *name, const char *text, int64_t low, int64_t high, int64_t *out) {
    char *end;
    const long long x = strtoll(text, &end, 10);
    if (*end || end == text || x < low || x > high)
        return fail(EXIT_USAGE, "%s %s: expected a whole number from %ld to %ld", name, text, (long)low, (long)high);
    *out = x;
    return 0;
}

int bench_begin(bench_options *o, char **argv) {
    threads_settle(argv);
    int64_t threads = o->threads ? o->threads : omp_get_num_procs(), runs = o->runs;
    for (char **a = argv + 1; *a; a++) {
        if (!strcmp(*a, "--isa") && a[1])
            o->isa = *++a;
        else if (!strcmp(*a, "--threads") && a[1]) {
            if (read_number(a[0], a[1], 1, THREADS_MAX, &threads)) return -1;
            a++;
        } else if (!strcmp(*a, "--runs") && a[1]) {
            if (read_number(a[0], a[1], 1, SAMPLES_MAX, &runs)) return -1;
            a++;
        } else if (!strcmp(*a, "--rows") && a[1]) {
            if (read_number(a[0], a[1], 1, 1 << 20, &o->rows)) return -1;
            a++;
        } else if (**a == '-')
            return fail(EXIT_USAGE, "unknown option '%s'; known: --isa NAME, --threads N, --runs N, --rows N, WORD",
                        *a);
        else
            o->word = *a;
    }
    o->threads = (int)threads, o->runs = (int)runs;
    o->be = backend_open(o->isa);
    return o->be ? 0 : -1;
}
