/* Quantisers of GGUF's K-quants (layouts: fmt_k.c). Each sub-block is fitted by itself, its scale (and minimum) is
 * rounded to the super-block's integers, the neighbours of these integers are tried with their best levels, and the
 * super-block's fp16 scales are solved again for all levels together as long as the error falls. The error is
 * sum w (x - x')^2 with w = importance, or 1: tests and scripts/parity compare it with ggml's quantisers. */
#include "kernels/fmt.h"
#include "kernels/fmt_fit.h"
#include <math.h>

enum { N = 256, SUBS = 8, SUB = 32, SUBS6 = 16, SUB6 = 16, TURNS = 2 };

static float as_f16(float f) { return f16_to_float(float_to_f16(f)); }

static int near_int(float x, int lo, int hi) {
    const int i = (int)lrintf(x);
    return i < lo ? lo : i > hi ? hi : i;
}

/* A super-block of Q4_K or Q5_K while it is made. */
typedef struct {
    float d, dmin;
    int sc[SUBS], mn[SUBS];
    float q[N], error;
} affine_block;

static float sub_error(const affine_block *b, const float *x, const float *w, int levels, int sc, int mn, float *q) {
    return fit_levels(x, w, SUB, b->d * (float)sc, b->dmin * (float)mn, 0, (float)levels, q);
}

/* Best integers within one step of where the sub-block was, for d and dmin as they are. */
static void settle_sub(affine_block *b, const float *x, const float *w, int levels, int j) {
    const int sc0 = b->sc[j], mn0 = b->mn[j];
    float best = INFINITY, q[SUB];
    for (int sc = sc0 > 0 ? sc0 - 1 : 0; sc <= sc0 + 1 && sc < 64; sc++)
        for (int mn = mn0 > 0 ? mn0 - 1 : 0; mn <= mn0 + 1 && mn < 64; mn++) {
            const float e = sub_error(b, x + SUB * j, w + SUB * j, levels, sc, mn, q);
            if (!(e < best)) continue;
            best = e, b->sc[j] = sc, b->mn[j] = mn;
            memcpy(b->q + SUB * j, q, sizeof q);
        }
    b->error += best;
}

/* d and dmin by least squares over all levels: x ~ d (sc q) - dmin mn. */
static void solve_scales(affine_block *b, const float *x, const float *w) {
    double aa = 0, ab = 0, bb = 0, ax = 0, bx = 0;
    for (int i = 0; i < N; i++) {
        const double a = (double)((float)b->sc[i / SUB] * b->q[i]), m = (double)b->mn[i / SUB], wi = (double)w[i];
        aa += wi * a * a, ab += wi * a * m, bb += wi * m * m, ax += wi * a * (double)x[i], bx += wi * m * (double)x[i];
    }
    const double det = aa * bb - ab * ab;
    double d = aa > 0 ? ax / aa : 0, dmin = 0;
    if (det > 1e-12 * aa * bb) {
        const double both = (bb * ax - ab * bx) / det, min = (ab * ax - aa * bx) / det;
        if (min > 0 && both > 0) d = both, dmin = min;
    }
    b->d = as_f16((float)d), b->dmin = as_f16((float)dmin);
}

static affine_block fit_super(const float *x, const float *w, int levels) {
    affine_block b = {.error = 0};
    fit_line f[SUBS];
    float scale = 0, min = 0;
    for (int j = 0; j < SUBS; j++) {
        f[j] = fit_affine(x + SUB * j, w + SUB * j, SUB, levels, b.q + SUB * j);
        scale = fmaxf(scale, f[j].scale), min = fmaxf(min, f[j].min);
    }
    b.d = as_f16(scale / 63), b.dmin = as_f16(min / 63);
    for (int j = 0; j < SUBS; j++) {
        b.sc[j] = b.d > 0 ? near_int(f[j].scale / b.d, 0, 63) : 0;
        b.mn[j] = b.dmin > 0 ? near_int(f[j].min / b.dmin, 0, 63) : 0;
        settle_sub(&b, x, w, levels, j);
    }
    for (int turn = 0; turn < TURNS; turn++) {
        affine_block next = b;
        next.error = 0;
        solve_scales(&next, x, w);
        for (int j = 0; j < SUBS; j++) settle_sub(&next, x, w, levels, j);
        if (!(next.error < b.error)) break;
        b = next;
    }
    return b;
}

static void put_head(const affine_block *b, uint8_t *dst) {
    fmt_put_f16(dst, b->d), fmt_put_f16(dst + 2, b->dmin);
    uint8_t *s = dst + 4;
    for (int j = 0; j < 4; j++) {
        s[j] = (uint8_t)(b->sc[j] | b->sc[j + 4] >> 4 << 6);
        s[j + 4] = (uint8_t)(b->mn[j] | b->mn[j + 4] >> 4 << 6);
        s[j + 8] = (uint8_t)((b->sc[j + 4] & 15) | (b->mn[j + 4] & 15) << 4);
    }
}

