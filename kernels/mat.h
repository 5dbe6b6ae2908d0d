/* Everything dense is a matrix [rows, cols], row-major with leading dimension ld: rows are tokens, cols are features.
 * A mat is a view and owns nothing; ld > cols makes slices of fused results views. data == NULL means "not wanted". */
#ifndef PEFT_KERNELS_MAT_H
#define PEFT_KERNELS_MAT_H

#include <stdint.h>

typedef enum { F32, F16, BF16 } dtype;

typedef struct mat {
    void *data;
    dtype type;
    int64_t rows, cols, ld;
} mat;

static inline mat mat_f32(float *data, int64_t rows, int64_t cols) { return (mat){data, F32, rows, cols, cols}; }
static inline float *mat_row(mat m, int64_t i) { return (float *)m.data + i * m.ld; }
static inline mat mat_none(void) { return (mat){0}; }
/* columns [c, c + n) of m */
static inline mat mat_cols(mat m, int64_t c, int64_t n) { return (mat){(float *)m.data + c, m.type, m.rows, n, m.ld}; }
/* rows [r, r + n) of m */
static inline mat mat_rows(mat m, int64_t r, int64_t n) {
    return (mat){(float *)m.data + r * m.ld, m.type, n, m.cols, m.ld};
}

#endif
