/* Products of a few rows (decoding: 1 to 16 tokens) with a stored weight, bound by reading the weight: y_i = start + x
 * W_i^T + h_i B_i^T for the projections of a group in one launch, W read once and never written out dequantised.
 *
 * A block of 8 warps makes 16 outputs for all tokens. W is A of mma.m16n8k16 (16 outputs), x is B (8 tokens a tile), so
 * a lane's codes go from memory through registers into the product: lane (g, t) = (lane / 4, lane % 4) holds of rows g
 * and g + 8 the elements that x_offset names, four a step; which k a position of the product stands for is free as long
 * as W and x agree. The warps deal the units of k among them, and their sums are added in order. Codes that are small
 * integers are exact in bf16 (128 + q by or-ing bits, less the zero point), and a block's scale multiplies the fp32 sum
 * of its steps, as does NF4's, whose codes are rounded to bf16; a minimum multiplies the sum of x, which a product with
 * ones gives.
 *
 * An output's bits follow from its row of W and its row of x alone: neither the other rows nor their number show. */
#include "kernels/cuda/gemm.cuh"
#include "kernels/cuda/gemv.cuh"
#include "kernels/cuda/intrin.cuh"

enum { WARPS = 8, THREADS = WARPS * WARP, GROUP = 16 /* outputs of a block */ };

/* Codes of both nibbles of a byte as bf16, LUT_COPIES words side by side: with 16 copies two lanes share a bank at
 * most. */
enum { LUT_COPIES = 16, LUT_WORDS = 256 * LUT_COPIES };
typedef struct tables {
    const unsigned *lut; /* NF4 only: + lane % LUT_COPIES */
    const float *map;
} tables;

static __device__ __forceinline__ unsigned minus(unsigned v, unsigned both) {
    __nv_bfloat162 x, y;
    memcpy((void *)&x, &v, sizeof x), memcpy((void *)&y, &both, sizeof y);
    x = __hsub2(x, y);
    memcpy(&v, &x, sizeof v);
    return v;
}

/* nibbles at bits [at, at + 4) and [at + 16, at + 20) less the zero point; 0x4300 is 128, whose last bit is worth 1 */
static __device__ __forceinline__ unsigned nibbles(unsigned w, int at, unsigned zero) {
    return minus((w >> at & 0x000f000fu) | 0x43004300u, zero);
}

static __device__ __forceinline__ unsigned load32(const uint8_t *p) { return load16(p) | load16(p + 2) << 16; }

/* What a lane holds of one row and one unit of k: STEPS products of 16 k, each PER_SCALE of them under one scale. AHEAD: the
 * registers suffice to load the next unit early. */
template <int F> struct unit;
template <> struct unit<FMT_BF16> {
    enum { K = 64, STEPS = 4, PER_SCALE = 4, SPREAD = 0, MINIMUM = 0, AHEAD = 1 };
    uint4 w[2];
};
template <> struct unit<FMT_NF4> {
    enum { K = 64, STEPS = 4, PER_SCALE = 4, SPREAD = 0, MINIMUM = 0, AHEAD = 1 };
    uint2 w;
    float nested;
    int code;
};
template <> struct unit<FMT_Q4_0> {
    enum { K = 64, STEPS = 4, PER_SCALE = 2, SPREAD = 1, MINIMUM = 0, AHEAD = 1 };
    unsigned w[2];
    unsigned d[2];
};
template <> struct unit<FMT_Q8_0> {
    enum { K = 64, STEPS = 4, PER_SCALE = 2, SPREAD = 0, MINIMUM = 0, AHEAD = 1 };
    unsigned w[4];
    unsigned d[2];
};
template <> struct unit<FMT_Q4_K> {
    enum { K = 64, STEPS = 4, PER_SCALE = 2, SPREAD = 1, MINIMUM = 1, AHEAD = 1 };
    uint2 w;
    unsigned d, sub[2]; /* d and dmin; sc | mn << 8 of both sub-blocks */
};
template <> struct unit<FMT_Q6_K> {
    enum { K = 128, STEPS = 8, PER_SCALE = 1, SPREAD = 1, MINIMUM = 0, AHEAD = 0 };
    unsigned low[4], high[2]; /* ql at 4t, 16 + 4t, 32 + 4t, 48 + 4t; qh at 4t, 16 + 4t */
    unsigned d, scale[2];     /* eight bytes of scales */
};

