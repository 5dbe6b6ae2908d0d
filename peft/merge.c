/* delta = (scale * B) A, one chain over r for each element, as the forward pass has it: h = scale * x A^T, y += h B^T.
 */
#include "peft/merge.h"

void lora_delta_rows(kctx *k, const lora *l, int64_t row, mat delta, float *scaled) {
    int64_t r = l->a.rows;
    mat b = mat_rows(mat_f32(l->b.val, l->b.rows, r), row, delta.rows), sb = mat_f32(scaled, delta.rows, r);
    weight a = param_weight(&l->a);
    k->be->scale(k, sb, b, l->scale);
    k->be->zero(k, delta.data, (size_t)(delta.rows * delta.cols) * sizeof(float));
    k->be->weight_bwd(k, delta, sb, &a);
}
