/* ./quantize and ./merge into GGUF and NF4, in this process: files of the converter's layout (made with the gguf
 * package) equal to the byte, keys included; the mixes of llama.cpp's quantiser; the same model read back from every
 * container; bitsandbytes' tensors; importance matrices; refusals that leave nothing behind. */
int unused_main(int argc, char **argv);
#define main unused_main
#include "../quantize.c"
#undef main
#include "core/error.h"
#include "core/json.h"
#include "core/num.h"
#include "core/rng.h"
#include "infer_imatrix.h"
#include "model/nf4_layout.h"
#include "model/rows.h"
#include "model/session.h"
#include "tests/scratch.h"

#include <fcntl.h>
#include <getopt.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#define GOLDEN "tests/golden/"

static const merge_program merging = {.name = "merge",
                                      .usage = "",
                                      .needs = {"model", "out"},
                                      .knows = {"model", "adapter", "out", "to", "imatrix", "check", "overwrite"}};

/* Runs with space-separated arguments; what is printed goes to DIR/log. */
static int run(const merge_program *p, const char *arguments) {
    char text[1024], log[128], *argv[32] = {"program"};
    snprintf(text, sizeof text, "%s", arguments), snprintf(log, sizeof log, "%s/log", dir);
    int argc = add_words(argv, 1, text);
    capture c = capture_begin(log, O_TRUNC);
    optind = 0;
    int code = merge_main(p, argc, argv);
    fail_clear();
    capture_end(&c);
    return code;
}

