/* Fits of a short block of values to evenly spaced levels, by weighted least squares: what the quantisers of blocks
 * with free scales share. Levels are kept as floats; n is a multiple of 8 and at most FMT_BLOCK_MAX. w: weight of each
 * element's squared error, never negative. */
#ifndef PEFT_KERNELS_FMT_FIT_H
#define PEFT_KERNELS_FMT_FIT_H

/* x ~ scale q - min, q = 0 .. levels, scale >= 0, min >= 0. */
typedef struct fit_line {
    float scale, min;
} fit_line;

fit_line fit_affine(const float *x, const float *w, int n, int levels, float *q);
/* x ~ scale q, q = -half .. half - 1; the scale may be negative. */
float fit_symmetric(const float *x, const float *w, int n, int half, float *q);

/* q = the nearest level of every x; returns sum w (scale q - min - x)^2. A scale of 0 gives q = 0. */
float fit_levels(const float *x, const float *w, int n, float scale, float min, float lo, float hi, float *q);

#endif
