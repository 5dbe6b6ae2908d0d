/* GGUF files that llama.cpp loads: keys of the hyperparameters (ggml docs/gguf.md), the tokenizer's, and the tensors
 * under GGUF's names, q and k interleaved where the architecture's files have them so. Keys of a GGUF base are carried
 * over, but for those that say how its weights were stored. */
#include "core/error.h"
#include "data/tokenizer_write.h"
#include "model/export_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    export_sink sink;
    gguf_writer w;
} gguf_sink;

static int put(export_sink *k, const void *data, uint64_t bytes) {
    return gguf_writer_data(&((gguf_sink *)k)->w, data, bytes);
}

/* ---- keys ---- */

static bool starts(const char *s, const char *with) { return !strncmp(s, with, strlen(with)); }

/* How the base's weights were made is not how these were. A tokenizer given apart replaces the base's. */
static bool carried(const char *key, bool own_tokenizer) {
    static const char *const dropped[] = {"general.file_type", "general.quantization_version", "general.alignment",
                                          "quantize.", "split."};
    for (size_t i = 0; i < sizeof dropped / sizeof *dropped; i++)
        if (starts(key, dropped[i])) return false;
    return own_tokenizer || !starts(key, "tokenizer.");
}

static void put_int(gguf_meta *m, const model_source *s, const char *suffix, int64_t v) {
    char key[96];
    snprintf(key, sizeof key, "%s.%s", s->fam->gguf, suffix);
    gguf_put_u32(m, key, (uint32_t)v); /* source_config.c holds all of them far below 2^32 */
}

static void put_real(gguf_meta *m, const model_source *s, const char *suffix, double v) {
    char key[96];
    snprintf(key, sizeof key, "%s.%s", s->fam->gguf, suffix);
    gguf_put_f32(m, key, (float)v);
}

static void put_name(gguf_meta *m, const char *path) {
    size_t end = strlen(path);
    while (end > 1 && path[end - 1] == '/') end--;
    size_t begin = end;
    while (begin > 0 && path[begin - 1] != '/') begin--;
    if (end > begin) gguf_put_string(m, "general.name", (gguf_str){path + begin, end - begin});
}

/* A window of some layers has no key that llama.cpp reads for these architectures. */
static int check_window(const model_source *s) {
    const hparams *hp = &s->hp;
    if (!hp->window || hp->window >= hp->context || s->fam->window == WINDOW_ALL) return 0;
    return fail(EXIT_INPUT, "%s: a sliding window of %ld keys in the layers from %ld on cannot be written as GGUF",
                s->path, (long)hp->window, (long)hp->window_from);
}

static int put_hparams(gguf_meta *m, const model_source *s) {
    const hparams *hp = &s->hp;
    if (check_window(s)) return -1;
    gguf_put_text(m, "general.architecture", s->fam->gguf);
    gguf_put_text(m, "general.type", "model");
    put_name(m, s->path);
    put_int(m, s, "block_count", hp->layers), put_int(m, s, "context_length", hp->context);
    put_int(m, s, "embedding_length", hp->dim), put_int(m, s, "feed_forward_length", hp->ffn);
    put_int(m, s, "attention.head_count", hp->heads), put_int(m, s, "attention.head_count_kv", hp->kv_heads);
    put_real(m, s, "attention.layer_norm_rms_epsilon", hp->norm_eps);
    put_real(m, s, "rope.freq_base", hp->rope_theta), put_int(m, s, "rope.dimension_count", hp->head_dim);
    put_int(m, s, "vocab_size", hp->vocab);
    if (hp->head_dim * hp->heads != hp->dim) {
        put_int(m, s, "attention.key_length", hp->head_dim);
        put_int(m, s, "attention.value_length", hp->head_dim);
    }
    if (!hp->window || hp->window >= hp->context) return 0;
    put_int(m, s, "attention.sliding_window", hp->window);
    fprintf(stderr, "note: %s: a sliding window of %ld keys: llama.cpp has none for '%s' and looks at all of them\n",
            s->path, (long)hp->window, s->fam->gguf);
    return 0;
}

