/* Opening a model's files: hyperparameters and tensors under Hugging Face names, headers only. Every tensor that the
 * hyperparameters ask for is looked up at once, so that a model that cannot work is refused before anything is done. */
#include "core/error.h"
#include "core/num.h"
#include "model/names.h"
#include "model/source_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- keys, for messages ---- */

typedef enum { KEY_DIM, KEY_LAYERS, KEY_HEADS, KEY_KV_HEADS, KEY_HEAD_DIM, KEYS } hparam_key;

static const struct {
    const char *hf, *gguf; /* a GGUF key is preceded by the architecture */
} key_names[KEYS] = {
    [KEY_DIM] = {"hidden_size", "embedding_length"},
    [KEY_LAYERS] = {"num_hidden_layers", "block_count"},
    [KEY_HEADS] = {"num_attention_heads", "attention.head_count"},
    [KEY_KV_HEADS] = {"num_key_value_heads", "attention.head_count_kv"},
    [KEY_HEAD_DIM] = {"head_dim", "attention.key_length"},
};

static const char *const size_names[SIZES][2] = {
    [SIZE_VOCAB] = {"vocab_size", "rows of token_embd.weight"},
    [SIZE_DIM] = {"hidden_size", "embedding_length"},
    [SIZE_FFN] = {"intermediate_size", "feed_forward_length"},
    [SIZE_Q] = {"num_attention_heads * head_dim", "attention.head_count * attention.key_length"},
    [SIZE_KV] = {"num_key_value_heads * head_dim", "attention.head_count_kv * attention.key_length"},
    [SIZE_HEAD] = {"head_dim", "attention.key_length"},
};

static const char *key_name(const model_source *s, hparam_key key, char buf[static 96]) {
    snprintf(buf, 96, "%s%s%s", s->is_gguf ? s->fam->gguf : "", s->is_gguf ? "." : "",
             s->is_gguf ? key_names[key].gguf : key_names[key].hf);
    return buf;
}

static int fail_key(const model_source *s, hparam_key key, int64_t found, const char *expected) {
    char name[96];
    return fail(EXIT_INPUT, "%s%s: key '%s': found %ld, expected %s", s->path, s->is_gguf ? "" : "/config.json",
                key_name(s, key, name), (long)found, expected);
}

static int check_sizes(model_source *s) {
    hparams *hp = &s->hp;
    char expected[192], other[96];
    if (hp->kv_heads > hp->heads || hp->heads % hp->kv_heads) {
        snprintf(expected, sizeof expected, "a divisor of '%s', which is %ld", key_name(s, KEY_HEADS, other),
                 (long)hp->heads);
        return fail_key(s, KEY_KV_HEADS, hp->kv_heads, expected);
    }
    if (!hp->head_dim && hp->dim % hp->heads) {
        snprintf(expected, sizeof expected, "a divisor of '%s', which is %ld", key_name(s, KEY_DIM, other),
                 (long)hp->dim);
        return fail_key(s, KEY_HEADS, hp->heads, expected);
    }
    if (!hp->head_dim) hp->head_dim = hp->dim / hp->heads;
    if (hp->head_dim % 2 == 0 && hp->head_dim <= HEAD_DIM_MAX) return 0;
    snprintf(expected, sizeof expected, "an even number from 2 to %d (%ld / %ld heads when it is not given)",
             HEAD_DIM_MAX, (long)hp->dim, (long)hp->heads);
    return fail_key(s, KEY_HEAD_DIM, hp->head_dim, expected);
}

/* ---- a stored tensor ---- */

typedef struct {
    char name[256]; /* in the file */
    int dims;
    int64_t shape[ST_DIMS_MAX]; /* Hugging Face's order: rows first */
    const weight_format *fmt;   /* NULL: not one that is read */
    const char *type;
    const void *data;
    const nf4_source *nf4; /* or NULL */
} stored;

static void name_in_file(const model_source *s, const char *hf_name, char *out, size_t size) {
    if (!s->is_gguf)
        snprintf(out, size, "%s", hf_name);
    else
        CHECK(name_to_gguf(hf_name, out, size), "no GGUF name for %s", hf_name);
}

static int st_format(st_dtype t) {
    return t == ST_F32 ? FMT_F32 : t == ST_F16 ? FMT_F16 : t == ST_BF16 ? FMT_BF16 : -1;
}

static int64_t size_value(const hparams *hp, name_size size) {
    const int64_t values[SIZES] = {
        0, hp->vocab, hp->dim, hp->ffn, hp->heads * hp->head_dim, hp->kv_heads * hp->head_dim, hp->head_dim};
    return values[size];
}

