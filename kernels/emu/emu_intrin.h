/* The functions of kernels/cuda/intrin.cuh on the CPU, with the same register layouts. The last lane of a warp to
 * arrive computes for all; sums go k = 0, 1, ... in fp32, one rounding per term (what a tensor core does inside is not
 * documented). */
#ifndef PEFT_KERNELS_EMU_EMU_INTRIN_H
#define PEFT_KERNELS_EMU_EMU_INTRIN_H

#include "kernels/emu/emu.h"

typedef struct emu_tile {
    float *c;
    const unsigned *a, *b;
} emu_tile;
typedef struct emu_row {
    unsigned word[4]; /* in: the row that this lane gives; out: its registers */
} emu_row;
emu_warp_fn emu_mma_bf16, emu_mma_f16, emu_ldmatrix, emu_ldmatrix_trans;

static inline void mma_bf16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], EMU_SITE) {
    emu_tile t = {c, a, b};
    emu_warp("mma_bf16", emu_mma_bf16, &t, ~0u, file, line);
}
static inline void mma_f16(float (&c)[4], const unsigned (&a)[4], const unsigned (&b)[2], EMU_SITE) {
    emu_tile t = {c, a, b};
    emu_warp("mma_f16", emu_mma_f16, &t, ~0u, file, line);
}

/* the row is read here, by the lane that gives it, where sanitizers see the address */
template <int N>
static inline void emu_load_matrix(unsigned (&r)[N], const void *row, emu_warp_fn *all, const char *file, int line) {
    emu_row x = {};
    if ((size_t)row % 16) emu_fault(file, line, "ldmatrix of a row at %p, which is not 16-byte aligned", row);
    if (emu_lane() < 8 * N) memcpy(&x, row, sizeof x);
    emu_warp("ldmatrix", all, &x, ~0u, file, line);
    memcpy(r, x.word, sizeof r);
}
static inline void ldmatrix_x4(unsigned (&r)[4], const void *row, EMU_SITE) {
    emu_load_matrix(r, row, emu_ldmatrix, file, line);
}
static inline void ldmatrix_x4_trans(unsigned (&r)[4], const void *row, EMU_SITE) {
    emu_load_matrix(r, row, emu_ldmatrix_trans, file, line);
}
static inline void ldmatrix_x2(unsigned (&r)[2], const void *row, EMU_SITE) {
    emu_load_matrix(r, row, emu_ldmatrix, file, line);
}
static inline void ldmatrix_x2_trans(unsigned (&r)[2], const void *row, EMU_SITE) {
    emu_load_matrix(r, row, emu_ldmatrix_trans, file, line);
}

static inline void cp_async16_part(void *dst, const void *src, int bytes, EMU_SITE) {
    if ((size_t)dst % 16 || (size_t)src % 16)
        emu_fault(file, line, "cp_async16 from %p to %p: not 16-byte aligned", src, dst);
    if (bytes < 0 || bytes > 16) emu_fault(file, line, "cp_async16 of %d bytes", bytes);
    emu_copy_begin({dst, src, bytes}, file, line);
}
static inline void cp_async16(void *dst, const void *src, bool wanted = true, EMU_SITE) {
    cp_async16_part(dst, src, wanted ? 16 : 0, file, line);
}
static inline void cp_async_commit(void) { emu_copy_commit(); }
template <int N> static inline void cp_async_wait(void) {
    for (emu_copy c; emu_copy_take(N, &c);) {
        memset(c.dst, 0, 16);
        memcpy(c.dst, c.src, (size_t)c.bytes);
    }
}

#endif
