/* adapter_config.json, PEFT's LoraConfig (peft/tuners/lora/config.py): what decides the maths is read or refused by
 * name, everything else is ignored; what is written is what PEFT writes for plain LoRA. */
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/safetensors.h"
#include "core/text.h"
#include "peft/adapter.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <math.h>
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CONFIG_FILE "adapter_config.json"

const char *const base_quant_names[BASE_QUANTS] = {"none", "nf4", "nf4-double"};

void lora_config_free(lora_config *l) {
    for (int i = 0; i < l->targets.n; i++) free(l->targets.item[i]);
    free(l->targets.item);
    free(l->base_model), free(l->where);
    *l = (lora_config){0};
}

float lora_config_scale(const lora_config *l) {
    return (float)(l->alpha / (l->rslora ? sqrt((double)l->r) : (double)l->r));
}

void lora_config_add_target(lora_config *l, const char *name) {
    l->targets.item = xrealloc(l->targets.item, (size_t)l->targets.n + 1, sizeof *l->targets.item);
    l->targets.item[l->targets.n++] = xstrdup(name);
}

static bool names(const string_list *s, const char *name) {
    for (int i = 0; i < s->n; i++)
        if (!strcmp(s->item[i], name)) return true;
    return false;
}

bool lora_config_names(const lora_config *l, const char *name) { return names(&l->targets, name); }

/* ---- matching ---- */

static int fail_pattern(const lora_config *l, const char *what) {
    return l->where ? fail(EXIT_INPUT, "%s: key 'target_modules': pattern '%s': %s", l->where, l->targets.item[0], what)
                    : fail(EXIT_USAGE, "lora_target_modules: pattern '%s': %s", l->targets.item[0], what);
}

static int matches_pattern(const lora_config *l, const char *pattern, const char *path) {
    int code;
    PCRE2_SIZE at;
    pcre2_code *re = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                                   PCRE2_ANCHORED | PCRE2_ENDANCHORED | PCRE2_UTF, &code, &at, NULL);
    if (!re) {
        char what[200];
        PCRE2_UCHAR why[160];
        pcre2_get_error_message(code, why, sizeof why);
        snprintf(what, sizeof what, "%s at character %zu", (char *)why, (size_t)at);
        return fail_pattern(l, what);
    }
    pcre2_match_data *m = pcre2_match_data_create_from_pattern(re, NULL);
    int rc = pcre2_match(re, (PCRE2_SPTR)path, PCRE2_ZERO_TERMINATED, 0, 0, m, NULL);
    pcre2_match_data_free(m);
    pcre2_code_free(re);
    if (rc < PCRE2_ERROR_NOMATCH) return fail_pattern(l, "match limit exceeded");
    return rc > 0;
}

static bool matches_name(const char *name, const char *path) {
    size_t n = strlen(name), p = strlen(path);
    return n <= p && !strcmp(path + p - n, name) && (n == p || path[p - n - 1] == '.');
}

int lora_config_matches(const lora_config *l, const char *path) {
    if (l->all_linear) return 1;
    for (int i = 0; i < l->targets.n; i++) {
        int matched = l->regex ? matches_pattern(l, l->targets.item[i], path) : matches_name(l->targets.item[i], path);
        if (matched) return matched;
    }
    return 0;
}

/* ---- reading ---- */

static bool is_off(const json_t *v) {
    return !v || json_is_null(v) || json_is_false(v) || (json_is_object(v) && !json_object_size(v)) ||
           (json_is_array(v) && !json_array_size(v)) || (json_is_string(v) && !strcmp(json_string_value(v), "none"));
}

/* Initialisations that leave the base as it is; the others (PiSSA, OLoRA, CorDA, LoftQ ...) take a part out of it, so
 * that their A and B are no update of the weights in the model's own file. */
static int refuse_initialisation(const char *where, const json_t *v) {
    static const char *const harmless[] = {"gaussian", "eva", "orthogonal"};
    if (!v || json_is_null(v) || json_is_boolean(v)) return 0;
    if (!json_is_string(v))
        return fail(EXIT_INPUT, "%s: key 'init_lora_weights': found %s, expected true", where, json_kind(v));
    for (size_t i = 0; i < sizeof harmless / sizeof *harmless; i++)
        if (!strcmp(json_string_value(v), harmless[i])) return 0;
    return fail(EXIT_INPUT,
                "%s: key 'init_lora_weights': '%s' is not supported: it changes the base; save the adapter converted "
                "to plain LoRA",
                where, json_string_value(v));
}

