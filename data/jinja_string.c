/* Strings of the Jinja interpreter: Python's str methods on UTF-8. Case mapping is Unicode's simple one (one code point
 * to one) and that of the German sharp s. */
#include "data/jinja_parts.h"
#include "data/utf8.h"

#include <string.h>
#include <utf8proc.h>

bool jinja_is_space(int32_t c) {
    return (c >= 9 && c <= 13) || (c >= 0x1c && c <= 0x20) || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f || c == 0x205f || c == 0x3000;
}

int64_t jinja_strip_left(const char *p, int64_t n) {
    int64_t i = 0;
    for (int len; i < n && jinja_is_space(utf8_decode(p + i, &len)); i += len) {}
    return i;
}

static int64_t last_char(const char *p, int64_t n) {
    do n--;
    while (n > 0 && (p[n] & 0xc0) == 0x80);
    return n;
}

int64_t jinja_strip_right(const char *p, int64_t n) {
    int len;
    while (n > 0) {
        int64_t k = last_char(p, n);
        if (!jinja_is_space(utf8_decode(p + k, &len))) break;
        n = k;
    }
    return n;
}

int64_t jinja_offset(const jstr *s, int64_t chars) {
    if (s->chars == s->n) return chars < s->n ? chars : s->n;
    int64_t i = 0;
    for (; i < s->n; i++)
        if ((s->p[i] & 0xc0) != 0x80 && chars-- == 0) break;
    return i;
}

static jval piece(jrun *r, const char *p, int64_t n) {
    return (jval){J_STRING, {.s = jinja_str_new(&r->mem, p, n, false)}};
}

static const jstr *string_arg(jrun *r, jval v, const char *what) {
    if (v.type != J_STRING) jinja_stop(&r->mem, "%s is %s, expected a string", what, jinja_type_name(v));
    return v.u.s;
}

static int64_t int_arg(jrun *r, jval v, int64_t absent) {
    if (v.type == J_ABSENT || v.type == J_NONE) return absent;
    if (!j_is_int(v)) jinja_stop(&r->mem, "argument is %s, expected an integer", jinja_type_name(v));
    return j_integer(v);
}

static void put_char(jrun *r, jout *o, int32_t c, bool up) {
    char text[4];
    int32_t mapped = up ? utf8proc_totitle(c) : utf8proc_tolower(c);
    jinja_put(r, o, text, utf8_encode(mapped, text));
}

static void put_upper(jrun *r, jout *o, int32_t c) {
    char text[4];
    if (c == 0xdf)
        jinja_puts(r, o, "SS");
    else
        jinja_put(r, o, text, utf8_encode(utf8proc_toupper(c), text));
}

static bool cased(int32_t c) {
    utf8proc_category_t k = utf8proc_category(c);
    return k == UTF8PROC_CATEGORY_LU || k == UTF8PROC_CATEGORY_LL || k == UTF8PROC_CATEGORY_LT;
}

jval jinja_case(jrun *r, jval v, int mode) {
    const jstr *s = v.u.s;
    jout o = {0};
    bool starts = true;
    for (int64_t i = 0; i < s->n;) {
        int len;
        int32_t c = utf8_decode(s->p + i, &len);
        if (mode == 'u')
            put_upper(r, &o, c);
        else
            put_char(r, &o, c, starts && mode != 'l');
        starts = mode == 't' ? !cased(c) : mode == 'w' ? c < 0x80 && (strchr("-({[<", c) || jinja_is_space(c)) : false;
        if (mode == 'w' && c >= 0x80) starts = jinja_is_space(c);
        i += len;
    }
    return jinja_take(r, &o);
}

static bool among(const jstr *chars, const char *p, int len) {
    return memmem(chars->p, (size_t)chars->n, p, (size_t)len) != NULL;
}

jval jinja_trim(jrun *r, jval v, jval chars, int sides) {
    const char *p = v.u.s->p;
    int64_t n = v.u.s->n, k = 0;
    jinja_step(r, n >> 8);
    if (chars.type == J_ABSENT || chars.type == J_NONE) {
        if (sides & 1) k = jinja_strip_left(p, n);
        p += k;
        n -= k;
        if (sides & 2) n = jinja_strip_right(p, n);
        return piece(r, p, n);
    }
    const jstr *set = string_arg(r, chars, "strip's argument");
    int len;
    for (; sides & 1 && n > 0; p += len, n -= len) {
        utf8_decode(p, &len);
        if (!among(set, p, len)) break;
    }
    for (; sides & 2 && n > 0; n = k) {
        k = last_char(p, n);
        if (!among(set, p + k, (int)(n - k))) break;
    }
    return piece(r, p, n);
}

