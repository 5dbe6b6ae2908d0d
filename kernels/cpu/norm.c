/* RMSNorm (Zhang & Sennrich 2019) forward and backward; formulas and orders in ref.h. */
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
