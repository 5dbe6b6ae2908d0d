#include "train_plan.h"
#include "core/error.h"
#include "core/json.h"
#include "kernels/device.h"

typedef struct {
    double mapped, weights, scales, cached;
} base_bytes;

static double scale_bytes(const weight *w) {
    if (w->fmt->id != FMT_NF4) return 0;
    const nf4_meta *m = w->meta;
    const int64_t blocks = (w->rows * w->cols + m->blocksize - 1) / m->blocksize;
    if (!m->nested_block) return 4.0 * (double)blocks;
    return (double)blocks + 4.0 * (double)((blocks + m->nested_block - 1) / m->nested_block);
}

static void add_weight(base_bytes *sum, const arena *run, const weight *w) {
    const char *p = w->data;
    const bool made = p >= run->base && p < run->base + run->size;
    if (made) {
        sum->weights += (double)weight_bytes(w), sum->scales += scale_bytes(w);
        return;
    }
    const double bytes = (double)weight_bytes(w) + scale_bytes(w);
    sum->mapped += bytes, sum->cached += w->fmt->id == FMT_NF4 ? bytes : 0;
}

static base_bytes base_of(const session *s) {
    base_bytes sum = {0};
    add_weight(&sum, &s->run, &s->m.embed);
    if (s->m.head.data != s->m.embed.data) add_weight(&sum, &s->run, &s->m.head);
    for (int g = 0; g < s->m.n_groups; g++)
        for (int i = 0; i < s->m.groups[g].n; i++) add_weight(&sum, &s->run, &s->m.groups[g].p[i].w);
    return sum;
}

plan_bytes plan_measure(const session *p, const adamw *opt, plan_step step, size_t scratch_bytes) {
    const base_bytes base = base_of(p);
    const bool device = p->k.mem;
    plan_bytes b = {.mapped = base.mapped, .weights = base.weights, .scales = base.scales, .cached = base.cached};
    b.adapter = b.gradients = (double)p->ad.n * sizeof(float), b.optimiser = (double)opt->bytes;
    b.vectors = (double)p->run.peak - b.weights - b.scales - b.adapter - b.gradients - b.optimiser;
    b.layers = (double)step.layers, b.head = (double)step.head;
    b.layer = b.layers / (double)p->m.hp.layers;
    b.working = (double)(p->act.peak + p->window.peak) - b.layers - b.head;
    b.scratch = (double)p->tmp.peak, b.kernels = (double)scratch_bytes;
    if (device) {
        b.kernels = (double)DEVICE_SCRATCH, b.workspace = (double)DEVICE_WORKSPACE;
        b.context = (double)DEVICE_CONTEXT, b.pinned = (double)DEVICE_STAGE;
    }
    b.total = b.mapped + (double)(p->run.peak + p->act.peak + p->window.peak + p->tmp.peak) + b.kernels + b.workspace +
              b.context;
    return b;
}

static void run_row(const char *what, double bytes) { printf("  %-42s %10.1f MiB\n", what, bytes / 1048576); }

void plan_print_run(const plan_bytes *b, const kctx *k, int rows) {
    const double made = b->weights + b->scales + b->vectors, trained = b->adapter + b->gradients + b->optimiser,
                 kept = b->layers + b->head + b->working, scratch = b->scratch + b->kernels;
    printf("memory plan (largest batch: %d tokens; %s, %d threads)\n", rows, k->be->name, k->threads);
    run_row("base model, mapped from its file", b->mapped - b->cached);
    if (b->cached > 0) run_row("base model in NF4, mapped from the cache", b->cached);
    run_row("base model, made while loading", made);
    run_row("adapter, gradients, optimiser", trained);
    run_row("activations of a step", kept);
    run_row("scratch", scratch);
    run_row("allocated", made + trained + kept + scratch);
}

static int fits(plan_fn *f, void *ctx, plan_size given, bool rows, int64_t n, int64_t limit) {
    plan_bytes b;
    if (f(ctx, rows ? (plan_size){n, given.micro_batch_size} : (plan_size){given.sequence_len, n}, &b)) return -1;
    return b.total <= (double)limit;
}

/* The largest n of [0, most] that fits: doubled until one does not, since a plan has addresses for so much only, then
 * halved between. */
static int largest(plan_fn *f, void *ctx, plan_size given, bool rows, int64_t most, int64_t limit, int64_t *out) {
    int64_t lo = 0, hi = 1;
    int ok = 1;
    while (hi <= most && (ok = fits(f, ctx, given, rows, hi, limit)) == 1) lo = hi, hi *= 2;
    if (hi > most) hi = most + 1;
    while (ok >= 0 && hi - lo > 1) {
        const int64_t at = lo + (hi - lo) / 2;
        if ((ok = fits(f, ctx, given, rows, at, limit)) == 1)
            lo = at;
        else
            hi = at;
    }
    *out = lo;
    return ok < 0 ? -1 : 0;
}

