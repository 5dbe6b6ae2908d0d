/* Opening Hugging Face directories: every way a config.json can be wrong (C1 to C11), key names of transformers 4 and
 * 5, nulls, tensors that do not fit, shards, values that are not finite (S20), a base that training refuses. One test
 * per entry of the catalogue in docs/RELIABILITY.md; each case is tests/golden/tiny_llama with one thing changed. */
int unused_main(int argc, char **argv);
#define main unused_main
#include "../train.c" /* NOLINT(bugprone-suspicious-include): its main under another name */
#undef main
#include "core/rng.h"
#include "model/finite.h"
#include "tests/model_files.h"

typedef struct {
    const char *patch, *says[5];
} config_case;

static void refuse(const char *dir, const char *what, const char *const *says) {
    model_source s;
    listening l = listen_stderr();
    int r = model_source_open(&s, dir);
    heard(l);
    if (!r) fail_msg("accepted: %s", what);
    assert_all_said(EXIT_INPUT, says);
    close_source(&s);
}

static void refuse_all(const config_case *cases, size_t n) {
    for (size_t i = 0; i < n; i++)
        refuse(patch_config("case", "tiny_llama", cases[i].patch), cases[i].patch, cases[i].says);
}
#define REFUSE_ALL(...)                                                                                                \
    do {                                                                                                               \
        static const config_case cases_[] = {__VA_ARGS__};                                                             \
        refuse_all(cases_, sizeof cases_ / sizeof *cases_);                                                            \
    } while (0)

/* Opens and hands over hyperparameters and what was printed. */
static hparams accept(const char *dir, const char **printed) {
    model_source s;
    listening l = listen_stderr();
    int r = model_source_open(&s, dir);
    const char *text = heard(l);
    if (r) fail_msg("%s", fail_text());
    if (printed)
        *printed = text;
    else
        assert_string_equal(text, "");
    hparams hp = s.hp;
    close_source(&s);
    return hp;
}

static hparams accept_patch(const char *patch) { return accept(patch_config("case", "tiny_llama", patch), NULL); }

static void refuse_text(const void *text, size_t n, const char *a, const char *b) {
    const char *dir = link_model("case", "tiny_llama");
    replace_file(dir, "config.json", text, n);
    refuse(dir, "config.json", (const char *const[]){"config.json", a, b, NULL});
}

static void test_c1_not_an_object(void **state) {
    (void)state;
    refuse_text(LITERAL(""), ":1:1", "empty");
    refuse_text(LITERAL("[1, 2]"), "an array", "expected an object");
    refuse_text(LITERAL("3"), "an integer", "expected an object");
    refuse_text(LITERAL("{\"hidden_size\": 64,\n  }"), ":2:", "config.json");
    refuse_text(LITERAL("\xff\xfe{\0}\0"), "UTF-16", "UTF-8");
    refuse_text(LITERAL("{\"model_type\": \"\xff\"}"), ":1:", "invalid UTF-8");
    refuse_text(LITERAL("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"), "git lfs pull",
                "config.json");
    size_t n; /* a byte order mark is skipped */
    const char *dir = link_model("case", "tiny_llama");
    uint8_t *text = read_whole(GOLDEN "tiny_llama/config.json", &n);
    bytes marked = {0};
    put_text(&marked, "\xef\xbb\xbf"), put(&marked, text, n);
    replace_file(dir, "config.json", marked.data, marked.n);
    assert_int_equal(accept(dir, NULL).dim, 64);
    free(text), drop(&marked);
}

static void test_c2_missing_field(void **state) {
    (void)state;
    REFUSE_ALL(
        {"{\"vocab_size\": \"DELETE\"}", {"config.json: key 'vocab_size' is missing, expected an integer from 1 to"}},
        {"{\"hidden_size\": \"DELETE\"}", {"config.json: key 'hidden_size' is missing"}},
        {"{\"intermediate_size\": \"DELETE\"}", {"key 'intermediate_size' is missing"}},
        {"{\"num_hidden_layers\": \"DELETE\"}", {"key 'num_hidden_layers' is missing"}},
        {"{\"num_attention_heads\": \"DELETE\"}", {"key 'num_attention_heads' is missing"}},
        {"{\"model_type\": \"DELETE\"}", {"key 'model_type'", "(missing)", "supported: llama"}});
}

