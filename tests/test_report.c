/* What a run leaves for people and other programs: TensorBoard's records, the page, joules. */
#include "core/arena.h"
#include "core/energy.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "core/tfevents.h"
#include "train_report.h"

#include <dirent.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[64];

static int set_up(void **state) {
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/test_report.XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int tear_down(void **state) {
    (void)state;
    char command[96];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return system(command);
}

static void save(const char *sub, const char *name, const char *text) {
    char *at = path_join(dir, sub), *path = path_join(at, name);
    assert_int_equal(path_make_dirs(at), 0);
    assert_int_equal(file_save(path, text, strlen(text)), 0);
    free(at), free(path);
}

/* RFC 3720, B.4, and the check value of the catalogue of CRC algorithms */
static void crc(void **state) {
    (void)state;
    uint8_t bytes[32] = {0};
    assert_int_equal(crc32c("123456789", 9), 0xe3069283u);
    assert_int_equal(crc32c(bytes, 32), 0x8a9136aau);
    memset(bytes, 0xff, 32);
    assert_int_equal(crc32c(bytes, 32), 0x62a8ab43u);
    for (int i = 0; i < 32; i++) bytes[i] = (uint8_t)i;
    assert_int_equal(crc32c(bytes, 32), 0x46dd794eu);
}

static uint32_t masked(const void *p, size_t n) {
    uint32_t c = crc32c(p, n);
    return (c >> 15 | c << 17) + 0xa282ead8u;
}

/* Each record's sums, and the bytes of an event with a step of two bytes */
static void records(void **state) {
    (void)state;
    tfevents e;
    assert_int_equal(tfevents_open(&e, dir), 0);
    tfevents_add(&e, 300, (const tf_scalar[]){{"a/b", 1.5f}, {"c", -2}}, 2);
    tfevents_close(&e);
    tfevents_add(&e, 301, (const tf_scalar[]){{"closed", 0}}, 1);
    DIR *d = opendir(dir);
    struct dirent *entry;
    while ((entry = readdir(d)) && strncmp(entry->d_name, "events.out.tfevents.", 20)) {}
    assert_non_null(entry);
    char *path = path_join(dir, entry->d_name);
    closedir(d);
    file_map m;
    assert_int_equal(file_open(&m, path), 0);
    static const uint8_t second[] = {0x10, 0xac, 0x02, 0x2a, 0x16, 0x0a, 0x0a, 0x0a, 3,    'a', '/', 'b', 0x15, 0,
                                     0,    0xc0, 0x3f, 0x0a, 0x08, 0x0a, 1,    'c',  0x15, 0,   0,   0,   0xc0};
    int n = 0;
    for (const uint8_t *p = m.data; p < m.data + m.size; n++) {
        uint64_t size;
        uint32_t sum[2];
        memcpy(&size, p, 8), memcpy(&sum[0], p + 8, 4), memcpy(&sum[1], p + 12 + size, 4);
        assert_int_equal(sum[0], masked(&size, 8));
        assert_int_equal(sum[1], masked(p + 12, (size_t)size));
        assert_int_equal(p[12], 0x09); /* wall_time, eight bytes */
        if (!n)
            assert_memory_equal(p + 21,
                                "\x1a\x0d"
                                "brain.Event:2",
                                15);
        if (n) assert_memory_equal(p + 21, second, sizeof second);
        if (n) assert_int_equal(size, 9 + sizeof second);
        p += 16 + size;
    }
    assert_int_equal(n, 2);
    file_close(&m);
    free(path);
}

static void page(void **state) {
    (void)state;
    save("one", "metrics.jsonl",
         "{\"step\": 1, \"loss\": 2.5}\n{\"step\": 2, \"eval_loss\": 2.25}\n{\"step\": 3, \"lo");
    save("one", "config.yaml", "base_model: '</script><!-- x'\n");
    save("two", "metrics.jsonl", "");
    char *path = path_join(dir, "report.html"), *one = path_join(dir, "one"), *two = path_join(dir, "two");
    const char *dirs[] = {one, two};
    if (train_report(dirs, 2, path)) fail_msg("%s", fail_text());
    file_map m;
    assert_int_equal(file_open(&m, path), 0);
    char *text = xcalloc(m.size + 1, 1), *data;
    memcpy(text, m.data, m.size);
    file_close(&m);
    assert_non_null(data = strstr(text, "<script id=\"data\" type=\"application/json\">"));
    data = strchr(data, '>') + 1;
    char *end = strstr(data, "</script>"); /* nothing in the data ends the element */
    json_t *runs = json_parse("page", data, (size_t)(end - data), 0);
    if (!runs) fail_msg("%s", fail_text());
    const json_t *run = json_array_get(runs, 0), *rows = json_object_get(run, "rows");
    assert_int_equal(json_array_size(runs), 2);
    assert_int_equal(json_array_size(rows), 2); /* the broken line is left out */
    assert_string_equal(json_string_value(json_object_get(run, "config")), "base_model: '</script><!-- x'\n");
    assert_null(strstr(text, "http://") && strstr(strstr(text, "http://") + 1, "http://") ? text
                                                                                          : NULL); /* but SVG's name */
    assert_null(strstr(text, "https://"));
    dirs[1] = dir;
    unlink(path);
    assert_int_equal(train_report(dirs, 2, path), -1);
    assert_int_equal(fail_code(), EXIT_INPUT);
    assert_non_null(strstr(fail_text(), "no metrics.jsonl"));
    fail_clear();
    assert_false(path_exists(path));
    json_decref(runs);
    free(text), free(path), free(one), free(two);
}

/* two packages, one counter that begins again */
static void joules(void **state) {
    (void)state;
    energy e;
    energy_open(&e, dir);
    assert_true(isnan(energy_joules(&e)));
    save("intel-rapl:0", "energy_uj", "9000000\n"), save("intel-rapl:0", "max_energy_range_uj", "10000000\n");
    save("intel-rapl:1", "energy_uj", "0\n"), save("intel-rapl:1", "max_energy_range_uj", "10000000\n");
    energy_open(&e, dir);
    assert_int_equal(e.n, 2);
    save("intel-rapl:0", "energy_uj", "1000000\n"), save("intel-rapl:1", "energy_uj", "500000\n");
    assert_float_equal(energy_joules(&e), 2.5, 1e-9);
    save("intel-rapl:1", "energy_uj", "1500000\n");
    assert_float_equal(energy_joules(&e), 3.5, 1e-9);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(crc), cmocka_unit_test(records), cmocka_unit_test(page),
                                       cmocka_unit_test(joules)};
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
