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

/* c[rows, cols] += A B, where row i takes k in [lo[i], hi[i]) only; lo and hi do not fall with i, cols is a multiple of
 * WIDE. */
typedef struct {
    left a;
    const int *lo, *hi;
    const float *b;
    int64_t ldb;
    float *c;
    int cols;
} product;

/* rows [from, to) and k in [begin, end), which all of them take */
static inline void chain_piece(const product *p, int from, int to, int begin, int end) {
    const float *a = p->a.at + from * p->a.row + begin * p->a.step, *b = p->b + begin * p->ldb;
    for (int j = 0; j < p->cols; j += WIDE)
        p->a.tiles[to - from](end - begin, a, p->a.stride, b + j, p->ldb, p->c + (int64_t)from * p->cols + j, p->cols);
}

/* rows [from, to) in their own ranges of k, as far as they lie in [begin, end), by pieces that some rows share */
static inline void chain_ragged(const product *p, int from, int to, int begin, int end) {
    int k = p->lo[from] > begin ? p->lo[from] : begin, last = p->hi[to - 1] < end ? p->hi[to - 1] : end, upto = from;
    for (int next; k < last; k = next) {
        while (p->hi[from] <= k) from++;
        while (upto < to && p->lo[upto] <= k) upto++;
        next = p->hi[from] < last ? p->hi[from] : last;
        if (upto < to && p->lo[upto] < next) next = p->lo[upto];
        if (from < upto) chain_piece(p, from, upto, k, next);
    }
}

/* The rows of a tile go together where all take part, and by fours where the ranges fray: fewer accumulators are loaded
 * and stored for a step or two. */
static inline void chain_rows(left a, int rows, const int *lo, const int *hi, const float *b, int64_t ldb, float *c,
                              int cols) {
    enum { FEW = 4 };
    const product p = {a, lo, hi, b, ldb, c, cols};
    for (int i = 0; i < rows; i += TILE_ROWS) {
        int end = i + TILE_ROWS < rows ? i + TILE_ROWS : rows, begin = lo[end - 1], until = hi[i];
        if (begin >= until) begin = until = BLOCK; /* nothing in common: all of it is ragged */
        for (int g = i; g < end; g += FEW) chain_ragged(&p, g, g + FEW < end ? g + FEW : end, 0, begin);
        if (begin < until) chain_piece(&p, i, end, begin, until);
        for (int g = i; g < end; g += FEW) chain_ragged(&p, g, g + FEW < end ? g + FEW : end, until, BLOCK);
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
