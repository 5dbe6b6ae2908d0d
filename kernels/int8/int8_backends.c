/* The table of this instruction set's overlay: the backend below with the product of weights replaced. */
#include "kernels/int8/int8_tile.h"

#define ID ISA_PASTE(ISA(backend), int8)

extern const backend ID;

/* kernels.def fills the table, the last rows are then taken back */
#pragma GCC diagnostic ignored "-Woverride-init"

const backend ID = {
    .name = ISA_QUOTE(ISA_NAME) "-int8",
#define K(name, args) .name = BASE(name),
#include "kernels/kernels.def"
#undef K
    .proj_fwd = ISA(proj_fwd_int8),
    .weight_fwd = ISA(weight_fwd_int8),
};
