/* ./merge as a whole, in this process: weights of peft's merge_and_unload (tests/golden/make_adapter.py) from Hugging
 * Face directories, a GGUF file and an NF4 base; rounding, shards, memory, the files around the weights, and refusals
 * that leave nothing behind. */
int unused_main(int argc, char **argv);
#define main unused_main
#include "../merge.c"
#undef main
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/num.h"
#include "core/rng.h"
#include "model/quant_cache.h"
#include "model/rows.h"
#include "model/session.h"
#include "tests/scratch.h"

#include <dirent.h>
#include <fcntl.h>
#include <getopt.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <cmocka.h>

#define GOLDEN "tests/golden/"
#define LLAMA "--model " GOLDEN "tiny_llama --adapter " GOLDEN "adapter_peft"

/* Runs ./merge with space-separated arguments; what it prints goes to DIR/log. */
static int run_merge(const char *arguments) {
    char text[1024], log[128], *argv[32] = {"merge"};
    snprintf(text, sizeof text, "%s", arguments), snprintf(log, sizeof log, "%s/log", dir);
    int argc = add_words(argv, 1, text);
    capture c = capture_begin(log, O_TRUNC);
    optind = 0;
    int code = merge_main(&program, argc, argv);
    fail_clear();
    capture_end(&c);
    return code;
}

/* arguments --out DIR/name; the merge must do. Returns the directory. */
static char *merged(const char *name, const char *arguments) {
    char *out = xprintf("%s/%s", dir, name), *all = xprintf("%s --out %s", arguments, out);
    int code = run_merge(all);
    if (code) fail_msg("%s: exit code %d: %s", all, code, printed());
    free(all);
    return out;
}

static float element(const st_tensor *t, int64_t i) {
    uint16_t h;
    float x;
    if (t->dtype == ST_F32)
        memcpy(&x, t->data + 4 * i, 4);
    else
        memcpy(&h, t->data + 2 * i, 2), x = t->dtype == ST_BF16 ? bf16_to_float(h) : f16_to_float(h);
    return x;
}

static int64_t elements(const st_tensor *t) { return t->shape[0] * (t->dims > 1 ? t->shape[1] : 1); }

static json_t *golden_rows(void) {
    file_map m;
    assert_int_equal(file_open(&m, GOLDEN "adapter_merged.json"), 0);
    json_t *v = json_parse("merged", (const char *)m.data, m.size, 0);
    assert_non_null(v);
    file_close(&m);
    return v;
}

/* ---- numbers ---- */

/* fp32: products of the update are summed in another order than torch's. */
static void check_row(const json_t *row, const char *out) {
    safetensors st;
    const char *name;
    json_t *picks, *pick;
    size_t k;
    int checked = 0;
    if (safetensors_open_dir(&st, out, "model")) fail_msg("%s", fail_text());
    json_object_foreach(json_object_get(row, "tensors"), name, picks) {
        const st_tensor *t = safetensors_find(&st, name);
        if (!t) fail_msg("%s is missing", name);
        assert_int_equal(t->dtype, ST_F32);
        json_array_foreach(picks, k, pick) {
            double want = json_number_value(json_array_get(pick, 1)),
                   got = (double)element(t, json_integer_value(json_array_get(pick, 0)));
            if (fabs(got - want) > 2e-7 * fmax(1, fabs(want))) fail_msg("%s: %zu: %.9g, peft %.9g", name, k, got, want);
            checked++;
        }
    }
    assert_int_equal(st.n, json_object_size(json_object_get(row, "tensors")));
    assert_true(checked > 200);
    assert_true(st.n_meta == 1 && !strcmp(st.meta_values[0], "pt"));
    safetensors_close(&st);
}

static void test_equals_peft(void **state) {
    (void)state;
    json_t *rows = golden_rows(), *row;
    size_t i;
    json_array_foreach(rows, i, row) {
        bool nf4 = !strcmp(json_string_value(json_object_get(row, "base")), "nf4");
        char *arguments =
            xprintf("--model " GOLDEN "%s --adapter " GOLDEN "%s --dtype f32%s",
                    json_string_value(json_object_get(row, "model")),
                    json_string_value(json_object_get(row, "adapter")), nf4 ? " --load-in-4bit --no-double-quant" : "");
        char *name = xprintf("peft%zu", i), *out = merged(name, arguments);
        check_row(row, out);
        free(arguments), free(name), free(out);
    }
    assert_int_equal(i, 5);
    json_decref(rows);
}

