/* Files of rows for the tests of the data set: one directory a program, two files in it. */
#ifndef PEFT_TESTS_DATASET_FILES_H
#define PEFT_TESTS_DATASET_FILES_H

#include "core/error.h"
#include "data/dataset.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define VOCAB 320
static char dir[] = "/tmp/test_dataset.XXXXXX", file[64], file2[64];

static inline void write_bytes(const char *path, const char *bytes, size_t n) {
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

static inline void write_text(const char *path, const char *text) { write_bytes(path, text, strlen(text)); }

/* One file of `type`; rows in file order, nothing held out, no packing. */
static inline config config_of(dataset_entry *entries, int n, const char *type) {
    for (int i = 0; i < n; i++) {
        char *name = i ? file2 : file;
        entries[i] = (dataset_entry){.path = name, .type = (char *)(uintptr_t)type, .line = 7 + i};
    }
    config c = {.path = (char *)(uintptr_t) "c.yaml", .datasets = {entries, n}};
    c.sequence_len = 64, c.micro_batch_size = 2, c.seed = 42;
    return c;
}

static inline dataset open_or_fail(const config *c, const tokenizer *tok, const chat_template *chat) {
    dataset ds;
    if (dataset_open(&ds, c, tok, chat, VOCAB)) fail_msg("%s", fail_text());
    return ds;
}

static inline tokenizer *open_tokenizer(const char *name) {
    char path[96];
    snprintf(path, sizeof path, "tests/golden/%s", name);
    tokenizer *t = tokenizer_open_dir(path);
    if (!t) fail_msg("%s", fail_text());
    return t;
}

static inline int set_up(void **state) {
    (void)state;
    if (!mkdtemp(dir)) return -1;
    snprintf(file, sizeof file, "%s/a.jsonl", dir);
    snprintf(file2, sizeof file2, "%s/b.jsonl", dir);
    return 0;
}

static inline int tear_down(void **state) {
    (void)state;
    unlink(file), unlink(file2);
    return rmdir(dir);
}

/* A failure of one test must not be taken for that of the next. */
static inline int forget(void **state) {
    (void)state;
    fail_clear();
    return 0;
}

#define TEST(f) cmocka_unit_test_setup(f, forget)

#endif
