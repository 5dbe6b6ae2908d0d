/* Copies, elementwise kernels, embedding and products with a weight matrix; flat vectors of the optimiser. */
#include "core/error.h"
#include "kernels/ref/ref.h"

#include <string.h>

enum { PIECE = 256 }; /* elements of a row of W dequantised at a time */

void zero_ref(kctx *c, void *p, size_t bytes) {
    (void)c;
    if (bytes) memset(p, 0, bytes);
}

void copy_ref(kctx *c, mat y, mat x) {
    (void)c;
    for (int64_t i = 0; i < x.rows; i++) memmove(mat_row(y, i), mat_row(x, i), (size_t)x.cols * sizeof(float));
}

void add_ref(kctx *c, mat y, mat a, mat b) {
    (void)c;
    for (int64_t i = 0; i < y.rows; i++)
        for (int64_t k = 0; k < y.cols; k++) mat_row(y, i)[k] = mat_row(a, i)[k] + mat_row(b, i)[k];
}

void scale_ref(kctx *c, mat y, mat x, float s) {
    (void)c;
    for (int64_t i = 0; i < y.rows; i++)
        for (int64_t k = 0; k < y.cols; k++) mat_row(y, i)[k] = s * mat_row(x, i)[k];
}

void add_bias_ref(kctx *c, mat y, const float *bias) {
    (void)c;
    for (int64_t i = 0; i < y.rows; i++)
        for (int64_t k = 0; k < y.cols; k++) mat_row(y, i)[k] += bias[k];
}

void dropout_fwd_ref(kctx *c, mat y, mat x, const dropout *d) {
    (void)c;
    uint64_t seed = dropout_key(d);
    uint32_t threshold = dropout_threshold(d->p);
    float inv = 1.0f / (1.0f - d->p);
    for (int64_t i = 0; i < x.rows; i++)
        for (int64_t k = 0; k < x.cols; k++) {
            rng_block r = rng_philox(seed, d->sample[i], dropout_counter(d->pos[i], k / 4));
            mat_row(y, i)[k] = r.v[k % 4] >= threshold ? mat_row(x, i)[k] * inv : 0.0f;
        }
}

void gather_rows_ref(kctx *c, mat y, mat x, const int32_t *row) {
    (void)c;
    for (int64_t i = 0; i < y.rows; i++) {
        CHECK(row[i] >= 0 && row[i] < x.rows, "row %d of %ld", row[i], (long)x.rows);
        memcpy(mat_row(y, i), mat_row(x, row[i]), (size_t)y.cols * sizeof(float));
    }
}

void scatter_rows_ref(kctx *c, mat y, mat x, const int32_t *row) {
    (void)c;
    for (int64_t i = 0; i < x.rows; i++) {
        CHECK(row[i] >= 0 && row[i] < y.rows, "row %d of %ld", row[i], (long)y.rows);
        memcpy(mat_row(y, row[i]), mat_row(x, i), (size_t)x.cols * sizeof(float));
    }
}

void embed_fwd_ref(kctx *c, mat y, const weight *w, const int32_t *token) {
    (void)c;
    for (int64_t i = 0; i < y.rows; i++) {
        CHECK(token[i] >= 0 && token[i] < w->rows, "token %d of %ld", token[i], (long)w->rows);
        w->fmt->dequant(w, token[i] * w->cols, w->cols, mat_row(y, i));
    }
}

void weight_fwd_ref(kctx *c, mat y, mat x, const weight *w) {
    (void)c;
    for (int64_t o = 0; o < w->rows; o++)
        for (int64_t k = 0; k < w->cols; k += PIECE) {
            float piece[PIECE];
            int64_t n = w->cols - k < PIECE ? w->cols - k : PIECE;
            w->fmt->dequant(w, o * w->cols + k, n, piece);
            for (int64_t i = 0; i < x.rows; i++)
                mat_row(y, i)[o] = ref_chain(mat_row(y, i)[o], mat_row(x, i) + k, piece, n);
        }
}

