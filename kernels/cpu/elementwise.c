/* Copies, elementwise maps, dropout (Srivastava et al. 2014) and the sum of the loss; formulas in ref.h. */
#include "core/error.h"
#include "kernels/cpu/team.h"
#include "kernels/ref/ref.h"

void ISA(zero)(kctx *c, void *p, size_t bytes) {
    enum { PIECE = 1 << 16 };
    int64_t pieces = (int64_t)((bytes + PIECE - 1) / PIECE);
    int threads = team(c, (int64_t)(bytes / sizeof(float)));
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < pieces; i++) {
        size_t at = (size_t)i * PIECE, n = bytes - at < PIECE ? bytes - at : PIECE;
        memset((char *)p + at, 0, n);
    }
}

void ISA(copy)(kctx *c, mat y, mat x) {
    int threads = team(c, x.rows * x.cols);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < x.rows; i++) memmove(mat_row(y, i), mat_row(x, i), (size_t)x.cols * sizeof(float));
}

void ISA(add)(kctx *c, mat y, mat a, mat b) {
    int threads = team(c, y.rows * y.cols);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < y.rows; i++) {
        const float *ai = mat_row(a, i), *bi = mat_row(b, i);
        float *yi = mat_row(y, i);
        for (int64_t k = 0, n = y.cols; k < n; k += 16)
            part_store(yi + k, v16_add(part_load(ai + k, n - k), part_load(bi + k, n - k)), n - k);
    }
}

static void scale_row(float *y, const float *x, int64_t n, float s) {
    for (int64_t k = 0; k < n; k += 16) part_store(y + k, v16_mul(v16_set1(s), part_load(x + k, n - k)), n - k);
}

void ISA(scale)(kctx *c, mat y, mat x, float s) {
    int threads = team(c, y.rows * y.cols);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < y.rows; i++) scale_row(mat_row(y, i), mat_row(x, i), y.cols, s);
}

void ISA(scale_rows)(kctx *c, mat y, mat x, const float *w) {
    int threads = team(c, x.rows * x.cols);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < x.rows; i++) scale_row(mat_row(y, i), mat_row(x, i), x.cols, w[i]);
}

void ISA(add_bias)(kctx *c, mat y, const float *bias) {
    int threads = team(c, y.rows * y.cols);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < y.rows; i++) {
        float *yi = mat_row(y, i);
        for (int64_t k = 0, n = y.cols; k < n; k += 16)
            part_store(yi + k, v16_add(part_load(yi + k, n - k), part_load(bias + k, n - k)), n - k);
    }
}

enum { DRAW_BLOCKS = 16, DRAW = 4 * DRAW_BLOCKS }; /* Philox blocks drawn together, and their features */

/* rng_philox of 16 counters (lo + i, hi) side by side: the compiler makes vectors of the inner loops. u[4i + w] = word
 * w */
static void draw(uint64_t key, uint64_t hi, uint64_t lo, uint32_t u[DRAW]) {
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    uint32_t a[DRAW_BLOCKS], b[DRAW_BLOCKS], d[DRAW_BLOCKS], e[DRAW_BLOCKS];
    for (uint32_t i = 0; i < DRAW_BLOCKS; i++) {
        a[i] = (uint32_t)lo + i, b[i] = (uint32_t)(lo >> 32);
        d[i] = (uint32_t)hi, e[i] = (uint32_t)(hi >> 32);
    }
    for (int round = 0; round < 10; round++) {
        for (int i = 0; i < DRAW_BLOCKS; i++) {
            uint64_t p = (uint64_t)a[i] * 0xD2511F53u, q = (uint64_t)d[i] * 0xCD9E8D57u;
            a[i] = (uint32_t)(q >> 32) ^ b[i] ^ k0, b[i] = (uint32_t)q;
            d[i] = (uint32_t)(p >> 32) ^ e[i] ^ k1, e[i] = (uint32_t)p;
        }
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    for (int i = 0; i < DRAW_BLOCKS; i++)
        u[4 * i] = a[i], u[4 * i + 1] = b[i], u[4 * i + 2] = d[i], u[4 * i + 3] = e[i];
}

static void drop_row(float *y, const float *x, int64_t n, uint64_t key, uint64_t sample, int32_t pos, float p) {
    uint32_t u[DRAW], threshold = dropout_threshold(p);
    float inv = 1.0f / (1.0f - p);
    for (int64_t at = 0; at < n; at += DRAW) {
        int64_t m = n - at < DRAW ? n - at : DRAW;
        draw(key, sample, dropout_counter(pos, at / 4), u);
        for (int64_t k = 0; k < m; k++) y[at + k] = u[k] >= threshold ? x[at + k] * inv : 0.0f;
    }
}

void ISA(dropout_fwd)(kctx *c, mat y, mat x, const dropout *d) {
    uint64_t key = dropout_key(d);
    int threads = team(c, 4 * x.rows * x.cols); /* ten rounds: worth a region sooner */
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < x.rows; i++)
        drop_row(mat_row(y, i), mat_row(x, i), x.cols, key, d->sample[i], d->pos[i], d->p);
}

void ISA(gather_rows)(kctx *c, mat y, mat x, const int32_t *row) {
    int threads = team(c, y.rows * y.cols);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < y.rows; i++) {
        CHECK(row[i] >= 0 && row[i] < x.rows, "row %d of %ld", row[i], (long)x.rows);
        memcpy(mat_row(y, i), mat_row(x, row[i]), (size_t)y.cols * sizeof(float));
    }
}

void ISA(scatter_rows)(kctx *c, mat y, mat x, const int32_t *row) {
    int threads = team(c, x.rows * x.cols);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < x.rows; i++) {
        CHECK(row[i] >= 0 && row[i] < y.rows, "row %d of %ld", row[i], (long)y.rows);
        memcpy(mat_row(y, row[i]), mat_row(x, i), (size_t)x.cols * sizeof(float));
    }
}

void ISA(loss_sum)(kctx *c, step_sums *sums, const float *logprob, const float *w, int64_t n) {
    (void)c;
    for (int64_t i = 0; i < n; i++) {
        sums->loss -= (double)w[i] * (double)logprob[i];
        sums->weight += (double)w[i];
    }
    sums->targets += n;
}
