/* The engine against requests that run alone: whatever else is in the batch, however prompts are cut, whoever is
 * preempted, forked or cancelled, an answer and its logits keep their bits. */
#include "engine/pages.h"
#include "tests/engine_cases.h"

/* Each request in an engine of its own. */
static void run_alone(const char *model, outcome *out, engine_options o) {
    int32_t ids[CONTEXT];
    memset(out, 0, REQUESTS * sizeof *out);
    o.sequences = 1;
    for (int i = 0; i < REQUESTS; i++) {
        model_source src;
        engine *e = open_engine(&src, model, o);
        request q = request_of(i, ids);
        outcome one[1] = {0};
        assert_int_equal(engine_add(e, &q), 1);
        drain(e, one);
        out[i] = one[0];
        assert_int_equal(out[i].n, ANSWER);
        engine_close(e);
        model_source_close(&src);
    }
}

static void run_together(const char *model, outcome *out, engine_options o) {
    int32_t ids[CONTEXT];
    model_source src;
    memset(out, 0, REQUESTS * sizeof *out);
    engine *e = open_engine(&src, model, o);
    for (int i = 0; i < REQUESTS; i++) {
        request q = request_of(i, ids);
        assert_int_equal(engine_add(e, &q), i + 1);
    }
    drain(e, out);
    engine_stats s = engine_figures(e);
    assert_int_equal(s.pages_held, 0);
    assert_int_equal(s.running + s.waiting, 0);
    engine_close(e);
    model_source_close(&src);
}

/* ---- the tests ---- */

static void check_mixed(const char *model, kv_type type, const char *backend) {
    static const struct {
        engine_options o;
        const char *what;
        bool preempts;
    } ways[] = {
        {{.sequences = REQUESTS}, "all at once", false},
        {{.sequences = 3, .batch_rows = 3}, "three at a time, three rows a step", false},
        {{.sequences = 5, .batch_rows = 19, .how.threads = 1}, "five at a time, one thread", false},
        {{.sequences = REQUESTS, .kv_pages = 9}, "too few pages", true},
        {{.sequences = 4, .how.backend = "ref"}, "the reference backend", false},
    };
    outcome alone[REQUESTS], got[REQUESTS];
    run_alone(model, alone, (engine_options){.kv_type = type, .how.backend = backend});
    for (size_t w = 0; w < sizeof ways / sizeof *ways; w++) {
        engine_options o = ways[w].o;
        int preemptions = 0;
        o.kv_type = type;
        if (backend && o.how.backend) continue;
        if (backend) o.how.backend = backend;
        run_together(model, got, o);
        for (int i = 0; i < REQUESTS; i++) {
            same(&alone[i], &got[i], ways[w].what, i);
            preemptions += got[i].stats.preemptions;
        }
        if (ways[w].preempts != (preemptions > 0)) fail_msg("%s: %d preemptions", ways[w].what, preemptions);
    }
}

static void test_mixed_batches(void **state) {
    (void)state;
    check_mixed(GOLDEN "tiny_llama", KV_F32, NULL);
    check_mixed(GOLDEN "tiny_mistral", KV_F32, NULL); /* a window of 8 in every layer: pages are dropped on the way */
    check_mixed(GOLDEN "tiny_qwen3", KV_BF16, NULL);
    check_mixed(GOLDEN "tiny_tied", KV_Q8_0, NULL);
    check_mixed(GOLDEN "tiny_llama", KV_F32, "int8"); /* other numbers, and they keep their bits as well */
}

/* With a cache in fp32 the answer's logits are those of the model without a cache (tests/test_model.c has the rest);
 * with a smaller one they are near: the rounding of keys and values is all that differs. */
static void test_cache_types(void **state) {
    (void)state;
    /* of logits of size 10; bf16 rounds each value by 2^-9, q8_0 by 1 / 254 of the largest of 32 */
    static const double bound[KV_TYPES] = {0, 0.1, 0.3};
    float *want = NULL;
    for (int type = 0; type < KV_TYPES; type++) {
        int32_t ids[CONTEXT];
        model_source src;
        engine *e = open_engine(&src, GOLDEN "tiny_tied", (engine_options){.kv_type = (kv_type)type});
        request q = request_of(5, ids);
        engine_event ev;
        double worst = 0;
        assert_true(engine_add(e, &q) > 0);
        while (engine_step(e) && !engine_next(e, &ev)) {}
        if (!want) want = test_malloc(VOCAB * sizeof *want), memcpy(want, ev.logits, VOCAB * sizeof *want);
        for (int i = 0; i < VOCAB; i++) worst = fmax(worst, fabs((double)want[i] - (double)ev.logits[i]));
        if (!(worst <= bound[type]) || (type && worst == 0))
            fail_msg("cache type %d: logits differ by %g", type, worst);
        engine_close(e);
        model_source_close(&src);
    }
    test_free(want);
}

