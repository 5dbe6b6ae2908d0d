/* Attention forward in bf16 (Dao et al. 2022; Dao 2023 for the order of the loops): o = softmax(scale q k^T) v over the keys that a
 * row sees, with the row's log-sum-exp. A block of four warps has a tile of packed rows and walks the tiles of keys that any
 * of them sees, keeping per row the maximum m, the denominator l and o in registers; exponentials are powers of two.
 *
 *   whole sequences  MW = 4: each warp has 16 rows and all keys of a tile
 *   decode           MW = 1: 16 rows, each warp a quarter of the keys of a tile; a block has one split of SPLIT keys, and
 *                    flash_merge adds the splits in order, so that a row's result follows from its own keys alone
 *
 * Products are bf16 with fp32 sums; p is rounded to bf16, its sum l is not. While scores are made the tile of v is on its
 * way, while v is used the next tile of keys: two barriers a tile. A key that a row does not see counts as exp(-inf) = 0: an
 * infinite v there would show as NaN, while rows behind the last key are read as zeros. */
#ifndef PEFT_KERNELS_CUDA_ATTENTION_FWD_CUH
#define PEFT_KERNELS_CUDA_ATTENTION_FWD_CUH

#include "kernels/cuda/kv_page.cuh"

enum { WARPS = 4, THREADS = WARPS * WARP };

template <int DP, int MW, bool PAGED> struct fwd {
    static constexpr int KW = WARPS / MW, ROWS = 16 * MW, KEYS = DP > 128 && MW == 4 ? 32 : 64, SLICE = KEYS / KW;
    static constexpr int LD = DP + LANE_PAD, KEYS_LD = PAGED ? KEYS + LANE_PAD : LD, KEYS_SIZE = (PAGED ? DP : KEYS) * KEYS_LD;
    static constexpr bool HELD = DP <= 128; /* q in registers, once through the tile of keys */
    static constexpr int BYTES = (KEYS_SIZE + (KEYS + (HELD ? 0 : ROWS)) * LD) * (int)sizeof(bf16);
};
static_assert(SPLIT % 64 == 0, "a tile of keys lies in one split");

/* What a block does */
typedef struct job {
    seqspan s;
    int seq, kv_head, row, last; /* first and last packed row of the tile that exist */
    int begin, end;         /* keys */
    int split, splits;
    int64_t slot;
} job;

template <int MW> static __device__ bool find_job(const flash &f, job &w) {
    constexpr int ROWS = 16 * MW;
    if constexpr (MW == WARPS) { /* the longest rows first */
        w.seq = seq_of_tile(f.a, (int64_t)gridDim.x - 1 - blockIdx.x, f.group, ROWS, w.row);
        w.kv_head = (int)blockIdx.y;
    } else {
        w.seq = (int)blockIdx.z, w.split = (int)blockIdx.x;
        w.kv_head = (int)blockIdx.y % f.a.kv_heads, w.row = (int)blockIdx.y / f.a.kv_heads * ROWS;
    }
    w.s = span_of(f.a, w.seq);
    const int rows = w.s.tokens * f.group;
    if (w.row >= rows || is_split(f, w.s) != (MW != WARPS)) return false;
    w.last = (w.row + ROWS < rows ? w.row + ROWS : rows) - 1;
    w.begin = seen_by(f, w.s, w.row).lo, w.end = seen_by(f, w.s, w.last).hi;
    if constexpr (MW != WARPS) {
        w.splits = splits_of(w.s);
        if (w.split >= w.splits) return false;
        w.slot = slot_of(f, w.seq);
        if (w.slot < f.slot || w.slot >= f.slot + f.slots) return false;
        w.slot += w.split;
        w.begin = max(w.begin, w.split * SPLIT), w.end = min(w.end, (w.split + 1) * SPLIT);
    }
    return true;
}

