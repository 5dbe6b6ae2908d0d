/* Hugging Face tensor names, GGUF names and shapes. {} stands for the layer number. */
#include "model/names.h"

#include <stdio.h>
#include <string.h>

static const struct {
    const char *hf, *gguf;
    name_size rows, cols;
    unsigned needs; /* bits of a family's `has`; 0: in every family */
} names[] = {
    {"model.embed_tokens.weight", "token_embd.weight", SIZE_VOCAB, SIZE_DIM, 0},
    {"model.norm.weight", "output_norm.weight", SIZE_NONE, SIZE_DIM, 0},
    {NAME_HEAD, "output.weight", SIZE_VOCAB, SIZE_DIM, 0},
    {"model.layers.{}.input_layernorm.weight", "blk.{}.attn_norm.weight", SIZE_NONE, SIZE_DIM, 0},
    {"model.layers.{}.self_attn.q_proj.weight", "blk.{}.attn_q.weight", SIZE_Q, SIZE_DIM, 0},
    {"model.layers.{}.self_attn.k_proj.weight", "blk.{}.attn_k.weight", SIZE_KV, SIZE_DIM, 0},
    {"model.layers.{}.self_attn.v_proj.weight", "blk.{}.attn_v.weight", SIZE_KV, SIZE_DIM, 0},
    {"model.layers.{}.self_attn.o_proj.weight", "blk.{}.attn_output.weight", SIZE_DIM, SIZE_Q, 0},
    {"model.layers.{}.post_attention_layernorm.weight", "blk.{}.ffn_norm.weight", SIZE_NONE, SIZE_DIM, 0},
    {"model.layers.{}.mlp.gate_proj.weight", "blk.{}.ffn_gate.weight", SIZE_FFN, SIZE_DIM, 0},
    {"model.layers.{}.mlp.up_proj.weight", "blk.{}.ffn_up.weight", SIZE_FFN, SIZE_DIM, 0},
    {"model.layers.{}.mlp.down_proj.weight", "blk.{}.ffn_down.weight", SIZE_DIM, SIZE_FFN, 0},
    {"model.layers.{}.self_attn.q_proj.bias", "blk.{}.attn_q.bias", SIZE_NONE, SIZE_Q, HAS_QKV_BIAS},
    {"model.layers.{}.self_attn.k_proj.bias", "blk.{}.attn_k.bias", SIZE_NONE, SIZE_KV, HAS_QKV_BIAS},
    {"model.layers.{}.self_attn.v_proj.bias", "blk.{}.attn_v.bias", SIZE_NONE, SIZE_KV, HAS_QKV_BIAS},
    {"model.layers.{}.self_attn.q_norm.weight", "blk.{}.attn_q_norm.weight", SIZE_NONE, SIZE_HEAD, HAS_HEAD_NORM},
    {"model.layers.{}.self_attn.k_norm.weight", "blk.{}.attn_k_norm.weight", SIZE_NONE, SIZE_HEAD, HAS_HEAD_NORM},
};

/* Matches name against a pattern with at most one {}; the number goes to *layer (-1 when the pattern has none,
 * NAMES_LAYERS_MAX for every number from there on). */
static bool match(const char *pattern, const char *name, int *layer) {
    const char *hole = strstr(pattern, "{}");
    *layer = -1;
    if (!hole) return !strcmp(pattern, name);
    size_t head = (size_t)(hole - pattern);
    if (strncmp(pattern, name, head) != 0) return false;
    const char *p = name + head;
    if (*p < '0' || *p > '9' || (*p == '0' && p[1] >= '0' && p[1] <= '9')) return false;
    long n = 0;
    for (; *p >= '0' && *p <= '9'; p++)
        if ((n = n * 10 + *p - '0') > NAMES_LAYERS_MAX) n = NAMES_LAYERS_MAX;
    *layer = (int)n;
    return !strcmp(hole + 2, p);
}

static void fill(char *out, size_t size, const char *pattern, int layer) {
    const char *hole = strstr(pattern, "{}");
    if (!hole)
        snprintf(out, size, "%s", pattern);
    else
        snprintf(out, size, "%.*s%d%s", (int)(hole - pattern), pattern, layer, hole + 2);
}

bool name_to_gguf(const char *hf, char *out, size_t size) {
    int layer;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (match(names[i].hf, hf, &layer)) return fill(out, size, names[i].gguf, layer), true;
    return false;
}

bool name_hf(int pattern, int layer, char *out, size_t size, bool *layered) {
    if (pattern < 0 || (size_t)pattern >= sizeof names / sizeof *names) return false;
    *layered = strstr(names[pattern].hf, "{}");
    fill(out, size, names[pattern].hf, layer);
    return true;
}

bool name_used(int pattern, unsigned has) { return !(names[pattern].needs & ~has); }

bool name_known(const char *name, bool gguf, unsigned has, int *layer) {
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (name_used((int)i, has) && match(gguf ? names[i].gguf : names[i].hf, name, layer)) return true;
    return false;
}

void name_shape(int pattern, name_size *rows, name_size *cols) {
    *rows = names[pattern].rows, *cols = names[pattern].cols;
}

bool name_in_layer(const char *name, bool gguf) {
    const char *prefix = gguf ? "blk." : "model.layers.";
    return !strncmp(name, prefix, strlen(prefix));
}
