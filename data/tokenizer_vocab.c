/* The vocabulary: id -> text and bytes, text -> id, bytes -> id. GPT-2 writes a token's bytes with 256 visible
 * characters: printable Latin-1 stands for itself, the other 68 bytes are U+0100 and following in byte order (Radford
 * et al. 2019, encoder.py, bytes_to_unicode). */
#include "core/arena.h"
#include "core/error.h"
#include "core/text.h"
#include "data/tokenizer_parts.h"
#include "data/utf8.h"

#include <stdlib.h>
#include <string.h>

#define POOL_BLOCK ((size_t)1 << 20)

const char *pool_copy(string_pool *p, const char *s, size_t n) {
    if (n + 1 > p->size - p->used) {
        p->size = n + 1 > POOL_BLOCK ? n + 1 : POOL_BLOCK;
        p->block = xrealloc(p->block, (size_t)p->blocks + 1, sizeof *p->block);
        p->block[p->blocks++] = xcalloc(p->size, 1);
        p->used = 0;
    }
    char *d = p->block[p->blocks - 1] + p->used;
    memcpy(d, s, n);
    d[n] = 0;
    p->used += n + 1;
    return d;
}

/* Multiply-and-fold over eight bytes at a time (the idea of wyhash). */
static uint32_t hash_bytes(const char *s, size_t n) {
    uint64_t h = 0x9e3779b97f4a7c15u ^ n, w;
    for (;; s += 8, n -= 8) {
        w = 0;
        memcpy(&w, s, n < 8 ? n : 8);
        __uint128_t m = (__uint128_t)(w ^ 0xa0761d6478bd642fu) * (h ^ 0xe7037ed1a0b428dbu);
        h = (uint64_t)m ^ (uint64_t)(m >> 64);
        if (n <= 8) return (uint32_t)(h ^ h >> 32);
    }
}

static void index_init(token_index *x, int expected) {
    uint32_t size = 64;
    while (size < 2u * (uint32_t)expected) size *= 2;
    x->slot = xcalloc(size, sizeof *x->slot);
    x->mask = size - 1;
    x->used = 0;
    for (uint32_t i = 0; i < size; i++) x->slot[i].id = -1;
}

static void index_put(token_index *x, uint32_t hash, int id) {
    if (2u * (uint32_t)(x->used + 1) > x->mask) {
        token_index old = *x;
        index_init(x, (int)old.mask + 1);
        for (uint32_t i = 0; i <= old.mask; i++)
            if (old.slot[i].id >= 0) index_put(x, old.slot[i].hash, old.slot[i].id);
        free(old.slot);
    }
    uint32_t i = hash & x->mask;
    while (x->slot[i].id >= 0) i = (i + 1) & x->mask;
    x->slot[i] = (index_slot){hash, id};
    x->used++;
}

int vocab_find(const vocab *v, const char *text, size_t n) {
    uint32_t hash = hash_bytes(text, n);
    for (uint32_t i = hash & v->by_text.mask; v->by_text.slot[i].id >= 0; i = (i + 1) & v->by_text.mask) {
        if (v->by_text.slot[i].hash != hash) continue;
        const token_row *r = &v->row[v->by_text.slot[i].id];
        if ((size_t)r->text_n == n && !memcmp(r->text, text, n)) return v->by_text.slot[i].id;
    }
    return -1;
}

int vocab_find_bytes(const vocab *v, const char *bytes, size_t n) {
    uint32_t hash = hash_bytes(bytes, n);
    for (uint32_t i = hash & v->by_bytes.mask; v->by_bytes.slot[i].id >= 0; i = (i + 1) & v->by_bytes.mask) {
        if (v->by_bytes.slot[i].hash != hash) continue;
        const token_row *r = &v->row[v->by_bytes.slot[i].id];
        if ((size_t)r->bytes_n == n && !memcmp(r->bytes, bytes, n)) return v->by_bytes.slot[i].id;
    }
    return -1;
}

/* Byte that a character of the alphabet stands for, -1 when it is no such character. */
static int alphabet_byte(int32_t cp) {
    if ((cp >= 0x21 && cp <= 0x7e) || (cp >= 0xa1 && cp <= 0xac) || (cp >= 0xae && cp <= 0xff)) return cp;
    if (cp < 0x100 || cp > 0x143) return -1;
    int k = cp - 0x100; /* the k-th byte that does not stand for itself: 00-20, 7f-a0, ad */
    return k <= 0x20 ? k : k <= 0x42 ? k - 0x21 + 0x7f : 0xad;
}

