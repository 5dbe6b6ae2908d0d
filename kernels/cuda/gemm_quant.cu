/* Products with a stored weight that is dequantised on its way into the tensor cores: C = start + A W^T (B plain), or A
 * W (B across), in the tiles and with the bits of gemm_bf16.cu, without the dense panel.
 *
 * Per step of 32 k the ring holds a buffer of A and, of each of the tile's rows of W, the stored bytes of one segment:
 * 32 elements of 128 rows, or, across, 128 elements of 32 rows. Blocks of most formats begin at even addresses only, so
 * a segment comes as the 16-byte lines that its pieces touch. While a step is multiplied the next one is decoded, 16
 * elements a thread, into one of two buffers of bf16, where ldmatrix finds what gemm_bf16.cu would have copied there.
 * One barrier a step. A second piece (a low-rank adapter's B or A, F32) is read straight from memory: it is a step or
 * two at the end. */
#include "kernels/cuda/gemm_quant.cuh"
#include "kernels/cuda/gemm_tile.cuh"

enum { BN = 128, B_TILE = BN * KSTEP, EACH = 16 /* elements a thread decodes */ };

/* ---- where the bytes of a segment of S elements at element `at` of the matrix lie ---- */

/* 16-byte lines that `bytes` from an even address may touch */
__host__ __device__ constexpr int touched(int bytes) { return (bytes + 14 + 15) / 16; }

/* lines of piece i; Q4_K: head, nibbles; Q6_K: ql, qh, scales and d */
template <int F> __host__ __device__ constexpr int lines_of(int s, int i) {
    if (F == FMT_NF4) return i == 0 ? s / 32 : 0;
    if (F == FMT_Q4_0) return i == 0 ? touched(s / 32 * 18) : 0;
    if (F == FMT_Q8_0) return i == 0 ? touched(s / 32 * 34) : 0;
    if (F == FMT_Q4_K) return i == 0 ? 1 : i == 1 ? (s == 32 ? 2 : s / 32) : 0;
    return i == 0 ? touched(s == 32 ? 32 : s / 2) : i == 1 ? touched(32) : touched(18);
}
template <int F> __host__ __device__ constexpr int all_lines(int s) {
    return lines_of<F>(s, 0) + lines_of<F>(s, 1) + lines_of<F>(s, 2);
}

/* first byte of piece i */
static __device__ __forceinline__ int64_t piece_at(format<FMT_NF4>, int64_t at, int, int) { return at / 2; }
static __device__ __forceinline__ int64_t piece_at(format<FMT_Q4_0>, int64_t at, int, int) { return at / 32 * 18; }
static __device__ __forceinline__ int64_t piece_at(format<FMT_Q8_0>, int64_t at, int, int) { return at / 32 * 34; }
static __device__ __forceinline__ int64_t piece_at(format<FMT_Q4_K>, int64_t at, int, int i) {
    return at / 256 * 144 + (i == 0 ? 0 : 16 + (at & 255) / 64 * 32);
}
static __device__ __forceinline__ int64_t piece_at(format<FMT_Q6_K>, int64_t at, int s, int i) {
    const int64_t b = at / 256 * 210, half = (at & 255) / 128;
    if (i == 0) return b + 64 * half + (s == 32 ? (at & 127) / 32 % 2 * 32 : 0);
    return i == 1 ? b + 128 + 32 * half : b + 192 + 8 * half;
}

/* ---- one segment's bytes in shared memory, decoded ---- */

/* piece i of the segment whose lines lie at s */
template <int F, int S> static __device__ __forceinline__ const uint8_t *piece(const uint8_t *s, int64_t at, int i) {
    const int before = i == 0 ? 0 : i == 1 ? lines_of<F>(S, 0) : lines_of<F>(S, 0) + lines_of<F>(S, 1);
    return s + before * 16 + (piece_at(format<F>(), at, S, i) & 15);
}

/* v = elements [e, e + 16) of the segment. nf4: the scale of those elements, and the codes in shared memory, where
 * lanes reading different ones do not wait for each other. */
