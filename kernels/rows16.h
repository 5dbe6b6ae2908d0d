/* A quantised matrix repacked for inference, sixteen rows side by side: lane r of every vector is row r of a group, so
 * that a product with it needs no sum across lanes and one layout serves every instruction set, decode and prefill.
 * Nothing is lost: the codes and scales are the stored ones, in another order, and what the file's pages held may be
 * dropped. Matrices in 16 or 32 bits can be held as Q8_0's blocks too (`lossy`), for modes that round anyway.
 *
 * A sliver is 16 rows (those beyond the matrix are zeros), `sliver` bytes from the next. It is a row of units
 * (rows16.def says of how many columns), so that a product reads one stream; a unit holds, one after another, scales
 * arrays of 16, of every 32 columns or of the unit: Q4_0 Q5_0 Q8_0 IQ4_NL  d f16 [2][16]     Q4_1 Q5_1  d f16, m f16
 * NF4  absmax f32 Q4_K Q5_K  d f16, dmin f16, sc u8 [8][16], mn u8 [8][16]              Q6_K  d f16, sc s8 [16][16]
 *   bits    what a code has above four bits, by blocks of 32 columns. 5-bit: one vector, bit g of byte 4 r + i for
 * column 4 g + i. 6-bit: two vectors, vector h has bits 2 g, 2 g + 1 of byte 4 r + i for column 16 h + 4 g + i. codes
 * by blocks of 32 columns. 4-bit formats: 4 vectors of 64 bytes; byte 4 r + i of vector j holds column 4 j + i of row r
 * in its low and column 16 + 4 j + i in its high nibble (NF4: columns 8 j + 2 i + 1 and 8 j + 2 i, as bitsandbytes'
 * bytes lie). 8-bit formats: 8 vectors; byte 4 r + i of vector j is column 4 j + i, plus 128. Where a row's last unit
 * is not full, it ends with zeros.
 *
 * As a weight: its format has id FMT_ROWS16 and the name, block and dequantiser of what it was made from, so whatever
 * knows no packed rows computes with the exact values; meta is the rows16. */
#ifndef PEFT_KERNELS_ROWS16_H
#define PEFT_KERNELS_ROWS16_H

#include "core/arena.h"
#include "kernels/weight.h"

enum { FMT_ROWS16 = FORMATS };
enum { ROWS16_LANES = 16, ROWS16_BLOCK = 32 };

/* ROWS16_Q4_0_UNIT columns and ROWS16_Q4_0_BYTES bytes of a unit; where in it bits and codes begin */
#define R(id, unit, scales, bits, codes)                                                                               \
    enum {                                                                                                             \
        ROWS16_##id##_UNIT = unit,                                                                                     \
        ROWS16_##id##_BITS = scales,                                                                                   \
        ROWS16_##id##_CODES = scales + unit / 32 * bits,                                                               \
        ROWS16_##id##_BYTES = scales + unit / 32 * (bits + codes)                                                      \
    };
#include "kernels/rows16.def"
#undef R

typedef struct rows16 {
    int kind;       /* FMT_* whose codes these are: of the matrix it was made from, or FMT_Q8_0 where that was dense */
    bool lossy;     /* made from 16- or 32-bit numbers */
    int64_t blocks; /* of 32 columns in a row */
    int64_t sliver; /* bytes */
    int64_t slivers;
    const uint8_t *data; /* 64-byte aligned */
    weight origin;       /* what it was made from; pages of a file that are read again when somebody dequantises */
    int heads;           /* origin's rows are in GGUF's order of q and k (weight_unpermute_rows); 0: in order */
    weight_format fmt;
} rows16;

/* Bytes of the packed data; 0: rows of this matrix are no whole blocks, or it is dense and lossy is false. */
int64_t rows16_bytes(const weight *w, bool lossy);
/* Packs w into `run` (sizes only when it is planning) with all threads. The rows16 in meta is heap memory that
 * weight_release frees, together with origin's. rows16_bytes(w, lossy) > 0. */
weight rows16_pack(const weight *w, int heads, bool lossy, arena *run);
/* Frees meta of a weight, whatever made it. */
void weight_release(weight *w);

static inline const rows16 *weight_rows16(const weight *w) {
    return w->fmt->id == FMT_ROWS16 ? (const rows16 *)w->meta : NULL;
}
static inline const uint8_t *rows16_sliver(const rows16 *r, int64_t i) { return r->data + i * r->sliver; }

#endif
