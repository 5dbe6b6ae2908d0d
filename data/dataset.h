/* From the files of `datasets:` to packed batches. Rows are read once, tokenised, masked and kept as ids; the order of an
 * epoch is a permutation that is a pure function of (seed, epoch) unless shuffle_merged_datasets is false. */
#ifndef PEFT_DATA_DATASET_H
#define PEFT_DATA_DATASET_H

#include "core/batch.h"
#include "core/config.h"
#include "data/chat.h"
#include "data/tokenizer.h"

typedef struct {
    int32_t *ids, *labels; /* [n] labels[i] belongs to ids[i]; -100 = no target; the shift is batch_add's */
    int n, targets;
    uint64_t id; /* hash of content: stable under order and split */
} sample;

typedef struct {
    sample *train, *eval;
    int n_train, n_eval;
    int64_t dropped, truncated; /* rows left out / cut at sequence_len; printed, never silent */
    int *order;                 /* permutation of this epoch */
    uint64_t seed;
    bool shuffle, packing;
    int sequence_len, micro_batch;
} dataset;

/* Reads and tokenises everything, splits val_set_size off by a hash of content and seed. tok may be NULL when every set is
 * of type tokenized. vocab bounds ids. -1 after fail(): file:line, what was found, what is expected. */
int dataset_open(dataset *ds, const config *c, const tokenizer *tok, const chat_template *chat, int vocab);
void dataset_close(dataset *ds);
/* Micro-batches of one epoch: with packing, bins of sequence_len filled first fit in order, micro_batch bins a micro-batch;
 * without, micro_batch samples. */
int dataset_begin_epoch(dataset *ds, int epoch);              /* returns the number of micro-batches of this epoch */
void dataset_batch(const dataset *ds, int index, batch *b);   /* fills b with micro-batch `index` of this epoch */
int dataset_eval_batches(const dataset *ds);                  /* eval rows in order, same packing rule, never shuffled */
void dataset_eval_batch(const dataset *ds, int index, batch *b);
int dataset_rows_max(const dataset *ds); /* most rows / sequences that any batch of any epoch can have: the plan's worst batch */
int dataset_seqs_max(const dataset *ds);

#endif
