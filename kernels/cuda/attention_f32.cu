/* Attention in fp32, forward and backward, by fused multiply-adds: for fp32 activations, where exactness is wanted rather than
 * speed, and any head size. A block has 16 packed rows (or, for dk and dv, 16 keys), eight threads each; tiles of the other
 * side go through shared memory. Structure and order as in attention.cu and attention_bwd.cu. */
#include "kernels/cuda/kv_page.cuh"

enum { TILE = 16, LANES = 8, THREADS = TILE * LANES, HERE = TILE / LANES };

template <int DP> struct f32 { /* rows of shared tiles are spread over the banks */
    static constexpr int LD = DP + 4, OWN = DP / LANES;
    static constexpr int BYTES(int tiles) { return (tiles * TILE * LD + 2 * TILE * (TILE + 1) + 4 * TILE) * 4; }
};

/* to[i][d] = row from + i, zeros behind `end` and behind dim */
template <int DP, class AT>
static __device__ __forceinline__ void tile_fill(float *to, int from, int end, int dim, AT at) {
    for (int u = (int)threadIdx.x; u < TILE * DP; u += THREADS) {
        const int i = u / DP, d = u % DP;
        to[i * f32<DP>::LD + d] = from + i < end && d < dim ? at(from + i)[d] : 0.0f;
    }
}
template <int DP>
static __device__ __forceinline__ void keys_fill(float *to, const flash &f, mat m, const seqspan &s, int kv_head, int from) {
    tile_fill<DP>(to, from, s.past + s.tokens, f.a.dim,
                  [&](int j) { return row_of<const float>(m, s.first + j) + kv_head * f.a.dim; });
}
/* the same of keys [lo, hi) in pages */
template <int DP, bool VALUES>
static __device__ __forceinline__ void pages_fill(float *to, const flash &f, int seq, int kv_head, int from, int lo, int hi) {
    for (int u = (int)threadIdx.x; u < TILE * DP; u += THREADS) {
        const int i = u / DP, d = u % DP, key = from + i;
        const int64_t at = (int64_t)kv_head * f.a.dim + d;
        const bool wanted = key >= lo && key < hi && d < f.a.dim;
        const float x = !wanted ? 0 : VALUES ? page_value(f.pages, seq, key, at) : page_key(f.pages, seq, key, at);
        to[i * f32<DP>::LD + d] = x;
    }
}
template <int DP>
static __device__ __forceinline__ void rows_fill(float *to, const flash &f, mat m, const seqspan &s, int kv_head, int from) {
    tile_fill<DP>(to, from, s.tokens * f.group, f.a.dim, [&](int r) {
        return row_of<const float>(m, row_at(f, s, r)) + head_at(f, kv_head, r) * f.a.dim;
    });
}
template <int DP> static __device__ __forceinline__ float dot(const float *a, const float *b) {
    float s = 0;
#pragma unroll 16
    for (int d = 0; d < DP; d++) s = fmaf(a[d], b[d], s);
    return s;
}
static __device__ __forceinline__ float lanes_sum(float v) {
    for (int o = LANES / 2; o; o /= 2) v += __shfl_xor_sync(FULL, v, o);
    return v;
}
static __device__ __forceinline__ float lanes_max(float v) {
    for (int o = LANES / 2; o; o /= 2) v = fmaxf(v, __shfl_xor_sync(FULL, v, o));
    return v;
}