/* arguments --out DIR/name must do; the path. */
static char *made(const merge_program *p, const char *name, const char *fmt, ...) {
    char arguments[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(arguments, sizeof arguments, fmt, ap);
    va_end(ap);
    char *out = xprintf("%s/%s", dir, name), *all = xprintf("%s --out %s", arguments, out);
    int code = run(p, all);
    if (code) fail_msg("%s: exit code %d: %s", all, code, printed());
    free(all);
    return out;
}

/* ---- GGUF ---- */

static bool is_int(gguf_type t) { return t <= GGUF_I32 || t == GGUF_U64 || t == GGUF_I64; }

static void same_value(const gguf *a, const gguf *b, const gguf_kv *x) {
    const gguf_kv *y = gguf_find(b, x->key);
    if (!y) fail_msg("%s: key %s is missing", b->file.path, x->key);
    bool same = x->n == y->n;
    if (x->type == GGUF_STRING || x->elem == GGUF_STRING) {
        for (uint64_t i = 0; same && i < x->n; i++)
            same =
                x->strings[i].n == y->strings[i].n && !memcmp(x->strings[i].data, y->strings[i].data, x->strings[i].n);
    } else if (x->type == GGUF_ARRAY) {
        for (uint64_t i = 0; same && i < x->n; i++) same = gguf_array_int(x, i) == gguf_array_int(y, i);
    } else if (is_int(x->type)) {
        int64_t i, k;
        same = !gguf_get_int(a, x->key, INT64_MIN, INT64_MAX, &i) &&
               !gguf_get_int(b, x->key, INT64_MIN, INT64_MAX, &k) && i == k;
    } else {
        same = x->type == y->type && x->data[0] == y->data[0];
    }
    if (!same) fail_msg("%s: key %s has another value", b->file.path, x->key);
}

/* Tensors to the byte, and every key that the converter's layout has. */
static void same_file(const char *want, const char *got) {
    static const char *const own[] = {"general.name", "tokenizer.ggml.add_bos_token"};
    gguf a, b;
    if (gguf_open(&a, want) || gguf_open(&b, got)) fail_msg("%s", fail_text());
    assert_int_equal(a.n_tensors, b.n_tensors);
    for (int i = 0; i < a.n_tensors; i++) {
        const gguf_tensor *x = &a.tensors[i], *y = gguf_tensor_find(&b, x->name);
        if (!y || x->ggml_type != y->ggml_type || x->dims != y->dims || memcmp(x->ne, y->ne, sizeof x->ne) != 0 ||
            memcmp(x->data, y->data, x->bytes) != 0)
            fail_msg("%s: tensor %s", got, x->name);
    }
    for (int i = 0; i < a.n_kv; i++)
        if (strcmp(a.kv[i].key, own[0]) != 0 && strcmp(a.kv[i].key, own[1]) != 0) same_value(&a, &b, &a.kv[i]);
    gguf_close(&a), gguf_close(&b);
}

static void test_converter(void **state) {
    (void)state;
    static const char *const models[][2] = {
        {"tiny_llama", "f32"}, {"tiny_mistral", "bf16"}, {"tiny_qwen2", "bf16"}, {"tiny_qwen3", "bf16"}};
    for (size_t i = 0; i < 4; i++) {
        char *name = xprintf("%s.gguf", models[i][0]), *want = xprintf(GOLDEN "%s.gguf", models[i][0]);
        char *got = made(&program, name, "--model " GOLDEN "%s --to %s", models[i][0], models[i][1]);
        same_file(want, got);
        /* and from a GGUF file: keys and bytes are carried over */
        char *again = made(&program, "again.gguf", "--model %s --to %s --overwrite", want, models[i][1]);
        same_file(want, again);
        free(name), free(want), free(got), free(again);
    }
}

/* Into a quantised format twice: the second time there is nothing left to round, and the bytes are the first's. */
static void test_formats(void **state) {
    (void)state;
    static const char *const formats[] = {"q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "f16", "q4_k_m", "q5_k_m", "q6_k"};
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        char *one = made(&program, "one.gguf", "--model " GOLDEN "tiny_llama --to %s --overwrite", formats[i]);
        char *two = made(&program, "two.gguf", "--model %s --to %s --overwrite", one, formats[i]), *said = printed();
        same_file(one, two);
        assert_non_null(strstr(said, " copied\n"));
        assert_null(strstr(said, "%")); /* no tensor was rounded */
        model_source a, b;
        char *back = made(&program, "back", "--model %s --to f32 --overwrite", one);
        if (model_source_open(&a, one) || model_source_open(&b, back)) fail_msg("%s", fail_text());
        assert_int_equal(a.hp.layers, b.hp.layers);
        model_source_close(&a), model_source_close(&b);
        free(one), free(two), free(back), free(said);
    }
}

static void test_mix(void **state) {
    (void)state;
    file_map m;
    assert_int_equal(file_open(&m, GOLDEN "quant_mix.json"), 0);
    json_t *all = json_parse("mix", (const char *)m.data, m.size, 0), *row;
    const char *key;
    file_close(&m);
    int favoured = 0;
    json_object_foreach(all, key, row) {
        const char *tied = strstr(key, "_tied");
        char *name = tied ? xprintf("%.*s", (int)(tied - key), key) : xstrdup(key), hf[160], gguf_name[64];
        const export_target *t = export_target_by_name(name);
        model_source s = {.fam = family_by_name("llama"),
                          .hp = {.vocab = 96,
                                 .dim = 256,
                                 .ffn = 288,
                                 .layers = 16,
                                 .heads = 4,
                                 .kv_heads = 4,
                                 .head_dim = 64,
                                 .tied = tied}};
        bool layered;
        assert_non_null(t);
        for (int pattern = 0; name_hf(pattern, 0, hf, sizeof hf, &layered); pattern++) {
            if (!name_used(pattern, 0) || (tied && !strcmp(hf, NAME_HEAD))) continue;
            for (int layer = 0; layer < (layered ? 16 : 1); layer++) {
                int64_t rows, cols;
                name_hf(pattern, layer, hf, sizeof hf, &layered);
                model_source_shape(&s, pattern, &rows, &cols);
                assert_true(name_to_gguf(hf, gguf_name, sizeof gguf_name));
                const json_t *other = json_object_get(json_object_get(row, "others"), gguf_name);
                const char *want = rows ? json_string_value(other ? other : json_object_get(row, "common")) : "f32";
                const char *got = weight_formats[export_target_format(t, &s, hf, rows, cols)].name;
                if (strcmp(want, got) != 0) fail_msg("%s: %s: %s, llama.cpp %s", key, gguf_name, got, want);
                favoured += other != NULL;
            }
        }
        free(name);
    }
    assert_true(favoured > 100);
    json_decref(all);
}

/* Base + adapter: the GGUF file is the Hugging Face directory, rows of q and k interleaved. */
static void test_merged(void **state) {
    (void)state;
    model_source a, b;
    char *hf = made(&merging, "merged", "--model " GOLDEN "tiny_llama --adapter " GOLDEN "adapter_peft --to f32");
    char *one = made(&merging, "merged.gguf", "--model " GOLDEN "tiny_llama --adapter " GOLDEN "adapter_peft --to f32");
    char *two =
        made(&merging, "merged2.gguf", "--model " GOLDEN "tiny_llama.gguf --adapter " GOLDEN "adapter_peft --to f32");
    same_file(two, one); /* whose keys are carried over from a file that has fewer */
    if (model_source_open(&a, hf) || model_source_open(&b, one)) fail_msg("%s", fail_text());
    char name[160];
    bool layered;
    int compared = 0;
    for (int p = 0; name_hf(p, 0, name, sizeof name, &layered); p++)
        for (int layer = 0; layer < (layered ? a.hp.layers : 1); layer++) {
            int64_t rows, cols;
            weight x, y;
            name_hf(p, layer, name, sizeof name, &layered);
            model_source_shape(&a, p, &rows, &cols);
            if (!model_source_has(&a, name)) continue;
            assert_int_equal(model_source_weight(&a, name, rows, cols, &x), 0);
            assert_int_equal(model_source_weight(&b, name, rows, cols, &y), 0);
            float *u = xcalloc((size_t)cols, sizeof *u), *v = xcalloc((size_t)cols, sizeof *v);
            for (int64_t r = 0; r < (rows ? rows : 1); r++) {
                rows_dequant(&x, 0, r, 1, u);
                rows_dequant(&y, model_source_permuted(&b, name), r, 1, v);
                if (memcmp(u, v, (size_t)cols * sizeof *u) != 0) fail_msg("%s row %ld", name, (long)r);
            }
            compared++;
            free(u), free(v);
        }
    assert_true(compared > 15);
    model_source_close(&a), model_source_close(&b);
    free(hf), free(one), free(two);
}

/* ---- NF4 ---- */

static json_t *read_json(const char *out, const char *name) {
    char *path = path_join(out, name);
    json_t *o = json_read(path);
    if (!o) fail_msg("%s", fail_text());
    free(path);
    return o;
}

/* Codes and scales are those of load_in_4bit; the state and config.json say what bitsandbytes needs. */
static void check_nf4(bool twice) {
    model_source src;
    safetensors st;
    arena run;
    char *out = made(&program, twice ? "nf4_twice" : "nf4_once", "--model " GOLDEN "tiny_llama --to nf4%s",
                     twice ? "" : " --no-double-quant");
    if (model_source_open(&src, GOLDEN "tiny_llama") || safetensors_open_dir(&st, out, "model") ||
        arena_open(&run, "run", 1 << 20))
        fail_msg("%s", fail_text());
    weight w;
    const char *name = "model.layers.1.mlp.down_proj.weight";
    assert_int_equal(model_source_weight(&src, name, src.hp.dim, src.hp.ffn, &w), 0);
    weight want = rows_nf4(&w, 0, twice, &run);
    const nf4_meta *meta = want.meta;
    const st_tensor *codes = safetensors_find(&st, name),
                    *absmax = safetensors_find(&st, "model.layers.1.mlp.down_proj.weight.absmax"),
                    *text = safetensors_find(&st, "model.layers.1.mlp.down_proj.weight.quant_state.bitsandbytes__nf4");
    assert_true(codes && absmax && text && codes->dtype == ST_U8 && codes->dims == 2 && codes->shape[1] == 1);
    assert_memory_equal(codes->data, want.data, codes->bytes);
    assert_int_equal(absmax->dtype, twice ? ST_U8 : ST_F32);
    assert_memory_equal(absmax->data, twice ? (const void *)meta->code : (const void *)meta->absmax, absmax->bytes);
    json_t *o = json_parse("state", (const char *)text->data, text->bytes, 0), *config = read_json(out, "config.json"),
           *q = json_object_get(config, "quantization_config");
    assert_string_equal(json_string_value(json_object_get(o, "quant_type")), "nf4");
    assert_int_equal(json_integer_value(json_array_get(json_object_get(o, "shape"), 1)), src.hp.ffn);
    if (twice) assert_true((float)json_number_value(json_object_get(o, "nested_offset")) == meta->offset);
    assert_true(json_is_true(json_object_get(q, "load_in_4bit")));
    assert_true(json_is_true(json_object_get(q, "bnb_4bit_use_double_quant")) == twice);
    assert_null(safetensors_find(&st, "lm_head.weight.absmax"));
    json_decref(o), json_decref(config);
    free((void *)(uintptr_t)want.meta);
    safetensors_close(&st), model_source_close(&src), arena_close(&run);
    free(out);
}

/* A checkpoint in NF4 as a base: its linear layers are those of load_in_4bit, to the bit; merged as a base it is
 * dequantised, and written again it is copied. */
static void check_nf4_base(bool twice) {
    char *out = xprintf("%s/%s", dir, twice ? "nf4_twice" : "nf4_once");
    model_source src[2];
    model m[2];
    arena run_arena[2];
    const model_options four = {.load_in_4bit = true, .double_quant = twice, .positions = 1}, as_is = {.positions = 1};
    for (int k = 0; k < 2; k++)
        if (model_source_open(&src[k], k ? out : GOLDEN "tiny_llama") || arena_open(&run_arena[k], "run", 8 << 20) ||
            model_open(&m[k], &src[k], k ? &as_is : &four, &run_arena[k]))
            fail_msg("%s", fail_text());
    assert_int_equal(src[1].n_nf4, 14);
    for (int g = 0; g < m[0].n_groups; g++)
        for (int i = 0; i < m[0].groups[g].n; i++) {
            const weight *a = &m[0].groups[g].p[i].w, *b = &m[1].groups[g].p[i].w;
            assert_true(a->fmt->id == FMT_NF4 && b->fmt->id == FMT_NF4 && a->rows == b->rows && a->cols == b->cols);
            for (int64_t r = 0; r < a->rows; r++) {
                float x[256], y[256];
                rows_dequant(a, 0, r, 1, x), rows_dequant(b, 0, r, 1, y);
                assert_memory_equal(x, y, (size_t)a->cols * sizeof *x);
            }
        }
    for (int k = 0; k < 2; k++) model_close(&m[k]), model_source_close(&src[k]), arena_close(&run_arena[k]);
    char *again =
             made(&program, "nf4_again", "--model %s --to nf4%s --overwrite", out, twice ? "" : " --no-double-quant"),
         *said = printed();
    assert_null(strstr(said, "%"));
    safetensors a, b;
    assert_int_equal(safetensors_open_dir(&a, out, "model") || safetensors_open_dir(&b, again, "model"), 0);
    for (int i = 0; i < a.n; i++) /* but for its type, which the state names */
        if (!strstr(a.tensors[i].name, "quant_state"))
            assert_memory_equal(a.tensors[i].data, b.tensors[i].data, a.tensors[i].bytes);
    safetensors_close(&a), safetensors_close(&b);
    free(again), free(said), free(out);
}

static void test_nf4(void **state) {
    (void)state;
    check_nf4(true), check_nf4(false);
    check_nf4_base(true), check_nf4_base(false);
}

/* One byte or word of a checkpoint changed: refused, with the tensor's name. */
static void bad_nf4(const char *find, const char *put, const char *said) {
    char *from = xprintf("%s/nf4_twice", dir), *to = xprintf("%s/nf4_bad", dir),
         *file = path_join(to, "model.safetensors"), *command = xprintf("rm -rf %s && cp -r %s %s", to, from, to);
    assert_int_equal(system(command), 0);
    file_map m;
    model_source s;
    assert_int_equal(file_open(&m, file), 0);
    uint8_t *copy = xcalloc(m.size, 1), *at;
    memcpy(copy, m.data, m.size);
    assert_non_null(at = memmem(copy, m.size, find, strlen(find)));
    memcpy(at, put, strlen(put));
    assert_int_equal(file_save(file, copy, m.size), 0);
    file_close(&m);
    assert_int_equal(model_source_open(&s, to), -1);
    if (!strstr(fail_text(), said)) fail_msg("'%s' is not in: %s", said, fail_text());
    fail_clear();
    model_source_close(&s);
    free(copy), free(from), free(to), free(file), free(command);
}

static void test_bad_nf4(void **state) {
    (void)state;
    bad_nf4("\"quant_type\": \"nf4\"", "\"quant_type\": \"fp4\"", "names another 'quant_type' than nf4");
    bad_nf4("\"blocksize\": 64", "\"blocksize\": 32", "has blocks of another size than 64");
    bad_nf4("\"shape\": [64, 64]", "\"shape\": [64, 32]", "bytes of U8, expected 1024 of U8");
    bad_nf4("\"nested_offset\": ", "\"nested_offse_\": ", "or no offset");
    bad_nf4("{\"quant_type\"", "[\"quant_type\"", "quant_state.bitsandbytes__nf4'");
    bad_nf4("\"model.layers.0.mlp.up_proj.weight.quant_map\"", "\"model.layers.0.mlp.up_proj.weight.quant_mop\"",
            "'model.layers.0.mlp.up_proj.weight.quant_map' is missing");
    bad_nf4("quant_state.bitsandbytes__nf4", "quant_state.bitsandbytes__fp4", "FP4 checkpoints are not supported");
}

/* ---- importance ---- */

static void test_imatrix(void **state) {
    (void)state;
    static const char *const files[] = {"i.gguf", "i.dat"};
    imatrix m = {.dataset = xstrdup("text.txt"), .chunks = 3, .chunk_size = 4}, back;
    float x[6][8], weights[8];
    for (int r = 0; r < 6; r++)
        for (int i = 0; i < 8; i++) x[r][i] = i == 7 ? 0 : rng_normal(5, STREAM_TEST, (uint64_t)(8 * r + i));
    imatrix_add(&m, "blk.1.attn_q.weight", x[0], 6, 8, 8);
    imatrix_add(&m, "blk.0.attn_q.weight", x[0], 2, 5, 8);
    imatrix_add(&m, "blk.0.attn_q.weight", x[2], 4, 5, 8);
    for (int f = 0; f < 2; f++) {
        char *path = xprintf("%s/%s", dir, files[f]);
        if (imatrix_write(&m, path) || imatrix_read(&back, path)) fail_msg("%s", fail_text());
        assert_int_equal(back.n, 2);
        assert_string_equal(back.dataset, "text.txt");
        assert_int_equal(back.chunks, 3);
        for (int e = 0; e < 2; e++) {
            assert_string_equal(back.entry[e].name, m.entry[e].name);
            for (int i = 0; i < m.entry[e].n; i++) { /* means; the older file counts in calls */
                double want = m.entry[e].sum[i] / m.entry[e].count, got = back.entry[e].sum[i] / back.entry[e].count;
                assert_true(fabs(got - want) <= 1e-6 * want);
            }
        }
        assert_int_equal(imatrix_weights(imatrix_find(&back, "blk.1.attn_q.weight"), 8, weights), 0);
        assert_true(weights[7] == 1e-3f && weights[0] > 0.01f);
        assert_int_equal(imatrix_weights(imatrix_find(&back, "blk.1.attn_q.weight"), 7, weights), -1);
        assert_null(imatrix_find(&back, "blk.2.attn_q.weight"));
        imatrix_free(&back);
        free(path);
    }
    imatrix_free(&m);
}

static int read_bytes(const uint8_t *data, size_t n, const char *path) {
    imatrix m;
    assert_int_equal(file_save(path, data, n), 0);
    int bad = imatrix_read(&m, path);
    if (!bad) imatrix_free(&m);
    return bad;
}

/* Cut anywhere, or one number wrong: refused, never believed. What may follow the entries is allowed to be missing. */
static void test_bad_imatrix(void **state) {
    (void)state;
    static const struct {
        size_t at;
        int32_t value;
        const char *said;
    } wrong[] = {{0, 0, "a number of entries is 0"},      {0, -1, "a number of entries is -1"},
                 {0, 3, "the file ends inside"},          {4, -1, "a name is -1"},
                 {4, 1 << 20, "a name is 1048576"},       {4 + 4 + 19, 0, "a number of calls is 0"},
                 {4 + 8 + 19, 0, "a number of channels"}, {4 + 8 + 19, 1 << 20, "the file ends inside its 1048576"},
                 {4 + 12 + 19, 0x7fc00000, "has nan"},    {4 + 12 + 19, (int32_t)0xbf800000, "has -1"}};
    imatrix m = {.dataset = xstrdup("t")};
    float x[4] = {1, 2, 3, 4};
    imatrix_add(&m, "blk.0.attn_q.weight", x, 1, 4, 4), imatrix_add(&m, "blk.1.attn_q.weight", x, 1, 4, 4);
    char *good = xprintf("%s/good.dat", dir), *bad = xprintf("%s/bad.dat", dir);
    assert_int_equal(imatrix_write(&m, good), 0);
    file_map f;
    assert_int_equal(file_open(&f, good), 0);
    uint8_t *copy = xcalloc(f.size, 1);
    size_t entries = 4 + 2 * (12 + 19 + 16), chunks = entries + 4;
    for (size_t n = 0; n < f.size; n++) {
        int refused_it = read_bytes(f.data, n, bad);
        if (refused_it != (n == entries || n == chunks ? 0 : -1)) fail_msg("%zu of %zu bytes", n, (size_t)f.size);
        fail_clear();
    }
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        memcpy(copy, f.data, f.size);
        memcpy(copy + wrong[i].at, &wrong[i].value, 4);
        assert_int_equal(read_bytes(copy, f.size, bad), -1);
        if (!strstr(fail_text(), wrong[i].said)) fail_msg("'%s' is not in: %s", wrong[i].said, fail_text());
        fail_clear();
    }
    memcpy(copy, f.data, f.size);
    memcpy(copy + 4 + 12 + 19 + 16 + 4 + 4, "0", 1); /* the second name becomes the first */
    assert_int_equal(read_bytes(copy, f.size, bad), -1);
    assert_non_null(strstr(fail_text(), "'blk.0.attn_q.weight' is there twice"));
    fail_clear();
    file_close(&f), imatrix_free(&m);
    free(copy), free(good), free(bad);
}

