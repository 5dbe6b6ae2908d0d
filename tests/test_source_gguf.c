/* GGUF models: the same logits as the safetensors they were made from, and every way keys and tensors can fail to be a
 * model (G7, G34 to G41, G44). One test per entry of the catalogue in docs/RELIABILITY.md; each case is a small whole
 * llama file with one thing changed. Goldens: tests/golden/make_tiny_gguf.py (gguf-py, transformers). */
#include "core/num.h"
#include "model/names.h"
#include "tests/hostile_gguf.h"
#include "tests/model_files.h"

#include <math.h>

/* ---- a whole model of 1 layer, and what a case changes ---- */

enum { DIM = 8, HEADS = 2, KV = 1, FFN = 16, VOCAB = 4, TENSORS = 12, TYPE_F32 = 0 };

typedef struct {
    const char *key;
    gguf_type type;
    uint64_t v;
    int size; /* 0: no such key */
} key_value;

typedef struct {
    const char *says[5];
    key_value set[2];                 /* replaces or adds */
    const char *string;               /* value of set[0] when its type is GGUF_STRING */
    const char *drop, *shape, *extra; /* tensor left out; tensor of shape ne; tensor added */
    uint64_t ne[3];
    bool bare; /* no keys and tensors but general.architecture */
} gguf_case;

static const key_value keys[] = {
    {"llama.block_count", GGUF_U32, 1, 4},
    {"llama.context_length", GGUF_U32, 16, 4},
    {"llama.embedding_length", GGUF_U32, DIM, 4},
    {"llama.feed_forward_length", GGUF_U32, FFN, 4},
    {"llama.attention.head_count", GGUF_U32, HEADS, 4},
    {"llama.attention.head_count_kv", GGUF_U32, KV, 4},
    {"llama.attention.layer_norm_rms_epsilon", GGUF_F32, 0x3727c5ac, 4}, /* 1e-5 */
    {"llama.rope.freq_base", GGUF_F32, 0x461c4000, 4},                   /* 10000 */
};
enum { N_KEYS = sizeof keys / sizeof *keys };

static const struct {
    const char *name;
    uint64_t ne[2];
} tensors[TENSORS] = {
    {"token_embd.weight", {DIM, VOCAB}},
    {"output_norm.weight", {DIM, 0}},
    {"output.weight", {DIM, VOCAB}},
    {"blk.0.attn_norm.weight", {DIM, 0}},
    {"blk.0.attn_q.weight", {DIM, DIM}},
    {"blk.0.attn_k.weight", {DIM, DIM / HEADS *KV}},
    {"blk.0.attn_v.weight", {DIM, DIM / HEADS *KV}},
    {"blk.0.attn_output.weight", {DIM, DIM}},
    {"blk.0.ffn_norm.weight", {DIM, 0}},
    {"blk.0.ffn_gate.weight", {DIM, FFN}},
    {"blk.0.ffn_up.weight", {DIM, FFN}},
    {"blk.0.ffn_down.weight", {FFN, DIM}},
};

static bool replaced(const gguf_case *c, const char *key) {
    return (c->set[0].key && !strcmp(c->set[0].key, key)) || (c->set[1].key && !strcmp(c->set[1].key, key));
}

static bool present(const gguf_case *c, const key_value *k) {
    return k->key && (k->type == GGUF_STRING ? c->string != NULL : k->size > 0);
}

static void put_keys(bytes *b, const gguf_case *c) {
    if (!replaced(c, "general.architecture")) put_key(b, "general.architecture", GGUF_STRING), put_str(b, "llama");
    for (int i = 0; i < N_KEYS && !c->bare; i++)
        if (!replaced(c, keys[i].key)) put_kv(b, keys[i].key, keys[i].type, keys[i].v, keys[i].size);
    for (int i = 0; i < 2; i++) {
        if (!present(c, &c->set[i])) continue;
        if (c->set[i].type == GGUF_STRING)
            put_key(b, c->set[i].key, GGUF_STRING), put_str(b, c->string);
        else
            put_kv(b, c->set[i].key, c->set[i].type, c->set[i].v, c->set[i].size);
    }
}

