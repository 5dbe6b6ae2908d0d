/* The families beside llama against transformers and peft (tests/golden/make_families.py): logits, adapter gradients,
 * the cache past a sliding window, GGUF files, merged models, and what their config.json may say. */
int unused_main(int argc, char **argv);
#define main unused_main
#include "../merge.c" /* NOLINT(bugprone-suspicious-include): its main under another name */
#undef main
#include "core/error.h"
#include "core/json.h"
#include "model/session.h"
#include "tests/golden_logits.h"
#include "tests/model_files.h"

#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { ROWS = 64, SEQS = 4, VOCAB = 320, LONGEST = 24 };
typedef struct {
    const char *name, *golden, *dir, *file, *adapter;
} family_files;
#define FILES(name)                                                                                                    \
    { name, "tiny_" name, GOLDEN "tiny_" name, GOLDEN "tiny_" name ".gguf", GOLDEN "tiny_" name "_lora" }
static const family_files families[] = {FILES("mistral"), FILES("qwen2"), FILES("qwen3")};
enum { FAMILIES = sizeof families / sizeof *families };
#define WINDOWED                                                                                                       \
    "{\"layer_types\": null, \"use_sliding_window\": true, \"sliding_window\": 6, \"max_window_layers\": 1}"

/* ---- a model with its golden sequences ---- */

typedef struct {
    model_source src;
    session s;
    batch b;
    int32_t rows[ROWS], target[ROWS];
    float weight[ROWS], logprob[ROWS];
} fixture;

static void add_sequences(batch *b, const char *golden) {
    char path[128];
    size_t s, i;
    json_t *ids, *id;
    int32_t row[ROWS];
    snprintf(path, sizeof path, GOLDEN "%s_logits.json", golden);
    json_t *o = json_read(path);
    assert_non_null(o);
    json_array_foreach(json_object_get(o, "input_ids"), s, ids) {
        json_array_foreach(ids, i, id) row[i] = (int32_t)json_integer_value(id);
        batch_add(b, row, row, (int)json_array_size(ids), s);
    }
    json_decref(o);
}

static void build(fixture *f, const char *adapter) {
    const model_options o = {.positions = ROWS};
    lora_config l;
    if (adapter) assert_int_equal(lora_config_read(&l, adapter), 0);
    if (session_load(&f->s, &f->src, &o, adapter ? &l : NULL, 1, true)) fail_msg("%s", fail_text());
    if (adapter && !f->s.run.planning && adapter_load(&f->s.ad, adapter)) fail_msg("%s", fail_text());
}

/* Log-probabilities, gradients when there is an adapter, and the logits [rows, VOCAB] of every token. */
static mat step(fixture *f, bool checkpoint) {
    step_sums sums = {0};
    int32_t every[ROWS];
    for (int i = 0; i < f->b.rows; i++) every[i] = i;
    tape t = session_tape(&f->s, f->s.ad.n > 0, checkpoint);
    tensor *h = model_forward(&t, &f->s.m, &f->b, NULL);
    mat logits = tape_tensor(&t, f->b.rows, VOCAB, false)->val;
    model_logits(&t, &f->s.m, h, every, f->b.rows, logits);
    model_loss(&t, &f->s.m, h, &f->b, f->rows, f->target, f->weight, f->logprob, &sums);
    tape_backward(&t);
    return logits;
}

static void open_fixture(fixture *f, const char *model, const char *golden, const char *adapter) {
    memset(f, 0, sizeof *f);
    if (model_source_open(&f->src, model)) fail_msg("%s", fail_text());
    batch_open(&f->b, ROWS, SEQS);
    add_sequences(&f->b, golden);
    assert_int_equal(session_plan(&f->s, "ref", false), 0);
    build(f, adapter);
    for (int checkpoint = 0; checkpoint < 2; checkpoint++) step(f, checkpoint);
    session planned = f->s;
    if (session_open(&f->s, &planned, "auto", 2)) fail_msg("%s", fail_text());
    session_close(&planned);
    build(f, adapter);
}

