/* What every CUDA source of this folder includes. The same sources are compiled twice: by nvcc into the plug-in of
 * backend "cuda", and by g++ through kernels/emu/ into that of backend "emu", which executes them on the CPU. So they
 * keep to:
 *
 *   - LAUNCH instead of <<< >>>, SHARED instead of extern __shared__; static __shared__ arrays as usual;
 *   - full warp masks; no thread leaves before the block's last barrier; nothing relies on a warp running in step;
 *   - inline PTX in intrin.cuh alone; no test of __CUDACC__ elsewhere;
 *   - kernels and device functions are static; a launcher is NAME_cuda of kernels.def with C linkage;
 *   - mats go to kernels by value, small structs of parameters too; what their pointers point to is device memory,
 * which no launcher reads; nothing is allocated or waited for; workspace comes from kctx.scratch;
 *   - sums in an order that the shape alone fixes: no atomics on floats.
 *
 * Values are F32 or BF16 as mat.type says; gradients, targets of "+=", statistics and the optimiser are F32. */
#ifndef PEFT_KERNELS_CUDA_CUDA_H
#define PEFT_KERNELS_CUDA_CUDA_H

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

extern "C" {
#include "core/error.h"
#include "kernels/backend.h"

#define K(name, args) void name##_cuda args;
#include "kernels/kernels.def"
#undef K

/* Prints "place: call: what CUDA says" and leaves with EXIT_DEVICE. */
void cuda_failed(const char *file, int line, const char *call, int code) __attribute__((noreturn));
}

/* every call of the runtime; a failure is never survived, the device's state is unknown */
#define CU(call)                                                                                                       \
    do {                                                                                                               \
        cudaError_t cu_code = (call);                                                                                  \
        if (cu_code != cudaSuccess) cuda_failed(__FILE__, __LINE__, #call, (int)cu_code);                              \
    } while (0)

/* the queue that kernels of c go into */
cudaStream_t kstream(const kctx *c);

#ifdef __CUDACC__

/* LAUNCH(kernel, grid, block, bytes of dynamic shared memory, kctx, arguments...); a template in parentheses:
 * LAUNCH((k<3, float>), ...). More than 48 KiB must be asked for. */
#define LAUNCH(kernel, grid, block, bytes, c, ...)                                                                     \
    do {                                                                                                               \
        if ((bytes) > 48 << 10)                                                                                        \
            CU(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)(bytes)));               \
        kernel<<<grid, block, bytes, kstream(c)>>>(__VA_ARGS__);                                                       \
        CU(cudaGetLastError());                                                                                        \
    } while (0)

extern __shared__ __align__(16) unsigned char cuda_dynamic_shared[];
/* T *name = the block's dynamic shared memory, 16-byte aligned */
#define SHARED(T, name) T *name = reinterpret_cast<T *>(cuda_dynamic_shared)

#else
#include "kernels/emu/emu.h"
#endif

typedef __nv_bfloat16 bf16;

enum { WARP = 32 };      /* lanes of a warp */
#define FULL 0xffffffffu /* the mask that names all of them */

/* a programmer's mistake seen by a thread: the launch fails and the next CU reports it */
#define DEVICE_CHECK(cond)                                                                                             \
    do {                                                                                                               \
        if (!(cond)) __trap();                                                                                         \
    } while (0)

/* The statement with T = the element type of `type`: WITH_VALUES(x.type, T, LAUNCH((k<T>), ...)). */
#define WITH_VALUES(type_, T, ...)                                                                                     \
    do {                                                                                                               \
        CHECK((type_) == F32 || (type_) == BF16, "values of type %d", (int)(type_));                                   \
        if ((type_) == F32) {                                                                                          \
            typedef float T;                                                                                           \
            __VA_ARGS__;                                                                                               \
        } else {                                                                                                       \
            typedef bf16 T;                                                                                            \
            __VA_ARGS__;                                                                                               \
        }                                                                                                              \
    } while (0)

/* row i of a mat of T */
template <class T> static __host__ __device__ __forceinline__ T *row_of(mat m, int64_t i) {
    return static_cast<T *>(m.data) + i * m.ld;
}

/* elements as floats; a store rounds once, to nearest even */
static __device__ __forceinline__ float load(const float *p) { return *p; }
static __device__ __forceinline__ float load(const bf16 *p) { return __bfloat162float(*p); }
static __device__ __forceinline__ void store(float *p, float v) { *p = v; }
static __device__ __forceinline__ void store(bf16 *p, float v) { *p = __float2bfloat16_rn(v); }

