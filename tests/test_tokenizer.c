/* The tokenizer against tokenizers (Hugging Face directory) and llama.cpp (GGUF): golden/tokenizer_*, made by
 * golden/make_tokenizer.py. */
#include "core/arena.h"
#include "core/error.h"
#include "core/json.h"
#include "data/tokenizer.h"
#include "tests/tokenizer_files.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define GOLDEN "tests/golden/"

enum { HF_ADDED, HF_PLAIN, HF_BEGIN, HF_END, GGUF_ADDED, GGUF_PLAIN, SECTIONS };
typedef struct {
    file_map text, ids;
    const uint8_t *section[SECTIONS];
    uint32_t n[SECTIONS];
    tokenizer *dir, *file;
    gguf g;
    json_t *variants;
} fixture;

static int setup(void **state) {
    fixture *f = xcalloc(1, sizeof *f);
    if (file_open(&f->text, GOLDEN "tokenizer_text.txt") || file_open(&f->ids, GOLDEN "tokenizer_ids.bin")) return -1;
    const uint8_t *p = f->ids.data;
    for (int i = 0; i < SECTIONS; i++) {
        memcpy(&f->n[i], p, 4);
        f->section[i] = p + 4;
        p += 4 + 2 * (size_t)f->n[i];
    }
    f->dir = tokenizer_open_dir(GOLDEN "tokenizer_small");
    if (gguf_open(&f->g, GOLDEN "tokenizer_small.gguf")) return -1;
    f->file = tokenizer_open_gguf(&f->g);
    f->variants = json_read(GOLDEN "tokenizer_variants.json");
    *state = f;
    return f->dir && f->file && f->variants ? 0 : -1;
}

static int teardown(void **state) {
    fixture *f = *state;
    file_close(&f->text);
    file_close(&f->ids);
    tokenizer_close(f->dir);
    tokenizer_close(f->file);
    gguf_close(&f->g);
    json_decref(f->variants);
    free(f);
    return 0;
}

static int golden(const fixture *f, int section, int64_t i) {
    uint16_t v;
    memcpy(&v, f->section[section] + 2 * i, 2);
    return v;
}

static token_list encode(const tokenizer *t, const char *text, int64_t n, int flags) {
    token_list l = {0};
    if (tokenizer_encode(t, text, n, flags, &l)) fail_msg("%s", fail_text());
    return l;
}

static void compare(const fixture *f, const tokenizer *t, int flags, int section) {
    token_list l = encode(t, (const char *)f->text.data, (int64_t)f->text.size, flags);
    for (int64_t i = 0; i < l.n && i < f->n[section]; i++)
        if (l.id[i] != golden(f, section, i))
            fail_msg("token %ld at byte %ld: %d, not %d", (long)i, (long)l.begin[i], l.id[i], golden(f, section, i));
    assert_int_equal(l.n, f->n[section]);
    token_list_free(&l);
}

static void ids_equal_tokenizers(void **state) {
    const fixture *f = *state;
    compare(f, f->dir, TOKENIZE_SPECIAL | TOKENIZE_ADD, HF_ADDED);
    compare(f, f->dir, 0, HF_PLAIN);
}

static void ids_equal_llama_cpp(void **state) {
    const fixture *f = *state;
    compare(f, f->file, TOKENIZE_SPECIAL | TOKENIZE_ADD, GGUF_ADDED);
    compare(f, f->file, 0, GGUF_PLAIN);
}

static void spans_equal_tokenizers(void **state) {
    const fixture *f = *state;
    token_list l = encode(f->dir, (const char *)f->text.data, (int64_t)f->text.size, TOKENIZE_SPECIAL);
    assert_int_equal(l.n, f->n[HF_BEGIN]);
    for (int64_t i = 0; i < l.n; i++) {
        assert_int_equal(l.begin[i], golden(f, HF_BEGIN, i));
        assert_int_equal(l.end[i], golden(f, HF_END, i));
    }
    token_list_free(&l);
}

static void text_comes_back(void **state) {
    const fixture *f = *state;
    const tokenizer *both[] = {f->dir, f->file};
    for (int k = 0; k < 2; k++) {
        token_list l = encode(both[k], (const char *)f->text.data, (int64_t)f->text.size, TOKENIZE_SPECIAL);
        int64_t n;
        char *s = tokenizer_decode(both[k], l.id, l.n, false, &n);
        assert_int_equal(n, f->text.size);
        assert_memory_equal(s, f->text.data, (size_t)n);
        free(s);
        token_list_free(&l);
    }
}

static void skip_special_leaves_the_rest(void **state) {
    const fixture *f = *state;
    static const char text[] = "a<|im_start|>b<|tool|>c<|im_end|>";
    token_list l = encode(f->dir, text, sizeof text - 1, TOKENIZE_SPECIAL | TOKENIZE_ADD);
    char *s = tokenizer_decode(f->dir, l.id, l.n, true, NULL);
    assert_string_equal(s, "ab<|tool|>c"); /* an added token that is not special stays */
    free(s);
    token_list_free(&l);
}