int plan_largest(plan_fn *f, void *ctx, plan_size given, plan_size most, int64_t limit, plan_size *out) {
    return largest(f, ctx, given, true, most.sequence_len, limit, &out->sequence_len) ||
                   largest(f, ctx, given, false, most.micro_batch_size, limit, &out->micro_batch_size)
               ? -1
               : 0;
}

/* One row per number: its name in JSON, and what it is. NULL: in JSON alone. */
static const struct {
    const char *key, *what;
    size_t at;
} rows[] = {
#define B(name, what)                                                                                                  \
    { #name, what, offsetof(plan_bytes, name) }
    B(mapped, "base model, mapped from files"),
    B(weights, "base model, weights"),
    B(scales, "base model, 4-bit scales"),
    B(vectors, "base model, norms and tables"),
    B(adapter, "adapter"),
    B(gradients, "gradients"),
    B(optimiser, "optimiser"),
    B(layers, "activations kept by the layers"),
    B(layer, NULL),
    B(head, "activations kept by the head"),
    B(working, "backward pass, largest layer"),
    B(scratch, "scratch of operations"),
    B(kernels, "scratch of kernels, logits chunk"),
    B(workspace, "cuBLAS workspace"),
    B(context, "CUDA context (allowance)"),
    B(pinned, NULL),
#undef B
};
enum { ROWS = sizeof rows / sizeof *rows };

static double value(const plan_bytes *b, int row) { return *(const double *)((const char *)b + rows[row].at); }

void plan_print(const plan_bytes *b, const plan_text *t, FILE *f) {
    fprintf(f, "plan: backend %s, %s activations, %ld x %ld tokens%s\n", t->backend, t->activations,
            (long)t->size.micro_batch_size, (long)t->size.sequence_len,
            t->assumed ? "; from config.json alone: there are no weights here" : "");
    for (int i = 0; i < ROWS; i++)
        if (rows[i].what && (value(b, i) > 0 || rows[i].at == offsetof(plan_bytes, adapter)))
            fprintf(f, "  %-42s %16.0f bytes  %9.1f MiB\n", rows[i].what, value(b, i), value(b, i) / 1048576);
    fprintf(f, "  %-42s %16.0f bytes  %9.1f MiB\n", t->device ? "on the device" : "in all", b->total,
            b->total / 1048576);
    fprintf(f, "a layer keeps %.1f MiB%s", b->layer / 1048576, t->device ? "" : "\n");
    if (t->device) fprintf(f, "; pinned host memory %.1f MiB\n", b->pinned / 1048576);
    if (t->limit < 0) return;
    fprintf(f, "memory_limit: %ld bytes: %s\n", (long)t->limit,
            b->total <= (double)t->limit ? "this fits" : "this does not fit");
    fprintf(
        f,
        "largest that fits: sequence_len %ld with micro_batch_size %ld; micro_batch_size %ld with sequence_len %ld\n",
        (long)t->largest.sequence_len, (long)t->size.micro_batch_size, (long)t->largest.micro_batch_size,
        (long)t->size.sequence_len);
}

int plan_print_json(const plan_bytes *b, const plan_text *t, FILE *f) {
    json_t *bytes = json_object(), *o = json_object();
    for (int i = 0; i < ROWS; i++) json_object_set_new(bytes, rows[i].key, json_integer((json_int_t)value(b, i)));
    json_object_set_new(o, "backend", json_string(t->backend));
    json_object_set_new(o, "activation_dtype", json_string(t->activations));
    json_object_set_new(o, "sequence_len", json_integer(t->size.sequence_len));
    json_object_set_new(o, "micro_batch_size", json_integer(t->size.micro_batch_size));
    json_object_set_new(o, "weights_assumed", json_boolean(t->assumed));
    json_object_set_new(o, "bytes", bytes);
    json_object_set_new(o, "device_bytes", json_integer((json_int_t)b->total));
    if (t->limit >= 0) {
        json_object_set_new(o, "memory_limit", json_integer(t->limit));
        json_object_set_new(o, "fits", json_boolean(b->total <= (double)t->limit));
        json_object_set_new(o, "largest_sequence_len", json_integer(t->largest.sequence_len));
        json_object_set_new(o, "largest_micro_batch_size", json_integer(t->largest.micro_batch_size));
    }
    const int bad = json_dumpf(o, f, 0);
    json_decref(o);
    return bad || fputc('\n', f) == EOF ? fail(EXIT_IO, "standard output: cannot be written") : 0;
}