static void test_c3_wrong_type(void **state) {
    (void)state;
    REFUSE_ALL(
        {"{\"hidden_size\": \"4096\"}", {"'hidden_size'", "the string \"4096\"", "expected an integer"}},
        {"{\"hidden_size\": null}", {"'hidden_size'", "found null"}},
        {"{\"hidden_size\": 64.5}", {"'hidden_size'", "found 64.5"}},
        {"{\"num_hidden_layers\": true}", {"'num_hidden_layers'", "found true"}},
        {"{\"head_dim\": []}", {"'head_dim'", "found an array"}},
        {"{\"rms_norm_eps\": \"1e-5\"}", {"'rms_norm_eps'", "the string \"1e-5\"", "expected a number"}},
        {"{\"tie_word_embeddings\": 1}", {"'tie_word_embeddings'", "found 1", "true or false"}},
        {"{\"model_type\": 3}", {"'model_type'", "found 3", "a string"}},
        {"{\"architectures\": \"LlamaForCausalLM\"}", {"'architectures'", "found a string", "a list of class names"}},
        {"{\"rope_scaling\": \"linear\"}", {"'rope_scaling'", "found a string", "expected an object"}},
        {"{\"rope_parameters\": {\"rope_theta\": \"1\"}}", {"'rope_theta'", "the string"}});
    assert_int_equal(accept_patch("{\"hidden_size\": 64.0}").dim, 64); /* a whole number however written */
}

static void test_c4_out_of_range(void **state) {
    (void)state;
    REFUSE_ALL({"{\"hidden_size\": 0}", {"'hidden_size'", "found 0", "from 1 to 1048576"}},
               {"{\"hidden_size\": -1}", {"'hidden_size'", "found -1"}},
               {"{\"vocab_size\": 2147483648}", {"'vocab_size'", "found 2147483648", "to 16777216"}},
               {"{\"num_hidden_layers\": 4097}", {"'num_hidden_layers'", "found 4097", "to 4096"}},
               {"{\"num_hidden_layers\": 1e308}", {"'num_hidden_layers'", "found 1e+308"}},
               {"{\"num_attention_heads\": 0}", {"'num_attention_heads'", "found 0"}},
               {"{\"num_key_value_heads\": 0}", {"'num_key_value_heads'", "found 0"}},
               {"{\"max_position_embeddings\": 0}", {"'max_position_embeddings'"}},
               {"{\"rms_norm_eps\": 0}", {"'rms_norm_eps'", "found 0", "from 1e-12 to 0.1"}},
               {"{\"rms_norm_eps\": 5}", {"'rms_norm_eps'", "found 5"}},
               {"{\"rope_theta\": 0, \"rope_parameters\": null}", {"'rope_theta'", "found 0"}});
}

static void test_c5_unsupported_architecture(void **state) {
    (void)state;
    REFUSE_ALL(
        {"{\"model_type\": \"lama\"}", {"'model_type'", "'lama' is not supported", "supported: llama"}},
        {"{\"model_type\": \"t5\\u001b[31m\"}", {"'t5\\x1b[31m' is not supported"}},
        {"{\"architectures\": [\"LlamaForSequenceClassification\"]}",
         {"'architectures'", "found LlamaForSequenceClassification", "expected LlamaForCausalLM"}},
        {"{\"architectures\": [7]}", {"'architectures'", "an integer", "LlamaForCausalLM"}},
        {"{\"architectures\": []}", {"'architectures'", "nothing", "LlamaForCausalLM"}},
        {"{\"attention_bias\": true}", {"'attention_bias'", "true is not supported"}},
        {"{\"mlp_bias\": true}", {"'mlp_bias'"}}, {"{\"hidden_act\": \"gelu\"}", {"'hidden_act'", "'gelu'", "silu"}},
        {"{\"quantization_config\": {\"quant_method\": \"gptq\"}}", {"'quantization_config'", "16-bit", "GGUF"}});
    accept_patch("{\"architectures\": null}");
    accept_patch("{\"architectures\": \"DELETE\"}");
}

