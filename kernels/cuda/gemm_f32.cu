/* Products in fp32: C(i, j) is one chain c = fma(A(i, k), B(j, k), c) over k = 0, 1, ..., so the bits are those of ref
 * and of the CPU's backends. It serves activations in fp32, that is tests and comparisons, not speed: 64 x 64 tiles by
 * 256 threads, 4 x 4 outputs each, 16 of k at a time through shared memory. */
#include "kernels/cuda/gemm.cuh"

enum { TM = 64, TN = 64, TK = 16, THREADS = 256, PITCH = TM + 4 };

/* s[k][r] = tile of rows [r0, r0 + 64) and k [k0, k0 + 16); zero outside. Threads walk the direction that lies
 * together. */
static __device__ __forceinline__ void load_tile(float (*s)[PITCH], side x, int64_t r0, int64_t rows, int64_t k0,
                                                 int64_t k1) {
    const float *p = static_cast<const float *>(x.data);
    for (int e = (int)threadIdx.x; e < TM * TK; e += THREADS) {
        const int r = x.across ? e % TM : e / TK, k = x.across ? e / TM : e % TK;
        const bool in = r0 + r < rows && k0 + k < k1;
        s[k][r] = !in ? 0.0f : x.across ? p[(k0 + k) * x.ld + r0 + r] : p[(r0 + r) * x.ld + k0 + k];
    }
}

static __global__ void __launch_bounds__(THREADS) tile_f32(product p) {
    __shared__ __align__(16) float a[TK][PITCH], b[TK][PITCH];
    const int64_t i0 = (int64_t)blockIdx.y * TM, j0 = (int64_t)blockIdx.x * TN;
    const int ti = (int)threadIdx.x / 16 * 4, tj = (int)threadIdx.x % 16 * 4;
    float *out = static_cast<float *>(p.c), c[4][4];
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) {
            const int64_t row = i0 + ti + i, col = j0 + tj + j;
            const bool in = row < p.m && col < p.n;
            c[i][j] = !in ? 0.0f : p.add ? out[row * p.cs + col] : p.bias ? 0.0f + p.bias[col] : 0.0f;
        }
    for (int s = 0; s < 2; s++)
        for (int64_t k0 = 0; k0 < p.k[s]; k0 += TK) {
            load_tile(a, p.a[s], i0, p.m, k0, p.k[s]);
            load_tile(b, p.b[s], j0, p.n, k0, p.k[s]);
            __syncthreads();
            const int left = (int)min(p.k[s] - k0, (int64_t)TK); /* a product of zeros would turn -0 into 0 */
            for (int k = 0; k < left; k++) {
                float x[4], y[4];
                load_part<4>(x, &a[k][ti]);
                load_part<4>(y, &b[k][tj]);
#pragma unroll
                for (int i = 0; i < 4; i++)
#pragma unroll
                    for (int j = 0; j < 4; j++) c[i][j] = fmaf(x[i], y[j], c[i][j]);
            }
            __syncthreads();
        }
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++)
            if (i0 + ti + i < p.m && j0 + tj + j < p.n) out[(i0 + ti + i) * p.cs + j0 + tj + j] = c[i][j];
}

void product_f32(kctx *c, const product *p) {
    CHECK(p->type == F32, "fp32 products write F32, not %d", (int)p->type);
    if (p->m <= 0 || p->n <= 0) return;
    const dim3 grid((unsigned)ceil_div(p->n, TN), (unsigned)ceil_div(p->m, TM));
    LAUNCH(tile_f32, grid, THREADS, 0, c, *p);
}
