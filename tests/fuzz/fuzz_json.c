/* Any bytes as JSON: refused with a reason and a position, or a tree without duplicate keys, within the depth, whose
 * text is read again as an equal tree. */
#include "core/error.h"
#include "core/json.h"
#include "tests/fuzz/fuzz_file.h"

static int depth(const json_t *v) {
    int most = 0;
    const char *key;
    json_t *child;
    size_t i;
    json_object_foreach((json_t *)(uintptr_t)v, key, child) {
        int d = depth(child);
        if (d > most) most = d;
    }
    json_array_foreach(v, i, child) {
        int d = depth(child);
        if (d > most) most = d;
    }
    return json_is_object(v) || json_is_array(v) ? most + 1 : 0;
}

static void use(json_t *v) {
    if (depth(v) > 8) abort();
    char *text = json_dumps(v, JSON_ENCODE_ANY | JSON_REAL_PRECISION(17));
    if (!text) abort();
    json_t *again = json_parse("again", text, strlen(text), 0);
    if (!again || !json_equal(v, again)) {
        fprintf(stderr, "%s\n", fail_text());
        abort();
    }
    json_decref(again);
    free(text);
    const char *key;
    json_t *child;
    json_object_foreach(v, key, child) {
        int64_t i;
        double d;
        const char *s;
        bool b;
        json_get_int("f", v, key, -5, INT64_MAX, &i);
        json_get_real_or("f", v, key, 0, 1, 0, &d);
        json_get_string_or("f", v, key, "", &s);
        json_get_bool_or("f", v, key, true, &b);
        fail_clear();
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    fail_clear();
    json_t *v = json_parse_limited("/proc/self/fd/", (const char *)data, n, 0, (json_limits){8, 1 << 24});
    if (v)
        use(v);
    else
        fuzz_refused(fail_code(), fail_text(), EXIT_INPUT);
    json_decref(v);
    fail_clear();
    v = json_read(fuzz_path(data, n));
    if (!v)
        fuzz_refused(fail_code(), fail_text(), EXIT_INPUT);
    else if (!json_is_object(v))
        abort();
    json_decref(v);
    return 0;
}
