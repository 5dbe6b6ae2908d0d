/* Panels of B for the matrix product, made from a weight of any format while it is in the cache: rows of W as they lie
 * (dx += dy W) or transposed (y += x W^T). Formats without a path of their own go through fmt->dequant. */
#include "kernels/cpu/gemm.h"

static inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

/* out[0, n) = W[row][k0, k0 + n) */
void ISA(weight_row)(const weight *w, int64_t row, int64_t k0, int64_t n, float *out) {
    int64_t at = row * w->cols + k0, i = 0;
    const uint16_t *half = (const uint16_t *)w->data + at;
    switch (w->fmt->id) {
    case FMT_F32: memcpy(out, (const float *)w->data + at, (size_t)n * sizeof *out); return;
    case FMT_BF16:
        for (; i + 16 <= n; i += 16) v16_store(out + i, v16_from_bf16(half + i));
        break;
    case FMT_F16:
        for (; i + 16 <= n; i += 16) v16_store(out + i, v16_from_f16(half + i));
        break;
    }
    if (i < n) w->fmt->dequant(w, at + i, n - i, out + i);
}

static bool nf4_aligned(const weight *w) {
    return w->fmt->id == FMT_NF4 && w->cols % 64 == 0 && ((const nf4_meta *)w->meta)->blocksize == 64;
}

static inline float nf4_scale(const nf4_meta *m, int64_t block) {
    if (!m->nested_block) return m->absmax[block];
    float scaled = m->map[m->code[block]] * m->nested_absmax[block / m->nested_block];
    return scaled + m->offset;
}

enum { TMP_PITCH = KC_MAX + 16 }; /* rows waiting to be transposed */

/* d[k * NR + i] = src[i * lds + k] for i < VN; rows from `rows` on are zeros */
static void transpose_group(float *d, const float *src, int64_t lds, int64_t rows, int64_t kc) {
    int64_t k = 0;
    if (rows == VN)
        for (; k + VN <= kc; k += VN) vn_transpose(d + k * NR, NR, src + k, lds);
    for (; k < kc; k++)
        for (int64_t i = 0; i < VN; i++) d[k * NR + i] = i < rows ? src[i * lds + k] : 0;
}

enum {
    NF4_AHEAD = 128
}; /* bytes of a row fetched before they are wanted: so many rows outnumber the hardware's streams */

/* VN rows of codes at once: a lane is a row, so the transposition costs nothing but the loads. */
static void nf4_group(float *d, float *scales, const weight *w, int64_t row, int64_t k0, int64_t kc) {
    const nf4_meta *m = w->meta;
    const vn_table t = vn_table_load(nf4_codes);
    const int64_t pitch = w->cols / 2;
    const uint8_t *src = (const uint8_t *)w->data + row * pitch + k0 / 2;
    for (int64_t i = 0; i < VN; i++)
        for (int64_t b = 0; b < kc / 64; b++) {
            scales[b * VN + i] = nf4_scale(m, ((row + i) * w->cols + k0) / 64 + b);
            __builtin_prefetch(src + i * pitch + b * 32 + NF4_AHEAD);
        }
    for (int64_t k = 0; k < kc; k += 32, src += 16) {
        vn s = vn_load(scales + k / 64 * VN);
        vni x[4];
        vni_rows(x, src, pitch);
        for (int j = 0; j < 4; j++) {
            float *o = d + (k + 8 * j) * NR;
            vn_store(o, vn_mul(vn_code(t, x[j], 4), s));
            vn_store(o + NR, vn_mul(vn_code(t, x[j], 0), s));
            vn_store(o + 2 * NR, vn_mul(vn_code(t, x[j], 12), s));
            vn_store(o + 3 * NR, vn_mul(vn_code(t, x[j], 8), s));
            vn_store(o + 4 * NR, vn_mul(vn_code(t, x[j], 20), s));
            vn_store(o + 5 * NR, vn_mul(vn_code(t, x[j], 16), s));
            vn_store(o + 6 * NR, vn_mul(vn_code(t, x[j], 28), s));
            vn_store(o + 7 * NR, vn_mul(vn_code(t, x[j], 24), s));
        }
    }
}

