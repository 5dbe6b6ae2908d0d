/* Adapters in the engine: each request of a mixed batch equals itself alone, a set is a sum, what is loaded and
 * unloaded touches nobody else, and keys and values are never shared between sets. */
#include "peft/adapter.h"
#include "tests/engine_cases.h"

#include <unistd.h>

static char scratch[64];
static char dir[4][96]; /* ranks 4, 8, and of both side by side; another one of rank 3 on q and v alone */

static int make_scratch(void **state) {
    (void)state;
    snprintf(scratch, sizeof scratch, "/tmp/peft-test-engine-XXXXXX");
    return mkdtemp(scratch) ? 0 : -1;
}

static int remove_scratch(void **state) {
    (void)state;
    char command[96];
    snprintf(command, sizeof command, "rm -rf %s", scratch);
    return system(command);
}

/* ---- adapters made on the spot ---- */

static float value_of(int which, int64_t i) {
    return 0.1f * rng_normal(20 + (uint64_t)which, STREAM_TEST, (uint64_t)i);
}

/* Rank 12 is ranks 4 and 8 side by side, the second with half its weight. */
static void fill(adapter *ad, int which, const adapter *first, const adapter *second) {
    if (which != 2) {
        for (int64_t i = 0; i < ad->n; i++) ad->param[i] = value_of(which, i);
        return;
    }
    for (int m = 0; m < ad->n_loras; m++) {
        param a = ad->loras[m].a, b = ad->loras[m].b, a1 = first->loras[m].a, b1 = first->loras[m].b;
        param a2 = second->loras[m].a, b2 = second->loras[m].b;
        memcpy(a.val, a1.val, (size_t)(a1.rows * a1.cols) * sizeof(float));
        memcpy(a.val + a1.rows * a1.cols, a2.val, (size_t)(a2.rows * a2.cols) * sizeof(float));
        for (int64_t o = 0; o < b.rows; o++)
            for (int64_t j = 0; j < 12; j++)
                b.val[o * 12 + j] = j < 4 ? b1.val[o * 4 + j] : 0.5f * b2.val[o * 8 + j - 4];
    }
}

static void make_adapters(void) {
    static const int rank[4] = {4, 8, 12, 3};
    model_source src;
    arena run;
    adapter ad[4];
    model m;
    const model_options o = {.positions = CONTEXT};
    if (model_source_open(&src, GOLDEN "tiny_llama")) fail_msg("%s", fail_text());
    assert_int_equal(arena_open(&run, "run", 64 << 20), 0);
    assert_int_equal(model_open(&m, &src, &o, &run), 0);
    for (int i = 0; i < 4; i++) {
        lora_config l = {.r = rank[i], .alpha = rank[i], .all_linear = i < 3};
        if (i == 3) lora_config_add_target(&l, "q_proj"), lora_config_add_target(&l, "v_proj");
        if (adapter_attach(&ad[i], &l, m.groups, m.n_groups, 1, false, &run)) fail_msg("%s", fail_text());
        fill(&ad[i], i, &ad[0], &ad[1]);
        snprintf(dir[i], sizeof dir[i], "%s/a%d", scratch, i);
        if (adapter_save(&ad[i], dir[i])) fail_msg("%s", fail_text());
    }
    for (int i = 0; i < 4; i++) adapter_close(&ad[i]);
    model_close(&m);
    arena_close(&run);
    model_source_close(&src);
}

/* ---- what requests choose ---- */

typedef struct {
    adapter_share share[2];
    int n;
} choice;

static const choice choices[] = {
    {{{0}}, 0},    {{{0, 1}}, 1}, {{{1, 1}}, 1},  {{{0, 1}, {1, 0.5f}}, 2},
    {{{2, 1}}, 1}, {{{3, 2}}, 1}, {{{0, -1}}, 1}, {{{0, 1}}, 1},
};
enum { CHOICES = sizeof choices / sizeof *choices };

static engine *with_adapters(model_source *src, engine_options o) {
    engine *e = open_engine(src, GOLDEN "tiny_llama", o);
    for (int i = 0; i < 4; i++)
        if (engine_adapter_load(e, dir[i]) != i) fail_msg("%s", fail_text());
    return e;
}

