/* y[i,:] = W[token[i],:] with a frozen W [vocab, dim]: nothing flows back. */
#include "autograd/ops.h"

tensor *op_embed(tape *t, const weight *w, const int32_t *token, int rows) {
    tensor *y = tape_tensor(t, rows, w->cols, false);
    t->k->be->embed_fwd(t->k, y->val, w, token);
    return y;
}
