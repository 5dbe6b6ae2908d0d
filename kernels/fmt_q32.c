/* GGUF's formats with blocks of 32 elements: an fp16 scale d (and minimum m), then 4, 5 or 8 bits an element.
 *     Q4_0, Q5_0, Q8_0: w = d (q - 8 | 16 | 0)        Q4_1, Q5_1: w = d q + m
 * Byte j of qs holds element j in its low and j + 16 in its high nibble; the fifth bits are qh, bit j of element j.
 * Source: ggml's reference quantisers; bits are those of gguf-py (gguf/quants.py). The product of
 * 11 and at most 8 bits is exact in fp32, so a fused kernel may use FMA and keep the bits. */
#include "kernels/fmt.h"
#include "kernels/fmt_fit.h"
#include <math.h>

enum { N = 32, H = 16 };

/* q[32] = the 4-bit values. Unpacking to bytes first lets the loop over 32 floats vectorise (gcc unrolls one over 16).
 */
static inline void four_bits(const uint8_t *qs, uint8_t *restrict q) {
    for (int j = 0; j < H; j++) q[j] = qs[j] & 15;
    for (int j = 0; j < H; j++) q[j + H] = qs[j] >> 4;
}

/* Adds the fifth bits. A shift by j does not vectorise, a byte repeated and tested against its bit does. */
static inline void fifth_bits(const uint8_t *qh, uint8_t *restrict q) {
    static const uint8_t bit[N] = {1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128,
                                   1, 2, 4, 8, 16, 32, 64, 128, 1, 2, 4, 8, 16, 32, 64, 128};
    uint8_t rep[N];
    for (int i = 0; i < 4; i++) memset(rep + 8 * i, qh[i], 8);
    for (int j = 0; j < N; j++) q[j] |= (uint8_t)((rep[j] & bit[j]) ? 16 : 0);
}

static void q4_0_blocks(const uint8_t *restrict b, int64_t blocks, float *restrict out) {
    for (; blocks > 0; blocks--, b += 18, out += N) {
        const float d = fmt_f16(b);
        uint8_t q[N];
        four_bits(b + 2, q);
        for (int j = 0; j < N; j++) out[j] = d * (float)(q[j] - 8);
    }
}

static void q4_1_blocks(const uint8_t *restrict b, int64_t blocks, float *restrict out) {
    for (; blocks > 0; blocks--, b += 20, out += N) {
        const float d = fmt_f16(b), m = fmt_f16(b + 2);
        uint8_t q[N];
        four_bits(b + 4, q);
        for (int j = 0; j < N; j++) out[j] = d * (float)q[j] + m;
    }
}

static void q5_0_blocks(const uint8_t *restrict b, int64_t blocks, float *restrict out) {
    for (; blocks > 0; blocks--, b += 22, out += N) {
        const float d = fmt_f16(b);
        uint8_t q[N];
        four_bits(b + 6, q);
        fifth_bits(b + 2, q);
        for (int j = 0; j < N; j++) out[j] = d * (float)(q[j] - 16);
    }
}

static void q5_1_blocks(const uint8_t *restrict b, int64_t blocks, float *restrict out) {
    for (; blocks > 0; blocks--, b += 24, out += N) {
        const float d = fmt_f16(b), m = fmt_f16(b + 2);
        uint8_t q[N];
        four_bits(b + 8, q);
        fifth_bits(b + 4, q);
        for (int j = 0; j < N; j++) out[j] = d * (float)q[j] + m;
    }
}

static void q8_0_blocks(const uint8_t *restrict b, int64_t blocks, float *restrict out) {
    for (; blocks > 0; blocks--, b += 34, out += N) {
        const float d = fmt_f16(b);
        for (int j = 0; j < N; j++) out[j] = d * (float)(int8_t)b[2 + j];
    }
}

