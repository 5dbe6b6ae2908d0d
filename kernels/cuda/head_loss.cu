/* Head and loss without whole logits: the walk over chunks of the vocabulary of kernels/ref/ref_loss.c, which has the
 * formulas. Per chunk and block of rows: logits = h W^T, an online softmax, then dh = dh corr + p W.
 *
 * In fp32 chunks are HEAD_CHUNK words and every operation is ref's, in ref's order. Else (h in bf16, or kctx.products
 * BF16) they are HEAD_WORDS words and h, W and p are rounded to bf16 for the two products; maximum, exp and sums are
 * fp32, the sum takes p unrounded, and dh subtracts the rounded row of the target. Either way a row's result follows
 * from that row alone: chunks are cut by the vocabulary and the scratch, blocks of rows leave no trace; but for bf16
 * blocks of 256 rows and more, whose products cuBLAS makes. */
#include "kernels/cuda/choice.cuh"
#include "kernels/cuda/math.cuh"

enum { HEAD_WORDS = 8 * HEAD_CHUNK, WARPS = BLOCK / WARP };

/* What the walk keeps for every row, and one block of rows within a chunk of words. */
typedef struct head_rows {
    float *m, *l, *hit, *corr; /* [rows] maximum, sum, logit of the target, correction of the chunk */
    const int32_t *target;
    int64_t rows;
} head_rows;

static head_rows rows_from(head_rows r, int64_t i, int64_t n) {
    return head_rows{r.m + i, r.l + i, r.hit + i, r.corr + i, r.target + i, n};
}

static __global__ void __launch_bounds__(BLOCK) head_begin(head_rows r, int64_t words) {
    const int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i >= r.rows) return;
    DEVICE_CHECK(r.target[i] >= 0 && r.target[i] < words);
    r.m[i] = -INFINITY, r.l[i] = 0, r.hit[i] = 0;
}

/* A warp makes probabilities of a row's n logits; the sum has LANES lanes, 16 being ref's order. p may be s. */
template <class T, int LANES>
static __global__ void __launch_bounds__(BLOCK)
    head_softmax(head_rows r, const float *logits, T *probability, int64_t ld, int64_t from, int64_t n) {
    const int64_t i = (int64_t)blockIdx.x * WARPS + (int)threadIdx.x / WARP;
    const int lane = (int)threadIdx.x % WARP;
    if (i >= r.rows) return; /* a whole warp; there is no barrier below */
    const float *s = logits + i * ld;
    T *p = probability + i * ld;
    const int64_t at = r.target[i] - from;
    const float m = r.m[i];
    float top = m, sum = 0;
    for (int64_t j = lane; j < n; j += WARP) top = fmaxf(top, s[j]);
    top = warp_max(top);
    if (lane == 0 && at >= 0 && at < n) r.hit[i] = s[at];
    __syncwarp();
    for (int64_t j = lane; j < n && lane < LANES; j += LANES) {
        const float e = exp_ref(s[j] - top);
        sum += e;
        store(p + j, e);
    }
    for (int o = LANES / 2; o; o /= 2) sum += __shfl_xor_sync(FULL, sum, o);
    if (lane) return;
    const float corr = exp_ref(m - top);
    r.corr[i] = corr, r.m[i] = top, r.l[i] = fmaf(r.l[i], corr, sum);
}

/* dh = dh corr + part; the first chunk starts from zero */
static __global__ void __launch_bounds__(BLOCK) head_add(head_rows r, mat dh, const float *part, bool first) {
    for (int64_t i = blockIdx.y; i < r.rows; i += gridDim.y) {
        float *y = row_of<float>(dh, i);
        for (int64_t k = (int64_t)blockIdx.x * BLOCK + threadIdx.x; k < dh.cols; k += (int64_t)gridDim.x * BLOCK)
            y[k] = fmaf(first ? 0.0f : y[k], r.corr[i], part[i * dh.cols + k]);
    }
}

static __global__ void __launch_bounds__(BLOCK) head_logprob(head_rows r, float *logprob) {
    const int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i < r.rows) logprob[i] = (float)((double)r.hit[i] - ((double)r.m[i] + log((double)r.l[i])));
}

/* dh = dh / l - W[target], rounded as the product's W was */
static __global__ void __launch_bounds__(BLOCK) head_finish(head_rows r, mat dh, const float *row, bool rounded) {
    for (int64_t i = blockIdx.y; i < r.rows; i += gridDim.y) {
        const float inv = 1.0f / r.l[i];
        float *y = row_of<float>(dh, i);
        for (int64_t k = (int64_t)blockIdx.x * BLOCK + threadIdx.x; k < dh.cols; k += (int64_t)gridDim.x * BLOCK) {
            const float w = row[i * dh.cols + k];
            y[k] = fmaf(y[k], inv, -(rounded ? __bfloat162float(__float2bfloat16_rn(w)) : w));
        }
    }
}

/* ---- the walk ---- */

typedef struct head {
    mat h, dh;
    const weight *w;
    dtype t;       /* of the products' operands */
    int64_t words; /* of a chunk */
    int64_t block; /* rows of a block */
} head;

static int64_t bytes_of_row(const head *b) {
    const int64_t dim = round_up(b->w->cols, 8);
    return b->words * (b->t == F32 ? 4 : 6) + dim * (4 + 2) + 1024;
}

