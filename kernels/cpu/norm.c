/* RMSNorm (Zhang & Sennrich 2019) and LayerNorm (Ba et al. 2016), forward and backward; formulas and orders in ref.h.
 */
#include "kernels/cpu/team.h"

void ISA(rmsnorm_fwd)(kctx *c, mat y, float *rstd, mat x, const float *g, float eps) {
    int64_t n = x.cols;
    int threads = team(c, x.rows * n);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < x.rows; i++) {
        const float *xi = mat_row(x, i);
        float *yi = mat_row(y, i);
        v16 sum = v16_zero();
        for (int64_t k = 0; k < n; k += 16) {
            v16 a = part_load(xi + k, n - k);
            sum = v16_fma(a, a, sum);
        }
        float r = 1.0f / sqrtf(v16_sum(sum) / (float)n + eps);
        if (rstd) rstd[i] = r;
        for (int64_t k = 0; k < n; k += 16) {
            v16 a = v16_mul(part_load(xi + k, n - k), v16_set1(r));
            part_store(yi + k, v16_mul(a, part_load(g + k, n - k)), n - k);
        }
    }
}

void ISA(rmsnorm_bwd)(kctx *c, mat dx, mat dy, mat x, const float *rstd, const float *g) {
    int64_t n = x.cols;
    int threads = team(c, x.rows * n);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < x.rows; i++) {
        const float *xi = mat_row(x, i), *dyi = mat_row(dy, i);
        float *dxi = mat_row(dx, i), r = rstd[i];
        v16 dot = v16_zero();
        for (int64_t k = 0; k < n; k += 16) {
            v16 t = v16_mul(part_load(dyi + k, n - k), part_load(g + k, n - k));
            dot = v16_fma(t, part_load(xi + k, n - k), dot);
        }
        v16 scale = v16_set1(r), coef = v16_set1(((r * r) * r) * (v16_sum(dot) / (float)n));
        for (int64_t k = 0; k < n; k += 16) {
            v16 t = v16_mul(part_load(dyi + k, n - k), part_load(g + k, n - k));
            v16 along = v16_mul(coef, part_load(xi + k, n - k));
            v16 d = v16_fma(scale, t, v16_sub(v16_set1(-0.0f), along));
            part_store(dxi + k, v16_add(part_load(dxi + k, n - k), d), n - k);
        }
    }
}

/* the first `left` lanes; the others become 0 */
static inline v16 keep(v16 a, int64_t left) {
    float lanes[16];
    if (left >= 16) return a;
    v16_store(lanes, a);
    return v16_load_n(lanes, (int)left);
}

void ISA(layernorm_fwd)(kctx *c, mat y, float *stats, mat x, const float *g, const float *b, float eps) {
    const int64_t n = x.cols;
    const int threads = team(c, x.rows * n);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < x.rows; i++) {
        const float *xi = mat_row(x, i);
        float *yi = mat_row(y, i);
        v16 sum = v16_zero(), square = v16_zero();
        for (int64_t k = 0; k < n; k += 16) sum = v16_add(sum, part_load(xi + k, n - k));
        const float mean = v16_sum(sum) / (float)n;
        for (int64_t k = 0; k < n; k += 16) {
            v16 e = keep(v16_sub(part_load(xi + k, n - k), v16_set1(mean)), n - k);
            square = v16_fma(e, e, square);
        }
        const float r = 1.0f / sqrtf(v16_sum(square) / (float)n + eps);
        if (stats) stats[2 * i] = mean, stats[2 * i + 1] = r;
        for (int64_t k = 0; k < n; k += 16) {
            v16 h = v16_mul(v16_sub(part_load(xi + k, n - k), v16_set1(mean)), v16_set1(r)),
                w = part_load(g + k, n - k);
            part_store(yi + k, b ? v16_fma(h, w, part_load(b + k, n - k)) : v16_mul(h, w), n - k);
        }
    }
}

void ISA(layernorm_bwd)(kctx *c, mat dx, mat dy, mat x, const float *stats, const float *g) {
    const int64_t n = x.cols;
    const int threads = team(c, x.rows * n);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < x.rows; i++) {
        const float *xi = mat_row(x, i), *dyi = mat_row(dy, i);
        float *dxi = mat_row(dx, i);
        const v16 mean = v16_set1(stats[2 * i]), r = v16_set1(stats[2 * i + 1]);
        v16 sum = v16_zero(), dot = v16_zero();
        for (int64_t k = 0; k < n; k += 16) {
            v16 t = v16_mul(part_load(dyi + k, n - k), part_load(g + k, n - k));
            v16 h = v16_mul(v16_sub(part_load(xi + k, n - k), mean), r);
            sum = v16_add(sum, t), dot = v16_fma(t, h, dot);
        }
        const v16 a = v16_set1(v16_sum(sum) / (float)n), d = v16_set1(v16_sum(dot) / (float)n);
        for (int64_t k = 0; k < n; k += 16) {
            v16 t = v16_mul(part_load(dyi + k, n - k), part_load(g + k, n - k));
            v16 h = v16_mul(v16_sub(part_load(xi + k, n - k), mean), r);
            v16 e = v16_mul(r, v16_fnma(h, d, v16_sub(t, a)));
            part_store(dxi + k, v16_add(part_load(dxi + k, n - k), e), n - k);
        }
    }
}
