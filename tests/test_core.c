/* The foundation: errors, arenas, counter-based random numbers (known answers of Random123), 16-bit floats against
 * their definition over all values, and the batch. */
#include "core/arena.h"
#include "core/batch.h"
#include "core/error.h"
#include "core/num.h"
#include "core/rng.h"

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>
#undef fail /* cmocka's macro hides the function of core/error.h */

/* ---- errors ---- */

static void test_fail(void **state) {
    (void)state;
    fail_clear();
    assert_string_equal(fail_text(), "");
    assert_int_equal(fail_code(), 0);
    assert_int_equal(fail(EXIT_INPUT, "%s:%d: found '%s'", "a.yaml", 3, "x\x1b[31m\n\x7f\xc3\xa9"), -1);
    assert_string_equal(fail_text(), "a.yaml:3: found 'x\\x1b[31m\\x0a\\x7f\xc3\xa9'");
    assert_int_equal(fail(EXIT_IO, "second"), -1); /* the first failure is the cause */
    assert_int_equal(fail_code(), EXIT_INPUT);
    fail_clear();
    char *long_text = xcalloc(10001, 1);
    memset(long_text, '\n', 10000);
    fail(EXIT_IO, "%s", long_text);
    assert_in_range(strlen(fail_text()), 4000, 4095);
    fail_clear();
    free(long_text);
}

