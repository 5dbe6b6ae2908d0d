/* The header is known from keys and declarations, so data go to disk as they come, padded tensor by tensor. */
#include "core/gguf_write.h"
#include "core/arena.h"
#include "core/error.h"
#include "core/text.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { VERSION = 3 };

/* ---- keys ---- */

static void put(gguf_meta *m, const void *data, size_t n) {
    if (m->n + n > m->cap) {
        m->cap = (m->n + n) * 2;
        m->bytes = xrealloc(m->bytes, m->cap, 1);
    }
    if (n) memcpy(m->bytes + m->n, data, n);
    m->n += n;
}

static void put_uint(gguf_meta *m, uint64_t v, int size) {
    uint8_t b[8];
    for (int i = 0; i < size; i++) b[i] = (uint8_t)(v >> 8 * i);
    put(m, b, (size_t)size);
}

static void put_str(gguf_meta *m, gguf_str s) {
    put_uint(m, s.n, 8);
    put(m, s.data, s.n);
}

static void put_key(gguf_meta *m, const char *key, gguf_type type) {
    CHECK(!gguf_meta_has(m, key), "key %s is put twice", key);
    CHECK(m->count < GGUF_KV_MAX, "%d keys", m->count);
    m->keys = xrealloc(m->keys, (size_t)m->count + 1, sizeof *m->keys);
    m->keys[m->count++] = xstrdup(key);
    put_str(m, (gguf_str){key, strlen(key)});
    put_uint(m, type, 4);
}

static void put_array(gguf_meta *m, const char *key, gguf_type elem, uint64_t n) {
    put_key(m, key, GGUF_ARRAY);
    put_uint(m, elem, 4), put_uint(m, n, 8);
}

bool gguf_meta_has(const gguf_meta *m, const char *key) {
    for (int i = 0; i < m->count; i++)
        if (!strcmp(m->keys[i], key)) return true;
    return false;
}

void gguf_meta_free(gguf_meta *m) {
    for (int i = 0; i < m->count; i++) free(m->keys[i]);
    free(m->keys), free(m->bytes);
    *m = (gguf_meta){0};
}

void gguf_put_string(gguf_meta *m, const char *key, gguf_str s) {
    put_key(m, key, GGUF_STRING);
    put_str(m, s);
}

void gguf_put_text(gguf_meta *m, const char *key, const char *s) { gguf_put_string(m, key, (gguf_str){s, strlen(s)}); }

void gguf_put_u32(gguf_meta *m, const char *key, uint32_t v) {
    put_key(m, key, GGUF_U32);
    put_uint(m, v, 4);
}

void gguf_put_f32(gguf_meta *m, const char *key, float v) {
    uint32_t u;
    memcpy(&u, &v, 4);
    put_key(m, key, GGUF_F32);
    put_uint(m, u, 4);
}

void gguf_put_bool(gguf_meta *m, const char *key, bool v) {
    put_key(m, key, GGUF_BOOL);
    put_uint(m, v, 1);
}

void gguf_put_strings(gguf_meta *m, const char *key, const gguf_str *s, uint64_t n) {
    put_array(m, key, GGUF_STRING, n);
    for (uint64_t i = 0; i < n; i++) put_str(m, s[i]);
}

void gguf_put_i32s(gguf_meta *m, const char *key, const int32_t *v, uint64_t n) {
    put_array(m, key, GGUF_I32, n);
    for (uint64_t i = 0; i < n; i++) put_uint(m, (uint32_t)v[i], 4);
}

