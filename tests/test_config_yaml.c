/* The YAML below the configuration: scalar rules, the environment, bounds, damaged files, and the tree against PyYAML
 * (tests/golden/make_config.py). */
#include "tests/config_cases.h"

/* ---- scalars ---- */

static void test_reals(void **state) {
    (void)state;
    static const struct {
        const char *text, *wrong;
        double value;
    } cases[] = {{"2e-4", NULL, 2e-4},
                 {"1E5", NULL, 1e5},
                 {"+.5", NULL, 0.5},
                 {"5.", NULL, 5},
                 {"-0", NULL, 0},
                 {"0.1", NULL, 0.1},
                 {"1e-4x", "no number", 0},
                 {"inf", "no number", 0},
                 {".nan", "no number", 0},
                 {"1e999", "too large", 0},
                 {"0x10", "no number", 0},
                 {"1,5", "no number", 0},
                 {"1_000", "a number with underscores", 0},
                 {"1.5_0", "a number with underscores", 0},
                 {"010", "a number with a leading zero", 0},
                 {"e5", "no number", 0},
                 {"1e", "no number", 0},
                 {".", "no number", 0},
                 {"", "no number", 0},
                 {" 1", "no number", 0},
                 {"1 ", "no number", 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        double x = 0;
        const char *wrong = scalar_real(cases[i].text, &x);
        if (cases[i].wrong)
            assert_string_equal(wrong ? wrong : cases[i].text, cases[i].wrong);
        else
            assert_true(!wrong && x == cases[i].value);
    }
}

static void test_ints(void **state) {
    (void)state;
    static const struct {
        const char *text, *wrong;
        int64_t value;
    } cases[] = {{"0", NULL, 0},
                 {"-9223372036854775808", NULL, INT64_MIN},
                 {"9223372036854775807", NULL, INT64_MAX},
                 {"9223372036854775808", "more than 64 bits hold", 0},
                 {"-9223372036854775809", "more than 64 bits hold", 0},
                 {"99999999999999999999999", "more than 64 bits hold", 0},
                 {"4096.0", NULL, 4096},
                 {"2e3", NULL, 2000},
                 {"1.5", "no integer", 0},
                 {"1e-1", "no integer", 0},
                 {"1e17", "too large", 0},
                 {"0o17", "no number", 0},
                 {"1_000", "a number with underscores", 0},
                 {"017", "a number with a leading zero", 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t x = 0;
        const char *wrong = scalar_int(cases[i].text, &x);
        if (cases[i].wrong)
            assert_string_equal(wrong ? wrong : cases[i].text, cases[i].wrong);
        else
            assert_true(!wrong && x == cases[i].value);
    }
}

static void test_sizes(void **state) {
    (void)state;
    static const struct {
        const char *text, *wrong;
        int64_t value;
    } cases[] = {{"4GB", NULL, 4000000000},
                 {"4 GiB", NULL, 4294967296},
                 {"1.5KiB", NULL, 1536},
                 {"512", NULL, 512},
                 {"7B", NULL, 7},
                 {"2kB", NULL, 2000},
                 {"3MB", NULL, 3000000},
                 {"3MiB", NULL, 3145728},
                 {"1TB", NULL, 1000000000000},
                 {"4G", "an unknown unit", 0},
                 {"4Gb", "an unknown unit", 0},
                 {"GB", "no number", 0},
                 {"0.3B", "no whole number of bytes", 0},
                 {"9e18KB", "more than 64 bits hold", 0},
                 {"1_0GB", "a number with underscores", 0}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        int64_t x = 0;
        const char *wrong = scalar_size(cases[i].text, &x);
        if (cases[i].wrong)
            assert_string_equal(wrong ? wrong : cases[i].text, cases[i].wrong);
        else
            assert_true(!wrong && x == cases[i].value);
    }
}

static void test_booleans(void **state) {
    (void)state;
    bool b;
    assert_true(!scalar_bool("yEs", &b) && b && !scalar_bool("OFF", &b) && !b && scalar_bool("1", &b) &&
                scalar_bool("y", &b));
}

static void test_distance(void **state) {
    (void)state;
    static const struct {
        const char *a, *b;
        int d;
    } cases[] = {{"", "", 0},
                 {"a", "a", 0},
                 {"kitten", "sitting", 3},
                 {"ab", "ba", 1},
                 {"ca", "abc", 3}, /* alignment, not free */
                 {"lerning_rate", "learning_rate", 1},
                 {"LORA_R", "lora_r", 0},
                 {"abc", "xyzabc", 3},
                 {"abcdef", "uvwxyz", 4}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        assert_int_equal(edit_distance(cases[i].a, cases[i].b, 3), cases[i].d);
}

static void test_environment(void **state) {
    (void)state;
    config c;
    setenv("PEFT_TEST_DIR", "some/dir", 1);
    unsetenv("PEFT_TEST_UNSET");
    accepts(&c, BASE "output_dir: \"${PEFT_TEST_DIR}/x${PEFT_TEST_DIR}\"\nlora_target_modules: '${PEFT_TEST_UNSET}$'\n",
            NULL, 0, "");
    assert_string_equal(c.output_dir, "some/dir/xsome/dir");
    assert_string_equal(c.lora_target_modules.item[0], "${PEFT_TEST_UNSET}$");
    config_close(&c);
    accepts(&c, BASE "lora_target_modules: q{2}${3}$\n", NULL, 0, "");
    assert_string_equal(c.lora_target_modules.item[0], "q{2}${3}$");
    config_close(&c);
    refuses(BASE "output_dir: ${PEFT_TEST_UNSET}/x\n",
            "t.yaml:3:13: environment variable PEFT_TEST_UNSET is not set; set it, or write '${PEFT_TEST_UNSET}' in "
            "single quotes\n");
}

/* ---- files that are not what they should be ---- */

static void test_not_yaml(void **state) {
    (void)state;
    refuses("", "t.yaml: no keys: expected lines 'key: value'\n");
    refuses("# only a comment\n\n", "t.yaml: no keys: expected lines 'key: value'\n");
    refuses("---\n...\n", "t.yaml: no keys: expected lines 'key: value'\n");
    refuses("- a\n- b\n", "t.yaml:1:1: found a list, expected lines 'key: value'\n");
    refuses("hello\n", "t.yaml:1:1: found text, expected lines 'key: value'\n");
    refuses(BASE "---\nseed: 1\n", "t.yaml:3:1: a second document begins, expected one\n");
    refuses("datasets:\n\t- path: x\n", "t.yaml:2:1: found a tab in the indentation, expected spaces\n");
    refuses("a: [1, 2\nb: 3\n",
            "t.yaml:2:2: not YAML: did not find expected ',' or ']' (while parsing a flow sequence that "
            "begins on line 1)\n");
    refuses("seed: !!python/object:os.system 1\n",
            "t.yaml:1:7: found the tag tag:yaml.org,2002:python/object:os.system, expected a value without a tag\n");
    refuses("seed: !x\n  a: b\n", "t.yaml:1:7: found the tag !x, expected a value without a tag\n");
    refuses("? [a]\n: b\n", "t.yaml:1:3: found a list as a key, expected a name\n");
    refuses("seed: 1\nname: \xe4\n", "t.yaml:2:7: found byte 0xe4, which is not UTF-8; save the file as UTF-8\n");
    refuses("seed: \xed\xa0\x80\n", "t.yaml:1:7: found byte 0xed, which is not UTF-8; save the file as UTF-8\n");
    refuses("a\x1b[31m: 1\n", "t.yaml:1:1: not YAML: control characters are not allowed\n");
    refuses("\"a\\e[31m\": 1\nbase_model: m.gguf\n" DATA,
            "t.yaml:1:1: unknown key 'a\\x1b[31m'; --help lists the keys\n");
    refuses("output_dir: \"a\\0b\"\n", "t.yaml:1:13: found \\0 in a string, expected text\n");
    config c;
    char *out;
    assert_int_equal(open_bytes(&c, "seed: 1\0\n", 9, NULL, 0, &out), -1);
    assert_string_equal(out, "t.yaml:1:8: found a NUL byte, expected a text file\n");
    free(out);
    accepts(&c, "\xef\xbb\xbf" BASE, NULL, 0, "");
    config_close(&c);
    accepts(&c, "base_model: m.gguf\r\nseed: 7\r\ndatasets:\r\n- path: d.jsonl\r\n  type: alpaca\r\n", NULL, 0, "");
    assert_int_equal(c.seed, 7);
    assert_string_equal(c.base_model, "m.gguf");
    config_close(&c);
}

static char *repeat(const char *head, const char *s, size_t n, const char *tail) {
    char *text = xcalloc(strlen(head) + n * strlen(s) + strlen(tail) + 1, 1), *p = stpcpy(text, head);
    for (size_t i = 0; i < n; i++) p = stpcpy(p, s);
    stpcpy(p, tail);
    return text;
}

static void refuses_large(char *text, const char *problems) {
    clock_t begin = clock();
    refuses(text, problems);
    assert_true(clock() - begin < 2 * CLOCKS_PER_SEC);
    free(text);
}

static void test_bounds(void **state) {
    (void)state;
    refuses_large(repeat("a: ", "[", 100000, "\n"), "t.yaml:1:35: nested more than 32 deep\n");
    refuses_large(repeat("a: ", "[", 33, "]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]\n"),
                  "t.yaml:1:35: nested more than 32 deep\n");
    refuses_large(repeat("a: [", "1,", 20000, "]\n"),
                  "t.yaml:1:19995: more than 10000 values, expected a configuration\n");
    refuses_large(repeat("# ", "x", 1100000, "\n"), "t.yaml:1:1048578: a line of more than 1 MiB\n");
    refuses_large(repeat("", "# xxxxx\n", 600000, ""), "t.yaml: more than 4 MiB, expected a YAML configuration\n");
    char bomb[4096] = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n";
    for (int i = 1; i < 30; i++)
        sprintf(bomb + strlen(bomb), "a%d: &a%d [*a%d,*a%d,*a%d,*a%d,*a%d,*a%d]\n", i, i, i - 1, i - 1, i - 1, i - 1,
                i - 1, i - 1);
    refuses_large(xstrdup(bomb), "t.yaml:5:5: more than 10000 values, counting each alias in full\n");
    refuses("a: &a [*a]\n", "t.yaml:1:8: alias *a: no anchor &a ends before it\n");
    refuses("a: &a\n  b: {<<: *a}\n", "t.yaml:2:11: alias *a: no anchor &a ends before it\n");
    refuses("a: *b\n", "t.yaml:1:4: alias *b: no anchor &b ends before it\n");
    refuses("a: {<<: 3}\n", "t.yaml:1:9: merge key << found a scalar, expected an alias of a map, or a list of such\n");
    fail_clear();
    config c;
    char *said = NULL;
    size_t n;
    FILE *f = open_memstream(&said, &n);
    assert_int_equal(config_open_to(&c, "nowhere.yaml", NULL, 0, f), -1);
    assert_int_equal(config_open_to(&c, "/dev/null", NULL, 0, f), -1);
    assert_int_equal(config_open_to(&c, ".", NULL, 0, f), -1);
    fclose(f);
    fail_clear();
    assert_string_equal(said, "nowhere.yaml: cannot be opened: No such file or directory\n"
                              "/dev/null: found a device or pipe, expected a YAML file\n"
                              ".: found a directory, expected a YAML file\n");
    free(said);
}

static void test_merge(void **state) {
    (void)state;
    config c;
    accepts(&c,
            "shared: &shared\n  lora_r: 4\n  seed: &s 5\n  micro_batch_size: 2\n" /* a key that only holds an anchor */
            "<<: *shared\nlora_r: 8\nwarmup_steps: *s\n" MODEL
            "datasets:\n  - &d {path: d.jsonl, type: completion}\n  - <<: *d\n    field: body\n    path: e.jsonl\n",
            NULL, 0, "");
    assert_int_equal(c.lora_r, 8);
    assert_int_equal(c.seed, 5);
    assert_int_equal(c.micro_batch_size, 2);
    assert_int_equal(c.warmup_steps, 5);
    assert_int_equal(c.datasets.n, 2);
    assert_string_equal(c.datasets.item[1].type, "completion");
    assert_string_equal(c.datasets.item[1].path, "e.jsonl");
    config_close(&c);
    refuses("x: &x 0\nlora_r: *x\n" BASE, "t.yaml:2:9: lora_r: found '0', expected an integer in [1, 65536]\n");
    refuses("unused: &u {seed: 1}\n" BASE,
            "t.yaml:1:1: unknown key 'unused': keys are not nested here: write seed without indentation\n");
}

/* ---- the tree against PyYAML ---- */

static char *tree_yaml, *tree_text;
static size_t tree_yaml_n;

static int by_key(const void *a, const void *b) {
    return strcmp(((const yaml_pair *)a)->key->text, ((const yaml_pair *)b)->key->text);
}

static void dump(FILE *f, const yaml_node *v, const char *path) {
    if (v->kind == YAML_NODE_MAP) qsort(v->pair, (size_t)v->n, sizeof *v->pair, by_key);
    for (int i = 0; i < v->n; i++) {
        char *inner =
            v->kind == YAML_NODE_MAP ? xprintf("%s.%s", path, v->pair[i].key->text) : xprintf("%s[%d]", path, i);
        dump(f, v->pair[i].value, inner);
        free(inner);
    }
    if (v->kind != YAML_NODE_SCALAR) return;
    fprintf(f, "%s = ", path);
    for (const char *p = v->text; *p; p++) fprintf(f, "%02x", (unsigned char)*p);
    fputc('\n', f);
}

static void test_tree(void **state) {
    (void)state;
    problem_list problems = {0};
    yaml_doc d;
    char *text = NULL;
    size_t n;
    FILE *f = open_memstream(&text, &n);
    assert_int_equal(yaml_tree(&d, tree_yaml, tree_yaml_n, false, &problems), 0);
    dump(f, d.root, "");
    fclose(f);
    assert_string_equal(text, tree_text);
    free(text);
    yaml_tree_free(&d);
}

/* Whatever is cut off or flipped, there is an answer, and no crash. */
static void test_damage(void **state) {
    (void)state;
    FILE *null = fopen("/dev/null", "w");
    unsigned refused = 0;
    for (size_t i = 0; i < tree_yaml_n * 2; i++) {
        size_t n = i < tree_yaml_n ? i : tree_yaml_n;
        char *s = xcalloc(tree_yaml_n, 1);
        memcpy(s, tree_yaml, tree_yaml_n);
        if (i >= tree_yaml_n) s[i - tree_yaml_n] ^= (char)(1 << i % 8);
        problem_list problems = {0};
        yaml_doc d;
        int rc = yaml_tree(&d, s, n, false, &problems);
        assert_int_equal(rc != 0, rc != 0 && problems.errors > 0);
        refused += rc != 0;
        problem_print(&problems, null);
        problem_free(&problems);
        yaml_tree_free(&d);
        free(s);
    }
    assert_true(refused > 100);
    fclose(null);
}

int main(void) {
    size_t n;
    char dir[] = "/tmp/peft-test-config-yaml-XXXXXX";
    tree_yaml = read_text("tests/golden/config_tree.yaml", &tree_yaml_n);
    tree_text = read_text("tests/golden/config_tree.txt", &n);
    cases_begin(dir);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reals),    cmocka_unit_test(test_ints),     cmocka_unit_test(test_sizes),
        cmocka_unit_test(test_booleans), cmocka_unit_test(test_distance), cmocka_unit_test(test_environment),
        cmocka_unit_test(test_not_yaml), cmocka_unit_test(test_bounds),   cmocka_unit_test(test_merge),
        cmocka_unit_test(test_tree),     cmocka_unit_test(test_damage),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL) + cases_end(dir);
    free(tree_yaml), free(tree_text);
    return failed;
}
