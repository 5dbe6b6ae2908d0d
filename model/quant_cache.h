/* The 4-bit base kept between starts: NF4 codes and scales, made once, mapped at every later start.
 *
 * One safetensors file a base, DIR/KEY.safetensors, in the layout of bitsandbytes' checkpoints (NAME.weight, .absmax,
 * .nested_absmax, .quant_map, .nested_quant_map, .quant_state.bitsandbytes__nf4), so that it can be read by others, and
 * a checksum of every module. KEY is a hash of the content of the base's files and of everything else that decides a
 * bit: modules, shapes, row order, double quantisation, this layout's version and what this program's quantiser makes
 * of a fixed input. So a base has one file wherever it lies, and another content is another key.
 *
 * Reading the whole base at every start would cost more than is saved, so its hash is remembered beside the caches in
 * DIR/base-*.txt under device, inode, size, times of last change and a hash of some of its pages; whoever differs in
 * one of them is read again. Nothing here is fatal: what cannot be read or written is said in one note, and the base is
 * quantised into memory as if there were no cache. Every file in DIR may be deleted at any time. */
#ifndef PEFT_MODEL_QUANT_CACHE_H
#define PEFT_MODEL_QUANT_CACHE_H

#include "model/model.h"

/* VERIFY: ON, and no remembered hash is trusted. READ: what is there is used, nothing is made. */
typedef enum { QUANT_CACHE_OFF, QUANT_CACHE_ON, QUANT_CACHE_VERIFY, QUANT_CACHE_READ } quant_cache_mode;
#define QUANT_CACHE_MODES "true, false or verify"
#define QUANT_CACHE_MIN_BYTES (8 << 20) /* below, quantising is as fast as opening a file */

typedef struct quant_cache_options {
    quant_cache_mode mode;
    const char *dir;   /* NULL: ${XDG_CACHE_HOME:-~/.cache}/peft.c/nf4 */
    int64_t min_bytes; /* of codes and scales: smaller bases are not kept */
} quant_cache_options;

typedef struct quant_module {
    char *name; /* model.layers.0.self_attn.q_proj */
    int64_t rows, cols;
    int heads; /* rows of the file are interleaved (model_source_permuted) */
    const uint8_t *codes;
    nf4_meta meta; /* views into the mapping */
} quant_module;

typedef struct quant_cache {
    safetensors st;        /* the mapping; n == 0: none, and the base is quantised into memory */
    quant_module *modules; /* [n] sorted by name */
    int n;
    bool made; /* by this call: it was not there, or not fit for use */
} quant_cache;

/* Finds the base's file or makes it, checks every byte of it, and maps it: once, before the plan, so that plan and run
 * see the same. Must outlive the models that were given it. */
void quant_cache_open(quant_cache *q, const model_source *s, bool double_quant, const quant_cache_options *o);
void quant_cache_close(quant_cache *q);
/* The module in NF4, its meta on the heap as rows_nf4's. false: not there. q may be NULL. */
bool quant_cache_weight(const quant_cache *q, const char *module, int64_t rows, int64_t cols, weight *w);
bool quant_cache_mode_by_name(const char *name, quant_cache_mode *mode);

#endif
