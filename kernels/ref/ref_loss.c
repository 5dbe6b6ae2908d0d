/* Head and loss. Per row, over chunks of HEAD_CHUNK words counted from word 0, from m = -inf, l = 0, a = 0:
 *     s_j = chain over k of h w_j;  m' = max(m, max s_j), c = exp(m - m'), p_j = exp(s_j - m'),
 *     l = fmaf(l, c, sum16 p) (lane = j mod 16),  b = one chain over j of fmaf(p_j, w_j, b) from 0,  a = fmaf(a, c, b):
 * one chain over a whole vocabulary loses two digits of dh, since what is left after the target's row is small.
 * logprob = (float)((double)s_target - ((double)m + log((double)l))),  dh = fmaf(a, 1 / l, -w_target): attention with K
 * = V = W (so no logits are stored), whose gradient with respect to h is the output minus the target's row. */
#include "core/error.h"
#include "kernels/ref/ref.h"

enum { ROWS = 32, PIECE = 256 }; /* rows that share a dequantised piece of a row of W */

typedef struct {
    float m[ROWS], l[ROWS], target[ROWS], s[ROWS][HEAD_CHUNK], corr[ROWS];
} rows_state;

static void chunk_logits(rows_state *r, mat h, const weight *w, const int32_t *target, int64_t from, int64_t to) {
    for (int64_t j = from; j < to; j++) {
        for (int64_t i = 0; i < h.rows; i++) r->s[i][j - from] = 0;
        for (int64_t k = 0; k < w->cols; k += PIECE) {
            float piece[PIECE];
            int64_t n = w->cols - k < PIECE ? w->cols - k : PIECE;
            w->fmt->dequant(w, j * w->cols + k, n, piece);
            for (int64_t i = 0; i < h.rows; i++)
                r->s[i][j - from] = ref_chain(r->s[i][j - from], mat_row(h, i) + k, piece, n);
        }
        for (int64_t i = 0; i < h.rows; i++)
            if (target[i] == j) r->target[i] = r->s[i][j - from];
    }
}

static void chunk_softmax(rows_state *r, int64_t rows, int64_t n) {
    for (int64_t i = 0; i < rows; i++) {
        float top = r->m[i];
        for (int64_t j = 0; j < n; j++)
            if (r->s[i][j] > top) top = r->s[i][j];
        for (int64_t j = 0; j < n; j++) r->s[i][j] = ref_exp(r->s[i][j] - top);
        r->corr[i] = ref_exp(r->m[i] - top);
        r->m[i] = top, r->l[i] = fmaf(r->l[i], r->corr[i], ref_sum16(r->s[i], n));
    }
}

/* dh = dh * corr + p W of the chunk, the chunk's part summed by itself */
static void chunk_gradient(const rows_state *r, mat dh, const weight *w, int64_t from, int64_t to) {
    for (int64_t k = 0; k < w->cols; k += PIECE) {
        float piece[PIECE], part[ROWS][PIECE] = {{0}};
        int64_t n = w->cols - k < PIECE ? w->cols - k : PIECE;
        for (int64_t j = from; j < to; j++) {
            w->fmt->dequant(w, j * w->cols + k, n, piece);
            for (int64_t i = 0; i < dh.rows; i++)
                for (int64_t e = 0; e < n; e++) part[i][e] = fmaf(r->s[i][j - from], piece[e], part[i][e]);
        }
        for (int64_t i = 0; i < dh.rows; i++)
            for (int64_t e = 0; e < n; e++) mat_row(dh, i)[k + e] = fmaf(mat_row(dh, i)[k + e], r->corr[i], part[i][e]);
    }
}

static void finish_gradient(const rows_state *r, mat dh, const weight *w, const int32_t *target) {
    for (int64_t i = 0; i < dh.rows; i++) {
        float inv = 1.0f / r->l[i], *y = mat_row(dh, i);
        for (int64_t k = 0; k < w->cols; k += PIECE) {
            float piece[PIECE];
            int64_t n = w->cols - k < PIECE ? w->cols - k : PIECE;
            w->fmt->dequant(w, target[i] * w->cols + k, n, piece);
            for (int64_t e = 0; e < n; e++) y[k + e] = fmaf(y[k + e], inv, -piece[e]);
        }
    }
}

static void head_rows(float *logprob, mat dh, mat h, const weight *w, const int32_t *target) {
    rows_state r = {0};
    for (int64_t i = 0; i < h.rows; i++) {
        CHECK(target[i] >= 0 && target[i] < w->rows, "target %d of %ld words", target[i], (long)w->rows);
        r.m[i] = -INFINITY;
        for (int64_t k = 0; dh.data && k < dh.cols; k++) mat_row(dh, i)[k] = 0;
    }
    for (int64_t from = 0; from < w->rows; from += HEAD_CHUNK) {
        int64_t to = from + HEAD_CHUNK < w->rows ? from + HEAD_CHUNK : w->rows;
        chunk_logits(&r, h, w, target, from, to);
        chunk_softmax(&r, h.rows, to - from);
        if (dh.data) chunk_gradient(&r, dh, w, from, to);
    }
    for (int64_t i = 0; i < h.rows; i++)
        logprob[i] = (float)((double)r.target[i] - ((double)r.m[i] + log((double)r.l[i])));
    if (dh.data) finish_gradient(&r, dh, w, target);
}

void head_loss_ref(kctx *c, float *logprob, mat dh, mat h, const weight *w, const int32_t *target) {
    (void)c;
    for (int64_t i = 0; i < h.rows; i += ROWS) {
        int64_t n = h.rows - i < ROWS ? h.rows - i : ROWS;
        head_rows(logprob + i, dh.data ? mat_rows(dh, i, n) : dh, mat_rows(h, i, n), w, target + i);
    }
}

/* in double, row after row */
void loss_sum_ref(kctx *c, step_sums *sums, const float *logprob, const float *w, int64_t n) {
    (void)c;
    for (int64_t i = 0; i < n; i++) {
        sums->loss -= (double)w[i] * (double)logprob[i];
        sums->weight += (double)w[i];
    }
    sums->targets += n;
}

void scale_rows_ref(kctx *c, mat y, mat x, const float *w) {
    (void)c;
    for (int64_t i = 0; i < x.rows; i++)
        for (int64_t k = 0; k < x.cols; k++) mat_row(y, i)[k] = w[i] * mat_row(x, i)[k];
}
