/* Adapters merged into the model in memory: W + sum of scale B A, in fp32 by the canonical kernels, then held as the
 * base is: F32 stays F32, everything else becomes BF16 (never again 4 bits, which would swallow most of an update), and
 * packed as the session's other matrices are. The base's own matrices stay where they are, so that taking the merge
 * back is exact; the merged ones lie in memory of their own. */
#ifndef PEFT_MODEL_MERGED_H
#define PEFT_MODEL_MERGED_H

#include "model/inference.h"

typedef struct merged {
    arena mem;
    model *m;
    weight *base; /* [projections of the model] what each had; heap */
} merged;

/* Puts the sum of n adapters into the model of s. -1 after fail(): nothing has changed. */
int merged_open(merged *g, session *s, const model_source *src, const inference_options *o, const adapter_choice *a,
                int n);
void merged_close(merged *g); /* the model has its own matrices again; nothing where it was not open */

#endif
