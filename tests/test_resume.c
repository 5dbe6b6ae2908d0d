/* Runs that are stopped, killed or denied, and go on: the adapter and the metrics of every one of them are those of the
 * run that was left alone, to the bit. KILLS=N in the environment sets how many kills, FAULTS=N every how many calls
 * one fails. */
#include "tests/recorder.h"
#include "tests/scratch.h"

#include "train_log.h"
#include "train_state.h"
struct dataset;
static void counted_batch(const dataset *ds, int i, batch *b);
static void counted_eval_batch(const dataset *ds, int i, batch *b);
int unused_main(int argc, char **argv);
#define main unused_main
#define dataset_batch counted_batch
#define dataset_eval_batch counted_eval_batch
#include "../train.c"
#undef main
#undef dataset_batch
#undef dataset_eval_batch
#include "core/json.h"
#include "core/rng.h"

#include <setjmp.h>
#include <sys/wait.h>
#include <time.h>
#include <cmocka.h>

static long batches, stop_at; /* batches made so far; before which one SIGTERM comes, 0: never */

static void count(void) {
    if (++batches == stop_at) raise(SIGTERM);
}
static void counted_batch(const dataset *ds, int i, batch *b) {
    count();
    dataset_batch(ds, i, b);
}
static void counted_eval_batch(const dataset *ds, int i, batch *b) {
    count();
    dataset_eval_batch(ds, i, b);
}

/* epochs of several steps, an accumulation that an epoch's end cuts short, dropout, packing, shuffling, evaluation */
static const char yaml_text[] =
    "base_model: tests/golden/tiny_llama\nlora_r: 4\nlora_alpha: 8\nlora_dropout: 0.1\nlora_target_modules: [q_proj, "
    "down_proj]\ndatasets:\n  - path: tests/golden/tiny_train/rows.jsonl\n    type: tokenized\n"
    "val_set_size: 12\nsample_packing: true\nsequence_len: 128\nmicro_batch_size: 1\n"
    "gradient_accumulation_steps: 3\nlearning_rate: 1e-2\nwarmup_steps: 2\nmax_steps: 7\neval_steps: 3\n"
    "save_steps: 2\nsave_total_limit: 2\nthreads: 1\n";

static int run_in(const char *name, const char *overrides) {
    char yaml[128], out[128], log[128], text[512];
    char *argv[32] = {"train", yaml, out};
    int argc = 3;
    snprintf(yaml, sizeof yaml, "%s/train.yaml", dir), snprintf(out, sizeof out, "--output_dir=%s/%s", dir, name);
    snprintf(log, sizeof log, "%s/log", dir), snprintf(text, sizeof text, "%s", overrides);
    argc = add_words(argv, argc, text);
    capture c = capture_begin(log, O_APPEND);
    fail_clear();
    batches = 0;
    int code = train_main(argc, argv);
    capture_end(&c);
    return code;
}

enum { NOT_REACHED = 100 }; /* the call that should have failed never came */

