/* Adapters against PEFT (tests/golden/make_adapter.py, make_tiny.py): which modules a target_modules chooses, PEFT's
 * own directories, ours written and read back, and every directory that must be refused, by the text of its one line.
 */
#include "core/error.h"
#include "core/json.h"
#include "core/num.h"
#include "core/rng.h"
#include "model/model.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <cmocka.h>

#define GOLDEN "tests/golden/"

/* The tiny model's projections (nothing of it is read) with room for an adapter. */
typedef struct {
    model_source src;
    model m;
    arena plan, run;
    adapter ad;
} fixture;

static void open_model(fixture *f, const char *name) {
    const model_options o = {.positions = 1};
    memset(f, 0, sizeof *f);
    if (model_source_open(&f->src, name)) fail_msg("%s", fail_text());
    arena_plan(&f->plan, "plan");
    assert_int_equal(arena_open(&f->run, "run", 4 << 20), 0);
    if (model_open(&f->m, &f->src, &o, &f->plan)) fail_msg("%s", fail_text());
}

static void close_model(fixture *f) {
    adapter_close(&f->ad);
    model_close(&f->m);
    arena_close(&f->run), arena_close(&f->plan);
    model_source_close(&f->src);
}

/* A new adapter on the same model. */
static int attach(fixture *f, lora_config *l) {
    adapter_close(&f->ad);
    arena_release(&f->run, 0);
    for (int g = 0; g < f->m.n_groups; g++)
        for (int i = 0; i < f->m.groups[g].n; i++) f->m.groups[g].p[i].lora = NULL;
    return adapter_attach(&f->ad, l, f->m.groups, f->m.n_groups, 3, true, &f->run);
}

static int load(fixture *f, const char *dir) {
    lora_config l;
    return lora_config_read(&l, dir) || attach(f, &l) || adapter_load(&f->ad, dir) ? -1 : 0;
}

static char *work_dir(void) {
    static char dir[] = "/tmp/test_adapter.XXXXXX";
    static bool made;
    if (!made) assert_non_null(mkdtemp(dir));
    made = true;
    return dir;
}

/* ---- which modules ---- */

static void test_targets(void **state) {
    (void)state;
    fixture f;
    file_map map;
    json_t *rows, *row, *v;
    size_t i, k;
    open_model(&f, GOLDEN "tiny_llama");
    assert_int_equal(file_open(&map, GOLDEN "adapter_targets.json"), 0);
    assert_non_null(rows = json_parse("targets", (const char *)map.data, map.size, 0));
    json_array_foreach(rows, i, row) {
        const json_t *t = json_object_get(row, "target_modules"), *want = json_object_get(row, "modules");
        lora_config l = {.r = 2, .alpha = 4, .where = xstrdup("peft's")};
        if (json_is_string(t) && !strcmp(json_string_value(t), "all-linear"))
            l.all_linear = true;
        else if (json_is_string(t))
            l.regex = true, lora_config_add_target(&l, json_string_value(t));
        else
            json_array_foreach(t, k, v) lora_config_add_target(&l, json_string_value(v));
        bool all = l.all_linear;
        if (attach(&f, &l)) {
            if (!json_is_null(want)) fail_msg("row %zu: %s", i, fail_text());
            fail_clear();
            continue;
        }
        if (json_is_null(want)) fail_msg("row %zu: peft refuses it", i);
        assert_int_equal(f.ad.n_views, 2 * json_array_size(want));
        json_array_foreach(want, k, v) {
            bool found = false;
            char *name = xprintf("base_model.model.%s.lora_B.weight", json_string_value(v));
            for (int j = 0; j < f.ad.n_views; j++) found |= !strcmp(f.ad.views[j].name, name);
            if (!found) fail_msg("row %zu: %s is not there", i, name);
            free(name);
        }
        if (all) { /* what is written must name the same modules */
            assert_false(f.ad.cfg.all_linear);
            assert_int_equal(f.ad.cfg.targets.n, 7);
        }
    }
    assert_int_equal(i, 22);
    json_decref(rows);
    file_close(&map);
    close_model(&f);
}

