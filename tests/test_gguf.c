/* The GGUF reader: files of the gguf package read back, and one crafted file per way to be wrong (G numbers: the
 * catalogue of bad inputs in docs/RELIABILITY.md). */
#include "core/gguf.h"
#include "tests/hostile.h"

#include <fcntl.h>
#include <math.h>

/* ---- crafted files ---- */

static void put_str(bytes *b, const char *s) {
    put_int(b, strlen(s), 8);
    put_text(b, s);
}

static bytes begin(uint64_t tensors, uint64_t kvs) {
    bytes b = {0};
    put_text(&b, "GGUF");
    put_int(&b, 3, 4), put_int(&b, tensors, 8), put_int(&b, kvs, 8);
    return b;
}

static void put_key(bytes *b, const char *key, gguf_type type) {
    put_str(b, key);
    put_int(b, type, 4);
}

static void put_kv(bytes *b, const char *key, gguf_type type, uint64_t v, int size) {
    put_key(b, key, type);
    put_int(b, v, size);
}

static void put_array(bytes *b, const char *key, uint64_t elem, uint64_t n) {
    put_key(b, key, GGUF_ARRAY);
    put_int(b, elem, 4), put_int(b, n, 8);
}

static void put_tensor(bytes *b, const char *name, uint32_t dims, const uint64_t *ne, uint32_t type, uint64_t offset) {
    put_str(b, name);
    put_int(b, dims, 4);
    for (uint32_t i = 0; i < dims && i < 8; i++) put_int(b, ne[i], 8);
    put_int(b, type, 4), put_int(b, offset, 8);
}

static void put_data(bytes *b, size_t n) {
    put_fill(b, 0, (32 - b->n % 32) % 32);
    put_fill(b, 0xab, n);
}

