/* The table of storage formats (formats.def), look-ups in it, and what holds for every format alike: stored size, the
 * walk over blocks, and the row order of GGUF's q and k. */
#include "core/error.h"
#include "kernels/fmt.h"

const weight_format weight_formats[FORMATS] = {
#define F(id, name, ggml, block, bytes, dequant, quant)                                                                \
    [FMT_##id] = {name, FMT_##id, ggml, block, bytes, dequant, quant},
#include "kernels/formats.def"
#undef F
};

const weight_format *format_by_name(const char *name) {
    for (int i = 0; i < FORMATS; i++)
        if (strcmp(weight_formats[i].name, name) == 0) return &weight_formats[i];
    return NULL;
}

const weight_format *format_by_ggml(int ggml_type) {
    for (int i = 0; i < FORMATS && ggml_type >= 0; i++)
        if (weight_formats[i].ggml_type == ggml_type) return &weight_formats[i];
    return NULL;
}

void weight_quant(const weight_format *f, const float *x, const float *importance, int64_t n, void *dst) {
    static void (*const weighted[FORMATS])(const float *, const float *, int64_t, void *) = {
        [FMT_Q4_0] = fmt_q4_0_quant_weighted, [FMT_Q4_1] = fmt_q4_1_quant_weighted,
        [FMT_Q5_0] = fmt_q5_0_quant_weighted, [FMT_Q5_1] = fmt_q5_1_quant_weighted,
        [FMT_Q4_K] = fmt_q4_k_quant_weighted, [FMT_Q5_K] = fmt_q5_k_quant_weighted,
        [FMT_Q6_K] = fmt_q6_k_quant_weighted,
    };
    CHECK(f->quant && n % f->block == 0, "%ld elements into %s", (long)n, f->name);
    if (importance && weighted[f->id])
        weighted[f->id](x, importance, n, dst);
    else
        f->quant(x, n, dst);
}

int64_t weight_bytes(const weight *w) {
    const weight_format *f = w->fmt;
    const int64_t n = mul_checked(mul_checked(w->rows, w->cols), w->count);
    const int64_t whole = mul_checked(n / f->block, f->bytes);
    CHECK(n >= 0 && whole >= 0, "%s of %lld x %lld x %lld has no size", f->name, (long long)w->count,
          (long long)w->rows, (long long)w->cols);
    return whole + (n % f->block * f->bytes + f->block - 1) / f->block; /* only NF4 may end inside a block */
}

void fmt_span(const weight *w, int64_t at, int64_t n, float *out, fmt_blocks_fn *decode) {
    const int64_t block = w->fmt->block, bytes = w->fmt->bytes;
    const uint8_t *src = (const uint8_t *)w->data + at / block * bytes;
    const int64_t skip = at % block;
    float cut[FMT_BLOCK_MAX];
    if (skip && n > 0) {
        const int64_t head = n < block - skip ? n : block - skip;
        decode(src, 1, cut);
        memcpy(out, cut + skip, (size_t)head * sizeof *out);
        src += bytes, out += head, n -= head;
    }
    const int64_t whole = n / block, tail = n % block;
    if (whole > 0) decode(src, whole, out);
    if (tail > 0) {
        decode(src + whole * bytes, 1, cut);
        memcpy(out + whole * block, cut, (size_t)tail * sizeof *out);
    }
}

void weight_unpermute_rows(const weight *w, int heads, void *dst) {
    CHECK(heads > 0 && w->rows % heads == 0 && w->rows / heads % 2 == 0, "%lld rows in %d heads", (long long)w->rows,
          heads);
    CHECK(w->fmt->id != FMT_NF4 && w->cols % w->fmt->block == 0, "blocks of %s straddle rows of %lld", w->fmt->name,
          (long long)w->cols);
    const int64_t bytes = w->cols / w->fmt->block * w->fmt->bytes, dim = w->rows / heads, rows = w->rows * w->count;
    const char *src = w->data;
    char *out = dst;
    for (int64_t i = 0; i < rows; i++) {
        const int64_t head = i / dim * dim, r = i % dim;
        memcpy(out + (head + r / 2 + r % 2 * (dim / 2)) * bytes, src + i * bytes, (size_t)bytes);
    }
}
