#include "core/json.h"
#include "core/error.h"
#include "core/file.h"
#include "core/text.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

typedef struct {
    const char *where;
    const uint8_t *text;
    size_t n;
    int line0;
} json_source;

/* line and column (characters, from 1) of byte `at`, as jansson counts them */
static int fail_at(const json_source *s, size_t at, const char *what) {
    int64_t line = 1, column = 1;
    for (size_t i = 0; i < at; i++) {
        if (s->text[i] == '\n')
            line++, column = 1;
        else
            column += (s->text[i] & 0xc0) != 0x80;
    }
    return fail(EXIT_INPUT, "%s:%" PRId64 ":%" PRId64 ": %s", s->where, line + s->line0, column, what);
}

/* What jansson 2.14 takes for each value on a 64-bit machine, malloc's own bytes included. */
enum { COST_SCALAR = 48, COST_STRING = 80, COST_OBJECT = 272, COST_ARRAY = 160 };

/* Depth and memory in one pass over the bytes, so that a bomb is refused before the parser allocates. Brackets and
 * quotes need no grammar: where the text is not JSON the parser will say so. */
static int scan(const json_source *s, json_limits limits) {
    char what[96];
    uint64_t memory = 0;
    int depth = 0;
    for (size_t i = 0; i < s->n; i++) {
        switch (s->text[i]) {
        case '"':
            memory += COST_STRING;
            for (i++; i < s->n && s->text[i] != '"'; i++, memory++)
                if (s->text[i] == '\\') i++;
            break;
        case '{':
        case '[':
            memory += s->text[i] == '{' ? COST_OBJECT : COST_ARRAY;
            if (++depth <= limits.depth) break;
            snprintf(what, sizeof what, "nested deeper than %d levels", limits.depth);
            return fail_at(s, i, what);
        case '}':
        case ']': depth--; break;
        case ',':
        case ':': memory += COST_SCALAR; break;
        case 0: return fail_at(s, i, "a NUL byte: the file is binary or damaged, expected JSON text");
        default: break;
        }
        if (memory > limits.memory) {
            snprintf(what, sizeof what, "so many values that reading them would take more than %" PRIu64 " MiB",
                     limits.memory >> 20);
            return fail_at(s, i, what);
        }
    }
    return 0;
}

static bool blank(const json_source *s) {
    for (size_t i = 0; i < s->n; i++)
        if (!is_blank(s->text[i])) return false;
    return true;
}

static int check_text(const json_source *s, json_limits limits) {
    char what[96];
    if (s->n > JSON_FILE_MAX) {
        return fail(EXIT_INPUT, "%s: %zu bytes of JSON exceed the limit of %u", s->where, s->n, JSON_FILE_MAX);
    }
    if (s->n >= 2 && (!memcmp(s->text, "\xff\xfe", 2) || !memcmp(s->text, "\xfe\xff", 2)))
        return fail_at(s, 0, "text in UTF-16, expected UTF-8");
    if (blank(s)) return fail_at(s, 0, "empty, expected a JSON value");
    size_t bad = utf8_valid(s->text, s->n);
    if (bad < s->n) {
        snprintf(what, sizeof what, "invalid UTF-8: byte 0x%02x at offset %zu", s->text[bad], bad);
        return fail_at(s, bad, what);
    }
    return scan(s, limits);
}

json_t *json_parse_limited(const char *where, const char *text, size_t n, int line0, json_limits limits) {
    json_source s = {.where = where, .text = (const uint8_t *)text, .n = n, .line0 = line0};
    if (n >= 3 && !memcmp(text, "\xef\xbb\xbf", 3)) s.text += 3, s.n -= 3; /* a BOM */
    if (check_text(&s, limits)) return NULL;
    json_error_t e;
    json_t *v = json_loadb((const char *)s.text, s.n, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &e);
    if (v) return v;
    fail(EXIT_INPUT, "%s:%" PRId64 ":%d: %s", where, (int64_t)e.line + line0, e.column > 0 ? e.column : 1, e.text);
    return NULL;
}

json_t *json_parse(const char *where, const char *text, size_t n, int line0) {
    return json_parse_limited(where, text, n, line0, (json_limits){JSON_DEPTH_MAX, JSON_MEMORY_MAX});
}

