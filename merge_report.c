/* What a merge measured of itself. Rounding and update are root mean squares over a tensor; `kept` is the change from
 * base to file projected onto the update: 1 when rounding is blind to it, near 0 when the base lay on the target's own
 * grid and the update was too small to leave it. */
#include "merge_parts.h"
#include "model/session.h"

#include <math.h>
#include <stdio.h>

static double rms(double sum_of_squares, const export_row *r) {
    return sqrt(sum_of_squares / (double)((r->rows ? r->rows : 1) * r->cols));
}

static void print_rows(const export_report *r) {
    printf("%-52s %-6s %14s %12s %10s %10s %8s %6s\n", "tensor", "format", "shape", "bytes", "rounding", "update",
           "ratio", "kept");
    for (int i = 0; i < r->tensors; i++) {
        const export_row *t = &r->row[i];
        char shape[32];
        snprintf(shape, sizeof shape, t->rows ? "%ld x %ld" : "%ld", t->rows ? (long)t->rows : (long)t->cols,
                 (long)t->cols);
        printf("%-52s %-6s %14s %12llu", t->name, t->fmt->name, shape, (unsigned long long)t->bytes);
        if (t->copied)
            printf(" %10s", "copied");
        else
            printf(" %9.4f%%", t->value_sq > 0 ? 100 * sqrt(t->error_sq / t->value_sq) : 0);
        if (t->merged) printf(" %10.3g %8.3g %6.2f", rms(t->update_sq, t), export_row_ratio(t), export_row_kept(t));
        putchar('\n');
    }
}

typedef struct {
    int n, zero, below, lost; /* modules; with no update; with rounding above it; with less than half of it kept */
    double ratio_sum, ratio_min, ratio_max, kept_min;
    const char *kept_name;
} update_sum;

static update_sum sum_updates(const export_report *r) {
    update_sum u = {.kept_min = 1};
    for (int i = 0; i < r->tensors; i++) {
        const export_row *t = &r->row[i];
        if (!t->merged) continue;
        double ratio = export_row_ratio(t), kept = export_row_kept(t);
        if (!u.n || ratio < u.ratio_min) u.ratio_min = ratio;
        if (!u.n || ratio > u.ratio_max) u.ratio_max = ratio;
        if (!u.n || kept < u.kept_min) u.kept_min = kept, u.kept_name = t->name;
        u.n++, u.ratio_sum += ratio, u.zero += !(t->update_sq > 0);
        u.below += t->update_sq > 0 && t->error_sq > 0 && ratio<1, u.lost += t->update_sq> 0 && kept < 0.5;
    }
    return u;
}

static void report_updates(const export_report *r, const char *format) {
    update_sum u = sum_updates(r);
    if (u.zero) fprintf(stderr, "note: the update of %d modules is zero: was the adapter trained?\n", u.zero);
    if (!(u.ratio_max > 0)) return;
    printf("rounding to %s: updates are %.3g times the rounding error (rms; mean of modules, from %.3g to %.3g)\n",
           format, u.ratio_sum / u.n, u.ratio_min, u.ratio_max);
    printf("kept of the update: at least %.1f %% (%s)\n", 100 * u.kept_min, u.kept_name);
    if (u.lost)
        fprintf(
            stderr,
            "note: %s swallows the update: in %d of %d modules less than half of it is left. Choose a wider --to, or keep "
            "the adapter apart\n",
            format, u.lost, u.n);
    else if (u.below)
        fprintf(
            stderr,
            "note: in %d of %d modules the rounding to %s is larger than the update: see what it costs with --check, or "
            "choose a wider --to\n",
            u.below, u.n, format);
}

void merge_report(const merge_options *o, const export_report *r, const char *format) {
    if (o->per_tensor) print_rows(r);
    if (o->adapter)
        printf("merged: %d modules of %d tensors, %s, %.1f MiB, %d file%s: %s\n", r->merged, r->tensors, format,
               (double)r->bytes / (1 << 20), r->files, r->files == 1 ? "" : "s", o->out);
    else
        printf("written: %d tensors, %s, %.1f MiB, %d file%s: %s\n", r->tensors, format, (double)r->bytes / (1 << 20),
               r->files, r->files == 1 ? "" : "s", o->out);
    if (o->adapter) report_updates(r, format);
    printf("peak memory: %.1f MiB\n", (double)peak_rss_bytes() / (1 << 20));
}
