/* Causal attention, forward and backward, as sequences grow: one sequence of T tokens, and T tokens packed as sequences
 * of 256; 9 heads over 3 of keys and values, 64 wide (SmolLM2-135M's).
 *
 *   bench_attention [--isa NAME] [--threads N] [--rows LONGEST] [--runs N] [WORD]   WORD: one, packed, forward,
 * backward
 *
 * Work counted is that of the causal triangle: n (n + 1) / 2 scores a sequence and head, 4 * dim operations each
 * forward (scores, values) and 10 * dim backward (scores again, dP, dV, dQ, dK). "growth" is the time for one operation
 * against that of the shortest length: 1 when time grows as the work does. "extra_bytes" is what the call made resident
 * beyond its inputs and results, measured: the high-water mark against the resident memory before, with fresh scratch.
 */
#include "bench/measure.h"
#include "core/error.h"

#include <stdlib.h>
#include <string.h>

enum { HEADS = 9, KV_HEADS = 3, DIM = 64, PACKED = 256, SHORTEST = 256, SEQS_MAX = 1 << 12 };

typedef struct problem {
    kctx c;
    attn a;
    mat q, k, v, o, dq, dk, dv, dout;
    float *lse;
} problem;

static void forward(void *ctx) {
    problem *p = ctx;
    p->c.be->attn_fwd(&p->c, p->o, p->lse, p->q, p->k, p->v, &p->a);
}

static void backward(void *ctx) {
    problem *p = ctx;
    p->c.be->attn_bwd(&p->c, p->dq, p->dk, p->dv, p->dout, p->q, p->k, p->v, p->o, p->lse, &p->a);
}

static const struct {
    const char *name;
    timed *run;
    int flops; /* for one score and element of a head */
} directions[] = {{"forward", forward, 4}, {"backward", backward, 10}};
enum { DIRECTIONS = sizeof directions / sizeof *directions };

static mat filled_mat(arena *a, int64_t rows, int64_t cols) { return mat_f32(filled(a, rows * cols), rows, cols); }

static problem make_problem(arena *a, int64_t rows, int64_t length, const bench_options *o) {
    static int32_t start[SEQS_MAX + 1], zero[SEQS_MAX];
    const int seqs = (int)(rows / length);
    for (int i = 0; i <= seqs; i++) start[i] = (int32_t)(i * length);
    problem p = {.c = {.be = o->be, .threads = o->threads, .scratch_bytes = backend_scratch(o->threads)},
                 .a = {HEADS, KV_HEADS, DIM, 0.125f, 0, seqs, start, zero, start}};
    mat *wide[] = {&p.q, &p.o, &p.dq, &p.dout}, *narrow[] = {&p.k, &p.v, &p.dk, &p.dv};
    for (int i = 0; i < 4; i++) {
        *wide[i] = filled_mat(a, rows, HEADS * DIM);
        *narrow[i] = filled_mat(a, rows, KV_HEADS * DIM);
    }
    p.lse = filled(a, rows * HEADS);
    return p;
}

/* one call with scratch that no page stands behind yet */
static double extra_bytes(problem *p, timed *run) {
    arena fresh;
    char *const scratch = p->c.scratch;
    CHECK(!arena_open(&fresh, "scratch", p->c.scratch_bytes), "%s", fail_text());
    p->c.scratch = arena_alloc(&fresh, p->c.scratch_bytes);
    const bool measured = resident_reset();
    const double before = resident_memory().now;
    run(p);
    const double extra = resident_memory().peak - before;
    p->c.scratch = scratch;
    arena_close(&fresh);
    return measured && extra > 0 ? extra : 0;
}

/* per_flop [DIRECTIONS]: of the shortest length; set when it is 0 */
static void bench_length(int64_t rows, int64_t length, double *per_flop, const bench_options *o) {
    const char *kind = length == rows ? "one sequence" : "packed by 256";
    problem p;
    arena a;
    CHECK(!arena_open(&a, "bench",
                      backend_scratch(o->threads) + (size_t)(4 * rows * (4 * (HEADS + KV_HEADS) * DIM + HEADS)) + 4096),
          "%s", fail_text());
    p = make_problem(&a, rows, length, o);
    p.c.scratch = arena_alloc(&a, p.c.scratch_bytes);
    for (int d = 0; d < DIRECTIONS; d++) {
        if (!strstr(kind, o->word) && !strstr(directions[d].name, o->word)) continue;
        const double scores = 0.5 * p.a.seqs * (double)length * (double)(length + 1) * HEADS;
        const double flops = directions[d].flops * scores * DIM;
        if (d > 0) forward(&p); /* o and lse that belong together */
        const double extra = extra_bytes(&p, directions[d].run);
        figure f;
        figure_measure(&f, directions[d].run, &p, flops, o);
        const double each = 1 / (samples_median(&f.ratio)); /* in units of the peak, so that the clock does not count */
        if (per_flop[d] == 0) per_flop[d] = each;
        printf("{\"what\": \"attention\", \"name\": \"%s\", \"direction\": \"%s\", \"rows\": %ld, ", kind,
               directions[d].name, (long)rows);
        figure_print(&f, flops, o);
        printf(", \"growth\": %.2f, \"extra_bytes\": %.0f}\n", each / per_flop[d], extra);
        fflush(stdout);
    }
    arena_close(&a);
}

int main(int argc, char **argv) {
    bench_options o = {.isa = "auto", .word = "", .rows = 8192, .runs = 5};
    (void)argc;
    if (bench_begin(&o, argv)) return fail_report("bench_attention");
    if (o.rows < SHORTEST || o.rows > (int64_t)SEQS_MAX * PACKED || o.rows % PACKED) {
        fail(EXIT_USAGE, "--rows %ld: expected a multiple of %d up to %d", (long)o.rows, PACKED, SEQS_MAX * PACKED);
        return fail_report("bench_attention");
    }
    double per_flop[DIRECTIONS] = {0}, packed[DIRECTIONS] = {0};
    for (int64_t rows = SHORTEST; rows <= o.rows; rows *= 2) bench_length(rows, rows, per_flop, &o);
    for (int64_t rows = 4 * PACKED; rows <= o.rows; rows *= 2) bench_length(rows, PACKED, packed, &o);
    return 0;
}
