/* One tensor after another: W' = W + scale * B A in fp32 where a module has an adapter, rounded once to the target's
 * format. Where nothing is added and the base has the target's format already, its bytes are copied. */
#include "core/error.h"
#include "core/num.h"
#include "model/export_parts.h"
#include "model/finite.h"
#include "model/quant_cache.h"
#include "model/rows.h"
#include "peft/merge.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PANEL = 1 << 20 }; /* elements of a panel of rows */

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
    const model_source *s = e->in.s;
    export_item it = {.p = proj_named(e->in.m, name)};
    if (!model_source_has(s, name) || !name_used(pattern, s->fam->has) || (s->hp.tied && !strcmp(name, NAME_HEAD)))
        return;
    size_t n = strlen(name) + 1;
    CHECK(n <= sizeof it.name, "tensor name '%s'", name);
    memcpy(it.name, name, n);
    model_source_shape(s, pattern, &it.rows, &it.cols);
    e->items = xrealloc(e->items, (size_t)e->n + 1, sizeof *e->items);
    e->items[e->n++] = it;
}

void export_list(exporter *e, const export_input *in, const export_options *o, export_report *r) {
    char name[160];
    bool layered;
    *e = (exporter){.in = *in, .o = o, .r = r};
    *r = (export_report){.files = 1};
    for (int i = 0; name_hf(i, 0, name, sizeof name, &layered); i++)
        if (!layered) add_item(e, i, name);
    for (int layer = 0; layer < in->s->hp.layers; layer++)
        for (int i = 0; name_hf(i, layer, name, sizeof name, &layered); i++)
            if (layered) add_item(e, i, name);
    r->row = xcalloc((size_t)e->n, sizeof *r->row);
}

/* ---- the adapter ---- */

/* The module's A and B out of the file, B's rows in the order of the output's. */
static int read_lora(exporter *e, const export_item *it, lora *l) {
    const adapter *ad = e->in.ad;
    int64_t i = it->p->lora - ad->loras, r = it->p->lora->a.rows;
    const adapter_view *a = &ad->views[2 * i], *b = a + 1;
    *l = *it->p->lora;
    l->a.val = e->a, l->b.val = e->b;
    if (adapter_file_read(e->in.tensors, a, e->a) ||
        adapter_file_read(e->in.tensors, b, it->heads_out ? e->b_file : e->b))
        return -1;
    for (int64_t row = 0; it->heads_out && row < it->rows; row++)
        memcpy(e->b + row * r, e->b_file + rows_hf_row(row, it->heads_out, it->rows) * r, (size_t)r * sizeof(float));
    if (!e->in.tensors->files[0].data) return 0; /* a GGUF file's, in memory */
    const st_tensor *ta = safetensors_find(e->in.tensors, a->name), *tb = safetensors_find(e->in.tensors, b->name);
    file_drop(ta->data, ta->bytes), file_drop(tb->data, tb->bytes);
    return 0;
}

/* ---- memory ---- */

/* Rows that are encoded together, so that a block does not straddle two groups. */
static int64_t group_rows(const export_item *it) {
    int64_t g = 1;
    if (it->fmt->id == FMT_NF4)
        while (g * it->cols % 64) g *= 2;
    return g;
}

static int64_t panel_rows(const export_item *it) {
    int64_t g = group_rows(it), many = PANEL / (g * it->cols);
    return many > 1 ? g * many : g;
}

int export_open(exporter *e) {
    int64_t elements = 1, rows = 1, a = 1, b = 1, scaled = 1, nf4 = 0;
    for (int i = 0; i < e->n; i++) {
        const export_item *it = &e->items[i];
        int64_t step = panel_rows(it), r = it->p && it->p->lora ? it->p->lora->a.rows : 0;
        if (step * it->cols > elements) elements = step * it->cols;
        if (step > rows) rows = step;
        if (r * it->cols > a) a = r * it->cols;
        if (r * it->rows > b) b = r * it->rows;
        if (r * step > scaled) scaled = r * step;
        if (it->fmt->id == FMT_NF4 && it->rows * it->cols > nf4) nf4 = it->rows * it->cols;
    }
    size_t panel = (size_t)elements, blocks = (size_t)(nf4 + 63) / 64;
    e->panel = xcalloc(panel, sizeof *e->panel), e->delta = xcalloc(panel, sizeof *e->delta);
    e->back = xcalloc(panel, sizeof *e->back), e->out = xcalloc(panel, sizeof(float));
    e->scaled = xcalloc((size_t)scaled, sizeof *e->scaled), e->a = xcalloc((size_t)a, sizeof *e->a);
    e->b = xcalloc((size_t)b, sizeof *e->b), e->b_file = xcalloc((size_t)b, sizeof *e->b_file);
    e->sums = xcalloc((size_t)rows, sizeof *e->sums);
    if (nf4) {
        e->codes = xcalloc(nf4_data_bytes(nf4), 1), e->scale_codes = xcalloc(blocks, 1);
        e->absmax = xcalloc(blocks, sizeof *e->absmax), e->nested = xcalloc((blocks + 255) / 256, sizeof *e->nested);
    }
    for (int i = 0; i < e->n; i++) {
        lora l;
        if (e->items[i].p && e->items[i].p->lora && read_lora(e, &e->items[i], &l)) return -1;
    }
    return 0;
}

