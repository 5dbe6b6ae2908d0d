#include "core/energy.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* Allocates nothing: it runs between steps. */
static double read_number(const char *root, int package, const char *name) {
    char path[256], text[32];
    snprintf(path, sizeof path, "%s/intel-rapl:%d/%s", root, package, name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return NAN;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    if (n <= 0) return NAN;
    text[n] = 0;
    return strtod(text, NULL);
}

void energy_open(energy *e, const char *root) {
    *e = (energy){.root = root};
    for (; e->n < ENERGY_PACKAGES; e->n++) {
        e->last[e->n] = read_number(root, e->n, "energy_uj");
        e->range[e->n] = read_number(root, e->n, "max_energy_range_uj");
        if (isnan(e->last[e->n]) || isnan(e->range[e->n])) break;
    }
}

double energy_joules(energy *e) {
    if (!e->n) return NAN;
    for (int i = 0; i < e->n; i++) {
        double now = read_number(e->root, i, "energy_uj"), more = now - e->last[i];
        if (isnan(now)) return NAN;
        e->joules += 1e-6 * (more < 0 ? more + e->range[i] : more);
        e->last[i] = now;
    }
    return e->joules;
}
