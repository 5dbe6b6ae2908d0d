/* simd.h on AArch64 NEON: v16 is four q registers, lanes 0-3 in a ... 12-15 in d. Off AArch64 (tests only) SIMDe stands
 * in for arm_neon.h; it must be compiled with FMA, because its vfmaq_f32 is fused only then. */
#ifndef PEFT_KERNELS_CPU_SIMD_NEON_H
#define PEFT_KERNELS_CPU_SIMD_NEON_H

#if defined(__aarch64__)
#include <arm_neon.h>
#define NEON_DIV(x, y) vdivq_f32(x, y)
#define NEON_SQRT(x) vsqrtq_f32(x)
#elif defined(__FMA__)
#define SIMDE_ENABLE_NATIVE_ALIASES
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wshadow"
#include <simde/arm/neon.h>
#pragma GCC diagnostic pop
/* SIMDe 0.7.4 has neither; gcc's vectors divide lane by lane, and no kernel's speed matters here */
static inline float32x4_t neon_sqrt_lanes(float32x4_t x) {
    float l[4];
    vst1q_f32(l, x);
    for (int i = 0; i < 4; i++) l[i] = sqrtf(l[i]);
    return vld1q_f32(l);
}
static inline float32x4_t neon_div_lanes(float32x4_t x, float32x4_t y) {
    float l[4], r[4];
    vst1q_f32(l, x);
    vst1q_f32(r, y);
    for (int i = 0; i < 4; i++) l[i] /= r[i];
    return vld1q_f32(l);
}
#define NEON_DIV(x, y) neon_div_lanes(x, y)
#define NEON_SQRT(x) neon_sqrt_lanes(x)
#else
#error "NEON through SIMDe needs -mfma: an unfused vfmaq_f32 would change results"
#endif

typedef struct {
    float32x4_t a, b, c, d;
} v16;
typedef struct {
    int32x4_t a, b, c, d;
} v16i;
typedef struct {
    uint32x4_t a, b, c, d;
} v16m;

/* the same operation on all four parts */
#define NEON4_1(type, op, x) ((type){op((x).a), op((x).b), op((x).c), op((x).d)})
#define NEON4_2(type, op, x, y) ((type){op((x).a, (y).a), op((x).b, (y).b), op((x).c, (y).c), op((x).d, (y).d)})
#define NEON4_3(type, op, x, y, z)                                                                                     \
    ((type){op((x).a, (y).a, (z).a), op((x).b, (y).b, (z).b), op((x).c, (y).c, (z).c), op((x).d, (y).d, (z).d)})

