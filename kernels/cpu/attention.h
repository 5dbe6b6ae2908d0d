/* What the forward and the backward pass of attention share: packed blocks of keys, and products in which every row has
 * its own range of the chain, so that a masked pair takes no part at all. */
#ifndef PEFT_KERNELS_CPU_ATTENTION_H
#define PEFT_KERNELS_CPU_ATTENTION_H

#include "kernels/cpu/gemm_tile.h"
#include "kernels/ref/ref.h"

enum { WIDE = 2 * VN, BLOCK = ATTN_BLOCK };

/* The tiles of gemm_tile.h without its fetching, for here all operands are packed and in cache: dot begins at 0, row
 * and col add to what stands in c. */
typedef void packed_tile(int64_t k, const float *a, int64_t as, const float *b, int64_t bs, float *c, int64_t cs);

#define LOAD_0(i) vn c##i = vn_set1(0), d##i = vn_set1(0);
#define TILE_HEAD(name, m)                                                                                             \
    static void name##_##m(int64_t k, const float *restrict a, int64_t as, const float *restrict b, int64_t bs,        \
                           float *restrict c, int64_t cs)
#define PACKED_ROW(name, m, load)                                                                                      \
    TILE_HEAD(name, m) {                                                                                               \
        const float *p0 = a, *p4 = m > 4 ? a + 4 * as : a, *p8 = m > 8 ? a + 8 * as : a;                               \
        const float *p12 = m > 12 ? a + 12 * as : a;                                                                   \
        int64_t as3 = 3 * as;                                                                                          \
        EACH##m(load) UNROLL for (; k > 0; k--) {                                                                      \
            HIDE(p0);                                                                                                  \
            if (m > 4) HIDE(p4);                                                                                       \
            if (m > 8) HIDE(p8);                                                                                       \
            if (m > 12) HIDE(p12);                                                                                     \
            HIDE(as3);                                                                                                 \
            LOADB_2 EACH##m(ROW_2) p0++, p4++, p8++, p12++, b += bs;                                                   \
        }                                                                                                              \
        EACH##m(SAVE_2)                                                                                                \
    }
#define PACKED_COL(name, m)                                                                                            \
    TILE_HEAD(name, m) {                                                                                               \
        EACH##m(LOAD_2) UNROLL for (; k > 0; k--) { LOADB_2 EACH##m(COL_2) a += as, b += bs; }                         \
        EACH##m(SAVE_2)                                                                                                \
    }
#define UNROLL _Pragma("GCC unroll 2")

#if defined(ISA_avx512)
#define HEIGHTS(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14)
#else
#define HEIGHTS(X) X(1) X(2) X(3) X(4) X(5) X(6)
#endif
#define DEFINE_TILES(m) PACKED_ROW(dot, m, LOAD_0) PACKED_ROW(row, m, LOAD_2) PACKED_COL(col, m)
HEIGHTS(DEFINE_TILES)

#define NAME_DOT(m) [m] = dot_##m,
#define NAME_ROW(m) [m] = row_##m,
#define NAME_COL(m) [m] = col_##m,
static packed_tile *const dot_tiles[TILE_ROWS + 1] = {HEIGHTS(NAME_DOT)};
static packed_tile *const row_tiles[TILE_ROWS + 1] = {HEIGHTS(NAME_ROW)};
static packed_tile *const col_tiles[TILE_ROWS + 1] = {HEIGHTS(NAME_COL)};

/* A matrix A(i, k) = at[i * row + k * step] for tiles of kind `tiles`; stride is the one of both that is not 1 */
typedef struct {
    packed_tile *const *tiles;
    const float *at;
    int64_t row, step, stride;
} left;

static inline left left_rows(const float *at, int64_t ld) { return (left){row_tiles, at, ld, 1, ld}; }
static inline left left_cols(const float *at, int64_t ld) { return (left){col_tiles, at, 1, ld, ld}; }

static inline int round_up(int n, int to) { return (n + to - 1) / to * to; }
static inline int clip(int64_t n, int64_t top) { return (int)(n < 0 ? 0 : n > top ? top : n); }

/* c[rows, cols] += A B, where row i takes k in [lo[i], hi[i]) only; lo and hi do not fall with i. cols is a multiple of
 * WIDE */
static inline void chain_rows(left a, int rows, const int *lo, const int *hi, const float *b, int64_t ldb, float *c,
                              int cols) {
    for (int i = 0; i < rows; i += TILE_ROWS) {
        int end = i + TILE_ROWS < rows ? i + TILE_ROWS : rows, from = i, to = i;
        for (int k = lo[i], next; k < hi[end - 1]; k = next) { /* rows [from, to) share [k, next) */
            while (hi[from] <= k) from++;
            while (to < end && lo[to] <= k) to++;
            next = to < end && lo[to] < hi[from] ? lo[to] : hi[from];
            if (from >= to) {
                next = lo[to];
                continue;
            }
            const float *at = a.at + from * a.row + k * a.step;
            for (int j = 0; j < cols; j += WIDE)
                a.tiles[to - from](next - k, at, a.stride, b + k * ldb + j, ldb, c + (int64_t)from * cols + j, cols);
        }
    }
}

/* s[rows, BLOCK] = x y^T over dim features, x [rows, ld], yt [dim, BLOCK]; only near the columns [lo[i], hi[i]) */
static inline void scores(float *s, const float *x, int64_t ld, int rows, const int *lo, const int *hi, const float *yt,
                          int dim) {
    for (int i = 0; i < rows; i += TILE_ROWS) {
        int m = rows - i < TILE_ROWS ? rows - i : TILE_ROWS;
        for (int j = lo[i] / WIDE * WIDE; j < hi[i + m - 1]; j += WIDE)
            dot_tiles[m](dim, x + i * ld, ld, yt + j, BLOCK, s + i * BLOCK + j, BLOCK);
    }
}

/* Asks for features [column, column + dim) of a row ahead of use. A head's rows lie far apart, where no prefetcher of
 * the machine follows; waiting for them cost a quarter of the backward pass. */
static inline void fetch(mat m, int64_t row, int64_t column, int dim) {
    if (row >= m.rows) return;
    const float *p = mat_row(m, row) + column;
    for (int d = 0; d < dim; d += 16) __builtin_prefetch(p + d);
}

/* dst[d, BLOCK] = transposed src[rows, dim] */
static inline void pack_transposed(float *dst, const float *src, int64_t ld, int rows, int dim) {
    int full = rows / VN * VN, deep = dim / VN * VN;
    for (int i = 0; i < full; i += VN) {
        for (int d = 0; d < deep; d += VN) vn_transpose(dst + d * BLOCK + i, BLOCK, src + i * ld + d, ld);
        for (int d = deep; d < dim; d++)
            for (int r = i; r < i + VN; r++) dst[d * BLOCK + r] = src[r * ld + d];
    }
    for (int i = full; i < rows; i++)
        for (int d = 0; d < dim; d++) dst[d * BLOCK + i] = src[i * ld + d];
}

/* dst[rows, wide] = src[rows, dim] and zeros: contiguous, whatever the stride of src does to the cache's sets */
static inline void pack_rows(float *dst, int wide, const float *src, int64_t ld, int rows, int dim) {
    for (int i = 0; i < rows; i++)
        for (int d = 0; d < wide; d += 16)
            v16_store(dst + i * wide + d, d + 16 <= dim ? v16_load(src + i * ld + d)
                                          : d < dim     ? v16_load_n(src + i * ld + d, dim - d)
                                                        : v16_zero());
}

#endif
