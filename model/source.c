/* Opening a model's files: hyperparameters and tensors under Hugging Face names, headers only. */
#include "core/error.h"
#include "core/json.h"
#include "core/num.h"
#include "model/model.h"
#include "model/names.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DIM_MAX (1 << 20)

/* ---- config.json (key names of transformers 4 and 5) ---- */

static int read_rope(const char *where, const json_t *cfg, hparams *hp) {
    if (json_get_real_or(where, cfg, "rope_theta", 1, 1e12, 10000, &hp->rope_theta)) return -1;
    static const char *const keys[] = {"rope_scaling", "rope_parameters"}; /* transformers 4, 5 */
    for (int i = 0; i < 2; i++) {
        const json_t *r = json_object_get(cfg, keys[i]);
        if (!r || json_is_null(r)) continue;
        if (!json_is_object(r))
            return fail(EXIT_INPUT, "%s: key '%s': found %s, expected an object", where, keys[i], json_kind(r));
        const char *type;
        if (json_get_string_or(where, r, json_object_get(r, "rope_type") ? "rope_type" : "type", "default", &type)) return -1;
        if (strcmp(type, "default"))
            return fail(EXIT_INPUT, "%s: key '%s': rope type '%s' is not supported; supported: default", where, keys[i], type);
        if (json_get_real_or(where, r, "rope_theta", 1, 1e12, hp->rope_theta, &hp->rope_theta)) return -1;
    }
    return 0;
}

/* What a llama file may say that would change the maths and is not built: refused by name. */
static int refuse_flags(const char *where, const json_t *cfg) {
    static const char *const flags[] = {"attention_bias", "mlp_bias"};
    for (int i = 0; i < 2; i++) {
        bool on;
        if (json_get_bool_or(where, cfg, flags[i], false, &on)) return -1;
        if (on) return fail(EXIT_INPUT, "%s: key '%s': true is not supported for this family", where, flags[i]);
    }
    const char *act;
    if (json_get_string_or(where, cfg, "hidden_act", "silu", &act)) return -1;
    if (strcmp(act, "silu")) return fail(EXIT_INPUT, "%s: key 'hidden_act': '%s' is not supported; supported: silu", where, act);
    if (json_object_get(cfg, "quantization_config") && !json_is_null(json_object_get(cfg, "quantization_config")))
        return fail(EXIT_INPUT, "%s: key 'quantization_config': checkpoints that are already quantised are not read from "
                                "safetensors; use the 16-bit checkpoint, or a GGUF file",
                    where);
    return 0;
}

static int read_sizes(const char *where, const json_t *cfg, hparams *hp) {
    return json_get_int(where, cfg, "vocab_size", 1, 1 << 24, &hp->vocab) ||
           json_get_int(where, cfg, "hidden_size", 1, DIM_MAX, &hp->dim) ||
           json_get_int(where, cfg, "intermediate_size", 1, DIM_MAX, &hp->ffn) ||
           json_get_int(where, cfg, "num_hidden_layers", 1, NAMES_LAYERS_MAX, &hp->layers) ||
           json_get_int(where, cfg, "num_attention_heads", 1, 65536, &hp->heads) ||
           json_get_int_or(where, cfg, "num_key_value_heads", 1, 65536, hp->heads, &hp->kv_heads) ||
           json_get_int_or(where, cfg, "head_dim", 1, DIM_MAX, hp->dim / hp->heads, &hp->head_dim) ||
           json_get_int_or(where, cfg, "max_position_embeddings", 1, 1 << 28, 2048, &hp->context) ||
           json_get_real_or(where, cfg, "rms_norm_eps", 1e-12, 1e-1, 1e-6, &hp->norm_eps) ||
           json_get_bool_or(where, cfg, "tie_word_embeddings", false, &hp->tied);
}

static int read_config(model_source *s, const char *where, const json_t *cfg) {
    const char *type;
    if (json_get_string_or(where, cfg, "model_type", NULL, &type)) return -1;
    s->fam = type ? family_by_name(type) : NULL;
    if (!s->fam) {
        char list[512];
        family_list(list, sizeof list, false);
        return fail(EXIT_INPUT, "%s: key 'model_type': '%s' is not supported; supported: %s", where, type ? type : "(missing)", list);
    }
    return read_sizes(where, cfg, &s->hp) || read_rope(where, cfg, &s->hp) || refuse_flags(where, cfg) ? -1 : 0;
}

static int open_dir(model_source *s) {
    char *path = path_join(s->path, "config.json");
    json_t *cfg = json_read(path);
    int bad = !cfg || read_config(s, path, cfg);
    json_decref(cfg);
    free(path);
    return bad || safetensors_open_dir(&s->st, s->path, "model") ? -1 : 0;
}

