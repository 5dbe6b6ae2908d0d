/* AdamW (Loshchilov & Hutter 2019; torch.optim.AdamW) over one flat vector: decoupled decay, bias correction,
 * global-norm clipping as torch.nn.utils.clip_grad_norm_. The optimiser knows vectors, never models.
 *
 * The state is t and the moments, which lie in the run arena in this order and are zero before the first step:
 *     m, v                  [wide_n] fp32     of the tensors in `wide`, one after the other
 *     q.m, q.v              [n - wide_n]      codes of the tensors in `q.tensor`, one after the other
 *     q.m_scale, q.v_scale  [q.blocks] fp32   of their blocks
 * adamw_open makes one wide tensor of the whole vector; adamw_open_8bit keeps only small tensors wide. Both lists have
 * the order in which the tensors were given, so that the layout is a function of their sizes alone. Resuming from these
 * arrays and t gives the bits of the run that was not interrupted. */
#ifndef PEFT_OPTIM_ADAMW_H
#define PEFT_OPTIM_ADAMW_H

#include "kernels/backend.h"

/* As in bitsandbytes: a tensor of fewer elements keeps fp32 moments. */
enum { ADAMW8_MIN = 4096 };

typedef struct adamw {
    float *param, *grad; /* [n]; the caller's */
    int64_t n;
    float *m, *v;        /* [wide_n] */
    adamw8_tensor *wide; /* [wides] tensors with fp32 moments; `code` is their place in m and v; heap */
    int64_t wides, wide_n;
    adamw8 q;     /* tensors with 8-bit moments; q.tensors may be 0 */
    size_t bytes; /* what the optimiser took of the run arena */
    int64_t t;    /* steps done */
    double beta1, beta2, eps, weight_decay;
    double max_norm; /* 0 = no clipping */
} adamw;

typedef struct adamw_range {
    int64_t begin, n;
} adamw_range; /* one tensor's place in the flat vector */

/* Moments from run, zeroed unless it is planning. The hyperparameters are the caller's to set. */
void adamw_open(adamw *o, float *param, float *grad, int64_t n, kctx *k, arena *run);

/* The same with 8-bit moments for the tensors of ADAMW8_MIN elements and more. tensor[tensors], in any order, must
 * cover the vector once: blocks never span two tensors. */
void adamw_open_8bit(adamw *o, float *param, float *grad, int64_t n, const adamw_range *tensor, int64_t tensors,
                     kctx *k, arena *run);

/* One step: grad holds the sum over targets; sums->weight is what it is divided by, once. sums (the backend's memory)
 * gets the norm of the mean gradient before clipping. Nothing but t is changed when the loss or the gradient is not
 * finite (sums->nonfinite > 0): the kernels see to that, and whoever reads sums, later, ends the run. */
void adamw_step(adamw *o, kctx *k, double lr, step_sums *sums);
void adamw_close(adamw *o);

#endif
