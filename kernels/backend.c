/* Which backends exist here, the choice among them, and the one that does nothing. */
#include "kernels/backend.h"
#include "core/error.h"

#include <stdlib.h>
#include <string.h>

extern const backend backend_ref;

typedef struct {
    const backend *be;
    int (*usable)(void);
} candidate;

static int always(void) { return 1; }

/* worst first: "auto" takes the last one that this CPU and its operating system support */
#if defined(__x86_64__)
extern const backend backend_avx2, backend_avx512;
static int has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}
static int has_avx512(void) {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
}
static const candidate candidates[] = {
    {&backend_ref, always}, {&backend_avx2, has_avx2}, {&backend_avx512, has_avx512}};
#else
extern const backend backend_neon;
static const candidate candidates[] = {{&backend_ref, always}, {&backend_neon, always}};
#endif

enum { CANDIDATES = sizeof candidates / sizeof *candidates };

static const char *names[CANDIDATES + 1]; /* written before main only */

__attribute__((constructor)) static void find_backends(void) {
    int n = 0;
    for (int i = 0; i < CANDIDATES; i++)
        if (candidates[i].usable()) names[n++] = candidates[i].be->name;
}

const char *const *backend_names(void) { return names; }

static const backend *best(void) {
    for (int i = CANDIDATES - 1; i > 0; i--)
        if (candidates[i].usable()) return candidates[i].be;
    return &backend_ref;
}

const backend *backend_open(const char *name) {
    const char *from = "", *env = getenv("PEFT_ISA");
    if (!strcmp(name, "auto") && env && *env) name = env, from = "PEFT_ISA: ";
    if (!strcmp(name, "auto")) return best();
    char list[128] = "auto";
    for (int i = 0; i < CANDIDATES; i++) {
        const int found = !strcmp(candidates[i].be->name, name), usable = candidates[i].usable();
        if (found && usable) return candidates[i].be;
        if (found) fail(EXIT_USAGE, "%sthis CPU does not support backend '%s': use auto", from, name);
        if (!usable) continue;
        strncat(list, ", ", sizeof list - strlen(list) - 1);
        strncat(list, candidates[i].be->name, sizeof list - strlen(list) - 1);
    }
    fail(EXIT_USAGE, "%sunknown backend '%s': expected one of %s", from, name, list); /* the first failure is kept */
    return NULL;
}

_Static_assert((ATTN_SCRATCH_FLOATS) * sizeof(float) <= THREAD_SCRATCH, "attention fits the scratch of a thread");

size_t backend_scratch(int threads) {
    CHECK(threads >= 1 && threads <= THREADS_MAX, "%d threads", threads);
    return (size_t)threads * THREAD_SCRATCH;
}

/* the plan's kernels have parameters, some named after a type, and use none */
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wshadow"
#define K(name, args)                                                                                                  \
    static void name##_plan args {}
#include "kernels/kernels.def"
#undef K

const backend backend_plan = {
    .name = "plan",
#define K(name, args) .name = name##_plan,
#include "kernels/kernels.def"
#undef K
};
