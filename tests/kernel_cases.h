/* The cases of every kernel, for any backend: a case fills one pool with inputs, poisoned outputs and poisoned gaps
 * between rows, and runs its kernels. test_kernels.c compares the pools of CPU backends bit for bit, cuda_parity.c
 * those of a device within tolerances. Shapes are odd on purpose.
 *
 * Values, which a device may hold as BF16, are made by value_in and value_out; everything else is F32. With lab.bf16
 * the values given are numbers of bf16, so that a backend that holds them as F32 starts from the same ones. The pool is
 * memory that both host and device see; the host touches what a kernel may still use only after settle(). */
#ifndef PEFT_TESTS_KERNEL_CASES_H
#define PEFT_TESTS_KERNEL_CASES_H

#include "core/num.h"
#include "core/rng.h"
#include "kernels/backend.h"
#include "kernels/kv_page.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { POOL = 24 << 20, POISON = 0xff, SHAPE = 9, REGIONS = 64 };

/* What a piece of the pool holds. VALUES: four bytes an element are reserved whatever the type. */
typedef enum { BYTES, FLOATS, VALUES, SUMS } region_kind;
typedef struct region {
    region_kind kind;
    size_t at, bytes;
} region;

typedef struct lab {
    kctx *c;
    char *pool;
    bool bf16;            /* values are numbers of bf16 */
    dtype value;          /* how this backend holds them */
    void (*settle)(void); /* waits for the device; NULL: nothing to wait for */
    size_t used;
    uint64_t seed, drawn;
    region regions[REGIONS];
    int n_regions;
} lab;

typedef struct kernel_case {
    const char *name;
    void (*run)(lab *l, const int *s);
    int s[SHAPE];
} kernel_case;

static void *take_as(lab *l, region_kind kind, size_t bytes) {
    void *p = l->pool + l->used;
    assert_true(l->n_regions < REGIONS);
    l->regions[l->n_regions++] = (region){kind, l->used, bytes};
    l->used += (bytes + 127) / 64 * 64; /* at least a line of poison behind each */
    assert_true(l->used <= POOL);
    return p;
}
static void *take(lab *l, size_t bytes) { return take_as(l, BYTES, bytes); }
static float *take_floats(lab *l, int64_t n) { return take_as(l, FLOATS, (size_t)n * sizeof(float)); }
static void settle(const lab *l) {
    if (l->settle) l->settle();
}

static float draw(lab *l) { return rng_normal(l->seed, STREAM_TEST, l->drawn++); }

static float *vector(lab *l, int64_t n) {
    float *p = take_floats(l, n);
    for (int64_t i = 0; i < n; i++) p[i] = draw(l);
    return p;
}

/* Gaps are odd, so that rows begin anywhere; a case with a gap of 8 has every row at a multiple of 16 bytes. */
static int gap_of(int asked, int odd) { return asked == 8 ? 8 : odd; }

/* an output: poison everywhere */
static mat out(lab *l, int64_t rows, int64_t cols, int gap) {
    return mat_cols(mat_f32(take_floats(l, rows * (cols + gap)), rows, cols + gap), 0, cols);
}
static mat value_out(lab *l, int64_t rows, int64_t cols, int gap) {
    void *p = take_as(l, VALUES, (size_t)(rows * (cols + gap)) * sizeof(float));
    return mat_cols(mat_of(p, l->value, rows, cols + gap), 0, cols);
}

/* m[i, k] = v, rounded to what the case's values are */
static void value_set(const lab *l, mat m, int64_t i, int64_t k, float v) {
    const uint16_t half = float_to_bf16(v);
    if (m.type == BF16)
        ((uint16_t *)m.data)[i * m.ld + k] = half;
    else
        mat_row(m, i)[k] = l->bf16 ? bf16_to_float(half) : v;
}
static float value_get(mat m, int64_t i, int64_t k) {
    return m.type == BF16 ? bf16_to_float(((uint16_t *)m.data)[i * m.ld + k]) : mat_row(m, i)[k];
}

static mat in(lab *l, int64_t rows, int64_t cols, int gap) {
    mat m = out(l, rows, cols, gap);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t k = 0; k < cols; k++) mat_row(m, i)[k] = draw(l);
    return m;
}
static mat value_in(lab *l, int64_t rows, int64_t cols, int gap) {
    mat m = value_out(l, rows, cols, gap);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t k = 0; k < cols; k++) value_set(l, m, i, k, draw(l));
    return m;
}

static int32_t *indices(lab *l, int64_t n, int32_t below) {
    int32_t *p = take(l, (size_t)n * sizeof *p);
    for (int64_t i = 0; i < n; i++)
        p[i] = (int32_t)rng_below(l->seed, STREAM_TEST, 1u << 30 | l->drawn++, (uint64_t)below);
    return p;
}

/* dense, elementwise: rows, cols, gap */

static void run_zero(lab *l, const int *s) {
    char *p = take(l, (size_t)s[0]);
    l->c->be->zero(l->c, p, (size_t)s[0]);
}

static void run_copy(lab *l, const int *s) {
    mat x = value_in(l, s[0], s[1], s[2]), y = value_out(l, s[0], s[1], 3);
    l->c->be->copy(l->c, y, x);
}

