/* F32, F16 (IEEE binary16) and BF16 (upper half of binary32): exact to read, rounded to nearest even to write.
 * Data lie as in the file, at any byte alignment; loops are free of branches so that they vectorise. */
#include "kernels/fmt.h"

void fmt_f32_dequant(const weight *w, int64_t at, int64_t n, float *out) {
    if (n > 0) memcpy(out, (const char *)w->data + at * 4, (size_t)n * 4);
}

void fmt_f32_quant(const float *x, int64_t n, void *dst) {
    if (n > 0) memcpy(dst, x, (size_t)n * 4);
}

/* f16_to_float() without branches: all three cases are computed and one is selected. */
static inline float half_select(uint16_t h) {
    const uint32_t sign = (uint32_t)(h & 0x8000) << 16, e = h & 0x7c00, m = (uint32_t)(h & 0x7fff) << 13;
    const uint32_t normal = m + (112u << 23), special = m | 0x7f800000u;
    const uint32_t small = bits_of(float_of(m + (113u << 23)) - 0x1p-14f);
    return float_of(sign | (e == 0 ? small : e == 0x7c00 ? special : normal));
}

void fmt_f16_dequant(const weight *w, int64_t at, int64_t n, float *out) {
    const char *src = (const char *)w->data + at * 2;
    for (int64_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, src + 2 * i, 2);
        out[i] = half_select(h);
    }
}

void fmt_f16_quant(const float *x, int64_t n, void *dst) {
    for (int64_t i = 0; i < n; i++) {
        const uint16_t h = float_to_f16(x[i]);
        memcpy((char *)dst + 2 * i, &h, 2);
    }
}

void fmt_bf16_dequant(const weight *w, int64_t at, int64_t n, float *out) {
    const char *src = (const char *)w->data + at * 2;
    for (int64_t i = 0; i < n; i++) {
        uint16_t h;
        memcpy(&h, src + 2 * i, 2);
        out[i] = bf16_to_float(h);
    }
}

void fmt_bf16_quant(const float *x, int64_t n, void *dst) {
    for (int64_t i = 0; i < n; i++) {
        const uint16_t h = float_to_bf16(x[i]);
        memcpy((char *)dst + 2 * i, &h, 2);
    }
}