/* SPLITS: the block has the keys of one split and leaves its part */
template <int DP, bool SPLITS, bool PAGED> static __global__ void __launch_bounds__(THREADS, 2) f32_forward(flash f) {
    typedef f32<DP> z;
    SHARED(float, q);
    float *kv = q + TILE * z::LD, *p = kv + TILE * z::LD;
    int r0, seq, kv_head;
    if constexpr (SPLITS) {
        seq = (int)blockIdx.z, kv_head = (int)blockIdx.y % f.a.kv_heads, r0 = (int)blockIdx.y / f.a.kv_heads * TILE;
    } else {
        seq = seq_of_tile(f.a, blockIdx.x, f.group, TILE, r0), kv_head = (int)blockIdx.y;
    }
    const seqspan s = span_of(f.a, seq);
    const int rows = s.tokens * f.group, i = (int)threadIdx.x / LANES, lane = (int)threadIdx.x % LANES, r = r0 + i;
    if (r0 >= rows || is_split(f, s) != SPLITS) return;
    const seen mine = seen_by(f, s, r);
    int begin = seen_by(f, s, r0).lo, end = seen_by(f, s, min(r0 + TILE, rows) - 1).hi;
    int64_t slot = 0;
    if constexpr (SPLITS) {
        const int split = (int)blockIdx.x, splits = splits_of(s);
        if (split >= splits) return;
        slot = slot_of(f, seq);
        if (slot < f.slot || slot >= f.slot + f.slots) return;
        slot += (int64_t)(r / f.group) * splits + split;
        begin = max(begin, split * SPLIT), end = min(end, (split + 1) * SPLIT);
    }
    float o[z::OWN] = {}, m = -INFINITY, l = 0;
    rows_fill<DP>(q, f, f.q, s, kv_head, r0);
    for (int j = begin / TILE * TILE; j < end; j += TILE) {
        if constexpr (PAGED)
            pages_fill<DP, false>(kv, f, seq, kv_head, j, begin, end);
        else
            keys_fill<DP>(kv, f, f.k, s, kv_head, j);
        __syncthreads();
        float x[HERE], top = m;
#pragma unroll
        for (int e = 0; e < HERE; e++) {
            const int n = j + lane + e * LANES;
            x[e] = f.a.scale * dot<DP>(q + i * z::LD, kv + (lane + e * LANES) * z::LD);
            if (n < mine.lo || n >= mine.hi) x[e] = -INFINITY;
            top = fmaxf(top, x[e]);
        }
        top = lanes_max(top);
        const float from = top == -INFINITY ? 0.0f : top, shrink = expf(m - from);
        float sum = 0;
#pragma unroll
        for (int e = 0; e < HERE; e++) {
            x[e] = expf(x[e] - from), sum += x[e];
            p[i * (TILE + 1) + lane + e * LANES] = x[e];
        }
        m = top, l = fmaf(l, shrink, lanes_sum(sum));
        __syncthreads();
        if constexpr (PAGED)
            pages_fill<DP, true>(kv, f, seq, kv_head, j, begin, end);
        else
            keys_fill<DP>(kv, f, f.v, s, kv_head, j);
        __syncthreads();
        const int from_key = max(mine.lo - j, 0), to_key = min(mine.hi - j, (int)TILE);
#pragma unroll
        for (int d = 0; d < z::OWN; d++) o[d] *= shrink;
        for (int n = from_key; n < to_key; n++) /* unseen keys are left out, as in fp32 on the CPU */
#pragma unroll
            for (int d = 0; d < z::OWN; d++)
                o[d] = fmaf(p[i * (TILE + 1) + n], kv[n * z::LD + lane + d * LANES], o[d]);
        __syncthreads();
    }
    if (r >= rows) return;
    const int head = head_at(f, kv_head, r);
    const int64_t row = row_at(f, s, r);
    float *to = SPLITS ? part_at(f, slot, head) : row_of<float>(f.o, row) + head * f.a.dim;
    const float by = SPLITS ? 1.0f : __fdividef(1.0f, l);
#pragma unroll
    for (int d = 0; d < z::OWN; d++)
        if (lane + d * LANES < f.a.dim) to[lane + d * LANES] = o[d] * by;
    if constexpr (SPLITS) {
        if (lane == 0) to[f.a.dim] = m * LOG2E, to[f.a.dim + 1] = l;
    } else {
        if (lane == 0 && f.lse) f.lse[row * f.a.heads + head] = m + logf(l);
    }
}

/* p and ds = p (dp - delta) scale of row r and key j */
template <int DP>
static __device__ __forceinline__ void pair_of(const flash &f, const seen &w, int key, const float *q, const float *k,
                                               const float *dout, const float *v, float lse, float delta, float &p,
                                               float &ds) {
    p = ds = 0;
    if (key < w.lo || key >= w.hi) return;
    p = expf(f.a.scale * dot<DP>(q, k) - lse);
    ds = p * (dot<DP>(dout, v) - delta) * f.a.scale;
}