void fmt_q4_0_dequant(const weight *w, int64_t at, int64_t n, float *out) { fmt_span(w, at, n, out, q4_0_blocks); }
void fmt_q4_1_dequant(const weight *w, int64_t at, int64_t n, float *out) { fmt_span(w, at, n, out, q4_1_blocks); }
void fmt_q5_0_dequant(const weight *w, int64_t at, int64_t n, float *out) { fmt_span(w, at, n, out, q5_0_blocks); }
void fmt_q5_1_dequant(const weight *w, int64_t at, int64_t n, float *out) { fmt_span(w, at, n, out, q5_1_blocks); }
void fmt_q8_0_dequant(const weight *w, int64_t at, int64_t n, float *out) { fmt_span(w, at, n, out, q8_0_blocks); }

/* The element of largest magnitude, with its sign; the first of equals. A NaN is passed over. */
static float extreme(const float *x) {
    float best = 0, size = -1;
    for (int j = 0; j < N; j++)
        if (fabsf(x[j]) > size) size = fabsf(x[j]), best = x[j];
    return best;
}

/* max - min is `levels` steps; *min is the smallest element. A NaN is passed over. In a block of zeros of both signs
 * the sign of *min is that of the first; numpy's follows its vector width. */
static float step_of(const float *x, int levels, float *min) {
    float lo = INFINITY, hi = -INFINITY;
    for (int j = 0; j < N; j++) {
        lo = x[j] < lo ? x[j] : lo;
        hi = x[j] > hi ? x[j] : hi;
    }
    *min = lo <= hi ? lo : 0;
    return lo <= hi ? (hi - lo) / (float)levels : 0;
}

static inline float inverse(float d) { return d == 0 ? 0 : 1 / d; }

/* trunc(v) held in [0, top]; NaN is 0, so that the conversion is always defined. */
static inline uint8_t level(float v, float top) {
    v = v > 0 ? v : 0;
    return (uint8_t)(int)(v < top ? v : top);
}

static void put_nibbles(const uint8_t *q, uint8_t *qs) {
    for (int j = 0; j < H; j++) qs[j] = (uint8_t)((q[j] & 15) | q[j + H] << 4);
}

static void put_fifth_bits(const uint8_t *q, uint8_t *qh) {
    for (int i = 0; i < 4; i++) {
        int byte = 0;
        for (int j = 0; j < 8; j++) byte |= q[8 * i + j] >> 4 << j;
        qh[i] = (uint8_t)byte;
    }
}

/* Q4_0, Q5_0: the extreme element gets level 0 exactly, whatever its sign. */
static void quant_signed(const float *x, int half, uint8_t *d16, uint8_t *q) {
    const float d = extreme(x) / (float)-half, id = inverse(d), zero = (float)half + 0.5f;
    fmt_put_f16(d16, d);
    for (int j = 0; j < N; j++) q[j] = level(x[j] * id + zero, (float)(2 * half - 1));
}

static void quant_affine(const float *x, int levels, uint8_t *d16, uint8_t *q) {
    float min;
    const float d = step_of(x, levels, &min), id = inverse(d);
    fmt_put_f16(d16, d);
    fmt_put_f16(d16 + 2, min);
    for (int j = 0; j < N; j++) q[j] = level((x[j] - min) * id + 0.5f, (float)levels);
}

void fmt_q4_0_quant(const float *x, int64_t n, void *dst) {
    uint8_t *b = dst, q[N];
    for (int64_t i = 0; i < n; i += N, b += 18) {
        quant_signed(x + i, 8, b, q);
        put_nibbles(q, b + 2);
    }
}

void fmt_q4_1_quant(const float *x, int64_t n, void *dst) {
    uint8_t *b = dst, q[N];
    for (int64_t i = 0; i < n; i += N, b += 20) {
        quant_affine(x + i, 15, b, q);
        put_nibbles(q, b + 4);
    }
}

void fmt_q5_0_quant(const float *x, int64_t n, void *dst) {
    uint8_t *b = dst, q[N];
    for (int64_t i = 0; i < n; i += N, b += 22) {
        quant_signed(x + i, 16, b, q);
        put_fifth_bits(q, b + 2);
        put_nibbles(q, b + 6);
    }
}

