/* CUDA's execution model on the CPU, as far as kernels/cuda/ uses it: the names that nvcc knows by itself, for g++. The
 * real toolkit headers are used; what is declared there for nvcc only is here, what the runtime library does is in
 * emu_runtime.cpp, and emu_sched.cpp runs blocks: threads are fibers, a block runs on one OS thread, its warps one
 * after another, each as far as it goes.
 *
 * It is a test tool that looks for mistakes: shared memory and fresh device memory are filled with 0xff (NaN), every
 * warp operation checks that the lanes of its mask meet at one place, a barrier that not all threads reach is reported
 * with file:line, and pointer arguments are looked up among the allocations. The environment chooses:
 * EMU_ORDER=forward|reverse|random (threads, warps and blocks), EMU_SEED=n, EMU_LAZY=1 (streams run only when something
 * waits), EMU_WORKERS=n. */
#ifndef PEFT_KERNELS_EMU_EMU_H
#define PEFT_KERNELS_EMU_EMU_H

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <functional>
#include <math.h>
#include <string.h>
#include <tuple>
#include <type_traits>

#undef __shared__
#undef __constant__
#undef __global__
#undef __device__
#undef __host__
#define __shared__ static __thread /* a block runs on one OS thread: one copy per running block */
#define __constant__ static
#define __global__
#define __device__
#define __host__
#undef __launch_bounds__
#define __launch_bounds__(...)

/* a thread of the running block; emu_now is the one that runs */
typedef struct emu_thread {
    uint3 thread, block;
    dim3 block_dim, grid_dim;
} emu_thread;
extern __thread emu_thread *emu_now;

#define threadIdx (emu_now->thread)
#define blockIdx (emu_now->block)
#define blockDim (emu_now->block_dim)
#define gridDim (emu_now->grid_dim)
static const int warpSize = 32;

#define EMU_SITE const char *file = __builtin_FILE(), int line = __builtin_LINE()

/* What the lanes of a warp do together: each brings `mine`; the last of the mask to arrive runs `all` on the 32 of them
 * (NULL outside the mask), and then each goes on. emu_sched.cpp */
