/* Attention backward (Dao 2023, algorithm 2), with p = exp(scale q k - lse), dp = dout v, ds = p (dp - delta) scale,
 * delta = sum over d of dout o:   dq += ds k,   dk += ds^T q,   dv += p^T dout.
 * Two passes that each make scores anew, instead of one that adds to dq from every block: sums have one order and no atomics.
 *
 *   flash_queries  a block has a tile of packed rows and walks the keys they see; dq stays in registers
 *   flash_keys     a block has a tile of keys of one key head and walks the packed rows that see any of them, token by token
 *                  and head by head, so that the sum over the group of query heads is part of the same order
 *
 * p, ds and dout are rounded to bf16 for their products; sums are fp32. Both walk by 16 of the other side at a time within a
 * tile, so that scores take 16 registers. */
#include "kernels/cuda/attention.cuh"

enum { WARPS = 4, THREADS = WARPS * WARP };

/* delta: a warp a row and head */
template <class T> static __global__ void __launch_bounds__(BLOCK) flash_delta(flash f, float *delta) {
    const int64_t all = f.q.rows * f.a.heads, n = (int64_t)blockIdx.x * (BLOCK / WARP) + threadIdx.x / WARP;
    const int lane = (int)threadIdx.x % WARP;
    const int64_t row = n / f.a.heads, column = n % f.a.heads * f.a.dim;
    float sum = 0;
    for (int d = lane; n < all && d < f.a.dim; d += WARP)
        sum = fmaf(row_of<const float>(f.dout, row)[column + d], load(row_of<const T>(f.o, row) + column + d), sum);
    sum = warp_sum(sum);
    if (n < all && lane == 0) delta[n] = sum;
}

/* What a score needs of its row: exp2(scale s - lse), and the keys that the row sees */
typedef struct row_facts {
    float lse, delta;
    seen keys;
} row_facts;

static __device__ __forceinline__ row_facts facts_of(const flash &f, const seqspan &s, int kv_head, int r) {
    row_facts w = {0, 0, seen_by(f, s, r)};
    if (r < s.tokens * f.group) {
        const int64_t at = row_at(f, s, r) * f.a.heads + head_at(f, kv_head, r);
        w.lse = f.lse[at] * LOG2E, w.delta = f.delta[at];
    }
    return w;
}
/* s and dp become p and ds */
static __device__ __forceinline__ void pair_of(const row_facts &w, int key, float scale2, float scale, float &s, float &dp) {
    const float p = key >= w.keys.lo && key < w.keys.hi ? exp2f(fmaf(s, scale2, -w.lse)) : 0.0f;
    s = p, dp = p * (dp - w.delta) * scale;
}

/* to[i][0, DP) = dout of packed row from + i in bf16, zeros behind the end: loads of a thread, in two halves, so that they can
 * be on their way during products. */
template <int DP, int ROWS> struct dout_part {
    static constexpr int UNITS = DP / 4, EACH = (ROWS * UNITS + THREADS - 1) / THREADS;
    float4 v[EACH];
};
template <int DP, int ROWS>
static __device__ __forceinline__ void dout_load(dout_part<DP, ROWS> &p, const flash &f, const seqspan &s, int kv_head,
                                                 int from, bool fours) {
    constexpr int UNITS = dout_part<DP, ROWS>::UNITS;
#pragma unroll
    for (int n = 0; n < dout_part<DP, ROWS>::EACH; n++) {
        const int u = n * THREADS + (int)threadIdx.x, r = from + u / UNITS, d = u % UNITS * 4, dim = f.a.dim;
        p.v[n] = make_float4(0, 0, 0, 0);
        if (u >= ROWS * UNITS || r >= s.tokens * f.group || d >= dim) continue;
        const float *at = row_of<const float>(f.dout, row_at(f, s, r)) + head_at(f, kv_head, r) * dim + d;
        if (fours) {
            p.v[n] = *reinterpret_cast<const float4 *>(at);
        } else {
            p.v[n].x = at[0];
            if (d + 1 < dim) p.v[n].y = at[1];
            if (d + 2 < dim) p.v[n].z = at[2];
            if (d + 3 < dim) p.v[n].w = at[3];
        }
    }
}
template <int DP, int ROWS> static __device__ __forceinline__ void dout_store(bf16 *to, const dout_part<DP, ROWS> &p) {
    constexpr int UNITS = dout_part<DP, ROWS>::UNITS;
#pragma unroll
    for (int n = 0; n < dout_part<DP, ROWS>::EACH; n++) {
        const int u = n * THREADS + (int)threadIdx.x;
        if (u >= ROWS * UNITS) continue;
        *reinterpret_cast<uint2 *>(to + u / UNITS * (DP + LANE_PAD) + u % UNITS * 4) =
            make_uint2(pack_bf16(p.v[n].x, p.v[n].y), pack_bf16(p.v[n].z, p.v[n].w));
    }
}

