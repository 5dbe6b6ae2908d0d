/* Which backends exist here, the choice among them, and the one that does nothing. */
#include "kernels/backend.h"
#include "core/error.h"
#include "kernels/plugin.h"

#include <omp.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

extern const backend backend_ref;

typedef struct {
    const backend *be;
    int (*usable)(void);
    bool bf16;         /* products in bf16: a mode of its own, never what "auto" takes */
    int (*pays)(void); /* by name only where it does not */
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
extern const backend backend_avx512bf16, backend_amx;
static int has_avx512bf16(void) { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
/* Intel's cores with AVX512-FP16 issue VDPBF16PS every other cycle, half the products of fp32's FMA (measured: 111
 * against 222 GFLOPS); what they have for bf16 is AMX, which a virtual machine may hide. CPUID leaf 7, EDX bit 23. */
static int bf16_lanes_pay(void) {
    unsigned a, b, c, d = 0;
    return !(__builtin_cpu_is("intel") && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 23 & 1));
}
/* The tile registers hold 8 KB that the kernel keeps per thread only for processes that ask. CPUID leaf 7: EDX bit 22
 * is AMX-BF16, bit 24 AMX-TILE; older compilers know no names for them. Asking again does nothing. */
static int has_amx(void) {
    enum { REQUEST_PERMISSION = 0x1023, TILE_DATA = 18 }; /* asm/prctl.h, Linux 5.16 */
    unsigned a, b, c, d = 0;
    return has_avx512bf16() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d >> 22 & 1) && (d >> 24 & 1) &&
           syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}
static const candidate candidates[] = {{&backend_ref, always, false, always},
                                       {&backend_avx2, has_avx2, false, always},
                                       {&backend_avx512, has_avx512, false, always},
                                       {&backend_avx512bf16, has_avx512bf16, true, bf16_lanes_pay},
                                       {&backend_amx, has_amx, true, always}};
#else
extern const backend backend_neon;
static const candidate candidates[] = {{&backend_ref, always, false, always}, {&backend_neon, always, false, always}};
#endif

enum { CANDIDATES = sizeof candidates / sizeof *candidates };

static const char *names[CANDIDATES + 1]; /* written before main only */

__attribute__((constructor)) static void find_backends(void) {
    int n = 0;
    for (int i = 0; i < CANDIDATES; i++)
        if (!candidates[i].bf16 && candidates[i].usable()) names[n++] = candidates[i].be->name;
}

const char *const *backend_names(void) { return names; }

static const backend *best(bool bf16) {
    for (int i = CANDIDATES - 1; i >= 0; i--)
        if (candidates[i].bf16 == bf16 && candidates[i].pays() && candidates[i].usable()) return candidates[i].be;
    fail(EXIT_USAGE,
         "this machine has no fast bf16 products (AVX512-BF16, or AMX on Linux 5.16): use compute_dtype: f32");
    return NULL;
}

static const candidate *find(const char *name) {
    for (int i = 0; i < CANDIDATES; i++)
        if (!strcmp(candidates[i].be->name, name)) return &candidates[i];
    return NULL;
}

/* A named backend must compute as compute_dtype says: neither silently replaces the other. */
static int agree(const char *from, const candidate *c, bool bf16) {
    if (!c || c->bf16 == bf16) return 0;
    if (bf16) return fail(EXIT_USAGE, "%sbackend '%s' has no bf16 products: use auto", from, c->be->name);
    return fail(EXIT_USAGE, "%sbackend '%s' multiplies in bf16: ask for compute_dtype: bf16", from, c->be->name);
}

const char *backend_for(const char *name, const char *compute_dtype) {
    const bool bf16 = !strcmp(compute_dtype, "bf16");
    if (!strcmp(name, "auto")) return bf16 ? "bf16" : "auto";
    return agree("", find(name), bf16) ? NULL : name;
}

/* Backends that are shared objects: plugin.c finds them. */
static const char *const devices[] = {"cuda", "emu", NULL};

bool backend_is_device(const char *name) {
    for (int i = 0; devices[i]; i++)
        if (!strcmp(name, devices[i])) return true;
    return false;
}

const backend *backend_open(const char *name) {
    const char *from = "", *env = getenv("PEFT_ISA");
    const bool bf16 = !strcmp(name, "bf16"), choose = bf16 || !strcmp(name, "auto");
    if (choose && !(env && *env && strcmp(env, "auto") != 0)) return best(bf16);
    if (choose) name = env, from = "PEFT_ISA: ";
    if (backend_is_device(name) && !choose) return plugin_open(name);
    const candidate *c = find(name);
    if (choose && agree(from, c, bf16)) return NULL;
    if (c && c->usable()) return c->be;
    if (c) {
        fail(EXIT_USAGE, "%sthis CPU does not support backend '%s': use auto", from, name);
        return NULL;
    }
    char list[128] = "auto";
    for (int i = 0; i < CANDIDATES; i++) {
        if (!candidates[i].usable()) continue;
        strncat(list, ", ", sizeof list - strlen(list) - 1);
        strncat(list, candidates[i].be->name, sizeof list - strlen(list) - 1);
    }
    fail(EXIT_USAGE, "%sunknown backend '%s': expected one of %s", from, name, list);
    return NULL;
}

_Static_assert((ATTN_SCRATCH_FLOATS) * sizeof(float) <= THREAD_SCRATCH, "attention fits the scratch of a thread");

size_t backend_scratch(int threads) {
    CHECK(threads >= 1 && threads <= THREADS_MAX, "%d threads", threads);
    return (size_t)threads * THREAD_SCRATCH;
}

int kctx_open(kctx *c, const backend *be, int threads) {
    int n = threads ? threads : omp_get_num_procs();
    *c = (kctx){.be = be, .threads = n < THREADS_MAX ? n : THREADS_MAX};
    if (be->open) return be->open(c);
    c->scratch_bytes = (backend_scratch(c->threads) + 63) / 64 * 64;
    c->scratch = aligned_alloc(64, c->scratch_bytes);
    return c->scratch ? 0 : fail(EXIT_MEMORY, "memory for kernel scratch: %zu bytes", c->scratch_bytes);
}

void kctx_close(kctx *c) {
    if (c->mem && c->be->close)
        c->be->close(c);
    else
        free(c->scratch);
    *c = (kctx){0};
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
