/* Decoders of the storage formats on a device: 8 consecutive elements of the flattened matrix, exact to the bit of
 * kernels/fmt_*.c, which cite the sources of the layouts. A row of formats.def without a decode8 here does not compile.
 * The device's copy of `data` is 16-byte aligned, so every block is 2-byte aligned (its size is even). */
#ifndef PEFT_KERNELS_CUDA_DEQUANT_CUH
#define PEFT_KERNELS_CUDA_DEQUANT_CUH

#include "kernels/cuda/cuda.h"

/* A weight as a kernel gets it, by value: the struct `weight` and its meta lie on the host, all pointers in them on the
 * device. */
typedef struct wview {
    const uint8_t *data;
    int64_t rows, cols, count; /* count = elements in all */
    const float *absmax;       /* NF4 from here on; NULL where scales are coded */
    const uint8_t *code;
    const float *nested, *map;
    float offset;
    int block_shift, nested_shift; /* log2 of the block sizes */
    int64_t bytes;                 /* of data */
} wview;

#define DEVICE static __device__ __forceinline__

DEVICE uint32_t load16(const uint8_t *p) { return *(const uint16_t *)p; }
DEVICE float load_half(const uint8_t *p) { return __half2float(__ushort_as_half(*(const unsigned short *)p)); }

/* eight bytes from an even address, or from a multiple of 4 */
DEVICE void bytes8(const uint8_t *p, uint32_t (&w)[2]) {
    w[0] = load16(p) | load16(p + 2) << 16, w[1] = load16(p + 4) | load16(p + 6) << 16;
}
DEVICE void words8(const uint8_t *p, uint32_t (&w)[2]) {
    w[0] = *(const uint32_t *)p, w[1] = *(const uint32_t *)(p + 4);
}
DEVICE int byte_of(const uint32_t (&w)[2], int i) { return w[i / 4] >> i % 4 * 8 & 255; }

/* The scale of block b: two roundings, as nf4_absmax. */
DEVICE float nf4_scale(const wview &w, int64_t b) {
    if (w.absmax) return w.absmax[b];
    return __fadd_rn(__fmul_rn(w.map[w.code[b]], w.nested[b >> w.nested_shift]), w.offset);
}

/* fmt_nf4.c's nf4_codes. Global memory and not __constant__: lanes index it each on their own, which constant memory
 * would serve one address at a time */
static __device__ const float nf4_table[16] = {
    -1.0f,         -0.696192801f, -0.525073051f, -0.394917488f, -0.284441382f, -0.18477343f, -0.0910500363f, 0.0f,
    0.0795802996f, 0.160930201f,  0.246112302f,  0.337915242f,  0.440709829f,  0.562617004f, 0.722956836f,   1.0f,
};

/* decode8(format<FMT_*>(), w, at, v): v[0, 8) = elements [at, at + 8), at a multiple of 8; what lies behind the matrix
 * is zero */
template <int F> struct format {};

DEVICE void decode8(format<FMT_F32>, const wview &w, int64_t at, float (&v)[8]) {
    const float *p = (const float *)w.data + at;
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = at + i < w.count ? p[i] : 0.0f;
}

DEVICE void decode8(format<FMT_F16>, const wview &w, int64_t at, float (&v)[8]) {
    const uint8_t *p = w.data + at * 2;
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = at + i < w.count ? load_half(p + 2 * i) : 0.0f;
}

DEVICE void decode8(format<FMT_BF16>, const wview &w, int64_t at, float (&v)[8]) {
    const uint8_t *p = w.data + at * 2;
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = at + i < w.count ? __uint_as_float(load16(p + 2 * i) << 16) : 0.0f;
}

DEVICE void decode8(format<FMT_NF4>, const wview &w, int64_t at, float (&v)[8]) {
    const float s = at < w.count ? nf4_scale(w, at >> w.block_shift) : 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i += 2) {
        const int b = at + i < w.count ? w.data[(at + i) / 2] : 0;
        v[i] = nf4_table[b >> 4] * s;
        v[i + 1] = at + i + 1 < w.count ? nf4_table[b & 15] * s : 0.0f;
    }
}

/* Blocks of 32: byte j holds element j in its low and j + 16 in its high nibble. block8: elements [in, in + 8) of the
 * block at b, wherever it lies. */
DEVICE void nibbles8(const uint8_t *qs, int in, int (&q)[8]) {
    uint32_t w[2];
    bytes8(qs + (in & 15), w);
#pragma unroll
    for (int i = 0; i < 8; i++) q[i] = byte_of(w, i) >> (in < 16 ? 0 : 4) & 15;
}

DEVICE void fifth8(const uint8_t *qh, int in, int (&q)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) q[i] |= (qh[in / 8] >> i & 1) << 4;
}

DEVICE void signed8(float d, int zero, const int (&q)[8], float (&v)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = d * (float)(q[i] - zero);
}

/* d q is exact, so that a contraction to FMA keeps the bits */
DEVICE void affine8(float d, float m, const int (&q)[8], float (&v)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = d * (float)q[i] + m;
}

DEVICE void block8(format<FMT_Q4_0>, const uint8_t *b, int in, float (&v)[8]) {
    int q[8];
    nibbles8(b + 2, in, q);
    signed8(load_half(b), 8, q, v);
}
DEVICE void decode8(format<FMT_Q4_0> f, const wview &w, int64_t at, float (&v)[8]) {
    block8(f, w.data + at / 32 * 18, (int)(at & 31), v);
}

DEVICE void block8(format<FMT_Q4_1>, const uint8_t *b, int in, float (&v)[8]) {
    int q[8];
    nibbles8(b + 4, in, q);
    affine8(load_half(b), load_half(b + 2), q, v);
}
DEVICE void decode8(format<FMT_Q4_1> f, const wview &w, int64_t at, float (&v)[8]) {
    block8(f, w.data + at / 32 * 20, (int)(at & 31), v);
}

