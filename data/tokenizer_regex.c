/* Regular expressions of tokenizer files. They are written for Oniguruma (its own syntax, UTF-8), which `tokenizers`
 * uses; a pattern is rewritten to PCRE2 with the same meaning, and whatever is not known to mean the same is refused:
 *   \s \d \w \b  are White_Space, Nd, Alphabetic|M|Nd|Pc (PCRE2's \s also holds U+180E, its \w lacks marks)
 *   \p{Han}      is the script, not PCRE2's script extensions       \v is U+000B, not any vertical space
 *   {n}? {n,m}+  are lazy and possessive only in PCRE2: refused; so are nested classes, &&, back references, (?i) alone
 * Characters newer than PCRE2's Unicode (10.42: 14.0) are unassigned here, letters to a newer Oniguruma. */
#include "core/arena.h"
#include "core/error.h"
#include "data/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

#define PATTERN_MAX 65536
#define MATCH_LIMIT 10000000u /* steps of one match, plus some for each byte of the text */
#define JIT_STACK_MAX ((size_t)64 << 20)
#define WORD_IN_CLASS "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}"
#define WORD_CLASS                                                                                                     \
    WORD_IN_CLASS "\\x{b2}\\x{b3}\\x{b9}\\x{bc}-\\x{be}" /* Oniguruma adds these six outside classes only */

typedef struct {
    const char *where, *p; /* the pattern, NUL-terminated */
    size_t i, n;
    bool in_class;
    char *out;
    size_t used;
} rewriter;

static void put(rewriter *w, const char *s, size_t n) {
    memcpy(w->out + w->used, s, n); /* out has room: no construct grows by more than OUT_PER_BYTE */
    w->used += n;
}
#define OUT_PER_BYTE 192
static void put_text(rewriter *w, const char *s) { put(w, s, strlen(s)); }

/* Bytes of a pattern that a message shows: whole characters. */
static int shown(const char *s) {
    size_t n = strnlen(s, 200);
    while (n > 0 && (s[n] & 0xc0) == 0x80) n--;
    return (int)n;
}

static int refuse(const rewriter *w, const char *what) {
    return fail(EXIT_INPUT, "%s: regular expression '%.*s': %s at byte %zu is not supported", w->where, shown(w->p),
                w->p, what, w->i);
}

