/* Packing of sixteen rows (rows16.h): one function per format takes a row's unit of scales apart and puts it into its
 * lane of the planes. */
#include "kernels/rows16.h"
#include "core/error.h"
#include "kernels/fmt.h"

#include <stdlib.h>

enum { LANES = ROWS16_LANES, BLOCK = ROWS16_BLOCK, VECTOR = 64 };

/* where a unit of a row goes: planes at the unit's first block */
typedef struct {
    uint8_t *codes, *bits, *scales;
    int lane;
} place;

typedef void take_fn(const place *p, const weight *w, int64_t row, int64_t unit);

typedef struct {
    int unit, code_bytes, bit_bytes, scale_bytes; /* columns of a unit; bytes of 32 columns, of 32 columns, of a unit */
    take_fn *take;
} layout;

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

static const layout layouts[FORMATS] = {
    [FMT_Q4_0] = {32, 256, 0, 32, take_q4_0},    [FMT_IQ4_NL] = {32, 256, 0, 32, take_q4_0},
    [FMT_Q4_1] = {32, 256, 0, 64, take_q4_1},    [FMT_Q5_0] = {32, 256, 64, 32, take_q5_0},
    [FMT_Q5_1] = {32, 256, 64, 64, take_q5_1},   [FMT_Q8_0] = {32, 512, 0, 32, take_q8_0},
    [FMT_NF4] = {64, 256, 0, 64, take_nf4},      [FMT_Q4_K] = {256, 256, 0, 320, take_q4_k},
    [FMT_Q5_K] = {256, 256, 64, 320, take_q5_k}, [FMT_Q6_K] = {256, 256, 128, 288, take_q6_k},
    [FMT_F32] = {32, 512, 0, 32, take_dense},    [FMT_F16] = {32, 512, 0, 32, take_dense},
    [FMT_BF16] = {32, 512, 0, 32, take_dense},
};

static bool dense(const weight *w) { return w->fmt->block == 1; }

static const layout *layout_of(const weight *w, bool lossy) {
    if (w->fmt->id >= FORMATS || w->count != 1) return NULL;
    const layout *l = &layouts[w->fmt->id];
    if (!l->take || w->cols % l->unit || (dense(w) && !lossy)) return NULL;
    if (w->fmt->id == FMT_NF4 && ((const nf4_meta *)w->meta)->blocksize != 64) return NULL;
    return l;
}

static int64_t round_up(int64_t n) { return (n + VECTOR - 1) / VECTOR * VECTOR; }

static void measure(rows16 *r, const weight *w, const layout *l) {
    r->blocks = w->cols / BLOCK;
    r->bits = r->blocks * l->code_bytes;
    r->scales = r->bits + r->blocks * l->bit_bytes;
    r->sliver = round_up(r->scales + w->cols / l->unit * l->scale_bytes);
    r->slivers = (w->rows + LANES - 1) / LANES;
}

int64_t rows16_bytes(const weight *w, bool lossy) {
    rows16 r = {0};
    const layout *l = layout_of(w, lossy);
    if (!l) return 0;
    measure(&r, w, l);
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

static void pack_sliver(const rows16 *r, const layout *l, int64_t i, uint8_t *dst) {
    const weight *w = &r->origin;
    memset(dst, 0, (size_t)r->sliver);
    for (int64_t lane = 0; lane < LANES && i * LANES + lane < w->rows; lane++) {
        const int64_t row = origin_row(r, i * LANES + lane);
        for (int64_t u = 0; u < w->cols / l->unit; u++) {
            const int64_t b = u * (l->unit / BLOCK);
            const place p = {dst + b * l->code_bytes, dst + r->bits + b * l->bit_bytes,
                             dst + r->scales + u * l->scale_bytes, (int)lane};
            l->take(&p, w, row, u);
        }
    }
}

weight rows16_pack(const weight *w, int heads, bool lossy, arena *run) {
    const layout *l = layout_of(w, lossy);
    CHECK(l, "%s %ldx%ld cannot be packed", w->fmt->name, (long)w->rows, (long)w->cols);
    rows16 *r = xcalloc(1, sizeof *r);
    *r = (rows16){
        .kind = dense(w) ? FMT_Q8_0 : w->fmt->id, .lossy = dense(w), .origin = *w, .heads = heads, .fmt = *w->fmt};
    r->fmt.id = FMT_ROWS16, r->fmt.dequant = rows16_dequant, r->fmt.quant = NULL;
    measure(r, w, l);
    uint8_t *data = arena_alloc(run, (size_t)(r->sliver * r->slivers));
    r->data = data;
    if (!run->planning) {
#pragma omp parallel for schedule(dynamic, 4)
        for (int64_t i = 0; i < r->slivers; i++) pack_sliver(r, l, i, data + i * r->sliver);
    }
    return (weight){&r->fmt, w->rows, w->cols, 1, w->data, r};
}

void weight_release(weight *w) {
    const rows16 *r = w->fmt ? weight_rows16(w) : NULL;
    if (r) free((void *)r->origin.meta);
    free((void *)w->meta);
    w->meta = NULL;
}