static bool has_tokenizer(const char *dir) {
    char *path = path_join(dir, "tokenizer.json");
    bool there = path_exists(path);
    free(path);
    return there;
}

static int put_keys(gguf_meta *m, const export_input *in, const export_options *o, const char *tokenizer) {
    const model_source *s = in->s;
    if (s->is_gguf) {
        for (int i = 0; i < s->g.n_kv; i++)
            if (carried(s->g.kv[i].key, !tokenizer)) gguf_put_kv(m, &s->g.kv[i]);
    } else if (put_hparams(m, s)) {
        return -1;
    }
    gguf_put_u32(m, "general.quantization_version", 2); /* of the block formats: ggml's GGML_QNT_VERSION */
    gguf_put_u32(m, "general.file_type", (uint32_t)o->to->file_type);
    if (o->importance && o->importance->dataset) gguf_put_text(m, "quantize.imatrix.dataset", o->importance->dataset);
    if (o->importance) gguf_put_u32(m, "quantize.imatrix.entries_count", (uint32_t)o->importance->n);
    const char *dir = tokenizer ? tokenizer : s->is_gguf ? NULL : s->path;
    if (dir && !tokenizer && !has_tokenizer(dir)) {
        fprintf(stderr, "note: %s has no tokenizer.json: the GGUF file is without a tokenizer\n", dir);
        return 0;
    }
    return dir ? tokenizer_write_keys(dir, s->hp.vocab, m) : 0;
}

/* ---- tensors ---- */

static void declare(const exporter *e, gguf_decl *decls, char (*names)[GGUF_NAME_MAX + 1]) {
    for (int i = 0; i < e->n; i++) {
        const export_item *it = &e->items[i];
        CHECK(name_to_gguf(it->name, names[i], sizeof names[i]), "no GGUF name for %s", it->name);
        decls[i] =
            (gguf_decl){names[i], it->fmt->ggml_type, it->rows ? 2 : 1, {it->cols, it->rows ? it->rows : 1, 1, 1}};
    }
}

static int permuted(const model_source *s, const char *name) {
    if (!s->fam->gguf_permuted) return 0;
    return strstr(name, ".q_proj.") ? (int)s->hp.heads : strstr(name, ".k_proj.") ? (int)s->hp.kv_heads : 0;
}

static int write_tensors(exporter *e, const gguf_meta *m, const char *path) {
    gguf_sink k = {.sink = {put}};
    gguf_decl *decls = xcalloc((size_t)e->n, sizeof *decls);
    char(*names)[GGUF_NAME_MAX + 1] = xcalloc((size_t)e->n, sizeof *names);
    declare(e, decls, names);
    int bad = gguf_writer_open(&k.w, path, m, decls, e->n), opened = !bad;
    for (int i = 0; i < e->n && !bad; i++) {
        const export_item *it = &e->items[i];
        bad = export_tensor(e, it, &k.sink);
        export_row *r = &e->r->row[i];
        r->bytes = (uint64_t)((it->rows ? it->rows : 1) * (it->cols / it->fmt->block) * it->fmt->bytes);
        e->r->bytes += r->bytes;
    }
    if (!bad)
        bad = gguf_writer_close(&k.w);
    else if (opened)
        gguf_writer_abandon(&k.w);
    free(decls), free(names);
    return bad ? -1 : 0;
}

int export_gguf(const export_input *in, const export_options *o, const char *tokenizer, const char *path,
                export_report *r) {
    exporter e;
    gguf_meta m = {0};
    export_list(&e, in, o, r);
    for (int i = 0; i < e.n; i++) {
        export_item *it = &e.items[i];
        it->fmt = &weight_formats[export_target_format(o->to, in->s, it->name, it->rows, it->cols)];
        it->heads_out = it->rows ? permuted(in->s, it->name) : 0;
    }
    int bad = put_keys(&m, in, o, tokenizer) || export_open(&e) || write_tensors(&e, &m, path);
    CHECK(bad || r->merged == (in->ad ? in->ad->n_loras : 0), "%d modules merged", r->merged);
    gguf_meta_free(&m);
    export_close(&e);
    return bad ? -1 : 0;
}
