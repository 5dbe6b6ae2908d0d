/* ./train --plan against the run that it speaks of: what is planned is what is allocated, from headers or from
 * config.json alone, and what is said to fit fits while one more does not. */
#include "train_log.h"
int unused_main(int argc, char **argv);
#define main unused_main
#include "../train.c"
#undef main
#include "core/json.h"
#include "kernels/device.h"
#include "tests/scratch.h"

#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <unistd.h>
#include <cmocka.h>

#define MODEL "tests/golden/tiny_llama"

static const char base_yaml[] = "adapter: qlora\nlora_r: 4\nlora_alpha: 8\nlora_target_linear: true\n"
                                "sequence_len: 64\nmicro_batch_size: 2\nsample_packing: true\n";

/* DIR/NAME.yaml */
static char *write_config(const char *name, const char *model, const char *rows) {
    char *path = xprintf("%s/%s.yaml", dir, name);
    char *text = xprintf("base_model: %s\ndatasets:\n  - path: %s\n    type: tokenized\n%s", model, rows, base_yaml);
    assert_int_equal(file_save(path, text, strlen(text)), 0);
    free(text);
    return path;
}

/* stdout of train_main on yaml with space-separated arguments; heap */
static char *output(int want_code, const char *yaml, const char *arguments) {
    char text[512], *argv[24] = {"train", (char *)(uintptr_t)yaml};
    char *out = xprintf("%s/out", dir);
    int argc = 2;
    snprintf(text, sizeof text, "%s", arguments);
    argc = add_words(argv, argc, text);
    capture c = capture_begin(out, O_TRUNC);
    fail_clear();
    int code = train_main(argc, argv);
    capture_end(&c);
    char *said = file_text(out, NULL);
    assert_non_null(said);
    free(out);
    if (code != want_code) fail_msg("%s: exit %d, expected %d: %s", arguments, code, want_code, said);
    return said;
}

static json_t *plan(const char *yaml, const char *arguments) {
    char *all = xprintf("--plan --json %s", arguments), *said = output(0, yaml, all);
    json_t *o = json_parse("plan", said, strlen(said), 0);
    if (!o) fail_msg("%s", said);
    free(all), free(said);
    return o;
}

static int64_t number(const json_t *o, const char *key) {
    const json_t *v = json_object_get(o, key);
    if (!json_is_integer(v)) fail_msg("no number '%s'", key);
    return json_integer_value(v);
}

static void check_sum(const json_t *o) {
    static const char *const aside[] = {"layer", "pinned"}; /* a part of layers; of the host */
    int64_t sum = 0;
    const char *key;
    json_t *v, *bytes = json_object_get(o, "bytes");
    json_object_foreach(bytes, key, v) sum += json_integer_value(v);
    for (int i = 0; i < 2; i++) sum -= number(bytes, aside[i]);
    assert_int_equal(sum, number(o, "device_bytes"));
}

/* 40 rows of 63 tokens: a bin of 64 holds one, which the plan without data takes to be full */
static char *write_rows(void) {
    char *path = xprintf("%s/rows.jsonl", dir);
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    for (int r = 0; r < 40; r++) {
        fprintf(f, "{\"input_ids\": [%d", r);
        for (int i = 1; i < 64; i++) fprintf(f, ", %d", (r + i) % 320);
        fprintf(f, "], \"labels\": [0");
        for (int i = 1; i < 64; i++) fprintf(f, ", %d", (r + i) % 320);
        fprintf(f, "]}\n");
    }
    assert_int_equal(fclose(f), 0);
    return path;
}

static void same_as_run(const char *yaml, const char *overrides, bool device) {
    trainer t = {.lock = {-1}};
    const char *args[4] = {0};
    char text[256], *log = xprintf("%s/log", dir);
    int n = 0;
    snprintf(text, sizeof text, "%s", overrides);
    for (char *p = strtok(text, " "); p; p = strtok(NULL, " ")) args[n++] = p + 2;
    json_t *o = plan(yaml, overrides);
    check_sum(o);
    fflush(NULL);
    int kept = dup(1), fd = open(log, O_CREAT | O_WRONLY | O_TRUNC, 0600);
    dup2(fd, 1);
    int bad = config_open(&t.cfg, yaml, args, n) || comm_begin(&t.world) || open_trainer(&t);
    fflush(NULL);
    dup2(kept, 1), close(kept), close(fd);
    if (bad) fail_msg("%s", fail_text());
    const json_t *bytes = json_object_get(o, "bytes");
    const session *s = &t.s;
    int64_t arenas = (int64_t)(s->run.size + s->act.size + s->tmp.size + s->k.scratch_bytes);
    arenas += s->half && !s->k.mem ? (int64_t)s->window.size : 0; /* an arena of nothing still has a line */
    assert_int_equal(number(o, "device_bytes") - number(bytes, "mapped") - number(bytes, "workspace") -
                         number(bytes, "context"),
                     arenas);
    assert_int_equal(number(bytes, "adapter"), t.s.ad.n * 4);
    assert_true(device == (number(bytes, "mapped") == 0));
    json_decref(o);
    close_trainer(&t);
    free(log);
}

