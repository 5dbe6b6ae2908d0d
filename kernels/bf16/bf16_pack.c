/* Panels of bf16 for the products: activations converted once, weights of any format dequantised straight into pairs of
 * k. A format without a path of its own goes through fmt->dequant, row by row. */
#include "kernels/bf16/bf16.h"

static inline __m512 part(const float *p, int64_t left) {
    return left >= 16 ? _mm512_loadu_ps(p) : left <= 0 ? _mm512_setzero_ps() : v16_load_n(p, (int)left);
}

void bf16_pack_rows(uint16_t *dst, const float *x, int64_t ld, int64_t m, int64_t kc) {
    const int64_t steps = steps_of(kc);
    for (int64_t i = 0; i < TILE; i++) {
        const float *row = x + i * ld;
        uint16_t *d = dst + i * STEP;
        int64_t k = 0;
        if (i < m)
            for (; k + STEP <= kc; k += STEP, d += TILE_VALUES)
                _mm512_store_si512(d, pair_bf16(_mm512_loadu_ps(row + k), _mm512_loadu_ps(row + k + 16)));
        for (; k < steps * STEP; k += STEP, d += TILE_VALUES) {
            const int64_t left = i < m ? kc - k : 0;
            _mm512_store_si512(d, pair_bf16(part(row + k, left), part(row + k + 16, left - 16)));
        }
    }
}

/* dst[i][j] = src[j][i], dwords; 16 of each */
static inline void turn(uint16_t *dst, const uint16_t *src, int64_t src_values) {
    vn_transpose((float *)(void *)dst, TILE, (const float *)(const void *)src, src_values / 2);
}

void bf16_pack_cols(uint16_t *dst, const float *x, int64_t ld, int64_t m, int64_t kc) {
    _Alignas(64) uint16_t t[TILE_VALUES];
    for (int64_t k = 0; k < kc; k += STEP, dst += TILE_VALUES) {
        for (int64_t p = 0; p < TILE; p++) {
            const float *row = x + (k + 2 * p) * ld;
            const __m512 even = part(row, k + 2 * p < kc ? m : 0), odd = part(row + ld, k + 2 * p + 1 < kc ? m : 0);
            _mm512_store_si512(t + p * STEP, weave_bf16(even, odd));
        }
        turn(dst, t, STEP);
    }
}

/* Columns are taken GROUP at a time over the pairs of a step: slivers may lie a power of two apart, and a whole row of
 * them would fall into one set of the cache. */
enum { GROUP = 4 * TILE };

void bf16_pack_dense(uint16_t *dst, float *tmp, const bf16_source *s, int64_t k0, int64_t kc, int64_t n0, int64_t nc) {
    (void)tmp;
    const int64_t sliver = steps_of(kc) * TILE_VALUES;
    for (int64_t k = 0; k < kc; k += STEP, dst += TILE_VALUES)
        for (int64_t group = 0; group < nc; group += GROUP)
            for (int64_t p = 0; p < TILE; p++) {
                const float *row = s->b + (k0 + k + 2 * p) * s->ld + n0;
                const int64_t end = at_most(group + GROUP, nc);
                for (int64_t j = group; j < end; j += TILE) {
                    const __m512 even = part(row + j, k + 2 * p < kc ? nc - j : 0);
                    const __m512 odd = part(row + s->ld + j, k + 2 * p + 1 < kc ? nc - j : 0);
                    _mm512_store_si512(dst + j / TILE * sliver + p * STEP, weave_bf16(even, odd));
                }
            }
}

/* ---- weights ---- */

static bool nf4_aligned(const weight *w) {
    return w->fmt->id == FMT_NF4 && w->cols % 64 == 0 && ((const nf4_meta *)w->meta)->blocksize == 64;
}

static inline float nf4_scale(const nf4_meta *m, int64_t block) {
    if (!m->nested_block) return m->absmax[block];
    const float scaled = m->map[m->code[block]] * m->nested_absmax[block / m->nested_block];
    return scaled + m->offset;
}

/* out[0, n) = the values of W[row][k0 ...] */
static void row_bf16(uint16_t *out, float *tmp, const weight *w, int64_t row, int64_t k0, int64_t n) {
    const int64_t at = row * w->cols + k0;
    const float *x = tmp;
    if (w->fmt->id == FMT_BF16) {
        memcpy(out, (const uint16_t *)w->data + at, (size_t)n * sizeof *out);
        return;
    }
    if (w->fmt->id == FMT_F32)
        x = (const float *)w->data + at;
    else
        w->fmt->dequant(w, at, n, tmp);
    int64_t i = 0;
    for (; i + STEP <= n; i += STEP)
        _mm512_storeu_si512(out + i, pair_bf16(_mm512_loadu_ps(x + i), _mm512_loadu_ps(x + i + 16)));
    if (i < n)
        _mm512_mask_storeu_epi16(out + i, (__mmask32)((1u << (n - i)) - 1),
                                 pair_bf16(part(x + i, n - i), part(x + i + 16, n - i - 16)));
}

