/* Attention backward (Dao 2023, algorithm 2); the order of operations is ref_attention.c's. A unit is one block of keys
 * of one key head: it owns dk and dv of its keys and adds to dq of every row that sees them. dq is one chain over the
 * keys, so a unit waits, tile of rows by tile of rows, for the unit of the block before it; units are dealt out in
 * turn, by blocks and then by heads, so that the unit waited for began earlier and there is next to no waiting. Nothing
 * grows with T x T. */
#include "core/error.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/team.h"

#include <omp.h>
#include <sched.h>
#include <stdatomic.h>

enum { LINE = 64 / sizeof(uint64_t), SPINS = 2000 };

typedef struct {
    mat dq, dk, dv, dout, q, k, v, o;
    const float *lse;
    const attn *a;
    int group, wide;
} problem;

/* What each thread is at: unit << 32 | tiles of it that are done. Padded to a line each. */
typedef struct {
    _Atomic uint64_t at[THREADS_MAX * LINE];
    int threads;
} progress;

typedef struct {
    int64_t index, before;
    int seq, kv_head;
    int64_t block;
} unit; /* before: the unit waited for, -1 none */

typedef struct {
    float *k, *kt, *vt, *dk, *dv; /* the block of keys: [BLOCK, wide], [dim, BLOCK] twice, [BLOCK, wide] twice */
    float *q, *dout, *dq;         /* the tile of rows: [BLOCK, wide] */
    float *p, *ds;                /* [BLOCK rows, BLOCK keys] */
    int lo[BLOCK], hi[BLOCK];     /* keys of the block that each row sees */
    int from[BLOCK], to[BLOCK];   /* rows of the tile that see each key */
} state;

static void publish(progress *g, int thread, int64_t index, uint64_t done) {
    atomic_store_explicit(&g->at[thread * LINE], (uint64_t)index << 32 | done, memory_order_release);
}

/* returns when unit `index` has done `done` tiles, or is over */
static void await(progress *g, int64_t index, uint64_t done) {
    uint64_t need = (uint64_t)index << 32 | done;
    for (int spin = 0; atomic_load_explicit(&g->at[index % g->threads * LINE], memory_order_acquire) < need; spin++)
        if (spin > SPINS) sched_yield();
}

static void begin(state *t, const problem *p, const unit *u, float *scratch, int keys) {
    int dim = p->a->dim, wide = p->wide, tile = BLOCK * wide;
    float **part[] = {&t->k, &t->kt, &t->vt, &t->dk, &t->dv, &t->q, &t->dout, &t->dq};
    for (size_t i = 0; i < sizeof part / sizeof *part; i++, scratch += tile) *part[i] = scratch;
    t->p = scratch, t->ds = scratch + BLOCK * BLOCK;
    int64_t row = p->a->first[u->seq] + u->block, column = (int64_t)u->kv_head * dim;
    pack_rows(t->k, wide, mat_row(p->k, row) + column, p->k.ld, keys, dim);
    pack_transposed(t->kt, mat_row(p->k, row) + column, p->k.ld, keys, dim);
    pack_transposed(t->vt, mat_row(p->v, row) + column, p->v.ld, keys, dim);
}

/* who sees whom between rows [token, token + rows) of the sequence and the block's keys */
static void spans(state *t, const attn *a, int64_t number, int rows, int64_t block) {
    for (int i = 0; i < rows; i++) {
        int64_t lo, hi;
        attn_span(a, number + i, &lo, &hi);
        t->lo[i] = clip(lo - block, BLOCK), t->hi[i] = clip(hi - block, BLOCK);
    }
    for (int j = 0; j < BLOCK; j++) {
        t->from[j] = clip(block + j - number, rows);
        t->to[j] = a->window > 0 ? clip(block + j + a->window - number, rows) : rows;
    }
}

static float dot16(const float *a, const float *b, int n) {
    v16 sum = v16_zero();
    for (int d = 0; d < n; d += 16) sum = v16_fma(part_load(a + d, n - d), part_load(b + d, n - d), sum);
    return v16_sum(sum);
}

/* p = exp(scale p - lse), ds = p (ds - delta) scale on the vectors that hold the keys [lo, hi) */
static void softmax_row(float *p, float *ds, int lo, int hi, float scale, float lse, float delta) {
    const v16 sc = v16_set1(scale), l = v16_set1(lse), dl = v16_set1(delta);
    for (int j = lo / 16 * 16; j < hi; j += 16) {
        v16 e = v16_exp(v16_sub(v16_mul(sc, v16_load(p + j)), l));
        v16_store(p + j, e);
        v16_store(ds + j, v16_mul(v16_mul(e, v16_sub(v16_load(ds + j), dl)), sc));
    }
}

static void add_rows(mat y, int64_t row, int64_t column, const float *x, int wide, int rows, int dim) {
    for (int i = 0; i < rows; i++) {
        float *yi = mat_row(y, row + i) + column;
        for (int d = 0; d < dim; d += 16)
            part_store(yi + d, v16_add(part_load(yi + d, dim - d), v16_load(x + i * wide + d)), dim - d);
    }
}

