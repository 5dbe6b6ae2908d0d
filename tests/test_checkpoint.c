/* Checkpoints: what is saved is found, damage of any byte is seen, and no fault, kill or crash loses one that was
 * acknowledged. */
#include "tests/crash_model.h"

#include "core/arena.h"
#include "core/checkpoint.h"
#include "core/error.h"
#include "core/file.h"

#include <setjmp.h>
#include <sys/wait.h>

#include <cmocka.h>

static char dir[64], out[80];

/* The content says which step it belongs to. */
static int save(long step) {
    checkpoint c;
    char text[512];
    if (checkpoint_begin(&c, out, step, 0)) return -1;
    for (int i = 0; i < 3; i++) {
        char name[16];
        snprintf(name, sizeof name, "file%d", i), snprintf(text, sizeof text, "%400ld of %d", step, i);
        char *path = path_join(c.tmp, name);
        int bad = file_save(path, text, strlen(text));
        free(path);
        if (bad) {
            checkpoint_abandon(&c);
            return -1;
        }
    }
    return checkpoint_commit(&c);
}

/* The newest whole one below `parent`; 0 when there is none. */
static long newest(const char *parent) {
    checkpoint_list l;
    long step = 0;
    if (checkpoint_find(&l, parent)) fail_msg("%s", fail_text());
    for (int i = 0; i < l.n && !step; i++)
        if (!checkpoint_verify(l.item[i].path)) step = l.item[i].step;
    fail_clear();
    checkpoint_list_free(&l);
    return step;
}

static int set_up(void **state) {
    (void)state;
    rec_start("");
    /* in memory where that is possible: what is asked here is the order of calls, not the disk */
    snprintf(dir, sizeof dir, "%s/test_checkpoint.XXXXXX", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    if (!mkdtemp(dir)) return -1;
    snprintf(out, sizeof out, "%s/out", dir);
    return path_make_dirs(out);
}

static int tear_down(void **state) {
    (void)state;
    char command[96];
    rec_start("");
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return system(command);
}

static void finds_and_rotates(void **state) {
    (void)state;
    static const long steps[] = {9, 10, 100, 2};
    for (int i = 0; i < 4; i++) assert_int_equal(save(steps[i]), 0);
    char *odd[] = {path_join(out, "checkpoint-7x"),        path_join(out, "checkpoint-"),
                   path_join(out, "checkpoint-07"),        path_join(out, "checkpoint-500"),
                   path_join(out, "checkpoint-600.tmp.1"), path_join(out, "checkpoint-1.trash.1")};
    for (int i = 0; i < 6; i++) assert_int_equal(path_make_dirs(odd[i]), 0);
    checkpoint_list l;
    assert_int_equal(checkpoint_find(&l, out), 0);
    assert_int_equal(l.n, 5);
    assert_int_equal(l.item[0].step, 500);
    assert_int_equal(l.item[1].step, 100), assert_int_equal(l.item[4].step, 2);
    checkpoint_list_free(&l);
    assert_int_equal(newest(out), 100); /* 500 has no manifest */
    assert_int_equal(checkpoint_rotate(out, 2), 0);
    assert_true(path_exists(odd[3]) && path_exists(odd[0])); /* not ours to remove */
    assert_int_equal(checkpoint_find(&l, out), 0);
    assert_int_equal(l.n, 3);
    assert_int_equal(l.item[2].step, 10);
    checkpoint_list_free(&l);
    assert_int_equal(checkpoint_sweep(out), 0);
    assert_false(path_exists(odd[4]) || path_exists(odd[5]));
    assert_true(path_exists(odd[0]));
    for (int i = 0; i < 6; i++) free(odd[i]);
}

/* Broken ones do not count: the last whole one is never removed. */
static void rotation_keeps_the_last_whole(void **state) {
    (void)state;
    assert_int_equal(save(1), 0), assert_int_equal(save(2), 0), assert_int_equal(save(3), 0);
    for (int i = 2; i <= 3; i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/checkpoint-%d/file1", out, i);
        assert_int_equal(truncate(path, 100), 0);
    }
    assert_int_equal(checkpoint_rotate(out, 1), 0);
    assert_int_equal(newest(out), 1);
}

/* Saving a step again replaces it in one exchange. */
static void saves_again(void **state) {
    (void)state;
    assert_int_equal(save(5), 0), assert_int_equal(save(5), 0);
    assert_int_equal(newest(out), 5);
    checkpoint_list l;
    assert_int_equal(checkpoint_find(&l, out), 0);
    assert_int_equal(l.n, 1);
    checkpoint_list_free(&l);
    DIR *d = opendir(out);
    int entries = 0;
    while (readdir(d)) entries++;
    closedir(d);
    assert_int_equal(entries, 3);
}

static const char *const files[] = {"file0", "file1", "file2", CHECKPOINT_MANIFEST};

static void patch(const char *path, const char *data, size_t n) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    fclose(f);
}

/* F11, F12: a bit of every byte, every length, a file gone, two files for one another */
static void f11_f12_damage(void **state) {
    (void)state;
    assert_int_equal(save(4), 0);
    char at[100];
    snprintf(at, sizeof at, "%s/checkpoint-4", out);
    for (int i = 0; i < 4; i++) {
        char *path = path_join(at, files[i]);
        file_map m;
        assert_int_equal(file_open(&m, path), 0);
        size_t n = (size_t)m.size;
        char *good = memcpy(malloc(n), m.data, n), *bad = malloc(n);
        file_close(&m);
        for (size_t k = 0; k < 2 * n; k++) {
            memcpy(bad, good, n);
            if (k < n) bad[k] = (char)(bad[k] ^ 1 << k % 8);
            patch(path, bad, k < n ? n : k - n); /* flipped, then cut short */
            assert_int_equal(checkpoint_verify(at), -1);
            assert_int_equal(fail_code(), EXIT_INPUT);
            assert_non_null(strstr(fail_text(), at));
            fail_clear();
        }
        unlink(path);
        assert_int_equal(checkpoint_verify(at), -1);
        fail_clear();
        patch(path, good, n);
        assert_int_equal(checkpoint_verify(at), 0);
        free(good), free(bad), free(path);
    }
    char *a = path_join(at, "file0"), *b = path_join(at, "file1");
    assert_int_equal(renameat2(AT_FDCWD, a, AT_FDCWD, b, 2), 0);
    assert_int_equal(checkpoint_verify(at), -1);
    fail_clear();
    free(a), free(b);
}

