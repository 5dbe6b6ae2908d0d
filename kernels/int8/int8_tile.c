/* Products of a sliver of sixteen packed rows with a tile of tokens: a block of codes is taken apart into eight vectors
 * of bytes once, w0 .. w7 with four columns each, and meets every token of the tile. The accumulators have names and
 * are no array, because gcc keeps an array in memory. */
#include "kernels/int8/int8_tile.h"
#include "kernels/fmt.h"

#define EACH1(X) X(0)
#define EACH2(X) EACH1(X) X(1)
#define EACH4(X) EACH2(X) X(2) X(3)
#define EACH8(X) EACH4(X) X(4) X(5) X(6) X(7)
#define EACH16(X) EACH8(X) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)

static inline v16i vector(const uint8_t *p) { return v16i_load((const int32_t *)(const void *)p); }
static inline v16 halves(const uint8_t *p) { return v16_from_f16((const uint16_t *)(const void *)p); }
static inline v16i nibble(v16i x, int shift) { return v16i_and(v16i_shr(x, shift), v16i_set1(0x0f0f0f0f)); }

/* Products of few tokens wait for memory, so they ask for what comes AHEAD bytes later; for many it costs next to
 * nothing. */
enum { AHEAD = 2048 };
static inline void fetch(const uint8_t *p, int bytes) {
    for (int i = 0; i < bytes; i += 64) __builtin_prefetch(p + AHEAD + i);
}

/* ---- where block b of a kind lies: its unit u, its place in there ---- */

