/* Writes a llama with random weights as a Hugging Face directory, with rows of random tokens beside it: what bench_step
 * and the peers train on. Speed does not depend on the values, so one block of normal numbers serves all tensors, each
 * starting elsewhere in it; a model is then written as fast as the disk takes it.
 *
 *   make_model DIR SHAPE      SHAPE: a name of the table below; model.safetensors is written last, so its being there
 *                             means that all is */
#include "core/arena.h"
#include "core/error.h"
#include "core/file.h"
#include "core/num.h"
#include "core/rng.h"
#include "core/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct shape {
    const char *name;
    st_dtype type;
    long vocab, dim, ffn, layers, heads, kv_heads;
    bool tied;
} shape;

/* BF16, as their published files. 0.5b is Qwen2.5-0.5B's shape as a llama. */
static const shape shapes[] = {
    {"smollm2-135m", ST_BF16, 49152, 576, 1536, 30, 9, 3, true},
    {"qwen2.5-0.5b", ST_BF16, 151936, 896, 4864, 24, 14, 2, true},
    {"tinyllama-1.1b", ST_BF16, 32000, 2048, 5632, 22, 32, 4, false},
};
enum { SHAPES = sizeof shapes / sizeof *shapes, BLOCK = 1 << 22, TENSORS_MAX = 9 * 64 + 3, LONGEST = 4096 };

/* transformers' initializer_range */
static float *normal_block(void) {
    float *x = xcalloc(BLOCK, sizeof *x);
    for (uint64_t i = 0; i < BLOCK; i++) x[i] = 0.02f * rng_normal(1, STREAM_TEST, i);
    return x;
}

/* n numbers as the file holds them */
static void *stored(const float *x, size_t n, st_dtype type) {
    uint16_t *half = xcalloc(n, (size_t)st_dtype_size(type));
    if (type == ST_F32) memcpy(half, x, n * sizeof *x);
    for (size_t i = 0; i < n && type == ST_BF16; i++) half[i] = float_to_bf16(x[i]);
    return half;
}

static int declare_all(const shape *s, st_decl *d) {
    const long kv = s->dim / s->heads * s->kv_heads;
    const struct {
        const char *name;
        long rows, cols;
    } of_layer[] = {{"input_layernorm", s->dim, 0},       {"self_attn.q_proj", s->dim, s->dim},
                    {"self_attn.k_proj", kv, s->dim},     {"self_attn.v_proj", kv, s->dim},
                    {"self_attn.o_proj", s->dim, s->dim}, {"post_attention_layernorm", s->dim, 0},
                    {"mlp.gate_proj", s->ffn, s->dim},    {"mlp.up_proj", s->ffn, s->dim},
                    {"mlp.down_proj", s->dim, s->ffn}};
    int n = 0;
    d[n++] = (st_decl){xstrdup("model.embed_tokens.weight"), s->type, 2, {s->vocab, s->dim}};
    for (long l = 0; l < s->layers; l++)
        for (size_t i = 0; i < sizeof of_layer / sizeof *of_layer; i++)
            d[n++] = (st_decl){xprintf("model.layers.%ld.%s.weight", l, of_layer[i].name),
                               s->type,
                               of_layer[i].cols ? 2 : 1,
                               {of_layer[i].rows, of_layer[i].cols}};
    d[n++] = (st_decl){xstrdup("model.norm.weight"), s->type, 1, {s->dim}};
    if (!s->tied) d[n++] = (st_decl){xstrdup("lm_head.weight"), s->type, 2, {s->vocab, s->dim}};
    return n;
}

static int write_weights(const shape *s, const char *path) {
    static const char *const metadata[] = {"format", "pt"};
    st_decl d[TENSORS_MAX];
    st_writer w;
    const int n = declare_all(s, d);
    const size_t each = (size_t)st_dtype_size(s->type);
    float *values = normal_block(), *one = xcalloc((size_t)s->dim, sizeof *one);
    for (long i = 0; i < s->dim; i++) one[i] = 1;
    char *block = stored(values, BLOCK, s->type), *norm = stored(one, (size_t)s->dim, s->type);
    int bad = st_writer_open(&w, path, d, n, metadata, 1);
    for (int i = 0; i < n && !bad; i++) {
        if (d[i].dims == 1) {
            bad = st_writer_data(&w, norm, (uint64_t)d[i].shape[0] * each);
            continue;
        }
        int64_t left = d[i].shape[0] * d[i].shape[1], at = (int64_t)i * 1000003 % BLOCK;
        for (; left && !bad; at = 0) {
            const int64_t take = left < BLOCK - at ? left : BLOCK - at;
            bad = st_writer_data(&w, block + (size_t)at * each, (uint64_t)take * each);
            left -= take;
        }
    }
    if (!bad) bad = st_writer_close(&w);
    for (int i = 0; i < n; i++) free(d[i].name);
    free(values), free(one), free(block), free(norm);
    return bad;
}

