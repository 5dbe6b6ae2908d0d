/* What the source*.c files share and nobody else. */
#ifndef PEFT_MODEL_SOURCE_PARTS_H
#define PEFT_MODEL_SOURCE_PARTS_H

#include "model/model.h"

enum { DIM_LIMIT = 1 << 20, HEADS_LIMIT = 1 << 16, VOCAB_LIMIT = 1 << 24, CONTEXT_LIMIT = 1 << 28 };
#define EPS_MIN 1e-12
#define EPS_MAX 1e-1
#define THETA_MAX 1e12

/* Each opens its container and fills in fam and hp; head_dim stays 0 where the file leaves it to dim / heads. */
int source_open_dir(model_source *s);  /* source_config.c */
int source_open_gguf(model_source *s); /* source_gguf.c */

#endif