/* As a YAML file with these keys; r == -1 when it is refused. */
static lora_config from_yaml(const char *const *overrides, int n) {
    config c;
    lora_config l;
    if (config_open_to(&c, NULL, overrides, n, stderr)) fail_msg("%s", fail_text());
    if (lora_config_from(&l, &c)) l.r = -1;
    config_close(&c);
    return l;
}

static void test_yaml_targets(void **state) {
    (void)state;
    static const struct {
        const char *override;
        int n;
        bool regex, all;
    } cases[] = {
        {"lora_target_modules=q_proj", 1, false, false},
        {"lora_target_modules=[q_proj, v_proj]", 2, false, false},
        {"lora_target_modules=self_attn.q_proj", 1, false, false},
        {"lora_target_modules=.*q_proj", 1, true, false},
        {"lora_target_modules=['.*q_proj']", 1, false, false}, /* a list holds names, whatever they look like */
        {"lora_target_modules=all-linear", 0, false, true},
        {"lora_target_linear=true", 0, false, true},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        lora_config l = from_yaml(&cases[i].override, 1);
        if (l.targets.n != cases[i].n || l.regex != cases[i].regex || l.all_linear != cases[i].all)
            fail_msg("%s: %d targets, regex %d, all %d", cases[i].override, l.targets.n, l.regex, l.all_linear);
        lora_config_free(&l);
    }
    const char *const quant[] = {"load_in_4bit=true", "bnb_4bit_use_double_quant=false"};
    for (int n = 0; n < 3; n++) {
        static const base_quant want[] = {BASE_AS_IS, BASE_NF4_DOUBLE, BASE_NF4};
        lora_config l = from_yaml(quant, n);
        assert_int_equal(l.base, want[n]);
        lora_config_free(&l);
    }
}

static void refused_from_yaml(const char *override, const char *text) {
    fixture f;
    open_model(&f, GOLDEN "tiny_llama");
    lora_config l = from_yaml(&override, 1);
    assert_int_equal(attach(&f, &l), -1);
    if (strcmp(fail_text(), text)) fail_msg("%s:\n%s", override, fail_text());
    assert_int_equal(fail_code(), EXIT_USAGE);
    fail_clear();
    close_model(&f);
}

static void test_yaml_refusals(void **state) {
    (void)state;
    refused_from_yaml(
        "lora_target_modules=[q_proj, k_prj]",
        "lora_target_modules: name 'k_prj' matches no linear layer of this model; the nearest name is 'k_proj'");
    refused_from_yaml(
        "lora_target_modules=mlp.downproj",
        "lora_target_modules: name 'mlp.downproj' matches no linear layer of this model; the nearest name is 'down_proj'");
    refused_from_yaml("lora_target_modules=.*\\.(q",
                      "lora_target_modules: pattern '.*\\.(q': missing closing parenthesis at character 6");
    refused_from_yaml("lora_target_modules=.*\\.w_q",
                      "lora_target_modules: pattern '.*\\.w_q' matches no linear layer of this model; the "
                      "nearest name is 'q_proj'");
    refused_from_yaml("lora_r=33",
                      "lora_r: rank 33 is more than the smaller side of 'model.layers.0.self_attn.k_proj' [32, 64]");
}

/* ---- continuing ---- */