static uint64_t count_keys(const gguf_case *c) {
    uint64_t n = !replaced(c, "general.architecture");
    for (int i = 0; i < N_KEYS && !c->bare; i++) n += !replaced(c, keys[i].key);
    return n + present(c, &c->set[0]) + present(c, &c->set[1]);
}

static uint64_t add_tensor(bytes *b, const char *name, const uint64_t *ne, uint64_t offset) {
    uint32_t dims = ne[1] ? 2 : 1;
    put_tensor(b, name, dims, ne, TYPE_F32, offset);
    return offset + (ne[0] * (ne[1] ? ne[1] : 1) * 4 + 31) / 32 * 32;
}

static bytes llama_file(const gguf_case *c) {
    uint64_t at = 0, n = c->bare ? 0 : TENSORS - (c->drop != NULL) + (c->extra != NULL);
    bytes b = begin(n, count_keys(c));
    put_keys(&b, c);
    for (int i = 0; i < TENSORS && !c->bare; i++) {
        if (c->drop && !strcmp(c->drop, tensors[i].name)) continue;
        at =
            add_tensor(&b, tensors[i].name, c->shape && !strcmp(c->shape, tensors[i].name) ? c->ne : tensors[i].ne, at);
    }
    if (c->extra) at = add_tensor(&b, c->extra, (uint64_t[]){DIM, 0}, at);
    put_fill(&b, 0, (32 - b.n % 32) % 32);
    put_fill(&b, 0, at);
    return b;
}

static int open_case(const gguf_case *c, model_source *s) {
    bytes b = llama_file(c);
    crafted f = crafted_file(b.data, b.n);
    int r = model_source_open(s, f.path);
    close(f.fd);
    drop(&b);
    return r;
}

static void refuse_all(const gguf_case *cases, size_t n) {
    for (size_t i = 0; i < n; i++) {
        model_source s;
        listening l = listen_stderr();
        int r = open_case(&cases[i], &s);
        heard(l);
        if (!r) fail_msg("case %zu is accepted, expected '%s'", i, cases[i].says[0]);
        assert_all_said(EXIT_INPUT, cases[i].says);
        close_source(&s);
    }
}
#define REFUSE_ALL(...)                                                                                                \
    do {                                                                                                               \
        static const gguf_case cases_[] = {__VA_ARGS__};                                                               \
        refuse_all(cases_, sizeof cases_ / sizeof *cases_);                                                            \
    } while (0)

static void accept(const gguf_case *c, const char *printed) {
    model_source s;
    listening l = listen_stderr();
    int r = open_case(c, &s);
    const char *text = heard(l);
    if (r) fail_msg("%s", fail_text());
    if (*printed ? !strstr(text, printed) : *text) fail_msg("printed '%s', expected '%s'", text, printed);
    close_source(&s);
}

/* ---- the catalogue ---- */

static void test_the_good_file(void **state) {
    (void)state;
    accept(&(gguf_case){.says = {NULL}}, "");
    accept(&(gguf_case){.drop = "output.weight"}, ""); /* tied */
}

static void test_g7_nothing_in_it(void **state) {
    (void)state;
    bytes b = begin(0, 0);
    crafted f = crafted_file(b.data, b.n);
    model_source s;
    assert_int_equal(model_source_open(&s, f.path), -1);
    assert_said(EXIT_INPUT, "key 'general.architecture' is missing");
    close_source(&s), close(f.fd), drop(&b);
    REFUSE_ALL({.says = {"'llama.block_count' is missing, expected an integer from 1 to 4096"}, .bare = true});
}

