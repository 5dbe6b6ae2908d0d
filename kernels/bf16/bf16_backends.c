/* The tables "avx512-bf16" and "amx": avx512's, with the products of weights replaced. */
#include "kernels/bf16/bf16.h"

extern const backend backend_avx512bf16, backend_amx;

#define OVERLAY(id, engine)                                                                                            \
    static void weight_fwd_##id(kctx *c, mat y, mat x, const weight *w) { bf16_weight_fwd(&engine, c, y, x, w); }      \
    static void proj_fwd_##id(kctx *c, const proj_fwd_args *p) { bf16_proj_fwd(&engine, c, p); }                       \
    static void weight_bwd_##id(kctx *c, mat dx, mat dy, const weight *w) { bf16_weight_bwd(&engine, c, dx, dy, w); }  \
    static void weight_grad_##id(kctx *c, mat dw, mat dy, mat x) { bf16_weight_grad(&engine, c, dw, dy, x); }          \
    static void head_loss_##id(kctx *c, float *logprob, mat dh, mat h, const weight *w, const int32_t *target) {       \
        bf16_head_loss(&engine, c, logprob, dh, h, w, target);                                                         \
    }
#define REPLACED(id)                                                                                                   \
    .weight_fwd = weight_fwd_##id, .weight_bwd = weight_bwd_##id, .weight_grad = weight_grad_##id,                     \
    .head_loss = head_loss_##id, .proj_fwd = proj_fwd_##id, .proj_bwd = proj_bwd_compose

OVERLAY(avx512bf16, bf16_avx512)
OVERLAY(amx, bf16_amx)

/* kernels.def fills a table, REPLACED then takes rows of it back */
#pragma GCC diagnostic ignored "-Woverride-init"

const backend backend_avx512bf16 = {
    .name = "avx512-bf16",
#define K(name, args) .name = ISA(name),
#include "kernels/kernels.def"
#undef K
    REPLACED(avx512bf16),
};

const backend backend_amx = {
    .name = "amx",
#define K(name, args) .name = ISA(name),
#include "kernels/kernels.def"
#undef K
    REPLACED(amx),
};