/* Each element of a 16-bit file is the fp32 one rounded once; backends and threads do not change a bit. */
static void test_rounding(void **state) {
    (void)state;
    static const struct {
        const char *options;
        st_dtype dtype;
    } cases[] = {{"--dtype bf16", ST_BF16}, {"--dtype f16", ST_F16}, {"--dtype f32 --backend ref --threads 1", ST_F32}};
    char *wide = merged("wide", LLAMA " --dtype f32 --threads 3");
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        char *arguments = xprintf(LLAMA " %s", cases[c].options), *name = xprintf("narrow%zu", c),
             *out = merged(name, arguments);
        safetensors a, b;
        assert_int_equal(safetensors_open_dir(&a, wide, "model") || safetensors_open_dir(&b, out, "model"), 0);
        assert_int_equal(a.n, b.n);
        for (int i = 0; i < a.n; i++) {
            assert_int_equal(b.tensors[i].dtype, cases[c].dtype);
            for (int64_t e = 0; e < elements(&a.tensors[i]); e++) {
                float x = element(&a.tensors[i], e);
                float want = cases[c].dtype == ST_BF16  ? bf16_to_float(float_to_bf16(x))
                             : cases[c].dtype == ST_F16 ? f16_to_float(float_to_f16(x))
                                                        : x;
                if (element(&b.tensors[i], e) != want) fail_msg("%s [%ld]", a.tensors[i].name, (long)e);
            }
        }
        safetensors_close(&a), safetensors_close(&b);
        free(arguments), free(name), free(out);
    }
    free(wide);
}

/* An adapter that says nf4-double is merged onto that base unasked: what model_open makes of load_in_4bit, and the
 * update. */
static void test_base_of_training(void **state) {
    (void)state;
    model_source src;
    model m;
    adapter ad;
    lora_config l;
    arena run;
    const model_options o = {.load_in_4bit = true, .double_quant = true, .positions = 1};
    char *trained = xprintf("%s/nf4_adapter", dir);
    if (model_source_open(&src, GOLDEN "tiny_llama") || arena_open(&run, "run", 8 << 20) ||
        model_open(&m, &src, &o, &run) || lora_config_read(&l, GOLDEN "tiny_train/adapter_init") ||
        adapter_attach(&ad, &l, m.groups, m.n_groups, 0, false, &run) ||
        adapter_load(&ad, GOLDEN "tiny_train/adapter_init"))
        fail_msg("%s", fail_text());
    ad.cfg.base = BASE_NF4_DOUBLE;
    assert_int_equal(adapter_save(&ad, trained), 0);
    char *arguments = xprintf("--model " GOLDEN "tiny_llama --adapter %s --dtype f32", trained),
         *out = merged("nf4", arguments);
    char *text = printed();
    assert_non_null(strstr(text, "base: the 4-bit weights that training saw (nf4-double), dequantised"));
    safetensors st;
    assert_int_equal(safetensors_open_dir(&st, out, "model"), 0);
    for (int g = 0; g < m.n_groups; g++)
        for (int i = 0; i < m.groups[g].n; i++) {
            const proj *p = &m.groups[g].p[i];
            char *name = xprintf("%s.weight", p->name);
            const st_tensor *t = safetensors_find(&st, name);
            for (int64_t r = 0; r < p->w.rows; r++)
                for (int64_t c = 0; c < p->w.cols; c++) {
                    float w;
                    double delta = 0;
                    p->w.fmt->dequant(&p->w, r * p->w.cols + c, 1, &w);
                    for (int k = 0; k < ad.cfg.r; k++)
                        delta += (double)p->lora->b.val[r * ad.cfg.r + k] * (double)p->lora->a.val[k * p->w.cols + c];
                    double want = (double)w + (double)p->lora->scale * delta,
                           got = (double)element(t, r * p->w.cols + c);
                    if (fabs(got - want) > 1e-7 * fmax(1, fabs(want)))
                        fail_msg("%s [%ld, %ld]", name, (long)r, (long)c);
                }
            free(name);
        }
    safetensors_close(&st);
    free(text);
    /* and may be told not to, which it does not pass over in silence */
    char *plain = xprintf("%s --load-in-4bit=false", arguments), *as_is = merged("as_is", plain), *said = printed();
    assert_non_null(strstr(said, "note: the adapter was trained on a base of nf4-double"));
    free(said), free(plain), free(as_is), free(arguments), free(out), free(trained);
    adapter_close(&ad);
    model_close(&m);
    arena_close(&run);
    model_source_close(&src);
}

