/* From the files of `datasets:` to packed batches. Rows are read once, tokenised, masked and kept as ids; the order of
 * an epoch is a permutation that is a pure function of (seed, epoch) unless shuffle_merged_datasets is false.
 *
 * What a row becomes, by type:
 *   chat_template, messages, sharegpt   the chat template's text of the whole conversation; nothing is added. Loss on
 * the content of assistant turns and their end-of-turn token: on every token that holds a byte of them. A turn may be
 *       left out with "train": false or "weight": 0. Special tokens come from the template only, never from content.
 *   alpaca      Stanford Alpaca's prompt, then the output and EOS, which carry loss. Prompt and output are encoded
 * apart, as generation from the prompt will be. Text of special tokens is plain text. completion  the text and EOS, all
 * of it with loss. Special tokens in the text are parsed, as the whole text is the author's; an EOS or BOS that is
 * there already is not added again. tokenized   input_ids and labels as they are: no BOS, no EOS; -100 is no target.
 * BOS is written where the tokenizer adds it by itself (alpaca, completion) and is never a target. train_on_inputs
 * makes every other token of a text row a target. */
#ifndef PEFT_DATA_DATASET_H
#define PEFT_DATA_DATASET_H

#include "core/batch.h"
#include "core/config.h"
#include "data/chat.h"
#include "data/packing.h"
#include "data/tokenizer.h"

typedef struct {
    int32_t *ids, *labels; /* [n] labels[i] belongs to ids[i]; -100 = no target; the shift is batch_add's */
    int n, targets;        /* targets: labels[1, n) that are >= 0 */
    uint64_t id;           /* hash of content: stable under order and split */
} sample;

typedef struct {
    sample *train, *eval; /* in the order of the files */
    int n_train, n_eval;
    int64_t dropped, truncated; /* rows left out / cut at sequence_len; printed, never silent */
    int64_t dropped_short;      /* of the dropped: rows of fewer than two tokens; the others had no target left */
    int *order;                 /* permutation of this epoch */
    int epoch;
    uint64_t seed;
    bool shuffle, packing;
    int sequence_len, micro_batch;
    bin_list train_bins, eval_bins; /* with packing */
    int rows_max, seqs_max;
    int32_t *pool; /* ids and labels of all samples */
} dataset;

/* Reads and tokenises everything, splits val_set_size off by a hash of content and seed. tok may be NULL when every set
 * is of type tokenized, chat when none is a chat. vocab bounds ids. -1 after fail(): file:line, what was found, what is
 * expected.
 *
 * The split does not depend on the order of rows or files. Rows of the same content always go to the same side, so that
 * the held-out side may be larger than asked for by the copies of one row; it never takes all rows. */
int dataset_open(dataset *ds, const config *c, const tokenizer *tok, const chat_template *chat, int vocab);
void dataset_close(dataset *ds);
/* Micro-batches of one epoch: with packing, bins of sequence_len filled first fit in order, micro_batch bins a
 * micro-batch; without, micro_batch samples. Neither allocates. */
int dataset_begin_epoch(dataset *ds, int epoch);            /* returns the number of micro-batches of this epoch */
void dataset_batch(const dataset *ds, int index, batch *b); /* fills b with micro-batch `index` of this epoch */
int dataset_eval_batches(const dataset *ds);                /* eval rows in order, same packing rule, never shuffled */
void dataset_eval_batch(const dataset *ds, int index, batch *b);
int dataset_rows_max(
    const dataset *ds); /* most rows / sequences that any batch of any epoch can have: the plan's worst batch */
int dataset_seqs_max(const dataset *ds);
/* A line or two: rows, tokens, share of targets, held-out rows, packing efficiency of epoch 0; dropped and truncated
 * rows. */
void dataset_summary(const dataset *ds, FILE *f);

#endif
