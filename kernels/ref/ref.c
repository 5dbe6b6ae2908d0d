#include "kernels/ref/ref.h"

const backend backend_ref = {
    .name = "ref",
#define K(name, args) .name = name##_ref,
#include "kernels/kernels.def"
#undef K
};
