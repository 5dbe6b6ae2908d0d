/* A Hugging Face directory's tokenizer as GGUF keys (ggml docs/gguf.md, "tokenizer.ggml.*"): byte-level BPE, model
 * "gpt2". How text is split stands in tokenizer.json as patterns and in GGUF as a name, so the name is the one that
 * gives the same tokens. The probe is in normal form C: GGUF has no normaliser, and what such a tokenizer does to other
 * text cannot be carried over. */
#include "data/tokenizer_write.h"
#include "core/arena.h"
#include "core/error.h"
#include "data/tokenizer_parts.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TYPE_NORMAL = 1, TYPE_CONTROL = 3, TYPE_USER = 4, TYPE_UNUSED = 5 };

/* Letters in both cases and several scripts, marks, contractions, runs of digits, spaces, line ends and punctuation:
 * wherever the known ways to split differ. */
static const char probe[] =
    "Hello world, it's John's; we'll SEE, WE'RE here, I'M sure, they'd THEY'VE don't DON'T 'S 'Ll ''s\n"
    "1 12 123 1234 12345 123456 1234567890 3.14 1,000,000 v2.0 x86_64 2024-11-27 1st 22nd a1b2c3 \xc2\xbd \xc2\xb2 "
    "\xd9\xa3\xd9\xa4\xd9\xa5\n"
    "camelCase HTMLParser parseHTML getURL snake_case CONSTANT_NAME iPhone McDonald OpenAI's ABCdef abcDEF\n"
    "  two   three    four\t\ttabs \t mixed \n\n\nlines\r\n\r\n  indented\n    more\n \n  \n end  \n"
    "!? ... -- --- ---- ===== ====== (a) [b] {c} <d> \"q\" 'r' `code` ```x``` a/b\\c //path/to/file.txt\n/x \n//y !!!\n?\n"
    "$5 +6 <7 =8 >9 ^10 |11 ~12 `13 #14 %15 &16 *17 @18\n"
    "na\xc3\xafve caf\xc3\xa9 \xc3\x9c"
    "ber stra\xc3\x9f"
    "e \xc3\x85ngstr\xc3\xb6m S\xc3\xa3o \xc5\x81\xc3\xb3"
    "d\xc5\xba "
    "\xce\x95\xce\xbb\xce\xbb\xce\xb7\xce\xbd\xce\xb9\xce\xba\xce\xac \xd0\xa0\xd1\x83\xd1\x81\xd1\x81\xd0\xba\xd0\xb8\xd0\xb9 "
    "\xd7\xa2\xd7\x91\xd7\xa8\xd7\x99\xd7\xaa \xd8\xa7\xd9\x84\xd8\xb9\xd8\xb1\xd8\xa8\xd9\x8a\xd8\xa9 "
    "\xe0\xa4\xb9\xe0\xa4\xbf\xe0\xa4\xa8\xe0\xa5\x8d\xe0\xa4\xa6\xe0\xa5\x80 \xe0\xb8\xa0\xe0\xb8\xb2\xe0\xb8\xa9\xe0\xb8\xb2 "
    "\xe4\xb8\xad\xe6\x96\x87\xe5\x88\x86\xe8\xaf\x8d\xef\xbc\x8c\xe6\xb5\x8b\xe8\xaf\x95"
    "123\xe3\x80\x82 "
    "\xe6\x97\xa5\xe6\x9c\xac\xe8\xaa\x9e\xe3\x81\xae\xe3\x83\x86\xe3\x82\xb9\xe3\x83\x88 \xed\x95\x9c\xea\xb5\xad\xec\x96\xb4\n"
    "\xf0\x9f\x98\x80\xf0\x9f\x9a\x80 \xf0\x9f\x91\xa9\xe2\x80\x8d\xf0\x9f\x92\xbb \xe2\x82\xac"
    "5 \xc2\xa3"
    "6 \xe2\x80\x9cquoted\xe2\x80\x9d "
    "\xe2\x80\x94 dash\xe2\x80\xa6 \xc2\xa0nbsp \xe3\x80\x80wide x\xcc\xb1y\n"
    "for (int i = 0; i < n; ++i) { a[i] += b[i] * 2.5e-3f; } /* done */ #include <x.h>\n";

