/* One packed step: row i is token i of some sequence. There is no [B, T] and no padding, in training or in inference.
 */
#ifndef PEFT_CORE_BATCH_H
#define PEFT_CORE_BATCH_H

#include <stdint.h>

/* Neighbouring sequences of one adapter set. */
typedef struct batch_run {
    int row, rows, set;
} batch_run;

typedef struct batch {
    int rows, seqs, targets; /* tokens, sequences, rows with target >= 0 */
    int rows_max, seqs_max;  /* capacity of the arrays below */
    /* per row [rows] */
    int32_t *token;       /* id in the vocabulary */
    int32_t *target;      /* the token that row i must predict (already shifted), -1 = none */
    int32_t *pos;         /* position in its own sequence: 0, 1, ... */
    float *weight;        /* weight of the target in the loss, 1 unless the data says otherwise */
    uint64_t *row_sample; /* sample id of the row's sequence */
    /* per sequence [seqs] */
    int32_t *start;   /* [seqs + 1] first row of each sequence; start[seqs] == rows */
    int32_t *past;    /* keys already cached before the first row; 0 in training */
    int32_t *adapter; /* of `sets`; -1: the base model */
    uint64_t *sample; /* stable id of the sample: dropout and the loss ledger are functions of it */
    uint32_t epoch;
    /* adapters at inference, host memory; sets NULL: the rows are all of the adapter that is attached to the model */
    const struct lora_sets *sets; /* peft/served.h */
    batch_run *run;               /* [runs <= seqs], by batch_find_runs */
    int runs;
} batch;

int batch_open(batch *b, int rows_max, int seqs_max); /* heap; clears everything */
void batch_close(batch *b);
void batch_clear(batch *b);
/* Appends a sequence of n tokens with its shifted targets: row i predicts labels[i + 1] (-100 = none). CHECKs capacity.
 */
void batch_add(batch *b, const int32_t *ids, const int32_t *labels, int n, uint64_t sample);

void batch_find_runs(batch *b); /* after the last batch_add, from adapter[] */

#endif
