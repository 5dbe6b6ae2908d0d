/* Keys and values of sequences in progress, in pages of KV_PAGE tokens of all layers: page p of the pool holds tokens
 * that someone above assigned to it. The cache knows no sequences: before a step the caller writes, for each sequence
 * of the batch, which pages hold its tokens. Formats and the layout within a page: kernels/backend.h, struct kv_pages.
 */
#ifndef PEFT_MODEL_KV_CACHE_H
#define PEFT_MODEL_KV_CACHE_H

#include "core/arena.h"
#include "core/batch.h"
#include "kernels/backend.h"

extern const char *const kv_type_names[KV_TYPES]; /* "f32", "bf16", "q8_0" */

typedef struct kv_shape {
    kv_type type;
    int layers, heads, dim;          /* key heads */
    int pages;                       /* of the pool */
    int rows_max, seqs_max, context; /* of a batch; tokens of a sequence */
} kv_shape;

typedef struct kv_cache {
    kv_shape s;
    int columns;    /* pages of a sequence at most: context / KV_PAGE, rounded up */
    int64_t bytes;  /* of the keys (or values) of a page in one layer */
    char *data;     /* [pages][layers][keys, values][bytes]; run arena */
    int32_t *table; /* [seqs_max][columns] of the present batch: written by the caller; heap */
    int32_t *slot;  /* [rows_max] where each row of the batch goes: page * KV_PAGE + token; heap */
} kv_cache;

/* -1: the type does not fit the heads. */
int kv_cache_open(kv_cache *kv, const kv_shape *s, arena *run);
void kv_cache_close(kv_cache *kv);
int64_t kv_cache_page_bytes(const kv_shape *s);    /* of all layers */
void kv_cache_place(kv_cache *kv, const batch *b); /* fills slot: row i is token past + i - start of its sequence */
kv_pages kv_cache_layer(const kv_cache *kv, int layer, const int32_t *table); /* table where kernels can read it */
void kv_cache_copy(const kv_cache *kv, kctx *k, int to, int from);            /* a page */
/* Sequence s of the batches to come owns pages s * columns ...: for callers that share nothing. */
void kv_cache_own(kv_cache *kv);

#endif
