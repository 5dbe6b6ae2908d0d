/* What the files of kernels/int8 that are compiled per instruction set share. ISA(name) is the overlay's own function,
 * BASE(name) that of the backend below it. */
#ifndef PEFT_KERNELS_INT8_INT8_TILE_H
#define PEFT_KERNELS_INT8_INT8_TILE_H

#include "kernels/cpu/simd.h"
#include "kernels/int8/int8.h"
#include <stdbool.h>

#define BASE(name) ISA_PASTE(name, ISA_BASE)

#define K(name, args) void BASE(name) args;
#include "kernels/kernels.def"
#undef K

void ISA(weight_fwd_int8)(kctx *c, mat y, mat x, const weight *w);
void ISA(proj_fwd_int8)(kctx *c, const proj_fwd_args *a);

/* How the activations of a kind of weight are written: see int8_block. */
typedef struct int8_kind {
    bool known;
    int bias;      /* of the codes as the tile feeds them to the dots */
    bool halves;   /* sums of 16 columns each */
    bool odd_even; /* q: the odd columns, then the even ones */
} int8_kind;
extern const int8_kind ISA(int8_kinds)[FORMATS];

/* dst[b * step] = block b of a row of `blocks` blocks */
void ISA(int8_round)(int8_block *dst, int64_t step, const float *x, int64_t blocks, const int8_kind *kind);

/* n <= 16 rows of a sliver times a tile of tokens whose number T the function knows: x [blocks][T], y(t, j) =
 * y[t * ys + j] += row j of the sliver . token t */
typedef void int8_tile(const rows16 *r, const uint8_t *sliver, const int8_block *x, float *y, int64_t ys, int n);
enum { INT8_TILES = 5 }; /* of 1, 2, 4, 8, 16 tokens */
extern int8_tile *const ISA(int8_tiles)[FORMATS][INT8_TILES];
extern const int ISA(int8_tile_max); /* largest T that pays */

#endif
