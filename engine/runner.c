#include "engine/runner.h"
#include "core/error.h"
#include "core/rng.h"

#include <stdlib.h>
#include <string.h>

static int build(runner *r, const runner_options *o) {
    const hparams *hp = &o->src->hp;
    kv_shape kv = o->kv;
    kv.layers = (int)hp->layers, kv.heads = (int)hp->kv_heads, kv.dim = (int)hp->head_dim;
    if (inference_load(&r->s, &r->quant, o->src, &o->how, kv.context)) return -1;
    r->logits = arena_array(&r->s.run, (size_t)r->logit_rows * (size_t)hp->vocab, sizeof *r->logits);
    return kv_cache_open(&r->kv, &kv, &r->s.run);
}

/* The largest batch: all rows, in as many sequences as there may be. */
static void run_worst(runner *r, const runner_options *o) {
    int32_t *ids = xcalloc((size_t)o->kv.rows_max, sizeof *ids);
    int seqs = o->kv.seqs_max < o->kv.rows_max ? o->kv.seqs_max : o->kv.rows_max, left = o->kv.rows_max;
    for (int s = seqs; s > 0; s--) {
        int n = left / s < o->kv.context ? left / s : o->kv.context;
        batch_add(&r->b, ids, NULL, n, 0);
        r->b.adapter[r->b.seqs - 1] = -1;
        left -= n;
    }
    for (r->wants = 0; r->wants < r->logit_rows && r->wants < r->b.rows; r->wants++) r->want[r->wants] = r->wants;
    runner_run(r);
    free(ids);
}

int runner_open(runner *r, const runner_options *o) {
    static const struct lora_sets none;
    *r = (runner){.logit_rows = o->logit_rows};
    r->want = xcalloc((size_t)o->logit_rows, sizeof *r->want);
    batch_open(&r->b, o->kv.rows_max, o->kv.seqs_max);
    r->b.sets = o->sets ? o->sets : &none;
    pages_open(&r->pool, o->kv.pages);
    if (inference_base(&r->quant, o->src, &o->how) || inference_plan(&r->s, &o->how) || build(r, o)) return -1;
    run_worst(r, o);
    session planned = r->s;
    kv_cache_close(&r->kv);
    int bad = session_open(&r->s, &planned, o->how.backend, o->how.threads);
    session_close(&planned);
    if (bad || build(r, o)) return -1;
    if (r->s.k.mem) r->seen = xcalloc((size_t)r->logit_rows * (size_t)o->src->hp.vocab, sizeof *r->seen);
    return 0;
}

void runner_close(runner *r) {
    kv_cache_close(&r->kv);
    session_close(&r->s);
    quant_cache_close(&r->quant);
    pages_close(&r->pool);
    batch_close(&r->b);
    free(r->want), free(r->seen);
    *r = (runner){0};
}

/* ---- batches ---- */

void runner_begin(runner *r) {
    batch_clear(&r->b);
    r->wants = 0;
}

void runner_add(runner *r, const track *t, const int32_t *token, int rows, int adapter, int logits) {
    batch *b = &r->b;
    int s = b->seqs, first = b->rows;
    CHECK(r->wants + logits <= r->logit_rows && logits <= rows, "%d rows of logits and %d more", r->wants, logits);
    batch_add(b, token + t->cached, NULL, rows, 0);
    b->past[s] = t->cached, b->adapter[s] = adapter;
    for (int i = 0; i < rows; i++) b->pos[first + i] += t->cached;
    for (int i = rows - logits; i < rows; i++) r->want[r->wants++] = first + i;
    memcpy(r->kv.table + s * r->kv.columns, t->page, (size_t)t->pages * sizeof *t->page);
}

/* Steps that decode come again and again: a device records them. One row a sequence, all of them wanted and of the
 * model alone, so that their number decides which kernels run and in which shapes. */
static bool decodes(const runner *r) {
    const batch *b = &r->b;
    const size_t table = (size_t)b->seqs * (size_t)r->kv.columns * sizeof *r->kv.table;
    bool base = true;
    for (int s = 0; s < b->seqs; s++) base = base && b->adapter[s] < 0;
    return base && b->rows == b->seqs && r->wants == b->rows && table <= MEMORY_RECORDED / 2;
}

