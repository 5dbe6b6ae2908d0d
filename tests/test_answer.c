/* What leaves the engine as text and as numbers: stop strings across the borders of tokens, log-probabilities; and what
 * a page in q8_0 holds, against ggml's blocks. */
#include "engine/answer.h"
#include "kernels/kv_page.h"
#include "tests/engine_cases.h"

/* ---- text ---- */

/* The text cut into pieces by a seed: what leaves, joined; *held: the most that was ever kept back. */
static char *through(const char *text, const char *const *stop, int stops, uint64_t seed, bool *stopped, int *held) {
    answer a;
    size_t n = strlen(text), at = 0, made = 0;
    char *out = test_calloc(3 * n + 8, 1);
    answer_open(&a, stop, stops);
    *stopped = false, *held = 0;
    for (uint64_t k = 0; at < n && !*stopped; k++) {
        size_t piece = rng_below(seed, STREAM_TEST, k, 4);
        int more;
        if (piece > n - at) piece = n - at;
        const char *x = answer_feed(&a, text + at, (int)piece, at + piece == n, &more, stopped);
        assert_int_equal(strlen(x), more);
        memcpy(out + made, x, (size_t)more);
        made += (size_t)more, at += piece;
        if (!*stopped && (int)(at - made) > *held) *held = (int)(at - made);
    }
    answer_close(&a);
    return out;
}

