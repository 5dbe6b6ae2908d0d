/* What a model can be written as. Mixes are llama.cpp's (src/llama-quant.cpp): Q4_K_M and Q5_K_M give Q6_K to attn_v
 * and ffn_down of the first and last eighth of the layers and of every third between, and to the output (the embedding
 * where it is tied). A row that is no multiple of 256 goes to the nearest format of 32: Q4_K to Q5_0, Q5_K to Q5_1,
 * Q6_K to Q8_0; one that is no multiple of 32 to F16. */
#include "core/error.h"
#include "model/export.h"

#include <stdio.h>
#include <string.h>

static const export_target targets[] = {
    {"f32", FMT_F32, -1, 0, true, false},
    {"f16", FMT_F16, -1, 1, true, false},
    {"bf16", FMT_BF16, -1, 32, true, false},
    {"nf4", FMT_NF4, -1, -1, true, true},
    {"q8_0", FMT_Q8_0, -1, 7, false, false},
    {"q6_k", FMT_Q6_K, -1, 18, false, false},
    {"q5_k_m", FMT_Q5_K, FMT_Q6_K, 17, false, false},
    {"q5_1", FMT_Q5_1, -1, 9, false, false},
    {"q5_0", FMT_Q5_0, -1, 8, false, false},
    {"q4_k_m", FMT_Q4_K, FMT_Q6_K, 15, false, false},
    {"q4_1", FMT_Q4_1, -1, 3, false, false},
    {"q4_0", FMT_Q4_0, -1, 2, false, false},
};
enum { TARGETS = sizeof targets / sizeof *targets };

const export_target *export_target_by_name(const char *name) {
    for (int i = 0; i < TARGETS; i++)
        if (!strcmp(targets[i].name, name)) return &targets[i];
    return NULL;
}

void export_target_list(char *buf, size_t size) {
    size_t n = 0;
    buf[0] = 0;
    for (int i = 0; i < TARGETS && n < size; i++)
        n += (size_t)snprintf(buf + n, size - n, "%s%s", i ? ", " : "", targets[i].name);
}

/* llama.cpp counts in whole layers: an eighth of them is rounded down. */
static bool more_bits(int64_t layer, int64_t layers) {
    return layer < layers / 8 || layer >= 7 * layers / 8 || (layer - layers / 8) % 3 == 2;
}

static int fit_row(int fmt, int64_t cols) {
    static const int smaller[FORMATS] = {[FMT_Q4_K] = FMT_Q5_0, [FMT_Q5_K] = FMT_Q5_1, [FMT_Q6_K] = FMT_Q8_0};
    if (cols % weight_formats[fmt].block && smaller[fmt]) fmt = smaller[fmt];
    return cols % weight_formats[fmt].block ? FMT_F16 : fmt;
}

int export_target_format(const export_target *t, const model_source *s, const char *hf_name, int64_t rows,
                         int64_t cols) {
    int layer, fmt = t->fmt;
    bool is_float = weight_formats[t->fmt].block == 1;
    if (!rows) return FMT_F32;
    bool is_output = !strcmp(hf_name, NAME_HEAD) || (s->hp.tied && strstr(hf_name, "embed_tokens"));
    CHECK(name_known(hf_name, false, s->fam->has, &layer), "tensor '%s'", hf_name);
    bool favoured = strstr(hf_name, ".v_proj.") || strstr(hf_name, ".down_proj.");
    if (is_output && !is_float && fmt != FMT_Q8_0)
        fmt = FMT_Q6_K;
    else if (t->more >= 0 && favoured && more_bits(layer, s->hp.layers))
        fmt = t->more;
    return fit_row(fmt, cols);
}
