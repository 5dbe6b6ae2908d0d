/* Attaching LoRA to named projections and laying its parameters out in one flat vector. */
#include "peft/adapter.h"
#include "core/config_parts.h"
#include "core/error.h"
#include "core/rng.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *last_name(const char *path) {
    const char *dot = strrchr(path, '.');
    return dot ? dot + 1 : path;
}

static int fail_no_match(const lora_config *cfg, const char *target, const proj_group_ref *groups, int n) {
    const char *nearest = "";
    int best = INT_MAX; /* something is always named, however long the target is */
    for (int g = 0; g < n; g++)
        for (int i = 0; i < groups[g].n; i++) {
            const char *name = last_name(groups[g].p[i].name);
            int d = edit_distance(last_name(target), name, 64);
            if (d < best) best = d, nearest = name;
        }
    return fail(EXIT_USAGE,
                "lora_target_modules: %s '%s' matches no linear layer of this model; the nearest name is '%s'",
                cfg->regex ? "pattern" : "name", target, nearest);
}

/* Every entry of a list must match something: a misspelt module is never trained around silently. */
static int check_targets(const lora_config *cfg, const proj_group_ref *groups, int n_groups) {
    for (int k = 0; k < cfg->targets.n && !cfg->all_linear && !cfg->where; k++) {
        lora_config one = *cfg;
        one.targets = (string_list){.item = &cfg->targets.item[k], .n = 1};
        int matched = 0;
        for (int g = 0; g < n_groups && !matched; g++)
            for (int i = 0; i < groups[g].n && !matched; i++)
                if ((matched = lora_config_matches(&one, groups[g].p[i].name)) < 0) return -1;
        if (!matched) return fail_no_match(cfg, cfg->targets.item[k], groups, n_groups);
    }
    return 0;
}

/* What all-linear came to: names, which mean the same modules to every reader. */
static void resolve_targets(lora_config *cfg, const proj_group_ref *groups, int n_groups) {
    if (!cfg->all_linear) return;
    for (int i = 0; i < cfg->targets.n; i++) free(cfg->targets.item[i]);
    cfg->targets.n = 0;
    for (int g = 0; g < n_groups; g++)
        for (int i = 0; i < groups[g].n; i++)
            if (!cfg->targets.n || !lora_config_names(cfg, last_name(groups[g].p[i].name)))
                lora_config_add_target(cfg, last_name(groups[g].p[i].name));
    cfg->all_linear = cfg->regex = false;
}

static void add_views(adapter *ad, const proj *p, const lora *l) {
    ad->views = xrealloc(ad->views, (size_t)ad->n_views + 2, sizeof *ad->views);
    ad->views[ad->n_views++] = (adapter_view){xprintf("base_model.model.%s.lora_A.weight", p->name), l->a};
    ad->views[ad->n_views++] = (adapter_view){xprintf("base_model.model.%s.lora_B.weight", p->name), l->b};
}

static param take(adapter *ad, int64_t *at, int64_t rows, int64_t cols) {
    param p = {ad->param + *at, ad->grad ? ad->grad + *at : NULL, rows, cols};
    *at += rows * cols;
    return p;
}

/* One group: its A's side by side, then its B's. */
static void attach_group(adapter *ad, const proj_group_ref *g, const bool *chosen, uint64_t seed, int64_t *at) {
    lora *first = ad->loras + ad->n_loras, *l = first;
    for (int i = 0; i < g->n; i++)
        if (chosen[i]) {
            const char *name = g->p[i].name;
            *l++ = (lora){.a = take(ad, at, ad->cfg.r, g->p[i].w.cols),
                          .scale = lora_config_scale(&ad->cfg),
                          .dropout = (float)ad->cfg.dropout,
                          .seed = seed,
                          .site = (uint32_t)hash_bytes(HASH_SEED, name, strlen(name))};
        }
    l = first;
    for (int i = 0; i < g->n; i++)
        if (chosen[i]) {
            l->b = take(ad, at, g->p[i].w.rows, ad->cfg.r);
            g->p[i].lora = l;
            add_views(ad, &g->p[i], l++);
        }
    ad->n_loras = (int)(l - ad->loras);
}