/* columns 8 n + 2 t and the next of a row of fp32 sums, from accumulators [at, at + 1] */
template <int N>
static __device__ __forceinline__ void add_row(float *to, int dim, bool pairs, const float (&c)[N][4], int at) {
    const int t = (int)threadIdx.x % 4;
#pragma unroll
    for (int n = 0; n < N; n++) {
        const int d = n * 8 + 2 * t;
        if (pairs && d < dim) {
            float2 v = *reinterpret_cast<float2 *>(to + d);
            v.x += c[n][at], v.y += c[n][at + 1];
            *reinterpret_cast<float2 *>(to + d) = v;
        } else {
            if (d < dim) to[d] += c[n][at];
            if (d + 1 < dim) to[d + 1] += c[n][at + 1];
        }
    }
}
static bool by_pairs(mat m, int dim) { return dim % 2 == 0 && m.ld % 2 == 0 && (uintptr_t)m.data % 8 == 0; }

template <int DP> struct queries {
    static constexpr int ROWS = 16 * WARPS, KEYS = DP > 128 ? 16 : 32, STAGES = DP > 128 ? 1 : 2, LD = DP + LANE_PAD;
    static constexpr bool HELD = DP <= 128; /* q and dout in registers, once through the tiles of keys and values */
    static constexpr int BYTES = (2 * STAGES * KEYS + (HELD ? 0 : 2 * ROWS)) * LD * (int)sizeof(bf16);
    static_assert(!HELD || STAGES * KEYS >= ROWS, "the tiles of keys hold q");
};