typedef float sixteen[2][8];
template <int S>
static __device__ __forceinline__ void decode16(format<FMT_NF4>, const uint8_t *s, int64_t, int e, float scale,
                                                const float *codes, sixteen &v) {
    uint32_t w[2];
    words8(s + e / 2, w);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const int b = byte_of(w, i);
        v[i / 4][i % 4 * 2] = codes[b >> 4] * scale, v[i / 4][i % 4 * 2 + 1] = codes[b & 15] * scale;
    }
}
template <int S>
static __device__ __forceinline__ void decode16(format<FMT_Q4_0> f, const uint8_t *s, int64_t at, int e, float,
                                                const float *, sixteen &v) {
    const uint8_t *b = piece<FMT_Q4_0, S>(s, at, 0) + e / 32 * 18;
    block8(f, b, e % 32, v[0]), block8(f, b, e % 32 + 8, v[1]);
}
template <int S>
static __device__ __forceinline__ void decode16(format<FMT_Q8_0> f, const uint8_t *s, int64_t at, int e, float,
                                                const float *, sixteen &v) {
    const uint8_t *b = piece<FMT_Q8_0, S>(s, at, 0) + e / 32 * 34;
    block8(f, b, e % 32, v[0]), block8(f, b, e % 32 + 8, v[1]);
}
template <int S>
static __device__ __forceinline__ void decode16(format<FMT_Q4_K> f, const uint8_t *s, int64_t at, int e, float,
                                                const float *, sixteen &v) {
    const uint8_t *head = piece<FMT_Q4_K, S>(s, at, 0), *qs = piece<FMT_Q4_K, S>(s, at, 1) + e / 64 * 32;
    const int sub = ((int)(at & 255) + e) / 32;
    sub8(f, head, qs, sub, e % 32, v[0]), sub8(f, head, qs, sub, e % 32 + 8, v[1]);
}
template <int S>
static __device__ __forceinline__ void decode16(format<FMT_Q6_K> f, const uint8_t *s, int64_t at, int e, float,
                                                const float *, sixteen &v) {
    const int in = (int)(at & 127) + e, r = in / 32, half = (int)(at & 255) / 128;
    const uint8_t *ql = piece<FMT_Q6_K, S>(s, at, 0) + (S == 32 ? 0 : r % 2 * 32), *qh = piece<FMT_Q6_K, S>(s, at, 1);
    const uint8_t *tail = piece<FMT_Q6_K, S>(s, at, 2);
    const float scale = load_half(tail + 16 - 8 * half) * (float)(int8_t)tail[in / 16];
    run8(f, ql, qh, scale, r, in % 32, v[0]), run8(f, ql, qh, scale, r, in % 32 + 8, v[1]);
}

/* NF4's scale is on its way a step ahead of its use: where it comes from, then what it is */
typedef struct coming {
    float nested;
    int code;
} coming;
template <int F> static __device__ __forceinline__ coming load_scale(const wview &w, int64_t at) {
    if (F != FMT_NF4 || at >= w.count) return coming{0, 0};
    const int64_t b = at >> w.block_shift;
    if (w.absmax) return coming{w.absmax[b], 0};
    return coming{w.nested[b >> w.nested_shift], w.code[b]};
}
template <int F> static __device__ __forceinline__ float scale_of(const wview &w, coming s, const float *map) {
    if (F != FMT_NF4) return 1;
    return w.absmax ? s.nested : __fadd_rn(__fmul_rn(map[s.code], s.nested), w.offset);
}

/* ---- the kernel ---- */

template <int F, bool ACROSS> struct shape {
    enum {
        S = ACROSS ? (int)BN : (int)KSTEP,
        ROWS = ACROSS ? (int)KSTEP : (int)BN,
        LINES = all_lines<F>(S),
        RAW = ROWS * LINES * 16
    };
};
template <int F, int BM, bool ACROSS> __host__ __device__ constexpr int stages() {
    return 4 * (BM * KSTEP * 2 + shape<F, ACROSS>::RAW) + 2 * B_TILE * 2 + 2048 <= 99 << 10 ? 4 : 3;
}
template <int F, int BM, bool ACROSS> __host__ __device__ constexpr int ring_bytes() {
    return stages<F, BM, ACROSS>() * (BM * KSTEP * 2 + shape<F, ACROSS>::RAW);
}

/* the lines of the tile's segments: of rows j0 .. and k [k0, k0 + 32), or, across, of rows k0 .. and columns [j0, j0 +
 * 128) */
template <int F, bool ACROSS>
static __device__ __forceinline__ void copy_lines(uint8_t *s, const wview &w, int j0, int k0) {
    typedef shape<F, ACROSS> sh;
    constexpr int l0 = lines_of<F>(sh::S, 0), l1 = lines_of<F>(sh::S, 1);
#pragma unroll 1 /* as copy_tile */
    for (int e = (int)threadIdx.x; e < sh::ROWS * sh::LINES; e += THREADS) {
        const int r = e / sh::LINES, l = e % sh::LINES, i = l < l0 ? 0 : l < l0 + l1 ? 1 : 2;
        const int64_t row = (ACROSS ? k0 : j0) + r, at = row * w.cols + (ACROSS ? j0 : k0);
        const int64_t byte = piece_at(format<F>(), at, sh::S, i) / 16 * 16 + (l - (i == 0   ? 0
                                                                                   : i == 1 ? l0
                                                                                            : l0 + l1)) *
                                                                                 16;
        const int n = row < w.rows ? (int)min((int64_t)16, max((int64_t)0, w.bytes - byte)) : 0;
        cp_async16_part(s + e * 16, n ? w.data + byte : w.data, n);
    }
}

