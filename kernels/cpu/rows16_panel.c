/* Panels of B out of packed rows (rows16.h): a lane is a row of W already, so a column of the panel is one shift and
 * mask of the codes and the arithmetic of the format's dequantiser, to its bits. */
#include "kernels/cpu/gemm.h"
#include "kernels/fmt.h"
#include "kernels/rows16.h"

/* 32 columns of sixteen rows at unit u, block `in` of it: out[k * NR + lane] */
typedef void block_fn(float *out, const uint8_t *u, int64_t in);

static inline v16i vector(const uint8_t *p) { return v16i_load((const int32_t *)(const void *)p); }
static inline v16 halves(const uint8_t *p) { return v16_from_f16((const uint16_t *)(const void *)p); }

#define FIELD(x, at, mask) v16i_and(v16i_shr(x, at), v16i_set1(mask))
#define PUT(k, v) v16_store(out + (k)*NR, v);

/* ---- codes: byte i of vector j ---- */

#define LOW4(j, i) FIELD(r##j, 8 * i, 15)
#define HIGH4(j, i) FIELD(r##j, 8 * i + 4, 15)
#define LOW5(j, i) v16i_or(LOW4(j, i), v16i_shl(FIELD(bits, 8 * i + j, 1), 4))
#define HIGH5(j, i) v16i_or(HIGH4(j, i), v16i_shl(FIELD(bits, 8 * i + j + 4, 1), 4))
#define LOW6(j, i) v16i_or(LOW4(j, i), v16i_shl(FIELD(b0, 8 * i + 2 * j, 3), 4))
#define HIGH6(j, i) v16i_or(HIGH4(j, i), v16i_shl(FIELD(b1, 8 * i + 2 * j, 3), 4))

#define BYTES(X, j) X(j, 0) X(j, 1) X(j, 2) X(j, 3)
#define CODES(X) BYTES(X, 0) BYTES(X, 1) BYTES(X, 2) BYTES(X, 3)
#define UNPACK(id)                                                                                                     \
    const uint8_t *p = u + ROWS16_##id##_CODES + in * 256;                                                             \
    const v16i r0 = vector(p), r1 = vector(p + 64), r2 = vector(p + 128), r3 = vector(p + 192);
#define FIVE(id) const v16i bits = vector(u + ROWS16_##id##_BITS + in * 64);
#define SIX(id)                                                                                                        \
    const uint8_t *high = u + ROWS16_##id##_BITS + in * 128;                                                           \
    const v16i b0 = vector(high), b1 = vector(high + 64);

/* ---- values ---- */

#define TIMES(q, bias, d) v16_mul(d, v16_from_i(v16i_sub(q, v16i_set1(bias))))
#define SCALE_D const v16 d = halves(u + in * 32);
#define SCALE_DM const v16 d = halves(u), m = halves(u + 32);
#define SCALE_K                                                                                                        \
    const uint8_t *sub = u + 64 + in * 16;                                                                             \
    const v16 d = v16_mul(halves(u), v16_from_u8(sub)), m = v16_mul(halves(u + 32), v16_from_u8(sub + 128));
#define SCALE_6K                                                                                                       \
    const uint8_t *sub = u + 32 + in * 32;                                                                             \
    const v16 d = v16_mul(halves(u), v16_from_s8(sub)), e = v16_mul(halves(u), v16_from_s8(sub + 16));

#define Q4_0(j, i) PUT(4 * j + i, TIMES(LOW4(j, i), 8, d)) PUT(16 + 4 * j + i, TIMES(HIGH4(j, i), 8, d))
static void block_q4_0(float *out, const uint8_t *u, int64_t in) { UNPACK(Q4_0) SCALE_D CODES(Q4_0) }

#define Q5_0(j, i) PUT(4 * j + i, TIMES(LOW5(j, i), 16, d)) PUT(16 + 4 * j + i, TIMES(HIGH5(j, i), 16, d))
static void block_q5_0(float *out, const uint8_t *u, int64_t in) { UNPACK(Q5_0) FIVE(Q5_0) SCALE_D CODES(Q5_0) }

#define PLUS(q) v16_add(v16_mul(d, v16_from_i(q)), m)
#define Q4_1(j, i) PUT(4 * j + i, PLUS(LOW4(j, i))) PUT(16 + 4 * j + i, PLUS(HIGH4(j, i)))
static void block_q4_1(float *out, const uint8_t *u, int64_t in) { UNPACK(Q4_1) SCALE_DM CODES(Q4_1) }

#define Q5_1(j, i) PUT(4 * j + i, PLUS(LOW5(j, i))) PUT(16 + 4 * j + i, PLUS(HIGH5(j, i)))
static void block_q5_1(float *out, const uint8_t *u, int64_t in) { UNPACK(Q5_1) FIVE(Q5_1) SCALE_DM CODES(Q5_1) }

#define MINUS(q) v16_sub(v16_mul(d, v16_from_i(q)), m)
#define Q4_K(j, i) PUT(4 * j + i, MINUS(LOW4(j, i))) PUT(16 + 4 * j + i, MINUS(HIGH4(j, i)))
static void block_q4_k(float *out, const uint8_t *u, int64_t in) { UNPACK(Q4_K) SCALE_K CODES(Q4_K) }

