/* Kernels of a device by what bounds them: products against the device's own fastest dense product, everything against
 * its fastest copy, both measured here. One JSON line per figure, then a table on stderr.
 *
 *   bench_cuda cuda|emu [--small]     --small: sizes for the emulation, which only shows that it runs */
#include "core/error.h"
#include "core/progress.h"
#include "core/rng.h"
#include "kernels/backend.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct lab {
    kctx k;
    arena a;
    int64_t dim, ffn, rows_most, tokens; /* of products; of attention */
    int heads, kv_heads, head_dim;
    double flops, bytes; /* per second: of the dense product, of a copy (read and written) */
} lab;

typedef struct call {
    lab *l;
    weight w;
    mat x, y, z, dx;
    float *f[4];
    attn at;
    adamw_hp hp;
} call;
typedef void op_fn(call *c);

/* ---- time ---- */

static void settle(lab *l) {
    char byte;
    memory_get(l->k.mem, &byte, l->a.base, 1);
}

/* Seconds of one call: enough calls for 20 ms, the fastest of five turns. */
static double seconds_of(op_fn *op, call *c) {
    int n = 1;
    double best = 1e9;
    op(c);
    settle(c->l);
    for (int turn = 0; turn < 5; turn++) {
        const double began = seconds_now();
        for (int i = 0; i < n; i++) op(c);
        settle(c->l);
        const double took = seconds_now() - began;
        if (turn == 0 && took < 0.02) {
            n = took > 1e-6 ? (int)(0.02 / took) + 1 : 1000;
            turn = -1;
            if (n > 10000) n = 10000, turn = 0;
            continue;
        }
        if (took / n < best) best = took / n;
    }
    return best;
}

/* flops 0: bound by memory alone. bytes: what must move. */
static void report(const lab *l, const char *op, const char *format, int64_t rows, double seconds, double flops,
                   double bytes) {
    printf(
        "{\"what\": \"cuda\", \"op\": \"%s\", \"format\": \"%s\", \"rows\": %ld, \"microseconds\": %.2f, \"tflops\": %.2f, "
        "\"product_percent\": %.1f, \"gb_per_second\": %.1f, \"copy_percent\": %.1f}\n",
        op, format, (long)rows, 1e6 * seconds, 1e-12 * flops / seconds, 100 * flops / seconds / l->flops,
        1e-9 * bytes / seconds, 100 * bytes / seconds / l->bytes);
    fprintf(stderr, "  %-12s %-6s %6ld rows %12.1f us %9.2f TFLOP/s %6.1f %% %9.1f GB/s %6.1f %%\n", op, format,
            (long)rows, 1e6 * seconds, 1e-12 * flops / seconds, 100 * flops / seconds / l->flops,
            1e-9 * bytes / seconds, 100 * bytes / seconds / l->bytes);
    fflush(stdout);
}

/* ---- memory ---- */

/* n pseudo-random bytes; floats of them are small: the exponent's upper bits are cleared */
static void *random_bytes(lab *l, size_t n, bool floats) {
    uint32_t *host = xcalloc(n / 4 + 1, 4);
    void *p = arena_alloc(&l->a, n);
    for (size_t i = 0; i < n / 4; i++) {
        if (i % 4) continue;
        const rng_block b = rng_philox(7, 0, i);
        for (size_t k = 0; k < 4 && i + k < n / 4; k++) host[i + k] = b.v[k];
    }
    for (size_t i = 0; i < n / 4 && floats; i++) host[i] = (host[i] & 0x807fffff) | 0x3c000000;
    memory_put(l->k.mem, p, host, n);
    free(host);
    return p;
}

static mat floats(lab *l, dtype type, int64_t rows, int64_t cols) {
    const size_t n = (size_t)(rows * cols);
    if (type == F32) return mat_of(random_bytes(l, 4 * n, true), F32, rows, cols);
    uint16_t *host = xcalloc(n, sizeof *host);
    for (size_t i = 0; i < n; i++)
        host[i] = (uint16_t)(0x3c00 | (i * 2654435761u >> 20 & 0x80ff)); /* +-0.008 to 0.03 */
    mat m = mat_of(arena_alloc(&l->a, 2 * n), type, rows, cols);
    memory_put(l->k.mem, m.data, host, 2 * n);
    free(host);
    return m;
}