static void test_g34_unknown_architecture(void **state) {
    (void)state;
    REFUSE_ALL(
        {.says = {"'general.architecture': 'lama' is not supported", "supported: llama"},
         .set = {{"general.architecture", GGUF_STRING, 0, 1}},
         .string = "lama"},
        {.says = {"'llama2' is not supported"},
         .set = {{"general.architecture", GGUF_STRING, 0, 1}},
         .string = "llama2"},
        {.says = {"'' is not supported"}, .set = {{"general.architecture", GGUF_STRING, 0, 1}}, .string = ""},
        {.says = {"'general.architecture'", "of type u32", "a string"},
         .set = {{"general.architecture", GGUF_U32, 1, 4}}},
        {.says = {"'llama.expert_count'", "mixtures of experts (8)"}, .set = {{"llama.expert_count", GGUF_U32, 8, 4}}});
}

static void test_g35_sizes(void **state) {
    (void)state;
    REFUSE_ALL(
        {.says = {"'llama.block_count': found 2147483648", "from 1 to 4096"},
         .set = {{"llama.block_count", GGUF_U32, 1u << 31, 4}}},
        {.says = {"'llama.block_count': found 0"}, .set = {{"llama.block_count", GGUF_U32, 0, 4}}},
        {.says = {"'llama.attention.head_count': found 0"}, .set = {{"llama.attention.head_count", GGUF_U32, 0, 4}}},
        {.says = {"'llama.attention.head_count_kv': found 4", "a divisor of 'llama.attention.head_count', which is 2"},
         .set = {{"llama.attention.head_count_kv", GGUF_U32, 4, 4}}},
        {.says = {"'llama.attention.head_count': found 3", "a divisor of 'llama.embedding_length', which is 8"},
         .set = {{"llama.attention.head_count", GGUF_U32, 3, 4}}},
        {.says = {"'llama.attention.key_length': found 1", "an even number"},
         .set = {{"llama.attention.head_count", GGUF_U32, 8, 4}}},
        {.says = {"'llama.rope.dimension_count': found 3", "the head's size 4"},
         .set = {{"llama.rope.dimension_count", GGUF_U32, 3, 4}}},
        {.says = {"'llama.rope.dimension_count': found 8"}, .set = {{"llama.rope.dimension_count", GGUF_U32, 8, 4}}},
        {.says = {"'llama.attention.value_length': found 2"},
         .set = {{"llama.attention.value_length", GGUF_U32, 2, 4}}},
        {.says = {"'llama.context_length' is missing"}, .set = {{"llama.context_length", GGUF_U32, 0, 0}}},
        {.says = {"'llama.embedding_length' is missing"}, .set = {{"llama.embedding_length", GGUF_U32, 0, 0}}},
        {.says = {"'llama.feed_forward_length' is missing"}, .set = {{"llama.feed_forward_length", GGUF_U32, 0, 0}}},
        {.says = {"'llama.attention.head_count' is missing"}, .set = {{"llama.attention.head_count", GGUF_U32, 0, 0}}},
        {.says = {"'llama.embedding_length': found 1073741824"},
         .set = {{"llama.embedding_length", GGUF_U32, 1u << 30, 4}}});
}

static void test_g36_shapes(void **state) {
    (void)state;
    REFUSE_ALL(
        {.says = {"'blk.0.ffn_up.weight': found shape [16, 6] (ne = {6, 16}), expected [16, 8] (ne = {8, 16})",
                  "[feed_forward_length, embedding_length]"},
         .shape = "blk.0.ffn_up.weight",
         .ne = {6, FFN}},
        {.says = {"'blk.0.ffn_down.weight': found shape [16, 8] (ne = {8, 16}), expected [8, 16] (ne = {16, 8})"},
         .shape = "blk.0.ffn_down.weight",
         .ne = {DIM, FFN}},
        {.says = {"'blk.0.attn_k.weight': found shape [8, 8]", "expected [4, 8]", "attention.head_count_kv"},
         .shape = "blk.0.attn_k.weight",
         .ne = {DIM, DIM}},
        {.says =
             {"'blk.0.attn_norm.weight': found shape [2, 8] (ne = {8, 2}), expected [8] (ne = {8}) = [embedding_length]"},
         .shape = "blk.0.attn_norm.weight",
         .ne = {DIM, 2}},
        {.says = {"'output_norm.weight': found shape [4]", "expected [8]"},
         .shape = "output_norm.weight",
         .ne = {4, 0}},
        {.says = {"'token_embd.weight': found shape [4, 6]", "expected [4, 8]"},
         .shape = "token_embd.weight",
         .ne = {6, VOCAB}},
        {.says = {"'token_embd.weight' is not a matrix"}, .shape = "token_embd.weight", .ne = {DIM, 0}},
        {.says = {"'output.weight': found shape [5, 8]", "expected [4, 8]"}, .shape = "output.weight", .ne = {DIM, 5}},
        {.says = {"'llama.vocab_size': found 5, but tensor 'token_embd.weight' has 4 rows"},
         .set = {{"llama.vocab_size", GGUF_U32, 5, 4}}});
    accept(&(gguf_case){.set = {{"llama.vocab_size", GGUF_U32, VOCAB, 4}}}, "");
}

