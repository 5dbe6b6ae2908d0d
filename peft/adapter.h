/* A LoRA adapter: which modules it touches, one flat vector of parameters, one of gradients, and named views into them,
 * so that AdamW, clipping, zeroing, summing over ranks and checkpointing are one call each. */
#ifndef PEFT_PEFT_ADAPTER_H
#define PEFT_PEFT_ADAPTER_H

#include "core/config.h"
#include "core/safetensors.h"
#include "peft/proj.h"

#define ADAPTER_FILE "adapter_model.safetensors"
#define ADAPTER_BASE_KEY "base_quantization"

/* What the base was while the adapter was trained: its own numbers, or NF4 with plain or 8-bit scales. PEFT has no
 * field for it; here it stands in the metadata of adapter_model.safetensors, as "base_quantization", so that merging
 * and inference can use what training saw. */
typedef enum { BASE_AS_IS, BASE_NF4, BASE_NF4_DOUBLE, BASE_QUANTS } base_quant;
extern const char *const base_quant_names[BASE_QUANTS]; /* "none", "nf4", "nf4-double" */

/* What adapter_config.json says (PEFT's LoraConfig). Heap strings; lora_config_free. */
typedef struct lora_config {
    int r;
    double alpha, dropout;
    bool rslora;
    string_list targets; /* module names or suffixes; with regex: one pattern for the whole path */
    bool regex, all_linear;
    bool every; /* a directory's targets must come to every linear module: the YAML file says all-linear too */
    char *base_model;
    base_quant base;
    char *where; /* the adapter_config.json that it was read from; NULL: made from YAML */
} lora_config;

int lora_config_from(lora_config *l,
                     const config *c); /* out of YAML; with lora_model_dir: from there, contradictions are errors */
int lora_config_read(lora_config *l,
                     const char *dir); /* DIR/adapter_config.json; refuses what would change the maths */
int lora_config_write(const lora_config *l, const char *dir); /* atomic; PEFT's keys, sorted, inference_mode true */
void lora_config_free(lora_config *l);
void lora_config_add_target(lora_config *l, const char *name);
bool lora_config_names(const lora_config *l, const char *name); /* whether it is an entry of targets */
float lora_config_scale(const lora_config *l);
/* PEFT's matching: a list entry is the whole path or a suffix ".name"; a pattern must match the whole path. -1: bad
 * pattern. */
int lora_config_matches(const lora_config *l, const char *path);

/* Projections in the order of the model; those of one group share their input. */
typedef struct proj_group_ref {
    proj *p;
    int n;
} proj_group_ref;

typedef struct adapter_view {
    char *name;
    param p;
} adapter_view; /* "base_model.model.<path>.lora_A.weight" */

typedef struct adapter {
    lora_config cfg;
    lora *loras;
    int n_loras;
    adapter_view *views; /* 2 per module, A and B, in model order */
    int n_views;
    float *param, *grad; /* flat, [n], in the run arena; grad NULL for inference */
    int64_t n;
    memory *mem; /* of param and grad */
} adapter;

/* Attaches to every projection that cfg names (takes cfg over). Within a group the A's lie side by side, then the B's.
 * all_linear becomes the list of names that PEFT would write. -1 when a name of YAML matches nothing: names the
 * nearest; names of a directory may match nothing, as in PEFT: there the tensors decide (adapter_load). */
int adapter_attach(adapter *ad, lora_config *cfg, const proj_group_ref *groups, int n_groups, uint64_t seed,
                   bool trainable, arena *run);
void adapter_detach(const proj_group_ref *groups, int n_groups); /* every projection is bare again */
void adapter_init(adapter *ad,
                  uint64_t seed); /* PEFT's default: A ~ U(-1/sqrt(in), 1/sqrt(in)) (kaiming, a = sqrt 5), B = 0 */
int adapter_load(adapter *ad,
                 const char *dir); /* every tensor, F32, F16 or BF16; missing, unused, misshapen, NaN: errors */
/* The parts of adapter_load, for who wants a module at a time and no room for all: the file with names, shapes and
 * types checked, and one of its tensors as fp32. View 2 i is A of loras[i], view 2 i + 1 its B. */
int adapter_file_open(const adapter *ad, const char *dir, safetensors *st);
int adapter_file_check(
    const adapter *ad, const safetensors *st,
    const char *where); /* the tensors are the adapter's, all of them and no other; names, shapes, types */
int adapter_load_from(adapter *ad, const safetensors *st); /* of a file that was checked, all of its values */
int adapter_file_read(const safetensors *st, const adapter_view *v, float *out); /* -1: not finite */
int adapter_save(const adapter *ad,
                 const char *dir); /* adapter_config.json and adapter_model.safetensors, each atomic */
/* Any vector of the host with the adapter's layout under the same names (gradients, moments). */
int adapter_save_vector(const adapter *ad, const float *v, const char *path);
void adapter_close(adapter *ad);

#endif
