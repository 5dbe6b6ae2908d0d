#include "peft/served.h"
#include "core/error.h"
#include "core/num.h"

#include <stdlib.h>
#include <string.h>

enum { COLUMNS_MAX = PROJ_MAX * SET_RANKS_MAX + 16 * SHARES_MAX }; /* of all the h's of a row: each is padded */

typedef struct {
    const proj_group_ref *groups;
    int n;
    const adapter *ad;
    const safetensors *st; /* NULL while memory is only counted */
    dtype type;
    float *tensor, *matrix; /* room for the largest one as it is read and as it is kept; heap */
} reader;

static weight keep(served *s, const reader *r, const float *x, int64_t rows, int64_t cols) {
    int64_t n = rows * cols;
    weight w = {&weight_formats[r->type == BF16 ? FMT_BF16 : FMT_F32], rows, cols, 1, NULL, NULL};
    void *data = arena_alloc(&s->mem, (size_t)weight_bytes(&w));
    w.data = data;
    if (!r->st) return w;
    if (r->type == F32) {
        arena_put(&s->mem, data, x, (size_t)n * sizeof *x);
        return w;
    }
    uint16_t *half = xcalloc((size_t)n, sizeof *half);
    for (int64_t i = 0; i < n; i++) half[i] = float_to_bf16(x[i]);
    arena_put(&s->mem, data, half, (size_t)n * sizeof *half);
    free(half);
    return w;
}

/* to[k][at + j] = from[j][k] */
static void transpose(float *to, int64_t cols, int64_t at, const float *from, int64_t rows, int64_t n) {
    for (int64_t j = 0; j < rows; j++)
        for (int64_t k = 0; k < n; k++) to[k * cols + at + j] = from[j * n + k];
}

/* Matrix 2 * module + (0: A, 1: B) of the file, transposed to column `at` of r->matrix. */
static int take(const reader *r, int view, int64_t cols, int64_t at) {
    const adapter_view *v = &r->ad->views[view];
    if (!r->st) return 0;
    if (adapter_file_read(r->st, v, r->tensor)) return -1;
    transpose(r->matrix, cols, at, r->tensor, v->p.rows, v->p.cols);
    return 0;
}

static int lay_out_group(served *s, const reader *r, int g, int *module) {
    const proj_group_ref *group = &r->groups[g];
    lora_part *part = &s->part[g];
    int first = *module, columns = 0;
    *part = (lora_part){0};
    for (int i = 0; i < group->n; i++)
        if (group->p[i].lora) part->at[i] = columns, columns += s->rank, ++*module;
    if (!columns) return 0;
    int64_t in = group->p[0].w.cols, padded = (columns + 15) / 16 * 16;
    if (r->st) memset(r->matrix, 0, (size_t)(in * padded) * sizeof *r->matrix);
    for (int i = 0, m = first; i < group->n; i++)
        if (group->p[i].lora && take(r, 2 * m++, padded, part->at[i])) return -1;
    part->down = keep(s, r, r->matrix, in, padded);
    for (int i = 0, m = first; i < group->n; i++) {
        if (!group->p[i].lora) continue;
        int64_t out = group->p[i].w.rows;
        if (take(r, 2 * m++ + 1, out, 0)) return -1;
        part->up[i] = keep(s, r, r->matrix, s->rank, out);
    }
    return 0;
}

static int lay_out(served *s, const reader *r) {
    int module = 0;
    for (int g = 0; g < r->n; g++)
        if (lay_out_group(s, r, g, &module)) return -1;
    return 0;
}

static void make_room(reader *r, int rank) {
    int64_t most = 0;
    for (int g = 0; g < r->n; g++)
        for (int i = 0; i < r->groups[g].n; i++) {
            const weight *w = &r->groups[g].p[i].w;
            if (w->rows > most) most = w->rows;
            if (w->cols > most) most = w->cols;
        }
    r->tensor = xcalloc((size_t)(most * rank), sizeof *r->tensor);
    r->matrix = xcalloc((size_t)(most * (PROJ_MAX * rank + 16)), sizeof *r->matrix);
}

/* Counted, then read: the same code twice. */
static int load(served *s, reader *r, const safetensors *st, memory *mem) {
    arena_plan(&s->mem, "adapter");
    lay_out(s, r);
    size_t bytes = s->mem.peak;
    arena_close(&s->mem);
    make_room(r, s->rank);
    r->st = st;
    int bad = arena_open_in(&s->mem, mem, "adapter", bytes) || lay_out(s, r);
    free(r->tensor), free(r->matrix);
    return bad;
}

int served_open(served *s, const char *path, const adapter *ad, const safetensors *st, const proj_group_ref *groups,
                int n_groups, dtype type, memory *mem) {
    *s = (served){.path = xstrdup(path),
                  .rank = ad->cfg.r,
                  .scale = lora_config_scale(&ad->cfg),
                  .base = ad->cfg.base,
                  .part = xcalloc((size_t)n_groups, sizeof *s->part),
                  .groups = n_groups};
    reader r = {groups, n_groups, ad, NULL, type, NULL, NULL};
    int bad = s->rank > SET_RANKS_MAX ? fail(EXIT_INPUT, "%s: rank %d is more than the %d that inference takes", path,
                                             s->rank, SET_RANKS_MAX)
                                      : load(s, &r, st, mem);
    if (bad) served_close(s);
    return bad ? -1 : 0;
}

void served_close(served *s) {
    arena_close(&s->mem);
    free(s->path), free(s->part);
    *s = (served){0};
}

size_t served_bytes(const served *s) { return s->mem.used; }

/* ---- a batch ---- */

void served_forward(tape *t, int group, int n, mat x, tensor *const *y, const batch *b) {
    lora_item *item = tape_host(t, (size_t)b->seqs * SHARES_MAX * sizeof *item);
    lora_fwd_args a = {.n = n, .x = x, .item = item};
    size_t mark = t->tmp->used;
    float *h = tape_scratch(t, x.rows, COLUMNS_MAX).data;
    for (int i = 0; i < n; i++) a.y[i] = y[i]->val;
    for (int r = 0; r < b->runs; r++) {
        const batch_run *run = &b->run[r];
        if (run->set < 0) continue;
        CHECK(run->set < b->sets->n, "adapter set %d of %d", run->set, b->sets->n);
        const lora_set *set = &b->sets->set[run->set];
        for (int k = 0; k < set->shares; k++) {
            const served *s = set->share[k].adapter;
            const lora_part *part = &s->part[group];
            if (!part->down.cols) continue;
            item[a.items++] = (lora_item){run->row, run->rows, part, s->scale * set->share[k].scale, h};
            h += (int64_t)run->rows * part->down.cols;
        }
    }
    if (a.items) t->k->be->lora_fwd(t->k, &a);
    arena_release(t->tmp, mark);
}