/* Bytes of a model of Llama-2-7B's shape in a format: Q4_0 comes to about 3.6 GiB. */
static void test_sizes(void **state) {
    (void)state;
    static const struct {
        const char *to;
        double gib;
    } cases[] = {{"q4_0", 3.56}, {"q4_k_m", 3.80}, {"q5_k_m", 4.45}, {"q8_0", 6.67}, {"f16", 12.55}};
    const model_source s = {
        .fam = family_by_name("llama"),
        .hp = {.vocab = 32000, .dim = 4096, .ffn = 11008, .layers = 32, .heads = 32, .kv_heads = 32, .head_dim = 128}};
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        char name[160];
        bool layered;
        double bytes = 0;
        for (int p = 0; name_hf(p, 0, name, sizeof name, &layered); p++)
            for (int layer = 0; name_used(p, 0) && layer < (layered ? 32 : 1); layer++) {
                int64_t rows, cols;
                name_hf(p, layer, name, sizeof name, &layered);
                model_source_shape(&s, p, &rows, &cols);
                const weight_format *f =
                    &weight_formats[export_target_format(export_target_by_name(cases[c].to), &s, name, rows, cols)];
                bytes += (double)((rows ? rows : 1) * cols / f->block * f->bytes);
            }
        double gib = bytes / (1 << 30);
        if (fabs(gib - cases[c].gib) > 0.01) fail_msg("%s: %.3f GiB, expected %.2f", cases[c].to, gib, cases[c].gib);
    }
}

