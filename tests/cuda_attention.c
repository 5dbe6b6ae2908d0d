/* What attention on a device promises beyond being right, bit for bit, in fp32 and bf16:
 *
 *   - a sequence's results and gradients are the same alone and among others, decoded or in full;
 *   - they do not feel what lies behind its last key, be it NaN, nor how much scratch memory there is;
 *   - over pages they are those over rows where pages hold the values' own type.
 *
 *   cuda_attention KERNELS.so            ends with "N passed, N failed" */
#include "core/error.h"
#include "core/num.h"
#include "core/rng.h"
#include "tests/cuda_rows.h"

#include <dlfcn.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { HEADS = 6, KV = 2, DIM = 72, WIDE = HEADS * DIM, NARROW = KV * DIM, SEQS = 4, GAP = 5, POISON = 0xff };
enum { LITTLE = 102 << 10, GUARD = 256 << 10 }; /* bytes of scratch: several launches for the splits; poison behind */

static const cuda_rows *rows;
static kctx device;
static int passed, failed;

/* Sequences of a call; those with 0 tokens are left out. Keys of sequence n stand at first[n], GAP rows of poison
 * apart. */
typedef struct shape {
    int tokens[SEQS], past[SEQS], window;
    bool own; /* keys are the queries' rows */
} shape;

typedef struct call {
    kctx *c;
    shape s;
    dtype type;
    int queries, keys;
    int32_t *start, *past, *first;
    mat q, k, v, o, dout, dq, dk, dv;
    float *lse;
    attn a;
} call;

static void *taken(size_t bytes) {
    void *p = memory_shared(device.mem, bytes + 64);
    memset(p, POISON, bytes + 64);
    return p;
}
static mat taken_mat(dtype type, int n, int cols) {
    return mat_of(taken((size_t)(n * cols) * (size_t)mat_bytes(type)), type, n, cols);
}
static size_t row_bytes(mat m) { return (size_t)(m.cols * mat_bytes(m.type)); }
static char *row_start(mat m, int64_t i) { return (char *)m.data + (size_t)i * row_bytes(m); }

/* row i of m = numbers that follow from the stream, the sequence and the token alone */
static void fill_row(mat m, int64_t i, int what, int seq, int token) {
    for (int64_t d = 0; d < m.cols; d++) {
        const float x = rng_normal((uint64_t)(10 * what + seq), STREAM_TEST, (uint64_t)(token * m.cols + d));
        const uint16_t half = float_to_bf16(x);
        if (m.type == BF16)
            memcpy(row_start(m, i) + 2 * d, &half, 2);
        else
            memcpy(row_start(m, i) + 4 * d, &x, 4);
    }
}

static call call_make(kctx *c, const shape *s, dtype type) {
    call x = {.c = c, .s = *s, .type = type};
    x.start = taken((SEQS + 1) * sizeof(int32_t)), x.past = taken(SEQS * sizeof(int32_t));
    x.first = taken(SEQS * sizeof(int32_t));
    for (int n = 0; n < SEQS; n++) {
        x.start[n] = x.queries, x.past[n] = s->tokens[n] ? s->past[n] : 0, x.first[n] = x.keys;
        x.queries += s->tokens[n], x.keys += s->tokens[n] ? x.past[n] + s->tokens[n] + (s->own ? 0 : GAP) : 0;
    }
    x.start[SEQS] = x.queries;
    x.q = taken_mat(type, x.queries, WIDE), x.k = taken_mat(type, x.keys, NARROW),
    x.v = taken_mat(type, x.keys, NARROW);
    x.o = taken_mat(type, x.queries, WIDE), x.dout = taken_mat(F32, x.queries, WIDE);
    x.dq = taken_mat(F32, x.queries, WIDE);
    x.dk = taken_mat(F32, x.keys, NARROW), x.dv = taken_mat(F32, x.keys, NARROW);
    x.lse = taken((size_t)(x.queries * HEADS) * sizeof(float));
    for (int n = 0; n < SEQS; n++) {
        for (int i = 0; i < s->tokens[n]; i++)
            fill_row(x.q, x.start[n] + i, 0, n, i), fill_row(x.dout, x.start[n] + i, 1, n, i);
        for (int j = 0; s->tokens[n] && j < x.past[n] + s->tokens[n]; j++)
            fill_row(x.k, x.first[n] + j, 2, n, j), fill_row(x.v, x.first[n] + j, 3, n, j);
    }
    memset(x.dq.data, 0, row_bytes(x.dq) * (size_t)x.queries);
    memset(x.dk.data, 0, row_bytes(x.dk) * (size_t)x.keys), memset(x.dv.data, 0, row_bytes(x.dv) * (size_t)x.keys);
    x.a = (attn){HEADS, KV, DIM, 0.11f, s->window, SEQS, x.start, x.past, x.first};
    return x;
}

static call call_run(kctx *c, const shape *s, dtype type) {
    call x = call_make(c, s, type);
    c->be->attn_fwd(c, x.o, x.lse, x.q, x.k, x.v, &x.a);
    c->be->attn_bwd(c, x.dq, x.dk, x.dv, x.dout, x.q, x.k, x.v, x.o, x.lse, &x.a);
    rows->settle();
    return x;
}

static bool mat_finite(mat m) {
    for (int64_t i = 0; i < m.rows * m.cols; i++) {
        uint16_t half;
        float x;
        memcpy(&half, (char *)m.data + 2 * i, 2);
        if (m.type == BF16)
            x = bf16_to_float(half);
        else
            memcpy(&x, (char *)m.data + 4 * i, 4);
        if (!isfinite(x)) return false;
    }
    return true;
}
static bool all_finite(const call *x) {
    return mat_finite(x->o) && mat_finite(x->dq) && mat_finite(x->dk) && mat_finite(x->dv) &&
           mat_finite(mat_f32(x->lse, x->queries, HEADS));
}

