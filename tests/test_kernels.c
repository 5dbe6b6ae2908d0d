/* Every kernel on every backend of this machine against the reference, bit for bit: the whole pool of a case is
 * compared, so that a stray write shows as well as a wrong bit. What the reference itself computes is checked in
 * test_reference.c, against formulas in double. */
#include "tests/kernel_cases.h"

/* runs the case on a poisoned pool and returns how much of it was taken */
static size_t run_case(const kernel_case *k, const backend *be, int threads, char *pool, size_t clear) {
    size_t bytes = backend_scratch(threads);
    char *scratch = aligned_alloc(64, (bytes + 63) / 64 * 64);
    memset(scratch, POISON, bytes);
    memset(pool, POISON, clear);
    kctx c = {.be = be, .threads = threads, .scratch = scratch, .scratch_bytes = bytes};
    lab l = {.c = &c, .pool = pool, .seed = 1234};
    k->run(&l, k->s);
    free(scratch);
    return l.used;
}

static void same_pool(const kernel_case *k, const kctx *c, const char *want, const char *got, size_t n) {
    if (memcmp(want, got, n) == 0) return;
    size_t i = 0;
    while (want[i] == got[i]) i++;
    float a, b;
    memcpy(&a, want + i / 4 * 4, 4), memcpy(&b, got + i / 4 * 4, 4);
    fail_msg("%s on %s, %d threads: byte %zu of %zu: %a, reference %a", k->name, c->be->name, c->threads, i, n,
             (double)b, (double)a);
}

static void kernels_equal_reference(void **state) {
    (void)state;
    char *want = aligned_alloc(64, POOL), *got = aligned_alloc(64, POOL);
    for (size_t i = 0; i < CASES; i++) {
        size_t used = run_case(&cases[i], backend_open("ref"), 1, want, POOL);
        for (const char *const *name = backend_names(); *name; name++)
            for (int threads = 1; threads <= (strcmp(*name, "ref") ? 3 : 1); threads++) { /* ref has one */
                const kctx c = {.be = backend_open(*name), .threads = threads};
                assert_int_equal(run_case(&cases[i], c.be, threads, got, used), used);
                same_pool(&cases[i], &c, want, got, used);
            }
    }
    free(want), free(got);
}

/* What a row's result may depend on. Heads, key heads, dim, window; keys 0 .. T-1 of one sequence. */
enum { T = 230, HEADS = 4, KV = 2, DIM = 48, Q_COLS = HEADS * DIM, KV_COLS = KV * DIM };

typedef struct sequence {
    float q[T * Q_COLS], k[T * KV_COLS], v[T * KV_COLS], o[T * Q_COLS], lse[T * HEADS];
} sequence;

static void attend(kctx *c, sequence *x, int from, int to, int window) {
    const int32_t start[] = {0, to - from}, past[] = {from}, first[] = {0};
    const attn a = {HEADS, KV, DIM, 0.2f, window, 1, start, past, first};
    c->be->attn_fwd(c, mat_f32(x->o + from * Q_COLS, to - from, Q_COLS), x->lse + from * HEADS,
                    mat_f32(x->q + from * Q_COLS, to - from, Q_COLS), mat_f32(x->k, to, KV_COLS),
                    mat_f32(x->v, to, KV_COLS), &a);
}

static void rows_depend_on_themselves(kctx *c, int window) {
    sequence *x = test_malloc(sizeof *x), *y = test_malloc(sizeof *y);
    float *all = (float *)x;
    for (size_t i = 0; i < sizeof *x / sizeof *all; i++) all[i] = rng_normal(5, STREAM_TEST, i);
    attend(c, x, 0, T, window);
    memcpy(y, x, sizeof *x);
    memset(y->o, POISON, sizeof y->o);
    for (int i = 0; i < 7; i++) attend(c, y, i, i + 1, window); /* decode */
    attend(c, y, 7, 100, window);                               /* in pieces */
    attend(c, y, 100, T - 3, window);
    for (int i = T - 3; i < T; i++) attend(c, y, i, i + 1, window);
    assert_memory_equal(x, y, sizeof *x);
    for (int i = 120; i < T; i++) /* what comes later, however bad */
        for (int d = 0; d < KV_COLS; d++)
            y->k[i * KV_COLS + d] = y->v[i * KV_COLS + d] = (float)(d % 2 ? NAN : INFINITY);
    for (int i = 0; window && i < 120 - window; i++) /* what left the window of row 119 */
        for (int d = 0; d < KV_COLS; d++) y->v[i * KV_COLS + d] = (float)NAN;
    attend(c, y, 0, T, window);
    int clean = window ? 119 : 0;
    assert_memory_equal(x->o + clean * Q_COLS, y->o + clean * Q_COLS, (size_t)(120 - clean) * Q_COLS * sizeof(float));
    test_free(x), test_free(y);
}

