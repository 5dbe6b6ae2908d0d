/* Bytes that claim to be text: UTF-8 by the well-formed table of the Unicode standard (3.9, table 3-7: no overlong
 * forms, no surrogates, nothing above U+10FFFF). */
#ifndef PEFT_CORE_TEXT_H
#define PEFT_CORE_TEXT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

size_t utf8_length(const uint8_t *s,
                   size_t n); /* bytes of the character at s (1 to 4), 0 when it is ill-formed; n > 0 */
size_t utf8_valid(const uint8_t *s, size_t n); /* n when all is well-formed, else the index of the first bad byte */
static inline bool is_blank(uint8_t c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; } /* JSON's */
/* Fit to be a name in logs and files: well-formed, and no control character (C0, DEL, C1) in it. */
bool text_is_name(const void *s, size_t n);

#endif
