/* Storage formats against gguf-py and bitsandbytes (tests/golden/make_formats.py), to the bit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "core/num.h"
#include "core/rng.h"
#include "kernels/weight.h"

enum { RECORDS = 40 };
typedef struct {
    char name[13];
    uint32_t bytes;
    void *data;
} record;
typedef struct {
    record r[RECORDS];
    int n;
} golden;

static golden golden_read(const char *name) {
    char path[64];
    snprintf(path, sizeof path, "tests/golden/formats_%s.bin", name);
    FILE *f = fopen(path, "rb");
    if (!f) fail_msg("cannot open %s: run from the repository's root", path);
    golden g = {0};
    for (; g.n < RECORDS; g.n++) {
        record *r = &g.r[g.n];
        if (fread(r->name, 1, 12, f) != 12) break;
        assert_int_equal(fread(&r->bytes, 1, 4, f), 4);
        r->data = malloc(r->bytes + 1); /* not rounded up: a read past the end is seen by the sanitizer */
        assert_int_equal(fread(r->data, 1, r->bytes, f), r->bytes);
    }
    fclose(f);
    return g;
}

static void golden_free(golden *g) {
    for (int i = 0; i < g->n; i++) free(g->r[i].data);
}

static const record *get(const golden *g, const char *name) {
    for (int i = 0; i < g->n; i++)
        if (strcmp(g->r[i].name, name) == 0) return &g->r[i];
    fail_msg("no record %s", name);
    return NULL;
}

static const float *get_floats(const golden *g, const char *name, int64_t *n) {
    const record *r = get(g, name);
    if (n) *n = r->bytes / 4;
    return r->data;
}

/* Equal bits, or both NaN. */
static void same_floats(const char *what, const float *a, const float *b, int64_t n) {
    for (int64_t i = 0; i < n; i++)
        if (bits_of(a[i]) != bits_of(b[i]) && !(a[i] != a[i] && b[i] != b[i]))
            fail_msg("%s: element %lld is %.9g (%a), expected %.9g (%a)", what, (long long)i, (double)a[i],
                     (double)a[i], (double)b[i], (double)b[i]);
}

/* Any piece of the matrix must equal the same piece of the whole: all alignments, pieces inside a block, across
 * several. */
static void check_pieces(const weight *w, const float *whole, int64_t n) {
    float *out = malloc((size_t)n * sizeof *out);
    for (uint64_t k = 0; k < 600; k++) {
        const int64_t at = (int64_t)rng_below(1, STREAM_TEST, 2 * k, (uint64_t)n);
        const int64_t most = k % 2 ? n - at : (n - at < 70 ? n - at : 70);
        const int64_t len = (int64_t)rng_below(1, STREAM_TEST, 2 * k + 1, (uint64_t)most + 1);
        float *end = malloc((size_t)(len ? len : 1) * sizeof *end); /* exact, for the sanitizer */
        w->fmt->dequant(w, at, len, end);
        same_floats(w->fmt->name, end, whole + at, len);
        free(end);
    }
    w->fmt->dequant(w, 0, n, out);
    same_floats(w->fmt->name, out, whole, n);
    free(out);
}

static const char *const ggml_names[] = {"f16",  "bf16",   "q4_0", "q4_1", "q5_0", "q5_1",
                                         "q8_0", "iq4_nl", "q4_k", "q5_k", "q6_k"};
enum { GGML_NAMES = sizeof ggml_names / sizeof *ggml_names };

static void test_ggml_dequant(void **state) {
    (void)state;
    for (int i = 0; i < GGML_NAMES; i++) {
        golden g = golden_read(ggml_names[i]);
        const weight_format *f = format_by_name(ggml_names[i]);
        assert_non_null(f);
        const int32_t *shape = get(&g, "shape")->data;
        assert_ptr_equal(f, format_by_ggml(shape[0]));
        assert_int_equal(f->block, shape[1]);
        assert_int_equal(f->bytes, shape[2]);
        int64_t n;
        const float *y = get_floats(&g, "y", &n);
        const record *raw = get(&g, "raw");
        const int64_t block = f->block > 1 ? f->block : 32;
        weight w = {f, n / block, block, 1, raw->data, NULL};
        assert_int_equal(weight_bytes(&w), raw->bytes);
        check_pieces(&w, y, n);
        char *odd = malloc(raw->bytes + 1); /* a file gives no alignment */
        memcpy(odd + 1, raw->data, raw->bytes);
        w.data = odd + 1;
        check_pieces(&w, y, n);
        free(odd);
        golden_free(&g);
    }
}

