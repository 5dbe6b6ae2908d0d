/* AdamW (Loshchilov & Hutter 2019; torch.optim.AdamW) over one flat vector: decoupled decay, bias correction, global-norm
 * clipping as torch.nn.utils.clip_grad_norm_. The optimiser knows vectors, never models. */
#ifndef PEFT_OPTIM_ADAMW_H
#define PEFT_OPTIM_ADAMW_H

#include "kernels/backend.h"

typedef struct adamw {
    float *param, *grad, *m, *v; /* [n]; m and v are the optimiser's, in the run arena */
    int64_t n;
    int64_t t; /* steps done */
    double beta1, beta2, eps, weight_decay;
    double max_norm; /* 0 = no clipping */
} adamw;

/* Moments from run, zeroed unless it is planning. The hyperparameters are the caller's to set. */
void adamw_open(adamw *o, float *param, float *grad, int64_t n, kctx *k, arena *run);

/* One step: grad holds the sum over targets; sums->weight is what it is divided by, once. Returns the norm of the mean
 * gradient before clipping; nothing is changed when the loss or the gradient is not finite (sums->nonfinite > 0). */
double adamw_step(adamw *o, kctx *k, double lr, step_sums *sums);

#endif