template <int DP> static __global__ void __launch_bounds__(THREADS, 2) flash_queries(flash f, bool fours, bool pairs) {
    typedef queries<DP> z;
    SHARED(bf16, shared);
    bf16 *kt = shared, *vt = kt + z::STAGES * z::KEYS * z::LD;
    bf16 *qt = z::HELD ? kt : vt + z::STAGES * z::KEYS * z::LD, *dt = z::HELD ? vt : qt + z::ROWS * z::LD;
    int r0;
    const int seq = seq_of_tile(f.a, (int64_t)gridDim.x - 1 - blockIdx.x, f.group, z::ROWS, r0), kv_head = (int)blockIdx.y;
    const seqspan s = span_of(f.a, seq);
    const int rows = s.tokens * f.group;
    if (r0 >= rows) return;
    const int row = (int)threadIdx.x / WARP * 16, lane = (int)threadIdx.x % WARP, r = r0 + row + lane / 4;
    const int begin = seen_by(f, s, r0).lo / z::KEYS * z::KEYS, end = seen_by(f, s, min(r0 + z::ROWS, rows) - 1).hi;
    unsigned q[z::HELD ? DP / 16 : 1][4], dout[z::HELD ? DP / 16 : 1][4];
    queries_begin<DP, z::ROWS, THREADS>(qt, f, s, kv_head, r0);
    cp_async_commit();
#pragma unroll 1
    for (int i = 0; i < z::ROWS; i += 16) { /* few registers at a time */
        dout_part<DP, 16> part;
        dout_load(part, f, s, kv_head, r0 + i, fours);
        dout_store(dt + i * z::LD, part);
    }
    if constexpr (z::HELD) {
        cp_async_wait<0>();
        __syncthreads();
#pragma unroll
        for (int k = 0; k < DP / 16; k++) operand_a<z::LD>(q[k], qt, row, k * 16), operand_a<z::LD>(dout[k], dt, row, k * 16);
        __syncthreads();
    }
    const row_facts wa = facts_of(f, s, kv_head, r), wb = facts_of(f, s, kv_head, r + 8);
    const float scale = f.a.scale, scale2 = scale * LOG2E;
    float dq[DP / 8][4] = {};
    keys_begin<DP, z::KEYS, THREADS>(kt, f, f.k, s, kv_head, begin);
    keys_begin<DP, z::KEYS, THREADS>(vt, f, f.v, s, kv_head, begin);
    cp_async_commit();
    int stage = 0;
    for (int j = begin; j < end; j += z::KEYS) {
        const bf16 *keys = kt + stage * z::KEYS * z::LD, *values = vt + stage * z::KEYS * z::LD;
        cp_async_wait<0>();
        __syncthreads(); /* this tile is there, and nobody reads the other stage */
        if (z::STAGES == 2 && j + z::KEYS < end) {
            stage ^= 1;
            keys_begin<DP, z::KEYS, THREADS>(kt + stage * z::KEYS * z::LD, f, f.k, s, kv_head, j + z::KEYS);
            keys_begin<DP, z::KEYS, THREADS>(vt + stage * z::KEYS * z::LD, f, f.v, s, kv_head, j + z::KEYS);
        }
        cp_async_commit();
#pragma unroll
        for (int n = 0; n < z::KEYS; n += 16) {
            float p[2][4] = {}, ds[2][4] = {};
#pragma unroll
            for (int k = 0; k < DP / 16; k++) {
                unsigned b[4];
                if constexpr (!z::HELD) operand_a<z::LD>(q[0], qt, row, k * 16), operand_a<z::LD>(dout[0], dt, row, k * 16);
                operand_b<z::LD>(b, keys, n, k * 16);
                mma_pair(p[0], p[1], q[z::HELD ? k : 0], b);
                operand_b<z::LD>(b, values, n, k * 16);
                mma_pair(ds[0], ds[1], dout[z::HELD ? k : 0], b);
            }
#pragma unroll
            for (int i = 0; i < 2; i++)
#pragma unroll
                for (int e = 0; e < 4; e++)
                    pair_of(e < 2 ? wa : wb, j + n + i * 8 + lane % 4 * 2 + e % 2, scale2, scale, p[i][e], ds[i][e]);
            unsigned a[4];
            operand_of(a, ds[0], ds[1]);
#pragma unroll
            for (int d = 0; d < DP; d += 16) {
                unsigned b[4];
                operand_b_across<z::LD>(b, keys, d, n);
                mma_pair(dq[d / 8], dq[d / 8 + 1], a, b);
            }
        }
        if (z::STAGES == 1 && j + z::KEYS < end) {
            __syncthreads();
            keys_begin<DP, z::KEYS, THREADS>(kt, f, f.k, s, kv_head, j + z::KEYS);
            keys_begin<DP, z::KEYS, THREADS>(vt, f, f.v, s, kv_head, j + z::KEYS);
            cp_async_commit();
        }
    }
    if (r < rows) add_row(row_of<float>(f.dq, row_at(f, s, r)) + head_at(f, kv_head, r) * f.a.dim, f.a.dim, pairs, dq, 0);
    r0 = r + 8;
    if (r0 < rows) add_row(row_of<float>(f.dq, row_at(f, s, r0)) + head_at(f, kv_head, r0) * f.a.dim, f.a.dim, pairs, dq, 2);
}

/* PARTS: dk and dv of DP / PARTS columns a block, where all of them are more than the registers hold */
template <int DP> struct keys {
    static constexpr int KEYS = 16 * WARPS, ROWS = 16, STAGES = DP <= 96 ? 2 : 1, PARTS = DP > 128 ? 2 : 1;
    static constexpr int LD = DP + LANE_PAD, OWN = DP / PARTS;
    static constexpr int FACTS = STAGES * ROWS * (int)sizeof(row_facts);
    static constexpr int BYTES = FACTS + (2 * KEYS + 2 * STAGES * ROWS) * LD * (int)sizeof(bf16);
};