static void close_fixture(fixture *f) {
    session_close(&f->s);
    batch_close(&f->b);
    model_source_close(&f->src);
}

/* ---- numbers ---- */

static void check_logits(const char *model, const char *golden, const char *sequences) {
    fixture f;
    open_fixture(&f, model, sequences, NULL);
    mat logits = step(&f, false);
    check_golden_logits(logits, golden, model);
    close_fixture(&f);
}

static void test_logits(void **state) {
    (void)state;
    for (int i = 0; i < FAMILIES; i++) {
        const family_files *of = &families[i];
        check_logits(of->dir, of->golden, of->golden);
        check_logits(of->file, of->golden, of->golden);
    }
    check_logits(patch_config("window", "tiny_qwen2", WINDOWED), "tiny_qwen2_window", "tiny_qwen2");
}

/* The same numbers in another container: the same bits. */
static void test_gguf_equals_safetensors(void **state) {
    (void)state;
    for (int i = 0; i < FAMILIES; i++) {
        fixture a, b;
        const family_files *of = &families[i];
        open_fixture(&a, of->dir, of->golden, NULL), open_fixture(&b, of->file, of->golden, NULL);
        assert_string_equal(b.src.fam->name, of->name); /* by its window, mistral is told from llama */
        assert_memory_equal(&a.src.hp, &b.src.hp, offsetof(hparams, norm_eps));
        mat x = step(&a, false), y = step(&b, false);
        if (memcmp(x.data, y.data, (size_t)(x.rows * x.cols) * sizeof(float))) fail_msg("%s: logits differ", of->file);
        close_fixture(&a), close_fixture(&b);
    }
}

static double relative(const float *got, const st_tensor *want) {
    double error = 0, norm = 0;
    for (uint64_t i = 0; i < want->bytes / 4; i++) {
        float w;
        memcpy(&w, want->data + 4 * i, 4);
        error += ((double)got[i] - (double)w) * ((double)got[i] - (double)w), norm += (double)w * (double)w;
    }
    assert_true(norm > 0);
    return sqrt(error / norm);
}

/* Every A and B of an all-linear adapter, B not zero; 1e-3 is promised, fp32 sums in another order give 1e-5. */
static void test_adapter_gradients(void **state) {
    (void)state;
    for (int i = 0; i < FAMILIES; i++) {
        fixture f;
        safetensors want;
        char path[128];
        const family_files *of = &families[i];
        snprintf(path, sizeof path, "%s/gradients.safetensors", of->adapter);
        if (safetensors_open(&want, path)) fail_msg("%s", fail_text());
        open_fixture(&f, of->dir, of->golden, of->adapter);
        assert_int_equal(f.s.ad.n_views, 28);
        assert_int_equal(want.n, 28);
        memset(f.s.ad.grad, 0, (size_t)f.s.ad.n * sizeof(float));
        step(&f, false);
        for (int v = 0; v < f.s.ad.n_views; v++) {
            const adapter_view *view = &f.s.ad.views[v];
            const st_tensor *t = safetensors_find(&want, view->name);
            if (!t || t->bytes != (uint64_t)(view->p.rows * view->p.cols) * 4) fail_msg("tensor '%s'", view->name);
            double error = relative(view->p.grad, t);
            if (!(error < 1e-5)) fail_msg("%s: gradient of %s is off by %g", of->dir, view->name, error);
        }
        float *kept = xcalloc((size_t)f.s.ad.n, sizeof *kept);
        memcpy(kept, f.s.ad.grad, (size_t)f.s.ad.n * sizeof *kept);
        memset(f.s.ad.grad, 0, (size_t)f.s.ad.n * sizeof(float));
        step(&f, true);
        if (memcmp(kept, f.s.ad.grad, (size_t)f.s.ad.n * sizeof *kept)) fail_msg("%s: checkpointing", of->dir);
        free(kept);
        safetensors_close(&want);
        close_fixture(&f);
    }
}