/* ---- GGUF ---- */

static int gguf_int(const model_source *s, const char *suffix, int64_t lo, int64_t hi, int64_t def, int64_t *out) {
    char key[96];
    snprintf(key, sizeof key, "%s.%s", s->fam->gguf, suffix);
    return def < 0 ? gguf_get_int(&s->g, key, lo, hi, out) : gguf_get_int_or(&s->g, key, lo, hi, def, out);
}

static int gguf_real(const model_source *s, const char *suffix, double lo, double hi, double def, double *out) {
    char key[96];
    snprintf(key, sizeof key, "%s.%s", s->fam->gguf, suffix);
    return gguf_get_real_or(&s->g, key, lo, hi, def, out);
}

static int gguf_rope(const model_source *s) {
    char key[96];
    gguf_str none = {"none", 4}, type;
    snprintf(key, sizeof key, "%s.rope.scaling.type", s->fam->gguf);
    if (gguf_get_string_or(&s->g, key, none, &type)) return -1;
    if (type.n != 4 || memcmp(type.data, "none", 4))
        return fail(EXIT_INPUT, "%s: key '%s': rope scaling '%.*s' is not supported; supported: none", s->path, key, (int)type.n,
                    type.data);
    if (gguf_tensor_find(&s->g, "rope_freqs.weight"))
        return fail(EXIT_INPUT, "%s: tensor 'rope_freqs.weight': rope scaling is not supported", s->path);
    return 0;
}

static int open_gguf(model_source *s) {
    hparams *hp = &s->hp;
    gguf_str arch = {"", 0};
    s->is_gguf = true;
    if (gguf_open(&s->g, s->path) || gguf_get_string_or(&s->g, "general.architecture", arch, &arch)) return -1;
    s->fam = family_by_gguf(arch.data, arch.n);
    if (!s->fam) {
        char list[512];
        family_list(list, sizeof list, true);
        return fail(EXIT_INPUT, "%s: key 'general.architecture': '%.*s' is not supported; supported: %s", s->path,
                    (int)(arch.n < 64 ? arch.n : 64), arch.data, list);
    }
    const gguf_tensor *embed = gguf_tensor_find(&s->g, "token_embd.weight");
    if (!embed || embed->dims != 2)
        return fail(EXIT_INPUT, "%s: tensor 'token_embd.weight' is %s", s->path, embed ? "not a matrix" : "missing");
    hp->vocab = embed->ne[1];
    hp->tied = !gguf_tensor_find(&s->g, "output.weight");
    if (gguf_int(s, "embedding_length", 1, DIM_MAX, -1, &hp->dim) || gguf_int(s, "feed_forward_length", 1, DIM_MAX, -1, &hp->ffn) ||
        gguf_int(s, "block_count", 1, NAMES_LAYERS_MAX, -1, &hp->layers) ||
        gguf_int(s, "attention.head_count", 1, 65536, -1, &hp->heads) ||
        gguf_int(s, "attention.head_count_kv", 1, 65536, hp->heads, &hp->kv_heads) ||
        gguf_int(s, "attention.key_length", 1, DIM_MAX, hp->dim / hp->heads, &hp->head_dim) ||
        gguf_int(s, "context_length", 1, 1 << 28, 2048, &hp->context) ||
        gguf_real(s, "attention.layer_norm_rms_epsilon", 1e-12, 1e-1, 1e-5, &hp->norm_eps) ||
        gguf_real(s, "rope.freq_base", 1, 1e12, 10000, &hp->rope_theta))
        return -1;
    int64_t rope_dim, value_dim;
    if (gguf_int(s, "rope.dimension_count", 1, DIM_MAX, hp->head_dim, &rope_dim) ||
        gguf_int(s, "attention.value_length", 1, DIM_MAX, hp->head_dim, &value_dim) || gguf_rope(s))
        return -1;
    if (rope_dim != hp->head_dim || value_dim != hp->head_dim)
        return fail(EXIT_INPUT, "%s: rope dimension %ld and value length %ld differ from the head's %ld: not supported", s->path,
                    (long)rope_dim, (long)value_dim, (long)hp->head_dim);
    return 0;
}

/* ---- both ---- */

static int check_sizes(const model_source *s) {
    const hparams *hp = &s->hp;
    if (hp->heads % hp->kv_heads)
        return fail(EXIT_INPUT, "%s: %ld attention heads are no multiple of %ld key/value heads", s->path, (long)hp->heads,
                    (long)hp->kv_heads);
    if (hp->head_dim % 2 || hp->head_dim < 2 || hp->head_dim > HEAD_DIM_MAX)
        return fail(EXIT_INPUT, "%s: head size %ld: expected an even number from 2 to %d", s->path, (long)hp->head_dim, HEAD_DIM_MAX);
    return 0;
}

