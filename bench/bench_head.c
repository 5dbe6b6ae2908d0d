/* The head's loss with its gradient, as training calls it (gather of the rows that have targets, log-softmax over all
 * words, dh; through the tape), bf16 weights: share of the FMA peak, and the memory that a call takes.
 *
 *   bench_head [--isa NAME] [--threads N] [--runs N] [WORD]      WORD: 49152 or 256000
 *
 * Work counted: 2 * targets * words * width for the logits and as much for dh. "of_targets" is the time against the
 * same batch with all rows targets, divided by the share of targets: 1 when other tokens cost nothing. "extra_bytes":
 * the high-water mark of resident memory over what was resident before, with all arenas fresh; it holds dh and the rows
 * gathered ([targets, width] twice), scratch of every thread, and not the logits, "logits_bytes" of them. */
#include "autograd/ops.h"
#include "bench/measure.h"
#include "core/error.h"

#include <stdlib.h>
#include <string.h>

typedef struct problem {
    kctx c;
    arena act, tmp, host;
    weight head;
    mat h;
    int64_t every; /* row i is a target when i % every == 0 */
    int32_t *row, *target;
    float *weight;
} problem;

static const struct {
    const char *name;
    int64_t words, dim, rows, every;
    int runs; /* at most */
} cases[] = {
    {"49152 x 576", 49152, 576, 1024, 1, 5},
    {"49152 x 576", 49152, 576, 1024, 4, 5},
    {"256000 x 2048", 256000, 2048, 256, 1, 3},
};
enum { CASES = sizeof cases / sizeof *cases, HOST_BYTES = 1 << 20 };

static void step(void *ctx) {
    problem *p = ctx;
    step_sums sums = {0};
    arena_release(&p->act, 0), arena_release(&p->tmp, 0), arena_release(&p->host, 0);
    tape t = tape_begin(&p->c, &p->act, &p->tmp, &p->host, true, false);
    tensor *h = tape_wrap(&t, p->h, true), *chosen = h;
    const int n = (int)((p->h.rows + p->every - 1) / p->every);
    float *logprob = arena_array(&p->act, (size_t)n, sizeof *logprob);
    if (p->every > 1) chosen = op_gather(&t, h, p->row, n);
    op_head_loss(&t, &p->head, chosen, p->target, p->weight, logprob, &sums);
    tape_backward(&t);
    CHECK(sums.targets == n && h->grad.data, "%ld targets of %d", (long)sums.targets, n);
}

static void open_step(problem *p) {
    const size_t bytes = (size_t)(p->h.rows * (p->h.cols + 16)) * sizeof(float);
    CHECK(!arena_open(&p->act, "act", 3 * bytes + (1 << 16)) && !arena_open(&p->tmp, "tmp", bytes + (1 << 16)) &&
              !arena_open(&p->host, "host", HOST_BYTES),
          "%s", fail_text());
}

static double extra_bytes(problem *p) {
    const bool measured = resident_reset();
    const double before = resident_memory().now;
    step(p);
    const double extra = resident_memory().peak - before;
    return measured && extra > 0 ? extra : 0;
}

/* all_seconds: of one operation when every row is a target; set by such a case, read by the others */
static void bench_case(int i, double *all_rows, const bench_options *all) {
    bench_options o = *all;
    if (o.runs > cases[i].runs) o.runs = cases[i].runs;
    const int64_t rows = cases[i].rows, dim = cases[i].dim, words = cases[i].words;
    const int64_t targets = (rows + cases[i].every - 1) / cases[i].every;
    problem p = {.c = {.be = o.be, .threads = o.threads, .scratch_bytes = backend_scratch(o.threads)},
                 .every = cases[i].every};
    made_weight w;
    arena a;
    CHECK(!arena_open(&a, "bench",
                      p.c.scratch_bytes + (size_t)(4 * rows * (dim + 3)) + made_weight_bytes(FMT_BF16, words, dim) +
                          4096),
          "%s", fail_text());
    p.c.scratch = arena_alloc(&a, p.c.scratch_bytes);
    p.h = mat_f32(filled(&a, rows * dim), rows, dim);
    p.weight = filled(&a, rows);
    p.row = arena_array(&a, (size_t)rows, sizeof *p.row), p.target = arena_array(&a, (size_t)rows, sizeof *p.target);
    for (int64_t r = 0; r < targets; r++) p.row[r] = (int32_t)(r * p.every), p.target[r] = (int32_t)(r * 37 % words);
    make_weight(&w, &a, FMT_BF16, words, dim, NULL);
    p.head = w.w;
    open_step(&p);
    const double extra = extra_bytes(&p), flops = 4.0 * (double)targets * (double)words * (double)dim;
    figure f;
    figure_measure(&f, step, &p, flops, &o);
    const double each = 1 / samples_median(&f.ratio);
    if (p.every == 1) *all_rows = each;
    printf("{\"what\": \"head\", \"name\": \"%s\", \"rows\": %ld, \"targets\": %ld, ", cases[i].name, (long)rows,
           (long)targets);
    figure_print(&f, flops, &o);
    if (*all_rows > 0) printf(", \"of_targets\": %.2f", each / *all_rows);
    printf(", \"extra_bytes\": %.0f, \"logits_bytes\": %.0f}\n", extra, 4.0 * (double)targets * (double)words);
    fflush(stdout);
    arena_close(&p.act), arena_close(&p.tmp), arena_close(&p.host), arena_close(&a);
}

int main(int argc, char **argv) {
    bench_options o = {.isa = "auto", .word = "", .runs = 5};
    double all_rows = 0;
    (void)argc;
    if (bench_begin(&o, argv)) return fail_report("bench_head");
    for (int i = 0; i < CASES; i++)
        if (strstr(cases[i].name, o.word)) bench_case(i, &all_rows, &o);
    return 0;
}