static void test_g37_missing_and_extra(void **state) {
    (void)state;
    for (int i = 0; i < TENSORS; i++) {
        if (!strcmp(tensors[i].name, "output.weight")) continue; /* its absence means tied */
        char said[96];
        snprintf(said, sizeof said, "tensor '%s' is missing", tensors[i].name);
        gguf_case c = {.says = {said}, .drop = tensors[i].name};
        refuse_all(&c, 1);
    }
    REFUSE_ALL(
        {.says = {"tensor 'blk.0.attn_q.bias' is none that a layer of 'llama' has"}, .extra = "blk.0.attn_q.bias"},
        {.says = {"tensor 'blk.0.ffn_gate_inp.weight'"}, .extra = "blk.0.ffn_gate_inp.weight"},
        {.says = {"'rope_freqs.weight': rope scaling is not supported"}, .extra = "rope_freqs.weight"});
    accept(&(gguf_case){.extra = "control.vector"}, "1 tensors are not used: control.vector\n");
}

static void test_g38_integer_types(void **state) {
    (void)state;
    static const struct {
        gguf_type type;
        int size;
    } kinds[] = {{GGUF_U8, 1}, {GGUF_I8, 1}, {GGUF_U16, 2}, {GGUF_I16, 2}, {GGUF_I32, 4}, {GGUF_U64, 8}, {GGUF_I64, 8}};
    for (int i = 0; i < 7; i++)
        accept(&(gguf_case){.set = {{"llama.embedding_length", kinds[i].type, DIM, kinds[i].size}}}, "");
    REFUSE_ALL(
        {.says = {"'llama.embedding_length'", "of type string", "an integer"},
         .set = {{"llama.embedding_length", GGUF_STRING, 0, 1}},
         .string = "8"},
        {.says = {"'llama.embedding_length'", "of type f32"},
         .set = {{"llama.embedding_length", GGUF_F32, 0x41000000, 4}}},
        {.says = {"'llama.embedding_length'", "of type bool"}, .set = {{"llama.embedding_length", GGUF_BOOL, 1, 1}}},
        {.says = {"'llama.embedding_length': found -8"}, .set = {{"llama.embedding_length", GGUF_I8, 0xf8, 1}}},
        {.says = {"'llama.embedding_length': found 18446744073709551608"},
         .set = {{"llama.embedding_length", GGUF_U64, (uint64_t)-8, 8}}});
}

