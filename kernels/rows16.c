/* Packing of sixteen rows (rows16.h): one function per format takes a row's unit of scales apart and puts it into its
 * lane of the planes. */
#include "kernels/rows16.h"
#include "core/error.h"
#include "kernels/fmt.h"

#include <stdlib.h>

enum { LANES = ROWS16_LANES, BLOCK = ROWS16_BLOCK, VECTOR = 64 };

/* where a block of the format of a row goes */
typedef struct {
    uint8_t *codes, *bits, *scales;
    int lane;
} place;

/* block: of `step` columns, which is what the format has scales for */
typedef void take_fn(const place *p, const weight *w, int64_t row, int64_t block);

/* `n` words of a row, one to a vector */
static void put_words(uint8_t *dst, int lane, const uint8_t *src, int n) {
    for (int j = 0; j < n; j++) memcpy(dst + j * VECTOR + 4 * lane, src + 4 * j, 4);
}

static void put_half(uint8_t *dst, int lane, const uint8_t *src) { memcpy(dst + 2 * lane, src, 2); }

static const uint8_t *unit_at(const weight *w, int64_t row, int64_t unit) {
    return (const uint8_t *)w->data + (row * (w->cols / w->fmt->block) + unit) * w->fmt->bytes;
}

/* columns j and j + 16 into one byte */
static void put_nibbles(const place *p, int block, const uint8_t *code) {
    uint8_t n[16];
    for (int j = 0; j < 16; j++) n[j] = (uint8_t)((code[j] & 15) | (code[j + 16] & 15) << 4);
    put_words(p->codes + block * 4 * VECTOR, p->lane, n, 4);
}

/* fifth bits, given as bytes that are not 0 where the bit is set */
static void put_fifth(const place *p, int block, const uint8_t *set) {
    uint8_t b[4] = {0};
    for (int g = 0; g < 8; g++)
        for (int i = 0; i < 4; i++) b[i] |= (uint8_t)((set[4 * g + i] ? 1 : 0) << g);
    put_words(p->bits + block * VECTOR, p->lane, b, 1);
}

static void take_q4_0(const place *p, const weight *w, int64_t row, int64_t unit) {
    const uint8_t *b = unit_at(w, row, unit);
    put_half(p->scales, p->lane, b);
    put_words(p->codes, p->lane, b + 2, 4);
}

static void take_q4_1(const place *p, const weight *w, int64_t row, int64_t unit) {
    const uint8_t *b = unit_at(w, row, unit);
    put_half(p->scales, p->lane, b);
    put_half(p->scales + 2 * LANES, p->lane, b + 2);
    put_words(p->codes, p->lane, b + 4, 4);
}

static void take_qh(const place *p, const uint8_t *qh) {
    uint8_t set[BLOCK];
    for (int j = 0; j < BLOCK; j++) set[j] = qh[j / 8] >> j % 8 & 1;
    put_fifth(p, 0, set);
}

static void take_q5_0(const place *p, const weight *w, int64_t row, int64_t unit) {
    const uint8_t *b = unit_at(w, row, unit);
    put_half(p->scales, p->lane, b);
    take_qh(p, b + 2);
    put_words(p->codes, p->lane, b + 6, 4);
}

static void take_q5_1(const place *p, const weight *w, int64_t row, int64_t unit) {
    const uint8_t *b = unit_at(w, row, unit);
    put_half(p->scales, p->lane, b);
    put_half(p->scales + 2 * LANES, p->lane, b + 2);
    take_qh(p, b + 4);
    put_words(p->codes, p->lane, b + 8, 4);
}

static void put_q8_0(const place *p, const uint8_t *b) {
    uint8_t q[BLOCK];
    put_half(p->scales, p->lane, b);
    for (int j = 0; j < BLOCK; j++) q[j] = b[2 + j] ^ 0x80;
    put_words(p->codes, p->lane, q, 8);
}

static void take_q8_0(const place *p, const weight *w, int64_t row, int64_t unit) {
    put_q8_0(p, unit_at(w, row, unit));
}

static void take_dense(const place *p, const weight *w, int64_t row, int64_t unit) {
    float x[BLOCK];
    uint8_t b[34];
    w->fmt->dequant(w, row * w->cols + unit * BLOCK, BLOCK, x);
    fmt_q8_0_quant(x, BLOCK, b);
    put_q8_0(p, b);
}

static void take_nf4(const place *p, const weight *w, int64_t row, int64_t unit) {
    const int64_t block = row * (w->cols / 64) + unit;
    const float s = nf4_absmax(w->meta, block);
    memcpy(p->scales + 4 * p->lane, &s, 4);
    put_words(p->codes, p->lane, (const uint8_t *)w->data + block * 32, 8);
}