static void test_continue(void **state) {
    (void)state;
#define DIR "lora_model_dir=" GOLDEN "adapter_tied"
    static const struct {
        const char *key[3];
        bool right;
    } cases[] = {
        {{DIR, "seed=1", "learning_rate=1e-3"}, true},
        {{DIR, "lora_r=2", "lora_alpha=4"}, true},
        {{DIR, "lora_r=3", "seed=1"}, false},
        {{DIR, "lora_alpha=5", "seed=1"}, false},
        {{DIR, "peft_use_rslora=true", "seed=1"}, false},
        {{DIR, "lora_target_modules=[up_proj, o_proj, k_proj]", "lora_dropout=0.25"}, true},
        {{DIR, "lora_target_modules=[up_proj, o_proj]", "seed=1"}, false},
        {{DIR, "lora_target_modules=[up_proj, up_proj, o_proj]", "seed=1"}, false},
        {{DIR, "lora_target_modules=.*k_proj", "seed=1"}, false},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        lora_config l = from_yaml(cases[i].key, 3);
        if ((l.r > 0) != cases[i].right) fail_msg("case %zu: %s", i, fail_text());
        if (cases[i].right)
            assert_true(l.r == 2 && l.alpha == 4 && l.targets.n == 3);
        else
            assert_non_null(strstr(fail_text(), "contradicts " GOLDEN "adapter_tied/adapter_config.json"));
        if (!strcmp(cases[i].key[2], "lora_dropout=0.25")) assert_true(l.dropout == 0.25);
        if (cases[i].right) lora_config_free(&l);
        fail_clear();
    }
    /* all-linear against a directory that has fewer is only known at the model */
    const char *all[] = {DIR, "lora_target_linear=true"};
    fixture f;
    open_model(&f, GOLDEN "tiny_tied");
    lora_config l = from_yaml(all, 2);
    assert_int_equal(attach(&f, &l), -1);
    assert_string_equal(fail_text(),
                        GOLDEN "adapter_tied/adapter_config.json: its target_modules leave out "
                               "'model.layers.0.self_attn.q_proj', but the configuration asks for all linear layers");
    fail_clear();
    close_model(&f);
}

/* ---- reading PEFT's, writing ours ---- */

static const adapter_view *view(const adapter *ad, const char *module, char which) {
    char *name = xprintf("base_model.model.%s.lora_%c.weight", module, which);
    const adapter_view *found = NULL;
    for (int v = 0; v < ad->n_views; v++)
        if (!strcmp(ad->views[v].name, name)) found = &ad->views[v];
    free(name);
    assert_non_null(found);
    return found;
}

static void test_read_peft(void **state) {
    (void)state;
    fixture f;
    safetensors st;
    open_model(&f, GOLDEN "tiny_llama");
    if (load(&f, GOLDEN "adapter_peft")) fail_msg("%s", fail_text());
    assert_int_equal(f.ad.cfg.r, 3);
    assert_true(f.ad.cfg.rslora && f.ad.cfg.regex && f.ad.cfg.alpha == 5 && f.ad.cfg.dropout == 0.05);
    assert_true(fabsf(lora_config_scale(&f.ad.cfg) - 5 / sqrtf(3)) < 1e-6f);
    assert_int_equal(f.ad.n_views, 6);
    assert_int_equal(f.ad.n, 3 * (64 + 64 + 64 + 32 + 64 + 128));
    assert_int_equal(f.ad.cfg.base, BASE_AS_IS);
    /* every number, and where each module's pair lies */
    assert_int_equal(safetensors_open(&st, GOLDEN "adapter_peft/" ADAPTER_FILE), 0);
    for (int i = 0; i < st.n; i++) {
        const adapter_view *v = NULL;
        for (int k = 0; k < f.ad.n_views; k++)
            if (!strcmp(f.ad.views[k].name, st.tensors[i].name)) v = &f.ad.views[k];
        assert_non_null(v);
        for (int64_t e = 0; e < v->p.rows * v->p.cols; e++) {
            uint16_t h;
            memcpy(&h, st.tensors[i].data + 2 * e, 2);
            assert_true(v->p.val[e] == bf16_to_float(h) && v->p.val[e] != 0);
        }
    }
    safetensors_close(&st);
    const proj *down = &f.m.layers[1].down, *up = &f.m.layers[1].gate_up[1];
    assert_non_null(down->lora);
    assert_null(up->lora);
    assert_ptr_equal(down->lora->a.val, view(&f.ad, "model.layers.1.mlp.down_proj", 'A')->p.val);
    assert_ptr_equal(down->lora->b.val, view(&f.ad, "model.layers.1.mlp.down_proj", 'B')->p.val);
    close_model(&f);
}

