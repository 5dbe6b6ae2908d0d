/* Scalars, names and the list of problems of the configuration. */
#include "core/config_parts.h"

#include "core/arena.h"
#include "core/error.h"

#include <ctype.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* ---- problems ---- */

/* Control bytes become \xNN, so that the content of a file can never steer a terminal. */
static char *escape(char *raw) {
    size_t n = strlen(raw), k = 0;
    char *s = xcalloc(n + 1, 4);
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)raw[i];
        if (c < 0x20 || c == 0x7f)
            k += (size_t)snprintf(s + k, 5, "\\x%02x", c);
        else
            s[k++] = (char)c;
    }
    free(raw);
    return s;
}

static void problem_vadd(problem_list *l, place at, bool note, const char *fmt, va_list ap) {
    char *text = NULL;
    int n = vasprintf(&text, fmt, ap);
    CHECK(n >= 0, "%s", fmt);
    l->item = xrealloc(l->item, (size_t)l->n + 1, sizeof *l->item);
    l->item[l->n++] = (problem){at, note, escape(text)};
    l->errors += !note;
}

void problem_add(problem_list *l, place at, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    problem_vadd(l, at, false, fmt, ap);
    va_end(ap);
}

void problem_note(problem_list *l, place at, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    problem_vadd(l, at, true, fmt, ap);
    va_end(ap);
}

static bool later(place a, place b) { /* the command line comes last */
    unsigned x = (unsigned)a.line, y = (unsigned)b.line;
    return x != y ? x > y : a.col > b.col;
}

void problem_print(problem_list *l, FILE *f) {
    for (int i = 1; i < l->n; i++) { /* insertion sort: stable */
        problem p = l->item[i];
        int k = i;
        for (; k > 0 && later(l->item[k - 1].at, p.at); k--) l->item[k] = l->item[k - 1];
        l->item[k] = p;
    }
    int shown = 0;
    char *path = escape(xstrdup(l->path ? l->path : "configuration"));
    for (int i = 0; i < l->n; i++) {
        const problem *p = &l->item[i];
        if (!p->note && shown++ >= PROBLEMS_SHOWN) continue;
        if (p->at.line == PLACE_ARGS)
            fprintf(f, "command line: ");
        else if (p->at.line == 0)
            fprintf(f, "%s: ", path);
        else
            fprintf(f, "%s:%d:%d: ", path, p->at.line, p->at.col);
        fprintf(f, "%s%s\n", p->note ? "note: " : "", p->text);
    }
    if (shown > PROBLEMS_SHOWN) fprintf(f, "%s: and %d more problems\n", path, shown - PROBLEMS_SHOWN);
    free(path);
}

void problem_free(problem_list *l) {
    for (int i = 0; i < l->n; i++) free(l->item[i].text);
    free(l->item);
    *l = (problem_list){0};
}

/* ---- scalars ---- */

static size_t digits(const char *s) { return strspn(s, "0123456789"); }

/* Decimal grammar [+-]digits[.digits][e[+-]digits], which is narrower than strtod's (hex, inf, nan) and wider than
 * YAML 1.1's (2e-4). */
static const char *decimal(const char *s, bool *integer) {
    const char *p = s + (*s == '+' || *s == '-');
    size_t whole = digits(p), part = 0;
    if (whole > 1 && *p == '0') return "a number with a leading zero";
    p += whole;
    if (*p == '_') return "a number with underscores";
    *integer = *p == 0;
    if (*p == '.') part = digits(++p), p += part;
    if (whole + part == 0) return "no number";
    if (*p == 'e' || *p == 'E') {
        p += 1 + (p[1] == '+' || p[1] == '-');
        if (!digits(p)) return "no number";
        p += digits(p);
    }
    if (*p == '_') return "a number with underscores";
    return *p ? "no number" : NULL;
}

const char *scalar_real(const char *s, double *out) {
    bool integer;
    const char *wrong = decimal(s, &integer);
    if (wrong) return wrong;
    *out = strtod(s, NULL);
    return isfinite(*out) ? NULL : "too large";
}

const char *scalar_int(const char *s, int64_t *out) {
    bool integer;
    const char *wrong = decimal(s, &integer);
    if (wrong) return wrong;
    if (!integer) {
        double x = strtod(s, NULL);
        if (fabs(x) > 0x1p53) return "too large";
        if (x != floor(x)) return "no integer";
        *out = (int64_t)x;
        return NULL;
    }
    bool negative = *s == '-';
    int64_t v = 0;
    for (const char *p = s + (negative || *s == '+'); *p; p++)
        if (__builtin_mul_overflow(v, 10, &v) || __builtin_sub_overflow(v, *p - '0', &v))
            return "more than 64 bits hold";
    if (!negative && __builtin_sub_overflow(0, v, &v)) return "more than 64 bits hold";
    *out = v;
    return NULL;
}