template <int DP>
static __device__ __forceinline__ void add_keys(const flash &f, const seqspan &s, int kv_head, int j, mat to, int column,
                                                bool pairs, const float (&c)[keys<DP>::OWN / 8][4], int at) {
    if (!to.data || j >= s.past + s.tokens) return;
    add_row(row_of<float>(to, s.first + j) + kv_head * f.a.dim + column, f.a.dim - column, pairs, c, at);
}

template <int DP> static __global__ void __launch_bounds__(THREADS, 2) flash_keys(flash f, bool fours, bool pairs) {
    typedef keys<DP> z;
    SHARED(row_facts, facts);
    bf16 *kt = reinterpret_cast<bf16 *>(facts + z::STAGES * z::ROWS), *vt = kt + z::KEYS * z::LD;
    bf16 *qt = vt + z::KEYS * z::LD, *dt = qt + z::STAGES * z::ROWS * z::LD;
    int j0, first, last;
    const int seq = seq_of_keys(f, blockIdx.x, z::KEYS, j0), kv_head = (int)blockIdx.y, column = (int)blockIdx.z * z::OWN;
    const seqspan s = span_of(f.a, seq);
    const int all = s.past + s.tokens;
    if (j0 >= all || s.tokens == 0) return;
    rows_seeing(f, s, j0, min(j0 + z::KEYS, all), first, last);
    const int own = (int)threadIdx.x / WARP * 16, lane = (int)threadIdx.x % WARP, j = j0 + own + lane / 4;
    const float scale = f.a.scale, scale2 = scale * LOG2E;
    float dk[z::OWN / 8][4] = {}, dv[z::OWN / 8][4] = {};
    dout_part<DP, z::ROWS> part;
    row_facts fact;
    keys_begin<DP, z::KEYS, THREADS>(kt, f, f.k, s, kv_head, j0);
    keys_begin<DP, z::KEYS, THREADS>(vt, f, f.v, s, kv_head, j0);
    if (first < last) {
        queries_begin<DP, z::ROWS, THREADS>(qt, f, s, kv_head, first);
        dout_load(part, f, s, kv_head, first, fours);
        dout_store(dt, part);
        if (threadIdx.x < z::ROWS) facts[threadIdx.x] = facts_of(f, s, kv_head, first + (int)threadIdx.x);
    }
    cp_async_commit();
    int stage = 0;
    for (int r = first; r < last; r += z::ROWS) {
        const bf16 *q = qt + stage * z::ROWS * z::LD, *dout = dt + stage * z::ROWS * z::LD;
        const row_facts *w = facts + stage * z::ROWS;
        const bool more = r + z::ROWS < last;
        const int next = z::STAGES == 2 ? stage ^ 1 : 0;
        cp_async_wait<0>();
        __syncthreads(); /* these rows are there, and nobody reads the other stage */
        if (z::STAGES == 2 && more) {
            queries_begin<DP, z::ROWS, THREADS>(qt + next * z::ROWS * z::LD, f, s, kv_head, r + z::ROWS);
            dout_load(part, f, s, kv_head, r + z::ROWS, fours);
            if (threadIdx.x < z::ROWS) fact = facts_of(f, s, kv_head, r + z::ROWS + (int)threadIdx.x);
        }
        float p[2][4] = {}, ds[2][4] = {}; /* keys x rows */
#pragma unroll
        for (int k = 0; k < DP / 16; k++) {
            unsigned a[4], b[4];
            operand_a<z::LD>(a, kt, own, k * 16);
            operand_b<z::LD>(b, q, 0, k * 16);
            mma_pair(p[0], p[1], a, b);
            operand_a<z::LD>(a, vt, own, k * 16);
            operand_b<z::LD>(b, dout, 0, k * 16);
            mma_pair(ds[0], ds[1], a, b);
        }
#pragma unroll
        for (int i = 0; i < 2; i++)
#pragma unroll
            for (int e = 0; e < 4; e++)
                pair_of(w[i * 8 + lane % 4 * 2 + e % 2], j + e / 2 * 8, scale2, scale, p[i][e], ds[i][e]);
        unsigned ap[4], as[4];
        operand_of(ap, p[0], p[1]);
        operand_of(as, ds[0], ds[1]);
#pragma unroll
        for (int d = 0; d < z::OWN; d += 16) {
            unsigned b[4];
            operand_b_across<z::LD>(b, dout, column + d, 0);
            mma_pair(dv[d / 8], dv[d / 8 + 1], ap, b);
            operand_b_across<z::LD>(b, q, column + d, 0);
            mma_pair(dk[d / 8], dk[d / 8 + 1], as, b);
        }
        if (z::STAGES == 1) __syncthreads(); /* nobody reads these rows any more */
        if (z::STAGES == 1 && more) { /* what hides this wait is the other block of the multiprocessor */
            queries_begin<DP, z::ROWS, THREADS>(qt, f, s, kv_head, r + z::ROWS);
            dout_load(part, f, s, kv_head, r + z::ROWS, fours);
            if (threadIdx.x < z::ROWS) fact = facts_of(f, s, kv_head, r + z::ROWS + (int)threadIdx.x);
        }
        if (more) {
            dout_store(dt + next * z::ROWS * z::LD, part);
            if (threadIdx.x < z::ROWS) facts[next * z::ROWS + threadIdx.x] = fact;
        }
        cp_async_commit();
        stage = next;
    }
    cp_async_wait<0>();
    add_keys<DP>(f, s, kv_head, j, f.dk, column, pairs, dk, 0);
    add_keys<DP>(f, s, kv_head, j + 8, f.dk, column, pairs, dk, 2);
    add_keys<DP>(f, s, kv_head, j, f.dv, column, pairs, dv, 0);
    add_keys<DP>(f, s, kv_head, j + 8, f.dv, column, pairs, dv, 2);
}

