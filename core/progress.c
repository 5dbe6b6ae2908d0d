#include "core/progress.h"

#include <stdio.h>
#include <time.h>
#include <unistd.h>

enum { BAR = 24 };

double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

const char *duration_text(double seconds, char buf[static 40]) {
    long s = seconds > 0 && seconds < 1e8 ? (long)(seconds + 0.5) : 0;
    if (s < 3600)
        snprintf(buf, 40, "%ld:%02ld", s / 60, s % 60);
    else
        snprintf(buf, 40, "%ld:%02ld:%02ld", s / 3600, s / 60 % 60, s % 60);
    return buf;
}

void progress_begin(progress *p, const char *what, long total) {
    *p = (progress){what, total, seconds_now(), isatty(STDERR_FILENO)};
}

static void draw_bar(char out[BAR * 3 + 1], long done, long total) {
    char *at = out;
    long full = total > 0 ? done * BAR / total : 0;
    for (int i = 0; i < BAR; i++) at += sprintf(at, "%s", i < full ? "█" : "░");
}

void progress_show(progress *p, long done, const char *text, bool line) {
    char bar[BAR * 3 + 1], left[40];
    double spent = seconds_now() - p->started;
    duration_text(done ? spent / (double)done * (double)(p->total - done) : 0, left);
    if (!p->terminal) {
        if (line) fprintf(stderr, "%s %ld/%ld  %s  %s left\n", p->what, done, p->total, text, left);
        return;
    }
    draw_bar(bar, done, p->total);
    fprintf(stderr, "\r\033[K%s %s %ld/%ld  %s  %s left", p->what, bar, done, p->total, text, left);
    if (line) fputc('\n', stderr);
    fflush(stderr);
}

void progress_end(progress *p) {
    if (p->terminal) fputs("\r\033[K", stderr);
}
