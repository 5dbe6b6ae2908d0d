/* Head and loss, logits never whole: per chunk of the vocabulary logits = h W^T, an online softmax, dh = corr dh + p W;
 * it is attention with K = V = W (Dao et al. 2022). The operations and their order are ref_loss.c's.
 *
 * A row never mixes with another, so threads take rows. Where rows are few, that would have every thread decode all of
 * W: then the team walks one block of rows together, split over words for the logits and over features for dh. */
#include "core/error.h"
#include "kernels/cpu/gemm.h"

#include <omp.h>

enum {
    HEAD_ROWS = 512,
    P_PITCH = HEAD_CHUNK + 16,
    DH_COLS = 192,
    TEAM_ROWS = 64 /* rows per thread below which it works as a team */
};

/* One block of rows, and which thread of how many the caller is. The arrays lie in the scratch of the block's owner. */
typedef struct {
    mat h, dh;
    const weight *w;
    const int32_t *target;
    float *logprob;
    float *p;                  /* [rows, P_PITCH] logits, then probabilities of a chunk */
    float *m, *s, *hit, *corr; /* [rows] maximum, sum, logit of the target, correction of the chunk */
    float *sum;                /* [rows, DH_COLS] this thread's part of dh from one chunk */
    float *scratch;            /* of this thread */
    int member, members;
} head_block;

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

static void meet(const head_block *b) {
    if (b->members > 1) {
#pragma omp barrier
    }
}

/* the member's part of n things in units of `unit` */
static void part(const head_block *b, int64_t n, int64_t unit, int64_t *from, int64_t *to) {
    int64_t units = (n + unit - 1) / unit;
    *from = smaller(n, units * b->member / b->members * unit);
    *to = smaller(n, units * (b->member + 1) / b->members * unit);
}

static inline float exp_of(float x) {
    float l[16];
    v16_store(l, v16_exp(v16_set1(x)));
    return l[0];
}

static void logits(const head_block *b, int64_t word, int64_t words) {
    int64_t n0, n1;
    part(b, words, NR, &n0, &n1);
    gemm g = {.m = b->h.rows, .n = words, .c = b->p, .cs = P_PITCH, .fresh = true, .terms = 1};
    g.term[0] =
        (gemm_term){.k = b->w->cols, .a = b->h.data, .as = b->h.ld, .pack = ISA(pack_fwd), .w = b->w, .w_n0 = word};
    ISA(gemm_range)(&g, 1, b->scratch, 0, g.m, n0 / NR, (n1 + NR - 1) / NR);
}

/* Logits of row i become probabilities against the maximum so far. The pad up to 16 holds exp(-inf) = 0. */
static void softmax_row(const head_block *b, int64_t i, int64_t word, int64_t words) {
    float *p = b->p + i * P_PITCH;
    int64_t at = b->target[i] - word;
    if (at >= 0 && at < words) b->hit[i] = p[at];
    for (int64_t j = words; j % 16; j++) p[j] = -INFINITY;
    v16 top = v16_set1(b->m[i]);
    for (int64_t j = 0; j < words; j += 16) top = v16_max(v16_load(p + j), top);
    float max = v16_hmax(top);
    v16 sum = v16_zero(), shift = v16_set1(max);
    for (int64_t j = 0; j < words; j += 16) {
        v16 e = v16_exp(v16_sub(v16_load(p + j), shift));
        v16_store(p + j, e);
        sum = v16_add(sum, e);
    }
    b->corr[i] = exp_of(b->m[i] - max);
    b->s[i] = fmaf(b->s[i], b->corr[i], v16_sum(sum));
    b->m[i] = max;
}

/* dh = corr dh + p W of the chunk, by blocks of columns whose products are summed apart from dh. */
static void gradient(const head_block *b, int64_t word, int64_t words) {
    int64_t n0, n1;
    part(b, b->dh.cols, NR, &n0, &n1);
    for (int64_t at = n0; at < n1; at += DH_COLS) {
        int64_t cols = smaller(DH_COLS, n1 - at);
        gemm g = {.m = b->dh.rows, .n = cols, .c = b->sum, .cs = DH_COLS, .fresh = true, .terms = 1};
        g.term[0] = (gemm_term){
            .k = words, .a = b->p, .as = P_PITCH, .pack = ISA(pack_bwd), .w = b->w, .w_k0 = word, .w_n0 = at};
        ISA(gemm_range)(&g, 1, b->scratch, 0, g.m, 0, (cols + NR - 1) / NR);
        for (int64_t i = 0; i < b->dh.rows; i++) {
            float *y = mat_row(b->dh, i) + at;
            const float *sum = b->sum + i * DH_COLS;
            v16 corr = v16_set1(b->corr[i]);
            for (int64_t k = 0; k < cols; k += 16) {
                int n = (int)smaller(16, cols - k);
                v16_store_n(y + k, v16_fma(v16_load_n(y + k, n), corr, v16_load_n(sum + k, n)), n);
            }
        }
    }
}