static void test_c6_heads_do_not_divide(void **state) {
    (void)state;
    REFUSE_ALL(
        {"{\"num_attention_heads\": 3, \"num_key_value_heads\": 3, \"head_dim\": null}",
         {"config.json: key 'num_attention_heads': found 3", "a divisor of 'hidden_size', which is 64"}},
        {"{\"num_key_value_heads\": 3}", {"'num_key_value_heads': found 3", "'num_attention_heads', which is 4"}},
        {"{\"num_key_value_heads\": 8}", {"'num_key_value_heads': found 8", "'num_attention_heads', which is 4"}},
        {"{\"head_dim\": 15}", {"'head_dim': found 15", "an even number from 2 to 256"}},
        {"{\"head_dim\": 258}", {"'head_dim': found 258", "256"}},
        {"{\"num_attention_heads\": 64, \"num_key_value_heads\": 64, \"head_dim\": null}",
         {"'head_dim': found 1", "64 / 64 heads"}});
}

static void test_c7_vocabulary_and_embedding(void **state) {
    (void)state;
    REFUSE_ALL({"{\"vocab_size\": 999}", {"'model.embed_tokens.weight'", "[320, 64]", "[999, 64]", "vocab_size"}},
               {"{\"vocab_size\": 319}", {"'model.embed_tokens.weight'", "[320, 64]", "[319, 64]"}});
}

static void test_c8_rope_type(void **state) {
    (void)state;
    REFUSE_ALL(
        {"{\"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8}}", {"'rope_scaling'", "'llama3'", "default"}},
        {"{\"rope_scaling\": {\"type\": \"linear\", \"factor\": 2}}", {"'rope_scaling'", "'linear'"}},
        {"{\"rope_scaling\": {\"rope_type\": \"default\", \"type\": \"yarn\"}}", {"'yarn'"}},
        {"{\"rope_scaling\": {\"factor\": 2.0}}", {"'rope_scaling'", "factor 2"}},
        {"{\"rope_parameters\": {\"rope_type\": \"dynamic\", \"factor\": 2}}", {"'rope_parameters'", "'dynamic'"}},
        {"{\"rope_parameters\": {\"rope_theta\": 1e4, \"partial_rotary_factor\": 0.5}}", {"partial_rotary_factor 0.5"}},
        {"{\"partial_rotary_factor\": 0.25}", {"'partial_rotary_factor'", "0.25"}});
}

static void test_c9_duplicate_key(void **state) {
    (void)state;
    refuse_text(LITERAL("{\"model_type\": \"llama\",\n \"model_type\": \"llama\"}"), ":2:", "duplicate");
}

static void test_c10_auto_map(void **state) {
    (void)state;
    const char *said;
    accept(patch_config("case", "tiny_llama", "{\"auto_map\": {\"AutoModelForCausalLM\": \"evil.Model\"}}"), &said);
    assert_non_null(strstr(said, "note: "));
    assert_non_null(strstr(said, "'auto_map' names code that came with the model; it is never run"));
}

static void test_c11_deep_and_large(void **state) {
    (void)state;
    bytes text = {0};
    put_text(&text, "{\"a\":"), put_fill(&text, '[', 100000);
    refuse_text(text.data, text.n, "nested deeper than 64 levels", ":1:");
    drop(&text);
}

static void same_sizes(const hparams *a, const hparams *b) {
    assert_true(a->vocab == b->vocab && a->dim == b->dim && a->ffn == b->ffn && a->layers == b->layers &&
                a->heads == b->heads);
    assert_true(a->kv_heads == b->kv_heads && a->head_dim == b->head_dim && a->context == b->context &&
                a->tied == b->tied);
    assert_true(a->norm_eps == b->norm_eps && a->rope_theta == b->rope_theta);
}

static void test_transformers_4_and_5(void **state) {
    (void)state;
    hparams five = accept_patch("{\"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": 500000.0}}");
    hparams four =
        accept_patch("{\"rope_parameters\": \"DELETE\", \"dtype\": \"DELETE\", \"torch_dtype\": \"float32\", "
                     "\"rope_theta\": 500000.0, \"rope_scaling\": null}");
    assert_true(five.rope_theta == 500000);
    same_sizes(&five, &four);
    hparams neither = accept_patch("{\"rope_parameters\": \"DELETE\"}");
    assert_true(neither.rope_theta == 10000); /* LlamaConfig's default */
}