static void test_ggml_quant(void **state) {
    (void)state;
    int tested = 0;
    for (int i = 0; i < GGML_NAMES; i++) {
        golden g = golden_read(ggml_names[i]);
        const weight_format *f = format_by_name(ggml_names[i]);
        int64_t n;
        const float *x = get_floats(&g, "x", &n);
        const record *raw = get(&g, "raw");
        if (n) {
            assert_non_null(f->quant);
            uint8_t *out = malloc(raw->bytes);
            f->quant(x, n, out);
            for (uint32_t k = 0; k < raw->bytes; k++)
                if (out[k] != ((const uint8_t *)raw->data)[k])
                    fail_msg("%s: byte %u is %02x, expected %02x", f->name, k, out[k], ((const uint8_t *)raw->data)[k]);
            free(out);
            tested++;
        }
        golden_free(&g);
    }
    assert_int_equal(tested, 8);
}

/* Searching quantisers on real weights leave no more squared error than ggml's own (make_k_quant.py), weighted by an
 * importance of each column or not; and the importance is what makes the difference. */
static void test_search(void **state) {
    (void)state;
    golden g = golden_read("k_quant");
    static const char *const names[] = {"q4_k", "q5_k", "q6_k", "q4_0", "q4_1", "q5_0", "q5_1"};
    int64_t n, cols;
    const float *x = get_floats(&g, "x", &n), *importance = get_floats(&g, "importance", &cols);
    float *each = malloc((size_t)n * sizeof *each), *y = malloc((size_t)n * sizeof *y);
    uint8_t *raw = malloc((size_t)n * 4);
    for (int64_t i = 0; i < n; i++) each[i] = importance[i % cols];
    for (size_t f = 0; f < sizeof names / sizeof *names; f++) {
        const weight_format *fmt = format_by_name(names[f]);
        const float *theirs = get_floats(&g, names[f], NULL);
        const weight w = {fmt, n / cols, cols, 1, raw, NULL};
        double error[2] = {0, 0}, careless = 0;
        for (int k = 0; k < 2; k++) {
            weight_quant(fmt, x, k ? each : NULL, n, raw);
            fmt->dequant(&w, 0, n, y);
            for (int64_t i = 0; i < n; i++) {
                const double d = (double)(y[i] - x[i]) * (double)(y[i] - x[i]);
                error[k] += k ? d * (double)each[i] : d;
                careless += k ? 0 : d * (double)each[i];
            }
        }
        if (f < 3 && !(error[0] <= (double)theirs[0]))
            fail_msg("%s: squared error %g, ggml %g", names[f], error[0], (double)theirs[0]);
        if (!(error[1] <= (double)theirs[1]))
            fail_msg("%s: weighted squared error %g, ggml %g", names[f], error[1], (double)theirs[1]);
        if (!(error[1] < careless)) fail_msg("%s: %g with the importance, %g without", names[f], error[1], careless);
    }
    free(each), free(y), free(raw);
    golden_free(&g);
}

static void test_f32(void **state) {
    (void)state;
    float x[100], back[100];
    for (int i = 0; i < 100; i++) x[i] = rng_normal(3, STREAM_TEST, (uint64_t)i);
    weight_formats[FMT_F32].quant(x, 100, back);
    assert_memory_equal(x, back, sizeof x);
    const weight w = weight_f32(x, 10, 10);
    assert_int_equal(weight_bytes(&w), 400);
    check_pieces(&w, x, 100);
}

