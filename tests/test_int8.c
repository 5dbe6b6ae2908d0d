/* The overlays with integer products against "ref-int8" to the bit, for every format that can be packed, every number
 * of threads, each row of a batch against the row alone; the error of the mode against the exact product; and packing
 * itself. Helpers are test_gemm.c's. */
#include "core/error.h"
#include "kernels/rows16.h"

#include <stdio.h>

int gemm_main(void);
#define main gemm_main
#include "tests/test_gemm.c"
#undef main

#ifndef OVERLAYS
#define OVERLAYS "avx2-int8", "avx512-int8", "avx512vnni-int8", "neon-int8"
static const backend *overlay(const char *name) { return backend_open(name); }
#define EXACTS "ref", "avx2", "avx512", "neon"
static const backend *exact_one(const char *name) { return backend_open(name); }
#endif

extern const backend backend_ref_int8;
static const backend *overlays[8], *exacts[8];

typedef struct {
    made m;
    arena run;
    weight w;
    mat x, start, want, got;
    size_t bytes;
} fixture;

static mat copy_of(mat m, size_t bytes) {
    m.data = memcpy(xcalloc(bytes, 1), m.data, bytes);
    return m;
}

/* rows of GGUF's q and k when heads is not 0 */
static void pack_weight(fixture *f, int heads) {
    arena plan;
    arena_plan(&plan, "plan");
    const weight planned = rows16_pack(&f->m.w, heads, true, &plan);
    assert_int_equal(plan.peak, rows16_bytes(&f->m.w, true));
    free((void *)planned.meta);
    assert_int_equal(arena_open(&f->run, "run", plan.peak), 0);
    arena_close(&plan);
    f->w = rows16_pack(&f->m.w, heads, true, &f->run);
}

static void open_fixture(fixture *f, int fmt, int heads, int64_t t, int64_t out, int64_t in) {
    make_weight(&f->m, fmt, t % 2, out, in);
    pack_weight(f, heads);
    f->x = (mat){random_floats(t * (in + 3)), F32, t, in, in + 3};
    f->start = (mat){random_floats(t * (out + GUARD)), F32, t, out, out + GUARD};
    f->bytes = (size_t)(t * (out + GUARD)) * sizeof(float);
    f->want = copy_of(f->start, f->bytes), f->got = copy_of(f->start, f->bytes);
}

static void close_fixture(fixture *f) {
    free((void *)f->w.meta);
    arena_close(&f->run);
    free(f->x.data), free(f->start.data), free(f->want.data), free(f->got.data);
    free_weight(&f->m);
}

static void multiply(const backend *be, int threads, mat y, mat x, const weight *w) {
    kctx c = open_ctx(be, threads);
    be->weight_fwd(&c, y, x, w);
    free(c.scratch);
}

static void same(const fixture *f, const char *name, const char *how) {
    for (int64_t i = 0; i < f->got.rows; i++)
        for (int64_t j = 0; j < f->got.ld; j++)
            if (bits_of(mat_row(f->got, i)[j]) != bits_of(mat_row(f->want, i)[j]))
                fail_msg("%s %s, %s: T %ld out %ld in %ld: [%ld][%ld] %.9g, expected %.9g", name, f->w.fmt->name, how,
                         (long)f->x.rows, (long)f->w.rows, (long)f->w.cols, (long)i, (long)j,
                         (double)mat_row(f->got, i)[j], (double)mat_row(f->want, i)[j]);
}

static void check_overlays(fixture *f) {
    multiply(&backend_ref_int8, 1, f->want, f->x, &f->w);
    for (const backend **be = overlays; *be; be++) {
        for (int threads = 1; threads <= 3; threads++) {
            memcpy(f->got.data, f->start.data, f->bytes);
            multiply(*be, threads, f->got, f->x, &f->w);
            same(f, (*be)->name, "whole");
        }
        memcpy(f->got.data, f->start.data, f->bytes);
        for (int64_t i = 0; i < f->x.rows; i++) multiply(*be, 1, mat_rows(f->got, i, 1), mat_rows(f->x, i, 1), &f->w);
        same(f, (*be)->name, "row by row");
    }
}

