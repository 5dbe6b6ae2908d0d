/* Reading adapters of both containers. */
#include "model/lora_file.h"
#include "core/error.h"
#include "model/rows.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RANK_MAX = 1 << 16, PATH_BYTES = 160 };

/* One pair of a GGUF file. */
typedef struct {
    char module[PATH_BYTES]; /* Hugging Face path */
    int64_t rows, cols, r;
    int heads;
    const gguf_tensor *a, *b;
} lora_pair;

typedef struct {
    lora_file *f;
    const model_source *s;
    lora_pair *pair;
    int n;
    int64_t rank; /* the largest */
} reader;

static bool is_norm(const char *name) {
    size_t n = strlen(name);
    return n > 12 && !strcmp(name + n - 12, "_norm.weight");
}

/* ---- which modules ---- */

static int fail_tensor(const reader *r, const char *name, const char *what) {
    return fail(EXIT_INPUT, "%s: tensor '%s' %s", r->f->path, name, what);
}

/* The linear layer that a GGUF name stands for. */
static bool find_module(const model_source *s, const char *gguf_name, lora_pair *p) {
    char name[PATH_BYTES], other[PATH_BYTES];
    bool layered;
    for (int i = 0; name_hf(i, 0, name, sizeof name, &layered); i++) {
        if (!layered || !name_used(i, s->fam->has)) continue;
        for (int layer = 0; layer < s->hp.layers; layer++) {
            name_hf(i, layer, name, sizeof name, &layered);
            if (!name_to_gguf(name, other, sizeof other) || strcmp(other, gguf_name) != 0) continue;
            model_source_shape(s, i, &p->rows, &p->cols);
            size_t n = strlen(name) - strlen(".weight");
            memcpy(p->module, name, n), p->module[n] = 0;
            return p->rows && strstr(name, "_proj.");
        }
    }
    return false;
}

/* "BASE.lora_a" or "BASE.lora_b": the base name's length and which; -1: neither. */
static int half_of(const char *name, size_t *n) {
    static const char *const halves[] = {".lora_a", ".lora_b"};
    size_t len = strlen(name);
    for (int h = 0; h < 2; h++)
        if (len > 7 && !strcmp(name + len - 7, halves[h])) return *n = len - 7, h;
    return -1;
}

static int take_half(reader *r, const gguf_tensor *t, int half, const char *base) {
    lora_pair p = {.rows = 0};
    int i = 0;
    if (!find_module(r->s, base, &p))
        return fail_tensor(r, t->name, "has no place in this base model: is it an adapter of another model?");
    while (i < r->n && strcmp(r->pair[i].module, p.module) != 0) i++;
    if (i == r->n) {
        char *tensor = xprintf("%s.weight", p.module);
        p.heads = r->s->fam->gguf_permuted ? strstr(tensor, ".q_proj.")   ? (int)r->s->hp.heads
                                             : strstr(tensor, ".k_proj.") ? (int)r->s->hp.kv_heads
                                                                          : 0
                                           : 0;
        free(tensor);
        r->pair = xrealloc(r->pair, (size_t)r->n + 1, sizeof *r->pair);
        r->pair[r->n++] = p;
    }
    if (half)
        r->pair[i].b = t;
    else
        r->pair[i].a = t;
    return 0;
}

static int list_pairs(reader *r) {
    int norms = 0;
    for (int i = 0; i < r->f->g.n_tensors; i++) {
        const gguf_tensor *t = &r->f->g.tensors[i];
        size_t n;
        int half = half_of(t->name, &n);
        if (half < 0 && is_norm(t->name) && ++norms) continue;
        if (half < 0) return fail_tensor(r, t->name, "is neither a lora_a nor a lora_b");
        if (!format_by_ggml(t->ggml_type) || t->dims != 2)
            return fail_tensor(r, t->name, "is no matrix of a type that is read here");
        char *base = xprintf("%.*s", (int)n, t->name);
        int bad = take_half(r, t, half, base);
        free(base);
        if (bad) return -1;
    }
    if (norms)
        return fail(EXIT_INPUT, "%s: %d trained norms: only pairs of low rank can be applied", r->f->path, norms);
    return r->n ? 0 : fail(EXIT_INPUT, "%s: no tensors", r->f->path);
}

