/* What the merge_*.c files share and nobody else. */
#ifndef PEFT_MERGE_PARTS_H
#define PEFT_MERGE_PARTS_H

#include "merge_tool.h"

int merge_parse(merge_options *o, const merge_program *p, int argc, char **argv); /* -1 after fail() */
/* Where it goes: not onto what is read, and onto what is there only with --overwrite. */
typedef enum { MERGE_MODEL, MERGE_ADAPTER, MERGE_FILE } merge_kind; /* directories of either, or one file */
int merge_check_out(const merge_options *o, merge_kind kind);
/* What a former merge has left and this one does not replace would be loaded with or instead of the new files. */
int merge_set_aside(const file_set *set);
/* What was written: sizes, rounding, and how much of the update it left. */
void merge_report(const merge_options *o, const export_report *r, const char *format);
/* --check: base and adapter apart against what was written. base: what the adapter was merged onto. */
int merge_check(const merge_options *o, const model_source *src, base_quant base);

#endif