static void note_unused(const model_source *s) {
    int unused = 0, n = s->is_gguf ? s->g.n_tensors : s->st.n;
    const char *first = NULL;
    for (int i = 0; i < n; i++) {
        int layer;
        const char *name = s->is_gguf ? s->g.tensors[i].name : s->st.tensors[i].name;
        if (strstr(name, "rotary_emb.inv_freq")) continue; /* written by old transformers, recomputed by all */
        if (name_known(name, s->is_gguf, &layer) && layer < s->hp.layers) continue;
        if (!unused++) first = name;
    }
    if (unused) fprintf(stderr, "note: %s: %d tensors are not used, '%s' first\n", s->path, unused, first);
}

int model_source_open(model_source *s, const char *path) {
    *s = (model_source){.path = xstrdup(path)};
    if (path_is_dir(path) ? open_dir(s) : open_gguf(s)) return -1;
    if (check_sizes(s)) return -1;
    note_unused(s);
    return 0;
}

void model_source_close(model_source *s) {
    if (s->is_gguf) gguf_close(&s->g);
    else safetensors_close(&s->st);
    free(s->path);
    *s = (model_source){0};
}

bool model_source_has(const model_source *s, const char *hf_name) {
    char name[256];
    if (!s->is_gguf) return safetensors_find(&s->st, hf_name);
    return name_to_gguf(hf_name, name, sizeof name) && gguf_tensor_find(&s->g, name);
}

int model_source_permuted(const model_source *s, const char *hf_name) {
    if (!s->is_gguf || !s->fam->gguf_permuted) return 0;
    return strstr(hf_name, ".q_proj.") ? (int)s->hp.heads : strstr(hf_name, ".k_proj.") ? (int)s->hp.kv_heads : 0;
}

static int st_format(st_dtype t) { return t == ST_F32 ? FMT_F32 : t == ST_F16 ? FMT_F16 : t == ST_BF16 ? FMT_BF16 : -1; }

/* rows == 0: a vector of cols elements. */
static int check_shape(const model_source *s, const char *name, int dims, int64_t a, int64_t b, int64_t rows, int64_t cols) {
    bool right = rows ? dims == 2 && a == rows && b == cols : dims == 1 && a == cols;
    if (right) return 0;
    char want[64];
    snprintf(want, sizeof want, rows ? "[%ld, %ld]" : "[%.0ld%ld]", (long)rows, (long)cols);
    return dims == 2 ? fail(EXIT_INPUT, "%s: tensor '%s': shape [%ld, %ld], expected %s", s->path, name, (long)a, (long)b, want)
                     : fail(EXIT_INPUT, "%s: tensor '%s': %d dimensions with %ld first, expected %s", s->path, name, dims, (long)a, want);
}

int model_source_weight(const model_source *s, const char *hf_name, int64_t rows, int64_t cols, weight *w) {
    char name[256];
    const weight_format *fmt;
    const void *data;
    if (s->is_gguf) {
        CHECK(name_to_gguf(hf_name, name, sizeof name), "no GGUF name for %s", hf_name);
        const gguf_tensor *t = gguf_tensor_find(&s->g, name);
        if (!t) return fail(EXIT_INPUT, "%s: tensor '%s' is missing", s->path, name);
        int64_t a = t->dims == 2 ? t->ne[1] : t->ne[0], b = t->ne[0];
        if (check_shape(s, name, t->dims, a, b, rows, cols)) return -1;
        fmt = format_by_ggml(t->ggml_type), data = t->data;
        if (!fmt) return fail(EXIT_INPUT, "%s: tensor '%s': type %s is not supported", s->path, name, ggml_type_name(t->ggml_type));
    } else {
        const st_tensor *t = safetensors_find(&s->st, hf_name);
        if (!t) return fail(EXIT_INPUT, "%s: tensor '%s' is missing", s->path, hf_name);
        if (check_shape(s, hf_name, t->dims, t->shape[0], t->dims > 1 ? t->shape[1] : 0, rows, cols)) return -1;
        int id = st_format(t->dtype);
        if (id < 0) return fail(EXIT_INPUT, "%s: tensor '%s': dtype %s, expected F32, F16 or BF16", s->path, hf_name, st_dtype_name(t->dtype));
        fmt = &weight_formats[id], data = t->data;
    }
    *w = (weight){fmt, rows ? rows : 1, cols, 1, data, NULL};
    return 0;
}
