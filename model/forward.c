/* One forward pass for all families, in training and in inference. */
#include "autograd/ops.h"
#include "core/error.h"
#include "model/model.h"

typedef struct {
    const model *m;
    const layer *l;
    const batch *b;
    const attn *a;
    kv_cache *kv;
    const int32_t *row; /* of the cache, where each row of the batch goes */
    int index;
} layer_ctx;

/* Moves this step's keys and values into the cache and lets attention read everything from there. */
static void through_cache(tape *t, const layer_ctx *c, tensor **k, tensor **v) {
    mat ck = kv_cache_k(c->kv, c->index), cv = kv_cache_v(c->kv, c->index);
    t->k->be->scatter_rows(t->k, ck, (*k)->val, c->row);
    t->k->be->scatter_rows(t->k, cv, (*v)->val, c->row);
    *k = tape_wrap(t, ck, false), *v = tape_wrap(t, cv, false);
}

static tensor *attention_block(tape *t, tensor *x, void *ctx) {
    const layer_ctx *c = ctx;
    const layer *l = c->l;
    tensor *qkv[3];
    tensor *h = op_rmsnorm(t, x, l->norm_in, (float)c->m->hp.norm_eps);
    proj_group(t, l->qkv, 3, h, c->b, qkv);
    tensor *q = qkv[0], *k = qkv[1], *v = qkv[2];
    if (l->norm_q) q = op_head_norm(t, q, l->norm_q, c->a->dim, (float)c->m->hp.norm_eps);
    if (l->norm_k) k = op_head_norm(t, k, l->norm_k, c->a->dim, (float)c->m->hp.norm_eps);
    q = op_rope(t, q, c->b->pos, &c->m->rope), k = op_rope(t, k, c->b->pos, &c->m->rope);
    if (c->kv) through_cache(t, c, &k, &v);
    return proj_residual(t, &l->o, x, op_attention(t, q, k, v, c->a), c->b);
}

static tensor *mlp_block(tape *t, tensor *x, void *ctx) {
    const layer_ctx *c = ctx;
    const layer *l = c->l;
    tensor *gate_up[2];
    tensor *h = op_rmsnorm(t, x, l->norm_mid, (float)c->m->hp.norm_eps);
    proj_group(t, l->gate_up, 2, h, c->b, gate_up);
    return proj_residual(t, &l->down, x, op_glu(t, gate_up[0], gate_up[1], c->m->fam->act), c->b);
}

static const attn *attn_of(tape *t, const model *m, const batch *b, const int32_t *first, int64_t window) {
    const hparams *hp = &m->hp;
    attn *a = tape_host(t, sizeof *a);
    *a = (attn){.heads = (int)hp->heads,
                .kv_heads = (int)hp->kv_heads,
                .dim = (int)hp->head_dim,
                .scale = m->attn_scale,
                .window = (int)window,
                .seqs = b->seqs,
                .start = b->start,
                .past = b->past,
                .first = first ? first : b->start};
    return a;
}

/* Where the batch's keys and values go in the cache. */
static void cache_rows(const batch *b, kv_cache *kv) {
    for (int s = 0; s < b->seqs; s++)
        for (int i = b->start[s]; i < b->start[s + 1]; i++) kv->row[i] = kv->first[s] + b->past[s] + i - b->start[s];
}

tensor *model_forward(tape *t, const model *m, const batch *b, kv_cache *kv) {
    CHECK(!kv || (b->rows <= kv->rows_max && b->seqs <= kv->seqs), "%d rows, %d sequences for the cache", b->rows,
          b->seqs);
    const int32_t *first = NULL, *row = NULL;
    if (kv) {
        cache_rows(b, kv);
        first = tape_put(t, kv->first, (size_t)kv->seqs * sizeof *first);
        row = tape_put(t, kv->row, (size_t)b->rows * sizeof *row);
    }
    b = tape_batch(t, b);
    const attn *whole = attn_of(t, m, b, first, 0);
    const attn *near = m->hp.window ? attn_of(t, m, b, first, m->hp.window) : whole;
    tensor *x = op_embed(t, &m->embed, b->token, b->rows);
    for (int i = 0; i < m->hp.layers; i++) {
        layer_ctx *c = tape_host(t, sizeof *c);
        *c = (layer_ctx){m, &m->layers[i], b, i < m->hp.window_from ? whole : near, kv, row, i};
        x = tape_segment(t, attention_block, c, x, 2 * i >= m->first_trainable);
        x = tape_segment(t, mlp_block, c, x, 2 * i + 1 >= m->first_trainable);
    }
    return x;
}

void model_loss(tape *t, const model *m, tensor *h, const batch *b, int32_t *rows, int32_t *target, float *weight,
                float *logprob, step_sums *sums) {
    int n = 0;
    for (int i = 0; i < b->rows; i++)
        if (b->target[i] >= 0) rows[n] = i, target[n] = b->target[i], weight[n++] = b->weight[i];
    if (!n) return;
    const size_t bytes = (size_t)n * 4; /* of each: int32_t, int32_t, float */
    const int32_t *row = tape_put(t, rows, bytes), *wanted = tape_put(t, target, bytes);
    const float *row_weight = tape_put(t, weight, bytes);
    h = op_rmsnorm(t, op_gather(t, h, row, n), m->norm_out, (float)m->hp.norm_eps);
    op_head_loss(t, &m->head, h, wanted, row_weight, logprob, sums);
}

void model_logits(tape *t, const model *m, tensor *h, const int32_t *rows, int n, mat logits) {
    const int32_t *row = tape_put(t, rows, (size_t)n * sizeof *row);
    h = op_rmsnorm(t, op_gather(t, h, row, n), m->norm_out, (float)m->hp.norm_eps);
    t->k->be->zero(t->k, logits.data, (size_t)(logits.rows * logits.cols) * sizeof(float));
    t->k->be->weight_fwd(t->k, logits, h->val, &m->head);
}