/* d, dmin and the 6-bit scales and minima of Q4_K and Q5_K (fmt_k.c) */
static void take_k_scales(const place *p, const uint8_t *b) {
    const uint8_t *s = b + 4;
    uint8_t *sc = p->scales + 4 * LANES + p->lane, *mn = sc + 8 * LANES;
    put_half(p->scales, p->lane, b);
    put_half(p->scales + 2 * LANES, p->lane, b + 2);
    for (int j = 0; j < 4; j++) {
        sc[j * LANES] = s[j] & 63;
        mn[j * LANES] = s[j + 4] & 63;
        sc[(j + 4) * LANES] = (uint8_t)((s[j + 8] & 15) | s[j] >> 6 << 4);
        mn[(j + 4) * LANES] = (uint8_t)(s[j + 8] >> 4 | s[j + 4] >> 6 << 4);
    }
}

/* eight sub-blocks of 4-bit codes: 2 i in the low and 2 i + 1 in the high nibbles of 32 bytes */
static void take_k_codes(const place *p, const uint8_t *q) {
    for (int s = 0; s < 8; s++, q += s % 2 ? 0 : 32) {
        uint8_t code[BLOCK];
        for (int l = 0; l < BLOCK; l++) code[l] = s % 2 ? q[l] >> 4 : q[l] & 15;
        put_nibbles(p, s, code);
    }
}

static void take_q4_k(const place *p, const weight *w, int64_t row, int64_t unit) {
    const uint8_t *b = unit_at(w, row, unit);
    take_k_scales(p, b);
    take_k_codes(p, b + 16);
}

static void take_q5_k(const place *p, const weight *w, int64_t row, int64_t unit) {
    const uint8_t *b = unit_at(w, row, unit);
    take_k_scales(p, b);
    take_k_codes(p, b + 48);
    for (int s = 0; s < 8; s++) {
        uint8_t set[BLOCK];
        for (int l = 0; l < BLOCK; l++) set[l] = b[16 + l] >> s & 1;
        put_fifth(p, s, set);
    }
}

/* bits 5 and 6 of 32 codes */
static void put_sixth(const place *p, int block, const uint8_t *code) {
    uint8_t b[8] = {0};
    for (int h = 0; h < 2; h++)
        for (int g = 0; g < 4; g++)
            for (int i = 0; i < 4; i++) b[4 * h + i] |= (uint8_t)(code[16 * h + 4 * g + i] >> 4 << 2 * g);
    put_words(p->bits + block * 2 * VECTOR, p->lane, b, 2);
}

static void take_q6_k(const place *p, const weight *w, int64_t row, int64_t unit) {
    const uint8_t *b = unit_at(w, row, unit);
    put_half(p->scales, p->lane, b + 208);
    for (int s = 0; s < 16; s++) p->scales[(2 + s) * LANES + p->lane] = b[192 + s];
    for (int s = 0; s < 8; s++) { /* runs of 32 as in fmt_k.c: four to a half */
        const uint8_t *ql = b + 64 * (s / 4) + 32 * (s % 2), *qh = b + 128 + 32 * (s / 4);
        uint8_t code[BLOCK];
        for (int l = 0; l < BLOCK; l++)
            code[l] = (uint8_t)((s % 4 < 2 ? ql[l] & 15 : ql[l] >> 4) | (qh[l] >> 2 * (s % 4) & 3) << 4);
        put_nibbles(p, s, code);
        put_sixth(p, s, code);
    }
}

static const struct {
    int step;   /* columns of a block */
    int scales; /* bytes of its scales */
    int kind;   /* FMT_* of rows16.def */
    take_fn *take;
} takers[FORMATS] = {
    [FMT_Q4_0] = {32, 32, FMT_Q4_0, take_q4_0},   [FMT_IQ4_NL] = {32, 32, FMT_IQ4_NL, take_q4_0},
    [FMT_Q4_1] = {32, 64, FMT_Q4_1, take_q4_1},   [FMT_Q5_0] = {32, 32, FMT_Q5_0, take_q5_0},
    [FMT_Q5_1] = {32, 64, FMT_Q5_1, take_q5_1},   [FMT_Q8_0] = {32, 32, FMT_Q8_0, take_q8_0},
    [FMT_NF4] = {64, 64, FMT_NF4, take_nf4},      [FMT_Q4_K] = {256, 320, FMT_Q4_K, take_q4_k},
    [FMT_Q5_K] = {256, 320, FMT_Q5_K, take_q5_k}, [FMT_Q6_K] = {256, 288, FMT_Q6_K, take_q6_k},
    [FMT_F32] = {32, 32, FMT_Q8_0, take_dense},   [FMT_F16] = {32, 32, FMT_Q8_0, take_dense},
    [FMT_BF16] = {32, 32, FMT_Q8_0, take_dense},
};

