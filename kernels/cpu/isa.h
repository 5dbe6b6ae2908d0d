/* Every file of kernels/cpu is compiled once per instruction set with -DISA_NAME=avx2 (avx512, neon ...) and exports
 * each kernel as NAME_avx2: write `void ISA(rmsnorm_fwd)(kctx *c, ...)`. Helpers shared between files take ISA() too.
 */
#ifndef PEFT_KERNELS_CPU_ISA_H
#define PEFT_KERNELS_CPU_ISA_H

#include "kernels/backend.h"

#ifndef ISA_NAME
#error "kernels/cpu/*.c need -DISA_NAME=... -DISA_..."
#endif

#define ISA_PASTE_(a, b) a##_##b
#define ISA_PASTE(a, b) ISA_PASTE_(a, b)
#define ISA_QUOTE_(a) #a
#define ISA_QUOTE(a) ISA_QUOTE_(a)
#define ISA(name) ISA_PASTE(name, ISA_NAME)

#define K(name, args) void ISA(name) args;
#include "kernels/kernels.def"
#undef K

#endif