#define UNIT(id)                                                                                                       \
    enum { EACH = ROWS16_##id##_BYTES * 32 / ROWS16_##id##_UNIT }; /* bytes of a block, on average */                  \
    const int64_t in = b % (ROWS16_##id##_UNIT / 32);                                                                  \
    const uint8_t *u = sliver + b / (ROWS16_##id##_UNIT / 32) * ROWS16_##id##_BYTES;                                   \
    fetch(sliver + b * EACH, EACH);
#define AT_Q4_0 UNIT(Q4_0) const uint8_t *p = u + ROWS16_Q4_0_CODES + in * 256;
#define AT_Q4_1 UNIT(Q4_1) const uint8_t *p = u + ROWS16_Q4_1_CODES + in * 256;
#define AT_Q8_0 UNIT(Q8_0) const uint8_t *p = u + ROWS16_Q8_0_CODES + in * 512;
#define AT_NF4 UNIT(NF4) const uint8_t *p = u + ROWS16_NF4_CODES + in * 256;
#define AT_Q4_K UNIT(Q4_K) const uint8_t *p = u + ROWS16_Q4_K_CODES + in * 256;
#define HIGH(id, bytes)                                                                                                \
    UNIT(id) const uint8_t *p = u + ROWS16_##id##_CODES + in * 256, *high = u + ROWS16_##id##_BITS + in * bytes;
#define AT_Q5_0 HIGH(Q5_0, 64)
#define AT_Q5_1 HIGH(Q5_1, 64)
#define AT_Q5_K HIGH(Q5_K, 64)
#define AT_Q6_K HIGH(Q6_K, 128)

/* ---- its codes ---- */

#define NIBBLES()                                                                                                      \
    const v16i r0 = vector(p), r1 = vector(p + 64), r2 = vector(p + 128), r3 = vector(p + 192);                        \
    v16i w0 = nibble(r0, 0), w1 = nibble(r1, 0), w2 = nibble(r2, 0), w3 = nibble(r3, 0);                               \
    v16i w4 = nibble(r0, 4), w5 = nibble(r1, 4), w6 = nibble(r2, 4), w7 = nibble(r3, 4);
#define PICKED()                                                                                                       \
    NIBBLES()                                                                                                          \
    w0 = v16i_pick(table, w0), w1 = v16i_pick(table, w1), w2 = v16i_pick(table, w2), w3 = v16i_pick(table, w3);        \
    w4 = v16i_pick(table, w4), w5 = v16i_pick(table, w5), w6 = v16i_pick(table, w6), w7 = v16i_pick(table, w7);

/* bit g of every byte to bit 4 */
static inline v16i fifth(v16i w, v16i bits, int g) {
    const v16i x = g < 4 ? v16i_shl(bits, 4 - g) : v16i_shr(bits, g - 4);
    return v16i_or(w, v16i_and(x, v16i_set1(0x10101010)));
}
#define FIVE_BITS()                                                                                                    \
    NIBBLES()                                                                                                          \
    const v16i bits = vector(high);                                                                                    \
    w0 = fifth(w0, bits, 0), w1 = fifth(w1, bits, 1), w2 = fifth(w2, bits, 2), w3 = fifth(w3, bits, 3);                \
    w4 = fifth(w4, bits, 4), w5 = fifth(w5, bits, 5), w6 = fifth(w6, bits, 6), w7 = fifth(w7, bits, 7);

/* bits 2g, 2g + 1 of every byte to bits 4 and 5 */
static inline v16i sixth(v16i w, v16i bits, int g) {
    const v16i x = g < 2 ? v16i_shl(bits, 4 - 2 * g) : v16i_shr(bits, 2 * g - 4);
    return v16i_or(w, v16i_and(x, v16i_set1(0x30303030)));
}
#define SIX_BITS()                                                                                                     \
    NIBBLES()                                                                                                          \
    const v16i b0 = vector(high), b1 = vector(high + 64);                                                              \
    w0 = sixth(w0, b0, 0), w1 = sixth(w1, b0, 1), w2 = sixth(w2, b0, 2), w3 = sixth(w3, b0, 3);                        \
    w4 = sixth(w4, b1, 0), w5 = sixth(w5, b1, 1), w6 = sixth(w6, b1, 2), w7 = sixth(w7, b1, 3);

/* stored with the bias of 128 already */
static inline v16i signed_byte(const uint8_t *p) {
    return DOT_BIAS ? vector(p) : v16i_xor(vector(p), v16i_set1((int32_t)0x80808080u));
}
#define EIGHT_BITS()                                                                                                   \
    const v16i w0 = signed_byte(p), w1 = signed_byte(p + 64), w2 = signed_byte(p + 128), w3 = signed_byte(p + 192);    \
    const v16i w4 = signed_byte(p + 256), w5 = signed_byte(p + 320), w6 = signed_byte(p + 384),                        \
               w7 = signed_byte(p + 448);

/* ---- its scales: d, or d and m ---- */

#define SCALE_D() const v16 d = halves(u + in * 32);
#define SCALE_DM() const v16 d = halves(u), m = halves(u + 32);
#define SCALE_NF4() const v16 d = v16_mul(v16_load((const float *)(const void *)u), v16_set1(INT8_NF4_UNIT));
#define SCALE_K()                                                                                                      \
    const uint8_t *sub = u + 64 + in * 16;                                                                             \
    const v16 d = v16_mul(halves(u), v16_from_u8(sub)), m = v16_mul(halves(u + 32), v16_from_u8(sub + 128));
#define SCALE_6K()                                                                                                     \
    const uint8_t *sub = u + 32 + in * 32;                                                                             \
    const v16 d = v16_mul(halves(u), v16_from_s8(sub)), e = v16_mul(halves(u), v16_from_s8(sub + 16));

/* ---- a token ---- */

#define FOUR(dot, sum, at, wa, wb, wc, wd)                                                                             \
    sum = dot(sum, wa, v16i_set4(q->q + at)), sum = dot(sum, wb, v16i_set4(q->q + at + 4)),                            \
    sum = dot(sum, wc, v16i_set4(q->q + at + 8)), sum = dot(sum, wd, v16i_set4(q->q + at + 12));
#define ADD(y, sum, by) y = v16_fma(v16_from_i(sum), v16_mul(by, v16_set1(q->scale)), y);
#define TOKEN(dot, t)                                                                                                  \
    const int8_block *q = x + t;                                                                                       \
    v16i sum = v16i_set1(q->start[0]);                                                                                 \
    FOUR(dot, sum, 0, w0, w1, w2, w3)                                                                                  \
    FOUR(dot, sum, 16, w4, w5, w6, w7)                                                                                 \
    ADD(y##t, sum, d)
#define SMALL(t)                                                                                                       \
    { TOKEN(v16i_dot, t) }
#define WIDE(t)                                                                                                        \
    { TOKEN(v16i_dot_wide, t) }
#define PLUS_MIN(t)                                                                                                    \
    { TOKEN(v16i_dot, t) y##t = v16_fma(m, v16_set1(q->sum), y##t); }
#define LESS_MIN(t)                                                                                                    \
    { TOKEN(v16i_dot, t) y##t = v16_fnma(m, v16_set1(q->sum), y##t); }
#define TWO_HALVES(t)                                                                                                  \
    {                                                                                                                  \
        const int8_block *q = x + t;                                                                                   \
        v16i sum = v16i_set1(q->start[0]), more = v16i_set1(q->start[1]);                                              \
        FOUR(v16i_dot, sum, 0, w0, w1, w2, w3)                                                                         \
        FOUR(v16i_dot, more, 16, w4, w5, w6, w7)                                                                       \
        ADD(y##t, sum, d)                                                                                              \
        ADD(y##t, more, e)                                                                                             \
    }

/* ---- tiles ---- */

#define LOAD(t) v16 y##t = v16_load_n(y + t * ys, n);
#define SAVE(t) v16_store_n(y + t * ys, y##t, n);
#define NO_TABLE()
#define TABLE(t) const v16i table = v16i_xor(v16i_table(t), v16i_set1((int32_t)(DOT_BIAS * 0x01010101u)));
#define IQ4_NL_TABLE() TABLE(fmt_iq4_nl_table)
#define NF4_TABLE() TABLE(int8_nf4_table)
/* clang-format off */
#define TILE(name, T, before, at, block, scale, token)                                                                 \
    static void name##_##T(const rows16 *r, const uint8_t *sliver, const int8_block *x, float *y, int64_t ys, int n) { \
        before()                                                                                                       \
        EACH##T(LOAD)                                                                                                  \
        for (int64_t b = 0; b < r->blocks; b++, x += T) {                                                              \
            at                                                                                                         \
            block()                                                                                                    \
            scale()                                                                                                    \
            EACH##T(token)                                                                                             \
        }                                                                                                              \
        EACH##T(SAVE)                                                                                                  \
    }
/* clang-format on */

/* Sixteen tokens keep 16 sums, 8 vectors of codes and the scales in 32 registers of 64 bytes. Narrower ones hold four
 * tokens at most, the codes coming from the first-level cache. */
#if defined(ISA_avx512) && !defined(ISA_avx512_simde) /* there it would compile for a minute */
#define EACH_T(X, ...) X(1, __VA_ARGS__) X(2, __VA_ARGS__) X(4, __VA_ARGS__) X(8, __VA_ARGS__) X(16, __VA_ARGS__)
#define ALL(name)                                                                                                      \
    { name##_1, name##_2, name##_4, name##_8, name##_16 }
const int ISA(int8_tile_max) = 16;
#else
#define EACH_T(X, ...) X(1, __VA_ARGS__) X(2, __VA_ARGS__) X(4, __VA_ARGS__)
#define ALL(name)                                                                                                      \
    { name##_1, name##_2, name##_4 }
const int ISA(int8_tile_max) = 4;
#endif

#define TILE_OF(T, name, before, at, block, scale, token) TILE(name, T, before, AT_##at, block, scale, token)
EACH_T(TILE_OF, q4_0, NO_TABLE, Q4_0, NIBBLES, SCALE_D, SMALL)
EACH_T(TILE_OF, q4_1, NO_TABLE, Q4_1, NIBBLES, SCALE_DM, PLUS_MIN)
EACH_T(TILE_OF, q5_0, NO_TABLE, Q5_0, FIVE_BITS, SCALE_D, SMALL)
EACH_T(TILE_OF, q5_1, NO_TABLE, Q5_1, FIVE_BITS, SCALE_DM, PLUS_MIN)
EACH_T(TILE_OF, q8_0, NO_TABLE, Q8_0, EIGHT_BITS, SCALE_D, WIDE)
EACH_T(TILE_OF, iq4_nl, IQ4_NL_TABLE, Q4_0, PICKED, SCALE_D, WIDE)
EACH_T(TILE_OF, nf4, NF4_TABLE, NF4, PICKED, SCALE_NF4, WIDE)
EACH_T(TILE_OF, q4_k, NO_TABLE, Q4_K, NIBBLES, SCALE_K, LESS_MIN)
EACH_T(TILE_OF, q5_k, NO_TABLE, Q5_K, FIVE_BITS, SCALE_K, LESS_MIN)
EACH_T(TILE_OF, q6_k, NO_TABLE, Q6_K, SIX_BITS, SCALE_6K, TWO_HALVES)

int8_tile *const ISA(int8_tiles)[FORMATS][INT8_TILES] = {
    [FMT_Q4_0] = ALL(q4_0), [FMT_Q4_1] = ALL(q4_1),     [FMT_Q5_0] = ALL(q5_0), [FMT_Q5_1] = ALL(q5_1),
    [FMT_Q8_0] = ALL(q8_0), [FMT_IQ4_NL] = ALL(iq4_nl), [FMT_NF4] = ALL(nf4),   [FMT_Q4_K] = ALL(q4_k),
    [FMT_Q5_K] = ALL(q5_k), [FMT_Q6_K] = ALL(q6_k),
};

const int8_kind ISA(int8_kinds)[FORMATS] = {
    [FMT_Q4_0] = {true, .bias = 8},
    [FMT_Q4_1] = {true},
    [FMT_Q5_0] = {true, .bias = 16},
    [FMT_Q5_1] = {true},
    [FMT_Q8_0] = {true, .bias = DOT_BIAS},
    [FMT_IQ4_NL] = {true, .bias = DOT_BIAS},
    [FMT_NF4] = {true, .bias = DOT_BIAS, .odd_even = true},
    [FMT_Q4_K] = {true},
    [FMT_Q5_K] = {true},
    [FMT_Q6_K] = {true, .bias = 32, .halves = true},
};
