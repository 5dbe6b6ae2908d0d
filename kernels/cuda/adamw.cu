/* The optimiser over flat vectors: sum of squares, the end of a step, AdamW (Loshchilov & Hutter 2019, in the form of
 * torch.optim.AdamW) in the operations of ref_dense.c. Bound by memory: AdamW reads 16 and writes 12 bytes an element. */
#include "kernels/cuda/adamw.cuh"
#include "kernels/cuda/eights.cuh"

static const int64_t SUM_BLOCKS = 512, SUM_EACH = 8192; /* partial sums at most; elements that one is made for at least */

typedef struct sum_part {
    double squares;
    long long nonfinite;
} sum_part;

/* part[b] = of elements b * BLOCK + thread, in steps of the grid, whose size follows from n */
static __global__ void __launch_bounds__(BLOCK) sumsq_parts(sum_part *part, const float *x, int64_t n) {
    __shared__ double sums[WARP];
    __shared__ long long bad[WARP];
    double s = 0;
    long long nonfinite = 0;
    for (int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x; i < n; i += (int64_t)gridDim.x * BLOCK) {
        s = fma((double)x[i], (double)x[i], s);
        nonfinite += !isfinite(x[i]);
    }
    s = block_sum(s, sums);
    nonfinite = block_sum(nonfinite, bad);
    if (threadIdx.x == 0) part[blockIdx.x].squares = s, part[blockIdx.x].nonfinite = nonfinite;
}

static __global__ void __launch_bounds__(BLOCK) sumsq_total(step_sums *sums, const sum_part *part, int parts) {
    __shared__ double squares[WARP];
    __shared__ long long bad[WARP];
    double s = 0;
    long long nonfinite = 0;
    for (int b = (int)threadIdx.x; b < parts; b += BLOCK) s += part[b].squares, nonfinite += part[b].nonfinite;
    s = block_sum(s, squares);
    nonfinite = block_sum(nonfinite, bad);
    if (threadIdx.x == 0) sums->sumsq += s, sums->nonfinite += nonfinite;
}

extern "C" void sumsq_cuda(kctx *c, step_sums *sums, const float *x, int64_t n) {
    const int64_t wanted = (n + SUM_EACH - 1) / SUM_EACH;
    const int parts = (int)(wanted < 1 ? 1 : wanted > SUM_BLOCKS ? SUM_BLOCKS : wanted);
    sum_part *part = reinterpret_cast<sum_part *>(c->scratch);
    CHECK(c->scratch_bytes >= SUM_BLOCKS * sizeof *part, "%zu bytes of scratch", c->scratch_bytes);
    LAUNCH(sumsq_parts, parts, BLOCK, 0, c, part, x, n);
    LAUNCH(sumsq_total, 1, BLOCK, 0, c, sums, part, parts);
}

static __global__ void step_close(step_sums *sums, double max_norm) {
    if (threadIdx.x) return;
    const double mean = sums->weight > 0 ? 1 / sums->weight : 0, norm = sqrt(sums->sumsq) * mean;
    sums->norm = norm;
    sums->grad_scale = mean * (max_norm > 0 ? fmin(1.0, max_norm / (norm + 1e-6)) : 1.0);
    sums->nonfinite += !isfinite(sums->loss) || !isfinite(norm);
}

extern "C" void step_end_cuda(kctx *c, step_sums *sums, double max_norm) {
    LAUNCH(step_close, 1, WARP, 0, c, sums, max_norm);
}

template <int V>
static __global__ void __launch_bounds__(BLOCK)
    adamw_update(float *p, const float *g, float *m, float *v, int64_t n, adam a) {
    if (a.sums->nonfinite) return;
    const float scale = (float)a.sums->grad_scale;
    const int64_t step = (int64_t)gridDim.x * BLOCK * V;
    for (int64_t i = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * V; i < n; i += step) {
        float pi[V], gi[V], mi[V], vi[V];
        take(pi, p + i), take(gi, g + i), take(mi, m + i), take(vi, v + i);
#pragma unroll
        for (int e = 0; e < V; e++) adam_step(a, scale, gi[e], pi[e], mi[e], vi[e]);
        give(p + i, pi), give(m + i, mi), give(v + i, vi);
    }
}

static bool whole(const void *p) { return (uintptr_t)p % 16 == 0; }

extern "C" void adamw_cuda(kctx *c, float *p, const float *g, float *m, float *v, int64_t n, const adamw_hp *hp) {
    const int64_t most = whole(p) && whole(g) && whole(m) && whole(v) ? n / 8 * 8 : 0;
    const adam a = adam_of(hp);
    if (most) LAUNCH((adamw_update<8>), grid_for(most / 8), BLOCK, 0, c, p, g, m, v, most, a);
    if (n > most)
        LAUNCH((adamw_update<1>), grid_for(n - most), BLOCK, 0, c, p + most, g + most, m + most, v + most, n - most, a);
}