/* 16 rows of codes at once: a lane is a row, and 16 bytes of it are one step of k. */
static void nf4_sliver(uint16_t *d, const weight *w, int64_t row, int64_t k0, int64_t kc) {
    const nf4_meta *m = w->meta;
    const vn_table t = vn_table_load(nf4_codes);
    const int64_t pitch = w->cols / 2;
    const uint8_t *src = (const uint8_t *)w->data + row * pitch + k0 / 2;
    __m512 scale = _mm512_setzero_ps();
    for (int64_t k = 0; k < kc; k += STEP, src += STEP / 2) {
        if (k % 64 == 0) {
            float s[TILE];
            for (int64_t i = 0; i < TILE; i++) s[i] = nf4_scale(m, ((row + i) * w->cols + k0 + k) / 64);
            scale = _mm512_loadu_ps(s);
        }
        vni x[4];
        vni_rows(x, src, pitch);
#define PAIR(high, low)                                                                                                \
    _mm512_store_si512(                                                                                                \
        d, weave_bf16(_mm512_mul_ps(vn_code(t, x[j], high), scale), _mm512_mul_ps(vn_code(t, x[j], low), scale))),     \
        d += STEP;
        for (int j = 0; j < 4; j++) {
            PAIR(4, 0) PAIR(12, 8) PAIR(20, 16) PAIR(28, 24)
        }
    }
}

void bf16_pack_fwd(uint16_t *dst, float *tmp, const bf16_source *s, int64_t k0, int64_t kc, int64_t n0, int64_t nc) {
    const weight *w = s->w;
    const bool nf4 = nf4_aligned(w) && k0 % 64 == 0 && kc % 64 == 0;
    const int64_t steps = steps_of(kc), pitch = steps * STEP + STEP; /* the pitch is no multiple of a page */
    uint16_t *rows = (uint16_t *)(void *)(tmp + KC_MAX);
    for (int64_t j = 0; j < nc; j += TILE, dst += steps * TILE_VALUES) {
        const int64_t n = at_most(TILE, nc - j);
        if (nf4 && n == TILE) {
            nf4_sliver(dst, w, n0 + j, k0, kc);
            continue;
        }
        for (int64_t i = 0; i < TILE; i++) {
            uint16_t *row = rows + i * pitch;
            const int64_t filled = i < n ? kc : 0;
            if (filled) row_bf16(row, tmp, w, n0 + j + i, k0, kc);
            memset(row + filled, 0, (size_t)(steps * STEP - filled) * sizeof *row);
        }
        for (int64_t i = 0; i < steps; i++) turn(dst + i * TILE_VALUES, rows + i * STEP, pitch);
    }
}

/* one pair of rows of codes, in the order of the columns */
static void nf4_pair(uint16_t *d, int64_t sliver, const weight *w, int64_t row, int64_t n0, int64_t nc) {
    const nf4_meta *m = w->meta;
    const vn_table t = vn_table_load(nf4_codes);
    const int64_t at = row * w->cols + n0;
    const uint8_t *even = (const uint8_t *)w->data + at / 2, *odd = even + w->cols / 2;
    for (int64_t j = 0; j < nc; j += TILE, d += sliver, even += TILE / 2, odd += TILE / 2) {
        const __m512 s = _mm512_set1_ps(nf4_scale(m, (at + j) / 64));
        const __m512 r = _mm512_set1_ps(nf4_scale(m, (at + w->cols + j) / 64));
        _mm512_store_si512(d, weave_bf16(_mm512_mul_ps(vn_codes(t, even), s), _mm512_mul_ps(vn_codes(t, odd), r)));
    }
}

/* lanes of two rows of bf16 side by side */
static inline __m512i weave_rows(const uint16_t *even, const uint16_t *odd) {
    const __m512i lo = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)even));
    const __m512i hi = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)odd));
    return _mm512_or_si512(lo, _mm512_slli_epi32(hi, 16));
}

void bf16_pack_bwd(uint16_t *dst, float *tmp, const bf16_source *s, int64_t k0, int64_t kc, int64_t n0, int64_t nc) {
    const weight *w = s->w;
    const int64_t pairs = steps_of(kc) * TILE, sliver = pairs * STEP;
    if (w->fmt->id == FMT_F32) {
        const bf16_source dense = {.b = w->data, .ld = w->cols};
        bf16_pack_dense(dst, tmp, &dense, k0, kc, n0, nc);
        return;
    }
    if (nf4_aligned(w) && nc % TILE == 0 && kc % STEP == 0) {
        for (int64_t k = 0; k < kc; k += STEP, dst += TILE_VALUES)
            for (int64_t j = 0; j < nc; j += GROUP)
                for (int64_t p = 0; p < TILE; p++)
                    nf4_pair(dst + j / TILE * sliver + p * STEP, sliver, w, k0 + k + 2 * p, n0 + j,
                             at_most(GROUP, nc - j));
        return;
    }
    uint16_t *rows[2] = {(uint16_t *)(void *)(tmp + NC_MAX)};
    rows[1] = rows[0] + NC_MAX + STEP;
    for (int64_t p = 0; p < pairs; p++, dst += STEP) {
        for (int64_t r = 0; r < 2; r++) {
            if (2 * p + r < kc)
                row_bf16(rows[r], tmp, w, k0 + 2 * p + r, n0, nc);
            else
                memset(rows[r], 0, (size_t)nc * sizeof *rows[r]);
            memset(rows[r] + nc, 0, STEP * sizeof *rows[r]);
        }
        for (int64_t j = 0; j < nc; j += TILE)
            _mm512_store_si512(dst + j / TILE * sliver, weave_rows(rows[0] + j, rows[1] + j));
    }
}

double bf16_pack_cost(const weight *w) {
    switch (w->fmt->id) {
    case FMT_F32:
    case FMT_BF16: return 0.3;
    default: return nf4_aligned(w) ? 0.3 : 2;
    }
}
