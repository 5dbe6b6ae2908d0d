#include "model/merged.h"
#include "core/error.h"
#include "core/num.h"
#include "kernels/rows16.h"
#include "model/lora_file.h"
#include "peft/merge.h"

#include <stdlib.h>
#include <string.h>

enum { ROWS = 64 }; /* of a matrix at a time */

typedef struct {
    session *s;
    const model_source *src;
    kctx k; /* canonical kernels of the host, whatever the session computes with */
    int adapters;
    adapter ad[SHARES_MAX];
    arena mem[SHARES_MAX];
    const lora **lora; /* [projections][adapters] */
    const float *scale;
    bool packed;
} merger;

static proj *proj_at(const model *m, int i) {
    for (int g = 0; g < m->n_groups; i -= m->groups[g++].n)
        if (i < m->groups[g].n) return &m->groups[g].p[i];
    return NULL;
}

static int count_projs(const model *m) {
    int n = 0;
    for (int g = 0; g < m->n_groups; g++) n += m->groups[g].n;
    return n;
}

/* The adapter's configuration, attached over `mem`. */
static int attach(merger *me, int i, const char *path, lora_file *f, arena *mem) {
    model *m = &me->s->m;
    if (lora_file_open(f, me->src, path)) return -1;
    f->cfg.dropout = 0;
    return adapter_attach(&me->ad[i], &f->cfg, m->groups, m->n_groups, 0, false, mem);
}

/* Adapter i with all its matrices in fp32; the model keeps none of it. Counted, then read. */
static int read_adapter(merger *me, int i, const char *path, int projs) {
    lora_file f = {0};
    model *m = &me->s->m;
    arena plan;
    arena_plan(&plan, "adapter");
    int bad = attach(me, i, path, &f, &plan);
    size_t bytes = plan.peak;
    arena_close(&plan), adapter_close(&me->ad[i]), lora_file_close(&f);
    bad = bad || arena_open(&me->mem[i], "adapter", bytes) || attach(me, i, path, &f, &me->mem[i]) ||
          lora_file_load(&f, &me->ad[i]);
    for (int p = 0; p < projs; p++) me->lora[p * me->adapters + i] = proj_at(m, p)->lora;
    adapter_detach(m->groups, m->n_groups);
    lora_file_close(&f);
    return bad ? -1 : 0;
}

/* Rows [row, row + n) of W + sum, into x [n, cols]. */
static void merge_rows(merger *me, const weight *w, int at, int64_t row, mat x) {
    int64_t rank = 1, n = x.rows * x.cols;
    w->fmt->dequant(w, row * w->cols, n, x.data);
    for (int i = 0; i < me->adapters; i++) {
        const lora *l = me->lora[at * me->adapters + i];
        if (l && l->a.rows > rank) rank = l->a.rows;
    }
    float *delta = xcalloc((size_t)n, sizeof *delta), *scaled = xcalloc((size_t)(x.rows * rank), sizeof *scaled);
    mat d = mat_f32(delta, x.rows, x.cols);
    for (int i = 0; i < me->adapters; i++) {
        const lora *l = me->lora[at * me->adapters + i];
        if (!l) continue;
        lora_delta_rows(&me->k, l, row, d, scaled);
        if (me->scale[i] != 1) me->k.be->scale(&me->k, d, d, me->scale[i]);
        me->k.be->add(&me->k, x, x, d);
    }
    free(delta), free(scaled);
}