static inline v16 v16_load(const float *p) {
    return (v16){vld1q_f32(p), vld1q_f32(p + 4), vld1q_f32(p + 8), vld1q_f32(p + 12)};
}
static inline void v16_store(float *p, v16 x) {
    vst1q_f32(p, x.a), vst1q_f32(p + 4, x.b), vst1q_f32(p + 8, x.c), vst1q_f32(p + 12, x.d);
}
static inline v16 v16_load_n(const float *p, int n) {
    float l[16] = {0};
    memcpy(l, p, (size_t)n * sizeof *p);
    return v16_load(l);
}
static inline void v16_store_n(float *p, v16 x, int n) {
    float l[16];
    v16_store(l, x);
    memcpy(p, l, (size_t)n * sizeof *p);
}
static inline v16 v16_set1(float s) { return (v16){vdupq_n_f32(s), vdupq_n_f32(s), vdupq_n_f32(s), vdupq_n_f32(s)}; }
static inline v16 v16_zero(void) { return v16_set1(0); }
static inline v16 v16_add(v16 x, v16 y) { return NEON4_2(v16, vaddq_f32, x, y); }
static inline v16 v16_sub(v16 x, v16 y) { return NEON4_2(v16, vsubq_f32, x, y); }
static inline v16 v16_mul(v16 x, v16 y) { return NEON4_2(v16, vmulq_f32, x, y); }
static inline v16 v16_div(v16 x, v16 y) { return NEON4_2(v16, NEON_DIV, x, y); }
static inline v16 v16_sqrt(v16 x) { return NEON4_1(v16, NEON_SQRT, x); }
static inline v16 v16_fma(v16 x, v16 y, v16 z) { return NEON4_3(v16, vfmaq_f32, z, x, y); }
static inline v16 v16_fnma(v16 x, v16 y, v16 z) {
    v16 n = NEON4_1(v16, vnegq_f32, x);
    return v16_fma(n, y, z);
}
static inline float32x4_t neon_max(float32x4_t x, float32x4_t y) { return vbslq_f32(vcgtq_f32(x, y), x, y); }
static inline float32x4_t neon_min(float32x4_t x, float32x4_t y) { return vbslq_f32(vcgtq_f32(y, x), x, y); }
static inline uint32x4_t neon_ne(float32x4_t x, float32x4_t y) { return vmvnq_u32(vceqq_f32(x, y)); }
static inline v16 v16_max(v16 x, v16 y) { return NEON4_2(v16, neon_max, x, y); }
static inline v16 v16_min(v16 x, v16 y) { return NEON4_2(v16, neon_min, x, y); }
static inline v16m v16_gt(v16 x, v16 y) { return NEON4_2(v16m, vcgtq_f32, x, y); }
static inline v16m v16_lt(v16 x, v16 y) { return NEON4_2(v16m, vcgtq_f32, y, x); }
static inline v16m v16_ne(v16 x, v16 y) { return NEON4_2(v16m, neon_ne, x, y); }
static inline v16 v16_select(v16m m, v16 x, v16 y) { return NEON4_3(v16, vbslq_f32, m, x, y); }
static inline v16i v16_bits(v16 x) { return NEON4_1(v16i, vreinterpretq_s32_f32, x); }
static inline v16 v16_of_bits(v16i x) { return NEON4_1(v16, vreinterpretq_f32_s32, x); }
static inline v16i v16i_load(const int32_t *p) {
    return (v16i){vld1q_s32(p), vld1q_s32(p + 4), vld1q_s32(p + 8), vld1q_s32(p + 12)};
}
static inline void v16i_store(int32_t *p, v16i x) {
    vst1q_s32(p, x.a), vst1q_s32(p + 4, x.b), vst1q_s32(p + 8, x.c), vst1q_s32(p + 12, x.d);
}
static inline v16i v16i_set1(int32_t s) {
    return (v16i){vdupq_n_s32(s), vdupq_n_s32(s), vdupq_n_s32(s), vdupq_n_s32(s)};
}
static inline v16i v16i_add(v16i x, v16i y) { return NEON4_2(v16i, vaddq_s32, x, y); }
static inline v16i v16i_sub(v16i x, v16i y) { return NEON4_2(v16i, vsubq_s32, x, y); }
static inline v16i v16i_and(v16i x, v16i y) { return NEON4_2(v16i, vandq_s32, x, y); }
static inline v16i v16i_or(v16i x, v16i y) { return NEON4_2(v16i, vorrq_s32, x, y); }
static inline v16i v16i_xor(v16i x, v16i y) { return NEON4_2(v16i, veorq_s32, x, y); }
static inline int32x4_t neon_shl(int32x4_t x, int k) { return vshlq_s32(x, vdupq_n_s32(k)); }
static inline int32x4_t neon_shr(int32x4_t x, int k) { /* logical: a left shift by -k of the unsigned value */
    return vreinterpretq_s32_u32(vshlq_u32(vreinterpretq_u32_s32(x), vdupq_n_s32(-k)));
}
static inline v16i v16i_shl(v16i x, int k) {
    return (v16i){neon_shl(x.a, k), neon_shl(x.b, k), neon_shl(x.c, k), neon_shl(x.d, k)};
}
static inline v16i v16i_shr(v16i x, int k) {
    return (v16i){neon_shr(x.a, k), neon_shr(x.b, k), neon_shr(x.c, k), neon_shr(x.d, k)};
}
static inline v16 v16_from_i(v16i x) { return NEON4_1(v16, vcvtq_f32_s32, x); }

