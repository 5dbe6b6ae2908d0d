/* AdamW (Loshchilov & Hutter 2019) and the squared norm over flat vectors; the order of operations is ref_dense.c's. */
#include "core/error.h"
#include "kernels/cpu/team.h"
#include "kernels/ref/ref.h"

/* sum of squares of one block in 16 lanes of doubles, and how many elements are not finite */
static double block_sumsq(const float *x, int64_t n, int64_t *nonfinite) {
    double l[LANES] = {0};
    int32_t bad = 0;
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (int t = 0; t < LANES; t++) {
            l[t] += (double)x[i + t] * (double)x[i + t];
            bad += (bits_of(x[i + t]) & 0x7f800000u) == 0x7f800000u;
        }
    for (int t = 0; i + t < n; t++) {
        l[t] += (double)x[i + t] * (double)x[i + t];
        bad += (bits_of(x[i + t]) & 0x7f800000u) == 0x7f800000u;
    }
    for (int width = LANES / 2; width; width /= 2)
        for (int t = 0; t < width; t++) l[t] += l[t + width];
    *nonfinite += bad;
    return l[0];
}

void ISA(sumsq)(kctx *c, step_sums *sums, const float *x, int64_t n) {
    double *part = (double *)c->scratch; /* one per block, so that the order of adding does not depend on threads */
    int64_t room = (int64_t)(c->scratch_bytes / sizeof(double)), bad = 0;
    CHECK(room > 0, "no scratch");
    for (int64_t at = 0; at < n; at += room * SUMSQ_BLOCK) {
        int64_t blocks = (n - at + SUMSQ_BLOCK - 1) / SUMSQ_BLOCK;
        blocks = blocks < room ? blocks : room;
        int threads = team(c, n - at);
#pragma omp parallel for schedule(static) num_threads(threads) reduction(+ : bad) if (threads > 1)
        for (int64_t b = 0; b < blocks; b++) {
            int64_t from = at + b * SUMSQ_BLOCK, m = n - from < SUMSQ_BLOCK ? n - from : SUMSQ_BLOCK;
            part[b] = block_sumsq(x + from, m, &bad);
        }
        for (int64_t b = 0; b < blocks; b++) sums->sumsq += part[b];
    }
    sums->nonfinite += bad;
}

void ISA(step_end)(kctx *c, step_sums *sums, double max_norm) { step_end_ref(c, sums, max_norm); }

void ISA(adamw)(kctx *c, float *p, const float *g, float *m, float *v, int64_t n, const adamw_hp *hp) {
    if (hp->sums->nonfinite) return;
    const v16 keep = v16_set1((float)(1.0 - hp->lr * hp->weight_decay)), step = v16_set1((float)(hp->lr / hp->bias1));
    const v16 scale = v16_set1((float)hp->sums->grad_scale), a1 = v16_set1((float)(1.0 - hp->beta1));
    const v16 b2 = v16_set1((float)hp->beta2), a2 = v16_set1((float)(1.0 - hp->beta2));
    const v16 root = v16_set1((float)hp->bias2_sqrt), eps = v16_set1((float)hp->eps);
    int threads = team(c, 4 * n);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < n; i += 16) {
        v16 grad = v16_mul(part_load(g + i, n - i), scale), mi = part_load(m + i, n - i);
        v16 decayed = v16_mul(part_load(p + i, n - i), keep);
        mi = v16_fma(a1, v16_sub(grad, mi), mi);
        v16 vi = v16_fma(v16_mul(a2, grad), grad, v16_mul(b2, part_load(v + i, n - i)));
        v16 denom = v16_add(v16_div(v16_sqrt(vi), root), eps);
        part_store(m + i, mi, n - i);
        part_store(v + i, vi, n - i);
        part_store(p + i, v16_fnma(step, v16_div(mi, denom), decayed), n - i);
    }
}
