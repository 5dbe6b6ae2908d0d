/* Keys and values of sequences in progress, fp32, one region of `context` rows per sequence and layer. */
#ifndef PEFT_MODEL_KV_CACHE_H
#define PEFT_MODEL_KV_CACHE_H

#include "kernels/mat.h"
#include "core/arena.h"

typedef struct kv_cache {
    int layers, seqs, context;
    int64_t width;  /* kv_heads * head_dim */
    float *k, *v;   /* [layers][seqs * context][width] */
    int32_t *first; /* [seqs] row of a sequence's key 0; heap */
    int32_t *row;   /* [rows_max] scratch: cache row of each batch row; heap */
    int rows_max;
} kv_cache;

void kv_cache_open(kv_cache *kv, arena *run, int layers, int seqs, int context, int64_t width, int rows_max);
void kv_cache_close(kv_cache *kv);
mat kv_cache_k(const kv_cache *kv, int layer); /* [seqs * context, width] */
mat kv_cache_v(const kv_cache *kv, int layer);

#endif