/* Shards hold the same tensors as one file, none larger than asked for. */
static void test_shards(void **state) {
    (void)state;
    char *one = merged("one", LLAMA), *many = merged("many", LLAMA " --max-shard-size 100kB");
    safetensors a, b;
    assert_int_equal(safetensors_open_dir(&a, one, "model") || safetensors_open_dir(&b, many, "model"), 0);
    assert_true(a.n_files == 1 && b.n_files >= 5 && a.n == b.n);
    for (int i = 0; i < a.n; i++) {
        assert_string_equal(a.tensors[i].name, b.tensors[i].name);
        assert_int_equal(a.tensors[i].bytes, b.tensors[i].bytes);
        assert_memory_equal(a.tensors[i].data, b.tensors[i].data, a.tensors[i].bytes);
    }
    for (int i = 0; i < b.n_files; i++) assert_true(b.files[i].size < 110000);
    safetensors_close(&a), safetensors_close(&b);
    free(one), free(many);
}

/* ---- the files around the weights ---- */

static json_t *read_json(const char *out, const char *name) {
    char *path = path_join(out, name);
    json_t *o = json_read(path);
    if (!o) fail_msg("%s", fail_text());
    free(path);
    return o;
}

static const char *text_of(const json_t *o, const char *key) { return json_string_value(json_object_get(o, key)); }

static void test_directory_files(void **state) {
    (void)state;
    char *out = merged("files", "--model " GOLDEN "tiny_tied --adapter " GOLDEN "adapter_tied --dtype f16");
    json_t *was = json_read(GOLDEN "tiny_tied/config.json"), *is = read_json(out, "config.json");
    assert_string_equal(text_of(was, "dtype"), "bfloat16");
    assert_string_equal(text_of(is, "dtype"), "float16");
    json_object_del(was, "dtype"), json_object_del(is, "dtype");
    assert_true(json_equal(was, is));
    json_decref(was), json_decref(is);
    static const char *const same[] = {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
                                       "generation_config.json"};
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        char *from = path_join(GOLDEN "tiny_tied", same[i]), *to = path_join(out, same[i]);
        file_map a, b;
        assert_int_equal(file_open(&a, from) || file_open(&b, to), 0);
        assert_int_equal(a.size, b.size);
        assert_memory_equal(a.data, b.data, a.size);
        file_close(&a), file_close(&b);
        free(from), free(to);
    }
    free(out);
}

static void same_ids(const tokenizer *a, const tokenizer *b, const char *text) {
    token_list x = {0}, y = {0};
    assert_int_equal(tokenizer_encode(a, text, (int64_t)strlen(text), TOKENIZE_SPECIAL | TOKENIZE_ADD, &x), 0);
    assert_int_equal(tokenizer_encode(b, text, (int64_t)strlen(text), TOKENIZE_SPECIAL | TOKENIZE_ADD, &y), 0);
    assert_int_equal(x.n, y.n);
    assert_memory_equal(x.id, y.id, (size_t)x.n * sizeof *x.id);
    token_list_free(&x), token_list_free(&y);
}

/* A GGUF file's directory says what the Hugging Face directory said that the file was made from. */
static void test_gguf_files(void **state) {
    (void)state;
    static const char *const texts[] = {"",
                                        "The cat sat on the mat.",
                                        "<|im_start|>user\nWhat is 12345 + 67?<|im_end|>\n",
                                        "  two  spaces\t\ttabs\r\n\n",
                                        "d\xc3\xa9j\xc3\xa0 vu \xe6\xbc\xa2\xe5\xad\x97 \xf0\x9f\x99\x82",
                                        "it's we'll IT'S x\xc2\xa0y",
                                        "<|im_end|><|endoftext|>a<|im_start|"};
    char *out = merged("gguf", "--model " GOLDEN "adapter_tied.gguf --adapter " GOLDEN "adapter_tied");
    json_t *hf = json_read(GOLDEN "tiny_tied/config.json"), *ours = read_json(out, "config.json"), *v;
    const char *key;
    json_object_foreach(ours, key, v) {
        const json_t *want = json_object_get(hf, key);
        if (!strcmp(key, "torch_dtype"))
            assert_string_equal(json_string_value(v), "bfloat16");
        else if (!strcmp(key, "rope_theta"))
            assert_true(json_number_value(v) == 500000);
        else if (!want || (json_is_number(v) ? json_number_value(v) != json_number_value(want) : !json_equal(v, want)))
            fail_msg("config.json: key %s", key);
    }
    assert_true(json_object_size(ours) >= 20);
    json_decref(hf), json_decref(ours);
    tokenizer *a = tokenizer_open_dir(GOLDEN "tiny_tied"), *b = tokenizer_open_dir(out);
    if (!a || !b) fail_msg("%s", fail_text());
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) same_ids(a, b, texts[i]);
    assert_true(tokenizer_bos(b) == 1 && tokenizer_eos(b) == 2 && tokenizer_pad(b) == 2 && tokenizer_vocab(b) == 320);
    for (int i = 0; i < 320; i++) {
        assert_int_equal(tokenizer_is_special(a, i), tokenizer_is_special(b, i));
        assert_int_equal(tokenizer_is_eog(a, i), tokenizer_is_eog(b, i));
    }
    assert_string_equal(tokenizer_template(a), tokenizer_template(b));
    tokenizer_close(a), tokenizer_close(b);
    free(out);
}