#define Q5_K(j, i) PUT(4 * j + i, MINUS(LOW5(j, i))) PUT(16 + 4 * j + i, MINUS(HIGH5(j, i)))
static void block_q5_k(float *out, const uint8_t *u, int64_t in) { UNPACK(Q5_K) FIVE(Q5_K) SCALE_K CODES(Q5_K) }

#define Q6_K(j, i) PUT(4 * j + i, TIMES(LOW6(j, i), 32, d)) PUT(16 + 4 * j + i, TIMES(HIGH6(j, i), 32, e))
static void block_q6_k(float *out, const uint8_t *u, int64_t in) { UNPACK(Q6_K) SIX(Q6_K) SCALE_6K CODES(Q6_K) }

#define IQ4_NL(j, i)                                                                                                   \
    PUT(4 * j + i, v16_mul(d, v16_lookup(LOW4(j, i), t))) PUT(16 + 4 * j + i, v16_mul(d, v16_lookup(HIGH4(j, i), t)))
static void block_iq4_nl(float *out, const uint8_t *u, int64_t in) {
    float t[16];
    for (int i = 0; i < 16; i++) t[i] = (float)fmt_iq4_nl_table[i];
    UNPACK(IQ4_NL) SCALE_D CODES(IQ4_NL)
}

#define NF4(j, i)                                                                                                      \
    PUT(8 * j + 2 * i, v16_mul(v16_lookup(HIGH4(j, i), nf4_codes), d))                                                 \
    PUT(8 * j + 2 * i + 1, v16_mul(v16_lookup(LOW4(j, i), nf4_codes), d))
static void block_nf4(float *out, const uint8_t *u, int64_t in) {
    const v16 d = v16_load((const float *)(const void *)u);
    UNPACK(NF4) CODES(NF4)
}

#define EIGHT(j, i) PUT(4 * j + i, TIMES(FIELD(r, 8 * i, 255), 128, d))
#define EIGHT_OF(j)                                                                                                    \
    {                                                                                                                  \
        const v16i r = vector(p + 64 * j);                                                                             \
        BYTES(EIGHT, j)                                                                                                \
    }
static void block_q8_0(float *out, const uint8_t *u, int64_t in) {
    const uint8_t *p = u + ROWS16_Q8_0_CODES + in * 512;
    SCALE_D EIGHT_OF(0) EIGHT_OF(1) EIGHT_OF(2) EIGHT_OF(3) EIGHT_OF(4) EIGHT_OF(5) EIGHT_OF(6) EIGHT_OF(7)
}

static const struct {
    block_fn *block;
    int unit, bytes;
} kinds[FORMATS] = {
#define ROW(id, name) [FMT_##id] = {block_##name, ROWS16_##id##_UNIT / ROWS16_BLOCK, ROWS16_##id##_BYTES}
    ROW(Q4_0, q4_0), ROW(Q4_1, q4_1), ROW(Q5_0, q5_0), ROW(Q5_1, q5_1),     ROW(Q8_0, q8_0),
    ROW(NF4, nf4),   ROW(Q4_K, q4_k), ROW(Q5_K, q5_k), ROW(IQ4_NL, iq4_nl), ROW(Q6_K, q6_k),
};

enum { PART = 16, AHEAD = 2048 };

/* the columns of the panel that are one sliver of W */
static void pack_sliver(float *d, const rows16 *r, int64_t s, int64_t k0, int64_t kc) {
    const int64_t unit = kinds[r->kind].unit, bytes = kinds[r->kind].bytes;
    for (int64_t k = 0; k < kc; k += ROWS16_BLOCK) {
        const int64_t b = (k0 + k) / ROWS16_BLOCK;
        const uint8_t *u = rows16_sliver(r, s) + b / unit * bytes;
        for (int64_t i = 0; i < bytes / unit; i += 64) __builtin_prefetch(u + AHEAD + b % unit * (bytes / unit) + i);
        kinds[r->kind].block(d + k * NR, u, b % unit);
    }
}

void ISA(rows16_panel)(float *dst, int64_t sliver, const rows16 *r, int64_t k0, int64_t kc, int64_t n0, int64_t nc) {
    for (int64_t j = 0; j < nc; j += NR)
        for (int64_t half = 0; half < NR; half += PART) {
            float *d = dst + j / NR * sliver + half;
            const int64_t s = (n0 + j + half) / PART;
            if (s < r->slivers && j + half < nc)
                pack_sliver(d, r, s, k0, kc);
            else
                for (int64_t k = 0; k < kc; k++) v16_store(d + k * NR, v16_zero());
        }
}

bool ISA(rows16_serves)(const rows16 *r, int64_t k0, int64_t kc, int64_t n0) {
    return r && !r->lossy && k0 % ROWS16_BLOCK == 0 && kc % ROWS16_BLOCK == 0 && n0 % PART == 0;
}
