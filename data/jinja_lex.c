/* Tokens of a Jinja template, with the whitespace rules of trim_blocks and lstrip_blocks: a block or comment tag takes
 * the blanks before it on its line and the newline after it; - strips all white space, + strips nothing. Newlines are
 * read as \n and one at the end of the template is dropped. */
#include "core/error.h"
#include "core/text.h"
#include "data/jinja_parts.h"
#include "data/utf8.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    jtokens *t;
    const char *s;
    int64_t n, at;
    jinja_pos pos;
    bool line_starts; /* the last tag took its newline along */
} lexer;

static void advance(lexer *x, int64_t to) {
    for (; x->at < to; x->at++) {
        if (x->s[x->at] == '\n')
            x->pos = (jinja_pos){x->pos.line + 1, 1};
        else if ((x->s[x->at] & 0xc0) != 0x80)
            x->pos.col++;
    }
    x->t->mem->pos = x->pos;
}

static jtoken *push(lexer *x, int kind) {
    jtokens *t = x->t;
    if (t->n == t->room) {
        int room = t->room ? 2 * t->room : 256;
        jtoken *more = jinja_alloc(t->mem, (size_t)room * sizeof *more);
        if (t->n) memcpy(more, t->at, (size_t)t->n * sizeof *more);
        t->at = more;
        t->room = room;
    }
    t->at[t->n] = (jtoken){.kind = kind, .pos = x->pos};
    return &t->at[t->n++];
}

static jval string_value(lexer *x, const char *p, int64_t n) {
    return (jval){J_STRING, {.s = jinja_str_new(x->t->mem, p, n, true)}};
}

static bool starts(const lexer *x, int64_t at, const char *word) {
    size_t k = strlen(word);
    return x->n - at >= (int64_t)k && !memcmp(x->s + at, word, k);
}

static int64_t skip_space(const lexer *x, int64_t at) { return at + jinja_strip_left(x->s + at, x->n - at); }

/* The text before a tag at `end`, without what the tag's sign or lstrip_blocks takes. */
static void push_text(lexer *x, int64_t end, char sign, bool lstrip) {
    int64_t n = end - x->at;
    const char *p = x->s + x->at;
    if (sign == '-') {
        n = jinja_strip_right(p, n);
    } else if (sign != '+' && lstrip) {
        int64_t line = n;
        while (line > 0 && p[line - 1] != '\n') line--;
        if ((line > 0 || x->line_starts) && jinja_strip_left(p + line, n - line) == n - line) n = line;
    }
    if (n > 0) push(x, T_TEXT)->value = string_value(x, p, n);
    advance(x, end);
}

/* Bytes of an end tag at `at` with the white space it takes; 0 when there is none. */
static int64_t end_tag(const lexer *x, int64_t at, const char *end, bool trims) {
    char sign = 0;
    int64_t p = at;
    if (p < x->n && (x->s[p] == '-' || (trims && x->s[p] == '+'))) sign = x->s[p++];
    if (!starts(x, p, end)) return 0;
    p += 2;
    if (sign == '-') return skip_space(x, p) - at;
    if (!sign && trims && p < x->n && x->s[p] == '\n') p++;
    return p - at;
}

static void finish_tag(lexer *x, int64_t bytes) {
    advance(x, x->at + bytes);
    x->line_starts = x->s[x->at - 1] == '\n';
}

static int hex_digit(char c) {
    return c >= '0' && c <= '9' ? c - '0' : (c | 32) >= 'a' && (c | 32) <= 'f' ? (c | 32) - 'a' + 10 : -1;
}

/* One escape of Python's string literals at p[0] = '\\'; returns the bytes read and appends to out. */
static int64_t unescape(lexer *x, const char *p, int64_t n, char *out, int64_t *length) {
    static const char from[] = "nrtabfv\\'\"", to[] = "\n\r\t\a\b\f\v\\'\"";
    const char *known = p[1] ? strchr(from, p[1]) : NULL;
    if (known) return out[(*length)++] = to[known - from], 2;
    if (p[1] == '\n') return 2;
    int digits = p[1] == 'x' ? 2 : p[1] == 'u' ? 4 : p[1] == 'U' ? 8 : 0;
    int64_t cp = 0, k = 2;
    if (p[1] >= '0' && p[1] <= '7') {
        for (k = 1; k < n && k < 4 && p[k] >= '0' && p[k] <= '7'; k++) cp = cp * 8 + (p[k] - '0');
    } else if (digits) {
        for (; k < 2 + digits; k++) {
            int d = k < n ? hex_digit(p[k]) : -1;
            if (d < 0) jinja_stop(x->t->mem, "\\%c in a string needs %d hexadecimal digits", p[1], digits);
            cp = cp * 16 + d;
        }
    } else if (p[1] == 'N') {
        jinja_stop(x->t->mem, "\\N{...} in a string is not supported; write the character itself");
    } else {
        out[(*length)++] = '\\';
        return 1;
    }
    if (cp > 0x10ffff || (cp >= 0xd800 && cp < 0xe000))
        jinja_stop(x->t->mem, "escape in a string is no Unicode character (%llx)", (unsigned long long)cp);
    *length += utf8_encode((int32_t)cp, out + *length);
    return k;
}