static void test_null_is_absent(void **state) {
    (void)state;
    hparams given = accept_patch("{}");
    hparams nulls =
        accept_patch("{\"head_dim\": null, \"rope_scaling\": null, \"attention_bias\": null, \"mlp_bias\": null, "
                     "\"quantization_config\": null, \"tie_word_embeddings\": null, \"auto_map\": null, "
                     "\"rope_parameters\": {\"rope_type\": \"default\", \"rope_theta\": null, \"factor\": null}}");
    same_sizes(&given, &nulls);
    static const char *const says[] = {"'model.layers.0.self_attn.k_proj.weight'", "[32, 64]", "[64, 64]", NULL};
    refuse(patch_config("case", "tiny_llama", "{\"num_key_value_heads\": null}"), "all heads",
           says); /* as many as heads */
}

/* ---- tensors ---- */

static void test_shapes_and_layers(void **state) {
    (void)state;
    REFUSE_ALL(
        {"{\"hidden_size\": 128}",
         {"'model.embed_tokens.weight'", "[320, 64]", "[320, 128] = [vocab_size, hidden_size]"}},
        {"{\"intermediate_size\": 96}",
         {"'model.layers.0.mlp.gate_proj.weight'", "[128, 64]", "[96, 64] = [intermediate_size, hidden_size]"}},
        {"{\"num_key_value_heads\": 4}",
         {"k_proj.weight'", "[32, 64]", "[64, 64] = [num_key_value_heads * head_dim, hidden_size]"}},
        {"{\"head_dim\": 8}", {"q_proj.weight'", "[64, 64]", "[32, 64]"}},
        {"{\"num_hidden_layers\": 3}", {"'model.layers.2.", "is missing; 'num_hidden_layers' is 3"}},
        {"{\"num_hidden_layers\": 1}", {"'model.layers.1.", "is beyond the last layer: 'num_hidden_layers' is 1"}});
    static const char *const says[] = {"'lm_head.weight' is missing; 'tie_word_embeddings' is false", NULL};
    refuse(patch_config("case", "tiny_tied", "{\"tie_word_embeddings\": false}"), "untied", says);
    const char *printed;
    assert_true(accept(patch_config("case", "tiny_llama", "{\"tie_word_embeddings\": true}"), &printed).tied);
    assert_non_null(strstr(printed, "1 tensors are not used: lm_head.weight"));
}

/* tiny_llama's safetensors with `from` in its header replaced by `to` of the same length */
static const char *rename_in_header(const char *from, const char *to) {
    size_t n;
    const char *dir = link_model("case", "tiny_llama");
    uint8_t *data = read_whole(GOLDEN "tiny_llama/model.safetensors", &n), *at = memmem(data, n, from, strlen(from));
    assert_non_null(at);
    assert_int_equal(strlen(from), strlen(to));
    for (; *to; to++) *at++ = (uint8_t)*to;
    replace_file(dir, "model.safetensors", data, n);
    free(data);
    return dir;
}

static void test_names(void **state) {
    (void)state;
#define LAYER1 "model.layers.1.mlp.up_proj.weight"
    refuse(rename_in_header("\"lm_head.weight", "\"lm_hexd.weight"), "no head",
           (const char *const[]){"'lm_head.weight' is missing", NULL});
    refuse(rename_in_header(LAYER1, "model.layers.1.mlp.ux_proj.weight"), "no up_proj",
           (const char *const[]){LAYER1, "missing", NULL});
    refuse(rename_in_header(LAYER1, "model.layers.9.mlp.up_proj.weight"), "layer 9",
           (const char *const[]){LAYER1, "missing", NULL});
}

static void test_s21_shards(void **state) {
    (void)state;
    size_t n;
    static const struct {
        const char *to, *says[3];
    } rows[] = {
        {"model-00009-of-00002.safetensors", {"model-00009-of-00002.safetensors", NULL}},
        {"../../../etc/passwd.safetensors.", {"../../../etc/passwd.safetensors.", NULL}},
        {"/tmp//model-00002-of-.safetensor", {"/tmp//model-00002-of-.safetensor", NULL}},
    };
    for (int i = 0; i < 3; i++) {
        const char *dir = link_model("case", "tiny_tied");
        uint8_t *text = read_whole(GOLDEN "tiny_tied/model.safetensors.index.json", &n);
        for (uint8_t *at; (at = memmem(text, n, "model-00002-of-00002.safetensors", 32));) memcpy(at, rows[i].to, 32);
        replace_file(dir, "model.safetensors.index.json", text, n);
        free(text);
        refuse(dir, rows[i].to, rows[i].says);
    }
    const char *dir = link_model("case", "tiny_tied");
    char path[192];
    snprintf(path, sizeof path, "%s/model-00002-of-00002.safetensors", dir);
    assert_int_equal(unlink(path), 0);
    refuse(dir, "no second shard", (const char *const[]){"model-00002-of-00002.safetensors", NULL});
    assert_int_equal(symlink("/nowhere/at/all", path), 0);
    refuse(dir, "dangling", (const char *const[]){"model-00002-of-00002.safetensors", NULL});
}

