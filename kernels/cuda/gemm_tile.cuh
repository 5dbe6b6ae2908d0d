/* What the tiles of gemm_bf16.cu and gemm_quant.cu are made of: the ring of operand buffers that cp.async fills, the
 * fragments that ldmatrix reads from it, and the end of a sum.
 *
 * A buffer holds 32 of k of an operand. 16-byte chunks are swizzled within its rows, so that the eight rows of an
 * ldmatrix fall into different banks: plain    [rows][32 k], 64 bytes a row:      chunk c of row r lies at c ^ (r / 2 %
 * 4) across   [32 k][rows]:                      chunk c of line k lies at c ^ (k % 8), or c ^ (k / 2 % 4) for 32 rows
 */
#ifndef PEFT_KERNELS_CUDA_GEMM_TILE_CUH
#define PEFT_KERNELS_CUDA_GEMM_TILE_CUH

#include "kernels/cuda/gemm.cuh"
#include "kernels/cuda/intrin.cuh"

enum { KSTEP = 32, THREADS = 256, CHUNK = 8 /* elements of 16 bytes */ };

template <int R, bool ACROSS> static __device__ __forceinline__ int place(int r, int k) {
    if (!ACROSS) return r * KSTEP + ((k / CHUNK ^ (r / 2 % 4)) * CHUNK);
    return k * R + ((r / CHUNK ^ (R > 32 ? k % 8 : k / 2 % 4)) * CHUNK);
}

/* rows [r0, r0 + R) and k [k0, k0 + 32) of x into s; zero outside */
template <int R, bool ACROSS>
static __device__ __forceinline__ void copy_tile(bf16 *s, const side &x, int r0, int rows, int k0, int k1) {
    const bf16 *data = static_cast<const bf16 *>(x.data);
#pragma unroll 1 /* two rounds at most; unrolled, their addresses would cost registers that the tiles of 128 lack */
    for (int e = (int)threadIdx.x; e < R * KSTEP / CHUNK; e += THREADS) {
        const int r = ACROSS ? e % (R / CHUNK) * CHUNK : e / (KSTEP / CHUNK);
        const int k = ACROSS ? e / (R / CHUNK) : e % (KSTEP / CHUNK) * CHUNK;
        const int row = r0 + r, at = k0 + k, line = ACROSS ? at : row, in = ACROSS ? row : at;
        const int left = line < (ACROSS ? k1 : rows) ? (ACROSS ? rows : k1) - in : 0;
        const bf16 *src = left > 0 ? data + (line * x.ld + in) : data;
        cp_async16_part(s + place<R, ACROSS>(r, k), src, max(min(left, (int)CHUNK), 0) * 2);
    }
}

/* A's fragment of rows [r, r + 16) and k [k, k + 16) */
template <int R, bool ACROSS>
static __device__ __forceinline__ void load_a(unsigned (&f)[4], const bf16 *s, int r, int k) {
    const int lane = (int)threadIdx.x % WARP, m = lane / 8, i = lane % 8;
    if (ACROSS)
        ldmatrix_x4_trans(f, s + place<R, true>(r + m % 2 * 8, k + m / 2 * 8 + i));
    else
        ldmatrix_x4(f, s + place<R, false>(r + m % 2 * 8 + i, k + m / 2 * 8));
}

/* B's fragments of columns [r, r + 8) and [r + 8, r + 16): f[0, 1] and f[2, 3] */
template <int R, bool ACROSS>
static __device__ __forceinline__ void load_b(unsigned (&f)[4], const bf16 *s, int r, int k) {
    const int lane = (int)threadIdx.x % WARP, m = lane / 8, i = lane % 8;
    if (ACROSS)
        ldmatrix_x4_trans(f, s + place<R, true>(r + m / 2 * 8, k + m % 2 * 8 + i));
    else
        ldmatrix_x4(f, s + place<R, false>(r + m / 2 * 8 + i, k + m % 2 * 8));
}

/* the sum v of C(row, col) goes where it belongs */
static __device__ __forceinline__ void finish(const product &p, int64_t row, int64_t col, float v) {
    const int64_t at = row * p.cs + col;
    if (p.bias) v = p.bias[col] + v;
    if (p.type == F32) {
        float *y = static_cast<float *>(p.c) + at;
        *y = p.add ? *y + v : v;
    } else {
        bf16 *y = static_cast<bf16 *>(p.c) + at;
        store(y, p.add ? load(y) + v : v);
    }
}

static __device__ __forceinline__ void put(const product &p, int64_t row, int64_t col, float v) {
    if (row >= p.m || col >= p.n) return;
    if (p.splits > 1)
        p.part[((int64_t)blockIdx.z * p.m + row) * p.n + col] = v;
    else
        finish(p, row, col, v);
}

/* c += the products of one buffer of each operand: MT x NT fragments of a warp, from rows wi of A and wj of B */
template <int BM, int BN, bool AT, bool BT, int MT, int NT>
static __device__ __forceinline__ void multiply_buffers(float (&c)[MT][NT][4], const bf16 *a, const bf16 *b, int wi,
                                                        int wj) {
#pragma unroll
    for (int k = 0; k < KSTEP; k += 16) {
        unsigned fa[MT][4];
#pragma unroll
        for (int i = 0; i < MT; i++) load_a<BM, AT>(fa[i], a, wi + i * 16, k);
#pragma unroll
        for (int j = 0; j < NT; j += 2) {
            unsigned fb[4];
            load_b<BN, BT>(fb, b, wj + j * 8, k);
            const unsigned left[2] = {fb[0], fb[1]}, right[2] = {fb[2], fb[3]};
#pragma unroll
            for (int i = 0; i < MT; i++) mma_bf16(c[i][j], fa[i], left), mma_bf16(c[i][j + 1], fa[i], right);
        }
    }
}

template <int MT, int NT>
static __device__ __forceinline__ void put_all(const product &p, const float (&c)[MT][NT][4], int i0, int j0) {
    const int lane = (int)threadIdx.x % WARP;
#pragma unroll
    for (int i = 0; i < MT; i++)
#pragma unroll
        for (int j = 0; j < NT; j++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                put(p, i0 + i * 16 + lane / 4 + e / 2 * 8, j0 + j * 8 + lane % 4 * 2 + e % 2, c[i][j][e]);
}

/* the steps of 32 k of both pieces, dealt to the splits of the grid */
typedef struct steps {
    int first, from, to; /* steps of the first piece; this block's */
} steps;
static __device__ __forceinline__ steps steps_of(const product &p) {
    const int first = ((int)p.k[0] + KSTEP - 1) / KSTEP, all = first + ((int)p.k[1] + KSTEP - 1) / KSTEP;
    const int z = (int)blockIdx.z, splits = (int)gridDim.z;
    return steps{first, all * z / splits, all * (z + 1) / splits};
}

/* C = start + the pieces of a cut k, in order */
void add_pieces(kctx *c, const product *p);

#endif