void export_close(exporter *e) {
    free(e->panel), free(e->delta), free(e->back), free(e->out), free(e->scaled), free(e->a), free(e->b);
    free(e->b_file), free(e->sums), free(e->codes), free(e->scale_codes), free(e->absmax), free(e->nested);
    free(e->items);
    *e = (exporter){0};
}

/* ---- one tensor ---- */

typedef struct {
    const export_item *it;
    weight w; /* base, as stored or in NF4 */
    int heads;
    const lora *l;           /* NULL: nothing is added */
    const float *importance; /* [cols] or NULL */
} tensor_job;

static int64_t stored_row(const tensor_job *j, int64_t row) {
    if (j->heads == j->it->heads_out) return row;
    int64_t rows = j->it->rows, hf = j->it->heads_out ? rows_hf_row(row, j->it->heads_out, rows) : row;
    return j->heads ? rows_file_row(hf, j->heads, rows) : hf;
}

/* Encodes n rows from `row` on, a whole group, and reads them back for the sums. */
static void encode_group(exporter *e, const tensor_job *j, int64_t row, int64_t n, float *x, const float *d, void *out,
                         float *back, double sums[4]) {
    const weight_format *fmt = j->it->fmt;
    int64_t cols = j->it->cols, count = n * cols;
    const nf4_meta meta = {.blocksize = 64, .absmax = e->absmax ? e->absmax + row * cols / 64 : NULL};
    const weight made = {fmt, n, cols, 1, out, fmt->id == FMT_NF4 ? &meta : NULL};
    for (int64_t i = 0; j->l && i < count; i++) x[i] += d[i];
    if (fmt->id == FMT_NF4)
        nf4_quant(x, count, out, e->absmax + row * cols / 64);
    else
        weight_quant(fmt, x, j->importance, count, out);
    fmt->dequant(&made, 0, count, back);
    for (int64_t i = 0; i < count; i++) {
        const double update = j->l ? (double)d[i] : 0, error = (double)back[i] - (double)x[i];
        sums[0] += (double)x[i] * (double)x[i], sums[1] += update * update;
        sums[2] += error * error, sums[3] += error * update;
    }
}

/* Sums go group by group: equal for any number of threads. */
static int add_sums(const exporter *e, const tensor_job *j, int64_t row, int64_t groups, int64_t g, export_row *r) {
    for (int64_t i = 0; i < groups; i++) {
        const double *s = e->sums[i];
        if (!isfinite(s[0]) || !isfinite(s[2]))
            return fail(EXIT_DIVERGED, "tensor '%s', row %ld: a merged value does not fit %s: choose another --to",
                        j->it->name, (long)(row + i * g), j->it->fmt->name);
        r->value_sq += s[0], r->update_sq += s[1], r->error_sq += s[2], r->error_update += s[3];
    }
    return 0;
}

static int write_panel(exporter *e, const tensor_job *j, int64_t row, int64_t n, export_sink *k, export_row *r) {
    const export_item *it = j->it;
    int64_t cols = it->cols, g = group_rows(it), groups = (n + g - 1) / g;
    bool nf4 = it->fmt->id == FMT_NF4;
    int64_t row_bytes = nf4 ? 0 : cols / it->fmt->block * it->fmt->bytes;
#pragma omp parallel for num_threads(e->in.k->threads)
    for (int64_t i = 0; i < n; i++) rows_dequant(&j->w, 0, stored_row(j, row + i), 1, e->panel + i * cols);
    if (j->l) lora_delta_rows(e->in.k, j->l, row, mat_f32(e->delta, n, cols), e->scaled);
#pragma omp parallel for num_threads(e->in.k->threads) schedule(dynamic)
    for (int64_t i = 0; i < groups; i++) {
        int64_t at = i * g, many = at + g < n ? g : n - at;
        uint8_t *out = nf4 ? e->codes + (row + at) * cols / 2 : (uint8_t *)e->out + at * row_bytes;
        memset(e->sums[i], 0, sizeof e->sums[i]);
        encode_group(e, j, row + at, many, e->panel + at * cols, e->delta + at * cols, out, e->back + at * cols,
                     e->sums[i]);
    }
    if (add_sums(e, j, row, groups, g, r)) return -1;
    return nf4 ? 0 : k->put(k, e->out, (uint64_t)(n * row_bytes));
}

/* The base's own bytes, row by row where the order differs. */
static int copy_rows(const tensor_job *j, export_sink *k) {
    const weight *w = &j->w;
    int64_t bytes = w->cols / w->fmt->block * w->fmt->bytes;
    if (weight_nonfinite(w) >= 0)
        return fail(EXIT_DIVERGED, "tensor '%s', row %ld of the file: the base holds NaN or infinities", j->it->name,
                    (long)weight_nonfinite(w));
    if (j->heads == j->it->heads_out) return k->put(k, w->data, (uint64_t)(w->rows * bytes));
    for (int64_t row = 0; row < w->rows; row++)
        if (k->put(k, (const char *)w->data + stored_row(j, row) * bytes, (uint64_t)bytes)) return -1;
    return 0;
}

