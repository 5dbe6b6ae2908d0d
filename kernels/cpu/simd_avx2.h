/* simd.h on AVX2 + FMA + F16C: v16 is two ymm, lanes 0-7 in a and 8-15 in b. */
#ifndef PEFT_KERNELS_CPU_SIMD_AVX2_H
#define PEFT_KERNELS_CPU_SIMD_AVX2_H

#include <immintrin.h>

typedef struct {
    __m256 a, b;
} v16;
typedef struct {
    __m256i a, b;
} v16i;
typedef struct {
    __m256 a, b;
} v16m;

/* lanes with index (from + lane) < n */
static inline __m256i first8(int n, int from) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n - from), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static inline v16 v16_load(const float *p) { return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
static inline void v16_store(float *p, v16 a) { _mm256_storeu_ps(p, a.a), _mm256_storeu_ps(p + 8, a.b); }
static inline v16 v16_load_n(const float *p, int n) {
    return (v16){_mm256_maskload_ps(p, first8(n, 0)), _mm256_maskload_ps(p + 8, first8(n, 8))};
}
static inline void v16_store_n(float *p, v16 a, int n) {
    _mm256_maskstore_ps(p, first8(n, 0), a.a), _mm256_maskstore_ps(p + 8, first8(n, 8), a.b);
}
static inline v16 v16_zero(void) { return (v16){_mm256_setzero_ps(), _mm256_setzero_ps()}; }
static inline v16 v16_set1(float s) { return (v16){_mm256_set1_ps(s), _mm256_set1_ps(s)}; }
static inline v16 v16_add(v16 x, v16 y) { return (v16){_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
static inline v16 v16_sub(v16 x, v16 y) { return (v16){_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
static inline v16 v16_mul(v16 x, v16 y) { return (v16){_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
static inline v16 v16_div(v16 x, v16 y) { return (v16){_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
static inline v16 v16_sqrt(v16 x) { return (v16){_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
static inline v16 v16_fma(v16 x, v16 y, v16 z) {
    return (v16){_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)};
}
static inline v16 v16_fnma(v16 x, v16 y, v16 z) {
    return (v16){_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)};
}
static inline v16 v16_max(v16 x, v16 y) { return (v16){_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
static inline v16 v16_min(v16 x, v16 y) { return (v16){_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
static inline v16m v16_lt(v16 x, v16 y) {
    return (v16m){_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ)};
}
static inline v16m v16_gt(v16 x, v16 y) {
    return (v16m){_mm256_cmp_ps(x.a, y.a, _CMP_GT_OQ), _mm256_cmp_ps(x.b, y.b, _CMP_GT_OQ)};
}
static inline v16m v16_ne(v16 x, v16 y) {
    return (v16m){_mm256_cmp_ps(x.a, y.a, _CMP_NEQ_UQ), _mm256_cmp_ps(x.b, y.b, _CMP_NEQ_UQ)};
}
static inline v16 v16_select(v16m m, v16 x, v16 y) {
    return (v16){_mm256_blendv_ps(y.a, x.a, m.a), _mm256_blendv_ps(y.b, x.b, m.b)};
}
static inline v16i v16_bits(v16 x) { return (v16i){_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
static inline v16 v16_of_bits(v16i x) { return (v16){_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
static inline v16i v16i_load(const int32_t *p) {
    return (v16i){_mm256_loadu_si256((const __m256i *)p), _mm256_loadu_si256((const __m256i *)(p + 8))};
}
static inline void v16i_store(int32_t *p, v16i x) {
    _mm256_storeu_si256((__m256i *)p, x.a), _mm256_storeu_si256((__m256i *)(p + 8), x.b);
}
static inline v16i v16i_set1(int32_t s) { return (v16i){_mm256_set1_epi32(s), _mm256_set1_epi32(s)}; }
static inline v16i v16i_add(v16i x, v16i y) { return (v16i){_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)}; }
static inline v16i v16i_sub(v16i x, v16i y) { return (v16i){_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)}; }
static inline v16i v16i_and(v16i x, v16i y) { return (v16i){_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)}; }
static inline v16i v16i_or(v16i x, v16i y) { return (v16i){_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)}; }
static inline v16i v16i_xor(v16i x, v16i y) { return (v16i){_mm256_xor_si256(x.a, y.a), _mm256_xor_si256(x.b, y.b)}; }
static inline v16i v16i_shl(v16i x, int k) { return (v16i){_mm256_slli_epi32(x.a, k), _mm256_slli_epi32(x.b, k)}; }
static inline v16i v16i_shr(v16i x, int k) { return (v16i){_mm256_srli_epi32(x.a, k), _mm256_srli_epi32(x.b, k)}; }
static inline v16 v16_from_i(v16i x) { return (v16){_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }

/* vpermps takes the low 3 bits of the index, blendv looks at bit 31: bit 3 is shifted there */
static inline __m256 lookup8(__m256i i, __m256 low, __m256 high) {
    __m256 m = _mm256_castsi256_ps(_mm256_slli_epi32(i, 28));
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(low, i), _mm256_permutevar8x32_ps(high, i), m);
}
static inline v16 v16_lookup(v16i i, const float *t) {
    __m256 low = _mm256_loadu_ps(t), high = _mm256_loadu_ps(t + 8);
    return (v16){lookup8(i.a, low, high), lookup8(i.b, low, high)};
}

static inline v16i v16i_table(const int8_t *p) {
    __m256i t = _mm256_broadcastsi128_si256(_mm_loadu_si128((const __m128i *)p));
    return (v16i){t, t};
}
static inline v16i v16i_pick(v16i t, v16i i) {
    return (v16i){_mm256_shuffle_epi8(t.a, i.a), _mm256_shuffle_epi8(t.b, i.b)};
}
static inline v16i v16i_set4(const int8_t *p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return v16i_set1(four);
}
static inline void v16i_put_bytes(int8_t *p, v16i x) {
    const __m256i low = _mm256_set1_epi32(0xff);
    __m256i u = _mm256_packus_epi32(_mm256_and_si256(x.a, low), _mm256_and_si256(x.b, low));
    u = _mm256_permute4x64_epi64(u, 0xd8);
    _mm_storeu_si128((__m128i *)p, _mm_packus_epi16(_mm256_castsi256_si128(u), _mm256_extracti128_si256(u, 1)));
}
static inline v16 v16_from_u8(const uint8_t *p) {
    __m128i x = _mm_loadu_si128((const __m128i *)p);
    return v16_from_i((v16i){_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128(x, 8))});
}
static inline v16 v16_from_s8(const uint8_t *p) {
    __m128i x = _mm_loadu_si128((const __m128i *)p);
    return v16_from_i((v16i){_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128(x, 8))});
}
/* pairs of products saturate at 16 bits: |w| and x with w's sign stay within 2 * 127 * 127 */
enum { DOT_BIAS = 0 };
static inline __m256i dot8(__m256i c, __m256i u, __m256i x) {
    return _mm256_add_epi32(c, _mm256_madd_epi16(_mm256_maddubs_epi16(u, x), _mm256_set1_epi16(1)));
}
static inline v16i v16i_dot(v16i c, v16i u, v16i x) { return (v16i){dot8(c.a, u.a, x.a), dot8(c.b, u.b, x.b)}; }
static inline v16i v16i_dot_wide(v16i c, v16i w, v16i x) {
    return (v16i){dot8(c.a, _mm256_abs_epi8(w.a), _mm256_sign_epi8(x.a, w.a)),
                  dot8(c.b, _mm256_abs_epi8(w.b), _mm256_sign_epi8(x.b, w.b))};
}

static inline __m256 bf16_8(const uint16_t *p) {
    __m256i u = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(u, 16));
}
static inline v16 v16_from_bf16(const uint16_t *p) { return (v16){bf16_8(p), bf16_8(p + 8)}; }

static inline __m256i to_bf16_8(__m256 a) {
    __m256i u = _mm256_castps_si256(a), top = _mm256_srli_epi32(u, 16);
    __m256i even = _mm256_and_si256(top, _mm256_set1_epi32(1));
    __m256i r = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), even), 16);
    __m256i nan = _mm256_or_si256(top, _mm256_set1_epi32(0x40));
    return _mm256_blendv_epi8(r, nan, _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_NEQ_UQ)));
}
static inline void v16_to_bf16(uint16_t *p, v16 x) {
    __m256i u = _mm256_packus_epi32(to_bf16_8(x.a), to_bf16_8(x.b));
    _mm256_storeu_si256((__m256i *)p, _mm256_permute4x64_epi64(u, 0xd8));
}

static inline v16 v16_from_f16(const uint16_t *p) {
    return (v16){_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p)),
                 _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(p + 8)))};
}
static inline void v16_to_f16(uint16_t *p, v16 x) {
    _mm_storeu_si128((__m128i *)p, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128((__m128i *)(p + 8), _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}

static inline float v16_sum(v16 x) {
    __m256 b = _mm256_add_ps(x.a, x.b);
    __m128 c = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_add_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
}

static inline float v16_hmax(v16 x) {
    __m256 b = _mm256_max_ps(x.a, x.b);
    __m128 c = _mm_max_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    c = _mm_max_ps(c, _mm_movehl_ps(c, c));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_shuffle_ps(c, c, 1)));
}

