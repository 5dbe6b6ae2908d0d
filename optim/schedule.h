/* Learning-rate schedules: the value at every step equals transformers' get_scheduler (optimization.py), so step 0 of a
 * warmup has rate 0. */
#ifndef PEFT_OPTIM_SCHEDULE_H
#define PEFT_OPTIM_SCHEDULE_H

typedef enum { LR_CONSTANT, LR_CONSTANT_WITH_WARMUP, LR_LINEAR, LR_COSINE, LR_SCHEDULES } lr_kind;
typedef struct lr_schedule {
    lr_kind kind;
    double rate;
    int warmup, total;
} lr_schedule;

extern const char *const lr_names[LR_SCHEDULES]; /* "constant", ... as in YAML */
double lr_at(const lr_schedule *s, int step);    /* step counts from 0 */

#endif
