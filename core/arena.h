/* Arenas: the only memory of a training step. An arena is one mapping, of the host's memory or of a device's (core/
 * memory.h); allocation moves a mark, release moves it back.
 *
 * A planning arena (arena_plan) reserves addresses without memory: the same code that will run is run once on backend
 * "plan", whose kernels do nothing, and `peak` is then exactly what arena_open must be given. */
#ifndef PEFT_CORE_ARENA_H
#define PEFT_CORE_ARENA_H

#include "core/memory.h"

#include <stdbool.h>
#include <stddef.h>

typedef struct arena {
    const char *name; /* for messages; not owned */
    char *base;
    size_t size, used, peak;
    bool planning;
    memory *mem; /* NULL: the host's; else host code does not dereference what is allocated here */
} arena;

#define ARENA_ALIGN 64 /* every allocation starts on a cache line */

int arena_open(arena *a, const char *name, size_t size); /* maps size bytes, zeroed; -1 with EXIT_MEMORY */
void arena_plan(arena *a, const char *name);             /* addresses only; dereferencing them faults */
int arena_open_in(arena *a, memory *mem, const char *name, size_t size); /* arena_open in a device's memory */
void arena_close(arena *a);
void *arena_alloc(arena *a, size_t bytes);          /* never NULL: exceeding the plan is a CHECK; not cleared */
void *arena_array(arena *a, size_t n, size_t each); /* n * each with the product checked */
void arena_put(arena *a, void *to, const void *from, size_t bytes); /* memory_put; nothing while planning */
void arena_get(arena *a, void *to, const void *from, size_t bytes); /* memory_get; nothing while planning */
void *arena_copy(arena *a, const void *from, size_t bytes);         /* arena_alloc and arena_put */
char *arena_string(arena *a, const char *s);                        /* a copy; not for planning arenas */
void arena_release(arena *a, size_t used);                          /* back to an earlier value of a->used */

/* Heap memory for start-up (never inside a step): zeroed, CHECKs on overflow, exits with EXIT_MEMORY when refused. */
void *xcalloc(size_t n, size_t each);
void *xrealloc(void *p, size_t n, size_t each);
char *xstrdup(const char *s);
char *xprintf(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

#endif
