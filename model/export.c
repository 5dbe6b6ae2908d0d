/* The weights of a merged model: W' = W + scale * B A in fp32 where a module has an adapter, rounded once to the
 * output's type (nearest even). GGUF's q and k rows come out in Hugging Face order. */
#include "model/export.h"
#include "model/quant_cache.h"
#include "core/error.h"
#include "core/json.h"
#include "core/num.h"
#include "model/names.h"
#include "model/rows.h"
#include "peft/merge.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { PANEL = 1 << 20 }; /* elements of a panel of rows */

typedef struct {
    char name[160];
    int64_t rows, cols; /* rows 0: a vector */
    const proj *p;      /* of a linear layer, else NULL */
    int file;
} item;

typedef struct {
    const model_source *s;
    const model *m;
    const adapter *ad;
    const safetensors *tensors;
    kctx *k;
    const export_options *o;
    export_report *r;
    item *items;
    int n;
    int files;
    uint64_t bytes;
    /* one panel */
    float *panel, *delta, *scaled, *a, *b;
    void *out;
    double *row_delta, *row_error; /* sums of squares of a row */
    double delta_sq, error_sq;     /* of the module so far */
} exporter;

/* ---- what to write ---- */

static const proj *proj_named(const model *m, const char *tensor) {
    const char *kind = strrchr(tensor, '.');
    size_t n = (size_t)(kind - tensor);
    if (strcmp(kind, ".weight") != 0) return NULL;
    for (int g = 0; g < m->n_groups; g++)
        for (int i = 0; i < m->groups[g].n; i++)
            if (strlen(m->groups[g].p[i].name) == n && !memcmp(m->groups[g].p[i].name, tensor, n))
                return &m->groups[g].p[i];
    return NULL;
}

static void add_item(exporter *e, int pattern, const char *name) {
    item it = {.p = proj_named(e->m, name)};
    if (!model_source_has(e->s, name) || !name_used(pattern, e->s->fam->has) ||
        (e->s->hp.tied && !strcmp(name, "lm_head.weight")))
        return;
    size_t n = strlen(name) + 1;
    CHECK(n <= sizeof it.name, "tensor name '%s'", name);
    memcpy(it.name, name, n);
    model_source_shape(e->s, pattern, &it.rows, &it.cols);
    e->items = xrealloc(e->items, (size_t)e->n + 1, sizeof *e->items);
    e->items[e->n++] = it;
}

static void list_items(exporter *e) {
    char name[160];
    bool layered;
    for (int i = 0; name_hf(i, 0, name, sizeof name, &layered); i++)
        if (!layered) add_item(e, i, name);
    for (int layer = 0; layer < e->s->hp.layers; layer++)
        for (int i = 0; name_hf(i, layer, name, sizeof name, &layered); i++)
            if (layered) add_item(e, i, name);
}

static uint64_t item_bytes(const exporter *e, const item *it) {
    return (uint64_t)((it->rows ? it->rows : 1) * it->cols * st_dtype_size(e->o->dtype));
}

/* In order; a file is closed before the tensor that would make it too large. */
static void split_files(exporter *e) {
    uint64_t in_file = 0;
    e->files = 1;
    for (int i = 0; i < e->n; i++) {
        uint64_t bytes = item_bytes(e, &e->items[i]);
        if (in_file && in_file + bytes > e->o->shard_bytes) e->files++, in_file = 0;
        e->items[i].file = e->files - 1;
        in_file += bytes, e->bytes += bytes;
    }
}

static char *file_name(const exporter *e, int file) {
    return e->files == 1 ? xstrdup("model.safetensors") : xprintf("model-%05d-of-%05d.safetensors", file + 1, e->files);
}

/* ---- one tensor ---- */

/* The system may take a mapping's pages back: they are read again if they are needed again. */
static void drop_pages(const void *data, uint64_t bytes) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), begin = (uintptr_t)data / page * page,
              end = (uintptr_t)data + bytes;
    if (bytes) madvise((void *)begin, (end - begin + page - 1) / page * page, MADV_DONTNEED);
}

static double round_row(const exporter *e, const float *x, void *out, int64_t n) {
    double error = 0;
    if (e->o->dtype == ST_F32) {
        memcpy(out, x, (size_t)n * sizeof *x);
        return 0;
    }
    uint16_t *h = out;
    bool f16 = e->o->dtype == ST_F16;
    for (int64_t i = 0; i < n; i++) {
        h[i] = f16 ? float_to_f16(x[i]) : float_to_bf16(x[i]);
        double d = (double)((f16 ? f16_to_float(h[i]) : bf16_to_float(h[i])) - x[i]);
        error += d * d;
    }
    return error;
}

/* Rounds n rows of the panel, adding the update when there is one. Sums go row by row: equal for any number of threads.
 */