/* p W, into dense rows of floats */
static void times_words(kctx *c, const head *b, side p, side w, int64_t rows, int64_t words, float *part) {
    product q = {};
    q.m = rows, q.n = b->w->cols, q.k[0] = words, q.a[0] = p, q.b[0] = w, q.b[0].across = true;
    q.c = part, q.type = F32, q.cs = b->w->cols;
    multiply_large(c, &q, b->t);
}

/* one block of rows (of h and dh too) and one chunk of words */
static void head_block(kctx *c, const head *b, room r, head_rows s, side w, int64_t from, int64_t words) {
    float *logits = static_cast<float *>(room_take(&r, (size_t)(s.rows * b->words) * sizeof(float)));
    product q = {};
    q.m = s.rows, q.n = words, q.k[0] = b->w->cols;
    q.a[0] = mat_side(c, &r, b->h, b->t), q.b[0] = w;
    q.c = logits, q.type = F32, q.cs = b->words;
    multiply_large(c, &q, b->t);
    const unsigned grid = (unsigned)ceil_div(s.rows, WARPS);
    side p = {logits, b->words, false};
    if (b->t == F32)
        LAUNCH((head_softmax<float, 16>), grid, BLOCK, 0, c, s, logits, logits, b->words, from, words);
    else {
        bf16 *rounded = static_cast<bf16 *>(room_take(&r, (size_t)(s.rows * b->words) * sizeof(bf16)));
        LAUNCH((head_softmax<bf16, WARP>), grid, BLOCK, 0, c, s, logits, rounded, b->words, from, words);
        p.data = rounded;
    }
    if (!b->dh.data) return;
    float *part = static_cast<float *>(room_take(&r, (size_t)(s.rows * b->w->cols) * sizeof(float)));
    times_words(c, b, p, w, s.rows, words, part);
    LAUNCH(head_add, grid_for_rows(s.rows, b->dh.cols, 1), BLOCK, 0, c, s, b->dh, part, from == 0);
}

static head block_of(const head *b, int64_t i, int64_t n) {
    head part = *b;
    part.h = mat_rows(b->h, i, n);
    if (b->dh.data) part.dh = mat_rows(b->dh, i, n);
    return part;
}

static void finish_gradients(kctx *c, const head *b, room r, head_rows s) {
    for (int64_t i = 0; i < s.rows; i += b->block) {
        const int64_t n = smaller(b->block, s.rows - i);
        room rest = r;
        float *row = static_cast<float *>(room_take(&rest, (size_t)(n * b->w->cols) * sizeof(float)));
        c->be->embed_fwd(c, mat_f32(row, n, b->w->cols), b->w, s.target + i);
        LAUNCH(head_finish, grid_for_rows(n, b->dh.cols, 1), BLOCK, 0, c, rows_from(s, i, n), mat_rows(b->dh, i, n),
               row, b->t == BF16);
    }
}

extern "C" void head_loss_cuda(kctx *c, float *logprob, mat dh, mat h, const weight *w, const int32_t *target) {
    CHECK(h.cols == w->cols && (!dh.data || (dh.cols == h.cols && dh.rows == h.rows && dh.type == F32)),
          "h %ldx%ld dh %ldx%ld W %ldx%ld", (long)h.rows, (long)h.cols, (long)dh.rows, (long)dh.cols, (long)w->rows,
          (long)w->cols);
    if (!h.rows) return;
    room r = room_of(c);
    head b = {h, dh, w, product_type(c, h, h), 0, 0};
    const int64_t fit = weight_rows_fit(w, b.t, c->scratch_bytes / 2);
    b.words = b.t == F32 ? (int64_t)HEAD_CHUNK : smaller(HEAD_WORDS, round_up(w->rows, 8));
    if (fit < w->rows && fit < b.words) b.words = fit / 8 * 8;
    CHECK(b.words > 0 && (b.t == BF16 || b.words == HEAD_CHUNK), "%zu bytes of scratch for a head of %ld columns",
          c->scratch_bytes, (long)w->cols);
    float *state = static_cast<float *>(room_take(&r, (size_t)h.rows * 4 * sizeof(float)));
    const head_rows s = {state, state + h.rows, state + 2 * h.rows, state + 3 * h.rows, target, h.rows};
    b.block = (int64_t)(c->scratch_bytes / 2 - (size_t)h.rows * 16 - 4096) / bytes_of_row(&b);
    CHECK(b.block > 0, "%zu bytes of scratch for %ld rows of a head", c->scratch_bytes, (long)h.rows);
    b.block = b.block > 128 ? b.block / 128 * 128 : b.block;
    LAUNCH(head_begin, (unsigned)ceil_div(h.rows, BLOCK), BLOCK, 0, c, s, w->rows);
    for (int64_t from = 0; from < w->rows; from += b.words) {
        const int64_t words = smaller(b.words, w->rows - from);
        room rest = r;
        const side panel = weight_side(c, &rest, w, from, words, b.t);
        for (int64_t i = 0; i < h.rows; i += b.block) {
            const int64_t n = smaller(b.block, h.rows - i);
            const head part = block_of(&b, i, n);
            head_block(c, &part, rest, rows_from(s, i, n), panel, from, words);
        }
    }
    LAUNCH(head_logprob, (unsigned)ceil_div(h.rows, BLOCK), BLOCK, 0, c, s, logprob);
    if (dh.data) finish_gradients(c, &b, r, s);
}
