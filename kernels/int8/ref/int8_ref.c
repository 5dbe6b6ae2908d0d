/* "ref-int8": the arithmetic of int8.h in plain loops, from the blocks as the file stores them; packing is not used, so
 * that it is tested too. Below it is the reference backend. */
#include "core/error.h"
#include "kernels/fmt.h"
#include "kernels/int8/int8.h"
#include "kernels/ref/ref.h"

extern const backend backend_ref_int8;

enum { BLOCK = 32 };

/* 32 columns of a row of W: integers, and d[h] of each half, m of the whole */
typedef struct {
    int c[BLOCK];
    float d[2], m;
} codes;

typedef void codes_fn(codes *o, const weight *w, int64_t at); /* at: element, a multiple of 32 */

static const uint8_t *block_at(const weight *w, int64_t at) {
    return (const uint8_t *)w->data + at / w->fmt->block * w->fmt->bytes;
}

static int signed_byte(uint8_t b) { return (b ^ 0x80) - 0x80; }

static void nibbles(codes *o, const uint8_t *qs, const uint8_t *qh, int bias) {
    for (int j = 0; j < BLOCK; j++) {
        const int q = j < 16 ? qs[j] & 15 : qs[j - 16] >> 4, high = qh ? (qh[j / 8] >> j % 8 & 1) << 4 : 0;
        o->c[j] = (q | high) - bias;
    }
}

static void q4_0(codes *o, const weight *w, int64_t at) {
    const uint8_t *b = block_at(w, at);
    nibbles(o, b + 2, NULL, 8);
    o->d[0] = fmt_f16(b);
}
static void q4_1(codes *o, const weight *w, int64_t at) {
    const uint8_t *b = block_at(w, at);
    nibbles(o, b + 4, NULL, 0);
    o->d[0] = fmt_f16(b), o->m = fmt_f16(b + 2);
}
static void q5_0(codes *o, const weight *w, int64_t at) {
    const uint8_t *b = block_at(w, at);
    nibbles(o, b + 6, b + 2, 16);
    o->d[0] = fmt_f16(b);
}
static void q5_1(codes *o, const weight *w, int64_t at) {
    const uint8_t *b = block_at(w, at);
    nibbles(o, b + 8, b + 4, 0);
    o->d[0] = fmt_f16(b), o->m = fmt_f16(b + 2);
}
static void eight(codes *o, const uint8_t *b) {
    for (int j = 0; j < BLOCK; j++) o->c[j] = signed_byte(b[2 + j]);
    o->d[0] = fmt_f16(b);
}
static void q8_0(codes *o, const weight *w, int64_t at) { eight(o, block_at(w, at)); }
static void dense(codes *o, const weight *w, int64_t at) {
    float x[BLOCK];
    uint8_t b[34];
    w->fmt->dequant(w, at, BLOCK, x);
    fmt_q8_0_quant(x, BLOCK, b);
    eight(o, b);
}
static void iq4_nl(codes *o, const weight *w, int64_t at) {
    const uint8_t *b = block_at(w, at);
    nibbles(o, b + 2, NULL, 0);
    for (int j = 0; j < BLOCK; j++) o->c[j] = signed_byte((uint8_t)fmt_iq4_nl_table[o->c[j]]);
    o->d[0] = fmt_f16(b);
}
static void nf4(codes *o, const weight *w, int64_t at) {
    const uint8_t *b = (const uint8_t *)w->data + at / 2;
    for (int j = 0; j < BLOCK; j++)
        o->c[j] = signed_byte((uint8_t)int8_nf4_table[j % 2 ? b[j / 2] & 15 : b[j / 2] >> 4]);
    o->d[0] = nf4_absmax(w->meta, at / 64) * INT8_NF4_UNIT;
}
static void k_bits(codes *o, const weight *w, int64_t at, const uint8_t *qs, const uint8_t *qh) {
    const uint8_t *b = block_at(w, at), *s = b + 4;
    const int i = (int)(at % 256 / BLOCK), j = i % 4;
    const int sc = i < 4 ? s[j] & 63 : (s[j + 8] & 15) | s[j] >> 6 << 4;
    const int mn = i < 4 ? s[j + 4] & 63 : s[j + 8] >> 4 | s[j + 4] >> 6 << 4;
    for (int l = 0; l < BLOCK; l++) {
        const int q = i % 2 ? qs[i / 2 * 32 + l] >> 4 : qs[i / 2 * 32 + l] & 15;
        o->c[l] = q | (qh ? (qh[l] >> i & 1) << 4 : 0);
    }
    o->d[0] = fmt_f16(b) * (float)sc, o->m = -(fmt_f16(b + 2) * (float)mn);
}
static void q4_k(codes *o, const weight *w, int64_t at) { k_bits(o, w, at, block_at(w, at) + 16, NULL); }
static void q5_k(codes *o, const weight *w, int64_t at) {
    k_bits(o, w, at, block_at(w, at) + 48, block_at(w, at) + 16);
}
static void q6_k(codes *o, const weight *w, int64_t at) {
    const uint8_t *b = block_at(w, at);
    const int i = (int)(at % 256 / BLOCK);
    for (int l = 0; l < BLOCK; l++) {
        const int low = b[64 * (i / 4) + 32 * (i % 2) + l] >> (i % 4 < 2 ? 0 : 4) & 15;
        o->c[l] = (low | (b[128 + 32 * (i / 4) + l] >> 2 * (i % 4) & 3) << 4) - 32;
    }
    for (int h = 0; h < 2; h++) o->d[h] = fmt_f16(b + 208) * (float)signed_byte(b[192 + 2 * i + h]);
}

