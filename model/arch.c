/* The families: one row each. Facts come from transformers' configuration classes and llama.cpp's converter. */
#include "model/model.h"

#include <stdio.h>
#include <string.h>

static const family families[] = {
    /* Llama 1, 2, 3 (without rope scaling), TinyLlama, SmolLM 1 and 2, Orca 2: GGUF rows of q and k are interleaved */
    {"llama", "LlamaForCausalLM", "llama", ACT_SILU, true, 0, WINDOW_NONE, 0, 0, 2048},
    /* Mistral 7B v0.1 (a window of 4096) to v0.3 (none): GGUF files call themselves llama */
    {"mistral", "MistralForCausalLM", "llama", ACT_SILU, true, 0, WINDOW_ALL, 8, 0, 131072},
    /* Qwen2, Qwen2.5 */
    {"qwen2", "Qwen2ForCausalLM", "qwen2", ACT_SILU, false, HAS_QKV_BIAS, WINDOW_LAST, 32, 0, 32768},
    {"qwen3", "Qwen3ForCausalLM", "qwen3", ACT_SILU, false, HAS_HEAD_NORM, WINDOW_LAST, 32, 128, 32768},
};
enum { FAMILIES = sizeof families / sizeof *families };

const family *family_by_name(const char *model_type) {
    for (int i = 0; i < FAMILIES; i++)
        if (!strcmp(families[i].name, model_type)) return &families[i];
    return NULL;
}

const family *family_by_gguf(const char *arch, uint64_t n) {
    for (int i = 0; i < FAMILIES; i++)
        if (strlen(families[i].gguf) == n && !memcmp(families[i].gguf, arch, n)) return &families[i];
    return NULL;
}

const family *family_windowed(const family *f) {
    for (int i = 0; i < FAMILIES; i++)
        if (families[i].window == WINDOW_ALL && !strcmp(families[i].gguf, f->gguf)) return &families[i];
    return NULL;
}

void family_list(char *buf, size_t size, bool gguf) {
    size_t n = 0;
    buf[0] = 0;
    for (int i = 0; i < FAMILIES && n < size; i++) {
        const family *f = &families[i];
        if (gguf && family_by_gguf(f->gguf, strlen(f->gguf)) != f) continue; /* an architecture once */
        n += (size_t)snprintf(buf + n, size - n, "%s%s", i ? ", " : "", gguf ? f->gguf : f->name);
    }
}