/* Where t cuts the probe into words, or where it would with the stages of a row (>= 0). All of t but what normalises
 * and splits is replaced: bytes are unknown, so that a word is one token. */
static int word_ends(const tokenizer *t, int row, token_list *out) {
    index_slot no_word = {0, -1};
    merge_slot no_merge = {.id = -1};
    tokenizer *c = xcalloc(1, sizeof *c);
    *c = *t;
    c->unk = 0, c->fuse_unk = true, c->merges = (merge_table){&no_merge, 0, 0},
    c->v.by_bytes = (token_index){&no_word, 0, 0};
    for (int i = 0; i < 256; i++) c->v.byte_id[i] = -1;
    if (row >= 0) c->n_normal = c->n_pre = 0, memset(c->pre, 0, sizeof c->pre);
    int bad = row >= 0 && tokenizer_pre_stages(c, row);
    if (!bad) bad = tokenizer_encode(c, probe, (int64_t)sizeof probe - 1, 0, out);
    for (int i = 0; row >= 0 && i < c->n_pre; i++) regex_free(&c->pre[i].re);
    free(c);
    return bad;
}

/* Cuts that only one of them makes. */
static int64_t differences(const token_list *a, const token_list *b) {
    int64_t i = 0, k = 0, n = 0;
    while (i < a->n || k < b->n) {
        int64_t x = i < a->n ? a->end[i] : INT64_MAX, y = k < b->n ? b->end[k] : INT64_MAX;
        n += x != y;
        i += x <= y, k += y <= x;
    }
    return n;
}

/* The row that cuts most like t. llama.cpp only approximates some patterns, so a cut in a hundred may differ. */
static int put_pre(const tokenizer *t, const char *dir, gguf_meta *m) {
    token_list want = {0}, got = {0};
    const char *best = NULL;
    int64_t least = INT64_MAX;
    int bad = word_ends(t, -1, &want);
    for (int row = 0; tokenizer_pre_name(row) && !bad && least; row++) {
        got.n = 0;
        bad = word_ends(t, row, &got);
        int64_t n = differences(&want, &got);
        if (n < least) least = n, best = tokenizer_pre_name(row);
    }
    int64_t allowed = want.n / 100;
    token_list_free(&want), token_list_free(&got);
    if (bad) return -1;
    if (least > allowed)
        return fail(
            EXIT_INPUT,
            "%s: how its tokenizer splits text is none of the ways that tokenizer.ggml.pre can name (the nearest, "
            "'%s', differs at %ld cuts of a probe): it cannot be written as GGUF",
            dir, best, (long)least);
    if (least)
        fprintf(stderr, "note: tokenizer.ggml.pre '%s' splits a probe at %ld places unlike %s\n", best, (long)least,
                dir);
    gguf_put_text(m, "tokenizer.ggml.pre", best);
    return 0;
}

static void put_tokens(const tokenizer *t, int64_t vocab, gguf_meta *m) {
    int64_t n = vocab > t->v.n ? vocab : t->v.n;
    gguf_str *text = xcalloc((size_t)n, sizeof *text);
    int32_t *type = xcalloc((size_t)n, sizeof *type);
    for (int64_t i = 0; i < n; i++) {
        const token_row *r = i < t->v.n ? &t->v.row[i] : NULL;
        char *made = r ? NULL : xprintf("[PAD%ld]", (long)i); /* llama.cpp's converter names them so */
        text[i] = r ? (gguf_str){r->text, (uint64_t)r->text_n} : (gguf_str){made, strlen(made)};
        type[i] = !r                          ? TYPE_UNUSED
                  : !(r->flags & TOKEN_ADDED) ? TYPE_NORMAL
                  : r->flags & TOKEN_SPECIAL  ? TYPE_CONTROL
                                              : TYPE_USER;
    }
    gguf_put_strings(m, "tokenizer.ggml.tokens", text, (uint64_t)n);
    gguf_put_i32s(m, "tokenizer.ggml.token_type", type, (uint64_t)n);
    for (int64_t i = t->v.n; i < n; i++) free((char *)(uintptr_t)text[i].data);
    free(text), free(type);
}