/* What is written, for each way to name targets, is read back as the same adapter. */
static void round_trip(const char *override, base_quant base, int modules) {
    fixture f;
    char *dir = xprintf("%s/round", work_dir());
    open_model(&f, GOLDEN "tiny_llama");
    lora_config l = from_yaml(&override, 1);
    l.r = 4, l.alpha = 6.5, l.rslora = true, l.dropout = 0.125, l.base = base;
    l.base_model = xstrdup("a \"base\"");
    if (attach(&f, &l)) fail_msg("%s", fail_text());
    assert_int_equal(f.ad.n_loras, modules);
    adapter_init(&f.ad, 5);
    for (int v = 0; v < f.ad.n_views; v++) {
        const param *p = &f.ad.views[v].p;
        float bound = 1 / sqrtf((float)p->cols), most = 0;
        for (int64_t i = 0; i < p->rows * p->cols; i++) {
            if (v % 2) assert_true(p->val[i] == 0);
            most = fmaxf(most, fabsf(p->val[i]));
        }
        if (v % 2 == 0) assert_true(most <= bound && most > 0.9f * bound);
    }
    for (int64_t i = 0; i < f.ad.n; i++) f.ad.param[i] += 0.01f * rng_normal(9, 1, (uint64_t)i);
    if (adapter_save(&f.ad, dir)) fail_msg("%s", fail_text());
    int64_t n = f.ad.n;
    float *before = xcalloc((size_t)n, sizeof *before);
    memcpy(before, f.ad.param, (size_t)n * sizeof *before);
    memset(f.ad.param, 0, (size_t)n * sizeof *before);
    if (load(&f, dir)) fail_msg("%s", fail_text());
    assert_int_equal(f.ad.n, n);
    assert_memory_equal(f.ad.param, before, (size_t)n * sizeof *before);
    assert_true(f.ad.cfg.r == 4 && f.ad.cfg.alpha == 6.5 && f.ad.cfg.rslora && f.ad.cfg.dropout == 0.125);
    assert_int_equal(f.ad.cfg.base, base);
    assert_string_equal(f.ad.cfg.base_model, "a \"base\"");
    free(before), free(dir);
    close_model(&f);
}

static void test_round_trip(void **state) {
    (void)state;
    round_trip("lora_target_linear=true", BASE_AS_IS, 14);
    round_trip("lora_target_modules=[q_proj, down_proj]", BASE_NF4, 4);
    round_trip("lora_target_modules=.*1\\.mlp.*", BASE_NF4_DOUBLE, 3);
    round_trip("lora_target_modules=v_proj", BASE_NF4_DOUBLE, 2);
}

/* The keys of our adapter_config.json are PEFT's, with PEFT's values for plain LoRA. */
static void test_written_config(void **state) {
    (void)state;
    fixture f;
    char *dir = xprintf("%s/keys", work_dir()), *path = xprintf("%s/adapter_config.json", dir);
    open_model(&f, GOLDEN "tiny_llama");
    if (load(&f, GOLDEN "tiny_train/adapter_init") || adapter_save(&f.ad, dir)) fail_msg("%s", fail_text());
    json_t *ours = json_read(path), *theirs = json_read(GOLDEN "tiny_train/adapter_init/adapter_config.json"), *v;
    const char *key;
    json_object_foreach(ours, key, v) if (!json_equal(v, json_object_get(theirs, key)))
        fail_msg("key %s differs from peft's", key);
    assert_true(json_object_size(ours) >= 20);
    json_decref(ours), json_decref(theirs);
    free(dir), free(path);
    close_model(&f);
}

/* ---- refusals ---- */

typedef struct {
    const char *key, *value; /* JSON; NULL removes */
    const char *text;
} config_case;

