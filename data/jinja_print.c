/* Values as Python's str(), repr() and json.dumps() write them. */
#include "data/jinja_parts.h"
#include "data/utf8.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* The shortest decimal that reads back as the same double; an exponent below 1e-4 and from 1e16 on. */
static void put_float(jrun *r, jout *o, double f, bool json) {
    if (!isfinite(f)) {
        const char *inf = json ? "Infinity" : "inf";
        if (f < 0) jinja_puts(r, o, "-");
        jinja_puts(r, o, isnan(f) ? json ? "NaN" : "nan" : inf);
        return;
    }
    char e[40], digits[24], *out = digits;
    int precision = 0;
    do snprintf(e, sizeof e, "%.*e", precision, f);
    while (strtod(e, NULL) != f && ++precision < 17);
    const char *p = e;
    int exponent = atoi(strchr(e, 'e') + 1);
    if (*p == '-') p++, jinja_puts(r, o, "-");
    for (; *p != 'e'; p++)
        if (*p != '.') *out++ = *p;
    int n = (int)(out - digits);
    char text[64];
    int k = 0;
    if (exponent < -4 || exponent >= 16) {
        k += snprintf(text, sizeof text, n > 1 ? "%c.%.*s" : "%c", digits[0], n - 1, digits + 1);
        snprintf(text + k, sizeof text - (size_t)k, "e%c%02d", exponent < 0 ? '-' : '+', abs(exponent));
    } else if (exponent < 0) {
        snprintf(text, sizeof text, "0.%.*s%.*s", -exponent - 1, "0000", n, digits);
    } else if (n <= exponent + 1) {
        snprintf(text, sizeof text, "%.*s%.*s.0", n, digits, exponent + 1 - n, "0000000000000000");
    } else {
        snprintf(text, sizeof text, "%.*s.%.*s", exponent + 1, digits, n - exponent - 1, digits + exponent + 1);
    }
    jinja_puts(r, o, text);
}

static bool printable(int32_t c) {
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_CC:
    case UTF8PROC_CATEGORY_CF:
    case UTF8PROC_CATEGORY_CS:
    case UTF8PROC_CATEGORY_CO:
    case UTF8PROC_CATEGORY_CN:
    case UTF8PROC_CATEGORY_ZL:
    case UTF8PROC_CATEGORY_ZP: return false;
    case UTF8PROC_CATEGORY_ZS: return c == ' ';
    default: return true;
    }
}

static void repr_string(jrun *r, jout *o, const jstr *s) {
    char quote = memchr(s->p, '\'', (size_t)s->n) && !memchr(s->p, '"', (size_t)s->n) ? '"' : '\'', text[16];
    jinja_put(r, o, &quote, 1);
    for (int64_t i = 0; i < s->n;) {
        int len;
        int32_t c = utf8_decode(s->p + i, &len);
        const char *named = c == '\n' ? "\\n" : c == '\r' ? "\\r" : c == '\t' ? "\\t" : c == '\\' ? "\\\\" : NULL;
        if (named) {
            jinja_puts(r, o, named);
        } else if (c == quote) {
            text[0] = '\\', text[1] = quote;
            jinja_put(r, o, text, 2);
        } else if (c < 0x20 || c == 0x7f || (c > 0x7f && !printable(c))) {
            snprintf(text, sizeof text, c < 0x100 ? "\\x%02x" : c < 0x10000 ? "\\u%04x" : "\\U%08x", (unsigned)c);
            jinja_puts(r, o, text);
        } else {
            jinja_put(r, o, s->p + i, len);
        }
        i += len;
    }
    jinja_put(r, o, &quote, 1);
}

static void repr_list(jrun *r, jout *o, const jlist *l) {
    static const char *const open[] = {"[", "(", NULL, "dict_keys([", "dict_values([", "dict_items([", NULL},
                             *const close[] = {"]", ")", NULL, "])", "])", "])", NULL};
    if (!open[l->kind])
        jinja_stop(&r->mem, "%s cannot be printed: add |list", l->kind == SEQ_RANGE ? "a range" : "an iterator");
    jinja_puts(r, o, open[l->kind]);
    for (int64_t i = 0; i < l->n; i++) {
        if (i) jinja_puts(r, o, ", ");
        jinja_repr(r, o, l->at[i]);
    }
    if (l->kind == SEQ_TUPLE && l->n == 1) jinja_puts(r, o, ",");
    jinja_puts(r, o, close[l->kind]);
}

