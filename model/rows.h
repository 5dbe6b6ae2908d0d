/* Rows of a stored matrix as the model uses them. heads: model_source_permuted of the tensor (0: rows are in order). */
#ifndef PEFT_MODEL_ROWS_H
#define PEFT_MODEL_ROWS_H

#include "core/arena.h"
#include "kernels/weight.h"

/* GGUF's llama files interleave the two halves of each head of q and k (heads > 0): the row of the file that holds row
 * r of the model, and the way back. rows: of the matrix. */
int64_t rows_file_row(int64_t r, int heads, int64_t rows);
int64_t rows_hf_row(int64_t file_row, int heads, int64_t rows);
/* out [n, cols] = rows row .. row + n - 1 as fp32, in Hugging Face order. */
void rows_dequant(const weight *w, int heads, int64_t row, int64_t n, float *out);
/* The whole matrix as load_in_4bit holds it, over run (sizes only when it is planning). meta is heap: free it. */
weight rows_nf4(const weight *w, int heads, bool double_quant, arena *run);

#endif
