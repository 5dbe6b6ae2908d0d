/* simd.h on AVX-512 F/BW/VL/DQ: v16 is one zmm. */
#ifndef PEFT_KERNELS_CPU_SIMD_AVX512_H
#define PEFT_KERNELS_CPU_SIMD_AVX512_H

#if defined(__AVX512F__)
#include <immintrin.h>
#else
#include "kernels/cpu/simd_simde.h"
#endif

typedef __m512 v16;
typedef __m512i v16i;
typedef __mmask16 v16m;

static inline __mmask16 v16_first(int n) { return (__mmask16)((1u << n) - 1); }

static inline v16 v16_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void v16_store(float *p, v16 a) { _mm512_storeu_ps(p, a); }
static inline v16 v16_load_n(const float *p, int n) { return _mm512_maskz_loadu_ps(v16_first(n), p); }
static inline void v16_store_n(float *p, v16 a, int n) { _mm512_mask_storeu_ps(p, v16_first(n), a); }
static inline v16 v16_zero(void) { return _mm512_setzero_ps(); }
static inline v16 v16_set1(float s) { return _mm512_set1_ps(s); }
static inline v16 v16_add(v16 a, v16 b) { return _mm512_add_ps(a, b); }
static inline v16 v16_sub(v16 a, v16 b) { return _mm512_sub_ps(a, b); }
static inline v16 v16_mul(v16 a, v16 b) { return _mm512_mul_ps(a, b); }
static inline v16 v16_div(v16 a, v16 b) { return _mm512_div_ps(a, b); }
static inline v16 v16_sqrt(v16 a) { return _mm512_sqrt_ps(a); }
static inline v16 v16_fma(v16 a, v16 b, v16 c) { return _mm512_fmadd_ps(a, b, c); }
static inline v16 v16_fnma(v16 a, v16 b, v16 c) { return _mm512_fnmadd_ps(a, b, c); }
static inline v16 v16_max(v16 a, v16 b) { return _mm512_max_ps(a, b); }
static inline v16 v16_min(v16 a, v16 b) { return _mm512_min_ps(a, b); }
static inline v16m v16_lt(v16 a, v16 b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
static inline v16m v16_gt(v16 a, v16 b) { return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ); }
static inline v16m v16_ne(v16 a, v16 b) { return _mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ); }
static inline v16 v16_select(v16m m, v16 a, v16 b) { return _mm512_mask_blend_ps(m, b, a); }
static inline v16i v16_bits(v16 a) { return _mm512_castps_si512(a); }
static inline v16 v16_of_bits(v16i a) { return _mm512_castsi512_ps(a); }
static inline v16i v16i_load(const int32_t *p) { return _mm512_loadu_si512(p); }
static inline void v16i_store(int32_t *p, v16i a) { _mm512_storeu_si512(p, a); }
static inline v16i v16i_set1(int32_t s) { return _mm512_set1_epi32(s); }
static inline v16i v16i_add(v16i a, v16i b) { return _mm512_add_epi32(a, b); }
static inline v16i v16i_sub(v16i a, v16i b) { return _mm512_sub_epi32(a, b); }
static inline v16i v16i_and(v16i a, v16i b) { return _mm512_and_si512(a, b); }
static inline v16i v16i_or(v16i a, v16i b) { return _mm512_or_si512(a, b); }
static inline v16i v16i_xor(v16i a, v16i b) { return _mm512_xor_si512(a, b); }
static inline v16i v16i_shl(v16i a, int k) { return _mm512_slli_epi32(a, (unsigned)k); }
static inline v16i v16i_shr(v16i a, int k) { return _mm512_srli_epi32(a, (unsigned)k); }
static inline v16 v16_from_i(v16i a) { return _mm512_cvtepi32_ps(a); }
static inline v16 v16_lookup(v16i i, const float *t) { return _mm512_permutexvar_ps(i, _mm512_loadu_ps(t)); }

static inline v16i v16i_table(const int8_t *p) { return _mm512_broadcast_i32x4(_mm_loadu_si128((const __m128i *)p)); }
static inline v16i v16i_pick(v16i t, v16i i) { return _mm512_shuffle_epi8(t, i); }
static inline v16i v16i_set4(const int8_t *p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return _mm512_set1_epi32(four);
}
static inline void v16i_put_bytes(int8_t *p, v16i a) { _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8(a)); }
static inline v16 v16_from_u8(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
static inline v16 v16_from_s8(const uint8_t *p) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
#if defined(ISA_vnni)
enum { DOT_BIAS = 128 };
static inline v16i v16i_dot(v16i c, v16i u, v16i x) { return _mm512_dpbusd_epi32(c, u, x); }
static inline v16i v16i_dot_wide(v16i c, v16i w, v16i x) { return _mm512_dpbusd_epi32(c, w, x); }
#else
/* pairs of products saturate at 16 bits: |w| and x with w's sign stay within 2 * 127 * 127 */
enum { DOT_BIAS = 0 };
static inline v16i v16i_dot(v16i c, v16i u, v16i x) {
    return _mm512_add_epi32(c, _mm512_madd_epi16(_mm512_maddubs_epi16(u, x), _mm512_set1_epi16(1)));
}
static inline v16i v16i_dot_wide(v16i c, v16i w, v16i x) {
    return v16i_dot(c, _mm512_abs_epi8(w), _mm512_mask_sub_epi8(x, _mm512_movepi8_mask(w), _mm512_setzero_si512(), x));
}
#endif

static inline v16 v16_from_bf16(const uint16_t *p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}

static inline void v16_to_bf16(uint16_t *p, v16 a) {
    __m512i u = _mm512_castps_si512(a), top = _mm512_srli_epi32(u, 16);
    __m512i even = _mm512_and_si512(top, _mm512_set1_epi32(1));
    __m512i r = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), even), 16);
    __m512i nan = _mm512_or_si512(top, _mm512_set1_epi32(0x40));
    r = _mm512_mask_blend_epi32(v16_ne(a, a), r, nan);
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(r));
}