/* Activations and, for NF4 and dense matrices, the weights are rounded to about 0.5 % each; Q4_1's minima and the like
 * are not. Random signs: the error of a sum is that of its terms, in the root mean square. */
static void check_error(const fixture *f) {
    double error = 0, size = 0;
    float *w = xcalloc((size_t)(f->w.rows * f->w.cols), sizeof *w);
    f->w.fmt->dequant(&f->w, 0, f->w.rows * f->w.cols, w);
    for (int64_t i = 0; i < f->x.rows; i++)
        for (int64_t j = 0; j < f->w.rows; j++) {
            double s = (double)mat_row(f->start, i)[j], terms = 0;
            for (int64_t k = 0; k < f->w.cols; k++) {
                const double p = (double)mat_row(f->x, i)[k] * (double)w[j * f->w.cols + k];
                s += p, terms += p * p;
            }
            error += pow(s - (double)mat_row(f->want, i)[j], 2), size += terms;
        }
    free(w);
    if (!(sqrt(error) <= 8e-3 * sqrt(size)))
        fail_msg("%s: error %.2e of the terms", f->w.fmt->name, sqrt(error / size));
}

static void check(int fmt, int heads, int64_t t, int64_t out, int64_t in) {
    fixture f;
    open_fixture(&f, fmt, heads, t, out, in);
    check_overlays(&f);
    check_error(&f);
    close_fixture(&f);
}

static bool packable(int fmt, int64_t rows, int64_t cols) {
    static const nf4_meta nf4 = {.blocksize = 64};
    const weight w = {&weight_formats[fmt], rows, cols, 1, NULL, fmt == FMT_NF4 ? &nf4 : NULL};
    return rows16_bytes(&w, true) > 0;
}

static void test_int8_formats(void **state) {
    (void)state;
    static const int64_t shapes[][3] = {{1, 16, 256}, {2, 40, 256}, {7, 33, 512}, {17, 70, 768}, {31, 5, 256}};
    for (int fmt = 0; fmt < FORMATS; fmt++)
        for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
            assert_true(packable(fmt, 16, 256));
            check(fmt, 0, shapes[s][0], shapes[s][1], shapes[s][2]);
        }
}

static void test_int8_shapes(void **state) {
    (void)state;
    static const int64_t outs[] = {1, 15, 16, 31, 48, 65}, ins[] = {32, 64, 96, 576};
    int tried = 0;
    for (int64_t t = 1; t <= 40; t += t < 4 ? 1 : 9)
        for (size_t j = 0; j < 6; j++)
            for (size_t k = 0; k < 4; k++) {
                const int fmt = (int)((size_t)t + j + 3 * k) % FORMATS;
                if (packable(fmt, outs[j], ins[k])) check(fmt, 0, t, outs[j], ins[k]), tried++;
            }
    assert_true(tried > 80);
    assert_false(packable(FMT_Q4_0, 16, 48) || packable(FMT_NF4, 16, 96) || packable(FMT_Q6_K, 16, 128));
}

/* several passes over the rows, all threads at work, both ways of sharing the rounded rows */
static void test_int8_blocks(void **state) {
    (void)state;
    check(FMT_NF4, 0, 1100, 48, 640);
    check(FMT_Q4_0, 0, 100, 320, 4096);
    check(FMT_Q8_0, 0, 2, 3000, 1024);
    check(FMT_Q4_K, 0, 40, 144, 2304);
}

/* rows of q and k in GGUF's order */
static void test_int8_heads(void **state) {
    (void)state;
    for (int fmt = 0; fmt < FORMATS; fmt++) {
        if (fmt == FMT_NF4) continue;
        fixture f;
        open_fixture(&f, fmt, 3, 5, 48, 256);
        uint8_t *plain = xcalloc((size_t)weight_bytes(&f.m.w), 1);
        weight ordered = f.m.w;
        weight_unpermute_rows(&f.m.w, 3, plain);
        ordered.data = plain;
        float a[3 * 256], b[3 * 256];
        for (int64_t at = 0; at + 700 <= 48 * 256; at += 611) {
            f.w.fmt->dequant(&f.w, at, 700, a);
            ordered.fmt->dequant(&ordered, at, 700, b);
            assert_memory_equal(a, b, 700 * sizeof *a);
        }
        check_overlays(&f);
        close_fixture(&f);
        free(plain);
    }
}