static bool same(mat a, int64_t i, mat b, int64_t j, int64_t n) {
    return memcmp(row_start(a, i), row_start(b, j), row_bytes(a) * (size_t)n) == 0;
}
/* sequence n of both calls */
static bool same_sequence(const call *x, const call *y, int n, bool gradients) {
    const int t = x->s.tokens[n], i = x->start[n], j = y->start[n], k = x->past[n] + t;
    bool equal = same(x->o, i, y->o, j, t) &&
                 !memcmp(x->lse + i * HEADS, y->lse + j * HEADS, (size_t)(t * HEADS) * sizeof(float));
    if (gradients)
        equal = equal && same(x->dq, i, y->dq, j, t) && same(x->dk, x->first[n], y->dk, y->first[n], k) &&
                same(x->dv, x->first[n], y->dv, y->first[n], k);
    return equal;
}

static void verdict(bool good, const char *what, int seq, dtype type) {
    if (good)
        passed++;
    else
        failed++, printf("  sequence %d%s: %s\n", seq, type == BF16 ? " (bf16)" : "", what);
}

static void alone_and_among_others(kctx *c, const shape *s, dtype type) {
    const call all = call_run(c, s, type);
    verdict(all_finite(&all), "something is not finite", -1, type);
    for (int n = 0; n < SEQS; n++) {
        shape one = *s;
        for (int i = 0; i < SEQS; i++) one.tokens[i] = i == n ? s->tokens[i] : 0;
        if (!s->tokens[n]) continue;
        const call alone = call_run(c, &one, type);
        verdict(same_sequence(&all, &alone, n, true), "differs alone", n, type);
    }
    kctx little = *c;
    little.scratch = taken(LITTLE + GUARD), little.scratch_bytes = LITTLE;
    const call again = call_run(&little, s, type);
    for (int n = 0; n < SEQS; n++)
        verdict(same_sequence(&all, &again, n, true), "differs with little scratch", n, type);
    bool guarded = true;
    for (int i = LITTLE; i < LITTLE + GUARD; i++) guarded = guarded && (unsigned char)little.scratch[i] == POISON;
    verdict(guarded, "writes behind its scratch", -1, type);
}

static void over_pages(kctx *c, const shape *s, dtype type) {
    enum { COLUMNS = 64 };
    const int64_t bytes = (int64_t)NARROW * KV_PAGE * mat_bytes(type);
    call x = call_run(c, s, type);
    int32_t *table = taken(SEQS * COLUMNS * sizeof *table), *slot = taken((size_t)x.keys * sizeof *slot);
    char *pool = taken((size_t)(2 * SEQS * COLUMNS * bytes));
    for (int i = 0; i < SEQS * COLUMNS; i++) table[i] = i * 11 % (SEQS * COLUMNS);
    const kv_pages p = {type == BF16 ? KV_BF16 : KV_F32, KV, DIM, pool, pool + bytes, 2 * bytes, table, COLUMNS};
    const mat o = taken_mat(type, x.queries, WIDE);
    for (int n = 0; n < SEQS; n++) {
        const int keys = x.past[n] + s->tokens[n];
        for (int j = 0; s->tokens[n] && j < keys; j++)
            slot[x.first[n] + j] = table[n * COLUMNS + j / KV_PAGE] * KV_PAGE + j % KV_PAGE;
        if (s->tokens[n])
            c->be->kv_store(c, &p, mat_rows(x.k, x.first[n], keys), mat_rows(x.v, x.first[n], keys), slot + x.first[n]);
    }
    c->be->attn_pages(c, o, x.q, &p, &x.a);
    rows->settle();
    for (int n = 0; n < SEQS; n++)
        verdict(same(x.o, x.start[n], o, x.start[n], s->tokens[n]), "differs over pages", n, type);
}

int main(int argc, char **argv) {
    if (argc != 2) return printf("usage: cuda_attention KERNELS.so\n"), 2;
    void *so = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
    rows = so ? (const cuda_rows *)dlsym(so, "cuda_rows_here") : NULL;
    if (!rows) return printf("%s\n", dlerror()), 2;
    device = (kctx){.be = rows->be, .threads = 1};
    if (rows->open(&device)) return fail_report("cuda_attention");
    const shape packed = {{70, 1, 0, 45}, {0, 0, 0, 0}, 0, true}, windowed = {{70, 3, 90, 1}, {0, 0, 0, 0}, 20, true};
    const shape decoded = {{1, 8, 20, 2}, {300, 40, 100, 777}, 0, false};
    const shape many = {{8, 8, 8, 8}, {256, 250, 262, 280}, 0, false};
    const shape near = {{1, 3, 9, 1}, {300, 40, 700, 521}, 200, false};
    for (int bf16 = 0; bf16 < 2; bf16++) {
        const dtype type = bf16 ? BF16 : F32;
        alone_and_among_others(&device, &packed, type);
        alone_and_among_others(&device, &windowed, type);
        alone_and_among_others(&device, &decoded, type);
        alone_and_among_others(&device, &many, type);
        alone_and_among_others(&device, &near, type);
        over_pages(&device, &decoded, type);
        over_pages(&device, &near, type);
    }
    printf("%d passed, %d failed\n", passed, failed);
    return failed != 0;
}
