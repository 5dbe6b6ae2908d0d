/* A whole model against transformers and bitsandbytes (tests/golden/make_tiny.py), and what must not change a bit:
 * packing, threads, instruction set, checkpointing, the cache. */
#include "core/error.h"
#include "core/json.h"
#include "core/num.h"
#include "core/rng.h"
#include "model/session.h"
#include "tests/golden_logits.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { ROWS = 64, SEQS = 8, CONTEXT = 40 };
#define GOLDEN "tests/golden/"

/* A session on the tiny model with room for ROWS tokens; lora: an adapter of rank 4 on everything, A and B both seeded.
 */
typedef struct {
    model_source src;
    session s;
    batch b;
    kv_cache kv;
    int32_t rows[ROWS], target[ROWS];
    float weight[ROWS];
} fixture;

static bool half; /* activation_dtype: bf16 for the next fixture */

static void build(fixture *f, bool four_bit, bool lora) {
    model_options o = {.load_in_4bit = four_bit, .double_quant = true, .positions = ROWS};
    lora_config l = {.r = 4, .alpha = 8, .all_linear = true};
    assert_int_equal(session_load(&f->s, &f->src, &o, lora ? &l : NULL, 1, true), 0);
    const hparams *hp = &f->src.hp;
    kv_shape kv = {KV_F32, (int)hp->layers, (int)hp->kv_heads, (int)hp->head_dim, 3 * SEQS, ROWS, SEQS, CONTEXT};
    assert_int_equal(kv_cache_open(&f->kv, &kv, &f->s.run), 0);
    kv_cache_own(&f->kv);
}

static void worst_step(fixture *f, bool training) {
    step_sums sums = {0};
    tape t = session_tape(&f->s, training, false);
    float *logprob = arena_array(&f->s.act, ROWS, sizeof *logprob);
    tensor *h = model_forward(&t, &f->s.m, &f->b, NULL);
    model_loss(&t, &f->s.m, h, &f->b, f->rows, f->target, f->weight, logprob, &sums);
    mat logits = tape_tensor(&t, ROWS, f->src.hp.vocab, false)->val;
    model_logits(&t, &f->s.m, h, f->rows, f->b.targets, logits);
    tape_backward(&t);
}

static void open_fixture(fixture *f, const char *model, bool four_bit, bool lora, const char *backend, int threads) {
    char path[128];
    int32_t ids[ROWS] = {0};
    memset(f, 0, sizeof *f);
    snprintf(path, sizeof path, GOLDEN "%s", model);
    if (model_source_open(&f->src, path)) fail_msg("%s", fail_text());
    batch_open(&f->b, ROWS, SEQS);
    assert_int_equal(session_plan(&f->s, "ref", half), 0);
    build(f, four_bit, lora);
    batch_add(&f->b, ids, ids, ROWS, 0);
    worst_step(f, true);
    session planned = f->s;
    kv_cache_close(&f->kv);
    if (session_open(&f->s, &planned, backend, threads)) fail_msg("%s", fail_text());
    session_close(&planned);
    build(f, four_bit, lora);
    for (int64_t i = 0; i < f->s.ad.n; i++) f->s.ad.param[i] = 0.05f * rng_normal(9, 1, (uint64_t)i);
    batch_clear(&f->b);
}

static void close_fixture(fixture *f) {
    kv_cache_close(&f->kv);
    session_close(&f->s);
    batch_close(&f->b);
    model_source_close(&f->src);
}

static json_t *parse(const char *path) {
    file_map m;
    assert_int_equal(file_open(&m, path), 0);
    json_t *v = json_parse(path, (const char *)m.data, m.size, 0);
    assert_non_null(v);
    file_close(&m);
    return v;
}

static void add_golden_sequences(fixture *f, const char *golden) {
    char path[128];
    size_t s, i;
    json_t *ids, *id;
    int32_t row[ROWS];
    snprintf(path, sizeof path, GOLDEN "%s_logits.json", golden);
    json_t *o = parse(path);
    json_array_foreach(json_object_get(o, "input_ids"), s, ids) {
        json_array_foreach(ids, i, id) row[i] = (int32_t)json_integer_value(id);
        batch_add(&f->b, row, row, (int)json_array_size(ids), s);
    }
    json_decref(o);
}

