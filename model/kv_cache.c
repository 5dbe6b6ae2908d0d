#include "model/kv_cache.h"
#include "core/error.h"
#include "kernels/kv_page.h"

#include <stdlib.h>

const char *const kv_type_names[KV_TYPES] = {"f32", "bf16", "q8_0"};

int64_t kv_cache_page_bytes(const kv_shape *s) {
    return 2 * s->layers * kv_page_bytes(s->type, (int64_t)s->heads * s->dim);
}

int kv_cache_open(kv_cache *kv, const kv_shape *s, arena *run) {
    *kv = (kv_cache){.s = *s};
    if (s->type == KV_Q8_0 && s->heads * s->dim % KV_BLOCK)
        return fail(EXIT_USAGE,
                    "kv cache type q8_0: this model's keys have %d heads of %d, which are no multiple of %d: use bf16",
                    s->heads, s->dim, KV_BLOCK);
    kv->columns = (s->context + KV_PAGE - 1) / KV_PAGE;
    kv->bytes = kv_page_bytes(s->type, (int64_t)s->heads * s->dim);
    kv->data = arena_array(run, (size_t)s->pages, (size_t)kv_cache_page_bytes(s));
    kv->table = xcalloc((size_t)s->seqs_max * (size_t)kv->columns, sizeof *kv->table);
    kv->slot = xcalloc((size_t)s->rows_max, sizeof *kv->slot);
    return 0;
}

void kv_cache_close(kv_cache *kv) {
    free(kv->table), free(kv->slot);
    *kv = (kv_cache){0};
}

void kv_cache_own(kv_cache *kv) {
    CHECK(kv->s.pages >= kv->s.seqs_max * kv->columns, "%d pages for %d sequences", kv->s.pages, kv->s.seqs_max);
    for (int i = 0; i < kv->s.seqs_max * kv->columns; i++) kv->table[i] = i;
}

void kv_cache_place(kv_cache *kv, const batch *b) {
    CHECK(b->rows <= kv->s.rows_max && b->seqs <= kv->s.seqs_max, "%d rows, %d sequences for the cache", b->rows,
          b->seqs);
    for (int s = 0; s < b->seqs; s++) {
        CHECK(b->past[s] + b->start[s + 1] - b->start[s] <= kv->columns * KV_PAGE, "context of %d", kv->s.context);
        for (int i = b->start[s], j = b->past[s]; i < b->start[s + 1]; i++, j++)
            kv->slot[i] = kv->table[s * kv->columns + j / KV_PAGE] * KV_PAGE + j % KV_PAGE;
    }
}

kv_pages kv_cache_layer(const kv_cache *kv, int layer, const int32_t *table) {
    char *k = kv->data + 2 * layer * kv->bytes;
    return (kv_pages){.type = kv->s.type,
                      .heads = kv->s.heads,
                      .dim = kv->s.dim,
                      .k = k,
                      .v = k + kv->bytes,
                      .stride = 2 * kv->s.layers * kv->bytes,
                      .table = table,
                      .columns = kv->columns};
}

void kv_cache_copy(const kv_cache *kv, kctx *k, int to, int from) {
    int64_t bytes = kv_cache_page_bytes(&kv->s), n = bytes / (int64_t)sizeof(float);
    float *data = (float *)(void *)kv->data;
    k->be->copy(k, mat_f32(data + to * n, 1, n), mat_f32(data + from * n, 1, n));
}
