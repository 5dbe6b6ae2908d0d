/* C[m, n] += A[m, k] B[k, n] in fp32, each output one fma chain over k, with B made panel by panel from any storage.
 *
 * The blocks: k in pieces of at most KC (C carries the chain from piece to piece), n in panels of at most NC columns
 * held as slivers [kc][NR], m in blocks of at most MC rows that stay in the second-level cache. The borders of the
 * blocks and the share of a thread touch no bit of the result. */
#ifndef PEFT_KERNELS_CPU_GEMM_H
#define PEFT_KERNELS_CPU_GEMM_H

#include "kernels/cpu/simd.h"
#include <stdbool.h>

enum {
    NR = 2 * VN,
    KC = 384,
    NC = 192,
    NC_MAX = 4096, /* columns of a panel whose k is short */
    MC = 18 * TILE_ROWS,
    ROWS_IN_PLACE = 32,
    KC_IN_PLACE = 128,
    K_SHORT = 64,      /* up to here C is the traffic: it is walked along its rows */
    ROWS_MAX = 1024,   /* rows of A copied per pass over the weight */
    A_PITCH = KC + 16, /* no multiple of a page: rows of a tile fall into different cache sets */
    A_FLOATS = ROWS_MAX * A_PITCH,
    B_FLOATS = KC * NC,
    TMP_FLOATS = 2 * NC_MAX,
    GEMM_FLOATS = A_FLOATS + B_FLOATS + TMP_FLOATS /* scratch of a thread */
};

/* dst = the slivers of B[k0, k0 + kc) x [n0, n0 + nc): sliver s is [kc][NR] at dst + s * kc * NR, the last one padded
 * with zeros. kc <= KC, nc <= NC_MAX; tmp has TMP_FLOATS. */
typedef void gemm_pack(float *dst, float *tmp, const weight *w, int64_t k0, int64_t kc, int64_t n0, int64_t nc);

typedef struct gemm {
    int64_t m, n, k;
    const float *a; /* A(i, k) = a[i * as + k], or a[k * as + i] where a_cols */
    int64_t as;
    bool a_cols;
    float *c; /* C(i, j) = c[i * cs + j] */
    int64_t cs;
    gemm_pack *pack; /* makes B from w; NULL: B(k, j) = b[k * bs + j] is used where it lies */
    const weight *w;
    int64_t w_k0, w_n0; /* where B(0, 0) lies in w */
    const float *b;
    int64_t bs;
    float pack_cost; /* of an element of B, in units of a thread's fused multiply-adds by VN; shapes the split only */
} gemm;

void ISA(gemm_run)(kctx *c, const gemm *g);                                                          /* all threads */
void ISA(gemm_range)(const gemm *g, float *scratch, int64_t m0, int64_t m1, int64_t n0, int64_t n1); /* one thread */

/* packers: B(k, j) = W[j][k] (y += x W^T) and B(k, j) = W[k][j] (dx += dy W); of any weight format */
gemm_pack ISA(pack_fwd), ISA(pack_bwd);
float ISA(pack_cost)(const weight *w);
#define PACK_SLOW 40 /* the cost where fmt->dequant does it: by blocks of up to 256, so not in small pieces */
void ISA(pack_dense)(float *restrict dst, const float *restrict b, int64_t bs, int64_t kc, int64_t nc);
void ISA(weight_row)(const weight *w, int64_t row, int64_t k0, int64_t n, float *out); /* out = W[row][k0, k0 + n) */

/* scratch of thread `t`, in floats */
static inline float *thread_scratch(const kctx *c, int t) {
    return (float *)(void *)(c->scratch + (size_t)t * THREAD_SCRATCH);
}

#endif