static void test_t13_tokenizer_of_another_model(void **state) {
    (void)state;
    model_source s;
    if (model_source_open(&s, GOLDEN "tiny_llama")) fail_msg("%s", fail_text());
    tokenizer *t = model_tokenizer(&s, NULL);
    assert_non_null(t);
    tokenizer_close(t);
    s.hp.vocab = 319;
    assert_null(model_tokenizer(&s, NULL));
    assert_said(EXIT_INPUT, "the tokenizer has 320 tokens", "embedding has 319 rows", "tiny_llama");
    assert_null(model_tokenizer(&s, GOLDEN "tiny_tied"));
    assert_said(EXIT_INPUT, "320 tokens", "319 rows", "tiny_tied");
    close_source(&s);
}

/* ---- values that are not finite ---- */

/* tiny_llama with the float at `element` of a tensor replaced */
static const char *poison(const char *tensor, int64_t element, uint32_t bits) {
    size_t n;
    safetensors st;
    const char *dir = link_model("poisoned", "tiny_llama");
    uint8_t *data = read_whole(GOLDEN "tiny_llama/model.safetensors", &n);
    assert_int_equal(safetensors_open(&st, GOLDEN "tiny_llama/model.safetensors"), 0);
    const st_tensor *t = safetensors_find(&st, tensor);
    assert_non_null(t);
    memcpy(data + (t->data - st.files[0].data) + 4 * element, &bits, 4);
    safetensors_close(&st);
    replace_file(dir, "model.safetensors", data, n);
    free(data);
    return dir;
}

enum { NAN_BITS = 0x7fc00000, INF_BITS = 0x7f800000 };

