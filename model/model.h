/* A decoder-only transformer: a row of the family table, its weights, and one forward pass for all families.
 *
 * A model comes from a Hugging Face directory or a GGUF file; tensors are used where they lie in the mapping, in the
 * format of the file. What is made (NF4 codes, GGUF q/k rows in Hugging Face order, norms and rotary tables in fp32)
 * lives in the `run` arena. Row order is Hugging Face's everywhere. */
#ifndef PEFT_MODEL_MODEL_H
#define PEFT_MODEL_MODEL_H

#include "core/gguf.h"
#include "core/safetensors.h"
#include "model/kv_cache.h"
#include "model/names.h"
#include "peft/adapter.h"

/* Which layers let a token see only the nearest keys: none; all (config.json's sliding_window); the last ones
 * (use_sliding_window, max_window_layers, layer_types). */
typedef enum { WINDOW_NONE, WINDOW_ALL, WINDOW_LAST } window_kind;

/* One row per family (arch.c). What a family adds beyond the row is an op or a flag here, never a copied forward. */
typedef struct family {
    const char *name;       /* config.json model_type */
    const char *class_name; /* architectures[0] */
    const char *gguf;       /* general.architecture */
    activation act;
    bool gguf_permuted; /* q and k rows of its GGUF files are interleaved (llama.cpp's converter) */
    unsigned has;       /* tensors beyond llama's (names.h) */
    window_kind window;
    int64_t kv_heads, head_dim, context; /* where config.json is silent; 0: heads, hidden size / heads */
} family;
const family *family_by_name(const char *model_type);
const family *family_by_gguf(const char *arch, uint64_t n);
const family *family_windowed(const family *f); /* the row of the same GGUF architecture with WINDOW_ALL, or NULL */
void family_list(char *buf, size_t size, bool gguf); /* "llama, mistral": for messages */

/* Hyperparameters, as config.json or GGUF keys give them; all checked. */
typedef struct hparams {
    int64_t vocab, dim, ffn, layers, heads, kv_heads, head_dim, context;
    int64_t window, window_from; /* keys that a token sees from this layer on; window 0: all, in every layer */
    double norm_eps, rope_theta;
    bool tied; /* the head is the embedding */
} hparams;

/* A file set with tensors under Hugging Face names, whatever the container. */
typedef struct nf4_source nf4_source;
typedef struct model_source {
    char *path;
    bool is_gguf;
    gguf g;
    safetensors st;
    nf4_source *nf4; /* [n_nf4] tensors that bitsandbytes has quantised */
    int n_nf4;
    const family *fam;
    hparams hp;
    const struct weight_format *assumed; /* model_source_open_shapes found no weights: what they are taken to be in */
} model_source;
int model_source_open(model_source *s, const char *path); /* a directory or a .gguf file; reads headers only */
/* For a plan: a directory may hold config.json alone; its tensors then have shapes and a type but no data. */
int model_source_open_shapes(model_source *s, const char *path);
void model_source_close(model_source *s);
/* The stored tensor as a weight view in file order (GGUF q/k rows not yet un-permuted). -1: missing or misshapen. */
int model_source_weight(const model_source *s, const char *hf_name, int64_t rows, int64_t cols, weight *w);
bool model_source_has(const model_source *s, const char *hf_name);
/* Of the tensors that names.h's pattern stands for; rows 0: a vector. */
void model_source_shape(const model_source *s, int pattern, int64_t *rows, int64_t *cols);
int model_source_permuted(const model_source *s,
                          const char *hf_name); /* heads, for q and k of a permuted GGUF; else 0 */

typedef struct layer {
    const float *norm_in, *norm_mid; /* [dim] */
    const float *norm_q, *norm_k;    /* [head_dim], for every head alike, or NULL */
    proj qkv[3];                     /* q [heads * head_dim, dim], k and v [kv_heads * head_dim, dim] */
    proj o;                          /* [dim, heads * head_dim] */
    proj gate_up[2];                 /* [ffn, dim] */
    proj down;                       /* [dim, ffn] */
} layer;

typedef struct model {
    const family *fam;
    hparams hp;
    weight embed, head;    /* [vocab, dim]; the same when tied */
    const float *norm_out; /* [dim] */
    layer *layers;         /* heap */
    rope rope;
    float attn_scale;       /* 1 / sqrt(head_dim) */
    proj_group_ref *groups; /* 4 per layer: qkv, o, gate_up, down */
    int n_groups;
    char *nonfinite;     /* heap; "tensor 'x': row 3 holds NaN or infinities" of the first one, NULL: all are finite */
    int first_trainable; /* lowest block with an adapter, two blocks a layer: nothing below is recorded */
} model;

/* Matrices for inference, sixteen rows side by side (kernels/rows16.h), in `run`: the file's pages of them are dropped.
 * PACK_LOSSY: those in 16 or 32 bits too, as blocks of 8 bits; what cannot be packed is held as without. */
typedef enum { PACK_NONE, PACK_EXACT, PACK_LOSSY } weight_packing;

/* How the base is held. */
typedef struct model_options {
    bool load_in_4bit; /* linear layers to NF4; embeddings and head stay as they are */
    bool double_quant;
    int64_t positions;               /* rows of the rotary tables */
    const struct quant_cache *quant; /* load_in_4bit: where the NF4 of an earlier start is; NULL: quantise into run */
    weight_packing packing;
} model_options;

/* Builds over `run`. With run->planning only sizes are taken and no data are read. */
int model_open(model *m, const model_source *s, const model_options *o, arena *run);
void model_close(model *m);
int64_t model_params(const model *m); /* elements, counted once when tied: PEFT's "all params" without the adapter */
void model_find_trainable(model *m);  /* after adapter_attach: sets first_trainable */

/* Hidden states [rows, dim] before the final norm. kv NULL: every sequence is whole and in the batch (training,
 * scoring); else keys and values are stored in the cache and read from it: kv->table says in which pages, b->past how
 * many are there. */
tensor *model_forward(tape *t, const model *m, const batch *b, kv_cache *kv);
/* Rows with targets through the final norm and the head: adds to sums, writes logprob [targets], both of the backend's
 * memory. rows, target, weight [targets] out: which, what and how much; host memory that outlives the tape. */
void model_loss(tape *t, const model *m, tensor *h, const batch *b, int32_t *rows, int32_t *target, float *weight,
                float *logprob, step_sums *sums);
/* logits [n, vocab] of chosen rows of h. */
void model_logits(tape *t, const model *m, tensor *h, const int32_t *rows, int n, mat logits);

#endif
