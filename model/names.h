/* Tensor names of the two containers, and the shapes of what they name. */
#ifndef PEFT_MODEL_NAMES_H
#define PEFT_MODEL_NAMES_H

#include <stdbool.h>
#include <stddef.h>

#define NAMES_LAYERS_MAX 4096
#define NAME_HEAD "lm_head.weight"

/* What a dimension is; SIZE_NONE as rows: a vector. Q and KV are heads and key-value heads times the head's size. */
typedef enum { SIZE_NONE, SIZE_VOCAB, SIZE_DIM, SIZE_FFN, SIZE_Q, SIZE_KV, SIZE_HEAD, SIZES } name_size;

/* Tensors that llama's layers lack and a family's have: one bit each in its row of the family table. */
enum { HAS_QKV_BIAS = 1, HAS_HEAD_NORM = 2 };

bool name_to_gguf(const char *hf, char *out, size_t size); /* false: no GGUF name */
/* All names, pattern by pattern: false past the end. *layered: the pattern is one of a layer, `layer` was filled in. */
bool name_hf(int pattern, int layer, char *out, size_t size, bool *layered);
void name_shape(int pattern, name_size *rows, name_size *cols); /* of a pattern that name_hf knows */
bool name_used(int pattern, unsigned has);                      /* by a family with these bits; every family: true */
/* Whether a file's tensor is one that such a family uses; *layer is its layer (at most NAMES_LAYERS_MAX) or -1. */
bool name_known(const char *name, bool gguf, unsigned has, int *layer);
bool name_in_layer(const char *name, bool gguf); /* whether it lies under a layer's prefix, known or not */

#endif