/* the table's 64 bytes are one tbl operand: byte j of lane i is byte 4 * (i & 15) + j */
static inline float32x4_t neon_lookup(int32x4_t i, uint8x16x4_t t) {
    uint32x4_t k = vandq_u32(vreinterpretq_u32_s32(i), vdupq_n_u32(15));
    uint32x4_t at = vmlaq_u32(vdupq_n_u32(0x03020100), k, vdupq_n_u32(0x04040404));
    return vreinterpretq_f32_u8(vqtbl4q_u8(t, vreinterpretq_u8_u32(at)));
}
static inline v16 v16_lookup(v16i i, const float *t) {
    uint8x16x4_t b;
    for (int j = 0; j < 4; j++) b.val[j] = vreinterpretq_u8_f32(vld1q_f32(t + 4 * j));
    return (v16){neon_lookup(i.a, b), neon_lookup(i.b, b), neon_lookup(i.c, b), neon_lookup(i.d, b)};
}

static inline int8x16_t neon_bytes(int32x4_t x) { return vreinterpretq_s8_s32(x); }
static inline v16i v16i_table(const int8_t *p) {
    int32x4_t t = vreinterpretq_s32_s8(vld1q_s8(p));
    return (v16i){t, t, t, t};
}
static inline int32x4_t neon_pick(int32x4_t t, int32x4_t i) {
    return vreinterpretq_s32_s8(vqtbl1q_s8(neon_bytes(t), vreinterpretq_u8_s32(i)));
}
static inline v16i v16i_pick(v16i t, v16i i) { return NEON4_2(v16i, neon_pick, t, i); }
static inline v16i v16i_set4(const int8_t *p) {
    int32_t four;
    memcpy(&four, p, sizeof four);
    return v16i_set1(four);
}
static inline void v16i_put_bytes(int8_t *p, v16i x) {
    int16x8_t lo = vcombine_s16(vmovn_s32(x.a), vmovn_s32(x.b)), hi = vcombine_s16(vmovn_s32(x.c), vmovn_s32(x.d));
    vst1q_s8(p, vcombine_s8(vmovn_s16(lo), vmovn_s16(hi)));
}
static inline v16i neon_widen(int16x8_t lo, int16x8_t hi) {
    return (v16i){vmovl_s16(vget_low_s16(lo)), vmovl_s16(vget_high_s16(lo)), vmovl_s16(vget_low_s16(hi)),
                  vmovl_s16(vget_high_s16(hi))};
}
static inline v16 v16_from_u8(const uint8_t *p) {
    uint8x16_t x = vld1q_u8(p);
    return v16_from_i(
        neon_widen(vreinterpretq_s16_u16(vmovl_u8(vget_low_u8(x))), vreinterpretq_s16_u16(vmovl_u8(vget_high_u8(x)))));
}
static inline v16 v16_from_s8(const uint8_t *p) {
    int8x16_t x = vreinterpretq_s8_u8(vld1q_u8(p));
    return v16_from_i(neon_widen(vmovl_s8(vget_low_s8(x)), vmovl_s8(vget_high_s8(x))));
}
enum { DOT_BIAS = 0 };
#if defined(__ARM_FEATURE_DOTPROD)
static inline int32x4_t neon_dot(int32x4_t c, int32x4_t w, int32x4_t x) {
    return vdotq_s32(c, neon_bytes(w), neon_bytes(x));
}
#else
static inline int32x4_t neon_dot(int32x4_t c, int32x4_t w, int32x4_t x) {
    int8x16_t a = neon_bytes(w), b = neon_bytes(x);
    int32x4_t lo = vpaddlq_s16(vmull_s8(vget_low_s8(a), vget_low_s8(b)));
    int32x4_t hi = vpaddlq_s16(vmull_s8(vget_high_s8(a), vget_high_s8(b)));
    return vaddq_s32(c, vpaddq_s32(lo, hi));
}
#endif
static inline v16i v16i_dot(v16i c, v16i u, v16i x) { return NEON4_3(v16i, neon_dot, c, u, x); }
static inline v16i v16i_dot_wide(v16i c, v16i w, v16i x) { return NEON4_3(v16i, neon_dot, c, w, x); }

