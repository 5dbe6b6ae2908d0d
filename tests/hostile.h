/* Crafted files for the readers' tests: bytes put together by hand, handed over as a path to a memory file. */
#ifndef PEFT_TESTS_HOSTILE_H
#define PEFT_TESTS_HOSTILE_H

#include "core/arena.h"
#include "core/error.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#if defined(__SANITIZE_ADDRESS__)
#define UNDER_ASAN 1 /* time and memory say nothing then */
#else
#define UNDER_ASAN 0
#endif

typedef struct {
    uint8_t *data;
    size_t n, room;
} bytes;

/* a literal with NULs inside, and its length */
#define LITERAL(s) (s), sizeof(s) - 1

static inline void put(bytes *b, const void *p, size_t n) {
    if (b->n + n > b->room) {
        b->room = (b->n + n) * 2;
        b->data = xrealloc(b->data, b->room, 1);
    }
    if (n) memcpy(b->data + b->n, p, n);
    b->n += n;
}

static inline void put_int(bytes *b, uint64_t v, int size) { /* little endian */
    for (int i = 0; i < size; i++) put(b, &(uint8_t){(uint8_t)(v >> 8 * i)}, 1);
}

static inline void put_text(bytes *b, const char *s) { put(b, s, strlen(s)); }

static inline void put_format(bytes *b, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
static inline void put_format(bytes *b, const char *fmt, ...) {
    char text[256];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    put_text(b, text);
}

static inline void put_fill(bytes *b, uint8_t value, size_t n) {
    uint8_t *p = xcalloc(n, 1);
    memset(p, value, n);
    put(b, p, n);
    free(p);
}

static inline void patch(bytes *b, size_t at, uint64_t v, int size) {
    for (int i = 0; i < size; i++) b->data[at + (size_t)i] = (uint8_t)(v >> 8 * i);
}

static inline void drop(bytes *b) {
    free(b->data);
    *b = (bytes){0};
}

typedef struct {
    int fd;
    char path[32];
} crafted;

static inline crafted crafted_file(const void *data, size_t n) {
    crafted f = {.fd = memfd_create("crafted", MFD_CLOEXEC)};
    assert_true(f.fd >= 0);
    for (size_t done = 0; done < n;) {
        ssize_t r = write(f.fd, (const char *)data + done, n - done);
        assert_true(r > 0);
        done += (size_t)r;
    }
    snprintf(f.path, sizeof f.path, "/proc/self/fd/%d", f.fd);
    return f;
}

/* The last call failed with this code and said each of the given words. */
#define assert_said(code, ...) assert_all_said(code, (const char *const[]){__VA_ARGS__, NULL})

static inline void assert_all_said(int code, const char *const *words) {
    char said[4096];
    int found = fail_code();
    snprintf(said, sizeof said, "%s", fail_text());
    fail_clear(); /* first, so that one failing test does not make the others fail */
    if (found != code) fail_msg("code %d instead of %d: %s", found, code, said);
    for (; *words; words++)
        if (!strstr(said, *words)) fail_msg("'%s' is not in: %s", *words, said);
}

static inline long peak_kib(void) {
    struct rusage r;
    getrusage(RUSAGE_SELF, &r);
    return r.ru_maxrss;
}

static inline double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* A reader under test: opens the file, closes it if that went well, and returns what opening returned. */
typedef int hostile_read(const char *path);

/* Every prefix of a file is refused, and the message names the file. */
static inline void refuse_prefixes(const uint8_t *data, size_t n, hostile_read *read) {
    crafted f = crafted_file(data, n);
    for (size_t k = n; k-- > 0;) {
        assert_int_equal(ftruncate(f.fd, (off_t)k), 0);
        if (!read(f.path)) fail_msg("a prefix of %zu of %zu bytes was read", k, n);
        assert_said(EXIT_INPUT, "/proc/self/fd/");
    }
    close(f.fd);
}

/* Every change of a byte by one of the masks is read or refused, never worse (asan watches). */
static inline void survive_flips(const uint8_t *data, size_t n, const uint8_t *masks, size_t n_masks,
                                 hostile_read *read) {
    crafted f = crafted_file(data, n);
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < n_masks; k++) {
            const uint8_t c = (uint8_t)(data[i] ^ masks[k]);
            assert_int_equal(pwrite(f.fd, &c, 1, (off_t)i), 1);
            if (read(f.path)) assert_int_equal(fail_code(), EXIT_INPUT);
            fail_clear();
            assert_int_equal(pwrite(f.fd, &data[i], 1, (off_t)i), 1);
        }
    close(f.fd);
}

#endif
