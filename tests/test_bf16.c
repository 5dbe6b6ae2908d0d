/* The overlays with bf16 products ("avx512-bf16", "amx") against sums in double over operands rounded to bf16; each row
 * of a batch against the row alone, and every number of threads against one, to the bit. Helpers are test_gemm.c's. */
#include "core/error.h"

#include <stdio.h>

int gemm_main(void);
#define main gemm_main
#include "tests/test_gemm.c"
#undef main

static const backend *bf16s[4];

/* Accumulation in fp32: n roundings of 2^-24 each walk like sqrt(n), and no more than 6 of these steps were left out of
 * 10^5 outputs; the last 2^-22 is the one rounding of a sum into y and of y itself. Relative to sum |a||b|. */
static double tolerance(int64_t k) { return 6 * 0x1p-24 * sqrt((double)k) + 0x1p-22; }

static float rounded(float x) { return bf16_to_float(float_to_bf16(x)); }

static void round_mat(mat m) {
    for (int64_t i = 0; i < m.rows * m.ld; i++) ((float *)m.data)[i] = rounded(((float *)m.data)[i]);
}

/* sum and size = |y| + sum |a||b| of an output */
static double exact(int op, mat y, mat a, mat b, const float *w, int64_t i, int64_t j, double *size) {
    const int64_t k_end = op == GRAD ? a.rows : a.cols;
    double s = (double)mat_row(y, i)[j];
    *size = fabs(s);
    for (int64_t k = 0; k < k_end; k++) {
        const double p = (double)(op == GRAD ? mat_row(a, k)[i] : mat_row(a, i)[k]);
        const double q = (double)(op == FWD ? w[j * k_end + k] : op == BWD ? w[k * y.cols + j] : mat_row(b, k)[j]);
        s += p * q, *size += fabs(p * q);
    }
    return s;
}

typedef struct {
    product p;
    made m;
    float *w; /* rounded */
    mat a, x, start, got;
} fixture;

static void open_product(fixture *f, const product *p) {
    f->p = *p;
    make_weight(&f->m, p->fmt, p->nested, p->out, p->in);
    f->w = xcalloc((size_t)(p->out * p->in), sizeof *f->w);
    f->m.w.fmt->dequant(&f->m.w, 0, p->out * p->in, f->w);
    for (int64_t i = 0; i < p->out * p->in; i++) f->w[i] = rounded(f->w[i]);
    const int64_t rows = p->op == GRAD ? p->out : p->t, cols = p->op == FWD ? p->out : p->in;
    const int64_t a_cols = p->op == FWD ? p->in : p->out;
    f->a = (mat){random_floats(p->t * (a_cols + 3)), F32, p->t, a_cols, a_cols + 3};
    f->x = (mat){random_floats(p->t * (p->in + 1)), F32, p->t, p->in, p->in + 1};
    f->start = (mat){random_floats(rows * (cols + GUARD)), F32, rows, cols, cols + GUARD};
    f->got = f->start;
    f->got.data = xcalloc((size_t)(rows * (cols + GUARD)), sizeof(float));
}

static void close_product(fixture *f) {
    free(f->a.data), free(f->x.data), free(f->start.data), free(f->got.data), free(f->w);
    free_weight(&f->m);
}

static size_t result_bytes(const fixture *f) { return (size_t)(f->got.rows * f->got.ld) * sizeof(float); }

/* f->got, from rows [i, i + n) of the batch */
static void compute(fixture *f, const backend *be, int threads, int64_t i, int64_t n) {
    kctx c = open_ctx(be, threads);
    if (f->p.op == GRAD)
        be->weight_grad(&c, f->got, f->a, f->x);
    else
        (f->p.op == FWD ? be->weight_fwd : be->weight_bwd)(&c, mat_rows(f->got, i, n), mat_rows(f->a, i, n), &f->m.w);
    free(c.scratch);
}

static void against_double(fixture *f, const backend *be) {
    const product *p = &f->p;
    const mat a = f->a, x = f->x;
    memcpy(f->got.data, f->start.data, result_bytes(f));
    compute(f, be, 1, 0, f->got.rows);
    round_mat(a), round_mat(x); /* rounding again in the kernel changes nothing */
    for (int64_t i = 0; i < f->got.rows; i += p->step)
        for (int64_t j = 0; j < f->got.ld; j++) {
            double size, got = (double)mat_row(f->got, i)[j];
            if (j >= f->got.cols) {
                assert_true(bits_of(mat_row(f->got, i)[j]) == bits_of(mat_row(f->start, i)[j]));
                continue;
            }
            double want = exact(p->op, f->start, a, x, f->w, i, j, &size);
            if (!(fabs(got - want) <= tolerance(p->op == GRAD ? a.rows : a.cols) * size))
                fail_msg("%s op %d %s%s T %ld out %ld in %ld: [%ld][%ld] %.9g, expected %.9g, off by %g of %g",
                         be->name, p->op, weight_formats[p->fmt].name, p->nested ? " nested" : "", (long)p->t,
                         (long)p->out, (long)p->in, (long)i, (long)j, got, want, fabs(got - want) / size,
                         tolerance(a.cols));
        }
}

