/* Adapters of a mixed batch. Items of few rows are what decoding makes: all of them together are two parallel loops,
 * first every item's h, then every item's part of every y, in strips of columns. An item of many rows is a piece of a
 * prompt and goes through the blocked product. Each output is one chain over k either way. */
#include "core/error.h"
#include "kernels/cpu/gemm.h"

#include <omp.h>

enum { FEW = 8, TILE_M = 4, STRIP = 64, DOWN_STRIP = 32 };
enum { ALONE = 1 << 16 }; /* multiply-adds below which one thread does it all */

static inline v16 load_f32(const void *p, int64_t at) { return v16_load((const float *)p + at); }
static inline v16 load_bf16(const void *p, int64_t at) { return v16_from_bf16((const uint16_t *)p + at); }
static inline v16 load_f32_n(const void *p, int64_t at, int n) { return v16_load_n((const float *)p + at, n); }
static inline v16 load_bf16_n(const void *p, int64_t at, int n) {
    uint16_t b[16] = {0};
    memcpy(b, (const uint16_t *)p + at, (size_t)n * sizeof *b);
    return v16_from_bf16(b);
}

/* c[m, 16 s] += a[m, k] b[k, 16 s], b with rows of bs elements */
#define TILE(name, load, m, s)                                                                                         \
    static void name(int64_t k, const float *restrict a, int64_t as, const void *restrict b, int64_t bs,               \
                     float *restrict c, int64_t cs) {                                                                  \
        v16 acc[m][s];                                                                                                 \
        for (int i = 0; i < m; i++)                                                                                    \
            for (int j = 0; j < s; j++) acc[i][j] = v16_load(c + i * cs + 16 * j);                                     \
        for (int64_t t = 0, at = 0; t < k; t++, at += bs)                                                              \
            for (int j = 0; j < s; j++) {                                                                              \
                v16 x = load(b, at + 16 * j);                                                                          \
                for (int i = 0; i < m; i++) acc[i][j] = v16_fma(v16_set1(a[i * as + t]), x, acc[i][j]);                \
            }                                                                                                          \
        for (int i = 0; i < m; i++)                                                                                    \
            for (int j = 0; j < s; j++) v16_store(c + i * cs + 16 * j, acc[i][j]);                                     \
    }
/* the last n < 16 columns, row by row */
#define TAIL(name, load_n)                                                                                             \
    static void name(int64_t k, const float *a, const void *b, int64_t bs, float *c, int n) {                          \
        v16 acc = v16_load_n(c, n);                                                                                    \
        for (int64_t t = 0; t < k; t++) acc = v16_fma(v16_set1(a[t]), load_n(b, t * bs, n), acc);                      \
        v16_store_n(c, acc, n);                                                                                        \
    }