/* s = scores of 16 rows and SLICE keys as powers of two of `scale`, -inf where a row (g, g + 8) does not see a key */
template <int N>
static __device__ __forceinline__ void mask_scores(float (&s)[N][4], int key, const seen &a, const seen &b) {
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int j = key + n * 8 + e;
            if (j < a.lo || j >= a.hi) s[n][e] = -INFINITY;
            if (j < b.lo || j >= b.hi) s[n][2 + e] = -INFINITY;
        }
}

/* The state of one row in the four lanes that share it: m the same in all, l of their own elements */
typedef struct softmax_row {
    float m, l;
} softmax_row;

/* s[.][at, at + 1] become p = exp2(scale s - m); returns by how much what was summed before shrinks */
template <int N>
static __device__ __forceinline__ float softmax_step(softmax_row &r, float (&s)[N][4], int at, float scale) {
    float top = -INFINITY;
#pragma unroll
    for (int n = 0; n < N; n++) { /* products of their own: what a fused one keeps of 1e30 is more than exp2 can take */
        s[n][at] = __fmul_rn(s[n][at], scale), s[n][at + 1] = __fmul_rn(s[n][at + 1], scale);
        top = fmaxf(top, fmaxf(s[n][at], s[n][at + 1]));
    }
    top = fmaxf(top, __shfl_xor_sync(FULL, top, 1));
    top = fmaxf(top, __shfl_xor_sync(FULL, top, 2));
    const float m = fmaxf(r.m, top), from = m == -INFINITY ? 0.0f : m, shrink = exp2f(r.m - from);
    float sum = 0;
#pragma unroll
    for (int n = 0; n < N; n++)
#pragma unroll
        for (int e = at; e < at + 2; e++) {
            s[n][e] = exp2f(s[n][e] - from);
            sum += s[n][e];
        }
    r.m = m, r.l = fmaf(r.l, shrink, sum);
    return shrink;
}

static __device__ __forceinline__ float quad_sum(float v) {
    v += __shfl_xor_sync(FULL, v, 1);
    return v + __shfl_xor_sync(FULL, v, 2);
}

/* a row of o: N pairs of columns 8 n + 2 t, from accumulators [at, at + 1] */
template <int N>
static __device__ __forceinline__ void write_row(const flash &f, const seqspan &s, int kv_head, int r,
                                                 const float (&o)[N][4], int at, const softmax_row &w) {
    if (r >= s.tokens * f.group) return;
    const int t = (int)threadIdx.x % 4, head = head_at(f, kv_head, r), dim = f.a.dim;
    const int64_t row = row_at(f, s, r);
    const float inv = 1.0f / w.l;
    bf16 *to = row_of<bf16>(f.o, row) + head * dim;
    if (f.lse && t == 0) f.lse[row * f.a.heads + head] = (w.m + log2f(w.l)) * LN2;
#pragma unroll
    for (int n = 0; n < N; n++) {
        const int d = n * 8 + 2 * t;
        const float x = o[n][at] * inv, y = o[n][at + 1] * inv;
        if (f.wide && d + 1 < dim) {
            *reinterpret_cast<unsigned *>(to + d) = pack_bf16(x, y);
        } else {
            if (d < dim) store(to + d, x);
            if (d + 1 < dim) store(to + d + 1, y);
        }
    }
}

