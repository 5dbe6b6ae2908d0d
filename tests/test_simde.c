/* test_kernels.c once more, for instruction sets that this machine may lack: AVX-512 and NEON through SIMDe against the
 * reference, bit for bit. The same cases, other backends. */
#include "kernels/backend.h"

#include <string.h>

extern const backend backend_ref;
#if defined(__x86_64__)
extern const backend backend_avx512_simde, backend_neon_simde;
static const backend *const foreign[] = {&backend_ref, &backend_avx512_simde, &backend_neon_simde};
#else
static const backend *const foreign[] = {&backend_ref};
#endif

enum { FOREIGN = sizeof foreign / sizeof *foreign };

static const char *const *foreign_names(void) {
    static const char *names[FOREIGN + 1];
    for (int i = 0; i < FOREIGN; i++) names[i] = foreign[i]->name;
    return names;
}

static const backend *foreign_open(const char *name) {
    for (int i = 0; i < FOREIGN; i++)
        if (!strcmp(foreign[i]->name, name)) return foreign[i];
    return NULL;
}

#define backend_names foreign_names
#define backend_open foreign_open
#include "tests/test_kernels.c"