static void specials_only_when_asked(void **state) {
    const fixture *f = *state;
    const tokenizer *both[] = {f->dir, f->file};
    static const char *const special[] = {"<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|pad|>"};
    for (int i = 0; i < 10; i++) {
        const tokenizer *t = both[i & 1];
        const char *text = special[i / 2];
        int id = tokenizer_id(t, text);
        assert_true(id >= 0 && tokenizer_is_special(t, id));
        char *wrapped = xprintf("x%sy", text);
        token_list asked = encode(t, wrapped, (int64_t)strlen(wrapped), TOKENIZE_SPECIAL);
        token_list plain = encode(t, wrapped, (int64_t)strlen(wrapped), 0);
        assert_int_equal(asked.n, 3);
        assert_int_equal(asked.id[1], id);
        assert_int_equal(asked.begin[1], 1);
        assert_int_equal(asked.end[1], 1 + strlen(text));
        assert_true(plain.n > 3);
        for (int64_t k = 0; k < plain.n; k++) assert_int_not_equal(plain.id[k], id);
        token_list_free(&asked);
        token_list_free(&plain);
        free(wrapped);
    }
    int tool = tokenizer_id(f->dir, "<|tool|>");
    token_list l = encode(f->dir, "<|tool|>", 8, 0); /* added, but not special */
    assert_int_equal(l.n, 1);
    assert_int_equal(l.id[0], tool);
    assert_false(tokenizer_is_special(f->dir, tool));
    token_list_free(&l);
}

static void names_of_the_directory(void **state) {
    const fixture *f = *state;
    const tokenizer *t = f->dir;
    assert_int_equal(tokenizer_bos(t), tokenizer_id(t, "<s>"));
    assert_int_equal(tokenizer_eos(t), tokenizer_id(t, "<|im_end|>"));
    assert_int_equal(tokenizer_pad(t), tokenizer_id(t, "<|pad|>"));
    assert_true(tokenizer_is_eog(t, tokenizer_id(t, "</s>"))); /* generation_config.json */
    assert_true(tokenizer_is_eog(t, tokenizer_eos(t)));
    assert_false(tokenizer_is_eog(t, tokenizer_bos(t)));
    assert_false(tokenizer_is_eog(t, -1));
    assert_string_equal(tokenizer_template(t), "{{ messages[0].content }}\n"); /* the file wins over the key */
    assert_int_equal(tokenizer_vocab(t), tokenizer_id(t, "l_x_long_") + 1);
    assert_int_equal(tokenizer_id(t, "no such token"), -1);
}

static void names_of_the_file(void **state) {
    const fixture *f = *state;
    const tokenizer *t = f->file;
    assert_int_equal(tokenizer_bos(t), 0);
    assert_int_equal(tokenizer_eos(t), tokenizer_id(t, "<|im_end|>"));
    assert_int_equal(tokenizer_pad(t), tokenizer_id(t, "<|pad|>"));
    assert_true(tokenizer_is_eog(t, tokenizer_eos(t)));
    assert_string_equal(tokenizer_template(t), "{{ messages }}");
    assert_int_equal(tokenizer_vocab(t), tokenizer_vocab(f->dir));
}

/* Each component of tokenizer.json: the small tokenizer with some keys replaced. */
static void variants_equal_tokenizers(void **state) {
    const fixture *f = *state;
    const json_t *text = json_object_get(f->variants, "text"), *list = json_object_get(f->variants, "directory");
    assert_true(json_array_size(list) >= 14);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *v = json_array_get(list, i);
        char *dir = variant_dir(GOLDEN "tokenizer_small/tokenizer.json", json_object_get(v, "change"));
        tokenizer *t = tokenizer_open_dir(dir);
        if (!t) fail_msg("%s: %s", json_string_value(json_object_get(v, "name")), fail_text());
        compare_ids(t, text, TOKENIZE_SPECIAL, v);
        tokenizer_close(t);
        variant_remove(dir);
    }
}

/* Each kind of tokenizer.ggml.pre, over the tokens of the small one. */
static void pre_rows_equal_llama_cpp(void **state) {
    const fixture *f = *state;
    const json_t *text = json_object_get(f->variants, "text"), *list = json_object_get(f->variants, "gguf");
    assert_true(json_array_size(list) >= 11);
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *v = json_array_get(list, i);
        gguf_change c = {.pre = json_string_value(json_object_get(v, "name")), .bos = -1};
        char *path = gguf_variant(&f->g, &c);
        gguf g;
        assert_int_equal(gguf_open(&g, path), 0);
        tokenizer *t = tokenizer_open_gguf(&g);
        if (!t) fail_msg("%s: %s", c.pre, fail_text());
        compare_ids(t, text, TOKENIZE_SPECIAL, v);
        tokenizer_close(t);
        gguf_close(&g);
        file_remove(path);
    }
}