static int finish_panel(exporter *e, const item *it, const lora *l, int64_t row, int64_t n) {
    size_t size = (size_t)st_dtype_size(e->o->dtype);
    int64_t cols = it->cols;
#pragma omp parallel for num_threads(e->k->threads)
    for (int64_t i = 0; i < n; i++) {
        float *x = e->panel + i * cols, *d = e->delta + i * cols;
        double sum = 0;
        for (int64_t j = 0; l && j < cols; j++) x[j] += d[j], sum += (double)d[j] * (double)d[j];
        e->row_delta[i] = sum;
        e->row_error[i] = round_row(e, x, (char *)e->out + (size_t)(i * cols) * size, cols);
    }
    for (int64_t i = 0; i < n; i++) {
        if (!isfinite(e->row_delta[i]) || !isfinite(e->row_error[i]))
            return fail(EXIT_DIVERGED, "tensor '%s', row %ld: a merged value does not fit %s: choose another --dtype",
                        it->name, (long)(row + i), st_dtype_name(e->o->dtype));
        e->delta_sq += e->row_delta[i], e->error_sq += e->row_error[i];
    }
    return 0;
}

static int write_rows(exporter *e, const item *it, const weight *w, int heads, const lora *l, st_writer *out) {
    int64_t rows = it->rows ? it->rows : 1, step = PANEL / it->cols ? PANEL / it->cols : 1;
    e->delta_sq = e->error_sq = 0;
    for (int64_t row = 0; row < rows; row += step) {
        int64_t n = rows - row < step ? rows - row : step;
#pragma omp parallel for num_threads(e->k->threads)
        for (int64_t i = 0; i < n; i++) rows_dequant(w, heads, row + i, 1, e->panel + i * it->cols);
        if (l) lora_delta_rows(e->k, l, row, mat_f32(e->delta, n, it->cols), e->scaled);
        if (finish_panel(e, it, l, row, n) ||
            st_writer_data(out, e->out, (uint64_t)(n * it->cols) * (uint64_t)st_dtype_size(e->o->dtype)))
            return -1;
    }
    return 0;
}

static void count_module(export_report *r, double delta_sq, double error_sq) {
    double ratio = error_sq > 0 ? sqrt(delta_sq / error_sq) : 0;
    if (!r->merged || ratio < r->ratio_min) r->ratio_min = ratio;
    if (!r->merged || ratio > r->ratio_max) r->ratio_max = ratio;
    r->ratio_sum += ratio;
    r->zero += !(delta_sq > 0);
    r->merged++;
}

/* The module's A and B out of the file. */
static int read_lora(exporter *e, const proj *p, lora *l) {
    int64_t i = p->lora - e->ad->loras;
    const adapter_view *a = &e->ad->views[2 * i], *b = a + 1;
    *l = *p->lora;
    l->a.val = e->a, l->b.val = e->b;
    if (adapter_file_read(e->tensors, a, e->a) || adapter_file_read(e->tensors, b, e->b)) return -1;
    const st_tensor *ta = safetensors_find(e->tensors, a->name), *tb = safetensors_find(e->tensors, b->name);
    drop_pages(ta->data, ta->bytes), drop_pages(tb->data, tb->bytes);
    return 0;
}

/* Before anything large is written. */
static int check_adapter(exporter *e) {
    lora l;
    for (int g = 0; g < e->m->n_groups; g++)
        for (int i = 0; i < e->m->groups[g].n; i++)
            if (e->m->groups[g].p[i].lora && read_lora(e, &e->m->groups[g].p[i], &l)) return -1;
    return 0;
}

/* The tensor as load_in_4bit holds it: as it was kept, or in an arena of its size. */
static int quantise(exporter *e, const proj *p, weight *w, int heads, arena *run) {
    arena plan;
    if (quant_cache_weight(e->o->quant, p->name, w->rows, w->cols, w)) return 0;
    bool twice = e->o->base == BASE_NF4_DOUBLE;
    arena_plan(&plan, "nf4");
    weight sized = rows_nf4(w, heads, twice, &plan);
    free((void *)(uintptr_t)sized.meta);
    int bad = arena_open(run, "nf4", plan.peak);
    arena_close(&plan);
    if (!bad) *w = rows_nf4(w, heads, twice, run);
    return bad;
}