static int save_text(const char *dir, const char *name, const char *text, size_t n) {
    char *path = path_join(dir, name);
    const int bad = file_save(path, text, n);
    free(path);
    return bad;
}

static int write_config(const shape *s, const char *dir) {
    char *text = xprintf(
        "{\"architectures\": [\"LlamaForCausalLM\"], \"model_type\": \"llama\", \"dtype\": \"%s\",\n"
        " \"vocab_size\": %ld, \"hidden_size\": %ld, \"intermediate_size\": %ld, \"num_hidden_layers\": %ld,\n"
        " \"num_attention_heads\": %ld, \"num_key_value_heads\": %ld, \"head_dim\": %ld, \"hidden_act\": \"silu\",\n"
        " \"max_position_embeddings\": 8192, \"rms_norm_eps\": 1e-05, \"rope_theta\": 100000.0,\n"
        " \"attention_bias\": false, \"mlp_bias\": false, \"tie_word_embeddings\": %s,\n"
        " \"bos_token_id\": 1, \"eos_token_id\": 2, \"pad_token_id\": 2}\n",
        s->type == ST_BF16 ? "bfloat16" : "float32", s->vocab, s->dim, s->ffn, s->layers, s->heads, s->kv_heads,
        s->dim / s->heads, s->tied ? "true" : "false");
    const int bad = save_text(dir, "config.json", text, strlen(text));
    free(text);
    return bad;
}

/* rows-LENGTH.jsonl: every token a target; 16,384 tokens or four rows, whichever is more */
static int write_rows(const shape *s, const char *dir, int length) {
    char name[64], *text = NULL;
    size_t n = 0;
    FILE *f = open_memstream(&text, &n);
    CHECK(f, "no memory for %d tokens", length);
    int32_t *ids = xcalloc((size_t)length, sizeof *ids);
    const int rows = length < LONGEST ? 4 * LONGEST / length : 4;
    for (int r = 0; r < rows; r++) {
        for (int i = 0; i < length; i++)
            ids[i] = (int32_t)rng_below((uint64_t)length, STREAM_TEST, (uint64_t)r * LONGEST + (uint64_t)i,
                                        (uint64_t)s->vocab);
        for (int part = 0; part < 2; part++) {
            fputs(part ? ", \"labels\": [" : "{\"input_ids\": [", f);
            for (int i = 0; i < length; i++) fprintf(f, i ? ", %d" : "%d", ids[i]);
            fputs("]", f);
        }
        fputs("}\n", f);
    }
    fclose(f);
    snprintf(name, sizeof name, "rows-%d.jsonl", length);
    const int bad = save_text(dir, name, text, n);
    free(ids), free(text);
    return bad;
}

static int make_model(const shape *s, const char *dir) {
    if (path_make_dirs(dir) || write_config(s, dir)) return -1;
    for (int length = 256; length <= LONGEST; length *= 2)
        if (write_rows(s, dir, length)) return -1;
    char *path = path_join(dir, "model.safetensors");
    const int bad = write_weights(s, path);
    free(path);
    return bad;
}

int main(int argc, char **argv) {
    const shape *s = NULL;
    for (int i = 0; i < SHAPES && argc == 3; i++)
        if (!strcmp(shapes[i].name, argv[2])) s = &shapes[i];
    if (!s) {
        fprintf(stderr, "usage: make_model DIR SHAPE\nSHAPE is one of:");
        for (int i = 0; i < SHAPES; i++) fprintf(stderr, " %s", shapes[i].name);
        fprintf(stderr, "\n");
        return EXIT_USAGE;
    }
    return make_model(s, argv[1]) ? fail_report("make_model") : EXIT_DONE;
}
