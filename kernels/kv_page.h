/* A page of cached keys and values, element by element: what backend.h says of struct kv_pages, in plain loops. A store
 * is little work beside the projections before it, so every CPU backend stores with these. */
#ifndef PEFT_KERNELS_KV_PAGE_H
#define PEFT_KERNELS_KV_PAGE_H

#include "core/num.h"
#include "kernels/backend.h"

#include <math.h>

/* Bytes of the keys (or the values) of a page; a multiple of 64. */
static inline int64_t kv_page_bytes(kv_type type, int64_t width) {
    int64_t n = width * KV_PAGE;
    int64_t bytes = type == KV_F32 ? 4 * n : type == KV_BF16 ? 2 * n : n + n / KV_BLOCK * 2;
    return (bytes + 63) / 64 * 64;
}

/* Where a token's features lie in a page: elements `step` apart from `at`; the scale of block b is b * scale_step on
 * from scale_at. */
typedef struct {
    int64_t at, step, scale_at, scale_step;
} kv_place;

static inline kv_place kv_key_place(int64_t t) { return (kv_place){t, KV_PAGE, t, KV_PAGE}; }
static inline kv_place kv_value_place(int64_t t, int64_t width) {
    return (kv_place){t * width, 1, t * (width / KV_BLOCK), 1};
}

static inline int8_t *kv_codes(char *page) { return (int8_t *)page; }
static inline uint16_t *kv_scales(char *page, int64_t width) { return (uint16_t *)(void *)(page + width * KV_PAGE); }

/* ggml's Q8_0: d = max |x| / 127, code = x / d rounded half away from zero, d kept as fp16 */
static inline void kv_put_q8(char *page, int64_t width, kv_place w, const float *x) {
    for (int64_t b = 0; b < width / KV_BLOCK; b++) {
        float top = 0;
        for (int i = 0; i < KV_BLOCK; i++) top = fmaxf(top, fabsf(x[b * KV_BLOCK + i]));
        float d = top / 127, inv = d != 0 ? 1 / d : 0;
        for (int i = 0; i < KV_BLOCK; i++) {
            float q = roundf(x[b * KV_BLOCK + i] * inv);
            kv_codes(page)[w.at + (b * KV_BLOCK + i) * w.step] = (int8_t)(q == q ? q : 0);
        }
        kv_scales(page, width)[w.scale_at + b * w.scale_step] = float_to_f16(d);
    }
}

static inline void kv_put(kv_type type, char *page, int64_t width, kv_place w, const float *x) {
    if (type == KV_F32)
        for (int64_t f = 0; f < width; f++) ((float *)(void *)page)[w.at + f * w.step] = x[f];
    else if (type == KV_BF16)
        for (int64_t f = 0; f < width; f++) ((uint16_t *)(void *)page)[w.at + f * w.step] = float_to_bf16(x[f]);
    else
        kv_put_q8(page, width, w, x);
}

static inline float kv_get(kv_type type, const char *page, int64_t width, kv_place w, int64_t f) {
    char *p = (char *)page;
    if (type == KV_F32) return ((float *)(void *)p)[w.at + f * w.step];
    if (type == KV_BF16) return bf16_to_float(((uint16_t *)(void *)p)[w.at + f * w.step]);
    return (float)kv_codes(p)[w.at + f * w.step] *
           f16_to_float(kv_scales(p, width)[w.scale_at + f / KV_BLOCK * w.scale_step]);
}

/* Row i of k and v into its place. */
static inline void kv_store_row(const kv_pages *p, mat k, mat v, const int32_t *slot, int64_t i) {
    int64_t width = (int64_t)p->heads * p->dim, page = slot[i] / KV_PAGE, t = slot[i] % KV_PAGE;
    kv_put(p->type, p->k + page * p->stride, width, kv_key_place(t), mat_row(k, i));
    kv_put(p->type, p->v + page * p->stride, width, kv_value_place(t, width), mat_row(v, i));
}

#endif
