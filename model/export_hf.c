/* Hugging Face directories: model.safetensors, or shards and their index. With NF4 every linear layer of the blocks
 * becomes bitsandbytes' tensors (model/nf4_layout.h); embedding, head, norms and biases stay floats, as transformers
 * leaves them. GGUF's q and k rows come out in Hugging Face order. */
#include "core/error.h"
#include "core/json.h"
#include "model/export_parts.h"
#include "model/nf4_layout.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    export_sink sink;
    st_writer w;
} hf_sink;

static int put(export_sink *k, const void *data, uint64_t bytes) {
    return st_writer_data(&((hf_sink *)k)->w, data, bytes);
}

static const char *torch_name(st_dtype t) { return t == ST_F32 ? "float32" : t == ST_F16 ? "float16" : "bfloat16"; }

static const weight_format *float_format(st_dtype t) {
    return &weight_formats[t == ST_F32 ? FMT_F32 : t == ST_F16 ? FMT_F16 : FMT_BF16];
}

static bool is_nf4(const export_item *it) { return it->fmt->id == FMT_NF4; }

static uint64_t item_bytes(const exporter *e, const export_item *it) {
    int64_t n[NF4_PARTS];
    uint64_t sum = 0;
    if (!is_nf4(it)) return (uint64_t)((it->rows ? it->rows : 1) * it->cols * it->fmt->bytes);
    nf4_part_sizes(it->rows, it->cols, e->o->double_quant, n);
    for (int p = 0; p < NF4_PARTS; p++) sum += nf4_part_bytes(p, n);
    return sum;
}

/* In order; a file is closed before the tensor that would make it too large. */
static void split_files(exporter *e) {
    uint64_t in_file = 0;
    e->r->files = 1;
    for (int i = 0; i < e->n; i++) {
        uint64_t bytes = item_bytes(e, &e->items[i]);
        if (in_file && in_file + bytes > e->o->shard_bytes) e->r->files++, in_file = 0;
        e->items[i].file = e->r->files - 1;
        in_file += bytes, e->r->bytes += bytes;
    }
}

static char *file_name(const exporter *e, int file) {
    return e->r->files == 1 ? xstrdup("model.safetensors")
                            : xprintf("model-%05d-of-%05d.safetensors", file + 1, e->r->files);
}

/* The tensors that an item becomes, in the order of writing; names are heap. */
static int declare(const exporter *e, const export_item *it, st_decl d[NF4_PARTS]) {
    int64_t n[NF4_PARTS];
    int count = 0;
    if (!is_nf4(it)) {
        d[0] = (st_decl){xstrdup(it->name), e->o->dtype, it->rows ? 2 : 1, {it->rows ? it->rows : it->cols, it->cols}};
        return 1;
    }
    nf4_part_sizes(it->rows, it->cols, e->o->double_quant, n);
    for (int p = 0; p < NF4_PARTS; p++)
        if (n[p])
            d[count++] = (st_decl){
                xprintf("%s%s", it->name, nf4_part_suffix(p)), nf4_part_dtype(p), p == NF4_CODES ? 2 : 1, {n[p], 1}};
    return count;
}

static int write_nf4(exporter *e, const export_item *it, st_writer *w) {
    int64_t n[NF4_PARTS];
    char state[NF4_STATE_BYTES + 16];
    nf4_part_sizes(it->rows, it->cols, e->o->double_quant, n);
    if (nf4_print_state(it->name, it->rows, it->cols, torch_name(e->o->dtype), e->o->double_quant, e->offset,
                        n[NF4_STATE], state))
        return -1;
    const void *data[NF4_PARTS] = {e->absmax, e->nested, nf4_dynamic_map, nf4_codes, e->codes, e->scale_codes, state};
    for (int p = 0; p < NF4_PARTS; p++)
        if (n[p] && st_writer_data(w, data[p], nf4_part_bytes(p, n))) return -1;
    return 0;
}

static int write_file(exporter *e, int file, file_set *set) {
    static const char *const metadata[] = {"format", "pt"};
    st_decl *decls = xcalloc((size_t)e->n * NF4_PARTS, sizeof *decls);
    hf_sink k = {.sink = {put}};
    int n = 0;
    for (int i = 0; i < e->n; i++)
        if (e->items[i].file == file) n += declare(e, &e->items[i], decls + n);
    char *name = file_name(e, file), *path = file_set_path(set, name);
    int bad = st_writer_open(&k.w, path, decls, n, metadata, 1), opened = !bad;
    for (int i = 0; i < e->n && !bad; i++) {
        const export_item *it = &e->items[i];
        if (it->file != file) continue;
        bad = export_tensor(e, it, &k.sink) || (is_nf4(it) && write_nf4(e, it, &k.w));
        e->r->row[e->r->tensors - 1].bytes = item_bytes(e, it);
    }
    if (!bad)
        file_set_take(set, &k.w.out);
    else if (opened)
        st_writer_abandon(&k.w);
    for (int i = 0; i < n; i++) free(decls[i].name);
    free(decls), free(name), free(path);
    return bad ? -1 : 0;
}

static int write_index(const exporter *e, file_set *set) {
    json_t *map = json_object();
    for (int i = 0; i < e->n; i++) {
        char *name = file_name(e, e->items[i].file);
        st_decl d[NF4_PARTS];
        for (int n = declare(e, &e->items[i], d); n > 0; n--) {
            json_object_set_new(map, d[n - 1].name, json_string(name));
            free(d[n - 1].name);
        }
        free(name);
    }
    json_t *o = json_pack("{s:{s:I},s:o}", "metadata", "total_size", (json_int_t)e->r->bytes, "weight_map", map);
    CHECK(o, "the index");
    char *text = json_dumps(o, JSON_INDENT(2) | JSON_SORT_KEYS);
    int bad = file_set_add(set, "model.safetensors.index.json", text, strlen(text));
    free(text);
    json_decref(o);
    return bad;
}

int export_hf(const export_input *in, const export_options *o, file_set *set, export_report *r) {
    exporter e;
    export_list(&e, in, o, r);
    for (int i = 0; i < e.n; i++)
        e.items[i].fmt = o->to->fmt == FMT_NF4 && e.items[i].p ? &weight_formats[FMT_NF4] : float_format(o->dtype);
    split_files(&e);
    int bad = export_open(&e);
    for (int f = 0; f < r->files && !bad; f++) bad = write_file(&e, f, set);
    if (!bad && r->files > 1) bad = write_index(&e, set);
    CHECK(bad || r->merged == (in->ad ? in->ad->n_loras : 0), "%d modules merged", r->merged);
    export_close(&e);
    return bad;
}
