/* Reading GGUF: [magic, version, counts][key-values][tensor infos][padding][data], little endian (ggml docs/gguf.md). A
 * cursor bounds every read by the file; counts are compared with the bytes that are left before anything is allocated.
 */
#include "core/gguf.h"
#include "core/arena.h"
#include "core/error.h"
#include "core/num.h"
#include "core/text.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { KV_BYTES_MIN = 8 + 1 + 4 + 1, TENSOR_BYTES_MIN = 8 + 1 + 4 + 8 + 4 + 8 };

static const uint8_t scalar_size[GGUF_TYPES] = {
    [GGUF_U8] = 1,  [GGUF_I8] = 1,   [GGUF_U16] = 2, [GGUF_I16] = 2, [GGUF_U32] = 4, [GGUF_I32] = 4,
    [GGUF_F32] = 4, [GGUF_BOOL] = 1, [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8,
};

typedef struct {
    const file_map *m;
    uint64_t at;
    uint64_t strings;
} cursor;

static int fail_at(const cursor *c, uint64_t at, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
static int fail_at(const cursor *c, uint64_t at, const char *fmt, ...) {
    char what[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(what, sizeof what, fmt, ap);
    va_end(ap);
    return fail(EXIT_INPUT, "%s: offset 0x%" PRIx64 " (%" PRIu64 "): %s", c->m->path, at, at, what);
}

static uint64_t left(const cursor *c) { return c->m->size - c->at; }

static uint64_t little(const uint8_t *p, int bytes) {
    uint64_t v = 0;
    for (int i = bytes - 1; i >= 0; i--) v = v << 8 | p[i];
    return v;
}

static int read_uint(cursor *c, int bytes, const char *what, uint64_t *out) {
    *out = 0;
    if (left(c) < (uint64_t)bytes) return fail_at(c, c->at, "the file ends inside %s", what);
    *out = little(c->m->data + c->at, bytes);
    c->at += (uint64_t)bytes;
    return 0;
}

static int read_str(cursor *c, const char *what, uint64_t max, gguf_str *out) {
    uint64_t at = c->at, n;
    *out = (gguf_str){"", 0};
    if (read_uint(c, 8, what, &n)) return -1;
    if (n > left(c))
        return fail_at(c, at, "%s: length %" PRIu64 " exceeds the %" PRIu64 " bytes left in the file", what, n,
                       left(c));
    if (n > max) return fail_at(c, at, "%s: length %" PRIu64 " exceeds %" PRIu64, what, n, max);
    *out = (gguf_str){(const char *)c->m->data + c->at, n};
    c->at += n;
    return 0;
}

/* A key or a tensor's name, copied so that it ends in NUL. */
static int read_name(cursor *c, const char *what, uint64_t max, char **out) {
    uint64_t at = c->at;
    gguf_str s;
    if (read_str(c, what, max, &s)) return -1;
    if (!s.n) return fail_at(c, at, "%s is empty", what);
    if (!text_is_name(s.data, s.n))
        return fail_at(c, at, "%s '%.*s' is not UTF-8 or has control characters", what, (int)(s.n < 64 ? s.n : 64),
                       s.data);
    *out = xcalloc(s.n + 1, 1);
    memcpy(*out, s.data, s.n);
    return 0;
}

/* ---- key-values ---- */

static int read_strings(cursor *c, gguf_kv *kv) {
    char what[128];
    if (kv->n > GGUF_STRINGS_MAX - c->strings)
        return fail_at(c, kv->offset, "key '%.64s': %" PRIu64 " strings exceed the file's limit of %u", kv->key, kv->n,
                       GGUF_STRINGS_MAX);
    c->strings += kv->n;
    kv->strings = xcalloc(kv->n, sizeof *kv->strings);
    snprintf(what, sizeof what, "key '%.64s': a string", kv->key);
    for (uint64_t i = 0; i < kv->n; i++)
        if (read_str(c, what, GGUF_STRING_MAX, &kv->strings[i])) return -1;
    return 0;
}

static int read_scalars(cursor *c, gguf_kv *kv, gguf_type type) {
    uint64_t bytes = kv->n * scalar_size[type]; /* n <= GGUF_ARRAY_MAX */
    if (bytes > left(c)) return fail_at(c, c->at, "key '%.128s': the file ends inside the value", kv->key);
    kv->data = c->m->data + c->at;
    if (type == GGUF_BOOL)
        for (uint64_t i = 0; i < kv->n; i++)
            if (kv->data[i] > 1)
                return fail_at(c, c->at + i, "key '%.128s': a bool of value %d, expected 0 or 1", kv->key, kv->data[i]);
    c->at += bytes;
    return 0;
}

static int read_array(cursor *c, gguf_kv *kv) {
    uint64_t at = c->at, elem, n;
    if (read_uint(c, 4, "an array's element type", &elem) || read_uint(c, 8, "an array's length", &n)) return -1;
    if (elem == GGUF_ARRAY) return fail_at(c, at, "key '%.128s': nested arrays are not supported", kv->key);
    if (elem >= GGUF_TYPES)
        return fail_at(c, at, "key '%.128s': array element type %" PRIu64 " is unknown", kv->key, elem);
    uint64_t each = elem == GGUF_STRING ? 8 : scalar_size[elem];
    if (n > left(c) / each)
        return fail_at(c, at + 4,
                       "key '%.128s': %" PRIu64 " array elements exceed the %" PRIu64 " bytes left in the file",
                       kv->key, n, left(c));
    if (n > GGUF_ARRAY_MAX)
        return fail_at(c, at + 4, "key '%.128s': %" PRIu64 " array elements exceed %u", kv->key, n, GGUF_ARRAY_MAX);
    kv->elem = (gguf_type)elem, kv->n = n;
    return elem == GGUF_STRING ? read_strings(c, kv) : read_scalars(c, kv, kv->elem);
}

static int read_kv(cursor *c, gguf_kv *kv) {
    uint64_t type;
    kv->offset = c->at, kv->n = 1;
    if (read_name(c, "a key", GGUF_KEY_MAX, &kv->key) || read_uint(c, 4, "a value's type", &type)) return -1;
    if (type >= GGUF_TYPES)
        return fail_at(c, c->at - 4, "key '%.128s': value type %" PRIu64 " is unknown", kv->key, type);
    kv->type = (gguf_type)type;
    if (type == GGUF_ARRAY) return read_array(c, kv);
    return type == GGUF_STRING ? read_strings(c, kv) : read_scalars(c, kv, kv->type);
}

static int by_key(const void *a, const void *b, void *kv) {
    const gguf_kv *x = (gguf_kv *)kv + *(const int *)a, *y = (gguf_kv *)kv + *(const int *)b;
    int d = strcmp(x->key, y->key);
    return d ? d : (x->offset > y->offset) - (x->offset < y->offset);
}

static int read_kvs(gguf *g, cursor *c, uint64_t n) {
    g->kv = xcalloc(n, sizeof *g->kv);
    for (uint64_t i = 0; i < n; i++) {
        g->n_kv = (int)i + 1;
        if (read_kv(c, &g->kv[i])) return -1;
    }
    g->kv_order = xcalloc(n, sizeof *g->kv_order);
    for (int i = 0; i < g->n_kv; i++) g->kv_order[i] = i;
    qsort_r(g->kv_order, n, sizeof *g->kv_order, by_key, g->kv);
    for (int i = 1; i < g->n_kv; i++) {
        const gguf_kv *a = &g->kv[g->kv_order[i - 1]], *b = &g->kv[g->kv_order[i]];
        if (!strcmp(a->key, b->key))
            return fail_at(c, b->offset, "key '%.128s' is there already at offset 0x%" PRIx64 " (%" PRIu64 ")", b->key,
                           a->offset, a->offset);
    }
    return 0;
}

/* The keys that say how to read the rest of the file. */
static int read_own_keys(gguf *g, const cursor *c) {
    const gguf_kv *kv = gguf_find(g, "general.alignment");
    g->alignment = 32;
    if (kv && kv->type != GGUF_U32) return fail_at(c, kv->offset, "general.alignment is not of type u32");
    if (kv) g->alignment = little(kv->data, 4);
    if (g->alignment & (g->alignment - 1) || g->alignment < GGUF_ALIGNMENT_MIN || g->alignment > GGUF_ALIGNMENT_MAX)
        return fail_at(c, kv->offset, "general.alignment is %" PRIu64 ", expected a power of two from %d to %d",
                       g->alignment, GGUF_ALIGNMENT_MIN, GGUF_ALIGNMENT_MAX);
    int64_t parts, part;
    if (gguf_get_int_or(g, "split.count", 0, UINT16_MAX, 1, &parts) ||
        gguf_get_int_or(g, "split.no", 0, UINT16_MAX, 0, &part))
        return -1;
    if (parts > 1 || part > 0)
        return fail(EXIT_INPUT,
                    "%s: keys split.no and split.count: this is part %" PRId64 " of a model split into %" PRId64
                    " files; join them first (llama-gguf-split --merge)",
                    c->m->path, part + 1, parts);
    return 0;
}

/* ---- tensors ---- */

static int read_dims(cursor *c, gguf_tensor *t) {
    uint64_t n, ne, at = c->at;
    int64_t elements = 1;
    if (read_uint(c, 4, "a dimension count", &n)) return -1;
    if (n > GGUF_DIMS_MAX)
        return fail_at(c, at, "tensor '%s': dimension count %" PRIu64 " exceeds %d", t->name, n, GGUF_DIMS_MAX);
    if (!n) return fail_at(c, at, "tensor '%s' has no dimensions", t->name);
    t->dims = (int)n;
    for (int i = 0; i < GGUF_DIMS_MAX; i++) t->ne[i] = 1;
    for (int i = 0; i < t->dims; i++) {
        at = c->at;
        if (read_uint(c, 8, "a dimension", &ne)) return -1;
        if (!ne || ne > INT64_MAX)
            return fail_at(c, at, "tensor '%s': dimension %d is %" PRId64 ", expected 1 or more", t->name, i,
                           (int64_t)ne);
        t->ne[i] = (int64_t)ne;
        elements = mul_checked(elements, t->ne[i]);
        if (elements < 0) return fail_at(c, at, "tensor '%s': the dimensions multiply to more than 2^63", t->name);
    }
    return 0;
}

/* Leaves the offset within the data section in *offset: where that starts is known after the last tensor. */
static int read_tensor(const gguf *g, cursor *c, gguf_tensor *t, uint64_t *offset) {
    uint64_t type, at;
    if (read_name(c, "a tensor name", GGUF_NAME_MAX, &t->name) || read_dims(c, t)) return -1;
    at = c->at;
    if (read_uint(c, 4, "a tensor's type", &type)) return -1;
    int64_t block = type <= INT32_MAX ? ggml_type_block((int)type) : -1;
    if (block <= 0)
        return fail_at(c, at, "tensor '%s': type id %" PRIu64 " (%s) cannot be read by this build", t->name, type,
                       ggml_type_name(type <= INT32_MAX ? (int)type : -1));
    t->ggml_type = (int)type;
    if (t->ne[0] % block)
        return fail_at(c, at, "tensor '%s': rows of %" PRId64 " elements are no multiple of %s's block of %" PRId64,
                       t->name, t->ne[0], ggml_type_name(t->ggml_type), block);
    int64_t bytes = ggml_type_bytes(t->ggml_type, t->ne[0] * t->ne[1] * t->ne[2] * t->ne[3]);
    if (bytes < 0) return fail_at(c, at, "tensor '%s': its bytes are more than 2^63", t->name);
    t->bytes = (uint64_t)bytes;
    at = c->at;
    if (read_uint(c, 8, "a tensor's offset", offset)) return -1;
    if (*offset % g->alignment)
        return fail_at(c, at, "tensor '%s': offset %" PRIu64 " is no multiple of the alignment %" PRIu64, t->name,
                       *offset, g->alignment);
    return 0;
}

static int by_tensor_name(const void *a, const void *b, void *tensors) {
    const gguf_tensor *t = tensors;
    int d = strcmp(t[*(const int *)a].name, t[*(const int *)b].name);
    return d ? d : *(const int *)a - *(const int *)b;
}

static int by_data(const void *a, const void *b, void *tensors) {
    const gguf_tensor *x = (gguf_tensor *)tensors + *(const int *)a, *y = (gguf_tensor *)tensors + *(const int *)b;
    return (x->data > y->data) - (x->data < y->data);
}

static int check_names(gguf *g, const cursor *c) {
    for (int i = 0; i < g->n_tensors; i++) g->tensor_order[i] = i;
    qsort_r(g->tensor_order, (size_t)g->n_tensors, sizeof *g->tensor_order, by_tensor_name, g->tensors);
    for (int i = 1; i < g->n_tensors; i++) {
        const char *name = g->tensors[g->tensor_order[i]].name;
        if (!strcmp(name, g->tensors[g->tensor_order[i - 1]].name))
            return fail(EXIT_INPUT, "%s: two tensors have the name '%s' (numbers %d and %d)", c->m->path, name,
                        g->tensor_order[i - 1], g->tensor_order[i]);
    }
    return 0;
}

/* A gap of up to one alignment is padding; a larger one hides data from no reader, but is worth a word. */
static void note_gap(gguf *g, uint64_t bytes, const char *after) {
    if (bytes > g->alignment && !g->note)
        g->note = xprintf("%s: %" PRIu64 " bytes after tensor '%s' belong to no tensor", g->file.path, bytes, after);
}

/* All have data pointers within the file: no two may share a byte. */
static int check_overlap(gguf *g, const cursor *c) {
    if (!g->n_tensors) return 0;
    int *order = xcalloc((size_t)g->n_tensors, sizeof *order), r = 0;
    for (int i = 0; i < g->n_tensors; i++) order[i] = i;
    qsort_r(order, (size_t)g->n_tensors, sizeof *order, by_data, g->tensors);
    const gguf_tensor *last = &g->tensors[order[0]];
    for (int i = 1; i < g->n_tensors && !r; i++) {
        const gguf_tensor *t = &g->tensors[order[i]];
        uint64_t gap = (uint64_t)(t->data - last->data);
        if (gap < last->bytes)
            r = fail_at(c, (uint64_t)(t->data - c->m->data), "the data of tensors '%s' and '%s' overlap", last->name,
                        t->name);
        else
            note_gap(g, gap - last->bytes, last->name);
        last = t;
    }
    note_gap(g, (uint64_t)(c->m->data + c->m->size - last->data) - last->bytes, last->name);
    free(order);
    return r;
}

static int place_tensors(gguf *g, const cursor *c, const uint64_t *offsets) {
    uint64_t start = c->at + (g->alignment - c->at % g->alignment) % g->alignment; /* at <= size < 2^63 */
    for (int i = 0; i < g->n_tensors; i++) {
        gguf_tensor *t = &g->tensors[i];
        uint64_t room = start <= c->m->size ? c->m->size - start : 0;
        if (offsets[i] > room || t->bytes > room - offsets[i])
            return fail(EXIT_INPUT,
                        "%s: tensor '%s': %" PRIu64 " bytes at offset %" PRIu64 " of a data section of %" PRIu64
                        " bytes: the file is cut short or damaged",
                        c->m->path, t->name, t->bytes, offsets[i], room);
        t->data = c->m->data + start + offsets[i];
    }
    return check_overlap(g, c);
}

static int read_tensors(gguf *g, cursor *c, uint64_t n) {
    g->tensors = xcalloc(n, sizeof *g->tensors);
    g->tensor_order = xcalloc(n, sizeof *g->tensor_order);
    uint64_t *offsets = xcalloc(n, sizeof *offsets);
    int r = 0;
    for (uint64_t i = 0; i < n && !r; i++) {
        g->n_tensors = (int)i + 1;
        r = read_tensor(g, c, &g->tensors[i], &offsets[i]);
    }
    if (!r) r = check_names(g, c) || place_tensors(g, c, offsets) ? -1 : 0;
    free(offsets);
    return r;
}

/* ---- the file ---- */

static int read_header(gguf *g, cursor *c, uint64_t *n_tensors, uint64_t *n_kv) {
    const file_map *m = c->m;
    if (m->size < 4 || memcmp(m->data, "GGUF", 4) != 0) {
        const char *guess = file_guess(m->data, m->size);
        if (guess) return fail(EXIT_INPUT, "%s: not a GGUF file: it looks like %s", m->path, guess);
        if (m->size >= 24) return fail_at(c, 0, "not a GGUF file: it does not begin with 'GGUF'");
    }
    if (m->size < 24)
        return fail(EXIT_INPUT, "%s: a file of %" PRIu64 " bytes is too short for a GGUF header", m->path, m->size);
    uint64_t version;
    c->at = 4;
    if (read_uint(c, 4, "the header", &version) || read_uint(c, 8, "the header", n_tensors) ||
        read_uint(c, 8, "the header", n_kv))
        return -1;
    if (version == 0x02000000 || version == 0x03000000)
        return fail_at(c, 4, "a big-endian GGUF file: convert it to little endian");
    if (version < 2 || version > 3)
        return fail_at(c, 4, "GGUF version %" PRIu64 ", versions 2 and 3 are supported", version);
    if (*n_tensors > GGUF_TENSORS_MAX || *n_tensors > left(c) / TENSOR_BYTES_MIN)
        return fail_at(c, 8, "%" PRIu64 " tensors: more than the file can hold or than %d", *n_tensors,
                       GGUF_TENSORS_MAX);
    if (*n_kv > GGUF_KV_MAX || *n_kv > left(c) / KV_BYTES_MIN)
        return fail_at(c, 16, "%" PRIu64 " key-values: more than the file can hold or than %d", *n_kv, GGUF_KV_MAX);
    g->version = (uint32_t)version;
    return 0;
}

int gguf_open(gguf *g, const char *path) {
    *g = (gguf){0};
    if (file_open(&g->file, path)) return -1;
    cursor c = {.m = &g->file};
    uint64_t n_tensors = 0, n_kv = 0;
    if (!read_header(g, &c, &n_tensors, &n_kv) && !read_kvs(g, &c, n_kv) && !read_own_keys(g, &c) &&
        !read_tensors(g, &c, n_tensors))
        return 0;
    gguf_close(g);
    return -1;
}

void gguf_close(gguf *g) {
    for (int i = 0; i < g->n_kv; i++) free(g->kv[i].key), free(g->kv[i].strings);
    for (int i = 0; i < g->n_tensors; i++) free(g->tensors[i].name);
    free(g->kv), free(g->tensors), free(g->kv_order), free(g->tensor_order), free(g->note);
    file_close(&g->file);
    *g = (gguf){0};
}

const gguf_tensor *gguf_tensor_find(const gguf *g, const char *name) {
    int lo = 0, hi = g->n_tensors;
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2, d = strcmp(g->tensors[g->tensor_order[mid]].name, name);
        if (!d) return &g->tensors[g->tensor_order[mid]];
        if (d < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}
