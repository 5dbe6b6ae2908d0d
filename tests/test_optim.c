/* Schedules against transformers' get_scheduler, AdamW against torch.optim.AdamW (tests/golden/make_tiny.py) and its
 * 8-bit moments against bitsandbytes.optim.AdamW8bit (tests/golden/make_adamw8.py). */
#include "core/file.h"
#include "core/json.h"
#include "core/safetensors.h"
#include "kernels/ref/ref.h"
#include "optim/adamw.h"
#include "optim/schedule.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static json_t *golden(const char *name) {
    file_map m;
    char *path = xprintf("tests/golden/%s.json", name);
    assert_int_equal(file_open(&m, path), 0);
    json_t *v = json_parse(path, (const char *)m.data, m.size, 0);
    assert_non_null(v);
    file_close(&m);
    free(path);
    return v;
}

static double real(const json_t *o, const char *key) { return json_number_value(json_object_get(o, key)); }

/* The same double formulas on both sides: one rounding apart at the most. */
static void test_schedules(void **state) {
    (void)state;
    int checked = 0;
    for (int kind = 0; kind < LR_SCHEDULES; kind++) {
        char name[64];
        snprintf(name, sizeof name, "lr_%s", lr_names[kind]);
        json_t *all = golden(name), *c, *v;
        size_t i, step;
        json_array_foreach(all, i, c) {
            lr_schedule s = {(lr_kind)kind, 1, (int)real(c, "warmup"), (int)real(c, "total")};
            json_array_foreach(json_object_get(c, "values"), step, v) {
                assert_true(fabs(lr_at(&s, (int)step) - json_number_value(v)) <= 1e-15);
                checked++;
            }
        }
        json_decref(all);
    }
    assert_true(checked > 100);
}

/* fp32 in another order of operations: a few units in the last place after the golden's steps, 1e-6 relative to lr. */
static void test_adamw(void **state) {
    (void)state;
    kctx k = {.be = &backend_ref, .threads = 1};
    json_t *all = golden("adamw"), *c, *step, *v;
    size_t i, s, j;
    json_array_foreach(all, i, c) {
        float param[64], grad[64];
        arena run;
        adamw o;
        const json_t *initial = json_object_get(c, "initial");
        int64_t n = (int64_t)json_array_size(initial);
        assert_int_equal(arena_open(&run, "run", 1 << 16), 0);
        adamw_open(&o, param, grad, n, &k, &run);
        o.beta1 = real(c, "beta1"), o.beta2 = real(c, "beta2"), o.eps = real(c, "eps"),
        o.weight_decay = real(c, "weight_decay");
        json_array_foreach(initial, j, v) param[j] = (float)json_number_value(v);
        json_array_foreach(json_object_get(c, "steps"), s, step) {
            step_sums sums = {.weight = 1};
            json_array_foreach(json_object_get(step, "grad"), j, v) grad[j] = (float)json_number_value(v);
            adamw_step(&o, &k, real(c, "lr"), &sums);
            json_array_foreach(json_object_get(step, "param"), j, v)
                assert_true(fabs((double)param[j] - json_number_value(v)) <=
                            2e-7 * fabs(json_number_value(v)) + 1e-4 * real(c, "lr"));
        }
        adamw_close(&o);
        arena_close(&run);
    }
    json_decref(all);
}

/* The mean gradient is clipped to max_norm; a gradient that is not finite changes nothing. */
static void test_clip_and_skip(void **state) {
    (void)state;
    kctx k = {.be = &backend_ref, .threads = 1};
    float param[2] = {1, 2}, grad[2] = {30, 40};
    arena run;
    adamw o;
    assert_int_equal(arena_open(&run, "run", 1 << 16), 0);
    adamw_open(&o, param, grad, 2, &k, &run);
    o.beta1 = 0.9, o.beta2 = 0.999, o.eps = 1e-8, o.max_norm = 0.5;
    step_sums sums = {.weight = 10};
    adamw_step(&o, &k, 0.1, &sums);
    assert_true(fabs(sums.norm - 5) < 1e-6);
    assert_true(fabsf(o.m[0] - 0.1f * 0.3f) < 1e-6f && fabsf(o.m[1] - 0.1f * 0.4f) < 1e-6f);
    float kept[2] = {param[0], param[1]};
    grad[1] = INFINITY;
    sums = (step_sums){.weight = 10};
    adamw_step(&o, &k, 0.1, &sums);
    assert_true(sums.nonfinite > 0 && !memcmp(kept, param, sizeof kept));
    adamw_close(&o);
    arena_close(&run);
}

/* make_adamw8.py's word() and values() */
static float value(uint32_t i) {
    uint32_t x = i * 2654435761u;
    x ^= x >> 15;
    x *= 2246822519u;
    x ^= x >> 13;
    return ldexpf((float)(x >> 11) / 0x1p20f - 1, -(int)(x & 15));
}

enum { SIZES = 3, STEPS = 6, TOTAL = 4096 + 4095 + 4396, QUIET = 2 };
static const adamw_range sizes[SIZES] = {{0, 4096}, {4096, 4095}, {8191, 4396}};

