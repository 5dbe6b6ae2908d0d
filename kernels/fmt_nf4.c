/* NF4 (Dettmers et al. 2023, section 3) as bitsandbytes computes it on a CPU, bit for bit:
 *     s = max |x| of a block of 64, q = number of thresholds strictly below x * fl(1 / max(s, 1e-38)), w = codes[q] * s
 * A tie thus goes to the lower code and a block of zeros is code 7. The last block, where it is cut short, differs: it
 * divides by max(s, 1e-38) and stores that as its scale. The 8-bit codes of double quantisation are those of its CPU
 * library, which snaps x / s to a grid of 65536 points before it looks for the nearest entry of the map. */
#include "kernels/fmt.h"

enum { BLOCK = 64, NESTED = 256 };
#define SMALLEST 1e-38f

const float nf4_codes[16] = {
    -1.0f,         -0.696192801f, -0.525073051f, -0.394917488f, -0.284441382f, -0.18477343f, -0.0910500363f, 0.0f,
    0.0795802996f, 0.160930201f,  0.246112302f,  0.337915242f,  0.440709829f,  0.562617004f, 0.722956836f,   1.0f,
};

/* Halfway between neighbours of nf4_codes, rounded to fp32. */
static const float thresholds[15] = {
    -0.848096371f, -0.610632896f,  -0.45999527f,  -0.33967942f, -0.234607399f,
    -0.137911737f, -0.0455250181f, 0.0397901498f, 0.120255247f, 0.203521252f,
    0.292013764f,  0.389312536f,   0.501663446f,  0.64278692f,  0.861478448f,
};

