/* A model with an adapter merged into it, written as a Hugging Face directory one tensor at a time.
 *
 * Memory: panels of rows, the tensor's NF4 codes where the base is 4-bit, one module's A and B, and the pages of the
 * mapping that the current tensor touches: below two tensors and 64 MiB. */
#ifndef PEFT_MODEL_EXPORT_H
#define PEFT_MODEL_EXPORT_H

#include "core/file_set.h"
#include "model/model.h"

#define EXPORT_SHARD_BYTES 5000000000 /* as transformers splits */

typedef struct export_options {
    st_dtype dtype;                                /* F32, F16 or BF16 */
    base_quant base;                               /* NF4: the linear layers are what training saw, dequantised */
    const struct quant_cache *quant;               /* that base as an earlier start left it, or NULL */
    uint64_t shard_bytes;                          /* a file is at most this, or one tensor */
    void (*progress)(void *ctx, int done, int of); /* after each tensor; may be NULL */
    void *ctx;
} export_options;

/* Sizes of updates and of the rounding to the output's type, both as root mean square over a module. */
typedef struct export_report {
    int tensors, files, merged;             /* merged: modules with an adapter */
    double ratio_sum, ratio_min, ratio_max; /* of update / rounding over the modules; 0 where nothing was rounded */
    int zero;                               /* modules whose update is exactly 0 */
} export_report;

/* model.safetensors, or shards and their index, into set. m: opened over a planning arena, its projections carrying the
 * adapter ad (attached over a planning arena too), whose tensors are read from `tensors`. */
int export_weights(const model_source *s, const model *m, const adapter *ad, const safetensors *tensors, kctx *k,
                   const export_options *o, file_set *set, export_report *r);
/* config.json, generation_config.json and the tokenizer's files (of `tokenizer`, a directory, when it is not NULL). */
int export_texts(const model_source *s, const char *tokenizer, st_dtype dtype, file_set *set);
/* Names that a directory written here may hold, NULL at the end: with --overwrite those of them that are not written
 * anew must not stay beside the new ones. */
extern const char *const export_names[];

#endif