static weight made(lab *l, int fmt, int64_t rows, int64_t cols, nf4_meta *meta) {
    weight w = {&weight_formats[fmt], rows, cols, 1, NULL, NULL};
    if (fmt == FMT_BF16) return w.data = floats(l, BF16, rows, cols).data, w;
    w.data = random_bytes(l, (size_t)weight_bytes(&w), false);
    if (fmt != FMT_NF4) return w;
    const int64_t blocks = (rows * cols + 63) / 64;
    *meta = (nf4_meta){.blocksize = 64, .nested_block = 256};
    meta->code = random_bytes(l, (size_t)blocks, false);
    meta->nested_absmax = random_bytes(l, (size_t)(blocks / 256 + 1) * sizeof(float), true);
    meta->map = arena_copy(&l->a, nf4_dynamic_map, sizeof nf4_dynamic_map);
    w.meta = meta;
    return w;
}

/* ---- operations ---- */

static void do_copy(call *c) { c->l->k.be->copy(&c->l->k, c->y, c->x); }
static void do_fwd(call *c) {
    proj_fwd_args p = {.n = 1, .x = c->x, .y = {c->y}, .w = {&c->w}};
    c->l->k.be->proj_fwd(&c->l->k, &p);
}
static void do_bwd(call *c) {
    proj_bwd_args p = {.n = 1, .dx = c->dx, .dy = {c->z}, .w = {&c->w}};
    c->l->k.be->proj_bwd(&c->l->k, &p);
}
static void do_norm(call *c) { c->l->k.be->rmsnorm_fwd(&c->l->k, c->y, c->f[0], c->x, c->f[1], 1e-5f); }
static void do_glu(call *c) { c->l->k.be->glu_fwd(&c->l->k, c->y, c->x, c->z, ACT_SILU); }
static void do_adamw(call *c) { c->l->k.be->adamw(&c->l->k, c->f[0], c->f[1], c->f[2], c->f[3], c->x.rows, &c->hp); }
static void do_attn(call *c) { c->l->k.be->attn_fwd(&c->l->k, c->y, c->f[0], c->x, c->z, c->z, &c->at); }
static void do_attn_bwd(call *c) {
    mat dq = c->dx, dk = mat_f32(c->f[1], c->x.rows, c->z.cols), dv = mat_f32(c->f[3], c->x.rows, c->z.cols);
    c->l->k.be->attn_bwd(&c->l->k, dq, dk, dv, mat_f32(c->f[2], c->x.rows, c->x.cols), c->x, c->z, c->z, c->y, c->f[0],
                         &c->at);
}

static void peaks(lab *l) {
    const size_t mark = l->a.used;
    const int64_t n = l->rows_most * 2;
    call c = {.l = l, .x = floats(l, F32, n, l->dim), .y = floats(l, F32, n, l->dim)};
    const double copied = 8.0 * (double)(n * l->dim), seconds = seconds_of(do_copy, &c);
    l->bytes = copied / seconds;
    arena_release(&l->a, mark);
    c = (call){.l = l, .x = floats(l, BF16, l->rows_most, l->dim), .y = floats(l, BF16, l->rows_most, l->ffn)};
    c.w = made(l, FMT_BF16, l->ffn, l->dim, NULL);
    l->flops = 2.0 * (double)(l->rows_most * l->ffn * l->dim) / seconds_of(do_fwd, &c);
    fprintf(stderr, "peaks of this run: product %.1f TFLOP/s (bf16, %ld x %ld x %ld), copy %.0f GB/s\n",
            1e-12 * l->flops, (long)l->rows_most, (long)l->ffn, (long)l->dim, 1e-9 * l->bytes);
    arena_release(&l->a, mark);
}

static void products(lab *l) {
    static const int formats[] = {FMT_BF16, FMT_NF4, FMT_Q4_0, FMT_Q8_0, FMT_Q4_K, FMT_Q6_K};
    static const int64_t rows[] = {1, 4, 16, 64, 256, 1024, 4096};
    for (size_t f = 0; f < sizeof formats / sizeof *formats; f++) {
        const size_t mark = l->a.used;
        nf4_meta meta;
        const weight w = made(l, formats[f], l->ffn, l->dim, &meta);
        const mat x = floats(l, BF16, l->rows_most, l->dim), y = floats(l, BF16, l->rows_most, l->ffn);
        const mat dy = floats(l, F32, l->rows_most, l->ffn), dx = floats(l, F32, l->rows_most, l->dim);
        for (size_t r = 0; r < sizeof rows / sizeof *rows && rows[r] <= l->rows_most; r++) {
            const int64_t t = rows[r];
            call c = {l, w, mat_rows(x, 0, t), mat_rows(y, 0, t), mat_rows(dy, 0, t), mat_rows(dx, 0, t), .f = {0}};
            const double flops = 2.0 * (double)(t * l->dim * l->ffn), stored = (double)weight_bytes(&w);
            report(l, "forward", w.fmt->name, t, seconds_of(do_fwd, &c), flops,
                   stored + 2.0 * (double)(t * (l->dim + l->ffn)));
            if (t < 64) continue; /* decoding has no backward pass */
            report(l, "backward", w.fmt->name, t, seconds_of(do_bwd, &c), flops,
                   stored + 4.0 * (double)(t * (l->dim + l->ffn)));
        }
        arena_release(&l->a, mark);
    }
}

