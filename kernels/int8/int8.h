/* Inference's fast mode: the overlays "avx2-int8", "avx512-int8", "avx512vnni-int8", "neon-int8" (and "ref-int8", which
 * fixes their bits) replace the product of activations with packed weights (rows16.h) by integer dot products.
 *
 * A row x of activations is rounded by blocks of 32 columns to 8 bits:
 *     a = max |x|, r = 127 / a (0 where a <= 2^-100), q = nearest even integer of x * r, e = a / 127    each operation
 * rounded and e is NaN where the block holds a NaN or an infinity. The rounding error is at most a / 254 an element,
 * 0.4 to 0.6 % of a block of normal numbers in the root mean square. Every output is one chain over the blocks in
 * order, begun at what stands in y, of fp32 operations on exact integer sums S = sum c q and X = sum q of the block:
 *     Q4_0 Q5_0 Q8_0 IQ4_NL   y = fma(S, d * e, y)                        c: the stored integers, or the table's
 *     NF4                     y = fma(S, (absmax * INT8_NF4_UNIT) * e, y) c: int8_nf4_table, which stands for the codes
 *     Q4_1 Q5_1               y = fma(S, d * e, y), then y = fma(m, e * X, y)
 *     Q4_K Q5_K               y = fma(S, (d * sc) * e, y), then y = fma(dmin * mn, -(e * X), y)
 *     Q6_K                    y = fma(S0, (d * sc0) * e, y), then the same of S1: the block's two halves of 16
 * So a row's result depends on that row alone, and all instruction sets give the same bits. The table of NF4 is off by
 * 0.0017 of absmax in the root mean square (0.0039 at most), less than the activations' error; of all tables of
 * integers up to 127 it is the one with the least error.
 *
 * A weight that is not packed is multiplied as the backend below the overlay does. */
#ifndef PEFT_KERNELS_INT8_INT8_H
#define PEFT_KERNELS_INT8_INT8_H

#include "kernels/backend.h"
#include "kernels/rows16.h"

#define INT8_SMALLEST 0x1p-100f
#define INT8_NF4_UNIT 0x1.247e16p-7f
static const int8_t int8_nf4_table[16] = {-112, -78, -59, -44, -32, -21, -10, 0, 9, 18, 28, 38, 49, 63, 81, 112};

/* 32 activations of a row. q is in the order in which the weight's codes lie; start: what the integer sums begin with
 * (the bias of the codes and of the instruction set taken off, of both halves where they have scales of their own). */
typedef struct int8_block {
    int8_t q[32];
    float scale, sum; /* e, e * X */
    int32_t start[2];
} int8_block;

#endif
