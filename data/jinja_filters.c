/* Filters of Jinja, each as jinja2.filters has it. */
#include "data/jinja_parts.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILTER(name) static jval name(jrun *r, jval v, const jval *arg, const jargs *all)
#define UNUSED (void)r, (void)v, (void)arg, (void)all

FILTER(f_trim) { return UNUSED, jinja_trim(r, jinja_to_str(r, v), arg[0], 3); }
FILTER(f_upper) { return UNUSED, jinja_case(r, jinja_to_str(r, v), 'u'); }
FILTER(f_lower) { return UNUSED, jinja_case(r, jinja_to_str(r, v), 'l'); }
FILTER(f_title) { return UNUSED, jinja_case(r, jinja_to_str(r, v), 'w'); }
FILTER(f_capitalize) { return UNUSED, jinja_case(r, jinja_to_str(r, v), 'c'); }
FILTER(f_length) { return UNUSED, j_int(jinja_length(r, v)); }
FILTER(f_tojson) { return UNUSED, jinja_to_json(r, v, arg); }
FILTER(f_string) { return UNUSED, jinja_to_str(r, v); }

FILTER(f_replace) {
    UNUSED;
    int64_t count = j_is_int(arg[2]) ? j_integer(arg[2]) : -1;
    return jinja_replace(r, jinja_to_str(r, v), jinja_to_str(r, arg[0]), jinja_to_str(r, arg[1]), count);
}

FILTER(f_safe) {
    UNUSED;
    jstr *s = jinja_alloc(&r->mem, sizeof *s);
    *s = *jinja_to_str(r, v).u.s;
    s->safe = true;
    return (jval){J_STRING, {.s = s}};
}

FILTER(f_default) {
    UNUSED;
    bool use = v.type == J_UNDEFINED || (jinja_true(arg[1]) && !jinja_true(v));
    return !use ? v : arg[0].type == J_ABSENT ? jinja_text_of(r, "") : arg[0];
}

/* v.a.b of the filters' attribute arguments; digits are indices */
static jval attribute_path(jrun *r, jval v, jval path, jval absent) {
    if (path.type == J_INT) return jinja_item(r, v, path);
    if (path.type != J_STRING) jinja_stop(&r->mem, "attribute is %s, expected a name", jinja_type_name(path));
    const char *p = path.u.s->p, *end = p + path.u.s->n;
    for (;;) {
        const char *dot = memchr(p, '.', (size_t)(end - p));
        jval key = jinja_str(r, p, (dot ? dot : end) - p);
        bool digits = key.u.s->n > 0 && key.u.s->n < 10 && strspn(key.u.s->p, "0123456789") == (size_t)key.u.s->n;
        v = jinja_item(r, v, digits ? j_int(atoll(key.u.s->p)) : key);
        if (v.type == J_UNDEFINED && absent.type != J_ABSENT && absent.type != J_NONE) v = absent;
        if (!dot) return v;
        p = dot + 1;
    }
}

static jval attribute_or_self(jrun *r, jval v, jval path) {
    return path.type == J_ABSENT || path.type == J_NONE ? v : attribute_path(r, v, path, (jval){0});
}

FILTER(f_join) {
    UNUSED;
    jlist *l = jinja_iterate(r, v);
    jval items = jinja_list(r, l->n, SEQ_LIST);
    for (int64_t i = 0; i < l->n; i++) jinja_add(items, attribute_or_self(r, l->at[i], arg[1]));
    return jinja_join(r, arg[0].type == J_ABSENT ? jinja_text_of(r, "") : jinja_to_str(r, arg[0]), items.u.l);
}

static jval of_kind(jrun *r, const jlist *l, jseq kind, bool reversed) {
    jval out = jinja_list(r, l->n, kind);
    for (int64_t i = 0; i < l->n; i++) jinja_add(out, l->at[reversed ? l->n - 1 - i : i]);
    return out;
}

FILTER(f_list) { return UNUSED, of_kind(r, jinja_iterate(r, v), SEQ_LIST, false); }

FILTER(f_first) {
    UNUSED;
    if (v.type == J_LIST && v.u.l->kind == SEQ_ITERATOR) { /* takes one item, the others stay */
        jlist *l = v.u.l;
        if (l->spent || !l->n) return j_undefined(NULL);
        l->n--;
        return *l->at++;
    }
    const jlist *l = jinja_iterate(r, v);
    return l->n ? l->at[0] : j_undefined(NULL);
}