/* All 65536 patterns against the scalar conversions, which test_core holds to known values. */
static void test_halves(void **state) {
    (void)state;
    static uint16_t h[65536], back[65536];
    static float y[65536];
    for (int i = 0; i < 65536; i++) h[i] = (uint16_t)i;
    weight w = {&weight_formats[FMT_F16], 256, 256, 1, h, NULL};
    w.fmt->dequant(&w, 0, 65536, y);
    for (int i = 0; i < 65536; i++) assert_int_equal(bits_of(y[i]), bits_of(f16_to_float((uint16_t)i)));
    w.fmt->quant(y, 65536, back);
    for (int i = 0; i < 65536; i++)
        if (y[i] == y[i]) assert_int_equal(back[i], i);
    w.fmt = &weight_formats[FMT_BF16];
    w.fmt->dequant(&w, 0, 65536, y);
    w.fmt->quant(y, 65536, back);
    for (int i = 0; i < 65536; i++) {
        assert_int_equal(bits_of(y[i]), (uint32_t)i << 16);
        if (y[i] == y[i]) assert_int_equal(back[i], i);
    }
}

static void test_nf4_quant(void **state) {
    (void)state;
    golden g = golden_read("nf4");
    int64_t n;
    const float *x = get_floats(&g, "x", &n), *absmax = get_floats(&g, "absmax", NULL);
    const record *raw = get(&g, "raw");
    assert_int_equal(raw->bytes, nf4_data_bytes(n));
    const int64_t pieces[] = {n, 64, 128, 640};
    for (size_t k = 0; k < sizeof pieces / sizeof *pieces; k++) {
        uint8_t *codes = calloc(raw->bytes, 1);
        float scale[64];
        for (int64_t at = 0; at < n; at += pieces[k])
            nf4_quant(x + at, n - at < pieces[k] ? n - at : pieces[k], codes + at / 2, scale + at / 64);
        for (uint32_t i = 0; i < raw->bytes; i++)
            if (codes[i] != ((const uint8_t *)raw->data)[i])
                fail_msg("byte %u is %02x, expected %02x", i, codes[i], ((const uint8_t *)raw->data)[i]);
        same_floats("absmax", scale, absmax, (n + 63) / 64);
        free(codes);
    }
    golden_free(&g);
}

static void test_nf4_cases(void **state) {
    (void)state;
    golden g = golden_read("nf4_cases");
    assert_int_equal(g.n, 33);
    for (int i = 0; i < g.n; i += 3) {
        const int64_t n = g.r[i].bytes / 4;
        const record *raw = &g.r[i + 1], *absmax = &g.r[i + 2];
        assert_int_equal(raw->bytes, nf4_data_bytes(n));
        uint8_t *codes = malloc(raw->bytes);
        float *scale = malloc(absmax->bytes);
        nf4_quant(g.r[i].data, n, codes, scale);
        for (uint32_t k = 0; k < raw->bytes; k++)
            if (codes[k] != ((const uint8_t *)raw->data)[k])
                fail_msg("%s: byte %u is %02x, expected %02x", g.r[i].name, k, codes[k], ((uint8_t *)raw->data)[k]);
        same_floats(absmax->name, scale, absmax->data, absmax->bytes / 4);
        free(codes);
        free(scale);
    }
    golden_free(&g);
}

static void test_nf4_dequant(void **state) {
    (void)state;
    golden g = golden_read("nf4");
    int64_t n;
    const float *y = get_floats(&g, "y", &n);
    nf4_meta m = {.blocksize = 64, .absmax = get_floats(&g, "absmax", NULL)};
    weight w = {&weight_formats[FMT_NF4], 1, n, 1, get(&g, "raw")->data, &m};
    assert_int_equal(weight_bytes(&w), nf4_data_bytes(n));
    check_pieces(&w, y, n);

    y = get_floats(&g, "y128", &n);
    m = (nf4_meta){.blocksize = 128, .absmax = get_floats(&g, "absmax128", NULL)};
    w = (weight){&weight_formats[FMT_NF4], n, 1, 1, get(&g, "raw128")->data, &m};
    check_pieces(&w, y, n);

    y = get_floats(&g, "y2", &n);
    m = (nf4_meta){.blocksize = 64, .nested_block = 256, .code = get(&g, "code2")->data, .map = nf4_dynamic_map};
    m.nested_absmax = get_floats(&g, "nested2", NULL);
    m.offset = get_floats(&g, "offset2", NULL)[0];
    w = (weight){&weight_formats[FMT_NF4], 1, n, 1, get(&g, "raw2")->data, &m};
    check_pieces(&w, y, n);
    golden_free(&g);
}

