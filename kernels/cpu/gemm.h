/* C[m, n] (+)= A_0[m, k_0] B_0[k_0, n] + A_1[m, k_1] B_1[k_1, n] + ... in fp32, each output one fma chain over all k in
 * that order, with every B made panel by panel from any storage.
 *
 * The blocks: k in pieces of at most KC_MAX, which may reach from one term into the next (C carries the chain from
 * piece to piece), n in panels of at most NC columns held as slivers [kc][NR], m in blocks of at most MC rows that stay
 * in the second-level cache. The borders of the blocks and the share of a thread touch no bit of the result. */
#ifndef PEFT_KERNELS_CPU_GEMM_H
#define PEFT_KERNELS_CPU_GEMM_H

#include "kernels/cpu/simd.h"
#include "kernels/rows16.h"
#include <stdbool.h>

enum {
    NR = 2 * VN,
    KC = 384,
    NC = 192,
    NC_MAX = 4096, /* columns of a panel whose k is short */
    MC = 18 * TILE_ROWS,
    ROWS_IN_PLACE = 32,
    KC_IN_PLACE = 128,
    K_SHORT = 64,    /* up to here C is the traffic: it is walked along its rows */
    ROWS_MAX = 1024, /* rows of A copied per pass over the weight */
    TAIL = 32,       /* a rest of so many k, an adapter's rank, is no pass over C of its own */
    KC_MAX = KC + TAIL,
    A_PITCH = KC_MAX + 16, /* no multiple of a page: rows of a tile fall into different cache sets */
    A_FLOATS = ROWS_MAX * A_PITCH,
    B_FLOATS = KC_MAX * NC,
    TMP_FLOATS = 2 * NC_MAX,
    GEMM_FLOATS = A_FLOATS + B_FLOATS + TMP_FLOATS /* scratch of a thread */
};

/* dst = the slivers of B[k0, k0 + kc) x [n0, n0 + nc): sliver s is [kc][NR] at dst + s * sliver, the last one padded
 * with zeros. kc <= KC_MAX, nc <= NC_MAX; tmp has TMP_FLOATS. */
typedef void gemm_pack(float *dst, int64_t sliver, float *tmp, const weight *w, int64_t k0, int64_t kc, int64_t n0,
                       int64_t nc);

typedef struct gemm_term {
    int64_t k;
    const float *a; /* A(i, k) = a[i * as + k], or a[k * as + i] where the gemm says a_cols */
    int64_t as;
    gemm_pack *pack; /* makes B from w; NULL: B(k, j) = b[k * bs + j] is used where it lies */
    const weight *w;
    int64_t w_k0, w_n0; /* where B(0, 0) lies in w */
    const float *b;
    int64_t bs;
} gemm_term;

enum { TERMS_MAX = PROJ_MAX + 1 };
typedef struct gemm {
    int64_t m, n;
    float *c; /* C(i, j) = c[i * cs + j] */
    int64_t cs;
    bool a_cols; /* of its one term */
    bool fresh;  /* the chain starts at 0 + start[j], or at 0 where start is NULL, instead of C(i, j) */
    const float *start;
    int terms;
    gemm_term term[TERMS_MAX];
    float pack_cost; /* of an element of B, in units of a thread's fused multiply-adds by VN; shapes the split only */
} gemm;

/* All threads. Several products (n of them) of the same rows with the same first A, which is copied once. */
void ISA(gemm_run)(kctx *c, const gemm *g, int n);
/* One thread: rows [m0, m1), slivers of NR columns [s0, s1) counted through all products. */
void ISA(gemm_range)(const gemm *g, int n, float *scratch, int64_t m0, int64_t m1, int64_t s0, int64_t s1);

/* packers: B(k, j) = W[j][k] (y += x W^T) and B(k, j) = W[k][j] (dx += dy W); of any weight format */
gemm_pack ISA(pack_fwd), ISA(pack_bwd);
/* pack_fwd of packed rows, where they hold the stored values (not lossy) and the piece's borders are theirs */
bool ISA(rows16_serves)(const rows16 *r, int64_t k0, int64_t kc, int64_t n0);
void ISA(rows16_panel)(float *dst, int64_t sliver, const rows16 *r, int64_t k0, int64_t kc, int64_t n0, int64_t nc);
float ISA(pack_cost)(const weight *w);
#define PACK_SLOW 40 /* the cost where fmt->dequant does it: by blocks of up to 256, so not in small pieces */
void ISA(pack_dense)(float *restrict dst, int64_t sliver, const float *restrict b, int64_t bs, int64_t kc, int64_t nc);
void ISA(weight_row)(const weight *w, int64_t row, int64_t k0, int64_t n, float *out); /* out = W[row][k0, k0 + n) */

/* scratch of thread `t`, in floats */
static inline float *thread_scratch(const kctx *c, int t) {
    return (float *)(void *)(c->scratch + (size_t)t * THREAD_SCRATCH);
}

#endif