/* What ./infer --imatrix collects is what transformers' modules are given; and collecting changes no bit. */
static void test_collected(void **state) {
    (void)state;
    file_map f;
    assert_int_equal(file_open(&f, GOLDEN "tiny_llama_logits.json"), 0);
    json_t *all = json_parse("ids", (const char *)f.data, f.size, 0), *ids = json_object_get(all, "input_ids"), *row;
    file_close(&f);
    assert_int_equal(file_open(&f, GOLDEN "imatrix_tiny.json"), 0);
    json_t *want = json_parse("want", (const char *)f.data, f.size, 0), *sums = json_object_get(want, "sums"), *v;
    file_close(&f);
    char *text = xprintf("%s/rows.jsonl", dir), *out = xprintf("%s/collected.gguf", dir);
    FILE *o = fopen(text, "w");
    size_t i;
    json_array_foreach(ids, i, row) {
        char *s = json_dumps(row, JSON_COMPACT);
        fprintf(o, "{\"input_ids\": %s}\n", s);
        free(s);
    }
    fclose(o);
    model_source src;
    imatrix m;
    const inference_options how = {.backend = "auto", .threads = 2};
    if (model_source_open(&src, GOLDEN "tiny_llama") || imatrix_file(&src, &how, text, out) || imatrix_read(&m, out))
        fail_msg("%s", fail_text());
    assert_int_equal(m.n, json_object_size(sums));
    assert_string_equal(m.dataset, "rows.jsonl");
    for (int e = 0; e < m.n; e++) {
        row = json_object_get(sums, m.entry[e].name);
        assert_true(m.entry[e].count == json_number_value(json_object_get(want, "rows")));
        assert_int_equal(json_array_size(row) * 8, m.entry[e].n);
        json_array_foreach(row, i, v) {
            double x = json_number_value(v), y = m.entry[e].sum[8 * i];
            if (fabs(x - y) > 1e-5 * x) fail_msg("%s channel %zu: %g, transformers %g", m.entry[e].name, 8 * i, y, x);
        }
    }
    imatrix_free(&m);
    model_source_close(&src);
    json_decref(want), json_decref(all);
    free(text), free(out);
}