static void add(engine *e, int prompt, int which) {
    int32_t ids[CONTEXT];
    request q = request_of(prompt, ids);
    q.sampling.temperature = 0, q.adapter = choices[which].share, q.adapters = choices[which].n;
    if (engine_add(e, &q) < 0) fail_msg("%s", fail_text());
}

static void one_by_one(outcome *out, engine_options o) {
    memset(out, 0, CHOICES * sizeof *out);
    for (int i = 0; i < CHOICES; i++) {
        model_source src;
        outcome one[1] = {0};
        engine *e = with_adapters(&src, o);
        add(e, i == 7 ? 2 : 1, i);
        drain(e, one);
        out[i] = one[0];
        engine_close(e);
        model_source_close(&src);
    }
}

static void check_mixed(engine_options o, const outcome *alone) {
    model_source src;
    outcome got[CHOICES] = {0};
    engine *e = with_adapters(&src, o);
    for (int i = 0; i < CHOICES; i++) add(e, i == 7 ? 2 : 1, i);
    drain(e, got);
    for (int i = 0; i < CHOICES; i++) same(&alone[i], &got[i], "mixed adapters", i);
    engine_close(e);
    model_source_close(&src);
}

static void test_mixed_adapters(void **state) {
    (void)state;
    static outcome alone[CHOICES];
    make_adapters();
    one_by_one(alone, (engine_options){0});
    check_mixed((engine_options){.sequences = CHOICES}, alone);
    check_mixed((engine_options){.sequences = 3, .batch_rows = 5, .how.threads = 1}, alone);
    check_mixed((engine_options){.sequences = 4, .how.backend = "ref"}, alone);
    static outcome fast[CHOICES];
    one_by_one(fast, (engine_options){.how.backend = "int8", .how.adapter_type = BF16});
    check_mixed((engine_options){.sequences = CHOICES, .how.backend = "int8", .how.adapter_type = BF16}, fast);
    same(&alone[3], &alone[4], "a sum is its ranks side by side", 3);
    assert_memory_not_equal(alone[0].token, alone[1].token, sizeof(int32_t) * ANSWER);
    model_source src;
    engine *e = open_engine(&src, GOLDEN "tiny_llama", (engine_options){0});
    outcome base[1] = {0};
    add(e, 1, 0);
    drain(e, base);
    same(&alone[0], &base[0], "the base beside adapters", 0);
    engine_close(e);
    model_source_close(&src);
}

/* Held in bf16, mixed batches keep their bits too, and logits are near those of fp32: 2^-9 of each number of two
 * products that are themselves corrections. */
static void test_bf16(void **state) {
    (void)state;
    static outcome alone[CHOICES];
    const engine_options half = {.how.adapter_type = BF16};
    one_by_one(alone, half);
    engine_options o = half;
    o.sequences = CHOICES;
    check_mixed(o, alone);
    float *first = NULL;
    for (int pass = 0; pass < 2; pass++) {
        model_source src;
        engine_event ev;
        double worst = 0;
        engine *e = with_adapters(&src, pass ? half : (engine_options){0});
        add(e, 1, 3);
        while (engine_step(e) && !engine_next(e, &ev)) {}
        if (!pass) first = test_malloc(VOCAB * sizeof *first), memcpy(first, ev.logits, VOCAB * sizeof *first);
        for (int i = 0; i < VOCAB; i++) worst = fmax(worst, fabs((double)first[i] - (double)ev.logits[i]));
        if (pass && !(worst > 0 && worst < 0.05)) fail_msg("logits differ by %g", worst);
        engine_close(e);
        model_source_close(&src);
    }
    test_free(first);
}

