/* NCCL's library, found when the first communicator is opened. Not part of the emulation, which has its own nccl_find.
 */
#include "kernels/cuda/cuda.h"
#include "kernels/cuda/nccl.cuh"

#include <dlfcn.h>

const nccl_calls *nccl_find(void) {
    static nccl_calls calls;
    static const struct {
        const char *name;
        void **to;
    } names[] = {{"ncclGetUniqueId", (void **)&calls.id},      {"ncclCommInitRank", (void **)&calls.init},
                 {"ncclCommDestroy", (void **)&calls.destroy}, {"ncclAllReduce", (void **)&calls.all_reduce},
                 {"ncclGroupStart", (void **)&calls.begin},    {"ncclGroupEnd", (void **)&calls.end},
                 {"ncclGetErrorString", (void **)&calls.text}};
    void *so = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!so) {
        fail(EXIT_DEVICE, "several ranks on GPUs need NCCL: %s", dlerror());
        return NULL;
    }
    for (const auto &n : names)
        if (!(*n.to = dlsym(so, n.name))) {
            fail(EXIT_DEVICE, "NCCL: %s", dlerror());
            return NULL;
        }
    return &calls;
}