static void finish_row(const head_block *b, int64_t i) {
    b->logprob[i] = (float)((double)b->hit[i] - ((double)b->m[i] + log((double)b->s[i])));
    if (!b->dh.data) return;
    float inv = 1.0f / b->s[i], *y = mat_row(b->dh, i), *row = b->scratch;
    for (int64_t k = 0; k < b->dh.cols; k += A_FLOATS) {
        int64_t n = smaller(A_FLOATS, b->dh.cols - k);
        ISA(weight_row)(b->w, b->target[i], k, n, row);
        for (int64_t j = 0; j < n; j++) y[k + j] = fmaf(y[k + j], inv, -row[j]);
    }
}

static void run_block(const head_block *b) {
    int64_t i0, i1;
    part(b, b->h.rows, 1, &i0, &i1);
    for (int64_t i = i0; i < i1; i++) {
        b->m[i] = -INFINITY, b->s[i] = 0;
        if (b->dh.data) memset(mat_row(b->dh, i), 0, (size_t)b->dh.cols * sizeof(float));
    }
    for (int64_t word = 0; word < b->w->rows; word += HEAD_CHUNK) {
        int64_t words = smaller(HEAD_CHUNK, b->w->rows - word);
        meet(b);
        logits(b, word, words);
        meet(b);
        for (int64_t i = i0; i < i1; i++) softmax_row(b, i, word, words);
        meet(b);
        if (b->dh.data) gradient(b, word, words);
    }
    meet(b);
    for (int64_t i = i0; i < i1; i++) finish_row(b, i);
    meet(b);
}

/* Rows [i, i + n) of the call; `owner` is the scratch that holds what the block's threads share. */
static head_block block_of(float *logprob, mat dh, mat h, const weight *w, const int32_t *target, int64_t i, int64_t n,
                           float *owner) {
    _Static_assert((GEMM_FLOATS + HEAD_ROWS * (P_PITCH + 4 + DH_COLS)) * sizeof(float) <= THREAD_SCRATCH,
                   "a block fits");
    float *p = owner + GEMM_FLOATS, *m = p + HEAD_ROWS * P_PITCH;
    return (head_block){.h = mat_rows(h, i, n),
                        .dh = dh.data ? mat_rows(dh, i, n) : dh,
                        .w = w,
                        .target = target + i,
                        .logprob = logprob + i,
                        .p = p,
                        .m = m,
                        .s = m + HEAD_ROWS,
                        .hit = m + 2 * HEAD_ROWS,
                        .corr = m + 3 * HEAD_ROWS};
}

void ISA(head_loss)(kctx *c, float *logprob, mat dh, mat h, const weight *w, const int32_t *target) {
    CHECK(h.cols == w->cols && (!dh.data || (dh.cols == h.cols && dh.rows == h.rows)), "h %ldx%ld dh %ldx%ld W %ldx%ld",
          (long)h.rows, (long)h.cols, (long)dh.rows, (long)dh.cols, (long)w->rows, (long)w->cols);
    for (int64_t i = 0; i < h.rows; i++)
        CHECK(target[i] >= 0 && target[i] < w->rows, "target %d of %ld words", target[i], (long)w->rows);
    if (!h.rows) return;
#pragma omp parallel num_threads(c->threads) if (c->threads > 1)
    {
        int threads = omp_get_num_threads(), self = omp_get_thread_num();
        bool team = threads > 1 && h.rows < (int64_t)threads * TEAM_ROWS;
        int64_t each = team ? h.rows : (h.rows + threads - 1) / threads;
        int64_t rounds = (each + HEAD_ROWS - 1) / HEAD_ROWS, n = (each + rounds - 1) / rounds;
        for (int64_t i = team ? 0 : self * n; i < h.rows; i += team ? n : threads * n) {
            head_block b =
                block_of(logprob, dh, h, w, target, i, smaller(n, h.rows - i), thread_scratch(c, team ? 0 : self));
            b.scratch = thread_scratch(c, self), b.sum = b.scratch + GEMM_FLOATS + HEAD_ROWS * (P_PITCH + 4),
            b.member = team ? self : 0, b.members = team ? threads : 1;
            run_block(&b);
        }
    }
}