/* Keys that change the maths and are not built here must be off. */
static int refuse_variants(const char *where, const json_t *o) {
    static const char *const keys[] = {"use_dora",
                                       "use_qalora",
                                       "use_bdlora",
                                       "kasa_config",
                                       "monteclora_config",
                                       "arrow_config",
                                       "alora_invocation_tokens",
                                       "layer_replication",
                                       "lora_bias",
                                       "target_parameters",
                                       "fan_in_fan_out",
                                       "bias",
                                       "rank_pattern",
                                       "alpha_pattern",
                                       "modules_to_save",
                                       "trainable_token_indices",
                                       "layers_to_transform",
                                       "exclude_modules"};
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
        if (!is_off(json_object_get(o, keys[i]))) {
            char *found = json_dumps(json_object_get(o, keys[i]), JSON_ENCODE_ANY | JSON_COMPACT);
            fail(EXIT_INPUT, "%s: key '%s': %s is not supported", where, keys[i], found ? found : "its value");
            free(found);
            return -1;
        }
    return 0;
}

static int read_targets(lora_config *l, const char *where, const json_t *v) {
    size_t i;
    const json_t *s;
    if (json_is_string(v)) {
        l->all_linear = !strcmp(json_string_value(v), "all-linear");
        l->regex = !l->all_linear;
        if (l->regex) lora_config_add_target(l, json_string_value(v));
        return l->regex && matches_pattern(l, l->targets.item[0], "") < 0 ? -1 : 0; /* does it compile? */
    }
    if (!json_is_array(v) || !json_array_size(v))
        return fail(EXIT_INPUT, "%s: key 'target_modules': found %s, expected a list of names or a pattern", where,
                    json_kind(v));
    json_array_foreach(v, i, s) {
        if (!json_is_string(s))
            return fail(EXIT_INPUT, "%s: key 'target_modules': entry %zu is %s, expected a string", where, i,
                        json_kind(s));
        lora_config_add_target(l, json_string_value(s));
    }
    return 0;
}

static int read_config(lora_config *l, const char *where, const json_t *o) {
    const char *type, *base = NULL;
    int64_t r;
    if (json_get_string_or(where, o, "peft_type", "", &type)) return -1;
    if (strcmp(type, "LORA"))
        return fail(EXIT_INPUT, "%s: key 'peft_type': '%s' is not supported; supported: LORA", where, type);
    bool named =
        !json_is_null(json_object_get(o, "base_model_name_or_path")); /* peft writes null for a model it was handed */
    if (refuse_variants(where, o) || refuse_initialisation(where, json_object_get(o, "init_lora_weights")) ||
        json_get_int_or(where, o, "r", 1, 65536, 8, &r) ||
        json_get_real_or(where, o, "lora_alpha", 1e-6, 1e6, 8, &l->alpha) ||
        json_get_real_or(where, o, "lora_dropout", 0, 0.999999, 0, &l->dropout) ||
        json_get_bool_or(where, o, "use_rslora", false, &l->rslora) ||
        (named && json_get_string_or(where, o, "base_model_name_or_path", NULL, &base)) ||
        read_targets(l, where, json_object_get(o, "target_modules")))
        return -1;
    l->r = (int)r;
    l->base_model = base ? xstrdup(base) : NULL;
    return 0;
}

/* Which base training saw, out of the header of the tensors' file. */
static int read_base(lora_config *l, const char *dir) {
    safetensors st;
    char *path = path_join(dir, ADAPTER_FILE);
    int bad = 0;
    if (path_exists(path) && !(bad = safetensors_open(&st, path))) {
        const char *found = base_quant_names[BASE_AS_IS];
        int quant = 0;
        for (int i = 0; i < st.n_meta; i++)
            if (!strcmp(st.meta_keys[i], ADAPTER_BASE_KEY)) found = st.meta_values[i];
        while (quant < BASE_QUANTS && strcmp(found, base_quant_names[quant])) quant++;
        if (quant == BASE_QUANTS)
            bad =
                fail(EXIT_INPUT, "%s: metadata '" ADAPTER_BASE_KEY "': '%s' is not known; known: none, nf4, nf4-double",
                     path, found);
        else
            l->base = (base_quant)quant;
        safetensors_close(&st);
    }
    free(path);
    return bad;
}

int lora_config_read(lora_config *l, const char *dir) {
    *l = (lora_config){0};
    if (!path_is_dir(dir)) return fail(EXIT_INPUT, "%s: not a directory; expected one with %s", dir, CONFIG_FILE);
    l->where = path_join(dir, CONFIG_FILE);
    json_t *o = json_read(l->where);
    int bad = !o || read_config(l, l->where, o) || read_base(l, dir);
    json_decref(o);
    if (bad) lora_config_free(l);
    return bad ? -1 : 0;
}

/* ---- from YAML ---- */

static int contradiction(const config *c, const char *key, const char *dir) {
    return fail(EXIT_USAGE,
                "%s: key '%s' contradicts %s/" CONFIG_FILE ": with lora_model_dir rank, alpha, targets and rsLoRA "
                "come from the directory; leave the key out",
                c->path ? c->path : "command line", key, dir);
}

/* A name has none of these; a scalar that has one is a pattern, as every scalar is in PEFT. A plain name as a scalar is
 * a name: as a pattern it could only match a module at the top of the model. */
