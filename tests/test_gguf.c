/* The GGUF reader, header and key-values: files of the gguf package read back, and one crafted file per way to be wrong
 * (G numbers: the catalogue of bad inputs in docs/RELIABILITY.md). Tensors: test_gguf_tensors.c. */
#include "core/gguf.h"
#include "tests/hostile_gguf.h"

static bytes text_file(const char *s, size_t n) {
    bytes b = {0};
    put(&b, s, n);
    return b;
}

/* ---- good files ---- */

static void reads_the_package(void **state) {
    (void)state;
    gguf g;
    if (gguf_open(&g, "tests/golden/readers.gguf")) fail_msg("%s", fail_text());
    int64_t i;
    static const struct {
        const char *key;
        int64_t value;
    } ints[] = {
        {"t.u8", 200},
        {"t.i8", -100},
        {"t.u16", 60000},
        {"t.i16", -30000},
        {"t.u32", 4000000000},
        {"t.i32", -2000000000},
        {"t.i64", -((int64_t)1 << 62)},
    };
    for (size_t k = 0; k < sizeof ints / sizeof *ints; k++) {
        assert_int_equal(gguf_get_int(&g, ints[k].key, INT64_MIN, INT64_MAX, &i), 0);
        assert_int_equal(i, ints[k].value);
    }
    double d;
    assert_int_equal(gguf_get_real_or(&g, "t.f32", 0, 1, 0, &d), 0);
    assert_true(d == (double)0.1f);
    assert_int_equal(gguf_get_real_or(&g, "t.f64", 0, 1, 0, &d), 0);
    assert_true(d == 0.1);
    bool flag;
    assert_int_equal(gguf_get_bool_or(&g, "t.yes", false, &flag), 0);
    assert_true(flag);
    assert_int_equal(gguf_get_bool_or(&g, "t.no", true, &flag), 0);
    assert_false(flag);
    gguf_str s;
    assert_int_equal(gguf_get_string(&g, "t.string", &s), 0);
    assert_int_equal(s.n, 11);
    assert_memory_equal(s.data, "gr\xc3\xbc\xc3\x9f dich", 11);
    const gguf_kv *a;
    assert_int_equal(gguf_get_array_or(&g, "t.ints", GGUF_I32, 3, &a), 0);
    assert_int_equal(gguf_array_int(a, 1), -2);
    assert_int_equal(gguf_get_array_or(&g, "t.reals", GGUF_F32, -1, &a), 0);
    assert_true(gguf_array_real(a, 1) == 1.5);
    assert_int_equal(gguf_get_array_or(&g, "t.strings", GGUF_STRING, 3, &a), 0);
    assert_int_equal(a->strings[1].n, 0);
    assert_memory_equal(a->strings[2].data, "\xc3\xa9", 2);

    assert_int_equal(g.n_tensors, 4);
    assert_string_equal(g.tensors[0].name, "f32"); /* file order */
    const gguf_tensor *t = gguf_tensor_find(&g, "f32");
    assert_int_equal(t->dims, 3);
    assert_int_equal(t->ne[0], 4), assert_int_equal(t->ne[1], 3), assert_int_equal(t->ne[2], 2),
        assert_int_equal(t->ne[3], 1);
    float x;
    memcpy(&x, t->data + 4 * 23, 4);
    assert_true(x == 23);
    t = gguf_tensor_find(&g, "q4_0");
    assert_int_equal(t->ggml_type, 2);
    assert_int_equal(t->bytes, 4 * 2 * 18);
    assert_null(gguf_tensor_find(&g, "q4"));
    assert_null(g.note);
    gguf_close(&g);
}

static void type_table(void **state) {
    (void)state;
    FILE *f = fopen("tests/golden/readers_types.txt", "r");
    assert_non_null(f);
    int id, block, size, rows = 0;
    char name[32];
    bool known[64] = {0};
    while (fscanf(f, "%d %31s %d %d", &id, name, &block, &size) == 4) {
        assert_string_equal(ggml_type_name(id), name);
        assert_int_equal(ggml_type_block(id), block);
        assert_int_equal(ggml_type_bytes(id, 7 * (int64_t)block), 7 * (int64_t)size);
        if (block > 1) assert_int_equal(ggml_type_bytes(id, 7 * (int64_t)block + 1), -1);
        known[id] = true, rows++;
    }
    fclose(f);
    assert_true(rows >= 33);
    for (id = -1; id < 64; id++)
        if (id < 0 || !known[id]) assert_int_equal(ggml_type_bytes(id, 256), -1);
    assert_int_equal(ggml_type_bytes(0, INT64_MAX), -1);
    assert_int_equal(ggml_type_bytes(0, -1), -1);
    assert_string_equal(ggml_type_name(99), "unknown");
}