static void test_g39_reals(void **state) {
    (void)state;
#define EPS "llama.attention.layer_norm_rms_epsilon"
    REFUSE_ALL(
        {.says = {"'" EPS "': found nan", "from 1e-12 to 0.1"}, .set = {{EPS, GGUF_F32, 0x7fc00000, 4}}},
        {.says = {"'" EPS "': found 0"}, .set = {{EPS, GGUF_F32, 0, 4}}},
        {.says = {"'" EPS "': found inf"}, .set = {{EPS, GGUF_F32, 0x7f800000, 4}}},
        {.says = {"'" EPS "': found -9.99999975e-06"}, .set = {{EPS, GGUF_F32, 0xb727c5ac, 4}}},
        {.says = {"'" EPS "' is missing"}, .set = {{EPS, GGUF_F32, 0, 0}}},
        {.says = {"'llama.rope.freq_base': found 0"}, .set = {{"llama.rope.freq_base", GGUF_F32, 0, 4}}},
        {.says = {"'llama.rope.freq_base': found nan"}, .set = {{"llama.rope.freq_base", GGUF_F32, 0x7fc00000, 4}}},
        {.says = {"'llama.rope.scaling.type'", "'linear' is not supported"},
         .set = {{"llama.rope.scaling.type", GGUF_STRING, 0, 1}},
         .string = "linear"},
        {.says = {"'llama.rope.scaling.factor'", "'4' is not supported"},
         .set = {{"llama.rope.scaling.factor", GGUF_F32, 0x40800000, 4}}},
        {.says = {"'llama.rope.scale_linear'"}, .set = {{"llama.rope.scale_linear", GGUF_F32, 0x40000000, 4}}});
    accept(&(gguf_case){.set = {{"llama.rope.scaling.type", GGUF_STRING, 0, 1},
                                {"llama.rope.scaling.factor", GGUF_F32, 0x3f800000, 4}},
                        .string = "none"},
           "");
}

static void test_g40_part_of_a_split(void **state) {
    (void)state;
    REFUSE_ALL({.says = {"part 1 of a model split into 3 files", "--merge"}, .set = {{"split.count", GGUF_U16, 3, 2}}});
    accept(&(gguf_case){.set = {{"split.count", GGUF_U16, 1, 2}}}, "");
}

static void test_g41_layer_number_in_a_name(void **state) {
    (void)state;
    REFUSE_ALL({.says = {"'blk.99999999.attn_norm.weight' is beyond the last layer: 'llama.block_count' is 1"},
                .extra = "blk.99999999.attn_norm.weight"},
               {.says = {"'blk.18446744073709551616.attn_q.weight' is beyond"},
                .extra = "blk.18446744073709551616.attn_q.weight"},
               {.says = {"'blk.1.attn_norm.weight' is beyond"}, .extra = "blk.1.attn_norm.weight"},
               {.says = {"'blk.00.attn_norm.weight' is none"}, .extra = "blk.00.attn_norm.weight"},
               {.says = {"'blk.-1.attn_norm.weight' is none"}, .extra = "blk.-1.attn_norm.weight"},
               {.says = {"'blk.1.attn_norm.weight' is missing; 'llama.block_count' is 2"},
                .set = {{"llama.block_count", GGUF_U32, 2, 4}}});
}

/* A scale of a quantised block made NaN or infinite in a copy of the mixed golden. */
static void test_g44_bad_scale(void **state) {
    (void)state;
    static const struct {
        const char *tensor, *hf;
        int64_t at;
        uint16_t bits;
        const char *row;
    } rows[] = {
        {"blk.1.attn_q.weight", "layers.1.self_attn.q_proj", 34 * 2 * 40, 0x7e00, "row 40"},     /* Q8_0, NaN */
        {"blk.0.ffn_gate.weight", "layers.0.mlp.gate_proj", 18 * 255, 0xfc00, "row 127"},        /* Q4_0, -inf */
        {"blk.0.attn_v.weight", "layers.0.self_attn.v_proj", 2 * 64 * 31 + 6, 0x7c00, "row 31"}, /* F16, inf */
        {"token_embd.weight", "embed_tokens", 34 * 2 * 319, 0x7c00, "row 319"},
    };
    size_t n;
    gguf file;
    assert_int_equal(gguf_open(&file, GOLDEN "tiny_llama_mixed.gguf"), 0);
    for (int i = 0; i < 8; i++) {
        const gguf_tensor *t = gguf_tensor_find(&file, rows[i / 2].tensor);
        uint8_t *data = read_whole(GOLDEN "tiny_llama_mixed.gguf", &n);
        memcpy(data + (t->data - file.file.data) + rows[i / 2].at, &rows[i / 2].bits, 2);
        crafted f = crafted_file(data, n);
        model_source s;
        static feeder g;
        const inference_options o = {.backend = "auto", .threads = 2, .load_in_4bit = i % 2, .double_quant = true};
        if (model_source_open(&s, f.path)) fail_msg("%s", fail_text());
        feeder_open(&g, &s, &o, 4);
        const char *said = g.r.s.m.nonfinite;
        if (!said || !strstr(said, rows[i / 2].hf) || !strstr(said, rows[i / 2].row))
            fail_msg("%s: %s", rows[i / 2].tensor, said ? said : "not found");
        feeder_close(&g);
        close_source(&s), close(f.fd), free(data);
    }
    gguf_close(&file);
}