static void train8(adamw *o, kctx *k, uint32_t from, uint32_t to) {
    o->beta1 = 0.9, o->beta2 = 0.99, o->eps = 1e-8, o->weight_decay = 0.1;
    for (uint32_t s = from; s < to; s++) {
        step_sums sums = {.weight = 1};
        for (uint32_t i = 0; i < TOTAL; i++)
            o->grad[i] = s < QUIET && i >= 256 && i < 512 ? 0 : value((s + 1) * TOTAL + i);
        adamw_step(o, k, 1e-2, &sums);
    }
}

static const st_tensor *gold8(const safetensors *st, const char *name, int t) {
    char full[32];
    snprintf(full, sizeof full, "%s%d", name, t);
    return safetensors_find(st, full);
}

static void check_codes(const st_tensor *want, const uint8_t *got, int64_t n) {
    assert_true((int64_t)want->bytes == n);
    for (int64_t i = 0; i < n; i++)
        if (got[i] != want->data[i])
            fail_msg("'%s': code %ld is %d, expected %d", want->name, (long)i, got[i], want->data[i]);
}

static void check_floats(const st_tensor *want, const float *got, int64_t n) {
    assert_true((int64_t)want->bytes == n * 4);
    for (int64_t i = 0; i < n; i++) {
        float w;
        memcpy(&w, want->data + 4 * i, 4);
        if (!(fabs((double)w - (double)got[i]) <= 1e-6 * fabs((double)w) + 1e-8))
            fail_msg("'%s': %ld is %.9g, expected %.9g", want->name, (long)i, (double)got[i], (double)w);
    }
}

/* The same codes, every one; scales and parameters differ by the order of operations. */
static void test_adamw8(void **state) {
    (void)state;
    static float param[TOTAL], grad[TOTAL];
    kctx k = {.be = &backend_ref, .threads = 1};
    arena plan, run;
    adamw o;
    safetensors st;
    arena_plan(&plan, "plan");
    kctx planner = {.be = &backend_plan, .threads = 1};
    adamw_open_8bit(&o, param, grad, TOTAL, sizes, SIZES, &planner, &plan);
    adamw_close(&o); /* of the plan */
    assert_int_equal(arena_open(&run, "run", plan.peak), 0);
    adamw_open_8bit(&o, param, grad, TOTAL, sizes, SIZES, &k, &run);
    assert_true(run.used == plan.peak && o.bytes == plan.peak);
    assert_true(o.bytes < 4095 * 8 + (4096 + 4396) * 2 + 1024);
    assert_true(o.wides == 1 && o.q.tensors == 2 && o.q.blocks == 16 + 18);
    for (uint32_t i = 0; i < TOTAL; i++) param[i] = value(i);
    train8(&o, &k, 0, STEPS);
    assert_int_equal(safetensors_open(&st, "tests/golden/adamw8.safetensors"), 0);
    for (int t = 0, q = 0; t < SIZES; t++) {
        check_floats(gold8(&st, "p", t), param + sizes[t].begin, sizes[t].n);
        if (!gold8(&st, "state1_", t)) continue;
        const adamw8_tensor *a = &o.q.tensor[q++];
        int64_t blocks = (a->n + 255) / 256;
        check_codes(gold8(&st, "state1_", t), o.q.m + a->code, a->n),
            check_codes(gold8(&st, "state2_", t), o.q.v + a->code, a->n);
        check_floats(gold8(&st, "absmax1_", t), o.q.m_scale + a->block, blocks);
        check_floats(gold8(&st, "absmax2_", t), o.q.v_scale + a->block, blocks);
    }
    safetensors_close(&st);
    adamw_close(&o), arena_close(&run), arena_close(&plan);
}

/* What adamw.h calls the state is all of it. */
static void test_adamw8_state(void **state) {
    (void)state;
    static float param[2][TOTAL], grad[TOTAL];
    kctx k = {.be = &backend_ref, .threads = 1};
    arena run;
    adamw o, p;
    assert_int_equal(arena_open(&run, "run", 1 << 18), 0);
    adamw_open_8bit(&o, param[0], grad, TOTAL, sizes, SIZES, &k, &run);
    adamw_open_8bit(&p, param[1], grad, TOTAL, sizes, SIZES, &k, &run);
    for (uint32_t i = 0; i < TOTAL; i++) param[0][i] = value(i);
    train8(&o, &k, 0, 3);
    memcpy(param[1], param[0], sizeof *param);
    size_t wide = (size_t)o.wide_n * sizeof(float), blocks = (size_t)o.q.blocks * sizeof(float);
    memcpy(p.m, o.m, wide), memcpy(p.v, o.v, wide);
    memcpy(p.q.m, o.q.m, (size_t)(o.n - o.wide_n)), memcpy(p.q.v, o.q.v, (size_t)(o.n - o.wide_n));
    memcpy(p.q.m_scale, o.q.m_scale, blocks), memcpy(p.q.v_scale, o.q.v_scale, blocks);
    p.t = o.t;
    train8(&o, &k, 3, STEPS), train8(&p, &k, 3, STEPS);
    assert_memory_equal(param[0], param[1], sizeof *param);
    adamw_close(&o), adamw_close(&p), arena_close(&run);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_schedules), cmocka_unit_test(test_adamw),
                                       cmocka_unit_test(test_clip_and_skip), cmocka_unit_test(test_adamw8),
                                       cmocka_unit_test(test_adamw8_state)};
    return cmocka_run_group_tests_name("optim", tests, NULL, NULL);
}