static void reads_crafted(void **state) {
    (void)state;
    gguf g;
    bytes b = good();
    ACCEPTED(g, b);
    assert_int_equal(g.n_kv, 3);
    assert_int_equal(g.kv[2].strings[2].n, 1); /* a token may be any bytes */
    assert_int_equal(
        gguf_tensor_find(&g, "token_embd.weight")->data - gguf_tensor_find(&g, "blk.0.attn_q.weight")->data, 96);
    gguf_close(&g);
    b = good();
    patch(&b, 4, 2, 4);
    ACCEPTED(g, b);
    assert_int_equal(g.version, 2);
    gguf_close(&g);
    b = begin(0, 0); /* G7: no business of the file's reader; the model's asks for general.architecture */
    ACCEPTED(g, b);
    gguf_str s;
    assert_int_equal(gguf_get_string(&g, "general.architecture", &s), -1);
    assert_said(EXIT_INPUT, "key 'general.architecture' is missing");
    gguf_close(&g);
}

/* ---- the catalogue ---- */

static void g01_too_short(void **state) {
    (void)state;
    for (size_t n = 0; n < 24; n++) {
        bytes b = good();
        b.n = n;
        char said[32];
        snprintf(said, sizeof said, "a file of %zu bytes", n);
        REFUSED(b, said, "too short for a GGUF header");
    }
}

static void g02_other_files(void **state) {
    (void)state;
    static const struct {
        const char *text;
        size_t n;
        const char *says;
    } files[] = {
        {LITERAL("tjgg\1\0\0\0aaaaaaaaaaaaaaaaaaaaaaaa"), "ggjt"},
        {LITERAL("lmgg\1\0\0\0aaaaaaaaaaaaaaaaaaaaaaaa"), "ggml"},
        {LITERAL("\x80\x02}q\0(X\1\0\0\0aK\1aaaaaaaaaaaaaaaaa"), "pickle"},
        {LITERAL("PK\3\4\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"), "zip archive"},
        {LITERAL("\2\0\0\0\0\0\0\0{}"), "a safetensors file"},
        {LITERAL("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"), "git lfs pull"},
        {LITERAL("\n <!DOCTYPE html><html><head></head></html>"), "an HTML page"},
        {LITERAL("\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"), "zero bytes only"},
        {LITERAL("{\"error\":\"Repository not found, sorry\"}"), "JSON text"},
        {LITERAL("what is this? nobody knows at all"), "does not begin with 'GGUF'"},
        {LITERAL("\x1f\x8b\x08\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"), "gzip"},
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        bytes b = text_file(files[i].text, files[i].n);
        REFUSED(b, "not a GGUF file", files[i].says);
    }
}

static void g03_g04_version(void **state) {
    (void)state;
    static const uint32_t versions[] = {0, 1, 4, 0x80000000u, 0xffffffffu};
    for (size_t i = 0; i < sizeof versions / sizeof *versions; i++) {
        bytes b = good();
        patch(&b, 4, versions[i], 4);
        REFUSED(b, "offset 0x4 (4): GGUF version", "versions 2 and 3 are supported");
    }
    bytes b = good();
    patch(&b, 4, 0x03000000, 4);
    REFUSED(b, "big-endian");
}

static void g05_g06_counts(void **state) {
    (void)state;
    static const uint64_t counts[] = {UINT64_MAX, (uint64_t)1 << 63, (uint64_t)1 << 32, 65537, 40};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        bytes b = good();
        patch(&b, 8, counts[i], 8);
        REFUSED(b, "offset 0x8 (8): ", "tensors: more than the file can hold");
        b = good();
        patch(&b, 16, counts[i], 8);
        REFUSED(b, "offset 0x10 (16): ", "key-values: more than the file can hold");
    }
}

