/* Writing adapters in both containers. */
#include "core/error.h"
#include "core/gguf_write.h"
#include "model/lora_file.h"
#include "model/rows.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *last_name(const char *path) {
    const char *dot = strrchr(path, '.');
    return dot ? dot + 1 : path;
}

/* The last names of the targets, when these choose no module that the adapter lacks. */
static lora_config short_targets(const adapter *ad, const model *m) {
    lora_config l = {.r = ad->cfg.r,
                     .alpha = ad->cfg.alpha,
                     .dropout = ad->cfg.dropout,
                     .rslora = ad->cfg.rslora,
                     .base = ad->cfg.base,
                     .base_model = ad->cfg.base_model ? xstrdup(ad->cfg.base_model) : NULL};
    bool same = true;
    for (int g = 0; g < m->n_groups; g++)
        for (int i = 0; i < m->groups[g].n; i++)
            if (m->groups[g].p[i].lora && !lora_config_names(&l, last_name(m->groups[g].p[i].name)))
                lora_config_add_target(&l, last_name(m->groups[g].p[i].name));
    for (int g = 0; g < m->n_groups; g++)
        for (int i = 0; i < m->groups[g].n; i++)
            same &= !m->groups[g].p[i].lora == !lora_config_names(&l, last_name(m->groups[g].p[i].name));
    if (same) return l;
    for (int i = 0; i < l.targets.n; i++) free(l.targets.item[i]);
    l.targets.n = 0;
    for (int g = 0; g < m->n_groups; g++)
        for (int i = 0; i < m->groups[g].n; i++)
            if (m->groups[g].p[i].lora) lora_config_add_target(&l, m->groups[g].p[i].name);
    return l;
}

int lora_file_write_peft(const adapter *ad, const model *m, const char *dir) {
    adapter copy = *ad;
    copy.cfg = short_targets(ad, m);
    int bad = adapter_save(&copy, dir);
    lora_config_free(&copy.cfg);
    return bad;
}

static int heads_of(const model_source *s, const char *name) {
    if (!s->fam->gguf_permuted) return 0;
    return strstr(name, ".q_proj.") ? (int)s->hp.heads : strstr(name, ".k_proj.") ? (int)s->hp.kv_heads : 0;
}

/* "blk.0.attn_q.weight.lora_a" of a view's name; its base tensor's Hugging Face name goes to hf. */
static void gguf_name(const char *view, char hf[static 192], char out[static GGUF_NAME_MAX + 1]) {
    const char *prefix = "base_model.model.", *end = strstr(view, ".lora_");
    CHECK(!strncmp(view, prefix, strlen(prefix)) && end, "%s", view);
    snprintf(hf, 192, "%.*s.weight", (int)(end - view - (long)strlen(prefix)), view + strlen(prefix));
    char base[GGUF_NAME_MAX + 1 - 8];
    CHECK(name_to_gguf(hf, base, sizeof base), "no GGUF name for %s", hf);
    snprintf(out, GGUF_NAME_MAX + 1, "%s.lora_%c", base, end[6] == 'A' ? 'a' : 'b');
}

/* llama.cpp scales every pair by alpha / r: what the adapter's scale is beyond that goes into B. */
static int write_view(gguf_writer *w, const adapter_view *v, int heads, float fold) {
    const param *p = &v->p;
    if (!heads && fold == 1) return gguf_writer_data(w, p->val, (uint64_t)(p->rows * p->cols) * sizeof(float));
    float *row = xcalloc((size_t)p->cols, sizeof *row);
    int bad = 0;
    for (int64_t i = 0; i < p->rows && !bad; i++) {
        const float *from = p->val + rows_hf_row(i, heads, p->rows) * p->cols;
        for (int64_t k = 0; k < p->cols; k++) row[k] = from[k] * fold;
        bad = gguf_writer_data(w, row, (uint64_t)p->cols * sizeof *row);
    }
    free(row);
    return bad;
}

int lora_file_write_gguf(const adapter *ad, const model_source *s, const char *path) {
    gguf_meta m = {0};
    gguf_writer w;
    if (!(ad->cfg.alpha > 0))
        return fail(EXIT_INPUT, "%s: alpha %g cannot be written as GGUF, where 0 means a scale of 1",
                    ad->cfg.where ? ad->cfg.where : path, ad->cfg.alpha);
    gguf_decl *decls = xcalloc((size_t)ad->n_views, sizeof *decls);
    char(*names)[GGUF_NAME_MAX + 1] = xcalloc((size_t)ad->n_views, sizeof *names), hf[192];
    const float plain = (float)(ad->cfg.alpha / ad->cfg.r), scale = lora_config_scale(&ad->cfg);
    gguf_put_text(&m, "general.type", "adapter"), gguf_put_text(&m, "general.architecture", s->fam->gguf);
    gguf_put_text(&m, "adapter.type", "lora"), gguf_put_f32(&m, "adapter.lora.alpha", (float)ad->cfg.alpha);
    gguf_put_u32(&m, "general.file_type", 0);
    if (ad->cfg.base != BASE_AS_IS) gguf_put_text(&m, ADAPTER_BASE_KEY, base_quant_names[ad->cfg.base]);
    for (int v = 0; v < ad->n_views; v++) {
        gguf_name(ad->views[v].name, hf, names[v]);
        decls[v] = (gguf_decl){names[v], 0, 2, {ad->views[v].p.cols, ad->views[v].p.rows, 1, 1}};
    }
    int bad = gguf_writer_open(&w, path, &m, decls, ad->n_views), opened = !bad;
    for (int v = 0; v < ad->n_views && !bad; v++) {
        gguf_name(ad->views[v].name, hf, names[v]);
        bool b = v % 2;
        bad = write_view(&w, &ad->views[v], b ? heads_of(s, hf) : 0, b && scale != plain ? scale / plain : 1);
    }
    if (!bad)
        bad = gguf_writer_close(&w);
    else if (opened)
        gguf_writer_abandon(&w);
    gguf_meta_free(&m);
    free(decls), free(names);
    return bad ? -1 : 0;
}
