/* The input of a fuzz target as a path: one memory file, rewritten for each run. Build and run (seeds: tests/golden):
 *   clang -g -O1 -fsanitize=fuzzer,address,undefined -I. tests/fuzz/fuzz_gguf.c core/[a-z]*.c -ljansson -lm */
#ifndef PEFT_FUZZ_FILE_H
#define PEFT_FUZZ_FILE_H

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static inline const char *fuzz_path(const uint8_t *data, size_t n) {
    static int fd = -1;
    static char path[32];
    if (fd < 0) {
        fd = memfd_create("input", MFD_CLOEXEC);
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    }
    if (fd < 0 || ftruncate(fd, 0) || (n && pwrite(fd, data, n, 0) != (ssize_t)n)) abort();
    return path;
}

static inline void fuzz_consume(uint64_t v) { /* so that the reads before it are not optimised away */
    static volatile uint64_t sink;
    sink = v;
    (void)sink;
}

/* What a refusal must have: its own code and a text that names the file. */
static inline void fuzz_refused(int code, const char *text, int expected) {
    if (code != expected || !strstr(text, "/proc/self/fd/")) {
        fprintf(stderr, "code %d: '%s'\n", code, text);
        abort();
    }
}

#endif