/* Biases and norms are frozen but counted: every element of the file, once. */
static void test_parameters(void **state) {
    (void)state;
    for (int i = 0; i < FAMILIES; i++) {
        fixture f;
        int64_t n = 0;
        open_fixture(&f, families[i].dir, families[i].golden, NULL);
        for (int t = 0; t < f.src.st.n; t++) n += (int64_t)(f.src.st.tensors[t].bytes / 2);
        assert_int_equal(model_params(&f.s.m), n);
        close_fixture(&f);
    }
}

/* ---- generation ---- */

/* One by one and in pieces, as ./infer feeds them, past the window: the bits of the whole sequence. */
static void check_cache(const char *model, const char *golden) {
    static const int pieces[] = {5, 1, 11, 1, 6};
    fixture f;
    static feeder g;
    int64_t vocab;
    const inference_options o = {.backend = "auto", .threads = 2, .double_quant = true};
    open_fixture(&f, model, golden, NULL);
    mat whole = step(&f, false);
    int first = f.b.start[2];
    const int32_t *ids = f.b.token + first;
    assert_int_equal(f.b.start[3] - first, LONGEST);
    float *one_by_one = logits_of(model, ids, LONGEST, &vocab);
    for (int i = 0; i < LONGEST; i++)
        if (memcmp(one_by_one + i * VOCAB, mat_row(whole, first + i), VOCAB * sizeof(float)))
            fail_msg("%s: token %d: logits differ from the whole", model, i);
    feeder_open(&g, &f.src, &o, LONGEST);
    for (int p = 0, at = 0; p < 5; p++) {
        const float *logits = feeder_feed(&g, ids + at, pieces[p]);
        at += pieces[p];
        if (memcmp(logits, mat_row(whole, first + at - 1), VOCAB * sizeof(float)))
            fail_msg("%s: piece that ends with token %d", model, at - 1);
    }
    feeder_close(&g);
    free(one_by_one);
    close_fixture(&f);
}

static void test_cache(void **state) {
    (void)state;
    check_cache(GOLDEN "tiny_mistral", "tiny_mistral");
    check_cache(GOLDEN "tiny_qwen2", "tiny_qwen2");
    check_cache(GOLDEN "tiny_qwen3", "tiny_qwen3");
    check_cache(patch_config("window", "tiny_qwen2", WINDOWED), "tiny_qwen2");
}

/* ---- merged models ---- */

static void merge_of(const family_files *of, bool gguf, char out[static 128]) {
    char model[96], adapter[96], tokenizer[] = GOLDEN "tiny_llama";
    snprintf(out, 128, "%s/merged-%s%s", scratch, of->name, gguf ? "-gguf" : "");
    snprintf(model, sizeof model, "%s", gguf ? of->file : of->dir);
    snprintf(adapter, sizeof adapter, "%s", of->adapter);
    char *argv[] = {"merge", "--model", model, "--adapter",   adapter,   "--out",
                    out,     "--dtype", "f32", "--tokenizer", tokenizer, NULL};
    listening l = listen_stderr();
    int kept = dup(1);
    fflush(stdout), dup2(2, 1);
    optind = 0;
    int code = merge_main(&program, (int)(sizeof argv / sizeof *argv) - 1, argv);
    fflush(stdout), dup2(kept, 1), close(kept);
    const char *text = heard(l);
    if (code) fail_msg("%s: exit code %d: %s", model, code, text);
}

static void same_tensors(const char *a_dir, const char *b_dir) {
    safetensors a, b;
    if (safetensors_open_dir(&a, a_dir, "model") || safetensors_open_dir(&b, b_dir, "model"))
        fail_msg("%s", fail_text());
    assert_int_equal(a.n, b.n);
    for (int i = 0; i < a.n; i++) {
        const st_tensor *x = &a.tensors[i], *y = safetensors_find(&b, x->name);
        if (!y || x->bytes != y->bytes || memcmp(x->data, y->data, x->bytes)) fail_msg("'%s' differs", x->name);
    }
    safetensors_close(&a), safetensors_close(&b);
}