static int check_pair(const reader *r, const lora_pair *p) {
    char what[256];
    if (!p->a || !p->b) {
        snprintf(what, sizeof what, "has no %s beside it", p->a ? "lora_b" : "lora_a");
        return fail_tensor(r, (p->a ? p->a : p->b)->name, what);
    }
    int64_t rank = p->a->ne[1];
    if (p->a->ne[0] != p->cols) {
        snprintf(what, sizeof what,
                 "has rows of %ld, the base model's '%s' takes %ld: is it an adapter of another model?",
                 (long)p->a->ne[0], p->module, (long)p->cols);
        return fail_tensor(r, p->a->name, what);
    }
    if (p->b->ne[1] != p->rows) {
        snprintf(what, sizeof what, "has %ld rows, the base model's '%s' gives %ld: is it an adapter of another model?",
                 (long)p->b->ne[1], p->module, (long)p->rows);
        return fail_tensor(r, p->b->name, what);
    }
    if (p->b->ne[0] == rank && rank <= RANK_MAX && rank <= p->rows && rank <= p->cols) return 0;
    snprintf(what, sizeof what, "is of rank %ld, its lora_a of rank %ld, of at most %ld", (long)p->b->ne[0], (long)rank,
             (long)(p->rows < p->cols ? p->rows : p->cols));
    return fail_tensor(r, p->b->name, what);
}

/* ---- as PEFT's tensors ---- */

static float *keep(lora_file *f, int64_t n) {
    float *x = xcalloc((size_t)n, sizeof *x);
    f->made = xrealloc(f->made, (size_t)f->n_made + 1, sizeof *f->made);
    return f->made[f->n_made++] = x;
}

static void add_tensor(lora_file *f, char *name, int64_t rows, int64_t cols, const float *data) {
    f->st.tensors = xrealloc(f->st.tensors, (size_t)f->st.n + 1, sizeof *f->st.tensors);
    f->st.tensors[f->st.n++] =
        (st_tensor){name, ST_F32, 2, {rows, cols}, (const uint8_t *)data, (uint64_t)(rows * cols) * sizeof *data, 0};
}

/* A [rank, cols] and B [rows, rank], of which the pair's own r are filled; B's scale makes up for the padding. */
static void make_pair(reader *r, const lora_pair *p) {
    int64_t own = p->a->ne[1];
    const weight a = {format_by_ggml(p->a->ggml_type), own, p->cols, 1, p->a->data, NULL},
                 b = {format_by_ggml(p->b->ggml_type), p->rows, own, 1, p->b->data, NULL};
    float *fa = keep(r->f, r->rank * p->cols), *fb = keep(r->f, p->rows * r->rank);
    const float grow = (float)r->rank / (float)own;
    a.fmt->dequant(&a, 0, own * p->cols, fa);
    for (int64_t i = 0; i < p->rows; i++) {
        float *row = fb + i * r->rank;
        b.fmt->dequant(&b, rows_file_row(i, p->heads, p->rows) * own, own, row);
        for (int64_t k = 0; k < own && own != r->rank; k++) row[k] *= grow;
    }
    add_tensor(r->f, xprintf("base_model.model.%s.lora_A.weight", p->module), r->rank, p->cols, fa);
    add_tensor(r->f, xprintf("base_model.model.%s.lora_B.weight", p->module), p->rows, r->rank, fb);
    lora_config_add_target(&r->f->cfg, p->module);
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const st_tensor *)a)->name, ((const st_tensor *)b)->name);
}

