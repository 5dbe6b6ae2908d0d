/* Memory that is not the host's: what arenas, batches and adapters do with it, on a pretended device whose memory lies
 * elsewhere than it says, so that whoever dereferences it crashes; and the search for backends in shared objects. */
#include "autograd/tape.h"
#include "core/arena.h"
#include "core/error.h"
#include "kernels/plugin.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

/* ---- the pretended device: an address that is handed out is the true one with its highest bit set ---- */

#define MASK ((uintptr_t)1 << 63)
static int maps, put_calls, get_calls;

static char *real(const void *p) {
    assert_true((uintptr_t)p & MASK);
    return (char *)((uintptr_t)p & ~MASK);
}
static void *far_map(memory *m, const char *what, size_t bytes) {
    (void)m;
    if (bytes > (size_t)1 << 40) return (fail)(EXIT_MEMORY, "device memory for '%s'", what), NULL;
    maps++;
    return (void *)((uintptr_t)aligned_alloc(256, (bytes + 255) / 256 * 256) | MASK);
}
static void far_unmap(memory *m, void *base) {
    (void)m;
    maps--;
    free(real(base));
}
static void far_put(memory *m, void *to, const void *from, size_t bytes) {
    (void)m;
    put_calls++;
    memcpy(real(to), from, bytes);
}
static void far_get(memory *m, void *to, const void *from, size_t bytes) {
    (void)m;
    get_calls++;
    memcpy(to, real(from), bytes);
}
static void *far_shared(memory *m, size_t bytes) {
    (void)m;
    return calloc(1, bytes);
}
static void far_shared_free(memory *m, void *p) {
    (void)m;
    free(p);
}
static void far_post(memory *m, void *to, const void *from, size_t bytes, int slot) {
    (void)slot;
    far_get(m, to, from, bytes);
}
static void far_wait(memory *m, int slot) { (void)m, (void)slot; }
static memory far_memory = {far_map,         far_unmap, far_put,  far_get, far_shared,
                            far_shared_free, far_post,  far_wait, NULL,    NULL};

static void test_arena(void **state) {
    (void)state;
    arena a, plan;
    int x = 7, y = 0;
    assert_int_equal(arena_open_in(&a, &far_memory, "run", 1000), 0);
    assert_true(maps == 1 && a.size == 1000);
    int *p = arena_copy(&a, &x, sizeof x);
    assert_true((uintptr_t)p % ARENA_ALIGN == 0);
    arena_get(&a, &y, p, sizeof y);
    assert_int_equal(y, 7);
    assert_ptr_equal(memory_view(&far_memory, p, &y, sizeof y), &y);
    assert_ptr_equal(memory_view(NULL, &x, &y, sizeof y), &x);
    arena_close(&a);
    assert_int_equal(maps, 0);
    assert_int_equal(arena_open_in(&a, &far_memory, "huge", SIZE_MAX / 2), -1);
    assert_int_equal(fail_code(), EXIT_MEMORY);
    fail_clear();
    arena_plan(&plan, "plan");
    plan.mem = &memory_plan;
    put_calls = get_calls = 0;
    p = arena_copy(&plan, &x, sizeof x); /* addresses without memory: a copy would crash */
    arena_get(&plan, &y, p, sizeof y);
    assert_true(put_calls == 0 && get_calls == 0 && plan.peak == ARENA_ALIGN);
    arena_close(&plan);
}

static void test_shared(void **state) {
    (void)state;
    int x = 5, *seen = memory_shared(NULL, sizeof x);
    memory_post(NULL, seen, &x, sizeof x, 0);
    memory_wait(NULL, 0);
    assert_int_equal(*seen, 5);
    memory_shared_free(NULL, seen);
    seen = memory_shared(&memory_plan, sizeof x);
    memory_post(&memory_plan, seen, (void *)1, sizeof x, 1);
    assert_int_equal(*seen, 0);
    memory_shared_free(&memory_plan, seen);
}

