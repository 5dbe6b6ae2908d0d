/* Sixteen floats in one value, `v16`: the only place that knows a vector register. One zmm, two ymm or four NEON
 * registers; the same operations in the same order everywhere, so the same bits everywhere.
 *
 *   v16   16 floats         v16i  16 int32 (bits; shifts are logical)         v16m  16 truth values
 *   v16_load(p) v16_store(p, a)              any alignment
 *   v16_load_n(p, n) v16_store_n(p, a, n)    the first n lanes, 0 <= n <= 16; other lanes read as 0, other memory
 * untouched v16_zero() v16_set1(s) v16_add sub mul div sqrt                 correctly rounded, one operation each
 *   v16_fma(a, b, c) = a*b + c               v16_fnma(a, b, c) = c - a*b            one rounding
 *   v16_max(a, b) = a > b ? a : b            v16_min(a, b) = a < b ? a : b          so b where either is NaN
 *   v16_lt(a, b) v16_gt(a, b) v16_ne(a, b)   ordered <, >; ne is true for NaN
 *   v16_select(m, a, b) = m ? a : b
 *   v16_bits(a) v16_of_bits(i)               reinterpretation
 *   v16i_load(p) v16i_store(p, a) v16i_set1 v16i_add v16i_sub v16i_and v16i_or v16i_xor v16i_shl(a, k) v16i_shr(a, k)
 *   v16_from_i(i)                            int32 to float, rounded to nearest even; v16_from_i8(p) 16 of int8_t
 *   v16_lookup(i, t)                         t[i & 15] per lane, t in memory
 *   v16_from_bf16(p) v16_from_f16(p)         16 values of uint16_t; v16_to_bf16(p, a) v16_to_f16(p, a) round to nearest
 * even v16_sum(a) v16_hmax(a)                   the fixed tree: lanes i and i+8, then +4, +2, +1 v16_exp(a)
 *
 * Bytes. v16i is also 16 groups of 4 bytes: v16i_pick(t, i) = t[i] for each byte i < 16 of a table of 16 bytes, which
 * v16i_table(p) holds; v16i_set4(p): the 4 bytes at p in every group; v16i_put_bytes(p, a): the low byte of each int32;
 * v16_from_u8(p) v16_from_s8(p): 16 bytes to floats. Dots add 4 products a group to int32, exactly:
 *   v16i_dot(c, u, x)        bytes of u are 0 .. 63, of x -127 .. 127
 *   v16i_dot_wide(c, w, x)   bytes of w are values -127 .. 127 plus DOT_BIAS, and what comes out is too large by
 * DOT_BIAS times the sum of x: the multipliers of some instruction sets take one operand without a sign
 *
 * For GEMM tiles there is `vn`, the widest value that is worth naming as one accumulator (VN floats): vn_load vn_store
 * vn_set1 vn_mul vn_fma, and vn_transpose(dst, ldd, src, lds): dst[j*ldd + i] = src[i*lds + j] for i, j < VN. For 4-bit
 * codes: vni, VN int32; vn_table, 16 floats; vn_code(t, x, shift) = t[x >> shift & 15]; vn_codes(t, p) = the VN codes
 * of VN/2 bytes at p, high nibble first; vni_rows(x, src, stride): lane i of x[j] = bytes 4j..4j+3 of row i, of VN rows
 * `stride` bytes apart (a multiple of 4). A tile is TILE_ROWS x (2 VN). */
#ifndef PEFT_KERNELS_CPU_SIMD_H
#define PEFT_KERNELS_CPU_SIMD_H

#include "core/num.h"
#include "kernels/cpu/isa.h"
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(ISA_avx512)
#include "kernels/cpu/simd_avx512.h"
#elif defined(ISA_avx2)
#include "kernels/cpu/simd_avx2.h"
#elif defined(ISA_neon)
#include "kernels/cpu/simd_neon.h"
#else
#error "no simd_*.h for this ISA_NAME"
#endif

/* 16 int8 as floats: exact */
static inline v16 v16_from_i8(const int8_t *p) { return v16_from_s8((const uint8_t *)p); }

/* exp(x), error below 1 ulp. The scalar algorithm, every * + pair one fma:
 *     t = x * 0x1.715476p+0 + 0x1.8p23        log2(e), and the shifter: n = rint(x / ln 2) in t's low bits
 *     n = t - 0x1.8p23
 *     r = n * -0x1.62e4p-1 + x                ln 2 in two parts; n * hi is exact (13 significant bits, |n| <= 128)
 *     r = n * -0x1.7f7d1cp-20 + r
 *     p = 0x1.6a23dp-10;  p = p * r + c for c = 0x1.123a2p-7, 0x1.5558f2p-5, 0x1.555492p-3, 0x1.fffffcp-2, 1, 1
 *     exp = p with (low bits of t) << 23 added to its bits as unsigned integers
 * then x < -87.3f gives +0, x > 88.7f gives +inf, and NaN gives x itself. -inf and +inf fall under the clamps. */
static inline v16 v16_exp(v16 x) {
    const v16 shift = v16_set1(0x1.8p23f);
    v16 t = v16_fma(x, v16_set1(0x1.715476p+0f), shift);
    v16 n = v16_sub(t, shift);
    v16 r = v16_fma(n, v16_set1(-0x1.62e4p-1f), x);
    r = v16_fma(n, v16_set1(-0x1.7f7d1cp-20f), r);
    v16 p = v16_set1(0x1.6a23dp-10f);
    p = v16_fma(p, r, v16_set1(0x1.123a2p-7f));
    p = v16_fma(p, r, v16_set1(0x1.5558f2p-5f));
    p = v16_fma(p, r, v16_set1(0x1.555492p-3f));
    p = v16_fma(p, r, v16_set1(0x1.fffffcp-2f));
    p = v16_fma(p, r, v16_set1(1.0f));
    p = v16_fma(p, r, v16_set1(1.0f));
    p = v16_of_bits(v16i_add(v16_bits(p), v16i_shl(v16_bits(t), 23)));
    p = v16_select(v16_lt(x, v16_set1(-87.3f)), v16_zero(), p);
    p = v16_select(v16_gt(x, v16_set1(88.7f)), v16_set1(INFINITY), p);
    return v16_select(v16_ne(x, x), x, p);
}

#endif