static inline v16 v16_from_f16(const uint16_t *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p)); }

static inline void v16_to_f16(uint16_t *p, v16 a) {
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT));
}

static inline __m256 v16_low(v16 a) { return _mm512_castps512_ps256(a); }
static inline __m256 v16_high(v16 a) { return _mm512_extractf32x8_ps(a, 1); }

static inline float v16_sum(v16 a) {
    __m256 b = _mm256_add_ps(v16_low(a), v16_high(a));
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
}

static inline float v16_hmax(v16 a) {
    __m256 b = _mm256_max_ps(v16_low(a), v16_high(a));
    __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_shuffle_ps(c, c, 1)));
}

/* GEMM tile: 14 x 32, 28 accumulators + 2 of B + 1 broadcast of 32 registers */
enum { VN = 16, TILE_ROWS = 14 };
#define EACH_TILE(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14)
typedef __m512 vn;
static inline vn vn_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void vn_store(float *p, vn a) { _mm512_storeu_ps(p, a); }
static inline vn vn_set1(float s) { return _mm512_set1_ps(s); }
static inline vn vn_mul(vn a, vn b) { return _mm512_mul_ps(a, b); }
static inline vn vn_fma(vn a, vn b, vn c) { return _mm512_fmadd_ps(a, b, c); }

/* four rows j, j+4, j+8, j+12 of a 4-column strip side by side, so that an in-lane 4x4 transpose finishes the strip */
static inline __m512 strip4(const float *src, int64_t lds) {
    __m512 r = _mm512_castps128_ps512(_mm_loadu_ps(src));
    r = _mm512_insertf32x4(r, _mm_loadu_ps(src + 4 * lds), 1);
    r = _mm512_insertf32x4(r, _mm_loadu_ps(src + 8 * lds), 2);
    return _mm512_insertf32x4(r, _mm_loadu_ps(src + 12 * lds), 3);
}

/* in every 128-bit lane: rows a b c d of 4 become columns */
static inline void transpose4_lanes(__m512 *a, __m512 *b, __m512 *c, __m512 *d) {
    __m512 t0 = _mm512_unpacklo_ps(*a, *b), t1 = _mm512_unpackhi_ps(*a, *b);
    __m512 t2 = _mm512_unpacklo_ps(*c, *d), t3 = _mm512_unpackhi_ps(*c, *d);
    *a = _mm512_shuffle_ps(t0, t2, 0x44);
    *b = _mm512_shuffle_ps(t0, t2, 0xee);
    *c = _mm512_shuffle_ps(t1, t3, 0x44);
    *d = _mm512_shuffle_ps(t1, t3, 0xee);
}

static inline void vn_transpose(float *dst, int64_t ldd, const float *src, int64_t lds) {
    for (int j = 0; j < 16; j += 4) {
        __m512 a = strip4(src + j, lds), b = strip4(src + lds + j, lds);
        __m512 c = strip4(src + 2 * lds + j, lds), d = strip4(src + 3 * lds + j, lds);
        transpose4_lanes(&a, &b, &c, &d);
        _mm512_storeu_ps(dst + j * ldd, a);
        _mm512_storeu_ps(dst + (j + 1) * ldd, b);
        _mm512_storeu_ps(dst + (j + 2) * ldd, c);
        _mm512_storeu_ps(dst + (j + 3) * ldd, d);
    }
}

typedef __m512i vni;
typedef __m512 vn_table;
static inline vn_table vn_table_load(const float *t) { return _mm512_loadu_ps(t); }
static inline vn vn_code(vn_table t, vni x, int shift) { /* vpermps looks at the low 4 bits only */
    return _mm512_permutexvar_ps(_mm512_srli_epi32(x, (unsigned)shift), t);
}
static inline vn vn_codes(vn_table t, const uint8_t *p) {
    __m128i b = _mm_loadl_epi64((const __m128i *)p);
    __m512i x = _mm512_cvtepu8_epi32(_mm_unpacklo_epi8(b, b));
    return _mm512_permutexvar_ps(_mm512_srlv_epi32(x, _mm512_set1_epi64(4)), t);
}
static inline void vni_rows(vni x[4], const uint8_t *src, int64_t stride) {
    const float *p = (const float *)(const void *)src;
    int64_t lds = stride / 4;
    __m512 a = strip4(p, lds), b = strip4(p + lds, lds), c = strip4(p + 2 * lds, lds), d = strip4(p + 3 * lds, lds);
    transpose4_lanes(&a, &b, &c, &d);
    x[0] = _mm512_castps_si512(a), x[1] = _mm512_castps_si512(b);
    x[2] = _mm512_castps_si512(c), x[3] = _mm512_castps_si512(d);
}

#endif
