/* Products with weights: every backend here against one fmaf chain per output over the values of fmt->dequant, to the
 * bit, for every storage format, odd shapes, views and numbers of threads. */
#include "core/num.h"
#include "core/rng.h"
#include "kernels/backend.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { THREADS = 4, GUARD = 5 }; /* GUARD: columns of y beyond the view, which nobody may touch */

static uint64_t counter;

static float uniform(void) {
    rng_block r = rng_philox(7, 99, counter++);
    return (float)(int32_t)r.v[0] * 0x1p-31f;
}

static float *random_floats(int64_t n) {
    float *x = xcalloc((size_t)n + 1, sizeof *x);
    for (int64_t i = 0; i < n; i++) x[i] = uniform();
    return x;
}

typedef struct {
    weight w;
    void *data, *absmax, *code, *nested;
    nf4_meta nf4;
} made;

/* where a block of a format that nobody quantises here keeps its fp16 scales: offsets, -1 for none */
static const struct {
    int id, scale, second;
} random_formats[] = {
    {FMT_Q5_0, 0, -1}, {FMT_Q5_1, 0, 2}, {FMT_Q4_K, 0, 2}, {FMT_Q5_K, 0, 2}, {FMT_Q6_K, 208, -1},
};

static void fill_random(const weight_format *f, uint8_t *data, int64_t blocks) {
    for (int64_t b = 0; b < blocks; b++) {
        uint8_t *p = data + b * f->bytes;
        for (int i = 0; i < f->bytes; i++) p[i] = (uint8_t)(bits_of(uniform()) >> 3);
        for (size_t r = 0; r < sizeof random_formats / sizeof *random_formats; r++) {
            if (random_formats[r].id != f->id) continue;
            const uint16_t h = float_to_f16(uniform() * 0.01f);
            memcpy(p + random_formats[r].scale, &h, 2);
            if (random_formats[r].second >= 0) memcpy(p + random_formats[r].second, &h, 2);
        }
    }
}

static void make_weight(made *m, int fmt, bool nested, int64_t rows, int64_t cols) {
    const weight_format *f = &weight_formats[fmt];
    int64_t n = (rows * cols + f->block - 1) / f->block * f->block, blocks = n / f->block;
    *m = (made){.w = {f, rows, cols, 1, NULL, NULL}};
    m->data = xcalloc((size_t)blocks, (size_t)f->bytes);
    float *x = random_floats(n);
    if (fmt == FMT_NF4) {
        m->absmax = xcalloc((size_t)blocks, sizeof(float));
        nf4_quant(x, rows * cols, m->data, m->absmax);
        m->nf4 = (nf4_meta){.blocksize = 64, .absmax = m->absmax};
        if (nested) {
            m->code = xcalloc((size_t)blocks, 1), m->nested = xcalloc((size_t)(blocks + 255) / 256, sizeof(float));
            m->nf4.offset = nf4_quant_scales(m->absmax, blocks, m->code, m->nested);
            m->nf4.nested_block = 256, m->nf4.absmax = NULL;
            m->nf4.code = m->code, m->nf4.nested_absmax = m->nested, m->nf4.map = nf4_dynamic_map;
        }
        m->w.meta = &m->nf4;
    } else if (f->quant) {
        f->quant(x, n, m->data);
    } else {
        fill_random(f, m->data, blocks);
    }
    m->w.data = m->data;
    free(x);
}

static void free_weight(made *m) { free(m->data), free(m->absmax), free(m->code), free(m->nested); }

static kctx open_ctx(const backend *be, int threads) {
    size_t bytes = backend_scratch(threads);
    char *scratch = aligned_alloc(64, bytes);
    memset(scratch, 0xff, bytes); /* NaNs: what is read before it is written shows */
    return (kctx){.be = be, .threads = threads, .scratch = scratch, .scratch_bytes = bytes};
}

enum { FWD, BWD, GRAD };