/* --check: nothing is lost in fp32, something in four bits, and both are said. */
static void test_check(void **state) {
    (void)state;
    static const struct {
        const char *to;
        double kl_least, kl_most;
    } cases[] = {{"f32", 0, 1e-9}, {"q4_0", 1e-5, 1}};
    char *text = xprintf("%s/check.txt", dir);
    assert_int_equal(file_save(text, "The cat sat on the mat. It's 12345 o'clock.\n", 44), 0);
    for (int i = 0; i < 2; i++) {
        free(made(&merging, "checked.gguf",
                  "--model " GOLDEN "tiny_llama --adapter " GOLDEN "adapter_peft --to %s --check %s --overwrite",
                  cases[i].to, text));
        char *said = printed();
        const char *at = strstr(said, "KL divergence: "), *ppl = strstr(said, "perplexity: ");
        assert_true(at && ppl && strstr(said, "unmerged"));
        double kl = strtod(at + 15, NULL);
        if (!(kl >= cases[i].kl_least && kl <= cases[i].kl_most)) fail_msg("%s", said);
        if (!i) assert_non_null(strstr(said, "same first choice at 100.00 %"));
        free(said);
    }
    char *all = xprintf("--model " GOLDEN "tiny_llama --adapter " GOLDEN
                        "adapter_peft --to f32 --check nowhere --out %s/refused.gguf",
                        dir);
    assert_int_equal(run(&merging, all), EXIT_INPUT);
    free(all), free(text);
}