/* peft's own directory with one key changed */
static void refused_config(const config_case *c) {
    fixture f;
    char *dir = xprintf("%s/config", work_dir()), *path = xprintf("%s/adapter_config.json", dir);
    json_t *o = json_read(GOLDEN "adapter_peft/adapter_config.json");
    file_map tensors;
    if (c->value)
        json_object_set_new(o, c->key, json_loads(c->value, JSON_DECODE_ANY, NULL));
    else
        json_object_del(o, c->key);
    char *text = json_dumps(o, 0);
    assert_int_equal(path_make_dirs(dir) || file_save(path, text, strlen(text)), 0);
    free(path);
    path = xprintf("%s/" ADAPTER_FILE, dir);
    assert_int_equal(file_open(&tensors, GOLDEN "adapter_peft/" ADAPTER_FILE), 0);
    assert_int_equal(file_save(path, tensors.data, tensors.size), 0);
    file_close(&tensors);
    open_model(&f, GOLDEN "tiny_llama");
    int bad = load(&f, dir);
    if (!c->text && bad) fail_msg("%s = %s: %s", c->key, c->value, fail_text());
    if (c->text) {
        if (!bad || !strstr(fail_text(), c->text))
            fail_msg("%s = %s: %s", c->key, c->value ? c->value : "(none)", fail_text());
        assert_int_equal(fail_code(), EXIT_INPUT);
        assert_memory_equal(fail_text(), dir, strlen(dir));
    }
    fail_clear();
    close_model(&f);
    json_decref(o);
    free(text), free(path), free(dir);
}