/* ---- the same model ---- */

enum { TOKENS_SEEN = 24 };
static int golden_ids(int sequence, int32_t ids[TOKENS_SEEN]) {
    json_t *o = json_read(GOLDEN "tiny_llama_logits.json"),
           *list = json_array_get(json_object_get(o, "input_ids"), (size_t)sequence);
    int n = (int)json_array_size(list);
    assert_in_range(n, 1, TOKENS_SEEN);
    for (int i = 0; i < n; i++) ids[i] = (int32_t)json_integer_value(json_array_get(list, (size_t)i));
    json_decref(o);
    return n;
}

static void same_bits(const char *a, const char *b) {
    int32_t ids[TOKENS_SEEN];
    int64_t vocab, other;
    int n = golden_ids(2, ids);
    float *x = logits_of(a, ids, n, &vocab), *y = logits_of(b, ids, n, &other);
    assert_int_equal(vocab, other);
    for (int64_t i = 0; i < n * vocab; i++)
        if (bits_of(x[i]) != bits_of(y[i]))
            fail_msg("%s and %s: token %ld, logit %ld: %.9g, %.9g", a, b, (long)(i / vocab), (long)(i % vocab),
                     (double)x[i], (double)y[i]);
    free(x), free(y);
}

static void test_f32_equals_safetensors(void **state) {
    (void)state;
    same_bits(GOLDEN "tiny_llama", GOLDEN "tiny_llama.gguf");
}

/* Every tensor of the mixed file dequantised, in Hugging Face's row order and names, as F32 safetensors. */
static void write_dequantised(const model_source *s, const char *path) {
    st_decl decls[32];
    float *data[32];
    char name[256];
    int n = 0;
    bool layered;
    for (int i = 0; name_hf(i, 0, name, sizeof name, &layered); i++)
        for (int layer = 0; name_used(i, s->fam->has) && layer < (layered ? s->hp.layers : 1); layer++, n++) {
            name_hf(i, layer, name, sizeof name, &layered);
            char in_file[256];
            assert_true(n < 32 && name_to_gguf(name, in_file, sizeof in_file));
            const gguf_tensor *t = gguf_tensor_find(&s->g, in_file);
            int64_t cols = t->ne[0], rows = t->dims > 1 ? t->ne[1] : 1, heads = model_source_permuted(s, name);
            decls[n] = (st_decl){xstrdup(name), ST_F32, t->dims, {t->dims > 1 ? rows : cols, cols}};
            data[n] = xcalloc((size_t)(rows * cols), sizeof(float));
            weight w = {format_by_ggml(t->ggml_type), rows, cols, 1, t->data, NULL};
            for (int64_t r = 0; r < rows; r++) { /* gguf row h D + 2 j is row h D + j, 2 j + 1 is row h D + D / 2 + j */
                int64_t d = heads ? rows / heads : 0, in = heads ? r % d : 0;
                int64_t to = heads ? r / d * d + (in % 2 ? d / 2 : 0) + in / 2 : r;
                w.fmt->dequant(&w, r * cols, cols, data[n] + to * cols);
            }
        }
    st_writer w;
    static const char *const metadata[] = {"format", "pt"};
    if (st_writer_open(&w, path, decls, n, metadata, 1)) fail_msg("%s", fail_text());
    for (int i = 0; i < n; i++) {
        uint64_t bytes = 4u * (uint64_t)decls[i].shape[0] * (uint64_t)(decls[i].dims > 1 ? decls[i].shape[1] : 1);
        assert_int_equal(st_writer_data(&w, data[i], bytes), 0);
        free(data[i]), free(decls[i].name);
    }
    assert_int_equal(st_writer_close(&w), 0);
}

