/* Training steps as ./train does them, in this process, with the FMA peak sampled between them: tokens per second,
 * share of the peak, resident memory, as one line of JSON on stdout (what ./train prints goes to stderr).
 *
 *   bench_step CONFIG.yaml [--key=value ...] [--runs N] [--budget SECONDS] [--what FIGURE]
 *
 * train.c is compiled in as it stands: what is measured is the program's own step with whatever keys it knows, not a
 * copy of it. The first step warms up and does not count unless it took LONG_SECONDS, the activations' pages having
 * been touched before it; then up to N steps (5) are counted, no new one being begun when the budget (60 s) is spent.
 * One thread is timed by its processor time. */
int train_program(int argc, char **argv);
#define main train_program
#include "train.c" /* NOLINT(bugprone-suspicious-include): meant, see above */
#undef main

#include "bench/measure.h"

#include <unistd.h>

enum { LONG_SECONDS = 5, PEAK_MS = 60 };

typedef struct step_options {
    const char *config, *what;
    const char **overrides; /* "key=value" */
    int n, runs;
    double budget;
} step_options;

/* Floating point operations that a step must do, in products: forward 2 a weight and token, dx 2 where something below
 * has an adapter; adapters forward, dA, dB, and the two products of their dx; attention's causal triangle, 4 forward
 * and 8 backward (nothing is counted for computing scores again); the head's logits and dh of the targets. */
static double model_flops(const trainer *t, const train_row *row) {
    const model *m = &t->s.m;
    const double tokens = (double)row->tokens, head_width = (double)(m->hp.heads * m->hp.head_dim);
    double each = 0, scores = 0;
    bool below = false; /* an adapter in an earlier group, so that x needs a gradient */
    for (int s = 0; s < t->b.seqs; s++) {
        const double n = t->b.start[s + 1] - t->b.start[s];
        scores += 0.5 * n * (n + 1);
    }
    scores *= tokens / t->b.rows; /* micro-batches of the step have the same lengths */
    for (int g = 0; g < m->n_groups; g++) {
        bool here = false;
        for (int i = 0; i < m->groups[g].n; i++) {
            const proj *p = &m->groups[g].p[i];
            const double in = (double)p->w.cols, out = (double)p->w.rows, r = p->lora ? (double)p->lora->a.rows : 0;
            each += 2 * in * out + 2 * r * (in + out) + 2 * r * (in + 2 * out);
            if (below) each += 2 * in * out + 2 * r * in;
            here |= p->lora != NULL;
        }
        below |= here;
        if (g % 4 == 0) each += (below ? 12 : 4) * scores * head_width / tokens; /* 4 groups a layer, qkv first */
    }
    return tokens * each + (below ? 4.0 : 2.0) * (double)row->targets * (double)(m->hp.vocab * m->hp.dim);
}

/* The arenas are mapped but no page stands behind activations yet: better a line now than the kernel's killer later. */
static int check_memory(const trainer *t) {
    char line[128];
    double available = 0;
    FILE *f = fopen("/proc/meminfo", "r");
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, "MemAvailable:", 13)) available = 1024 * strtod(line + 13, NULL);
    if (f) fclose(f);
    const double wanted = (double)(t->s.act.size + t->s.tmp.size + t->s.k.scratch_bytes);
    if (available > 0 && wanted > 0.9 * available)
        return fail(EXIT_MEMORY, "a step needs %.1f GB and %.1f GB are available", 1e-9 * wanted, 1e-9 * available);
    return 0;
}

typedef struct result {
    samples seconds, ratio, peak;
    double flops, first_loss;
    train_row row;
} result;

static int measure_steps(trainer *t, const step_options *o, result *r) {
    const int threads = t->s.k.threads, batches = dataset_begin_epoch(&t->ds, 0);
    const int each = (int)t->cfg.gradient_accumulation_steps;
    const char *isa = t->s.k.be->name;
    double spent = 0, before = fma_peak(isa, threads, 1e-3 * PEAK_MS);
    memset(t->s.act.base, 0, t->s.act.size), memset(t->s.tmp.base, 0, t->s.tmp.size);
    if (batches < each) return fail(EXIT_INPUT, "%d micro-batches of data for a step of %d", batches, each);
    for (int step = 0; r->seconds.n < o->runs && (r->seconds.n == 0 || spent < o->budget); step++) {
        const int first = step % (batches / each) * each;
        const double began = bench_now(threads);
        r->row = (train_row){.step = step + 1};
        if (train_step(t, step, first, first + each, &r->row)) return -1;
        const double seconds = bench_now(threads) - began, after = fma_peak(isa, threads, 1e-3 * PEAK_MS);
        const double peak = 0.5 * (before + after);
        before = after, spent += seconds;
        if (step == 0) r->first_loss = r->row.loss;
        if (step == 0 && seconds < LONG_SECONDS) continue;
        r->flops = model_flops(t, &r->row);
        samples_add(&r->seconds, seconds), samples_add(&r->peak, peak);
        samples_add(&r->ratio, r->flops / seconds / peak);
    }
    return 0;
}