/* A fresh process, as a program that is started again is. */
static int run_child(const char *name, const char *overrides, long at, void (*prepare)(void)) {
    fflush(NULL);
    pid_t child = fork();
    if (!child) {
        stop_at = at;
        if (prepare) prepare();
        int code = run_in(name, overrides);
        _exit(rec.at && rec.seen < rec.at ? NOT_REACHED : code);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    return WIFSIGNALED(status) ? -WTERMSIG(status) : WEXITSTATUS(status);
}

static char *read_file(const char *name, const char *file, size_t *n) {
    char path[192];
    snprintf(path, sizeof path, "%s/%s%s%s", dir, name, *file ? "/" : "", file);
    char *text = file_text(path, n);
    if (!text) fail_msg("%s", fail_text());
    return text;
}

/* metrics.jsonl without what depends on the clock and the machine */
static char *read_metrics(const char *name) {
    static const char *const vary[] = {"tokens_per_second", "peak_rss_bytes"};
    size_t n;
    char *text = read_file(name, "metrics.jsonl", &n), *out = xstrdup("");
    for (char *line = text, *end; (end = strchr(line, '\n')); line = end + 1) {
        json_t *row = json_parse("metrics", line, (size_t)(end - line), 0);
        if (!row) fail_msg("%s", fail_text());
        for (int i = 0; i < 2; i++) json_object_del(row, vary[i]);
        char *made = json_dumps(row, JSON_REAL_PRECISION(17)), *more = xprintf("%s%s\n", out, made);
        free(made), free(out), json_decref(row);
        out = more;
    }
    free(text);
    return out;
}

static char *good_adapter, *good_metrics;
static size_t good_n;

static void compare(const char *name) {
    size_t n;
    char *adapter = read_file(name, ADAPTER_FILE, &n), *metrics = read_metrics(name);
    assert_int_equal(n, good_n);
    assert_memory_equal(adapter, good_adapter, n);
    assert_string_equal(metrics, good_metrics);
    free(adapter), free(metrics);
}

static void clear(const char *name) {
    char command[160];
    snprintf(command, sizeof command, "rm -rf '%s/%s' '%s/%s'.*", dir, name, dir, name);
    assert_int_equal(system(command), 0);
}

static int set_up(void **state) {
    (void)state;
    snprintf(dir, sizeof dir, "%s/test_resume.XXXXXX", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
    if (!mkdtemp(dir)) return -1;
    char path[96];
    snprintf(path, sizeof path, "%s/train.yaml", dir);
    if (file_save(path, yaml_text, sizeof yaml_text - 1) || run_child("good", "", 0, NULL)) return -1;
    good_adapter = read_file("good", ADAPTER_FILE, &good_n), good_metrics = read_metrics("good");
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    char command[96];
    free(good_adapter), free(good_metrics);
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return system(command);
}

/* P3, F8: stopped before every batch in turn, of training and of evaluations; on a second thread, another instruction
 * set */
static void stopped_anywhere(void **state) {
    (void)state;
    static const char *const again[] = {"", " --threads=2", " --backend=ref", " --gradient_checkpointing=true"};
    for (long at = 1;; at++) {
        clear("stopped");
        int code = run_child("stopped", "", at, NULL);
        if (!code) break;
        assert_int_equal(code, EXIT_STOPPED);
        char *line = xprintf("--resume_from_checkpoint=auto%s", again[at % 4]);
        if (run_child("stopped", line, 0, NULL)) fail_msg("stopped before batch %ld: see %s/log", at, dir);
        free(line);
        compare("stopped");
    }
}

/* stopped again and again, a batch or two further each time */
static void stopped_often(void **state) {
    (void)state;
    int code = EXIT_STOPPED, times = 0;
    for (; code == EXIT_STOPPED; times++)
        code = run_child("often", "--resume_from_checkpoint=auto", 2 + times % 2, NULL);
    assert_int_equal(code, 0);
    assert_true(times > 10);
    compare("often");
}

static void eight_bits(void **state) {
    (void)state;
    assert_int_equal(run_child("bits", "--optimizer=adamw_8bit --lora_r=64", 0, NULL), 0);
    assert_int_equal(run_child("bits2", "--optimizer=adamw_8bit --lora_r=64", 11, NULL), EXIT_STOPPED);
    assert_int_equal(run_child("bits2", "--optimizer=adamw_8bit --lora_r=64 --resume_from_checkpoint=auto", 0, NULL),
                     0);
    size_t n, m;
    char *a = read_file("bits", ADAPTER_FILE, &n), *b = read_file("bits2", ADAPTER_FILE, &m);
    assert_int_equal(n, m);
    assert_memory_equal(a, b, n);
    free(a), free(b);
}

static long kill_seen;
static void kill_at(void) {
    char root[96];
    snprintf(root, sizeof root, "%s/killed", dir);
    rec_start(root);
    rec.kinds = ~0u, rec.at = kill_seen;
}

static unsigned kill_after;
static void kill_later(void) {
    timer_t timer;
    struct sigevent e = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGKILL};
    const struct itimerspec when = {.it_value = {0, (long)kill_after * 1000 + 1}};
    if (timer_create(CLOCK_MONOTONIC, &e, &timer) || timer_settime(timer, 0, &when, NULL)) abort();
}

/* F6: killed at random system calls of the output directory and at random times, until a run comes to its end */
static void f6_killed(void **state) {
    (void)state;
    long kills = 0, want = getenv("KILLS") ? atol(getenv("KILLS")) : 40;
    for (uint64_t n = 0; kills < want; clear("killed"))
        for (int code = -SIGKILL; code == -SIGKILL; n++) {
            kill_seen = 1 + (long)rng_below(7, STREAM_TEST, n, 120);
            kill_after = (unsigned)rng_below(8, STREAM_TEST, n, 60000);
            code = run_child("killed", "--resume_from_checkpoint=auto", 0, n % 2 ? kill_later : kill_at);
            kills += code == -SIGKILL;
            if (code == NOT_REACHED) code = 0;
            if (code && code != -SIGKILL) fail_msg("exit %d after %ld kills: see %s/log", code, kills, dir);
            if (!code) compare("killed");
        }
    print_message("%ld kills, 0 lost, 0 differing\n", kills);
}

static void fault_at(void) {
    char root[96];
    snprintf(root, sizeof root, "%s/faulty", dir);
    rec_start(root);
    rec.kinds = 1 << REC_CREATE | 1 << REC_WRITE | 1 << REC_FSYNC | 1 << REC_RENAME | 1 << REC_MKDIR;
    rec.at = kill_seen, rec.error = kill_seen % 2 ? ENOSPC : EIO;
}

/* F1, F3, F4: a call that fails ends the run with 4 and one line; what was saved stands, and the run goes on from there
 */
static void f1_faults(void **state) {
    (void)state;
    long every = getenv("FAULTS") ? atol(getenv("FAULTS")) : 9, failed = 0;
    for (kill_seen = 1;; kill_seen += every) {
        clear("faulty");
        int code = run_child("faulty", "", 0, fault_at);
        if (code == NOT_REACHED) break;
        if (code && code != EXIT_IO) fail_msg("exit %d with the %ldth call failing: see %s/log", code, kill_seen, dir);
        if (code) assert_int_equal(run_child("faulty", "--resume_from_checkpoint=auto", 0, NULL), 0);
        compare("faulty"); /* a call may also be one that can be done without */
        failed += code != 0;
    }
    assert_true(failed > 5);
    print_message("%ld faults injected, 0 lost, 0 differing\n", failed);
}

/* The run must end with this code, and its one line hold these words. */
static void expect(const char *name, const char *overrides, int code, const char *words) {
    char path[96];
    size_t n;
    snprintf(path, sizeof path, "%s/log", dir);
    unlink(path);
    int found = run_child(name, overrides, 0, NULL);
    char *log = read_file("log", "", &n);
    if (found != code || !strstr(log, words)) fail_msg("exit %d: %s; expected %d: %s", found, log, code, words);
    free(log);
}

/* The rows again, the last one left out. */
static void fewer_rows(char *override, size_t size) {
    file_map m;
    char path[96];
    assert_int_equal(file_open(&m, "tests/golden/tiny_train/rows.jsonl"), 0);
    size_t n = m.size - 1;
    while (m.data[n - 1] != '\n') n--;
    snprintf(path, sizeof path, "%s/fewer.jsonl", dir);
    assert_int_equal(file_save(path, m.data, n), 0);
    snprintf(override, size, "--resume_from_checkpoint=auto --datasets=[{\"path\":\"%s\",\"type\":\"tokenized\"}]",
             path);
    file_close(&m);
}

/* F12 - F17 and D15 */
static void refusals(void **state) {
    (void)state;
    char path[160], line[256];
    assert_int_equal(run_child("held", "", 9, NULL), EXIT_STOPPED);
    expect("held", "", EXIT_LOCKED, "holds the checkpoints of an earlier run");
    expect("held", "--resume_from_checkpoint=auto --learning_rate=1e-3 --lora_r=8", EXIT_USAGE,
           "lora_r: 4, now 8; learning_rate: 0.01, now 0.001; set them back");
    fewer_rows(line, sizeof line);
    expect("held", line, EXIT_INPUT, "had other rows");
    expect("held", "--resume_from_checkpoint=/nowhere", EXIT_INPUT, "/nowhere: no MANIFEST");
    snprintf(path, sizeof path, "%s/held", dir);
    output_lock l;
    pid_t child = fork();
    if (!child) {
        if (output_lock_take(&l, path)) _exit(1);
        for (;;) pause();
    }
    snprintf(path, sizeof path, "%s/held/.lock", dir);
    struct timespec nap = {0, 10000000};
    for (file_map m = {0}; !m.size; nanosleep(&nap, NULL)) {
        if (file_open(&m, path)) fail_clear();
        if (m.size) {
            file_close(&m);
            break;
        }
        file_close(&m);
    }
    expect("held", "--resume_from_checkpoint=auto", EXIT_LOCKED, "in use by process ");
    kill(child, SIGKILL);
    waitpid(child, NULL, 0);
    /* the newest one damaged: the one before it serves; all of them: refused */
    checkpoint_list all;
    snprintf(path, sizeof path, "%s/held", dir);
    assert_int_equal(checkpoint_find(&all, path), 0);
    assert_true(all.n >= 2);
    for (int i = 0; i < all.n; i++) {
        char *broken = path_join(all.item[i].path, "optimizer.safetensors");
        assert_int_equal(truncate(broken, 50), 0);
        free(broken);
        if (!i) {
            assert_int_equal(run_child("held", "--resume_from_checkpoint=auto", 2, NULL), EXIT_STOPPED);
            assert_int_equal(checkpoint_verify(all.item[1].path), 0);
        }
    }
    checkpoint_list_free(&all);
    assert_int_equal(run_child("held", "--overwrite_output_dir=true", 0, NULL), 0);
    compare("held");
    snprintf(path, sizeof path, "%s/held.1/metrics.jsonl", dir);
    assert_true(path_exists(path));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(stopped_anywhere), cmocka_unit_test(stopped_often), cmocka_unit_test(eight_bits),
        cmocka_unit_test(f6_killed),        cmocka_unit_test(f1_faults),     cmocka_unit_test(refusals),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
