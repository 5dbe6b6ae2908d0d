/* UTF-8 as RFC 3629 defines it: shortest forms only, no surrogates, nothing above U+10FFFF.
 * Whole texts are checked by utf8_valid() of core/text.h; this is about characters that may be cut off. */
#ifndef PEFT_DATA_UTF8_H
#define PEFT_DATA_UTF8_H

#include <stdint.h>

/* Length 1-4 of the character at s; 0 when s[0, n) ends inside it; -k when its first k bytes can start no character. */
int utf8_char(const char *s, int64_t n);
int32_t utf8_decode(const char *s, int *len); /* code point of a valid character */
int utf8_encode(int32_t cp, char out[4]);     /* length */

#endif