static void same_bits(fixture *f, const backend *be) {
    const product *p = &f->p;
    float *one = xcalloc(result_bytes(f), 1);
    memcpy(one, f->got.data, result_bytes(f));
    for (int threads = 1; threads <= 3; threads++) {
        memcpy(f->got.data, f->start.data, result_bytes(f));
        compute(f, be, threads, 0, f->got.rows);
        if (memcmp(one, f->got.data, result_bytes(f)))
            fail_msg("%s op %d T %ld out %ld in %ld: other bits with %d threads", be->name, p->op, (long)p->t,
                     (long)p->out, (long)p->in, threads);
    }
    if (p->op != GRAD) {
        memcpy(f->got.data, f->start.data, result_bytes(f));
        for (int64_t i = 0; i < f->got.rows; i++) compute(f, be, 1, i, 1);
        if (memcmp(one, f->got.data, result_bytes(f)))
            fail_msg("%s op %d T %ld out %ld in %ld: a row alone has other bits", be->name, p->op, (long)p->t,
                     (long)p->out, (long)p->in);
    }
    free(one);
}

static void check_product(const product *p) {
    for (const backend **be = bf16s; *be; be++) {
        fixture f;
        open_product(&f, p);
        against_double(&f, *be);
        same_bits(&f, *be);
        close_product(&f);
    }
}

static void test_bf16_formats(void **state) {
    (void)state;
    static const int64_t shapes[][3] = {{3, 40, 128}, {7, 33, 192}, {17, 70, 100}, {33, 21, 65}, {5, 64, 576}};
    for (int fmt = 0; fmt < FORMATS; fmt++)
        for (int nested = 0; nested <= (fmt == FMT_NF4); nested++)
            for (int op = FWD; op <= BWD; op++)
                for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
                    check_product(&(product){op, fmt, nested, shapes[s][0], shapes[s][1], shapes[s][2], 1});
}

static void test_bf16_shapes(void **state) {
    (void)state;
    static const int64_t outs[] = {1, 15, 16, 31, 48, 65}, ins[] = {1, 2, 16, 33, 96};
    static const int fmts[] = {FMT_F32, FMT_NF4};
    for (int64_t t = 1; t <= 40; t += t < 4 ? 1 : 9)
        for (size_t j = 0; j < 6; j++)
            for (size_t k = 0; k < 5; k++)
                for (int op = FWD; op <= GRAD; op++)
                    check_product(&(product){op, fmts[((size_t)t + j + k) % 2], 0, t, outs[j], ins[k], 1});
}

/* several blocks of rows, columns and k, all threads at work */
static void test_bf16_blocks(void **state) {
    (void)state;
    for (int op = FWD; op <= GRAD; op++) {
        check_product(&(product){op, FMT_NF4, true, 1100, 320, 960, 97});
        check_product(&(product){op, FMT_F32, false, 300, 16, 1024, 37});
        check_product(&(product){op, FMT_F32, false, 300, 1100, 20, 37});
        check_product(&(product){op, FMT_BF16, false, 70, 1100, 300, 23});
        check_product(&(product){op, FMT_NF4, false, 1, 3000, 1024, 1});
        check_product(&(product){op, FMT_NF4, false, 40, 1024, 2304, 7});
    }
}

/* ---- head ---- */

typedef struct {
    made m;
    float *w; /* rounded */
    mat h;
    int32_t *target;
} head_case;

/* log softmax and its gradient in double over rounded h and W. The kernel rounds probabilities to bf16 for the
 * gradient: 2^-8 of sum p |W|. */