/* Keys that this program must not know by their field, since it is built against trees with and without them. */
static const char *override_of(const step_options *o, const char *key, const char *otherwise) {
    const size_t n = strlen(key);
    for (int i = o->n - 1; i >= 0; i--)
        if (!strncmp(o->overrides[i], key, n) && o->overrides[i][n] == '=') return o->overrides[i] + n + 1;
    return otherwise;
}

static void print_result(const trainer *t, const step_options *o, result *r, FILE *out) {
    const config *c = &t->cfg;
    const char *name = strrchr(c->base_model, '/');
    const double seconds = samples_median(&r->seconds);
    fprintf(
        out,
        "{\"what\": \"%s\", \"who\": \"peft.c\", \"model\": \"%s\", \"base\": \"%s\", \"compute\": \"%s\", "
        "\"activations\": \"%s\", \"batch\": %ld, \"length\": %ld, \"rank\": %ld, \"checkpointing\": %s, \"threads\": %d, \"isa\": \"%s\", "
        "\"runs\": %d, \"tokens_per_second\": %.1f, \"step_seconds\": %.4g, \"model_gflop\": %.1f, "
        "\"peak_gflops\": %.1f, \"peak_percent\": %.1f, \"peak_rss_bytes\": %lu, \"first_loss\": %.5f}\n",
        o->what, name ? name + 1 : c->base_model, c->load_in_4bit ? "nf4" : "fp",
        override_of(o, "compute_dtype", "f32"), override_of(o, "activation_dtype", "f32"), (long)c->micro_batch_size,
        (long)c->sequence_len, (long)c->lora_r, c->gradient_checkpointing ? "true" : "false", t->s.k.threads,
        t->s.k.be->name, r->seconds.n, (double)r->row.tokens / seconds, seconds, 1e-9 * r->flops,
        1e-9 * samples_median(&r->peak), 100 * samples_median(&r->ratio), (unsigned long)peak_rss_bytes(),
        r->first_loss);
}

static int bench_step(const step_options *o, FILE *out) {
    trainer t = {0};
    result r = {0};
    int bad = config_open(&t.cfg, o->config, o->overrides, o->n);
    if (!bad) bad = open_trainer(&t) || check_memory(&t) || measure_steps(&t, o, &r);
    if (!bad) print_result(&t, o, &r, out);
    close_trainer(&t);
    return bad ? fail_report("bench_step") : EXIT_DONE;
}

int main(int argc, char **argv) {
    threads_settle(argv);
    step_options o = {.what = "step", .runs = 5, .budget = 60};
    o.overrides = xcalloc((size_t)argc, sizeof *o.overrides);
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i];
        if (!strcmp(a, "--runs") && i + 1 < argc)
            o.runs = (int)strtol(argv[++i], NULL, 10);
        else if (!strcmp(a, "--budget") && i + 1 < argc)
            o.budget = strtod(argv[++i], NULL);
        else if (!strcmp(a, "--what") && i + 1 < argc)
            o.what = argv[++i];
        else if (!strncmp(a, "--", 2))
            o.overrides[o.n++] = a + 2;
        else
            o.config = a;
    }
    FILE *out = fdopen(dup(STDOUT_FILENO), "w"); /* the line of JSON; what the trainer prints goes to stderr */
    int bad = EXIT_USAGE;
    if (!o.config || o.runs < 1 || o.runs > SAMPLES_MAX || !out || dup2(STDERR_FILENO, STDOUT_FILENO) < 0)
        fprintf(stderr,
                "usage: bench_step CONFIG.yaml [--key=value ...] [--runs 1..%d] [--budget SECONDS] [--what FIGURE]\n",
                SAMPLES_MAX);
    else
        bad = bench_step(&o, out);
    if (out && fclose(out)) bad = EXIT_IO;
    free(o.overrides);
    return bad;
}
