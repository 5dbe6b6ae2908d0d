/* Attention forward (Dao et al. 2022); the order of operations is ref_attention.c's. A task is one key head, one
 * sequence and some tokens; its query rows are (token, head of the group) in that order, so that a packed block of keys
 * serves the whole group and rows of one tile see nearly the same keys. Tasks do not touch each other, and neither
 * their size nor their order has an effect on the bits. */
#include "core/error.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/team.h"
#include "kernels/kv_page.h"

#include <omp.h>

enum { ROWS = 2 * BLOCK }; /* query rows of a task at most */

typedef struct {
    mat o, q, k, v;
    float *lse;
    const attn *a;
    const kv_pages *pages; /* where the keys and values are, or NULL: in k and v */
    int group, wide;
} problem;
typedef struct {
    int seq, kv_head, token, tokens;
} task; /* tokens [token, token + tokens) of the sequence */

typedef struct {
    float m[ROWS], l[ROWS], top[ROWS], sum[ROWS]; /* running maximum and denominator; of the present block */
    int lo[ROWS], hi[ROWS];                       /* keys of the present block */
    float *q, *o;                                 /* [ROWS, wide] */
    float *kt, *v, *s;                            /* [dim, BLOCK], [BLOCK, wide], [ROWS, BLOCK] */
} state;

