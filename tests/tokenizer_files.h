/* Files that the tokenizer's tests write: a tokenizer.json or a GGUF file with something changed. Include after
 * cmocka's needs (<stdlib.h>, core headers). */
#ifndef PEFT_TESTS_TOKENIZER_FILES_H
#define PEFT_TESTS_TOKENIZER_FILES_H

#include "core/arena.h"
#include "core/error.h"
#include "core/json.h"
#include "core/text.h"
#include "data/tokenizer.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static inline void file_remove(char *path) {
    unlink(path);
    free(path);
}

static inline char *temp_dir(void) {
    const char *base = getenv("TMPDIR");
    char *dir = xprintf("%s/peft-tokenizer-XXXXXX", base ? base : "/tmp");
    assert_non_null(mkdtemp(dir));
    return dir;
}

static inline void save(const char *path, const char *text,
                        size_t n) { /* without core/file's flush to disk: many files */
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static inline void save_text(const char *dir, const char *name, const char *text, size_t n) {
    char *path = path_join(dir, name);
    save(path, text, n);
    free(path);
}

static inline void variant_remove(char *dir) {
    static const char *const names[] = {"tokenizer.json", "tokenizer_config.json", "generation_config.json",
                                        "special_tokens_map.json"};
    for (size_t i = 0; i < 4; i++) {
        char *path = path_join(dir, names[i]);
        unlink(path);
        free(path);
    }
    rmdir(dir);
    free(dir);
}

/* A new directory with base's JSON, its keys replaced by those of change; lists of added tokens are appended to. */
static inline char *variant_dir(const char *base, const json_t *change) {
    json_t *root = json_read(base), *value;
    assert_non_null(root);
    const char *key;
    json_object_foreach((json_t *)(uintptr_t)change, key, value) {
        json_t *old = json_object_get(root, key);
        if (!strcmp(key, "added_tokens"))
            json_array_extend(old, value);
        else if (!strcmp(key, "model"))
            json_object_update(old, value);
        else
            json_object_set(root, key, value);
    }
    char *text = json_dumps(root, JSON_COMPACT), *dir = temp_dir();
    save_text(dir, "tokenizer.json", text, strlen(text));
    free(text);
    json_decref(root);
    return dir;
}

static inline void compare_ids(const tokenizer *t, const json_t *text, int flags, const json_t *golden) {
    const char *name = json_string_value(json_object_get(golden, "name"));
    const json_t *ids = json_object_get(golden, "ids");
    token_list l = {0};
    if (tokenizer_encode(t, json_string_value(text), (int64_t)json_string_length(text), flags, &l))
        fail_msg("%s: %s", name, fail_text());
    for (int64_t i = 0; i < l.n && i < (int64_t)json_array_size(ids); i++)
        if (l.id[i] != json_integer_value(json_array_get(ids, (size_t)i)))
            fail_msg("%s: token %ld at byte %ld: %d, not %ld", name, (long)i, (long)l.begin[i], l.id[i],
                     (long)json_integer_value(json_array_get(ids, (size_t)i)));
    assert_int_equal(l.n, json_array_size(ids));
    token_list_free(&l);
}

static inline bool tokens_are_whole(const char *s, int n) {
    return utf8_valid((const uint8_t *)s, (size_t)n) == (size_t)n;
}

/* --- GGUF --- */

typedef struct {
    char *data;
    size_t n, cap;
} blob;

static inline void add(blob *b, const void *p, size_t n) {
    if (b->n + n > b->cap) b->data = xrealloc(b->data, b->cap = 2 * (b->n + n), 1);
    memcpy(b->data + b->n, p, n);
    b->n += n;
}
static inline void add_u32(blob *b, uint32_t v) { add(b, &v, 4); }
static inline void add_string(blob *b, const char *s, size_t n) {
    uint64_t k = n;
    add(b, &k, 8);
    add(b, s, n);
}
static inline void add_key(blob *b, const char *key, gguf_type type, uint32_t *count) {
    add_string(b, key, strlen(key));
    add_u32(b, (uint32_t)type);
    ++*count;
}
static inline void add_array(blob *b, const char *key, gguf_type elem, uint64_t n, uint32_t *count) {
    add_key(b, key, GGUF_ARRAY, count);
    add_u32(b, (uint32_t)elem);
    add(b, &n, 8);
}

/* What differs from the base file; NULL and -1: nothing. */
typedef struct {
    const char *pre, *model, *merge; /* merge: one more at the end */
    const char *text;                /* of token `id` */
    int id, type;                    /* type: of token `id` */
    const char *gap;                 /* the token of this text is renamed, so that its byte has none */
    int64_t bos;                     /* tokenizer.ggml.bos_token_id */
    int types_less;                  /* token types left out */
    bool no_bos, no_pre, add_bos, types_as_strings;
} gguf_change;

/* Writes a file with base's tokens, types and merges and c's changes; returns its path (heap). */
static inline char *gguf_variant(const gguf *base, const gguf_change *c) {
    const gguf_kv *tokens = gguf_find(base, "tokenizer.ggml.tokens"),
                  *merges = gguf_find(base, "tokenizer.ggml.merges");
    const gguf_kv *types = gguf_find(base, "tokenizer.ggml.token_type");
    blob b = {0};
    uint32_t count = 0;
    add_key(&b, "general.architecture", GGUF_STRING, &count), add_string(&b, "llama", 5);
    const char *model = c->model ? c->model : "gpt2", *pre = c->pre ? c->pre : "smollm";
    add_key(&b, "tokenizer.ggml.model", GGUF_STRING, &count), add_string(&b, model, strlen(model));
    if (!c->no_pre) add_key(&b, "tokenizer.ggml.pre", GGUF_STRING, &count), add_string(&b, pre, strlen(pre));
    add_array(&b, "tokenizer.ggml.tokens", GGUF_STRING, tokens->n, &count);
    for (uint64_t i = 0; i < tokens->n; i++) {
        if (c->text && i == (uint64_t)c->id)
            add_string(&b, c->text, strlen(c->text));
        else if (c->gap && tokens->strings[i].n == strlen(c->gap) &&
                 !memcmp(tokens->strings[i].data, c->gap, strlen(c->gap)))
            add_string(&b, "[renamed]", 9);
        else
            add_string(&b, tokens->strings[i].data, tokens->strings[i].n);
    }
    uint64_t n_types = types->n - (uint64_t)c->types_less;
    add_array(&b, "tokenizer.ggml.token_type", c->types_as_strings ? GGUF_STRING : GGUF_I32, n_types, &count);
    for (uint64_t i = 0; i < n_types; i++) {
        if (c->types_as_strings)
            add_string(&b, "1", 1);
        else
            add_u32(&b, c->type && i == (uint64_t)c->id ? (uint32_t)c->type : (uint32_t)gguf_array_int(types, i));
    }
    add_array(&b, "tokenizer.ggml.merges", GGUF_STRING, merges->n + (c->merge != NULL), &count);
    for (uint64_t i = 0; i < merges->n; i++) add_string(&b, merges->strings[i].data, merges->strings[i].n);
    if (c->merge) add_string(&b, c->merge, strlen(c->merge));
    if (!c->no_bos)
        add_key(&b, "tokenizer.ggml.bos_token_id", GGUF_U32, &count), add_u32(&b, c->bos >= 0 ? (uint32_t)c->bos : 0);
    if (c->add_bos) add_key(&b, "tokenizer.ggml.add_bos_token", GGUF_BOOL, &count), add(&b, "\1", 1);
    blob file = {0};
    uint64_t tensors = 0, kvs = count;
    add(&file, "GGUF\3\0\0\0", 8);
    add(&file, &tensors, 8);
    add(&file, &kvs, 8);
    add(&file, b.data, b.n);
    char pad[64] = {0};
    add(&file, pad, 64 - file.n % 32);
    char *dir = temp_dir(), *path = xprintf("%s.gguf", dir);
    rmdir(dir);
    save(path, file.data, file.n);
    free(dir);
    free(b.data);
    free(file.data);
    return path;
}

#endif
