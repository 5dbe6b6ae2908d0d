/* Blocks by VDPBF16PS: a lane of B is a pair of k of one column, a lane of A the same pair of one row, broadcast.
 * The accumulators have names and are no array, because gcc keeps an array in memory. */
#include "kernels/bf16/bf16.h"

#define EACH1(X) X(0)
#define EACH2(X) EACH1(X) X(1)
#define EACH4(X) EACH2(X) X(2) X(3)
#define EACH8(X) EACH4(X) X(4) X(5) X(6) X(7)

#define LOAD(i)                                                                                                        \
    __m512 c##i = _mm512_maskz_loadu_ps(m0, c + i * cs), d##i = _mm512_maskz_loadu_ps(m1, c + i * cs + TILE);
#define SAVE(i)                                                                                                        \
    _mm512_mask_storeu_ps(c + i * cs, s0, c##i);                                                                       \
    _mm512_mask_storeu_ps(c + i * cs + TILE, s1, d##i);
#define PRODUCT(i)                                                                                                     \
    {                                                                                                                  \
        int32_t pair;                                                                                                  \
        memcpy(&pair, a + i * STEP + k * 2, sizeof pair);                                                              \
        const __m512bh p##i = (__m512bh)_mm512_set1_epi32(pair);                                                       \
        c##i = _mm512_dpbf16_ps(c##i, p##i, x0), d##i = _mm512_dpbf16_ps(d##i, p##i, x1);                              \
    }
/* m0, m1: lanes of c that are loaded; s0, s1: that are stored */
#define ROWS(r)                                                                                                        \
    static void rows_##r(const bf16_block *b, const uint16_t *a, float *c) {                                           \
        const int64_t cs = b->cs;                                                                                      \
        const __mmask16 s0 = v16_first(b->n < TILE ? b->n : TILE), s1 = v16_first(b->n > TILE ? b->n - TILE : 0);      \
        const __mmask16 m0 = b->fresh ? 0 : s0, m1 = b->fresh ? 0 : s1;                                                \
        const uint16_t *b0 = b->b0, *b1 = b->n > TILE ? b->b1 : b->b0;                                                 \
        EACH##r(LOAD) for (int64_t s = 0; s < b->steps; s++) {                                                         \
            for (int k = 0; k < TILE; k++) {                                                                           \
                const __m512bh x0 = (__m512bh)_mm512_loadu_si512(b0 + k * STEP);                                       \
                const __m512bh x1 = (__m512bh)_mm512_loadu_si512(b1 + k * STEP);                                       \
                EACH##r(PRODUCT)                                                                                       \
            }                                                                                                          \
            a += TILE_VALUES, b0 += TILE_VALUES, b1 += TILE_VALUES;                                                    \
        }                                                                                                              \
        EACH##r(SAVE)                                                                                                  \
    }
ROWS(1)
ROWS(2)
ROWS(4)
ROWS(8)

static void block(const bf16_block *b) {
    for (int i = 0; i < b->m;) {
        const uint16_t *a = (i < TILE ? b->a0 : b->a1) + i % TILE * STEP;
        float *c = b->c + i * b->cs;
        const int left = b->m - i; /* a group of 8 crosses no panel: smaller ones come last */
        if (left >= 8)
            rows_8(b, a, c), i += 8;
        else if (left >= 4)
            rows_4(b, a, c), i += 4;
        else if (left >= 2)
            rows_2(b, a, c), i += 2;
        else
            rows_1(b, a, c), i += 1;
    }
}

static void nothing(void) {}

const bf16_engine bf16_avx512 = {nothing, block, nothing, 30};