const char *scalar_bool(const char *s, bool *out) {
    static const struct {
        const char *word;
        bool value;
    } words[] = {{"true", true}, {"yes", true}, {"on", true}, {"false", false}, {"no", false}, {"off", false}};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (!strcasecmp(s, words[i].word)) return *out = words[i].value, NULL;
    return "no boolean";
}

const char *scalar_size(const char *s, int64_t *out) {
    static const struct {
        const char *unit;
        double bytes;
    } units[] = {{"", 1},      {"B", 1},        {"kB", 1e3},     {"KB", 1e3},     {"MB", 1e6},    {"GB", 1e9},
                 {"TB", 1e12}, {"KiB", 0x1p10}, {"MiB", 0x1p20}, {"GiB", 0x1p30}, {"TiB", 0x1p40}};
    char number[64];
    size_t n = strcspn(s, "kKMGTB");
    if (n >= sizeof number) return "no size";
    memcpy(number, s, n);
    while (n && number[n - 1] == ' ') n--;
    number[n] = 0;
    double x;
    const char *wrong = scalar_real(number, &x), *unit = s + strcspn(s, "kKMGTB");
    if (wrong) return wrong;
    for (size_t i = 0; i < sizeof units / sizeof *units; i++) {
        if (strcmp(unit, units[i].unit) != 0) continue;
        x *= units[i].bytes;
        if (fabs(x) >= 0x1p63) return "more than 64 bits hold";
        if (x != floor(x)) return "no whole number of bytes";
        return *out = (int64_t)x, NULL;
    }
    return "an unknown unit";
}

bool scalar_is_null(const yaml_node *v) {
    if (v->kind != YAML_NODE_SCALAR || !v->plain) return false;
    return !*v->text || !strcmp(v->text, "~") || !strcasecmp(v->text, "null");
}

static bool listed(const char *word, const char *list, int (*differ)(const char *, const char *, size_t)) {
    size_t n = strlen(word);
    for (const char *p = list; p; p = strchr(p, '|'), p = p ? p + 1 : NULL)
        if (strcspn(p, "|") == n && !differ(word, p, n)) return true;
    return false;
}

bool word_in(const char *word, const char *list) { return listed(word, list, strncmp); }
bool word_in_anycase(const char *word, const char *list) { return listed(word, list, strncasecmp); }

/* ---- ranges ---- */

interval interval_parse(const char *text) {
    if (!text) return (interval){-INFINITY, INFINITY, false, false};
    char *end;
    interval r = {.open_lo = *text == '('};
    r.lo = strtod(text + 1, &end);
    CHECK(*end == ',', "range %s", text);
    r.hi = strtod(end + 1, &end);
    CHECK(*end == ')' || *end == ']', "range %s", text);
    r.open_hi = *end == ')';
    return r;
}

bool interval_has(interval r, double x) {
    return (r.open_lo ? x > r.lo : x >= r.lo) && (r.open_hi ? x < r.hi : x <= r.hi);
}

/* ---- names ---- */

static int min_int(int a, int b) { return a < b ? a : b; }

/* Insertions, deletions, replacements and swaps of neighbours (Damerau's four kinds of typing errors), as restricted by
 * optimal string alignment: no part is edited twice. */
int edit_distance(const char *a, const char *b, int limit) {
    enum { N = 64 };
    int n = (int)strlen(a), m = (int)strlen(b), d[3][N + 1];
    if (n > N || m > N || abs(n - m) > limit) return limit + 1;
    for (int j = 0; j <= m; j++) d[0][j] = j;
    for (int i = 1; i <= n; i++) {
        int *row = d[i % 3], *up = d[(i + 2) % 3], *up2 = d[(i + 1) % 3];
        row[0] = i;
        for (int j = 1; j <= m; j++) {
            int x = tolower((unsigned char)a[i - 1]), y = tolower((unsigned char)b[j - 1]);
            row[j] = min_int(min_int(up[j], row[j - 1]) + 1, up[j - 1] + (x != y));
            if (i > 1 && j > 1 && x == tolower((unsigned char)b[j - 2]) && tolower((unsigned char)a[i - 2]) == y)
                row[j] = min_int(row[j], up2[j - 2] + 1);
        }
    }
    return min_int(d[n % 3][m], limit + 1);
}

char *quoted(const char *s) {
    size_t n = strlen(s), cut = n;
    if (n > 60)
        for (cut = 57; ((unsigned char)s[cut] & 0xc0) == 0x80; cut--) {}
    return xprintf("'%.*s%s'", (int)cut, s, cut < n ? "..." : "");
}