/* The four warps' states of 16 rows become one, in the order of the warps, which is that of keys modulo a tile. */
template <int DP>
static __device__ __forceinline__ void write_part(const flash &f, const job &w, float *of, const float (&o)[DP / 8][4],
                                                  const softmax_row &a, const softmax_row &b) {
    constexpr int WIDE = DP + 2;
    const int lane = (int)threadIdx.x % WARP, g = lane / 4, t = lane % 4;
    float *mine = of + (int)threadIdx.x / WARP * 16 * WIDE + g * WIDE;
    __syncthreads();
#pragma unroll
    for (int n = 0; n < DP / 8; n++)
#pragma unroll
        for (int e = 0; e < 2; e++) {
            mine[n * 8 + 2 * t + e] = o[n][e];
            mine[8 * WIDE + n * 8 + 2 * t + e] = o[n][2 + e];
        }
    if (t == 0) mine[DP] = a.m, mine[DP + 1] = a.l, mine[8 * WIDE + DP] = b.m, mine[8 * WIDE + DP + 1] = b.l;
    __syncthreads();
    for (int r = (int)threadIdx.x / WARP; r < 16 && w.row + r <= w.last; r += WARPS) {
        const float *row = of + r * WIDE;
        float top = -INFINITY, l = 0, weight[WARPS];
        for (int i = 0; i < WARPS; i++) top = fmaxf(top, row[i * 16 * WIDE + DP]);
        for (int i = 0; i < WARPS; i++) {
            const float m = row[i * 16 * WIDE + DP];
            weight[i] = m == -INFINITY ? 0.0f : exp2f(m - top);
            l = fmaf(weight[i], row[i * 16 * WIDE + DP + 1], l);
        }
        const int token = (w.row + r) / f.group;
        float *to = part_at(f, w.slot + (int64_t)token * w.splits, head_at(f, w.kv_head, w.row + r));
        for (int d = lane; d < f.a.dim; d += WARP) {
            float sum = 0;
            for (int i = 0; i < WARPS; i++) sum = fmaf(weight[i], row[i * 16 * WIDE + d], sum);
            to[d] = sum;
        }
        if (lane == 0) to[f.a.dim] = top, to[f.a.dim + 1] = l;
    }
}

template <int DP, int MW, bool PAGED>
static __device__ __forceinline__ void begin_keys(bf16 *to, const flash &f, const job &w, int from) {
    typedef fwd<DP, MW, PAGED> z;
    if constexpr (PAGED)
        page_keys_begin<DP, z::KEYS, THREADS>(to, f.pages, w.seq, (int64_t)w.kv_head * f.a.dim, from, w.begin, w.end);
    else
        keys_begin<DP, z::KEYS, THREADS>(to, f, f.k, w.s, w.kv_head, from);
}
template <int DP, int MW, bool PAGED>
static __device__ __forceinline__ void begin_values(bf16 *to, const flash &f, const job &w, int from) {
    typedef fwd<DP, MW, PAGED> z;
    if constexpr (PAGED)
        page_values_begin<DP, z::KEYS, THREADS>(to, f.pages, w.seq, (int64_t)w.kv_head * f.a.dim, from, w.begin, w.end);
    else
        keys_begin<DP, z::KEYS, THREADS>(to, f, f.v, w.s, w.kv_head, from);
}

