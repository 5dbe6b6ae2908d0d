/* The engine on a real model: answers of many requests with no adapter, one for all, and eight different ones in one
 * batch; and speculative decoding by look-up on a text that repeats its prompt and on one that does not. JSON lines.
 *
 *   bench_engine MODEL [--threads N] [--runs N] [--isa BACKEND]
 *
 * What is compared runs in turns and the figure is the median of the turns' ratios; one thread is timed by its own
 * processor time. Adapters are of rank 16 on every linear layer, random, held in bf16. */
#include "bench/measure.h"
#include "core/error.h"
#include "core/rng.h"
#include "engine/engine.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SEQUENCES = 16, ADAPTERS = 8, STEPS = 12, PROMPT = 24, LONG_PROMPT = 512, CONTEXT = 1024 };

typedef struct {
    bench_options o;
    model_source src;
    tokenizer *tok;
    char dir[ADAPTERS][64], scratch[48];
} bench;

static engine *open_engine(const bench *b, engine_options o) {
    o.src = &b->src, o.tok = b->tok, o.context = CONTEXT, o.how.backend = b->o.isa, o.how.threads = b->o.threads;
    o.how.adapter_type = BF16, o.how.double_quant = true;
    return engine_open(&o);
}

/* ---- adapters ---- */

static int make_adapters(bench *b) {
    model m;
    arena plan, run;
    const model_options o = {.positions = 1};
    arena_plan(&plan, "plan");
    int bad = model_open(&m, &b->src, &o, &plan) || arena_open(&run, "run", (size_t)1 << 30);
    for (int i = 0; i < ADAPTERS && !bad; i++) {
        adapter ad = {0};
        lora_config l = {.r = 16, .alpha = 16, .all_linear = true};
        arena_release(&run, 0);
        bad = adapter_attach(&ad, &l, m.groups, m.n_groups, 1, false, &run);
        for (int64_t k = 0; k < ad.n; k++) ad.param[k] = 0.01f * rng_normal((uint64_t)i, STREAM_TEST, (uint64_t)k);
        snprintf(b->dir[i], sizeof b->dir[i], "%s/%d", b->scratch, i);
        bad = bad || adapter_save(&ad, b->dir[i]);
        adapter_close(&ad);
    }
    arena_close(&run), arena_close(&plan);
    model_close(&m);
    return bad;
}

/* Of `sequences` answers: request i has adapter i % different, or none. */
typedef struct {
    double prompts, answers; /* seconds of the first step, and of STEPS steps behind it */
} run_times;

static run_times decode(const bench *b, engine *e, int sequences, int prompt, int different, int round) {
    int32_t ids[LONG_PROMPT];
    run_times t = {-1, -1};
    for (int i = 0; i < sequences; i++) {
        request q = REQUEST_PLAIN;
        const adapter_share share = {different ? i % different : 0, 1};
        for (int k = 0; k < prompt; k++)
            ids[k] = (int32_t)rng_below(9, STREAM_TEST, (uint64_t)(round * 100000 + i * prompt + k), 1000);
        q.prompt = ids, q.n = prompt, q.max_tokens = STEPS + 1, q.sampling.temperature = 0, q.ignore_eog = true;
        if (different) q.adapter = &share, q.adapters = 1;
        if (engine_add(e, &q) < 0) return t;
    }
    double began = bench_now(b->o.threads);
    engine_step(e);
    double before = bench_now(b->o.threads);
    while (engine_step(e)) {}
    return (run_times){before - began, bench_now(b->o.threads) - before};
}

/* One request with an adapter and without, its prompt and its answer. */
static int bench_one(const bench *b) {
    samples prompt = {0}, answer = {0}, speed = {0};
    engine *e = open_engine(b, (engine_options){0});
    if (!e || engine_adapter_load(e, b->dir[0]) < 0) return -1;
    for (int r = -1; r < b->o.runs; r++) {
        run_times base = decode(b, e, 1, LONG_PROMPT, 0, 2 * r + 2), with = decode(b, e, 1, LONG_PROMPT, 1, 2 * r + 3);
        if (base.answers < 0 || with.answers < 0) return -1;
        if (r < 0) continue;
        samples_add(&prompt, with.prompts / base.prompts), samples_add(&answer, with.answers / base.answers);
        samples_add(&speed, STEPS / base.answers);
    }
    printf("{\"what\": \"adapter\", \"threads\": %d, \"base_tokens_per_second\": %.1f, \"decode_cost\": %.3f, "
           "\"prefill_cost\": %.3f}\n",
           b->o.threads, samples_median(&speed), samples_median(&answer), samples_median(&prompt));
    fflush(stdout);
    engine_close(e);
    return 0;
}