/* A base on the very grid of its target swallows a small update, and the tool says so. */
static void test_swallowed(void **state) {
    (void)state;
    char *four = made(&program, "four.gguf", "--model " GOLDEN "tiny_llama --to q4_0 --overwrite"),
         *ad = xprintf("%s/faint", dir), *config = xprintf("%s/adapter_config.json", ad);
    model_source src;
    model m;
    adapter a;
    lora_config l = {.r = 1, .alpha = 1};
    arena run_arena;
    const model_options o = {.positions = 1};
    lora_config_add_target(&l, "gate_proj");
    if (arena_open(&run_arena, "run", 8 << 20) || model_source_open(&src, GOLDEN "tiny_llama") ||
        model_open(&m, &src, &o, &run_arena) || adapter_attach(&a, &l, m.groups, m.n_groups, 0, false, &run_arena))
        fail_msg("%s", fail_text());
    for (int64_t i = 0; i < a.n; i++) a.param[i] = 1e-3f * rng_normal(2, STREAM_TEST, (uint64_t)i);
    assert_int_equal(adapter_save(&a, ad), 0);
    char *out = made(&merging, "swallowed.gguf", "--model %s --adapter %s --to q4_0", four, ad), *said = printed();
    assert_non_null(strstr(said, "note: q4_0 swallows the update: in 2 of 2 modules"));
    free(said);
    char *wide = made(&merging, "wide.gguf", "--model %s --adapter %s --to f32 --overwrite", four, ad);
    said = printed();
    assert_null(strstr(said, "note: f32"));
    adapter_close(&a), model_close(&m), model_source_close(&src), arena_close(&run_arena);
    free(said), free(out), free(wide), free(four), free(ad), free(config);
}

