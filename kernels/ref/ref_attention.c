/* Attention (Dao et al. 2022, algorithm 1; backward: Dao 2023, algorithm 2), one query row i of one head after another.
 *
 *   forward   over the seen keys in blocks of ATTN_BLOCK counted from key 0 of the sequence, from m = -inf, l = 0, o =
 * 0: s_j = scale * (chain over d of q_i k_j from 0), m' = max(m, max s_j), c = exp(m - m'), p_j = exp(s_j - m'), l =
 * fmaf(l, c, sum16 p) with lane = j mod 16, o = o * c and then one chain over j of o = fmaf(p_j, v_j, o) end       o *
 * (1 / l), lse = m + (float)log((double)l) backward  p_j = exp(s_j - lse_i), dp_j = chain over d of dout_i v_j, ds_j =
 * (p_j * (dp_j - dot16(dout_i, o_i))) * scale dq      dq_i = one chain over j of ds_j k_j, begun at the value that
 * stands in dq dk, dv  per head and key one chain over the rows i that see it of ds_j q_i (p_j dout_i), begun at 0;
 * then added to what stands in dk (dv), heads in ascending order
 *
 * Of dk and dv: the key ranges of the sequences must not overlap. */
#include "kernels/kv_page.h"
#include "kernels/ref/ref.h"

static const float *head_of(mat m, int64_t row, int head, int dim) { return mat_row(m, row) + (int64_t)head * dim; }

typedef struct {
    const attn *a;
    mat q, k, v;
    int seq, head, group;
    const kv_pages *pages; /* instead of k and v, or NULL */
    float *buf;            /* [dim], for what comes from a page */
} span;                    /* one head of one sequence */

static int64_t page_of(const span *s, int64_t j) {
    return s->pages->table[(int64_t)s->seq * s->pages->columns + j / KV_PAGE] * s->pages->stride;
}
static const float *from_page(const span *s, const char *page, kv_place w) {
    int64_t width = (int64_t)s->pages->heads * s->pages->dim;
    for (int d = 0; d < s->a->dim; d++)
        s->buf[d] = kv_get(s->pages->type, page, width, w, (int64_t)s->group * s->a->dim + d);
    return s->buf;
}
static const float *key(const span *s, int64_t j) {
    if (s->pages) return from_page(s, s->pages->k + page_of(s, j), kv_key_place(j % KV_PAGE));
    return head_of(s->k, s->a->first[s->seq] + j, s->group, s->a->dim);
}
static const float *value(const span *s, int64_t j) {
    int64_t width = s->pages ? (int64_t)s->pages->heads * s->pages->dim : 0;
    if (s->pages) return from_page(s, s->pages->v + page_of(s, j), kv_value_place(j % KV_PAGE, width));
    return head_of(s->v, s->a->first[s->seq] + j, s->group, s->a->dim);
}
static int64_t number(const span *s, int64_t i) { return s->a->past[s->seq] + i - s->a->start[s->seq]; }

static float score(const span *s, int64_t i, int64_t j) {
    return s->a->scale * ref_chain(0, head_of(s->q, i, s->head, s->a->dim), key(s, j), s->a->dim);
}

static void row_fwd(const span *s, int64_t i, float *out, float *lse) {
    int dim = s->a->dim;
    float o[HEAD_DIM_MAX] = {0}, m = -INFINITY, l = 0;
    int64_t lo, hi;
    attn_span(s->a, number(s, i), &lo, &hi);
    for (int64_t block = lo / ATTN_BLOCK * ATTN_BLOCK; block < hi; block += ATTN_BLOCK) {
        int64_t from = block > lo ? block : lo, to = block + ATTN_BLOCK < hi ? block + ATTN_BLOCK : hi;
        float p[ATTN_BLOCK], sum[LANES] = {0}, top = m;
        for (int64_t j = from; j < to; j++) {
            p[j - block] = score(s, i, j);
            if (p[j - block] > top) top = p[j - block];
        }
        float corr = ref_exp(m - top);
        for (int64_t j = from; j < to; j++) {
            p[j - block] = ref_exp(p[j - block] - top);
            sum[j % LANES] += p[j - block];
        }
        m = top, l = fmaf(l, corr, ref_tree16(sum));
        for (int d = 0; d < dim; d++) o[d] *= corr;
        for (int64_t j = from; j < to; j++) {
            const float *v = value(s, j);
            for (int d = 0; d < dim; d++) o[d] = fmaf(p[j - block], v[d], o[d]);
        }
    }
    float inv = 1.0f / l;
    for (int d = 0; d < dim; d++) out[d] = o[d] * inv;
    *lse = m + (float)log((double)l);
}

