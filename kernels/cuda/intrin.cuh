/* The instructions that C++ has no name for, as small functions on plain register arrays: products of tiles on tensor
 * cores, loads of their operands from shared memory, asynchronous copies. The only file with inline PTX;
 * kernels/emu/emu_intrin.h has the same functions for the CPU. Layouts: PTX ISA 8.7, sections 9.7.14.5
 * (mma), 9.7.14.5.15 (ldmatrix), 9.7.9.25 (cp.async).
 *
 * With g = lane / 4 and t = lane % 4, a register of two 16-bit elements holds (lower half first)
 *   a[0] = A[g][2t, 2t+1]   a[1] = A[g+8][2t..]   a[2] = A[g][2t+8..]   a[3] = A[g+8][2t+8..]     A is 16 x 16
 *   b[0] = B[2t, 2t+1][g]   b[1] = B[2t+8, 2t+9][g]                                               B is 16 x 8
 *   c[0], c[1] = C[g][2t, 2t+1]   c[2], c[3] = C[g+8][2t, 2t+1]                                   C is 16 x 8, fp32 */
#ifndef PEFT_KERNELS_CUDA_INTRIN_CUH
#define PEFT_KERNELS_CUDA_INTRIN_CUH

#include "kernels/cuda/cuda.h"

#ifdef __CUDACC__

/* C += A B in bf16 with fp32 accumulators */
static __device__ __forceinline__ void mma_bf16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* the same of fp16 */
static __device__ __forceinline__ void mma_f16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

static __device__ __forceinline__ unsigned shared_address(const void *p) {
    return (unsigned)__cvta_generic_to_shared(p);
}

/* Four 8 x 8 matrices of 16-bit elements: row i of matrix m lies at the address that lane 8 m + i gives (16 bytes,
 * 16-byte aligned). r[m] = elements 2t, 2t+1 of row g; _trans: rows 2t, 2t+1 of column g. */
static __device__ __forceinline__ void ldmatrix_x4(unsigned (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
static __device__ __forceinline__ void ldmatrix_x4_trans(unsigned (&r)[4], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
/* Two matrices: lanes 0 to 15 give the rows; the others' addresses are not read but must be valid. */
static __device__ __forceinline__ void ldmatrix_x2(unsigned (&r)[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}
static __device__ __forceinline__ void ldmatrix_x2_trans(unsigned (&r)[2], const void *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0, %1}, [%2];"
                 : "=r"(r[0]), "=r"(r[1])
                 : "r"(shared_address(row))
                 : "memory");
}

/* 16 bytes from device to shared memory, both 16-byte aligned, done when waited for; where !wanted zeros are written
 * and nothing is read (src must still be a valid address). */
static __device__ __forceinline__ void cp_async16(void *dst, const void *src, bool wanted = true) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(dst)), "l"(src),
                 "r"(wanted ? 16 : 0)
                 : "memory");
}
/* the same of the first `bytes` (0 to 16), zeros behind them */
static __device__ __forceinline__ void cp_async16_part(void *dst, const void *src, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(dst)), "l"(src), "r"(bytes)
                 : "memory");
}
/* closes the group of the copies since the last commit */
static __device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/* until at most N of this thread's groups are open; what other threads copied needs a barrier besides */
template <int N> static __device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#else
#include "kernels/emu/emu_intrin.h"
#endif

#endif
