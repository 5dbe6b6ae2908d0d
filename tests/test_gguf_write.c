/* The GGUF writer: what it writes the reader reads back, and a file of the gguf package copied through it keeps every
 * key and tensor; bad names are refused and leave nothing behind. */
#include "core/arena.h"
#include "core/gguf_write.h"
#include "tests/hostile_gguf.h"

#include <unistd.h>

static char dir[64];

static char *in_dir(const char *name) { return xprintf("%s/%s", dir, name); }

static void test_copy(void **state) {
    (void)state;
    gguf a, b;
    gguf_meta m = {0};
    gguf_writer w;
    char *path = in_dir("copy.gguf");
    if (gguf_open(&a, "tests/golden/readers.gguf")) fail_msg("%s", fail_text());
    gguf_decl *decls = xcalloc((size_t)a.n_tensors, sizeof *decls);
    for (int i = 0; i < a.n_kv; i++) gguf_put_kv(&m, &a.kv[i]);
    for (int i = 0; i < a.n_tensors; i++) {
        const gguf_tensor *t = &a.tensors[i];
        decls[i] = (gguf_decl){t->name, t->ggml_type, t->dims, {t->ne[0], t->ne[1], t->ne[2], t->ne[3]}};
    }
    if (gguf_writer_open(&w, path, &m, decls, a.n_tensors)) fail_msg("%s", fail_text());
    for (int i = 0; i < a.n_tensors; i++) /* in two pieces */
        if (gguf_writer_data(&w, a.tensors[i].data, 5) ||
            gguf_writer_data(&w, a.tensors[i].data + 5, a.tensors[i].bytes - 5))
            fail_msg("%s", fail_text());
    assert_int_equal(gguf_writer_close(&w), 0);
    if (gguf_open(&b, path)) fail_msg("%s", fail_text());
    assert_null(b.note);
    assert_int_equal(b.version, 3);
    assert_int_equal(a.n_kv, b.n_kv);
    for (int i = 0; i < a.n_kv; i++) {
        const gguf_kv *x = &a.kv[i], *y = &b.kv[i];
        assert_string_equal(x->key, y->key);
        assert_int_equal(x->type, y->type);
        assert_int_equal(x->n, y->n);
        if (i + 1 < a.n_kv) /* all bytes of the value */
            assert_memory_equal(a.file.data + x->offset, b.file.data + y->offset, a.kv[i + 1].offset - x->offset);
    }
    assert_int_equal(a.n_tensors, b.n_tensors);
    for (int i = 0; i < a.n_tensors; i++) {
        assert_string_equal(a.tensors[i].name, b.tensors[i].name);
        assert_int_equal(a.tensors[i].bytes, b.tensors[i].bytes);
        assert_memory_equal(a.tensors[i].data, b.tensors[i].data, a.tensors[i].bytes);
    }
    gguf_close(&a), gguf_close(&b), gguf_meta_free(&m);
    free(decls), free(path);
}

static void test_values(void **state) {
    (void)state;
    gguf g;
    gguf_meta m = {0};
    gguf_writer w;
    char *path = in_dir("values.gguf");
    const gguf_str words[2] = {{"", 0}, {"\xc3\xa9", 2}};
    const int32_t ints[3] = {-1, 2, INT32_MIN};
    gguf_put_text(&m, "a.text", "hello");
    gguf_put_u32(&m, "a.u32", UINT32_MAX), gguf_put_f32(&m, "a.f32", 0.1f), gguf_put_bool(&m, "a.bool", true);
    gguf_put_strings(&m, "a.words", words, 2), gguf_put_i32s(&m, "a.ints", ints, 3);
    assert_true(gguf_meta_has(&m, "a.bool"));
    assert_false(gguf_meta_has(&m, "a.boo"));
    if (gguf_writer_open(&w, path, &m, NULL, 0) || gguf_writer_close(&w) || gguf_open(&g, path))
        fail_msg("%s", fail_text());
    gguf_str s;
    int64_t i;
    double d;
    bool flag;
    const gguf_kv *kv;
    assert_int_equal(gguf_get_string(&g, "a.text", &s), 0);
    assert_true(s.n == 5 && !memcmp(s.data, "hello", 5));
    assert_int_equal(gguf_get_int(&g, "a.u32", 0, UINT32_MAX, &i), 0);
    assert_int_equal(i, UINT32_MAX);
    assert_int_equal(gguf_get_real_or(&g, "a.f32", 0, 1, 0, &d), 0);
    assert_true(d == (double)0.1f);
    assert_int_equal(gguf_get_bool_or(&g, "a.bool", false, &flag), 0);
    assert_true(flag);
    assert_int_equal(gguf_get_array_or(&g, "a.words", GGUF_STRING, 2, &kv), 0);
    assert_true(kv->strings[0].n == 0 && kv->strings[1].n == 2);
    assert_int_equal(gguf_get_array_or(&g, "a.ints", GGUF_I32, 3, &kv), 0);
    assert_true(gguf_array_int(kv, 2) == INT32_MIN);
    gguf_close(&g), gguf_meta_free(&m);
    free(path);
}

static void test_refusals(void **state) {
    (void)state;
    gguf_meta m = {0};
    gguf_writer w;
    char *path = in_dir("bad.gguf"), longest[65] = {0};
    memset(longest, 'x', 64);
    const char *const bad[] = {"", "two\nlines", longest, "\xff"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const gguf_decl d = {bad[i], 0, 1, {4}};
        assert_int_equal(gguf_writer_open(&w, path, &m, &d, 1), -1);
        assert_said(EXIT_INPUT, "cannot be written under the name");
    }
    const gguf_decl twice[2] = {{"t", 0, 1, {4}}, {"t", 0, 1, {4}}};
    assert_int_equal(gguf_writer_open(&w, path, &m, twice, 2), -1);
    assert_said(EXIT_INPUT, "two tensors have the name 't'");
    /* data missing: nothing gets the name */
    const float x[4] = {0};
    assert_int_equal(gguf_writer_open(&w, path, &m, twice, 1), 0);
    assert_int_equal(gguf_writer_data(&w, x, 12), 0);
    assert_int_equal(gguf_writer_close(&w), -1);
    assert_said(EXIT_INTERNAL, "0 of 1 declared tensors");
    assert_false(path_exists(path));
    assert_int_equal(gguf_writer_open(&w, path, &m, twice, 1), 0);
    gguf_writer_abandon(&w);
    assert_false(path_exists(path));
    free(path);
}

static int make_dir(void **state) {
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/peft_gguf_write_%ld", (long)getpid());
    return path_make_dirs(dir);
}

static int remove_dir(void **state) {
    (void)state;
    char *c = xprintf("rm -rf %s", dir);
    int bad = system(c);
    free(c);
    return bad;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_copy),
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
