/* Inference of one model: decode alone and with 16 sequences, prefill, memory, and what the fast mode's products cost
 * against the bandwidth of reading that is measured in this process around every run.
 *
 *   bench_infer MODEL [--isa NAME] [--threads N] [--runs N] [--rows PROMPT] [--adapter DIR] [--4bit] [WORD]
 *
 * WORD: only figures whose name contains it. One JSON line per figure; bench/README.md has the definitions. */
#include "bench/measure.h"
#include "core/error.h"
#include "core/threads.h"
#include "engine/engine.h"
#include "kernels/rows16.h"

#include <stdlib.h>
#include <string.h>

enum { PAST = 32, TOKENS = 64, MANY = 16, CONTEXT = 1024 };

typedef struct {
    bench_options o;
    const char *model, *adapter;
    bool four_bit;
    engine *e;
    int vocab;
    double bytes; /* of the weights that a token reads */
} bench;

static int32_t some_token(const bench *b, int i) { return (int32_t)((unsigned)i * 2654435761u % (unsigned)b->vocab); }

/* `seqs` requests of `prompt` tokens and `tokens` more; seconds of the prompts and of the rest. Different words every
 * time, so that nothing is found in the cache. */
static void answer(bench *b, int seqs, int prompt, int tokens, double *first, double *rest) {
    static int salt;
    int32_t *ids = xcalloc((size_t)prompt, sizeof *ids);
    for (int s = 0; s < seqs; s++) {
        for (int i = 0; i < prompt; i++) ids[i] = some_token(b, ++salt);
        request r = REQUEST_PLAIN;
        r.prompt = ids, r.n = prompt, r.max_tokens = tokens, r.ignore_eog = true, r.sampling.temperature = 0;
        engine_default_adapters(b->e, &r);
        CHECK(engine_add(b->e, &r) > 0, "%s", fail_text());
    }
    free(ids);
    double began = bench_now(b->o.threads), ready = 0;
    for (int seen = 0; engine_step(b->e);) {
        engine_event ev;
        while (engine_next(b->e, &ev)) seen += ev.token >= 0;
        if (seen >= seqs && ready == 0) ready = bench_now(b->o.threads);
    }
    *first = ready - began, *rest = bench_now(b->o.threads) - ready;
}

static void begin_line(const bench *b, const char *name) {
    printf("{\"bench\": \"infer\", \"figure\": \"%s\", \"side\": \"ours\", \"model\": \"%s\", \"mode\": \"%s\", "
           "\"base\": \"%s\", \"adapter\": %s, \"threads\": %d",
           name, b->model, b->o.be->name, b->four_bit ? "nf4" : "stored", b->adapter ? "true" : "null", b->o.threads);
}

static void print(const bench *b, const char *name, samples *rate, samples *share) {
    begin_line(b, name);
    printf(", \"runs\": %d, \"tokens_per_second\": %.2f, \"low\": %.2f, \"high\": %.2f", rate->n, samples_median(rate),
           rate->x[0], rate->x[rate->n - 1]);
    if (share) printf(", \"bandwidth_percent\": %.1f", 100 * samples_median(share));
    puts("}");
    fflush(stdout);
}

/* tokens / s of all sequences together; the share of reading counts one pass over the weights a step */
static void decode(bench *b, const char *name, int seqs) {
    samples rate = {0}, share = {0};
    double first, rest;
    if (!strstr(name, b->o.word)) return;
    answer(b, seqs, PAST, TOKENS / 4, &first, &rest);
    for (int r = 0; r < b->o.runs; r++) {
        const double before = read_bandwidth(b->o.threads, 20e-3);
        answer(b, seqs, PAST, TOKENS, &first, &rest);
        const double reading = 0.5 * (before + read_bandwidth(b->o.threads, 20e-3)), steps = (TOKENS - 1) / rest;
        samples_add(&rate, steps * seqs), samples_add(&share, steps * b->bytes / reading);
    }
    print(b, name, &rate, &share);
}

static void prefill(bench *b) {
    samples rate = {0};
    double first, rest;
    if (!strstr("prefill", b->o.word)) return;
    answer(b, 1, (int)b->o.rows, 1, &first, &rest);
    for (int r = 0; r < b->o.runs; r++) {
        answer(b, 1, (int)b->o.rows, 1, &first, &rest);
        samples_add(&rate, (double)b->o.rows / first);
    }
    print(b, "prefill", &rate, NULL);
}

static double held_bytes(const weight *w) {
    const rows16 *r = weight_rows16(w);
    return r ? (double)(r->sliver * r->slivers) : (double)weight_bytes(w);
}

static void count_bytes(bench *b) {
    const model *m = &engine_session(b->e)->m;
    b->vocab = (int)m->hp.vocab, b->bytes = held_bytes(&m->head);
    for (int g = 0; g < m->n_groups; g++)
        for (int i = 0; i < m->groups[g].n; i++) b->bytes += held_bytes(&m->groups[g].p[i].w);
}

/* takes the program's own options out of argv */
static void take_options(bench *b, char **argv) {
    char **to = argv + 1;
    for (char **a = argv + 1; *a; a++) {
        if (!strcmp(*a, "--adapter") && a[1])
            b->adapter = *++a;
        else if (!strcmp(*a, "--4bit"))
            b->four_bit = true;
        else if (!b->model && **a != '-' && (a == argv + 1 || a[-1][0] != '-'))
            b->model = *a;
        else
            *to++ = *a;
    }
    *to = NULL;
}

int main(int argc, char **argv) {
    bench b = {.o = {.isa = "int8", .word = "", .rows = 512, .runs = 5}};
    model_source src;
    char *kept[64] = {argv[0]};
    (void)argc;
    threads_settle(argv);
    for (int i = 0; i < 62 && argv[i]; i++) kept[i] = argv[i];
    take_options(&b, kept);
    if (bench_begin(&b.o, kept)) return fail_report("bench_infer");
    if (!b.model) return fail(EXIT_USAGE, "a model is missing"), fail_report("bench_infer");
    if (model_source_open(&src, b.model)) return fail_report("bench_infer");
    const engine_options eo = {.src = &src,
                               .how = {.backend = b.o.isa,
                                       .threads = b.o.threads,
                                       .adapter = {{b.adapter, 1}},
                                       .adapters = b.adapter ? 1 : 0,
                                       .base_given = true,
                                       .load_in_4bit = b.four_bit,
                                       .double_quant = true,
                                       .cache = {QUANT_CACHE_ON, NULL, QUANT_CACHE_MIN_BYTES}},
                               .context = CONTEXT,
                               .sequences = MANY,
                               .batch_rows = 512};
    if (!(b.e = engine_open(&eo))) return fail_report("bench_infer");
    const resident opened = resident_memory();
    count_bytes(&b);
    decode(&b, "decode", 1);
    prefill(&b);
    decode(&b, "decode16", MANY);
    const resident r = resident_memory();
    const hparams *hp = &src.hp;
    begin_line(&b, "memory");
    printf(", \"weight_bytes\": %.0f, \"kv_bytes\": %.0f, \"opened_bytes\": %.0f, \"peak_rss_bytes\": %.0f}\n", b.bytes,
           2.0 * 4 * MANY * CONTEXT * (double)(hp->layers * hp->kv_heads * hp->head_dim), opened.peak, r.peak);
    engine_close(b.e);
    model_source_close(&src);
    return 0;
}
