/* GGUF's IQ4_NL: blocks of 32 elements, an fp16 scale d and 4-bit codes of a table of 16 integers that lie closer where
 * weights are frequent: w = d table[q]. Byte j of qs holds element j in its low and j + 16 in its high nibble, as Q4_0.
 * Source: ggml's reference (quantize_row_iq4_nl_impl without an importance matrix), gguf-py for reading. The product is
 * exact in fp32 (11 + 7 bits).
 *
 * The quantiser tries scales that put the extreme element near one end of the table, and keeps the one whose codes q,
 * with weights x^2, allow the largest (sum w q x)^2 / sum w q^2: the smallest weighted error at its own best scale. */
#include "kernels/fmt.h"
#include <math.h>

enum { N = 32, H = 16, TRIES = 7 };

const int8_t fmt_iq4_nl_table[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

static void iq4_nl_blocks(const uint8_t *restrict b, int64_t blocks, float *restrict out) {
    for (; blocks > 0; blocks--, b += 18, out += N) {
        const float d = fmt_f16(b);
        for (int j = 0; j < H; j++) {
            out[j] = d * (float)fmt_iq4_nl_table[b[2 + j] & 15];
            out[j + H] = d * (float)fmt_iq4_nl_table[b[2 + j] >> 4];
        }
    }
}

void fmt_iq4_nl_dequant(const weight *w, int64_t at, int64_t n, float *out) { fmt_span(w, at, n, out, iq4_nl_blocks); }

/* Index of the nearest entry, the upper one on a tie. NaN: the first. */
static int nearest(float v) {
    const int8_t *t = fmt_iq4_nl_table;
    if (!(v > (float)t[0])) return 0;
    if (v >= (float)t[15]) return 15;
    int i = 0;
    while (v >= (float)t[i + 1]) i++;
    return v - (float)t[i] < (float)t[i + 1] - v ? i : i + 1;
}

/* sums over the block of w q x and w q q, with the codes that scale 1 / id gives */
static void sums(const float *x, float id, float *qx, float *q2) {
    *qx = *q2 = 0;
    for (int j = 0; j < N; j++) {
        const float w = x[j] * x[j], q = (float)fmt_iq4_nl_table[nearest(id * x[j])];
        *qx += w * q * x[j];
        *q2 += w * q * q;
    }
}

static float scale_of(const float *x) {
    float extreme = 0, qx, q2;
    for (int j = 0; j < N; j++)
        if (fabsf(x[j]) > fabsf(extreme)) extreme = x[j];
    if (fabsf(extreme) < 1e-15f) return 0;
    const float first = (float)fmt_iq4_nl_table[0];
    sums(x, 1 / (-extreme / first), &qx, &q2);
    float d = q2 > 0 ? qx / q2 : 0, best = d * qx;
    for (int i = -TRIES; i <= TRIES; i++) {
        sums(x, ((float)i + first) / extreme, &qx, &q2);
        if (q2 > 0 && qx * qx > best * q2) d = qx / q2, best = d * qx;
    }
    return d;
}

void fmt_iq4_nl_quant(const float *x, int64_t n, void *dst) {
    uint8_t *b = dst;
    for (int64_t i = 0; i < n; i += N, b += 18) {
        const float d = scale_of(x + i), id = d != 0 ? 1 / d : 0;
        fmt_put_f16(b, d);
        for (int j = 0; j < H; j++) b[2 + j] = (uint8_t)(nearest(id * x[i + j]) | nearest(id * x[i + j + H]) << 4);
    }
}
