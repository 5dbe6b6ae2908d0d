#include "train_state.h"
#include "core/arena.h"
#include "core/config_parts.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/xxh64.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define STATE_FILE "trainer_state.json"
#define OPTIMISER_FILE "optimizer.safetensors"
#define CONFIG_FILE "config.yaml"
enum { STATE_VERSION = 1, SAMPLE = 4096 };

/* ---- fingerprints ---- */

static uint64_t data_hash(const dataset *ds) {
    uint64_t h = 0;
    const sample *const part[] = {ds->train, ds->eval};
    const int n[] = {ds->n_train, ds->n_eval};
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < n[k]; i++) h = xxh64(&part[k][i].id, sizeof part[k][i].id, h);
    return h;
}

static uint64_t tensor_hash(const char *name, const uint8_t *data, uint64_t bytes, uint64_t h) {
    h = xxh64(name, strlen(name), h);
    return xxh64(data, bytes < SAMPLE ? (size_t)bytes : SAMPLE, h);
}

/* Names of all tensors and the first bytes of each: cheap, and no other model has them. */
static uint64_t base_hash(const model_source *src) {
    uint64_t h = 0;
    if (src->is_gguf)
        for (int i = 0; i < src->g.n_tensors; i++)
            h = tensor_hash(src->g.tensors[i].name, src->g.tensors[i].data, src->g.tensors[i].bytes, h);
    else
        for (int i = 0; i < src->st.n; i++)
            h = tensor_hash(src->st.tensors[i].name, src->st.tensors[i].data, src->st.tensors[i].bytes, h);
    return h;
}

/* ---- the optimiser ---- */

typedef struct {
    const char *name;
    st_dtype type;
    void *at; /* in the run arena */
    int64_t n;
} state_vector;
enum { VECTORS = 7 };

/* The moments, and the gradient when a step is under way; n 0: not there. */
static int vectors_of(const train_parts *p, bool gradient, state_vector *v) {
    const adamw *o = p->opt;
    int64_t coded = o->n - o->wide_n;
    const state_vector all[VECTORS] = {{"m", ST_F32, o->m, o->wide_n},
                                       {"v", ST_F32, o->v, o->wide_n},
                                       {"m.code", ST_U8, o->q.m, coded},
                                       {"v.code", ST_U8, o->q.v, coded},
                                       {"m.scale", ST_F32, o->q.m_scale, o->q.blocks},
                                       {"v.scale", ST_F32, o->q.v_scale, o->q.blocks},
                                       {"gradient", ST_F32, o->grad, gradient ? o->n : 0}};
    int n = 0;
    for (int i = 0; i < VECTORS; i++)
        if (all[i].n) v[n++] = all[i];
    return n;
}

static int save_vectors(const train_parts *p, bool gradient, const char *path) {
    state_vector v[VECTORS];
    st_decl decl[VECTORS] = {{0}};
    int n = vectors_of(p, gradient, v), bad;
    for (int i = 0; i < n; i++) decl[i] = (st_decl){(char *)(uintptr_t)v[i].name, v[i].type, 1, {v[i].n}};
    st_writer w;
    if (st_writer_open(&w, path, decl, n, NULL, 0)) return -1;
    bad = 0;
    for (int i = 0; i < n && !bad; i++) {
        size_t bytes = (size_t)v[i].n * (size_t)st_dtype_size(v[i].type);
        memory *mem = p->s->run.mem;
        void *copy = mem ? xcalloc(bytes, 1) : NULL;
        bad = st_writer_data(&w, memory_view(mem, v[i].at, copy, bytes), bytes);
        free(copy);
    }
    if (!bad) return st_writer_close(&w);
    st_writer_abandon(&w);
    return -1;
}

static int load_vectors(const train_parts *p, bool gradient, const char *path) {
    state_vector v[VECTORS];
    int n = vectors_of(p, gradient, v), bad = 0;
    safetensors st;
    if (safetensors_open(&st, path)) return -1;
    if (st.n != n) bad = fail(EXIT_INPUT, "%s: found %d tensors, expected %d of this optimiser", path, st.n, n);
    for (int i = 0; i < n && !bad; i++) {
        const st_tensor *t = safetensors_find(&st, v[i].name);
        if (!t || t->dtype != v[i].type || t->dims != 1 || t->shape[0] != v[i].n)
            bad = fail(EXIT_INPUT, "%s: tensor '%s': expected %s [%" PRId64 "] of this adapter", path, v[i].name,
                       st_dtype_name(v[i].type), v[i].n);
        else
            arena_put(&p->s->run, v[i].at, t->data, (size_t)t->bytes);
    }
    safetensors_close(&st);
    return bad;
}

/* ---- the place ---- */