static void run_add(lab *l, const int *s) {
    mat a = value_in(l, s[0], s[1], s[2]), b = value_in(l, s[0], s[1], 0), y = value_out(l, s[0], s[1], 5);
    l->c->be->add(l->c, y, a, b);
    l->c->be->add(l->c, a, a, b);
    l->c->be->add(l->c, b, y, b);
}

static void run_scale(lab *l, const int *s) {
    mat x = value_in(l, s[0], s[1], s[2]), y = value_out(l, s[0], s[1], 1);
    l->c->be->scale(l->c, y, x, 0.37f);
    l->c->be->scale(l->c, x, x, -1.5f);
    l->c->be->scale_rows(l->c, x, y, vector(l, s[0]));
    l->c->be->scale_rows(l->c, y, y, vector(l, s[0]));
}

static void run_bf16(lab *l, const int *s) {
    float *x = vector(l, s[0]), *y = vector(l, s[0]);
    uint16_t *h = take(l, (size_t)s[0] * sizeof *h);
    x[0] = INFINITY, x[1] = -0.0f, x[2] = 0x1.01p0f; /* a tie */
    l->c->be->bf16_pack(l->c, h, x, s[0]);
    l->c->be->bf16_unpack(l->c, y, h, s[0]);
}

static void run_bias(lab *l, const int *s) {
    mat y = value_in(l, s[0], s[1], s[2]);
    l->c->be->add_bias(l->c, y, vector(l, s[1]));
}

static void run_dropout(lab *l, const int *s) {
    mat x = value_in(l, s[0], s[1], s[2]), y = value_out(l, s[0], s[1], 2);
    uint64_t *sample = take(l, (size_t)s[0] * sizeof *sample);
    for (int i = 0; i < s[0]; i++) sample[i] = 0x123456789abcull * (uint64_t)(i / 3);
    dropout d = {(float)s[3] / 100, 77, 3, 11, sample, indices(l, s[0], 5000)};
    l->c->be->dropout_fwd(l->c, y, x, &d);
    d.site = 12;
    l->c->be->dropout_fwd(l->c, x, x, &d);
}

static void run_gather(lab *l, const int *s) {
    mat x = value_in(l, s[0], s[1], s[2]), y = value_out(l, 2 * s[0], s[1], 4), z = value_out(l, s[0], s[1], 7);
    l->c->be->gather_rows(l->c, y, x, indices(l, 2 * s[0], s[0]));
    int32_t *row = take(l, (size_t)s[0] * sizeof *row);
    for (int i = 0; i < s[0]; i++) row[i] = s[0] - 1 - i;
    l->c->be->scatter_rows(l->c, z, x, row);
}

/* rows: rows, cols, gap */

static void run_norm(lab *l, const int *s) {
    mat x = value_in(l, s[0], s[1], s[2]), y = value_out(l, s[0], s[1], gap_of(s[2], 6));
    mat dy = in(l, s[0], s[1], gap_of(s[2], 1)), dx = in(l, s[0], s[1], s[2]);
    float *g = vector(l, s[1]), *rstd = take_floats(l, s[0]);
    for (int k = 0; k < s[1]; k++) value_set(l, x, s[0] - 1, k, 0); /* eps alone */
    l->c->be->rmsnorm_fwd(l->c, y, rstd, x, g, 1e-5f);
    l->c->be->rmsnorm_bwd(l->c, dx, dy, x, rstd, g);
    l->c->be->rmsnorm_fwd(l->c, x, NULL, x, g, 1e-6f);
}

static void run_layernorm(lab *l, const int *s) {
    mat x = value_in(l, s[0], s[1], s[2]), y = value_out(l, s[0], s[1], gap_of(s[2], 6));
    mat dy = in(l, s[0], s[1], gap_of(s[2], 1)), dx = in(l, s[0], s[1], s[2]);
    float *g = vector(l, s[1]), *b = vector(l, s[1]), *stats = take_floats(l, 2 * s[0]);
    for (int k = 0; k < s[1]; k++) value_set(l, x, s[0] - 1, k, 0.5f); /* eps alone */
    l->c->be->layernorm_fwd(l->c, y, stats, x, g, b, 1e-5f);
    l->c->be->layernorm_bwd(l->c, dx, dy, x, stats, g);
    l->c->be->layernorm_fwd(l->c, x, NULL, x, g, NULL, 1e-6f);
}

static void run_rope(lab *l, const int *s) { /* rows, heads, gap, dim */
    mat x = value_in(l, s[0], s[1] * s[3], s[2]), y = value_out(l, s[0], s[1] * s[3], gap_of(s[2], 3));
    rope r = {vector(l, 50 * s[3] / 2), vector(l, 50 * s[3] / 2), s[3], 50};
    int32_t *pos = indices(l, s[0], 50);
    l->c->be->rope_fwd(l->c, y, x, pos, &r, 1);
    l->c->be->rope_fwd(l->c, x, x, pos, &r, -1);
}

