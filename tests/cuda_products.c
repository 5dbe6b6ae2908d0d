/* What products with stored weights on a device promise beyond being right, bit for bit, with bf16 operands:
 *
 *   - dequantised inside the product, or into a panel first: the same bits, forward, backward and with adapters;
 *   - a row's result is the same alone and among others, by every way but the library's;
 *   - two runs are equal.
 *
 *   cuda_products KERNELS.so            ends with "N passed, N failed" */
#include "core/error.h"
#include "core/num.h"
#include "core/rng.h"
#include "tests/cuda_rows.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MANY = 70, FEW = 16, OUT = 150, RANK = 16, POISON = 0xff };
enum { SHALLOW = 256, DEEP = 1024 }; /* inputs; from 512 on a product that dequantises inside cuts them into pieces */
typedef enum { BY_FEW, BY_STORED, BY_PANEL, WAYS } way;
static const char *const way_names[WAYS] = {"few", "stored", "panel"};

static const cuda_rows *rows;
static kctx device[WAYS];
static int passed, failed;
static uint64_t drawn;

static void *taken(size_t bytes) {
    void *p = memory_shared(device[0].mem, bytes + 64);
    memset(p, POISON, bytes + 64);
    return p;
}
static float draw(void) { return rng_normal(3, STREAM_TEST, drawn++); }
static mat floats(int64_t n, int64_t cols) {
    mat m = mat_f32(taken((size_t)(n * cols) * sizeof(float)), n, cols);
    for (int64_t i = 0; i < n * cols; i++) ((float *)m.data)[i] = draw();
    return m;
}
static mat halves(int64_t n, int64_t cols) {
    mat m = mat_of(taken((size_t)(n * cols) * 2), BF16, n, cols);
    for (int64_t i = 0; i < n * cols; i++) ((uint16_t *)m.data)[i] = float_to_bf16(draw());
    return m;
}
static size_t bytes_of(mat m) { return (size_t)(m.rows * m.cols * mat_bytes(m.type)); }

static weight stored(int format, int64_t in) {
    const int64_t n = OUT * in, blocks = n / 64;
    weight w = {&weight_formats[format], OUT, in, 1, NULL, NULL};
    mat x = floats(OUT, in);
    if (format != FMT_NF4) {
        void *data = taken((size_t)weight_bytes(&w));
        w.fmt->quant(x.data, n, data), w.data = data;
        return w;
    }
    uint8_t *codes = taken(nf4_data_bytes(n)), *code = taken((size_t)blocks);
    float *nested = taken((size_t)(blocks / 256 + 1) * sizeof *nested), *map = taken(sizeof nf4_dynamic_map);
    float *absmax = taken((size_t)blocks * sizeof *absmax);
    memcpy(map, nf4_dynamic_map, sizeof nf4_dynamic_map);
    nf4_quant(x.data, n, codes, absmax);
    nf4_meta *meta = malloc(sizeof *meta); /* for the process's life */
    *meta = (nf4_meta){64, 256, NULL, code, nested, map, 0};
    meta->offset = nf4_quant_scales(absmax, blocks, code, nested);
    w.data = codes, w.meta = meta;
    return w;
}

/* one call's operands and results */
typedef struct call {
    const weight *w;
    const float *bias;
    mat x, h, up, dy, dh, down, y, dx;
} call;

static void run(way v, call *c, dtype type) {
    kctx *k = &device[v];
    k->products = BF16;
    c->y = mat_of(taken((size_t)(c->x.rows * OUT) * 4), type, c->x.rows, OUT);
    c->dx = mat_f32(taken((size_t)(c->x.rows * c->x.cols) * 4), c->x.rows, c->x.cols);
    proj_fwd_args f = {.n = 1, .x = c->x};
    proj_bwd_args b = {.n = 1, .fresh = true, .dx = c->dx, .dh = c->dh, .down = c->down};
    f.y[0] = c->y, f.w[0] = b.w[0] = c->w, f.bias[0] = c->bias, f.h[0] = c->h, f.up[0] = c->up, b.dy[0] = c->dy;
    k->be->proj_fwd(k, &f);
    k->be->proj_bwd(k, &b);
    rows->settle();
}

