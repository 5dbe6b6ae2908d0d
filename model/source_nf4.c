/* Checkpoints that bitsandbytes has quantised to NF4 (layout: nf4_layout.h): each is found by the tensor of its state,
 * checked as a whole, and used where it lies. Its codes may be stored under any type: they are bytes. What the state's
 * dtype asks for, rounding every dequantised weight to 16 bits, is not done: weights are read as fp32. */
#include "core/error.h"
#include "core/json.h"
#include "core/num.h"
#include "model/nf4_layout.h"
#include "model/source_parts.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define STATE ".quant_state.bitsandbytes__"

struct nf4_source {
    char *name; /* of the codes: "model.layers.0.self_attn.q_proj.weight" */
    int64_t rows, cols;
    const void *codes;
    nf4_meta meta;
    float *owned[3]; /* parts that did not lie on a multiple of 4 bytes */
};

static int by_name(const void *a, const void *b) {
    return strcmp(((const nf4_source *)a)->name, ((const nf4_source *)b)->name);
}

const nf4_source *source_nf4_find(const model_source *s, const char *name) {
    const nf4_source key = {.name = (char *)(uintptr_t)name};
    return s->n_nf4 ? bsearch(&key, s->nf4, (size_t)s->n_nf4, sizeof key, by_name) : NULL;
}

void source_nf4_weight(const nf4_source *n, weight *w) {
    *w = (weight){&weight_formats[FMT_NF4], n->rows, n->cols, 1, n->codes, &n->meta};
}

bool source_nf4_part(const model_source *s, const char *name) {
    for (int p = 0; p < NF4_PARTS; p++) {
        size_t n = strlen(name), k = strlen(nf4_part_suffix(p));
        if (!k || n <= k || strcmp(name + n - k, nf4_part_suffix(p)) != 0) continue;
        char *base = xprintf("%.*s", (int)(n - k), name);
        bool part = source_nf4_find(s, base);
        free(base);
        if (part) return true;
    }
    return false;
}

static int fail_part(const model_source *s, const char *name, const char *suffix, const char *what) {
    return fail(EXIT_INPUT, "%s: tensor '%s%s' %s", s->path, name, suffix, what);
}

/* A part of n elements; fp32 ones aligned. */
static int take_part(const model_source *s, nf4_source *t, int part, int64_t n, const void **data) {
    char *name = xprintf("%s%s", t->name, nf4_part_suffix(part));
    const st_tensor *f = safetensors_find(&s->st, name);
    free(name);
    st_dtype want = nf4_part_dtype(part);
    if (!f) return fail_part(s, t->name, nf4_part_suffix(part), "is missing");
    if ((part != NF4_CODES && f->dtype != want) || f->bytes != (uint64_t)n * (uint64_t)st_dtype_size(want)) {
        char what[128];
        snprintf(what, sizeof what, "holds %lu bytes of %s, expected %lu of %s", (unsigned long)f->bytes,
                 st_dtype_name(f->dtype), (unsigned long)((uint64_t)n * (uint64_t)st_dtype_size(want)),
                 st_dtype_name(want));
        return fail_part(s, t->name, nf4_part_suffix(part), what);
    }
    *data = f->data;
    if (want != ST_F32 || (uintptr_t)f->data % sizeof(float) == 0) return 0;
    int slot = part == NF4_PLAIN ? 0 : part == NF4_NESTED ? 1 : 2;
    free(t->owned[slot]);
    *data = t->owned[slot] = memcpy(xcalloc((size_t)n, sizeof(float)), f->data, (size_t)f->bytes);
    return 0;
}

