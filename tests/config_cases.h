/* What the tests of the configuration share: a file t.yaml is written, opened, and what was said is compared in full.
 */
#ifndef PEFT_TESTS_CONFIG_CASES_H
#define PEFT_TESTS_CONFIG_CASES_H

#include "core/arena.h"
#include "core/config_names.h"
#include "core/error.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#define MODEL "base_model: m.gguf\n"
#define DATA "datasets:\n  - path: d.jsonl\n    type: alpaca\n"
#define BASE "base_model: m.gguf\ndatasets: [{path: d.jsonl, type: alpaca}]\n" /* 2 lines */

static inline char *read_text(const char *path, size_t *n) {
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    char *s = xcalloc(1 << 20, 1);
    *n = fread(s, 1, (1 << 20) - 1, f);
    fclose(f);
    return s;
}

static inline void write_text(const char *path, const char *text, size_t n) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(text, 1, n, f), n);
    fclose(f);
}

/* Opens t.yaml with `text`; *out gets what was said. */
static inline int open_bytes(config *c, const char *text, size_t n, const char *const *args, int n_args, char **out) {
    size_t size;
    *out = NULL;
    FILE *f = open_memstream(out, &size);
    write_text("t.yaml", text, n);
    fail_clear();
    int rc = config_open_to(c, "t.yaml", args, n_args, f);
    fclose(f);
    assert_int_equal(fail_code(), rc ? EXIT_USAGE : 0);
    fail_clear();
    return rc;
}

static inline void accepts(config *c, const char *text, const char *const *args, int n_args, const char *notes) {
    char *out;
    int rc = open_bytes(c, text, strlen(text), args, n_args, &out);
    assert_string_equal(out, notes);
    assert_int_equal(rc, 0);
    free(out);
}

static inline void refuses_args(const char *text, const char *const *args, int n_args, const char *problems) {
    config c;
    char *out;
    int rc = open_bytes(&c, text, strlen(text), args, n_args, &out);
    assert_string_equal(out, problems);
    assert_int_equal(rc, -1);
    assert_null(c.path);
    free(out);
}

static inline void refuses(const char *text, const char *problems) { refuses_args(text, NULL, 0, problems); }

/* A directory of its own with the files that the configurations name. */
static const char *const case_files[] = {"m.gguf", "other.gguf", "d.jsonl", "e.jsonl"};

static inline void cases_begin(char *dir) {
    if (!mkdtemp(dir) || chdir(dir)) exit(1);
    for (int i = 0; i < 4; i++) write_text(case_files[i], "x", 1);
}

static inline int cases_end(const char *dir) {
    for (int i = 0; i < 4; i++) unlink(case_files[i]);
    unlink("t.yaml");
    return chdir("/") || rmdir(dir);
}

#endif
