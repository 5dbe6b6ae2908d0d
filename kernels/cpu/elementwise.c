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

void ISA(bf16_pack)(kctx *c, uint16_t *y, const float *x, int64_t n) {
    int threads = team(c, n);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < n / 16; i++) v16_to_bf16(y + 16 * i, v16_load(x + 16 * i));
}

void ISA(bf16_unpack)(kctx *c, float *y, const uint16_t *x, int64_t n) {
    int threads = team(c, n);
#pragma omp parallel for schedule(static) num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < n / 16; i++) v16_store(y + 16 * i, v16_from_bf16(x + 16 * i));
}

enum { DRAW_BLOCKS = 64, DRAW = 4 * DRAW_BLOCKS }; /* Philox blocks drawn together, and their features */

/* One round of rng_philox on all blocks; the products' high and low halves are apart as the compiler wants them to make
 * vectors. */
static void philox_round(uint32_t *restrict a, uint32_t *restrict b, uint32_t *restrict c, uint32_t *restrict d,
                         uint32_t k0, uint32_t k1) {
    for (int i = 0; i < DRAW_BLOCKS; i++) {
        uint32_t x = a[i], y = c[i];
        a[i] = (uint32_t)((uint64_t)y * 0xCD9E8D57u >> 32) ^ b[i] ^ k0, b[i] = y * 0xCD9E8D57u;
        c[i] = (uint32_t)((uint64_t)x * 0xD2511F53u >> 32) ^ d[i] ^ k1, d[i] = x * 0xD2511F53u;
    }
}

/* keep[4 i + w] = all ones where word w of Philox(key, hi, lo + i) is at least the threshold, else 0 */
static void draw(uint64_t key, uint64_t hi, uint64_t lo, uint32_t threshold, uint32_t *restrict keep) {
    uint32_t a[DRAW_BLOCKS], b[DRAW_BLOCKS], c[DRAW_BLOCKS], d[DRAW_BLOCKS];
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (uint32_t i = 0; i < DRAW_BLOCKS; i++) {
        a[i] = (uint32_t)lo + i, b[i] = (uint32_t)(lo >> 32);
        c[i] = (uint32_t)hi, d[i] = (uint32_t)(hi >> 32);
    }
    for (int round = 0; round < 10; round++) {
        philox_round(a, b, c, d, k0, k1);
        k0 += 0x9E3779B9u, k1 += 0xBB67AE85u;
    }
    for (int i = 0; i < DRAW_BLOCKS; i++) {
        keep[4 * i] = a[i] >= threshold ? UINT32_MAX : 0, keep[4 * i + 1] = b[i] >= threshold ? UINT32_MAX : 0;
        keep[4 * i + 2] = c[i] >= threshold ? UINT32_MAX : 0, keep[4 * i + 3] = d[i] >= threshold ? UINT32_MAX : 0;
    }
}

static void drop_row(float *y, const float *x, int64_t n, uint64_t key, uint64_t sample, int32_t pos, float p) {
    uint32_t keep[DRAW], threshold = dropout_threshold(p);
    const v16 inv = v16_set1(1.0f / (1.0f - p));
    for (int64_t at = 0; at < n; at += DRAW) {
        int64_t end = n - at < DRAW ? n - at : DRAW;
        draw(key, sample, dropout_counter(pos, at / 4), threshold, keep);
        for (int64_t k = 0; k < end; k += 16) {
            v16i m = v16i_load((const int32_t *)keep + k);
            v16 kept = v16_of_bits(v16i_and(v16_bits(v16_mul(part_load(x + at + k, end - k), inv)), m));
            part_store(y + at + k, kept, end - k);
        }
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
