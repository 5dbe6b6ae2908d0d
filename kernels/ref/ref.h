/* The reference backend: every kernel of kernels.def in plain loops, one thread. It is the specification of the bits: a
 * CPU backend computes exactly these operations in exactly this order. fmaf(a, b, c) rounds once, a * b + c twice;
 * nothing else fuses. What backend.h says of all kernels, in detail:
 *
 *   exp        ref_exp below
 *   sum16      16 lanes, lane i adding elements i, i + 16, ... in order from 0; then the tree of ref_tree16
 *   GEMM       one chain over k = 0, 1, ... of y = fmaf(a[k], b[k], y), begun at the value that stands in y
 *   rope       s = sign * sin; y1 = fmaf(-s, x2, x1 * cos), y2 = fmaf(s, x1, x2 * cos)
 *   rmsnorm    rstd = 1 / sqrtf(dot16(x, x) / n + eps), y = (x * rstd) * g
 *     backward t = dy * g, c = ((rstd * rstd) * rstd) * (dot16(t, x) / n), dx = dx + fmaf(rstd, t, -(c * x))
 *   layernorm  mean = sum16(x) / n, e = x - mean, rstd = 1 / sqrtf(dot16(e, e) / n + eps), y = fmaf(e * rstd, g, b),
 *              without b (e * rstd) * g
 *     backward h = (x - mean) * rstd, t = dy * g, dx = dx + rstd * fmaf(-h, dot16(t, h) / n, t - sum16(t) / n)
 *   glu        s = 1 / (1 + exp(-z)), a = gate * s, y = a * up. SiLU: z = gate. GELU, where (1 + tanh u) / 2 is the
 *              sigmoid of 2u: z = gate * fmaf(GELU_B, gate * gate, GELU_A)
 *     backward dup = dy * a, dgate = (dy * up) * (s * fmaf(w, 1 - s, 1)) with w = gate * dz/dgate, which is gate, or
 *              gate * fmaf(3 GELU_B, gate * gate, GELU_A)
 *   sumsq      double lanes, blocks of SUMSQ_BLOCK elements added in order
 *   dropout    dropout_key below
 *   attention  ref_attention.c;  head, loss: ref_loss.c;  adamw: ref_dense.c, ref_adamw8.c
 *
 * A row's chain over keys holds exactly the keys that the row sees: a masked key adds no zero, so that not even an
 * infinite value beyond the row's number can reach it. */
#ifndef PEFT_KERNELS_REF_H
#define PEFT_KERNELS_REF_H

#include "core/num.h"
#include "core/rng.h"
#include "kernels/backend.h"

#include <math.h>

extern const backend backend_ref;

#define K(name, args) void name##_ref args;
#include "kernels/kernels.def"
#undef K

enum { LANES = 16, SUMSQ_BLOCK = 4096 };

#define GELU_A 0x1.988454p+0f /* 2 sqrt(2 / pi) */
#define GELU_B 0x1.2444f2p-4f /* GELU_A * 0.044715 */

/* exp by Cody-Waite reduction, x = n ln 2 + r with |r| <= ln 2 / 2, and a polynomial of degree 6; error below 1 ulp.
 * Below -87.3 the result is 0 (so no subnormals come of it), above 88.7 infinity; NaN stays itself. */
static inline float ref_exp(float x) {
    if (x != x) return x;
    if (x < -87.3f) return 0;
    if (x > 88.7f) return INFINITY;
    float t = fmaf(x, 0x1.715476p+0f, 0x1.8p23f); /* the addition rounds to an integer, left in the low bits of t */
    float n = t - 0x1.8p23f, r = fmaf(n, -0x1.62e4p-1f, x);
    r = fmaf(n, -0x1.7f7d1cp-20f, r);
    float p = 0x1.6a23dp-10f;
    p = fmaf(p, r, 0x1.123a2p-7f);
    p = fmaf(p, r, 0x1.5558f2p-5f);
    p = fmaf(p, r, 0x1.555492p-3f);
    p = fmaf(p, r, 0x1.fffffcp-2f);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);
    return float_of(bits_of(p) + (bits_of(t) << 23));
}

static inline float ref_tree16(const float l[LANES]) {
    float a[8], b[4];
    for (int i = 0; i < 8; i++) a[i] = l[i] + l[i + 8];
    for (int i = 0; i < 4; i++) b[i] = a[i] + a[i + 4];
    return (b[0] + b[2]) + (b[1] + b[3]);
}

static inline float ref_sum16(const float *x, int64_t n) {
    float l[LANES] = {0};
    for (int64_t i = 0; i < n; i++) l[i % LANES] += x[i];
    return ref_tree16(l);
}

static inline float ref_dot16(const float *a, const float *b, int64_t n) {
    float l[LANES] = {0};
    for (int64_t i = 0; i < n; i++) l[i % LANES] = fmaf(a[i], b[i], l[i % LANES]);
    return ref_tree16(l);
}

/* acc continued by the chain over k */
static inline float ref_chain(float acc, const float *a, const float *b, int64_t n) {
    for (int64_t k = 0; k < n; k++) acc = fmaf(a[k], b[k], acc);
    return acc;
}

/* Dropout: feature f of a row is kept iff word f % 4 of Philox(key, sample id, pos << 32 | f / 4) >= p * 2^32. The key
 * is the first two words of Philox(seed, STREAM_DROPOUT, epoch << 32 | site). A kept x becomes x * (1 / (1 - p)). */
static inline uint64_t dropout_key(const dropout *d) {
    rng_block k = rng_philox(d->seed, STREAM_DROPOUT, (uint64_t)d->epoch << 32 | d->site);
    return (uint64_t)k.v[1] << 32 | k.v[0];
}
static inline uint32_t dropout_threshold(float p) {
    double t = (double)p * 0x1p32;
    return t < 0x1p32 - 1 ? (uint32_t)t : UINT32_MAX;
}
static inline uint64_t dropout_counter(int32_t pos, int64_t block) {
    return (uint64_t)(uint32_t)pos << 32 | (uint64_t)block;
}

/* keys [*lo, *hi) that row `number` of its sequence sees */
static inline void attn_span(const attn *a, int64_t number, int64_t *lo, int64_t *hi) {
    *hi = number + 1;
    *lo = a->window > 0 && *hi > a->window ? *hi - a->window : 0;
}

#endif