template <int DP, int MW, bool PAGED> static __global__ void __launch_bounds__(THREADS, 2) flash_forward(flash f) {
    typedef fwd<DP, MW, PAGED> z;
    constexpr int N = z::SLICE / 8;
    SHARED(bf16, shared);
    bf16 *kt = shared, *vt = kt + z::KEYS_SIZE, *qt = z::HELD ? kt : vt + z::KEYS * z::LD;
    job w;
    if (!find_job<MW>(f, w)) return;
    const int warp = (int)threadIdx.x / WARP, lane = (int)threadIdx.x % WARP;
    const int row = warp % MW * 16, slice = warp / MW * z::SLICE; /* in the tiles */
    unsigned q[z::HELD ? DP / 16 : 1][4];
    queries_begin<DP, z::ROWS, THREADS>(qt, f, w.s, w.kv_head, w.row);
    cp_async_commit();
    if constexpr (z::HELD) {
        cp_async_wait<0>();
        __syncthreads();
#pragma unroll
        for (int k = 0; k < DP / 16; k++) operand_a<z::LD>(q[k], qt, row, k * 16);
        __syncthreads();
    }
    const seen a = seen_by(f, w.s, w.row + row + lane / 4), b = seen_by(f, w.s, w.row + row + lane / 4 + 8);
    const int all_lo = seen_by(f, w.s, w.last).lo, all_hi = seen_by(f, w.s, w.row).hi; /* what every row sees */
    const float scale = f.a.scale * LOG2E;
    softmax_row ra = {-INFINITY, 0}, rb = {-INFINITY, 0};
    float o[DP / 8][4] = {};
    int j = w.begin / z::KEYS * z::KEYS;
    if (j < w.end) begin_keys<DP, MW, PAGED>(kt, f, w, j);
    cp_async_commit();
    for (; j < w.end; j += z::KEYS) {
        cp_async_wait<0>();
        __syncthreads(); /* k is there, and nobody reads the last v */
        begin_values<DP, MW, PAGED>(vt, f, w, j);
        cp_async_commit();
        float s[N][4] = {};
#pragma unroll
        for (int k = 0; k < DP / 16; k++) {
            if constexpr (!z::HELD) operand_a<z::LD>(q[0], qt, row, k * 16);
#pragma unroll
            for (int n = 0; n < N; n += 2) {
                unsigned keys[4];
                if constexpr (PAGED)
                    operand_b_across<z::KEYS_LD>(keys, kt, slice + n * 8, k * 16);
                else
                    operand_b<z::LD>(keys, kt, slice + n * 8, k * 16);
                mma_pair(s[n], s[n + 1], q[z::HELD ? k : 0], keys);
            }
        }
        cp_async_wait<0>();
        __syncthreads(); /* v is there, and nobody reads k */
        if (j + z::KEYS < w.end) begin_keys<DP, MW, PAGED>(kt, f, w, j + z::KEYS);
        cp_async_commit();
        if (j < all_lo || j + z::KEYS > all_hi) mask_scores(s, j + slice + lane % 4 * 2, a, b);
        const float ca = softmax_step(ra, s, 0, scale), cb = softmax_step(rb, s, 2, scale);
#pragma unroll
        for (int n = 0; n < DP / 8; n++) o[n][0] *= ca, o[n][1] *= ca, o[n][2] *= cb, o[n][3] *= cb;
#pragma unroll
        for (int k = 0; k < N; k += 2) {
            unsigned p[4];
            operand_of(p, s[k], s[k + 1]);
#pragma unroll
            for (int d = 0; d < DP; d += 16) {
                unsigned values[4];
                operand_b_across<z::LD>(values, vt, d, slice + k * 8);
                mma_pair(o[d / 8], o[d / 8 + 1], p, values);
            }
        }
    }
    cp_async_wait<0>();
    ra.l = quad_sum(ra.l), rb.l = quad_sum(rb.l);
    if constexpr (MW == WARPS) {
        write_row(f, w.s, w.kv_head, w.row + row + lane / 4, o, 0, ra);
        write_row(f, w.s, w.kv_head, w.row + row + lane / 4 + 8, o, 2, rb);
    } else {
        write_part<DP>(f, w, reinterpret_cast<float *>(shared), o, ra, rb);
    }
}

/* whole sequences; splits of sequences that are decoded */
template <bool PAGED> static void launch_forward(kctx *c, const flash *f) {
    WITH_HEAD(f->a.dim, DP, {
        typedef fwd<DP, WARPS, PAGED> z;
        const dim3 grid((unsigned)tiles_of(f->q.rows, f->a.seqs, f->group, z::ROWS), (unsigned)f->a.kv_heads);
        LAUNCH((flash_forward<DP, WARPS, PAGED>), grid, THREADS, z::BYTES, c, *f);
    });
}
template <bool PAGED> static void launch_forward_split(kctx *c, const flash *f, int64_t splits) {
    const unsigned tiles = (unsigned)(DECODE_TOKENS * f->group + 15) / 16;
    WITH_HEAD(f->a.dim, DP, {
        typedef fwd<DP, 1, PAGED> z;
        const dim3 grid((unsigned)splits, (unsigned)f->a.kv_heads * tiles, (unsigned)f->a.seqs);
        LAUNCH((flash_forward<DP, 1, PAGED>), grid, THREADS, z::BYTES, c, *f);
    });
}

#endif