/* a valid file whose last data byte is its last byte */
static bytes good(void) {
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
static bytes one(uint32_t dims, const uint64_t *ne, uint32_t type, uint64_t offset) {
    bytes b = begin(1, 0);
    put_tensor(&b, "t", dims, ne, type, offset);
    put_data(&b, 64);
    return b;
}

static int open_bytes(gguf *g, const bytes *b) {
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

static void all_prefixes(const uint8_t *data, size_t n) {
    crafted f = crafted_file(data, n);
    for (size_t k = n; k-- > 0;) {
        gguf g;
        assert_int_equal(ftruncate(f.fd, (off_t)k), 0);
        if (!gguf_open(&g, f.path)) fail_msg("a prefix of %zu of %zu bytes was read", k, n);
        assert_true(fail_code() == EXIT_INPUT && strstr(fail_text(), "/proc/self/fd/"));
        fail_clear();
    }
    close(f.fd);
}

static void g18_prefixes(void **state) {
    (void)state;
    bytes b = good();
    all_prefixes(b.data, b.n);
    drop(&b);
    gguf g;
    assert_int_equal(gguf_open(&g, "tests/golden/readers.gguf"), 0);
    const gguf_tensor *last = &g.tensors[g.n_tensors - 1]; /* what follows it is padding */
    all_prefixes(g.file.data, (size_t)(last->data - g.file.data) + last->bytes);
    gguf_close(&g);
}

static void g19_g20_names(void **state) {
    (void)state;
    char name[65];
    memset(name, 'n', 64), name[64] = 0;
    bytes b = begin(1, 0);
    put_tensor(&b, name, 1, (uint64_t[]){8}, 0, 0), put_data(&b, 64);
    REFUSED(b, "offset 0x18 (24): a tensor name: length 64 exceeds 63");
    b = begin(1, 0);
    put_tensor(&b, "", 1, (uint64_t[]){8}, 0, 0), put_data(&b, 64);
    REFUSED(b, "a tensor name is empty");
    b = one(1, (uint64_t[]){8}, 0, 0);
    patch(&b, 24, UINT64_MAX, 8);
    REFUSED(b, "a tensor name: length 18446744073709551615");
    b = begin(1, 0);
    put_tensor(&b, "a\tb", 1, (uint64_t[]){8}, 0, 0), put_data(&b, 64);
    REFUSED(b, "a tensor name 'a\\x09b' is not UTF-8 or has control characters");
    b = begin(3, 0);
    put_tensor(&b, "w", 1, (uint64_t[]){8}, 0, 0), put_tensor(&b, "v", 1, (uint64_t[]){8}, 0, 32);
    put_tensor(&b, "w", 1, (uint64_t[]){8}, 0, 64), put_data(&b, 96);
    REFUSED(b, "two tensors have the name 'w' (numbers 0 and 2)");
}

static void g21_g22_dimensions(void **state) {
    (void)state;
    const uint64_t ne[8] = {1, 1, 1, 1, 1, 1, 1, 1};
    bytes b = one(0, ne, 0, 0);
    REFUSED(b, "tensor 't' has no dimensions");
    b = one(5, ne, 0, 0);
    REFUSED(b, "offset 0x21 (33): tensor 't': dimension count 5 exceeds 4");
    b = one(0xffffffffu, ne, 0, 0);
    REFUSED(b, "dimension count 4294967295 exceeds 4");
    static const uint64_t bad[] = {0, (uint64_t)-1, (uint64_t)1 << 63};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        b = one(2, (uint64_t[]){8, bad[i]}, 0, 0);
        REFUSED(b, "tensor 't': dimension 1 is ", "expected 1 or more");
    }
}

static void g23_g24_sizes(void **state) {
    (void)state;
    static const uint64_t products[][4] = {
        {((uint64_t)1 << 42) + 1, (uint64_t)1 << 42, 1, 1},
        {(uint64_t)1 << 32, (uint64_t)1 << 32, 1, 1},
        {(uint64_t)1 << 16, (uint64_t)1 << 16, (uint64_t)1 << 16, (uint64_t)1 << 16},
        {INT64_MAX, 3, 1, 1},
    };
    for (size_t i = 0; i < sizeof products / sizeof *products; i++) {
        bytes b = one(4, products[i], 0, 0);
        REFUSED(b, "tensor 't': the dimensions multiply to more than 2^63");
    }
    bytes b = one(1, (uint64_t[]){(uint64_t)1 << 62}, 0, 0); /* 2^64 bytes */
    REFUSED(b, "tensor 't': its bytes are more than 2^63");
    b = one(2, (uint64_t[]){(uint64_t)1 << 31, (uint64_t)1 << 31}, 28, 0);
    REFUSED(b, "tensor 't': its bytes are more than 2^63");
}

static void g25_g26_g30_ends(void **state) {
    (void)state;
    bytes b = one(1, (uint64_t[]){8}, 0, UINT64_MAX - 31); /* offset + size wraps */
    REFUSED(b, "tensor 't': 32 bytes at offset 18446744073709551584 of a data section of 64 bytes");
    b = one(1, (uint64_t[]){17}, 0, 0);
    REFUSED(b, "tensor 't': 68 bytes at offset 0 of a data section of 64 bytes");
    b = one(1, (uint64_t[]){16}, 0, 32);
    REFUSED(b, "tensor 't': 64 bytes at offset 32 of a data section of 64 bytes");
    b = one(1, (uint64_t[]){((uint64_t)1 << 61) - 1}, 0, 0); /* below 2^63 bytes, and its padded size wraps int64 */
    REFUSED(b, "9223372036854775804 bytes at offset 0");
    b = begin(1, 0); /* the padding of the header itself runs over the end */
    put_tensor(&b, "t", 1, (uint64_t[]){1}, 24, 0);
    REFUSED(b, "1 bytes at offset 0 of a data section of 0 bytes");
}

static void g27_g28_types(void **state) {
    (void)state;
    static const struct {
        uint32_t type;
        const char *says;
    } rows[] = {
        {4, "type id 4 (Q4_2 (removed))"},
        {5, "type id 5 (Q4_3"},
        {31, "type id 31 (Q4_0_4_4"},
        {36, "type id 36 (IQ4_NL_4_4"},
        {42, "type id 42 (unknown)"},
        {0x7fffffff, "type id 2147483647 (unknown)"},
        {0xffffffffu, "type id 4294967295 (unknown)"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        bytes b = one(1, (uint64_t[]){256}, rows[i].type, 0);
        REFUSED(b, "offset 0x2d (45): tensor 't': ", rows[i].says);
    }
    bytes b = one(2, (uint64_t[]){16, 2}, 8, 0); /* the product is a multiple, the row is not */
    REFUSED(b, "tensor 't': rows of 16 elements are no multiple of Q8_0's block of 32");
    b = one(1, (uint64_t[]){128}, 12, 0);
    REFUSED(b, "no multiple of Q4_K's block of 256");
}

static void g29_unaligned(void **state) {
    (void)state;
    bytes b = one(1, (uint64_t[]){4}, 0, 8);
    REFUSED(b, "tensor 't': offset 8 is no multiple of the alignment 32");
}

static void g31_overlap(void **state) {
    (void)state;
    bytes b = begin(2, 0);
    put_tensor(&b, "a", 1, (uint64_t[]){16}, 0, 0), put_tensor(&b, "b", 1, (uint64_t[]){8}, 0, 32), put_data(&b, 96);
    REFUSED(b, "the data of tensors 'a' and 'b' overlap");
    b = begin(2, 0); /* the same in the other order, and at one place */
    put_tensor(&b, "b", 1, (uint64_t[]){8}, 0, 32), put_tensor(&b, "a", 1, (uint64_t[]){16}, 0, 0), put_data(&b, 96);
    REFUSED(b, "the data of tensors 'a' and 'b' overlap");
    b = begin(2, 0);
    put_tensor(&b, "a", 1, (uint64_t[]){8}, 0, 32), put_tensor(&b, "b", 1, (uint64_t[]){8}, 0, 32), put_data(&b, 96);
    REFUSED(b, "overlap");
}

static void g32_holes(void **state) {
    (void)state;
    static const struct {
        uint64_t second, size;
        bool noted;
    } rows[] = {
        {32, 64, false}, {64, 96, false}, {96, 128, true}, {32, 96, false}, {32, 97, true},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        bytes b = begin(2, 0);
        put_tensor(&b, "a", 1, (uint64_t[]){8}, 0, 0), put_tensor(&b, "b", 1, (uint64_t[]){8}, 0, rows[i].second);
        put_data(&b, rows[i].size);
        gguf g;
        ACCEPTED(g, b);
        assert_int_equal(g.note != NULL, rows[i].noted);
        if (g.note) assert_non_null(strstr(g.note, "belong to no tensor"));
        gguf_close(&g);
    }
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

static void g42_sparse(void **state) {
    (void)state;
    bytes b = good();
    crafted f = crafted_file(b.data, b.n);
    assert_int_equal(ftruncate(f.fd, (off_t)1 << 40), 0);
    double start = seconds();
    gguf g;
    assert_int_equal(gguf_open(&g, f.path), 0);
    assert_true(seconds() - start < 1);
    assert_non_null(strstr(g.note, "belong to no tensor"));
    gguf_close(&g);
    close(f.fd);
    drop(&b);
}

/* Many names that differ in the last byte only: sorting and finding stay fast. */
static void many_tensors(void **state) {
    (void)state;
    bytes b = begin(GGUF_TENSORS_MAX, 0);
    char name[64];
    for (uint64_t i = 0; i < GGUF_TENSORS_MAX; i++) {
        snprintf(name, sizeof name, "a.name.that.is.as.long.as.ggml.allows.for.tensors.%012d", (int)i);
        put_tensor(&b, name, 1, (uint64_t[]){1}, 24, 32 * i);
    }
    put_data(&b, (size_t)32 * GGUF_TENSORS_MAX);
    double start = seconds();
    gguf g;
    ACCEPTED(g, b);
    if (!UNDER_ASAN) assert_true(seconds() - start < 1);
    assert_ptr_equal(gguf_tensor_find(&g, name), &g.tensors[GGUF_TENSORS_MAX - 1]);
    gguf_close(&g);
}

/* Every single-byte change of a valid file is read or refused, never worse (asan watches). */
static void flips(void **state) {
    (void)state;
    static const uint8_t flip[] = {0x01, 0x80, 0xff, 0x7f};
    bytes b = good();
    crafted f = crafted_file(b.data, b.n);
    for (size_t i = 0; i < b.n; i++)
        for (size_t k = 0; k < sizeof flip; k++) {
            uint8_t c = b.data[i] ^ flip[k];
            assert_int_equal(pwrite(f.fd, &c, 1, (off_t)i), 1);
            gguf g;
            if (!gguf_open(&g, f.path))
                gguf_close(&g);
            else
                assert_int_equal(fail_code(), EXIT_INPUT);
            fail_clear();
            assert_int_equal(pwrite(f.fd, &b.data[i], 1, (off_t)i), 1);
        }
    close(f.fd);
    drop(&b);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_the_package),
        cmocka_unit_test(type_table),
        cmocka_unit_test(reads_crafted),
        cmocka_unit_test(g01_too_short),
        cmocka_unit_test(g02_other_files),
        cmocka_unit_test(g03_g04_version),
        cmocka_unit_test(g05_g06_counts),
        cmocka_unit_test(g08_key_length),
        cmocka_unit_test(g09_key_bytes),
        cmocka_unit_test(g10_key_twice),
        cmocka_unit_test(g11_value_type),
        cmocka_unit_test(g12_nested_array),
        cmocka_unit_test(g13_g14_array_count),
        cmocka_unit_test(g14_many_strings),
        cmocka_unit_test(string_length),
        cmocka_unit_test(g15_g38_g39_getters),
        cmocka_unit_test(g16_alignment),
        cmocka_unit_test(g17_bool),
        cmocka_unit_test(g18_prefixes),
        cmocka_unit_test(g19_g20_names),
        cmocka_unit_test(g21_g22_dimensions),
        cmocka_unit_test(g23_g24_sizes),
        cmocka_unit_test(g25_g26_g30_ends),
        cmocka_unit_test(g27_g28_types),
        cmocka_unit_test(g29_unaligned),
        cmocka_unit_test(g31_overlap),
        cmocka_unit_test(g32_holes),
        cmocka_unit_test(g40_split),
        cmocka_unit_test(g42_sparse),
        cmocka_unit_test(many_tensors),
        cmocka_unit_test(flips),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