static void repr_dict(jrun *r, jout *o, const jdict *d) {
    jinja_puts(r, o, "{");
    for (int64_t i = 0; i < d->n; i++) {
        if (i) jinja_puts(r, o, ", ");
        jinja_repr(r, o, d->at[i].key);
        jinja_puts(r, o, ": ");
        jinja_repr(r, o, d->at[i].value);
    }
    jinja_puts(r, o, "}");
}

void jinja_repr(jrun *r, jout *o, jval v) {
    char text[32];
    jinja_step(r, 1);
    jinja_enter(r);
    switch (v.type) {
    case J_UNDEFINED: jinja_puts(r, o, "Undefined"); break;
    case J_NONE: jinja_puts(r, o, "None"); break;
    case J_BOOL: jinja_puts(r, o, v.u.b ? "True" : "False"); break;
    case J_INT:
        snprintf(text, sizeof text, "%lld", (long long)v.u.i);
        jinja_puts(r, o, text);
        break;
    case J_FLOAT: put_float(r, o, v.u.f, false); break;
    case J_STRING:
        if (v.u.s->safe) jinja_puts(r, o, "Markup(");
        repr_string(r, o, v.u.s);
        if (v.u.s->safe) jinja_puts(r, o, ")");
        break;
    case J_LIST: repr_list(r, o, v.u.l); break;
    case J_DICT: repr_dict(r, o, v.u.d); break;
    case J_NAMESPACE:
        jinja_puts(r, o, "<Namespace ");
        repr_dict(r, o, v.u.d);
        jinja_puts(r, o, ">");
        break;
    default: jinja_stop(&r->mem, "%s cannot be printed", jinja_type_name(v));
    }
    jinja_leave(r);
}

void jinja_print(jrun *r, jout *o, jval v) {
    if (v.type == J_STRING)
        jinja_put(r, o, v.u.s->p, v.u.s->n);
    else if (v.type != J_UNDEFINED)
        jinja_repr(r, o, v);
}

jval jinja_to_str(jrun *r, jval v) {
    if (v.type == J_STRING) return v;
    jout o = {0};
    jinja_print(r, &o, v);
    return jinja_take(r, &o);
}

typedef struct {
    jrun *r;
    jout o;
    bool ascii, sorted;
    const jstr *indent, *item, *colon; /* indent NULL: one line */
} writer;

static void json_unicode(writer *w, int32_t c) {
    char text[16];
    if (c < 0x10000)
        snprintf(text, sizeof text, "\\u%04x", (unsigned)c);
    else
        snprintf(text, sizeof text, "\\u%04x\\u%04x", 0xd800u + ((unsigned)(c - 0x10000) >> 10),
                 0xdc00u + ((unsigned)(c - 0x10000) & 0x3ff));
    jinja_puts(w->r, &w->o, text);
}

static void json_text(writer *w, const jstr *s) {
    static const char special[] = "\"\\\n\r\t\b\f", letter[] = "\"\\nrtbf";
    jinja_puts(w->r, &w->o, "\"");
    for (int64_t i = 0; i < s->n;) {
        int len;
        int32_t c = utf8_decode(s->p + i, &len);
        const char *k = c && c < 0x80 ? strchr(special, c) : NULL;
        if (k)
            jinja_put(w->r, &w->o, (char[]){'\\', letter[k - special]}, 2);
        else if (c < 0x20 || (w->ascii && c > 0x7e))
            json_unicode(w, c);
        else
            jinja_put(w->r, &w->o, s->p + i, len);
        i += len;
    }
    jinja_puts(w->r, &w->o, "\"");
}

static void json_line(writer *w, int depth) {
    if (!w->indent) return;
    jinja_puts(w->r, &w->o, "\n");
    for (int i = 0; i < depth; i++) jinja_put(w->r, &w->o, w->indent->p, w->indent->n);
}

static void json_value(writer *w, jval v, int depth);

static void json_list(writer *w, const jlist *l, int depth) {
    jinja_puts(w->r, &w->o, "[");
    for (int64_t i = 0; i < l->n; i++) {
        if (i) jinja_put(w->r, &w->o, w->item->p, w->item->n);
        json_line(w, depth + 1);
        json_value(w, l->at[i], depth + 1);
    }
    if (l->n) json_line(w, depth);
    jinja_puts(w->r, &w->o, "]");
}

