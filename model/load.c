/* From a model's files to the structs that forward.c walks: views where the bytes can stay, NF4 where it was asked for.
 */
#include "core/error.h"
#include "core/num.h"
#include "kernels/rows16.h"
#include "model/quant_key.h"
#include "model/finite.h"
#include "model/model.h"
#include "model/quant_cache.h"
#include "model/rows.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const model_source *s;
    const model_options *o;
    arena *run;
    char **nonfinite; /* the first tensor that holds NaN or infinities, in words */
} loader;

/* `made` is what the model computes with; it holds a NaN or an infinity whenever the stored tensor does: the scales of
 * NF4 carry them on (8-bit ones all of them, so the row is looked for in the file). On a device the file is looked at.
 */
static void check_finite(const loader *ld, const char *name, const weight *file, const weight *made) {
    if (ld->run->planning || *ld->nonfinite || weight_nonfinite(ld->run->mem ? file : made) < 0) return;
    *ld->nonfinite = xprintf("tensor '%s': row %ld holds NaN or infinities", name, (long)weight_nonfinite(file));
}

/* A view; a copy where the file's bytes are not aligned for their type or are in another row order, and always in a
 * device's memory. */
static weight settle(const loader *ld, const weight *w, int heads) {
    size_t align = w->fmt->block == 1 ? (size_t)w->fmt->bytes : 1, bytes = (size_t)weight_bytes(w);
    bool askew = (uintptr_t)w->data % align;
    if (!heads && !askew && !ld->run->mem) return *w;
    weight made = *w;
    void *copy = arena_alloc(ld->run, bytes);
    made.data = copy;
    if (ld->run->planning) return made;
    void *ordered = heads ? xcalloc(bytes, 1) : NULL;
    if (heads) weight_unpermute_rows(w, heads, ordered);
    arena_put(ld->run, copy, heads ? ordered : w->data, bytes);
    free(ordered);
    return made;
}

/* NF4 of an earlier start, in the file's mapping, as the backend can read it. */
static void settle_nf4(const loader *ld, weight *w) {
    if (!ld->run->mem) return;
    nf4_meta *m = (nf4_meta *)(uintptr_t)w->meta;
    const int64_t blocks = (w->rows * w->cols + m->blocksize - 1) / m->blocksize;
    w->data = arena_copy(ld->run, w->data, nf4_data_bytes(w->rows * w->cols));
    if (m->nested_block == 0) {
        m->absmax = arena_copy(ld->run, m->absmax, (size_t)blocks * sizeof(float));
        return;
    }
    const int64_t outer = (blocks + m->nested_block - 1) / m->nested_block;
    m->code = arena_copy(ld->run, m->code, (size_t)blocks);
    m->nested_absmax = arena_copy(ld->run, m->nested_absmax, (size_t)outer * sizeof(float));
    m->map = arena_copy(ld->run, m->map, 256 * sizeof(float));
}

/* w, whose rows are GGUF's q or k when heads is not 0, packed where it was asked for and can be; mapped: its bytes are
 * a file's and are not needed any longer. False: hold it in another way. */
static bool pack(const loader *ld, const weight *w, int heads, bool mapped, weight *made) {
    const bool lossy = ld->o->packing == PACK_LOSSY;
    if (ld->o->packing == PACK_NONE || !rows16_bytes(w, lossy)) return false;
    *made = rows16_pack(w, heads, lossy, ld->run);
    if (mapped && !ld->run->planning) file_drop(w->data, (uint64_t)weight_bytes(w));
    return true;
}

/* A base that is in NF4 already is used as it is. */
static void load_made_nf4(const loader *ld, weight *made, const char *name, const weight *file) {
    nf4_meta *meta = xcalloc(1, sizeof *meta);
    *meta = *(const nf4_meta *)file->meta;
    *made = *file, made->meta = meta;
    check_finite(ld, name, file, file);
    settle_nf4(ld, made);
    const weight nf4 = *made;
    pack(ld, &nf4, 0, true, made);
}

/* NF4, of the cache or made here. */
static void load_nf4(const loader *ld, proj *p, const char *name, const weight *file, int heads) {
    const bool cached = quant_cache_weight(ld->o->quant, p->name, file->rows, file->cols, &p->w);
    if (cached) {
        settle_nf4(ld, &p->w);
    } else {
        p->w = rows_nf4(file, heads, ld->o->double_quant, ld->run);
        if (!ld->run->planning) file_drop(file->data, (uint64_t)weight_bytes(file)); /* not read again */
    }
    check_finite(ld, name, file, &p->w);
    const weight nf4 = p->w;
    pack(ld, &nf4, 0, cached, &p->w);
}

