/* Tensor names of the two containers. */
#ifndef PEFT_MODEL_NAMES_H
#define PEFT_MODEL_NAMES_H

#include <stdbool.h>
#include <stddef.h>

#define NAMES_LAYERS_MAX 4096

bool name_to_gguf(const char *hf, char *out, size_t size); /* false: no GGUF name */
/* All names, pattern by pattern: false past the end. *layered: the pattern is one of a layer, `layer` was filled in. */
bool name_hf(int pattern, int layer, char *out, size_t size, bool *layered);
/* Whether a file's tensor is one that a model here can use; *layer is its layer or -1. */
bool name_known(const char *name, bool gguf, int *layer);

#endif