static void run_glu(lab *l, const int *s) { /* rows, cols, gap, activation */
    mat both = value_in(l, s[0], 2 * s[1], s[2]), gate = mat_cols(both, 0, s[1]), up = mat_cols(both, s[1], s[1]);
    mat dy = in(l, s[0], s[1], 0), y = value_out(l, s[0], s[1], gap_of(s[2], 1));
    mat dboth = out(l, s[0], 2 * s[1], gap_of(s[2], 9));
    const float edge[] = {0, -0.0f, 88, -88, 100, -100, 1e30f, -1e30f, 1e-30f, 0x1p-149f};
    for (int k = 0; k < s[1] && k < 10; k++) value_set(l, gate, 0, k, edge[k]);
    l->c->be->glu_fwd(l->c, y, gate, up, (activation)s[3]);
    l->c->be->glu_bwd(l->c, mat_cols(dboth, 0, s[1]), mat_cols(dboth, s[1], s[1]), dy, gate, up, (activation)s[3]);
    mat dup = out(l, s[0], s[1], gap_of(s[2], 2));
    l->c->be->glu_bwd(l->c, mat_none(), dup, dy, gate, up, (activation)s[3]);
    if (l->bf16) return; /* gradients are F32 and go over values only where those are too */
    l->c->be->glu_bwd(l->c, mat_none(), up, dy, gate, up, (activation)s[3]);
    l->c->be->glu_bwd(l->c, gate, up, dy, gate, up, (activation)s[3]);
}

/* frozen matrices: tokens, out, in, gap, format */

static weight frozen(lab *l, int rows, int cols, int format) {
    int64_t n = (int64_t)rows * cols;
    float *x = vector(l, n);
    weight w = {&weight_formats[format], rows, cols, 1, x, NULL};
    if (format == FMT_F32) return w;
    if (format == FMT_NF4) {
        int64_t blocks = (n + 63) / 64;
        uint8_t *codes = take(l, nf4_data_bytes(n)), *code = take(l, (size_t)blocks);
        float *absmax = take_floats(l, blocks), *nested = take_floats(l, blocks / 256 + 1), *map = take_floats(l, 256);
        nf4_meta *meta = test_calloc(1, sizeof *meta);
        memcpy(map, nf4_dynamic_map, sizeof nf4_dynamic_map);
        nf4_quant(x, n, codes, absmax);
        *meta = (nf4_meta){64, 256, NULL, code, nested, map, 0};
        meta->offset = nf4_quant_scales(absmax, blocks, code, nested);
        w.data = codes, w.meta = meta;
        return w;
    }
    void *data = take(l, (size_t)(n / w.fmt->block * w.fmt->bytes));
    w.fmt->quant(x, n, data), w.data = data;
    return w;
}
static void frozen_free(weight w) { test_free((void *)w.meta); }

static void run_weight_fwd(lab *l, const int *s) {
    weight w = frozen(l, s[1], s[2], s[4]);
    mat x = value_in(l, s[0], s[2], s[3]), y = value_in(l, s[0], s[1], 0);
    l->c->be->weight_fwd(l->c, y, x, &w);
    l->c->be->weight_fwd(l->c, in(l, s[0], s[1], 1), x, &w); /* sums are F32 whatever values are */
    settle(l);
    frozen_free(w);
}

static void run_weight_bwd(lab *l, const int *s) {
    weight w = frozen(l, s[1], s[2], s[4]);
    mat dy = in(l, s[0], s[1], s[3]), dx = in(l, s[0], s[2], 2);
    l->c->be->weight_bwd(l->c, dx, dy, &w);
    settle(l);
    frozen_free(w);
}

static void run_weight_grad(lab *l, const int *s) {
    mat dy = in(l, s[0], s[1], s[3]), x = value_in(l, s[0], s[2], s[3]);
    l->c->be->weight_grad(l->c, in(l, s[1], s[2], 0), dy, x);
}

static void run_embed(lab *l, const int *s) {
    weight w = frozen(l, s[1], s[2], s[4]);
    mat e = value_out(l, s[0], s[2], s[3]);
    l->c->be->embed_fwd(l->c, e, &w, indices(l, s[0], s[1]));
    settle(l);
    frozen_free(w);
}

/* tokens, in, out of the first, gap, format, projections, rank: out grows and the rank falls by one from each to the
 * next, the second has no adapter and no gradient, odd ones a bias */
static void run_proj(lab *l, const int *s) {
    const int rows = s[0], cols = s[1], n = s[5], rank = s[6], ranks = rank ? 2 * rank - 2 : 0;
    weight w[PROJ_MAX];
    mat x = value_in(l, rows, cols, s[3]), dh = in(l, rows, ranks, 0);
    proj_fwd_args f = {.n = n, .x = x};
    proj_bwd_args b = {.n = n, .dx = in(l, rows, cols, s[3])};
    for (int i = 0; i < n; i++) {
        w[i] = frozen(l, s[2] + 32 * i, cols, s[4]);
        f.w[i] = b.w[i] = &w[i], f.y[i] = value_out(l, rows, w[i].rows, i ? s[3] : 0);
        if (i % 2) f.bias[i] = vector(l, w[i].rows);
        if (i == 1) continue;
        b.dy[i] = in(l, rows, w[i].rows, s[3]);
        if (rank) f.h[i] = mat_cols(dh, i ? rank : 0, rank - i), f.up[i] = in(l, w[i].rows, rank - i, 0);
    }
    if (rank) memset(mat_row(dh, rows / 2), 0, (size_t)ranks * sizeof(float)); /* a row without an adapter */
    if (rank) b.dh = dh, b.down = in(l, ranks, cols, 0);
    l->c->be->proj_fwd(l->c, &f);
    l->c->be->proj_bwd(l->c, &b);
    b.fresh = true, b.dx = out(l, rows, cols, s[3] / 2);
    l->c->be->proj_bwd(l->c, &b);
    for (int i = 0; i < n; i++) b.dy[i] = mat_none();
    b.dh = mat_none(), b.dx = out(l, rows, cols, s[3]); /* zeros */
    l->c->be->proj_bwd(l->c, &b);
    settle(l);
    for (int i = 0; i < n; i++) frozen_free(w[i]);
}