/* one tile of rows [row, row + rows) of a query head against the block of keys; dq is the caller's */
static void tile_bwd(state *t, const problem *p, int64_t row, int rows, int head, int keys) {
    int dim = p->a->dim, wide = p->wide;
    int64_t column = (int64_t)head * dim;
    pack_rows(t->q, wide, mat_row(p->q, row) + column, p->q.ld, rows, dim);
    pack_rows(t->dout, wide, mat_row(p->dout, row) + column, p->dout.ld, rows, dim);
    scores(t->p, t->q, wide, rows, t->lo, t->hi, t->kt, dim);
    scores(t->ds, t->dout, wide, rows, t->lo, t->hi, t->vt, dim);
    for (int i = 0; i < rows; i++) {
        float delta = dot16(mat_row(p->dout, row + i) + column, mat_row(p->o, row + i) + column, dim);
        float lse = p->lse[(row + i) * p->a->heads + head];
        softmax_row(t->p + i * BLOCK, t->ds + i * BLOCK, t->lo[i], t->hi[i], p->a->scale, lse, delta);
    }
    if (p->dv.data) chain_rows(left_cols(t->p, BLOCK), keys, t->from, t->to, t->dout, wide, t->dv, wide);
    if (p->dk.data) chain_rows(left_cols(t->ds, BLOCK), keys, t->from, t->to, t->q, wide, t->dk, wide);
}

static void tile_dq(state *t, const problem *p, int64_t row, int rows, int head) {
    int dim = p->a->dim, wide = p->wide;
    int64_t column = (int64_t)head * dim;
    pack_rows(t->dq, wide, mat_row(p->dq, row) + column, p->dq.ld, rows, dim);
    chain_rows(left_rows(t->ds, BLOCK), rows, t->lo, t->hi, t->k, wide, t->dq, wide);
    for (int i = 0; i < rows; i++)
        for (int d = 0; d < dim; d += 16)
            part_store(mat_row(p->dq, row + i) + column + d, v16_load(t->dq + i * wide + d), dim - d);
}

static void run_unit(const problem *p, const unit *u, progress *g, int thread, float *scratch) {
    state t;
    const attn *a = p->a;
    int64_t tokens = a->start[u->seq + 1] - a->start[u->seq], past = a->past[u->seq];
    int keys = clip(past + tokens - u->block, BLOCK), tiles = (int)((tokens + BLOCK - 1) / BLOCK);
    int first = clip(u->block - past, tokens) / BLOCK; /* tiles that see any key of the block */
    int last = a->window > 0 ? (clip(u->block + BLOCK - 1 + a->window - past, tokens) + BLOCK - 1) / BLOCK : tiles;
    begin(&t, p, u, scratch, keys);
    for (int h = 0; h < p->group; h++) {
        memset(t.dk, 0, (size_t)(keys * p->wide) * sizeof(float));
        memset(t.dv, 0, (size_t)(keys * p->wide) * sizeof(float));
        for (int i = first; i < last; i++) {
            int64_t token = (int64_t)i * BLOCK, row = a->start[u->seq] + token;
            int rows = clip(tokens - token, BLOCK), head = u->kv_head * p->group + h;
            uint64_t done = (uint64_t)(h * tiles + i + 1);
            spans(&t, a, past + token, rows, u->block);
            tile_bwd(&t, p, row, rows, head, keys);
            if (u->before >= 0) await(g, u->before, done);
            if (p->dq.data) tile_dq(&t, p, row, rows, head);
            publish(g, thread, u->index, done);
        }
        int64_t row = a->first[u->seq] + u->block, column = (int64_t)u->kv_head * a->dim;
        if (p->dk.data) add_rows(p->dk, row, column, t.dk, p->wide, keys, a->dim);
        if (p->dv.data) add_rows(p->dv, row, column, t.dv, p->wide, keys, a->dim);
    }
}

/* Thread `thread` takes the units thread, thread + threads, ... Waiting is always for a smaller index: no deadlock. */
static void run_units(const problem *p, progress *g, int thread, float *scratch) {
    const attn *a = p->a;
    int64_t index = 0;
    for (int n = 0; n < a->seqs; n++) {
        int64_t keys = a->past[n] + a->start[n + 1] - a->start[n];
        if (a->start[n + 1] == a->start[n]) continue;
        for (int64_t block = 0; block < keys; block += BLOCK)
            for (int h = 0; h < a->kv_heads; h++, index++) {
                if (index % g->threads != thread) continue;
                unit u = {index, block ? index - a->kv_heads : -1, n, h, block};
                publish(g, thread, index, 0);
                run_unit(p, &u, g, thread, scratch);
            }
    }
    publish(g, thread, INT32_MAX, 0);
}

void ISA(attn_bwd)(kctx *c, mat dq, mat dk, mat dv, mat dout, mat q, mat k, mat v, mat o, const float *lse,
                   const attn *a) {
    const problem p = {
        dq, dk, dv, dout, q, k, v, o, lse, a, a->heads / a->kv_heads, round_up(a->dim, WIDE > 16 ? WIDE : 16)};
    CHECK(a->dim <= HEAD_DIM_MAX, "heads of %d", a->dim);
    CHECK(c->scratch_bytes >= (size_t)c->threads * ATTN_SCRATCH_FLOATS * sizeof(float), "scratch");
    int64_t pairs = 0;
    for (int n = 0; n < a->seqs; n++) {
        int64_t rows = a->start[n + 1] - a->start[n];
        pairs += rows * (a->past[n] + rows);
        CHECK(n == 0 || a->first[n] >= a->first[n - 1] + a->past[n - 1] + a->start[n] - a->start[n - 1],
              "keys of sequences %d and %d overlap", n - 1, n);
    }
    int threads = pairs * a->heads * a->dim < TEAM_MIN ? 1 : c->threads;
    progress g = {0};
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        int thread = omp_get_thread_num();
#pragma omp single
        g.threads = omp_get_num_threads();
        run_units(&p, &g, thread, (float *)c->scratch + (size_t)thread * ATTN_SCRATCH_FLOATS);
    }
}
