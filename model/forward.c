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
    const int32_t *table, *slot; /* of the cache: pages of the sequences, where each row of the batch goes */
    int index;
} layer_ctx;

/* This step's keys and values go into the cache, and attention reads everything from there. */
static tensor *cached_attention(tape *t, const layer_ctx *c, tensor *q, const tensor *k, const tensor *v) {
    const kv_pages pages = kv_cache_layer(c->kv, c->index, c->table);
    tensor *o = tape_tensor(t, q->val.rows, q->val.cols, false);
    t->k->be->kv_store(t->k, &pages, k->val, v->val, c->slot);
    t->k->be->attn_pages(t->k, o->val, q->val, &pages, c->a);
    return o;
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
    tensor *o = c->kv ? cached_attention(t, c, q, k, v) : op_attention(t, q, k, v, c->a);
    return proj_residual(t, &l->o, x, o, c->b);
}

static tensor *mlp_block(tape *t, tensor *x, void *ctx) {
    const layer_ctx *c = ctx;
    const layer *l = c->l;
    tensor *gate_up[2];
    tensor *h = op_rmsnorm(t, x, l->norm_mid, (float)c->m->hp.norm_eps);
    proj_group(t, l->gate_up, 2, h, c->b, gate_up);
    return proj_residual(t, &l->down, x, op_glu(t, gate_up[0], gate_up[1], c->m->fam->act), c->b);
}

static const attn *attn_of(tape *t, const model *m, const batch *b, int64_t window) {
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
                .first = b->start};
    return a;
}

tensor *model_forward(tape *t, const model *m, const batch *b, kv_cache *kv) {
    CHECK(!kv || !t->recording, "a cache in training%s", "");
    const int32_t *table = NULL, *slot = NULL;
    if (kv) {
        kv_cache_place(kv, b);
        table = tape_put(t, kv->table, (size_t)b->seqs * (size_t)kv->columns * sizeof *table);
        slot = tape_put(t, kv->slot, (size_t)b->rows * sizeof *slot);
    }
    b = tape_batch(t, b);
    const attn *whole = attn_of(t, m, b, 0), *near = m->hp.window ? attn_of(t, m, b, m->hp.window) : whole;
    tensor *x = op_embed(t, &m->embed, b->token, b->rows);
    for (int i = 0; i < m->hp.layers; i++) {
        layer_ctx *c = tape_host(t, sizeof *c);
        *c = (layer_ctx){m, &m->layers[i], b, i < m->hp.window_from ? whole : near, kv, table, slot, i};
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
    tape_scope(t, h);
    h = op_rmsnorm(t, op_gather(t, h, row, n), m->norm_out, (float)m->hp.norm_eps);
    op_head_loss(t, &m->head, h, wanted, row_weight, logprob, sums);
}

void model_logits(tape *t, const model *m, tensor *h, const int32_t *rows, int n, mat logits) {
    const int32_t *row = tape_put(t, rows, (size_t)n * sizeof *row);
    h = op_rmsnorm(t, op_gather(t, h, row, n), m->norm_out, (float)m->hp.norm_eps);
    t->k->be->zero(t->k, logits.data, (size_t)(logits.rows * logits.cols) * sizeof(float));
    t->k->be->weight_fwd(t->k, logits, h->val, &m->head);
}
