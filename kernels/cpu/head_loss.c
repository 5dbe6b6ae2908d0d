/* Head and loss, logits never whole: per chunk of the vocabulary logits = h W^T, an online softmax, dh = corr dh + p W;
 * it is attention with K = V = W (Dao et al. 2022). head_walk.h has the walk. */
#include "kernels/cpu/gemm.h"
#include "kernels/cpu/head_walk.h"

#include <omp.h>

enum { P_PITCH = HEAD_CHUNK + 16, DH_COLS = 192 };

typedef struct {
    head_walk walk;
    float *p;       /* [rows, P_PITCH] logits, then probabilities of a chunk */
    float *sum;     /* [rows, DH_COLS] this thread's part of dh from one chunk */
    float *scratch; /* of this thread */
} head_block;

static void begin_rows(const head_walk *b, int64_t i0, int64_t i1) {
    for (int64_t i = i0; i < i1 && b->dh.data; i++) memset(mat_row(b->dh, i), 0, (size_t)b->dh.cols * sizeof(float));
}

static void logits(const head_walk *b, int64_t word, int64_t words) {
    const head_block *own = (const head_block *)b;
    int64_t n0, n1;
    head_part(b, words, NR, &n0, &n1);
    gemm g = {.m = b->h.rows, .n = words, .c = own->p, .cs = P_PITCH, .fresh = true, .terms = 1};
    g.term[0] =
        (gemm_term){.k = b->w->cols, .a = b->h.data, .as = b->h.ld, .pack = ISA(pack_fwd), .w = b->w, .w_n0 = word};
    ISA(gemm_range)(&g, 1, own->scratch, 0, g.m, n0 / NR, (n1 + NR - 1) / NR);
}

static inline void put(void *to, int64_t j, v16 lo, v16 hi) {
    v16_store((float *)to + j, lo), v16_store((float *)to + j + 16, hi);
}

static void softmax_row(const head_walk *b, int64_t i, int64_t word, int64_t words) {
    float *p = ((const head_block *)b)->p + i * P_PITCH;
    head_softmax(b, p, i, word, words, put, p);
}

/* dh = corr dh + p W of the chunk, by blocks of columns whose products are summed apart from dh. */
static void gradient(const head_walk *b, int64_t word, int64_t words) {
    const head_block *own = (const head_block *)b;
    int64_t n0, n1;
    head_part(b, b->dh.cols, NR, &n0, &n1);
    for (int64_t at = n0; at < n1; at += DH_COLS) {
        int64_t cols = head_least(DH_COLS, n1 - at);
        gemm g = {.m = b->dh.rows, .n = cols, .c = own->sum, .cs = DH_COLS, .fresh = true, .terms = 1};
        g.term[0] = (gemm_term){
            .k = words, .a = own->p, .as = P_PITCH, .pack = ISA(pack_bwd), .w = b->w, .w_k0 = word, .w_n0 = at};
        ISA(gemm_range)(&g, 1, own->scratch, 0, g.m, 0, (cols + NR - 1) / NR);
        for (int64_t i = 0; i < b->dh.rows; i++) {
            float *y = mat_row(b->dh, i) + at;
            const float *sum = own->sum + i * DH_COLS;
            v16 corr = v16_set1(b->corr[i]);
            for (int64_t k = 0; k < cols; k += 16) {
                int n = (int)head_least(16, cols - k);
                v16_store_n(y + k, v16_fma(v16_load_n(y + k, n), corr, v16_load_n(sum + k, n)), n);
            }
        }
    }
}

static void finish_row(const head_walk *b, int64_t i) {
    b->logprob[i] = head_logprob(b, i);
    if (!b->dh.data) return;
    float inv = 1.0f / b->s[i], *y = mat_row(b->dh, i), *row = ((const head_block *)b)->scratch;
    for (int64_t k = 0; k < b->dh.cols; k += A_FLOATS) {
        int64_t n = head_least(A_FLOATS, b->dh.cols - k);
        ISA(weight_row)(b->w, b->target[i], k, n, row);
        for (int64_t j = 0; j < n; j++) y[k + j] = fmaf(y[k + j], inv, -row[j]);
    }
}

static const head_steps steps = {begin_rows, logits, softmax_row, gradient, finish_row};

/* Rows [i, i + n) of the call; `owner` is the scratch that holds what the block's threads share. */
static head_block block_of(float *logprob, mat dh, mat h, const weight *w, const int32_t *target, int64_t i, int64_t n,
                           float *owner) {
    _Static_assert((GEMM_FLOATS + HEAD_ROWS * (P_PITCH + 4 + DH_COLS)) * sizeof(float) <= THREAD_SCRATCH,
                   "a block fits");
    float *p = owner + GEMM_FLOATS, *m = p + HEAD_ROWS * P_PITCH;
    return (head_block){.walk = {.h = mat_rows(h, i, n),
                                 .dh = dh.data ? mat_rows(dh, i, n) : dh,
                                 .w = w,
                                 .target = target + i,
                                 .logprob = logprob + i,
                                 .m = m,
                                 .s = m + HEAD_ROWS,
                                 .hit = m + 2 * HEAD_ROWS,
                                 .corr = m + 3 * HEAD_ROWS},
                        .p = p};
}

void ISA(head_loss)(kctx *c, float *logprob, mat dh, mat h, const weight *w, const int32_t *target) {
    head_check(dh, h, w, target);
    if (!h.rows) return;
#pragma omp parallel num_threads(c->threads) if (c->threads > 1)
    {
        int threads = omp_get_num_threads(), self = omp_get_thread_num();
        bool team = threads > 1 && h.rows < (int64_t)threads * TEAM_ROWS;
        int64_t each = team ? h.rows : (h.rows + threads - 1) / threads;
        int64_t rounds = (each + HEAD_ROWS - 1) / HEAD_ROWS, n = (each + rounds - 1) / rounds;
        for (int64_t i = team ? 0 : self * n; i < h.rows; i += team ? n : threads * n) {
            head_block b =
                block_of(logprob, dh, h, w, target, i, head_least(n, h.rows - i), thread_scratch(c, team ? 0 : self));
            b.scratch = thread_scratch(c, self), b.sum = b.scratch + GEMM_FLOATS + HEAD_ROWS * (P_PITCH + 4);
            b.walk.member = team ? self : 0, b.walk.members = team ? threads : 1;
            head_run(&b.walk, &steps, 1);
        }
    }
}