/* V consecutive elements at a multiple of V: one access where V is 4 */
template <int V> static __device__ __forceinline__ void load_part(float (&v)[V], const float *p) {
    if constexpr (V == 4) {
        float4 q = *reinterpret_cast<const float4 *>(p);
        v[0] = q.x, v[1] = q.y, v[2] = q.z, v[3] = q.w;
    } else {
        for (int i = 0; i < V; i++) v[i] = p[i];
    }
}
template <int V> static __device__ __forceinline__ void load_part(float (&v)[V], const bf16 *p) {
    if constexpr (V == 4) {
        uint2 q = *reinterpret_cast<const uint2 *>(p);
        v[0] = __uint_as_float(q.x << 16), v[1] = __uint_as_float(q.x & 0xffff0000u);
        v[2] = __uint_as_float(q.y << 16), v[3] = __uint_as_float(q.y & 0xffff0000u);
    } else {
        for (int i = 0; i < V; i++) v[i] = load(p + i);
    }
}
template <int V> static __device__ __forceinline__ void store_part(float *p, const float (&v)[V]) {
    if constexpr (V == 4) {
        *reinterpret_cast<float4 *>(p) = make_float4(v[0], v[1], v[2], v[3]);
    } else {
        for (int i = 0; i < V; i++) p[i] = v[i];
    }
}
static __device__ __forceinline__ unsigned pack_bf16(float lo, float hi) {
    return (unsigned)__bfloat16_as_ushort(__float2bfloat16_rn(lo)) |
           (unsigned)__bfloat16_as_ushort(__float2bfloat16_rn(hi)) << 16;
}
template <int V> static __device__ __forceinline__ void store_part(bf16 *p, const float (&v)[V]) {
    if constexpr (V == 4) {
        *reinterpret_cast<uint2 *>(p) = make_uint2(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]));
    } else {
        for (int i = 0; i < V; i++) store(p + i, v[i]);
    }
}

/* whether rows of m can be read four elements at a time */
static inline bool by_fours(mat m) {
    return m.cols % 4 == 0 && m.ld % 4 == 0 && (uintptr_t)m.data % (4 * (uintptr_t)mat_bytes(m.type)) == 0;
}

/* Sum and maximum over a warp, in every lane: a butterfly, so all lanes have the same bits. */
template <class V> static __device__ __forceinline__ V warp_sum(V v) {
    for (int o = WARP / 2; o; o /= 2) v += __shfl_xor_sync(FULL, v, o);
    return v;
}
static __device__ __forceinline__ float warp_max(float v) {
    for (int o = WARP / 2; o; o /= 2) v = fmaxf(v, __shfl_xor_sync(FULL, v, o));
    return v;
}

/* Sum over a one-dimensional block of whole warps, in every thread. partial: shared, WARP elements, free again on
 * return. All threads of the block call it. */
template <class V> static __device__ __forceinline__ V block_sum(V v, V *partial) {
    int lane = (int)threadIdx.x % WARP, warps = (int)blockDim.x / WARP;
    v = warp_sum(v);
    if (lane == 0) partial[threadIdx.x / WARP] = v;
    __syncthreads();
    v = warp_sum(lane < warps ? partial[lane] : (V)0);
    __syncthreads();
    return v;
}
static __device__ __forceinline__ float block_max(float v, float *partial) {
    int lane = (int)threadIdx.x % WARP, warps = (int)blockDim.x / WARP;
    v = warp_max(v);
    if (lane == 0) partial[threadIdx.x / WARP] = v;
    __syncthreads();
    v = warp_max(lane < warps ? partial[lane] : -INFINITY);
    __syncthreads();
    return v;
}

/* Blocks of BLOCK threads for n elements, bounded: kernels go on in steps of the whole grid. */
enum { BLOCK = 256, GRID_MAX = 65535 };
static inline unsigned grid_for(int64_t n) {
    int64_t blocks = (n + BLOCK - 1) / BLOCK;
    return (unsigned)(blocks < 1 ? 1 : blocks > GRID_MAX ? (int64_t)GRID_MAX : blocks);
}
/* the same for rows x (cols / each): x walks a row, y the rows */
static inline dim3 grid_for_rows(int64_t rows, int64_t cols, int each) {
    return dim3(grid_for(cols / each), (unsigned)(rows < 1 ? 1 : rows > GRID_MAX ? (int64_t)GRID_MAX : rows));
}

#endif