FILTER(f_last) {
    UNUSED;
    if (v.type == J_LIST && v.u.l->kind == SEQ_ITERATOR) jinja_stop(&r->mem, "an iterator has no last item: add |list");
    const jlist *l = jinja_iterate(r, v);
    return l->n ? l->at[l->n - 1] : j_undefined(NULL);
}

FILTER(f_reverse) {
    UNUSED;
    bool lazy = v.type == J_LIST && v.u.l->kind == SEQ_ITERATOR;
    jval out = of_kind(r, jinja_iterate(r, v), lazy ? SEQ_LIST : SEQ_ITERATOR, true);
    return v.type == J_STRING ? jinja_join(r, jinja_text_of(r, ""), out.u.l) : out;
}

static jval pair(jrun *r, jval key, jval value) {
    jval p = jinja_list(r, 2, SEQ_TUPLE);
    jinja_add(p, key);
    jinja_add(p, value);
    return p;
}

static jval pairs(jrun *r, jval v, jseq kind) {
    if (v.type != J_DICT) jinja_stop(&r->mem, "found %s, expected a dict", jinja_type_name(v));
    jval l = jinja_list(r, v.u.d->n, kind);
    for (int64_t i = 0; i < v.u.d->n; i++) jinja_add(l, pair(r, v.u.d->at[i].key, v.u.d->at[i].value));
    return l;
}

FILTER(f_items) { return UNUSED, v.type == J_UNDEFINED ? jinja_list(r, 0, SEQ_ITERATOR) : pairs(r, v, SEQ_ITERATOR); }

static jval ignore_case(jrun *r, jval v, jval case_sensitive) {
    return v.type == J_STRING && !jinja_true(case_sensitive) ? jinja_case(r, v, 'l') : v;
}

/* Stable merge sort of at[lo, hi) by keys; tmp is as long. */
typedef struct {
    jval key, value;
} sorted;
static void merge_sort(jrun *r, sorted *at, sorted *tmp, int64_t n, bool down) {
    if (n < 2) return;
    int64_t half = n / 2, i = 0, j = half, k = 0;
    merge_sort(r, at, tmp, half, down);
    merge_sort(r, at + half, tmp, n - half, down);
    while (i < half && j < n) {
        bool right = down ? jinja_less(r, at[i].key, at[j].key) : jinja_less(r, at[j].key, at[i].key);
        tmp[k++] = right ? at[j++] : at[i++];
    }
    while (i < half) tmp[k++] = at[i++];
    while (j < n) tmp[k++] = at[j++];
    memcpy(at, tmp, (size_t)n * sizeof *at);
}

static jval sort_by(jrun *r, const jlist *l, const jval *keys, bool down) {
    sorted *at = jinja_alloc(&r->mem, (size_t)l->n * sizeof *at + 1),
           *tmp = jinja_alloc(&r->mem, (size_t)l->n * sizeof *tmp + 1);
    for (int64_t i = 0; i < l->n; i++) at[i] = (sorted){keys[i], l->at[i]};
    merge_sort(r, at, tmp, l->n, down);
    jval out = jinja_list(r, l->n, SEQ_LIST);
    for (int64_t i = 0; i < l->n; i++) jinja_add(out, at[i].value);
    return out;
}

FILTER(f_sort) {
    UNUSED;
    const jlist *l = jinja_iterate(r, v);
    jval *keys = jinja_alloc(&r->mem, (size_t)l->n * sizeof *keys + 1);
    if (arg[2].type == J_STRING && memchr(arg[2].u.s->p, ',', (size_t)arg[2].u.s->n))
        jinja_stop(&r->mem, "sort by several attributes is not supported");
    for (int64_t i = 0; i < l->n; i++) { /* lists of one, as Jinja's: equal keys are then never ordered */
        keys[i] = jinja_list(r, 1, SEQ_LIST);
        jinja_add(keys[i], ignore_case(r, attribute_or_self(r, l->at[i], arg[2]), arg[1]));
    }
    return sort_by(r, l, keys, jinja_true(arg[0]));
}

