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

static inline int64_t mat_bytes(dtype type) { return type == F32 ? 4 : 2; } /* of one element */
static inline mat mat_of(void *data, dtype type, int64_t rows, int64_t cols) {
    mat m = {data, type, rows, cols, cols};
    return m;
}
static inline mat mat_f32(float *data, int64_t rows, int64_t cols) { return mat_of(data, F32, rows, cols); }
static inline float *mat_row(mat m, int64_t i) { return (float *)m.data + i * m.ld; } /* F32 only */
static inline mat mat_none(void) { return mat_of((void *)0, F32, 0, 0); }
/* columns [c, c + n) of m */
static inline mat mat_cols(mat m, int64_t c, int64_t n) {
    m.data = (char *)m.data + c * mat_bytes(m.type), m.cols = n;
    return m;
}
/* rows [r, r + n) of m */
static inline mat mat_rows(mat m, int64_t r, int64_t n) {
    m.data = (char *)m.data + r * m.ld * mat_bytes(m.type), m.rows = n;
    return m;
}

#endif