/* The same bits as the adapter that training attaches to the model. */
static void test_equals_attached(void **state) {
    (void)state;
    int32_t ids[CONTEXT];
    request q = request_of(1, ids);
    const float *want = NULL;
    model_source src;
    session s;
    for (int pass = 0; pass < 2; pass++) {
        lora_config l;
        const model_options o = {.positions = CONTEXT};
        session planned;
        batch b;
        if (pass)
            planned = s;
        else if (model_source_open(&src, GOLDEN "tiny_llama") || session_plan(&s, "auto", false))
            fail_msg("%s", fail_text());
        if (pass && session_open(&s, &planned, "auto", 2)) fail_msg("%s", fail_text());
        if (pass) session_close(&planned);
        if (lora_config_read(&l, dir[0]) || session_load(&s, &src, &o, &l, 0, false)) fail_msg("%s", fail_text());
        if (pass && adapter_load(&s.ad, dir[0])) fail_msg("%s", fail_text());
        batch_open(&b, CONTEXT, 1);
        batch_add(&b, ids, NULL, q.n, 0);
        float *logits = arena_array(&s.run, VOCAB, sizeof *logits);
        tape t = session_tape(&s, false, false);
        int32_t last = q.n - 1;
        model_logits(&t, &s.m, model_forward(&t, &s.m, &b, NULL), &last, 1, mat_f32(logits, 1, VOCAB));
        batch_close(&b);
        want = logits;
    }
    model_source other;
    engine_event ev;
    engine *e = with_adapters(&other, (engine_options){0});
    add(e, 1, 1);
    while (engine_step(e) && !engine_next(e, &ev)) {}
    assert_memory_equal(want, ev.logits, VOCAB * sizeof(float));
    engine_close(e);
    model_source_close(&other);
    session_close(&s);
    model_source_close(&src);
}

static void refused(int rc, int code, const char *says) {
    assert_true(rc < 0);
    assert_int_equal(fail_code(), code);
    if (!strstr(fail_text(), says)) fail_msg("'%s' does not say '%s'", fail_text(), says);
    fail_clear();
}

/* Loading and unloading while others run; a new version shares nothing with the old one. */
static void test_hot(void **state) {
    (void)state;
    model_source src;
    outcome got[8] = {0};
    int32_t ids[CONTEXT];
    fail_clear();
    engine *e = with_adapters(&src, (engine_options){.sequences = 2});
    add(e, 1, 1);
    assert_int_equal(engine_step(e), 1);
    refused(engine_adapter_unload(e, 0), EXIT_USAGE, "use it");
    assert_int_equal(engine_adapter_unload(e, 1), 0);
    refused(engine_adapter_unload(e, 1), EXIT_USAGE, "none of that number");
    request q = request_of(1, ids);
    q.adapter = choices[2].share, q.adapters = 1;
    refused((int)engine_add(e, &q), EXIT_USAGE, "none of that number");
    assert_int_equal(engine_adapter_load(e, dir[1]), 4);
    drain(e, got);
    add(e, 1, 1);
    add(e, 1, 0);
    drain(e, got);
    assert_int_equal(got[1].stats.cached_tokens, 32);
    assert_int_equal(got[2].stats.cached_tokens, 0); /* the base has other keys and values */
    assert_int_equal(engine_adapter_unload(e, 0), 0);
    assert_int_equal(engine_adapter_load(e, dir[0]), 5);
    const adapter_share again = {5, 1}, half = {5, 0.5f};
    q.sampling.temperature = 0, q.adapter = &again;
    assert_int_equal(engine_add(e, &q), 4);
    q.adapter = &half;
    assert_int_equal(engine_add(e, &q), 5);
    drain(e, got);
    assert_int_equal(got[3].stats.cached_tokens, 0);
    assert_int_equal(got[4].stats.cached_tokens, 0);
    same(&got[1], &got[3], "loaded again", 1);
    engine_close(e);
    model_source_close(&src);
}

/* The same adapter out of both containers. */
static void test_containers(void **state) {
    (void)state;
    model_source src;
    outcome got[2] = {0};
    int32_t ids[CONTEXT];
    request q = request_of(1, ids);
    q.sampling.temperature = 0, q.adapters = 1;
    engine *e = open_engine(&src, GOLDEN "tiny_mistral", (engine_options){0});
    if (engine_adapter_load(e, GOLDEN "tiny_mistral_lora") ||
        engine_adapter_load(e, GOLDEN "tiny_mistral_lora.gguf") != 1)
        fail_msg("%s", fail_text());
    for (int i = 0; i < 2; i++) {
        const adapter_share share = {i, 1};
        q.adapter = &share;
        assert_int_equal(engine_add(e, &q), i + 1);
        drain(e, got);
    }
    same(&got[0], &got[1], "GGUF", 1);
    engine_close(e);
    model_source_close(&src);
}

