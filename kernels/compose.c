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

void lora_fwd_compose(kctx *c, const lora_fwd_args *a) {
    for (int j = 0; j < a->items; j++) {
        const lora_item *it = &a->item[j];
        const lora_part *p = it->part;
        const mat h = mat_f32(it->h, it->rows, p->down.cols);
        zero_mat(c, h);
        c->be->weight_bwd(c, h, mat_rows(a->x, it->row, it->rows), &p->down);
        c->be->scale(c, h, h, it->scale);
        for (int i = 0; i < a->n; i++)
            if (p->up[i].rows && a->y[i].data)
                c->be->weight_bwd(c, mat_rows(a->y[i], it->row, it->rows), mat_cols(h, p->at[i], p->up[i].rows),
                                  &p->up[i]);
    }
}