/* Lane t's four elements of a step are k = x_offset + 0, 1, 2, 3 of the unit; as pairs (0, 1), (2, 3), or, where
 * nibbles lie 16 bits apart (SPREAD), (0, 2), (1, 3). */
static __device__ __forceinline__ int x_offset(format<FMT_BF16>, int step, int t) {
    return step / 2 * 32 + t * 8 + step % 2 * 4;
}
static __device__ __forceinline__ int x_offset(format<FMT_NF4>, int step, int t) { return t * 16 + step * 4; }
static __device__ __forceinline__ int x_offset(format<FMT_Q4_0>, int step, int t) { return step * 16 + t * 4; }
static __device__ __forceinline__ int x_offset(format<FMT_Q8_0>, int step, int t) {
    return step / 2 * 32 + t * 8 + step % 2 * 4;
}
static __device__ __forceinline__ int x_offset(format<FMT_Q4_K>, int step, int t) {
    return step / 2 * 32 + t * 8 + step % 2 * 4;
}
static __device__ __forceinline__ int x_offset(format<FMT_Q6_K>, int step, int t) { return step * 16 + t * 4; }

static __device__ __forceinline__ void load_unit(unit<FMT_BF16> &r, const wview &w, int64_t at, int t) {
    const uint4 *p = reinterpret_cast<const uint4 *>(w.data + at * 2) + t;
    r.w[0] = __ldg(p), r.w[1] = __ldg(p + 4);
}
static __device__ __forceinline__ void load_unit(unit<FMT_NF4> &r, const wview &w, int64_t at, int t) {
    r.w = __ldg(reinterpret_cast<const uint2 *>(w.data + at / 2) + t);
    const int64_t b = at >> 6;
    if (w.absmax)
        r.nested = w.absmax[b], r.code = 0;
    else
        r.nested = w.nested[b >> w.nested_shift], r.code = w.code[b];
}
static __device__ __forceinline__ void load_unit(unit<FMT_Q4_0> &r, const wview &w, int64_t at, int t) {
    const uint8_t *p = w.data + at / 32 * 18;
    for (int b = 0; b < 2; b++) r.d[b] = load16(p + 18 * b), r.w[b] = load32(p + 18 * b + 2 + 4 * t);
}
static __device__ __forceinline__ void load_unit(unit<FMT_Q8_0> &r, const wview &w, int64_t at, int t) {
    const uint8_t *p = w.data + at / 32 * 34;
    for (int b = 0; b < 2; b++) {
        r.d[b] = load16(p + 34 * b);
        r.w[2 * b] = load32(p + 34 * b + 2 + 8 * t), r.w[2 * b + 1] = load32(p + 34 * b + 6 + 8 * t);
    }
}
static __device__ __forceinline__ void load_unit(unit<FMT_Q4_K> &r, const wview &w, int64_t at, int t) {
    const uint8_t *p = w.data + at / 256 * 144;
    const int i = (int)(at & 255) / 64;
    r.w = __ldg(reinterpret_cast<const uint2 *>(p + 16 + 32 * i) + t);
    r.d = __ldg(reinterpret_cast<const unsigned *>(p));
    for (int e = 0; e < 2; e++) {
        int sc, mn;
        six_bits(p + 4, 2 * i + e, sc, mn);
        r.sub[e] = (unsigned)(sc | mn << 8);
    }
}
static __device__ __forceinline__ void load_unit(unit<FMT_Q6_K> &r, const wview &w, int64_t at, int t) {
    const uint8_t *p = w.data + at / 256 * 210;
    const int half = (int)(at & 255) / 128;
    for (int e = 0; e < 4; e++) r.low[e] = load32(p + 64 * half + 16 * e + 4 * t);
    for (int e = 0; e < 2; e++) r.high[e] = load32(p + 128 + 32 * half + 16 * e + 4 * t);
    for (int e = 0; e < 2; e++) r.scale[e] = load32(p + 192 + 8 * half + 4 * e);
    r.d = load16(p + 208);
}

