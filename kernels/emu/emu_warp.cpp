/* What a warp computes together once all its lanes have arrived; layouts as in kernels/cuda/intrin.cuh. Compiled
 * without sanitizers: it reads what the lanes left on their stacks. */
#include "kernels/emu/emu_parts.h"

#include "kernels/emu/emu_intrin.h"

extern "C" {
#include "core/num.h"
}

void emu_shuffle(void *lanes[32], unsigned mask) {
    unsigned long long bits[32];
    for (int i = 0; i < 32; i++)
        if (lanes[i]) bits[i] = ((emu_lane_value *)lanes[i])->bits;
    for (int i = 0; i < 32; i++) {
        emu_lane_value *x = (emu_lane_value *)lanes[i];
        if (!x) continue;
        if (!(mask >> x->from & 1))
            emu_fault("a shuffle", 0, "lane %d reads lane %d, which the mask %08x leaves out", i, x->from, mask);
        x->bits = bits[x->from];
    }
}

void emu_ballot(void *lanes[32], unsigned) {
    unsigned long long set = 0;
    for (int i = 0; i < 32; i++)
        if (lanes[i] && ((emu_lane_value *)lanes[i])->bits) set |= 1ull << i;
    for (int i = 0; i < 32; i++)
        if (lanes[i]) ((emu_lane_value *)lanes[i])->bits = set;
}

template <float (*VALUE)(uint16_t)> static void multiply(void *lanes[32]) {
    float a[16][16], b[16][8];
    auto half = [](unsigned r, int i) { return VALUE((uint16_t)(r >> 16 * i)); };
    for (int l = 0; l < 32; l++) {
        const emu_tile *x = (const emu_tile *)lanes[l];
        int g = l / 4, t = l % 4;
        for (int i = 0; i < 2; i++) {
            for (int r = 0; r < 4; r++) a[g + r % 2 * 8][2 * t + i + r / 2 * 8] = half(x->a[r], i);
            for (int r = 0; r < 2; r++) b[2 * t + i + r * 8][g] = half(x->b[r], i);
        }
    }
    for (int l = 0; l < 32; l++) {
        const emu_tile *x = (const emu_tile *)lanes[l];
        for (int r = 0; r < 4; r++) {
            int row = l / 4 + r / 2 * 8, col = l % 4 * 2 + r % 2;
            float acc = x->c[r];
            for (int k = 0; k < 16; k++) acc += a[row][k] * b[k][col];
            x->c[r] = acc;
        }
    }
}

void emu_mma_bf16(void *lanes[32], unsigned) { multiply<bf16_to_float>(lanes); }
void emu_mma_f16(void *lanes[32], unsigned) { multiply<f16_to_float>(lanes); }

/* rows of 8 elements in, row 8 m + i from that lane; registers out */
static void distribute(void *lanes[32], bool trans) {
    uint16_t e[32][8];
    for (int l = 0; l < 32; l++)
        for (int i = 0; i < 8; i++) e[l][i] = (uint16_t)(((emu_row *)lanes[l])->word[i / 2] >> 16 * (i % 2));
    for (int l = 0; l < 32; l++)
        for (int m = 0; m < 4; m++) {
            int g = l / 4, t = l % 4;
            unsigned lo = trans ? e[8 * m + 2 * t][g] : e[8 * m + g][2 * t];
            unsigned hi = trans ? e[8 * m + 2 * t + 1][g] : e[8 * m + g][2 * t + 1];
            ((emu_row *)lanes[l])->word[m] = lo | hi << 16;
        }
}

void emu_ldmatrix(void *lanes[32], unsigned) { distribute(lanes, false); }
void emu_ldmatrix_trans(void *lanes[32], unsigned) { distribute(lanes, true); }