/* adapters of a mixed batch: in, two outputs and ranks, gap, format of the adapters' matrices */

static weight adapter_matrix(lab *l, int rows, int cols, int used, int format) {
    const int64_t n = (int64_t)rows * cols;
    float *x = vector(l, n);
    for (int64_t i = 0; i < n; i++)
        if (i % cols >= used) x[i] = 0;
    weight w = {&weight_formats[format], rows, cols, 1, x, NULL};
    if (format == FMT_F32) return w;
    uint16_t *half = take(l, (size_t)n * sizeof *half);
    for (int64_t i = 0; i < n; i++) half[i] = float_to_bf16(x[i]);
    w.data = half;
    return w;
}

/* Items of one row, of several, of more than go together, in several adapters' sum, and a projection that one lacks. */
static void run_lora(lab *l, const int *s) {
    enum { ROWS = 50, PARTS = 3, ITEMS = 8 };
    static const int use[ITEMS][3] = {{0, 1, 0}, {1, 3, 1}, {4, 20, 2}, {24, 16, 0},
                                      {0, 4, 2}, {2, 1, 0}, {45, 5, 1}, {30, 1, 1}};
    const int rank = s[3] + s[4], columns = (rank + 15) / 16 * 16;
    lora_part part[PARTS] = {{.at = {0, s[3]}}, {.at = {0, s[3]}}, {.at = {0, s[3]}}};
    lora_item item[ITEMS];
    mat x = value_in(l, ROWS, s[0], s[5]);
    lora_fwd_args a = {2, x, {value_in(l, ROWS, s[1], s[5]), value_in(l, ROWS, s[2], gap_of(s[5], 1))}, ITEMS, item};
    for (int i = 0; i < PARTS; i++) {
        part[i].down = adapter_matrix(l, s[0], columns, rank, s[6]);
        part[i].up[0] = adapter_matrix(l, s[3], s[1], s[1], s[6]);
        if (i != 1) part[i].up[1] = adapter_matrix(l, s[4], s[2], s[2], s[6]);
    }
    /* what stands in h afterwards is a backend's own affair: it lies behind what is compared */
    float *h = (float *)(void *)(l->pool + POOL) - ITEMS * ROWS * columns;
    for (int i = 0; i < ITEMS; i++)
        item[i] = (lora_item){use[i][0], use[i][1], &part[use[i][2]], 0.25f * (float)(i + 1), h + i * ROWS * columns};
    l->c->be->lora_fwd(l->c, &a);
}

static void run_head(lab *l, const int *s) { /* tokens, words, dim, gap, format */
    weight w = frozen(l, s[1], s[2], s[4]);
    mat h = value_in(l, s[0], s[2], s[3]), dh = out(l, s[0], s[2], s[3]);
    int32_t *target = indices(l, s[0], s[1]);
    float *a = take_floats(l, s[0]), *b = take_floats(l, s[0]);
    target[0] = s[1] - 1;
    l->c->be->head_loss(l->c, a, dh, h, &w, target);
    l->c->be->head_loss(l->c, b, mat_none(), h, &w, target);
    settle(l);
    assert_memory_equal(a, b, (size_t)s[0] * sizeof *a);
    frozen_free(w);
}

static void run_loss_sum(lab *l, const int *s) {
    float *logprob = vector(l, s[0]);
    step_sums *sums = take_as(l, SUMS, sizeof *sums);
    memset(sums, 0, sizeof *sums);
    l->c->be->loss_sum(l->c, sums, logprob, vector(l, s[0]), s[0]);
    l->c->be->loss_sum(l->c, sums, logprob, vector(l, s[0]), s[0]);
}

/* flat vectors: n */

static void run_sumsq(lab *l, const int *s) {
    float *x = vector(l, s[0]);
    step_sums *sums = take_as(l, SUMS, 2 * sizeof *sums);
    memset(sums, 0, 2 * sizeof *sums);
    l->c->be->sumsq(l->c, &sums[0], x, s[0]);
    float *y = vector(l, s[0]);
    step_sums *bad = take(l, sizeof *bad);
    memset(bad, 0, sizeof *bad);
    for (int i = 0; i < s[0]; i += 97) y[i] = i % 2 ? (float)INFINITY : -(float)NAN;
    l->c->be->sumsq(l->c, bad, y, s[0]);
    settle(l);
    assert_int_equal(bad->nonfinite, (s[0] + 96) / 97);
    bad->sumsq = 0;
}