static void lex_string(lexer *x) {
    const char *p = x->s + x->at;
    int64_t n = x->n - x->at, end = 1;
    while (end < n && p[end] != p[0]) end += p[end] == '\\' ? 2 : 1;
    if (end >= n) jinja_stop(x->t->mem, "string is not closed: expected %c", p[0]);
    char *out = jinja_alloc(x->t->mem, (size_t)end + 4);
    int64_t length = 0;
    for (int64_t i = 1; i < end;) {
        if (p[i] == '\\')
            i += unescape(x, p + i, end - i, out, &length);
        else
            out[length++] = p[i++];
    }
    push(x, T_STRING)->value = (jval){J_STRING, {.s = jinja_str_new(x->t->mem, out, length, false)}};
    advance(x, x->at + end + 1);
}

static bool is_digit(const lexer *x, int64_t at) { return at < x->n && x->s[at] >= '0' && x->s[at] <= '9'; }

static int64_t digits(const lexer *x, int64_t at) {
    while (is_digit(x, at) || (at < x->n && x->s[at] == '_' && is_digit(x, at + 1))) at++;
    return at;
}

static void lex_number(lexer *x) {
    int64_t begin = x->at, end = digits(x, begin);
    bool real = false, after_dot = begin > 0 && x->s[begin - 1] == '.';
    if (!after_dot && end < x->n && x->s[end] == '.' && is_digit(x, end + 1)) {
        real = true;
        end = digits(x, end + 1);
    }
    if (!after_dot && end < x->n && (x->s[end] | 32) == 'e') {
        int64_t e = end + 1;
        if (e < x->n && (x->s[e] == '+' || x->s[e] == '-')) e++;
        if (is_digit(x, e)) {
            real = true;
            end = digits(x, e);
        }
    }
    char text[320];
    size_t k = 0;
    for (int64_t i = begin; i < end; i++) {
        if (x->s[i] == '_') continue;
        if (k + 1 >= sizeof text) jinja_stop(x->t->mem, "number is too long");
        text[k++] = x->s[i];
    }
    text[k] = 0;
    if (!real && k > 1 && text[0] == '0' && strspn(text, "0") != k)
        jinja_stop(x->t->mem, "number %s starts with 0", text);
    if (!real && (k > 19 || (k == 19 && strcmp(text, "9223372036854775807") > 0)))
        jinja_stop(x->t->mem, "integer %.40s does not fit 64 bits", text);
    jval v = real ? j_float(strtod(text, NULL)) : j_int(strtoll(text, NULL, 10));
    push(x, real ? T_FLOAT : T_INT)->value = v;
    advance(x, end);
}

static bool name_byte(char c) {
    return c == '_' || (c & 0x80) || (c >= '0' && c <= '9') || ((c | 32) >= 'a' && (c | 32) <= 'z');
}

static void lex_operator(lexer *x, int *open) {
    static const char two[][3] = {"//", "**", "==", "!=", ">=", "<="};
    char c = x->s[x->at];
    for (size_t i = 0; i < sizeof two / sizeof *two; i++)
        if (starts(x, x->at, two[i])) {
            push(x, OP2(two[i][0], two[i][1]));
            advance(x, x->at + 2);
            return;
        }
    if (!c || !strchr("+-/*%~[](){}=<>.:|,;", c)) jinja_stop(x->t->mem, "unexpected character '%c' in a tag", c);
    if (strchr("[({", c)) ++*open;
    if (strchr("])}", c) && --*open < 0) jinja_stop(x->t->mem, "unexpected '%c': nothing is open", c);
    push(x, OP(c));
    advance(x, x->at + 1);
}