static const struct {
    codes_fn *take;
    bool min, halves;
} kinds[FORMATS] = {
    [FMT_Q4_0] = {q4_0},
    [FMT_Q4_1] = {q4_1, true},
    [FMT_Q5_0] = {q5_0},
    [FMT_Q5_1] = {q5_1, true},
    [FMT_Q8_0] = {q8_0},
    [FMT_IQ4_NL] = {iq4_nl},
    [FMT_NF4] = {nf4},
    [FMT_Q4_K] = {q4_k, true},
    [FMT_Q5_K] = {q5_k, true},
    [FMT_F32] = {dense},
    [FMT_Q6_K] = {q6_k, .halves = true},
    [FMT_F16] = {dense},
    [FMT_BF16] = {dense},
};

/* returns e */
static float round_block(const float *x, int *q) {
    float a = 0;
    for (int i = 0; i < BLOCK; i++) {
        if (!(fabsf(x[i]) <= 0x1.fffffep127f)) return NAN;
        if (fabsf(x[i]) > a) a = fabsf(x[i]);
    }
    const float r = a > INT8_SMALLEST ? 127.0f / a : 0;
    for (int i = 0; i < BLOCK; i++) q[i] = (int)rintf(x[i] * r);
    return a / 127.0f;
}

static float add_block(float y, const float *x, const weight *w, int64_t at) {
    codes o;
    int q[BLOCK] = {0}, sum[2] = {0}, all = 0;
    const float e = round_block(x, q);
    const int halves = kinds[w->fmt->id].halves;
    kinds[w->fmt->id].take(&o, w, at);
    for (int i = 0; i < BLOCK; i++) sum[halves && i >= 16] += o.c[i] * q[i], all += q[i];
    for (int h = 0; h <= halves; h++) y = fmaf((float)sum[h], o.d[h] * e, y);
    return kinds[w->fmt->id].min ? fmaf(o.m, e * (float)all, y) : y;
}

/* row of the origin that is row `row` (rows16.c) */
static int64_t origin_row(const rows16 *r, int64_t row) {
    if (!r->heads) return row;
    const int64_t d = r->origin.rows / r->heads, i = row % d;
    return row - i + (i < d / 2 ? 2 * i : 2 * i - d + 1);
}

static void weight_fwd_int8_ref(kctx *c, mat y, mat x, const weight *w) {
    const rows16 *r = weight_rows16(w);
    if (!r) {
        weight_fwd_ref(c, y, x, w);
        return;
    }
    for (int64_t t = 0; t < x.rows; t++)
        for (int64_t j = 0; j < w->rows; j++)
            for (int64_t k = 0; k < w->cols; k += BLOCK) {
                float *out = mat_row(y, t) + j;
                *out = add_block(*out, mat_row(x, t) + k, &r->origin, origin_row(r, j) * w->cols + k);
            }
}

#pragma GCC diagnostic ignored "-Woverride-init"

const backend backend_ref_int8 = {
    .name = "ref-int8",
#define K(name, args) .name = name##_ref,
#include "kernels/kernels.def"
#undef K
    .proj_fwd = proj_fwd_compose,
    .weight_fwd = weight_fwd_int8_ref,
};