static void load_stored(const loader *ld, weight *made, const char *name, const weight *file, int heads) {
    check_finite(ld, name, file, file);
    if (!pack(ld, file, heads, true, made)) *made = settle(ld, file, heads);
}

static int load_proj(const loader *ld, proj *p, int layer, const char *module, int64_t rows, int64_t cols) {
    p->name = xprintf("model.layers.%d.%s", layer, module);
    char name[256];
    snprintf(name, sizeof name, "%s.weight", p->name);
    weight w;
    if (model_source_weight(ld->s, name, rows, cols, &w)) return -1;
    int heads = model_source_permuted(ld->s, name);
    if (w.fmt->id == FMT_NF4)
        load_made_nf4(ld, &p->w, name, &w);
    else if (ld->o->load_in_4bit)
        load_nf4(ld, p, name, &w, heads);
    else
        load_stored(ld, &p->w, name, &w, heads);
    return 0;
}

static int load_vector(const loader *ld, const float **g, const char *name, int64_t n) {
    weight w;
    if (model_source_weight(ld->s, name, 0, n, &w)) return -1;
    float *f = xcalloc((size_t)n, sizeof *f);
    if (!ld->run->planning) w.fmt->dequant(&w, 0, n, f);
    *g = arena_copy(ld->run, f, (size_t)n * sizeof *f);
    free(f);
    check_finite(ld, name, &w, &w);
    return 0;
}

static int load_layer_norm(const loader *ld, const float **g, int layer, const char *what, int64_t n) {
    char name[256];
    snprintf(name, sizeof name, "model.layers.%d.%s.weight", layer, what);
    return load_vector(ld, g, name, n);
}

/* What the family's layers have beyond llama's. */
static int load_extras(const loader *ld, layer *l, int i) {
    unsigned has = ld->s->fam->has;
    for (int p = 0; p < 3 && has & HAS_QKV_BIAS; p++) {
        char name[256];
        snprintf(name, sizeof name, "%s.bias", l->qkv[p].name);
        if (load_vector(ld, &l->qkv[p].bias, name, l->qkv[p].w.rows)) return -1;
    }
    if (!(has & HAS_HEAD_NORM)) return 0;
    return load_layer_norm(ld, &l->norm_q, i, "self_attn.q_norm", ld->s->hp.head_dim) ||
                   load_layer_norm(ld, &l->norm_k, i, "self_attn.k_norm", ld->s->hp.head_dim)
               ? -1
               : 0;
}

static int load_layer(const loader *ld, layer *l, int i) {
    const hparams *hp = &ld->s->hp;
    int64_t q = hp->heads * hp->head_dim, kv = hp->kv_heads * hp->head_dim;
    return load_layer_norm(ld, &l->norm_in, i, "input_layernorm", hp->dim) ||
                   load_proj(ld, &l->qkv[0], i, "self_attn.q_proj", q, hp->dim) ||
                   load_proj(ld, &l->qkv[1], i, "self_attn.k_proj", kv, hp->dim) ||
                   load_proj(ld, &l->qkv[2], i, "self_attn.v_proj", kv, hp->dim) ||
                   load_proj(ld, &l->o, i, "self_attn.o_proj", hp->dim, q) ||
                   load_layer_norm(ld, &l->norm_mid, i, "post_attention_layernorm", hp->dim) ||
                   load_proj(ld, &l->gate_up[0], i, "mlp.gate_proj", hp->ffn, hp->dim) ||
                   load_proj(ld, &l->gate_up[1], i, "mlp.up_proj", hp->ffn, hp->dim) ||
                   load_proj(ld, &l->down, i, "mlp.down_proj", hp->dim, hp->ffn) || load_extras(ld, l, i)
               ? -1
               : 0;
}

/* Angles as transformers makes them: theta^(2i/d) and the product with the position are rounded to fp32. */
static void make_rope(model *m, int64_t positions, arena *run) {
    int64_t half = m->hp.head_dim / 2;
    const size_t bytes = (size_t)mul_checked(positions, half) * sizeof(float);
    float *cosines = xcalloc(bytes, 1), *sines = xcalloc(bytes, 1);
    for (int64_t i = 0; i < half && !run->planning; i++) {
        float frequency = 1 / (float)pow(m->hp.rope_theta, (double)((float)(2 * i) / (float)m->hp.head_dim));
        for (int64_t p = 0; p < positions; p++) {
            double angle = (double)((float)p * frequency);
            cosines[p * half + i] = (float)cos(angle), sines[p * half + i] = (float)sin(angle);
        }
    }
    m->rope.cos = arena_copy(run, cosines, bytes), m->rope.sin = arena_copy(run, sines, bytes);
    m->rope.dim = (int)m->hp.head_dim, m->rope.positions = positions;
    free(cosines), free(sines);
}