/* 8 elements of the F32 matrix [rows, cols] from (row, col), zero outside */
static __device__ __forceinline__ void dense8(const float *p, int64_t ld, int row, int rows, int col, int cols,
                                              float (&v)[8]) {
#pragma unroll
    for (int i = 0; i < 8; i++) v[i] = row < rows && col + i < cols ? p[row * ld + col + i] : 0.0f;
}

/* This thread's part of the step's B: line r (a row of W) and elements [e, e + 16) of its segment. raw: the step's
 * lines */
template <int F, bool ACROSS>
static __device__ __forceinline__ void make_b(bf16 *b, const uint8_t *raw, const product &p, const wview &w, int step,
                                              int first, int j0, float scale, const float *codes) {
    typedef shape<F, ACROSS> sh;
    const int r = (int)threadIdx.x / (sh::S / EACH), e = (int)threadIdx.x % (sh::S / EACH) * EACH;
    sixteen v = {};
    if (step >= first) {
        const int k0 = (step - first) * KSTEP, row = (ACROSS ? k0 : j0) + r, col = (ACROSS ? j0 : k0) + e;
        const int rows = (int)(ACROSS ? p.k[1] : p.n), cols = (int)(ACROSS ? p.n : p.k[1]);
        const float *second = static_cast<const float *>(p.b[1].data);
        dense8(second, p.b[1].ld, row, rows, col, cols, v[0]);
        dense8(second, p.b[1].ld, row, rows, col + 8, cols, v[1]);
    } else {
        const int k0 = step * KSTEP;
        const int64_t row = (ACROSS ? k0 : j0) + r, at = row * w.cols + (ACROSS ? j0 : k0);
        if (row < w.rows) decode16<sh::S>(format<F>(), raw + r * sh::LINES * 16, at, e, scale, codes, v);
    }
#pragma unroll
    for (int h = 0; h < 2; h++) {
        bf16 *to = b + (ACROSS ? place<BN, true>(e + 8 * h, r) : place<BN, false>(r, e + 8 * h));
        *reinterpret_cast<uint4 *>(to) = make_uint4(pack_bf16(v[h][0], v[h][1]), pack_bf16(v[h][2], v[h][3]),
                                                    pack_bf16(v[h][4], v[h][5]), pack_bf16(v[h][6], v[h][7]));
    }
}

template <int F, int BM, int WM, int WN, bool ACROSS>
static __global__ void __launch_bounds__(THREADS, 2) tile_quant(product p, wview w) {
    typedef shape<F, ACROSS> sh;
    constexpr int STAGES = stages<F, BM, ACROSS>(), A_BYTES = BM * KSTEP * 2, STAGE = A_BYTES + sh::RAW;
    constexpr int MT = BM / WM / 16, NT = BN / WN / 8;
    SHARED(uint8_t, ring);
    bf16 *b = reinterpret_cast<bf16 *>(ring + ring_bytes<F, BM, ACROSS>());
    float *codes = reinterpret_cast<float *>(b + 2 * B_TILE), *map = codes + 16;
    const int warp = (int)threadIdx.x / WARP, wi = warp / WN * (BM / WM), wj = warp % WN * (BN / WN);
    const int i0 = (int)blockIdx.x * BM, j0 = (int)blockIdx.y * BN;
    const int r = (int)threadIdx.x / (sh::S / EACH), e = (int)threadIdx.x % (sh::S / EACH) * EACH;
    const steps n = steps_of(p);
    float c[MT][NT][4] = {};

    const auto fetch = [&](int step) {
        uint8_t *s = ring + (step - n.from) % STAGES * STAGE;
        if (step < n.to) {
            const int second = step >= n.first, k0 = (second ? step - n.first : step) * KSTEP;
            copy_tile<BM, false>(reinterpret_cast<bf16 *>(s), p.a[second], i0, (int)p.m, k0, (int)p.k[second]);
            if (!second) copy_lines<F, ACROSS>(s + A_BYTES, w, j0, k0);
        }
        cp_async_commit();
    };
    const auto ahead = [&](int step) {
        const int64_t row = ACROSS ? step * KSTEP + r : j0 + r, at = row * w.cols + (ACROSS ? j0 : step * KSTEP) + e;
        return load_scale<F>(w, step < n.first ? at : w.count);
    };
    const auto decode = [&](int step, coming s) {
        make_b<F, ACROSS>(b + (step - n.from) % 2 * B_TILE, ring + (step - n.from) % STAGES * STAGE + A_BYTES, p, w,
                          step, n.first, j0, scale_of<F>(w, s, map), codes);
    };
    if (F == FMT_NF4) {
        if (threadIdx.x < 16) codes[threadIdx.x] = nf4_table[threadIdx.x];
        map[threadIdx.x] = w.map ? w.map[threadIdx.x] : 0.0f;
    }
    for (int s = 0; s < STAGES - 1; s++) fetch(n.from + s);
    cp_async_wait<STAGES - 2>();
    __syncthreads();
    if (n.from < n.to) decode(n.from, ahead(n.from));
    coming next = ahead(n.from + 1);
    for (int step = n.from; step < n.to; step++) {
        cp_async_wait<STAGES - 3>();
        __syncthreads();
        fetch(step + STAGES - 1); /* into the buffers that all warps left before the barrier */
        if (step + 1 < n.to) decode(step + 1, next);
        next = ahead(step + 2);
        const bf16 *a = reinterpret_cast<const bf16 *>(ring + (step - n.from) % STAGES * STAGE);
        multiply_buffers<BM, BN, false, ACROSS>(c, a, b + (step - n.from) % 2 * B_TILE, wi, wj);
    }
    put_all(p, c, i0 + wi, j0 + wj);
}