void fmt_q5_1_quant(const float *x, int64_t n, void *dst) {
    uint8_t *b = dst, q[N];
    for (int64_t i = 0; i < n; i += N, b += 24) {
        quant_affine(x + i, 31, b, q);
        put_fifth_bits(q, b + 4);
        put_nibbles(q, b + 8);
    }
}

/* Rounds half away from zero, as ggml's roundf does. */
void fmt_q8_0_quant(const float *x, int64_t n, void *dst) {
    uint8_t *b = dst;
    for (int64_t i = 0; i < n; i += N, b += 34) {
        const float d = fabsf(extreme(x + i)) / 127, id = inverse(d);
        fmt_put_f16(b, d);
        for (int j = 0; j < N; j++) {
            const float v = x[i + j] * id, a = fabsf(v);
            const int whole = level(a, 127), q = whole + (a - (float)whole >= 0.5f && whole < 127);
            b[2 + j] = (uint8_t)(v < 0 ? -q : q);
        }
    }
}

/* ---- with an importance of each element: least squares instead of the extremes (ggml searches likewise) ---- */

static void weighted_signed(const float *x, const float *w, int half, uint8_t *d16, uint8_t *q) {
    float v[N];
    fmt_put_f16(d16, fit_symmetric(x, w, N, half, v));
    fit_levels(x, w, N, fmt_f16(d16), 0, (float)-half, (float)(half - 1), v);
    for (int j = 0; j < N; j++) q[j] = (uint8_t)((int)v[j] + half);
}

/* fit_affine wants a minimum of 0 or below: the block is moved under 0 first. */
static void weighted_affine(const float *x, const float *w, int levels, uint8_t *d16, uint8_t *q) {
    float moved[N], v[N], top = x[0];
    for (int j = 0; j < N; j++) top = x[j] > top ? x[j] : top;
    for (int j = 0; j < N; j++) moved[j] = x[j] - top;
    const fit_line f = fit_affine(moved, w, N, levels, v);
    fmt_put_f16(d16, f.scale), fmt_put_f16(d16 + 2, top - f.min);
    double sum = 0, weight = 0; /* the best minimum for the scale as it was rounded */
    for (int j = 0; j < N; j++) sum += (double)w[j] * (double)(x[j] - fmt_f16(d16) * v[j]), weight += (double)w[j];
    if (weight > 0) fmt_put_f16(d16 + 2, (float)(sum / weight));
    fit_levels(x, w, N, fmt_f16(d16), -fmt_f16(d16 + 2), 0, (float)levels, v);
    for (int j = 0; j < N; j++) q[j] = (uint8_t)v[j];
}

void fmt_q4_0_quant_weighted(const float *x, const float *w, int64_t n, void *dst) {
    uint8_t *b = dst, q[N];
    for (int64_t i = 0; i < n; i += N, b += 18) {
        weighted_signed(x + i, w + i, 8, b, q);
        put_nibbles(q, b + 2);
    }
}

void fmt_q4_1_quant_weighted(const float *x, const float *w, int64_t n, void *dst) {
    uint8_t *b = dst, q[N];
    for (int64_t i = 0; i < n; i += N, b += 20) {
        weighted_affine(x + i, w + i, 15, b, q);
        put_nibbles(q, b + 4);
    }
}

void fmt_q5_0_quant_weighted(const float *x, const float *w, int64_t n, void *dst) {
    uint8_t *b = dst, q[N];
    for (int64_t i = 0; i < n; i += N, b += 22) {
        weighted_signed(x + i, w + i, 16, b, q);
        put_fifth_bits(q, b + 2);
        put_nibbles(q, b + 6);
    }
}

void fmt_q5_1_quant_weighted(const float *x, const float *w, int64_t n, void *dst) {
    uint8_t *b = dst, q[N];
    for (int64_t i = 0; i < n; i += N, b += 24) {
        weighted_affine(x + i, w + i, 31, b, q);
        put_fifth_bits(q, b + 4);
        put_nibbles(q, b + 8);
    }
}