static void list_groups(model *m) {
    m->groups = xcalloc((size_t)m->hp.layers * 4, sizeof *m->groups);
    for (int64_t i = 0; i < m->hp.layers; i++) {
        layer *l = &m->layers[i];
        m->groups[m->n_groups++] = (proj_group_ref){l->qkv, 3};
        m->groups[m->n_groups++] = (proj_group_ref){&l->o, 1};
        m->groups[m->n_groups++] = (proj_group_ref){l->gate_up, 2};
        m->groups[m->n_groups++] = (proj_group_ref){&l->down, 1};
    }
    for (int g = 0; g < m->n_groups; g++)
        for (int i = 0; i < m->groups[g].n; i++) m->groups[g].p[i].group = g;
}

/* Where small tensors were read the system mapped many pages around them; what is used is mapped again as it is. */
static void drop_files(const model_source *s) {
    int n;
    const file_map *files = model_source_files(s, &n);
    for (int i = 0; i < n; i++) file_drop(files[i].data, files[i].size);
}

int model_open(model *m, const model_source *s, const model_options *o, arena *run) {
    loader ld = {s, o, run, &m->nonfinite};
    weight w;
    *m = (model){.fam = s->fam, .hp = s->hp, .first_trainable = 2 * (int)s->hp.layers};
    m->attn_scale = (float)(1 / sqrt((double)m->hp.head_dim));
    m->layers = xcalloc((size_t)m->hp.layers, sizeof *m->layers);
    list_groups(m); /* first: model_close frees by them, also after a failure */
    if (model_source_weight(s, "model.embed_tokens.weight", m->hp.vocab, m->hp.dim, &w)) return -1;
    m->embed = m->head = settle(&ld, &w, 0);
    check_finite(&ld, "model.embed_tokens.weight", &w, &m->embed);
    bool own_head = model_source_has(s, "lm_head.weight") && !m->hp.tied;
    if (!own_head && !m->hp.tied) return fail(EXIT_INPUT, "%s: tensor 'lm_head.weight' is missing", s->path);
    if (own_head) {
        if (model_source_weight(s, "lm_head.weight", m->hp.vocab, m->hp.dim, &w)) return -1;
        load_stored(&ld, &m->head, "lm_head.weight", &w, 0);
    } else {
        pack(&ld, &m->embed, 0, m->embed.data == w.data, &m->head);
    }
    if (load_vector(&ld, &m->norm_out, "model.norm.weight", m->hp.dim)) return -1;
    for (int64_t i = 0; i < m->hp.layers; i++)
        if (load_layer(&ld, &m->layers[i], (int)i)) return -1;
    make_rope(m, o->positions, run);
    drop_files(s);
    return 0;
}

void model_close(model *m) {
    for (int g = 0; g < m->n_groups; g++)
        for (int i = 0; i < m->groups[g].n; i++) {
            proj *p = &m->groups[g].p[i];
            free(p->name);
            weight_release(&p->w);
        }
    if (m->head.fmt && weight_rows16(&m->head)) weight_release(&m->head);
    free(m->groups), free(m->layers), free(m->nonfinite);
    *m = (model){0};
}

int64_t model_params(const model *m) {
    int64_t n = m->embed.rows * m->embed.cols + m->hp.dim;
    if (m->head.data != m->embed.data) n += m->head.rows * m->head.cols;
    n += m->hp.layers * 2 * (m->hp.dim + (m->fam->has & HAS_HEAD_NORM ? m->hp.head_dim : 0));
    for (int g = 0; g < m->n_groups; g++)
        for (int i = 0; i < m->groups[g].n; i++) {
            const proj *p = &m->groups[g].p[i];
            n += p->w.rows * p->w.cols + (p->bias ? p->w.rows : 0);
        }
    return n;
}

void model_find_trainable(model *m) {
    m->first_trainable = 2 * (int)m->hp.layers;
    for (int g = m->n_groups - 1; g >= 0; g--)
        for (int i = 0; i < m->groups[g].n; i++)
            if (m->groups[g].p[i].lora) m->first_trainable = g / 2;
}