/* ---- memory ---- */

/* Declares a model of zeros whose data is a hole of the file, so that only reading it costs memory. */
static void sparse_model(const char *where, int dim, int ffn, int layers) {
    static const struct {
        const char *name;
        bool out_ffn, in_ffn, norm;
    } parts[] = {{"input_layernorm", 0, 0, 1},  {"post_attention_layernorm", 0, 0, 1},
                 {"self_attn.q_proj", 0, 0, 0}, {"self_attn.k_proj", 0, 0, 0},
                 {"self_attn.v_proj", 0, 0, 0}, {"self_attn.o_proj", 0, 0, 0},
                 {"mlp.gate_proj", 1, 0, 0},    {"mlp.up_proj", 1, 0, 0},
                 {"mlp.down_proj", 0, 1, 0}};
    char *config =
        xprintf("{\"model_type\": \"llama\", \"vocab_size\": 64, \"hidden_size\": %d, \"intermediate_size\": %d, "
                "\"num_hidden_layers\": %d, \"num_attention_heads\": 8, \"tie_word_embeddings\": true}",
                dim, ffn, layers);
    char *path = path_join(where, "config.json"),
         *header =
             xprintf("{\"model.norm.weight\":{\"dtype\":\"F32\",\"shape\":[%d],\"data_offsets\":[0,%d]}"
                     ",\"model.embed_tokens.weight\":{\"dtype\":\"F32\",\"shape\":[64,%d],\"data_offsets\":[%d,%d]}",
                     dim, 4 * dim, dim, 4 * dim, 65 * 4 * dim);
    assert_int_equal(path_make_dirs(where) || file_save(path, config, strlen(config)), 0);
    int64_t at = 65 * 4 * (int64_t)dim;
    for (int i = 0; i < layers; i++)
        for (size_t k = 0; k < sizeof parts / sizeof *parts; k++) {
            int rows = parts[k].out_ffn ? ffn : dim, cols = parts[k].in_ffn ? ffn : dim;
            int64_t bytes = parts[k].norm ? 4 * dim : 4 * (int64_t)rows * cols;
            char *shape = parts[k].norm ? xprintf("%d", dim) : xprintf("%d,%d", rows, cols);
            char *more = xprintf(
                "%s,\"model.layers.%d.%s.weight\":{\"dtype\":\"F32\",\"shape\":[%s],\"data_offsets\":[%ld,%ld]}",
                header, i, parts[k].name, shape, (long)at, (long)(at + bytes));
            free(header), free(shape);
            header = more, at += bytes;
        }
    free(path);
    path = path_join(where, "model.safetensors");
    uint64_t length = strlen(header) + 1;
    FILE *f = fopen(path, "wb");
    fwrite(&length, 8, 1, f), fprintf(f, "%s}", header);
    assert_int_equal(fclose(f) || truncate(path, at + 8 + (int64_t)length), 0);
    free(path), free(config), free(header);
}