#define SET(load)                                                                                                      \
    TILE(load##_1_4, load, 1, 4)                                                                                       \
    TILE(load##_1_1, load, 1, 1)                                                                                       \
    TILE(load##_2_2, load, 2, 2)                                                                                       \
    TILE(load##_2_1, load, 2, 1)                                                                                       \
    TILE(load##_3_1, load, 3, 1)                                                                                       \
    TILE(load##_4_1, load, 4, 1)                                                                                       \
    TAIL(load##_tail, load##_n)
SET(load_f32)
SET(load_bf16)

typedef void tile(int64_t k, const float *a, int64_t as, const void *b, int64_t bs, float *c, int64_t cs);
typedef struct {
    tile *wide[TILE_M + 1], *narrow[TILE_M + 1];
    int vectors[TILE_M + 1]; /* of wide */
    void (*tail)(int64_t k, const float *a, const void *b, int64_t bs, float *c, int n);
    int bytes;
} tile_set;
#define TILE_SET(load, size)                                                                                           \
    {                                                                                                                  \
        {NULL, load##_1_4, load##_2_2, load##_3_1, load##_4_1},                                                        \
            {NULL, load##_1_1, load##_2_1, load##_3_1, load##_4_1}, {0, 4, 2, 1, 1}, load##_tail, size                 \
    }
static const tile_set tiles_f32 = TILE_SET(load_f32, 4), tiles_bf16 = TILE_SET(load_bf16, 2);

static const tile_set *tiles_of(const weight *w) { return w->fmt->id == FMT_BF16 ? &tiles_bf16 : &tiles_f32; }

/* c[rows, n] += a[rows, w.rows] w[:, from .. from + n) */
static void strip(const weight *w, int64_t from, int64_t n, mat a, float *c, int64_t cs) {
    const tile_set *set = tiles_of(w);
    const char *b = (const char *)w->data + from * set->bytes;
    for (int64_t i = 0; i < a.rows; i += TILE_M) {
        int m = (int)(a.rows - i < TILE_M ? a.rows - i : TILE_M);
        int64_t j = 0, wide = 16 * set->vectors[m];
        for (; j + wide <= n; j += wide)
            set->wide[m](w->rows, mat_row(a, i), a.ld, b + j * set->bytes, w->cols, c + i * cs + j, cs);
        for (; j + 16 <= n; j += 16)
            set->narrow[m](w->rows, mat_row(a, i), a.ld, b + j * set->bytes, w->cols, c + i * cs + j, cs);
        for (int r = 0; r < m && j < n; r++)
            set->tail(w->rows, mat_row(a, i + r), b + j * set->bytes, w->cols, c + (i + r) * cs + j, (int)(n - j));
    }
}

static int64_t strips(int64_t n, int64_t width) { return (n + width - 1) / width; }

/* strip `j` of an item's h */
static void down_strip(const lora_fwd_args *a, const lora_item *it, int64_t j) {
    const weight *w = &it->part->down;
    int64_t from = j * DOWN_STRIP, n = w->cols - from < DOWN_STRIP ? w->cols - from : DOWN_STRIP;
    float *h = it->h + from;
    for (int i = 0; i < it->rows; i++) memset(h + i * w->cols, 0, (size_t)n * sizeof *h);
    strip(w, from, n, mat_rows(a->x, it->row, it->rows), h, w->cols);
    for (int i = 0; i < it->rows; i++)
        for (int64_t c = 0; c < n; c++) h[i * w->cols + c] *= it->scale;
}

/* strip `j` of the rows [row, row + 1) .. of y_i: every item of that row in order */
static void up_strip(const lora_fwd_args *a, const lora_item *it, int i, int64_t j) {
    const lora_part *p = it->part;
    const weight *w = &p->up[i];
    int64_t from = j * STRIP, n = w->cols - from < STRIP ? w->cols - from : STRIP;
    if (!w->rows || !a->y[i].data) return;
    const mat h = {it->h + p->at[i], F32, it->rows, w->rows, p->down.cols};
    strip(w, from, n, h, mat_row(a->y[i], it->row) + from, a->y[i].ld);
}

static bool is_few(const lora_item *it) { return it->rows <= FEW && it->part->down.cols; }

static int64_t work_of(const lora_fwd_args *a) {
    int64_t n = 0;
    for (int j = 0; j < a->items; j++)
        if (is_few(&a->item[j])) n += a->item[j].rows * a->item[j].part->down.cols * a->x.cols;
    return n;
}

/* Columns are shared out, and a thread takes the items in order: those of the same rows follow one another. */
static void few_rows(kctx *c, const lora_fwd_args *a) {
    int64_t work = work_of(a), widest = 0;
    if (!work) return;
    for (int i = 0; i < a->n; i++)
        if (a->y[i].data && a->y[i].cols > widest) widest = a->y[i].cols;
    const int threads = work < ALONE ? 1 : c->threads;
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
        for (int j = 0; j < a->items; j++) {
            const lora_item *it = &a->item[j];
            if (!is_few(it)) continue;
#pragma omp for schedule(dynamic, 1) nowait
            for (int64_t s = 0; s < strips(it->part->down.cols, DOWN_STRIP); s++) down_strip(a, it, s);
        }
#pragma omp barrier
        for (int i = 0; i < a->n; i++) {
#pragma omp for schedule(static) nowait
            for (int64_t s = 0; s < strips(a->y[i].data ? a->y[i].cols : 0, STRIP); s++)
                for (int j = 0; j < a->items; j++)
                    if (is_few(&a->item[j])) up_strip(a, &a->item[j], i, s);
        }
    }
}

static void many_rows(kctx *c, const lora_fwd_args *a, const lora_item *it) {
    const lora_part *p = it->part;
    const mat h = mat_f32(it->h, it->rows, p->down.cols);
    memset(it->h, 0, (size_t)(h.rows * h.cols) * sizeof(float));
    ISA(weight_bwd)(c, h, mat_rows(a->x, it->row, it->rows), &p->down);
    for (int64_t e = 0; e < h.rows * h.cols; e++) it->h[e] *= it->scale;
    for (int i = 0; i < a->n; i++)
        if (p->up[i].rows && a->y[i].data)
            ISA(weight_bwd)(c, mat_rows(a->y[i], it->row, it->rows), mat_cols(h, p->at[i], p->up[i].rows), &p->up[i]);
}

void ISA(lora_fwd)(kctx *c, const lora_fwd_args *a) {
    for (int j = 0; j < a->items; j++) {
        const lora_item *it = &a->item[j];
        CHECK(it->part->down.cols % 16 == 0 && it->row + it->rows <= a->x.rows, "rows %d + %d of %ld, %ld columns",
              it->row, it->rows, (long)a->x.rows, (long)it->part->down.cols);
        if (it->part->down.cols && !is_few(it)) many_rows(c, a, it);
    }
    few_rows(c, a);
}