/* Number of rows and every matrix that a recorded step has read: merging an adapter puts others in their place. */
static uint64_t key_of(const runner *r) {
    uint64_t h = hash_bytes(HASH_SEED, &r->b.rows, sizeof r->b.rows);
    for (int g = 0; g < r->s.m.n_groups; g++)
        for (int i = 0; i < r->s.m.groups[g].n; i++) {
            const proj *p = &r->s.m.groups[g].p[i];
            const void *read[] = {p->w.data, p->w.meta, p->lora};
            h = hash_bytes(h, read, sizeof read);
        }
    return h;
}

static void compute(runner *r) {
    tape t = session_tape(&r->s, false, false);
    tensor *h = model_forward(&t, &r->s.m, &r->b, &r->kv);
    if (r->wants) model_logits(&t, &r->s.m, h, r->want, r->wants, mat_f32(r->logits, r->wants, r->s.m.hp.vocab));
}

void runner_run(runner *r) {
    kctx *k = &r->s.k;
    const backend *be = k->be;
    const bool again = k->mem && decodes(r);
    batch_find_runs(&r->b);
    if (again && memory_record(k->mem, key_of(r)) == MEMORY_REPLAYS) k->be = &backend_plan; /* puts alone */
    compute(r);
    k->be = be;
    if (again) memory_play(k->mem);
    const size_t bytes = (size_t)r->wants * (size_t)r->s.m.hp.vocab * sizeof(float);
    if (!r->s.run.planning) r->view = memory_view(r->s.k.mem, r->logits, r->seen, bytes);
}

const float *runner_logits(const runner *r, int i) { return r->view + (int64_t)i * r->s.m.hp.vocab; }

/* ---- tracks ---- */

void track_open(track *t, const runner *r) { *t = (track){.page = xcalloc((size_t)r->kv.columns, sizeof *t->page)}; }

void track_clear(track *t, runner *r) {
    for (int i = t->pages - 1; i >= t->gone; i--) pages_drop(&r->pool, t->page[i]);
    t->pages = t->cached = t->named = t->gone = 0;
}

void track_close(track *t, runner *r) {
    track_clear(t, r);
    free(t->page);
    *t = (track){0};
}

void track_match(track *t, runner *r, uint64_t key, const int32_t *token, int n) {
    for (int id, before = -1; t->pages < (n - 1) / KV_PAGE; before = id) {
        id = pages_find(&r->pool, key, before, token + t->pages * KV_PAGE);
        if (id < 0) break;
        t->page[t->pages++] = id;
    }
    t->named = t->pages, t->cached = t->pages * KV_PAGE;
}

/* A page that others hold too is copied before it is written to. */
static int own(track *t, runner *r, int at) {
    int old = t->page[at], copy;
    if (r->pool.page[old].refs == 1) return 0;
    if ((copy = pages_take(&r->pool)) < 0) return -1;
    kv_cache_copy(&r->kv, &r->s.k, copy, old);
    pages_drop(&r->pool, old);
    t->page[at] = copy;
    return 0;
}

int track_reserve(track *t, runner *r, int n) {
    int need = (n + KV_PAGE - 1) / KV_PAGE, at = t->cached / KV_PAGE;
    if (at < t->pages && own(t, r, at)) return -1;
    for (; t->pages < need; t->pages++)
        if ((t->page[t->pages] = pages_take(&r->pool)) < 0) return -1;
    return 0;
}

void track_fork(track *to, const track *from, runner *r) {
    to->pages = (from->cached + KV_PAGE - 1) / KV_PAGE;
    memcpy(to->page, from->page, (size_t)to->pages * sizeof *to->page);
    to->cached = from->cached, to->named = from->named, to->gone = from->gone;
    for (int i = to->gone; i < to->pages; i++) pages_hold(&r->pool, to->page[i]);
}

void track_advance(track *t, runner *r, uint64_t key, const int32_t *token, int n) {
    const hparams *hp = &r->s.m.hp;
    for (t->cached = n; (t->named + 1) * KV_PAGE <= n; t->named++) {
        int at = t->named, before = at ? t->page[at - 1] : -1;
        t->page[at] = pages_name(&r->pool, t->page[at], key, before, token + at * KV_PAGE);
    }
    if (!hp->window || hp->window_from) return;
    /* the last one that has a name stays: the next name is made of it */
    for (; (t->gone + 1) * KV_PAGE <= n - hp->window && t->gone + 1 < t->named; t->gone++) {
        pages_drop(&r->pool, t->page[t->gone]);
        t->page[t->gone] = -1;
    }
}
