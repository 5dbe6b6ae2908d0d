#include "optim/schedule.h"

#include <math.h>

const char *const lr_names[LR_SCHEDULES] = {"constant", "constant_with_warmup", "linear", "cosine"};

double lr_at(const lr_schedule *s, int step) {
    if (s->kind == LR_CONSTANT) return s->rate;
    if (step < s->warmup) return s->rate * ((double)step / (s->warmup > 1 ? s->warmup : 1));
    if (s->kind == LR_CONSTANT_WITH_WARMUP) return s->rate;
    int span = s->total - s->warmup > 1 ? s->total - s->warmup : 1;
    if (s->kind == LR_LINEAR) return s->rate * fmax(0, (double)(s->total - step) / span);
    double progress = (double)(step - s->warmup) / span;
    return s->rate * fmax(0, 0.5 * (1 + cos(acos(-1) * progress)));
}
