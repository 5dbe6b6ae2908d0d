/* Training steps as ./train does them, in this process, with the FMA peak sampled some sixty times within each (its
 * time is left out): tokens per second, share of the peak, resident memory, as one line of JSON on stdout (what ./train
 * prints goes to stderr).
 *
 *   bench_step CONFIG.yaml [--key=value ...] [--runs N] [--budget SECONDS] [--what FIGURE]
 *
 * train.c is compiled in as it stands: what is measured is the program's own step with whatever keys it knows, not a
 * copy of it. The first step warms up and does not count unless it took LONG_SECONDS, the activations' pages having
 * been touched before it; then up to N steps (5) are counted, no new one being begun when the budget (60 s) is spent.
 * One thread is timed by its processor time. */
#include "train_log.h"
int train_program(int argc, char **argv);
int kept_log_step(train_log *l, const train_row *r); /* where train.c sends a step's results */
#define main train_program
#define train_log_step kept_log_step
#include "train.c" /* NOLINT(bugprone-suspicious-include): meant, see above */
#undef main
#undef train_log_step

#include "bench/measure.h"

#include <unistd.h>

enum { LONG_SECONDS = 5, SLICE_PEAK_US = 400 };

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
    int disturbed; /* steps that were counted though the machine changed its speed within their slices */
    train_row row;
} result;

static train_row last_row;

int kept_log_step(train_log *l, const train_row *r) {
    (void)l;
    last_row = *r;
    return 0;
}

/* ---- the step in slices: the peak is sampled behind every call of attention, which a layer makes once each way ----
 */

static struct {
    const backend *be; /* the trainer's own */
    int threads;
    double at, peak;      /* where the present slice began, and the peak sampled there */
    double seconds, work; /* of the slices so far; what the peak would have done in them */
    double unsure;        /* seconds of slices whose two peaks do not agree */
} slices;

static double sample_peak(void) { return fma_peak(slices.be->name, slices.threads, 1e-6 * SLICE_PEAK_US); }

static void slices_begin(void) {
    slices.seconds = slices.work = slices.unsure = 0;
    slices.peak = sample_peak(), slices.at = bench_now(slices.threads);
}

static void cut_slice(void) {
    const double seconds = bench_now(slices.threads) - slices.at, peak = sample_peak();
    slices.seconds += seconds, slices.work += 0.5 * seconds * (slices.peak + peak);
    if (!peaks_agree(slices.peak, peak)) slices.unsure += seconds;
    slices.peak = peak, slices.at = bench_now(slices.threads);
}

static void sliced_attn_fwd(kctx *c, mat o, float *lse, mat q, mat k, mat v, const attn *a) {
    slices.be->attn_fwd(c, o, lse, q, k, v, a);
    cut_slice();
}

static void sliced_attn_bwd(kctx *c, mat dq, mat dk, mat dv, mat dout, mat q, mat k, mat v, mat o, const float *lse,
                            const attn *a) {
    slices.be->attn_bwd(c, dq, dk, dv, dout, q, k, v, o, lse, a);
    cut_slice();
}

static void sliced_head_loss(kctx *c, float *logprob, mat dh, mat h, const weight *w, const int32_t *target) {
    cut_slice();
    slices.be->head_loss(c, logprob, dh, h, w, target);
    cut_slice();
}

/* A step between whose slices the machine was steady for nine tenths of the time; at most twice as many are tried. */
static int measure_steps(trainer *t, const step_options *o, result *r) {
    static backend sliced;
    const int batches = dataset_begin_epoch(&t->ds, 0), each = (int)t->cfg.gradient_accumulation_steps;
    double spent = 0;
    sliced = *t->s.k.be;
    sliced.attn_fwd = sliced_attn_fwd, sliced.attn_bwd = sliced_attn_bwd, sliced.head_loss = sliced_head_loss;
    slices.be = t->s.k.be, slices.threads = t->s.k.threads, t->s.k.be = &sliced;
    memset(t->s.act.base, 0, t->s.act.size), memset(t->s.tmp.base, 0, t->s.tmp.size);
    if (batches < each) return fail(EXIT_INPUT, "%d micro-batches of data for a step of %d", batches, each);
    for (int step = 0; r->seconds.n < o->runs && (r->seconds.n == 0 || spent < o->budget); step++) {
        if (t->at.batch + each > batches) t->at.batch = 0;
        slices_begin();
        if (train_step(t, batches)) return -1;
        cut_slice();
        r->row = last_row;
        const bool unsure = slices.unsure > 0.1 * slices.seconds;
        spent += slices.seconds;
        if (step == 0) r->first_loss = r->row.loss;
        if ((step == 0 && slices.seconds < LONG_SECONDS) || (unsure && step < 2 * o->runs)) continue;
        r->flops = model_flops(t, &r->row), r->disturbed += unsure;
        samples_add(&r->seconds, slices.seconds), samples_add(&r->peak, slices.work / slices.seconds);
        samples_add(&r->ratio, r->flops / slices.work);
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
        "\"peak_gflops\": %.1f, \"peak_percent\": %.1f, \"peak_rss_bytes\": %lu, \"first_loss\": %.5f, "
        "\"disturbed\": %d}\n",
        o->what, name ? name + 1 : c->base_model, c->load_in_4bit ? "nf4" : "fp",
        override_of(o, "compute_dtype", "f32"), override_of(o, "activation_dtype", "f32"), (long)c->micro_batch_size,
        (long)c->sequence_len, (long)c->lora_r, c->gradient_checkpointing ? "true" : "false", t->s.k.threads,
        t->s.k.be->name, r->seconds.n, (double)r->row.tokens / seconds, seconds, 1e-9 * r->flops,
        1e-9 * samples_median(&r->peak), 100 * samples_median(&r->ratio), (unsigned long)peak_rss_bytes(),
        r->first_loss, r->disturbed);
}

static int bench_step(const step_options *o, FILE *out) {
    trainer t = {.lock = {-1}};
    result r = {0};
    int bad = config_open(&t.cfg, o->config, o->overrides, o->n);
    if (!bad) bad = comm_begin(&t.world) || open_trainer(&t) || check_memory(&t) || measure_steps(&t, o, &r);
    if (!bad) print_result(&t, o, &r, out), comm_end(&t.world);
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