static int bench_adapters(const bench *b) {
    samples none = {0}, one = {0}, many = {0}, ratio = {0}, cost = {0};
    engine *e = open_engine(b, (engine_options){.sequences = SEQUENCES});
    if (!e) return -1;
    for (int i = 0; i < ADAPTERS; i++)
        if (engine_adapter_load(e, b->dir[i]) < 0) return -1;
    for (int r = -1; r < b->o.runs; r++) {
        double base = decode(b, e, SEQUENCES, PROMPT, 0, 4 * r + 4).answers;
        double single = decode(b, e, SEQUENCES, PROMPT, 1, 4 * r + 5).answers;
        double eight = decode(b, e, SEQUENCES, PROMPT, ADAPTERS, 4 * r + 6).answers;
        if (base < 0 || single < 0 || eight < 0) return -1;
        if (r < 0) continue; /* warms up */
        samples_add(&none, SEQUENCES * STEPS / base), samples_add(&one, SEQUENCES * STEPS / single);
        samples_add(&many, SEQUENCES * STEPS / eight);
        samples_add(&ratio, single / eight), samples_add(&cost, single / base);
    }
    printf("{\"what\": \"adapters\", \"sequences\": %d, \"threads\": %d, \"base_tokens_per_second\": %.1f, "
           "\"one_adapter_tokens_per_second\": %.1f, \"eight_adapters_tokens_per_second\": %.1f, "
           "\"eight_to_one\": %.3f, \"one_adapter_cost\": %.3f}\n",
           SEQUENCES, b->o.threads, samples_median(&none), samples_median(&one), samples_median(&many),
           samples_median(&ratio), samples_median(&cost));
    fflush(stdout);
    engine_close(e);
    return 0;
}

/* ---- speculation ---- */

static const char story[] =
    "The lighthouse keeper of Brannoch counted the ships each evening and wrote their names in a book "
    "bound in green cloth. On the ninth of March he counted seven: the Adelaide, the Merry Widow, two "
    "colliers out of Leith, a whaler without a name, and the two ferries that crossed at dusk. ";

typedef struct {
    double seconds;
    int tokens, drafted, accepted;
} answer_run;

static answer_run run_answer(const bench *b, engine *e, const char *prompt, double temperature, uint64_t seed) {
    token_list ids = {0};
    answer_run r = {0};
    request q = REQUEST_PLAIN;
    if (tokenizer_encode(b->tok, prompt, (int64_t)strlen(prompt), TOKENIZE_ADD, &ids)) return r;
    q.prompt = ids.id, q.n = (int)ids.n, q.max_tokens = 160, q.ignore_eog = true;
    q.sampling.temperature = temperature, q.sampling.seed = seed, q.sampling.top_p = 0.95;
    engine_add(e, &q);
    double first = 0;
    for (engine_event ev; engine_step(e);)
        while (engine_next(e, &ev)) {
            if (!r.tokens++) first = bench_now(b->o.threads);
            r.drafted = ev.stats.drafted, r.accepted = ev.stats.accepted;
        }
    r.seconds = bench_now(b->o.threads) - first;
    token_list_free(&ids);
    return r;
}

static int bench_lookup(const bench *b, const char *what, const char *prompt, double temperature) {
    samples ratio = {0}, speed = {0};
    int drafted = 0, accepted = 0;
    engine *plain = open_engine(b, (engine_options){0}), *guess = open_engine(b, (engine_options){.lookup = true});
    if (!plain || !guess) return -1;
    for (int i = -1; i < b->o.runs; i++) {
        answer_run x = run_answer(b, plain, prompt, temperature, (uint64_t)i + 2);
        answer_run y = run_answer(b, guess, prompt, temperature, (uint64_t)i + 2);
        if (i < 0 || x.tokens != y.tokens) continue;
        samples_add(&ratio, x.seconds / y.seconds), samples_add(&speed, (y.tokens - 1) / y.seconds);
        drafted += y.drafted, accepted += y.accepted;
    }
    printf("{\"what\": \"lookup\", \"text\": \"%s\", \"threads\": %d, \"tokens_per_second\": %.1f, \"speed_up\": %.3f, "
           "\"drafted\": %d, \"accepted\": %d}\n",
           what, b->o.threads, samples_median(&speed), samples_median(&ratio), drafted, accepted);
    fflush(stdout);
    engine_close(plain), engine_close(guess);
    return 0;
}

static int run(bench *b) {
    if (model_source_open(&b->src, b->o.word) || !(b->tok = model_tokenizer(&b->src, NULL))) return -1;
    char *repeats = xprintf("%s\n\n%s\n\n%s\n\nThe lighthouse keeper", story, story, story);
    int bad = make_adapters(b) || bench_one(b) || bench_adapters(b) ||
              bench_lookup(b, "repeats its prompt", repeats, 0) ||
              bench_lookup(b, "a story, sampled", "Once upon a time there was a miller who", 1);
    free(repeats);
    return bad;
}

int main(int argc, char **argv) {
    (void)argc;
    bench b = {.o = {.isa = "int8", .threads = 0, .runs = 5}, .scratch = "/tmp/peft-bench-XXXXXX"};
    int bad = bench_begin(&b.o, argv);
    if (!bad && !b.o.word) bad = fail(EXIT_USAGE, "usage: bench_engine MODEL [--threads N] [--runs N] [--isa BACKEND]");
    if (!bad && !mkdtemp(b.scratch)) bad = fail(EXIT_IO, "%s: cannot be made", b.scratch);
    bad = bad || run(&b);
    char *command = xprintf("rm -rf %s", b.scratch);
    if (!strchr(b.scratch, 'X') && system(command)) bad = fail(EXIT_IO, "%s: cannot be removed", b.scratch);
    free(command);
    tokenizer_close(b.tok);
    model_source_close(&b.src);
    return bad ? fail_report("bench_engine") : EXIT_DONE;
}
