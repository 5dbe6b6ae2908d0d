/* NCCL's calls as a table, filled by who is there: the library opened at run time (nccl_library.cu), so that a single
 * GPU needs none, or the stand-in of the emulation. */
#ifndef PEFT_KERNELS_CUDA_NCCL_CUH
#define PEFT_KERNELS_CUDA_NCCL_CUH

#include <cuda_runtime.h>
#include <nccl.h>

typedef struct nccl_calls {
    decltype(&ncclGetUniqueId) id;
    decltype(&ncclCommInitRank) init;
    decltype(&ncclCommDestroy) destroy;
    decltype(&ncclAllReduce) all_reduce;
    decltype(&ncclGroupStart) begin;
    decltype(&ncclGroupEnd) end;
    decltype(&ncclGetErrorString) text;
} nccl_calls;

const nccl_calls *nccl_find(void); /* NULL after fail() */

#endif
