/* test_int8.c once more, for instruction sets that this machine may lack: AVX-512 and NEON through SIMDe. */
#include "kernels/backend.h"

#include <string.h>

#if defined(__x86_64__)
extern const backend backend_avx512_simde_int8, backend_neon_simde_int8, backend_avx512_simde, backend_neon_simde;
#define OVERLAYS "avx512_simde-int8", "neon_simde-int8"
static const backend *overlay(const char *name) {
    return !strcmp(name, "neon_simde-int8") ? &backend_neon_simde_int8 : &backend_avx512_simde_int8;
}
#define EXACTS "avx512_simde", "neon_simde"
static const backend *exact_one(const char *name) {
    return !strcmp(name, "neon_simde") ? &backend_neon_simde : &backend_avx512_simde;
}
#endif

#include "tests/test_int8.c"