/* Every byte, both nibbles, and the unpaired elements at odd ends. */
static void test_nf4_bytes(void **state) {
    (void)state;
    uint8_t raw[256];
    float whole[512];
    const float absmax[8] = {1, 0.5f, 3, 1e-3f, 1, 1, 7, 1e20f};
    for (int i = 0; i < 256; i++) raw[i] = (uint8_t)i;
    for (int i = 0; i < 512; i++) whole[i] = nf4_codes[i % 2 ? i / 2 & 15 : i / 32] * absmax[i / 64];
    const nf4_meta m = {.blocksize = 64, .absmax = absmax};
    const weight w = {&weight_formats[FMT_NF4], 8, 64, 1, raw, &m};
    check_pieces(&w, whole, 512);
}

static void test_nf4_scales(void **state) {
    (void)state;
    golden g = golden_read("scales");
    int64_t n;
    const float *absmax = get_floats(&g, "absmax", &n), *map = get_floats(&g, "map", NULL);
    const float *nested = get_floats(&g, "nested", NULL), offset = get_floats(&g, "offset", NULL)[0];
    const uint8_t *code = get(&g, "code")->data;
    same_floats("map", nf4_dynamic_map, map, 256);

    nf4_meta m = {
        .blocksize = 64, .nested_block = 256, .code = code, .nested_absmax = nested, .map = map, .offset = offset};
    float back[600];
    for (int64_t i = 0; i < n; i++) back[i] = nf4_absmax(&m, i);
    same_floats("absmax", back, get_floats(&g, "back", NULL), n);

    uint8_t mine[600];
    float mine_nested[3];
    const float mean = nf4_quant_scales(absmax, n, mine, mine_nested);
    same_floats("offset", &mean, &offset, 1);
    same_floats("nested absmax", mine_nested, nested, 3);
    for (int64_t i = 0; i < n; i++)
        if (mine[i] != code[i]) fail_msg("code %lld is %d, expected %d", (long long)i, mine[i], code[i]);
    golden_free(&g);
}

/* Scales that are equal leave nothing to code; the offset must carry them. */
static void test_nf4_scales_flat(void **state) {
    (void)state;
    float absmax[300], nested[2];
    uint8_t code[300];
    for (int i = 0; i < 300; i++) absmax[i] = 0.75f;
    const float offset = nf4_quant_scales(absmax, 300, code, nested);
    const nf4_meta m = {64, 256, NULL, code, nested, nf4_dynamic_map, offset};
    for (int i = 0; i < 300; i++) assert_true(nf4_absmax(&m, i) == 0.75f);
    assert_true(nf4_quant_scales(absmax, 0, code, nested) == 0);
}

/* Bytes and floats of a hostile file: nothing may trap, index outside or convert out of range. */
static void test_hostile(void **state) {
    (void)state;
    static const uint32_t odd[] = {0x7fc00000, 0x7f800000, 0xff800000, 0x7f7fffff, 0xff7fffff, 1,
                                   0x80000001, 0x00800000, 0x80000000, 0x3f800000, 0xffffffff};
    static uint8_t raw[2560];
    static float x[512], y[512], weights[512];
    for (int i = 0; i < 256; i++) weights[i] = 1; /* and 0: channels that no text has used */
    for (int round = 0; round < 64; round++) {
        for (int i = 0; i < 512; i++) {
            const uint32_t r = rng_u32(7, STREAM_TEST, (uint64_t)(round * 512 + i));
            x[i] = round % 2 ? float_of(odd[r % 11]) : float_of(r);
        }
        for (int f = 0; f < FORMATS; f++) {
            const weight_format *fmt = &weight_formats[f];
            if (fmt->quant)
                weight_quant(fmt, x, round % 3 ? NULL : weights, 512, raw);
            else
                memset(raw, round < 2 ? 0xff : (int)(rng_u32(8, STREAM_TEST, (uint64_t)round) & 255), sizeof raw);
            float absmax[8] = {float_of(odd[round % 11]), 1, 1, 1, 1, 1, 1, 1};
            const nf4_meta m = {.blocksize = 64, .absmax = absmax};
            const weight w = {fmt, 1, 512, 1, raw, f == FMT_NF4 ? &m : NULL};
            fmt->dequant(&w, 0, 512, y);
        }
        uint8_t codes[256], code8[512];
        float absmax[8], nested[2];
        nf4_quant(x, 511, codes, absmax);
        nf4_quant_scales(x, 512, code8, nested);
    }
}