static const char *search(const char *p, const char *end, const jstr *what) {
    return memmem(p, (size_t)(end - p), what->p, (size_t)what->n);
}

jval jinja_replace(jrun *r, jval v, jval from_value, jval to_value, int64_t count) {
    const jstr *s = v.u.s, *from = string_arg(r, from_value, "replace's argument"),
               *to = string_arg(r, to_value, "replace's argument");
    const char *p = s->p, *end = s->p + s->n, *hit;
    jout o = {0};
    while (count && (from->n || p <= end)) { /* an empty one matches before every character and at the end */
        int len = 0;
        hit = from->n ? search(p, end, from) : p;
        if (!hit) break;
        jinja_put(r, &o, p, hit - p);
        jinja_put(r, &o, to->p, to->n);
        jinja_step(r, 1);
        if (count > 0) count--;
        p = hit + from->n;
        if (from->n) continue;
        if (p == end) return jinja_take(r, &o);
        utf8_decode(p, &len);
        jinja_put(r, &o, p, len);
        p += len;
    }
    jinja_put(r, &o, p, end - p);
    return jinja_take(r, &o);
}

jval jinja_join(jrun *r, jval separator, jlist *items) {
    jout o = {0};
    for (int64_t i = 0; i < items->n; i++) {
        if (i) jinja_print(r, &o, separator);
        jinja_step(r, 1);
        jinja_print(r, &o, items->at[i]);
    }
    return jinja_take(r, &o);
}