static void g08_key_length(void **state) {
    (void)state;
    static const struct {
        uint64_t length;
        const char *says;
    } rows[] = {
        {0, "a key is empty"},
        {UINT64_MAX, "exceeds the"},
        {(uint64_t)1 << 63, "exceeds the"},
        {5000, "bytes left in the file"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        bytes b = good();
        patch(&b, 24, rows[i].length, 8);
        REFUSED(b, "offset 0x18 (24): ", rows[i].says);
    }
    bytes b = begin(0, 1);
    put_int(&b, 65536, 8);
    put_fill(&b, 'k', 65536 + 100);
    REFUSED(b, "length 65536 exceeds 65535");
}

static void g09_key_bytes(void **state) {
    (void)state;
    static const struct {
        const char *key;
        size_t n;
    } rows[] = {
        {"a\xff", 2},    {"a\0b", 3},         {"a\nb", 3}, {"\x1b[31m", 5},
        {"\xc0\x80", 2}, {"\xed\xa0\x80", 3}, {"\x7f", 1}, {"\xc2\x9b", 2},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        bytes b = begin(0, 1);
        put_int(&b, rows[i].n, 8), put(&b, rows[i].key, rows[i].n);
        put_int(&b, GGUF_U32, 4), put_int(&b, 1, 4);
        REFUSED(b, "a key '", "is not UTF-8 or has control characters");
    }
}

static void g10_key_twice(void **state) {
    (void)state;
    bytes b = begin(0, 3);
    put_kv(&b, "k", GGUF_U32, 1, 4);
    put_kv(&b, "other", GGUF_U8, 1, 1);
    put_kv(&b, "k", GGUF_U32, 1, 4);
    REFUSED(b, "offset 0x3b (59): key 'k' is there already at offset 0x18 (24)");
}

static void g11_value_type(void **state) {
    (void)state;
    static const uint32_t types[] = {13, 255, 0xffffffffu, 0x80000000u};
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        bytes b = begin(0, 1);
        put_kv(&b, "k", (gguf_type)types[i], 0, 8);
        REFUSED(b, "offset 0x21 (33): key 'k': value type", "is unknown");
        b = begin(0, 1);
        put_array(&b, "k", types[i], 0);
        REFUSED(b, "key 'k': array element type", "is unknown");
    }
}

static void g12_nested_array(void **state) {
    (void)state;
    bytes b = begin(0, 1);
    put_array(&b, "k", GGUF_ARRAY, 1), put_int(&b, GGUF_U8, 4), put_int(&b, 1, 8), put_int(&b, 1, 1);
    REFUSED(b, "key 'k': nested arrays are not supported");
}

static void g13_g14_array_count(void **state) {
    (void)state;
    static const struct {
        gguf_type elem;
        uint64_t n;
    } rows[] = {
        {GGUF_U64, ((uint64_t)1 << 61) + 1}, {GGUF_U64, UINT64_MAX}, {GGUF_U8, UINT64_MAX}, {GGUF_F32, 17},
        {GGUF_STRING, (uint64_t)1 << 40},    {GGUF_STRING, 9},       {GGUF_BOOL, 65},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        bytes b = begin(0, 1);
        put_array(&b, "k", rows[i].elem, rows[i].n);
        put_fill(&b, 0, 64);
        REFUSED(b, "key 'k': ", "array elements exceed the 64 bytes left");
    }
}

static void g14_many_strings(void **state) {
    (void)state;
    bytes b = begin(0, 2); /* as many as are allowed, in two arrays: time and memory stay bounded */
    put_array(&b, "a", GGUF_STRING, GGUF_STRINGS_MAX / 2), put_fill(&b, 0, (size_t)8 * GGUF_STRINGS_MAX / 2);
    put_array(&b, "b", GGUF_STRING, GGUF_STRINGS_MAX / 2), put_fill(&b, 0, (size_t)8 * GGUF_STRINGS_MAX / 2);
    crafted f = crafted_file(b.data, b.n);
    long before = peak_kib();
    double start = seconds();
    gguf g;
    assert_int_equal(gguf_open(&g, f.path), 0);
    if (!UNDER_ASAN) {
        assert_true(seconds() - start < 1);
        assert_true(peak_kib() - before < (long)(b.n >> 10) + (64 << 10) + 1024);
    }
    gguf_close(&g);
    close(f.fd);
    drop(&b);
    b = begin(0, 1);
    put_array(&b, "a", GGUF_STRING, GGUF_STRINGS_MAX + 1), put_fill(&b, 0, (size_t)8 * (GGUF_STRINGS_MAX + 1));
    REFUSED(b, "key 'a': 4194305 strings exceed the file's limit");
}