/* Rank r on down_proj of every layer. */
static void sparse_adapter(const char *where, int dim, int ffn, int layers, int r) {
    model m = {0};
    adapter ad;
    arena run;
    lora_config l = {.r = r, .alpha = r};
    proj *p = xcalloc((size_t)layers, sizeof *p);
    m.groups = xcalloc((size_t)layers, sizeof *m.groups);
    for (int i = 0; i < layers; i++) {
        p[i] = (proj){.name = xprintf("model.layers.%d.mlp.down_proj", i), .w = {.rows = dim, .cols = ffn}};
        m.groups[i] = (proj_group_ref){&p[i], 1};
    }
    lora_config_add_target(&l, "down_proj");
    if (arena_open(&run, "run", (size_t)layers * (size_t)(dim + ffn) * (size_t)r * 4 + 4096) ||
        adapter_attach(&ad, &l, m.groups, layers, 0, false, &run))
        fail_msg("%s", fail_text());
    for (int64_t i = 0; i < ad.n; i++) ad.param[i] = rng_uniform(1, 1, (uint64_t)i);
    assert_int_equal(adapter_save(&ad, where), 0);
    for (int i = 0; i < layers; i++) free(p[i].name);
    adapter_close(&ad);
    arena_close(&run);
    free(p), free(m.groups);
}

/* As a program of its own (see main): its peak is its own, and OpenMP's threads do not survive a fork. */
static void bounded(const char *arguments, const char *name, const char *to) {
    struct rusage u;
    int status;
    int64_t bound = 2 * 1024 * 4096 * 4 + (64 << 20);
    char *all = xprintf("%s --out %s/%s --to %s", arguments, dir, name, to);
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        execl("/proc/self/exe", "test_merge", all, dir, (char *)NULL);
        _exit(127);
    }
    free(all);
    assert_true(wait4(child, &status, 0, &u) == child && WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
#ifndef __SANITIZE_ADDRESS__ /* its shadow counts too */
    if (u.ru_maxrss * 1024L >= bound) fail_msg("%ld KiB, expected less than %ld", u.ru_maxrss, (long)bound / 1024);
#endif
    (void)bound;
}

static void test_memory(void **state) {
    (void)state;
    char *model = xprintf("%s/big", dir), *ad = xprintf("%s/big_adapter", dir);
    sparse_model(model, 1024, 4096, 3);
    sparse_adapter(ad, 1024, 4096, 3, 8);
    char *arguments = xprintf("--model %s --adapter %s", model, ad), *four = xprintf("%s --load-in-4bit", arguments);
    bounded(arguments, "big_merged", "bf16");
    bounded(four, "big_merged_nf4", "bf16");
    bounded(arguments, "big_merged.gguf", "q4_k_m");
    bounded(arguments, "big_to_nf4", "nf4");
    free(model), free(ad), free(arguments), free(four);
}

/* ---- refusals ---- */

static int entries(const char *path) {
    DIR *d = opendir(path);
    int n = -2;
    while (d && readdir(d)) n++;
    if (d) closedir(d);
    return d ? n : -1;
}

/* Refused with this code and text (which holds no more than what follows "merge: error: "); DIR/refused is not made. */
static void refused(const char *arguments, int code, const char *text) {
    int found = run_merge(arguments);
    char *said = printed(), *out = xprintf("%s/refused", dir);
    if (!strstr(said, text)) fail_msg("%s: %s", arguments, said);
    assert_int_equal(found, code);
    assert_int_equal(entries(out), -1);
    free(said), free(out);
}