void vocab_init(vocab *v, int expected) {
    index_init(&v->by_text, expected);
    index_init(&v->by_bytes, expected);
    memset(v->byte_id, -1, sizeof v->byte_id);
}

void vocab_free(vocab *v) {
    free(v->row);
    free(v->by_text.slot);
    free(v->by_bytes.slot);
    for (int i = 0; i < v->pool.blocks; i++) free(v->pool.block[i]);
    free(v->pool.block);
}

/* Bytes that the token decodes to. Added and special tokens are their own text: tokenizers would run them through the
 * alphabet as well, which turns "café" into broken UTF-8. */
static void set_bytes(vocab *v, token_row *r) {
    r->bytes = r->text;
    r->bytes_n = r->text_n;
    if (r->flags & TOKEN_ADDED) return;
    char buf[TOKEN_TEXT_MAX];
    int n = 0;
    for (int i = 0, k; i < r->text_n; i += k) {
        int b = alphabet_byte(utf8_decode(r->text + i, &k));
        if (b < 0) return;
        buf[n++] = (char)b;
    }
    r->flags |= TOKEN_ALPHABET;
    r->bytes_n = n;
    r->bytes = n == r->text_n ? r->text : pool_copy(&v->pool, buf, (size_t)n);
}

static int check_text(const char *where, int64_t id, const char *text, size_t n) {
    if (n == 0) return fail(EXIT_INPUT, "%s: token %ld is empty, expected at least one byte", where, (long)id);
    if (n > TOKEN_TEXT_MAX)
        return fail(EXIT_INPUT, "%s: token %ld has %zu bytes, expected at most %d", where, (long)id, n, TOKEN_TEXT_MAX);
    if (utf8_valid((const uint8_t *)text, n) != n || memchr(text, 0, n))
        return fail(EXIT_INPUT, "%s: the text of token %ld is not valid UTF-8 (or holds a NUL)", where, (long)id);
    return 0;
}

int vocab_set(vocab *v, const char *where, int64_t id, const char *text, size_t n, uint32_t flags) {
    if (id < 0 || id >= TOKENS_MAX)
        return fail(EXIT_INPUT, "%s: token '%.*s' has id %ld, expected 0 to %d", where, (int)(n > 64 ? 64 : n), text,
                    (long)id, TOKENS_MAX - 1);
    if (check_text(where, id, text, n)) return -1;
    int other = vocab_find(v, text, n);
    if (other >= 0)
        return fail(EXIT_INPUT, "%s: token '%.*s' has two ids: %d and %ld", where, (int)(n > 64 ? 64 : n), text, other,
                    (long)id);
    if (id >= v->cap) {
        int cap = v->cap ? v->cap : 1024;
        while (cap <= id) cap *= 2;
        v->row = xrealloc(v->row, (size_t)cap, sizeof *v->row);
        memset(v->row + v->cap, 0, (size_t)(cap - v->cap) * sizeof *v->row);
        v->cap = cap;
    }
    token_row *r = &v->row[id];
    if (r->text)
        return fail(EXIT_INPUT, "%s: id %ld belongs to two tokens: '%.64s' and '%.*s'", where, (long)id, r->text,
                    (int)(n > 64 ? 64 : n), text);
    *r = (token_row){.text = pool_copy(&v->pool, text, n), .text_n = (int32_t)n, .flags = flags};
    set_bytes(v, r);
    if (id >= v->n) v->n = (int)id + 1;
    index_put(&v->by_text, hash_bytes(text, n), (int)id);
    if (r->flags & TOKEN_ALPHABET) {
        index_put(&v->by_bytes, hash_bytes(r->bytes, (size_t)r->bytes_n), (int)id);
        if (r->bytes_n == 1) v->byte_id[(unsigned char)r->bytes[0]] = (int32_t)id;
    }
    return 0;
}

void vocab_mark_added(vocab *v, int id, uint32_t flags) {
    token_row *r = &v->row[id];
    r->flags = (r->flags & (TOKEN_ALPHABET | TOKEN_WHOLE | TOKEN_EOG)) | TOKEN_ADDED | flags;
    r->bytes = r->text;
    r->bytes_n = r->text_n;
}

int vocab_check_filled(const vocab *v, const char *where) {
    if (!v->n) return fail(EXIT_INPUT, "%s: the vocabulary is empty", where);
    for (int i = 0; i < v->n; i++)
        if (!v->row[i].text) return fail(EXIT_INPUT, "%s: no token has id %d although %d is taken", where, i, v->n - 1);
    return 0;
}
