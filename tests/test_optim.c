/* Schedules against transformers' get_scheduler and AdamW against torch.optim.AdamW (tests/golden/make_tiny.py). */
#include "core/file.h"
#include "core/json.h"
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
    kctx k = {&backend_ref, 1, NULL, 0};
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
        o.beta1 = real(c, "beta1"), o.beta2 = real(c, "beta2"), o.eps = real(c, "eps"), o.weight_decay = real(c, "weight_decay");
        json_array_foreach(initial, j, v) param[j] = (float)json_number_value(v);
        json_array_foreach(json_object_get(c, "steps"), s, step) {
            step_sums sums = {.weight = 1};
            json_array_foreach(json_object_get(step, "grad"), j, v) grad[j] = (float)json_number_value(v);
            adamw_step(&o, &k, real(c, "lr"), &sums);
            json_array_foreach(json_object_get(step, "param"), j, v)
                assert_true(fabs((double)param[j] - json_number_value(v)) <= 2e-7 * fabs(json_number_value(v)) + 1e-4 * real(c, "lr"));
        }
        arena_close(&run);
    }
    json_decref(all);
}

/* The mean gradient is clipped to max_norm; a gradient that is not finite changes nothing. */
static void test_clip_and_skip(void **state) {
    (void)state;
    kctx k = {&backend_ref, 1, NULL, 0};
    float param[2] = {1, 2}, grad[2] = {30, 40};
    arena run;
    adamw o;
    assert_int_equal(arena_open(&run, "run", 1 << 16), 0);
    adamw_open(&o, param, grad, 2, &k, &run);
    o.beta1 = 0.9, o.beta2 = 0.999, o.eps = 1e-8, o.max_norm = 0.5;
    step_sums sums = {.weight = 10};
    assert_true(fabs(adamw_step(&o, &k, 0.1, &sums) - 5) < 1e-6);
    assert_true(fabsf(o.m[0] - 0.1f * 0.3f) < 1e-6f && fabsf(o.m[1] - 0.1f * 0.4f) < 1e-6f);
    float kept[2] = {param[0], param[1]};
    grad[1] = INFINITY;
    sums = (step_sums){.weight = 10};
    adamw_step(&o, &k, 0.1, &sums);
    assert_true(sums.nonfinite > 0 && o.t == 1 && !memcmp(kept, param, sizeof kept));
    arena_close(&run);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_schedules), cmocka_unit_test(test_adamw),
                                       cmocka_unit_test(test_clip_and_skip)};
    return cmocka_run_group_tests_name("optim", tests, NULL, NULL);
}
