/* A number is NaN or infinite when the bits of its exponent are all ones, and a block of integers times an fp16 scale
 * (plus an fp16 minimum) when that scale or minimum is: at most 65504 * 63 * 127 the products themselves stay finite.
 * So the 16-bit words at a few fixed places of each block are looked at, one pass over memory. */
#include "model/finite.h"
#include "core/error.h"

#include <math.h>
#include <string.h>

enum { PIECE = 1 << 16 }; /* blocks of one work item */
enum { F16_EXPONENT = 0x7c00, BF16_EXPONENT = 0x7f80 };

typedef struct {
    int n, at[2]; /* offsets of a block's 16-bit floats */
    uint16_t exponent;
} scales;

/* For a float, the upper half holds the whole exponent. */
static const scales rows[FORMATS] = {
    [FMT_F32] = {1, {2}, BF16_EXPONENT},    [FMT_F16] = {1, {0}, F16_EXPONENT},
    [FMT_BF16] = {1, {0}, BF16_EXPONENT},   [FMT_Q4_0] = {1, {0}, F16_EXPONENT},
    [FMT_Q4_1] = {2, {0, 2}, F16_EXPONENT}, [FMT_Q5_0] = {1, {0}, F16_EXPONENT},
    [FMT_Q5_1] = {2, {0, 2}, F16_EXPONENT}, [FMT_Q8_0] = {1, {0}, F16_EXPONENT},
    [FMT_Q4_K] = {2, {0, 2}, F16_EXPONENT}, [FMT_Q5_K] = {2, {0, 2}, F16_EXPONENT},
    [FMT_Q6_K] = {1, {208}, F16_EXPONENT},  [FMT_IQ4_NL] = {1, {0}, F16_EXPONENT},
};

static uint16_t word(const uint8_t *p) {
    uint16_t h;
    memcpy(&h, p, sizeof h);
    return h;
}

/* Index of the first block of [begin, end) with a scale that is not finite, or -1. No branch in the loop over a chunk,
 * so that formats of one number a block run at the speed of memory. */
static int64_t first_bad(const uint8_t *data, int64_t begin, int64_t end, int64_t stride, const scales *s) {
    enum { CHUNK = 1024 };
    for (int64_t at = begin; at < end; at += CHUNK) {
        int64_t stop = at + CHUNK < end ? at + CHUNK : end;
        unsigned bad = 0;
        for (int k = 0; k < s->n; k++)
            for (int64_t i = at; i < stop; i++)
                bad |= (word(data + i * stride + s->at[k]) & s->exponent) == s->exponent;
        if (!bad) continue;
        for (int64_t i = at; i < stop; i++)
            for (int k = 0; k < s->n; k++)
                if ((word(data + i * stride + s->at[k]) & s->exponent) == s->exponent) return i;
    }
    return -1;
}

static int64_t nf4_bad(const weight *w, int64_t blocks) {
    const nf4_meta *m = w->meta;
    for (int64_t i = 0; i < blocks; i++) {
        if (!isfinite(nf4_absmax(m, i))) return i;
    }
    return -1;
}

int64_t weight_nonfinite(const weight *w) {
    const int64_t n = w->rows * w->cols * w->count, block = w->fmt->block, blocks = (n + block - 1) / block;
    const scales *s = &rows[w->fmt->id];
    int64_t first = blocks;
    if (w->fmt->id == FMT_NF4) {
        int64_t bad = nf4_bad(w, blocks);
        return bad < 0 ? -1 : bad * block / w->cols;
    }
    CHECK(s->n, "scales of %s are not known", w->fmt->name);
#pragma omp parallel for if (blocks > PIECE) schedule(static) reduction(min : first)
    for (int64_t p = 0; p < (blocks + PIECE - 1) / PIECE; p++) {
        const int64_t begin = p * PIECE, end = begin + PIECE < blocks ? begin + PIECE : blocks;
        const int64_t bad = first_bad(w->data, begin, end, w->fmt->bytes, s);
        if (bad >= 0 && bad < first) first = bad;
    }
    return first == blocks ? -1 : first * block / w->cols;
}
