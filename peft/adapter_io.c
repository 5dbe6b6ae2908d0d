/* adapter_model.safetensors: one tensor per view, under PEFT's names, F32 (read: F32, F16 or BF16). Every tensor of the
 * file is used and every view is found, or nothing is loaded: an adapter that is ignored in part is a wrong model. Data
 * are copied, so that the file may be replaced later. */
#include "core/error.h"
#include "core/num.h"
#include "core/safetensors.h"
#include "peft/adapter.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *shape_text(const st_tensor *t) {
    char *s = xprintf("[");
    for (int i = 0; i < t->dims; i++) {
        char *more = xprintf("%s%s%ld", s, i ? ", " : "", (long)t->shape[i]);
        free(s), s = more;
    }
    char *closed = xprintf("%s]", s);
    free(s);
    return closed;
}

static int check_shape(const adapter_view *v, const st_tensor *t, const char *where) {
    const param *p = &v->p;
    if (t->dtype != ST_F32 && t->dtype != ST_F16 && t->dtype != ST_BF16)
        return fail(EXIT_INPUT, "%s: tensor '%s': dtype %s, expected F32, F16 or BF16", where, v->name,
                    st_dtype_name(t->dtype));
    if (t->dims == 2 && t->shape[0] == p->rows && t->shape[1] == p->cols) return 0;
    char *shape = shape_text(t);
    fail(EXIT_INPUT, "%s: tensor '%s': shape %s, expected [%ld, %ld] by adapter_config.json and the base model", where,
         v->name, shape, (long)p->rows, (long)p->cols);
    free(shape);
    return -1;
}

int adapter_file_read(const safetensors *st, const adapter_view *v, float *out) {
    const st_tensor *t = safetensors_find(st, v->name);
    int64_t n = v->p.rows * v->p.cols;
    if (t->dtype == ST_F32)
        memcpy(out, t->data, (size_t)n * sizeof(float));
    else
        for (int64_t i = 0; i < n; i++) {
            uint16_t h;
            memcpy(&h, t->data + 2 * i, 2);
            out[i] = t->dtype == ST_F16 ? f16_to_float(h) : bf16_to_float(h);
        }
    for (int64_t i = 0; i < n; i++)
        if (!isfinite(out[i]))
            return fail(EXIT_INPUT, "%s: tensor '%s': element %ld is not finite", st->files[0].path, v->name, (long)i);
    return 0;
}

static bool has_view(const adapter *ad, const char *name) {
    for (int v = 0; v < ad->n_views; v++)
        if (!strcmp(ad->views[v].name, name)) return true;
    return false;
}

/* The file's tensors are the adapter's, all of them and no other. */
static int check_names(const adapter *ad, const safetensors *st, const char *where) {
    int found = 0, unused = 0;
    const char *missing = NULL;
    for (int v = 0; v < ad->n_views; v++)
        if (safetensors_find(st, ad->views[v].name))
            found++;
        else if (!missing)
            missing = ad->views[v].name;
    if (st->n > found) {
        while (has_view(ad, st->tensors[unused].name)) unused++;
        return fail(EXIT_INPUT,
                    "%s: tensor '%s' has no place in this base model with these target_modules (%d of its %d tensors "
                    "have none): is it an adapter of another model?",
                    where, st->tensors[unused].name, st->n - found, st->n);
    }
    if (missing)
        return fail(EXIT_INPUT, "%s: tensor '%s' is missing (%d of %d are there)", where, missing, found, ad->n_views);
    return 0;
}

/* Types may differ from tensor to tensor; then it is worth a line, because no trainer writes that. */
static void note_mixed(const safetensors *st, const char *where) {
    for (int i = 1; i < st->n; i++)
        if (st->tensors[i].dtype != st->tensors[0].dtype) {
            fprintf(stderr, "note: %s: tensors of several types (%s, %s): all are read as F32\n", where,
                    st_dtype_name(st->tensors[0].dtype), st_dtype_name(st->tensors[i].dtype));
            return;
        }
}

