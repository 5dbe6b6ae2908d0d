/* Gated linear unit (Shazeer 2020) forward and backward, one pass; formulas in ref.h. */
#include "kernels/cpu/team.h"
#include "kernels/ref/ref.h"

/* what both directions need of 16 gates: s = sigmoid(z) and w = gate * dz/dgate */
typedef struct {
    v16 s, w;
} gate16;
typedef gate16 gate_fn(v16 g);

static inline v16 sigmoid(v16 z) {
    v16 one = v16_set1(1.0f);
    return v16_div(one, v16_add(one, v16_exp(v16_sub(v16_set1(-0.0f), z))));
}

static inline gate16 gate_silu(v16 g) { return (gate16){sigmoid(g), g}; }

static inline gate16 gate_gelu(v16 g) {
    v16 sq = v16_mul(g, g), a = v16_set1(GELU_A);
    v16 z = v16_mul(g, v16_fma(v16_set1(GELU_B), sq, a));
    return (gate16){sigmoid(z), v16_mul(g, v16_fma(v16_set1(3 * GELU_B), sq, a))};
}

/* inlined with a constant gate, so that the inner loop calls nothing */
static inline __attribute__((always_inline)) void row_fwd(float *y, const float *gate, const float *up, int64_t n,
                                                          gate_fn *f) {
    for (int64_t k = 0; k < n; k += 16) {
        v16 g = part_load(gate + k, n - k);
        v16 a = v16_mul(g, f(g).s);
        part_store(y + k, v16_mul(a, part_load(up + k, n - k)), n - k);
    }
}

static inline __attribute__((always_inline)) void row_bwd(float *dgate, float *dup, const float *dy, const float *gate,
                                                          const float *up, int64_t n, gate_fn *f) {
    v16 one = v16_set1(1.0f);
    for (int64_t k = 0; k < n; k += 16) {
        v16 g = part_load(gate + k, n - k), u = part_load(up + k, n - k), d = part_load(dy + k, n - k);
        gate16 t = f(g);
        v16 slope = v16_mul(t.s, v16_fma(t.w, v16_sub(one, t.s), one));
        if (dup) part_store(dup + k, v16_mul(d, v16_mul(g, t.s)), n - k);
        if (dgate) part_store(dgate + k, v16_mul(v16_mul(d, u), slope), n - k);
    }
}

typedef void row_fwd_fn(float *y, const float *gate, const float *up, int64_t n);
typedef void row_bwd_fn(float *dgate, float *dup, const float *dy, const float *gate, const float *up, int64_t n);

static void silu_fwd(float *y, const float *gate, const float *up, int64_t n) { row_fwd(y, gate, up, n, gate_silu); }
static void gelu_fwd(float *y, const float *gate, const float *up, int64_t n) { row_fwd(y, gate, up, n, gate_gelu); }

static void silu_bwd(float *dgate, float *dup, const float *dy, const float *gate, const float *up, int64_t n) {
    row_bwd(dgate, dup, dy, gate, up, n, gate_silu);
}

static void gelu_bwd(float *dgate, float *dup, const float *dy, const float *gate, const float *up, int64_t n) {
    row_bwd(dgate, dup, dy, gate, up, n, gate_gelu);
}

static const struct {
    row_fwd_fn *fwd;
    row_bwd_fn *bwd;
} rows_of[] = {
    [ACT_SILU] = {silu_fwd, silu_bwd},
    [ACT_GELU_TANH] = {gelu_fwd, gelu_bwd},
};

void ISA(glu_fwd)(kctx *c, mat y, mat gate, mat up, activation act) {
    int threads = team(c, y.rows * y.cols);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < y.rows; i++) rows_of[act].fwd(mat_row(y, i), mat_row(gate, i), mat_row(up, i), y.cols);
}

void ISA(glu_bwd)(kctx *c, mat dgate, mat dup, mat dy, mat gate, mat up, activation act) {
    int threads = team(c, dy.rows * dy.cols);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < dy.rows; i++)
        rows_of[act].bwd(dgate.data ? mat_row(dgate, i) : NULL, dup.data ? mat_row(dup, i) : NULL, mat_row(dy, i),
                         mat_row(gate, i), mat_row(up, i), dy.cols);
}