typedef struct {
    int unit, bit_bytes, code_bytes, bits, codes, bytes;
} layout;
static const layout layouts[FORMATS] = {
#define R(id, unit, scales, bits, codes)                                                                               \
    [FMT_##id] = {unit, bits, codes, ROWS16_##id##_BITS, ROWS16_##id##_CODES, ROWS16_##id##_BYTES},
#include "kernels/rows16.def"
#undef R
};

static bool dense(const weight *w) { return w->fmt->block == 1; }

static bool packable(const weight *w, bool lossy) {
    if (w->fmt->id >= FORMATS || w->count != 1 || !takers[w->fmt->id].take) return false;
    if (w->cols % takers[w->fmt->id].step || (dense(w) && !lossy)) return false;
    return w->fmt->id != FMT_NF4 || ((const nf4_meta *)w->meta)->blocksize == 64;
}

static void measure(rows16 *r, const weight *w) {
    const layout *l = &layouts[takers[w->fmt->id].kind];
    r->kind = takers[w->fmt->id].kind;
    r->blocks = w->cols / BLOCK;
    r->sliver = (w->cols + l->unit - 1) / l->unit * l->bytes;
    r->slivers = (w->rows + LANES - 1) / LANES;
}

int64_t rows16_bytes(const weight *w, bool lossy) {
    rows16 r = {0};
    if (!packable(w, lossy)) return 0;
    measure(&r, w);
    return r.sliver * r.slivers;
}

/* Row of the file that holds row r: heads of q and k keep the two halves of a head interleaved. */
static int64_t origin_row(const rows16 *r, int64_t row) {
    if (!r->heads) return row;
    const int64_t d = r->origin.rows / r->heads, head = row / d, i = row % d;
    return head * d + (i < d / 2 ? 2 * i : 2 * (i - d / 2) + 1);
}

static void rows16_dequant(const weight *w, int64_t at, int64_t n, float *out) {
    const rows16 *r = w->meta;
    const weight *o = &r->origin;
    while (n > 0) {
        const int64_t row = at / w->cols, col = at % w->cols, k = n < w->cols - col ? n : w->cols - col;
        o->fmt->dequant(o, origin_row(r, row) * w->cols + col, k, out);
        at += k, out += k, n -= k;
    }
}

static void pack_sliver(const rows16 *r, int64_t i, uint8_t *dst) {
    const weight *w = &r->origin;
    const layout *l = &layouts[r->kind];
    const int64_t step = takers[w->fmt->id].step, scales = takers[w->fmt->id].scales;
    memset(dst, 0, (size_t)r->sliver);
    for (int64_t lane = 0; lane < LANES && i * LANES + lane < w->rows; lane++) {
        const int64_t row = origin_row(r, i * LANES + lane);
        for (int64_t k = 0; k < w->cols; k += step) {
            uint8_t *unit = dst + k / l->unit * l->bytes;
            const int64_t at = k % l->unit / BLOCK, block = k / step;
            const place p = {unit + l->codes + at * l->code_bytes, unit + l->bits + at * l->bit_bytes,
                             unit + at * BLOCK / step * scales, (int)lane};
            takers[w->fmt->id].take(&p, w, row, block);
        }
    }
}

weight rows16_pack(const weight *w, int heads, bool lossy, arena *run) {
    CHECK(packable(w, lossy), "%s %ldx%ld cannot be packed", w->fmt->name, (long)w->rows, (long)w->cols);
    rows16 *r = xcalloc(1, sizeof *r);
    *r = (rows16){.lossy = dense(w), .origin = *w, .heads = heads, .fmt = *w->fmt};
    r->fmt.id = FMT_ROWS16, r->fmt.dequant = rows16_dequant, r->fmt.quant = NULL;
    measure(r, w);
    uint8_t *data = arena_alloc(run, (size_t)(r->sliver * r->slivers));
    r->data = data;
    if (!run->planning) {
#pragma omp parallel for schedule(dynamic, 4)
        for (int64_t i = 0; i < r->slivers; i++) pack_sliver(r, i, data + i * r->sliver);
    }
    return (weight){&r->fmt, w->rows, w->cols, 1, w->data, r};
}

void weight_release(weight *w) {
    const rows16 *r = w->fmt ? weight_rows16(w) : NULL;
    if (r) free((void *)r->origin.meta);
    free((void *)w->meta);
    w->meta = NULL;
}
