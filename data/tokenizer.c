/* The tokenizer's interface: the way from text to ids and back, over parts that tokenizer_json.c or tokenizer_gguf.c
 * read. */
#include "core/arena.h"
#include "core/error.h"
#include "core/text.h"
#include "data/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

#define TEXT_MAX INT32_MAX /* bytes of one call: positions inside a word are 32-bit */

tokenizer *tokenizer_new(void) {
    tokenizer *t = xcalloc(1, sizeof *t);
    t->bos = t->eos = t->pad = t->unk = -1;
    return t;
}

int tokenizer_finish(tokenizer *t, const char *where) {
    if (vocab_check_filled(&t->v, where)) return -1;
    if (regex_compile_word(&t->word)) return -1;
    if (added_build(&t->raw, t, false) || added_build(&t->normalised, t, true)) return -1;
    bpe_mark_whole(t);
    return 0;
}

int tokenizer_set_special(int *slot, const tokenizer *t, const char *where, const char *key, int64_t id) {
    if (id < 0 || id >= t->v.n)
        return fail(EXIT_INPUT, "%s: %s is %ld, expected an id from 0 to %d", where, key, (long)id, t->v.n - 1);
    *slot = (int)id;
    return 0;
}

void tokenizer_close(tokenizer *t) {
    if (!t) return;
    vocab_free(&t->v);
    merges_free(&t->merges);
    for (int i = 0; i < t->n_normal; i++) {
        free(t->normal[i].from);
        free(t->normal[i].to);
        if (t->normal[i].has_re) regex_free(&t->normal[i].re);
    }
    free(t->normal);
    for (int i = 0; i < t->n_pre; i++) {
        regex_free(&t->pre[i].re);
        free(t->pre[i].literal);
    }
    added_free(&t->raw);
    added_free(&t->normalised);
    regex_free(&t->word);
    free(t->chat_template);
    free(t);
}

int tokenizer_vocab(const tokenizer *t) { return t->v.n; }
int tokenizer_bos(const tokenizer *t) { return t->bos; }
int tokenizer_eos(const tokenizer *t) { return t->eos; }
int tokenizer_pad(const tokenizer *t) { return t->pad; }
const char *tokenizer_template(const tokenizer *t) { return t->chat_template; }
int tokenizer_id(const tokenizer *t, const char *token) { return vocab_find(&t->v, token, strlen(token)); }

static uint32_t flags_of(const tokenizer *t, int id) { return id >= 0 && id < t->v.n ? t->v.row[id].flags : 0; }
bool tokenizer_is_eog(const tokenizer *t, int id) { return flags_of(t, id) & TOKEN_EOG; }
bool tokenizer_is_special(const tokenizer *t, int id) { return flags_of(t, id) & TOKEN_SPECIAL; }

const char *tokenizer_bytes(const tokenizer *t, int id, int *n) {
    CHECK(id >= 0 && id < t->v.n, "token %d of %d", id, t->v.n);
    *n = t->v.row[id].bytes_n;
    return t->v.row[id].bytes;
}

void token_list_free(token_list *l) {
    free(l->id);
    free(l->begin);
    free(l->end);
    *l = (token_list){0};
}

static void list_add(token_list *l, int32_t id, int64_t begin, int64_t end) {
    if (l->n == l->cap) {
        l->cap = l->cap ? l->cap + l->cap / 2 : 64;
        l->id = xrealloc(l->id, (size_t)l->cap, sizeof *l->id);
        l->begin = xrealloc(l->begin, (size_t)l->cap, sizeof *l->begin);
        l->end = xrealloc(l->end, (size_t)l->cap, sizeof *l->end);
    }
    l->id[l->n] = id;
    l->begin[l->n] = begin;
    l->end[l->n++] = end;
}

void token_emit(encoding *e, int32_t id, int64_t begin, int64_t end) {
    const piece *p = e->p;
    while (begin > 0 && (p->s[begin] & 0xc0) == 0x80) begin--; /* a token inside a character has the whole of it */
    while (end < p->n && (p->s[end] & 0xc0) == 0x80) end++;
    if (p->begin)
        list_add(e->out, id, p->begin[begin], p->end[end - 1]);
    else
        list_add(e->out, id, p->base + begin, p->base + end);
}

