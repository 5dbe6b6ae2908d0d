/* JSON's limits (C1 C3 C9 C11 D1 D9 D16 D21 D22 of the catalogue of bad inputs in docs/RELIABILITY.md): positions
 * counted by hand, the grammar itself is jansson's. */
#include "core/json.h"
#include "core/file.h"
#include "tests/hostile.h"

#include <malloc.h>
#include <math.h>

static void refused(const char *text, size_t n, const char *says) {
    json_t *v = json_parse("f.json", text, n, 0);
    if (v) fail_msg("was read: %.40s", text);
    assert_said(EXIT_INPUT, says);
}

static void refused_text(const char *text, const char *says) { refused(text, strlen(text), says); }

static void refused_file(const char *text, size_t n, const char *says) {
    crafted f = crafted_file(text, n);
    assert_null(json_read(f.path));
    assert_said(EXIT_INPUT, says);
    close(f.fd);
}

static void c01_top_level(void **state) {
    (void)state;
    refused_file("", 0, ":1:1: empty, expected a JSON value");
    refused_file(" \n\t\r\n ", 6, "empty");
    refused_file("[1]", 3, "found an array, expected an object");
    refused_file("\"{}\"", 4, "found a string, expected an object");
    refused_file("null", 4, "found null, expected an object");
    refused_file("\xff\xfe{\0}\0", 6, "UTF-16");
    refused_file("\xfe\xff\0{\0}", 6, "UTF-16");
    refused_file("{\0}\0", 4, ":1:2: a NUL byte");
    refused_file("version https://git-lfs.github.com/spec/v1\n", 43, "git lfs pull");
    refused_file("<html><body>404</body></html>", 29, "an HTML page");
    assert_null(json_read("/tmp"));
    assert_said(EXIT_INPUT, "/tmp: not a regular file: a directory");
    assert_null(json_read("/nowhere/x.json"));
    assert_said(EXIT_INPUT, "/nowhere/x.json: cannot open");
}

static void bom(void **state) {
    (void)state;
    json_t *v = json_parse("f", "\xef\xbb\xbf{\"a\":1}", 10, 0);
    assert_int_equal(json_integer_value(json_object_get(v, "a")), 1);
    json_decref(v);
    refused("\xef\xbb\xbf", 3, "empty");
    refused("{}\xef\xbb\xbf", 5, "f.json:1:");
}

static void positions(void **state) {
    (void)state;
    refused_text("{\"a\": 1,\n \"b\": x}", "f.json:2:7: invalid token near 'x'");
    refused_text("{\"a\": 1", "f.json:1:7: ");
    refused_text("{\"a\": 1}}", "f.json:1:9: end of file expected");
    assert_null(json_parse("d.jsonl", "{\"a\": }", 7, 8811));
    assert_said(EXIT_INPUT, "d.jsonl:8812:7: ");
}