DEVICE void block8(format<FMT_Q5_0>, const uint8_t *b, int in, float (&v)[8]) {
    int q[8];
    nibbles8(b + 6, in, q);
    fifth8(b + 2, in, q);
    signed8(load_half(b), 16, q, v);
}
DEVICE void decode8(format<FMT_Q5_0> f, const wview &w, int64_t at, float (&v)[8]) {
    block8(f, w.data + at / 32 * 22, (int)(at & 31), v);
}

DEVICE void block8(format<FMT_Q5_1>, const uint8_t *b, int in, float (&v)[8]) {
    int q[8];
    nibbles8(b + 8, in, q);
    fifth8(b + 4, in, q);
    affine8(load_half(b), load_half(b + 2), q, v);
}
DEVICE void decode8(format<FMT_Q5_1> f, const wview &w, int64_t at, float (&v)[8]) {
    block8(f, w.data + at / 32 * 24, (int)(at & 31), v);
}

DEVICE void block8(format<FMT_Q8_0>, const uint8_t *b, int in, float (&v)[8]) {
    const float d = load_half(b);
    uint32_t w[2];
    bytes8(b + 2 + in, w);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = d * (float)(int8_t)byte_of(w, i);
}
DEVICE void decode8(format<FMT_Q8_0> f, const wview &w, int64_t at, float (&v)[8]) {
    block8(f, w.data + at / 32 * 34, (int)(at & 31), v);
}

/* fmt_iq4_nl.c's table */
static __device__ const signed char iq4_nl_table[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                                        1,    13,   25,  38,  53,  69,  89,  113};

DEVICE void block8(format<FMT_IQ4_NL>, const uint8_t *b, int in, float (&v)[8]) {
    const float d = load_half(b);
    int q[8];
    nibbles8(b + 2, in, q);
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = d * (float)iq4_nl_table[q[i]];
}
DEVICE void decode8(format<FMT_IQ4_NL> f, const wview &w, int64_t at, float (&v)[8]) {
    block8(f, w.data + at / 32 * 18, (int)(at & 31), v);
}

/* Sub-block j of the 6-bit scales and minima of Q4_K and Q5_K (fmt_k.c) */
DEVICE void six_bits(const uint8_t *s, int j, int &scale, int &min) {
    if (j < 4) {
        scale = s[j] & 63, min = s[j + 4] & 63;
        return;
    }
    scale = (s[j + 4] & 15) | s[j - 4] >> 6 << 4, min = s[j + 4] >> 4 | s[j] >> 6 << 4;
}

/* d sc q - dmin mn: each product is exact, the difference rounds once */
DEVICE void k_affine8(const uint8_t *b, int sub, const int (&q)[8], float (&v)[8]) {
    int sc, mn;
    six_bits(b + 4, sub, sc, mn);
    affine8(load_half(b) * (float)sc, -(load_half(b + 2) * (float)mn), q, v);
}

/* elements [in, in + 8) of sub-block sub, whose 32 bytes lie at qs */
DEVICE void sub8(format<FMT_Q4_K>, const uint8_t *head, const uint8_t *qs, int sub, int in, float (&v)[8]) {
    int q[8];
    uint32_t w[2];
    words8(qs + in, w);
#pragma unroll
    for (int i = 0; i < 8; i++) q[i] = byte_of(w, i) >> sub % 2 * 4 & 15;
    k_affine8(head, sub, q, v);
}

DEVICE void decode8(format<FMT_Q4_K> f, const wview &w, int64_t at, float (&v)[8]) {
    const uint8_t *b = w.data + at / 256 * 144;
    const int in = (int)(at & 255), sub = in / 32;
    sub8(f, b, b + 16 + sub / 2 * 32, sub, in % 32, v);
}

DEVICE void decode8(format<FMT_Q5_K>, const wview &w, int64_t at, float (&v)[8]) {
    const uint8_t *b = w.data + at / 256 * 176;
    const int in = (int)(at & 255), sub = in / 32;
    int q[8];
#pragma unroll
    for (int i = 0; i < 8; i++) {
        q[i] = b[48 + sub / 2 * 32 + in % 32 + i] >> sub % 2 * 4 & 15;
        q[i] |= (b[16 + in % 32 + i] >> sub & 1) << 4;
    }
    k_affine8(b, sub, q, v);
}

/* Elements [in, in + 8) of run r of 32 in a half of 128: nibble r / 2 of its bytes ql, bits 2r, 2r + 1 of qh; scale: of
 * the sub-block of 16. */
DEVICE void run8(format<FMT_Q6_K>, const uint8_t *ql, const uint8_t *qh, float scale, int r, int in, float (&v)[8]) {
    uint32_t low[2], high[2];
    bytes8(ql + in, low), bytes8(qh + in, high);
#pragma unroll
    for (int i = 0; i < 8; i++)
        v[i] = scale * (float)(((byte_of(low, i) >> r / 2 * 4 & 15) | (byte_of(high, i) >> 2 * r & 3) << 4) - 32);
}

DEVICE void decode8(format<FMT_Q6_K> f, const wview &w, int64_t at, float (&v)[8]) {
    const uint8_t *b = w.data + at / 256 * 210;
    const int in = (int)(at & 255), half = in / 128, r = in % 128 / 32;
    const float s = load_half(b + 208) * (float)(int8_t)b[192 + in / 16];
    run8(f, b + 64 * half + 32 * (r % 2), b + 128 + 32 * half, s, r, in % 32, v);
}

#endif