FILTER(f_dictsort) {
    UNUSED;
    const jlist *l = pairs(r, v, SEQ_LIST).u.l;
    jval *keys = jinja_alloc(&r->mem, (size_t)l->n * sizeof *keys + 1);
    bool by_value = arg[1].type == J_STRING && jinja_same(arg[1].u.s, "value");
    for (int64_t i = 0; i < l->n; i++) keys[i] = ignore_case(r, l->at[i].u.l->at[by_value], arg[0]);
    return sort_by(r, l, keys, jinja_true(arg[2]));
}

FILTER(f_unique) {
    UNUSED;
    const jlist *l = jinja_iterate(r, v);
    jval seen = jinja_list(r, l->n, SEQ_LIST), out = jinja_list(r, l->n, SEQ_ITERATOR);
    for (int64_t i = 0; i < l->n; i++) {
        jval key = ignore_case(r, attribute_or_self(r, l->at[i], arg[1]), arg[0]);
        if (key.type == J_DICT || (key.type == J_LIST && key.u.l->kind != SEQ_TUPLE))
            jinja_stop(&r->mem, "unique of %s: only of strings and numbers", jinja_type_name(key));
        if (jinja_contains(r, seen, key)) continue;
        jinja_add(seen, key);
        jinja_add(out, l->at[i]);
    }
    return out;
}

static jval extreme(jrun *r, jval v, const jval *arg, bool most) {
    const jlist *l = jinja_iterate(r, v);
    jval best = j_undefined(NULL), best_key = {0};
    for (int64_t i = 0; i < l->n; i++) {
        jval key = ignore_case(r, attribute_or_self(r, l->at[i], arg[1]), arg[0]);
        if (i && !(most ? jinja_less(r, best_key, key) : jinja_less(r, key, best_key))) continue;
        best = l->at[i];
        best_key = key;
    }
    return best;
}
FILTER(f_min) { return UNUSED, extreme(r, v, arg, false); }
FILTER(f_max) { return UNUSED, extreme(r, v, arg, true); }

FILTER(f_sum) {
    UNUSED;
    const jlist *l = jinja_iterate(r, v);
    jval total = arg[1].type == J_ABSENT ? j_int(0) : arg[1];
    if (total.type == J_STRING) jinja_stop(&r->mem, "sum of strings: use join");
    for (int64_t i = 0; i < l->n; i++) total = jinja_binary(r, OP('+'), total, attribute_or_self(r, l->at[i], arg[0]));
    return total;
}

FILTER(f_abs) {
    UNUSED;
    if (v.type == J_FLOAT) return j_float(fabs(v.u.f));
    return j_is_int(v) && j_integer(v) >= 0 ? j_int(j_integer(v)) : jinja_unary(r, OP('-'), v);
}

FILTER(f_round) {
    UNUSED;
    int64_t digits = j_is_int(arg[0]) ? j_integer(arg[0]) : 0;
    const jstr *method = arg[1].type == J_STRING ? arg[1].u.s : jinja_text_of(r, "common").u.s;
    bool up = jinja_same(method, "ceil");
    if (!j_is_number(v)) jinja_stop(&r->mem, "cannot round %s", jinja_type_name(v));
    if (digits < 0 || digits > 300) jinja_stop(&r->mem, "round to %lld digits, expected 0 to 300", (long long)digits);
    if (up || jinja_same(method, "floor")) {
        double scale = pow(10, (double)digits), scaled = j_real(v) * scale;
        return j_float((up ? ceil(scaled) : floor(scaled)) / scale);
    }
    if (!jinja_same(method, "common"))
        jinja_stop(&r->mem, "round method is '%.40s', expected common, ceil or floor", method->p);
    if (j_is_int(v)) return j_int(j_integer(v));
    char text[700]; /* printf rounds the exact value half to even, as Python does */
    snprintf(text, sizeof text, "%.*f", (int)digits, v.u.f);
    return j_float(strtod(text, NULL));
}