typedef void emu_warp_fn(void *lanes[32], unsigned mask);
void emu_warp(const char *kind, emu_warp_fn *all, void *mine, unsigned mask, const char *file, int line);
void emu_warp_sync(unsigned mask, const char *file, int line); /* orders memory too */
int emu_barrier(int value, const char *file, int line);        /* number of threads with value != 0 */
void *emu_dynamic_shared(void);
[[noreturn]] void emu_fault(const char *file, int line, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Asynchronous copies happen when they are waited for, so that a forgotten wait shows. */
typedef struct emu_copy {
    void *dst;
    const void *src;
    int bytes; /* of 16; zeros behind them */
} emu_copy;
void emu_copy_begin(emu_copy c, const char *file, int line);
void emu_copy_commit(void);
int emu_copy_take(int groups, emu_copy *c); /* next copy that must happen so that at most `groups` stay open; 0: none */

/* launches */
typedef struct emu_launch {
    const char *kernel, *file;
    int line;
    dim3 grid, block;
    size_t shared;
    cudaStream_t stream;
    const void *function;
} emu_launch;
void emu_enqueue(const emu_launch *l, std::function<void()> body); /* body runs one thread */
void emu_check_pointer(const emu_launch *l, int argument, const void *p);

template <class P> void emu_check_argument(const emu_launch *l, int i, const P &p) {
    if constexpr (std::is_pointer_v<P>)
        emu_check_pointer(l, i, (const void *)p);
    else if constexpr (std::is_same_v<P, mat>)
        emu_check_pointer(l, i, p.data);
}

template <class... P, class... A> void emu_start(emu_launch l, void (*kernel)(P...), A &&...a) {
    std::tuple<std::decay_t<P>...> args(static_cast<std::decay_t<P>>(a)...);
    int i = 0;
    std::apply([&](auto &...p) { (emu_check_argument(&l, i++, p), ...); }, args);
    l.function = (const void *)kernel;
    emu_enqueue(&l, [kernel, args] { std::apply(kernel, args); });
}

#define LAUNCH(kernel, grid_, block_, bytes, c, ...)                                                                   \
    do {                                                                                                               \
        emu_start({#kernel, __FILE__, __LINE__, dim3(grid_), dim3(block_), (size_t)(bytes), kstream(c), nullptr},      \
                  kernel, __VA_ARGS__);                                                                                \
        CU(cudaGetLastError());                                                                                        \
    } while (0)
#define SHARED(T, name) T *name = static_cast<T *>(emu_dynamic_shared())

/* barriers and warp operations */

static inline void __syncthreads(EMU_SITE) { emu_barrier(0, file, line); }
static inline int __syncthreads_count(int p, EMU_SITE) { return emu_barrier(p, file, line); }
static inline int __syncthreads_or(int p, EMU_SITE) { return emu_barrier(p, file, line) != 0; }
static inline int __syncthreads_and(int p, EMU_SITE) { return emu_barrier(!p, file, line) == 0; }
static inline void __syncwarp(unsigned mask = ~0u, EMU_SITE) { emu_warp_sync(mask, file, line); }
static inline void __threadfence(void) {}
static inline void __threadfence_block(void) {}

typedef struct emu_lane_value {
    unsigned long long bits; /* in: the lane's value; out: that of the source */
    int from;                /* the lane it comes from */
} emu_lane_value;
emu_warp_fn emu_shuffle, emu_ballot;

template <class T>
static inline T emu_shfl(const char *kind, unsigned mask, T v, int from, const char *file, int line) {
    static_assert(sizeof(T) <= 8, "a shuffle moves at most 8 bytes");
    emu_lane_value x = {0, from};
    memcpy(&x.bits, &v, sizeof v);
    emu_warp(kind, emu_shuffle, &x, mask, file, line);
    memcpy((void *)&v, &x.bits, sizeof v);
    return v;
}
static inline int emu_lane(void) {
    return (int)((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32);
}
template <class T> static inline T __shfl_sync(unsigned mask, T v, int src, int width = 32, EMU_SITE) {
    return emu_shfl("__shfl_sync", mask, v, (emu_lane() & -width) + (src & (width - 1)), file, line);
}
template <class T> static inline T __shfl_xor_sync(unsigned mask, T v, int x, int width = 32, EMU_SITE) {
    int lane = emu_lane(), from = lane ^ x;
    return emu_shfl("__shfl_xor_sync", mask, v, from / width > lane / width ? lane : from, file, line);
}
template <class T> static inline T __shfl_down_sync(unsigned mask, T v, unsigned d, int width = 32, EMU_SITE) {
    int lane = emu_lane();
    return emu_shfl("__shfl_down_sync", mask, v, lane % width + (int)d < width ? lane + (int)d : lane, file, line);
}
template <class T> static inline T __shfl_up_sync(unsigned mask, T v, unsigned d, int width = 32, EMU_SITE) {
    int lane = emu_lane();
    return emu_shfl("__shfl_up_sync", mask, v, lane % width >= (int)d ? lane - (int)d : lane, file, line);
}
static inline unsigned __ballot_sync(unsigned mask, int p, EMU_SITE) {
    emu_lane_value x = {(unsigned long long)(p != 0), 0};
    emu_warp("__ballot_sync", emu_ballot, &x, mask, file, line);
    return (unsigned)x.bits;
}
static inline int __any_sync(unsigned mask, int p, EMU_SITE) { return __ballot_sync(mask, p, file, line) != 0; }
static inline int __all_sync(unsigned mask, int p, EMU_SITE) { return __ballot_sync(mask, p, file, line) == mask; }

#define __trap() emu_fault(__FILE__, __LINE__, "__trap()")

/* atomics on integers; sums of floats are never atomic here */
template <class T> static inline T atomicAdd(T *p, std::common_type_t<T> v) {
    static_assert(std::is_integral_v<T>, "no atomic sums of floats: their order is not fixed");
    return __atomic_fetch_add(p, v, __ATOMIC_RELAXED);
}
template <class T> static inline T atomicOr(T *p, std::common_type_t<T> v) {
    return __atomic_fetch_or(p, v, __ATOMIC_RELAXED);
}
template <class T> static inline T atomicExch(T *p, std::common_type_t<T> v) {
    return __atomic_exchange_n(p, v, __ATOMIC_RELAXED);
}
template <class T> static inline T atomicCAS(T *p, std::common_type_t<T> expected, std::common_type_t<T> v) {
    __atomic_compare_exchange_n(p, &expected, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED);
    return expected;
}
template <class T> static inline T atomicMax(T *p, std::common_type_t<T> v) {
    T old = __atomic_load_n(p, __ATOMIC_RELAXED);
    while (old < v && !__atomic_compare_exchange_n(p, &old, v, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) continue;
    return old;
}

/* mathematics and bits: the names that only nvcc declares. Fast forms are the exact ones. */

template <class A, class B> static inline std::common_type_t<A, B> min(A a, B b) { return b < a ? b : a; }
template <class A, class B> static inline std::common_type_t<A, B> max(A a, B b) { return a < b ? b : a; }
static inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
static inline double rsqrt(double x) { return 1.0 / sqrt(x); }
/* the C library's header declares these names for itself */
#define __expf expf
#define __exp10f exp10f
#define __logf logf
#define __log2f log2f
#define __sinf sinf
#define __cosf cosf
#define __powf powf
static inline float __fdividef(float x, float y) { return x / y; }
static inline float __frcp_rn(float x) { return 1.0f / x; }
static inline float __fsqrt_rn(float x) { return sqrtf(x); }
static inline float __fdiv_rn(float x, float y) { return x / y; }
static inline float __fadd_rn(float x, float y) { return x + y; }
static inline float __fsub_rn(float x, float y) { return x - y; }
static inline float __fmul_rn(float x, float y) { return x * y; }
static inline float __fmaf_rn(float x, float y, float z) { return fmaf(x, y, z); }
static inline double __dadd_rn(double x, double y) { return x + y; }
static inline double __dmul_rn(double x, double y) { return x * y; }
static inline double __fma_rn(double x, double y, double z) { return fma(x, y, z); }
static inline float __saturatef(float x) { return fminf(fmaxf(x, 0.0f), 1.0f); }
static inline int __float2int_rn(float x) { return (int)rintf(x); }
static inline int __float2int_rz(float x) { return (int)x; }
static inline int __float2int_rd(float x) { return (int)floorf(x); }
static inline float __int2float_rn(int x) { return (float)x; }
static inline float __uint2float_rn(unsigned x) { return (float)x; }
static inline float __double2float_rn(double x) { return (float)x; }
template <class To, class From> static inline To emu_bits(From x) {
    To y;
    static_assert(sizeof x == sizeof y, "");
    memcpy(&y, &x, sizeof y);
    return y;
}
static inline int __float_as_int(float x) { return emu_bits<int>(x); }
static inline unsigned __float_as_uint(float x) { return emu_bits<unsigned>(x); }
static inline float __int_as_float(int x) { return emu_bits<float>(x); }
static inline float __uint_as_float(unsigned x) { return emu_bits<float>(x); }
static inline long long __double_as_longlong(double x) { return emu_bits<long long>(x); }
static inline double __longlong_as_double(long long x) { return emu_bits<double>(x); }
static inline int __popc(unsigned x) { return __builtin_popcount(x); }
static inline int __clz(int x) { return x ? __builtin_clz((unsigned)x) : 32; }
static inline int __ffs(int x) { return __builtin_ffs(x); }
static inline unsigned __brev(unsigned x) {
    unsigned y = 0;
    for (int i = 0; i < 32; i++) y = y << 1 | (x >> i & 1);
    return y;
}
static inline unsigned __umulhi(unsigned x, unsigned y) { return (unsigned)((unsigned long long)x * y >> 32); }
static inline unsigned __funnelshift_r(unsigned lo, unsigned hi, unsigned n) {
    return (unsigned)(((unsigned long long)hi << 32 | lo) >> (n & 31));
}
static inline unsigned __funnelshift_l(unsigned lo, unsigned hi, unsigned n) {
    return (unsigned)((((unsigned long long)hi << 32 | lo) << (n & 31)) >> 32);
}
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned s) {
    unsigned long long both = (unsigned long long)y << 32 | x;
    unsigned r = 0;
    for (int i = 0; i < 4; i++) {
        unsigned byte = (unsigned)(both >> (s >> 4 * i & 7) * 8) & 255;
        if (s >> 4 * i & 8) byte = byte & 128 ? 255 : 0;
        r |= byte << 8 * i;
    }
    return r;
}
static inline int __dp4a(int a, int b, int c) {
    for (int i = 0; i < 4; i++) c += (int)(signed char)(a >> 8 * i) * (int)(signed char)(b >> 8 * i);
    return c;
}
template <class T> static inline T __ldg(const T *p) { return *p; }
template <class T> static inline T __ldcs(const T *p) { return *p; }
template <class T> static inline T __ldcg(const T *p) { return *p; }
template <class T> static inline void __stcs(T *p, T v) { *p = v; }
template <class T> static inline void __stcg(T *p, T v) { *p = v; }

/* 16-bit arithmetic that the toolkit has on the device only; it rounds once, as there */
static inline __nv_bfloat16 __hfma(__nv_bfloat16 a, __nv_bfloat16 b, __nv_bfloat16 c) {
    double exact = (double)__bfloat162float(a) * (double)__bfloat162float(b) + (double)__bfloat162float(c);
    return __double2bfloat16(exact);
}
static inline __half __hfma(__half a, __half b, __half c) {
    return __double2half((double)__half2float(a) * (double)__half2float(b) + (double)__half2float(c));
}
static inline __nv_bfloat162 __hfma2(__nv_bfloat162 a, __nv_bfloat162 b, __nv_bfloat162 c) {
    return __halves2bfloat162(__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y));
}
static inline __half2 __hfma2(__half2 a, __half2 b, __half2 c) {
    return __halves2half2(__hfma(__low2half(a), __low2half(b), __low2half(c)),
                          __hfma(__high2half(a), __high2half(b), __high2half(c)));
}

#endif