static void d09_utf8(void **state) {
    (void)state;
    static const struct {
        const char *text, *says;
    } rows[] = {
        {"{\"a\":\"\xff\"}", "f.json:1:7: invalid UTF-8: byte 0xff at offset 6"},
        {"[\n\"\xc3\xa9\xc0\x80\"]", "f.json:2:3: invalid UTF-8: byte 0xc0 at offset 5"}, /* overlong NUL */
        {"[\"\xe0\x80\xaf\"]", "byte 0xe0 at offset 2"},                                  /* overlong slash */
        {"[\"\xed\xa0\x80\"]", "byte 0xed at offset 2"},                                  /* surrogate */
        {"[\"\xf4\x90\x80\x80\"]", "byte 0xf4 at offset 2"},                              /* U+110000 */
        {"[\"\xf5\x80\x80\x80\"]", "byte 0xf5 at offset 2"},
        {"[\"aaaaaaaaaaaaaaaa\xe2\x82\"]", "byte 0xe2 at offset 18"}, /* cut */
        {"[\"\x80\"]", "byte 0x80 at offset 2"},
        {"[\"\\ud800\"]", "f.json:1:"},
        {"[\"\\udc00\\ud800\"]", "f.json:1:"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) refused_text(rows[i].text, rows[i].says);
    json_t *v =
        json_parse("f", "[\"\xf4\x8f\xbf\xbf\xed\x9f\xbf\xee\x80\x80\xf0\x90\x80\x80\xe0\xa0\x80\xc2\x80\"]", 23, 0);
    assert_non_null(v); /* the edges of the table */
    json_decref(v);
}

static void d10_nul(void **state) {
    (void)state;
    refused("{\"a\":\"x\0y\"}", 11, "f.json:1:7: control character 0x0");
    refused_text("{\"a\":\"x\\u0000y\"}", "\\u0000 is not allowed");
    refused_text("{\"a\\u0000b\":1}", "NUL byte in object key");
}

static void c09_d16_duplicates(void **state) {
    (void)state;
    refused_text("{\"a\":1,\"b\":{\"c\":1,\"c\":2}}", "duplicate object key near '\"c\"'");
    refused_text("{\"a\":1,\"\\u0061\":2}", "duplicate object key");
}

static void d22_numbers(void **state) {
    (void)state;
    static const char *const bad[] = {"1e999",
                                      "-1e999",
                                      "9223372036854775808",
                                      "-9223372036854775809",
                                      "NaN",
                                      "Infinity",
                                      "-Infinity",
                                      "01",
                                      "+1",
                                      ".5",
                                      "1.",
                                      "0x10",
                                      "1e",
                                      "--1",
                                      "nan",
                                      "inf"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char text[64];
        snprintf(text, sizeof text, "{\"a\": %s}", bad[i]);
        refused_text(text, "f.json:1:");
    }
    json_t *v = json_parse("f", "[9223372036854775807,-9223372036854775808,1.7976931348623157e308]", 65, 0);
    assert_int_equal(json_integer_value(json_array_get(v, 0)), INT64_MAX);
    json_decref(v);
}

static void c11_d21_depth(void **state) {
    (void)state;
    char text[256];
    for (int depth = 63; depth <= 65; depth++) {
        memset(text, '[', (size_t)depth), memset(text + depth, ']', (size_t)depth);
        json_t *v = json_parse("f.json", text, 2 * (size_t)depth, 0);
        assert_int_equal(v != NULL, depth <= 64);
        if (!v) assert_said(EXIT_INPUT, "f.json:1:65: nested deeper than 64 levels");
        json_decref(v);
    }
    bytes b = {0};
    put_fill(&b, '[', 1000000);
    refused((char *)b.data, b.n, "f.json:1:65: nested deeper than 64 levels");
    b.n = 0;
    for (int i = 0; i < 100000; i++) put_text(&b, "{\"a\":");
    refused((char *)b.data, b.n, "nested deeper than 64 levels");
    b.n = 0;
    for (int i = 0; i < 70; i++) put_text(&b, "[");
    bytes quoted = {0};
    put_text(&quoted, "{\"a\\\"\":\""), put(&quoted, b.data, b.n), put_text(&quoted, "\"}");
    json_t *v = json_parse("f", (char *)quoted.data, quoted.n, 0);
    drop(&b), drop(&quoted);
    assert_non_null(v); /* brackets of a string are none */
    json_decref(v);
}

static void c11_size(void **state) {
    (void)state;
    crafted f = crafted_file("{", 1);
    assert_int_equal(ftruncate(f.fd, (off_t)JSON_FILE_MAX + 1), 0);
    double start = seconds();
    assert_null(json_read(f.path));
    assert_said(EXIT_INPUT, "268435457 bytes of JSON exceed the limit of 268435456");
    assert_true(seconds() - start < 1);
    close(f.fd);
}

/* a small text that would be a large tree is refused before the tree */
static void bombs(void **state) {
    (void)state;
    static const char *const parts[] = {"{},", "[],", "1,", "\"\","};
    for (int k = 0; k < 4; k++) {
        bytes b = {0};
        put_text(&b, "{\"a\":[");
        for (int i = 0; i < 1 << 20; i++) put_text(&b, parts[k]);
        put_text(&b, "0]}");
        long before = peak_kib();
        json_t *v = json_parse_limited("f", (char *)b.data, b.n, 0, (json_limits){8, 32 << 20});
        assert_null(v);
        assert_said(EXIT_INPUT, "f:1:", "would take more than 32 MiB");
        if (!UNDER_ASAN) assert_true(peak_kib() - before < 4096);
        drop(&b);
    }
}

/* the estimate behind the limit is not below what malloc hands out */
static void estimate(void **state) {
    (void)state;
    if (UNDER_ASAN) return;
    static const char *const parts[] = {"{},",
                                        "[],",
                                        "1,",
                                        "\"\",",
                                        "{\"a\":{\"b\":[1]}},",
                                        "[\"\xc4\xa0t\",\"he\"],",
                                        "1.5e3,",
                                        "null,",
                                        "[1,2,3,4,5,6,7,8,9],",
                                        "{\"a\":1,\"b\":2,\"c\":3,\"d\":4,\"e\":5,\"f\":6,\"g\":7,\"h\":8,\"i\":9},"};
    for (size_t k = 0; k < sizeof parts / sizeof *parts; k++) {
        bytes b = {0};
        put_text(&b, "[");
        for (int i = 0; i < 50000; i++) put_text(&b, parts[k]);
        put_text(&b, "0]");
        struct mallinfo2 before = mallinfo2();
        json_t *v = json_parse("f", (char *)b.data, b.n, 0);
        assert_non_null(v);
        struct mallinfo2 after = mallinfo2();
        uint64_t taken = after.uordblks + after.hblkhd - before.uordblks - before.hblkhd;
        json_decref(v);
        v = json_parse_limited("f", (char *)b.data, b.n, 0, (json_limits){8, taken});
        if (v) fail_msg("%s: %d KiB are taken, and a limit of as much lets it pass", parts[k], (int)(taken >> 10));
        assert_said(EXIT_INPUT, "so many values");
        drop(&b);
    }
}

static void tokenizer_size(void **state) {
    (void)state;
    bytes b = {0};
    put_text(&b, "{\"model\":{\"vocab\":{\"a\":0");
    for (int i = 1; i < 260000; i++) put_format(&b, ",\n\"\xc4\xa0token%d\":%d", i, i);
    put_text(&b, "},\"merges\":[[\"a\",\"b\"]");
    for (int i = 1; i < 400000; i++) put_format(&b, ",\n[\"\xc4\xa0%d\",\"%d\"]", i, i / 7);
    put_text(&b, "]}}");
    crafted f = crafted_file(b.data, b.n);
    double start = seconds();
    json_t *v = json_read(f.path);
    double took = seconds() - start;
    if (!v) fail_msg("%s", fail_text());
    if (!UNDER_ASAN && took > 2) fail_msg("%.2f s for %d MB", took, (int)(b.n / 1000000));
    assert_int_equal(json_object_size(json_object_get(json_object_get(v, "model"), "vocab")), 260000);
    json_decref(v);
    close(f.fd);
    drop(&b);
}

static void getters(void **state) {
    (void)state;
    const char *text =
        "{\"i\":4096,\"r\":4096.0,\"h\":4096.5,\"big\":1e300,\"s\":\"4096\",\"n\":null,\"t\":true,\"f\":false,\"o\":{},\"a\":[],\"m\":-1}";
    json_t *o = json_parse("c.json", text, strlen(text), 0);
    int64_t i = 0;
    double d;
    bool flag;
    const char *s;
    assert_int_equal(json_get_int("c.json", o, "i", 1, 4096, &i), 0);
    assert_int_equal(i, 4096);
    assert_int_equal(json_get_int("c.json", o, "r", 1, 4096, &i), 0);
    assert_int_equal(i, 4096);
    static const struct {
        const char *key, *says;
    } bad[] = {
        {"h", "c.json: key 'h': found 4096.5, expected an integer from 1 to 9999"},
        {"big", "found 1.0000000000000001e+300"},
        {"s", "found the string \"4096\""},
        {"n", "key 'n': found null"},
        {"t", "found true"},
        {"o", "found an object"},
        {"a", "found an array"},
        {"m", "key 'm': found -1"},
    };
    for (size_t k = 0; k < sizeof bad / sizeof *bad; k++) {
        assert_int_equal(json_get_int("c.json", o, bad[k].key, 1, 9999, &i), -1);
        assert_said(EXIT_INPUT, bad[k].says);
        assert_int_equal(json_get_int_or("c.json", o, bad[k].key, 1, 9999, 5, &i), -1);
        assert_said(EXIT_INPUT, bad[k].says);
    }
    assert_int_equal(json_get_int("c.json", o, "none", 1, 2, &i), -1);
    assert_said(EXIT_INPUT, "c.json: key 'none' is missing, expected an integer from 1 to 2");
    assert_int_equal(json_get_int_or("c.json", o, "none", 1, 2, 77, &i), 0);
    assert_int_equal(i, 77);
    assert_int_equal(json_get_real_or("c.json", o, "h", 0, 1e4, 0, &d), 0);
    assert_true(d == 4096.5);
    assert_int_equal(json_get_real_or("c.json", o, "i", 0, 1e4, 0, &d), 0);
    assert_true(d == 4096);
    assert_int_equal(json_get_real_or("c.json", o, "none", 0, 1, 1e-5, &d), 0);
    assert_true(d == 1e-5);
    assert_int_equal(json_get_real_or("c.json", o, "big", 0, 1, 0, &d), -1);
    assert_said(EXIT_INPUT, "expected a number from 0 to 1");
    assert_int_equal(json_get_real_or("c.json", o, "s", 0, 1, 0, &d), -1);
    assert_said(EXIT_INPUT, "found the string");
    assert_int_equal(json_get_bool_or("c.json", o, "t", false, &flag), 0);
    assert_true(flag);
    assert_int_equal(json_get_bool_or("c.json", o, "f", true, &flag), 0);
    assert_false(flag);
    assert_int_equal(json_get_bool_or("c.json", o, "none", true, &flag), 0);
    assert_true(flag);
    assert_int_equal(json_get_bool_or("c.json", o, "i", true, &flag), -1);
    assert_said(EXIT_INPUT, "found 4096, expected true or false");
    assert_int_equal(json_get_string_or("c.json", o, "s", NULL, &s), 0);
    assert_string_equal(s, "4096");
    assert_int_equal(json_get_string_or("c.json", o, "none", "def", &s), 0);
    assert_string_equal(s, "def");
    assert_int_equal(json_get_string_or("c.json", o, "n", "def", &s), -1);
    assert_said(EXIT_INPUT, "found null, expected a string");
    json_decref(o);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(c01_top_level), cmocka_unit_test(bom),           cmocka_unit_test(positions),
        cmocka_unit_test(d09_utf8),      cmocka_unit_test(d10_nul),       cmocka_unit_test(c09_d16_duplicates),
        cmocka_unit_test(d22_numbers),   cmocka_unit_test(c11_d21_depth), cmocka_unit_test(c11_size),
        cmocka_unit_test(bombs),         cmocka_unit_test(estimate),      cmocka_unit_test(tokenizer_size),
        cmocka_unit_test(getters),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