/* y[m, n] += A B of the operation, as it is defined; only rows i % step == 0 */
static void expect(int op, mat y, mat a, mat b, const float *w, int64_t step) {
    int64_t k_end = op == FWD ? a.cols : op == BWD ? a.cols : a.rows;
    for (int64_t i = 0; i < y.rows; i += step)
        for (int64_t j = 0; j < y.cols; j++) {
            float s = mat_row(y, i)[j];
            for (int64_t k = 0; k < k_end; k++) {
                const float p = op == GRAD ? mat_row(a, k)[i] : mat_row(a, i)[k];
                const float q = op == FWD ? w[j * k_end + k] : op == BWD ? w[k * y.cols + j] : mat_row(b, k)[j];
                s = fmaf(p, q, s);
            }
            mat_row(y, i)[j] = s;
        }
}

typedef struct {
    int op, fmt;
    bool nested;
    int64_t t, out, in, step;
} product;

static void check_rows(const product *p, const backend *be, int threads, mat got, mat want) {
    for (int64_t i = 0; i < got.rows; i += p->step)
        for (int64_t j = 0; j < got.ld; j++) {
            const uint32_t g = bits_of(mat_row(got, i)[j]), e = bits_of(mat_row(want, i)[j]);
            if (g != e)
                fail_msg("%s op %d %s%s T %ld out %ld in %ld threads %d: [%ld][%ld] %a, expected %a", be->name, p->op,
                         weight_formats[p->fmt].name, p->nested ? " nested" : "", (long)p->t, (long)p->out, (long)p->in,
                         threads, (long)i, (long)j, (double)float_of(g), (double)float_of(e));
        }
}

static void run_product(const product *p, const backend *const *bes) {
    made m;
    make_weight(&m, p->fmt, p->nested, p->out, p->in);
    float *w = xcalloc((size_t)(p->out * p->in), sizeof *w);
    m.w.fmt->dequant(&m.w, 0, p->out * p->in, w);
    const int64_t rows = p->op == GRAD ? p->out : p->t, cols = p->op == FWD ? p->out : p->in;
    const int64_t a_cols = p->op == FWD ? p->in : p->out;
    mat a = {random_floats(p->t * (a_cols + 3)), F32, p->t, a_cols, a_cols + 3};
    mat x = {random_floats(p->t * (p->in + 1)), F32, p->t, p->in, p->in + 1};
    mat start = {random_floats(rows * (cols + GUARD)), F32, rows, cols, cols + GUARD}, want = start, got = start;
    const size_t bytes = (size_t)(rows * (cols + GUARD)) * sizeof(float);
    want.data = memcpy(xcalloc(bytes, 1), start.data, bytes), got.data = xcalloc(bytes, 1);
    expect(p->op, want, a, x, w, p->step);
    for (; *bes; bes++)
        for (int threads = 1; threads <= THREADS; threads++) {
            kctx c = open_ctx(*bes, threads);
            memcpy(got.data, start.data, bytes);
            if (p->op == FWD) (*bes)->weight_fwd(&c, got, a, &m.w);
            if (p->op == BWD) (*bes)->weight_bwd(&c, got, a, &m.w);
            if (p->op == GRAD) (*bes)->weight_grad(&c, got, a, x);
            check_rows(p, *bes, threads, got, want);
            free(c.scratch);
        }
    free(a.data), free(x.data), free(start.data), free(want.data), free(got.data), free(w);
    free_weight(&m);
}

static const backend *backends[8];

static int setup(void **state) {
    (void)state;
    int n = 0;
    for (const char *const *name = backend_names(); *name; name++) backends[n++] = backend_open(*name);
    return 0;
}

/* every format, aligned and straddling */
static void test_formats(void **state) {
    (void)state;
    static const int64_t shapes[][3] = {{3, 40, 128}, {7, 33, 192}, {17, 70, 100}, {1, 21, 65}};
    for (int fmt = 0; fmt < FORMATS; fmt++)
        for (int nested = 0; nested <= (fmt == FMT_NF4); nested++)
            for (int op = FWD; op <= BWD; op++)
                for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
                    run_product(&(product){op, fmt, nested, shapes[s][0], shapes[s][1], shapes[s][2], 1}, backends);
}