static bool is_category(const char *s, size_t n) {
    static const char *const names[] = {"C",  "Cc", "Cf", "Cn", "Co", "Cs", "L",  "Ll", "Lm", "Lo", "Lt", "Lu", "M",
                                        "Mc", "Me", "Mn", "N",  "Nd", "Nl", "No", "P",  "Pc", "Pd", "Pe", "Pf", "Pi",
                                        "Po", "Ps", "S",  "Sc", "Sk", "Sm", "So", "Z",  "Zl", "Zp", "Zs"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (strlen(names[i]) == n && !memcmp(names[i], s, n)) return true;
    return false;
}

/* \p{Name}, \P{Name}, \p{^Name}: general categories, and scripts by name. w->i is at the p. */
static int property(rewriter *w) {
    bool negate = w->p[w->i] == 'P';
    if (w->p[w->i + 1] != '{') return refuse(w, "\\p without braces");
    const char *s = w->p + w->i + 2, *close = strchr(s, '}');
    if (!close || close - s > 40) return refuse(w, "\\p without a closing brace");
    size_t n = (size_t)(close - s);
    if (n && *s == '^') negate = !negate, s++, n--;
    for (size_t k = 0; k < n; k++)
        if (!strchr("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_", s[k])) return refuse(w, "this \\p name");
    put_text(w, negate ? "\\P{" : "\\p{");
    if (!is_category(s, n)) put_text(w, "sc:");
    put(w, s, n);
    put_text(w, "}");
    w->i = (size_t)(close - w->p) + 1;
    return 0;
}

/* \xHH below 80, \x{H...}, \uHHHH. w->i is at the x or u. */
static int code_point(rewriter *w) {
    const char *s = w->p + w->i + 1;
    bool brace = *s == '{';
    size_t want = brace ? strspn(s + 1, "0123456789abcdefABCDEF") : w->p[w->i] == 'u' ? 4 : 2;
    const char *digits = s + brace;
    if (want < 1 || want > 6 || strspn(digits, "0123456789abcdefABCDEF") < want || (brace && digits[want] != '}'))
        return refuse(w, "this \\x or \\u");
    if (!brace && want == 2 && *digits >= '8') return refuse(w, "a raw byte");
    put_text(w, "\\x{");
    put(w, digits, want);
    put_text(w, "}");
    w->i += 1 + want + 2u * brace;
    return 0;
}

typedef struct {
    char name;
    const char *outside, *inside;
} escape_row; /* NULL = refused there */
static const escape_row escapes[] = {
    {'r', "\\r", "\\r"},
    {'n', "\\n", "\\n"},
    {'t', "\\t", "\\t"},
    {'f', "\\f", "\\f"},
    {'a', "\\a", "\\a"},
    {'e', "\\e", "\\e"},
    {'v', "\\x0b", "\\x0b"},
    {'s', "\\p{White_Space}", "\\p{White_Space}"},
    {'S', "\\P{White_Space}", "\\P{White_Space}"},
    {'d', "\\p{Nd}", "\\p{Nd}"},
    {'D', "\\P{Nd}", "\\P{Nd}"},
    {'w', "[" WORD_CLASS "]", WORD_IN_CLASS},
    {'W', "[^" WORD_CLASS "]", NULL},
    {'b', "(?:(?<=[" WORD_CLASS "])(?![" WORD_CLASS "])|(?<![" WORD_CLASS "])(?=[" WORD_CLASS "]))", NULL},
    {'A', "\\A", NULL},
    {'z', "\\z", NULL}};

static int escape(rewriter *w) {
    char c = w->p[++w->i];
    if (c == 'p' || c == 'P') return property(w);
    if (c == 'x' || c == 'u') return code_point(w);
    for (size_t k = 0; k < sizeof escapes / sizeof *escapes; k++) {
        const char *to = w->in_class ? escapes[k].inside : escapes[k].outside;
        if (escapes[k].name != c || !to) continue;
        put_text(w, to);
        w->i++;
        return 0;
    }
    unsigned char u = (unsigned char)c;
    if (!u || (u < 0x80 && strchr("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", c)))
        return refuse(w, "this escape");
    if (u < 0x80) put_text(w, "\\");
    put(w, &c, 1);
    w->i++;
    return 0;
}

static int group(rewriter *w) {
    static const char *const kinds[] = {"(?:", "(?i:", "(?=", "(?!", "(?<=", "(?<!", "(?>"};
    if (w->p[w->i + 1] != '?') { /* a capture: nothing refers to it */
        put_text(w, "(?:");
        w->i++;
        return 0;
    }
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++) {
        size_t n = strlen(kinds[k]);
        if (strncmp(w->p + w->i, kinds[k], n) != 0) continue;
        put(w, kinds[k], n);
        w->i += n;
        return 0;
    }
    return refuse(w, "this kind of group");
}

/* {n} {n,} {n,m} {,m} */
static int interval(rewriter *w) {
    const char *s = w->p + w->i + 1;
    size_t low = strspn(s, "0123456789"), comma = s[low] == ',';
    size_t high = comma ? strspn(s + low + 1, "0123456789") : 0, all = low + comma + high;
    if (low + high == 0 || low > 5 || high > 5 || s[all] != '}') return refuse(w, "'{'");
    if (s[all + 1] == '+' || (!comma && s[all + 1] == '?')) return refuse(w, "a quantifier on an interval");
    put_text(w, low ? "{" : "{0");
    put(w, s, all + 1);
    w->i += all + 2;
    return 0;
}

static int class_open(rewriter *w) {
    put(w, "[", 1);
    w->i++;
    if (w->p[w->i] == '^') put(w, "^", 1), w->i++;
    if (w->p[w->i] == ']') return refuse(w, "']' first in a class");
    w->in_class = true;
    return 0;
}

static int rewrite(rewriter *w) {
    while (w->i < w->n) {
        char c = w->p[w->i];
        int bad = 0;
        if (c == '\\') {
            bad = escape(w);
        } else if (w->in_class && (c == '[' || (c == '&' && w->p[w->i + 1] == '&'))) {
            bad = refuse(w, "a set operation");
        } else if (!w->in_class && c == '[') {
            bad = class_open(w);
        } else if (!w->in_class && c == '(') {
            bad = group(w);
        } else if (!w->in_class && c == '{') {
            bad = interval(w);
        } else {
            if (c == ']') w->in_class = false;
            put(w, &c, 1);
            w->i++;
        }
        if (bad) return -1;
    }
    return 0;
}