/* GEMM tile: 6 x 16, 12 accumulators + 2 of B + 1 broadcast of 16 registers */
enum { VN = 8, TILE_ROWS = 6 };
#define EACH_TILE(X) X(1) X(2) X(3) X(4) X(5) X(6)
typedef __m256 vn;
static inline vn vn_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void vn_store(float *p, vn a) { _mm256_storeu_ps(p, a); }
static inline vn vn_set1(float s) { return _mm256_set1_ps(s); }
static inline vn vn_mul(vn a, vn b) { return _mm256_mul_ps(a, b); }
static inline vn vn_fma(vn a, vn b, vn c) { return _mm256_fmadd_ps(a, b, c); }

static inline __m256 strip4(const float *src, int64_t lds) {
    return _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(src)), _mm_loadu_ps(src + 4 * lds), 1);
}

/* in both 128-bit lanes: rows a b c d of 4 become columns */
static inline void transpose4_lanes(__m256 *a, __m256 *b, __m256 *c, __m256 *d) {
    __m256 t0 = _mm256_unpacklo_ps(*a, *b), t1 = _mm256_unpackhi_ps(*a, *b);
    __m256 t2 = _mm256_unpacklo_ps(*c, *d), t3 = _mm256_unpackhi_ps(*c, *d);
    *a = _mm256_shuffle_ps(t0, t2, 0x44);
    *b = _mm256_shuffle_ps(t0, t2, 0xee);
    *c = _mm256_shuffle_ps(t1, t3, 0x44);
    *d = _mm256_shuffle_ps(t1, t3, 0xee);
}