static int make_all(reader *r, double alpha) {
    for (int i = 0; i < r->n; i++) {
        if (check_pair(r, &r->pair[i])) return -1;
        if (r->pair[i].a->ne[1] > r->rank) r->rank = r->pair[i].a->ne[1];
    }
    lora_file *f = r->f;
    f->cfg.r = (int)r->rank, f->cfg.alpha = alpha != 0 ? alpha : (double)r->rank;
    f->cfg.where = xstrdup(f->path);
    f->st.files = xcalloc(1, sizeof *f->st.files), f->st.n_files = 1;
    f->st.files[0].path = xstrdup(f->path); /* for messages: the mapping is g's */
    if (alpha == 0 || r->n == 0) {
        for (int i = 1; i < r->n; i++) /* then the scale is 1 whatever the rank, which padding would change */
            if (r->pair[i].a->ne[1] != r->pair[0].a->ne[1])
                return fail(EXIT_INPUT, "%s: alpha is 0 and ranks differ, which is not supported", f->path);
    }
    for (int i = 0; i < r->n; i++) make_pair(r, &r->pair[i]);
    qsort(f->st.tensors, (size_t)f->st.n, sizeof *f->st.tensors, by_name);
    return 0;
}

static int check_text(const gguf *g, const char *key, const char *want) {
    gguf_str s;
    if (gguf_get_string(g, key, &s)) return -1;
    if (s.n == strlen(want) && !memcmp(s.data, want, s.n)) return 0;
    return fail(EXIT_INPUT, "%s: key '%s': found '%.*s', expected '%s'", g->file.path, key, (int)(s.n < 64 ? s.n : 64),
                s.data, want);
}

static int read_base(lora_file *f) {
    gguf_str s;
    if (gguf_get_string_or(&f->g, ADAPTER_BASE_KEY, (gguf_str){"none", 4}, &s)) return -1;
    for (int i = 0; i < BASE_QUANTS; i++)
        if (strlen(base_quant_names[i]) == s.n && !memcmp(base_quant_names[i], s.data, s.n))
            return f->cfg.base = (base_quant)i, 0;
    return fail(EXIT_INPUT, "%s: key '" ADAPTER_BASE_KEY "': '%.*s' is not known; known: none, nf4, nf4-double",
                f->path, (int)(s.n < 64 ? s.n : 64), s.data);
}

static int read_gguf(lora_file *f, const model_source *s) {
    reader r = {.f = f, .s = s};
    double alpha;
    if (gguf_open(&f->g, f->path)) return -1;
    f->is_gguf = true;
    if (check_text(&f->g, "general.type", "adapter") || check_text(&f->g, "adapter.type", "lora") ||
        check_text(&f->g, "general.architecture", s->fam->gguf) || read_base(f) ||
        gguf_get_real_or(&f->g, "adapter.lora.alpha", 0, 1e9, 0, &alpha))
        return -1;
    if (gguf_find(&f->g, "adapter.alora.invocation_tokens"))
        return fail(EXIT_INPUT, "%s: key 'adapter.alora.invocation_tokens': activated LoRA is not supported", f->path);
    int bad = list_pairs(&r) || make_all(&r, alpha);
    free(r.pair);
    return bad ? -1 : 0;
}

int lora_file_open(lora_file *f, const model_source *s, const char *path) {
    *f = (lora_file){.path = xstrdup(path)};
    return path_is_dir(path) || !path_exists(path) ? lora_config_read(&f->cfg, path) : read_gguf(f, s);
}

int lora_file_check(lora_file *f, const adapter *ad) {
    return f->is_gguf ? adapter_file_check(ad, &f->st, f->path) : adapter_file_open(ad, f->path, &f->st);
}

int lora_file_load(lora_file *f, adapter *ad) {
    return lora_file_check(f, ad) || adapter_load_from(ad, &f->st) ? -1 : 0;
}

void lora_file_close(lora_file *f) {
    lora_config_free(&f->cfg);
    safetensors_close(&f->st);
    if (f->is_gguf) gguf_close(&f->g);
    for (int i = 0; i < f->n_made; i++) free(f->made[i]);
    free(f->made), free(f->path);
    *f = (lora_file){0};
}