static void launch_bf16(kctx *c, const flash *f) {
    const int dim = f->a.dim;
    const bool fours = dim % 4 == 0 && by_fours(f->dout);
    const unsigned heads = (unsigned)f->a.kv_heads;
    WITH_HEAD(dim, DP, {
        const dim3 rows((unsigned)tiles_of(f->q.rows, f->a.seqs, f->group, queries<DP>::ROWS), heads);
        if (f->dq.data)
            LAUNCH((flash_queries<DP>), rows, THREADS, queries<DP>::BYTES, c, *f, fours, by_pairs(f->dq, dim));
        const dim3 tiles((unsigned)tiles_of(f->k.rows, f->a.seqs, 1, keys<DP>::KEYS), heads, keys<DP>::PARTS);
        const bool pairs = by_pairs(f->dk, dim) && by_pairs(f->dv, dim);
        if (f->dk.data || f->dv.data) LAUNCH((flash_keys<DP>), tiles, THREADS, keys<DP>::BYTES, c, *f, fours, pairs);
    });
}

extern "C" void attn_bwd_cuda(kctx *c, mat dq, mat dk, mat dv, mat dout, mat q, mat k, mat v, mat o, const float *lse,
                              const attn *a) {
    if (q.rows == 0) return;
    CHECK(q.type == k.type && k.type == v.type && v.type == o.type, "values of types %d, %d, %d, %d", (int)q.type,
          (int)k.type, (int)v.type, (int)o.type);
    CHECK(dq.type == F32 && dk.type == F32 && dv.type == F32 && dout.type == F32, "gradients of types %d, %d, %d, %d",
          (int)dq.type, (int)dk.type, (int)dv.type, (int)dout.type);
    const size_t rows = (size_t)q.rows * (size_t)a->heads;
    CHECK(c->scratch_bytes >= rows * sizeof(float), "%zu bytes of scratch for %zu rows", c->scratch_bytes, rows);
    flash f = flash_of(a, q, k, v, o);
    float *delta = reinterpret_cast<float *>(c->scratch);
    f.lse = const_cast<float *>(lse), f.delta = delta;
    f.dout = dout, f.dq = dq, f.dk = dk, f.dv = dv;
    const unsigned blocks = (unsigned)((rows + BLOCK / WARP - 1) / (BLOCK / WARP));
    WITH_VALUES(q.type, T, LAUNCH((flash_delta<T>), blocks, BLOCK, 0, c, f, delta));
    if (q.type == F32)
        flash_f32_bwd(c, &f);
    else
        launch_bf16(c, &f);
}