static void refusedf(int code, const char *text, const char *fmt, ...) {
    char arguments[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(arguments, sizeof arguments, fmt, ap);
    va_end(ap);
    refused(arguments, code, text);
}

static void test_refusals(void **state) {
    (void)state;
#define OUT "--out %s/refused "
    refused("", EXIT_USAGE, "merge: error: --model is missing; see ./merge --help");
    refused(LLAMA, EXIT_USAGE, "--out is missing");
    refused(LLAMA " --out " GOLDEN "tiny_llama", EXIT_USAGE, "--out: 'tests/golden/tiny_llama' is the base model");
    refused(LLAMA " --overwrite --out " GOLDEN "../golden/adapter_peft/", EXIT_USAGE,
            "' is the adapter: give another directory");
    refused(LLAMA " --out " GOLDEN "make_tiny.py", EXIT_USAGE, "is not a directory");
    refused(LLAMA " --out " GOLDEN, EXIT_USAGE, "is not empty: give another directory, or --overwrite");
    refused(LLAMA " --overwrite --out " GOLDEN "adapter_tied", EXIT_USAGE,
            "holds an adapter, which would be loaded on top");
    refusedf(EXIT_USAGE, "--dtype: found 'fp8', expected f32, bf16 or f16", LLAMA " --dtype fp8 " OUT, dir);
    refusedf(EXIT_USAGE, "--load-in-4bit: found 'maybe', expected true or false", LLAMA " --load-in-4bit=maybe " OUT,
             dir);
    refusedf(EXIT_USAGE, "--no-double-quant contradicts", LLAMA " --no-double-quant --load-in-4bit=off " OUT, dir);
    refusedf(EXIT_USAGE, "--threads: found '-1'", LLAMA " --threads -1 " OUT, dir);
    refusedf(EXIT_USAGE, "--max-shard-size: found '5XB'", LLAMA " --max-shard-size 5XB " OUT, dir);
    refusedf(EXIT_USAGE, "unexpected argument 'more'", LLAMA " more " OUT, dir);
    refusedf(EXIT_USAGE, "see ./merge --help", LLAMA " --nonsense " OUT, dir);
    refusedf(EXIT_USAGE, "--tokenizer: 'nowhere' is not a directory", LLAMA " --tokenizer nowhere " OUT, dir);
    refusedf(EXIT_INPUT, "nowhere", "--model nowhere --adapter " GOLDEN "adapter_peft " OUT, dir);
    refusedf(EXIT_INPUT, "nowhere: not a directory", "--model " GOLDEN "tiny_llama --adapter nowhere " OUT, dir);
    refusedf(EXIT_IO, "cannot create the directory", LLAMA " --out /proc/refused");
}

/* A number that only turns up while writing: the temporaries go, and the directory with them. */
static void test_late_failures(void **state) {
    (void)state;
    fflush(stdout);
    char *bad = xprintf("%s/poison", dir), *path = xprintf("%s/adapter_config.json", bad),
         *to = xprintf("%s/" ADAPTER_FILE, bad);
    file_map m;
    assert_int_equal(path_make_dirs(bad) || file_open(&m, GOLDEN "adapter_peft/adapter_config.json") ||
                         file_save(path, m.data, m.size),
                     0);
    file_close(&m);
    static const struct {
        uint16_t bits;
        const char *dtype, *text;
        int code;
    } cases[] = {{0x7fc0, "f32", "is not finite", EXIT_INPUT},        /* NaN */
                 {0x7e00, "f16", "does not fit f16", EXIT_DIVERGED}}; /* 4e37: finite, too large for f16 */
    for (int i = 0; i < 2; i++) {
        assert_int_equal(file_open(&m, GOLDEN "adapter_peft/" ADAPTER_FILE), 0);
        uint8_t *copy = xcalloc(m.size, 1);
        memcpy(copy, m.data, m.size);
        memcpy(copy + m.size - 2, &cases[i].bits, 2);
        assert_int_equal(file_save(to, copy, m.size), 0);
        file_close(&m);
        free(copy);
        refusedf(cases[i].code, cases[i].text, "--model " GOLDEN "tiny_llama --adapter %s --dtype %s " OUT, bad,
                 cases[i].dtype, dir);
    }
    free(bad), free(path), free(to);
}

/* --overwrite replaces a former merge; what it leaves that would be loaded instead is set aside, strangers stay. */
static void test_overwrite(void **state) {
    (void)state;
    char *out = merged("again", LLAMA), *stranger = xprintf("%s/notes.txt", out),
         *one = xprintf("%s/model.safetensors", out);
    char *old = xprintf("%s/model.safetensors.old", out);
    assert_int_equal(file_save(stranger, "x", 1), 0);
    free(out);
    out = merged("again", LLAMA " --overwrite --max-shard-size 200kB");
    assert_true(path_exists(stranger) && path_exists(old) && !path_exists(one));
    safetensors st;
    assert_int_equal(safetensors_open_dir(&st, out, "model"), 0);
    assert_true(st.n_files > 1);
    safetensors_close(&st);
    free(out), free(stranger), free(one), free(old);
}

/* ---- main ---- */

int main(int argc, char **argv) {
    if (argc == 3) { /* for bounded */
        snprintf(dir, sizeof dir, "%s", argv[2]);
        int code = run_merge(argv[1]);
        if (code) fputs(printed(), stderr);
        return code;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_equals_peft),      cmocka_unit_test(test_rounding),
        cmocka_unit_test(test_base_of_training), cmocka_unit_test(test_shards),
        cmocka_unit_test(test_directory_files),  cmocka_unit_test(test_gguf_files),
        cmocka_unit_test(test_memory),           cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_late_failures),    cmocka_unit_test(test_overwrite),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
