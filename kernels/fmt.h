/* What the fmt_*.c files share with the table of formats.c and nobody else: prototypes of its rows, and the walk over
 * whole and cut blocks that every block format needs. */
#ifndef PEFT_KERNELS_FMT_H
#define PEFT_KERNELS_FMT_H

#include "core/num.h"
#include "kernels/weight.h"

#define FMT_BLOCK_MAX 256

/* out[0, blocks * fmt->block) = the values of `blocks` whole blocks at src, of any alignment. */
typedef void fmt_blocks_fn(const uint8_t *restrict src, int64_t blocks, float *restrict out);

/* dequant() of a format whose blocks say all by themselves: cut blocks at either end go through a small buffer. */
void fmt_span(const weight *w, int64_t at, int64_t n, float *out, fmt_blocks_fn *decode);

static inline uint16_t fmt_u16(const uint8_t *p) { return (uint16_t)(p[0] | p[1] << 8); }
static inline float fmt_f16(const uint8_t *p) { return f16_to_float(fmt_u16(p)); }
static inline void fmt_put_f16(uint8_t *p, float f) {
    const uint16_t h = float_to_f16(f);
    p[0] = (uint8_t)h, p[1] = (uint8_t)(h >> 8);
}

#define FMT_DEQUANT(name) void fmt_##name##_dequant(const weight *w, int64_t at, int64_t n, float *out)
#define FMT_QUANT(name) void fmt_##name##_quant(const float *x, int64_t n, void *dst)
FMT_DEQUANT(f32);
FMT_DEQUANT(f16);
FMT_DEQUANT(bf16);
FMT_DEQUANT(nf4);
FMT_DEQUANT(q4_0);
FMT_DEQUANT(q4_1);
FMT_DEQUANT(q5_0);
FMT_DEQUANT(q5_1);
FMT_DEQUANT(q8_0);
FMT_DEQUANT(iq4_nl);
FMT_DEQUANT(q4_k);
FMT_DEQUANT(q5_k);
FMT_DEQUANT(q6_k);
FMT_QUANT(f32);
FMT_QUANT(f16);
FMT_QUANT(bf16);
FMT_QUANT(q4_0);
FMT_QUANT(q4_1);
FMT_QUANT(q5_0);
FMT_QUANT(q5_1);
FMT_QUANT(q8_0);
FMT_QUANT(iq4_nl);
FMT_QUANT(q4_k);
FMT_QUANT(q5_k);
FMT_QUANT(q6_k);

/* w [n]: what the squared error of each element weighs; NULL (K-quants only): 1. */
#define FMT_QUANT_WEIGHTED(name) void fmt_##name##_quant_weighted(const float *x, const float *w, int64_t n, void *dst)
FMT_QUANT_WEIGHTED(q4_0);
FMT_QUANT_WEIGHTED(q4_1);
FMT_QUANT_WEIGHTED(q5_0);
FMT_QUANT_WEIGHTED(q5_1);
FMT_QUANT_WEIGHTED(q4_k);
FMT_QUANT_WEIGHTED(q5_k);
FMT_QUANT_WEIGHTED(q6_k);

extern const int8_t fmt_iq4_nl_table[16];

#endif
