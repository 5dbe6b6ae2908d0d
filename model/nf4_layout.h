/* A matrix in NF4 as bitsandbytes keeps it in checkpoints: tensors NAME (codes, two a byte), NAME.absmax (fp32 scales,
 * or 8-bit codes of them with NAME.nested_absmax and NAME.nested_quant_map), NAME.quant_map, and a JSON text of the
 * rest in NAME.quant_state.bitsandbytes__nf4. Source: bitsandbytes/functional.py, QuantState.as_dict and from_dict. */
#ifndef PEFT_MODEL_NF4_LAYOUT_H
#define PEFT_MODEL_NF4_LAYOUT_H

#include "core/safetensors.h"
#include "kernels/weight.h"

/* In an order that keeps fp32 aligned when they follow each other in a file: the text of the state is padded with
 * spaces to a multiple of 8 bytes of all parts. */
enum { NF4_PLAIN, NF4_NESTED, NF4_NESTED_MAP, NF4_MAP, NF4_CODES, NF4_SCALES, NF4_STATE, NF4_PARTS };
enum { NF4_STATE_BYTES = 256 };

const char *nf4_part_suffix(int part); /* ".absmax"; of the codes: "" */
st_dtype nf4_part_dtype(int part);
/* Elements of each part; 0: not there. twice: 8-bit scales. */
void nf4_part_sizes(int64_t rows, int64_t cols, bool twice, int64_t n[NF4_PARTS]);
uint64_t nf4_part_bytes(int part, const int64_t n[NF4_PARTS]);
/* bitsandbytes' state as JSON, padded with spaces to n bytes; text has room for n + 1. dtype: "float32", "bfloat16"
 * ..., what a reader dequantises to. -1: the offset is not finite. */
int nf4_print_state(const char *name, int64_t rows, int64_t cols, const char *dtype, bool twice, float offset,
                    int64_t n, char *text);

#endif
