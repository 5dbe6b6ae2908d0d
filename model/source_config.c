/* A Hugging Face directory: hyperparameters from config.json under the key names of transformers 4 and 5.
 *
 * transformers writes null for what was not set, so null is absent for every key that may be absent. What would change
 * the maths and is not built is refused by name: a model is computed as its file says or not at all. */
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "model/names.h"
#include "model/source_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The object without its nulls; borrows the values. */
static json_t *without_nulls(json_t *o) {
    const char *key;
    json_t *v, *given = json_object();
    json_object_foreach(o, key, v) {
        if (!json_is_null(v)) json_object_set_nocheck(given, key, v);
    }
    return given;
}

/* ---- rotary embedding ---- */

/* One object of rope parameters. Without a type it may hold nothing that a scaling would need. */
static int read_rope_object(const char *where, const char *name, const json_t *r, hparams *hp) {
    static const char *const types[] = {"rope_type", "type"}, *const scales[] = {"factor", "partial_rotary_factor"};
    const char *type;
    for (int i = 0; i < 2; i++) {
        if (json_get_string_or(where, r, types[i], "default", &type)) return -1;
        if (strcmp(type, "default") != 0)
            return fail(EXIT_INPUT, "%s: key '%s': rope type '%s' is not supported; supported: default", where, name,
                        type);
    }
    for (int i = 0; i < 2; i++) {
        double scale;
        if (json_get_real_or(where, r, scales[i], -THETA_MAX, THETA_MAX, 1, &scale)) return -1;
        if (scale != 1)
            return fail(EXIT_INPUT, "%s: key '%s': %s %g is not supported; supported: 1", where, name, scales[i],
                        scale);
    }
    return json_get_real_or(where, r, "rope_theta", 1, THETA_MAX, hp->rope_theta, &hp->rope_theta);
}

static int read_rope(const char *where, const json_t *cfg, hparams *hp) {
    static const char *const keys[] = {"rope_scaling", "rope_parameters"}; /* transformers 4, 5 */
    double part;
    if (json_get_real_or(where, cfg, "rope_theta", 1, THETA_MAX, 10000, &hp->rope_theta)) return -1;
    if (json_get_real_or(where, cfg, "partial_rotary_factor", 0, 1, 1, &part)) return -1;
    if (part != 1)
        return fail(EXIT_INPUT, "%s: key 'partial_rotary_factor': %g is not supported; supported: 1", where, part);
    for (int i = 0; i < 2; i++) {
        json_t *r = json_object_get(cfg, keys[i]);
        if (!r) continue;
        if (!json_is_object(r))
            return fail(EXIT_INPUT, "%s: key '%s': found %s, expected an object", where, keys[i], json_kind(r));
        json_t *given = without_nulls(r);
        int bad = read_rope_object(where, keys[i], given, hp);
        json_decref(given);
        if (bad) return -1;
    }
    return 0;
}

/* ---- the rest ---- */

/* bitsandbytes' NF4 is read (source_nf4.c), nothing else that is quantised. */
static int refuse_quantised(const char *where, const json_t *q) {
    if (!q) return 0;
    const json_t *type = json_object_get(q, "bnb_4bit_quant_type"), *method = json_object_get(q, "quant_method");
    if (json_is_true(json_object_get(q, "load_in_4bit")) && json_is_string(type) &&
        !strcmp(json_string_value(type), "nf4") &&
        (!method || (json_is_string(method) && !strcmp(json_string_value(method), "bitsandbytes"))))
        return 0;
    return fail(
        EXIT_INPUT,
        "%s: key 'quantization_config': of checkpoints that are already quantised only bitsandbytes' NF4 is read "
        "from safetensors; use the 16-bit checkpoint, or a GGUF file",
        where);
}