static const struct {
    const char *name;
    size_t offset;
} fields[] = {
#define FIELD(name)                                                                                                    \
    { #name, offsetof(train_place, name) }
    FIELD(step), FIELD(epoch), FIELD(batch), FIELD(micro), FIELD(tokens), FIELD(metrics_bytes), FIELD(seen_tokens),
#undef FIELD
};
enum { FIELDS = sizeof fields / sizeof *fields };

static int64_t *field_of(const train_place *at, int i) {
    return (int64_t *)(void *)((char *)(uintptr_t)at + fields[i].offset);
}

static json_t *hex(uint64_t x) {
    char text[20];
    snprintf(text, sizeof text, "%016" PRIx64, x);
    return json_string(text);
}

static json_t *real(double x) { /* as hexadecimal, which keeps every bit */
    char text[40];
    snprintf(text, sizeof text, "%a", x);
    return json_string(text);
}

static int save_place(const train_parts *p, const train_place *at, const char *path) {
    step_sums sums;
    arena_get(&p->s->run, &sums, p->sums, sizeof sums);
    json_t *o = json_object(), *s = json_object();
    json_object_set_new(o, "version", json_integer(STATE_VERSION));
    for (int i = 0; i < FIELDS; i++) json_object_set_new(o, fields[i].name, json_integer(*field_of(at, i)));
    json_object_set_new(o, "after", json_boolean(at->after));
    json_object_set_new(o, "optimizer_steps", json_integer(p->opt->t));
    json_object_set_new(o, "data", hex(data_hash(p->ds))), json_object_set_new(o, "base", hex(base_hash(p->src)));
    json_object_set_new(s, "loss", real(sums.loss)), json_object_set_new(s, "weight", real(sums.weight));
    json_object_set_new(s, "targets", json_integer(sums.targets));
    json_object_set_new(s, "nonfinite", json_integer(sums.nonfinite));
    if (at->micro) json_object_set(o, "sums", s);
    json_decref(s);
    char *text = json_dumps(o, JSON_INDENT(2));
    CHECK(text, "%s", path);
    int bad = file_save(path, text, strlen(text));
    free(text);
    json_decref(o);
    return bad;
}

static int get_sums(const train_parts *p, const json_t *o, const char *path) {
    step_sums sums = {0};
    const json_t *s = json_object_get(o, "sums");
    const char *loss = json_string_value(json_object_get(s, "loss")),
               *weight = json_string_value(json_object_get(s, "weight"));
    if (!loss || !weight) return fail(EXIT_INPUT, "%s: key 'sums': expected loss and weight", path);
    sums.loss = strtod(loss, NULL), sums.weight = strtod(weight, NULL);
    if (json_get_int(path, s, "targets", 0, INT64_MAX, &sums.targets) ||
        json_get_int(path, s, "nonfinite", 0, INT64_MAX, &sums.nonfinite))
        return -1;
    arena_put(&p->s->run, p->sums, &sums, sizeof sums);
    return 0;
}

static int same_hash(const json_t *o, const char *key, uint64_t now, const char *path, const char *what) {
    json_t *mine = hex(now);
    const char *there = json_string_value(json_object_get(o, key));
    int bad = there && !strcmp(there, json_string_value(mine))
                  ? 0
                  : fail(EXIT_INPUT, "%s: the run that this checkpoint belongs to had %s; give the same, or start anew",
                         path, what);
    json_decref(mine);
    return bad;
}

static int load_place(const train_parts *p, const char *path, train_place *at) {
    json_t *o = json_read(path);
    int64_t version = 0;
    int bad = !o || json_get_int(path, o, "version", 0, INT64_MAX, &version);
    if (!bad && version != STATE_VERSION)
        bad = fail(EXIT_INPUT, "%s: key 'version': found %" PRId64 ", this program knows %d", path, version,
                   STATE_VERSION);
    bad = bad || same_hash(o, "base", base_hash(p->src), path, "another base model");
    bad = bad || same_hash(o, "data", data_hash(p->ds), path, "other rows, or held out others");
    for (int i = 0; i < FIELDS && !bad; i++) bad = json_get_int(path, o, fields[i].name, 0, INT64_MAX, field_of(at, i));
    bad = bad || json_get_bool_or(path, o, "after", false, &at->after);
    bad = bad || json_get_int(path, o, "optimizer_steps", 0, INT64_MAX, &p->opt->t);
    if (!bad && at->micro) bad = get_sums(p, o, path);
    json_decref(o);
    return bad ? -1 : 0;
}

/* ---- the configuration ---- */

/* Keys that may change between a run and its continuation; all others make it another run. */
#define FREE_KEYS                                                                                                      \
    "base_model|tokenizer|datasets|output_dir|logging_steps|eval_steps|evals_per_epoch|save_steps|saves_per_epoch|"    \
    "save_total_limit|resume_from_checkpoint|overwrite_output_dir|max_steps|num_epochs|threads|backend|"               \
    "gradient_checkpointing|quantized_base_cache|quantized_base_cache_dir"

/* The block of a key: its line and those below that are indented. */
static const char *block_of(const char *text, const char *key, size_t *n) {
    for (const char *p = text; p && *p; p = (p = strchr(p, '\n')) ? p + 1 : NULL) {
        size_t k = strlen(key);
        if (strncmp(p, key, k) || p[k] != ':') continue;
        const char *end = p;
        do end = strchr(end, '\n') ? strchr(end, '\n') + 1 : end + strlen(end);
        while (*end == ' ');
        *n = (size_t)(end - p);
        return p;
    }
    *n = 0;
    return "";
}

static int same_config(const config *c, const char *path) {
    char *there = file_text(path, NULL), *here = there ? config_text(c) : NULL;
    if (!there) return -1;
    char diff[1024];
    size_t used = 0;
    for (int i = 0; i < config_rows_n && used < sizeof diff; i++) {
        const key_row *r = &config_rows[i];
        size_t a, b;
        if (r->bit < 0 || word_in(r->name, FREE_KEYS)) continue;
        const char *x = block_of(there, r->name, &a), *y = block_of(here, r->name, &b);
        if (a == b && !memcmp(x, y, a)) continue;
        used += (size_t)snprintf(diff + used, sizeof diff - used, "%s%.*s, now%.*s", used ? "; " : "",
                                 a ? (int)a - 1 : 0, x, b > strlen(r->name) + 1 ? (int)(b - strlen(r->name) - 2) : 0,
                                 y + (b ? strlen(r->name) + 1 : 0));
    }
    free(there), free(here);
    return used ? fail(EXIT_USAGE, "%s: the run was another one: %s; set them back, or start anew", path, diff) : 0;
}

/* ---- all of it ---- */

static int check_finite(const train_parts *p) {
    const adapter *ad = &p->s->ad;
    size_t bytes = (size_t)ad->n * sizeof(float);
    void *copy = ad->mem ? xcalloc(bytes, 1) : NULL;
    const float *x = memory_view(ad->mem, ad->param, copy, bytes);
    int64_t i = 0;
    while (i < ad->n && isfinite(x[i])) i++;
    free(copy);
    if (i == ad->n) return 0;
    int v = 0;
    while (v + 1 < ad->n_views && ad->views[v + 1].p.val - ad->param <= i) v++;
    return fail(EXIT_DIVERGED, "tensor '%s' is not finite: not saved; the last checkpoint stands", ad->views[v].name);
}

uint64_t train_state_bytes(const train_parts *p) {
    state_vector v[VECTORS];
    int n = vectors_of(p, true, v);
    uint64_t bytes = (uint64_t)p->s->ad.n * sizeof(float) + (1 << 20);
    for (int i = 0; i < n; i++) bytes += (uint64_t)v[i].n * (uint64_t)st_dtype_size(v[i].type);
    return bytes;
}

int train_state_save(const train_parts *p, const train_place *at, char **path) {
    checkpoint c;
    *path = NULL;
    if (check_finite(p) || checkpoint_begin(&c, p->cfg->output_dir, at->step, at->micro)) return -1;
    char *state = path_join(c.tmp, STATE_FILE), *optimiser = path_join(c.tmp, OPTIMISER_FILE),
         *yaml = path_join(c.tmp, CONFIG_FILE), *text = config_text(p->cfg), *name = xstrdup(c.path);
    int bad = adapter_save(&p->s->ad, c.tmp) || save_vectors(p, at->micro > 0, optimiser) || save_place(p, at, state) ||
              file_save(yaml, text, strlen(text));
    if (bad)
        checkpoint_abandon(&c);
    else
        bad = checkpoint_commit(&c);
    if (!bad && p->cfg->save_total_limit != CONFIG_UNSET)
        bad = checkpoint_rotate(p->cfg->output_dir, (int)p->cfg->save_total_limit);
    free(state), free(optimiser), free(yaml), free(text);
    if (bad)
        free(name);
    else
        *path = name;
    return bad ? -1 : 0;
}

int train_state_choose(const config *c, char **path) {
    checkpoint_list l;
    *path = NULL;
    if (!c->resume_from_checkpoint) return 0;
    if (strcmp(c->resume_from_checkpoint, "auto")) {
        *path = xstrdup(c->resume_from_checkpoint);
        if (!checkpoint_verify(*path)) return 0;
        free(*path), *path = NULL;
        return -1;
    }
    if (checkpoint_find(&l, c->output_dir)) return -1;
    for (int i = 0; i < l.n && !*path; i++) {
        if (!checkpoint_verify(l.item[i].path))
            *path = xstrdup(l.item[i].path);
        else
            fprintf(stderr, "note: not resumed from: %s\n", fail_text());
        fail_clear();
    }
    int bad = l.n && !*path ? fail(EXIT_INPUT,
                                   "%s: none of its %d checkpoints is whole: give a path, or leave "
                                   "resume_from_checkpoint out and start anew in another output_dir",
                                   c->output_dir, l.n)
                            : 0;
    checkpoint_list_free(&l);
    return bad;
}

int train_state_load(const train_parts *p, const char *path, train_place *at) {
    char *state = path_join(path, STATE_FILE), *optimiser = path_join(path, OPTIMISER_FILE),
         *yaml = path_join(path, CONFIG_FILE);
    *at = (train_place){0};
    int bad = same_config(p->cfg, yaml) || load_place(p, state, at) || adapter_load(&p->s->ad, path) ||
              load_vectors(p, at->micro > 0, optimiser);
    free(state), free(optimiser), free(yaml);
    return bad ? -1 : 0;
}