/* One channel that counts a thousand times as much as the others has less error, and the file says where it came from.
 */
static void test_weighted(void **state) {
    (void)state;
    imatrix m = {.dataset = xstrdup("text.txt")};
    float x[128];
    for (int i = 0; i < 128; i++) x[i] = i == 5 ? 30 : 1;
    imatrix_add(&m, "blk.0.ffn_up.weight", x, 1, 64, 128);
    imatrix_add(&m, "blk.0.ffn_down.weight", x, 1, 128, 128);
    char *path = xprintf("%s/w.gguf", dir), *short_path = xprintf("%s/short.gguf", dir);
    assert_int_equal(imatrix_write(&m, path), 0);
    char *plain = made(&program, "plain.gguf", "--model " GOLDEN "tiny_llama --to q4_0"),
         *cared = made(&program, "cared.gguf", "--model " GOLDEN "tiny_llama --to q4_0 --imatrix %s", path);
    model_source src[3];
    if (model_source_open(&src[0], GOLDEN "tiny_llama") || model_source_open(&src[1], plain) ||
        model_source_open(&src[2], cared))
        fail_msg("%s", fail_text());
    double error[3] = {0};
    for (int k = 1; k < 3; k++)
        for (int64_t r = 0; r < src[0].hp.ffn; r++) {
            float a[64], b[64];
            weight u, v;
            assert_int_equal(model_source_weight(&src[0], "model.layers.0.mlp.up_proj.weight", src[0].hp.ffn, 64, &u),
                             0);
            assert_int_equal(model_source_weight(&src[k], "model.layers.0.mlp.up_proj.weight", src[0].hp.ffn, 64, &v),
                             0);
            rows_dequant(&u, 0, r, 1, a), rows_dequant(&v, 0, r, 1, b);
            error[k] += (double)((a[5] - b[5]) * (a[5] - b[5]));
        }
    assert_true(error[2] < 0.2 * error[1]);
    gguf_str s;
    assert_int_equal(gguf_get_string(&src[2].g, "quantize.imatrix.dataset", &s), 0);
    assert_true(s.n == 8);
    for (int k = 0; k < 3; k++) model_source_close(&src[k]);
    imatrix_free(&m);
    imatrix_add(&m, "blk.0.ffn_up.weight", x, 1, 63, 128);
    assert_int_equal(imatrix_write(&m, short_path), 0);
    char *all = xprintf("--model " GOLDEN "tiny_llama --to q4_0 --imatrix %s --out %s/refused.gguf", short_path, dir);
    assert_int_equal(run(&program, all), EXIT_INPUT);
    char *said = printed();
    assert_non_null(strstr(said, "'blk.0.ffn_up.weight' has 63 channels, the model has 64"));
    imatrix_free(&m);
    free(all), free(said), free(path), free(short_path), free(plain), free(cared);
}

