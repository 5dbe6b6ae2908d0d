/* Rotary embedding (Su et al. 2021), pairs (i, i + dim/2) of each head; formula in ref.h. */
#include "core/error.h"
#include "kernels/cpu/team.h"

static void rotate_row(float *y, const float *x, int64_t cols, const rope *r, int32_t pos, float sign) {
    int half = r->dim / 2;
    const float *cs = r->cos + (int64_t)pos * half, *sn = r->sin + (int64_t)pos * half;
    for (int64_t h = 0; h < cols; h += r->dim)
        for (int d = 0; d < half; d += 16) {
            int left = half - d;
            const float *a = x + h + d, *b = a + half;
            v16 x1 = part_load(a, left), x2 = part_load(b, left), co = part_load(cs + d, left);
            v16 s = v16_mul(v16_set1(sign), part_load(sn + d, left));
            part_store(y + h + d, v16_fnma(s, x2, v16_mul(x1, co)), left);
            part_store(y + h + half + d, v16_fma(s, x1, v16_mul(x2, co)), left);
        }
}

void ISA(rope_fwd)(kctx *c, mat y, mat x, const int32_t *pos, const rope *r, float sign) {
    int threads = team(c, x.rows * x.cols);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < x.rows; i++) {
        CHECK(pos[i] >= 0 && pos[i] < r->positions, "position %d of a table of %ld", pos[i], (long)r->positions);
        rotate_row(mat_row(y, i), mat_row(x, i), x.cols, r, pos[i], sign);
    }
}