static mat logits_of(fixture *f, tape *t, kv_cache *kv) {
    int32_t every[ROWS];
    for (int i = 0; i < f->b.rows; i++) every[i] = i;
    tensor *h = model_forward(t, &f->s.m, &f->b, kv);
    mat logits = tape_tensor(t, f->b.rows, f->src.hp.vocab, false)->val;
    model_logits(t, &f->s.m, h, every, f->b.rows, logits);
    return logits;
}

static void check_logits(const char *model, const char *golden, bool four_bit) {
    fixture f;
    open_fixture(&f, model, four_bit, false, "auto", 2);
    add_golden_sequences(&f, golden);
    tape t = session_tape(&f.s, false, false);
    mat logits = logits_of(&f, &t, NULL);
    check_golden_logits(logits, golden, golden);
    close_fixture(&f);
}

static void test_logits(void **state) {
    (void)state;
    check_logits("tiny_llama", "tiny_llama", false);
    check_logits("tiny_tied", "tiny_tied", false); /* BF16, shards, tied head */
}

static void test_logits_nf4(void **state) {
    (void)state;
    check_logits("tiny_llama", "tiny_llama_nf4", true);
}

/* One step on the golden sequences: log-probabilities, gradients. */
typedef struct {
    int n;
    float logprob[ROWS];
    float *grad;
    step_sums sums;
} step;

static void run_step(fixture *f, step *r, bool checkpoint) {
    tape t = session_tape(&f->s, true, checkpoint);
    float *logprob = arena_array(&f->s.act, ROWS, sizeof *logprob);
    tensor *h = model_forward(&t, &f->s.m, &f->b, NULL);
    model_loss(&t, &f->s.m, h, &f->b, f->rows, f->target, f->weight, logprob, &r->sums);
    memcpy(r->logprob + r->n, logprob, (size_t)f->b.targets * sizeof *logprob);
    r->n += f->b.targets;
    tape_backward(&t);
}

static void golden_step(step *r, const char *backend, int threads, bool checkpoint, bool packed) {
    fixture f;
    static const int32_t ids[] = {5, 9, 120, 33, 7, 250, 12, 12, 61, 300, 44, 2, 77, 81, 19, 3, 101, 5, 6, 7};
    static const int lengths[] = {7, 2, 20, 13};
    *r = (step){0};
    open_fixture(&f, "tiny_llama", true, true, backend, threads);
    memset(f.s.ad.grad, 0, (size_t)f.s.ad.n * sizeof(float));
    for (int s = 0; s < 4; s++) {
        batch_add(&f.b, ids + 20 - lengths[s], ids + 20 - lengths[s], lengths[s], (uint64_t)s);
        if (packed && s < 3) continue;
        run_step(&f, r, checkpoint);
        batch_clear(&f.b);
    }
    r->grad = xcalloc((size_t)f.s.ad.n, sizeof *r->grad);
    memcpy(r->grad, f.s.ad.grad, (size_t)f.s.ad.n * sizeof *r->grad);
    r->sums.sumsq = (double)f.s.ad.n;
    close_fixture(&f);
}

static void same_step(const step *a, const step *b, const char *what) {
    assert_int_equal(a->n, b->n);
    if (memcmp(a->logprob, b->logprob, (size_t)a->n * sizeof(float))) fail_msg("%s: log-probabilities differ", what);
    if (memcmp(a->grad, b->grad, (size_t)a->sums.sumsq * sizeof(float))) fail_msg("%s: gradients differ", what);
}

static void test_threads_and_isa(void **state) {
    (void)state;
    step want, got;
    golden_step(&want, "ref", 1, false, true);
    for (const char *const *name = backend_names(); *name; name++)
        for (int threads = 1; threads <= 2; threads++) {
            golden_step(&got, *name, threads, false, true);
            same_step(&want, &got, *name);
            free(got.grad);
        }
    free(want.grad);
}

