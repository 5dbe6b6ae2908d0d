/* The table of this instruction set's kernels: backend_avx2, backend_avx512 ... */
#include "kernels/cpu/isa.h"

extern const backend ISA(backend);

const backend ISA(backend) = {
    .name = ISA_QUOTE(ISA_NAME),
#define K(name, args) .name = ISA(name),
#include "kernels/kernels.def"
#undef K
};