static void test_mixed_equals_its_dequantised_weights(void **state) {
    (void)state;
    model_source s;
    char path[192];
    const char *dir = link_model("dequantised", "tiny_llama");
    if (model_source_open(&s, GOLDEN "tiny_llama_mixed.gguf")) fail_msg("%s", fail_text());
    snprintf(path, sizeof path, "%s/model.safetensors", dir);
    unlink(path);
    write_dequantised(&s, path);
    close_source(&s);
    same_bits(dir, GOLDEN "tiny_llama_mixed.gguf");
}

/* gguf-py's dequantisation under transformers' forward pass, in fp32 in another order of sums. */
static void test_mixed_equals_transformers(void **state) {
    (void)state;
    size_t n, at = 0;
    uint8_t *golden = read_whole(GOLDEN "tiny_llama_mixed_logits.bin", &n);
    double worst = 0;
    for (int sequence = 0; sequence < 3; sequence++) {
        int32_t ids[TOKENS_SEEN];
        int64_t vocab;
        int tokens = golden_ids(sequence, ids);
        float *x = logits_of(GOLDEN "tiny_llama_mixed.gguf", ids, tokens, &vocab), want;
        for (int64_t i = 0; i < tokens * vocab; i++, at += 4) {
            assert_true(at + 4 <= n);
            memcpy(&want, golden + at, 4);
            worst = fmax(worst, fabs((double)x[i] - (double)want));
        }
        free(x);
    }
    assert_int_equal(at, n);
    if (!(worst < 1e-4)) fail_msg("logits differ by %g", worst);
    free(golden);
}

static void test_tokenizer_of_the_file(void **state) {
    (void)state;
    static const char text[] = "The cat sat on 123 mats, d\xc3\xa9j\xc3\xa0 vu <|im_end|>\n";
    token_list a = {0}, b = {0};
    model_source s;
    if (model_source_open(&s, GOLDEN "tiny_llama.gguf")) fail_msg("%s", fail_text());
    tokenizer *t = model_tokenizer(&s, NULL), *hf = model_tokenizer(&s, GOLDEN "tiny_llama");
    if (!t || !hf) fail_msg("%s", fail_text());
    assert_int_equal(tokenizer_encode(t, text, sizeof text - 1, TOKENIZE_SPECIAL, &a), 0);
    assert_int_equal(tokenizer_encode(hf, text, sizeof text - 1, TOKENIZE_SPECIAL, &b), 0);
    assert_int_equal(a.n, b.n);
    assert_memory_equal(a.id, b.id, (size_t)a.n * sizeof *a.id);
    assert_string_equal(tokenizer_template(t), tokenizer_template(hf));
    token_list_free(&a), token_list_free(&b);
    tokenizer_close(t), tokenizer_close(hf);
    close_source(&s);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_good_file),
        cmocka_unit_test(test_g7_nothing_in_it),
        cmocka_unit_test(test_g34_unknown_architecture),
        cmocka_unit_test(test_g35_sizes),
        cmocka_unit_test(test_g36_shapes),
        cmocka_unit_test(test_g37_missing_and_extra),
        cmocka_unit_test(test_g38_integer_types),
        cmocka_unit_test(test_g39_reals),
        cmocka_unit_test(test_g40_part_of_a_split),
        cmocka_unit_test(test_g41_layer_number_in_a_name),
        cmocka_unit_test(test_g44_bad_scale),
        cmocka_unit_test(test_f32_equals_safetensors),
        cmocka_unit_test(test_mixed_equals_its_dequantised_weights),
        cmocka_unit_test(test_mixed_equals_transformers),
        cmocka_unit_test(test_tokenizer_of_the_file),
    };
    return cmocka_run_group_tests_name("source_gguf", tests, make_scratch, remove_scratch);
}
