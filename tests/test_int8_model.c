/* The fast mode of inference on whole models: its next-token distributions against the canonical path's, and what a row
 * must not depend on: how a prompt is cut, the number of threads, the instruction set. */
#include "bench/divergence.h"
#include "tests/model_files.h"

enum { N = 64 };

typedef struct {
    model_source src;
    tokenizer *tok;
    token_list ids;
} text_case;

/* the first tokens of this project's own page about its design */
static void open_text(text_case *t, const char *model) {
    size_t bytes;
    uint8_t *text = read_whole("docs/ARCHITECTURE.md", &bytes);
    *t = (text_case){0};
    if (model_source_open(&t->src, model)) fail_msg("%s", fail_text());
    t->tok = tokenizer_open_dir(GOLDEN "tiny_llama");
    assert_non_null(t->tok);
    assert_int_equal(tokenizer_encode(t->tok, (char *)text, (int64_t)bytes, 0, &t->ids), 0);
    assert_true(t->ids.n >= N);
    free(text);
}

static void close_text(text_case *t) {
    token_list_free(&t->ids);
    tokenizer_close(t->tok);
    close_source(&t->src);
}

static float *logits(const text_case *t, const char *backend, bool four_bit, int threads, int piece) {
    const inference_options how = {
        .backend = backend, .threads = threads, .base_given = true, .load_in_4bit = four_bit, .double_quant = true};
    float *all = all_logits(&t->src, &how, t->ids.id, N, piece);
    if (!all) fail_msg("%s", fail_text());
    return all;
}

/* Measured: 1.3e-4 to 1.9e-4 (mean), 5e-4 to 6.8e-4 (worst token); twice that is allowed. Real models: make
 * bench-infer.
 */
static void test_divergence(void **state) {
    (void)state;
    static const struct {
        const char *model;
        bool four_bit;
    } cases[] = {{GOLDEN "tiny_llama", false}, {GOLDEN "tiny_llama", true}, {GOLDEN "tiny_llama_mixed.gguf", false}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        text_case t;
        open_text(&t, cases[i].model);
        float *precise = logits(&t, "auto", cases[i].four_bit, 2, N),
              *fast = logits(&t, "int8", cases[i].four_bit, 2, N);
        const divergence d = diverge(precise, fast, t.ids.id, N, t.src.hp.vocab);
        printf("%s%s: KL mean %.2e, worst %.2e; same word %.0f %%; perplexity %.4f, fast %.4f\n", cases[i].model,
               cases[i].four_bit ? " in NF4" : "", d.mean, d.max, 100 * d.agree, d.perplexity_p, d.perplexity_q);
        if (!(d.mean > 0 && d.mean < 4e-4 && d.max < 1.4e-3)) fail_msg("%s: %g, %g", cases[i].model, d.mean, d.max);
        free(precise), free(fast);
        close_text(&t);
    }
}

static void test_same_bits(void **state) {
    (void)state;
    static const char *const names[] = {"avx2-int8", "avx512-int8", "avx512vnni-int8", "neon-int8"};
    for (int four_bit = 0; four_bit < 2; four_bit++) {
        text_case t;
        open_text(&t, four_bit ? GOLDEN "tiny_llama" : GOLDEN "tiny_llama_mixed.gguf");
        const size_t bytes = (size_t)(N * t.src.hp.vocab) * sizeof(float);
        float *want = logits(&t, "ref-int8", four_bit, 1, N);
        for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
            const bool here = backend_open(names[i]) != NULL;
            fail_clear();
            for (int piece = 1; here && piece <= N; piece = piece == 1 ? 23 : piece == 23 ? N : N + 1)
                for (int threads = 1; threads <= 3; threads += 2) {
                    float *got = logits(&t, names[i], four_bit, threads, piece);
                    if (memcmp(got, want, bytes))
                        fail_msg("%s, %d threads, pieces of %d: other bits", names[i], threads, piece);
                    free(got);
                }
        }
        free(want);
        close_text(&t);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_divergence), cmocka_unit_test(test_same_bits)};
    return cmocka_run_group_tests(tests, make_scratch, remove_scratch);
}
