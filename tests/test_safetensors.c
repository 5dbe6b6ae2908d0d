/* The safetensors reader and writer: files of the safetensors package read back and made again byte for byte, and one
 * crafted file per way to be wrong (S numbers: the catalogue of bad inputs in docs/RELIABILITY.md). */
#include "core/safetensors.h"
#include "core/num.h"
#include "tests/hostile.h"

#include <fcntl.h>
#include <sys/stat.h>

#define ENTRY(name, dtype, shape, from, to)                                                                            \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #from "," #to "]}"

static bytes with_header(const char *header, size_t n, size_t data) {
    bytes b = {0};
    put_int(&b, n, 8);
    put(&b, header, n);
    put_fill(&b, 0, data);
    return b;
}

static bytes file_of(const char *header, size_t data) { return with_header(header, strlen(header), data); }

static int open_bytes(safetensors *s, const bytes *b) {
    crafted f = crafted_file(b->data, b->n);
    int r = safetensors_open(s, f.path);
    close(f.fd);
    return r;
}

static void refused(const char *header, size_t data, const char *says, const char *too) {
    bytes b = file_of(header, data);
    safetensors s;
    assert_int_equal(open_bytes(&s, &b), -1);
    assert_null(s.files);
    assert_said(EXIT_INPUT, says, too);
    drop(&b);
}

static void refused_bytes(bytes b, const char *says) {
    safetensors s;
    assert_int_equal(open_bytes(&s, &b), -1);
    assert_said(EXIT_INPUT, says);
    drop(&b);
}

static void accepted(safetensors *s, const char *header, size_t data) {
    bytes b = file_of(header, data);
    if (open_bytes(s, &b)) fail_msg("%s", fail_text());
    drop(&b);
}

/* ---- good files ---- */

static void reads_the_package(void **state) {
    (void)state;
    safetensors s;
    if (safetensors_open(&s, "tests/golden/readers.safetensors")) fail_msg("%s", fail_text());
    assert_int_equal(s.n, 12);
    static const struct {
        const char *name;
        st_dtype dtype;
    } kinds[] = {
        {"f64", ST_F64}, {"f32", ST_F32}, {"f16", ST_F16}, {"bf16", ST_BF16}, {"i64", ST_I64},
        {"i32", ST_I32}, {"i16", ST_I16}, {"i8", ST_I8},   {"u8", ST_U8},     {"bool", ST_BOOL},
    };
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        const st_tensor *t = safetensors_find(&s, kinds[i].name);
        assert_non_null(t);
        assert_int_equal(t->dtype, kinds[i].dtype);
        assert_true(t->dims == 2 && t->shape[0] == 2 && t->shape[1] == 3);
        assert_int_equal(t->bytes, 6 * st_dtype_size(t->dtype));
    }
    double d;
    memcpy(&d, safetensors_find(&s, "f64")->data + 40, 8);
    assert_true(d == 5);
    uint16_t h;
    memcpy(&h, safetensors_find(&s, "bf16")->data + 10, 2);
    assert_true(bf16_to_float(h) == 5);
    memcpy(&h, safetensors_find(&s, "f16")->data + 10, 2);
    assert_true(f16_to_float(h) == 5);
    float f;
    memcpy(&f, safetensors_find(&s, "scalar")->data, 4);
    assert_true(f == 7 && safetensors_find(&s, "scalar")->dims == 0);
    assert_int_equal(safetensors_find(&s, "bool")->data[5], 1);
    assert_int_equal(safetensors_find(&s, "empty")->bytes, 0);
    for (int i = 1; i < s.n; i++) assert_true(strcmp(s.tensors[i - 1].name, s.tensors[i].name) < 0);
    assert_null(safetensors_find(&s, "none"));
    assert_int_equal(s.n_meta, 2);
    int quote = strcmp(s.meta_keys[0], "quote") ? 1 : 0;
    assert_string_equal(s.meta_values[quote], "a \"b\" \\ c\n");
    safetensors_close(&s);
}

static const char golden_dir[] = "tests/golden/readers_sharded";

