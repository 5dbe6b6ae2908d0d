#include "optim/adamw.h"

#include <math.h>

void adamw_open(adamw *o, float *param, float *grad, int64_t n, kctx *k, arena *run) {
    *o = (adamw){.param = param, .grad = grad, .n = n};
    o->m = arena_array(run, (size_t)n, sizeof *o->m);
    o->v = arena_array(run, (size_t)n, sizeof *o->v);
    k->be->zero(k, o->m, (size_t)n * sizeof *o->m);
    k->be->zero(k, o->v, (size_t)n * sizeof *o->v);
}

double adamw_step(adamw *o, kctx *k, double lr, step_sums *sums) {
    sums->sumsq = 0;
    k->be->sumsq(k, sums, o->grad, o->n);
    double mean = sums->weight > 0 ? 1 / sums->weight : 0, norm = sqrt(sums->sumsq) * mean;
    if (sums->nonfinite || !isfinite(sums->loss) || !isfinite(norm)) {
        sums->nonfinite++;
        return norm;
    }
    double clip = o->max_norm > 0 ? fmin(1, o->max_norm / (norm + 1e-6)) : 1;
    o->t++;
    adamw_hp hp = {.lr = lr,
                   .beta1 = o->beta1,
                   .beta2 = o->beta2,
                   .eps = o->eps,
                   .weight_decay = o->weight_decay,
                   .grad_scale = mean * clip,
                   .bias1 = 1 - pow(o->beta1, (double)o->t),
                   .bias2_sqrt = sqrt(1 - pow(o->beta2, (double)o->t))};
    k->be->adamw(k, o->param, o->grad, o->m, o->v, o->n, &hp);
    return norm;
}