static void test_run(void **state) {
    (void)state;
    char *rows = write_rows(), *yaml = write_config("run", MODEL, rows);
    same_as_run(yaml, "--threads=2", false);
    same_as_run(yaml, "--threads=1 --gradient_checkpointing=true --load_in_4bit=true", false);
    same_as_run(yaml, "--threads=1 --activation_dtype=bf16 --optimizer=adamw_8bit", false);
    free(rows), free(yaml);
}

/* config.json alone gives what the headers give, and neither data nor a device need be there. */
static void test_alone(void **state) {
    (void)state;
    char *yaml = write_config("here", MODEL, "/nowhere/rows.jsonl"), *bare = xprintf("%s/bare", dir);
    char *alone = write_config("alone", bare, "/nowhere/rows.jsonl");
    char *copy = xprintf("mkdir %s && cp " MODEL "/config.json %s", bare, bare);
    assert_int_equal(system(copy), 0);
    static const char *const arguments[] = {"--backend=cuda", "--threads=2", "--backend=cuda --activation_dtype=f32"};
    for (int i = 0; i < 3; i++) {
        json_t *a = plan(yaml, arguments[i]), *b = plan(alone, arguments[i]);
        assert_true(json_is_true(json_object_get(b, "weights_assumed")) &&
                    json_is_false(json_object_get(a, "weights_assumed")));
        assert_int_equal(number(a, "device_bytes"), number(b, "device_bytes"));
        check_sum(a);
        json_decref(a), json_decref(b);
    }
    json_t *o = plan(alone, "--backend=cuda");
    const json_t *bytes = json_object_get(o, "bytes");
    assert_true(number(bytes, "kernels") == (int64_t)DEVICE_SCRATCH && number(bytes, "context") > 0 &&
                number(bytes, "workspace") == (int64_t)DEVICE_WORKSPACE && number(bytes, "mapped") == 0);
    json_decref(o);
    char *said = output(EXIT_USAGE, alone, ""); /* a run needs its files */
    free(said);
    said = output(EXIT_USAGE, alone, "--json");
    free(said), free(yaml), free(bare), free(alone), free(copy);
}

static int64_t planned(const char *yaml, int64_t length, int64_t batch) {
    char *arguments = xprintf("--backend=cuda --sequence_len=%ld --micro_batch_size=%ld", (long)length, (long)batch);
    json_t *o = plan(yaml, arguments);
    int64_t n = number(o, "device_bytes");
    json_decref(o);
    free(arguments);
    return n;
}

static void test_largest(void **state) {
    (void)state;
    char *yaml = write_config("limit", MODEL, "/nowhere/rows.jsonl");
    int64_t limit = planned(yaml, 100, 2) + 1;
    char *arguments = xprintf("--backend=cuda --memory_limit=%ld", (long)limit);
    json_t *o = plan(yaml, arguments);
    assert_true(json_is_true(json_object_get(o, "fits")));
    int64_t length = number(o, "largest_sequence_len"), batch = number(o, "largest_micro_batch_size");
    assert_true(length >= 100 && batch >= 3); /* 2 x 100 and 3 x 64 tokens */
    assert_true(planned(yaml, length, 2) <= limit && planned(yaml, length + 1, 2) > limit);
    assert_true(planned(yaml, 64, batch) <= limit && planned(yaml, 64, batch + 1) > limit);
    json_decref(o);
    o = plan(yaml, "--backend=cuda --memory_limit=1MB");
    assert_true(json_is_false(json_object_get(o, "fits")));
    assert_true(number(o, "largest_sequence_len") == 0 && number(o, "largest_micro_batch_size") == 0);
    json_decref(o);
    free(yaml), free(arguments);
}

/* A run that would not fit ends before it has written anything. */
static void test_limit(void **state) {
    (void)state;
    char *rows = write_rows(), *yaml = write_config("refused", MODEL, rows), *out = xprintf("%s/out-dir", dir);
    char *arguments = xprintf("--memory_limit=1MB --output_dir=%s", out);
    char *said = output(EXIT_MEMORY, yaml, arguments);
    assert_non_null(strstr(said, "key 'memory_limit': the run needs"));
    assert_false(path_exists(out));
    free(rows), free(yaml), free(out), free(arguments), free(said);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_run), cmocka_unit_test(test_alone),
                                       cmocka_unit_test(test_largest), cmocka_unit_test(test_limit)};
    return cmocka_run_group_tests_name("plan", tests, make_dir, remove_dir);
}