static int compile(regex *r, const char *where, const char *source, const char *text, size_t n) {
    int code;
    PCRE2_SIZE at;
    pcre2_compile_context *cc = pcre2_compile_context_create(NULL);
    CHECK(cc, "out of memory");
    pcre2_set_newline(cc, PCRE2_NEWLINE_LF);
    r->code = pcre2_compile((PCRE2_SPTR)text, n, PCRE2_UTF | PCRE2_UCP | PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C,
                            &code, &at, cc);
    pcre2_compile_context_free(cc);
    if (r->code) {
        pcre2_jit_compile(r->code, PCRE2_JIT_COMPLETE); /* refused where there is no JIT: then it is interpreted */
        return 0;
    }
    char message[256];
    pcre2_get_error_message(code, (PCRE2_UCHAR *)message, sizeof message);
    return fail(EXIT_INPUT, "%s: regular expression '%.*s': %s", where, shown(source), source, message);
}

int regex_compile(regex *r, const char *where, const char *pattern, size_t n) {
    r->code = NULL;
    if (n == 0 || n > PATTERN_MAX || memchr(pattern, 0, n))
        return fail(EXIT_INPUT, "%s: a regular expression of %zu bytes, expected 1 to %d without NUL", where, n,
                    PATTERN_MAX);
    char *copy = xcalloc(n + 1, 1);
    memcpy(copy, pattern, n);
    rewriter w = {.where = where, .p = copy, .n = n, .out = xcalloc(n + 4, OUT_PER_BYTE)};
    int rc = rewrite(&w);
    if (!rc) rc = compile(r, where, copy, w.out, w.used);
    free(w.out);
    free(copy);
    return rc;
}

int regex_compile_word(regex *r) {
    static const char word[] = "\\A[\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\x{200c}\\x{200d}]";
    return compile(r, "single_word", word, word, sizeof word - 1);
}

void regex_free(regex *r) { pcre2_code_free(r->code); }

void regex_scratch_init(regex_scratch *s, int64_t text_n) {
    *s = (regex_scratch){.data = pcre2_match_data_create(1, NULL), .context = pcre2_match_context_create(NULL)};
    CHECK(s->data && s->context, "out of memory");
    uint64_t limit = MATCH_LIMIT + 8 * (uint64_t)text_n;
    pcre2_set_match_limit(s->context, limit > UINT32_MAX ? UINT32_MAX : (uint32_t)limit);
}

void regex_scratch_free(regex_scratch *s) {
    pcre2_match_data_free(s->data);
    pcre2_match_context_free(s->context);
    if (s->stack) pcre2_jit_stack_free(s->stack);
}

int regex_find(const regex *r, regex_scratch *s, const char *text, int64_t n, int64_t from, int64_t *begin,
               int64_t *end) {
    int rc = pcre2_match(r->code, (PCRE2_SPTR)text, (PCRE2_SIZE)n, (PCRE2_SIZE)from, PCRE2_NO_UTF_CHECK, s->data,
                         s->context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT && !s->stack) { /* the 32 KiB of the machine stack did not do */
        s->stack = pcre2_jit_stack_create((size_t)64 << 10, JIT_STACK_MAX, NULL);
        CHECK(s->stack, "out of memory");
        pcre2_jit_stack_assign(s->context, NULL, s->stack);
        return regex_find(r, s, text, n, from, begin, end);
    }
    if (rc == PCRE2_ERROR_NOMATCH) return 0;
    if (rc < 0) {
        char message[256];
        pcre2_get_error_message(rc, (PCRE2_UCHAR *)message, sizeof message);
        return fail(EXIT_INPUT,
                    "tokenizer: splitting text at byte %ld of %ld: %s; the pre-tokenizer's pattern is not usable",
                    (long)from, (long)n, message);
    }
    const PCRE2_SIZE *span = pcre2_get_ovector_pointer(s->data);
    *begin = (int64_t)span[0];
    *end = (int64_t)span[1];
    return 1;
}