static void bandwidth(lab *l) {
    const size_t mark = l->a.used;
    const int64_t t = l->rows_most, n = t * l->dim / 4;
    call c = {
        .l = l, .x = floats(l, BF16, t, l->dim), .y = floats(l, BF16, t, l->dim), .z = floats(l, BF16, t, l->dim)};
    c.f[0] = arena_array(&l->a, (size_t)t, sizeof(float)), c.f[1] = floats(l, F32, 1, l->dim).data;
    report(l, "rmsnorm", "bf16", t, seconds_of(do_norm, &c), 0, 4.0 * (double)(t * l->dim));
    report(l, "glu", "bf16", t, seconds_of(do_glu, &c), 0, 6.0 * (double)(t * l->dim));
    for (int i = 0; i < 4; i++) c.f[i] = floats(l, F32, 1, n).data;
    step_sums sums = {.grad_scale = 1};
    c.x.rows = n;
    c.hp = (adamw_hp){1e-4, 0.9, 0.999, 1e-8, 0, 0.1, 0.03, arena_copy(&l->a, &sums, sizeof sums)};
    report(l, "adamw", "f32", n, seconds_of(do_adamw, &c), 0, 28.0 * (double)n);
    arena_release(&l->a, mark);
}

static void attention(lab *l) {
    const size_t mark = l->a.used;
    const int64_t t = l->tokens, q = (int64_t)l->heads * l->head_dim, kv = (int64_t)l->kv_heads * l->head_dim;
    const int32_t start[2] = {0, (int32_t)t}, none[1] = {0};
    call c = {.l = l,
              .x = floats(l, BF16, t, q),
              .y = floats(l, BF16, t, q),
              .z = floats(l, BF16, t, kv),
              .dx = floats(l, F32, t, q)};
    c.at = (attn){.heads = l->heads, .kv_heads = l->kv_heads, .dim = l->head_dim, .scale = 0.1f, .seqs = 1};
    c.at.start = arena_copy(&l->a, start, sizeof start), c.at.past = c.at.first = arena_copy(&l->a, none, sizeof none);
    c.f[0] = arena_array(&l->a, (size_t)(t * l->heads), sizeof(float));
    c.f[1] = floats(l, F32, t, kv).data, c.f[2] = floats(l, F32, t, q).data, c.f[3] = floats(l, F32, t, kv).data;
    const double flops = 2.0 * (double)(t * (t + 1)) * (double)q, bytes = 2.0 * (double)(t * (2 * q + 2 * kv));
    report(l, "attention", "bf16", t, seconds_of(do_attn, &c), flops, bytes);
    report(l, "attn back", "bf16", t, seconds_of(do_attn_bwd, &c), 2.5 * flops, 4 * bytes);
    arena_release(&l->a, mark);
}

int main(int argc, char **argv) {
    const bool small = argc == 3 && !strcmp(argv[2], "--small");
    if (argc < 2 || argc > 3 || (argc == 3 && !small) || !backend_is_device(argv[1]))
        return fprintf(stderr, "usage: bench_cuda cuda|emu [--small]\n"), EXIT_USAGE;
    lab l = {.dim = 4096, .ffn = 11008, .rows_most = 4096, .tokens = 4096, .heads = 32, .kv_heads = 8, .head_dim = 128};
    if (small)
        l = (lab){.dim = 256, .ffn = 512, .rows_most = 64, .tokens = 64, .heads = 2, .kv_heads = 1, .head_dim = 64};
    const backend *be = backend_open(argv[1]);
    if (!be || kctx_open(&l.k, be, 1) || arena_open_in(&l.a, l.k.mem, "bench", small ? 16 << 20 : (size_t)3 << 30))
        return fail_report("bench_cuda");
    peaks(&l);
    products(&l);
    bandwidth(&l);
    attention(&l);
    arena_close(&l.a);
    kctx_close(&l.k);
    return EXIT_DONE;
}
