/* Dense operands for the products: weights of any format dequantised to bf16 or fp32, mats rounded to bf16. A thread
 * makes 8 elements; both kernels are bound by memory. */
#include "kernels/cuda/gemm.cuh"

typedef struct panel {
    wview w;
    int64_t row, rows, ld;
    void *out;
} panel;

static __device__ __forceinline__ void store8(float *p, const float (&v)[8]) {
    reinterpret_cast<float4 *>(p)[0] = make_float4(v[0], v[1], v[2], v[3]);
    reinterpret_cast<float4 *>(p)[1] = make_float4(v[4], v[5], v[6], v[7]);
}
static __device__ __forceinline__ void store8(bf16 *p, const float (&v)[8]) {
    *reinterpret_cast<uint4 *>(p) =
        make_uint4(pack_bf16(v[0], v[1]), pack_bf16(v[2], v[3]), pack_bf16(v[4], v[5]), pack_bf16(v[6], v[7]));
}

/* rows of a multiple of 8 columns: y walks the rows, x the groups of a row */
template <int F, class T> static __global__ void __launch_bounds__(BLOCK) dequant_groups(panel p) {
    const int64_t groups = p.w.cols / 8;
    for (int64_t i = blockIdx.y; i < p.rows; i += gridDim.y)
        for (int64_t g = (int64_t)blockIdx.x * BLOCK + threadIdx.x; g < groups; g += (int64_t)gridDim.x * BLOCK) {
            float v[8];
            decode8(format<F>(), p.w, (p.row + i) * p.w.cols + g * 8, v);
            store8(static_cast<T *>(p.out) + i * p.ld + g * 8, v);
        }
}

/* other widths, where a group of 8 may lie in two rows: every element decodes the group around it */
template <int F, class T> static __global__ void __launch_bounds__(BLOCK) dequant_single(panel p) {
    for (int64_t i = blockIdx.y; i < p.rows; i += gridDim.y)
        for (int64_t k = (int64_t)blockIdx.x * BLOCK + threadIdx.x; k < p.w.cols; k += (int64_t)gridDim.x * BLOCK) {
            const int64_t at = (p.row + i) * p.w.cols + k;
            float v[8], one = 0;
            decode8(format<F>(), p.w, at / 8 * 8, v);
            for (int e = 0; e < 8; e++)
                if (e == at % 8) one = v[e];
            store(static_cast<T *>(p.out) + i * p.ld + k, one);
        }
}

template <int F, class T> static void launch_panel(kctx *c, const panel *p) {
    if (p->w.cols % 8 == 0)
        LAUNCH((dequant_groups<F, T>), grid_for_rows(p->rows, p->w.cols, 8), BLOCK, 0, c, *p);
    else
        LAUNCH((dequant_single<F, T>), grid_for_rows(p->rows, p->w.cols, 1), BLOCK, 0, c, *p);
}

/* by FMT_*: formats.def lists its rows in that order */
static void (*const to_f32[FORMATS])(kctx *, const panel *) = {
#define F(id, name, ggml, block, bytes, dequant, quant) launch_panel<FMT_##id, float>,
#include "kernels/formats.def"
#undef F
};
static void (*const to_bf16[FORMATS])(kctx *, const panel *) = {
#define F(id, name, ggml, block, bytes, dequant, quant) launch_panel<FMT_##id, bf16>,
#include "kernels/formats.def"
#undef F
};

static int log2_of(int n) {
    CHECK(n > 0 && (n & (n - 1)) == 0, "a block of %d scales: a power of two is wanted", n);
    return __builtin_ctz((unsigned)n);
}

wview view_of(const weight *w) {
    wview v = {};
    v.data = static_cast<const uint8_t *>(w->data);
    v.rows = w->rows, v.cols = w->cols, v.count = w->rows * w->cols * w->count, v.bytes = weight_bytes(w);
    CHECK((uintptr_t)w->data % 16 == 0, "a weight at %p is not 16-byte aligned", w->data);
    if (w->fmt->id != FMT_NF4) return v;
    const nf4_meta *m = static_cast<const nf4_meta *>(w->meta);
    v.block_shift = log2_of(m->blocksize);
    CHECK(v.block_shift >= 3, "NF4 blocks of %d", m->blocksize);
    if (m->nested_block == 0) {
        v.absmax = m->absmax;
        return v;
    }
    v.nested_shift = log2_of(m->nested_block);
    v.code = m->code, v.nested = m->nested_absmax, v.map = m->map, v.offset = m->offset;
    return v;
}

void panel_of_weight(kctx *c, const weight *w, int64_t row, int64_t rows, void *out, dtype type, int64_t ld) {
    CHECK(ld >= w->cols && ld % 8 == 0 && (type == F32 || type == BF16), "a panel of %ld columns by %ld, type %d",
          (long)w->cols, (long)ld, (int)type);
    if (rows <= 0 || w->cols <= 0) return;
    const panel p = {view_of(w), row, rows, ld, out};
    (type == F32 ? to_f32 : to_bf16)[w->fmt->id](c, &p);
}