static bool is_pattern(const string_list *s) { return s->scalar && s->n == 1 && strpbrk(s->item[0], "*+?()[]{}|\\^$"); }

static bool same_targets(const lora_config *l, const string_list *want) {
    if (l->regex != is_pattern(want)) return false;
    for (int i = 0; i < want->n; i++)
        if (!names(&l->targets, want->item[i])) return false;
    for (int i = 0; i < l->targets.n; i++)
        if (!names(want, l->targets.item[i])) return false;
    return true;
}

static void set_base(lora_config *l, const config *c) {
    free(l->base_model);
    l->base_model = c->base_model ? xstrdup(c->base_model) : NULL;
    l->base = !c->load_in_4bit ? BASE_AS_IS : c->bnb_4bit_use_double_quant ? BASE_NF4_DOUBLE : BASE_NF4;
}

static int continue_from(lora_config *l, const config *c) {
    const char *dir = c->lora_model_dir, *odd = NULL;
    const string_list *want = &c->lora_target_modules;
    if (lora_config_read(l, dir)) return -1;
    l->every = (config_is_set(c, "lora_target_linear") && c->lora_target_linear) || names(want, "all-linear");
    if (config_is_set(c, "lora_r") && c->lora_r != l->r)
        odd = "lora_r";
    else if (config_is_set(c, "lora_alpha") && c->lora_alpha != l->alpha)
        odd = "lora_alpha";
    else if (config_is_set(c, "peft_use_rslora") && c->peft_use_rslora != l->rslora)
        odd = "peft_use_rslora";
    else if (want->n && !l->every && !same_targets(l, want))
        odd = "lora_target_modules";
    if (odd) {
        contradiction(c, odd, dir);
        lora_config_free(l);
        return -1;
    }
    if (config_is_set(c, "lora_dropout"))
        l->dropout = c->lora_dropout; /* of training, not of the adapter: the run's own */
    set_base(l, c);
    return 0;
}

int lora_config_from(lora_config *l, const config *c) {
    *l = (lora_config){0};
    if (c->lora_model_dir) return continue_from(l, c);
    l->r = (int)c->lora_r, l->alpha = c->lora_alpha, l->dropout = c->lora_dropout, l->rslora = c->peft_use_rslora;
    l->all_linear = c->lora_target_linear || names(&c->lora_target_modules, "all-linear");
    l->regex = !l->all_linear && is_pattern(&c->lora_target_modules);
    for (int i = 0; i < c->lora_target_modules.n && !l->all_linear; i++)
        lora_config_add_target(l, c->lora_target_modules.item[i]);
    if (!l->all_linear && !l->targets.n)
        lora_config_add_target(l, "q_proj"), lora_config_add_target(l, "v_proj"); /* PEFT's default for llama */
    set_base(l, c);
    return 0;
}

/* ---- writing ---- */

int lora_config_write(const lora_config *l, const char *dir) {
    CHECK(l->targets.n, "no targets to write: adapter_attach resolves all-linear");
    if (l->base_model && utf8_valid((const uint8_t *)l->base_model, strlen(l->base_model)) < strlen(l->base_model))
        return fail(EXIT_USAGE, "base_model: its path is not UTF-8, which " CONFIG_FILE " must be: rename it");
    json_t *targets = json_array();
    for (int i = 0; i < l->targets.n; i++) json_array_append_new(targets, json_string(l->targets.item[i]));
    if (l->regex) {
        json_decref(targets);
        targets = json_string(l->targets.item[0]);
    }
    json_t *alpha = l->alpha == floor(l->alpha) ? json_integer((json_int_t)l->alpha) : json_real(l->alpha);
    json_t *o =
        json_pack("{s:{},s:n,s:s?,s:s,s:b,s:b,s:b,s:n,s:n,s:{},s:o,s:b,s:f,s:n,s:s,s:i,s:{},s:n,s:o,s:s,s:b,s:b}",
                  "alpha_pattern", "auto_mapping", "base_model_name_or_path", l->base_model, "bias", "none",
                  "fan_in_fan_out", 0, "inference_mode", 1, "init_lora_weights", 1, "layers_pattern",
                  "layers_to_transform", "loftq_config", "lora_alpha", alpha, "lora_bias", 0, "lora_dropout",
                  l->dropout, "modules_to_save", "peft_type", "LORA", "r", l->r, "rank_pattern", "revision",
                  "target_modules", targets, "task_type", "CAUSAL_LM", "use_dora", 0, "use_rslora", l->rslora);
    CHECK(o, "json_pack of %s", CONFIG_FILE);
    char *text = json_dumps(o, JSON_INDENT(2) | JSON_SORT_KEYS), *path = path_join(dir, CONFIG_FILE);
    CHECK(text, "json_dumps of %s", CONFIG_FILE);
    int bad = file_save(path, text, strlen(text));
    free(text), free(path);
    json_decref(o);
    return bad;
}