/* gradients of the first 120 rows must not see the rest of the sequence when no gradient comes from there */
static void gradients_depend_on_seen_rows(kctx *c) {
    enum { N = 120 };
    sequence *x = test_malloc(sizeof *x), *g[2];
    float *all = (float *)x, *dout = test_malloc(sizeof x->q);
    for (size_t i = 0; i < sizeof *x / sizeof *all; i++) all[i] = rng_normal(6, STREAM_TEST, i);
    for (int i = 0; i < T * Q_COLS; i++) dout[i] = rng_normal(7, STREAM_TEST, (uint64_t)i);
    for (int pass = 0; pass < 2; pass++) {
        int rows = pass ? N : T; /* the second sequence, and alone */
        const int32_t start[] = {0, pass ? 0 : T - N, rows}, past[] = {0, 0}, first[] = {0, pass ? 0 : T - N};
        const attn a = {HEADS, KV, DIM, 0.2f, 0, 2, start, past, first};
        int64_t skip = pass ? 0 : T - N;
        g[pass] = test_calloc(1, sizeof *x);
        mat q = mat_f32(x->q + (pass ? T - N : 0) * Q_COLS, rows, Q_COLS),
            k = mat_f32(x->k + (pass ? T - N : 0) * KV_COLS, rows, KV_COLS);
        mat v = mat_f32(x->v + (pass ? T - N : 0) * KV_COLS, rows, KV_COLS), o = mat_f32(x->o, rows, Q_COLS);
        c->be->attn_fwd(c, o, x->lse, q, k, v, &a);
        c->be->attn_bwd(c, mat_f32(g[pass]->q, rows, Q_COLS), mat_f32(g[pass]->k, rows, KV_COLS),
                        mat_f32(g[pass]->v, rows, KV_COLS), mat_f32(dout + (pass ? T - N : 0) * Q_COLS, rows, Q_COLS),
                        q, k, v, o, x->lse, &a);
        memmove(g[pass]->q, g[pass]->q + skip * Q_COLS, N * Q_COLS * sizeof(float));
        memmove(g[pass]->k, g[pass]->k + skip * KV_COLS, N * KV_COLS * sizeof(float));
        memmove(g[pass]->v, g[pass]->v + skip * KV_COLS, N * KV_COLS * sizeof(float));
    }
    assert_memory_equal(g[0]->q, g[1]->q, N * Q_COLS * sizeof(float));
    assert_memory_equal(g[0]->k, g[1]->k, N * KV_COLS * sizeof(float));
    assert_memory_equal(g[0]->v, g[1]->v, N * KV_COLS * sizeof(float));
    test_free(g[0]), test_free(g[1]), test_free(x), test_free(dout);
}

static void attention_is_a_function_of_the_row(void **state) {
    (void)state;
    for (const char *const *name = backend_names(); *name; name++) {
        size_t bytes = backend_scratch(2);
        kctx c = {.be = backend_open(*name),
                  .threads = 2,
                  .scratch = aligned_alloc(64, (bytes + 63) / 64 * 64),
                  .scratch_bytes = bytes};
        rows_depend_on_themselves(&c, 0);
        rows_depend_on_themselves(&c, 33);
        gradients_depend_on_seen_rows(&c);
        free(c.scratch);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kernels_equal_reference),
        cmocka_unit_test(attention_is_a_function_of_the_row),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