static int check_module(const lora_config *cfg, const proj *p, bool matched) {
    int64_t small = p->w.rows < p->w.cols ? p->w.rows : p->w.cols;
    const char *where = cfg->where ? cfg->where : "lora_r";
    if (!matched && cfg->every)
        return fail(EXIT_USAGE,
                    "%s: its target_modules leave out '%s', but the configuration asks for all linear layers", where,
                    p->name);
    if (matched && cfg->r > small)
        return fail(cfg->where ? EXIT_INPUT : EXIT_USAGE,
                    "%s: rank %d is more than the smaller side of '%s' [%ld, %ld]", where, cfg->r, p->name,
                    (long)p->w.rows, (long)p->w.cols);
    return 0;
}

/* chosen[]: one flag per projection in order. Returns the number of parameters, or -1. */
static int64_t choose(const lora_config *cfg, const proj_group_ref *groups, int n_groups, bool *chosen, int *modules) {
    int64_t n = 0;
    int k = 0;
    *modules = 0;
    for (int g = 0; g < n_groups; g++)
        for (int i = 0; i < groups[g].n; i++, k++) {
            const proj *p = &groups[g].p[i];
            int matched = lora_config_matches(cfg, p->name);
            if (matched < 0 || check_module(cfg, p, matched)) return -1;
            chosen[k] = matched;
            if (!matched) continue;
            n += cfg->r * (p->w.rows + p->w.cols);
            ++*modules;
        }
    if (n) return n;
    return cfg->where ? fail(EXIT_INPUT, "%s: its target_modules name no linear layer of this model", cfg->where)
                      : fail(EXIT_USAGE, "lora_target_modules: no linear layer of this model is chosen");
}

int adapter_attach(adapter *ad, lora_config *cfg, const proj_group_ref *groups, int n_groups, uint64_t seed,
                   bool trainable, arena *run) {
    *ad = (adapter){.cfg = *cfg};
    *cfg = (lora_config){0};
    int projs = 0, modules;
    for (int g = 0; g < n_groups; g++) projs += groups[g].n;
    bool *chosen = xcalloc((size_t)projs, sizeof *chosen);
    int64_t n = check_targets(&ad->cfg, groups, n_groups) ? -1 : choose(&ad->cfg, groups, n_groups, chosen, &modules);
    if (n > 0) {
        int64_t at = 0;
        ad->n = n, ad->mem = run->mem;
        ad->loras = xcalloc((size_t)modules, sizeof *ad->loras);
        ad->param = arena_array(run, (size_t)n, sizeof(float));
        ad->grad = trainable ? arena_array(run, (size_t)n, sizeof(float)) : NULL;
        for (int g = 0, k = 0; g < n_groups; k += groups[g++].n) attach_group(ad, &groups[g], chosen + k, seed, &at);
        resolve_targets(&ad->cfg, groups, n_groups);
    }
    free(chosen);
    return n > 0 ? 0 : -1;
}

void adapter_detach(const proj_group_ref *groups, int n_groups) {
    for (int g = 0; g < n_groups; g++)
        for (int i = 0; i < groups[g].n; i++) groups[g].p[i].lora = NULL;
}

void adapter_init(adapter *ad, uint64_t seed) {
    float *all = xcalloc((size_t)ad->n, sizeof *all); /* B stays 0 */
    for (int v = 0; v < ad->n_views; v += 2) {
        const param *p = &ad->views[v].p;
        float bound = 1 / sqrtf((float)p->cols);
        int64_t at = p->val - ad->param;
        for (int64_t i = at; i < at + p->rows * p->cols; i++)
            all[i] = (2 * rng_uniform(seed, STREAM_INIT, (uint64_t)i) - 1) * bound;
    }
    memory_put(ad->mem, ad->param, all, (size_t)ad->n * sizeof *all);
    free(all);
}

void adapter_close(adapter *ad) {
    for (int v = 0; v < ad->n_views; v++) free(ad->views[v].name);
    free(ad->views);
    free(ad->loras);
    lora_config_free(&ad->cfg);
    *ad = (adapter){0};
}
