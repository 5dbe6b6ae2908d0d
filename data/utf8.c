/* UTF-8 (RFC 3629, Unicode table 3-7): code points, and a decoder for bytes that arrive in pieces. Ill-formed input
 * becomes one U+FFFD per maximal subpart (Unicode 3.9, "best practice"), so the result does not depend on where pieces
 * were cut. */
#include "data/utf8.h"
#include "data/tokenizer.h"

#include <string.h>

/* Valid second bytes depend on the first: E0 and F0 exclude overlong forms, ED surrogates, F4 what lies above U+10FFFF.
 */
static void second_range(unsigned char first, unsigned char *lo, unsigned char *hi) {
    *lo = first == 0xe0 ? 0xa0 : first == 0xf0 ? 0x90 : 0x80;
    *hi = first == 0xed ? 0x9f : first == 0xf4 ? 0x8f : 0xbf;
}

int utf8_char(const char *s, int64_t n) {
    const unsigned char *u = (const unsigned char *)s;
    if (n < 1) return 0;
    if (u[0] < 0x80) return 1;
    if (u[0] < 0xc2 || u[0] > 0xf4) return -1;
    int want = u[0] < 0xe0 ? 2 : u[0] < 0xf0 ? 3 : 4;
    unsigned char lo, hi;
    second_range(u[0], &lo, &hi);
    for (int i = 1; i < want; i++) {
        if (i >= n) return 0;
        if (u[i] < lo || u[i] > hi) return -i;
        lo = 0x80, hi = 0xbf;
    }
    return want;
}

int32_t utf8_decode(const char *s, int *len) {
    const unsigned char *u = (const unsigned char *)s;
    if (u[0] < 0x80) return *len = 1, u[0];
    if (u[0] < 0xe0) return *len = 2, (u[0] & 31) << 6 | (u[1] & 63);
    if (u[0] < 0xf0) return *len = 3, (u[0] & 15) << 12 | (u[1] & 63) << 6 | (u[2] & 63);
    return *len = 4, (u[0] & 7) << 18 | (u[1] & 63) << 12 | (u[2] & 63) << 6 | (u[3] & 63);
}

int utf8_encode(int32_t cp, char out[4]) {
    if (cp < 0x80) return out[0] = (char)cp, 1;
    int n = cp < 0x800 ? 2 : cp < 0x10000 ? 3 : 4;
    for (int i = n - 1; i > 0; i--, cp >>= 6) out[i] = (char)(0x80 | (cp & 63));
    static const unsigned char lead[5] = {0, 0, 0xc0, 0xe0, 0xf0};
    out[0] = (char)(lead[n] | cp);
    return n;
}

static int put_replacement(char *out) {
    out[0] = '\xef', out[1] = '\xbf', out[2] = '\xbd'; /* U+FFFD */
    return 3;
}

/* Moves the decodable part of s[0, n) to out, with replacements; *used is what was consumed (an incomplete end is not).
 */
static int decode_whole(const char *s, int n, char *out, int *used) {
    int i = 0, w = 0;
    while (i < n) {
        int k = utf8_char(s + i, n - i);
        if (k == 0) break;
        if (k < 0) {
            w += put_replacement(out + w);
            i -= k;
            continue;
        }
        memcpy(out + w, s + i, (size_t)k);
        w += k;
        i += k;
    }
    *used = i;
    return w;
}

int utf8_stream_feed(utf8_stream *s, const char *bytes, int n, char *out) {
    int w = 0;
    while (s->n && n > 0) { /* complete the held character byte by byte: at most three rounds */
        s->held[s->n++] = *bytes++;
        n--;
        int used;
        w += decode_whole(s->held, s->n, out + w, &used);
        memmove(s->held, s->held + used, (size_t)(s->n - used));
        s->n -= used;
    }
    int used;
    w += decode_whole(bytes, n, out + w, &used);
    if (used < n) {
        memcpy(s->held, bytes + used, (size_t)(n - used));
        s->n = n - used;
    }
    return w;
}

int utf8_stream_end(utf8_stream *s, char *out) {
    if (!s->n) return 0;
    s->n = 0; /* a held beginning is one maximal subpart */
    return put_replacement(out);
}