/* rows of zeros, of numbers next to nothing, and with one that is none */
static void test_int8_odd_values(void **state) {
    (void)state;
    static const int fmts[] = {FMT_Q4_0, FMT_Q4_1, FMT_Q6_K, FMT_NF4, FMT_BF16};
    for (size_t k = 0; k < sizeof fmts / sizeof *fmts; k++) {
        fixture f;
        open_fixture(&f, fmts[k], 0, 6, 20, 256);
        for (int i = 0; i < 256; i++) mat_row(f.x, 0)[i] = 0, mat_row(f.x, 1)[i] *= 0x1p-120f;
        mat_row(f.x, 2)[70] = 3e38f;
        mat_row(f.x, 3)[100] = NAN, mat_row(f.x, 4)[101] = -INFINITY;
        multiply(&backend_ref_int8, 1, f.want, f.x, &f.w);
        for (const backend **be = overlays; *be; be++) {
            memcpy(f.got.data, f.start.data, f.bytes);
            multiply(*be, 2, f.got, f.x, &f.w);
            for (int64_t i = 0; i < 6; i++)
                for (int64_t j = 0; j < 20; j++) {
                    const float a = mat_row(f.got, i)[j], b = mat_row(f.want, i)[j];
                    if (i == 3 || i == 4 ? !isnan(a) || !isnan(b) : bits_of(a) != bits_of(b))
                        fail_msg("%s %s: [%ld][%ld] %g, expected %g", (*be)->name, f.w.fmt->name, (long)i, (long)j,
                                 (double)a, (double)b);
                }
        }
        close_fixture(&f);
    }
}

/* a group of projections against its parts: kinds that round alike and that do not, biases, an adapter; one not packed
 */
static void check_group(const int fmt[3], int64_t t, int plain) {
    static const int64_t outs[3] = {70, 16, 33};
    enum { IN = 256, RANK = 5 };
    fixture f[3];
    mat want[3], got[3];
    proj_fwd_args a = {.n = 3};
    for (int i = 0; i < 3; i++) {
        open_fixture(&f[i], fmt[i], 0, t, outs[i], IN);
        a.w[i] = i == plain ? &f[i].m.w : &f[i].w;
        a.bias[i] = i == 1 ? NULL : random_floats(outs[i]);
        want[i] = f[i].want, got[i] = f[i].got;
    }
    a.x = f[0].x;
    a.h[0] = (mat){random_floats(t * RANK), F32, t, RANK, RANK};
    a.up[0] = (mat){random_floats(outs[0] * RANK), F32, outs[0], RANK, RANK};
    memcpy(a.y, want, sizeof want);
    kctx c = open_ctx(&backend_ref_int8, 1);
    backend_ref_int8.proj_fwd(&c, &a);
    free(c.scratch);
    memcpy(a.y, got, sizeof got);
    for (const backend **be = overlays; *be; be++)
        for (int threads = 1; threads <= 3; threads += 2) {
            for (int i = 0; i < 3; i++) memcpy(f[i].got.data, f[i].start.data, f[i].bytes);
            c = open_ctx(*be, threads);
            (*be)->proj_fwd(&c, &a);
            free(c.scratch);
            for (int i = 0; i < 3; i++) same(&f[i], (*be)->name, "group");
        }
    free(a.h[0].data), free(a.up[0].data);
    for (int i = 0; i < 3; i++) free((void *)a.bias[i]), close_fixture(&f[i]);
}

static void test_int8_groups(void **state) {
    (void)state;
    static const int fmts[][3] = {
        {FMT_Q4_0, FMT_Q4_0, FMT_Q4_0}, {FMT_Q4_K, FMT_Q4_K, FMT_Q6_K}, {FMT_NF4, FMT_Q8_0, FMT_IQ4_NL}};
    for (int i = 0; i < 3; i++)
        for (int64_t t = 1; t <= 50; t += 49) check_group(fmts[i], t, t == 1 ? i : -1);
}

