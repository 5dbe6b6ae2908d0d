#include "core/arena.h"
#include "core/error.h"

#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* Planning addresses: spans of 16 TiB from 2^52 on, which no process has (x86-64 leaves them out, 64-bit Arm needs bit
 * 55 clear and no more than 2^52), so that nothing is mapped and any access faults. An arena's own place picks its
 * span. */
#define PLAN_SPAN ((size_t)1 << 44)
#define PLAN_BASE ((uintptr_t)1 << 52)
enum { PLAN_SPANS = 7 << 8 };

int arena_open(arena *a, const char *name, size_t size) {
    if (!size) size = ARENA_ALIGN;
    void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) return fail(EXIT_MEMORY, "memory for '%s': %zu bytes: %s", name, size, strerror(errno));
    *a = (arena){.name = name, .base = p, .size = size};
    madvise(p, size, MADV_HUGEPAGE); /* advice only: refusal changes nothing but speed */
    return 0;
}

int arena_open_in(arena *a, memory *mem, const char *name, size_t size) {
    if (!mem) return arena_open(a, name, size);
    size = size ? size : ARENA_ALIGN;
    *a = (arena){.name = name, .base = mem->map(mem, name, size), .size = size, .mem = mem};
    return a->base ? 0 : -1;
}

void arena_plan(arena *a, const char *name) {
    const uintptr_t span = (uintptr_t)a / sizeof(void *) % PLAN_SPANS;
    *a = (arena){.name = name, .base = (char *)(PLAN_BASE + span * PLAN_SPAN), .size = PLAN_SPAN, .planning = true};
}

void arena_close(arena *a) {
    if (a->base && a->mem && !a->planning)
        a->mem->unmap(a->mem, a->base);
    else if (a->base && !a->planning)
        munmap(a->base, a->size);
    *a = (arena){0};
}

void *arena_alloc(arena *a, size_t bytes) {
    CHECK(bytes <= a->size - a->used && bytes <= SIZE_MAX - ARENA_ALIGN, "arena %s: %zu more than %zu of %zu bytes",
          a->name, bytes, a->used, a->size);
    void *p = a->base + a->used;
    size_t step = (bytes + ARENA_ALIGN - 1) / ARENA_ALIGN * ARENA_ALIGN;
    a->used = step > a->size - a->used ? a->size : a->used + step;
    if (a->used > a->peak) a->peak = a->used;
    return p;
}

void *arena_array(arena *a, size_t n, size_t each) {
    size_t bytes;
    CHECK(!__builtin_mul_overflow(n, each, &bytes), "arena %s: %zu x %zu", a->name, n, each);
    return arena_alloc(a, bytes);
}

void arena_put(arena *a, void *to, const void *from, size_t bytes) {
    if (!a->planning) memory_put(a->mem, to, from, bytes);
}

void arena_get(arena *a, void *to, const void *from, size_t bytes) {
    if (!a->planning) memory_get(a->mem, to, from, bytes);
}

void *arena_copy(arena *a, const void *from, size_t bytes) {
    void *p = arena_alloc(a, bytes);
    arena_put(a, p, from, bytes);
    return p;
}

char *arena_string(arena *a, const char *s) {
    size_t n = strlen(s) + 1;
    return memcpy(arena_alloc(a, n), s, n);
}

void arena_release(arena *a, size_t used) {
    CHECK(used <= a->used, "arena %s: release to %zu of %zu", a->name, used, a->used);
    a->used = used;
}

static void out_of_memory(size_t n, size_t each) {
    fail_clear();
    fail(EXIT_MEMORY, "out of memory: %zu x %zu bytes", n, each);
    exit(fail_report("peft"));
}

void *xcalloc(size_t n, size_t each) {
    void *p = calloc(n ? n : 1, each ? each : 1);
    if (!p) out_of_memory(n, each);
    return p;
}

void *xrealloc(void *p, size_t n, size_t each) {
    void *q = reallocarray(p, n ? n : 1, each ? each : 1);
    if (!q) out_of_memory(n, each);
    return q;
}

char *xstrdup(const char *s) {
    size_t n = strlen(s) + 1;
    return memcpy(xcalloc(n, 1), s, n);
}

char *xprintf(const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    char *s = NULL;
    int n = vasprintf(&s, fmt, ap);
    va_end(ap);
    if (n < 0) out_of_memory(1, strlen(fmt));
    return s;
}
