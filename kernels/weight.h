/* A frozen matrix [out, in] in any storage format. It has no gradient field: frozen is a type, not a flag.
 *
 * A format is one file fmt_NAME.c and one row of formats.def. The row dequantiser of the format is the reference that
 * fixes its bits; every fused kernel is tested against it, and the generic path of the GEMM calls it. */
#ifndef PEFT_KERNELS_WEIGHT_H
#define PEFT_KERNELS_WEIGHT_H

#include "kernels/mat.h"
#include <stddef.h>

typedef struct weight weight;

typedef struct weight_format {
    const char *name; /* "f32", "nf4", "q4_0" ... as in YAML, logs and --to */
    int id;           /* FMT_* */
    int ggml_type;    /* id in GGUF, -1 when the format does not exist there */
    int block;        /* elements per block of `data` */
    int bytes;        /* bytes per block of `data` */
    /* out[0, n) = elements [at, at + n) of the matrix flattened row-major, dequantised to fp32. Any at and n. */
    void (*dequant)(const weight *w, int64_t at, int64_t n, float *out);
    /* Quantises n elements (n a multiple of block) into dst; NULL where writing is not supported. */
    void (*quant)(const float *x, int64_t n, void *dst);
} weight_format;

struct weight {
    const weight_format *fmt;
    int64_t rows, cols; /* out features, in features */
    int64_t count;      /* > 1: stacked experts */
    const void *data;   /* borrowed: a mapping, or memory of the `run` arena */
    const void *meta;   /* the format's own struct, NULL where data says it all */
};

/* NF4 as bitsandbytes keeps it (Dettmers et al. 2023, section 3): blocks of `blocksize` elements of the flattened
 * matrix, which may straddle rows; byte j holds element 2j in its high nibble. Scales are fp32 (absmax), or 8-bit codes
 * of a 256-entry map with one fp32 scale per nested_block of them and an offset (double quantisation): absmax(i) =
 * fl(map[code[i]] * nested_absmax[i / nested_block]) + offset     (two roundings, as bitsandbytes does) w(e)      =
 * code_table[nibble(e)] * absmax(e / blocksize) */
typedef struct {
    int blocksize;              /* 64 */
    int nested_block;           /* 256; 0 = scales are plain fp32 */
    const float *absmax;        /* [blocks] when nested_block == 0 */
    const uint8_t *code;        /* [blocks] otherwise */
    const float *nested_absmax; /* [ceil(blocks / nested_block)] */
    const float *map;           /* [256] */
    float offset;
} nf4_meta;

extern const float nf4_codes[16];
extern const float nf4_dynamic_map[256]; /* bitsandbytes' signed dynamic map */
float nf4_absmax(const nf4_meta *m, int64_t block);
size_t nf4_data_bytes(int64_t n);
/* Quantises a matrix of n elements handed over in pieces, so that the fp32 matrix never exists as a whole.
 * codes [nf4_data_bytes(n)], absmax [ceil(n / 64)]: caller's. Each piece but the last is a multiple of 64 elements. */
void nf4_quant(const float *x, int64_t n, uint8_t *codes, float *absmax);
/* Double quantisation of `blocks` scales in place of absmax: code [blocks], nested [ceil(blocks / 256)]; returns
 * offset. */
float nf4_quant_scales(const float *absmax, int64_t blocks, uint8_t *code, float *nested);

/* formats.def: F(ID, name, ggml_type, block, bytes, dequant, quant) */
enum {
#define F(id, name, ggml, block, bytes, dequant, quant) FMT_##id,
#include "kernels/formats.def"
#undef F
    FORMATS
};
extern const weight_format weight_formats[FORMATS];
const weight_format *format_by_name(const char *name);
const weight_format *format_by_ggml(int ggml_type); /* NULL when this build does not read it */
/* Quantises n elements (whole blocks). importance [n]: what the squared error of each element weighs, or NULL: all
 * alike. Formats whose levels follow from a block's extremes alone (floats, Q8_0) take no notice of it. */
void weight_quant(const weight_format *f, const float *x, const float *importance, int64_t n, void *dst);
int64_t weight_bytes(const weight *w); /* of data, as stored */

/* GGUF keeps the rows of llama's q and k interleaved in each head: its row h*D + 2j is row h*D + j of Hugging Face, its
 * row h*D + 2j + 1 is row h*D + D/2 + j (D = rows / heads, even; heads of k are the key-value heads). Copies whole
 * stored rows of w into Hugging Face order; dst has weight_bytes(w). The format must not let blocks straddle rows. */
void weight_unpermute_rows(const weight *w, int heads, void *dst);

static inline weight weight_f32(const float *data, int64_t rows, int64_t cols) {
    return (weight){&weight_formats[FMT_F32], rows, cols, 1, data, NULL};
}

#endif