static void verdict(bool ok, const char *what, way v, const weight *w, dtype type) {
    if (ok) {
        passed++;
        return;
    }
    failed++;
    printf("  %s: %s, %s result, way \"%s\"\n", what, w->fmt->name, type == F32 ? "fp32" : "bf16", way_names[v]);
}

static bool same_rows(mat a, mat b, int64_t from) { /* b = rows [from, ..) of a */
    return memcmp(mat_rows(a, from, b.rows).data, b.data, bytes_of(b)) == 0;
}

/* rows [from, from + n) of a call */
static call part_of(const call *c, int64_t from, int64_t n) {
    call p = *c;
    p.x = mat_rows(c->x, from, n), p.h = mat_rows(c->h, from, n);
    p.dy = mat_rows(c->dy, from, n), p.dh = mat_rows(c->dh, from, n);
    return p;
}

static void check(const weight *w, dtype type) {
    call c = {.w = w, .bias = floats(1, OUT).data, .x = halves(MANY, w->cols), .h = halves(MANY, RANK)};
    c.up = floats(OUT, RANK), c.dy = floats(MANY, OUT), c.dh = floats(MANY, RANK), c.down = floats(RANK, w->cols);
    const bool dense = w->fmt->id == FMT_BF16; /* nothing to dequantise */
    call panel = c, again = c, inside = c;
    run(BY_PANEL, &panel, type), run(BY_PANEL, &again, type), run(dense ? BY_PANEL : BY_STORED, &inside, type);
    verdict(same_rows(panel.y, again.y, 0) && same_rows(panel.dx, again.dx, 0), "two runs differ", BY_PANEL, w, type);
    if (w->cols == SHALLOW)
        verdict(same_rows(panel.y, inside.y, 0) && same_rows(panel.dx, inside.dx, 0), "differs from a panel", BY_STORED,
                w, type);
    for (way v = dense ? BY_PANEL : BY_STORED; v <= BY_PANEL; v++) {
        call p = part_of(&c, 3, 66);
        run(v, &p, type);
        const call *all = v == BY_STORED ? &inside : &panel;
        verdict(same_rows(all->y, p.y, 3) && same_rows(all->dx, p.dx, 3), "depends on other rows", v, w, type);
    }
    call few = part_of(&c, 0, FEW);
    run(BY_FEW, &few, type);
    for (int n = 1; n <= 11; n += 5) {
        call p = part_of(&few, FEW - n, n);
        run(BY_FEW, &p, type);
        verdict(same_rows(few.y, p.y, FEW - n), "depends on other rows", BY_FEW, w, type);
    }
}

int main(int argc, char **argv) {
    static const int formats[] = {FMT_NF4, FMT_Q4_0, FMT_Q8_0, FMT_Q4_K, FMT_Q6_K, FMT_BF16};
    if (argc != 2) return printf("usage: cuda_products KERNELS.so\n"), 2;
    void *so = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    rows = so ? (const cuda_rows *)dlsym(so, "cuda_rows_here") : NULL;
    if (!rows) return printf("%s\n", dlerror()), 2;
    for (way v = 0; v < WAYS; v++) {
        device[v] = (kctx){.be = rows->be, .threads = 1};
        setenv("PEFT_CUDA_PRODUCTS", way_names[v], 1);
        if (rows->open(&device[v])) return fail_report("cuda_products");
    }
    for (size_t i = 0; i < sizeof formats / sizeof *formats; i++) {
        const weight shallow = stored(formats[i], SHALLOW), deep = stored(formats[i], DEEP);
        check(&shallow, F32), check(&shallow, BF16);
        check(&deep, F32), check(&deep, BF16);
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