/* Words of up to 80,000 bytes: the heap, against tokenizers. */
static void long_words(void **state) {
    const fixture *f = *state;
    const json_t *list = json_object_get(f->variants, "runs");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *v = json_array_get(list, i), *piece = json_object_get(v, "piece");
        size_t n = json_string_length(piece), times = (size_t)json_integer_value(json_object_get(v, "repeat"));
        char *s = xcalloc(n, times), hash[17];
        for (size_t k = 0; k < times; k++) memcpy(s + k * n, json_string_value(piece), n);
        token_list l = encode(f->dir, s, (int64_t)(n * times), TOKENIZE_SPECIAL);
        uint64_t h = 0xcbf29ce484222325u;
        for (int64_t k = 0; k < l.n; k++) h = (h ^ (uint64_t)l.id[k]) * 0x100000001b3u;
        snprintf(hash, sizeof hash, "%016lx", (unsigned long)h);
        assert_int_equal(l.n, json_integer_value(json_object_get(v, "count")));
        assert_string_equal(hash, json_string_value(json_object_get(v, "fnv")));
        token_list_free(&l);
        free(s);
    }
}

static void pieces_do_not_depend_on_threads(void **state) {
    const fixture *f = *state;
    int64_t count[8];
#pragma omp parallel for num_threads(4)
    for (int i = 0; i < 8; i++) {
        token_list l = {0};
        count[i] = tokenizer_encode(f->dir, (const char *)f->text.data, (int64_t)f->text.size, TOKENIZE_SPECIAL, &l)
                       ? -1
                       : l.n;
        token_list_free(&l);
    }
    for (int i = 0; i < 8; i++) assert_int_equal(count[i], f->n[HF_BEGIN]);
}

/* --- streaming --- */

static char *stream(const char *s, int64_t n, int64_t cut) {
    char *out = xcalloc((size_t)(3 * n + 8), 1);
    utf8_stream u = {.n = 0};
    int w = utf8_stream_feed(&u, s, (int)cut, out);
    assert_true(w <= UTF8_STREAM_OUT(cut));
    assert_true(tokens_are_whole(out, w));
    w += utf8_stream_feed(&u, s + cut, (int)(n - cut), out + w);
    w += utf8_stream_end(&u, out + w);
    out[w] = 0;
    return out;
}

static void streaming_at_every_byte(void **state) {
    const fixture *f = *state;
    static const struct {
        const char *in, *out;
    } rows[] = {{"aé漢🙂b", "aé漢🙂b"},
                {"\xff\xfe", "\xef\xbf\xbd\xef\xbf\xbd"},
                {"a\xe6\xbc", "a\xef\xbf\xbd"}, /* cut short: one replacement */
                {"\xe6\xbc"
                 "b",
                 "\xef\xbf\xbd"
                 "b"},
                {"\xed\xa0\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"}, /* surrogate */
                {"\xc0\xaf", "\xef\xbf\xbd\xef\xbf\xbd"},                 /* overlong */
                {"\xf0\x9f\x99\xf0\x9f\x99\x82", "\xef\xbf\xbd\xf0\x9f\x99\x82"},
                {"\xf4\x90\x80\x80", "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd"}, /* above U+10FFFF */
                {"\xe2\x82\xe2\x82\xac", "\xef\xbf\xbd\xe2\x82\xac"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (int64_t cut = 0, n = (int64_t)strlen(rows[i].in); cut <= n; cut++) {
            char *s = stream(rows[i].in, n, cut);
            assert_string_equal(s, rows[i].out);
            free(s);
        }
    token_list l = encode(f->dir, (const char *)f->text.data, (int64_t)f->text.size, 0);
    utf8_stream u = {.n = 0};
    char *all = xcalloc(f->text.size + 8, 1), out[1024];
    size_t w = 0;
    for (int64_t i = 0; i < l.n; i++) { /* token by token, as a program prints */
        int n;
        const char *bytes = tokenizer_bytes(f->dir, l.id[i], &n);
        assert_true(UTF8_STREAM_OUT(n) <= (int)sizeof out);
        int k = utf8_stream_feed(&u, bytes, n, out);
        assert_true(tokens_are_whole(out, k));
        assert_true(w + (size_t)k <= f->text.size);
        memcpy(all + w, out, (size_t)k);
        w += (size_t)k;
    }
    assert_int_equal(utf8_stream_end(&u, out), 0);
    assert_int_equal(w, f->text.size);
    assert_memory_equal(all, f->text.data, w);
    free(all);
    token_list_free(&l);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(ids_equal_tokenizers),
                                       cmocka_unit_test(ids_equal_llama_cpp),
                                       cmocka_unit_test(spans_equal_tokenizers),
                                       cmocka_unit_test(text_comes_back),
                                       cmocka_unit_test(skip_special_leaves_the_rest),
                                       cmocka_unit_test(specials_only_when_asked),
                                       cmocka_unit_test(names_of_the_directory),
                                       cmocka_unit_test(names_of_the_file),
                                       cmocka_unit_test(variants_equal_tokenizers),
                                       cmocka_unit_test(pre_rows_equal_llama_cpp),
                                       cmocka_unit_test(long_words),
                                       cmocka_unit_test(pieces_do_not_depend_on_threads),
                                       cmocka_unit_test(streaming_at_every_byte)};
    return cmocka_run_group_tests_name("tokenizer", tests, setup, teardown);
}