/* Qwen2's class has its biases whatever the file says of them. */
static int refuse_flags(const char *where, const json_t *cfg, const family *fam) {
    static const char *const flags[] = {"attention_bias", "mlp_bias"};
    for (int i = fam->has & HAS_QKV_BIAS ? 1 : 0; i < 2; i++) {
        bool on;
        if (json_get_bool_or(where, cfg, flags[i], false, &on)) return -1;
        if (on) return fail(EXIT_INPUT, "%s: key '%s': true is not supported for this family", where, flags[i]);
    }
    const char *act;
    if (json_get_string_or(where, cfg, "hidden_act", "silu", &act)) return -1;
    if (strcmp(act, "silu") != 0)
        return fail(EXIT_INPUT, "%s: key 'hidden_act': '%s' is not supported; supported: silu", where, act);
    if (refuse_quantised(where, json_object_get(cfg, "quantization_config"))) return -1;
    if (json_object_get(cfg, "auto_map"))
        fprintf(stderr, "note: %s: key 'auto_map' names code that came with the model; it is never run\n", where);
    return 0;
}

/* Required keys are read from cfg, where null is a wrong type; the others from what is left without nulls. */
static int read_sizes(const char *where, const json_t *cfg, const json_t *given, const family *fam, hparams *hp) {
    int64_t kv_heads = json_object_get(cfg, "num_key_value_heads") ? 0 : fam->kv_heads; /* null: as many as heads */
    return json_get_int(where, cfg, "vocab_size", 1, VOCAB_LIMIT, &hp->vocab) ||
           json_get_int(where, cfg, "hidden_size", 1, DIM_LIMIT, &hp->dim) ||
           json_get_int(where, cfg, "intermediate_size", 1, DIM_LIMIT, &hp->ffn) ||
           json_get_int(where, cfg, "num_hidden_layers", 1, NAMES_LAYERS_MAX, &hp->layers) ||
           json_get_int(where, cfg, "num_attention_heads", 1, HEADS_LIMIT, &hp->heads) ||
           json_get_int_or(where, given, "num_key_value_heads", 1, HEADS_LIMIT, kv_heads ? kv_heads : hp->heads,
                           &hp->kv_heads) ||
           json_get_int_or(where, given, "head_dim", 1, DIM_LIMIT, fam->head_dim, &hp->head_dim) ||
           json_get_int_or(where, given, "max_position_embeddings", 1, CONTEXT_LIMIT, fam->context, &hp->context) ||
           json_get_real_or(where, given, "rms_norm_eps", EPS_MIN, EPS_MAX, 1e-6, &hp->norm_eps) ||
           json_get_bool_or(where, given, "tie_word_embeddings", false, &hp->tied);
}

/* layer_types, where it is given: the first layer with a window, and every one above it. */
static int read_layer_types(const char *where, const json_t *given, hparams *hp) {
    static const char *const types[] = {"full_attention", "sliding_attention"};
    const json_t *list = json_object_get(given, "layer_types"), *v;
    size_t i;
    if (!list) return 0;
    if (!json_is_array(list) || json_array_size(list) != (size_t)hp->layers)
        return fail(EXIT_INPUT,
                    "%s: key 'layer_types': found %s of %zu, expected a list of 'num_hidden_layers' (%ld) names", where,
                    json_kind(list), json_array_size(list), (long)hp->layers);
    hp->window_from = hp->layers;
    json_array_foreach(list, i, v) {
        bool near = json_is_string(v) && !strcmp(json_string_value(v), types[1]);
        if (!near && (!json_is_string(v) || strcmp(json_string_value(v), types[0]) != 0))
            return fail(EXIT_INPUT, "%s: key 'layer_types': layer %zu is '%.64s', expected %s or %s", where, i,
                        json_is_string(v) ? json_string_value(v) : json_kind(v), types[0], types[1]);
        if (near && hp->window_from == hp->layers) hp->window_from = (int64_t)i;
        if (!near && hp->window_from < hp->layers)
            return fail(EXIT_INPUT,
                        "%s: key 'layer_types': full attention above a sliding window (layer %zu) is not supported",
                        where, i);
    }
    return 0;
}