static void string_length(void **state) {
    (void)state;
    static const uint64_t lengths[] = {UINT64_MAX, (uint64_t)1 << 63, 17};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        bytes b = begin(0, 1);
        put_key(&b, "k", GGUF_STRING), put_int(&b, lengths[i], 8), put_fill(&b, 'x', 16);
        REFUSED(b, "key 'k': a string: length", "bytes left in the file");
    }
    bytes b = begin(0, 1);
    put_key(&b, "k", GGUF_STRING), put_int(&b, GGUF_STRING_MAX + 1, 8), put_fill(&b, 'x', GGUF_STRING_MAX + 1);
    REFUSED(b, "exceeds 16777216");
}

static void g15_g38_g39_getters(void **state) {
    (void)state;
    bytes b = begin(0, 9);
    put_array(&b, "scores", GGUF_U8, 2), put_int(&b, 0, 2);
    put_kv(&b, "short", GGUF_U16, 40000, 2);
    put_kv(&b, "minus", GGUF_I8, 0xff, 1);
    put_kv(&b, "huge", GGUF_U64, UINT64_MAX, 8);
    put_kv(&b, "nan", GGUF_F32, 0x7fc00000, 4);
    put_kv(&b, "inf", GGUF_F64, (uint64_t)0x7ff << 52, 8);
    put_kv(&b, "zero", GGUF_F32, 0, 4);
    put_key(&b, "text", GGUF_STRING), put_str(&b, "4096");
    put_array(&b, "ids", GGUF_I64, 1), put_int(&b, (uint64_t)-5, 8);
    gguf g;
    ACCEPTED(g, b);
    const gguf_kv *a;
    int64_t i;
    double d;
    bool flag;
    gguf_str s;
    assert_int_equal(gguf_get_array_or(&g, "scores", GGUF_F32, -1, &a), -1);
    assert_said(EXIT_INPUT, "key 'scores': found an array with elements of type u8, expected an array of floats");
    assert_int_equal(gguf_get_array_or(&g, "scores", GGUF_I32, 3, &a), -1);
    assert_said(EXIT_INPUT, "key 'scores': found 2 elements, expected 3");
    assert_int_equal(gguf_get_array_or(&g, "none", GGUF_I32, 3, &a), 0);
    assert_null(a);
    assert_int_equal(gguf_get_array_or(&g, "ids", GGUF_I32, 1, &a), 0);
    assert_int_equal(gguf_array_int(a, 0), -5);
    assert_int_equal(gguf_get_int(&g, "short", 1, 65536, &i), 0);
    assert_int_equal(i, 40000);
    assert_int_equal(gguf_get_int(&g, "minus", -1, 1, &i), 0);
    assert_int_equal(i, -1);
    assert_int_equal(gguf_get_int(&g, "minus", 0, 9, &i), -1);
    assert_said(EXIT_INPUT, "key 'minus': found -1, expected an integer from 0 to 9");
    assert_int_equal(gguf_get_int(&g, "huge", 0, INT64_MAX, &i), -1);
    assert_said(EXIT_INPUT, "key 'huge': found 18446744073709551615");
    assert_int_equal(gguf_get_int(&g, "text", 0, 9999, &i), -1);
    assert_said(EXIT_INPUT, "key 'text': found a value of type string, expected an integer");
    assert_int_equal(gguf_get_int(&g, "zero", 0, 9999, &i), -1);
    assert_said(EXIT_INPUT, "key 'zero': found a value of type f32, expected an integer");
    assert_int_equal(gguf_get_int(&g, "none", 0, 1, &i), -1);
    assert_said(EXIT_INPUT, "key 'none' is missing");
    assert_int_equal(gguf_get_int_or(&g, "none", 0, 1, 7, &i), 0);
    assert_int_equal(i, 7);
    static const char *const reals[] = {"nan", "inf", "zero"};
    for (int k = 0; k < 3; k++) {
        assert_int_equal(gguf_get_real_or(&g, reals[k], 1e-12, 1, 0.5, &d), -1);
        assert_said(EXIT_INPUT, reals[k], "expected a number from 1e-12 to 1");
    }
    assert_int_equal(gguf_get_real_or(&g, "none", 1, 2, 1.5, &d), 0);
    assert_true(d == 1.5);
    assert_int_equal(gguf_get_real_or(&g, "short", 0, 1e5, 0, &d), 0);
    assert_true(d == 40000);
    assert_int_equal(gguf_get_bool_or(&g, "short", true, &flag), -1);
    assert_said(EXIT_INPUT, "key 'short': found a value of type u16, expected a bool");
    assert_int_equal(gguf_get_string(&g, "short", &s), -1);
    assert_said(EXIT_INPUT, "expected a string");
    gguf_close(&g);
}