/* The shape that a tensor would have, if the model has it. */
static bool find_assumed(const model_source *s, const char *hf_name, stored *t) {
    char name[256];
    bool layered, found = false;
    name_size rows, cols;
    int layer = 0;
    if (!name_known(hf_name, false, s->fam->has, &layer) || layer >= s->hp.layers) return false;
    if (s->hp.tied && !strcmp(hf_name, NAME_HEAD)) return false;
    for (int i = 0; !found && name_hf(i, layer < 0 ? 0 : layer, name, sizeof name, &layered); i++)
        if ((found = !strcmp(name, hf_name))) name_shape(i, &rows, &cols);
    if (!found) return false;
    snprintf(t->name, sizeof t->name, "%s", hf_name);
    t->dims = rows ? 2 : 1, t->fmt = s->assumed, t->type = s->assumed->name, t->nf4 = NULL;
    t->data =
        (const char *)s + (strcmp(hf_name, NAME_HEAD) ? 0 : 64); /* never read; the head's is not the embedding's */
    t->shape[0] = size_value(&s->hp, rows ? rows : cols), t->shape[1] = size_value(&s->hp, cols);
    return true;
}

static bool find(const model_source *s, const char *hf_name, stored *t) {
    if (s->assumed) return find_assumed(s, hf_name, t);
    name_in_file(s, hf_name, t->name, sizeof t->name);
    t->nf4 = s->is_gguf ? NULL : source_nf4_find(s, t->name);
    if (t->nf4) {
        weight w;
        source_nf4_weight(t->nf4, &w);
        t->dims = 2, t->shape[0] = w.rows, t->shape[1] = w.cols, t->fmt = w.fmt, t->type = "NF4", t->data = w.data;
        return true;
    }
    if (s->is_gguf) {
        const gguf_tensor *g = gguf_tensor_find(&s->g, t->name);
        if (!g) return false;
        t->dims = g->dims, t->data = g->data;
        for (int i = 0; i < g->dims; i++) t->shape[i] = g->ne[g->dims - 1 - i];
        t->fmt = format_by_ggml(g->ggml_type), t->type = ggml_type_name(g->ggml_type);
        return true;
    }
    const st_tensor *f = safetensors_find(&s->st, t->name);
    if (!f) return false;
    t->dims = f->dims, t->data = f->data;
    memcpy(t->shape, f->shape, sizeof t->shape);
    int id = st_format(f->dtype);
    t->fmt = id < 0 ? NULL : &weight_formats[id], t->type = st_dtype_name(f->dtype);
    return true;
}

/* "[64, 128]"; with reverse "ne = {128, 64}", as tools for GGUF print it */
static const char *shape_text(int dims, const int64_t *shape, bool reverse, char buf[static 256]) {
    size_t n = (size_t)snprintf(buf, 256, reverse ? "ne = {" : "[");
    for (int i = 0; i < dims; i++)
        n += (size_t)snprintf(buf + n, 256 - n, "%s%ld", i ? ", " : "", (long)shape[reverse ? dims - 1 - i : i]);
    snprintf(buf + n, 256 - n, reverse ? "}" : "]");
    return buf;
}

/* rows 0: a vector of cols elements. why: where the expected numbers come from, or "". */
static int check_stored(const model_source *s, const stored *t, int64_t rows, int64_t cols, const char *why) {
    int64_t want[2] = {rows ? rows : cols, cols};
    int dims = rows ? 2 : 1;
    if (t->dims != dims || memcmp(t->shape, want, (size_t)dims * sizeof *want) != 0) {
        char a[256], b[256], c[256], d[256];
        if (!s->is_gguf)
            return fail(EXIT_INPUT, "%s: tensor '%s': found shape %s, expected %s%s", s->path, t->name,
                        shape_text(t->dims, t->shape, false, a), shape_text(dims, want, false, b), why);
        return fail(EXIT_INPUT, "%s: tensor '%s': found shape %s (%s), expected %s (%s)%s", s->path, t->name,
                    shape_text(t->dims, t->shape, false, a), shape_text(t->dims, t->shape, true, b),
                    shape_text(dims, want, false, c), shape_text(dims, want, true, d), why);
    }
    if (t->fmt) return 0;
    return fail(EXIT_INPUT, "%s: tensor '%s': found type %s, expected %s", s->path, t->name, t->type,
                s->is_gguf ? "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K or Q6_K" : "F32, F16 or BF16");
}

bool model_source_has(const model_source *s, const char *hf_name) {
    char name[256];
    stored t;
    if (s->assumed) return find_assumed(s, hf_name, &t);
    if (!s->is_gguf) return safetensors_find(&s->st, hf_name);
    return name_to_gguf(hf_name, name, sizeof name) && gguf_tensor_find(&s->g, name);
}

int model_source_permuted(const model_source *s, const char *hf_name) {
    if (!s->is_gguf || !s->fam->gguf_permuted) return 0;
    return strstr(hf_name, ".q_proj.") ? (int)s->hp.heads : strstr(hf_name, ".k_proj.") ? (int)s->hp.kv_heads : 0;
}

int model_source_weight(const model_source *s, const char *hf_name, int64_t rows, int64_t cols, weight *w) {
    stored t;
    if (!find(s, hf_name, &t))
        return fail(EXIT_INPUT, "%s: tensor '%s' is missing", s->path, s->assumed ? hf_name : t.name);
    if (check_stored(s, &t, rows, cols, "")) return -1;
    *w = (weight){t.fmt, rows ? rows : 1, cols, 1, t.data, NULL};
    if (t.nf4) source_nf4_weight(t.nf4, w);
    return 0;
}