static void forward(mat o, float *lse, mat q, mat k, mat v, const kv_pages *p, const attn *a) {
    float buf[HEAD_DIM_MAX] = {0};
    for (int n = 0; n < a->seqs; n++)
        for (int h = 0; h < a->heads; h++) {
            span s = {a, q, k, v, n, h, h / (a->heads / a->kv_heads), p, buf};
            for (int64_t i = a->start[n]; i < a->start[n + 1]; i++) {
                float row_lse;
                row_fwd(&s, i, mat_row(o, i) + (int64_t)h * a->dim, &row_lse);
                if (lse) lse[i * a->heads + h] = row_lse;
            }
        }
}

void attn_fwd_ref(kctx *c, mat o, float *lse, mat q, mat k, mat v, const attn *a) {
    (void)c;
    forward(o, lse, q, k, v, NULL, a);
}

void kv_store_ref(kctx *c, const kv_pages *p, mat k, mat v, const int32_t *slot) {
    (void)c;
    for (int64_t i = 0; i < k.rows; i++) kv_store_row(p, k, v, slot, i);
}

void attn_pages_ref(kctx *c, mat o, mat q, const kv_pages *p, const attn *a) {
    (void)c;
    forward(o, NULL, q, mat_none(), mat_none(), p, a);
}

typedef struct {
    mat dout, o;
    const float *lse;
} saved;

/* p and ds of query row i and key j; false when i does not see j */
static int pair(const span *s, const saved *f, int64_t i, int64_t j, float *p, float *ds) {
    int64_t lo, hi;
    attn_span(s->a, number(s, i), &lo, &hi);
    if (j < lo || j >= hi) return 0;
    int dim = s->a->dim;
    const float *dout = head_of(f->dout, i, s->head, dim);
    float delta = ref_dot16(dout, head_of(f->o, i, s->head, dim), dim);
    *p = ref_exp(score(s, i, j) - f->lse[i * s->a->heads + s->head]);
    float dp = ref_chain(0, dout, value(s, j), dim);
    *ds = (*p * (dp - delta)) * s->a->scale;
    return 1;
}

static void queries_bwd(const span *s, const saved *f, mat dq) {
    for (int64_t i = s->a->start[s->seq]; i < s->a->start[s->seq + 1]; i++) {
        float *dqi = mat_row(dq, i) + (int64_t)s->head * s->a->dim, p, ds;
        for (int64_t j = 0; j <= number(s, i); j++) {
            if (!pair(s, f, i, j, &p, &ds)) continue;
            for (int d = 0; d < s->a->dim; d++) dqi[d] = fmaf(ds, key(s, j)[d], dqi[d]);
        }
    }
}

static void keys_bwd(const span *s, const saved *f, mat dk, mat dv) {
    int dim = s->a->dim;
    int64_t begin = s->a->start[s->seq], end = s->a->start[s->seq + 1];
    for (int64_t j = 0; begin < end && j <= number(s, end - 1); j++) {
        float ak[HEAD_DIM_MAX] = {0}, av[HEAD_DIM_MAX] = {0}, p, ds;
        for (int64_t i = begin; i < end; i++) {
            if (!pair(s, f, i, j, &p, &ds)) continue;
            const float *q = head_of(s->q, i, s->head, dim), *dout = head_of(f->dout, i, s->head, dim);
            for (int d = 0; d < dim; d++) ak[d] = fmaf(ds, q[d], ak[d]), av[d] = fmaf(p, dout[d], av[d]);
        }
        int64_t row = s->a->first[s->seq] + j, at = (int64_t)s->group * dim;
        for (int d = 0; d < dim; d++) {
            if (dk.data) mat_row(dk, row)[at + d] += ak[d];
            if (dv.data) mat_row(dv, row)[at + d] += av[d];
        }
    }
}

void attn_bwd_ref(kctx *c, mat dq, mat dk, mat dv, mat dout, mat q, mat k, mat v, mat o, const float *lse,
                  const attn *a) {
    (void)c;
    saved f = {dout, o, lse};
    for (int n = 0; n < a->seqs; n++)
        for (int h = 0; h < a->heads; h++) {
            span s = {a, q, k, v, n, h, h / (a->heads / a->kv_heads), NULL, NULL};
            if (dq.data) queries_bwd(&s, &f, dq);
            keys_bwd(&s, &f, dk, dv);
        }
}