static int encode_normalised(encoding *e, const piece *p, bool special) {
    added_hit *hit;
    int64_t at = 0, hits = added_find(e, &e->t->normalised, p, p->s, p->n, special, &hit);
    int rc = hits < 0 ? -1 : 0;
    e->p = p;
    for (int64_t i = 0; !rc && i < hits; i++) {
        if (at < hit[i].begin) rc = pretoken_run(e, 0, at, hit[i].begin);
        if (!rc && hit[i].begin < hit[i].end) token_emit(e, hit[i].id, hit[i].begin, hit[i].end);
        at = hit[i].end;
    }
    if (!rc) rc = pretoken_run(e, 0, at, p->n);
    e->p = NULL;
    free(hit);
    return rc;
}

static int encode_piece(encoding *e, const char *text, int64_t begin, int64_t end, bool special) {
    if (begin >= end) return 0;
    piece p = {.s = text + begin, .n = end - begin, .base = begin};
    int rc = normal_apply(e->t->normal, e->t->n_normal, &e->rs, &p);
    if (!rc) rc = encode_normalised(e, &p, special);
    piece_free(&p);
    return rc;
}

static int encode_text(encoding *e, const char *text, int64_t n, bool special) {
    added_hit *hit;
    int64_t at = 0, hits = added_find(e, &e->t->raw, NULL, text, n, special, &hit);
    int rc = hits < 0 ? -1 : 0;
    for (int64_t i = 0; !rc && i < hits; i++) {
        rc = encode_piece(e, text, at, hit[i].begin, special);
        if (!rc) list_add(e->out, hit[i].id, hit[i].begin, hit[i].end);
        at = hit[i].end;
    }
    if (!rc) rc = encode_piece(e, text, at, n, special);
    free(hit);
    return rc;
}

int tokenizer_encode(const tokenizer *t, const char *text, int64_t n, int flags, token_list *out) {
    return tokenizer_encode_around(t, text, n, flags, NULL, 0, out);
}

int tokenizer_encode_around(const tokenizer *t, const char *text, int64_t n, int flags, const int64_t *plain,
                            int64_t n_plain, token_list *out) {
    if (n > TEXT_MAX)
        return fail(EXIT_INPUT, "tokenizer: a text of %ld bytes, expected at most %d: cut it into documents", (long)n,
                    TEXT_MAX);
    CHECK(n >= 0, "%ld bytes", (long)n);
    size_t good = utf8_valid((const uint8_t *)text, (size_t)n);
    if (good < (size_t)n)
        return fail(EXIT_INPUT, "tokenizer: the text is not valid UTF-8 at byte %zu (0x%02x)", good,
                    (unsigned)(unsigned char)text[good]);
    encoding e = {.t = t, .out = out, .plain = plain, .n_plain = n_plain};
    int64_t before = out->n;
    regex_scratch_init(&e.rs, n);
    if (flags & TOKENIZE_ADD)
        for (int i = 0; i < t->n_prefix; i++) list_add(out, t->prefix[i], 0, 0);
    int rc = encode_text(&e, text, n, flags & TOKENIZE_SPECIAL);
    if (flags & TOKENIZE_ADD)
        for (int i = 0; i < t->n_suffix; i++) list_add(out, t->suffix[i], n, n);
    regex_scratch_free(&e.rs);
    bpe_scratch_free(&e.bpe);
    if (rc) out->n = before;
    return rc;
}

char *tokenizer_decode(const tokenizer *t, const int32_t *ids, int64_t n, bool skip_special, int64_t *len) {
    size_t bytes = 0, w = 0;
    for (int64_t i = 0; i < n; i++) {
        CHECK(ids[i] >= 0 && ids[i] < t->v.n, "token %d of %d", ids[i], t->v.n);
        bytes += (size_t)t->v.row[ids[i]].bytes_n;
    }
    CHECK(bytes <= SIZE_MAX / 4, "%zu bytes", bytes);
    char *out = xcalloc(UTF8_STREAM_OUT(bytes) + 1, 1);
    utf8_stream s = {.n = 0};
    for (int64_t i = 0; i < n; i++) {
        const token_row *r = &t->v.row[ids[i]];
        if (!(skip_special && r->flags & TOKEN_SPECIAL))
            w += (size_t)utf8_stream_feed(&s, r->bytes, r->bytes_n, out + w);
    }
    w += (size_t)utf8_stream_end(&s, out + w);
    out[w] = 0;
    if (len) *len = (int64_t)w;
    return out;
}