static void test_config_refusals(void **state) {
    (void)state;
    static const config_case cases[] = {
        {"unknown_key", "17", NULL},
        {"base_model_name_or_path", "null", NULL},
        {"use_dora", "false", NULL},
        {"init_lora_weights", "\"gaussian\"", NULL},
        {"lora_dropout", "0.5", NULL},
        {"peft_type", "\"IA3\"", "key 'peft_type': 'IA3' is not supported; supported: LORA"},
        {"peft_type", NULL, "key 'peft_type'"},
        {"use_dora", "true", "key 'use_dora': true is not supported"},
        {"rank_pattern", "{\"q_proj\": 8}", "key 'rank_pattern': {\"q_proj\":8} is not supported"},
        {"alpha_pattern", "{\"q_proj\": 8}", "key 'alpha_pattern'"},
        {"bias", "\"all\"", "key 'bias': \"all\" is not supported"},
        {"lora_bias", "true", "key 'lora_bias'"},
        {"fan_in_fan_out", "true", "key 'fan_in_fan_out'"},
        {"modules_to_save", "[\"lm_head\"]", "key 'modules_to_save': [\"lm_head\"] is not supported"},
        {"trainable_token_indices", "[1]", "key 'trainable_token_indices'"},
        {"layers_to_transform", "0", "key 'layers_to_transform': 0 is not supported"},
        {"layer_replication", "[[0, 2]]", "key 'layer_replication'"},
        {"target_parameters", "[\"x\"]", "key 'target_parameters'"},
        {"alora_invocation_tokens", "[1, 2]", "key 'alora_invocation_tokens'"},
        {"use_qalora", "true", "key 'use_qalora'"},
        {"init_lora_weights", "\"pissa\"", "key 'init_lora_weights': 'pissa' is not supported: it changes the base"},
        {"init_lora_weights", "3", "key 'init_lora_weights': found"},
        {"lora_alpha", "0", "key 'lora_alpha'"},
        {"lora_alpha", "-1", "key 'lora_alpha'"},
        {"lora_alpha", "\"8\"", "key 'lora_alpha'"},
        {"r", "0", "key 'r'"},
        {"r", "2.5", "key 'r'"},
        {"r", "65",
         "adapter_config.json: rank 65 is more than the smaller side of 'model.layers.1.self_attn.q_proj' [64, 64]"},
        {"r", "4", "shape [3, 64], expected [4, 64] by adapter_config.json and the base model"},
        {"target_modules", "7", "key 'target_modules': found"},
        {"target_modules", "null", "key 'target_modules': found null, expected a list of names or a pattern"},
        {"target_modules", "[]", "key 'target_modules'"},
        {"target_modules", "[\"q_proj\", 3]", "key 'target_modules': entry 1 is"},
        {"target_modules", "\"(q_proj\"",
         "key 'target_modules': pattern '(q_proj': missing closing parenthesis at character 7"},
        {"target_modules", "\"q_proj\"", "its target_modules name no linear layer of this model"},
        {"target_modules", "[\"v_proj\"]",
         "has no place in this base model with these target_modules (4 of its 6 tensors have none)"},
        {"target_modules", "\".*1.(self_attn.(q|v)|mlp.(up|down))_proj\"",
         "mlp.up_proj.lora_A.weight' is missing (6 of 8 are there)"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) refused_config(&cases[i]);
}

/* peft's directory with its tensors changed: one left out, one more, another shape, type or number, another metadata */
typedef struct {
    const char *drop, *add, *transpose;
    st_dtype dtype;
    float poison;
    const char *base, *text;
} tensor_case;

static void write_tensors(const char *path, const tensor_case *c) {
    safetensors st;
    st_decl decls[16];
    st_writer w;
    int n = 0, from[16];
    assert_int_equal(safetensors_open(&st, GOLDEN "adapter_peft/" ADAPTER_FILE), 0);
    for (int i = 0; i < st.n; i++) {
        const st_tensor *t = &st.tensors[i];
        if (c->drop && strstr(t->name, c->drop)) continue;
        bool flip = c->transpose && strstr(t->name, c->transpose);
        decls[n] = (st_decl){t->name, c->dtype, 2, {t->shape[flip], t->shape[!flip]}};
        from[n++] = i;
    }
    if (c->add) decls[n] = (st_decl){(char *)(uintptr_t)c->add, c->dtype, 2, {3, 64}}, from[n++] = 0;
    const char *const metadata[] = {"format", "pt", ADAPTER_BASE_KEY, c->base};
    assert_int_equal(st_writer_open(&w, path, decls, n, metadata, c->base ? 2 : 1), 0);
    for (int i = 0; i < n; i++) {
        const st_tensor *t = &st.tensors[from[i]];
        for (int64_t e = 0; e < decls[i].shape[0] * decls[i].shape[1]; e++) {
            uint16_t h;
            memcpy(&h, t->data + 2 * (e % (t->shape[0] * t->shape[1])), 2);
            float x = i == 1 && e == 5 && c->poison != 0 ? c->poison : bf16_to_float(h);
            uint64_t wide = bits_of(x);
            h = float_to_f16(x);
            if (c->dtype == ST_F16)
                st_writer_data(&w, &h, 2);
            else
                st_writer_data(&w, &wide, (uint64_t)st_dtype_size(c->dtype));
        }
    }
    assert_int_equal(st_writer_close(&w), 0);
    safetensors_close(&st);
}

static void refused_tensors(const tensor_case *c) {
    fixture f;
    char *dir = xprintf("%s/tensors", work_dir()), *path = xprintf("%s/" ADAPTER_FILE, dir),
         *config = xprintf("%s/adapter_config.json", dir);
    file_map m;
    assert_int_equal(path_make_dirs(dir), 0);
    assert_int_equal(file_open(&m, GOLDEN "adapter_peft/adapter_config.json"), 0);
    assert_int_equal(file_save(config, m.data, m.size), 0);
    file_close(&m);
    write_tensors(path, c);
    open_model(&f, GOLDEN "tiny_llama");
    int bad = load(&f, dir);
    if (!c->text && bad) fail_msg("%s", fail_text());
    if (c->text) {
        if (!bad || !strstr(fail_text(), c->text)) fail_msg("expected %s, found %s", c->text, fail_text());
        assert_int_equal(fail_code(), EXIT_INPUT);
        assert_memory_equal(fail_text(), path, strlen(path));
    } else
        assert_true(view(&f.ad, "model.layers.1.mlp.down_proj", 'A')->p.val[7] != 0);
    fail_clear();
    close_model(&f);
    free(dir), free(path), free(config);
}

static void test_tensor_refusals(void **state) {
    (void)state;
#define P "base_model.model.model.layers."
    const tensor_case cases[] = {
        {.dtype = ST_F32},
        {.dtype = ST_F16},
        {.dtype = ST_F32, .base = "nf4-double"},
        {.dtype = ST_F32, .base = "int3", .text = "metadata 'base_quantization': 'int3' is not known"},
        {.dtype = ST_F64, .text = "dtype F64, expected F32, F16 or BF16"},
        {.dtype = ST_F32,
         .drop = "v_proj.lora_B",
         .text = "tensor '" P "1.self_attn.v_proj.lora_B.weight' is missing (5 of 6 are there)"},
        {.dtype = ST_F32,
         .add = P "0.self_attn.q_proj.lora_A.weight",
         .text = "tensor '" P "0.self_attn.q_proj.lora_A.weight' has no place in this base model"},
        {.dtype = ST_F32, .add = P "7.self_attn.q_proj.lora_A.weight", .text = "(1 of its 7 tensors have none)"},
        {.dtype = ST_F32,
         .drop = "v_proj.lora_B",
         .add = "model.layers.1.self_attn.v_proj.lora_B.weight",
         .text = "has no place"},
        {.dtype = ST_F32, .add = "base_model.model.lm_head.weight", .text = "lm_head.weight' has no place"},
        {.dtype = ST_F32,
         .transpose = "q_proj.lora_B",
         .text = "q_proj.lora_B.weight': shape [3, 64], expected [64, 3]"},
        {.dtype = ST_F32, .poison = NAN, .text = "element 5 is not finite"},
        {.dtype = ST_F16, .poison = 1e9f, .text = "element 5 is not finite"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) refused_tensors(&cases[i]);
}

static void refused_dir(const char *dir, const char *text) {
    fixture f;
    open_model(&f, GOLDEN "tiny_llama");
    assert_int_equal(load(&f, dir), -1);
    if (!strstr(fail_text(), text)) fail_msg("%s: %s", dir, fail_text());
    assert_int_equal(fail_code(), EXIT_INPUT);
    fail_clear();
    close_model(&f);
}

static void test_directory_refusals(void **state) {
    (void)state;
    char *dir = xprintf("%s/pickle", work_dir()), *config = xprintf("%s/adapter_config.json", dir);
    char *bin = xprintf("%s/adapter_model.bin", dir);
    static const char text[] = "{\"peft_type\": \"LORA\", \"target_modules\": [\"q_proj\"]}";
    refused_dir("/nonexistent", "/nonexistent: not a directory; expected one with adapter_config.json");
    refused_dir(GOLDEN, "adapter_config.json");
    path_make_dirs(dir);
    file_save(config, text, strlen(text));
    refused_dir(dir, "adapter_model.safetensors");
    file_save(bin, "x", 1);
    refused_dir(dir, "adapter_model.bin: a pickle file is never read");
    file_save(config, text, strlen(text) - 1);
    refused_dir(dir, "adapter_config.json:1:");
    free(dir), free(config), free(bin);
}

static int remove_work(void **state) {
    (void)state;
    char *command = xprintf("rm -r %s", work_dir());
    int rc = system(command);
    free(command);
    return rc;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_targets),         cmocka_unit_test(test_yaml_targets),
        cmocka_unit_test(test_yaml_refusals),   cmocka_unit_test(test_continue),
        cmocka_unit_test(test_read_peft),       cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_written_config),  cmocka_unit_test(test_config_refusals),
        cmocka_unit_test(test_tensor_refusals), cmocka_unit_test(test_directory_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, remove_work);
}
