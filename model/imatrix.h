/* An importance matrix: for each linear layer the mean square of every input channel over some text, which weighs the
 * squared error of a quantised weight by how much that error changes the layer's output.
 *
 * llama.cpp's files are read and written, both kinds (tools/imatrix, common/imatrix-loader.cpp): GGUF with
 * general.type "imatrix" and tensors NAME.in_sum2 [in] and NAME.counts [1]; and the older binary one. Names are those
 * of GGUF tensors. */
#ifndef PEFT_MODEL_IMATRIX_H
#define PEFT_MODEL_IMATRIX_H

#include <stdbool.h>
#include <stdint.h>

typedef struct imatrix_entry {
    char *name; /* "blk.0.attn_q.weight" */
    int64_t n;
    double *sum; /* [n] of squares; divided by count: the mean */
    double count;
} imatrix_entry;

typedef struct imatrix {
    imatrix_entry *entry; /* sorted by name */
    int n;
    char *dataset; /* where the text came from, or NULL */
    int64_t chunks, chunk_size;
} imatrix;

int imatrix_read(imatrix *m, const char *path);
/* Atomic. A path that ends in ".dat" is written in the older format. */
int imatrix_write(const imatrix *m, const char *path);
void imatrix_free(imatrix *m);
/* The entry of a tensor, by GGUF name; NULL: none. */
const imatrix_entry *imatrix_find(const imatrix *m, const char *name);
/* Adds the squares of rows x [rows, n] (ld floats apart) to the tensor's entry, which is made when it is new. */
void imatrix_add(imatrix *m, const char *name, const float *x, int64_t rows, int64_t n, int64_t ld);
/* weights [n] for quantising a row: mean squares, none below a thousandth of their mean, so that a channel that the
 * text never used still has its weight. -1: the entry has another length. */
int imatrix_weights(const imatrix_entry *e, int64_t n, float *weights);

#endif