static void put_nibbles(const float *q, uint8_t *qs) {
    for (int i = 0; i < 4; i++)
        for (int l = 0; l < 32; l++)
            qs[32 * i + l] = (uint8_t)(((int)q[64 * i + l] & 15) | ((int)q[64 * i + 32 + l] & 15) << 4);
}

static const float *weights(const float *w, int64_t at) {
    static const float ones[N] = {[0 ... N - 1] = 1};
    return w ? w + at : ones;
}

void fmt_q4_k_quant_weighted(const float *x, const float *w, int64_t n, void *dst) {
    uint8_t *b = dst;
    for (int64_t i = 0; i < n; i += N, b += 144) {
        const affine_block a = fit_super(x + i, weights(w, i), 15);
        put_head(&a, b);
        put_nibbles(a.q, b + 16);
    }
}

void fmt_q5_k_quant_weighted(const float *x, const float *w, int64_t n, void *dst) {
    uint8_t *b = dst;
    for (int64_t i = 0; i < n; i += N, b += 176) {
        const affine_block a = fit_super(x + i, weights(w, i), 31);
        put_head(&a, b);
        for (int l = 0; l < 32; l++) {
            int bits = 0;
            for (int j = 0; j < SUBS; j++) bits |= ((int)a.q[SUB * j + l] >> 4) << j;
            b[16 + l] = (uint8_t)bits;
        }
        put_nibbles(a.q, b + 48);
    }
}

/* ---- Q6_K ---- */

typedef struct {
    float d;
    int sc[SUBS6];
    float q[N], error; /* q from -32 */
} symmetric_block;

static void settle_sub6(symmetric_block *b, const float *x, const float *w, int j) {
    const int sc0 = b->sc[j];
    float best = INFINITY, q[SUB6];
    for (int sc = sc0 > -128 ? sc0 - 1 : -128; sc <= sc0 + 1 && sc < 128; sc++) {
        const float e = fit_levels(x + SUB6 * j, w + SUB6 * j, SUB6, b->d * (float)sc, 0, -32, 31, q);
        if (!(e < best)) continue;
        best = e, b->sc[j] = sc;
        memcpy(b->q + SUB6 * j, q, sizeof q);
    }
    b->error += best;
}

static void solve_scale(symmetric_block *b, const float *x, const float *w) {
    double aa = 0, ax = 0;
    for (int i = 0; i < N; i++) {
        const double a = (double)((float)b->sc[i / SUB6] * b->q[i]), wi = (double)w[i];
        aa += wi * a * a, ax += wi * a * (double)x[i];
    }
    b->d = as_f16(aa > 0 ? (float)(ax / aa) : 0);
}

static symmetric_block fit_super6(const float *x, const float *w) {
    symmetric_block b = {.error = 0};
    float scale[SUBS6], top = 0;
    for (int j = 0; j < SUBS6; j++) {
        scale[j] = fit_symmetric(x + SUB6 * j, w + SUB6 * j, SUB6, 32, b.q + SUB6 * j);
        if (fabsf(scale[j]) > fabsf(top)) top = scale[j];
    }
    b.d = as_f16(top / -128);
    for (int j = 0; j < SUBS6; j++) {
        b.sc[j] = b.d != 0 ? near_int(scale[j] / b.d, -128, 127) : 0;
        settle_sub6(&b, x, w, j);
    }
    for (int turn = 0; turn < TURNS; turn++) {
        symmetric_block next = b;
        next.error = 0;
        solve_scale(&next, x, w);
        for (int j = 0; j < SUBS6; j++) settle_sub6(&next, x, w, j);
        if (!(next.error < b.error)) break;
        b = next;
    }
    return b;
}

void fmt_q6_k_quant_weighted(const float *x, const float *w, int64_t n, void *dst) {
    uint8_t *b = dst;
    for (int64_t i = 0; i < n; i += N, b += 210) {
        const symmetric_block s = fit_super6(x + i, weights(w, i));
        for (int h = 0; h < 2; h++)
            for (int l = 0; l < 32; l++) {
                int q[4];
                for (int k = 0; k < 4; k++) q[k] = (int)s.q[128 * h + 32 * k + l] + 32;
                b[64 * h + l] = (uint8_t)((q[0] & 15) | (q[2] & 15) << 4);
                b[64 * h + 32 + l] = (uint8_t)((q[1] & 15) | (q[3] & 15) << 4);
                b[128 + 32 * h + l] = (uint8_t)(q[0] >> 4 | q[1] >> 4 << 2 | q[2] >> 4 << 4 | q[3] >> 4 << 6);
            }
        for (int j = 0; j < SUBS6; j++) b[192 + j] = (uint8_t)s.sc[j];
        fmt_put_f16(b + 208, s.d);
    }
}

void fmt_q4_k_quant(const float *x, int64_t n, void *dst) { fmt_q4_k_quant_weighted(x, NULL, n, dst); }
void fmt_q5_k_quant(const float *x, int64_t n, void *dst) { fmt_q5_k_quant_weighted(x, NULL, n, dst); }
void fmt_q6_k_quant(const float *x, int64_t n, void *dst) { fmt_q6_k_quant_weighted(x, NULL, n, dst); }
