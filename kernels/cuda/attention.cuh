/* What the attention kernels share. Query rows are packed: row r of a sequence and a key head is token r / group and head
 * r % group of the heads that share the key head, so that a tile of keys serves the whole group. A tile never holds rows of
 * two sequences, and its keys are counted from key 0 of its sequence: what a row computes does not depend on its batch.
 *
 * Tiles of bf16 lie in shared memory in rows of DP + 8 elements (DP: the head size rounded up to an instance). An odd number
 * of 16-byte units a row gives the eight rows of an ldmatrix eight different bank groups, for head sizes (80, 96) that an
 * exclusive-or swizzle does not serve, too. */
#ifndef PEFT_KERNELS_CUDA_ATTENTION_CUH
#define PEFT_KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda/intrin.cuh"

#define LOG2E 1.4426950408889634f
#define LN2 0.6931471805599453f

enum { LANE_PAD = 8 };
enum { DECODE_TOKENS = 8 }; /* a sequence with cached keys and that many new tokens at most is split over its keys */
enum { SPLIT = 256 };       /* keys of a split; borders are multiples of it, counted from key 0 */

/* One call, by value. In the backward pass o is the forward pass' result. */
typedef struct flash {
    attn a;
    mat q, k, v, o;
    float *lse; /* [rows, heads] */
    mat dout, dq, dk, dv;
    const float *delta; /* [rows, heads] sum over d of dout o */
    int group;
    kv_pages pages;    /* where attn_pages has its keys and values */
    bool cached;       /* keys are not the queries' own rows: past counts, short sequences are split */
    bool wide;         /* q, k and v can be copied by 16 bytes */
    float *part;       /* partial results of splits, [slots, heads, dim + 2] */
    int64_t slot, slots; /* of all splits of all rows, those that this launch makes begin in [slot, slot + slots) */
} flash;

/* One sequence as kernels see it */
typedef struct seqspan {
    int64_t start, first; /* row of its first query and key */
    int tokens, past;
} seqspan;

static __device__ __forceinline__ seqspan span_of(const attn &a, int s) {
    const int64_t start = a.start[s];
    return {start, a.first[s], (int)(a.start[s + 1] - start), a.past[s]};
}

static __device__ __forceinline__ bool is_split(const flash &f, const seqspan &s) {
    return f.cached && s.past > 0 && s.tokens <= DECODE_TOKENS;
}

/* Tiles of `size` rows, `each` rows a token, of sequences that lie one after another: sequence s has the tile numbers from
 * start[s] * each / size + s on, at least as many as it needs. Returns the sequence of `tile` and the tile's first row in it,
 * which may lie behind the sequence's end: nothing to do then. */
static __device__ __forceinline__ int seq_of_tile(const attn &a, int64_t tile, int each, int size, int &row) {
    int lo = 0, hi = a.seqs - 1;
    while (lo < hi) {
        const int at = (lo + hi + 1) / 2;
        if ((int64_t)a.start[at] * each / size + at <= tile)
            lo = at;
        else
            hi = at - 1;
    }
    row = (int)(tile - ((int64_t)a.start[lo] * each / size + lo)) * size;
    return lo;
}
static inline int64_t tiles_of(int64_t rows, int seqs, int each, int size) { return rows * each / size + seqs; }

/* The same for tiles of keys: past keys count, and the sequences' key rows need not be in order. */
static __device__ __forceinline__ int seq_of_keys(const flash &f, int64_t tile, int size, int &row) {
    if (!f.cached) return seq_of_tile(f.a, tile, 1, size, row);
    int64_t before = 0;
    int s = 0;
    for (; s < f.a.seqs; s++) {
        const seqspan n = span_of(f.a, s);
        const int64_t tiles = ((int64_t)n.past + n.tokens + size - 1) / size;
        if (tile < before + tiles) break;
        before += tiles;
    }
    if (s == f.a.seqs) s--, before = 0, tile = INT32_MAX / size; /* behind everything */
    row = (int)(tile - before) * size;
    return s;
}