static void test_s20_found_at_load(void **state) {
    (void)state;
    static const struct {
        const char *tensor;
        int64_t element;
        uint32_t bits;
        const char *row;
    } rows[] = {
        {"model.embed_tokens.weight", 319 * 64 + 63, NAN_BITS, "row 319"},
        {"lm_head.weight", 0, INF_BITS, "row 0"},
        {"model.norm.weight", 5, NAN_BITS, "row 0"},
        {"model.layers.1.post_attention_layernorm.weight", 63, INF_BITS | 0x80000000u, "row 0"},
        {"model.layers.0.self_attn.q_proj.weight", 17 * 64, INF_BITS | 0x80000000u, "row 17"},
        {"model.layers.1.mlp.down_proj.weight", 64 * 128 - 1, NAN_BITS | 0x80000001u, "row 63"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (int mode = 0; mode < 3; mode++) { /* as stored, NF4 with plain scales, NF4 with 8-bit scales */
            model_source s;
            static feeder g;
            const inference_options o = {
                .backend = "auto", .threads = 2, .load_in_4bit = mode > 0, .double_quant = mode > 1};
            if (model_source_open(&s, poison(rows[i].tensor, rows[i].element, rows[i].bits)))
                fail_msg("%s", fail_text());
            feeder_open(&g, &s, &o, 4);
            const char *said = g.r.s.m.nonfinite;
            if (!said || !strstr(said, rows[i].tensor) || !strstr(said, rows[i].row))
                fail_msg("%s, mode %d: %s", rows[i].tensor, mode, said ? said : "not found");
            feeder_close(&g);
            close_source(&s);
        }
}

/* Blocks with random bits in every format: what is said equals what dequantising shows. */
static void test_s20_every_format(void **state) {
    (void)state;
    enum { ROWS = 16, COLS = 512 };
    for (int f = 0; f < FORMATS; f++) {
        if (f == FMT_NF4) continue;
        int found = 0, clean = 0;
        for (uint64_t trial = 0; trial < 64; trial++) {
            weight w = {&weight_formats[f], ROWS, COLS, 1, NULL, NULL};
            int64_t n = weight_bytes(&w), want = -1;
            uint8_t *data = xcalloc((size_t)n, 1);
            float *x = xcalloc(ROWS * COLS, sizeof *x);
            for (int64_t i = 0; i < n; i++)
                data[i] = (uint8_t)(rng_u32(trial, 1, (uint64_t)i) & 0x3f); /* small exponents */
            for (uint64_t k = 0; k < trial % 17; k++)
                memset(data + 2 * rng_below(trial, 2, k, (uint64_t)n / 2), 0xff, 2);
            w.data = data;
            w.fmt->dequant(&w, 0, ROWS * COLS, x);
            for (int64_t i = 0; i < ROWS * COLS && want < 0; i++)
                if (!isfinite(x[i])) want = i / COLS;
            int64_t got = weight_nonfinite(&w);
            if (got != want)
                fail_msg("%s, trial %d: row %ld, expected %ld", w.fmt->name, (int)trial, (long)got, (long)want);
            found += want >= 0, clean += want < 0;
            free(data), free(x);
        }
        if (!found || !clean) fail_msg("%s: %d trials with, %d without", weight_formats[f].name, found, clean);
    }
}

static int run_train(const char *base, const char *more, const char **printed) {
    char yaml[128], model[192], out[128], copy[64];
    static const char text[] = "datasets:\n  - path: " GOLDEN "tiny_train/rows.jsonl\n    type: tokenized\n"
                               "sequence_len: 64\nmax_steps: 1\nlora_r: 4\nlora_target_linear: true\n";
    snprintf(yaml, sizeof yaml, "%s/train.yaml", scratch);
    snprintf(model, sizeof model, "--base_model=%s", base);
    snprintf(out, sizeof out, "--output_dir=%s/out", scratch);
    snprintf(copy, sizeof copy, "%s", more);
    assert_int_equal(file_save(yaml, text, sizeof text - 1), 0);
    char *argv[] = {"train", yaml, model, out, copy};
    listening l = listen_stderr();
    int kept = dup(1), null = open("/dev/null", O_WRONLY);
    fflush(stdout), dup2(null, 1), close(null);
    int code = train_main(5, argv);
    fflush(stdout), dup2(kept, 1), close(kept);
    *printed = heard(l);
    return code;
}

static void test_s20_training_refuses(void **state) {
    (void)state;
    const char *said;
    char out[128];
    snprintf(out, sizeof out, "%s/out", scratch);
    static const char *const modes[] = {"--load_in_4bit=false", "--adapter=qlora"};
    for (int mode = 0; mode < 2; mode++) {
        const char *dir = poison("model.layers.1.mlp.up_proj.weight", 3 * 64 + 1, NAN_BITS);
        assert_int_equal(run_train(dir, modes[mode], &said), EXIT_INPUT);
        if (!strstr(said, "tensor 'model.layers.1.mlp.up_proj.weight': row 3 holds NaN or infinities"))
            fail_msg("%s", said);
        assert_false(path_exists(out)); /* nothing written */
    }
    assert_int_equal(run_train(GOLDEN "tiny_llama", modes[0], &said), EXIT_DONE); /* the same without the NaN */
    assert_true(path_exists(out));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_c1_not_an_object),
        cmocka_unit_test(test_c2_missing_field),
        cmocka_unit_test(test_c3_wrong_type),
        cmocka_unit_test(test_c4_out_of_range),
        cmocka_unit_test(test_c5_unsupported_architecture),
        cmocka_unit_test(test_c6_heads_do_not_divide),
        cmocka_unit_test(test_c7_vocabulary_and_embedding),
        cmocka_unit_test(test_c8_rope_type),
        cmocka_unit_test(test_c9_duplicate_key),
        cmocka_unit_test(test_c10_auto_map),
        cmocka_unit_test(test_c11_deep_and_large),
        cmocka_unit_test(test_transformers_4_and_5),
        cmocka_unit_test(test_null_is_absent),
        cmocka_unit_test(test_shapes_and_layers),
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_s21_shards),
        cmocka_unit_test(test_t13_tokenizer_of_another_model),
        cmocka_unit_test(test_s20_found_at_load),
        cmocka_unit_test(test_s20_every_format),
        cmocka_unit_test(test_s20_training_refuses),
    };
    return cmocka_run_group_tests_name("source", tests, make_scratch, remove_scratch);
}
