/* Attention backward (Dao 2023, algorithm 2); the order of operations is ref_attention.c's. A unit is two blocks of
 * keys of one key head: it owns dk and dv of its keys and adds to dq of every row that sees them. dq is one chain over
 * the keys, so a unit waits, tile of rows by tile of rows, for the unit of the keys before it; every thread takes its
 * units in order, by keys and then by heads, so that the unit waited for began earlier and there is next to no waiting.
 * Nothing grows with T x T. */
#include "core/error.h"
#include "kernels/cpu/attention.h"
#include "kernels/cpu/team.h"

#include <omp.h>
#include <sched.h>
#include <stdatomic.h>

enum { PARTS = 2, UNIT = PARTS * BLOCK, LINE = 64 / sizeof(uint64_t), SPINS = 2000, KV_HEADS_MAX = 1024 };

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

/* keys [first, first + UNIT) of a key head; before: the unit waited for (-1: none), which is thread owner's */
typedef struct {
    int64_t index, before;
    int owner, seq, kv_head;
    int64_t first;
} unit;

typedef struct {
    float *k, *kt, *vt, *dk, *dv; /* of BLOCK keys: [BLOCK, wide], [dim, BLOCK] twice, [BLOCK, wide] twice */
    int64_t first;
    int keys;
    int lo[BLOCK], hi[BLOCK];   /* keys of the block that each row sees */
    int from[BLOCK], to[BLOCK]; /* rows of the tile that see each key */
} block;

typedef struct {
    block part[PARTS];
    int parts;
    float *q, *dout, *dq; /* the tile of rows: [BLOCK, wide] */
    float *p, *ds;        /* [BLOCK rows, BLOCK keys] */
    float delta[BLOCK];
} state;

/* rows [row, row + rows) of a query head, and where the next tile is */
typedef struct {
    int64_t row, next_row;
    int rows, head, next_head;
} tile;

static int tiles_of(int64_t rows) { return (int)((rows + BLOCK - 1) / BLOCK); }

static void publish(progress *g, int thread, int64_t index, uint64_t done) {
    atomic_store_explicit(&g->at[thread * LINE], (uint64_t)index << 32 | done, memory_order_release);
}

/* returns when unit `index` of thread `owner` has done `done` tiles, or is over */
static void await(progress *g, int owner, int64_t index, uint64_t done) {
    uint64_t need = (uint64_t)index << 32 | done;
    for (int spin = 0; atomic_load_explicit(&g->at[owner * LINE], memory_order_acquire) < need; spin++)
        if (spin > SPINS) sched_yield();
}

static void begin(state *t, const problem *p, const unit *u, float *scratch, int64_t end) {
    int dim = p->a->dim, wide = p->wide;
    int64_t column = (int64_t)u->kv_head * dim;
    t->parts = 0;
    for (int64_t first = u->first; first < end && t->parts < PARTS; first += BLOCK) {
        block *b = &t->part[t->parts++];
        float **part[] = {&b->k, &b->kt, &b->vt, &b->dk, &b->dv};
        for (size_t i = 0; i < sizeof part / sizeof *part; i++, scratch += BLOCK * wide) *part[i] = scratch;
        b->first = first, b->keys = clip(end - first, BLOCK);
        const float *k = mat_row(p->k, p->a->first[u->seq] + first) + column;
        pack_rows(b->k, wide, k, p->k.ld, b->keys, dim);
        pack_transposed(b->kt, k, p->k.ld, b->keys, dim);
        pack_transposed(b->vt, mat_row(p->v, p->a->first[u->seq] + first) + column, p->v.ld, b->keys, dim);
    }
    t->q = scratch, t->dout = t->q + BLOCK * wide, t->dq = t->dout + BLOCK * wide;
    t->p = t->dq + BLOCK * wide, t->ds = t->p + BLOCK * BLOCK;
}