static void lex_tag(lexer *x, bool block) {
    jinja_pos begin = x->pos;
    push(x, block ? T_BLOCK_BEGIN : T_VAR_BEGIN);
    advance(x, x->at + 2);
    if (x->at < x->n && (x->s[x->at] == '-' || x->s[x->at] == '+')) advance(x, x->at + 1);
    int open = 0;
    for (;;) {
        advance(x, skip_space(x, x->at));
        if (x->at >= x->n) {
            x->t->mem->pos = begin;
            jinja_stop(x->t->mem, "tag is not closed: expected %s", block ? "%}" : "}}");
        }
        int64_t end = open ? 0 : end_tag(x, x->at, block ? "%}" : "}}", block);
        char c = x->s[x->at];
        if (end) {
            push(x, block ? T_BLOCK_END : T_VAR_END);
            finish_tag(x, end);
            return;
        }
        if (c == '\'' || c == '"') {
            lex_string(x);
        } else if (is_digit(x, x->at)) {
            lex_number(x);
        } else if (name_byte(c)) {
            int64_t k = x->at;
            while (k < x->n && name_byte(x->s[k])) k++;
            push(x, T_NAME)->value = string_value(x, x->s + x->at, k - x->at);
            advance(x, k);
        } else {
            lex_operator(x, &open);
        }
    }
}

static void lex_comment(lexer *x) {
    for (int64_t p = x->at + 2; p < x->n; p++) {
        bool sign = (x->s[p] == '-' || x->s[p] == '+') && starts(x, p + 1, "#}");
        if (!sign && !starts(x, p, "#}")) continue;
        int64_t k = end_tag(x, p, "#}", true);
        finish_tag(x, p - x->at + k);
        return;
    }
    jinja_stop(x->t->mem, "comment is not closed: expected #}");
}

/* The end of "{%[-+] word [-]%}" at `at`, 0 when something else is there; *sign is the one after {%. */
static int64_t bare_tag(const lexer *x, int64_t at, const char *word, bool trims, char *sign) {
    if (!starts(x, at, "{%")) return 0;
    at += 2;
    *sign = at < x->n && (x->s[at] == '-' || x->s[at] == '+') ? x->s[at] : 0;
    at = skip_space(x, at + (*sign != 0));
    if (!starts(x, at, word)) return 0;
    at = skip_space(x, at + (int64_t)strlen(word));
    int64_t k = end_tag(x, at, "%}", trims);
    return k ? at + k : 0;
}

static void lex_raw(lexer *x, int64_t begin) {
    jinja_pos pos = x->pos;
    finish_tag(x, begin - x->at);
    for (int64_t p = x->at; p < x->n; p++) {
        char sign;
        int64_t end = bare_tag(x, p, "endraw", true, &sign);
        if (!end) continue;
        push_text(x, p, sign, true);
        finish_tag(x, end - p);
        return;
    }
    x->t->mem->pos = pos;
    jinja_stop(x->t->mem, "raw block is not closed: expected {%% endraw %%}");
}

static char *normal_newlines(jinja_mem *m, const char *text, size_t n, int64_t *length) {
    char *s = jinja_alloc(m, n + 1);
    int64_t k = 0;
    for (size_t i = 0; i < n; i++) {
        s[k++] = text[i] == '\r' ? '\n' : text[i];
        if (text[i] == '\r' && i + 1 < n && text[i + 1] == '\n') i++;
    }
    if (k && s[k - 1] == '\n') k--;
    *length = k;
    return s;
}

void jinja_lex(jtokens *t, const char *text, size_t n) {
    lexer x = {.t = t, .pos = {1, 1}, .line_starts = true};
    x.s = normal_newlines(t->mem, text, n, &x.n);
    size_t valid = utf8_valid((const uint8_t *)x.s, (size_t)x.n);
    if (valid != (size_t)x.n) {
        advance(&x, (int64_t)valid);
        jinja_stop(t->mem, "byte 0x%02x is no UTF-8", (unsigned char)x.s[valid]);
    }
    t->mem->pos = x.pos;
    while (x.at < x.n) {
        int64_t p = x.at;
        while (p < x.n && !(x.s[p] == '{' && p + 1 < x.n && strchr("%{#", x.s[p + 1]) && x.s[p + 1])) p++;
        if (p == x.n) {
            push_text(&x, p, '+', false);
            break;
        }
        char sign = p + 2 < x.n ? x.s[p + 2] : 0, raw_sign;
        push_text(&x, p, sign, x.s[p + 1] != '{');
        int64_t raw = bare_tag(&x, x.at, "raw", false, &raw_sign);
        if (raw)
            lex_raw(&x, raw);
        else if (x.s[x.at + 1] == '#')
            lex_comment(&x);
        else
            lex_tag(&x, x.s[x.at + 1] == '%');
    }
    push(&x, T_END);
}
