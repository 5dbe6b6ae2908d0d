/* The families: one row each. Facts come from transformers' configuration classes and llama.cpp's converter. */
#include "model/model.h"

#include <stdio.h>
#include <string.h>

static const family families[] = {
    /* Llama 1, 2, 3 (without rope scaling), TinyLlama, SmolLM 1 and 2, Orca 2: GGUF rows of q and k are interleaved */
    {"llama", "LlamaForCausalLM", "llama", ACT_SILU, true},
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

void family_list(char *buf, size_t size, bool gguf) {
    size_t n = 0;
    buf[0] = 0;
    for (int i = 0; i < FAMILIES && n < size; i++)
        n += (size_t)snprintf(buf + n, size - n, "%s%s", i ? ", " : "", gguf ? families[i].gguf : families[i].name);
}