void ISA(pack_fwd)(float *dst, int64_t sliver, float *tmp, const weight *w, int64_t k0, int64_t kc, int64_t n0,
                   int64_t nc) {
    const bool nf4 = nf4_aligned(w) && k0 % 64 == 0 && kc % 64 == 0;
    const rows16 *packed = weight_rows16(w);
    if (ISA(rows16_serves)(packed, k0, kc, n0)) {
        ISA(rows16_panel)(dst, sliver, packed, k0, kc, n0, nc);
        return;
    }
    for (int64_t j = 0; j < nc; j += VN) {
        float *d = dst + j / NR * sliver + j % NR;
        int64_t rows = smaller(VN, nc - j), row = n0 + j;
        if (nf4 && rows == VN) {
            nf4_group(d, tmp, w, row, k0, kc);
        } else if (w->fmt->id == FMT_F32) {
            transpose_group(d, (const float *)w->data + row * w->cols + k0, w->cols, rows, kc);
        } else {
            for (int64_t i = 0; i < rows; i++) ISA(weight_row)(w, row + i, k0, kc, tmp + i * TMP_PITCH);
            transpose_group(d, tmp, TMP_PITCH, rows, kc);
        }
        if (j + VN >= nc && j % NR == 0) transpose_group(d + VN, tmp, TMP_PITCH, 0, kc); /* pads likewise */
    }
}

static void nf4_row(float *d, int64_t sliver, const weight *w, int64_t row, int64_t n0, int64_t nc) {
    const nf4_meta *m = w->meta;
    const vn_table t = vn_table_load(nf4_codes);
    const int64_t at = row * w->cols + n0;
    const uint8_t *src = (const uint8_t *)w->data + at / 2;
    for (int64_t j = 0; j < nc; j += NR, d += sliver, src += NR / 2) {
        vn s = vn_set1(nf4_scale(m, (at + j) / 64));
        vn_store(d, vn_mul(vn_codes(t, src), s));
        vn_store(d + VN, vn_mul(vn_codes(t, src + VN / 2), s));
    }
}

void ISA(pack_bwd)(float *dst, int64_t sliver, float *tmp, const weight *w, int64_t k0, int64_t kc, int64_t n0,
                   int64_t nc) {
    if (w->fmt->id == FMT_F32) {
        ISA(pack_dense)(dst, sliver, (const float *)w->data + k0 * w->cols + n0, w->cols, kc, nc);
        return;
    }
    const bool nf4 = nf4_aligned(w) && n0 % NR == 0;
    for (int64_t k = 0; k < kc; k++, dst += NR) {
        int64_t done = nf4 ? nc / NR * NR : 0;
        if (done) nf4_row(dst, sliver, w, k0 + k, n0, done);
        if (done == nc) continue;
        ISA(weight_row)(w, k0 + k, n0 + done, nc - done, tmp);
        vn_store(tmp + nc - done, vn_set1(0)); /* pads the last sliver */
        for (int64_t j = 0; done + j < nc; j += VN) vn_store(dst + (done + j) / NR * sliver + j % NR, vn_load(tmp + j));
        if (nc % NR && nc % NR <= VN) vn_store(dst + nc / NR * sliver + VN, vn_set1(0)); /* as is its other half */
    }
}

float ISA(pack_cost)(const weight *w) {
    switch (w->fmt->id) {
    case FMT_F32: return 4;
    case FMT_BF16:
    case FMT_F16: return 6;
    default: return nf4_aligned(w) || ISA(rows16_serves)(weight_rows16(w), 0, 0, 0) ? 6 : PACK_SLOW;
    }
}