void weight_bwd_ref(kctx *c, mat dx, mat dy, const weight *w) {
    (void)c;
    for (int64_t o = 0; o < w->rows; o++)
        for (int64_t k = 0; k < w->cols; k += PIECE) {
            float piece[PIECE];
            int64_t n = w->cols - k < PIECE ? w->cols - k : PIECE;
            w->fmt->dequant(w, o * w->cols + k, n, piece);
            for (int64_t i = 0; i < dy.rows; i++)
                for (int64_t e = 0; e < n; e++)
                    mat_row(dx, i)[k + e] = fmaf(mat_row(dy, i)[o], piece[e], mat_row(dx, i)[k + e]);
        }
}

void weight_grad_ref(kctx *c, mat dw, mat dy, mat x) {
    (void)c;
    for (int64_t i = 0; i < x.rows; i++)
        for (int64_t o = 0; o < dw.rows; o++)
            for (int64_t k = 0; k < dw.cols; k++)
                mat_row(dw, o)[k] = fmaf(mat_row(dy, i)[o], mat_row(x, i)[k], mat_row(dw, o)[k]);
}

void lora_fwd_ref(kctx *c, const lora_fwd_args *a) { lora_fwd_compose(c, a); }
void proj_fwd_ref(kctx *c, const proj_fwd_args *p) { proj_fwd_compose(c, p); }
void proj_bwd_ref(kctx *c, const proj_bwd_args *p) { proj_bwd_compose(c, p); }

void sumsq_ref(kctx *c, step_sums *sums, const float *x, int64_t n) {
    (void)c;
    for (int64_t block = 0; block < n; block += SUMSQ_BLOCK) {
        double l[LANES] = {0};
        for (int64_t i = block; i < n && i < block + SUMSQ_BLOCK; i++) {
            l[i % LANES] += (double)x[i] * (double)x[i];
            sums->nonfinite += !isfinite(x[i]);
        }
        for (int width = LANES / 2; width; width /= 2)
            for (int i = 0; i < width; i++) l[i] += l[i + width];
        sums->sumsq += l[0];
    }
}

void step_end_ref(kctx *c, step_sums *sums, double max_norm) {
    (void)c;
    double mean = sums->weight > 0 ? 1 / sums->weight : 0;
    sums->norm = sqrt(sums->sumsq) * mean;
    sums->grad_scale = mean * (max_norm > 0 ? fmin(1, max_norm / (sums->norm + 1e-6)) : 1);
    sums->nonfinite += !isfinite(sums->loss) || !isfinite(sums->norm);
}

/* AdamW (Loshchilov & Hutter 2019, algorithm 2, in the form of torch.optim.AdamW). Scalars are made in double, rounded
 * once. */
void adamw_ref(kctx *c, float *p, const float *g, float *m, float *v, int64_t n, const adamw_hp *hp) {
    (void)c;
    if (hp->sums->nonfinite) return;
    float keep = (float)(1.0 - hp->lr * hp->weight_decay), step = (float)(hp->lr / hp->bias1);
    float scale = (float)hp->sums->grad_scale, a1 = (float)(1.0 - hp->beta1), b2 = (float)hp->beta2,
          a2 = (float)(1.0 - hp->beta2);
    float root = (float)hp->bias2_sqrt, eps = (float)hp->eps;
    for (int64_t i = 0; i < n; i++) {
        float grad = g[i] * scale, decayed = p[i] * keep;
        m[i] = fmaf(a1, grad - m[i], m[i]);
        v[i] = fmaf(a2 * grad, grad, b2 * v[i]);
        p[i] = fmaf(-step, m[i] / (sqrtf(v[i]) / root + eps), decayed);
    }
}

void bf16_pack_ref(kctx *c, uint16_t *y, const float *x, int64_t n) {
    (void)c;
    for (int64_t i = 0; i < n; i++) y[i] = float_to_bf16(x[i]);
}

void bf16_unpack_ref(kctx *c, float *y, const uint16_t *x, int64_t n) {
    (void)c;
    for (int64_t i = 0; i < n; i++) y[i] = bf16_to_float(x[i]);
}