template <class T> static __global__ void __launch_bounds__(BLOCK) round_mat(mat x, bf16 *out, int64_t ld, bool fours) {
    for (int64_t i = blockIdx.y; i < x.rows; i += gridDim.y) {
        const T *row = row_of<T>(x, i);
        const int64_t step = (int64_t)gridDim.x * BLOCK, first = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
        for (int64_t k = first; fours && k < x.cols / 4; k += step) {
            float v[4];
            load_part<4>(v, row + 4 * k);
            store_part<4>(out + i * ld + 4 * k, v);
        }
        for (int64_t k = first; !fours && k < x.cols; k += step) store(out + i * ld + k, load(row + k));
    }
}

void panel_of_mat(kctx *c, mat x, bf16 *out, int64_t ld) {
    if (x.rows <= 0 || x.cols <= 0) return;
    const bool fours = by_fours(x) && (uintptr_t)out % 8 == 0 && ld % 4 == 0;
    WITH_VALUES(x.type, T,
                LAUNCH((round_mat<T>), grid_for_rows(x.rows, x.cols, fours ? 4 : 1), BLOCK, 0, c, x, out, ld, fours));
}

static __global__ void __launch_bounds__(BLOCK)
    fill_tail(bf16 *out, int64_t ld, int64_t rows, int64_t n, panel_end end, const float *bias) {
    for (int64_t e = (int64_t)blockIdx.x * BLOCK + threadIdx.x; e < rows * n; e += (int64_t)gridDim.x * BLOCK) {
        const int64_t i = e / n, k = e % n;
        float v = end == PANEL_ONES && k < 2 ? 1.0f : 0.0f;
        if (end == PANEL_BIAS && k < 2) {
            const float high = __bfloat162float(__float2bfloat16_rn(bias[i]));
            v = k ? bias[i] - high : high;
        }
        store(out + i * ld + k, v);
    }
}

void panel_tail(kctx *c, bf16 *out, int64_t ld, int64_t rows, int64_t n, panel_end end, const float *bias) {
    if (rows > 0 && n > 0) LAUNCH(fill_tail, grid_for(rows * n), BLOCK, 0, c, out, ld, rows, n, end, bias);
}

/* ---- operands ---- */

dtype product_type(const kctx *c, mat a, mat b) {
    return a.type == BF16 || b.type == BF16 || c->products == BF16 ? BF16 : F32;
}

void multiply(kctx *c, const product *p, dtype t) { (t == F32 ? product_f32 : product_bf16)(c, p); }

static int64_t width(int64_t cols) { return round_up(cols, 8); }

static bool mat_fits(mat x, dtype t) {
    if (t == F32) return x.type == F32;
    return x.type == BF16 && x.ld % 8 == 0 && (uintptr_t)x.data % 16 == 0;
}

int64_t mat_rows_fit(mat x, dtype t, size_t bytes) {
    if (mat_fits(x, t)) return x.rows;
    const int64_t n = (int64_t)bytes / (width(x.cols) * mat_bytes(t)) / 16 * 16;
    CHECK(n > 0, "a row of %ld in %zu bytes of scratch", (long)x.cols, bytes);
    return smaller(n, x.rows);
}

side mat_side(kctx *c, room *r, mat x, dtype t) {
    if (mat_fits(x, t)) return side{x.data, x.ld, false};
    CHECK(t == BF16, "an operand of type %d in a product of fp32", (int)x.type);
    const int64_t ld = width(x.cols);
    bf16 *panel = static_cast<bf16 *>(room_take(r, (size_t)(x.rows * ld) * sizeof(bf16)));
    panel_of_mat(c, x, panel, ld);
    return side{panel, ld, false};
}

bool weight_fits(const weight *w, dtype t) {
    return t == F32 ? w->fmt->id == FMT_F32
                    : w->fmt->id == FMT_BF16 && w->cols % 8 == 0 && (uintptr_t)w->data % 16 == 0;
}

int64_t weight_rows_fit(const weight *w, dtype t, size_t bytes) {
    if (weight_fits(w, t)) return w->rows;
    const int64_t row = width(w->cols) * mat_bytes(t), n = (int64_t)bytes / row;
    CHECK(n > 0, "a row of %ld in %zu bytes of scratch", (long)w->cols, bytes);
    return smaller(n > 128 ? n / 128 * 128 : n, w->rows);
}

side weight_side(kctx *c, room *r, const weight *w, int64_t row, int64_t rows, dtype t) {
    if (weight_fits(w, t)) {
        const char *p = static_cast<const char *>(w->data) + row * w->cols * mat_bytes(t);
        return side{p, w->cols, false};
    }
    const int64_t ld = width(w->cols);
    void *panel = room_take(r, (size_t)(rows * ld * mat_bytes(t)));
    panel_of_weight(c, w, row, rows, panel, t, ld);
    return side{panel, ld, false};
}
