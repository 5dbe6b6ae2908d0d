/* Row-wise kernels with a derivative: RMSNorm, LayerNorm, rotary embedding, gated linear unit. Formulas and orders:
 * ref.h. */
#include "core/error.h"
#include "kernels/ref/ref.h"

void rmsnorm_fwd_ref(kctx *c, mat y, float *rstd, mat x, const float *g, float eps) {
    (void)c;
    for (int64_t i = 0; i < x.rows; i++) {
        const float *xi = mat_row(x, i);
        float r = 1.0f / sqrtf(ref_dot16(xi, xi, x.cols) / (float)x.cols + eps);
        if (rstd) rstd[i] = r;
        for (int64_t k = 0; k < x.cols; k++) mat_row(y, i)[k] = (xi[k] * r) * g[k];
    }
}

void rmsnorm_bwd_ref(kctx *c, mat dx, mat dy, mat x, const float *rstd, const float *g) {
    (void)c;
    for (int64_t i = 0; i < x.rows; i++) {
        const float *xi = mat_row(x, i), *dyi = mat_row(dy, i);
        float r = rstd[i], l[LANES] = {0};
        for (int64_t k = 0; k < x.cols; k++) l[k % LANES] = fmaf(dyi[k] * g[k], xi[k], l[k % LANES]);
        float coef = ((r * r) * r) * (ref_tree16(l) / (float)x.cols);
        for (int64_t k = 0; k < x.cols; k++) mat_row(dx, i)[k] += fmaf(r, dyi[k] * g[k], -(coef * xi[k]));
    }
}

void layernorm_fwd_ref(kctx *c, mat y, float *stats, mat x, const float *g, const float *b, float eps) {
    (void)c;
    const float n = (float)x.cols;
    for (int64_t i = 0; i < x.rows; i++) {
        const float *xi = mat_row(x, i), mean = ref_sum16(xi, x.cols) / n;
        float l[LANES] = {0};
        for (int64_t k = 0; k < x.cols; k++) l[k % LANES] = fmaf(xi[k] - mean, xi[k] - mean, l[k % LANES]);
        const float r = 1.0f / sqrtf(ref_tree16(l) / n + eps);
        if (stats) stats[2 * i] = mean, stats[2 * i + 1] = r;
        for (int64_t k = 0; k < x.cols; k++) {
            const float h = (xi[k] - mean) * r;
            mat_row(y, i)[k] = b ? fmaf(h, g[k], b[k]) : h * g[k];
        }
    }
}

void layernorm_bwd_ref(kctx *c, mat dx, mat dy, mat x, const float *stats, const float *g) {
    (void)c;
    const float n = (float)x.cols;
    for (int64_t i = 0; i < x.rows; i++) {
        const float *xi = mat_row(x, i), *dyi = mat_row(dy, i), mean = stats[2 * i], r = stats[2 * i + 1];
        float sum[LANES] = {0}, dot[LANES] = {0};
        for (int64_t k = 0; k < x.cols; k++) {
            const float t = dyi[k] * g[k];
            sum[k % LANES] += t, dot[k % LANES] = fmaf(t, (xi[k] - mean) * r, dot[k % LANES]);
        }
        const float a = ref_tree16(sum) / n, d = ref_tree16(dot) / n;
        for (int64_t k = 0; k < x.cols; k++) mat_row(dx, i)[k] += r * fmaf(-((xi[k] - mean) * r), d, dyi[k] * g[k] - a);
    }
}

void rope_fwd_ref(kctx *c, mat y, mat x, const int32_t *pos, const rope *r, float sign) {
    (void)c;
    int half = r->dim / 2;
    for (int64_t i = 0; i < x.rows; i++) {
        CHECK(pos[i] >= 0 && pos[i] < r->positions, "position %d of a table of %ld", pos[i], (long)r->positions);
        const float *cs = r->cos + (int64_t)pos[i] * half, *sn = r->sin + (int64_t)pos[i] * half;
        for (int64_t h = 0; h < x.cols; h += r->dim)
            for (int d = 0; d < half; d++) {
                float x1 = mat_row(x, i)[h + d], x2 = mat_row(x, i)[h + half + d], s = sign * sn[d];
                mat_row(y, i)[h + d] = fmaf(-s, x2, x1 * cs[d]);
                mat_row(y, i)[h + half + d] = fmaf(s, x1, x2 * cs[d]);
            }
    }
}

/* z of the sigmoid and w = gate * dz/dgate */
typedef void gate_fn(float g, float *z, float *w);

static void gate_silu(float g, float *z, float *w) { *z = g, *w = g; }

static void gate_gelu(float g, float *z, float *w) {
    *z = g * fmaf(GELU_B, g * g, GELU_A);
    *w = g * fmaf(3 * GELU_B, g * g, GELU_A);
}

static gate_fn *const gates[] = {[ACT_SILU] = gate_silu, [ACT_GELU_TANH] = gate_gelu};

void glu_fwd_ref(kctx *c, mat y, mat gate, mat up, activation act) {
    (void)c;
    for (int64_t i = 0; i < y.rows; i++)
        for (int64_t k = 0; k < y.cols; k++) {
            float g = mat_row(gate, i)[k], z, w;
            gates[act](g, &z, &w);
            float s = 1.0f / (1.0f + ref_exp(-z));
            mat_row(y, i)[k] = (g * s) * mat_row(up, i)[k];
        }
}

void glu_bwd_ref(kctx *c, mat dgate, mat dup, mat dy, mat gate, mat up, activation act) {
    (void)c;
    for (int64_t i = 0; i < dy.rows; i++)
        for (int64_t k = 0; k < dy.cols; k++) {
            float g = mat_row(gate, i)[k], u = mat_row(up, i)[k], d = mat_row(dy, i)[k], z, w;
            gates[act](g, &z, &w);
            float s = 1.0f / (1.0f + ref_exp(-z));
            if (dup.data) mat_row(dup, i)[k] = d * (g * s);
            if (dgate.data) mat_row(dgate, i)[k] = (d * u) * (s * fmaf(w, 1.0f - s, 1.0f));
        }
}
