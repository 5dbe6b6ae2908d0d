/* Products with operands rounded to bf16 (nearest even) and sums in fp32: the overlays "avx512-bf16" and "amx" of the
 * avx512 backend. x86_64 only; every file here is compiled with flags of its own and runs only behind backend_open's
 * checks.
 *
 * The order of a sum, which fixes its bits for any block, batch and number of threads: an output starts at the value in
 * y and takes k = 0, 1, ... in steps counted from k = 0, the last one padded with zeros. amx          a step is 32 of k
 * (TDPBF16PS): two fma chains from 0, over even and over odd k; y += (even + odd) avx512-bf16  a step is 2 of k
 * (VDPBF16PS): y = fma(a[k], b[k], fma(a[k+1], b[k+1], y)) Both flush subnormals to zero. They differ from each other
 * in the last bits, as summing in another order does. Operands and blocks of k do not depend on the batch, so neither
 * does a row's result.
 *
 * Both read the same panels, of tiles of 512 values (1 KB): A by 16 rows, [k / 32][16 rows][32 k]; B by 16 columns,
 * [k / 32][16 pairs of k][16 columns][2 k]. What lies beyond the matrix is zero. */
#ifndef PEFT_KERNELS_BF16_BF16_H
#define PEFT_KERNELS_BF16_BF16_H

#include "kernels/cpu/simd.h"
#include <stdbool.h>

enum { TILE = 16, STEP = 32, TILE_VALUES = TILE * STEP };

/* One block of at most 2 x 2 tiles: c[m, n] (+)= A B. a1 and b1: the second panels, any address where m or n <= 16. */
typedef struct bf16_block {
    int64_t steps; /* of STEP in k */
    const uint16_t *a0, *a1, *b0, *b1;
    float *c;
    int64_t cs;
    int m, n;   /* 1 .. 32 */
    bool fresh; /* c = instead of c += */
} bf16_block;

typedef struct bf16_engine {
    void (*begin)(void); /* of a thread's products: the tile registers are its own */
    void (*block)(const bf16_block *b);
    void (*end)(void);
    int macs; /* multiply-adds a cycle, roughly: shapes the split over threads only */
} bf16_engine;

extern const bf16_engine bf16_amx, bf16_avx512;

/* ---- panels ---- */

enum {
    NC_MAX = 2048,
    KC_MAX = 2048,
    PACK_TMP = KC_MAX + TILE / 2 * (KC_MAX + 2 * STEP)
}; /* floats of a packer's tmp */

/* A panel of rows [0, m), m <= 16, and k [0, kc) of x: x(i, k) = x[i * ld + k], or x[k * ld + i] */
void bf16_pack_rows(uint16_t *dst, const float *x, int64_t ld, int64_t m, int64_t kc);
void bf16_pack_cols(uint16_t *dst, const float *x, int64_t ld, int64_t m, int64_t kc);

/* B panels of columns [n0, n0 + nc), sliver after sliver of 16: B(k, j) = W[j][k], W[k][j], or b[k * ld + j] */
typedef struct bf16_source {
    const weight *w;
    const float *b;
    int64_t ld;
} bf16_source;
typedef void bf16_pack_fn(uint16_t *dst, float *tmp, const bf16_source *s, int64_t k0, int64_t kc, int64_t n0,
                          int64_t nc);
bf16_pack_fn bf16_pack_fwd, bf16_pack_bwd, bf16_pack_dense;
double bf16_pack_cost(const weight *w); /* cycles a value, roughly */

/* ---- products ---- */

typedef enum { A_ROWS, A_COLS, A_PACKED } bf16_side;

/* C[m, n] (+)= A[m, k] B[k, n] */
typedef struct bf16_gemm {
    int64_t m, n, k;
    bf16_side side;
    const float *a; /* A(i, k) = a[i * as + k], or a[k * as + i] for A_COLS */
    int64_t as;
    const uint16_t *packed; /* A_PACKED: panels, `panel` values apart */
    int64_t panel;
    float *c;
    int64_t cs;
    bool fresh;
    bf16_pack_fn *pack;
    bf16_source source;
    int64_t k0, n0; /* where B(0, 0) lies in the source */
    double pack_cost;
} bf16_gemm;

/* memory of one thread's product; 64-byte aligned */
typedef struct bf16_room {
    uint16_t *a, *b;
    int64_t a_values, b_values; /* multiples of TILE_VALUES */
    float *tmp;                 /* PACK_TMP floats */
} bf16_room;

/* One thread's part; the engine has begun. Columns from a multiple of 16. */
void bf16_range(const bf16_engine *e, const bf16_gemm *g, const bf16_room *room, int64_t m0, int64_t m1, int64_t n0,
                int64_t n1);

void bf16_weight_fwd(const bf16_engine *e, kctx *c, mat y, mat x, const weight *w);
void bf16_weight_bwd(const bf16_engine *e, kctx *c, mat dx, mat dy, const weight *w);
void bf16_proj_fwd(const bf16_engine *e, kctx *c, const proj_fwd_args *p);
void bf16_weight_grad(const bf16_engine *e, kctx *c, mat dw, mat dy, mat x);
void bf16_head_loss(const bf16_engine *e, kctx *c, float *logprob, mat dh, mat h, const weight *w,
                    const int32_t *target);

/* ---- what packers and softmax share ---- */

static inline int64_t at_most(int64_t a, int64_t b) { return a < b ? a : b; }
static inline int64_t steps_of(int64_t k) { return (k + STEP - 1) / STEP; }
static inline int64_t up_to(int64_t a, int64_t unit) { return (a + unit - 1) / unit * unit; }

/* 32 values in order; the first 16 are lo */
static inline __m512i pair_bf16(__m512 lo, __m512 hi) { return (__m512i)_mm512_cvtne2ps_pbh(hi, lo); }

/* lane i: (even[i], odd[i]) */
static inline __m512i weave_bf16(__m512 even, __m512 odd) {
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6,
                                           21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_permutexvar_epi16(order, pair_bf16(even, odd));
}

#endif