static void test_lookup(void **state) {
    (void)state;
    for (int i = 0; i < FORMATS; i++) {
        const weight_format *f = &weight_formats[i];
        assert_int_equal(f->id, i);
        assert_non_null(f->dequant);
        assert_ptr_equal(format_by_name(f->name), f);
        if (f->ggml_type >= 0) assert_ptr_equal(format_by_ggml(f->ggml_type), f);
    }
    static const int unread[] = {-1, 4, 5, 9, 10, 15, 31, 39, 1 << 30};
    for (size_t i = 0; i < sizeof unread / sizeof *unread; i++) assert_null(format_by_ggml(unread[i]));
    assert_null(format_by_name("q4"));
    assert_null(format_by_name(""));
    const weight odd = {&weight_formats[FMT_NF4], 3, 43, 5, NULL, NULL};
    assert_int_equal(weight_bytes(&odd), (3 * 43 * 5 + 1) / 2);
}

/* The converter's own words: W.reshape(heads, 2, D / 2, in).swapaxes(1, 2). Here on row numbers, per stacked matrix. */
static void test_unpermute(void **state) {
    (void)state;
    enum { HEADS = 3, D = 8, ROWS = HEADS * D, COLS = 64, COUNT = 2, BYTES = COLS / 32 * 18 };
    static uint8_t hf[COUNT * ROWS][BYTES], ggml[COUNT * ROWS][BYTES], back[COUNT * ROWS][BYTES];
    for (int i = 0; i < COUNT * ROWS * BYTES; i++) ((uint8_t *)hf)[i] = (uint8_t)rng_u32(9, STREAM_TEST, (uint64_t)i);
    int to = 0;
    for (int head = 0; head < COUNT * HEADS; head++)
        for (int j = 0; j < D / 2; j++)
            for (int half = 0; half < 2; half++) memcpy(ggml[to++], hf[(head * 2 + half) * (D / 2) + j], BYTES);
    for (int h = 0; h < HEADS; h++)
        for (int j = 0; j < D / 2; j++) {
            assert_memory_equal(ggml[h * D + 2 * j], hf[h * D + j], BYTES);
            assert_memory_equal(ggml[h * D + 2 * j + 1], hf[h * D + D / 2 + j], BYTES);
        }
    const weight w = {&weight_formats[FMT_Q4_0], ROWS, COLS, COUNT, ggml, NULL};
    assert_int_equal(weight_bytes(&w), sizeof back);
    weight_unpermute_rows(&w, HEADS, back);
    assert_memory_equal(back, hf, sizeof hf);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_ggml_dequant),    cmocka_unit_test(test_ggml_quant), cmocka_unit_test(test_f32),
        cmocka_unit_test(test_halves),          cmocka_unit_test(test_nf4_quant),  cmocka_unit_test(test_nf4_cases),
        cmocka_unit_test(test_nf4_dequant),     cmocka_unit_test(test_nf4_bytes),  cmocka_unit_test(test_nf4_scales),
        cmocka_unit_test(test_nf4_scales_flat), cmocka_unit_test(test_hostile),    cmocka_unit_test(test_lookup),
        cmocka_unit_test(test_unpermute),       cmocka_unit_test(test_search),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