static int read_state(const model_source *s, nf4_source *t, const json_t *o, const char *where, bool *twice) {
    const json_t *shape = json_object_get(o, "shape"), *r = json_array_get(shape, 0), *c = json_array_get(shape, 1);
    const char *type;
    int64_t block, nested = 0;
    double offset = 0;
    if (json_get_string_or(where, o, "quant_type", "", &type)) return -1;
    if (strcmp(type, "nf4") != 0)
        return fail_part(s, t->name, STATE "nf4", "names another 'quant_type' than nf4, which is not supported");
    if (json_get_int(where, o, "blocksize", 1, 1 << 16, &block)) return -1;
    if (json_array_size(shape) != 2 || !json_is_integer(r) || !json_is_integer(c) || json_integer_value(r) < 1 ||
        json_integer_value(c) < 1 || json_integer_value(r) > VOCAB_LIMIT || json_integer_value(c) > DIM_LIMIT)
        return fail_part(s, t->name, STATE "nf4", "has no 'shape' of two sizes");
    t->rows = json_integer_value(r), t->cols = json_integer_value(c);
    *twice = json_object_get(o, "nested_blocksize");
    if (*twice && (json_get_int(where, o, "nested_blocksize", 1, 1 << 16, &nested) ||
                   json_get_real_or(where, o, "nested_offset", -1e30, 1e30, NAN, &offset)))
        return -1;
    if (block != 64 || (*twice && (nested != 256 || !isfinite(offset))))
        return fail_part(s, t->name, STATE "nf4", "has blocks of another size than 64 (of scales: 256), or no offset");
    t->meta = (nf4_meta){.blocksize = 64, .nested_block = *twice ? 256 : 0, .offset = (float)offset};
    return 0;
}

static int read_parts(const model_source *s, nf4_source *t, bool twice) {
    int64_t n[NF4_PARTS];
    const void *map = NULL, *part = NULL;
    nf4_part_sizes(t->rows, t->cols, twice, n);
    if (take_part(s, t, NF4_CODES, n[NF4_CODES], &t->codes) || take_part(s, t, NF4_MAP, 16, &map)) return -1;
    if (memcmp(map, nf4_codes, sizeof nf4_codes) != 0)
        return fail_part(s, t->name, ".quant_map", "is another table than NF4's");
    t->meta.map = nf4_dynamic_map;
    if (!twice) {
        if (take_part(s, t, NF4_PLAIN, n[NF4_PLAIN], &part)) return -1;
        t->meta.absmax = part;
        return 0;
    }
    if (take_part(s, t, NF4_SCALES, n[NF4_SCALES], &part)) return -1;
    t->meta.code = part;
    if (take_part(s, t, NF4_NESTED, n[NF4_NESTED], &part)) return -1;
    t->meta.nested_absmax = part;
    if (take_part(s, t, NF4_NESTED_MAP, 256, &part)) return -1;
    t->meta.map = part;
    return 0;
}

static int read_one(model_source *s, const st_tensor *f, nf4_source *t) {
    bool twice = false;
    size_t n = f->bytes;
    while (n && (f->data[n - 1] == ' ' || !f->data[n - 1])) n--;
    char *where = xprintf("%s: tensor '%s'", s->path, f->name);
    json_t *o = json_parse(where, (const char *)f->data, n, 0);
    int bad = !o || !json_is_object(o) ? (o ? fail(EXIT_INPUT, "%s: expected an object", where) : -1)
                                       : read_state(s, t, o, where, &twice) || read_parts(s, t, twice);
    json_decref(o);
    free(where);
    return bad ? -1 : 0;
}

int source_nf4_open(model_source *s) {
    for (int i = 0; i < s->st.n; i++) {
        const st_tensor *f = &s->st.tensors[i];
        const char *state = strstr(f->name, STATE);
        if (!state) continue;
        if (strcmp(state, STATE "nf4") != 0)
            return fail(EXIT_INPUT, "%s: tensor '%s': FP4 checkpoints are not supported", s->path, f->name);
        s->nf4 = xrealloc(s->nf4, (size_t)s->n_nf4 + 1, sizeof *s->nf4);
        nf4_source *t = &s->nf4[s->n_nf4++];
        *t = (nf4_source){.name = xprintf("%.*s", (int)(state - f->name), f->name)};
        if (read_one(s, f, t)) return -1;
    }
    if (s->n_nf4) qsort(s->nf4, (size_t)s->n_nf4, sizeof *s->nf4, by_name);
    return 0;
}

void source_nf4_close(model_source *s) {
    for (int i = 0; i < s->n_nf4; i++) {
        free(s->nf4[i].name);
        for (int k = 0; k < 3; k++) free(s->nf4[i].owned[k]);
    }
    free(s->nf4);
}