static int by_rank(const void *a, const void *b) {
    const merge_slot *x = *(const merge_slot *const *)a, *y = *(const merge_slot *const *)b;
    return (x->rank > y->rank) - (x->rank < y->rank);
}

static void put_merges(const tokenizer *t, gguf_meta *m) {
    const merge_table *table = &t->merges;
    const merge_slot **order = xcalloc((size_t)table->n, sizeof *order);
    gguf_str *text = xcalloc((size_t)table->n, sizeof *text);
    int64_t n = 0;
    for (uint64_t i = 0; table->slot && i <= table->mask; i++)
        if (table->slot[i].id >= 0) order[n++] = &table->slot[i];
    CHECK(n == table->n, "%ld merges, %ld found", (long)table->n, (long)n);
    qsort(order, (size_t)n, sizeof *order, by_rank);
    for (int64_t i = 0; i < n; i++) {
        const token_row *left = &t->v.row[order[i]->pair >> 32], *right = &t->v.row[order[i]->pair & UINT32_MAX];
        char *s = xprintf("%s %s", left->text, right->text);
        text[i] = (gguf_str){s, strlen(s)};
    }
    gguf_put_strings(m, "tokenizer.ggml.merges", text, (uint64_t)n);
    for (int64_t i = 0; i < n; i++) free((char *)(uintptr_t)text[i].data);
    free(order), free(text);
}

static void put_id(gguf_meta *m, const char *key, int id) {
    if (id >= 0) gguf_put_u32(m, key, (uint32_t)id);
}

/* The keys say one BOS before and one EOS behind, or not. */
static int put_specials(const tokenizer *t, const char *dir, gguf_meta *m) {
    int bos = t->n_prefix ? t->prefix[0] : t->bos, eos = t->eos, eot = -1;
    if (t->n_prefix > 1 || t->n_suffix > 1 || (t->n_suffix && t->suffix[0] != eos))
        return fail(EXIT_INPUT,
                    "%s: its tokenizer puts more around a text than one BOS and one EOS, which GGUF has no keys for",
                    dir);
    for (int i = 0; i < t->v.n && eot < 0; i++)
        if (i != eos && t->v.row[i].flags & TOKEN_EOG) eot = i;
    put_id(m, "tokenizer.ggml.bos_token_id", bos), put_id(m, "tokenizer.ggml.eos_token_id", eos);
    put_id(m, "tokenizer.ggml.eot_token_id", eot), put_id(m, "tokenizer.ggml.unknown_token_id", t->unk);
    put_id(m, "tokenizer.ggml.padding_token_id", t->pad);
    gguf_put_bool(m, "tokenizer.ggml.add_bos_token", t->n_prefix),
        gguf_put_bool(m, "tokenizer.ggml.add_eos_token", t->n_suffix);
    if (t->chat_template) gguf_put_text(m, "tokenizer.chat_template", t->chat_template);
    return 0;
}

int tokenizer_write_keys(const char *dir, int64_t vocab, gguf_meta *m) {
    tokenizer *t = tokenizer_open_dir(dir);
    if (!t) return -1;
    gguf_put_text(m, "tokenizer.ggml.model", "gpt2");
    int bad = t->v.n > vocab ? fail(EXIT_INPUT, "%s: the tokenizer has %d tokens, the model's embedding %ld rows", dir,
                                    t->v.n, (long)vocab)
                             : put_pre(t, dir, m);
    if (!bad) {
        put_tokens(t, vocab, m), put_merges(t, m);
        bad = put_specials(t, dir, m);
    }
    tokenizer_close(t);
    return bad ? -1 : 0;
}