/* tails of tiles in every direction */
static void test_shapes(void **state) {
    (void)state;
    static const int64_t ts[] = {1, 2, 4, 6, 13, 15, 29, 40}, outs[] = {1, 8, 16, 31, 48, 65}, ins[] = {1, 16, 30, 96};
    static const int fmts[] = {FMT_F32, FMT_NF4};
    for (size_t i = 0; i < 8; i++)
        for (size_t j = 0; j < 6; j++)
            for (size_t k = 0; k < 4; k++)
                for (int op = FWD; op <= GRAD; op++)
                    run_product(&(product){op, fmts[(i + j + k) % 2], 0, ts[i], outs[j], ins[k], 1}, backends);
}

/* more than one block in every direction, several threads at work; sampled rows */
static void test_blocks(void **state) {
    (void)state;
    for (int op = FWD; op <= GRAD; op++) {
        run_product(&(product){op, FMT_NF4, true, 1100, 320, 640, 97}, backends);
        run_product(&(product){op, FMT_F32, false, 300, 16, 1024, 37}, backends);
        run_product(&(product){op, FMT_BF16, false, 70, 1100, 300, 23}, backends);
        run_product(&(product){op, FMT_NF4, false, 1, 600, 1024, 1}, backends);
    }
}

static void test_embed(void **state) {
    (void)state;
    static const int32_t token[] = {4, 0, 16, 4};
    for (int fmt = 0; fmt < FORMATS; fmt++) {
        made m;
        make_weight(&m, fmt, fmt == FMT_NF4, 17, 70);
        for (const backend **be = backends; *be; be++) {
            kctx c = open_ctx(*be, 2);
            float y[4][75] = {{0}}, want[70];
            (*be)->embed_fwd(&c, (mat){y, F32, 4, 70, 75}, &m.w, token);
            for (int i = 0; i < 4; i++) {
                m.w.fmt->dequant(&m.w, token[i] * 70, 70, want);
                assert_memory_equal(y[i], want, sizeof want);
            }
            free(c.scratch);
        }
        free_weight(&m);
    }
}

static void run_head(int fmt, int64_t rows, int64_t words, int64_t dim) {
    made m;
    make_weight(&m, fmt, true, words, dim);
    mat h = {random_floats(rows * (dim + 2)), F32, rows, dim, dim + 2}, want = h, got = h;
    for (int64_t i = 0; i < rows * h.ld; i++) ((float *)h.data)[i] *= 3;
    want.data = random_floats(rows * h.ld), got.data = random_floats(rows * h.ld);
    int32_t *target = xcalloc((size_t)rows, sizeof *target);
    float *lw = random_floats(rows), *lg = random_floats(rows);
    for (int64_t i = 0; i < rows; i++) target[i] = (int32_t)(i * 7919 % words);
    kctx r = open_ctx(backend_open("ref"), 1);
    r.be->head_loss(&r, lw, want, h, &m.w, target);
    for (const backend **be = backends; *be; be++)
        for (int threads = 1; threads <= THREADS; threads++)
            for (int grad = 0; grad < 2; grad++) {
                kctx c = open_ctx(*be, threads);
                (*be)->head_loss(&c, lg, grad ? got : mat_none(), h, &m.w, target);
                assert_memory_equal(lg, lw, (size_t)rows * sizeof *lg);
                for (int64_t i = 0; grad && i < rows; i++)
                    assert_memory_equal(mat_row(got, i), mat_row(want, i), (size_t)dim * sizeof(float));
                free(c.scratch);
            }
    free(r.scratch), free(h.data), free(want.data), free(got.data), free(target), free(lw), free(lg);
    free_weight(&m);
}

static void test_head(void **state) {
    (void)state;
    run_head(FMT_F32, 1, 384, 64);
    run_head(FMT_BF16, 5, 1000, 96);
    run_head(FMT_Q8_0, 37, 777, 320);
    run_head(FMT_F16, 1, 50, 17);
    run_head(FMT_NF4, 130, 500, 576);
    run_head(FMT_Q4_1, 600, 390, 64);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_formats), cmocka_unit_test(test_shapes), cmocka_unit_test(test_blocks),
        cmocka_unit_test(test_embed),   cmocka_unit_test(test_head),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