static void one_answer(engine *e, int which, outcome *o, float *logits) {
    int64_t id = 0;
    int32_t ids[CONTEXT];
    request q = request_of(1, ids);
    q.sampling.temperature = 0, q.adapter = choices[which].share, q.adapters = choices[which].n;
    if ((id = engine_add(e, &q)) < 0) fail_msg("%s", fail_text());
    memset(o, 0, sizeof *o);
    for (engine_event ev; engine_step(e);)
        while (engine_next(e, &ev)) {
            if (!o->n) memcpy(logits, ev.logits, VOCAB * sizeof *logits);
            o->token[o->n++] = ev.token, o->stats = ev.stats;
            o->logits = hash_bytes(o->logits, ev.logits, VOCAB * sizeof(float));
            o->finish = ev.finish;
        }
    assert_int_equal(id > 0, 1);
}

/* Merged is the sum of the adapters up to rounding (fp32: products in another order), taken out it is the base again to
 * the bit, and neither finds the other's keys and values. */
static void check_merge(const char *backend, double bound) {
    model_source src;
    outcome base, sum, got;
    float first[3][VOCAB], worst = 0;
    engine *e = with_adapters(&src, (engine_options){.how.backend = backend});
    const adapter_choice both[] = {{dir[0], 1}, {dir[1], 0.5f}};
    one_answer(e, 0, &base, first[0]);
    one_answer(e, 3, &sum, first[1]);
    if (engine_merge(e, both, 2)) fail_msg("%s", fail_text());
    fail_clear();
    refused(engine_merge(e, both, 2), EXIT_USAGE, "already");
    one_answer(e, 0, &got, first[2]);
    assert_int_equal(got.stats.cached_tokens, 0);
    for (int i = 0; i < VOCAB; i++) worst = fmaxf(worst, fabsf(first[2][i] - first[1][i]));
    if (!((double)worst < bound && worst > 0))
        fail_msg("%s: merged and unmerged logits differ by %g", backend, (double)worst);
    assert_int_equal(engine_unmerge(e), 0);
    one_answer(e, 0, &got, first[2]);
    assert_int_equal(got.stats.cached_tokens, 0);
    same(&base, &got, "after the merge", 0);
    one_answer(e, 3, &got, first[2]);
    same(&sum, &got, "adapters after the merge", 3);
    refused(engine_unmerge(e), EXIT_USAGE, "nothing");
    const adapter_choice bad = {GOLDEN "tiny_qwen3_lora", 1};
    refused(engine_merge(e, &bad, 1), EXIT_INPUT, "tensor '");
    one_answer(e, 0, &got, first[2]);
    same(&base, &got, "after a merge that failed", 0);
    engine_close(e);
    model_source_close(&src);
}

static void test_merge(void **state) {
    (void)state;
    check_merge("auto", 2e-4);
    check_merge("int8", 1); /* activations and weights in 8 bits: logits of size 10 move by a tenth */
}

static void test_bad_adapters(void **state) {
    (void)state;
    model_source src;
    fail_clear();
    engine *e = open_engine(&src, GOLDEN "tiny_llama", (engine_options){0});
    refused(engine_adapter_load(e, GOLDEN "tiny_qwen3_lora"), EXIT_INPUT, "tensor '");
    refused(engine_adapter_load(e, scratch), EXIT_INPUT, "adapter_config.json");
    assert_int_equal(engine_adapter_load(e, dir[0]), 0); /* what failed took no number and no place */
    const adapter_share many[SHARES_MAX + 1] = {{0, 1}};
    int32_t ids[CONTEXT];
    request q = request_of(1, ids);
    q.adapter = many, q.adapters = SHARES_MAX + 1;
    refused((int)engine_add(e, &q), EXIT_USAGE, "at most 8");
    const adapter_share nan = {0, NAN};
    q.adapter = &nan, q.adapters = 1;
    refused((int)engine_add(e, &q), EXIT_USAGE, "scale");
    engine_close(e);
    model_source_close(&src);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_mixed_adapters),  cmocka_unit_test(test_bf16),
                                       cmocka_unit_test(test_equals_attached), cmocka_unit_test(test_hot),
                                       cmocka_unit_test(test_merge),           cmocka_unit_test(test_containers),
                                       cmocka_unit_test(test_bad_adapters)};
    return cmocka_run_group_tests_name("engine adapters", tests, make_scratch, remove_scratch);
}