/* The tensor as load_in_4bit holds it: as it was kept, or in an arena of its size. */
static int quantise_base(exporter *e, const proj *p, weight *w, int heads, arena *run) {
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

static void finish_nf4(exporter *e, const export_item *it) {
    int64_t blocks = (it->rows * it->cols + 63) / 64;
    e->offset = e->o->double_quant ? nf4_quant_scales(e->absmax, blocks, e->scale_codes, e->nested) : 0;
}

/* Codes and scales of a base that is what is to be written; false: it is not. */
static bool copy_nf4(exporter *e, const tensor_job *j) {
    const nf4_meta *m = j->w.meta;
    if (j->w.fmt->id != FMT_NF4 || j->it->fmt->id != FMT_NF4 || j->l || m->blocksize != 64 ||
        (m->nested_block ? m->nested_block != 256 : 0) || (m->nested_block != 0) != e->o->double_quant ||
        weight_nonfinite(&j->w) >= 0)
        return false;
    size_t blocks = (size_t)(j->w.rows * j->w.cols + 63) / 64;
    memcpy(e->codes, j->w.data, nf4_data_bytes(j->w.rows * j->w.cols));
    if (m->nested_block) {
        memcpy(e->scale_codes, m->code, blocks);
        memcpy(e->nested, m->nested_absmax, (blocks + 255) / 256 * sizeof *e->nested);
        e->offset = m->offset;
    } else {
        memcpy(e->absmax, m->absmax, blocks * sizeof *e->absmax);
    }
    return true;
}

static int write_tensor(exporter *e, const tensor_job *j, export_sink *k, export_row *r) {
    bool same = j->w.fmt->id == j->it->fmt->id && !j->l;
    r->copied = same && j->it->fmt->id != FMT_NF4;
    if (r->copied) return copy_rows(j, k);
    if (copy_nf4(e, j)) return r->copied = true, 0;
    int64_t rows = j->w.rows, step = panel_rows(j->it);
    for (int64_t row = 0; row < rows; row += step)
        if (write_panel(e, j, row, rows - row < step ? rows - row : step, k, r)) return -1;
    if (j->it->fmt->id == FMT_NF4) finish_nf4(e, j->it);
    return 0;
}

static int find_importance(const exporter *e, const export_item *it, float *weights, const float **found) {
    char name[160];
    const imatrix_entry *entry = NULL;
    *found = NULL;
    if (e->o->importance && it->p && name_to_gguf(it->name, name, sizeof name))
        entry = imatrix_find(e->o->importance, name);
    if (!entry) return 0;
    if (imatrix_weights(entry, it->cols, weights))
        return fail(EXIT_INPUT, "importance matrix: '%s' has %ld channels, the model has %ld: is it of another model?",
                    name, (long)entry->n, (long)it->cols);
    *found = weights;
    return 0;
}

int export_tensor(exporter *e, const export_item *it, export_sink *k) {
    tensor_job j = {.it = it, .heads = model_source_permuted(e->in.s, it->name)};
    weight stored;
    lora l;
    arena run = {0};
    export_row *r = &e->r->row[e->r->tensors++];
    bool quant = it->p && e->o->base != BASE_AS_IS;
    float *weights = xcalloc((size_t)it->cols, sizeof *weights);
    *r = (export_row){.fmt = it->fmt, .rows = it->rows, .cols = it->cols, .merged = it->p && it->p->lora};
    memcpy(r->name, it->name, sizeof r->name);
    int bad = model_source_weight(e->in.s, it->name, it->rows, it->cols, &stored) ||
              (r->merged && read_lora(e, it, &l)) || find_importance(e, it, weights, &j.importance);
    if (!bad) {
        j.w = stored, j.l = r->merged ? &l : NULL;
        quant = quant && stored.fmt->id != FMT_NF4; /* a base in NF4 is what training saw */
        if (quant) bad = quantise_base(e, it->p, &j.w, j.heads, &run);
        if (quant) j.heads = 0, file_drop(stored.data, (uint64_t)weight_bytes(&stored));
        if (!bad) bad = write_tensor(e, &j, k, r);
        file_drop(stored.data, (uint64_t)weight_bytes(&stored));
    }
    if (!bad && quant) {
        if (!run.base) file_drop(j.w.data, (uint64_t)weight_bytes(&j.w));
        free((void *)(uintptr_t)j.w.meta);
    }
    arena_close(&run);
    free(weights);
    e->r->merged += r->merged;
    if (!bad && e->o->progress) e->o->progress(e->o->ctx, ++e->done, e->n);
    return bad ? -1 : 0;
}

/* ---- the report ---- */

void export_report_free(export_report *r) {
    free(r->row);
    *r = (export_report){0};
}

double export_row_ratio(const export_row *r) { return r->error_sq > 0 ? sqrt(r->update_sq / r->error_sq) : 0; }

double export_row_kept(const export_row *r) { return r->update_sq > 0 ? 1 + r->error_update / r->update_sq : 1; }
