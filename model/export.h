/* A model, with an adapter merged into it or not, written as files one tensor at a time: a Hugging Face directory of
 * floats, one whose linear layers are in NF4 as bitsandbytes keeps them, or a GGUF file.
 *
 * Memory: panels of rows, the tensor's NF4 codes where base or target is 4-bit, one module's A and B, and the pages of
 * the mapping that the current tensor touches: below two tensors and 64 MiB. */
#ifndef PEFT_MODEL_EXPORT_H
#define PEFT_MODEL_EXPORT_H

#include "core/file_set.h"
#include "core/gguf_write.h"
#include "model/imatrix.h"
#include "model/model.h"

#define EXPORT_SHARD_BYTES 5000000000 /* as transformers splits */

/* What --to names (export_target.c). */
typedef struct export_target {
    const char *name;
    int fmt;       /* FMT_* of the matrices; of a mix: of most of them */
    int more;      /* FMT_* of the tensors that a mix gives more bits, else -1 */
    int file_type; /* general.file_type of a GGUF file; -1: not written as GGUF */
    bool hf;       /* written as a Hugging Face directory */
    bool hf_only;
} export_target;
const export_target *export_target_by_name(const char *name); /* NULL: none */
void export_target_list(char *buf, size_t size);              /* "f32, f16, ...": for messages */
/* FMT_* of one tensor of a GGUF file (rows 0: a vector), as llama.cpp's llama-quantize chooses. */
int export_target_format(const export_target *t, const model_source *s, const char *hf_name, int64_t rows,
                         int64_t cols);

typedef struct export_options {
    const export_target *to;
    st_dtype dtype;                                /* of floats in a Hugging Face directory: F32, F16 or BF16 */
    bool double_quant;                             /* NF4: 8-bit scales */
    base_quant base;                               /* NF4: the linear layers are what training saw, dequantised */
    const struct quant_cache *quant;               /* that base as an earlier start left it, or NULL */
    const imatrix *importance;                     /* of the input channels, for quantising, or NULL */
    uint64_t shard_bytes;                          /* a file of a directory is at most this, or one tensor */
    void (*progress)(void *ctx, int done, int of); /* after each tensor; may be NULL */
    void *ctx;
} export_options;

/* One tensor as it was written. Sums of squares over its elements: of the values, of the update, of the rounding; and
 * the product of rounding and update. NF4's rounding is taken before its scales are rounded to 8 bits. */
typedef struct export_row {
    char name[160]; /* Hugging Face's */
    const weight_format *fmt;
    int64_t rows, cols; /* rows 0: a vector */
    uint64_t bytes;
    bool merged, copied; /* has an adapter; its bytes are the base's */
    double value_sq, update_sq, error_sq, error_update;
} export_row;

typedef struct export_report {
    export_row *row; /* heap, in the order of writing */
    int tensors, files, merged;
    uint64_t bytes;
} export_report;
void export_report_free(export_report *r);
/* Update over rounding, as root mean squares; 0 where nothing was rounded. */
double export_row_ratio(const export_row *r);
/* How much of the update the written weights hold: the change from base to file projected onto the update. 1: all of it
 * and nothing systematic lost; near 0: rounded away. */
double export_row_kept(const export_row *r);

/* m: opened over a planning arena; ad: NULL, or attached to it over a planning arena too, its tensors being read from
 * `tensors`. */
typedef struct export_input {
    const model_source *s;
    const model *m;
    const adapter *ad;
    const safetensors *tensors;
    kctx *k;
} export_input;

/* model.safetensors, or shards and their index, into set. */
int export_hf(const export_input *in, const export_options *o, file_set *set, export_report *r);
/* One GGUF file. tokenizer: a Hugging Face directory, or NULL: the model's own. */
int export_gguf(const export_input *in, const export_options *o, const char *tokenizer, const char *path,
                export_report *r);
/* config.json, generation_config.json and the tokenizer's files (of `tokenizer`, a directory, when it is not NULL). */
int export_texts(const model_source *s, const char *tokenizer, const export_options *o, file_set *set);
/* Names that a directory written here may hold, NULL at the end: with --overwrite those of them that are not written
 * anew must not stay beside the new ones. */
extern const char *const export_names[];

#endif
