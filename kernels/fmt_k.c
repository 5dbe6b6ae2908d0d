/* GGUF's K-quants, super-blocks of 256 elements whose sub-blocks have integer scales under one fp16 scale.
 *     Q4_K, Q5_K: 8 sub-blocks of 32, w = d sc q - dmin mn, sc and mn of 6 bits
 *     Q6_K: 16 sub-blocks of 16, w = d sc (q - 32), sc int8
 * Layout in bytes: Q4_K d dmin scales[12] qs[128]; Q5_K d dmin scales[12] qh[32] qs[128]; Q6_K ql[128] qh[64]
 * scales[16] d. Source: ggml's block definitions; bits are those of gguf-py (gguf/quants.py). Every product is exact in
 * fp32 (11 + 6 + 5 bits, 11 + 7 + 5 bits): only the subtraction rounds, and FMA keeps the bits. */
#include "kernels/fmt.h"

enum { N = 256 };

/* scales[12]: sub-blocks 0-3 keep six bits in bytes j (sc) and j + 4 (mn), whose upper two bits belong to sub-blocks
 * 4-7; their lower four bits are the nibbles of byte j + 8. */
static void six_bits(const uint8_t *s, float d, float dmin, float *scale, float *min) {
    for (int j = 0; j < 4; j++) {
        scale[j] = d * (float)(s[j] & 63);
        min[j] = dmin * (float)(s[j + 4] & 63);
        scale[j + 4] = d * (float)((s[j + 8] & 15) | s[j] >> 6 << 4);
        min[j + 4] = dmin * (float)(s[j + 8] >> 4 | s[j + 4] >> 6 << 4);
    }
}

static void q4_k_blocks(const uint8_t *restrict b, int64_t blocks, float *restrict out) {
    for (; blocks > 0; blocks--, b += 144, out += N) {
        float sc[8], mn[8];
        six_bits(b + 4, fmt_f16(b), fmt_f16(b + 2), sc, mn);
        for (int i = 0; i < 4; i++) {
            const uint8_t *q = b + 16 + 32 * i;
            float *lo = out + 64 * i, *hi = lo + 32;
            for (int l = 0; l < 32; l++) lo[l] = sc[2 * i] * (float)(q[l] & 15) - mn[2 * i];
            for (int l = 0; l < 32; l++) hi[l] = sc[2 * i + 1] * (float)(q[l] >> 4) - mn[2 * i + 1];
        }
    }
}

static void q5_k_blocks(const uint8_t *restrict b, int64_t blocks, float *restrict out) {
    for (; blocks > 0; blocks--, b += 176, out += N) {
        float sc[8], mn[8];
        six_bits(b + 4, fmt_f16(b), fmt_f16(b + 2), sc, mn);
        const uint8_t *qh = b + 16;
        for (int i = 0; i < 4; i++) {
            const uint8_t *q = b + 48 + 32 * i, bit = (uint8_t)(1 << 2 * i), bit2 = (uint8_t)(2 << 2 * i);
            float *lo = out + 64 * i, *hi = lo + 32;
            uint8_t v[64];
            for (int l = 0; l < 32; l++) v[l] = (uint8_t)((q[l] & 15) | ((qh[l] & bit) ? 16 : 0));
            for (int l = 0; l < 32; l++) v[l + 32] = (uint8_t)(q[l] >> 4 | ((qh[l] & bit2) ? 16 : 0));
            for (int l = 0; l < 32; l++) lo[l] = sc[2 * i] * (float)v[l] - mn[2 * i];
            for (int l = 0; l < 32; l++) hi[l] = sc[2 * i + 1] * (float)v[l + 32] - mn[2 * i + 1];
        }
    }
}

/* Each half of 128 elements has four runs of 32: run r takes a nibble of ql (low for 0 and 1, high for 2 and 3) and
 * bits 2r, 2r + 1 of qh. */
static void q6_k_blocks(const uint8_t *restrict b, int64_t blocks, float *restrict out) {
    for (; blocks > 0; blocks--, b += 210, out += N) {
        const float d = fmt_f16(b + 208);
        int8_t v[N];
        for (int half = 0; half < 2; half++) {
            const uint8_t *ql = b + 64 * half, *qh = b + 128 + 32 * half;
            int8_t *q = v + 128 * half;
            for (int l = 0; l < 32; l++) q[l] = (int8_t)(((ql[l] & 15) | (qh[l] & 3) << 4) - 32);
            for (int l = 0; l < 32; l++) q[l + 32] = (int8_t)(((ql[l + 32] & 15) | (qh[l] & 12) << 2) - 32);
            for (int l = 0; l < 32; l++) q[l + 64] = (int8_t)((ql[l] >> 4 | (qh[l] & 48)) - 32);
            for (int l = 0; l < 32; l++) q[l + 96] = (int8_t)((ql[l + 32] >> 4 | (qh[l] & 192) >> 2) - 32);
        }
        for (int i = 0; i < 8;
             i++) { /* two sub-blocks at a time: gcc vectorises a loop over 32, it unrolls one over 16 */
            const float s0 = d * (float)(int8_t)b[192 + 2 * i], s1 = d * (float)(int8_t)b[193 + 2 * i];
            float scale[32];
            for (int l = 0; l < 16; l++) scale[l] = s0, scale[l + 16] = s1;
            for (int l = 0; l < 32; l++) out[32 * i + l] = scale[l] * (float)v[32 * i + l];
        }
    }
}

void fmt_q4_k_dequant(const weight *w, int64_t at, int64_t n, float *out) { fmt_span(w, at, n, out, q4_k_blocks); }
void fmt_q5_k_dequant(const weight *w, int64_t at, int64_t n, float *out) { fmt_span(w, at, n, out, q5_k_blocks); }
void fmt_q6_k_dequant(const weight *w, int64_t at, int64_t n, float *out) { fmt_span(w, at, n, out, q6_k_blocks); }