/* ---- host ---- */

template <int F, int BM, int WM, int WN> static void launch_rows(kctx *c, const product *p, const wview *w) {
    static_assert(WM * WN * WARP == THREADS && 256 == THREADS, "eight warps, a thread for every entry of the map");
    const unsigned splits = p->splits > 1 ? (unsigned)p->splits : 1;
    const dim3 grid((unsigned)ceil_div(p->m, BM), (unsigned)ceil_div(p->n, BN), splits);
    const size_t rest = 2 * B_TILE * sizeof(bf16) + (16 + 256) * sizeof(float);
    if (p->b[0].across)
        LAUNCH((tile_quant<F, BM, WM, WN, true>), grid, THREADS, (ring_bytes<F, BM, true>() + rest), c, *p, *w);
    else
        LAUNCH((tile_quant<F, BM, WM, WN, false>), grid, THREADS, (ring_bytes<F, BM, false>() + rest), c, *p, *w);
}

template <int F> static void launch(kctx *c, const product *p, const wview *w) {
    if (p->m <= QUANT_SOME)
        launch_rows<F, 64, 2, 4>(c, p, w);
    else
        launch_rows<F, 128, 2, 4>(c, p, w);
}

static const struct {
    int format;
    void (*launch)(kctx *c, const product *p, const wview *w);
} kernels[] = {
    {FMT_NF4, launch<FMT_NF4>},   {FMT_Q4_0, launch<FMT_Q4_0>}, {FMT_Q8_0, launch<FMT_Q8_0>},
    {FMT_Q4_K, launch<FMT_Q4_K>}, {FMT_Q6_K, launch<FMT_Q6_K>},
};

static int kernel_of(const weight *w) {
    for (int i = 0; i < (int)(sizeof kernels / sizeof *kernels); i++)
        if (kernels[i].format == w->fmt->id) return w->cols % 32 == 0 ? i : -1; /* NF4: lines of 16 bytes are whole */
    return -1;
}

bool quant_serves(const weight *w) { return kernel_of(w) >= 0; }

int quant_pieces(const weight *w, int64_t rows, bool back) {
    const int64_t tiles = ceil_div(back ? w->cols : w->rows, BN), k = back ? w->rows : w->cols;
    const int64_t wanted = smaller(ceil_div(rows <= QUANT_FEW ? 256 : 64, tiles), 16), most = k < 512 ? 1 : k / 256;
    return rows > QUANT_SOME ? 1 : (int)smaller(wanted, most);
}

void product_quant(kctx *c, const product *p, const weight *w) {
    const int k = kernel_of(w);
    CHECK(k >= 0 && !p->a[0].across && (uintptr_t)p->a[0].data % 16 == 0 && p->a[0].ld % CHUNK == 0 &&
              (p->b[0].across ? w->cols : w->rows) == p->n && (p->b[0].across ? w->rows : w->cols) == p->k[0],
          "a product of %ldx%ldx%ld with %s %ldx%ld", (long)p->m, (long)p->n, (long)p->k[0], w->fmt->name,
          (long)w->rows, (long)w->cols);
    if (p->m <= 0 || p->n <= 0) return;
    const wview v = view_of(w);
    kernels[k].launch(c, p, &v);
    if (p->splits > 1) add_pieces(c, p);
}