/* what step_end leaves: clipped to 0.5, a mean over 3 */
static step_sums *summed(lab *l) {
    step_sums *sums = take_as(l, SUMS, 3 * sizeof *sums);
    memset(sums, 0, 3 * sizeof *sums);
    sums[0] = (step_sums){.loss = 2, .weight = 3, .sumsq = 7};
    sums[1] = (step_sums){.loss = INFINITY, .weight = 3, .sumsq = 7};
    sums[2] = (step_sums){.loss = 1, .weight = 8, .sumsq = 64};
    l->c->be->step_end(l->c, &sums[0], 0.5);
    l->c->be->step_end(l->c, &sums[1], 1);
    l->c->be->step_end(l->c, &sums[2], 0);
    settle(l);
    assert_true(sums[0].nonfinite == 0 && sums[1].nonfinite == 1 && sums[2].norm == 1 && sums[2].grad_scale == 0.125);
    return sums;
}

static void run_step_end(lab *l, const int *s) {
    (void)s;
    summed(l);
}

static void run_adamw(lab *l, const int *s) {
    float *p = vector(l, s[0]), *g = vector(l, s[0]), *m = vector(l, s[0]), *v = vector(l, s[0]);
    for (int i = 0; i < s[0]; i++) v[i] *= v[i];
    step_sums *sums = summed(l);
    adamw_hp hp = {1e-3, 0.9, 0.999, 1e-8, 0.01, 0.19, 0.0447, sums};
    l->c->be->adamw(l->c, p, g, m, v, s[0], &hp);
    l->c->be->adamw(l->c, p, g, m, v, s[0], &hp);
    settle(l);
    sums->nonfinite = 1;
    l->c->be->adamw(l->c, p, m, v, g, s[0], &hp); /* changes nothing */
}

/* Three tensors out of order with gaps between them: s[0] elements, the second one a block of zeros and a huge value,
 * the third shorter than a block. Several steps, so that moments come back from every code. */
static void run_adamw8(lab *l, const int *s) {
    const int64_t n = s[0], second = 700, third = 3, all = n + second + third + 20, codes = n + second + third;
    const int64_t blocks = (n + 255) / 256 + 3 + 1;
    adamw8_tensor *t = take(l, 3 * sizeof *t);
    t[0] = (adamw8_tensor){second + 5, n, 0, 0}, t[1] = (adamw8_tensor){0, second, n, blocks - 4};
    t[2] = (adamw8_tensor){all - third, third, n + second, blocks - 1};
    uint8_t *m = take(l, (size_t)codes), *v = take(l, (size_t)codes);
    float *m_scale = take_floats(l, blocks), *v_scale = take_floats(l, blocks);
    memset(m, 0, (size_t)codes), memset(v, 0, (size_t)codes);
    memset(m_scale, 0, (size_t)blocks * sizeof *m_scale), memset(v_scale, 0, (size_t)blocks * sizeof *v_scale);
    const adamw8 state = {t, 3, blocks, m, v, m_scale, v_scale};
    float *p = vector(l, all);
    adamw_hp hp = {1e-3, 0.9, 0.999, 1e-8, 0.01, 0.19, 0.0447, summed(l)};
    for (int step = 0; step < 3; step++) {
        float *g = vector(l, all);
        for (int64_t i = 0; i < all; i++) g[i] *= expf(4 * draw(l)); /* the maps' decades */
        memset(g, 0, 256 * sizeof *g), g[300] = 1e12f, g[301] = -1e-12f, g[600] = -0.0f;
        l->c->be->adamw_8bit(l->c, p, g, &state, &hp);
    }
}

/* attention: heads, key heads, dim, window, gap, then the token counts of up to three sequences; s[8] = cached keys */

typedef struct attention_lab {
    attn a;
    int rows, keys;
    mat q, k, v, o;
    float *lse;
} attention_lab;

static attention_lab attention_make(lab *l, const int *s) {
    int heads = s[0], kv = s[1], dim = s[2], gap = s[4], past = s[8];
    int32_t *start = take(l, 4 * sizeof *start), *pasts = take(l, 3 * sizeof *pasts),
            *first = take(l, 3 * sizeof *first);
    start[0] = first[0] = 0;
    for (int n = 0; n < 3; n++) {
        start[n + 1] = start[n] + s[5 + n], pasts[n] = n == 1 ? past / 2 : past;
        if (n < 2) first[n + 1] = first[n] + pasts[n] + s[5 + n] + (past ? 3 : 0);
    }
    attention_lab x = {.a = {heads, kv, dim, 0.71f / (float)dim, s[3], 3, start, pasts, first},
                       .rows = s[5] + s[6] + s[7],
                       .keys = first[2] + pasts[2] + s[7]};
    x.q = value_in(l, x.rows, (int64_t)heads * dim, gap), x.k = value_in(l, x.keys, (int64_t)kv * dim, gap);
    x.v = value_in(l, x.keys, (int64_t)kv * dim, gap_of(gap, 1));
    x.o = value_out(l, x.rows, (int64_t)heads * dim, gap_of(gap, 2));
    x.lse = take_floats(l, (int64_t)x.rows * heads);
    for (int64_t i = 0; i < x.rows; i++) /* peaked rows too */
        for (int64_t e = i % 7; e < x.q.cols; e += 7) value_set(l, x.q, i, e, 40 * value_get(x.q, i, e));
    return x;
}