/* ---- refusals ---- */

static void refused(const merge_program *p, int code, const char *text, const char *fmt, ...) {
    char arguments[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(arguments, sizeof arguments, fmt, ap);
    va_end(ap);
    int found = run(p, arguments);
    char *said = printed(), *out = xprintf("%s/refused.gguf", dir);
    if (!strstr(said, text)) fail_msg("%s: %s", arguments, said);
    assert_int_equal(found, code);
    assert_false(path_exists(out));
    free(said), free(out);
}

static void test_refusals(void **state) {
    (void)state;
#define TINY "--model " GOLDEN "tiny_llama "
#define OUT "--out %s/refused.gguf "
    refused(&program, EXIT_USAGE, "--to is missing; see ./quantize --help", TINY OUT, dir);
    refused(&program, EXIT_USAGE, "--to: found 'q3', expected one of f32, f16", TINY "--to q3 " OUT, dir);
    refused(&program, EXIT_USAGE, "nf4 is written as a directory", TINY "--to nf4 " OUT, dir);
    refused(&program, EXIT_USAGE, "expected a name that ends in .gguf", TINY "--to q4_0 --out %s/refused", dir);
    refused(&program, EXIT_USAGE, "--dtype and --to q4_0 contradict", TINY "--to q4_0 --dtype f16 " OUT, dir);
    refused(&program, EXIT_USAGE, "see ./quantize --help", TINY "--adapter x --to q4_0 " OUT, dir);
    refused(&program, EXIT_USAGE, "is the base model",
            "--model " GOLDEN "tiny_llama.gguf --to q4_0 --overwrite --out " GOLDEN "tiny_llama.gguf");
    refused(&program, EXIT_USAGE, "is there already",
            "--model " GOLDEN "tiny_llama.gguf --to q4_0 --out " GOLDEN "readers.gguf");
    refused(&program, EXIT_USAGE, "--imatrix is for quantising", TINY "--to f16 --imatrix x " OUT, dir);
    refused(&program, EXIT_INPUT, "expected 'imatrix'", TINY "--to q4_0 --imatrix " GOLDEN "readers.gguf " OUT, dir);
    refused(&program, EXIT_INPUT, "a number of entries is", TINY "--to q4_0 --imatrix " GOLDEN "make_tiny.py " OUT,
            dir);
    refused(&merging, EXIT_INPUT,
            "tensor 'base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight': shape [48, 2]",
            TINY "--adapter " GOLDEN "tiny_qwen3_lora --to q4_0 " OUT, dir);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_converter), cmocka_unit_test(test_formats),     cmocka_unit_test(test_mix),
        cmocka_unit_test(test_merged),    cmocka_unit_test(test_nf4),         cmocka_unit_test(test_bad_nf4),
        cmocka_unit_test(test_imatrix),   cmocka_unit_test(test_bad_imatrix), cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_collected), cmocka_unit_test(test_check),       cmocka_unit_test(test_swallowed),
        cmocka_unit_test(test_weighted),  cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
