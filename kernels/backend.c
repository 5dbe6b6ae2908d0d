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

extern const backend backend_ref, backend_ref_int8;

/* What a backend's products compute in; "auto" means the canonical fp32, the other modes have a name of their own. */
typedef enum { MODE_F32, MODE_BF16, MODE_INT8, MODES } mode;

static const struct {
    const char *name, *ask, *missing;
} modes[MODES] = {
    [MODE_F32] = {"auto", "nothing", "no backend"},
    [MODE_BF16] =
        {"bf16", "compute_dtype: bf16",
         "this machine has no fast bf16 products (AVX512-BF16, or AMX on Linux 5.16): use compute_dtype: f32"},
    [MODE_INT8] = {"int8", "the fast mode of inference", "no backend with int8 products"},
};

typedef struct {
    const backend *be;
    int (*usable)(void);
    mode mode;
    int (*pays)(void);    /* by name only where it does not */
    const backend *below; /* MODE_INT8: what it lies over */
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
extern const backend backend_avx512bf16, backend_amx, backend_avx2_int8, backend_avx512_int8, backend_avx512vnni_int8;
static int has_avx512bf16(void) { return has_avx512() && __builtin_cpu_supports("avx512bf16"); }
static int has_avx512vnni(void) { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }
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
static const candidate candidates[] = {
    {&backend_ref, always, MODE_F32, always, NULL},
    {&backend_avx2, has_avx2, MODE_F32, always, NULL},
    {&backend_avx512, has_avx512, MODE_F32, always, NULL},
    {&backend_avx512bf16, has_avx512bf16, MODE_BF16, bf16_lanes_pay, NULL},
    {&backend_amx, has_amx, MODE_BF16, always, NULL},
    {&backend_ref_int8, always, MODE_INT8, always, &backend_ref},
    {&backend_avx2_int8, has_avx2, MODE_INT8, always, &backend_avx2},
    {&backend_avx512_int8, has_avx512, MODE_INT8, always, &backend_avx512},
    {&backend_avx512vnni_int8, has_avx512vnni, MODE_INT8, always, &backend_avx512},
};
#else
extern const backend backend_neon, backend_neon_int8;
static const candidate candidates[] = {{&backend_ref, always, MODE_F32, always, NULL},
                                       {&backend_neon, always, MODE_F32, always, NULL},
                                       {&backend_ref_int8, always, MODE_INT8, always, &backend_ref},
                                       {&backend_neon_int8, always, MODE_INT8, always, &backend_neon}};
#endif

enum { CANDIDATES = sizeof candidates / sizeof *candidates };

static const char *names[CANDIDATES + 1]; /* written before main only */

__attribute__((constructor)) static void find_backends(void) {
    int n = 0;
    for (int i = 0; i < CANDIDATES; i++)
        if (candidates[i].mode == MODE_F32 && candidates[i].usable()) names[n++] = candidates[i].be->name;
}

const char *const *backend_names(void) { return names; }

/* the last row of that mode that works here; over `below` when it is not NULL */
static const candidate *best(mode m, const backend *below) {
    for (int i = CANDIDATES - 1; i >= 0; i--) {
        const candidate *c = &candidates[i];
        if (c->mode == m && (!below || c->below == below) && c->pays() && c->usable()) return c;
    }
    fail(EXIT_USAGE, "%s", modes[m].missing);
    return NULL;
}

static const candidate *find(const char *name) {
    for (int i = 0; i < CANDIDATES; i++)
        if (!strcmp(candidates[i].be->name, name)) return &candidates[i];
    return NULL;
}

/* A named backend must compute as the mode says: neither silently replaces the other. An instruction set alone means
 * its integer products in that mode. */
static int agree(const char *from, const candidate **c, mode m) {
    if (!*c || (*c)->mode == m) return 0;
    if (m == MODE_INT8 && (*c)->mode == MODE_F32) return (*c = best(m, (*c)->be)) ? 0 : -1;
    const char *name = (*c)->be->name;
    if (m != MODE_F32)
        return fail(EXIT_USAGE, "%sbackend '%s' has no %s products: use auto", from, name, modes[m].name);
    return fail(EXIT_USAGE, "%sbackend '%s' multiplies in %s: ask for %s", from, name, modes[(*c)->mode].name,
                modes[(*c)->mode].ask);
}

static mode mode_of(const char *name) {
    for (int m = 0; m < MODES; m++)
        if (!strcmp(modes[m].name, name)) return (mode)m;
    return MODES;
}

const char *backend_for(const char *name, const char *compute_dtype) {
    const mode m = mode_of(strcmp(compute_dtype, "f32") ? compute_dtype : "auto");
    const candidate *c = find(name);
    CHECK(m < MODES, "compute_dtype %s", compute_dtype);
    if (!strcmp(name, "auto")) return modes[m].name;
    if (agree("", &c, m)) return NULL;
    return c ? c->be->name : name; /* an unknown name is backend_open's error */
}

/* Backends that are shared objects: plugin.c finds them. */
static const char *const devices[] = {"cuda", "emu", NULL};

bool backend_is_device(const char *name) {
    for (int i = 0; devices[i]; i++)
        if (!strcmp(name, devices[i])) return true;
    return false;
}

const char *backend_fast(const char *name) {
    const candidate *c = find(name);
    if (!strcmp(name, "auto")) return modes[MODE_INT8].name;
    if (!c || c->mode != MODE_F32 || !c->usable()) return name;
    return best(MODE_INT8, c->be)->be->name; /* each of them has one */
}

bool backend_is_int8(const char *name) {
    const candidate *c = find(name);
    return mode_of(name) == MODE_INT8 || (c && c->mode == MODE_INT8);
}

bool backend_reads_rows16(const char *name) {
    const candidate *c = find(name);
    const mode m = c ? c->mode : mode_of(name);
    return m == MODE_INT8 || m == MODE_F32;
}

const backend *backend_open(const char *name) {
    const char *from = "", *env = getenv("PEFT_ISA");
    const mode m = mode_of(name);
    const bool choose = m < MODES;
    const candidate *c;
    if (choose && !(env && *env && strcmp(env, "auto") != 0)) return (c = best(m, NULL)) ? c->be : NULL;
    if (choose) name = env, from = "PEFT_ISA: ";
    if (backend_is_device(name) && !choose) return plugin_open(name);
    c = find(name);
    if (choose && agree(from, &c, m)) return NULL;
    if (c && c->usable()) return c->be;
    if (c) {
        fail(EXIT_USAGE, "%sthis CPU does not support backend '%s': use auto", from, name);
        return NULL;
    }
    char list[160] = "auto";
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