static void run_attention_fwd(lab *l, const int *s) {
    attention_lab x = attention_make(l, s);
    l->c->be->attn_fwd(l->c, x.o, x.lse, x.q, x.k, x.v, &x.a);
}

static void run_attention(lab *l, const int *s) {
    attention_lab x = attention_make(l, s);
    int gap = s[4];
    mat dout = in(l, x.rows, x.q.cols, gap), dq = in(l, x.rows, x.q.cols, 0);
    mat dk = in(l, x.keys, x.k.cols, gap), dv = in(l, x.keys, x.k.cols, gap_of(gap, 5));
    l->c->be->attn_fwd(l->c, x.o, x.lse, x.q, x.k, x.v, &x.a);
    l->c->be->attn_bwd(l->c, dq, dk, dv, dout, x.q, x.k, x.v, x.o, x.lse, &x.a);
}

/* pages: heads, key heads, dim, window, type, then the token counts of three sequences; s[8] = cached keys. Pages are
 * handed out in disorder, a page outside every window is -1, and what no token was stored to stays poison. */

static void run_pages(lab *l, const int *s) {
    enum { COLUMNS = 40, PAGES = 3 * COLUMNS };
    int heads = s[0], kv = s[1], dim = s[2], rows = s[5] + s[6] + s[7], keys = rows + 3 * s[8];
    int64_t width = (int64_t)kv * dim, bytes = kv_page_bytes((kv_type)s[4], width);
    int32_t *start = take(l, 4 * sizeof *start), *past = take(l, 3 * sizeof *past), *first = take(l, 3 * sizeof *first),
            *table = take(l, PAGES * sizeof *table), *slot = take(l, (size_t)keys * sizeof *slot);
    start[0] = 0;
    for (int n = 0, at = 0; n < 3; n++) {
        start[n + 1] = start[n] + s[5 + n], past[n] = s[8], first[n] = at;
        for (int j = 0; j < COLUMNS; j++) table[n * COLUMNS + j] = (n * COLUMNS + j) * 7 % PAGES;
        for (int j = 0; j < past[n] + s[5 + n]; j++)
            slot[at++] = table[n * COLUMNS + j / KV_PAGE] * KV_PAGE + j % KV_PAGE;
        for (int j = 0; s[3] && (j + 1) * KV_PAGE <= past[n] - s[3]; j++) table[n * COLUMNS + j] = -1;
    }
    mat q = value_in(l, rows, (int64_t)heads * dim, 3), k = value_in(l, keys, width, 1),
        v = value_in(l, keys, width, 0);
    value_set(l, k, 0, 0, 1e30f);
    for (int64_t e = 0; e < width; e++) value_set(l, k, keys - 1, e, 0); /* a scale of zero */
    mat o = value_out(l, rows, (int64_t)heads * dim, 2), dense = value_out(l, rows, (int64_t)heads * dim, 2);
    char *pool = take(l, (size_t)(2 * PAGES * bytes));
    const kv_pages p = {(kv_type)s[4], kv, dim, pool, pool + bytes, 2 * bytes, table, COLUMNS};
    const attn a = {heads, kv, dim, 0.71f / (float)dim, s[3], 3, start, past, first};
    int half = keys / 2; /* what is stored with what makes no difference */
    l->c->be->kv_store(l->c, &p, mat_rows(k, 0, half), mat_rows(v, 0, half), slot);
    l->c->be->kv_store(l->c, &p, mat_rows(k, half, keys - half), mat_rows(v, half, keys - half), slot + half);
    l->c->be->attn_pages(l->c, o, q, &p, &a);
    l->c->be->attn_fwd(l->c, dense, NULL, q, k, v, &a);
    settle(l);
    for (int i = 0; i < rows && s[4] == KV_F32 && !l->settle; i++) /* canonical numerics: the same bits */
        assert_memory_equal(mat_row(o, i), mat_row(dense, i), (size_t)o.cols * sizeof(float));
}

#define WEIGHT_CASES(name, ...)                                                                                        \
    {"weight " name " forward", run_weight_fwd, {__VA_ARGS__}},                                                        \
        {"weight " name " backward", run_weight_bwd, {__VA_ARGS__}},                                                   \
        {"weight " name " gradient", run_weight_grad, {__VA_ARGS__}}, {                                                \
        "embed " name, run_embed, { __VA_ARGS__ }                                                                      \
    }