/* pair i of a step as two bf16 */
static __device__ __forceinline__ unsigned pair_of(const unit<FMT_BF16> &r, int step, int i, const tables &) {
    const uint4 v = r.w[step / 2];
    return step % 2 ? (i ? v.w : v.z) : (i ? v.y : v.x);
}
static __device__ __forceinline__ unsigned pair_of(const unit<FMT_NF4> &r, int step, int i, const tables &b) {
    const int at = step * 2 + i; /* byte of the lane's eight */
    return b.lut[((at < 4 ? r.w.x : r.w.y) >> at % 4 * 8 & 255) * LUT_COPIES];
}
static __device__ __forceinline__ unsigned pair_of(const unit<FMT_Q4_0> &r, int step, int i, const tables &) {
    return nibbles(r.w[step / 2], step % 2 * 4 + i * 8, 0x43084308u);
}
static __device__ __forceinline__ unsigned pair_of(const unit<FMT_Q8_0> &r, int step, int i, const tables &) {
    const unsigned w = r.w[step] ^ 0x80808080u; /* bytes q + 128 */
    const float q0 = __uint_as_float(0x4b000000u | (w >> 16 * i & 255)) - 8388736.0f;
    const float q1 = __uint_as_float(0x4b000000u | (w >> 16 * i >> 8 & 255)) - 8388736.0f;
    return pack_bf16(q0, q1);
}
static __device__ __forceinline__ unsigned pair_of(const unit<FMT_Q4_K> &r, int step, int i, const tables &) {
    return nibbles(step % 2 ? r.w.y : r.w.x, step / 2 * 4 + i * 8, 0x43004300u);
}
/* step 2 run + half of it: run r takes nibble r / 2 of ql[32 (r % 2) ..] and bits 2r of qh */
static __device__ __forceinline__ unsigned pair_of(const unit<FMT_Q6_K> &r, int step, int i, const tables &) {
    const int run = step / 2, part = step % 2;
    const unsigned low = r.low[run % 2 * 2 + part] >> (run / 2 * 4 + i * 8) & 0x000f000fu;
    const unsigned high = r.high[part] >> (run * 2 + i * 8) & 0x00030003u;
    return minus(low | high << 4 | 0x43004300u, 0x43204320u);
}

/* the scale of steps [PER_SCALE b, ..), and what multiplies the sum of x */
static __device__ __forceinline__ float half_of(unsigned bits) {
    return __half2float(__ushort_as_half((unsigned short)bits));
}
static __device__ __forceinline__ float scale_of(const unit<FMT_BF16> &, int, const tables &, const wview &) {
    return 1;
}
static __device__ __forceinline__ float scale_of(const unit<FMT_NF4> &r, int, const tables &b, const wview &w) {
    return w.absmax ? r.nested : __fadd_rn(__fmul_rn(b.map[r.code], r.nested), w.offset);
}
static __device__ __forceinline__ float scale_of(const unit<FMT_Q4_0> &r, int b, const tables &, const wview &) {
    return half_of(r.d[b]);
}
static __device__ __forceinline__ float scale_of(const unit<FMT_Q8_0> &r, int b, const tables &, const wview &) {
    return half_of(r.d[b]);
}
static __device__ __forceinline__ float scale_of(const unit<FMT_Q4_K> &r, int b, const tables &, const wview &) {
    return half_of(r.d & 0xffff) * (float)(r.sub[b] & 255);
}
static __device__ __forceinline__ float scale_of(const unit<FMT_Q6_K> &r, int b, const tables &, const wview &) {
    return half_of(r.d) * (float)(int8_t)(r.scale[b / 4] >> b % 4 * 8);
}
template <int F> static __device__ __forceinline__ float minimum_of(const unit<F> &, int) { return 0; }
static __device__ __forceinline__ float minimum_of(const unit<FMT_Q4_K> &r, int b) {
    return half_of(r.d >> 16) * (float)(r.sub[b] >> 8);
}

