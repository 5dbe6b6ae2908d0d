/* Backends that live in a shared object of their own, so that the programs link no library of a device: peft_cuda.so
 * (nvcc) and peft_emu.so (the same sources executed on the CPU). The object has one symbol, `peft_plugin`, and takes
 * from the program the few that plugin.exports names. */
#ifndef PEFT_KERNELS_PLUGIN_H
#define PEFT_KERNELS_PLUGIN_H

#include "kernels/backend.h"

/* What both sides must have been built from: the prototypes of all rows and the sizes of the structs that they pass. */
static const char plugin_rows[] =
#define K(name, args) #name #args ";"
#include "kernels/kernels.def"
#undef K
    ;
static const size_t plugin_sizes[] = {sizeof(backend),       sizeof(kctx),          sizeof(memory),
                                      sizeof(mat),           sizeof(weight),        sizeof(weight_format),
                                      sizeof(nf4_meta),      sizeof(attn),          sizeof(rope),
                                      sizeof(dropout),       sizeof(step_sums),     sizeof(adamw_hp),
                                      sizeof(adamw8),        sizeof(adamw8_tensor), sizeof(proj_fwd_args),
                                      sizeof(proj_bwd_args), sizeof(kv_pages),      sizeof(lora_fwd_args),
                                      sizeof(lora_item),     sizeof(lora_part),     FORMATS};

typedef struct plugin {
    const char *rows; /* plugin_rows and plugin_sizes of the object */
    const size_t *sizes;
    size_t n_sizes;
    const backend *be;
} plugin;

/* A symbol of an object that lies where backends lie; NULL where there is none. */
const void *plugin_symbol(const char *file, const char *symbol);
const backend *plugin_open(const char *name); /* "cuda": NULL after fail(EXIT_USAGE), which says what to do */

#endif
