/* What every program opens: a backend, arenas, a model with its adapter, and the tokenizer and template that come with
 * it. */
#ifndef PEFT_MODEL_SESSION_H
#define PEFT_MODEL_SESSION_H

#include "data/chat.h"
#include "data/tokenizer.h"
#include "model/model.h"

typedef struct session {
    kctx k;
    /* weights and state; activations; scratch of one op; tensors and nodes themselves; a segment's values with half ==
     * true */
    arena run, act, tmp, host, window;
    bool half; /* activation_dtype: bf16. On a device values have that type; on a CPU they are kept so between layers */
    model m;
    adapter ad; /* n == 0: none */
} session;

/* A session in two passes over the same code. session_plan: arenas that count, kernels that do nothing. After the
 * caller's worst step has been run on it, session_open maps exactly the counted peaks and is given to the same code
 * again. */
int session_plan(session *s, const char *backend,
                 bool half); /* the backend to plan for, by name; it need not be here */
int session_open(session *s, const session *planned, const char *backend, int threads); /* threads 0: one a core */
void session_close(session *s);
/* The model over s->run, and an adapter when lora is not NULL (taken over). */
int session_load(session *s, const model_source *src, const model_options *o, lora_config *lora, uint64_t seed,
                 bool trainable);
tape session_tape(session *s, bool training, bool checkpoint); /* a step begins: act, tmp and host are empty again */

/* The tokenizer of a model's files (or of `other` when given). NULL after fail(). */
tokenizer *model_tokenizer(const model_source *src, const char *other);

uint64_t peak_rss_bytes(void); /* of this process so far */

#endif
