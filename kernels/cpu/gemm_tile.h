/* The register tiles of the matrix product: c[m, n] = from + sum over k of A(i, k) B(k, j), each output one fma chain
 * over k. along rows of A (tile_row):     A(i, k) = a[i * as + k] along columns of A (tile_col):  A(i, k) = a[k * as +
 * i]      packed A (as = m), or a matrix read transposed B(k, j) = b[k * bs + j] The chain of row i starts at from[i *
 * fs + j]: from == c adds to what stands in C, fs == 0 starts all rows alike. m = 1 .. TILE_ROWS, n = 2 VN or VN: one
 * function each, made by the macros below. The accumulators have names and are no array, because gcc keeps an array in
 * memory (measured: a third of the speed). */
#ifndef PEFT_KERNELS_CPU_GEMM_TILE_H
#define PEFT_KERNELS_CPU_GEMM_TILE_H

#include "kernels/cpu/simd.h"

/* next: the C tile that will follow. A tile starts by loading C, which by then has left the cache, so its rows are
 * fetched a few at a time along the way (all at once they would fill the load buffers and stall this tile). */
typedef void tile_fn(int64_t k, const float *a, int64_t as, const float *b, int64_t bs, const float *from, int64_t fs,
                     float *c, int64_t cs, const float *next);

#define EACH1(X) X(0)
#define EACH2(X) EACH1(X) X(1)
#define EACH3(X) EACH2(X) X(2)
#define EACH4(X) EACH3(X) X(3)
#define EACH5(X) EACH4(X) X(4)
#define EACH6(X) EACH5(X) X(5)
#define EACH7(X) EACH6(X) X(6)
#define EACH8(X) EACH7(X) X(7)
#define EACH9(X) EACH8(X) X(8)
#define EACH10(X) EACH9(X) X(9)
#define EACH11(X) EACH10(X) X(10)
#define EACH12(X) EACH11(X) X(11)
#define EACH13(X) EACH12(X) X(12)
#define EACH14(X) EACH13(X) X(13)

#define LOAD_1(i) vn c##i = vn_load(c + i * cs);
#define LOAD_2(i) vn c##i = vn_load(c + i * cs), d##i = vn_load(c + i * cs + VN);
#define FROM_1(i) vn c##i = vn_load(from + i * fs);
#define FROM_2(i) vn c##i = vn_load(from + i * fs), d##i = vn_load(from + i * fs + VN);
#define SAVE_1(i) vn_store(c + i * cs, c##i);
#define SAVE_2(i) vn_store(c + i * cs, c##i), vn_store(c + i * cs + VN, d##i);
#define FMA_1(i, at) c##i = vn_fma(vn_set1(at), b0, c##i);
#define FMA_2(i, at)                                                                                                   \
    {                                                                                                                  \
        vn s##i = vn_set1(at);                                                                                         \
        c##i = vn_fma(s##i, b0, c##i), d##i = vn_fma(s##i, b1, d##i);                                                  \
    }
#define LOADB_1 vn b0 = vn_load(b);
#define LOADB_2 vn b0 = vn_load(b), b1 = vn_load(b + VN);

/* k in as many stretches as a tile has rows, one row fetched before each */
#define FETCH_ROW                                                                                                      \
    for (int line = 0; line < 2 * VN; line += 16) __builtin_prefetch(next + line, 1);                                  \
    next += cs;
#define STRETCHES                                                                                                      \
    const int64_t step = (k + TILE_ROWS - 1) / TILE_ROWS;                                                              \
    for (int64_t left = k; left > 0; left -= step)
#define STRETCH _Pragma("GCC unroll 2") for (int64_t e = left < step ? left : step; e > 0; e--)
#define COL_1(i) FMA_1(i, a[i])
#define COL_2(i) FMA_2(i, a[i])
/* A and B may be columns of wide matrices: a step is then further than the hardware prefetches. */
enum { AHEAD = 16 };
#define FETCH_AHEAD                                                                                                    \
    __builtin_prefetch(a + AHEAD * as);                                                                                \
    for (int line = 0; line < 2 * VN; line += 16) __builtin_prefetch(b + AHEAD * bs + line);
#define TILE_COL(m, n)                                                                                                 \
    static void tile_col_##m##_##n(int64_t k, const float *restrict a, int64_t as, const float *restrict b,            \
                                   int64_t bs, const float *from, int64_t fs, float *c, int64_t cs,                    \
                                   const float *next) {                                                                \
        EACH##m(FROM_##n) STRETCHES {                                                                                  \
            FETCH_ROW STRETCH { FETCH_AHEAD LOADB_##n EACH##m(COL_##n) a += as, b += bs; }                             \
        }                                                                                                              \
        EACH##m(SAVE_##n)                                                                                              \
    }

/* Row i is reached from one of four pointers, four rows apart, plus 0, 1, 2 or 3 times the row length: few enough
 * registers for every row. The empty asm hides from gcc that the pointers step evenly, or it makes one pointer per row
 * and spills them. */
#define HIDE(p) __asm__("" : "+r"(p))
#define ROW_1(i) FMA_1(i, *(ROW_BASE##i))
#define ROW_2(i) FMA_2(i, *(ROW_BASE##i))
#define ROW_BASE0 (p0)
#define ROW_BASE1 (p0 + as)
#define ROW_BASE2 (p0 + 2 * as)
#define ROW_BASE3 (p0 + as3)
#define ROW_BASE4 (p4)
#define ROW_BASE5 (p4 + as)
#define ROW_BASE6 (p4 + 2 * as)
#define ROW_BASE7 (p4 + as3)
#define ROW_BASE8 (p8)
#define ROW_BASE9 (p8 + as)
#define ROW_BASE10 (p8 + 2 * as)
#define ROW_BASE11 (p8 + as3)
#define ROW_BASE12 (p12)
#define ROW_BASE13 (p12 + as)
#define TILE_ROW(m, n)                                                                                                 \
    static void tile_row_##m##_##n(int64_t k, const float *restrict a, int64_t as, const float *restrict b,            \
                                   int64_t bs, const float *from, int64_t fs, float *c, int64_t cs,                    \
                                   const float *next) {                                                                \
        const float *p0 = a, *p4 = m > 4 ? a + 4 * as : a, *p8 = m > 8 ? a + 8 * as : a;                               \
        const float *p12 = m > 12 ? a + 12 * as : a;                                                                   \
        int64_t as3 = 3 * as;                                                                                          \
        EACH##m(FROM_##n) STRETCHES {                                                                                  \
            FETCH_ROW STRETCH {                                                                                        \
                HIDE(p0);                                                                                              \
                if (m > 4) HIDE(p4);                                                                                   \
                if (m > 8) HIDE(p8);                                                                                   \
                if (m > 12) HIDE(p12);                                                                                 \
                HIDE(as3);                                                                                             \
                LOADB_##n EACH##m(ROW_##n) p0++, p4++, p8++, p12++, b += bs;                                           \
            }                                                                                                          \
        }                                                                                                              \
        EACH##m(SAVE_##n)                                                                                              \
    }

#endif
