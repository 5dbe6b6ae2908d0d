/* A search over first guesses of the step, each rounded and solved for the best line through its levels, then a few
 * turns of "round with the line, solve again" (Lloyd's iteration with evenly spaced levels). For given q the best line
 * makes its gain, sum w x^2 - error, the largest: that is compared, so no guess needs a second pass.
 *
 * Sums run over eight lanes in a fixed order: the same bits on every machine. */
#include "kernels/fmt_fit.h"
#include "kernels/fmt.h"

enum { LANES = 8, GUESSES = 9, TURNS = 8 };

/* To the nearest whole number, ties to even, for |x| < 2^22. */
static inline float whole(float x) { return (x + 0x1.8p23f) - 0x1.8p23f; }

static inline float limited(float x, float lo, float hi) {
    x = x > lo ? x : lo;
    return x < hi ? x : hi;
}

static inline float sum_lanes(const float *a) {
    return ((a[0] + a[4]) + (a[2] + a[6])) + ((a[1] + a[5]) + (a[3] + a[7]));
}

float fit_levels(const float *x, const float *w, int n, float scale, float min, float lo, float hi, float *q) {
    const float inverse = scale != 0 ? 1 / scale : 0;
    float e[LANES] = {0};
    for (int i = 0; i < n; i += LANES)
        for (int l = 0; l < LANES; l++) {
            const float v = limited(whole(limited((x[i + l] + min) * inverse, lo, hi)), lo, hi);
            const float d = (scale * v - min) - x[i + l];
            q[i + l] = v;
            e[l] += w[i + l] * d * d;
        }
    return sum_lanes(e);
}

typedef struct {
    float q, qq, x, qx; /* sums of w times these */
} moments;

/* Rounds (x + shift) * inverse to levels and sums what the line needs. */
static moments round_levels(const float *x, const float *w, int n, float shift, float inverse, float lo, float hi,
                            float *q) {
    float sq[LANES] = {0}, sqq[LANES] = {0}, sx[LANES] = {0}, sqx[LANES] = {0};
    for (int i = 0; i < n; i += LANES)
        for (int l = 0; l < LANES; l++) {
            const float v = whole(limited((x[i + l] + shift) * inverse, lo, hi)), wv = w[i + l] * v;
            q[i + l] = v;
            sq[l] += wv, sqq[l] += wv * v, sx[l] += w[i + l] * x[i + l], sqx[l] += wv * x[i + l];
        }
    return (moments){sum_lanes(sq), sum_lanes(sqq), sum_lanes(sx), sum_lanes(sqx)};
}

/* The best line with min >= 0 through the levels, and its gain. */
static float solve_line(const moments *m, float weight, fit_line *f) {
    const float det = weight * m->qq - m->q * m->q;
    *f = (fit_line){0, 0};
    if (det > 0) {
        f->scale = (weight * m->qx - m->q * m->x) / det;
        f->min = (m->q * m->qx - m->qq * m->x) / det;
    }
    if (f->min < 0 || !(det > 0)) f->min = 0, f->scale = m->qq > 0 ? m->qx / m->qq : 0;
    if (!(f->scale > 0)) { /* all on one level */
        f->scale = 0, f->min = m->x < 0 && weight > 0 ? -m->x / weight : 0;
        return -f->min * m->x;
    }
    return f->scale * (2 * m->qx - f->scale * m->qq) - f->min * (2 * m->x + f->min * weight - 2 * f->scale * m->q);
}

fit_line fit_affine(const float *x, const float *w, int n, int levels, float *q) {
    float lo = 0, hi = x[0], weight = 0, best = 0, trial[FMT_BLOCK_MAX];
    for (int i = 0; i < n; i++) {
        lo = x[i] < lo ? x[i] : lo, hi = x[i] > hi ? x[i] : hi;
        weight += w[i];
    }
    fit_line found = {0, 0}, f;
    memset(q, 0, (size_t)n * sizeof *q);
    if (!(hi > lo)) return (fit_line){0, -lo};
    for (int k = -GUESSES; k <= GUESSES; k++) {
        const float inverse = ((float)levels + 0.3f * (float)k) / (hi - lo);
        moments m = round_levels(x, w, n, -lo, inverse, 0, (float)levels, trial);
        const float gain = solve_line(&m, weight, &f);
        if (k > -GUESSES && !(gain > best)) continue;
        best = gain, found = f;
        memcpy(q, trial, (size_t)n * sizeof *q);
    }
    for (int turn = 0; turn < TURNS && found.scale > 0; turn++) {
        moments m = round_levels(x, w, n, found.min, 1 / found.scale, 0, (float)levels, trial);
        const float gain = solve_line(&m, weight, &f);
        if (!(gain > best)) break;
        best = gain, found = f;
        memcpy(q, trial, (size_t)n * sizeof *q);
    }
    return found;
}

float fit_symmetric(const float *x, const float *w, int n, int half, float *q) {
    float top = 0, best = 0, found = 0, trial[FMT_BLOCK_MAX];
    for (int i = 0; i < n; i++)
        if ((x[i] < 0 ? -x[i] : x[i]) > (top < 0 ? -top : top)) top = x[i];
    memset(q, 0, (size_t)n * sizeof *q);
    if (top == 0) return 0;
    for (int k = -GUESSES; k <= GUESSES + 1; k++) { /* the extreme goes to -half, and to half - 1 as a last guess */
        const float end = k <= GUESSES ? -((float)half + 0.2f * (float)k) : (float)(half - 1);
        moments m = round_levels(x, w, n, 0, end / top, (float)-half, (float)(half - 1), trial);
        const float gain = m.qq > 0 ? m.qx / m.qq * m.qx : 0;
        if (!(gain > best)) continue;
        best = gain, found = m.qx / m.qq;
        memcpy(q, trial, (size_t)n * sizeof *q);
    }
    for (int turn = 0; turn < TURNS && found != 0; turn++) {
        moments m = round_levels(x, w, n, 0, 1 / found, (float)-half, (float)(half - 1), trial);
        const float gain = m.qq > 0 ? m.qx / m.qq * m.qx : 0;
        if (!(gain > best)) break;
        best = gain, found = m.qx / m.qq;
        memcpy(q, trial, (size_t)n * sizeof *q);
    }
    return found;
}