static int write_item(exporter *e, const item *it, st_writer *out) {
    weight stored, w;
    lora l;
    arena run = {0};
    int heads = model_source_permuted(e->s, it->name);
    bool quant = it->p && e->o->base != BASE_AS_IS, merge = it->p && it->p->lora;
    if (model_source_weight(e->s, it->name, it->rows, it->cols, &stored) || (merge && read_lora(e, it->p, &l)))
        return -1;
    w = stored;
    if (quant && quantise(e, it->p, &w, heads, &run)) return -1;
    if (quant) drop_pages(stored.data, (uint64_t)weight_bytes(&stored));
    int bad = write_rows(e, it, &w, quant ? 0 : heads, merge ? &l : NULL, out);
    if (merge && !bad) count_module(e->r, e->delta_sq, e->error_sq);
    drop_pages(stored.data, (uint64_t)weight_bytes(&stored));
    if (quant) {
        if (!run.base) drop_pages(w.data, (uint64_t)weight_bytes(&w));
        free((void *)(uintptr_t)w.meta);
        arena_close(&run);
    }
    return bad;
}

/* ---- files ---- */

static int write_file(exporter *e, int file, file_set *set, int *done) {
    static const char *const metadata[] = {"format", "pt"};
    st_decl *decls = xcalloc((size_t)e->n, sizeof *decls);
    st_writer w;
    int n = 0;
    for (int i = 0; i < e->n; i++) {
        item *it = &e->items[i];
        if (it->file != file) continue;
        decls[n++] = (st_decl){it->name, e->o->dtype, it->rows ? 2 : 1, {it->rows ? it->rows : it->cols, it->cols}};
    }
    char *name = file_name(e, file), *path = file_set_path(set, name);
    int bad = st_writer_open(&w, path, decls, n, metadata, 1), opened = !bad;
    for (int i = 0; i < e->n && !bad; i++) {
        if (e->items[i].file != file) continue;
        bad = write_item(e, &e->items[i], &w);
        if (!bad && e->o->progress) e->o->progress(e->o->ctx, ++*done, e->n);
    }
    if (!bad)
        file_set_take(set, &w.out);
    else if (opened)
        st_writer_abandon(&w);
    free(decls), free(name), free(path);
    return bad ? -1 : 0;
}

static int write_index(const exporter *e, file_set *set) {
    json_t *map = json_object();
    for (int i = 0; i < e->n; i++) {
        char *name = file_name(e, e->items[i].file);
        json_object_set_new(map, e->items[i].name, json_string(name));
        free(name);
    }
    json_t *o = json_pack("{s:{s:I},s:o}", "metadata", "total_size", (json_int_t)e->bytes, "weight_map", map);
    CHECK(o, "the index");
    char *text = json_dumps(o, JSON_INDENT(2) | JSON_SORT_KEYS);
    int bad = file_set_add(set, "model.safetensors.index.json", text, strlen(text));
    free(text);
    json_decref(o);
    return bad;
}

static void open_panels(exporter *e) {
    int64_t cols = 1, in = 1, out = 1, rows = 1;
    for (int i = 0; i < e->n; i++) {
        const item *it = &e->items[i];
        int64_t step = PANEL / it->cols ? PANEL / it->cols : 1;
        if (it->cols > cols) cols = it->cols;
        if (step > rows) rows = step;
        if (it->p && it->cols > in) in = it->cols;
        if (it->p && it->rows > out) out = it->rows;
    }
    size_t panel = (size_t)(cols > PANEL ? cols : PANEL), r = (size_t)e->ad->cfg.r;
    e->panel = xcalloc(panel, sizeof *e->panel), e->delta = xcalloc(panel, sizeof *e->delta);
    e->out = xcalloc(panel, sizeof(float));
    e->scaled = xcalloc((size_t)(rows < out ? rows : out) * r, sizeof *e->scaled);
    e->a = xcalloc((size_t)in * r, sizeof *e->a), e->b = xcalloc((size_t)out * r, sizeof *e->b);
    e->row_delta = xcalloc((size_t)rows, sizeof *e->row_delta),
    e->row_error = xcalloc((size_t)rows, sizeof *e->row_error);
}

static void close_panels(exporter *e) {
    free(e->panel), free(e->delta), free(e->out), free(e->scaled), free(e->a), free(e->b);
    free(e->row_delta), free(e->row_error), free(e->items);
}

int export_weights(const model_source *s, const model *m, const adapter *ad, const safetensors *tensors, kctx *k,
                   const export_options *o, file_set *set, export_report *r) {
    exporter e = {.s = s, .m = m, .ad = ad, .tensors = tensors, .k = k, .o = o, .r = r};
    int bad, done = 0;
    *r = (export_report){0};
    list_items(&e);
    split_files(&e);
    open_panels(&e);
    bad = check_adapter(&e);
    for (int f = 0; f < e.files && !bad; f++) bad = write_file(&e, f, set, &done);
    if (!bad && e.files > 1) bad = write_index(&e, set);
    r->tensors = e.n, r->files = e.files;
    CHECK(bad || r->merged == ad->n_loras, "%d of %d modules merged", r->merged, ad->n_loras);
    close_panels(&e);
    return bad;
}