/* c += the products of one unit; g and h are rows g and g + 8 */
template <int F, int NT>
static __device__ __forceinline__ void multiply_unit(float (&c)[NT][4], const unit<F> &g, const unit<F> &h,
                                                     const bf16 *x, int64_t ld, int tokens, const tables &b,
                                                     const wview &w) {
    const int t = (int)threadIdx.x % 4, token = (int)threadIdx.x % WARP / 4;
    const unsigned ones[4] = {0x3f803f80u, 0x3f803f80u, 0x3f803f80u, 0x3f803f80u};
    float part[NT][4] = {}, sum[NT][4] = {};
#pragma unroll
    for (int s = 0; s < unit<F>::STEPS; s++) {
        const unsigned a[4] = {pair_of(g, s, 0, b), pair_of(h, s, 0, b), pair_of(g, s, 1, b), pair_of(h, s, 1, b)};
        const bool last = s % unit<F>::PER_SCALE == unit<F>::PER_SCALE - 1;
        const int block = s / unit<F>::PER_SCALE;
        const float sg = last ? scale_of(g, block, b, w) : 0, sh = last ? scale_of(h, block, b, w) : 0;
#pragma unroll
        for (int n = 0; n < NT; n++) {
            uint2 v = make_uint2(0, 0);
            if (token + 8 * n < tokens)
                v = __ldg(reinterpret_cast<const uint2 *>(x + (token + 8 * n) * ld + x_offset(format<F>(), s, t)));
            unsigned p[2] = {v.x, v.y};
            if (unit<F>::SPREAD) p[0] = __byte_perm(v.x, v.y, 0x5410), p[1] = __byte_perm(v.x, v.y, 0x7632);
            mma_bf16(part[n], a, p);
            if (unit<F>::MINIMUM) mma_bf16(sum[n], ones, p);
            if (!last) continue;
#pragma unroll
            for (int e = 0; e < 4; e++) {
                c[n][e] = fmaf(e < 2 ? sg : sh, part[n][e], c[n][e]);
                if (unit<F>::MINIMUM) c[n][e] = fmaf(-minimum_of(e < 2 ? g : h, block), sum[n][e], c[n][e]);
                part[n][e] = sum[n][e] = 0;
            }
        }
    }
}

template <int F> static __device__ __forceinline__ void make_tables(tables *, unsigned *, const wview &) {}
template <> __device__ __forceinline__ void make_tables<FMT_NF4>(tables *b, unsigned *shared, const wview &w) {
    float *map = reinterpret_cast<float *>(shared + LUT_WORDS);
    for (int e = (int)threadIdx.x; e < 256; e += THREADS) {
        const unsigned both = pack_bf16(nf4_table[e >> 4], nf4_table[e & 15]);
        for (int i = 0; i < LUT_COPIES; i += 4)
            *reinterpret_cast<uint4 *>(shared + e * LUT_COPIES + i) = make_uint4(both, both, both, both);
        map[e] = w.absmax ? 0.0f : w.map[e];
    }
    b->lut = shared + threadIdx.x % LUT_COPIES, b->map = map;
}

static __device__ __forceinline__ float value_at(mat m, int64_t i, int64_t k) {
    return m.type == F32 ? row_of<float>(m, i)[k] : load(row_of<bf16>(m, i) + k);
}

/* output (row, token) of a member from the sum over W */
static __device__ __forceinline__ void finish(const gemv_member &m, int64_t row, int64_t token, float v) {
    if (m.bias) v += m.bias[row];
    if (m.h.data) {
        const float *up = row_of<float>(m.up, row);
        for (int r = 0; r < m.up.cols; r++) v = fmaf(value_at(m.h, token, r), up[r], v);
    }
    if (m.y.type == F32) {
        float *y = row_of<float>(m.y, token) + row;
        *y = m.add ? *y + v : v;
    } else {
        bf16 *y = row_of<bf16>(m.y, token) + row;
        store(y, m.add ? load(y) + v : v);
    }
}

/* unit u of rows g and g + 8, which begin at elements rg and rh */
template <int F>
static __device__ __forceinline__ void load_rows(unit<F> &g, unit<F> &h, const wview &w, int64_t rg, int64_t rh, int u,
                                                 int t) {
    load_unit(g, w, rg + (int64_t)u * unit<F>::K, t);
    load_unit(h, w, rh + (int64_t)u * unit<F>::K, t);
}

