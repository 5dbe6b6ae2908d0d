#include "model/kv_cache.h"

#include <stdlib.h>

void kv_cache_open(kv_cache *kv, arena *run, int layers, int seqs, int context, int64_t width, int rows_max) {
    size_t n = (size_t)layers * (size_t)seqs * (size_t)context;
    *kv = (kv_cache){.layers = layers, .seqs = seqs, .context = context, .width = width, .rows_max = rows_max};
    kv->k = arena_array(run, n, (size_t)width * sizeof(float));
    kv->v = arena_array(run, n, (size_t)width * sizeof(float));
    kv->first = xcalloc((size_t)seqs, sizeof *kv->first);
    kv->row = xcalloc((size_t)rows_max, sizeof *kv->row);
    for (int s = 0; s < seqs; s++) kv->first[s] = s * context;
}

void kv_cache_close(kv_cache *kv) {
    free(kv->first), free(kv->row);
    *kv = (kv_cache){0};
}

static mat layer_of(const kv_cache *kv, float *base, int layer) {
    int64_t rows = (int64_t)kv->seqs * kv->context;
    return mat_f32(base + layer * rows * kv->width, rows, kv->width);
}

mat kv_cache_k(const kv_cache *kv, int layer) { return layer_of(kv, kv->k, layer); }
mat kv_cache_v(const kv_cache *kv, int layer) { return layer_of(kv, kv->v, layer); }