static size_t scalar_bytes(gguf_type t) {
    static const uint8_t sizes[GGUF_TYPES] = {
        [GGUF_U8] = 1,  [GGUF_I8] = 1,   [GGUF_U16] = 2, [GGUF_I16] = 2, [GGUF_U32] = 4, [GGUF_I32] = 4,
        [GGUF_F32] = 4, [GGUF_BOOL] = 1, [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8};
    return sizes[t];
}

void gguf_put_kv(gguf_meta *m, const gguf_kv *kv) {
    if (kv->type == GGUF_STRING) {
        gguf_put_string(m, kv->key, kv->strings[0]);
    } else if (kv->type == GGUF_ARRAY && kv->elem == GGUF_STRING) {
        gguf_put_strings(m, kv->key, kv->strings, kv->n);
    } else if (kv->type == GGUF_ARRAY) {
        put_array(m, kv->key, kv->elem, kv->n);
        put(m, kv->data, kv->n * scalar_bytes(kv->elem));
    } else {
        put_key(m, kv->key, kv->type);
        put(m, kv->data, scalar_bytes(kv->type));
    }
}

/* ---- tensors ---- */

static int by_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* Names may come from a file, so a bad one is that file's fault. */
static int check_names(const char *path, const gguf_decl *decls, int n) {
    CHECK(n >= 0 && n <= GGUF_TENSORS_MAX, "%d tensors", n);
    const char **names = xcalloc((size_t)n, sizeof *names);
    int r = 0;
    for (int i = 0; i < n && !r; i++) {
        size_t len = strlen(names[i] = decls[i].name);
        if (!len || len > GGUF_NAME_MAX || !text_is_name(names[i], len))
            r = fail(EXIT_INPUT, "%s: a tensor cannot be written under the name '%.512s': 1 to %d bytes of text", path,
                     names[i], GGUF_NAME_MAX);
    }
    if (n && !r) qsort(names, (size_t)n, sizeof *names, by_text);
    for (int i = 1; i < n && !r; i++)
        if (!strcmp(names[i - 1], names[i])) r = fail(EXIT_INPUT, "%s: two tensors have the name '%s'", path, names[i]);
    free(names);
    return r;
}

static uint64_t decl_bytes(const gguf_decl *d) {
    CHECK(d->dims >= 1 && d->dims <= GGUF_DIMS_MAX, "tensor %s: %d dimensions", d->name, d->dims);
    int64_t rows = 1, row = ggml_type_bytes(d->ggml_type, d->ne[0]);
    for (int i = 1; i < d->dims; i++)
        CHECK(d->ne[i] > 0 && !__builtin_mul_overflow(rows, d->ne[i], &rows), "%s", d->name);
    CHECK(row > 0 && d->ne[0] > 0 && !__builtin_mul_overflow(rows, row, &rows), "tensor %s: %ld elements of type %s",
          d->name, (long)d->ne[0], ggml_type_name(d->ggml_type));
    return (uint64_t)rows;
}

static uint64_t padded(uint64_t n) {
    return (n + GGUF_WRITE_ALIGNMENT - 1) / GGUF_WRITE_ALIGNMENT * GGUF_WRITE_ALIGNMENT;
}

static int pad(gguf_writer *w) {
    static const uint8_t zeros[GGUF_WRITE_ALIGNMENT];
    return file_write(&w->out, zeros, padded(w->out.written) - w->out.written);
}

static void next_tensor(gguf_writer *w, int at) {
    w->at = at;
    w->left = at < w->n ? w->bytes[at] : 0;
}

int gguf_writer_open(gguf_writer *w, const char *path, const gguf_meta *m, const gguf_decl *decls, int n) {
    *w = (gguf_writer){.out.fd = -1, .n = n};
    if (check_names(path, decls, n)) return -1;
    gguf_meta head = {0};
    uint64_t offset = 0;
    put(&head, "GGUF", 4);
    put_uint(&head, VERSION, 4), put_uint(&head, (uint64_t)n, 8), put_uint(&head, (uint64_t)m->count, 8);
    put(&head, m->bytes, m->n);
    w->bytes = xcalloc((size_t)n, sizeof *w->bytes);
    for (int i = 0; i < n; i++) {
        const gguf_decl *d = &decls[i];
        w->bytes[i] = decl_bytes(d);
        put_str(&head, (gguf_str){d->name, strlen(d->name)});
        put_uint(&head, (uint64_t)d->dims, 4);
        for (int k = 0; k < d->dims; k++) put_uint(&head, (uint64_t)d->ne[k], 8);
        put_uint(&head, (uint64_t)d->ggml_type, 4), put_uint(&head, offset, 8);
        offset += padded(w->bytes[i]);
    }
    int bad = file_create(&w->out, path) || file_write(&w->out, head.bytes, head.n) || pad(w);
    gguf_meta_free(&head);
    next_tensor(w, 0);
    if (bad) gguf_writer_abandon(w);
    return bad ? -1 : 0;
}

int gguf_writer_data(gguf_writer *w, const void *data, uint64_t bytes) {
    CHECK(bytes <= w->left, "%" PRIu64 " bytes of tensor %d, %" PRIu64 " are still to come", bytes, w->at, w->left);
    if (file_write(&w->out, data, bytes)) return -1;
    w->left -= bytes;
    if (w->left) return 0;
    next_tensor(w, w->at + 1);
    return pad(w);
}

int gguf_writer_close(gguf_writer *w) {
    int bad = 0;
    if (w->at == w->n)
        bad = file_commit(&w->out);
    else if (w->out.path)
        bad = fail(EXIT_INTERNAL, "%s: %d of %d declared tensors were written", w->out.path, w->at, w->n);
    else
        bad = -1;
    gguf_writer_abandon(w);
    return bad;
}

void gguf_writer_abandon(gguf_writer *w) {
    file_abandon(&w->out);
    free(w->bytes);
    *w = (gguf_writer){.out.fd = -1};
}
