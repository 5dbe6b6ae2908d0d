/* What ./train shows and writes: PEFT's line of trainable parameters, the progress bar, metrics.jsonl. */
#ifndef PEFT_TRAIN_LOG_H
#define PEFT_TRAIN_LOG_H

#include "core/energy.h"
#include "core/progress.h"
#include "core/tfevents.h"
#include "model/session.h"

/* One optimiser step. loss: mean over the step's targets; grad_norm: of the mean gradient before clipping. */
typedef struct train_row {
    int step;
    double epoch, loss, learning_rate, grad_norm;
    int64_t tokens, targets;
} train_row;

typedef struct train_log {
    FILE *metrics; /* output_dir/metrics.jsonl: one JSON object a step, one an evaluation */
    progress bar;
    int steps, every;        /* of the run; steps between printed lines */
    double began, last;      /* monotonic seconds: of training, of the last row */
    int64_t tokens, earlier; /* earlier: of the run that is continued */
    double busy;             /* seconds spent in steps */
    tfevents events;         /* open where TensorBoard files are wanted */
    energy power;
    double joules; /* at the last row */
} train_log;

void train_log_params(int64_t trainable, int64_t base);
/* keep: bytes of an earlier metrics.jsonl that stand; 0: a new one. tokens: seen before. */
int train_log_open(train_log *l, const char *dir, int steps, int every, int64_t keep, int64_t tokens);
int train_log_tensorboard(train_log *l, const char *dir); /* from now on */
int64_t train_log_bytes(train_log *l);                    /* of metrics.jsonl so far */
int train_log_step(train_log *l, const train_row *r);
int train_log_eval(train_log *l, int step, double epoch, double loss);
__attribute__((format(printf, 2, 3))) void train_log_say(train_log *l, const char *fmt, ...); /* a line of its own */
void train_log_close(train_log *l);

#endif