static bool line_break(int32_t c) {
    return (c >= 10 && c <= 13) || (c >= 0x1c && c <= 0x1e) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

jval jinja_split_lines(jrun *r, jval v, bool keep) {
    const jstr *s = v.u.s;
    jval l = jinja_list(r, s->chars + 1, SEQ_LIST);
    int64_t begin = 0;
    for (int64_t i = 0, end; i < s->n;) {
        int len;
        int32_t c = utf8_decode(s->p + i, &len);
        end = i;
        i += len;
        if (!line_break(c)) continue;
        if (c == '\r' && i < s->n && s->p[i] == '\n') i++;
        jinja_add(l, piece(r, s->p + begin, (keep ? i : end) - begin));
        begin = i;
    }
    if (begin < s->n) jinja_add(l, piece(r, s->p + begin, s->n - begin));
    return l;
}

static jval split_space(jrun *r, const jstr *s, int64_t most) {
    jval l = jinja_list(r, s->chars / 2 + 2, SEQ_LIST);
    int64_t i = jinja_strip_left(s->p, s->n), begin;
    while (i < s->n) {
        int len;
        if (most-- == 0) { /* the rest, with the blanks at its end */
            jinja_add(l, piece(r, s->p + i, s->n - i));
            break;
        }
        for (begin = i; i < s->n && !jinja_is_space(utf8_decode(s->p + i, &len)); i += len) {}
        jinja_add(l, piece(r, s->p + begin, i - begin));
        i += jinja_strip_left(s->p + i, s->n - i);
    }
    return l;
}

static jval m_split(jrun *r, jval self, const jval *arg, const jargs *all) {
    (void)all;
    const jstr *s = self.u.s;
    int64_t most = int_arg(r, arg[1], -1), n = 1;
    jinja_step(r, s->n >> 4);
    if (arg[0].type == J_ABSENT || arg[0].type == J_NONE) return split_space(r, s, most);
    const jstr *by = string_arg(r, arg[0], "split's separator");
    if (!by->n) jinja_stop(&r->mem, "split by an empty string");
    const char *p = s->p, *end = s->p + s->n, *hit;
    for (const char *q = p; (hit = search(q, end, by)); q = hit + by->n) n++;
    jval l = jinja_list(r, n, SEQ_LIST);
    while (most-- != 0 && (hit = search(p, end, by))) {
        jinja_add(l, piece(r, p, hit - p));
        p = hit + by->n;
    }
    jinja_add(l, piece(r, p, end - p));
    return l;
}

static jval m_rsplit(jrun *r, jval self, const jval *arg, const jargs *all) {
    int64_t most = int_arg(r, arg[1], -1);
    jval rest[] = {arg[0], {0}};
    jval l = m_split(r, self, rest, all);
    int64_t n = l.u.l->n;
    if (most < 0 || n <= most + 1) return l;
    if (arg[0].type != J_STRING) jinja_stop(&r->mem, "rsplit by white space with a limit is not supported");
    jval first = l.u.l->at[n - 1 - most], out = jinja_list(r, most + 1, SEQ_LIST);
    jinja_add(out, piece(r, self.u.s->p, first.u.s->p + first.u.s->n - self.u.s->p));
    for (int64_t i = n - most; i < n; i++) jinja_add(out, l.u.l->at[i]);
    return out;
}

static bool affix(const jstr *s, const jstr *a, bool end) {
    return a->n <= s->n && !memcmp(end ? s->p + s->n - a->n : s->p, a->p, (size_t)a->n);
}

static bool any_affix(jrun *r, jval self, jval arg, bool end) {
    if (arg.type != J_LIST || arg.u.l->kind != SEQ_TUPLE) return affix(self.u.s, string_arg(r, arg, "argument"), end);
    for (int64_t i = 0; i < arg.u.l->n; i++)
        if (affix(self.u.s, string_arg(r, arg.u.l->at[i], "argument"), end)) return true;
    return false;
}

static jval find_in(jrun *r, jval self, const jval *arg, bool last) {
    const jstr *s = self.u.s, *what = string_arg(r, arg[0], "argument");
    int64_t from = int_arg(r, arg[1], 0);
    jinja_step(r, s->n >> 8);
    if (from < 0) from = from + s->chars < 0 ? 0 : from + s->chars;
    if (from > s->chars) return j_int(-1);
    const char *p = s->p + jinja_offset(s, from), *end = s->p + s->n, *hit = search(p, end, what);
    if (last && hit && !what->n) hit = end;
    for (const char *more; last && what->n && hit && (more = search(hit + 1, end, what));) hit = more;
    if (!hit) return j_int(-1);
    return j_int(jinja_str_new(&r->mem, s->p, hit - s->p, false)->chars);
}

#define METHOD(name) static jval name(jrun *r, jval self, const jval *arg, const jargs *all)
#define UNUSED (void)r, (void)self, (void)arg, (void)all
METHOD(m_strip) { return UNUSED, jinja_trim(r, self, arg[0], 3); }
METHOD(m_lstrip) { return UNUSED, jinja_trim(r, self, arg[0], 1); }
METHOD(m_rstrip) { return UNUSED, jinja_trim(r, self, arg[0], 2); }
METHOD(m_upper) { return UNUSED, jinja_case(r, self, 'u'); }
METHOD(m_lower) { return UNUSED, jinja_case(r, self, 'l'); }
METHOD(m_title) { return UNUSED, jinja_case(r, self, 't'); }
METHOD(m_capitalize) { return UNUSED, jinja_case(r, self, 'c'); }
METHOD(m_startswith) { return UNUSED, j_bool(any_affix(r, self, arg[0], false)); }
METHOD(m_endswith) { return UNUSED, j_bool(any_affix(r, self, arg[0], true)); }
METHOD(m_find) { return UNUSED, find_in(r, self, arg, false); }
METHOD(m_rfind) { return UNUSED, find_in(r, self, arg, true); }
METHOD(m_replace) { return UNUSED, jinja_replace(r, self, arg[0], arg[1], int_arg(r, arg[2], -1)); }
METHOD(m_splitlines) { return UNUSED, jinja_split_lines(r, self, jinja_true(arg[0])); }

METHOD(m_count) {
    UNUSED;
    const jstr *what = string_arg(r, arg[0], "argument");
    const char *p = self.u.s->p, *end = p + self.u.s->n;
    if (!what->n) return j_int(self.u.s->chars + 1);
    int64_t n = 0;
    jinja_step(r, self.u.s->n >> 8);
    for (; (p = search(p, end, what)); p += what->n) n++;
    return j_int(n);
}

METHOD(m_join) {
    UNUSED;
    jlist *l = jinja_iterate(r, arg[0]);
    for (int64_t i = 0; i < l->n; i++) string_arg(r, l->at[i], "item to join");
    return jinja_join(r, self, l);
}

METHOD(m_removeprefix) {
    UNUSED;
    const jstr *s = self.u.s, *a = string_arg(r, arg[0], "argument");
    return affix(s, a, false) ? piece(r, s->p + a->n, s->n - a->n) : self;
}

METHOD(m_removesuffix) {
    UNUSED;
    const jstr *s = self.u.s, *a = string_arg(r, arg[0], "argument");
    return affix(s, a, true) ? piece(r, s->p, s->n - a->n) : self;
}

/* All characters of the kinds in the mask, and at least one. */
static jval all_of(jrun *r, const jstr *s, bool (*is)(int32_t c)) {
    jinja_step(r, s->n >> 8);
    for (int64_t i = 0; i < s->n;) {
        int len;
        if (!is(utf8_decode(s->p + i, &len))) return j_bool(false);
        i += len;
    }
    return j_bool(s->n > 0);
}
static bool is_digit(int32_t c) { return utf8proc_category(c) == UTF8PROC_CATEGORY_ND; }
static bool is_alpha(int32_t c) {
    utf8proc_category_t k = utf8proc_category(c);
    return k >= UTF8PROC_CATEGORY_LU && k <= UTF8PROC_CATEGORY_LO;
}
static bool is_alnum(int32_t c) { return is_digit(c) || is_alpha(c); }
METHOD(m_isdigit) { return UNUSED, all_of(r, self.u.s, is_digit); }
METHOD(m_isalpha) { return UNUSED, all_of(r, self.u.s, is_alpha); }
METHOD(m_isalnum) { return UNUSED, all_of(r, self.u.s, is_alnum); }
METHOD(m_isspace) { return UNUSED, all_of(r, self.u.s, jinja_is_space); }

static jval all_cased(jrun *r, const jstr *s, bool up) {
    bool any = false;
    jinja_step(r, s->n >> 8);
    for (int64_t i = 0; i < s->n;) {
        int len;
        utf8proc_category_t k = utf8proc_category(utf8_decode(s->p + i, &len));
        if (k == UTF8PROC_CATEGORY_LT || k == (up ? UTF8PROC_CATEGORY_LL : UTF8PROC_CATEGORY_LU)) return j_bool(false);
        any |= k == (up ? UTF8PROC_CATEGORY_LU : UTF8PROC_CATEGORY_LL);
        i += len;
    }
    return j_bool(any);
}
METHOD(m_isupper) { return UNUSED, all_cased(r, self.u.s, true); }
METHOD(m_islower) { return UNUSED, all_cased(r, self.u.s, false); }

const jbuiltin jinja_string_methods[] = {
    {"strip", "chars", 0, m_strip},
    {"lstrip", "chars", 0, m_lstrip},
    {"rstrip", "chars", 0, m_rstrip},
    {"split", "sep maxsplit", 0, m_split},
    {"rsplit", "sep maxsplit", 0, m_rsplit},
    {"splitlines", "keepends", 0, m_splitlines},
    {"startswith", "prefix", 1, m_startswith},
    {"endswith", "suffix", 1, m_endswith},
    {"upper", "", 0, m_upper},
    {"lower", "", 0, m_lower},
    {"title", "", 0, m_title},
    {"capitalize", "", 0, m_capitalize},
    {"replace", "old new count", 2, m_replace},
    {"find", "sub start", 1, m_find},
    {"rfind", "sub start", 1, m_rfind},
    {"count", "sub", 1, m_count},
    {"join", "items", 1, m_join},
    {"removeprefix", "prefix", 1, m_removeprefix},
    {"removesuffix", "suffix", 1, m_removesuffix},
    {"isdigit", "", 0, m_isdigit},
    {"isalpha", "", 0, m_isalpha},
    {"isalnum", "", 0, m_isalnum},
    {"isspace", "", 0, m_isspace},
    {"isupper", "", 0, m_isupper},
    {"islower", "", 0, m_islower},
    {"casefold", "", 0, NULL},
    {"center", "", 0, NULL},
    {"encode", "", 0, NULL},
    {"expandtabs", "", 0, NULL},
    {"format", "", 0, NULL},
    {"format_map", "", 0, NULL},
    {"index", "", 0, NULL},
    {"isascii", "", 0, NULL},
    {"isdecimal", "", 0, NULL},
    {"isidentifier", "", 0, NULL},
    {"isnumeric", "", 0, NULL},
    {"isprintable", "", 0, NULL},
    {"istitle", "", 0, NULL},
    {"ljust", "", 0, NULL},
    {"maketrans", "", 0, NULL},
    {"partition", "", 0, NULL},
    {"rindex", "", 0, NULL},
    {"rjust", "", 0, NULL},
    {"rpartition", "", 0, NULL},
    {"swapcase", "", 0, NULL},
    {"translate", "", 0, NULL},
    {"zfill", "", 0, NULL},
    {0},
};