/* keys [lo, hi) that packed row r sees; none for a row behind the end */
typedef struct seen {
    int lo, hi;
} seen;
static __device__ __forceinline__ seen seen_by(const flash &f, const seqspan &s, int r) {
    if (r >= s.tokens * f.group) return {0, 0};
    const int hi = s.past + r / f.group + 1;
    return {f.a.window > 0 && hi > f.a.window ? hi - f.a.window : 0, hi};
}

/* packed rows [first, last) that see one of the keys [from, to) at least; first is 0 .. rows */
static __device__ __forceinline__ void rows_seeing(const flash &f, const seqspan &s, int from, int to, int &first,
                                                   int &last) {
    const int begin = max(from - s.past, 0), end = f.a.window > 0 ? min(s.tokens, to - 1 + f.a.window - s.past) : s.tokens;
    first = begin * f.group, last = end * f.group;
}

static __device__ __forceinline__ int64_t row_at(const flash &f, const seqspan &s, int r) { return s.start + r / f.group; }
static __device__ __forceinline__ int head_at(const flash &f, int kv_head, int r) { return kv_head * f.group + r % f.group; }

/* Rows of a tile: to[i][0, DP) = source row from + i, zeros behind `end` and behind the head's dim. All threads. */
template <int DP, int ROWS, int THREADS, class AT>
static __device__ __forceinline__ void tile_begin(bf16 *to, int from, int end, int dim, bool wide, const bf16 *any, AT at) {
    constexpr int UNITS = DP / 8, LD = DP + LANE_PAD;
    if (wide) {
#pragma unroll
        for (int n = 0; n < (ROWS * UNITS + THREADS - 1) / THREADS; n++) {
            const int u = n * THREADS + (int)threadIdx.x, i = u / UNITS, d = u % UNITS * 8;
            if (ROWS * UNITS % THREADS && u >= ROWS * UNITS) break;
            const bool wanted = from + i < end && d < dim;
            cp_async16(to + i * LD + d, wanted ? at(from + i) + d : any, wanted);
        }
    } else {
        for (int u = (int)threadIdx.x; u < ROWS * DP; u += THREADS) {
            const int i = u / DP, d = u % DP;
            to[i * LD + d] = from + i < end && d < dim ? at(from + i)[d] : __float2bfloat16_rn(0.0f);
        }
    }
}

template <int DP, int ROWS, int THREADS>
static __device__ __forceinline__ void keys_begin(bf16 *to, const flash &f, mat m, const seqspan &s, int kv_head, int from) {
    const bf16 *base = row_of<const bf16>(m, s.first) + kv_head * f.a.dim;
    tile_begin<DP, ROWS, THREADS>(to, from, s.past + s.tokens, f.a.dim, f.wide, base,
                                  [&](int j) { return base + j * m.ld; });
}
template <int DP, int ROWS, int THREADS>
static __device__ __forceinline__ void queries_begin(bf16 *to, const flash &f, const seqspan &s, int kv_head, int from) {
    tile_begin<DP, ROWS, THREADS>(to, from, s.tokens * f.group, f.a.dim, f.wide, (const bf16 *)f.q.data, [&](int r) {
        return row_of<const bf16>(f.q, row_at(f, s, r)) + head_at(f, kv_head, r) * f.a.dim;
    });
}

/* Operands of 16 x 16 elements out of a tile. A: rows x k. B: two tiles of 8 columns; `across` where the tile's rows are k. */
template <int LD> static __device__ __forceinline__ void operand_a(unsigned (&a)[4], const bf16 *tile, int row, int k) {
    const int lane = (int)threadIdx.x % WARP;
    ldmatrix_x4(a, tile + (row + lane % 16) * LD + k + lane / 16 * 8);
}
template <int LD> static __device__ __forceinline__ void operand_b(unsigned (&b)[4], const bf16 *tile, int column, int k) {
    const int lane = (int)threadIdx.x % WARP;
    ldmatrix_x4(b, tile + (column + lane % 8 + lane / 16 * 8) * LD + k + lane / 8 % 2 * 8);
}
template <int LD>
static __device__ __forceinline__ void operand_b_across(unsigned (&b)[4], const bf16 *tile, int column, int k) {
    const int lane = (int)threadIdx.x % WARP;
    ldmatrix_x4_trans(b, tile + (k + lane % 16) * LD + column + lane / 16 * 8);
}
static __device__ __forceinline__ void mma_pair(float (&c0)[4], float (&c1)[4], const unsigned (&a)[4],
                                                const unsigned (&b)[4]) {
    const unsigned lo[2] = {b[0], b[1]}, hi[2] = {b[2], b[3]};
    mma_bf16(c0, a, lo);
    mma_bf16(c1, a, hi);
}
/* two 16 x 8 results as the A of the next product */
static __device__ __forceinline__ void operand_of(unsigned (&a)[4], const float (&c0)[4], const float (&c1)[4]) {
    a[0] = pack_bf16(c0[0], c0[1]), a[1] = pack_bf16(c0[2], c0[3]);
    a[2] = pack_bf16(c1[0], c1[1]), a[3] = pack_bf16(c1[2], c1[3]);
}