/* Digits of a number in Python's sense: blanks around it, _ between digits. False: something else stands there. */
static bool number_text(jrun *r, const jstr *s, char out[400]) {
    const jstr *t = jinja_trim(r, (jval){J_STRING, {.s = s}}, (jval){0}, 3).u.s;
    int64_t k = 0;
    for (int64_t i = 0; i < t->n; i++) {
        bool between = i && i + 1 < t->n && strchr("0123456789abcdefABCDEF", t->p[i - 1]) &&
                       strchr("0123456789abcdefABCDEF", t->p[i + 1]);
        if (t->p[i] == '_' && between) continue;
        if (k >= 399 || !t->p[i] || t->p[i] == '_') return false;
        out[k++] = t->p[i];
    }
    out[k] = 0;
    return k > 0 && !(strpbrk(out, "xX(") && k > 0);
}

static bool float_of_text(jrun *r, const jstr *s, double *f) {
    char text[400], *end;
    if (!number_text(r, s, text)) return false;
    *f = strtod(text, &end);
    return !*end;
}

FILTER(f_int) {
    UNUSED;
    jval absent = arg[0].type == J_ABSENT ? j_int(0) : arg[0];
    double f;
    if (v.type == J_UNDEFINED) jinja_stop(&r->mem, "'%.60s' is undefined: no integer", v.u.s ? v.u.s->p : "value");
    if (j_is_int(v)) return j_int(j_integer(v));
    if (v.type == J_STRING) {
        char text[400], *end;
        int base = j_is_int(arg[1]) ? (int)j_integer(arg[1]) : 10;
        if (base != 10 && base != 2 && base != 8 && base != 16)
            jinja_stop(&r->mem, "base %d of int, expected 2, 8, 10 or 16", base);
        if (number_text(r, v.u.s, text)) {
            int64_t i = strtoll(text, &end, base);
            if (!*end && (i == INT64_MAX || i == INT64_MIN)) jinja_stop(&r->mem, "integer does not fit 64 bits");
            if (!*end) return j_int(i);
        }
        if (!float_of_text(r, v.u.s, &f) || !isfinite(f)) return absent;
    } else if (v.type == J_FLOAT) {
        f = v.u.f;
        if (isnan(f)) return absent;
    } else {
        return absent;
    }
    if (!(fabs(f) < 0x1p63)) jinja_stop(&r->mem, "integer does not fit 64 bits");
    return j_int((int64_t)f);
}

FILTER(f_float) {
    UNUSED;
    double f;
    if (v.type == J_UNDEFINED) jinja_stop(&r->mem, "'%.60s' is undefined: no number", v.u.s ? v.u.s->p : "value");
    if (j_is_number(v)) return j_float(j_real(v));
    if (v.type == J_STRING && float_of_text(r, v.u.s, &f)) return j_float(f);
    return arg[0].type == J_ABSENT ? j_float(0) : arg[0];
}

/* indent(width=4, first=False, blank=False) */
FILTER(f_indent) {
    UNUSED;
    jval width = arg[0].type == J_ABSENT ? j_int(4) : arg[0], by = width;
    if (width.type != J_STRING) by = jinja_binary(r, OP('*'), jinja_text_of(r, " "), width);
    if (v.type != J_STRING) jinja_stop(&r->mem, "cannot indent %s", jinja_type_name(v));
    const jlist *lines = jinja_split_lines(r, jinja_binary(r, OP('+'), v, jinja_text_of(r, "\n")), false).u.l;
    jout o = {0};
    for (int64_t i = 0; i < lines->n; i++) {
        if (i) jinja_puts(r, &o, "\n");
        bool indents = i ? jinja_true(arg[2]) || lines->at[i].u.s->n > 0 : jinja_true(arg[1]);
        if (indents) jinja_print(r, &o, by);
        jinja_print(r, &o, lines->at[i]);
    }
    return jinja_take(r, &o);
}

static jargs rest_of(const jargs *a, int skip) { return (jargs){a->at + skip, a->n - skip, a->names, a->n_names}; }