static void test_stop_strings(void **state) {
    (void)state;
    static const struct {
        const char *text, *stop[3], *expected; /* NULL: all of it */
        int held; /* bytes that may have to wait: the longest stop string less one, or a cut character */
    } rows[] = {
        {"the quick brown fox", {"brown"}, "the quick ", 4},
        {"the quick brown fox", {"quick brown fox and more"}, NULL, 23},
        {"the quick brown fox", {"fox", "quick"}, "the ", 4},
        {"aaaaab", {"aab"}, "aaa", 2},
        {"ababababc", {"ababc"}, "abab", 4},
        {"\n\nUser: hi", {"\n\nUser:"}, "", 6},
        {"no stop here", {""}, NULL, 0},
        {"caf\u00e9 \u2603 \U0001f600!", {"!"}, "caf\u00e9 \u2603 \U0001f600", 3},
        {"caf\u00e9 \u2603 x", {"\u2603"}, "caf\u00e9 ", 3},
        {"END", {"END", "E"}, "", 2},
        {"one END two END", {"END"}, "one ", 2},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (uint64_t seed = 0; seed < 200; seed++) {
            int stops = 0, held;
            bool stopped;
            while (stops < 3 && rows[i].stop[stops]) stops++;
            char *got = through(rows[i].text, rows[i].stop, stops, seed, &stopped, &held);
            const char *want = rows[i].expected ? rows[i].expected : rows[i].text;
            if (strcmp(got, want) != 0)
                fail_msg("row %zu, seed %lu: '%s', expected '%s'", i, (unsigned long)seed, got, want);
            assert_int_equal(stopped, rows[i].expected != NULL);
            if (held > rows[i].held)
                fail_msg("row %zu: %d bytes were held back, expected %d at most", i, held, rows[i].held);
            test_free(got);
        }
}

/* What is cut off at the end is one replacement character, and a copy goes on by itself. */
static void test_text_ends(void **state) {
    (void)state;
    const char *const stop[] = {"xyz"};
    answer a, b;
    int n;
    bool stopped;
    answer_open(&a, stop, 1);
    answer_feed(&a, "ab\xe2\x98", 4, false, &n, &stopped);
    assert_int_equal(n, 2);
    answer_copy(&b, &a);
    assert_string_equal(answer_feed(&a, "\x83xy", 3, false, &n, &stopped), "\u2603");
    assert_string_equal(answer_feed(&a, "", 0, true, &n, &stopped), "xy");
    assert_false(stopped);
    assert_string_equal(answer_feed(&b, "xyz", 3, false, &n, &stopped), "\ufffd");
    assert_true(stopped);
    answer_close(&a), answer_close(&b);
}

/* ---- numbers ---- */

static void test_logprobs(void **state) {
    (void)state;
    int32_t ids[CONTEXT];
    model_source src;
    engine *e = open_engine(&src, GOLDEN "tiny_llama", (engine_options){.sequences = 3});
    for (int i = 0; i < 3; i++) {
        request q = request_of(i, ids);
        q.logprobs = i == 0 ? -1 : i == 1 ? 0 : 4, q.max_tokens = 5;
        assert_int_equal(engine_add(e, &q), i + 1);
    }
    int seen = 0;
    for (engine_event ev; engine_step(e);)
        while (engine_next(e, &ev)) {
            assert_int_equal(ev.logprobs != NULL, ev.id > 1);
            if (!ev.logprobs) continue;
            double sum = 0;
            for (int i = 0; i < VOCAB; i++) sum += exp((double)ev.logits[i]);
            assert_int_equal(ev.top, ev.id == 3 ? 4 : 0);
            assert_int_equal(ev.logprobs[0].id, ev.token);
            for (int i = 0; i <= ev.top; i++) {
                double want = (double)ev.logits[ev.logprobs[i].id] - log(sum);
                assert_true(fabs((double)ev.logprobs[i].logprob - want) < 1e-5);
            }
            for (int i = 1; i <= ev.top; i++) assert_true(ev.logprobs[1].logprob >= ev.logprobs[i].logprob);
            for (int i = 0; i < VOCAB && ev.top; i++) assert_true(ev.logits[i] <= ev.logits[ev.logprobs[1].id]);
            seen++;
        }
    assert_int_equal(seen, 10);
    engine_close(e);
    model_source_close(&src);
}

/* A token's keys and values in a page are its row quantised and read back by the format Q8_0, value by value. */
static void test_q8_pages(void **state) {
    (void)state;
    enum { HEADS = 3, DIM = 32, WIDTH = HEADS * DIM, PAGES = 2, ROWS = 20 };
    const weight_format *f = &weight_formats[FMT_Q8_0];
    int64_t bytes = kv_page_bytes(KV_Q8_0, WIDTH);
    char *pool = aligned_alloc(64, (size_t)(2 * PAGES * bytes));
    float x[2][ROWS * WIDTH], want[WIDTH];
    uint8_t blocks[WIDTH / 32 * 34];
    int32_t slot[ROWS];
    float *all = &x[0][0];
    for (int i = 0; i < 2 * ROWS * WIDTH; i++)
        all[i] = rng_normal(3, STREAM_TEST, (uint64_t)i) * expf((float)(i % 7) - 3);
    for (int i = 0; i < ROWS; i++) slot[i] = ROWS - 1 - i;
    const kv_pages p = {KV_Q8_0, HEADS, DIM, pool, pool + bytes, 2 * bytes, NULL, 0};
    kctx k;
    assert_int_equal(kctx_open(&k, backend_open("auto"), 1), 0);
    k.be->kv_store(&k, &p, mat_f32(x[0], ROWS, WIDTH), mat_f32(x[1], ROWS, WIDTH), slot);
    for (int i = 0; i < ROWS; i++)
        for (int values = 0; values < 2; values++) {
            const char *page = (values ? p.v : p.k) + slot[i] / KV_PAGE * p.stride;
            kv_place at = values ? kv_value_place(slot[i] % KV_PAGE, WIDTH) : kv_key_place(slot[i] % KV_PAGE);
            const weight w = {f, 1, WIDTH, 1, blocks, NULL};
            f->quant(x[values] + i * WIDTH, WIDTH, blocks);
            f->dequant(&w, 0, WIDTH, want);
            for (int64_t c = 0; c < WIDTH; c++) {
                float got = kv_get(KV_Q8_0, page, WIDTH, at, c);
                assert_memory_equal(&got, &want[c], sizeof got);
            }
        }
    kctx_close(&k);
    free(pool);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_stop_strings), cmocka_unit_test(test_text_ends),
                                       cmocka_unit_test(test_logprobs), cmocka_unit_test(test_q8_pages)};
    return cmocka_run_group_tests_name("answer", tests, NULL, NULL);
}
