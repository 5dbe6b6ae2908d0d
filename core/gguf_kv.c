/* Typed access to GGUF's key-values. A value is never cast: an integer is taken from any integer type when it fits, a
 * real from a float or integer type, and everything else is an error that names the key. */
#include "core/error.h"
#include "core/gguf.h"
#include "core/num.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    uint8_t size;
    bool integer, sign, real;
} kinds[GGUF_TYPES] = {
    [GGUF_U8] = {"u8", 1, true, false, false},        [GGUF_I8] = {"i8", 1, true, true, false},
    [GGUF_U16] = {"u16", 2, true, false, false},      [GGUF_I16] = {"i16", 2, true, true, false},
    [GGUF_U32] = {"u32", 4, true, false, false},      [GGUF_I32] = {"i32", 4, true, true, false},
    [GGUF_U64] = {"u64", 8, true, false, false},      [GGUF_I64] = {"i64", 8, true, true, false},
    [GGUF_F32] = {"f32", 4, false, true, true},       [GGUF_F64] = {"f64", 8, false, true, true},
    [GGUF_BOOL] = {"bool", 1, false, false, false},   [GGUF_STRING] = {"string", 0, false, false, false},
    [GGUF_ARRAY] = {"array", 0, false, false, false},
};

const gguf_kv *gguf_find(const gguf *g, const char *key) {
    int lo = 0, hi = g->n_kv;
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2, d = strcmp(g->kv[g->kv_order[mid]].key, key);
        if (!d) return &g->kv[g->kv_order[mid]];
        if (d < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}

static uint64_t little(const uint8_t *p, int bytes) {
    uint64_t v = 0;
    for (int i = bytes - 1; i >= 0; i--) v = v << 8 | p[i];
    return v;
}

/* Element i as int64_t; a u64 above it becomes INT64_MAX, which no range of a caller lets pass. */
static int64_t element_int(gguf_type type, const uint8_t *data, uint64_t i) {
    int size = kinds[type].size;
    uint64_t v = little(data + i * (uint64_t)size, size);
    if (!kinds[type].sign) return v > INT64_MAX ? INT64_MAX : (int64_t)v;
    uint64_t top = size ? (uint64_t)1 << (8 * size - 1) : 0; /* sign extension */
    return (int64_t)((v ^ top) - top);
}

static double element_real(gguf_type type, const uint8_t *data, uint64_t i) {
    if (kinds[type].integer) return (double)element_int(type, data, i);
    if (type == GGUF_F32) return (double)float_of((uint32_t)little(data + 4 * i, 4));
    uint64_t bits = little(data + 8 * i, 8);
    double d;
    memcpy(&d, &bits, 8);
    return d;
}

static int fail_key(const gguf *g, const gguf_kv *kv, const char *found, const char *expected) {
    return fail(EXIT_INPUT, "%s: offset 0x%" PRIx64 " (%" PRIu64 "): key '%.128s': found %s, expected %s", g->file.path,
                kv->offset, kv->offset, kv->key, found, expected);
}

static int fail_type(const gguf *g, const gguf_kv *kv, const char *expected) {
    char found[64];
    bool array = kv->type == GGUF_ARRAY;
    snprintf(found, sizeof found, "%s%s of type %s", array ? "an array" : "a value", array ? " with elements" : "",
             kinds[array ? kv->elem : kv->type].name);
    return fail_key(g, kv, found, expected);
}

static int fail_missing(const gguf *g, const char *key, const char *expected) {
    return fail(EXIT_INPUT, "%s: key '%s' is missing, expected %s", g->file.path, key, expected);
}

int gguf_get_int(const gguf *g, const char *key, int64_t lo, int64_t hi, int64_t *out) {
    char expected[96], found[32];
    const gguf_kv *kv = gguf_find(g, key);
    snprintf(expected, sizeof expected, "an integer from %" PRId64 " to %" PRId64, lo, hi);
    if (!kv) return fail_missing(g, key, expected);
    if (!kinds[kv->type].integer) return fail_type(g, kv, expected);
    int64_t v = element_int(kv->type, kv->data, 0);
    bool wraps = kv->type == GGUF_U64 && little(kv->data, 8) > INT64_MAX;
    if (!wraps && v >= lo && v <= hi) {
        *out = v;
        return 0;
    }
    if (wraps)
        snprintf(found, sizeof found, "%" PRIu64, little(kv->data, 8));
    else
        snprintf(found, sizeof found, "%" PRId64, v);
    return fail_key(g, kv, found, expected);
}

int gguf_get_int_or(const gguf *g, const char *key, int64_t lo, int64_t hi, int64_t def, int64_t *out) {
    *out = def;
    return gguf_find(g, key) ? gguf_get_int(g, key, lo, hi, out) : 0;
}

int gguf_get_real_or(const gguf *g, const char *key, double lo, double hi, double def, double *out) {
    char expected[96], found[32];
    const gguf_kv *kv = gguf_find(g, key);
    *out = def;
    if (!kv) return 0;
    snprintf(expected, sizeof expected, "a number from %.9g to %.9g", lo, hi);
    if (!kinds[kv->type].integer && !kinds[kv->type].real) return fail_type(g, kv, expected);
    double v = element_real(kv->type, kv->data, 0);
    if (v >= lo && v <= hi) { /* false for NaN */
        *out = v;
        return 0;
    }
    snprintf(found, sizeof found, "%.9g", v);
    return fail_key(g, kv, found, expected);
}

int gguf_get_bool_or(const gguf *g, const char *key, bool def, bool *out) {
    const gguf_kv *kv = gguf_find(g, key);
    *out = def;
    if (!kv) return 0;
    if (kv->type != GGUF_BOOL) return fail_type(g, kv, "a bool");
    *out = kv->data[0] != 0;
    return 0;
}

int gguf_get_string_or(const gguf *g, const char *key, gguf_str def, gguf_str *out) {
    const gguf_kv *kv = gguf_find(g, key);
    *out = def;
    if (!kv) return 0;
    if (kv->type != GGUF_STRING) return fail_type(g, kv, "a string");
    *out = kv->strings[0];
    return 0;
}

int gguf_get_string(const gguf *g, const char *key, gguf_str *out) {
    if (!gguf_find(g, key)) return fail_missing(g, key, "a string");
    return gguf_get_string_or(g, key, (gguf_str){0}, out);
}

static bool elem_fits(gguf_type found, gguf_type wanted) {
    if (wanted == GGUF_I32) return kinds[found].integer;
    if (wanted == GGUF_F32) return kinds[found].real;
    return found == wanted;
}

int gguf_get_array_or(const gguf *g, const char *key, gguf_type elem, int64_t n, const gguf_kv **out) {
    const gguf_kv *kv = gguf_find(g, key);
    char expected[96], found[64];
    *out = NULL;
    if (!kv) return 0;
    snprintf(expected, sizeof expected, "an array of %s",
             elem == GGUF_I32   ? "integers"
             : elem == GGUF_F32 ? "floats"
                                : kinds[elem].name);
    if (kv->type != GGUF_ARRAY || !elem_fits(kv->elem, elem)) return fail_type(g, kv, expected);
    if (n >= 0 && kv->n != (uint64_t)n) {
        snprintf(found, sizeof found, "%" PRIu64 " elements", kv->n);
        snprintf(expected, sizeof expected, "%" PRId64, n);
        return fail_key(g, kv, found, expected);
    }
    *out = kv;
    return 0;
}

int64_t gguf_array_int(const gguf_kv *kv, uint64_t i) {
    CHECK(kv->type == GGUF_ARRAY && kinds[kv->elem].integer && i < kv->n, "key %s: element %" PRIu64 " of %" PRIu64,
          kv->key, i, kv->n);
    return element_int(kv->elem, kv->data, i);
}

double gguf_array_real(const gguf_kv *kv, uint64_t i) {
    CHECK(kv->type == GGUF_ARRAY && kinds[kv->elem].real && i < kv->n, "key %s: element %" PRIu64 " of %" PRIu64,
          kv->key, i, kv->n);
    return element_real(kv->elem, kv->data, i);
}
