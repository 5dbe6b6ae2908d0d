#include "train_log.h"
#include "core/error.h"
#include "core/file.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* 1234567 -> 1,234,567 */
static const char *thousands(int64_t n, char buf[static 32]) {
    char digits[24];
    int len = snprintf(digits, sizeof digits, "%ld", (long)n), at = 0;
    for (int i = 0; i < len; i++) {
        if (i && (len - i) % 3 == 0) buf[at++] = ',';
        buf[at++] = digits[i];
    }
    buf[at] = 0;
    return buf;
}

void train_log_params(int64_t trainable, int64_t base) {
    char a[32], b[32];
    printf("trainable params: %s || all params: %s || trainable%%: %.4f\n", thousands(trainable, a),
           thousands(base + trainable, b), 100 * (double)trainable / (double)(base + trainable));
    fflush(stdout);
}

int train_log_open(train_log *l, const char *dir, int steps, int every, int64_t keep, int64_t tokens) {
    char *path = path_join(dir, "metrics.jsonl");
    *l = (train_log){.steps = steps, .every = every, .tokens = tokens, .earlier = tokens};
    l->metrics = fopen(path, keep ? "r+" : "w");
    if (!l->metrics && keep && errno == ENOENT)
        l->metrics = fopen(path, "w"); /* lost: what follows is still worth it */
    bool bad = !l->metrics || fseek(l->metrics, 0, SEEK_END);
    if (!bad && ftell(l->metrics) > keep) bad = ftruncate(fileno(l->metrics), keep) || fseek(l->metrics, 0, SEEK_END);
    if (bad)
        fail(EXIT_IO, "%s: %s", path, strerror(errno));
    else
        setvbuf(l->metrics, NULL, _IOLBF, 4096); /* a row is on its way as soon as it is written; no allocation later */
    free(path);
    progress_begin(&l->bar, "step", steps);
    energy_open(&l->power, "/sys/class/powercap");
    l->joules = energy_joules(&l->power);
    l->began = l->last = seconds_now();
    return bad ? -1 : 0;
}

int train_log_tensorboard(train_log *l, const char *dir) { return tfevents_open(&l->events, dir); }

int64_t train_log_bytes(train_log *l) { return fflush(l->metrics) ? 0 : (int64_t)ftell(l->metrics); }

static int written(int n) { return n < 0 ? fail(EXIT_IO, "metrics.jsonl: %s", strerror(errno)) : 0; }

int train_log_step(train_log *l, const train_row *r) {
    double now = seconds_now(), took = now - l->last;
    uint64_t rss = peak_rss_bytes();
    char text[160];
    l->last = now, l->busy += took, l->tokens += r->tokens;
    double speed = (double)r->tokens / took, joules = energy_joules(&l->power);
    char energy[48] = "";
    if (joules > l->joules)
        snprintf(energy, sizeof energy, ", \"joules_per_token\": %.4g", (joules - l->joules) / (double)r->tokens);
    l->joules = joules;
    int n = fprintf(
        l->metrics,
        "{\"step\": %d, \"epoch\": %.6g, \"loss\": %.9g, \"learning_rate\": %.9g, \"grad_norm\": %.9g, \"tokens\": %ld, "
        "\"target_tokens\": %ld, \"tokens_per_second\": %.6g, \"peak_rss_bytes\": %lu%s}\n",
        r->step, r->epoch, r->loss, r->learning_rate, r->grad_norm, (long)r->tokens, (long)r->targets, speed,
        (unsigned long)rss, energy);
    const tf_scalar scalars[] = {{"train/loss", (float)r->loss},
                                 {"train/learning_rate", (float)r->learning_rate},
                                 {"train/grad_norm", (float)r->grad_norm},
                                 {"train/epoch", (float)r->epoch},
                                 {"train/tokens_per_second", (float)speed}};
    tfevents_add(&l->events, r->step, scalars, 5);
    snprintf(text, sizeof text, "loss %.4f  lr %.2e  grad %.3f  %.0f tok/s  %.0f MiB", r->loss, r->learning_rate,
             r->grad_norm, (double)(l->tokens - l->earlier) / l->busy, (double)rss / 1048576);
    progress_show(&l->bar, r->step, text, r->step % l->every == 0 || r->step == l->steps);
    return written(n);
}

int train_log_eval(train_log *l, int step, double epoch, double loss) {
    int n = fprintf(l->metrics, "{\"step\": %d, \"epoch\": %.6g, \"eval_loss\": %.9g}\n", step, epoch, loss);
    const tf_scalar scalars[] = {{"eval/loss", (float)loss}, {"eval/perplexity", (float)exp(loss)}};
    tfevents_add(&l->events, step, scalars, 2);
    progress_end(&l->bar);
    fprintf(stderr, "eval at step %d: loss %.4f, perplexity %.3f\n", step, loss, exp(loss));
    l->last = seconds_now(); /* evaluation is not training time */
    return written(n);
}

void train_log_say(train_log *l, const char *fmt, ...) {
    va_list ap;
    progress_end(&l->bar);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
}

void train_log_close(train_log *l) {
    progress_end(&l->bar);
    tfevents_close(&l->events);
    if (l->metrics) fclose(l->metrics);
    l->metrics = NULL;
}