static inline float32x4_t neon_bf16(const uint16_t *p) {
    return vreinterpretq_f32_u32(vshlq_n_u32(vmovl_u16(vld1_u16(p)), 16));
}
static inline v16 v16_from_bf16(const uint16_t *p) {
    return (v16){neon_bf16(p), neon_bf16(p + 4), neon_bf16(p + 8), neon_bf16(p + 12)};
}
static inline void v16_to_bf16(uint16_t *p, v16 x) {
    float l[16];
    v16_store(l, x);
    for (int i = 0; i < 16; i++) p[i] = float_to_bf16(l[i]);
}
static inline v16 v16_from_f16(const uint16_t *p) {
    float l[16];
    for (int i = 0; i < 16; i++) l[i] = f16_to_float(p[i]);
    return v16_load(l);
}
static inline void v16_to_f16(uint16_t *p, v16 x) {
    float l[16];
    v16_store(l, x);
    for (int i = 0; i < 16; i++) p[i] = float_to_f16(l[i]);
}

static inline float v16_sum(v16 x) {
    float32x4_t s = vaddq_f32(vaddq_f32(x.a, x.c), vaddq_f32(x.b, x.d));
    return (vgetq_lane_f32(s, 0) + vgetq_lane_f32(s, 2)) + (vgetq_lane_f32(s, 1) + vgetq_lane_f32(s, 3));
}
static inline float v16_hmax(v16 x) {
    float32x4_t s = neon_max(neon_max(x.a, x.c), neon_max(x.b, x.d));
    float l[4];
    vst1q_f32(l, s);
    float e = l[0] > l[2] ? l[0] : l[2], o = l[1] > l[3] ? l[1] : l[3];
    return e > o ? e : o;
}

/* GEMM tile: 6 x 16 of two-register values, 24 accumulators + 4 of B + broadcasts by lane of 32 registers */
enum { VN = 8, TILE_ROWS = 6 };
#define EACH_TILE(X) X(1) X(2) X(3) X(4) X(5) X(6)
typedef struct {
    float32x4_t a, b;
} vn;
static inline vn vn_load(const float *p) { return (vn){vld1q_f32(p), vld1q_f32(p + 4)}; }
static inline void vn_store(float *p, vn x) { vst1q_f32(p, x.a), vst1q_f32(p + 4, x.b); }
static inline vn vn_set1(float s) { return (vn){vdupq_n_f32(s), vdupq_n_f32(s)}; }
static inline vn vn_mul(vn x, vn y) { return (vn){vmulq_f32(x.a, y.a), vmulq_f32(x.b, y.b)}; }
static inline vn vn_fma(vn x, vn y, vn z) { return (vn){vfmaq_f32(z.a, x.a, y.a), vfmaq_f32(z.b, x.b, y.b)}; }
static inline void vn_transpose(float *dst, int64_t ldd, const float *src, int64_t lds) {
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 8; j++) dst[j * ldd + i] = src[i * lds + j];
}

typedef struct {
    int32x4_t a, b;
} vni;
typedef uint8x16x4_t vn_table;
static inline vn_table vn_table_load(const float *t) {
    vn_table b;
    for (int j = 0; j < 4; j++) b.val[j] = vreinterpretq_u8_f32(vld1q_f32(t + 4 * j));
    return b;
}
static inline vn vn_code(vn_table t, vni x, int shift) {
    return (vn){neon_lookup(neon_shr(x.a, shift), t), neon_lookup(neon_shr(x.b, shift), t)};
}
static inline vn vn_codes(vn_table t, const uint8_t *p) {
    static const int32_t down[8] = {-4, 0, -12, -8, -20, -16, -28, -24};
    uint32_t four;
    memcpy(&four, p, 4);
    uint32x4_t x = vdupq_n_u32(four);
    return (vn){neon_lookup(vreinterpretq_s32_u32(vshlq_u32(x, vld1q_s32(down))), t),
                neon_lookup(vreinterpretq_s32_u32(vshlq_u32(x, vld1q_s32(down + 4))), t)};
}
static inline void vni_rows(vni x[4], const uint8_t *src, int64_t stride) {
    int32_t l[4][8];
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < 4; j++) memcpy(&l[j][i], src + i * stride + 4 * j, 4);
    for (int j = 0; j < 4; j++) x[j] = (vni){vld1q_s32(l[j]), vld1q_s32(l[j] + 4)};
}

#endif