static inline void vn_transpose(float *dst, int64_t ldd, const float *src, int64_t lds) {
    for (int j = 0; j < 8; j += 4) {
        __m256 a = strip4(src + j, lds), b = strip4(src + lds + j, lds);
        __m256 c = strip4(src + 2 * lds + j, lds), d = strip4(src + 3 * lds + j, lds);
        transpose4_lanes(&a, &b, &c, &d);
        _mm256_storeu_ps(dst + j * ldd, a);
        _mm256_storeu_ps(dst + (j + 1) * ldd, b);
        _mm256_storeu_ps(dst + (j + 2) * ldd, c);
        _mm256_storeu_ps(dst + (j + 3) * ldd, d);
    }
}

typedef __m256i vni;
typedef struct {
    __m256 low, high;
} vn_table;
static inline vn_table vn_table_load(const float *t) { return (vn_table){_mm256_loadu_ps(t), _mm256_loadu_ps(t + 8)}; }
static inline vn vn_code(vn_table t, vni x, int shift) {
    __m256i i = _mm256_srli_epi32(x, shift);
    __m256 high = _mm256_castsi256_ps(_mm256_slli_epi32(x, 28 - shift));
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(t.low, i), _mm256_permutevar8x32_ps(t.high, i), high);
}
/* the four bytes in every lane, each lane's nibble shifted down for vpermps and its bit 3 up for the blend */
static inline vn vn_codes(vn_table t, const uint8_t *p) {
    int32_t four;
    memcpy(&four, p, 4);
    __m256i x = _mm256_set1_epi32(four);
    __m256i i = _mm256_srlv_epi32(x, _mm256_setr_epi32(4, 0, 12, 8, 20, 16, 28, 24));
    __m256 high = _mm256_castsi256_ps(_mm256_sllv_epi32(x, _mm256_setr_epi32(24, 28, 16, 20, 8, 12, 0, 4)));
    return _mm256_blendv_ps(_mm256_permutevar8x32_ps(t.low, i), _mm256_permutevar8x32_ps(t.high, i), high);
}
static inline void vni_rows(vni x[4], const uint8_t *src, int64_t stride) {
    const float *p = (const float *)(const void *)src;
    int64_t lds = stride / 4;
    __m256 a = strip4(p, lds), b = strip4(p + lds, lds), c = strip4(p + 2 * lds, lds), d = strip4(p + 3 * lds, lds);
    transpose4_lanes(&a, &b, &c, &d);
    x[0] = _mm256_castps_si256(a), x[1] = _mm256_castps_si256(b);
    x[2] = _mm256_castps_si256(c), x[3] = _mm256_castps_si256(d);
}

#endif