/* The statement with the constant DP, the smallest instance that holds a head of dim */
#define WITH_HEAD(dim_, DP, ...)                                                                                       \
    do {                                                                                                               \
        if ((dim_) <= 64) {                                                                                            \
            enum { DP = 64 };                                                                                          \
            __VA_ARGS__;                                                                                               \
        } else if ((dim_) <= 80) {                                                                                     \
            enum { DP = 80 };                                                                                          \
            __VA_ARGS__;                                                                                               \
        } else if ((dim_) <= 96) {                                                                                     \
            enum { DP = 96 };                                                                                          \
            __VA_ARGS__;                                                                                               \
        } else if ((dim_) <= 128) {                                                                                    \
            enum { DP = 128 };                                                                                         \
            __VA_ARGS__;                                                                                               \
        } else if ((dim_) <= 192) {                                                                                    \
            enum { DP = 192 };                                                                                         \
            __VA_ARGS__;                                                                                               \
        } else {                                                                                                       \
            enum { DP = 256 };                                                                                         \
            __VA_ARGS__;                                                                                               \
        }                                                                                                              \
    } while (0)

static inline bool by_eight(mat m) { return m.ld % 8 == 0 && (uintptr_t)m.data % 16 == 0; }
static inline flash flash_of(const attn *a, mat q, mat k, mat v, mat o) {
    CHECK(a->dim <= HEAD_DIM_MAX && a->heads % a->kv_heads == 0 && a->scale > 0, "%d heads of %d", a->heads, a->dim);
    flash f = {};
    f.a = *a, f.q = q, f.k = k, f.v = v, f.o = o, f.group = a->heads / a->kv_heads;
    f.cached = k.rows != q.rows;
    f.wide = a->dim % 8 == 0 && by_eight(q) && by_eight(k) && by_eight(v) && by_eight(o);
    return f;
}

/* attention_f32.cu: the same in fp32 by fused multiply-adds */
void flash_f32_fwd(kctx *c, const flash *f);
void flash_f32_fwd_split(kctx *c, const flash *f, int64_t splits);
/* attention_pages.cu: the kernels of bf16 that read pages */
void flash_pages_fwd(kctx *c, const flash *f);
void flash_pages_fwd_split(kctx *c, const flash *f, int64_t splits);
void flash_f32_bwd(kctx *c, const flash *f);

/* attention.cu: the part of splits that a launch makes, [dim] o, m, l of slot and head */
static __device__ __forceinline__ float *part_at(const flash &f, int64_t slot, int head) {
    return f.part + ((slot - f.slot) * f.a.heads + head) * (f.a.dim + 2);
}
static __device__ __forceinline__ int splits_of(const seqspan &s) { return (s.past + s.tokens + SPLIT - 1) / SPLIT; }
/* Number of splits of all rows of split sequences before s: where those of s begin. Every thread of a warp calls it. */
static __device__ __forceinline__ int64_t slot_of(const flash &f, int s) {
    int64_t n = 0;
    for (int i = (int)threadIdx.x % WARP; i < s; i += WARP) {
        const seqspan e = span_of(f.a, i);
        if (is_split(f, e)) n += (int64_t)e.tokens * splits_of(e);
    }
    return warp_sum(n);
}

#endif