template <int DP> static __global__ void __launch_bounds__(THREADS, 2) f32_queries(flash f) {
    typedef f32<DP> z;
    SHARED(float, q);
    float *dout = q + TILE * z::LD, *k = dout + TILE * z::LD, *v = k + TILE * z::LD, *of = v + TILE * z::LD;
    int r0;
    const int seq = seq_of_tile(f.a, blockIdx.x, f.group, TILE, r0), kv_head = (int)blockIdx.y;
    const seqspan s = span_of(f.a, seq);
    const int rows = s.tokens * f.group, i = (int)threadIdx.x / LANES, lane = (int)threadIdx.x % LANES, r = r0 + i;
    if (r0 >= rows) return;
    const seen mine = seen_by(f, s, r);
    const int begin = seen_by(f, s, r0).lo, end = seen_by(f, s, min(r0 + TILE, rows) - 1).hi;
    const int64_t at = r < rows ? row_at(f, s, r) * f.a.heads + head_at(f, kv_head, r) : 0;
    const float lse = r < rows ? f.lse[at] : 0, delta = r < rows ? f.delta[at] : 0;
    float dq[z::OWN] = {};
    rows_fill<DP>(q, f, f.q, s, kv_head, r0);
    rows_fill<DP>(dout, f, f.dout, s, kv_head, r0);
    for (int j = begin / TILE * TILE; j < end; j += TILE) {
        keys_fill<DP>(k, f, f.k, s, kv_head, j);
        keys_fill<DP>(v, f, f.v, s, kv_head, j);
        __syncthreads();
#pragma unroll
        for (int e = 0; e < HERE; e++) {
            const int n = lane + e * LANES;
            float p, ds;
            pair_of<DP>(f, mine, j + n, q + i * z::LD, k + n * z::LD, dout + i * z::LD, v + n * z::LD, lse, delta, p, ds);
            of[i * (TILE + 1) + n] = ds;
        }
        __syncthreads();
        const int from_key = max(mine.lo - j, 0), to_key = min(mine.hi - j, (int)TILE);
        for (int n = from_key; n < to_key; n++)
#pragma unroll
            for (int d = 0; d < z::OWN; d++)
                dq[d] = fmaf(of[i * (TILE + 1) + n], k[n * z::LD + lane + d * LANES], dq[d]);
        __syncthreads();
    }
    if (r >= rows) return;
    float *to = row_of<float>(f.dq, row_at(f, s, r)) + head_at(f, kv_head, r) * f.a.dim;
#pragma unroll
    for (int d = 0; d < z::OWN; d++)
        if (lane + d * LANES < f.a.dim) to[lane + d * LANES] += dq[d];
}