/* create_dynamic_map(signed=True, max_exponent_bits=7, total_bits=8); the decimals give the fp32 values exactly. */
const float nf4_dynamic_map[256] = {
    -0.992968738f,    -0.978906274f,    -0.96484375f,     -0.950781226f,
    -0.936718762f,    -0.922656238f,    -0.908593774f,    -0.89453125f,
    -0.880468726f,    -0.866406262f,    -0.852343738f,    -0.838281274f,
    -0.82421875f,     -0.810156226f,    -0.796093762f,    -0.782031238f,
    -0.767968774f,    -0.75390625f,     -0.739843726f,    -0.725781262f,
    -0.711718798f,    -0.697656274f,    -0.68359375f,     -0.669531226f,
    -0.655468762f,    -0.641406298f,    -0.627343774f,    -0.61328125f,
    -0.599218726f,    -0.585156262f,    -0.571093798f,    -0.557031274f,
    -0.54296875f,     -0.528906226f,    -0.514843702f,    -0.500781238f,
    -0.486718714f,    -0.47265625f,     -0.458593726f,    -0.444531262f,
    -0.430468738f,    -0.416406244f,    -0.40234375f,     -0.388281226f,
    -0.374218762f,    -0.360156238f,    -0.346093744f,    -0.33203125f,
    -0.317968726f,    -0.303906262f,    -0.289843738f,    -0.275781274f,
    -0.26171875f,     -0.247656241f,    -0.233593747f,    -0.219531253f,
    -0.205468744f,    -0.19140625f,     -0.177343756f,    -0.163281247f,
    -0.149218753f,    -0.135156244f,    -0.12109375f,     -0.107031256f,
    -0.0985937491f,   -0.0957812592f,   -0.0929687545f,   -0.0901562497f,
    -0.0873437524f,   -0.0845312476f,   -0.0817187577f,   -0.078906253f,
    -0.0760937482f,   -0.0732812509f,   -0.0704687461f,   -0.0676562563f,
    -0.0648437515f,   -0.0620312504f,   -0.0592187531f,   -0.0564062484f,
    -0.053593751f,    -0.05078125f,     -0.047968749f,    -0.0451562516f,
    -0.0423437469f,   -0.0395312496f,   -0.0367187522f,   -0.0339062512f,
    -0.0310937501f,   -0.028281251f,    -0.0254687499f,   -0.0226562507f,
    -0.0198437516f,   -0.0170312505f,   -0.0142187504f,   -0.0114062503f,
    -0.00971874967f,  -0.00915624946f,  -0.00859375019f,  -0.00803124998f,
    -0.00746874977f,  -0.00690625003f,  -0.00634374982f,  -0.00578125007f,
    -0.00521875033f,  -0.00465624966f,  -0.00409374991f,  -0.00353124971f,
    -0.00296874996f,  -0.00240624999f,  -0.00184375001f,  -0.00128124992f,
    -0.000943750085f, -0.000831249985f, -0.00071875006f,  -0.000606250076f,
    -0.000493750034f, -0.000381250022f, -0.000268750038f, -0.000156250011f,
    -8.87499991e-05f, -6.62500024e-05f, -4.37499984e-05f, -2.12499981e-05f,
    -7.7499999e-06f,  -3.25000019e-06f, -5.50000038e-07f, 0.0f,
    5.50000038e-07f,  3.25000019e-06f,  7.7499999e-06f,   2.12499981e-05f,
    4.37499984e-05f,  6.62500024e-05f,  8.87499991e-05f,  0.000156250011f,
    0.000268750038f,  0.000381250022f,  0.000493750034f,  0.000606250076f,
    0.00071875006f,   0.000831249985f,  0.000943750085f,  0.00128124992f,
    0.00184375001f,   0.00240624999f,   0.00296874996f,   0.00353124971f,
    0.00409374991f,   0.00465624966f,   0.00521875033f,   0.00578125007f,
    0.00634374982f,   0.00690625003f,   0.00746874977f,   0.00803124998f,
    0.00859375019f,   0.00915624946f,   0.00971874967f,   0.0114062503f,
    0.0142187504f,    0.0170312505f,    0.0198437516f,    0.0226562507f,
    0.0254687499f,    0.028281251f,     0.0310937501f,    0.0339062512f,
    0.0367187522f,    0.0395312496f,    0.0423437469f,    0.0451562516f,
    0.047968749f,     0.05078125f,      0.053593751f,     0.0564062484f,
    0.0592187531f,    0.0620312504f,    0.0648437515f,    0.0676562563f,
    0.0704687461f,    0.0732812509f,    0.0760937482f,    0.078906253f,
    0.0817187577f,    0.0845312476f,    0.0873437524f,    0.0901562497f,
    0.0929687545f,    0.0957812592f,    0.0985937491f,    0.107031256f,
    0.12109375f,      0.135156244f,     0.149218753f,     0.163281247f,
    0.177343756f,     0.19140625f,      0.205468744f,     0.219531253f,
    0.233593747f,     0.247656241f,     0.26171875f,      0.275781274f,
    0.289843738f,     0.303906262f,     0.317968726f,     0.33203125f,
    0.346093744f,     0.360156238f,     0.374218762f,     0.388281226f,
    0.40234375f,      0.416406244f,     0.430468738f,     0.444531262f,
    0.458593726f,     0.47265625f,      0.486718714f,     0.500781238f,
    0.514843702f,     0.528906226f,     0.54296875f,      0.557031274f,
    0.571093798f,     0.585156262f,     0.599218726f,     0.61328125f,
    0.627343774f,     0.641406298f,     0.655468762f,     0.669531226f,
    0.68359375f,      0.697656274f,     0.711718798f,     0.725781262f,
    0.739843726f,     0.75390625f,      0.767968774f,     0.782031238f,
    0.796093762f,     0.810156226f,     0.82421875f,      0.838281274f,
    0.852343738f,     0.866406262f,     0.880468726f,     0.89453125f,
    0.908593774f,     0.922656238f,     0.936718762f,     0.950781226f,
    0.96484375f,      0.978906274f,     0.992968738f,     1.0f,
};

/* Both values of a byte in one load: element 2j is the high nibble. */
#define PAIRS(hi)                                                                                                      \
    {hi, -1.0f}, {hi, -0.696192801f}, {hi, -0.525073051f}, {hi, -0.394917488f}, {hi, -0.284441382f},                   \
        {hi, -0.18477343f}, {hi, -0.0910500363f}, {hi, 0.0f}, {hi, 0.0795802996f}, {hi, 0.160930201f},                 \
        {hi, 0.246112302f}, {hi, 0.337915242f}, {hi, 0.440709829f}, {hi, 0.562617004f}, {hi, 0.722956836f}, {          \
        hi, 1.0f                                                                                                       \
    }
static const float pairs[256][2] = {
    PAIRS(-1.0f),         PAIRS(-0.696192801f), PAIRS(-0.525073051f),  PAIRS(-0.394917488f),
    PAIRS(-0.284441382f), PAIRS(-0.18477343f),  PAIRS(-0.0910500363f), PAIRS(0.0f),
    PAIRS(0.0795802996f), PAIRS(0.160930201f),  PAIRS(0.246112302f),   PAIRS(0.337915242f),
    PAIRS(0.440709829f),  PAIRS(0.562617004f),  PAIRS(0.722956836f),   PAIRS(1.0f),
};

size_t nf4_data_bytes(int64_t n) { return ((size_t)n + 1) / 2; }