/* map(attribute='a', default=d) or map('filter', arguments) */
FILTER(f_map) {
    UNUSED;
    if (!jinja_true(v)) return jinja_list(r, 0, SEQ_ITERATOR); /* Jinja looks at nothing else then */
    const jlist *l = jinja_iterate(r, v);
    jval out = jinja_list(r, l->n, SEQ_ITERATOR), path = {0}, absent = {0};
    for (int k = 0; k < all->n_names && !all->n; k++) {
        if (jinja_same(all->names[k], "attribute"))
            path = all->at[k];
        else if (jinja_same(all->names[k], "default"))
            absent = all->at[k];
        else
            jinja_stop(&r->mem, "map has no argument '%.60s'", all->names[k]->p);
    }
    if (path.type == J_ABSENT && (!all->n || all->at[0].type != J_STRING))
        jinja_stop(&r->mem, "map needs attribute= or the name of a filter");
    const jbuiltin *f = all->n ? jinja_builtin(jinja_filters, all->at[0].u.s) : NULL;
    if (all->n && !f) jinja_stop(&r->mem, "unknown filter '%.60s'", all->at[0].u.s->p);
    jargs rest = rest_of(all, all->n > 0);
    for (int64_t i = 0; i < l->n; i++) {
        jinja_step(r, 1);
        jinja_add(out, f ? jinja_call_builtin(r, f, l->at[i], &rest) : attribute_path(r, l->at[i], path, absent));
    }
    return out;
}

static jval select_items(jrun *r, jval v, const jargs *all, bool keep, bool by_attribute) {
    if (!jinja_true(v)) return jinja_list(r, 0, SEQ_ITERATOR);
    const jlist *l = jinja_iterate(r, v);
    jval out = jinja_list(r, l->n, SEQ_ITERATOR), path = {0};
    if (!l->n) return out;
    if (by_attribute && !all->n) jinja_stop(&r->mem, "an attribute's name is missing");
    if (by_attribute) path = all->at[0];
    int used = by_attribute;
    const jbuiltin *test = NULL;
    if (all->n > used) {
        jval name = all->at[used++];
        if (name.type != J_STRING) jinja_stop(&r->mem, "name of a test is %s", jinja_type_name(name));
        test = jinja_builtin(jinja_tests, name.u.s);
        if (!test) jinja_stop(&r->mem, "unknown test '%.60s'", name.u.s->p);
    }
    jargs rest = rest_of(all, used);
    for (int64_t i = 0; i < l->n; i++) {
        jval x = attribute_or_self(r, l->at[i], path);
        jinja_step(r, 1);
        if (jinja_true(test ? jinja_call_builtin(r, test, x, &rest) : x) == keep) jinja_add(out, l->at[i]);
    }
    return out;
}
FILTER(f_select) { return UNUSED, select_items(r, v, all, true, false); }
FILTER(f_reject) { return UNUSED, select_items(r, v, all, false, false); }
FILTER(f_selectattr) { return UNUSED, select_items(r, v, all, true, true); }
FILTER(f_rejectattr) { return UNUSED, select_items(r, v, all, false, true); }

const jbuiltin jinja_filters[] = {
    {"trim", "chars", 0, f_trim},
    {"length", "", 0, f_length},
    {"count", "", 0, f_length},
    {"tojson", "ensure_ascii indent separators sort_keys", 0, f_tojson},
    {"upper", "", 0, f_upper},
    {"lower", "", 0, f_lower},
    {"title", "", 0, f_title},
    {"capitalize", "", 0, f_capitalize},
    {"replace", "old new count", 2, f_replace},
    {"join", "d attribute", 0, f_join},
    {"list", "", 0, f_list},
    {"first", "", 0, f_first},
    {"last", "", 0, f_last},
    {"reverse", "", 0, f_reverse},
    {"items", "", 0, f_items},
    {"dictsort", "case_sensitive by reverse", 0, f_dictsort},
    {"map", "*", 0, f_map},
    {"select", "*", 0, f_select},
    {"reject", "*", 0, f_reject},
    {"selectattr", "*", 0, f_selectattr},
    {"rejectattr", "*", 0, f_rejectattr},
    {"default", "default_value boolean", 0, f_default},
    {"d", "default_value boolean", 0, f_default},
    {"string", "", 0, f_string},
    {"int", "default base", 0, f_int},
    {"float", "default", 0, f_float},
    {"indent", "width first blank", 0, f_indent},
    {"safe", "", 0, f_safe},
    {"unique", "case_sensitive attribute", 0, f_unique},
    {"sort", "reverse case_sensitive attribute", 0, f_sort},
    {"round", "precision method", 0, f_round},
    {"abs", "", 0, f_abs},
    {"min", "case_sensitive attribute", 0, f_min},
    {"max", "case_sensitive attribute", 0, f_max},
    {"sum", "attribute start", 0, f_sum},
    {0},
};