/* A batch reaches kernels as copies that outlive changes of the host's arrays; on the host it is itself. */
static void test_batch(void **state) {
    (void)state;
    static const int32_t ids[] = {3, 1, 4, 1, 5};
    arena act, host;
    batch b;
    kctx k = {.be = &backend_plan, .threads = 1, .mem = &far_memory};
    batch_open(&b, 8, 2);
    batch_add(&b, ids, ids, 3, 11), batch_add(&b, ids + 3, ids, 2, 12);
    assert_int_equal(arena_open(&host, "host", 1 << 16) | arena_open_in(&act, &far_memory, "act", 1 << 16), 0);
    tape t = tape_begin(&k, &act, &act, &host, true, false);
    const batch *d = tape_batch(&t, &b);
    assert_true(d->rows == 5 && d->seqs == 2 && d->targets == b.targets);
    memset(b.token, 0, 5 * sizeof *b.token);
    int32_t token[5], start[3];
    uint64_t sample[5];
    arena_get(&act, token, d->token, sizeof token), arena_get(&act, start, d->start, sizeof start);
    arena_get(&act, sample, d->row_sample, sizeof sample);
    assert_memory_equal(token, ids, sizeof ids);
    assert_true(start[0] == 0 && start[1] == 3 && start[2] == 5 && sample[2] == 11 && sample[3] == 12);
    arena_close(&act);
    assert_int_equal(arena_open(&act, "act", 1 << 16), 0);
    t = tape_begin(&k, &act, &act, &host, true, false);
    assert_ptr_equal(tape_batch(&t, &b), &b);
    assert_ptr_equal(tape_put(&t, ids, sizeof ids), ids);
    t.type = BF16; /* values of two bytes, sums and gradients of four */
    size_t used = act.used;
    tensor *x = tape_tensor(&t, 64, 1, true);
    assert_true(act.used - used == 128 && x->val.type == BF16);
    used = act.used;
    assert_true(tape_grad(&t, x).type == F32 && act.used - used == 256);
    assert_true(mat_cols(x->val, 0, 1).data == x->val.data && mat_rows(x->val, 3, 1).data == (char *)x->val.data + 6);
    arena_close(&act), arena_close(&host);
    batch_close(&b);
}

/* ---- shared objects ---- */

static void said(const char *what) {
    if (!strstr(fail_text(), what)) fail_msg("expected '%s' in: %s", what, fail_text());
    assert_int_equal(fail_code(), EXIT_USAGE);
    fail_clear();
}

/* peft_NAME.so in the folder above this program's, from a line of C */
static void compile(const char *name, const char *source, char *path, size_t size) {
    char exe[4096], command[9000];
    ssize_t n = readlink("/proc/self/exe", exe, sizeof exe - 1);
    assert_true(n > 0);
    exe[n] = 0;
    strrchr(exe, '/')[0] = 0;
    snprintf(path, size, "%s/../peft_%s.so", exe, name);
    snprintf(command, sizeof command, "echo '%s' | ${CC:-cc} -shared -fPIC -x c -o '%s' -", source, path);
    assert_int_equal(system(command), 0);
}

static void test_plugins(void **state) {
    (void)state;
    char path[4200];
    assert_true(backend_is_device("cuda") && backend_is_device("emu") && !backend_is_device("avx2"));
    assert_null(plugin_open("nowhere"));
    said("there is no peft_nowhere.so");
    compile("hollow", "int nothing;", path, sizeof path);
    assert_null(plugin_open("hollow"));
    said("undefined symbol: peft_plugin");
    unlink(path);
    compile(
        "stale",
        "#include <stddef.h>\nstatic const size_t n[] = {1};"
        "const struct { const char *rows; const size_t *sizes; size_t n; const void *be; } peft_plugin = {\"\", n, 1, n};",
        path, sizeof path);
    assert_null(plugin_open("stale"));
    said("was built from other sources than this program: make stale");
    unlink(path);
}

/* Where the toolkit is but no GPU, as on a machine that builds this, the refusal says so. */
static void test_no_device(void **state) {
    (void)state;
    kctx k;
    const backend *be = backend_open("cuda");
    if (!be) {
        said("peft_cuda.so");
        return;
    }
    if (!kctx_open(&k, be, 1)) {
        kctx_close(&k);
        return;
    }
    assert_non_null(strstr(fail_text(), "backend 'cuda'"));
    assert_int_equal(fail_code(), EXIT_DEVICE);
    fail_clear();
    kctx_close(&k);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_arena), cmocka_unit_test(test_shared),
                                       cmocka_unit_test(test_batch), cmocka_unit_test(test_plugins),
                                       cmocka_unit_test(test_no_device)};
    return cmocka_run_group_tests_name("device", tests, NULL, NULL);
}