int adapter_file_check(const adapter *ad, const safetensors *st, const char *where) {
    int bad = check_names(ad, st, where);
    for (int v = 0; v < ad->n_views && !bad; v++)
        bad = check_shape(&ad->views[v], safetensors_find(st, ad->views[v].name), where);
    return bad;
}

int adapter_file_open(const adapter *ad, const char *dir, safetensors *st) {
    char *path = path_join(dir, ADAPTER_FILE), *pickle = path_join(dir, "adapter_model.bin");
    int bad = 0;
    *st = (safetensors){0};
    if (!path_exists(path) && path_exists(pickle))
        bad = fail(EXIT_INPUT, "%s: a pickle file is never read; save the adapter as safetensors", pickle);
    bad = bad || safetensors_open(st, path) || adapter_file_check(ad, st, path);
    if (!bad)
        note_mixed(st, path);
    else
        safetensors_close(st);
    free(path), free(pickle);
    return bad ? -1 : 0;
}

int adapter_load_from(adapter *ad, const safetensors *st) {
    float *all = xcalloc((size_t)ad->n, sizeof *all);
    int bad = 0;
    for (int v = 0; v < ad->n_views && !bad; v++)
        bad = adapter_file_read(st, &ad->views[v], all + (ad->views[v].p.val - ad->param));
    if (!bad) memory_put(ad->mem, ad->param, all, (size_t)ad->n * sizeof *all);
    free(all);
    return bad ? -1 : 0;
}

int adapter_load(adapter *ad, const char *dir) {
    safetensors st;
    if (adapter_file_open(ad, dir, &st)) return -1;
    int bad = adapter_load_from(ad, &st);
    safetensors_close(&st);
    return bad;
}

static int by_name(const void *a, const void *b) {
    return strcmp((*(const adapter_view *const *)a)->name, (*(const adapter_view *const *)b)->name);
}

int adapter_save_vector(const adapter *ad, const float *vector, const char *path) {
    const char *const metadata[] = {"format", "pt", ADAPTER_BASE_KEY, base_quant_names[ad->cfg.base]};
    size_t n = (size_t)ad->n_views;
    const adapter_view **order = xcalloc(n, sizeof *order); /* by name, as PEFT's own files */
    st_decl *decls = xcalloc(n, sizeof *decls);
    for (size_t v = 0; v < n; v++) order[v] = &ad->views[v];
    qsort(order, n, sizeof *order, by_name);
    for (size_t v = 0; v < n; v++)
        decls[v] = (st_decl){order[v]->name, ST_F32, 2, {order[v]->p.rows, order[v]->p.cols}};
    st_writer w;
    int bad = st_writer_open(&w, path, decls, ad->n_views, metadata, ad->cfg.base == BASE_AS_IS ? 1 : 2);
    if (!bad) {
        for (size_t v = 0; v < n && !bad; v++) {
            const param *p = &order[v]->p;
            bad = st_writer_data(&w, vector + (p->val - ad->param), (uint64_t)(p->rows * p->cols) * sizeof(float));
        }
        if (bad)
            st_writer_abandon(&w);
        else
            bad = st_writer_close(&w);
    }
    free(decls), free(order);
    return bad ? -1 : 0;
}

int adapter_save(const adapter *ad, const char *dir) {
    char *path = path_join(dir, ADAPTER_FILE);
    const size_t bytes = (size_t)ad->n * sizeof(float);
    void *copy = ad->mem ? xcalloc(bytes, 1) : NULL;
    const float *values = memory_view(ad->mem, ad->param, copy, bytes);
    int bad = path_make_dirs(dir) || adapter_save_vector(ad, values, path) || lora_config_write(&ad->cfg, dir);
    free(path), free(copy);
    return bad ? -1 : 0;
}