static void reads_shards(void **state) {
    (void)state;
    safetensors s;
    if (safetensors_open_dir(&s, golden_dir, "model")) fail_msg("%s", fail_text());
    assert_int_equal(s.n, 3);
    assert_int_equal(s.n_files, 2);
    assert_int_equal(safetensors_find(&s, "a")->file, 0);
    assert_int_equal(safetensors_find(&s, "b")->file, 1);
    float f;
    memcpy(&f, safetensors_find(&s, "b")->data + 12, 4);
    assert_true(f == 2);
    assert_null(s.note);
    safetensors_close(&s);
    assert_int_equal(safetensors_open_dir(&s, golden_dir, "adapter_model"), -1);
    assert_said(EXIT_INPUT, "neither adapter_model.safetensors nor adapter_model.safetensors.index.json");
}

/* ---- the catalogue ---- */

static void s01_s02_header_length(void **state) {
    (void)state;
    for (size_t n = 0; n < 8; n++) {
        bytes b = {0};
        put_fill(&b, 1, n);
        refused_bytes(b, "too short for a header");
    }
    static const uint64_t lengths[] = {0, 1, 5000, 100000001, (uint64_t)1 << 63, UINT64_MAX, UINT64_MAX - 7};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        bytes b = file_of("{\"a\":{}}", 4);
        patch(&b, 0, lengths[i], 8);
        char said[64];
        snprintf(said, sizeof said, "offset 0x0 (0): header length %llu, expected 2 to 12",
                 (unsigned long long)lengths[i]);
        refused_bytes(b, said);
    }
}

static void s03_padding(void **state) {
    (void)state;
    safetensors s;
    accepted(&s, " \n\t\r{" ENTRY("w", "F32", "[1]", 0, 4) "}   \n", 4);
    assert_int_equal(s.n, 1);
    safetensors_close(&s);
    accepted(&s, "{}", 0);
    assert_int_equal(s.n, 0);
    assert_null(safetensors_find(&s, "w"));
    safetensors_close(&s);
    refused("x{}", 0, "offset 0x8 (8): expected the '{'", "");
    refused("  ", 0, "offset 0xa (10): expected the '{'", "");
    refused("\xef\xbb\xbf{}", 0, "expected the '{'", "");
}

static void s04_not_json(void **state) {
    (void)state;
    static const char *const bad[] = {"[1,2]", "\"abc\"", "12345", "null"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) refused(bad[i], 0, "expected the '{'", "");
    refused("{\"a\":}", 0, "header:1:", "unexpected token");
    refused("{\"a\":{}", 0, "header:1:", "");
    refused("{} x", 0, "header:1:", "end of file expected");
    refused("{\"w\xff\":{}}", 0, "header:1:4: invalid UTF-8: byte 0xff at offset 3", "");
    bytes b = with_header("{}\0\0", 4, 0);
    refused_bytes(b, "a NUL byte");
}