static json_t *read_map(const file_map *m) {
    const char *guess = file_guess(m->data, m->size);
    if (guess && m->data[0] != '{') {
        fail(EXIT_INPUT, "%s: not a JSON file: it looks like %s", m->path, guess);
        return NULL;
    }
    json_t *v = json_parse(m->path, (const char *)m->data, (size_t)m->size, 0);
    if (!v || json_is_object(v)) return v;
    fail(EXIT_INPUT, "%s: found %s, expected an object at the top level", m->path, json_kind(v));
    json_decref(v);
    return NULL;
}

json_t *json_read(const char *path) {
    file_map m;
    if (file_open(&m, path)) return NULL;
    json_t *v = read_map(&m);
    file_close(&m);
    return v;
}

const char *json_kind(const json_t *v) {
    if (!v) return "nothing";
    switch (json_typeof(v)) {
    case JSON_OBJECT: return "an object";
    case JSON_ARRAY: return "an array";
    case JSON_STRING: return "a string";
    case JSON_INTEGER: return "an integer";
    case JSON_REAL: return "a number";
    case JSON_TRUE: return "true";
    case JSON_FALSE: return "false";
    case JSON_NULL: return "null";
    }
    return "nothing";
}

/* "found 4096.5" says more than "found a number" */
static int fail_value(const char *where, const char *key, const json_t *v, const char *expected) {
    if (json_is_integer(v))
        return fail(EXIT_INPUT, "%s: key '%s': found %lld, expected %s", where, key, (long long)json_integer_value(v),
                    expected);
    if (json_is_real(v))
        return fail(EXIT_INPUT, "%s: key '%s': found %.17g, expected %s", where, key, json_real_value(v), expected);
    if (json_is_string(v))
        return fail(EXIT_INPUT, "%s: key '%s': found the string \"%.64s\", expected %s", where, key,
                    json_string_value(v), expected);
    if (!v) return fail(EXIT_INPUT, "%s: key '%s' is missing, expected %s", where, key, expected);
    return fail(EXIT_INPUT, "%s: key '%s': found %s, expected %s", where, key, json_kind(v), expected);
}

static bool integral(const json_t *v, int64_t *out) {
    if (json_is_integer(v)) {
        *out = json_integer_value(v);
        return true;
    }
    if (!json_is_real(v)) return false;
    double d = json_real_value(v);
    if (!(fabs(d) <= 0x1p53) || d != floor(d)) return false;
    *out = (int64_t)d;
    return true;
}

int json_get_int(const char *where, const json_t *o, const char *key, int64_t lo, int64_t hi, int64_t *out) {
    char expected[96];
    int64_t i;
    const json_t *v = json_object_get(o, key);
    if (integral(v, &i) && i >= lo && i <= hi) {
        *out = i;
        return 0;
    }
    snprintf(expected, sizeof expected, "an integer from %" PRId64 " to %" PRId64, lo, hi);
    return fail_value(where, key, v, expected);
}

int json_get_int_or(const char *where, const json_t *o, const char *key, int64_t lo, int64_t hi, int64_t def,
                    int64_t *out) {
    *out = def;
    return json_object_get(o, key) ? json_get_int(where, o, key, lo, hi, out) : 0;
}

int json_get_real_or(const char *where, const json_t *o, const char *key, double lo, double hi, double def,
                     double *out) {
    char expected[96];
    const json_t *v = json_object_get(o, key);
    double d = v ? json_number_value(v) : def;
    bool good = !v || (json_is_number(v) && d >= lo && d <= hi);
    *out = good ? d : def;
    if (good) return 0;
    snprintf(expected, sizeof expected, "a number from %.9g to %.9g", lo, hi);
    return fail_value(where, key, v, expected);
}

int json_get_bool_or(const char *where, const json_t *o, const char *key, bool def, bool *out) {
    const json_t *v = json_object_get(o, key);
    *out = v && json_is_boolean(v) ? json_is_true(v) : def;
    return !v || json_is_boolean(v) ? 0 : fail_value(where, key, v, "true or false");
}

int json_get_string_or(const char *where, const json_t *o, const char *key, const char *def, const char **out) {
    const json_t *v = json_object_get(o, key);
    *out = json_is_string(v) ? json_string_value(v) : def;
    return !v || json_is_string(v) ? 0 : fail_value(where, key, v, "a string");
}
