/* What every benchmark program shares: clocks, the machine's FMA peak, medians, resident memory, filled matrices.
 *
 * A shared machine changes its speed by the second, so a share of peak is always taken against a peak measured in the
 * same process right before and after, and the figure is the median of such ratios, never a ratio of medians. */
#ifndef PEFT_BENCH_MEASURE_H
#define PEFT_BENCH_MEASURE_H

#include "core/arena.h"
#include "kernels/backend.h"

#include <stdbool.h>
#include <stdio.h>

enum { SAMPLES_MAX = 101 };

/* Options that every program takes: [--isa NAME] [--threads N] [--runs N] [WORD]; the rest is the program's own. */
typedef struct bench_options {
    const char *isa, *word;
    int threads, runs;
    int64_t rows;
    const backend *be;
} bench_options;
/* -1 after fail(). Defaults are what *o holds; threads 0: one a core. Settles the threads' waiting as ./train does. */
int bench_begin(bench_options *o, char **argv);

/* Seconds. One thread is timed by its own processor time, which holds on a busy machine; several by the wall clock. */
double bench_now(int threads);

/* Floating point operations per second that `threads` threads reach together with fused multiply-adds on the registers
 * of that instruction set (a backend's name): the fastest of the rounds, a tenth of a millisecond each, that fit into
 * about `seconds`. */
double fma_peak(const char *isa, int threads, double seconds);
/* Within 10 %: between such samples the machine kept its speed. */
bool peaks_agree(double a, double b);

/* Bytes per second that `threads` threads read together, one stream each, from 256 MB. */
double read_bandwidth(int threads, double seconds);

/* A quantity measured `n` times. */
typedef struct samples {
    double x[SAMPLES_MAX];
    int n;
} samples;
void samples_add(samples *s, double x);
double samples_median(samples *s); /* sorts */

typedef void timed(void *ctx);
/* One figure of a kernel: `runs` times [peak, `calls` calls of run, peak], calls chosen for 2 ms or more after one
 * call that does not count. A run between peaks that do not agree is repeated, up to 8 times; `disturbed` counts those
 * that never came between two that do. */
typedef struct figure {
    samples seconds, ratio, peak; /* of one call; of flops to peak; flops per second */
    int disturbed;
} figure;
void figure_add(figure *f, timed *run, void *ctx, double flops, int calls, const bench_options *o);
int figure_calls(timed *run, void *ctx, int threads);
void figure_measure(figure *f, timed *run, void *ctx, double flops, const bench_options *o);
/* "isa": .., "threads": .., "seconds": .., "gflops": .., "peak_percent": ..., without braces: a line's tail */
void figure_print(figure *f, double flops, const bench_options *o);

/* n small numbers that no kernel can take a shortcut on. */
void fill_floats(float *x, int64_t n);
float *filled(arena *a, int64_t n);

/* A weight [out, in] in fmt, made from numbers as above: NF4 with double-quantised scales. */
typedef struct made_weight {
    weight w;
    nf4_meta meta;
} made_weight;
size_t made_weight_bytes(int fmt, int64_t out, int64_t in); /* of the arena */
/* values, when not NULL, receives what the codes stand for: [out, in] fp32. */
void make_weight(made_weight *m, arena *a, int fmt, int64_t out, int64_t in, float *values);

/* Resident memory of the process and its high-water mark, bytes; the mark can be set back to what is resident now. */
typedef struct resident {
    double now, peak;
} resident;
resident resident_memory(void);
bool resident_reset(void); /* false: the system does not allow it */

#endif