static void test_checkpointing(void **state) {
    (void)state;
    step want, got;
    golden_step(&want, "auto", 2, false, true);
    golden_step(&got, "auto", 2, true, true);
    same_step(&want, &got, "gradient_checkpointing");
    free(want.grad), free(got.grad);
}

/* Log-probabilities keep their bits; gradient sums over rows are split differently: 1e-5 of the norm, in fp32. */
static void test_packing(void **state) {
    (void)state;
    step want, got;
    golden_step(&want, "auto", 2, false, true);
    golden_step(&got, "auto", 2, false, false);
    assert_int_equal(want.n, got.n);
    assert_memory_equal(want.logprob, got.logprob, (size_t)want.n * sizeof(float));
    double error = 0, norm = 0;
    for (int64_t i = 0; i < (int64_t)want.sums.sumsq; i++) {
        double d = (double)want.grad[i] - (double)got.grad[i];
        error += d * d, norm += (double)want.grad[i] * (double)want.grad[i];
    }
    assert_true(norm > 0 && sqrt(error) <= 1e-5 * sqrt(norm));
    free(want.grad), free(got.grad);
}

/* Kept in bf16 (8 bits of mantissa, relative error 2^-9) the forward pass keeps its bits; the gradient of a sum over
 * rows sees independent errors of that size through a few products: 1e-2 of its norm. */
static void test_half(void **state) {
    (void)state;
    step want, got;
    golden_step(&want, "auto", 2, false, true);
    half = true;
    golden_step(&got, "auto", 2, false, true);
    half = false;
    assert_memory_equal(want.logprob, got.logprob, (size_t)want.n * sizeof(float));
    double error = 0, norm = 0;
    for (int64_t i = 0; i < (int64_t)want.sums.sumsq; i++) {
        double d = (double)want.grad[i] - (double)got.grad[i];
        error += d * d, norm += (double)want.grad[i] * (double)want.grad[i];
    }
    assert_true(error > 0 && sqrt(error) <= 1e-2 * sqrt(norm));
    free(want.grad), free(got.grad);
}

/* Prefill in pieces and token by token, two sequences at once, give the bits of the whole sequence. */
static void test_cache(void **state) {
    (void)state;
    fixture f;
    static const int32_t ids[] = {5, 9, 120, 33, 7, 250, 12, 61, 300, 44};
    float *want = xcalloc(10 * 320, sizeof *want);
    open_fixture(&f, "tiny_llama", false, true, "auto", 2);
    batch_add(&f.b, ids, NULL, 10, 0);
    tape t = session_tape(&f.s, false, false);
    memcpy(want, logits_of(&f, &t, NULL).data, 10 * 320 * sizeof *want);
    static const int pieces[] = {4, 1, 3, 1, 1};
    for (int p = 0, past = 0; p < 5; past += pieces[p++]) {
        batch_clear(&f.b);
        for (int s = 0; s < 2; s++) {
            batch_add(&f.b, ids + past, NULL, pieces[p], 0);
            f.b.past[s] = past;
            for (int i = f.b.start[s]; i < f.b.start[s + 1]; i++) f.b.pos[i] += past;
        }
        t = session_tape(&f.s, false, false);
        mat got = logits_of(&f, &t, &f.kv);
        for (int i = 0; i < 2 * pieces[p]; i++)
            if (memcmp(mat_row(got, i), want + (past + i % pieces[p]) * 320, 320 * sizeof(float)))
                fail_msg("token %d of sequence %d: logits differ from the whole", past + i % pieces[p], i / pieces[p]);
    }
    free(want);
    close_fixture(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits),        cmocka_unit_test(test_logits_nf4), cmocka_unit_test(test_threads_and_isa),
        cmocka_unit_test(test_checkpointing), cmocka_unit_test(test_packing),    cmocka_unit_test(test_half),
        cmocka_unit_test(test_cache)};
    return cmocka_run_group_tests_name("model", tests, NULL, NULL);
}