static void g16_alignment(void **state) {
    (void)state;
    static const struct {
        gguf_type type;
        uint64_t value;
        int size;
    } rows[] = {
        {GGUF_U32, 0, 4},      {GGUF_U32, 3, 4},  {GGUF_U32, 4, 4},  {GGUF_U32, 48, 4},   {GGUF_U32, 0x80000000u, 4},
        {GGUF_U32, 131072, 4}, {GGUF_I32, 32, 4}, {GGUF_U64, 32, 8}, {GGUF_STRING, 0, 8},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        bytes b = begin(0, 1);
        put_kv(&b, "general.alignment", rows[i].type, rows[i].value, rows[i].size);
        REFUSED(b, "general.alignment is ");
    }
    bytes b = begin(2, 1);
    put_kv(&b, "general.alignment", GGUF_U32, 8, 4);
    put_tensor(&b, "a", 1, (uint64_t[]){2}, 0, 0), put_tensor(&b, "b", 1, (uint64_t[]){2}, 0, 8);
    put_fill(&b, 0, (8 - b.n % 8) % 8 + 16);
    gguf g;
    ACCEPTED(g, b);
    assert_int_equal(g.tensors[1].data - g.tensors[0].data, 8);
    gguf_close(&g);
}

static void g17_bool(void **state) {
    (void)state;
    bytes b = begin(0, 1);
    put_kv(&b, "k", GGUF_BOOL, 2, 1);
    REFUSED(b, "key 'k': a bool of value 2");
    b = begin(0, 1);
    put_array(&b, "k", GGUF_BOOL, 3), put_int(&b, 0xff0001, 3);
    REFUSED(b, "offset 0x33 (51): key 'k': a bool of value 255");
}

static void g40_split(void **state) {
    (void)state;
    bytes b = begin(0, 2);
    put_kv(&b, "split.no", GGUF_U16, 1, 2), put_kv(&b, "split.count", GGUF_U16, 3, 2);
    REFUSED(b, "keys split.no and split.count", "part 2 of a model split into 3 files");
    b = begin(0, 1);
    put_key(&b, "split.count", GGUF_STRING), put_str(&b, "3");
    REFUSED(b, "key 'split.count': found a value of type string");
    b = begin(0, 1);
    put_kv(&b, "split.count", GGUF_U16, 1, 2);
    gguf g;
    ACCEPTED(g, b);
    gguf_close(&g);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_the_package),   cmocka_unit_test(type_table),       cmocka_unit_test(reads_crafted),
        cmocka_unit_test(g01_too_short),       cmocka_unit_test(g02_other_files),  cmocka_unit_test(g03_g04_version),
        cmocka_unit_test(g05_g06_counts),      cmocka_unit_test(g08_key_length),   cmocka_unit_test(g09_key_bytes),
        cmocka_unit_test(g10_key_twice),       cmocka_unit_test(g11_value_type),   cmocka_unit_test(g12_nested_array),
        cmocka_unit_test(g13_g14_array_count), cmocka_unit_test(g14_many_strings), cmocka_unit_test(string_length),
        cmocka_unit_test(g15_g38_g39_getters), cmocka_unit_test(g16_alignment),    cmocka_unit_test(g17_bool),
        cmocka_unit_test(g40_split),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