static void json_key(writer *w, jval key) {
    if (key.type == J_STRING) {
        json_text(w, key.u.s);
        return;
    }
    if (key.type != J_NONE && !j_is_number(key))
        jinja_stop(&w->r->mem, "%s cannot be a key in JSON", jinja_type_name(key));
    jinja_puts(w->r, &w->o, "\"");
    json_value(w, key, 0);
    jinja_puts(w->r, &w->o, "\"");
}

/* Order of the members: as they are, or by key (insertion into a sorted list: objects are small). */
static int64_t *member_order(writer *w, const jdict *d) {
    int64_t *order = jinja_alloc(&w->r->mem, (size_t)d->n * sizeof *order + 1);
    for (int64_t i = 0; i < d->n; i++) {
        int64_t k = i;
        for (; w->sorted && k > 0 && jinja_less(w->r, d->at[i].key, d->at[order[k - 1]].key); k--)
            order[k] = order[k - 1];
        order[k] = i;
    }
    return order;
}

static void json_dict(writer *w, const jdict *d, int depth) {
    const int64_t *order = member_order(w, d);
    jinja_puts(w->r, &w->o, "{");
    for (int64_t i = 0; i < d->n; i++) {
        if (i) jinja_put(w->r, &w->o, w->item->p, w->item->n);
        json_line(w, depth + 1);
        json_key(w, d->at[order[i]].key);
        jinja_put(w->r, &w->o, w->colon->p, w->colon->n);
        json_value(w, d->at[order[i]].value, depth + 1);
    }
    if (d->n) json_line(w, depth);
    jinja_puts(w->r, &w->o, "}");
}

static void json_value(writer *w, jval v, int depth) {
    jinja_step(w->r, 1);
    jinja_enter(w->r);
    if (v.type == J_STRING)
        json_text(w, v.u.s);
    else if (v.type == J_NONE)
        jinja_puts(w->r, &w->o, "null");
    else if (v.type == J_BOOL)
        jinja_puts(w->r, &w->o, v.u.b ? "true" : "false");
    else if (v.type == J_FLOAT)
        put_float(w->r, &w->o, v.u.f, true);
    else if (v.type == J_INT)
        jinja_repr(w->r, &w->o, v);
    else if (v.type == J_LIST && v.u.l->kind <= SEQ_TUPLE)
        json_list(w, v.u.l, depth);
    else if (v.type == J_DICT)
        json_dict(w, v.u.d, depth);
    else
        jinja_stop(&w->r->mem, "%s is not JSON serializable", jinja_type_name(v));
    jinja_leave(w->r);
}

static const jstr *separator(jrun *r, jval v, int64_t i) {
    if (v.type != J_LIST || v.u.l->n != 2 || v.u.l->at[i].type != J_STRING)
        jinja_stop(&r->mem, "separators of tojson is %s, expected two strings", jinja_type_name(v));
    return v.u.l->at[i].u.s;
}

/* tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False), transformers' own: no HTML escapes */
jval jinja_to_json(jrun *r, jval v, const jval *arg) {
    writer w = {.r = r, .ascii = jinja_true(arg[0]), .sorted = jinja_true(arg[3])};
    if (arg[1].type == J_STRING) {
        w.indent = arg[1].u.s;
    } else if (j_is_int(arg[1])) {
        int64_t n = j_integer(arg[1]);
        if (n > 1000) jinja_stop(&r->mem, "indent of %lld, expected at most 1000", (long long)n);
        char *blanks = jinja_alloc(&r->mem, 1001);
        memset(blanks, ' ', 1000);
        w.indent = jinja_str_new(&r->mem, blanks, n > 0 ? n : 0, false);
    } else if (arg[1].type != J_ABSENT && arg[1].type != J_NONE) {
        jinja_stop(&r->mem, "indent is %s, expected an integer", jinja_type_name(arg[1]));
    }
    bool given = arg[2].type != J_ABSENT && arg[2].type != J_NONE;
    w.item = given ? separator(r, arg[2], 0) : jinja_text_of(r, w.indent ? "," : ", ").u.s;
    w.colon = given ? separator(r, arg[2], 1) : jinja_text_of(r, ": ").u.s;
    json_value(&w, v, 0);
    return jinja_take(r, &w.o);
}