/* What takes w's place, with its memory from g->mem; while that only counts, no data are read. */
static weight merge_one(merger *me, merged *g, const weight *w, int at) {
    bool f32 = w->fmt->id == FMT_F32 || (weight_rows16(w) && weight_rows16(w)->origin.fmt->id == FMT_F32);
    weight made = {&weight_formats[f32 ? FMT_F32 : FMT_BF16], w->rows, w->cols, 1, NULL, NULL};
    size_t bytes = (size_t)weight_bytes(&made), row_bytes = bytes / (size_t)w->rows;
    char *to = arena_alloc(&g->mem, bytes);
    made.data = to;
    float *x = g->mem.planning ? NULL : xcalloc((size_t)(ROWS * w->cols), sizeof *x);
    uint16_t *half = g->mem.planning ? NULL : xcalloc((size_t)(ROWS * w->cols), sizeof *half);
    for (int64_t row = 0; x && row < w->rows; row += ROWS) {
        int64_t n = w->rows - row < ROWS ? w->rows - row : ROWS;
        merge_rows(me, w, at, row, mat_f32(x, n, w->cols));
        for (int64_t i = 0; i < n * w->cols && !f32; i++) half[i] = float_to_bf16(x[i]);
        arena_put(&g->mem, to + (size_t)row * row_bytes, f32 ? (void *)x : half, (size_t)n * row_bytes);
    }
    free(x), free(half);
    if (!me->packed || !rows16_bytes(&made, true)) return made;
    return rows16_pack(&made, 0, true, &g->mem);
}

static bool changed(const merger *me, int at) {
    for (int i = 0; i < me->adapters; i++)
        if (me->lora[at * me->adapters + i]) return true;
    return false;
}

/* The same code to count and to make; made [projections]: data NULL where nothing changes. */
static void make_all(merger *me, merged *g, weight *made, int projs) {
    for (int p = 0; p < projs; p++)
        if (changed(me, p)) made[p] = merge_one(me, g, &proj_at(&me->s->m, p)->w, p);
}

static int build(merger *me, merged *g, int projs) {
    weight *made = xcalloc((size_t)projs, sizeof *made);
    arena_plan(&g->mem, "merged");
    make_all(me, g, made, projs);
    size_t bytes = g->mem.peak;
    for (int p = 0; p < projs; p++)
        if (made[p].fmt) weight_release(&made[p]);
    arena_close(&g->mem);
    memset(made, 0, (size_t)projs * sizeof *made);
    int bad = arena_open_in(&g->mem, me->s->k.mem, "merged", bytes);
    if (!bad) {
        make_all(me, g, made, projs);
        g->m = &me->s->m;
        g->base = xcalloc((size_t)projs, sizeof *g->base);
        for (int p = 0; p < projs; p++) {
            weight *w = &proj_at(g->m, p)->w;
            g->base[p] = *w;
            if (made[p].fmt) *w = made[p];
        }
    }
    free(made);
    return bad;
}

int merged_open(merged *g, session *s, const model_source *src, const inference_options *o, const adapter_choice *a,
                int n) {
    merger me = {.s = s, .src = src, .adapters = n, .packed = backend_is_int8(o->backend)};
    float scale[SHARES_MAX];
    int projs = count_projs(&s->m);
    const backend *be = backend_open("auto");
    CHECK(!g->m && n <= SHARES_MAX, "%d adapters, or merged twice", n);
    *g = (merged){0};
    if (!be || kctx_open(&me.k, be, o->threads)) return -1;
    me.lora = xcalloc((size_t)(projs * n), sizeof *me.lora), me.scale = scale;
    int bad = 0;
    for (int i = 0; i < n && !bad; i++) scale[i] = a[i].scale, bad = read_adapter(&me, i, a[i].dir, projs);
    bad = bad || build(&me, g, projs);
    for (int i = 0; i < n; i++) adapter_close(&me.ad[i]), arena_close(&me.mem[i]);
    free(me.lora);
    kctx_close(&me.k);
    return bad ? -1 : 0;
}

void merged_close(merged *g) {
    for (int p = 0, n = g->m ? count_projs(g->m) : 0; p < n; p++) {
        weight *w = &proj_at(g->m, p)->w;
        if (w->data != g->base[p].data) weight_release(w);
        *w = g->base[p];
    }
    free(g->base);
    arena_close(&g->mem);
    *g = (merged){0};
}