template <int F, int NT> static __global__ void __launch_bounds__(THREADS, 2) gemv(gemv_group q) {
    __shared__ __align__(16) unsigned shared[F == FMT_NF4 ? LUT_WORDS + 256 : 4];
    __shared__ float sums[WARPS][GROUP][NT * 8 + 1];
    int member = 0;
    while (member + 1 < q.n && (int)blockIdx.x >= q.member[member + 1].first) member++;
    const gemv_member &m = q.member[member];
    const wview &w = m.w;
    tables b = {};
    make_tables<F>(&b, shared, w);
    __syncthreads();

    const int lane = (int)threadIdx.x % WARP, warp = (int)threadIdx.x / WARP, t = lane % 4;
    const int64_t row0 = (int64_t)((int)blockIdx.x - m.first) * GROUP, last = w.rows - 1;
    const int64_t rg = min(row0 + lane / 4, last) * w.cols, rh = min(row0 + lane / 4 + 8, last) * w.cols;
    const bf16 *x = static_cast<const bf16 *>(q.x.data);
    const int units = (int)(w.cols / unit<F>::K);
    float c[NT][4] = {};
    unit<F> g = {}, h = {};
    if (unit<F>::AHEAD && warp < units) load_rows(g, h, w, rg, rh, warp, t);
    for (int u = warp; u < units; u += WARPS) {
        unit<F> ng = g, nh = h; /* the next unit is on its way while this one is multiplied */
        if (!unit<F>::AHEAD) load_rows(g, h, w, rg, rh, u, t);
        if (unit<F>::AHEAD && u + WARPS < units) load_rows(ng, nh, w, rg, rh, u + WARPS, t);
        multiply_unit<F, NT>(c, g, h, x + (int64_t)u * unit<F>::K, q.x.ld, (int)q.x.rows, b, w);
        if (unit<F>::AHEAD) g = ng, h = nh;
    }
#pragma unroll
    for (int n = 0; n < NT; n++)
#pragma unroll
        for (int e = 0; e < 4; e++) sums[warp][lane / 4 + e / 2 * 8][n * 8 + t * 2 + e % 2] = c[n][e];
    __syncthreads();
    for (int e = (int)threadIdx.x; e < GROUP * NT * 8; e += THREADS) {
        const int row = e % GROUP, token = e / GROUP;
        if (row0 + row > last || token >= q.x.rows) continue;
        float v = 0;
        for (int i = 0; i < WARPS; i++) v += sums[i][row][token];
        finish(m, row0 + row, token, v);
    }
}

/* ---- host ---- */

typedef void launch_fn(kctx *c, const gemv_group *q, int64_t blocks);
template <int F> static void launch(kctx *c, const gemv_group *q, int64_t blocks) {
    if (q->x.rows <= 8)
        LAUNCH((gemv<F, 1>), (unsigned)blocks, THREADS, 0, c, *q);
    else
        LAUNCH((gemv<F, 2>), (unsigned)blocks, THREADS, 0, c, *q);
}

/* a format that has the kernel, and what its rows must be a multiple of */
static const struct {
    int format;
    launch_fn *launch;
    int unit;
} kernels[] = {
    {FMT_BF16, launch<FMT_BF16>, unit<FMT_BF16>::K}, {FMT_NF4, launch<FMT_NF4>, unit<FMT_NF4>::K},
    {FMT_Q4_0, launch<FMT_Q4_0>, unit<FMT_Q4_0>::K}, {FMT_Q8_0, launch<FMT_Q8_0>, unit<FMT_Q8_0>::K},
    {FMT_Q4_K, launch<FMT_Q4_K>, unit<FMT_Q4_K>::K}, {FMT_Q6_K, launch<FMT_Q6_K>, unit<FMT_Q6_K>::K},
};

static int kernel_of(const weight *w) {
    for (int i = 0; i < (int)(sizeof kernels / sizeof *kernels); i++)
        if (kernels[i].format == w->fmt->id) {
            const nf4_meta *m = static_cast<const nf4_meta *>(w->meta);
            return w->cols % kernels[i].unit || (w->fmt->id == FMT_NF4 && m->blocksize != 64) ? -1 : i;
        }
    return -1;
}

bool gemv_serves(const weight *w) { return kernel_of(w) >= 0; }

void gemv_run(kctx *c, const gemv_group *group, const weight *w) {
    const int k = kernel_of(w);
    CHECK(k >= 0 && group->x.rows <= GEMV_ROWS && group->x.type == BF16, "%ld rows of type %d times %s",
          (long)group->x.rows, (int)group->x.type, w->fmt->name);
    gemv_group q = *group;
    int64_t blocks = 0;
    for (int i = 0; i < q.n; i++) {
        q.member[i].first = (int)blocks;
        blocks += ceil_div(q.member[i].w.rows, GROUP);
    }
    kernels[k].launch(c, &q, blocks);
}