/* Biases and norms come along, the GGUF file gives the same tensors, and the merged model computes what base and
 * adapter do (fp32 in another order, logits of size 10). */
static void test_merge(void **state) {
    (void)state;
    for (int i = 0; i < FAMILIES; i++) {
        fixture a, b;
        safetensors base;
        char merged[128], from_gguf[128];
        const family_files *of = &families[i];
        merge_of(of, false, merged), merge_of(of, true, from_gguf);
        same_tensors(merged, from_gguf);
        open_fixture(&a, of->dir, of->golden, of->adapter);
        mat want = step(&a, false);
        for (int gguf = 0; gguf < 2; gguf++) {
            open_fixture(&b, gguf ? from_gguf : merged, of->golden, NULL);
            assert_string_equal(b.src.fam->name, of->name);
            assert_memory_equal(&a.src.hp, &b.src.hp, offsetof(hparams, tied)); /* also through GGUF's keys */
            if (safetensors_open_dir(&base, of->dir, "model")) fail_msg("%s", fail_text());
            assert_int_equal(b.src.st.n, base.n);
            mat got = step(&b, false);
            double worst = 0;
            for (int64_t k = 0; k < got.rows * got.cols; k++)
                worst = fmax(worst, fabs((double)((float *)want.data)[k] - (double)((float *)got.data)[k]));
            if (!(worst < 1e-4)) fail_msg("%s: merged logits differ by %g", of->dir, worst);
            safetensors_close(&base);
            close_fixture(&b);
        }
        close_fixture(&a);
    }
}

/* ---- what config.json says ---- */

static hparams accept(const char *model, const char *patch) {
    model_source s;
    if (model_source_open(&s, patch_config("case", model, patch))) fail_msg("%s: %s", patch, fail_text());
    hparams hp = s.hp;
    close_source(&s);
    return hp;
}

static void refuse(const char *model, const char *patch, const char *a, const char *b) {
    model_source s;
    const char *const says[] = {a, b, NULL};
    listening l = listen_stderr();
    int r = model_source_open(&s, patch_config("case", model, patch));
    heard(l);
    if (!r) fail_msg("accepted: %s", patch);
    assert_all_said(EXIT_INPUT, says);
    close_source(&s);
}

static void test_window_keys(void **state) {
    (void)state;
    assert_int_equal(accept("tiny_mistral", "{}").window, 8);
    assert_int_equal(accept("tiny_mistral", "{\"sliding_window\": null}").window, 0);
    assert_int_equal(accept("tiny_mistral", "{\"sliding_window\": \"DELETE\"}").window, 4096); /* the class's default */
    assert_int_equal(accept("tiny_llama", "{\"sliding_window\": 8}").window, 0); /* not a key of llama's */
    refuse("tiny_mistral", "{\"sliding_window\": 0}", "'sliding_window'", "found 0");
    hparams hp = accept("tiny_qwen2", WINDOWED);
    assert_true(hp.window == 6 && hp.window_from == 1);
    hp = accept("tiny_qwen3", "{\"use_sliding_window\": true, \"sliding_window\": 5, "
                              "\"layer_types\": [\"full_attention\", \"sliding_attention\"]}");
    assert_true(hp.window == 5 && hp.window_from == 1);
    hp = accept("tiny_qwen2", "{\"layer_types\": null, \"use_sliding_window\": true, \"sliding_window\": 6}");
    assert_true(hp.window == 0 && hp.window_from == 0); /* max_window_layers is 28 */
    assert_int_equal(
        accept("tiny_qwen2", "{\"layer_types\": null, \"sliding_window\": 6, \"max_window_layers\": 0}").window, 0);
    refuse("tiny_qwen2",
           "{\"use_sliding_window\": true, \"sliding_window\": 6, "
           "\"layer_types\": [\"sliding_attention\", \"full_attention\"]}",
           "'layer_types'", "full attention above a sliding window (layer 1)");
    refuse("tiny_qwen2", "{\"layer_types\": [\"full_attention\", \"sliding_attention\"]}", "'layer_types'",
           "'use_sliding_window' is false");
    refuse("tiny_qwen2", "{\"layer_types\": [\"full_attention\"]}", "'layer_types'", "'num_hidden_layers' (2)");
    refuse("tiny_qwen2", "{\"layer_types\": [\"full_attention\", \"mamba\"]}", "'layer_types'", "layer 1 is 'mamba'");
}