static void test_refused(void **state) {
    (void)state;
    int32_t ids[CONTEXT] = {0};
    model_source src;
    engine *e = open_engine(&src, GOLDEN "tiny_llama", (engine_options){0});
    request q = REQUEST_PLAIN;
    q.prompt = ids;
    static const struct {
        int n;
        int32_t id;
        double top_p;
        const char *stop, *says;
    } rows[] = {{0, 0, 1, NULL, "no token"},
                {CONTEXT, 0, 1, NULL, "no room"},
                {3, VOCAB, 1, NULL, "none of this model"},
                {3, -1, 1, NULL, "none of this model"},
                {3, 0, 0, NULL, "top-p"},
                {3, 0, 1, "x", "tokenizer"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        fail_clear();
        ids[0] = rows[i].id, q.n = rows[i].n, q.sampling.top_p = rows[i].top_p;
        q.stop = &rows[i].stop, q.stops = rows[i].stop != NULL;
        assert_int_equal(engine_add(e, &q), -1);
        assert_int_equal(fail_code(), EXIT_USAGE);
        if (!strstr(fail_text(), rows[i].says)) fail_msg("row %zu: %s", i, fail_text());
    }
    assert_int_equal(engine_step(e), 0);
    engine_close(e);
    static const engine_options bad[] = {{.context = 1 << 20}, {.sequences = 8, .batch_rows = 4}, {.kv_pages = 1}};
    for (int i = 0; i < 3; i++) {
        engine_options o = bad[i];
        o.src = &src, o.how.backend = "auto";
        fail_clear();
        assert_null(engine_open(&o));
        assert_int_equal(fail_code(), EXIT_USAGE);
    }
    model_source_close(&src);
    assert_int_equal(model_source_open(&src, GOLDEN "tiny_mistral"), 0); /* 2 heads of 8: half a block */
    engine_options o = {.src = &src, .how.backend = "auto", .kv_type = KV_Q8_0};
    fail_clear();
    assert_null(engine_open(&o));
    assert_non_null(strstr(fail_text(), "q8_0"));
    model_source_close(&src);
}

/* A second request with the same beginning computes only what is new; another key or another history shares nothing. */
static void test_prefixes(void **state) {
    (void)state;
    int32_t ids[CONTEXT];
    model_source src;
    outcome got[3] = {0}, alone[REQUESTS];
    run_alone(GOLDEN "tiny_llama", alone, (engine_options){0});
    engine *e = open_engine(&src, GOLDEN "tiny_llama", (engine_options){0});
    request q = request_of(1, ids); /* 40 tokens */
    assert_int_equal(engine_add(e, &q), 1);
    drain(e, got);
    same(&alone[1], &got[0], "first", 1);
    assert_int_equal(got[0].stats.cached_tokens, 0);
    assert_int_equal(engine_add(e, &q), 2);
    drain(e, got);
    same(&alone[1], &got[1], "again", 1);
    assert_int_equal(got[1].stats.cached_tokens, 32);
    int64_t rows = engine_figures(e).rows;
    memcpy(ids + 40, got[0].token, 20 * sizeof *ids); /* a second turn */
    q.n = 60, q.max_tokens = 1;
    assert_int_equal(engine_add(e, &q), 3);
    drain(e, got);
    assert_int_equal(got[2].stats.cached_tokens, 48);
    assert_int_equal(engine_figures(e).rows - rows, 12);
    engine_close(e);
    model_source_close(&src);
    e = open_engine(&src, GOLDEN "tiny_llama", (engine_options){0});
    outcome cold[1] = {0};
    assert_int_equal(engine_add(e, &q), 1);
    drain(e, cold);
    same(&cold[0], &got[2], "second turn", 1);
    engine_close(e);
    model_source_close(&src);
}

/* A fork shares pages until it writes; both go on as if they were alone. */
static void test_fork(void **state) {
    (void)state;
    int32_t ids[CONTEXT];
    model_source src;
    outcome want[2] = {0}, got[2] = {0};
    for (int i = 0; i < 2; i++) { /* alone, with each seed */
        engine *e = open_engine(&src, GOLDEN "tiny_llama", (engine_options){0});
        request q = request_of(5, ids);
        outcome one[1] = {0};
        q.sampling.temperature = 1, q.sampling.seed = 5 + (uint64_t)i;
        assert_int_equal(engine_add(e, &q), 1);
        drain(e, one);
        want[i] = one[0];
        engine_close(e);
        model_source_close(&src);
    }
    engine *e = open_engine(&src, GOLDEN "tiny_llama", (engine_options){.sequences = 2});
    request q = request_of(5, ids);
    q.sampling.temperature = 1, q.sampling.seed = 5;
    assert_int_equal(engine_add(e, &q), 1);
    engine_event ev;
    assert_int_equal(engine_fork(e, 7, 6), -1);
    assert_int_equal(engine_fork(e, 1, 6), 2);
    drain(e, got);
    same(&want[0], &got[0], "fork", 0), same(&want[1], &got[1], "fork", 1);
    assert_memory_not_equal(got[0].token, got[1].token, 8 * sizeof(int32_t));
    q.max_tokens = 20; /* in the middle of a page */
    assert_int_equal(engine_add(e, &q), 3);
    for (int i = 0; i < 9; i++) assert_true(engine_step(e) && engine_next(e, &ev));
    outcome tail[4] = {0};
    assert_int_equal(engine_fork(e, 3, 5), 4);
    drain(e, tail);
    assert_int_equal(tail[2].n, 11), assert_int_equal(tail[3].n, 11);
    assert_memory_equal(tail[2].token, tail[3].token, 11 * sizeof(int32_t)); /* the same seed */
    assert_memory_equal(tail[2].token, got[0].token + 9, 11 * sizeof(int32_t));
    assert_int_equal(engine_figures(e).pages_held, 0);
    engine_close(e);
    model_source_close(&src);
}

static void test_cancel(void **state) {
    (void)state;
    int32_t ids[CONTEXT];
    model_source src;
    outcome got[3] = {0};
    engine *e = open_engine(&src, GOLDEN "tiny_llama", (engine_options){.sequences = 1});
    for (int i = 0; i < 3; i++) {
        request q = request_of(i, ids);
        engine_add(e, &q);
    }
    engine_event ev;
    assert_int_equal(engine_step(e), 3);
    assert_true(engine_next(e, &ev));
    engine_cancel(e, 1), engine_cancel(e, 3), engine_cancel(e, 99);
    drain(e, got);
    assert_int_equal(got[0].finish, FINISH_CANCELLED);
    assert_int_equal(got[1].finish, FINISH_LENGTH);
    assert_int_equal(got[2].finish, FINISH_CANCELLED);
    assert_int_equal(got[1].n, ANSWER);
    assert_int_equal(engine_figures(e).pages_held, 0);
    engine_close(e);
    model_source_close(&src);
}

/* ---- pages alone ---- */

static void test_pages(void **state) {
    (void)state;
    page_pool p;
    int32_t a[KV_PAGE] = {1, 2, 3}, b[KV_PAGE] = {4};
    pages_open(&p, 4);
    int first = pages_take(&p), second = pages_take(&p), third = pages_take(&p), last = pages_take(&p);
    assert_int_equal(pages_take(&p), -1);
    assert_int_equal(pages_name(&p, first, 0, -1, a), first);
    assert_int_equal(pages_name(&p, second, 0, first, b), second);
    assert_int_equal(pages_name(&p, third, 1, -1, a), third); /* another key */
    assert_int_equal(pages_find(&p, 0, -1, b), -1);
    assert_int_equal(pages_find(&p, 0, first, b), second);
    assert_int_equal(pages_find(&p, 0, third, b), -1);           /* another page before */
    assert_int_equal(pages_name(&p, last, 0, first, b), second); /* a twin: ours goes */
    assert_int_equal(p.page[second].refs, 3);
    assert_int_equal(pages_take(&p), last); /* without a name: first to go */
    pages_drop(&p, last);
    for (int i = 0; i < 3; i++) pages_drop(&p, second);
    pages_drop(&p, first), pages_drop(&p, third);
    assert_int_equal(p.idle, 4);
    assert_int_equal(pages_find(&p, 0, -1, a), first); /* content outlives its holders */
    pages_drop(&p, first);
    assert_int_equal(pages_take(&p), last);
    assert_int_equal(pages_take(&p), second); /* the one longest without a holder */
    assert_int_equal(pages_find(&p, 0, first, b), -1);
    assert_int_equal(pages_take(&p), third);
    assert_int_equal(pages_take(&p), first);
    assert_int_equal(pages_name(&p, first, 0, -1, a), first);
    assert_int_equal(pages_name(&p, second, 0, first, b), second);
    pages_drop(&p, first), pages_drop(&p, third), pages_drop(&p, last);
    for (int i = 0; i < 3; i++) pages_take(&p); /* first loses its content, second does not */
    assert_int_equal(pages_name(&p, first, 0, -1, b), first);
    assert_int_equal(pages_find(&p, 0, first, b), -1); /* second followed something else of that number */
    pages_close(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_pages),       cmocka_unit_test(test_mixed_batches),
                                       cmocka_unit_test(test_cache_types), cmocka_unit_test(test_refused),
                                       cmocka_unit_test(test_prefixes),    cmocka_unit_test(test_fork),
                                       cmocka_unit_test(test_cancel)};
    return cmocka_run_group_tests_name("engine", tests, NULL, NULL);
}