static v16 lanes(int from) {
    static const int32_t index[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return v16_from_i(v16i_add(v16i_load(index), v16i_set1(from)));
}

/* s = exp(scale s - top) on the keys [lo, hi), 0 on the other keys of the vectors they lie in */
static void softmax_row(float *s, int lo, int hi, float scale, float before, float *top, float *sum) {
    const v16 none = v16_set1(-INFINITY);
    v16 high = v16_set1(before);
    for (int j = lo / 16 * 16; j < hi; j += 16) {
        v16 x = v16_mul(v16_set1(scale), v16_load(s + j));
        if (j + 16 > hi) x = v16_select(v16_lt(lanes(j), v16_set1((float)hi)), x, none);
        if (j < lo) x = v16_select(v16_lt(lanes(j), v16_set1((float)lo)), none, x);
        v16_store(s + j, x);
        high = v16_max(x, high);
    }
    *top = v16_hmax(high);
    v16 m = v16_set1(*top), total = v16_zero();
    for (int j = lo / 16 * 16; j < hi; j += 16) {
        v16 p = v16_exp(v16_sub(v16_load(s + j), m));
        v16_store(s + j, p);
        total = v16_add(total, p);
    }
    *sum = v16_sum(total);
}

static void block_softmax(state *t, int rows, int wide, float scale) {
    float corr[ROWS];
    for (int i = 0; i < rows; i++) {
        t->top[i] = t->m[i] == -INFINITY ? 0 : t->m[i]; /* no keys in this block: corr is 1, or 0 times nothing yet */
        t->sum[i] = 0;
        if (t->lo[i] >= t->hi[i]) continue;
        softmax_row(t->s + i * BLOCK, t->lo[i], t->hi[i], scale, t->m[i], &t->top[i], &t->sum[i]);
    }
    for (int i = 0; i < rows; i += 16) {
        v16 c = v16_exp(v16_sub(v16_load(t->m + i), v16_load(t->top + i)));
        v16_store(corr + i, c);
        v16_store(t->l + i, v16_fma(v16_load(t->l + i), c, v16_load(t->sum + i)));
    }
    for (int i = 0; i < rows; i++) {
        if (t->lo[i] >= t->hi[i]) continue;
        t->m[i] = t->top[i];
        if (corr[i] == 1.0f) continue;
        for (int d = 0; d < wide; d += 16)
            v16_store(t->o + i * wide + d, v16_mul(v16_load(t->o + i * wide + d), v16_set1(corr[i])));
    }
}

/* keys of the block that each row sees */
static void spans(state *t, const problem *p, const task *w, int64_t block) {
    for (int i = 0; i < w->tokens; i++) {
        int64_t lo, hi;
        attn_span(p->a, p->a->past[w->seq] + w->token + i, &lo, &hi);
        for (int h = 0; h < p->group; h++) {
            t->lo[i * p->group + h] = clip(lo - block, BLOCK);
            t->hi[i * p->group + h] = clip(hi - block, BLOCK);
        }
    }
}

static void begin(state *t, const problem *p, const task *w, float *scratch) {
    int dim = p->a->dim, wide = p->wide, rows = w->tokens * p->group;
    t->q = scratch, t->o = t->q + ROWS * wide, t->kt = t->o + ROWS * wide;
    t->v = t->kt + BLOCK * wide, t->s = t->v + BLOCK * wide;
    for (int i = 0; i < ROWS; i++) t->m[i] = -INFINITY, t->l[i] = t->top[i] = t->sum[i] = 0;
    memset(t->o, 0, (size_t)(rows * wide) * sizeof(float));
    for (int i = 0; i < w->tokens; i++) {
        const float *q = mat_row(p->q, p->a->start[w->seq] + w->token + i) + (int64_t)w->kv_head * p->group * dim;
        pack_rows(t->q + i * p->group * wide, wide, q, dim, p->group, dim);
    }
}

static void finish(const state *t, const problem *p, const task *w) {
    int dim = p->a->dim, rows = w->tokens * p->group;
    for (int i = 0; i < rows; i++) {
        int64_t row = p->a->start[w->seq] + w->token + i / p->group, head = w->kv_head * p->group + i % p->group;
        float *o = mat_row(p->o, row) + head * dim;
        v16 inv = v16_set1(1.0f / t->l[i]);
        for (int d = 0; d < dim; d += 16) {
            v16 x = v16_mul(v16_load(t->o + i * p->wide + d), inv);
            if (d + 16 <= dim)
                v16_store(o + d, x);
            else
                v16_store_n(o + d, x, dim - d);
        }
        if (p->lse) p->lse[row * p->a->heads + head] = t->m[i] + (float)log((double)t->l[i]);
    }
}

/* keys [block, block + keys) of k and v, and the next ones asked for */
static void pack_dense(state *t, const problem *p, const task *w, int64_t block, int keys, int ahead) {
    int64_t row = p->a->first[w->seq] + block, column = (int64_t)w->kv_head * p->a->dim;
    pack_transposed(t->kt, mat_row(p->k, row) + column, p->k.ld, keys, p->a->dim);
    pack_rows(t->v, p->wide, mat_row(p->v, row) + column, p->v.ld, keys, p->a->dim);
    for (int64_t i = 0; i < ahead; i++)
        fetch(p->k, row + BLOCK + i, column, p->a->dim), fetch(p->v, row + BLOCK + i, column, p->a->dim);
}

static v16 page_vector(kv_type type, const char *page, int64_t at) {
    if (type == KV_F32) return v16_load((const float *)(const void *)page + at);
    if (type == KV_BF16) return v16_from_bf16((const uint16_t *)(const void *)page + at);
    return v16_from_i8((const int8_t *)page + at);
}

/* kt[dim, BLOCK] from the features [column, column + dim) of a page's keys */
static void unpack_keys(float *kt, const kv_pages *p, const char *page, int64_t column) {
    int64_t width = (int64_t)p->heads * p->dim;
    const uint16_t *scale = kv_scales((char *)page, width);
    for (int d = 0; d < p->dim; d++) {
        v16 x = page_vector(p->type, page, (column + d) * KV_PAGE);
        if (p->type == KV_Q8_0) x = v16_mul(x, v16_from_f16(scale + (column + d) / KV_BLOCK * KV_PAGE));
        v16_store(kt + (int64_t)d * BLOCK, x);
    }
}

/* v[KV_PAGE, wide] likewise from its values, and zeros */
static void unpack_values(float *v, int wide, const kv_pages *p, const char *page, int64_t column) {
    int64_t width = (int64_t)p->heads * p->dim;
    for (int t = 0; t < KV_PAGE; t++, v += wide) {
        kv_place w = kv_value_place(t, width);
        int d = 0;
        for (; d + 16 <= p->dim && (p->type != KV_Q8_0 || column % 16 == 0); d += 16) {
            v16 x = page_vector(p->type, page, w.at + column + d);
            if (p->type == KV_Q8_0)
                x = v16_mul(
                    x, v16_set1(f16_to_float(kv_scales((char *)page, width)[w.scale_at + (column + d) / KV_BLOCK])));
            v16_store(v + d, x);
        }
        for (; d < wide; d++) v[d] = d < p->dim ? kv_get(p->type, page, width, w, column + d) : 0;
    }
}

/* the same from pages; those before `lo`, the first key that any row sees, are left alone */
static void pack_paged(state *t, const problem *p, const task *w, int64_t block, int keys, int64_t lo) {
    const kv_pages *g = p->pages;
    const int32_t *table = g->table + (int64_t)w->seq * g->columns;
    int64_t column = (int64_t)w->kv_head * p->a->dim;
    for (int j = 0; j < keys; j += KV_PAGE) {
        if (block + j + KV_PAGE <= lo) continue;
        int64_t at = table[(block + j) / KV_PAGE] * g->stride;
        unpack_keys(t->kt + j, g, g->k + at, column);
        unpack_values(t->v + (int64_t)j * p->wide, p->wide, g, g->v + at, column);
    }
}

static void run_task(const problem *p, const task *w, float *scratch) {
    state t;
    const attn *a = p->a;
    int rows = w->tokens * p->group, dim = a->dim, wide = p->wide;
    int64_t lo, hi, unused;
    attn_span(a, a->past[w->seq] + w->token, &lo, &unused);
    attn_span(a, a->past[w->seq] + w->token + w->tokens - 1, &unused, &hi);
    begin(&t, p, w, scratch);
    for (int64_t block = lo / BLOCK * BLOCK; block < hi; block += BLOCK) {
        int keys = clip(hi - block, BLOCK), ahead = clip(hi - block - BLOCK, BLOCK);
        if (p->pages)
            pack_paged(&t, p, w, block, keys, lo);
        else
            pack_dense(&t, p, w, block, keys, ahead);
        spans(&t, p, w, block);
        scores(t.s, t.q, wide, rows, t.lo, t.hi, t.kt, dim);
        block_softmax(&t, rows, wide, a->scale);
        chain_rows(left_rows(t.s, BLOCK), rows, t.lo, t.hi, t.v, wide, t.o, wide);
    }
    finish(&t, p, w);
}

/* Task `index` of the sequence's tasks of `step` tokens, the last tokens first: they see most keys. */
static task task_of(const attn *a, int seq, int index, int step) {
    int tokens = a->start[seq + 1] - a->start[seq], tile = (tokens + step - 1) / step - 1 - index / a->kv_heads;
    int from = tile * step, n = tokens - from < step ? tokens - from : step;
    return (task){seq, index % a->kv_heads, from, n};
}

static int tasks_of(const attn *a, int seq, int step) {
    return (a->start[seq + 1] - a->start[seq] + step - 1) / step * a->kv_heads;
}

static void run_problem(kctx *c, const problem *p) {
    const attn *a = p->a;
    CHECK(a->dim <= HEAD_DIM_MAX && p->group <= ROWS, "%d heads of %d for one key head", p->group, a->dim);
    CHECK(c->scratch_bytes >= (size_t)c->threads * ATTN_SCRATCH_FLOATS * sizeof(float), "scratch");
    int step = ROWS / p->group, tasks = 0;
    int64_t pairs = 0;
    for (int n = 0; n < a->seqs; n++) {
        int64_t rows = a->start[n + 1] - a->start[n];
        tasks += tasks_of(a, n, step), pairs += rows * (a->past[n] + rows);
    }
    for (; step > 16 && tasks < 4 * c->threads; step /= 2) tasks *= 2;
    int threads = pairs * a->heads * a->dim < TEAM_MIN ? 1 : c->threads;
#pragma omp parallel num_threads(threads) if (threads > 1)
    for (int n = 0; n < a->seqs; n++) {
        int mine = tasks_of(a, n, step);
#pragma omp for schedule(dynamic, 1) nowait
        for (int i = 0; i < mine; i++) {
            task w = task_of(a, n, i, step);
            run_task(p, &w, (float *)c->scratch + (size_t)omp_get_thread_num() * ATTN_SCRATCH_FLOATS);
        }
    }
}

static problem problem_of(mat o, mat q, const attn *a) {
    return (problem){
        .o = o, .q = q, .a = a, .group = a->heads / a->kv_heads, .wide = round_up(a->dim, WIDE > 16 ? WIDE : 16)};
}

void ISA(attn_fwd)(kctx *c, mat o, float *lse, mat q, mat k, mat v, const attn *a) {
    problem p = problem_of(o, q, a);
    p.k = k, p.v = v, p.lse = lse;
    run_problem(c, &p);
}

void ISA(attn_pages)(kctx *c, mat o, mat q, const kv_pages *pages, const attn *a) {
    _Static_assert(BLOCK % KV_PAGE == 0 && KV_PAGE == 16, "blocks are whole pages, a page is a vector wide");
    CHECK(a->dim == pages->dim && a->kv_heads == pages->heads, "pages of %d heads of %d", pages->heads, pages->dim);
    problem p = problem_of(o, q, a);
    p.pages = pages;
    run_problem(c, &p);
}

void ISA(kv_store)(kctx *c, const kv_pages *p, mat k, mat v, const int32_t *slot) {
    CHECK(p->type != KV_Q8_0 || p->heads * p->dim % KV_BLOCK == 0, "%d heads of %d in blocks", p->heads, p->dim);
    int threads = team(c, k.rows * k.cols);
#pragma omp parallel for num_threads(threads) if (threads > 1)
    for (int64_t i = 0; i < k.rows; i++) kv_store_row(p, k, v, slot, i);
}