template <int DP> static __global__ void __launch_bounds__(THREADS, 2) f32_keys(flash f) {
    typedef f32<DP> z;
    SHARED(float, k);
    float *v = k + TILE * z::LD, *q = v + TILE * z::LD, *dout = q + TILE * z::LD;
    float *of_p = dout + TILE * z::LD, *of_ds = of_p + TILE * (TILE + 1), *lse = of_ds + TILE * (TILE + 1), *delta = lse + TILE;
    int j0;
    const int seq = seq_of_keys(f, blockIdx.x, TILE, j0), kv_head = (int)blockIdx.y;
    const seqspan s = span_of(f.a, seq);
    const int keys = s.past + s.tokens, i = (int)threadIdx.x / LANES, lane = (int)threadIdx.x % LANES, j = j0 + i;
    if (j0 >= keys || s.tokens == 0) return;
    int first, last; /* packed rows that see any of the keys */
    rows_seeing(f, s, j0, min(j0 + TILE, keys), first, last);
    float dk[z::OWN] = {}, dv[z::OWN] = {};
    keys_fill<DP>(k, f, f.k, s, kv_head, j0);
    keys_fill<DP>(v, f, f.v, s, kv_head, j0);
    for (int r = first; r < last; r += TILE) {
        rows_fill<DP>(q, f, f.q, s, kv_head, r);
        rows_fill<DP>(dout, f, f.dout, s, kv_head, r);
        if (threadIdx.x < TILE && r + (int)threadIdx.x < s.tokens * f.group) {
            const int at = r + (int)threadIdx.x;
            const int64_t to = row_at(f, s, at) * f.a.heads + head_at(f, kv_head, at);
            lse[threadIdx.x] = f.lse[to], delta[threadIdx.x] = f.delta[to];
        }
        __syncthreads();
#pragma unroll
        for (int e = 0; e < HERE; e++) {
            const int n = lane + e * LANES;
            pair_of<DP>(f, seen_by(f, s, r + n), j, q + n * z::LD, k + i * z::LD, dout + n * z::LD, v + i * z::LD, lse[n],
                        delta[n], of_p[i * (TILE + 1) + n], of_ds[i * (TILE + 1) + n]);
        }
        __syncthreads();
        for (int n = 0; n < TILE; n++)
#pragma unroll
            for (int d = 0; d < z::OWN; d++) {
                dk[d] = fmaf(of_ds[i * (TILE + 1) + n], q[n * z::LD + lane + d * LANES], dk[d]);
                dv[d] = fmaf(of_p[i * (TILE + 1) + n], dout[n * z::LD + lane + d * LANES], dv[d]);
            }
        __syncthreads();
    }
    if (j >= keys) return;
    const int64_t row = s.first + j;
    const int column = kv_head * f.a.dim + lane;
#pragma unroll
    for (int d = 0; d < z::OWN; d++) {
        if (lane + d * LANES >= f.a.dim) continue;
        if (f.dk.data) row_of<float>(f.dk, row)[column + d * LANES] += dk[d];
        if (f.dv.data) row_of<float>(f.dv, row)[column + d * LANES] += dv[d];
    }
}

/* the statement with the constant DP */
#define WITH_WIDTH(dim_, DP, ...)                                                                                      \
    do {                                                                                                               \
        if ((dim_) <= 64) {                                                                                            \
            enum { DP = 64 };                                                                                          \
            __VA_ARGS__;                                                                                               \
        } else if ((dim_) <= 128) {                                                                                    \
            enum { DP = 128 };                                                                                         \
            __VA_ARGS__;                                                                                               \
        } else {                                                                                                       \
            enum { DP = 256 };                                                                                         \
            __VA_ARGS__;                                                                                               \
        }                                                                                                              \
    } while (0)

static dim3 tiles(const flash *f, int64_t rows, int each) {
    return dim3((unsigned)tiles_of(rows, f->a.seqs, each, TILE), (unsigned)f->a.kv_heads);
}

template <bool PAGED> static void launch_forward(kctx *c, const flash *f) {
    WITH_WIDTH(f->a.dim, DP, {
        LAUNCH((f32_forward<DP, false, PAGED>), tiles(f, f->q.rows, f->group), THREADS, f32<DP>::BYTES(2), c, *f);
    });
}
template <bool PAGED> static void launch_forward_split(kctx *c, const flash *f, int64_t splits) {
    const unsigned rows = (unsigned)(DECODE_TOKENS * f->group + TILE - 1) / TILE;
    const dim3 grid((unsigned)splits, (unsigned)f->a.kv_heads * rows, (unsigned)f->a.seqs);
    WITH_WIDTH(f->a.dim, DP, { LAUNCH((f32_forward<DP, true, PAGED>), grid, THREADS, f32<DP>::BYTES(2), c, *f); });
}

void flash_f32_fwd(kctx *c, const flash *f) {
    if (f->pages.k)
        launch_forward<true>(c, f);
    else
        launch_forward<false>(c, f);
}
void flash_f32_fwd_split(kctx *c, const flash *f, int64_t splits) {
    if (f->pages.k)
        launch_forward_split<true>(c, f, splits);
    else
        launch_forward_split<false>(c, f, splits);
}

void flash_f32_bwd(kctx *c, const flash *f) {
    WITH_WIDTH(f->a.dim, DP, {
        if (f->dq.data)
            LAUNCH((f32_queries<DP>), tiles(f, f->q.rows, f->group), THREADS, f32<DP>::BYTES(4), c, *f);
        if (f->dk.data || f->dv.data)
            LAUNCH((f32_keys<DP>), tiles(f, f->k.rows, 1), THREADS, f32<DP>::BYTES(4), c, *f);
    });
}
