/* What the source*.c files share and nobody else. */
#ifndef PEFT_MODEL_SOURCE_PARTS_H
#define PEFT_MODEL_SOURCE_PARTS_H

#include "model/model.h"

enum { DIM_LIMIT = 1 << 20, HEADS_LIMIT = 1 << 16, VOCAB_LIMIT = 1 << 24, CONTEXT_LIMIT = 1 << 28 };
#define EPS_MIN 1e-12
#define EPS_MAX 1e-1
#define THETA_MAX 1e12

/* Each opens its container and fills in fam and hp; head_dim stays 0 where the file leaves it to dim / heads. */
int source_open_dir(model_source *s);    /* source_config.c */
int source_open_config(model_source *s); /* config.json alone: sets assumed, by torch_dtype or dtype */
bool source_has_weights(const char *dir);
int source_open_gguf(model_source *s); /* source_gguf.c */
/* Tensors in bitsandbytes' NF4 (source_nf4.c): all of a directory's, by the name of their codes. */
int source_nf4_open(model_source *s);
void source_nf4_close(model_source *s);
const nf4_source *source_nf4_find(const model_source *s, const char *name);
void source_nf4_weight(const nf4_source *n, weight *w);        /* views into the file and into n */
bool source_nf4_part(const model_source *s, const char *name); /* scales, maps and states of one of them */

#endif