/* Runs f in a child; its exit code, and what it wrote to stderr. */
static int in_child(void (*f)(void), char *said, size_t size) {
    int ends[2], status;
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        dup2(ends[1], 2);
        close(ends[0]), close(ends[1]);
        f();
        _exit(0);
    }
    close(ends[1]);
    size_t n = 0;
    for (ssize_t got; n + 1 < size && (got = read(ends[0], said + n, size - 1 - n)) > 0;) n += (size_t)got;
    said[n] = 0;
    close(ends[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static void report(void) {
    fail(EXIT_DIVERGED, "loss is not finite");
    int code = fail_report("train");
    _exit(fail_code() ? 1 : code); /* reported once, then forgotten */
}

static void check_fails(void) { CHECK(1 > 2, "q %dx%d", 3, 4); }

static void exceed(void) {
    arena a;
    if (arena_open(&a, "small", 100)) _exit(1);
    arena_alloc(&a, 64);
    arena_alloc(&a, 37);
}

static void test_exits(void **state) {
    (void)state;
    char said[512];
    assert_int_equal(in_child(report, said, sizeof said), EXIT_DIVERGED);
    assert_string_equal(said, "train: error: loss is not finite\n");
    assert_int_equal(in_child(check_fails, said, sizeof said), EXIT_INTERNAL);
    assert_non_null(strstr(said, "1 > 2: q 3x4\n"));
    assert_int_equal(in_child(exceed, said, sizeof said), EXIT_INTERNAL);
    assert_non_null(strstr(said, "arena small: 37 more than 64 of 100 bytes\n"));
}

/* ---- arenas ---- */

static void test_arena(void **state) {
    (void)state;
    arena a;
    assert_int_equal(arena_open(&a, "test", 4096), 0);
    char *p = arena_alloc(&a, 1), *q = arena_array(&a, 3, 40);
    assert_true((uintptr_t)p % ARENA_ALIGN == 0 && q == p + ARENA_ALIGN);
    for (int i = 0; i < 120; i++) assert_int_equal(q[i], 0);
    assert_int_equal(a.used, 192);
    size_t mark = a.used;
    assert_string_equal(arena_string(&a, "text"), "text");
    arena_release(&a, mark);
    assert_true(a.used == 192 && a.peak == 256);
    arena_alloc(&a, 4096 - 192);
    assert_int_equal(a.used, 4096);
    assert_non_null(arena_alloc(&a, 0));
    arena_close(&a);
    assert_null(a.base);
    fail_clear();
    assert_int_equal(arena_open(&a, "huge", (size_t)1 << 60), -1);
    assert_int_equal(fail_code(), EXIT_MEMORY);
    fail_clear();
}

static void test_plan(void **state) {
    (void)state;
    arena a;
    arena_plan(&a, "plan");
    char *p = arena_alloc(&a, (size_t)1 << 40), *q = arena_alloc(&a, 64);
    assert_true(p && q == p + ((size_t)1 << 40) && a.planning);
    int pipes[2];
    assert_int_equal(pipe(pipes), 0);
    assert_int_equal(write(pipes[1], q, 1), -1); /* addresses, but no memory behind them */
    assert_int_equal(errno, EFAULT);
    close(pipes[0]), close(pipes[1]);
    size_t peak = a.peak;
    arena_close(&a);
    assert_int_equal(peak, ((size_t)1 << 40) + 64);
}

/* ---- random numbers ---- */

static void test_philox(void **state) {
    (void)state;
    static const struct {
        uint64_t lo, hi, key;
        uint32_t want[4];
    } known[] = {
        /* Random123, tests/kat_vectors, philox4x32 10: counter words 0..3, key words 0..1 */
        {0, 0, 0, {0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
        {~0ull, ~0ull, ~0ull, {0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}},
        {0x85a308d3243f6a88, 0x0370734413198a2e, 0x299f31d0a4093822, {0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}};
    for (int i = 0; i < 3; i++)
        assert_memory_equal(rng_philox(known[i].key, known[i].hi, known[i].lo).v, known[i].want, 16);
    for (uint64_t n = 0; n < 16; n++) assert_int_equal(rng_u32(5, 7, n), rng_philox(5, 7, n / 4).v[n % 4]);
}

static void test_distributions(void **state) {
    (void)state;
    enum { N = 200000, BINS = 7 };
    double sum = 0, square = 0, cube = 0, fourth = 0, uniform = 0;
    int bins[BINS] = {0};
    for (uint64_t i = 0; i < N; i++) {
        double z = rng_normal(42, STREAM_TEST, i), u = rng_uniform(42, STREAM_TEST, i);
        assert_true(u >= 0 && u < 1 && isfinite(z));
        uniform += u, sum += z, square += z * z, cube += z * z * z, fourth += z * z * z * z;
        uint64_t b = rng_below(42, STREAM_TEST, i, BINS);
        assert_true(b < BINS);
        bins[b]++;
    }
    /* five standard deviations of each mean of N */
    assert_true(fabs(uniform / N - 0.5) < 5 * sqrt(1 / 12.0 / N));
    assert_true(fabs(sum / N) < 5 / sqrt(N) && fabs(square / N - 1) < 5 * sqrt(2.0 / N));
    assert_true(fabs(cube / N) < 5 * sqrt(15.0 / N) && fabs(fourth / N - 3) < 5 * sqrt(96.0 / N));
    double chi2 = 0;
    for (int i = 0; i < BINS; i++) chi2 += pow(bins[i] - N / (double)BINS, 2) / (N / (double)BINS);
    assert_true(chi2 < 30); /* 6 degrees of freedom: above with probability 4e-5 */
    assert_int_equal(rng_below(1, 2, 3, 1), 0);
    assert_true(rng_u32(1, STREAM_INIT, 0) != rng_u32(1, STREAM_DROPOUT, 0) && rng_u32(1, 1, 0) != rng_u32(2, 1, 0));
}

static void test_hash(void **state) {
    (void)state;
    uint64_t h = hash_bytes(HASH_SEED, "abc", 3);
    assert_true(h == hash_bytes(HASH_SEED, "abc", 3) && h != hash_bytes(HASH_SEED, "abd", 3));
    assert_true(h != hash_bytes(HASH_SEED, "ab", 2) && h != hash_bytes(1, "abc", 3));
    assert_true(hash_bytes(HASH_SEED, "\0", 1) != hash_bytes(HASH_SEED, "\0\0", 2));
    int flipped = 0; /* one changed bit of the input changes about half of the output */
    for (int i = 0; i < 64; i++) {
        uint64_t x = 0x0123456789abcdef, y = x ^ 1ull << i;
        flipped += __builtin_popcountll(hash_bytes(HASH_SEED, &x, 8) ^ hash_bytes(HASH_SEED, &y, 8));
    }
    assert_in_range(flipped, 64 * 28, 64 * 36);
}

/* ---- 16-bit floats ---- */

/* The value by IEEE 754's definition; inf and NaN are not asked for. */
static double value16(uint16_t h, int mantissa, int bias) {
    int e = (h & 0x7fff) >> mantissa, m = h & ((1 << mantissa) - 1);
    double x = e ? ldexp(m + (1 << mantissa), e - bias - mantissa) : ldexp(m, 1 - bias - mantissa);
    return h & 0x8000 ? -x : x;
}

/* Every value both ways; and between each value and the next, the middle and its neighbours round as they should. */
static void exhaust(int mantissa, int bias, float (*wide)(uint16_t), uint16_t (*narrow)(float)) {
    unsigned infinity = 0x7fffu >> mantissa << mantissa;
    for (unsigned h = 0; h < 0x10000; h++) {
        uint16_t v = (uint16_t)h;
        if ((h & 0x7fff) > infinity) {
            assert_true(isnan(wide(v)) && isnan(wide(narrow(wide(v)))));
            assert_int_equal(narrow(wide(v)) & 0x8000, h & 0x8000);
            continue;
        }
        if ((h & 0x7fff) == infinity)
            assert_true(isinf(wide(v)) && !signbit(wide(v)) == !(h & 0x8000));
        else
            assert_true(wide(v) == value16(v, mantissa, bias) && !signbit(wide(v)) == !(h & 0x8000));
        assert_int_equal(narrow(wide(v)), h);
        if ((h & 0x7fff) >= infinity) continue;
        float middle =
            (float)((value16(v, mantissa, bias) + value16((uint16_t)(h + 1), mantissa, bias)) / 2); /* exact */
        float away = signbit(middle) || h & 0x8000 ? -INFINITY : INFINITY;
        assert_int_equal(narrow(middle), h & 1 ? h + 1 : h); /* to even */
        assert_int_equal(narrow(nextafterf(middle, away)), h + 1);
        assert_int_equal(narrow(nextafterf(middle, 0)), h);
    }
    assert_int_equal(narrow(INFINITY), infinity);
    assert_int_equal(narrow(-INFINITY), infinity | 0x8000);
    assert_int_equal(narrow(-0.0f), 0x8000);
    assert_true(isnan(wide(narrow(NAN))) && isnan(wide(narrow(float_of(0x7f800001)))));
}

static void test_f16(void **state) {
    (void)state;
    exhaust(10, 15, f16_to_float, float_to_f16);
    assert_true(f16_to_float(float_to_f16(65519.99f)) == 65504 && isinf(f16_to_float(float_to_f16(65520))));
    assert_int_equal(float_to_f16(0x1p-25f), 0);
    assert_int_equal(float_to_f16(0x1.000002p-25f), 1);
    assert_int_equal(float_to_f16(-1e-30f), 0x8000);
    assert_int_equal(float_to_f16(1e30f), 0x7c00);
}

static void test_bf16(void **state) {
    (void)state;
    exhaust(7, 127, bf16_to_float, float_to_bf16);
    assert_int_equal(float_to_bf16(float_of(0x7f7fffff)), 0x7f80);
}

static void test_mul(void **state) {
    (void)state;
    assert_int_equal(mul_checked(1 << 20, 1 << 20), 1ll << 40);
    assert_int_equal(mul_checked(0, INT64_MAX), 0);
    assert_int_equal(mul_checked(INT64_MAX, 1), INT64_MAX);
    assert_int_equal(mul_checked(INT64_MAX, 2), -1);
    assert_int_equal(mul_checked(-1, 2), -1);
    assert_int_equal(mul_checked(2, -1), -1);
}

/* ---- batch ---- */

static batch crowded;
static void overfill(void) { batch_add(&crowded, (int32_t[]){1}, NULL, 1, 0); }

static void test_batch(void **state) {
    (void)state;
    assert_int_equal(batch_open(&crowded, 7, 2), 0);
    batch *b = &crowded;
    const int32_t ids[] = {5, 6, 7, 8}, labels[] = {5, -100, 7, 8}, more[] = {9, 10, 11};
    batch_add(b, ids, labels, 4, 77);
    batch_add(b, more, more, 3, 88);
    assert_true(b->rows == 7 && b->seqs == 2 && b->targets == 4);
    assert_memory_equal(b->token, ((int32_t[]){5, 6, 7, 8, 9, 10, 11}), 28);
    assert_memory_equal(b->target, ((int32_t[]){-1, 7, 8, -1, 10, 11, -1}), 28); /* row i predicts labels[i + 1] */
    assert_memory_equal(b->pos, ((int32_t[]){0, 1, 2, 3, 0, 1, 2}), 28);
    assert_memory_equal(b->start, ((int32_t[]){0, 4, 7}), 12);
    assert_true(b->sample[0] == 77 && b->sample[1] == 88 && b->past[1] == 0 && b->weight[6] == 1);
    char said[512];
    assert_int_equal(in_child(overfill, said, sizeof said), EXIT_INTERNAL);
    batch_clear(b);
    assert_true(b->rows == 0 && b->seqs == 0 && b->targets == 0 && b->start[0] == 0);
    batch_add(b, ids, NULL, 2, 1); /* nothing to predict */
    assert_true(b->rows == 2 && b->targets == 0 && b->target[0] == -1);
    batch_close(b);
    assert_null(b->token);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fail), cmocka_unit_test(test_exits),  cmocka_unit_test(test_arena),
        cmocka_unit_test(test_plan), cmocka_unit_test(test_philox), cmocka_unit_test(test_distributions),
        cmocka_unit_test(test_hash), cmocka_unit_test(test_f16),    cmocka_unit_test(test_bf16),
        cmocka_unit_test(test_mul),  cmocka_unit_test(test_batch),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