/* A GGUF file with attention.sliding_window put before its other keys; a second key keeps the data aligned. */
static const char *gguf_with_window(const char *model, const char *key, uint32_t window) {
    static char path[128];
    size_t n;
    uint8_t *file = read_whole(model, &n);
    bytes b = {0};
    put(&b, file, 24), patch(&b, 16, b.data[16] + 2u, 1); /* magic, version, tensors, keys */
    put_int(&b, strlen(key), 8), put_text(&b, key), put_int(&b, GGUF_U32, 4), put_int(&b, window, 4);
    put_int(&b, 2, 8), put_text(&b, "xx"), put_int(&b, GGUF_U32, 4), put_int(&b, 0, 4);
    assert_int_equal((b.n - 24) % 32, 0);
    put(&b, file + 24, n - 24);
    snprintf(path, sizeof path, "%s/window.gguf", scratch);
    if (file_save(path, b.data, b.n)) fail_msg("%s", fail_text());
    free(file), drop(&b);
    return path;
}

/* Windows in GGUF files that do not say of which layers: those that no position reaches are as good as none. */
static void test_gguf_window(void **state) {
    (void)state;
    model_source s;
    const char *path = gguf_with_window(GOLDEN "tiny_qwen2.gguf", "qwen2.attention.sliding_window", 512);
    if (model_source_open(&s, path)) fail_msg("%s", fail_text());
    assert_int_equal(s.hp.window, 0);
    close_source(&s);
    path = gguf_with_window(GOLDEN "tiny_qwen2.gguf", "qwen2.attention.sliding_window", 511);
    assert_int_equal(model_source_open(&s, path), -1);
    assert_said(EXIT_INPUT, "key 'qwen2.attention.sliding_window'", "511 keys of 512 positions");
    close_source(&s);
    path = gguf_with_window(GOLDEN "tiny_llama.gguf", "llama.attention.sliding_window", 7);
    if (model_source_open(&s, path)) fail_msg("%s", fail_text());
    assert_string_equal(s.fam->name, "mistral");
    assert_int_equal(s.hp.window, 7);
    close_source(&s);
}

static void test_tensors_of_the_family(void **state) {
    (void)state;
    refuse("tiny_qwen3", "{\"attention_bias\": true}", "'attention_bias'", "true is not supported");
    accept("tiny_qwen2", "{\"attention_bias\": true}"); /* says what is so */
    refuse("tiny_qwen2", "{\"model_type\": \"llama\", \"architectures\": null}", "self_attn.",
           "none that a layer of 'llama' has");
    refuse("tiny_qwen3", "{\"model_type\": \"qwen2\", \"architectures\": null}",
           "tensor 'model.layers.0.self_attn.q_proj.bias'", "is missing");
    refuse("tiny_qwen3", "{\"head_dim\": \"DELETE\"}", "q_proj.weight'", "[256, 64]"); /* the class's default is 128 */
    refuse("tiny_mistral", "{\"num_key_value_heads\": 1}", "k_proj.weight'", "found shape [16, 64]");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_logits),
        cmocka_unit_test(test_gguf_equals_safetensors),
        cmocka_unit_test(test_adapter_gradients),
        cmocka_unit_test(test_parameters),
        cmocka_unit_test(test_cache),
        cmocka_unit_test(test_merge),
        cmocka_unit_test(test_window_keys),
        cmocka_unit_test(test_gguf_window),
        cmocka_unit_test(test_tensors_of_the_family),
    };
    return cmocka_run_group_tests_name("families", tests, make_scratch, remove_scratch);
}
