/* AVX-512 on a machine without it, for tests only: SIMDe, and lane by lane what version 0.7.4 lacks of what we use. */
#ifndef PEFT_KERNELS_CPU_SIMD_SIMDE_H
#define PEFT_KERNELS_CPU_SIMD_SIMDE_H

#ifndef __FMA__
#error "AVX-512 through SIMDe needs -mfma: an unfused multiply-add would change results"
#endif

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>

static inline __m512 lanes_loadu_n(unsigned mask, const float *p) {
    float l[16];
    for (int i = 0; i < 16; i++) l[i] = mask >> i & 1 ? p[i] : 0;
    return _mm512_loadu_ps(l);
}
static inline void lanes_storeu_n(float *p, unsigned mask, __m512 a) {
    float l[16];
    _mm512_storeu_ps(l, a);
    for (int i = 0; i < 16; i++)
        if (mask >> i & 1) p[i] = l[i];
}
static inline __m512 lanes_from_i32(__m512i a) {
    int32_t l[16];
    float f[16];
    _mm512_storeu_si512(l, a);
    for (int i = 0; i < 16; i++) f[i] = (float)l[i];
    return _mm512_loadu_ps(f);
}
static inline __m512i lanes_from_u16(__m256i a) {
    uint16_t h[16];
    int32_t l[16];
    memcpy(h, &a, sizeof h);
    for (int i = 0; i < 16; i++) l[i] = h[i];
    return _mm512_loadu_si512(l);
}
static inline __m512i lanes_from_u8(__m128i a) {
    uint8_t b[16];
    int32_t l[16];
    memcpy(b, &a, sizeof b);
    for (int i = 0; i < 16; i++) l[i] = b[i];
    return _mm512_loadu_si512(l);
}
static inline __m512i lanes_from_s8(__m128i a) {
    int8_t b[16];
    int32_t l[16];
    memcpy(b, &a, sizeof b);
    for (int i = 0; i < 16; i++) l[i] = b[i];
    return _mm512_loadu_si512(l);
}
static inline __m128i lanes_to_s8(__m512i a) {
    int32_t l[16];
    int8_t b[16];
    __m128i r;
    _mm512_storeu_si512(l, a);
    for (int i = 0; i < 16; i++) b[i] = (int8_t)(uint8_t)l[i];
    memcpy(&r, b, sizeof r);
    return r;
}
static inline __m256i lanes_to_u16(__m512i a) {
    int32_t l[16];
    uint16_t h[16];
    __m256i r;
    _mm512_storeu_si512(l, a);
    for (int i = 0; i < 16; i++) h[i] = (uint16_t)l[i];
    memcpy(&r, h, sizeof r);
    return r;
}
static inline __m512 lanes_from_f16(__m256i a) {
    uint16_t h[16];
    float f[16];
    memcpy(h, &a, sizeof h);
    for (int i = 0; i < 16; i++) f[i] = f16_to_float(h[i]);
    return _mm512_loadu_ps(f);
}
static inline __m256i lanes_to_f16(__m512 a) {
    float f[16];
    uint16_t h[16];
    __m256i r;
    _mm512_storeu_ps(f, a);
    for (int i = 0; i < 16; i++) h[i] = float_to_f16(f[i]);
    memcpy(&r, h, sizeof r);
    return r;
}
static inline __m256 lanes_half(__m512 a, int half) {
    float f[16];
    _mm512_storeu_ps(f, a);
    return _mm256_loadu_ps(f + 8 * half);
}

#undef _mm512_madd_epi16 /* the alias of 0.7.4 names the masked one */
#define _mm512_madd_epi16(a, b) simde_mm512_madd_epi16(a, b)
#define _mm512_maskz_loadu_ps(mask, p) lanes_loadu_n(mask, p)
#define _mm512_mask_storeu_ps(p, mask, a) lanes_storeu_n(p, mask, a)
#define _mm512_cvtepi32_ps(a) lanes_from_i32(a)
#define _mm512_cvtepu16_epi32(a) lanes_from_u16(a)
#define _mm512_cvtepu8_epi32(a) lanes_from_u8(a)
#define _mm512_cvtepi8_epi32(a) lanes_from_s8(a)
#define _mm512_cvtepi32_epi8(a) lanes_to_s8(a)
#define _mm512_cvtepi32_epi16(a) lanes_to_u16(a)
#define _mm512_cvtph_ps(a) lanes_from_f16(a)
#define _mm512_cvtps_ph(a, round) lanes_to_f16(a)
#define _mm512_extractf32x8_ps(a, half) lanes_half(a, half)

#endif