static void s05_s06_duplicates(void **state) {
    (void)state;
    refused("{" ENTRY("w", "U8", "[4]", 0, 4) "," ENTRY("w", "F32", "[1]", 0, 4) "}", 4, "duplicate object key", "w");
    refused("{\"w\":{\"dtype\":\"U8\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
            "duplicate object key", "");
    refused("{\"w\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "tensor 'w': 'dtype' is missing", "");
    refused("{\"w\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "tensor 'w': 'shape' is missing", "");
    refused("{\"w\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "tensor 'w': 'data_offsets' is missing", "");
    refused("{\"w\":[1]}", 4, "tensor 'w': found an array, expected an object", "");
}

static void s07_unknown_key(void **state) {
    (void)state;
    safetensors s;
    accepted(&s, "{\"w\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"x\":1}}", 4);
    assert_non_null(strstr(s.note, "tensor 'w' has keys besides"));
    safetensors_close(&s);
}

static void s08_dtype(void **state) {
    (void)state;
    static const char *const bad[] = {"Q4", "f32", "", "F8_E4M3", "U64", "F32 "};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char header[128];
        snprintf(header, sizeof header, "{\"w\":{\"dtype\":\"%s\",\"shape\":[1],\"data_offsets\":[0,4]}}", bad[i]);
        refused(header, 4, "tensor 'w': dtype '", "is not supported");
    }
    refused("{\"w\":{\"dtype\":1,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "'dtype' holds 1, expected a string", "");
}

static void s09_s10_s11_shape(void **state) {
    (void)state;
    refused("{" ENTRY("w", "F32", "[1.0]", 0, 4) "}", 4, "'shape' is a number, expected integers", "");
    refused("{" ENTRY("w", "F32", "[-1]", 0, 4) "}", 4, "a negative number", "");
    refused("{" ENTRY("w", "F32", "[\"1\"]", 0, 4) "}", 4, "'shape' is a string", "");
    refused("{" ENTRY("w", "F32", "[null]", 0, 4) "}", 4, "'shape' is null", "");
    refused("{" ENTRY("w", "F32", "1", 0, 4) "}", 4, "'shape' holds 1, expected an array", "");
    refused("{" ENTRY("w", "F32", "[9223372036854775808]", 0, 4) "}", 4, "too big integer", "");
    refused("{" ENTRY("w", "F32", "[1,1,1,1,1,1,1,1,1]", 0, 4) "}", 4, "9 dimensions exceed 8", "");
    refused("{" ENTRY("w", "F32", "[8589934592,8589934592]", 0, 4) "}", 4, "more than 2^48 elements", "");
    refused("{" ENTRY("w", "U8", "[4294967297,4294967296,4294967292]", 0, 4) "}", 4, "more than 2^48 elements", "");
    refused("{" ENTRY("w", "F32", "[9223372036854775807,3]", 0, 4) "}", 4, "more than 2^48 elements", "");
    refused("{" ENTRY("w", "F32", "[0,4611686018427387904]", 0, 0) "}", 0, "more than 2^48 elements", "");
    refused("{" ENTRY("w", "F32", "[4611686018427387904,0]", 0, 0) "}", 0, "more than 2^48 elements", "");
    safetensors s;
    accepted(&s, "{" ENTRY("w", "F32", "[1,1,1,1,1,1,1,1]", 0, 4) "}", 4);
    safetensors_close(&s);
}

static void s12_s13_offsets(void **state) {
    (void)state;
    refused("{" ENTRY("w", "F32", "[1]", 4, 0) "}", 4, "data begins at 4 and ends before, at 0", "");
    refused("{" ENTRY("w", "F32", "[1]", -4, 0) "}", 4, "a negative number", "");
    refused("{" ENTRY("w", "F32", "[2]", 0, 8) "}", 4, "data ends at 8 of a data section of 4 bytes", "cut short");
    refused("{" ENTRY("w", "F32", "[1]", 9223372036854775803, 9223372036854775807) "}", 4,
            "of a data section of 4 bytes", "");
    refused("{" ENTRY("w", "F32", "[1]", 0, 18446744073709551615) "}", 4, "too big integer", "");
    refused("{" ENTRY("w", "F32", "[2]", 0, 4) "}", 4, "4 bytes of data, but shape and dtype F32 make 8", "");
    refused("{" ENTRY("w", "F32", "[]", 0, 0) "}", 0, "0 bytes of data, but shape and dtype F32 make 4", "");
    refused("{\"w\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4,4]}}", 4, "expected an array [begin, end]",
            "");
    refused("{\"w\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":{\"0\":4}}}", 4, "expected an array [begin, end]",
            "");
}

static void s14_s15_cover(void **state) {
    (void)state;
    refused("{" ENTRY("a", "F32", "[1]", 0, 4) "," ENTRY("b", "F32", "[1]", 8, 12) "}", 12, "a hole of 4 bytes",
            "between a and tensor 'b'");
    refused("{" ENTRY("a", "F32", "[1]", 4, 8) "}", 8,
            "a hole of 4 bytes at data offset 0, between the header and tensor 'a'", "");
    refused("{" ENTRY("b", "F32", "[1]", 2, 6) "," ENTRY("a", "F32", "[1]", 0, 4) "}", 6, "tensors 'a' and 'b' overlap",
            "");
    refused("{" ENTRY("a", "F32", "[1]", 0, 4) "," ENTRY("b", "F32", "[1]", 0, 4) "}", 4, "overlap at data offset 0",
            "");
    refused("{" ENTRY("a", "F32", "[2]", 0, 8) "," ENTRY("z", "F32", "[0]", 4, 4) "}", 8,
            "empty tensor 'z' lies inside tensor 'a'", "");
    refused("{" ENTRY("a", "F32", "[1]", 0, 4) "}", 9, "5 bytes after the last tensor (a)", "");
    refused("{}", 1, "1 bytes after the last tensor (the header)", "");
    safetensors s;
    accepted(
        &s,
        "{" ENTRY("a", "F32", "[1]", 0, 4) "," ENTRY("z", "F32", "[0]", 0, 0) "," ENTRY("y", "F32", "[3,0]", 4, 4) "}",
        4);
    assert_int_equal(s.n, 3);
    safetensors_close(&s);
}

static void s16_metadata(void **state) {
    (void)state;
    refused("{\"__metadata__\":{\"a\":1}}", 0, "__metadata__ key 'a' is an integer, expected a string", "");
    refused("{\"__metadata__\":[]}", 0, "__metadata__ is an array, expected an object of strings", "");
    bytes h = {0};
    put_text(&h, "{\"__metadata__\":{\"a\":\""), put_fill(&h, 'x', 50 << 20), put_text(&h, "\"}}");
    refused_bytes(with_header((char *)h.data, h.n, 0), "__metadata__ exceeds 1048576 bytes");
    drop(&h);
}

static void s17_bombs(void **state) {
    (void)state;
    bytes h = {0};
    put_text(&h, "{\"a\":"), put_fill(&h, '[', 5000), put_fill(&h, ']', 5000), put_text(&h, "}");
    refused_bytes(with_header((char *)h.data, h.n, 0), "header:1:13: nested deeper than 8 levels");
    h.n = 0;
    put_text(&h, "{\""), put_fill(&h, 'n', 513);
    put_text(&h, "\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}");
    refused_bytes(with_header((char *)h.data, h.n, 4), "a tensor name of 513 bytes");
    static const struct {
        int n;
        bool good;
    } counts[] = {{ST_TENSORS_MAX, true}, {ST_TENSORS_MAX + 1, false}, {1000000, false}};
    for (int k = 0; k < 3; k++) {
        h.n = 0;
        for (int i = 0; i < counts[k].n; i++) {
            put_format(&h, "%c\"model.layers.%d.weight\":{\"dtype\":\"U8\",\"shape\":[1,1,1],\"data_offsets\":[%d,%d]}",
                       i ? ',' : '{', i, i, i + 1);
        }
        put_text(&h, "}");
        bytes b = with_header((char *)h.data, h.n, (size_t)counts[k].n);
        crafted f = crafted_file(b.data, b.n);
        long before = peak_kib();
        double start = seconds();
        safetensors s;
        int r = safetensors_open(&s, f.path);
        if (r)
            assert_true(!counts[k].good && fail_code() == EXIT_INPUT);
        else
            assert_true(counts[k].good && s.n == counts[k].n);
        if (!UNDER_ASAN) {
            assert_true(seconds() - start < 1);
            assert_true(peak_kib() - before < (long)(b.n >> 10) + (64 << 10));
        }
        fail_clear();
        safetensors_close(&s);
        close(f.fd);
        drop(&b);
    }
    drop(&h);
}

static void s18_names(void **state) {
    (void)state;
    static const char *const bad[] = {"../x", "a/../../b", "..", "a\\nb", "a\\u001b[31m", "a\\u007f", "a\\u009b"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char header[128];
        snprintf(header, sizeof header, "{\"%s\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", bad[i]);
        refused(header, 4, "has control characters or '..'", "");
    }
    refused("{" ENTRY("w\\u0000", "F32", "[1]", 0, 4) "}", 4, "NUL byte in object key", "");
    refused("{" ENTRY("w\\ud800", "F32", "[1]", 0, 4) "}", 4, "invalid Unicode", "");
    refused("{" ENTRY("", "F32", "[1]", 0, 4) "}", 4, "a tensor name of 0 bytes", "");
    refused("{" ENTRY("w\n", "F32", "[1]", 0, 4) "}", 4, "header:1:", "unexpected newline");
}

static void s19_numbers(void **state) {
    (void)state;
    refused("{" ENTRY("w", "F32", "[1]", 0, 1e400) "}", 4, "real number overflow", "");
    refused("{" ENTRY("w", "F32", "[1]", -0, 4) "}", 4, "a negative number in the header", "");
    refused("{" ENTRY("w", "F32", "[1]", 0, 004) "}", 4, "header:1:", "");
    refused("{" ENTRY("w", "F32", "[1]", 0, 4.0) "}", 4, "'data_offsets' is a number, expected integers", "");
    safetensors s;
    accepted(&s, "{" ENTRY("a-\\\"-b", "F32", "[1]", 0, 4) "}", 4);
    assert_non_null(safetensors_find(&s, "a-\"-b"));
    safetensors_close(&s);
}

static void put_file(const char *dir, const char *name, const char *text) {
    char *path = path_join(dir, name);
    assert_int_equal(file_save(path, text, strlen(text)), 0);
    free(path);
}

static void copy_shard(const char *dir, int from, const char *name) {
    char source[128], *path = path_join(dir, name);
    snprintf(source, sizeof source, "%s/model-%05d-of-00002.safetensors", golden_dir, from);
    file_map m;
    assert_int_equal(file_open(&m, source), 0);
    assert_int_equal(file_save(path, m.data, m.size), 0);
    file_close(&m);
    free(path);
}

static void s21_index(void **state) {
    (void)state;
    static const struct {
        const char *index, *says;
    } rows[] = {
        {"{\"weight_map\":{\"a\":\"one\",\"c\":\"one\",\"b\":\"gone\"}}", "shard 'gone' is missing"},
        {"{\"weight_map\":{\"a\":\"one\",\"c\":\"one\",\"b\":\"two\",\"d\":\"two\"}}", "tensor 'd' is not in two"},
        {"{\"weight_map\":{\"a\":\"two\",\"c\":\"one\",\"b\":\"two\"}}", "tensor 'a' is not in two, but in one"},
        {"{\"weight_map\":{\"a\":\"../../etc/passwd\"}}", "lies in '../../etc/passwd', expected a file name"},
        {"{\"weight_map\":{\"a\":\"/etc/passwd\"}}", "expected a file name without a directory"},
        {"{\"weight_map\":{\"a\":\"..\"}}", "expected a file name without a directory"},
        {"{\"weight_map\":{\"a\":\"\"}}", "expected a file name without a directory"},
        {"{\"weight_map\":{\"a\":\"x\\ny\"}}", "expected a file name without a directory"},
        {"{\"weight_map\":{\"a\":1}}", "'a' is an integer, expected the name of a shard"},
        {"{\"weight_map\":{}}", "names 0 tensors"},
        {"{\"weight_map\":[]}", "key 'weight_map': found an array"},
        {"{}", "key 'weight_map': found nothing"},
        {"{\"weight_map\":{\"a\":\"one\",\"c\":\"one\",\"b\":\"copy\"}}", "both hold tensor 'a'"},
        {"{\"weight_map\":{\"a\":\"dir\"}}", "not a regular file: a directory"},
        {"{\"weight_map\":{\"a\":\"index.json\"}}", "not a safetensors file: it looks like JSON text"},
        {"{\"weight_map\":{\"a\":\"one\",\"a\":\"two\"}}", "duplicate object key"},
        {"[]", "found an array, expected an object at the top level"},
    };
    char dir[] = "/tmp/peft_shards_XXXXXX";
    assert_non_null(mkdtemp(dir));
    copy_shard(dir, 1, "one"), copy_shard(dir, 2, "two"), copy_shard(dir, 1, "copy");
    char *index = path_join(dir, "index.json"), *sub = path_join(dir, "dir");
    assert_int_equal(mkdir(sub, 0700), 0);
    safetensors s;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        put_file(dir, "index.json", rows[i].index);
        assert_int_equal(safetensors_open_index(&s, index), -1);
        assert_said(EXIT_INPUT, rows[i].says);
        assert_null(s.files);
    }
    put_file(dir, "index.json", "{\"weight_map\":{\"a\":\"one\",\"b\":\"two\"}}");
    assert_int_equal(safetensors_open_index(&s, index), 0);
    assert_non_null(strstr(s.note, "does not list tensor 'c' of one"));
    safetensors_close(&s);
    rmdir(sub);
    static const char *const names[] = {"one", "two", "copy", "index.json"};
    for (int i = 0; i < 4; i++) {
        char *path = path_join(dir, names[i]);
        unlink(path);
        free(path);
    }
    assert_int_equal(rmdir(dir), 0);
    free(index), free(sub);
}

static void s22_other_files(void **state) {
    (void)state;
    static const struct {
        const char *text;
        size_t n;
        const char *says;
    } files[] = {
        {LITERAL("\x80\x02\x8a\nl\xfc\x9c\x46\xf9\x20\x6a\xa8P\x19."), "pickle"},
        {LITERAL("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"), "git lfs pull"},
        {LITERAL("PK\3\4\0\0\0\0\0\0\0\0"), "zip archive"},
        {LITERAL("GGUF\3\0\0\0\0\0\0\0"), "a GGUF file"},
        {LITERAL("<!doctype html>"), "an HTML page"},
        {LITERAL("<html>"), "an HTML page"},
        {LITERAL("\0\0\0\0\0\0\0\0\0\0\0\0"), "zero bytes only"},
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        bytes b = {0};
        put(&b, files[i].text, files[i].n);
        refused_bytes(b, files[i].says);
    }
}

static int read_safetensors(const char *path) {
    safetensors s;
    const int bad = safetensors_open(&s, path);
    if (!bad) safetensors_close(&s);
    return bad;
}

static void prefixes_and_flips(void **state) {
    (void)state;
    static const uint8_t masks[] = {1, 2, 4, 8, 16, 32, 64, 128};
    file_map m;
    assert_int_equal(file_open(&m, "tests/golden/readers.safetensors"), 0);
    survive_flips(m.data, m.size, masks, sizeof masks, read_safetensors);
    refuse_prefixes(m.data, m.size, read_safetensors);
    file_close(&m);
}

/* ---- the writer ---- */

static void write_plain(const char *path, uint64_t piece) {
    const st_decl decls[] = {{.name = "a.weight", .dtype = ST_F32, .dims = 2, .shape = {2, 3}},
                             {.name = "b.weight", .dtype = ST_F32, .dims = 1, .shape = {5}}};
    const float data[] = {0, 1, 2, 3, 4, 5, 1, 1, 1, 1, 1};
    st_writer w;
    assert_int_equal(st_writer_open(&w, path, decls, 2, (const char *const[]){"format", "pt"}, 1), 0);
    for (uint64_t at = 0; at < sizeof data; at += piece)
        assert_int_equal(
            st_writer_data(&w, (const char *)data + at, sizeof data - at < piece ? sizeof data - at : piece), 0);
    assert_false(path_exists(path));
    assert_int_equal(st_writer_close(&w), 0);
}

/* the file the safetensors package made of the same tensors, byte for byte, whatever the pieces */
static void writes_as_the_package(void **state) {
    (void)state;
    static const uint64_t pieces[] = {1, 7, 1000};
    file_map ours, theirs;
    assert_int_equal(file_open(&theirs, "tests/golden/readers_plain.safetensors"), 0);
    for (int i = 0; i < 3; i++) {
        char path[] = "/tmp/peft_writer_XXXXXX";
        int fd = mkstemp(path);
        close(fd), unlink(path);
        write_plain(path, pieces[i]);
        assert_int_equal(file_open(&ours, path), 0);
        assert_int_equal(ours.size, theirs.size);
        assert_memory_equal(ours.data, theirs.data, ours.size);
        file_close(&ours);
        unlink(path);
    }
    file_close(&theirs);
}

static void writes_odd_names(void **state) {
    (void)state;
    const st_decl decls[] = {{.name = "z \"q\" \\ \xc3\xa9", .dtype = ST_I8, .dims = 0},
                             {.name = "a", .dtype = ST_BF16, .dims = 1, .shape = {0}}};
    char path[] = "/tmp/peft_writer_XXXXXX";
    close(mkstemp(path));
    st_writer w;
    safetensors s;
    assert_int_equal(st_writer_open(&w, path, decls, 2, (const char *const[]){"k\n", "v\t\"", "l", ""}, 2), 0);
    assert_int_equal(st_writer_data(&w, "\x7f", 1), 0);
    assert_int_equal(st_writer_close(&w), 0);
    if (safetensors_open(&s, path)) fail_msg("%s", fail_text());
    assert_int_equal(safetensors_find(&s, decls[0].name)->data[0], 0x7f);
    assert_int_equal(((uintptr_t)safetensors_find(&s, decls[0].name)->data) % 8, 0);
    assert_string_equal(s.meta_keys[0], "k\n");
    assert_string_equal(s.meta_values[0], "v\t\"");
    safetensors_close(&s);
    assert_int_equal(st_writer_open(&w, path, NULL, 0, NULL, 0), 0);
    assert_int_equal(st_writer_close(&w), 0);
    assert_int_equal(safetensors_open(&s, path), 0);
    assert_int_equal(s.n, 0);
    safetensors_close(&s);
    unlink(path);
}

static void writer_keeps_the_old(void **state) {
    (void)state;
    char path[] = "/tmp/peft_writer_XXXXXX", tmp[64];
    close(mkstemp(path));
    assert_int_equal(file_save(path, "old", 3), 0);
    snprintf(tmp, sizeof tmp, "%s.tmp.%ld", path, (long)getpid());
    const st_decl d = {.name = "a", .dtype = ST_F32, .dims = 1, .shape = {2}};
    for (int abandon = 0; abandon < 2; abandon++) {
        st_writer w;
        assert_int_equal(st_writer_open(&w, path, &d, 1, NULL, 0), 0);
        assert_int_equal(st_writer_data(&w, "1234", 4), 0);
        assert_true(path_exists(tmp));
        if (abandon)
            st_writer_abandon(&w);
        else {
            assert_int_equal(st_writer_close(&w), -1);
            assert_said(EXIT_INTERNAL, "4 bytes of declared data were never written");
        }
        assert_false(path_exists(tmp));
        file_map m;
        assert_int_equal(file_open(&m, path), 0);
        assert_true(m.size == 3 && !memcmp(m.data, "old", 3));
        file_close(&m);
    }
    unlink(path);
    static const char *const bad[][2] = {{"", "b"},       {"a", "a"},   {"a", "__metadata__"},
                                         {"a/../b", "b"}, {"a\n", "b"}, {"a\xff", "b"}};
    st_writer w;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        st_decl two[2] = {d, d};
        char first[16], second[16];
        snprintf(first, sizeof first, "%s", bad[i][0]), snprintf(second, sizeof second, "%s", bad[i][1]);
        two[0].name = first, two[1].name = second;
        assert_int_equal(st_writer_open(&w, path, two, 2, NULL, 0), -1);
        assert_said(EXIT_INPUT, path, "name '");
        assert_false(path_exists(path));
    }
    assert_int_equal(st_writer_open(&w, "/tmp/no/such/dir/x", &d, 1, NULL, 0), -1);
    assert_said(EXIT_IO, "/tmp/no/such/dir/x");
    assert_int_equal(st_writer_data(&w, "12345678", 0), -1);
    fail_clear();
    assert_int_equal(st_writer_close(&w), -1);
    fail_clear();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(reads_the_package),
        cmocka_unit_test(reads_shards),
        cmocka_unit_test(s01_s02_header_length),
        cmocka_unit_test(s03_padding),
        cmocka_unit_test(s04_not_json),
        cmocka_unit_test(s05_s06_duplicates),
        cmocka_unit_test(s07_unknown_key),
        cmocka_unit_test(s08_dtype),
        cmocka_unit_test(s09_s10_s11_shape),
        cmocka_unit_test(s12_s13_offsets),
        cmocka_unit_test(s14_s15_cover),
        cmocka_unit_test(s16_metadata),
        cmocka_unit_test(s17_bombs),
        cmocka_unit_test(s18_names),
        cmocka_unit_test(s19_numbers),
        cmocka_unit_test(s21_index),
        cmocka_unit_test(s22_other_files),
        cmocka_unit_test(prefixes_and_flips),
        cmocka_unit_test(writes_as_the_package),
        cmocka_unit_test(writes_odd_names),
        cmocka_unit_test(writer_keeps_the_old),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