float nf4_absmax(const nf4_meta *m, int64_t block) {
    if (m->nested_block == 0) return m->absmax[block];
    const float scaled = m->map[m->code[block]] * m->nested_absmax[block / m->nested_block];
    return scaled + m->offset;
}

/* out[0, n) = s * elements [at, at + n), all of one block. */
static void decode(const uint8_t *codes, int64_t at, int64_t n, float s, float *restrict out) {
    const uint8_t *b = codes + at / 2;
    if (at % 2 && n > 0) *out++ = nf4_codes[*b++ & 15] * s, n--;
    for (int64_t j = 0; j < n / 2; j++) memcpy(out + 2 * j, pairs[b[j]], sizeof pairs[0]);
    for (int64_t j = 0; j < n / 2 * 2; j++) out[j] *= s;
    if (n % 2) out[n - 1] = nf4_codes[b[n / 2] >> 4] * s;
}

void fmt_nf4_dequant(const weight *w, int64_t at, int64_t n, float *out) {
    const nf4_meta *m = w->meta;
    while (n > 0) {
        const int64_t block = at / m->blocksize, left = (block + 1) * m->blocksize - at, k = n < left ? n : left;
        decode(w->data, at, k, nf4_absmax(m, block), out);
        at += k, out += k, n -= k;
    }
}

/* max |x|; magnitudes compare as integers, which vectorises and lets a NaN win, as torch's max does. */
static float largest(const float *x, int64_t n) {
    uint32_t top = 0;
    for (int64_t i = 0; i < n; i++) {
        const uint32_t a = bits_of(x[i]) & 0x7fffffff;
        top = a > top ? a : top;
    }
    return float_of(top);
}

static inline int below(float v) {
    int q = 0;
    for (int t = 0; t < 15; t++) q += !(v <= thresholds[t]); /* NaN is code 15 */
    return q;
}

void nf4_quant(const float *x, int64_t n, uint8_t *codes, float *absmax) {
    for (; n >= BLOCK; n -= BLOCK, x += BLOCK, codes += BLOCK / 2) {
        int q[BLOCK]; /* as wide as a float: narrowing in the loop of the comparisons doubles its time */
        const float s = largest(x, BLOCK), inverse = 1.0f / (s < SMALLEST ? SMALLEST : s);
        *absmax++ = s;
        for (int i = 0; i < BLOCK; i++) q[i] = below(x[i] * inverse);
        for (int j = 0; j < BLOCK / 2; j++) codes[j] = (uint8_t)(q[2 * j] << 4 | q[2 * j + 1]);
    }
    if (n == 0) return;
    const float top = largest(x, n), s = top < SMALLEST ? SMALLEST : top;
    *absmax = s;
    for (int64_t i = 0; i < n; i += 2) {
        const int low = i + 1 < n ? below(x[i + 1] / s) : below(0);
        codes[i / 2] = (uint8_t)(below(x[i] / s) << 4 | low);
    }
}

/* Nearest entry of the map, the lower one on a tie. */
static uint8_t nearest(float v) {
    int lo = 0, hi = 255;
    while (lo < hi) {
        const int mid = (lo + hi) / 2;
        if ((nf4_dynamic_map[mid] + nf4_dynamic_map[mid + 1]) / 2 < v)
            lo = mid + 1;
        else
            hi = mid;
    }
    return (uint8_t)lo;
}

/* The mean is summed in double in order and rounded once: it depends on no vector width and no thread count, and is
 * within an ulp or so of torch's fp32 mean, whose own order depends on both. */
float nf4_quant_scales(const float *absmax, int64_t blocks, uint8_t *code, float *nested) {
    double sum = 0;
    for (int64_t i = 0; i < blocks; i++) sum += (double)absmax[i];
    const float offset = blocks ? (float)(sum / (double)blocks) : 0;
    for (int64_t at = 0; at < blocks; at += NESTED) {
        const int64_t n = blocks - at < NESTED ? blocks - at : NESTED;
        float d[NESTED];
        for (int64_t i = 0; i < n; i++) d[i] = absmax[at + i] - offset;
        const float s = largest(d, n), inverse = 1.0f / s; /* s == 0: every v is NaN, code 0 */
        nested[at / NESTED] = s;
        for (int64_t i = 0; i < n; i++) {
            float v = d[i] * inverse;
            v = v > -1 ? v : -1;
            v = v < 1 ? v : 1;
            const int grid = (int)((v + 1) * 0.5f * 65535 + 0.5f);
            code[at + i] = nearest((float)grid / 65535 * 2 - 1);
        }
    }
    return offset;
}