/* F1, F4: each call that changes the disk fails in turn, once or from then on. What was saved before stays, a save that
 * reports success is there, and one that fails leaves nothing that is taken for a checkpoint. */
static void f1_f4_faults(void **state) {
    (void)state;
    static const int errors[] = {ENOSPC, EIO, EDQUOT, EROFS};
    const unsigned kinds =
        1 << REC_CREATE | 1 << REC_WRITE | 1 << REC_FSYNC | 1 << REC_RENAME | 1 << REC_EXCHANGE | 1 << REC_MKDIR;
    int injected = 0;
    assert_int_equal(save(1), 0);
    for (int again = 0; again < 2; again++) /* a new step; one that stands there already */
        for (int e = 0; e < 8; e++)
            for (long at = 1;; at++) {
                if (again) assert_int_equal(save(2), 0);
                rec_start(out);
                rec.kinds = kinds, rec.at = at, rec.error = errors[e % 4], rec.sticky = e >= 4;
                int bad = save(2);
                bool fired = rec.seen >= at;
                rec_start("");
                if (bad) assert_int_equal(fail_code(), EXIT_IO);
                fail_clear();
                assert_int_equal(checkpoint_sweep(out), 0);
                assert_true(newest(out) == 2 || (bad && !again && newest(out) == 1));
                char *path = path_join(out, "checkpoint-2");
                if (path_exists(path)) assert_int_equal(checkpoint_verify(path), 0);
                free(path);
                if (!again) {
                    char command[160];
                    snprintf(command, sizeof command, "rm -rf '%s/checkpoint-2'", out);
                    assert_int_equal(system(command), 0);
                }
                if (!fired) {
                    assert_int_equal(bad, 0);
                    break;
                }
                injected++;
            }
    assert_true(injected > 200);
}

/* F6: killed at every call of saving and rotating. */
static void f6_kills(void **state) {
    (void)state;
    const unsigned kinds = ~0u;
    int kills = 0;
    for (long at = 1;; at++) {
        crash_clear_dir(out);
        int said[2], status;
        assert_int_equal(pipe(said), 0);
        pid_t child = fork();
        if (!child) {
            rec_start(out);
            rec.kinds = kinds, rec.at = at;
            for (long step = 1; step <= 4; step++) {
                if (save(step) || checkpoint_rotate(out, 2)) _exit(1);
                if (syscall(SYS_write, said[1], &step, sizeof step) != sizeof step) _exit(1);
            }
            _exit(0);
        }
        close(said[1]);
        long step, acked = 0;
        while (read(said[0], &step, sizeof step) == sizeof step) acked = step;
        close(said[0]);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(newest(out) >= acked);
        assert_int_equal(checkpoint_sweep(out), 0);
        assert_true(newest(out) >= acked);
        if (WIFEXITED(status)) {
            assert_int_equal(WEXITSTATUS(status), 0);
            break;
        }
        kills++;
    }
    assert_true(kills > 100);
}

static void check_state(const char *at, long acked) {
    if (newest(at) < acked) fail_msg("step %ld was acknowledged, %ld is the newest whole one", acked, newest(at));
}

/* F7: every state that a crash may leave of five saves, one of them again, with rotation. */
static void f7_crash_states(void **state) {
    (void)state;
    static const long steps[] = {1, 2, 3, 3, 4};
    char replay[80];
    rec_start(out);
    rec.recording = true;
    for (int i = 0; i < 5; i++) {
        assert_int_equal(save(steps[i]), 0);
        rec_ack(steps[i]);
        assert_int_equal(checkpoint_rotate(out, 2), 0);
    }
    rec.recording = false;
    assert_true(rec.n > 120 && rec.n < REC_OPS);
    snprintf(replay, sizeof replay, "%s/replay", dir);
    long states = crash_states(replay, check_state);
    print_message("%ld states after %d calls\n", states, rec.n);
    assert_true(states > 1000);
}

static void locks(void **state) {
    (void)state;
    output_lock a, b;
    assert_int_equal(output_lock_take(&a, out), 0);
    int status;
    pid_t child = fork();
    if (!child) {
        close(a.fd);
        int bad = output_lock_take(&b, out);
        _exit(bad && fail_code() == EXIT_LOCKED && strstr(fail_text(), "in use by process ") &&
                      strstr(fail_text(), " since ")
                  ? 0
                  : 1);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    output_lock_give(&a);
    child = fork();
    if (!child) _exit(output_lock_take(&b, out) ? 1 : 0); /* ends with the lock in its hand */
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(output_lock_take(&a, out), 0);
    output_lock_give(&a);
    assert_int_equal(output_room(out, 1), 0);
    assert_int_equal(output_room(out, UINT64_MAX / 2), -1);
    assert_int_equal(fail_code(), EXIT_IO);
    fail_clear();
}

int main(void) {
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(finds_and_rotates), TEST(rotation_keeps_the_last_whole),
        TEST(saves_again),       TEST(f11_f12_damage),
        TEST(f1_f4_faults),      TEST(f6_kills),
        TEST(f7_crash_states),   TEST(locks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
