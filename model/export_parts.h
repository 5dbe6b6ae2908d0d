/* What the export*.c files share and nobody else: the list of tensors, and the walk of one of them from the base's rows
 * over the update to the bytes of the target. */
#ifndef PEFT_MODEL_EXPORT_PARTS_H
#define PEFT_MODEL_EXPORT_PARTS_H

#include "model/export.h"

typedef struct export_item {
    char name[160];
    int64_t rows, cols; /* rows 0: a vector */
    const proj *p;      /* of a linear layer, else NULL */
    const weight_format *fmt;
    int heads_out; /* rows are written interleaved for so many heads (GGUF's q and k of llama); 0: in order */
    int file;
} export_item;

typedef struct exporter {
    export_input in;
    const export_options *o;
    export_report *r;
    export_item *items;
    int n, done;
    /* one panel */
    float *panel, *delta, *scaled, *a, *b, *b_file, *back;
    void *out;
    double (*sums)[4]; /* of a group of rows: value, update, error squared; error times update */
    /* one tensor in NF4 */
    uint8_t *codes, *scale_codes;
    float *absmax, *nested, offset;
} exporter;

/* Where finished bytes go. */
typedef struct export_sink export_sink;
struct export_sink {
    int (*put)(export_sink *k, const void *data, uint64_t bytes);
};

/* Lists the tensors; the caller sets fmt, heads_out and file of each, then export_open makes the memory and reads the
 * adapter through once, so that a bad one is refused before anything large is written. */
void export_list(exporter *e, const export_input *in, const export_options *o, export_report *r);
int export_open(exporter *e);
void export_close(exporter *e);
/* Rows of a block format go to k as they are done; NF4 stays in e->codes, absmax, scale_codes, nested and offset. */
int export_tensor(exporter *e, const export_item *it, export_sink *k);

#endif
