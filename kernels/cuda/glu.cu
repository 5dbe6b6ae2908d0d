/* Gated linear unit (Shazeer 2020): y = act(gate) up with act(g) = g / (1 + exp(-z)); SiLU: z = g; GELU with tanh, where
 * (1 + tanh u) / 2 is the sigmoid of 2u: z = g (A + B g^2). Backward: dup = dy act(gate), dgate = dy up act'(gate), written
 * (not added), in fp32; they may lie over gate and up where those are fp32 too. */
#include "kernels/cuda/eights.cuh"

#define GELU_A 0x1.988454p+0f /* 2 sqrt(2 / pi) */
#define GELU_B 0x1.2444f2p-4f /* GELU_A * 0.044715 */

/* the short division is 0 for denominators above 2^126, where the sigmoid is below 1e-38 */
static __device__ __forceinline__ float sigmoid(float z) { return __fdividef(1.0f, 1.0f + expf(-z)); }

/* z of the sigmoid and w = g dz/dg */
template <int ACT> static __device__ __forceinline__ void gate_of(float g, float &z, float &w) {
    if constexpr (ACT == ACT_SILU) {
        z = w = g;
    } else {
        z = g * fmaf(GELU_B, g * g, GELU_A);
        w = g * fmaf(3 * GELU_B, g * g, GELU_A);
    }
}

template <class T, int V, int ACT> static __global__ void __launch_bounds__(BLOCK) glu_forward(mat y, mat gate, mat up) {
    for (int64_t i = blockIdx.y; i < y.rows; i += gridDim.y)
        for (int64_t k = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * V; k < y.cols; k += (int64_t)gridDim.x * BLOCK * V) {
            float g[V], u[V];
            take(g, row_of<const T>(gate, i) + k), take(u, row_of<const T>(up, i) + k);
#pragma unroll
            for (int e = 0; e < V; e++) {
                float z, w;
                gate_of<ACT>(g[e], z, w);
                g[e] = g[e] * sigmoid(z) * u[e];
            }
            give(row_of<T>(y, i) + k, g);
        }
}

template <class T, int V, int ACT>
static __global__ void __launch_bounds__(BLOCK) glu_backward(mat dgate, mat dup, mat dy, mat gate, mat up) {
    for (int64_t i = blockIdx.y; i < dy.rows; i += gridDim.y)
        for (int64_t k = ((int64_t)blockIdx.x * BLOCK + threadIdx.x) * V; k < dy.cols; k += (int64_t)gridDim.x * BLOCK * V) {
            float g[V], u[V], d[V], dg[V], du[V];
            take(g, row_of<const T>(gate, i) + k), take(u, row_of<const T>(up, i) + k);
            take(d, row_of<const float>(dy, i) + k);
#pragma unroll
            for (int e = 0; e < V; e++) {
                float z, w;
                gate_of<ACT>(g[e], z, w);
                const float s = sigmoid(z);
                du[e] = d[e] * (g[e] * s);
                dg[e] = (d[e] * u[e]) * (s * fmaf(w, 1.0f - s, 1.0f));
            }
            if (dup.data) give(row_of<float>(dup, i) + k, du);
            if (dgate.data) give(row_of<float>(dgate, i) + k, dg);
        }
}

/* the statement with the constant ACT */
#define WITH_ACT(act, ACT, ...)                                                                                        \
    do {                                                                                                               \
        CHECK((act) == ACT_SILU || (act) == ACT_GELU_TANH, "activation %d", (int)(act));                               \
        if ((act) == ACT_SILU) {                                                                                       \
            enum { ACT = ACT_SILU };                                                                                   \
            __VA_ARGS__;                                                                                               \
        } else {                                                                                                       \
            enum { ACT = ACT_GELU_TANH };                                                                              \
            __VA_ARGS__;                                                                                               \
        }                                                                                                              \
    } while (0)

extern "C" void glu_fwd_cuda(kctx *c, mat y, mat gate, mat up, activation act) {
    if (y.rows == 0) return;
    CHECK(y.type == gate.type && gate.type == up.type, "types %d, %d, %d", (int)y.type, (int)gate.type, (int)up.type);
    const bool wide = eights(y, y.cols) && eights(gate, y.cols) && eights(up, y.cols);
    WITH_VALUES(y.type, T, WITH_ACT(act, ACT, BY_EIGHTS(wide, V, {
                    LAUNCH((glu_forward<T, V, ACT>), grid_for_rows(y.rows, y.cols, V), BLOCK, 0, c, y, gate, up);
                })));
}

extern "C" void glu_bwd_cuda(kctx *c, mat dgate, mat dup, mat dy, mat gate, mat up, activation act) {
    if (dy.rows == 0) return;
    CHECK(gate.type == up.type && dy.type == F32, "types %d, %d, gradient %d", (int)gate.type, (int)up.type, (int)dy.type);
    CHECK(dgate.type == F32 && dup.type == F32, "gradients of types %d and %d", (int)dgate.type, (int)dup.type);
    const bool wide = eights(dy, dy.cols) && eights(gate, dy.cols) && eights(up, dy.cols) && eights(dgate, dy.cols) &&
                      eights(dup, dy.cols);
    WITH_VALUES(gate.type, T, WITH_ACT(act, ACT, BY_EIGHTS(wide, V, {
                    LAUNCH((glu_backward<T, V, ACT>), grid_for_rows(dy.rows, dy.cols, V), BLOCK, 0, c, dgate, dup, dy, gate,
                           up);
                })));
}