static void expect_head(const head_case *c, const float *logprob, mat dh, int64_t i) {
    const int64_t words = c->m.w.rows, dim = c->m.w.cols;
    double *z = xcalloc((size_t)words, sizeof *z), max = -1e300, sum = 0;
    for (int64_t v = 0; v < words; v++) {
        for (int64_t k = 0; k < dim; k++) z[v] += (double)rounded(mat_row(c->h, i)[k]) * (double)c->w[v * dim + k];
        if (z[v] > max) max = z[v];
    }
    for (int64_t v = 0; v < words; v++) sum += exp(z[v] - max);
    /* cppcheck-suppress invalidFunctionArg ; the sum holds at least exp(0) */
    const double want = z[c->target[i]] - max - log(sum);
    if (!(fabs((double)logprob[i] - want) <= 2e-5 * (1 + fabs(max))))
        fail_msg("row %ld: %.9g, expected %.9g", (long)i, (double)logprob[i], want);
    for (int64_t k = 0; k < dim && dh.data; k++) {
        double g = 0, size = 0;
        for (int64_t v = 0; v < words; v++) {
            const double p = exp(z[v] - max) / sum, w = (double)c->w[v * dim + k];
            g += p * w, size += p * fabs(w);
        }
        g -= (double)c->w[c->target[i] * dim + k];
        if (!(fabs((double)mat_row(dh, i)[k] - g) <= 0x1.1p-8 * size + 1e-6))
            fail_msg("row %ld: dh[%ld] %.9g, expected %.9g, size %g", (long)i, (long)k, (double)mat_row(dh, i)[k], g,
                     size);
    }
    free(z);
}

static void check_head(int fmt, int64_t rows, int64_t words, int64_t dim, int64_t step) {
    head_case c = {0};
    make_weight(&c.m, fmt, true, words, dim);
    c.w = xcalloc((size_t)(words * dim), sizeof *c.w);
    c.m.w.fmt->dequant(&c.m.w, 0, words * dim, c.w);
    for (int64_t i = 0; i < words * dim; i++) c.w[i] = rounded(c.w[i]);
    c.h = (mat){random_floats(rows * (dim + 2)), F32, rows, dim, dim + 2};
    for (int64_t i = 0; i < rows * c.h.ld; i++) ((float *)c.h.data)[i] *= 3;
    c.target = xcalloc((size_t)rows, sizeof *c.target);
    for (int64_t i = 0; i < rows; i++) c.target[i] = (int32_t)(i * 7919 % words);
    const size_t bytes = (size_t)(rows * c.h.ld) * sizeof(float);
    float *first = xcalloc((size_t)rows, sizeof *first), *logprob = random_floats(rows);
    mat dh = c.h, one = c.h;
    dh.data = xcalloc(bytes, 1), one.data = xcalloc(bytes, 1);
    for (const backend **be = bf16s; *be; be++) {
        for (int threads = 1; threads <= 3; threads++) {
            kctx k = open_ctx(*be, threads);
            mat to = threads == 1 ? one : dh;
            (*be)->head_loss(&k, threads == 1 ? first : logprob, to, c.h, &c.m.w, c.target);
            if (threads > 1) assert_memory_equal(logprob, first, (size_t)rows * sizeof *first);
            for (int64_t i = 0; i < rows; i++)
                assert_memory_equal(mat_row(to, i), mat_row(one, i), (size_t)dim * sizeof(float));
            (*be)->head_loss(&k, logprob, mat_none(), c.h, &c.m.w, c.target);
            assert_memory_equal(logprob, first, (size_t)rows * sizeof *first);
            free(k.scratch);
        }
        kctx k = open_ctx(*be, 1);
        const int64_t i = rows / 2;
        (*be)->head_loss(&k, logprob, mat_rows(dh, i, 1), mat_rows(c.h, i, 1), &c.m.w, c.target + i);
        assert_memory_equal(logprob, first + i, sizeof *first);
        assert_memory_equal(mat_row(dh, i), mat_row(one, i), (size_t)dim * sizeof(float));
        free(k.scratch);
        for (int64_t r = 0; r < rows; r += step) expect_head(&c, first, one, r);
    }
    free(c.w), free(c.h.data), free(c.target), free(first), free(logprob), free(dh.data), free(one.data);
    free_weight(&c.m);
}

static void test_bf16_head(void **state) {
    (void)state;
    check_head(FMT_F32, 1, 384, 64, 1);
    check_head(FMT_BF16, 5, 1000, 96, 1);
    check_head(FMT_Q8_0, 37, 777, 320, 7);
    check_head(FMT_F16, 1, 50, 17, 1);
    check_head(FMT_NF4, 130, 500, 576, 29);
    check_head(FMT_Q4_1, 600, 390, 64, 97);
    check_head(FMT_F32, 70, 400, 4100, 69);
}

/* ---- the choice ---- */