/* ---- all tensors ---- */

void model_source_shape(const model_source *s, int pattern, int64_t *rows, int64_t *cols) {
    name_size r, c;
    name_shape(pattern, &r, &c);
    *rows = size_value(&s->hp, r), *cols = size_value(&s->hp, c);
}

static int fail_missing(const model_source *s, const char *name, bool layered) {
    char key[96];
    if (layered)
        return fail(EXIT_INPUT, "%s: tensor '%s' is missing; '%s' is %ld", s->path, name, key_name(s, KEY_LAYERS, key),
                    (long)s->hp.layers);
    return fail(EXIT_INPUT, "%s: tensor '%s' is missing%s", s->path, name,
                strcmp(name, NAME_HEAD) ? "" : "; 'tie_word_embeddings' is false");
}

static int check_pattern(const model_source *s, int pattern, int layer) {
    char hf_name[256], why[192];
    bool layered;
    stored t;
    name_size rows, cols;
    name_hf(pattern, layer, hf_name, sizeof hf_name, &layered);
    if (!find(s, hf_name, &t)) return fail_missing(s, t.name, layered);
    name_shape(pattern, &rows, &cols);
    const char *row_name = size_names[rows][s->is_gguf], *col_name = size_names[cols][s->is_gguf];
    snprintf(why, sizeof why, rows ? " = [%s, %s]" : " = [%s%s]", rows ? row_name : "", col_name);
    return check_stored(s, &t, size_value(&s->hp, rows), size_value(&s->hp, cols), why);
}

static int check_needed(const model_source *s) {
    char name[256];
    bool layered;
    for (int i = 0; name_hf(i, 0, name, sizeof name, &layered); i++) {
        if ((s->hp.tied && !strcmp(name, NAME_HEAD)) || !name_used(i, s->fam->has)) continue;
        for (int layer = 0; layer < (layered ? s->hp.layers : 1); layer++)
            if (check_pattern(s, i, layer)) return -1;
    }
    return 0;
}

/* A tensor of a layer that no layer here has would change the result if it were computed: a bias, a norm, an expert. */
static int check_extra(const model_source *s, const char *name, bool *used) {
    char key[96];
    int layer;
    *used = name_known(name, s->is_gguf, s->fam->has, &layer);
    if (*used && layer >= s->hp.layers)
        return fail(EXIT_INPUT, "%s: tensor '%s' is beyond the last layer: '%s' is %ld", s->path, name,
                    key_name(s, KEY_LAYERS, key), (long)s->hp.layers);
    if (*used)
        *used = s->is_gguf || !s->hp.tied || strcmp(name, NAME_HEAD) != 0; /* a tied head is the embedding */
    else if (strstr(name, "rotary_emb.inv_freq") || (!s->is_gguf && source_nf4_part(s, name)))
        *used = true; /* written by old transformers, recomputed by all */
    else if (name_in_layer(name, s->is_gguf))
        return fail(EXIT_INPUT,
                    "%s: tensor '%s' is none that a layer of '%s' has: without it the model would not be this one",
                    s->path, name, s->fam->name);
    return 0;
}

static int check_unused(const model_source *s) {
    enum { LISTED = 8 };
    int unused = 0, n = s->is_gguf ? s->g.n_tensors : s->st.n;
    char list[1024] = "";
    size_t at = 0;
    for (int i = 0; i < n; i++) {
        const char *name = s->is_gguf ? s->g.tensors[i].name : s->st.tensors[i].name;
        bool used;
        if (check_extra(s, name, &used)) return -1;
        if (used || unused++ >= LISTED || at >= sizeof list) continue;
        at += (size_t)snprintf(list + at, sizeof list - at, "%s%s", unused > 1 ? ", " : "", name);
    }
    if (unused)
        fprintf(stderr, "note: %s: %d tensors are not used: %s%s\n", s->path, unused, list,
                unused > LISTED ? ", ..." : "");
    return 0;
}

int model_source_open(model_source *s, const char *path) {
    *s = (model_source){.path = xstrdup(path)};
    if (path_is_dir(path) ? source_open_dir(s) : source_open_gguf(s)) return -1;
    if (check_sizes(s) || check_needed(s) || check_unused(s)) return -1;
    const char *note = s->is_gguf ? s->g.note : s->st.note;
    if (note) fprintf(stderr, "note: %s\n", note);
    return 0;
}

int model_source_open_shapes(model_source *s, const char *path) {
    if (!path_is_dir(path) || source_has_weights(path)) return model_source_open(s, path);
    *s = (model_source){.path = xstrdup(path)};
    return source_open_config(s) || check_sizes(s) ? -1 : 0;
}

void model_source_close(model_source *s) {
    if (s->is_gguf)
        gguf_close(&s->g);
    else
        safetensors_close(&s->st);
    source_nf4_close(s);
    free(s->path);
    *s = (model_source){0};
}
