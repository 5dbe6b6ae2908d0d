/* Fused kernels as the sequence of simple ones that they are defined to equal. */
#include "core/error.h"
#include "kernels/backend.h"

static void zero_mat(kctx *c, mat m) {
    if (m.ld == m.cols) {
        c->be->zero(c, m.data, (size_t)(m.rows * m.cols) * sizeof(float));
        return;
    }
    for (int64_t i = 0; i < m.rows; i++) c->be->zero(c, mat_row(m, i), (size_t)m.cols * sizeof(float));
}

static weight adapter_weight(mat m) {
    CHECK(m.ld == m.cols && m.type == F32, "an adapter's %ldx%ld with gaps", (long)m.rows, (long)m.cols);
    return weight_f32(m.data, m.rows, m.cols);
}

void proj_fwd_compose(kctx *c, const proj_fwd_args *p) {
    for (int i = 0; i < p->n; i++) {
        zero_mat(c, p->y[i]);
        if (p->bias[i]) c->be->add_bias(c, p->y[i], p->bias[i]);
        c->be->weight_fwd(c, p->y[i], p->x, p->w[i]);
        if (!p->h[i].data) continue;
        const weight up = adapter_weight(p->up[i]);
        c->be->weight_fwd(c, p->y[i], p->h[i], &up);
    }
}

void proj_bwd_compose(kctx *c, const proj_bwd_args *p) {
    if (p->fresh) zero_mat(c, p->dx);
    for (int i = 0; i < p->n; i++)
        if (p->dy[i].data) c->be->weight_bwd(c, p->dx, p->dy[i], p->w[i]);
    if (!p->dh.data) return;
    const weight down = adapter_weight(p->down);
    c->be->weight_bwd(c, p->dx, p->dh, &down);
}
