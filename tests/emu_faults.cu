/* Kernels with a bug each, for the emulation to find, and the layouts of tensor-core operands against plain loops. */
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/intrin.cuh"

enum { N = 64 };

static __global__ void fine(float *x) {
    __shared__ float s[N];
    s[threadIdx.x] = (float)threadIdx.x;
    __syncthreads();
    x[threadIdx.x] = s[N - 1 - threadIdx.x];
}
static __global__ void returns_early(float *x) {
    if (threadIdx.x == 5) return;
    __syncthreads();
    x[threadIdx.x] = 1;
}
static __global__ void two_barriers(float *x) {
    if (threadIdx.x < 32)
        __syncthreads();
    else
        __syncthreads();
    x[threadIdx.x] = 1;
}
static __global__ void half_a_warp(float *x) {
    if (threadIdx.x % 32 < 16) x[threadIdx.x] = __shfl_xor_sync(FULL, 1.0f, 1);
}
static __global__ void two_shuffles(float *x) {
    if (threadIdx.x % 32 < 16)
        x[threadIdx.x] = __shfl_xor_sync(FULL, 1.0f, 1);
    else
        x[threadIdx.x] = __shfl_xor_sync(FULL, 2.0f, 1);
}
static __global__ void outside_the_mask(float *x) {
    if (threadIdx.x % 32 < 16) x[threadIdx.x] = __shfl_sync(0xffffu, 1.0f, 20);
}
static __global__ void traps(float *) { DEVICE_CHECK(threadIdx.x != 3); }

/* C = A B + C of a 16 x 16 and a 16 x 8 matrix (transposed in memory: 8 x 16) */
static __global__ void product(float *c, const bf16 *a, const bf16 *b) {
    __shared__ __align__(16) bf16 sa[16 * 16], sb[8 * 16];
    const int lane = (int)threadIdx.x, g = lane / 4, t = lane % 4;
    if (lane % 2 == 0) cp_async16(sb + lane * 4, b + lane * 4); /* rows of 16: two copies each */
    cp_async16(sa + lane * 8, a + lane * 8);
    cp_async_commit();
    cp_async_wait<0>();
    __syncthreads();
    unsigned ra[4], rb[2];
    float acc[4] = {c[g * 8 + 2 * t], c[g * 8 + 2 * t + 1], c[(g + 8) * 8 + 2 * t], c[(g + 8) * 8 + 2 * t + 1]};
    ldmatrix_x4(ra, sa + lane % 16 * 16 + lane / 16 * 8);
    ldmatrix_x2(rb, sb + lane % 8 * 16 + lane / 8 % 2 * 8);
    mma_bf16(acc, ra, rb);
    c[g * 8 + 2 * t] = acc[0], c[g * 8 + 2 * t + 1] = acc[1];
    c[(g + 8) * 8 + 2 * t] = acc[2], c[(g + 8) * 8 + 2 * t + 1] = acc[3];
}

/* the copy of b is odd lanes' too: what `product` gives where both operands are exact */
static int check_product(kctx *c, char *shared) {
    float *y = (float *)shared;
    bf16 *a = (bf16 *)(shared + 4096), *b = (bf16 *)(shared + 8192);
    for (int i = 0; i < 256; i++) a[i] = __float2bfloat16((float)(i * 7 % 31 - 15));
    for (int i = 0; i < 128; i++) b[i] = __float2bfloat16((float)(i * 5 % 23 - 11)), y[i] = (float)i;
    LAUNCH(product, 1, WARP, 0, c, y, a, b);
    CU(cudaDeviceSynchronize());
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 8; j++) {
            float want = (float)(i * 8 + j);
            for (int k = 0; k < 16; k++) want += __bfloat162float(a[i * 16 + k]) * __bfloat162float(b[j * 16 + k]);
            if (y[i * 8 + j] != want) return 1;
        }
    return 0;
}

extern "C" __attribute__((visibility("default"))) int emu_fault_run(int n) {
    kctx c = {};
    if (device_open(&c)) return 1;
    float *x = (float *)c.scratch;
    static float host[N];
    void (*const kernels[])(float *) = {fine,         returns_early,    two_barriers, half_a_warp,
                                        two_shuffles, outside_the_mask, traps};
    const int count = sizeof kernels / sizeof *kernels;
    if (n < count) LAUNCH(kernels[n], 2, N, 0, &c, x);
    if (n == count) LAUNCH(fine, 1, N, 0, &c, host);     /* memory that no device has */
    if (n == count + 1) LAUNCH(fine, 1, 2048, 0, &c, x); /* too many threads */
    if (n == count + 2) CU(cudaMemcpy(x, host, (size_t)1 << 40, cudaMemcpyHostToDevice));
    if (n == count + 3) return check_product(&c, (char *)c.mem->map_shared(c.mem, 1 << 14));
    CU(cudaDeviceSynchronize());
    return 0;
}