/* who sees whom between the rows of numbers [number, number + rows) and the block's keys */
static void spans(block *b, const attn *a, int64_t number, int rows) {
    for (int i = 0; i < rows; i++) {
        int64_t lo, hi;
        attn_span(a, number + i, &lo, &hi);
        b->lo[i] = clip(lo - b->first, BLOCK), b->hi[i] = clip(hi - b->first, BLOCK);
    }
    for (int j = 0; j < b->keys; j++) {
        b->from[j] = clip(b->first + j - number, rows);
        b->to[j] = a->window > 0 ? clip(b->first + j + a->window - number, rows) : rows;
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

static void load_tile(state *t, const problem *p, const tile *w) {
    int dim = p->a->dim, wide = p->wide;
    int64_t column = (int64_t)w->head * dim;
    pack_rows(t->q, wide, mat_row(p->q, w->row) + column, p->q.ld, w->rows, dim);
    pack_rows(t->dout, wide, mat_row(p->dout, w->row) + column, p->dout.ld, w->rows, dim);
    for (int i = 0; i < w->rows; i++) t->delta[i] = dot16(t->dout + i * wide, mat_row(p->o, w->row + i) + column, dim);
}

/* p and ds of a tile of rows and a block of keys, and with them dk and dv; meanwhile two matrices' next tile is fetched
 */
static void tile_keys(state *t, block *b, const problem *p, const tile *w, const mat next[2]) {
    int dim = p->a->dim, wide = p->wide;
    scores(t->p, t->q, wide, w->rows, b->lo, b->hi, b->kt, dim);
    scores(t->ds, t->dout, wide, w->rows, b->lo, b->hi, b->vt, dim);
    for (int i = 0; i < w->rows; i++) {
        float lse = p->lse[(w->row + i) * p->a->heads + w->head];
        softmax_row(t->p + i * BLOCK, t->ds + i * BLOCK, b->lo[i], b->hi[i], p->a->scale, lse, t->delta[i]);
        for (int m = 0; m < 2; m++) fetch(next[m], w->next_row + i, (int64_t)w->next_head * dim, dim);
    }
    if (p->dv.data) chain_rows(left_cols(t->p, BLOCK), b->keys, b->from, b->to, t->dout, wide, b->dv, wide);
    if (p->dk.data) chain_rows(left_cols(t->ds, BLOCK), b->keys, b->from, b->to, t->q, wide, b->dk, wide);
}

static void load_dq(state *t, const problem *p, const tile *w) {
    int dim = p->a->dim;
    pack_rows(t->dq, p->wide, mat_row(p->dq, w->row) + (int64_t)w->head * dim, p->dq.ld, w->rows, dim);
}

static void store_dq(const state *t, const problem *p, const tile *w) {
    int dim = p->a->dim;
    for (int i = 0; i < w->rows; i++) {
        float *dq = mat_row(p->dq, w->row + i) + (int64_t)w->head * dim;
        for (int d = 0; d < dim; d += 16) part_store(dq + d, v16_load(t->dq + i * p->wide + d), dim - d);
    }
}

/* all blocks of the unit for one tile of rows; dq only after the unit before has left it */
static void run_tile(state *t, const problem *p, const unit *u, const tile *w, int64_t number, progress *g,
                     uint64_t done) {
    const mat next[PARTS][2] = {{p->q, p->dout}, {p->o, p->dq}};
    load_tile(t, p, w);
    for (int i = 0; i < t->parts; i++) {
        block *b = &t->part[i];
        spans(b, p->a, number, w->rows);
        tile_keys(t, b, p, w, next[i]);
        if (!p->dq.data) continue;
        if (i == 0) {
            if (u->before >= 0) await(g, u->owner, u->before, done);
            load_dq(t, p, w);
        }
        chain_rows(left_rows(t->ds, BLOCK), w->rows, b->lo, b->hi, b->k, p->wide, t->dq, p->wide);
    }
    if (p->dq.data) store_dq(t, p, w);
}

static void run_head(state *t, const problem *p, const unit *u, int head, uint64_t done, progress *g, int thread) {
    const attn *a = p->a;
    int64_t begin_row = a->start[u->seq], tokens = a->start[u->seq + 1] - begin_row, past = a->past[u->seq];
    int first = clip(u->first - past, tokens) / BLOCK, last = tiles_of(tokens);
    if (a->window > 0) last = tiles_of(clip(u->first + UNIT - 1 + a->window - past, tokens));
    for (int i = first; i < last; i++) {
        int64_t token = (int64_t)i * BLOCK, row = begin_row + token;
        tile w = {row, row + BLOCK, clip(tokens - token, BLOCK), head, head};
        if (i + 1 == last && head + 1 < a->heads)
            w.next_row = begin_row + (int64_t)first * BLOCK, w.next_head = head + 1;
        run_tile(t, p, u, &w, past + token, g, done + (uint64_t)i + 1);
        publish(g, thread, u->index, done + (uint64_t)i + 1);
    }
}

static void run_unit(const problem *p, const unit *u, progress *g, int thread, float *scratch) {
    state t;
    const attn *a = p->a;
    int64_t tokens = a->start[u->seq + 1] - a->start[u->seq], column = (int64_t)u->kv_head * a->dim;
    begin(&t, p, u, scratch, a->past[u->seq] + tokens);
    for (int h = 0; h < p->group; h++) {
        for (int i = 0; i < t.parts; i++) {
            memset(t.part[i].dk, 0, (size_t)(t.part[i].keys * p->wide) * sizeof(float));
            memset(t.part[i].dv, 0, (size_t)(t.part[i].keys * p->wide) * sizeof(float));
        }
        run_head(&t, p, u, u->kv_head * p->group + h, (uint64_t)h * (uint64_t)tiles_of(tokens), g, thread);
        for (int i = 0; i < t.parts; i++) {
            const block *b = &t.part[i];
            int64_t row = a->first[u->seq] + b->first;
            if (p->dk.data) add_rows(p->dk, row, column, b->dk, p->wide, b->keys, a->dim);
            if (p->dv.data) add_rows(p->dv, row, column, b->dv, p->wide, b->keys, a->dim);
        }
    }
}

static int least(const int64_t *work, int threads) {
    int at = 0;
    for (int i = 1; i < threads; i++) at = work[i] < work[at] ? i : at;
    return at;
}

/* Every thread walks all units and gives each to the thread with the least work so far, so all agree whose it is. A
 * thread's own units come in rising order and waiting is always for a smaller index: no deadlock. */
static void run_units(const problem *p, progress *g, int thread, float *scratch) {
    const attn *a = p->a;
    int64_t index = 0, work[THREADS_MAX] = {0};
    int owner[KV_HEADS_MAX] = {0}; /* of the keys before, per head */
    for (int n = 0; n < a->seqs; n++) {
        int64_t rows = a->start[n + 1] - a->start[n], keys = a->past[n] + rows;
        for (int64_t first = 0; rows > 0 && first < keys; first += UNIT)
            for (int h = 0; h < a->kv_heads; h++, index++) {
                int64_t left_keys = keys - first, to = least(work, g->threads);
                work[to] += BLOCK + (left_keys < rows ? left_keys : rows) * (left_keys < UNIT ? left_keys : UNIT);
                const unit u = {index, first ? index - a->kv_heads : -1, owner[h], n, h, first};
                owner[h] = (int)to;
                if (to != thread) continue;
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
    CHECK(a->dim <= HEAD_DIM_MAX && a->kv_heads <= KV_HEADS_MAX, "%d key heads of %d", a->kv_heads, a->dim);
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
