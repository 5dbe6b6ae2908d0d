/* What ./merge and ./quantize share: their options, and the run from a base, with or without an adapter, to files. */
#ifndef PEFT_MERGE_TOOL_H
#define PEFT_MERGE_TOOL_H

#include "model/export.h"

typedef enum { ASK_ADAPTER, ASK_YES, ASK_NO } answer; /* to --load-in-4bit: what the adapter's file says unless given */

typedef struct merge_options {
    const char *model, *adapter, *out, *to, *dtype, *tokenizer, *backend, *imatrix, *check;
    answer load_in_4bit;
    bool plain_scales, overwrite, per_tensor;
    int threads;
    int64_t shard_bytes;
} merge_options;

typedef struct merge_program {
    const char *name;      /* "merge" */
    const char *usage;     /* its --help */
    const char *needs[4];  /* options that must be given, NULL at the end */
    const char *knows[20]; /* all its options */
    bool per_tensor;       /* size and error of each tensor are printed unasked */
} merge_program;

int merge_main(const merge_program *p, int argc, char **argv); /* returns the exit code */

#endif
