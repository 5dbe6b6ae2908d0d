#include "core/error.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

static _Thread_local struct {
    int code;
    char text[4096];
} failure;

/* Copies src to dst with control bytes as \xNN, so that file content can never steer a terminal. */
static void escape(char *dst, size_t size, const char *src) {
    size_t n = 0;
    for (; *src && n + 5 < size; src++) {
        unsigned char c = (unsigned char)*src;
        if (c < 0x20 || c == 0x7f)
            n += (size_t)snprintf(dst + n, size - n, "\\x%02x", c);
        else
            dst[n++] = (char)c;
    }
    dst[n] = 0;
}

int fail(int code, const char *fmt, ...) {
    if (failure.code) return -1;
    char raw[4096];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(raw, sizeof raw, fmt, ap);
    va_end(ap);
    failure.code = code;
    escape(failure.text, sizeof failure.text, raw);
    return -1;
}

const char *fail_text(void) { return failure.text; }
int fail_code(void) { return failure.code; }

void fail_clear(void) {
    failure.code = 0;
    failure.text[0] = 0;
}

int fail_report(const char *program) {
    int code = failure.code ? failure.code : EXIT_INTERNAL;
    fprintf(stderr, "%s: error: %s\n", program, failure.code ? failure.text : "internal: failed without a reason");
    fail_clear();
    return code;
}

void check_failed(const char *file, int line, const char *cond, const char *fmt, ...) {
    va_list ap;
    fprintf(stderr, "internal error: %s:%d: %s: ", file, line, cond);
    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    exit(EXIT_INTERNAL);
}