static void test_choice(void **state) {
    (void)state;
    unsetenv("PEFT_ISA");
    assert_string_equal(backend_for("auto", "f32"), "auto");
    assert_string_equal(backend_for("auto", "bf16"), "bf16");
    assert_string_equal(backend_for("ref", "f32"), "ref");
    assert_null(backend_for("ref", "bf16"));
    assert_non_null(strstr(fail_text(), "'ref' has no bf16 products"));
    fail_clear();
    for (const char *const *name = backend_names(); *name; name++)
        assert_true(strcmp(*name, "amx") && strcmp(*name, "avx512-bf16"));
    const backend *best = backend_open("bf16");
    if (!best) {
        assert_non_null(strstr(fail_text(), "no fast bf16 products"));
        assert_int_equal(fail_code(), EXIT_USAGE);
        fail_clear();
    }
    for (const backend **be = bf16s; *be; be++) {
        assert_string_equal(backend_for((*be)->name, "bf16"), (*be)->name);
        assert_null(backend_for((*be)->name, "f32"));
        assert_non_null(strstr(fail_text(), "compute_dtype: bf16"));
        fail_clear();
        if (!be[1] && !strcmp((*be)->name, "amx")) assert_ptr_equal(best, *be);
        setenv("PEFT_ISA", (*be)->name, 1);
        assert_ptr_equal(backend_open("bf16"), *be);
        assert_null(backend_open("auto"));
        fail_clear();
    }
    setenv("PEFT_ISA", "ref", 1);
    assert_null(backend_open("bf16"));
    fail_clear();
    unsetenv("PEFT_ISA");
}

static int open_bf16s(void **state) {
    (void)state;
    static const char *const all[] = {"avx512-bf16", "amx"};
    int n = 0;
    for (int i = 0; i < 2; i++) {
        bf16s[n] = backend_open(all[i]);
        if (bf16s[n])
            n++;
        else
            printf("skipped: %s (%s)\n", all[i], fail_text());
        fail_clear();
    }
    return 0;
}

/* A group at once against its products one after the other, to the bit. */
static void check_group(const backend *be, int fmt, int64_t t, int64_t in, int threads) {
    const int64_t outs[] = {96, 33, 64}, rank = 7;
    kctx c = open_ctx(be, threads);
    made m[3];
    proj_fwd_args p = {.n = 3, .x = {random_floats(t * (in + 3)), F32, t, in, in + 3}}, q;
    for (int i = 0; i < 3; i++) {
        make_weight(&m[i], fmt, true, outs[i], in);
        p.w[i] = &m[i].w, p.y[i] = (mat){random_floats(t * (outs[i] + i)), F32, t, outs[i], outs[i] + i};
        if (i == 1) p.bias[i] = random_floats(outs[i]);
        if (i != 2) p.h[i] = mat_f32(random_floats(t * rank), t, rank);
        if (i != 2) p.up[i] = mat_f32(random_floats(outs[i] * rank), outs[i], rank);
    }
    q = p;
    for (int i = 0; i < 3; i++) {
        q.y[i].data = xcalloc((size_t)(t * (outs[i] + i)), sizeof(float));
        memcpy(q.y[i].data, p.y[i].data, (size_t)(t * (outs[i] + i)) * sizeof(float));
    }
    be->proj_fwd(&c, &p);
    proj_fwd_compose(&c, &q);
    for (int i = 0; i < 3; i++) {
        if (memcmp(p.y[i].data, q.y[i].data, (size_t)(t * (outs[i] + i)) * sizeof(float)))
            fail_msg("%s: projection %d of %ld rows of %ld, %d threads", be->name, i, (long)t, (long)in, threads);
        free(p.y[i].data), free(q.y[i].data), free(p.h[i].data), free(p.up[i].data), free((void *)p.bias[i]);
        free_weight(&m[i]);
    }
    free(p.x.data), free(c.scratch);
}

static void test_bf16_groups(void **state) {
    (void)state;
    for (int b = 0; bf16s[b]; b++)
        for (int threads = 1; threads <= 3; threads++) {
            check_group(bf16s[b], FMT_NF4, 37, 192, threads);
            check_group(bf16s[b], FMT_BF16, 1, 70, threads);
            check_group(bf16s[b], FMT_F32, 1100, 64, threads);   /* two passes over the rows */
            check_group(bf16s[b], FMT_Q8_0, 700, 1280, threads); /* rows that do not fit whole */
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choice),      cmocka_unit_test(test_bf16_formats), cmocka_unit_test(test_bf16_shapes),
        cmocka_unit_test(test_bf16_blocks), cmocka_unit_test(test_bf16_head),    cmocka_unit_test(test_bf16_groups),
    };
    return cmocka_run_group_tests(tests, open_bf16s, NULL);
}