/* what is not packed is multiplied exactly */
static void test_int8_plain(void **state) {
    (void)state;
    made m;
    make_weight(&m, FMT_Q4_0, false, 20, 64);
    mat x = {random_floats(3 * 64), F32, 3, 64, 64};
    float a[60] = {0}, b[60] = {0};
    multiply(backend_open("ref"), 1, mat_f32(a, 3, 20), x, &m.w);
    for (const backend **be = overlays; *be; be++) {
        memset(b, 0, sizeof b);
        multiply(*be, 1, mat_f32(b, 3, 20), x, &m.w);
        assert_memory_equal(a, b, sizeof a);
    }
    free(x.data);
    free_weight(&m);
}

/* the canonical path reads packed rows too: the bits of the matrix that they were made from */
static void test_packed_exact(void **state) {
    (void)state;
    static const int64_t shapes[][3] = {{1, 70, 512}, {3, 33, 256}, {40, 48, 768}};
    for (int fmt = 0; fmt < FORMATS; fmt++)
        for (int s = 0; s < 3; s++) {
            fixture f;
            open_fixture(&f, fmt, 0, shapes[s][0], shapes[s][1], shapes[s][2]);
            multiply(backend_open("ref"), 1, f.want, f.x, &f.m.w);
            for (int i = 0; exacts[i]; i++) {
                memcpy(f.got.data, f.start.data, f.bytes);
                multiply(exacts[i], 2, f.got, f.x, &f.w);
                same(&f, exacts[i]->name, "packed");
            }
            close_fixture(&f);
        }
}

/* ---- the choice ---- */

static void test_choice(void **state) {
    (void)state;
    unsetenv("PEFT_ISA");
    assert_string_equal(backend_fast("auto"), "int8");
    assert_string_equal(backend_fast("ref"), "ref-int8");
    assert_string_equal(backend_fast("ref-int8"), "ref-int8");
    assert_string_equal(backend_fast("bf16"), "bf16");
    assert_string_equal(backend_fast("nothing"), "nothing");
    assert_true(backend_is_int8("int8") && backend_is_int8("ref-int8"));
    assert_false(backend_is_int8("auto") || backend_is_int8("ref") || backend_is_int8("bf16"));
    assert_null(backend_for("ref-int8", "f32"));
    assert_non_null(strstr(fail_text(), "the fast mode"));
    fail_clear();
    assert_non_null(strstr(backend_open("int8")->name, "-int8"));
    for (const char *const *name = backend_names(); *name; name++) {
        assert_null(strstr(*name, "int8"));
        setenv("PEFT_ISA", *name, 1);
        const backend *be = backend_open("int8");
        assert_true(!strncmp(be->name, *name, strlen(*name)) && strstr(be->name, "-int8"));
        setenv("PEFT_ISA", be->name, 1);
        assert_ptr_equal(backend_open("int8"), be);
        assert_null(backend_open("auto"));
        fail_clear();
    }
    unsetenv("PEFT_ISA");
}

static int open_overlays(void **state) {
    (void)state;
    static const char *const all[] = {OVERLAYS}, *const canonical[] = {EXACTS};
    int n = 0;
    for (size_t i = 0; i < sizeof canonical / sizeof *canonical; i++) {
        exacts[n] = exact_one(canonical[i]);
        n += exacts[n] != NULL;
        fail_clear();
    }
    n = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        overlays[n] = overlay(all[i]);
        if (overlays[n])
            n++;
        else
            printf("skipped: %s (%s)\n", all[i], fail_text());
        fail_clear();
    }
    return 0;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_choice),      cmocka_unit_test(test_int8_formats), cmocka_unit_test(test_int8_shapes),
        cmocka_unit_test(test_int8_blocks), cmocka_unit_test(test_int8_heads),   cmocka_unit_test(test_int8_odd_values),
        cmocka_unit_test(test_int8_plain),  cmocka_unit_test(test_int8_groups),  cmocka_unit_test(test_packed_exact),
    };
    return cmocka_run_group_tests(tests, open_overlays, NULL);
}