/* sliding_window counts the token itself. A file without the key has the class's 4096, one with null has none. */
static int read_window(const char *where, const json_t *cfg, const json_t *given, const family *fam, hparams *hp) {
    int64_t silent = json_object_get(cfg, "sliding_window") ? 0 : 4096;
    bool on = true;
    if (fam->window == WINDOW_NONE) return 0;
    if (fam->window == WINDOW_LAST &&
        (json_get_bool_or(where, given, "use_sliding_window", false, &on) ||
         json_get_int_or(where, given, "max_window_layers", 0, CONTEXT_LIMIT, 28, &hp->window_from) ||
         read_layer_types(where, given, hp)))
        return -1;
    if (on && json_get_int_or(where, given, "sliding_window", 1, CONTEXT_LIMIT, silent, &hp->window)) return -1;
    if (!hp->window && json_object_get(given, "layer_types") && hp->window_from < hp->layers &&
        fam->window == WINDOW_LAST)
        return fail(EXIT_INPUT,
                    "%s: key 'layer_types': a sliding window in layer %ld, but 'use_sliding_window' is false "
                    "or 'sliding_window' null",
                    where, (long)hp->window_from);
    if (hp->window_from >= hp->layers) hp->window = 0;
    if (!hp->window) hp->window_from = 0;
    return 0;
}

static int fail_family(const char *where, const char *key, const char *found) {
    char list[512];
    family_list(list, sizeof list, false);
    return fail(EXIT_INPUT, "%s: key '%s': '%.64s' is not supported; supported: %s", where, key, found, list);
}

/* A file of the right type may still hold another head than a language model's. */
static int check_architectures(const char *where, const json_t *given, const family *fam) {
    const json_t *list = json_object_get(given, "architectures"), *name;
    size_t i;
    if (!list) return 0;
    if (!json_is_array(list))
        return fail(EXIT_INPUT, "%s: key 'architectures': found %s, expected a list of class names", where,
                    json_kind(list));
    json_array_foreach(list, i, name) {
        if (json_is_string(name) && !strcmp(json_string_value(name), fam->class_name)) return 0;
    }
    name = json_array_get(list, 0);
    return fail(EXIT_INPUT, "%s: key 'architectures': found %.64s, expected %s", where,
                json_is_string(name) ? json_string_value(name) : json_kind(name), fam->class_name);
}

static int read_given(model_source *s, const char *where, const json_t *cfg, const json_t *given) {
    const char *type;
    if (json_get_string_or(where, given, "model_type", "(missing)", &type)) return -1;
    s->fam = family_by_name(type);
    if (!s->fam) return fail_family(where, "model_type", type);
    return check_architectures(where, given, s->fam) || read_sizes(where, cfg, given, s->fam, &s->hp) ||
                   read_rope(where, given, &s->hp) || read_window(where, cfg, given, s->fam, &s->hp) ||
                   refuse_flags(where, given, s->fam)
               ? -1
               : 0;
}

/* Type of the weights where there are none to look at; transformers 4 and 5 name the key differently. */
static int read_dtype(model_source *s, const char *where, const json_t *given) {
    static const struct {
        const char *name;
        int fmt;
    } types[] = {{"bfloat16", FMT_BF16}, {"float16", FMT_F16}, {"float32", FMT_F32}};
    const char *old, *name;
    if (json_get_string_or(where, given, "torch_dtype", "bfloat16", &old) ||
        json_get_string_or(where, given, "dtype", old, &name))
        return -1;
    for (int i = 0; i < 3; i++)
        if (!strcmp(name, types[i].name)) s->assumed = &weight_formats[types[i].fmt];
    return s->assumed
               ? 0
               : fail(EXIT_INPUT, "%s: key 'dtype': found '%.64s', expected bfloat16, float16 or float32", where, name);
}

static int read_config(model_source *s, const char *where, bool alone) {
    json_t *cfg = json_read(where);
    if (!cfg) return -1;
    json_t *given = without_nulls(cfg);
    int bad = read_given(s, where, cfg, given) || (alone && read_dtype(s, where, given));
    json_decref(given), json_decref(cfg);
    return bad ? -1 : 0;
}

int source_open_config(model_source *s) {
    char *where = path_join(s->path, "config.json");
    int bad = read_config(s, where, true);
    free(where);
    return bad;
}

bool source_has_weights(const char *dir) {
    static const char *const files[] = {"model.safetensors", "model.safetensors.index.json"};
    bool found = false;
    for (int i = 0; i < 2; i++) {
        char *path = path_join(dir, files[i]);
        found |= path_exists(path);
        free(path);
    }
    return found;
}

int source_open_dir(model_source *s) {
    char *where = path_join(s->path, "config.json");
    int bad = read_config(s, where, false);
    free(where);
    return bad || safetensors_open_dir(&s->st, s->path, "model") || source_nf4_open(s) ? -1 : 0;
}
