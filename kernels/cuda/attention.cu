/* Attention forward: which kernel takes what. Sequences that are decoded (is_split) are split over their keys; flash_merge adds
 * the splits in order. attention_fwd.cuh has the kernels of bf16, attention_f32.cu those of fp32. */
#include "kernels/cuda/attention_fwd.cuh"

/* A block has one head of one split sequence. */
template <class T> static __global__ void __launch_bounds__(THREADS) flash_merge(flash f) {
    const int head = (int)blockIdx.x, seq = (int)blockIdx.y, dim = f.a.dim;
    const seqspan s = span_of(f.a, seq);
    if (!is_split(f, s)) return;
    const int64_t slot = slot_of(f, seq);
    if (slot < f.slot || slot >= f.slot + f.slots) return;
    const int splits = splits_of(s);
    for (int i = 0; i < s.tokens; i++) {
        const float *part = part_at(f, slot + (int64_t)i * splits, head);
        const int64_t next = (int64_t)f.a.heads * (dim + 2), row = s.start + i;
        float top = -INFINITY, l = 0;
        for (int p = 0; p < splits; p++) top = fmaxf(top, part[p * next + dim]);
        for (int p = 0; p < splits; p++) l = fmaf(exp2f(part[p * next + dim] - top), part[p * next + dim + 1], l);
        for (int d = (int)threadIdx.x; d < dim; d += THREADS) {
            float sum = 0;
            for (int p = 0; p < splits; p++) sum = fmaf(exp2f(part[p * next + dim] - top), part[p * next + d], sum);
            store(row_of<T>(f.o, row) + head * dim + d, sum / l);
        }
        if (f.lse && threadIdx.x == 0) f.lse[row * f.a.heads + head] = (top + log2f(l)) * LN2;
    }
}

static void launch_whole(kctx *c, const flash *f) {
    if (f->q.type == F32)
        flash_f32_fwd(c, f);
    else if (f->pages.k)
        flash_pages_fwd(c, f);
    else
        launch_forward<false>(c, f);
}
static void launch_splits(kctx *c, const flash *f, int64_t splits) {
    if (f->q.type == F32)
        flash_f32_fwd_split(c, f, splits);
    else if (f->pages.k)
        flash_pages_fwd_split(c, f, splits);
    else
        launch_forward_split<false>(c, f, splits);
}

/* Sequences in as many groups as their partial results take of the scratch memory. */
static void forward_split(kctx *c, flash f, int64_t keys) {
    const int64_t splits = (keys + SPLIT - 1) / SPLIT;
    const int64_t few = DECODE_TOKENS, each = f.q.rows < few ? f.q.rows : few, most = each * f.a.seqs * splits;
    const int64_t room = (int64_t)(c->scratch_bytes / (sizeof(float) * (size_t)f.a.heads * (size_t)(f.a.dim + 2)));
    f.part = reinterpret_cast<float *>(c->scratch);
    f.slots = room >= most ? most : room - each * splits; /* what begins last ends within the room */
    CHECK(f.slots > 0, "%zu bytes of scratch for %ld keys", c->scratch_bytes, (long)keys);
    for (f.slot = 0; f.slot < most; f.slot += f.slots) {
        launch_splits(c, &f, splits);
        WITH_VALUES(f.q.type, T, LAUNCH((flash_merge<T>), dim3((unsigned)f.a.heads, (unsigned)f.a.seqs), THREADS, 0, c, f));
    }
}

extern "C" void attn_fwd_cuda(kctx *c, mat o, float *lse, mat q, mat k, mat v, const attn *a) {
    if (q.rows == 0) return;
    CHECK(q.type == k.type && k.type == v.type && v.type == o.type, "values of types %d, %d, %d, %d", (int)q.type,
          (int)k.type, (int)v.type, (int)o.type);
    flash f = flash_of(a, q, k, v, o);
    f.lse = lse;
    launch_whole(c, &f);
    if (f.cached) forward_split(c, f, k.rows);
}

extern "C" void attn_pages_cuda(kctx *c, mat o, mat q, const kv_pages *p, const attn *a) {
    if (q.rows == 0) return;
    CHECK(q.type == o.type, "values of types %d, %d", (int)q.type, (int)o.type);
    CHECK(a->dim == p->dim && a->kv_heads == p->heads, "pages of %d heads of %d", p->heads, p->dim);
    CHECK((uintptr_t)p->k % 64 == 0 && (uintptr_t)p->v % 64 == 0 && p->stride % 64 == 0, "pages %ld bytes apart",
          (long)p->stride);
    flash f = flash_of(a, q, mat_none(), mat_none(), o);
    f.wide = a->dim % 8 == 0 && by_eight(q) && by_eight(o);
    f.pages = *p, f.cached = true;
    launch_whole(c, &f);
    forward_split(c, f, (int64_t)p->columns * KV_PAGE);
}