static const kernel_case cases[] = {
    {"zero", run_zero, {1}},
    {"zero large", run_zero, {300001}},
    {"copy", run_copy, {5, 37, 3}},
    {"copy large", run_copy, {300, 100, 0}},
    {"add", run_add, {3, 17, 2}},
    {"add large", run_add, {70, 576, 0}},
    {"scale", run_scale, {3, 15, 1}},
    {"scale large", run_scale, {61, 500, 4}},
    {"bias", run_bias, {4, 33, 0}},
    {"bias large", run_bias, {50, 576, 8}},
    {"bf16", run_bf16, {16 * 37}},
    {"bf16 large", run_bf16, {1 << 16}},
    {"dropout", run_dropout, {7, 13, 1, 10}},
    {"dropout large", run_dropout, {65, 600, 0, 50}},
    {"dropout none", run_dropout, {3, 70, 0, 0}},
    {"gather", run_gather, {9, 21, 3}},
    {"gather large", run_gather, {40, 576, 0}},
    {"norm 1", run_norm, {3, 1, 0}},
    {"norm 15", run_norm, {4, 15, 2}},
    {"norm 576", run_norm, {67, 576, 0}},
    {"norm 1001", run_norm, {33, 1001, 7}},
    {"norm 128 whole", run_norm, {37, 128, 8}},
    {"norm 2048 whole", run_norm, {5, 2048, 8}},
    {"norm 3001", run_norm, {2, 3001, 0}},
    {"layernorm 1", run_layernorm, {3, 1, 0}},
    {"layernorm 15", run_layernorm, {4, 15, 2}},
    {"layernorm 1001 large", run_layernorm, {33, 1001, 7}},
    {"layernorm 128 whole", run_layernorm, {9, 128, 8}},
    {"layernorm 2048 whole large", run_layernorm, {5, 2048, 8}},
    {"rope 2", run_rope, {5, 3, 1, 2}},
    {"rope 64", run_rope, {50, 9, 0, 64}},
    {"rope 80", run_rope, {31, 7, 5, 80}},
    {"rope 128 whole", run_rope, {19, 5, 8, 128}},
    {"silu", run_glu, {3, 19, 2, ACT_SILU}},
    {"silu large", run_glu, {40, 1536, 0, ACT_SILU}},
    {"gelu", run_glu, {3, 31, 1, ACT_GELU_TANH}},
    {"gelu large", run_glu, {37, 700, 3, ACT_GELU_TANH}},
    {"silu whole", run_glu, {21, 1536, 8, ACT_SILU}},
    {"gelu whole", run_glu, {9, 2200, 8, ACT_GELU_TANH}},
    WEIGHT_CASES("f32 1", 1, 1, 1, 0, FMT_F32),
    WEIGHT_CASES("f32", 13, 21, 300, 3, FMT_F32),
    WEIGHT_CASES("f32 wide", 37, 97, 600, 0, FMT_F32),
    WEIGHT_CASES("bf16", 31, 50, 70, 1, FMT_BF16),
    WEIGHT_CASES("f16", 5, 33, 65, 0, FMT_F16),
    WEIGHT_CASES("nf4", 33, 65, 96, 2, FMT_NF4),
    WEIGHT_CASES("nf4 straddling", 2, 40, 200, 0, FMT_NF4),
    WEIGHT_CASES("nf4 576", 130, 100, 576, 0, FMT_NF4),
    WEIGHT_CASES("q4_0", 17, 40, 64, 1, FMT_Q4_0),
    WEIGHT_CASES("q8_0", 9, 70, 96, 0, FMT_Q8_0),
    WEIGHT_CASES("q4_1", 9, 21, 64, 0, FMT_Q4_1),
    WEIGHT_CASES("q5_0", 5, 18, 96, 1, FMT_Q5_0),
    WEIGHT_CASES("q5_1", 4, 17, 32, 0, FMT_Q5_1),
    WEIGHT_CASES("iq4_nl", 6, 19, 64, 0, FMT_IQ4_NL),
    WEIGHT_CASES("q4_k", 19, 40, 256, 0, FMT_Q4_K),
    WEIGHT_CASES("q5_k", 3, 20, 256, 0, FMT_Q5_K),
    WEIGHT_CASES("q6_k", 70, 33, 512, 2, FMT_Q6_K),
    WEIGHT_CASES("f32 deep", 30, 24, 1100, 1, FMT_F32),
    WEIGHT_CASES("nf4 few rows", 16, 50, 1088, 0, FMT_NF4),
    WEIGHT_CASES("q4_0 tiles", 130, 70, 160, 1, FMT_Q4_0),
    WEIGHT_CASES("q8_0 tiles", 66, 140, 160, 0, FMT_Q8_0),
    {"proj bare", run_proj, {5, 96, 40, 2, FMT_F32, 1, 0}},
    {"proj f32", run_proj, {37, 70, 33, 3, FMT_F32, 3, 5}},
    {"proj row", run_proj, {1, 576, 64, 0, FMT_NF4, 2, 16}},
    {"proj few rows", run_proj, {4, 640, 97, 1, FMT_BF16, 3, 7}},
    {"proj nf4", run_proj, {131, 576, 192, 0, FMT_NF4, 3, 16}},
    {"proj nf4 blocks", run_proj, {53, 384, 192, 0, FMT_NF4, 2, 64}},
    {"proj q8_0", run_proj, {40, 416, 100, 4, FMT_Q8_0, 3, 17}},
    {"proj q4_k", run_proj, {40, 512, 100, 0, FMT_Q4_K, 2, 16}},
    {"proj few rows q6_k", run_proj, {7, 256, 60, 0, FMT_Q6_K, 3, 8}},
    {"proj few rows q4_0", run_proj, {12, 192, 33, 8, FMT_Q4_0, 3, 16}},
    {"proj rank", run_proj, {29, 64, 48, 0, FMT_F16, 3, 401}},
    {"proj rows", run_proj, {1027, 128, 64, 0, FMT_NF4, 2, 8}},
    {"lora", run_lora, {40, 33, 7, 3, 2, 3, FMT_F32}},
    {"lora bf16", run_lora, {64, 48, 65, 4, 20, 8, FMT_BF16}},
    {"lora large", run_lora, {1100, 300, 515, 16, 8, 8, FMT_F32}},
    {"head small", run_head, {3, 10, 8, 1, FMT_F32}},
    {"head chunk", run_head, {7, 384, 33, 0, FMT_F32}},
    {"head bf16", run_head, {65, 1000, 96, 2, FMT_BF16}},
    {"head q8_0", run_head, {20, 801, 64, 0, FMT_Q8_0}},
    {"loss sum", run_loss_sum, {1}},
    {"loss sum large", run_loss_sum, {1003}},
    {"sumsq 1", run_sumsq, {1}},
    {"sumsq", run_sumsq, {4097}},
    {"sumsq large", run_sumsq, {100003}},
    {"step end", run_step_end, {0}},
    {"adamw", run_adamw, {31}},
    {"adamw large", run_adamw, {50001}},
    {"adamw 8 bit", run_adamw8, {257}},
    {"adamw 8 bit large", run_adamw8, {20007}},
    {"attention forward", run_attention_fwd, {4, 2, 24, 0, 2, 33, 1, 70, 0}},
    {"attention 1", run_attention, {1, 1, 1, 0, 0, 1, 0, 0, 0}},
    {"attention odd", run_attention, {2, 1, 5, 0, 1, 7, 1, 30, 0}},
    {"attention tiles", run_attention, {1, 1, 64, 0, 8, 70, 1, 0, 0}},
    {"attention split", run_attention, {2, 1, 64, 0, 8, 1, 0, 0, 261}},
    {"attention block large", run_attention, {1, 1, 16, 0, 0, 96, 97, 95, 0}},
    {"attention grouped large", run_attention, {9, 3, 64, 0, 0, 130, 1, 61, 0}},
    {"attention grouped 7 large", run_attention, {14, 2, 64, 0, 0, 40, 50, 3, 0}},
    {"attention long large", run_attention, {2, 1, 32, 0, 0, 401, 0, 0, 0}},
    {"attention 80 large", run_attention, {3, 3, 80, 0, 3, 100, 20, 0, 0}},
    {"attention 256 large", run_attention, {2, 1, 256, 0, 0, 99, 10, 2, 0}},
    {"attention window 1 large", run_attention, {2, 2, 16, 1, 0, 60, 5, 0, 0}},
    {"attention window 5 large", run_attention, {3, 1, 24, 5, 1, 110, 97, 1, 0}},
    {"attention window 100 large", run_attention, {2, 1, 32, 100, 0, 310, 99, 0, 0}},
    {"attention past large", run_attention, {4, 2, 48, 0, 2, 1, 9, 70, 333}},
    {"attention past window large", run_attention, {3, 1, 32, 64, 0, 1, 100, 7, 250}},
    {"attention whole 64 large", run_attention, {8, 2, 64, 0, 8, 130, 1, 61, 0}},
    {"attention whole 80 large", run_attention, {4, 1, 80, 33, 8, 20, 70, 3, 0}},
    {"attention whole 96 large", run_attention, {3, 3, 96, 0, 8, 65, 64, 2, 0}},
    {"attention whole 128 large", run_attention, {8, 1, 128, 0, 8, 37, 70, 9, 0}},
    {"attention whole 168 large", run_attention, {3, 1, 168, 0, 8, 40, 1, 30, 0}},
    {"attention whole 256 large", run_attention, {2, 2, 256, 40, 8, 70, 1, 18, 0}},
    {"attention decode large", run_attention, {8, 1, 64, 0, 8, 1, 8, 2, 600}},
    {"attention decode window large", run_attention, {3, 1, 128, 300, 8, 1, 3, 9, 700}},
    {"pages few", run_pages, {2, 1, 64, 0, KV_Q8_0, 1, 17, 0, 50}},
    {"pages large", run_pages, {4, 2, 16, 0, KV_F32, 1, 5, 40, 0}},
    {"pages odd large", run_pages, {3, 1, 5, 0, KV_F32, 7, 1, 30, 33}},
    {"pages long large", run_pages, {9, 3, 64, 0, KV_F32, 1, 200, 1, 311}},
    {"pages window large", run_pages, {2, 1, 24, 37, KV_F32, 1, 110, 3, 250}},
    {"pages bf16 large", run_pages, {4, 2, 24, 0, KV_BF16, 1, 50, 40, 100}},
    {"pages bf16 odd large", run_pages, {2, 2, 7, 20, KV_BF16, 1, 3, 60, 120}},
    {"pages q8_0 large", run_pages, {4, 2, 64, 0, KV_Q8_0, 1, 100, 2, 97}},
    {"pages q8_0 straddling large", run_pages, {8, 4, 24, 0, KV_Q8_0, 3, 20, 1, 60}},
    {"pages q8_0 window large", run_pages, {4, 4, 8, 9, KV_Q8_0, 1, 30, 2, 70}},
};
enum { CASES = sizeof cases / sizeof *cases };

#endif
