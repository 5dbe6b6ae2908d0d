/* GGUF files put together by hand, for the tests of its reader. */
#ifndef PEFT_TESTS_HOSTILE_GGUF_H
#define PEFT_TESTS_HOSTILE_GGUF_H

#include "core/gguf.h"
#include "tests/hostile.h"

static inline void put_str(bytes *b, const char *s) {
    put_int(b, strlen(s), 8);
    put_text(b, s);
}

static inline bytes begin(uint64_t tensors, uint64_t kvs) {
    bytes b = {0};
    put_text(&b, "GGUF");
    put_int(&b, 3, 4), put_int(&b, tensors, 8), put_int(&b, kvs, 8);
    return b;
}

static inline void put_key(bytes *b, const char *key, gguf_type type) {
    put_str(b, key);
    put_int(b, type, 4);
}

static inline void put_kv(bytes *b, const char *key, gguf_type type, uint64_t v, int size) {
    put_key(b, key, type);
    put_int(b, v, size);
}

static inline void put_array(bytes *b, const char *key, uint64_t elem, uint64_t n) {
    put_key(b, key, GGUF_ARRAY);
    put_int(b, elem, 4), put_int(b, n, 8);
}

static inline void put_tensor(bytes *b, const char *name, uint32_t dims, const uint64_t *ne, uint32_t type,
                              uint64_t offset) {
    put_str(b, name);
    put_int(b, dims, 4);
    for (uint32_t i = 0; i < dims && i < 8; i++) put_int(b, ne[i], 8);
    put_int(b, type, 4), put_int(b, offset, 8);
}

static inline void put_data(bytes *b, size_t n) {
    put_fill(b, 0, (32 - b->n % 32) % 32);
    put_fill(b, 0xab, n);
}

/* a valid file whose last data byte is its last byte */
static inline bytes good(void) {
    bytes b = begin(2, 3);
    put_key(&b, "general.architecture", GGUF_STRING), put_str(&b, "llama");
    put_kv(&b, "llama.block_count", GGUF_U32, 2, 4);
    put_array(&b, "tokenizer.ggml.tokens", GGUF_STRING, 3), put_str(&b, "a"), put_str(&b, ""), put_str(&b, "\xff");
    put_tensor(&b, "blk.0.attn_q.weight", 2, (uint64_t[]){32, 2}, 8, 0); /* 68 bytes, padded to 96 */
    put_tensor(&b, "token_embd.weight", 2, (uint64_t[]){8, 4}, 0, 96);
    put_data(&b, 96 + 128);
    return b;
}

/* one tensor 't' with 64 bytes of data behind it */
static inline bytes one(uint32_t dims, const uint64_t *ne, uint32_t type, uint64_t offset) {
    bytes b = begin(1, 0);
    put_tensor(&b, "t", dims, ne, type, offset);
    put_data(&b, 64);
    return b;
}

static inline int open_bytes(gguf *g, const bytes *b) {
    crafted f = crafted_file(b->data, b->n);
    int r = gguf_open(g, f.path);
    close(f.fd);
    return r;
}

#define REFUSED(b, ...)                                                                                                \
    do {                                                                                                               \
        gguf g_;                                                                                                       \
        assert_int_equal(open_bytes(&g_, &(b)), -1);                                                                   \
        assert_null(g_.file.data);                                                                                     \
        assert_said(EXIT_INPUT, __VA_ARGS__);                                                                          \
        drop(&(b));                                                                                                    \
    } while (0)

#define ACCEPTED(g, b)                                                                                                 \
    do {                                                                                                               \
        if (open_bytes(&(g), &(b))) fail_msg("%s", fail_text());                                                       \
        drop(&(b));                                                                                                    \
    } while (0)

#endif
