/* Data sets that must be refused: one line with the file, the line and what was expected, the exit code, nothing kept.
 */
#include "core/arena.h"
#include "data/jsonl.h"
#include "tests/dataset_files.h"

#include <sys/stat.h>

/* Opening the text as a file of `type` must fail with this code and these words. */
static void refuse(const char *type, const char *text, size_t n, const tokenizer *tok, int code, const char *words) {
    dataset_entry e;
    config c = config_of(&e, 1, type);
    dataset ds;
    write_bytes(file, text, n);
    chat_template *chat = tok ? chat_open_named("smollm2", "t", tok) : NULL;
    if (!dataset_open(&ds, &c, tok, chat, VOCAB)) fail_msg("accepted; expected: %s", words);
    if (!strstr(fail_text(), words)) fail_msg("found: %s\nexpected: %s", fail_text(), words);
    assert_int_equal(fail_code(), code);
    assert_null(ds.train);
    fail_clear();
    chat_close(chat);
}

#define REFUSE(type, text, words) refuse(type, text, sizeof(text) - 1, NULL, EXIT_INPUT, words)
#define OK_ROW "{\"input_ids\": [1, 2], \"labels\": [1, 2]}\n"

/* Rows that are right, but none of them can be trained on. */
static void test_nothing_left(void **state) {
    (void)state;
    REFUSE(
        "tokenized", "{\"input_ids\": [1, 2], \"labels\": [1, -100]}\n{\"input_ids\": [1], \"labels\": [1]}\n",
        ": 0 samples: all 2 rows were dropped (1 shorter than two tokens, 1 without a target within sequence_len 64)");
}

static void test_bad_lines(void **state) {
    (void)state;
    REFUSE("tokenized", OK_ROW "{\"input_ids\": [1,, 2]}\n", ".jsonl:2:");
    REFUSE("tokenized", OK_ROW "\n\n" OK_ROW "{\"input_ids\": [1, 2], \"lab", ".jsonl:5:");
    REFUSE("tokenized", "", ".jsonl: 0 samples: the file is empty");
    REFUSE("tokenized", "\n  \r\n\n", ".jsonl: 0 samples: the file is empty");
    REFUSE("tokenized", OK_ROW "[1, 2]\n", ".jsonl:2: found an array, expected an object");
    REFUSE("tokenized", "[" OK_ROW "]", "a JSON array, expected JSON lines");
    REFUSE("tokenized", OK_ROW "{\"a\": \"\xc0\xaf\"}\n", ".jsonl:2: byte offset 47: invalid UTF-8 (byte 0xc0)");
    REFUSE("tokenized", OK_ROW "{\"a\": \"\xed\xa0\x80\"}\n", ".jsonl:2: byte offset 47: invalid UTF-8 (byte 0xed)");
    REFUSE("tokenized", "\xef\xbb\xbf{\"\xff\": 1}\n", ".jsonl:1: byte offset 5: invalid UTF-8 (byte 0xff)");
    REFUSE("tokenized", OK_ROW "{\"a\": \"\0\"}\n", ".jsonl:2: byte offset 47: a NUL byte");
    REFUSE("tokenized", OK_ROW "{\"input_ids\": [1], \"input_ids\": [2]}\n", ".jsonl:2:");
    REFUSE("tokenized", OK_ROW "{\"input_ids\": [1e999], \"labels\": [1]}\n", ".jsonl:2:");
    REFUSE("tokenized", OK_ROW "{\"input_ids\": [NaN], \"labels\": [1]}\n", ".jsonl:2:");
    REFUSE("tokenized", "\x1f\x8b\x08....", "gzip");
    REFUSE("tokenized", "\x28\xb5\x2f\xfd....", "zstd");
    REFUSE("tokenized", "PAR1....", "Parquet");
    REFUSE("tokenized", "\xff\xfe{\0\"\0", "UTF-16");
}

/* A BOM, CRLF and a last line without its end are no reason to refuse. */
static void test_odd_lines(void **state) {
    (void)state;
    dataset_entry e;
    config c = config_of(&e, 1, "tokenized");
    write_text(
        file,
        "\xef\xbb\xbf{\"input_ids\": [1, 2], \"labels\": [1, 2]}\r\n\r\n{\"input_ids\": [3, 4], \"labels\": [3, 4]}\r");
    dataset ds = open_or_fail(&c, NULL, NULL);
    assert_int_equal(ds.n_train, 2);
    assert_int_equal(ds.train[1].ids[1], 4);
    dataset_close(&ds);
}

/* Text over text, without its NUL. */
static void overlay(char *at, const char *text) {
    while (*text) *at++ = *text++;
}

/* Deep nesting, a line over the limit, and paths that are no files. */
static void test_bad_files(void **state) {
    (void)state;
    size_t n = (size_t)JSONL_LINE_MAX + 16;
    char *big = xcalloc(n + 1, 1);
    const char *head = "{\"a\":", *lines = "\n\n\n", *row = "{}\n";
    memset(big, '[', 1000000);
    overlay(big, head);
    refuse("tokenized", big, 1000000, NULL, EXIT_INPUT, ".jsonl:1:");
    memset(big, ' ', n);
    refuse("tokenized", row, strlen(row), NULL, EXIT_INPUT, ".jsonl:1: key 'input_ids' is missing");
    overlay(big, lines);
    overlay(big + n - strlen(row), row);
    refuse("tokenized", big, n, NULL, EXIT_INPUT, ".jsonl:4: a line of more than 64 MiB");
    free(big);

    dataset_entry e;
    config c = config_of(&e, 1, "tokenized");
    dataset ds;
    struct {
        const char *path, *words;
    } bad[] = {
        {dir, "is a directory"},
        {"/dev/zero", "is no regular file"},
        {"/tmp/there/is/none", "cannot open"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        e.path = (char *)(uintptr_t)bad[i].path;
        assert_int_equal(dataset_open(&ds, &c, NULL, NULL, VOCAB), -1);
        if (!strstr(fail_text(), bad[i].words)) fail_msg("%s", fail_text());
        assert_int_equal(fail_code(), EXIT_INPUT);
        fail_clear();
    }
    unlink(file2);
    assert_int_equal(mkfifo(file2, 0600), 0);
    e.path = file2;
    assert_int_equal(dataset_open(&ds, &c, NULL, NULL, VOCAB), -1);
    assert_non_null(strstr(fail_text(), "is no regular file"));
    fail_clear();
    unlink(file2);
}

static void test_bad_tokenized(void **state) {
    (void)state;
    REFUSE("tokenized", OK_ROW "{\"input_ids\": [1, 2]}\n",
           ".jsonl:2: key 'labels' is missing, expected an array of integers (found: input_ids)");
    REFUSE("tokenized", "{\"input_ids\": null, \"labels\": []}\n", ".jsonl:1: key 'input_ids': found null");
    REFUSE("tokenized", "{\"input_ids\": [1, 2], \"labels\": [1]}\n",
           "key 'labels': found 1 elements, expected as many as input_ids has: 2");
    REFUSE("tokenized", "{\"input_ids\": [1, 320], \"labels\": [1, 2]}\n",
           "key 'input_ids': element 1: found 320, expected 0 to 319");
    REFUSE("tokenized", "{\"input_ids\": [-1, 3], \"labels\": [1, 2]}\n", "key 'input_ids': element 0: found -1");
    REFUSE("tokenized", "{\"input_ids\": [1, 2], \"labels\": [1, -1]}\n",
           "key 'labels': element 1: found -1, expected -100 or 0 to 319");
    REFUSE("tokenized", "{\"input_ids\": [1, 2.5], \"labels\": [1, 2]}\n",
           "key 'input_ids': element 1: found a number, expected an integer");
    REFUSE("tokenized", "{\"input_ids\": [1, 2], \"labels\": [1, 2], \"attention_mask\": [1, 0]}\n",
           "'attention_mask': element 1");
}

static void test_bad_entries(void **state) {
    (void)state;
    dataset_entry e;
    dataset ds;
    write_text(file, OK_ROW);
    struct {
        const char *type, *field, *words;
    } bad[] = {
        {"alpca", NULL,
         "c.yaml:7: datasets: type 'alpca' is unknown, expected one of chat_template, messages, sharegpt, alpaca"},
        {NULL, NULL, "type '' is unknown"},
        {"tokenized", "ids", "field 'ids' means nothing to type tokenized"},
        {"alpaca", NULL, "needs a tokenizer"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        config c = config_of(&e, 1, bad[i].type);
        e.field = (char *)(uintptr_t)bad[i].field;
        assert_int_equal(dataset_open(&ds, &c, NULL, NULL, VOCAB), -1);
        assert_int_equal(fail_code(), EXIT_USAGE);
        if (!strstr(fail_text(), bad[i].words)) fail_msg("%s", fail_text());
        fail_clear();
    }
}

#define TURN(role, content) "{\"role\": \"" role "\", \"content\": \"" content "\"}"
#define CHAT(turns) "{\"messages\": [" turns "]}\n"
#define OK_CHAT CHAT(TURN("user", "a") ", " TURN("assistant", "b"))

static void test_bad_text(void **state) {
    (void)state;
    tokenizer *tok = open_tokenizer("chat_tokenizer");
    struct {
        const char *type, *text, *words;
    } bad[] = {
        {"chat_template", OK_CHAT "{\"prompt\": \"a\", \"completion\": \"b\"}\n",
         ".jsonl:2: key 'messages' is missing, expected an array of turns (found: prompt, completion)"},
        {"chat_template", OK_CHAT "{\"messages\": \"a\"}\n", ".jsonl:2: key 'messages': found a string"},
        {"chat_template", OK_CHAT CHAT(""), ".jsonl:2: key 'messages': found an empty array"},
        {"chat_template", CHAT("1"), ".jsonl:1: turn 1: found an integer, expected an object"},
        {"chat_template", CHAT(TURN("user", "a") ", " TURN("bot", "b")), ".jsonl:1: turn 2: unknown role 'bot'"},
        {"chat_template", CHAT(TURN("system", "a") ", " TURN("system", "b")), ".jsonl:1: turn 2: a second system turn"},
        {"chat_template", OK_CHAT CHAT(TURN("user", "a")), ".jsonl:2: no assistant turn among 1"},
        {"chat_template", CHAT("{\"role\": \"assistant\", \"content\": null}"), "turn 1: key 'content': found null"},
        {"chat_template", CHAT("{\"role\": \"assistant\", \"content\": [{}]}"),
         "turn 1: key 'content': found an array"},
        {"chat_template", CHAT("{\"content\": \"a\"}"), "turn 1: key 'role': found nothing"},
        {"chat_template", CHAT("{\"role\": \"assistant\", \"content\": \"a\", \"weight\": 0.5}"), "key 'weight'"},
        {"chat_template", CHAT("{\"role\": \"assistant\", \"content\": \"a\", \"train\": 1}"), "key 'train'"},
        {"chat_template", CHAT("{\"role\": \"assistant\", \"content\": \"\", \"tool_calls\": [1]}"),
         "key 'tool_calls'"},
        {"sharegpt", OK_CHAT, ".jsonl:1: key 'conversations' is missing"},
        {"alpaca", "{\"instruction\": \"a\"}\n", ".jsonl:1: key 'output' is missing"},
        {"alpaca", "{\"instruction\": \"a\", \"output\": null}\n", ".jsonl:1: key 'output': found null"},
        {"alpaca", "{\"instruction\": \"a\", \"input\": 1, \"output\": \"\"}\n",
         ".jsonl:1: key 'input': found an integer"},
        {"completion", "{\"text\": \"a\"}\n{\"txt\": \"a\"}\n",
         ".jsonl:2: key 'text' is missing, expected a string (found: txt)"},
        {"completion", "{\"text\": \"\\u0000\"}\n", ".jsonl:1:"},
        {"completion", "{\"text\": \"\\ud800\"}\n", ".jsonl:1:"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        refuse(bad[i].type, bad[i].text, strlen(bad[i].text), tok, EXIT_INPUT, bad[i].words);
    tokenizer_close(tok);
}

/* A tokenizer of another model is refused, and so is a chat without a template. */
static void test_mismatch(void **state) {
    (void)state;
    tokenizer *tok = open_tokenizer("chat_tokenizer");
    dataset_entry e;
    config c = config_of(&e, 1, "chat_template");
    dataset ds;
    write_text(file, OK_CHAT);
    struct {
        const char *chat;
        int vocab;
        const char *words;
    } bad[] = {
        {"chatml", 100, ", the model knows ids below 100: it is the tokenizer of another model"},
        {NULL, VOCAB, "needs a chat template"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        chat_template *chat = bad[i].chat ? chat_open_named(bad[i].chat, "t", tok) : NULL;
        assert_int_equal(dataset_open(&ds, &c, tok, chat, bad[i].vocab), -1);
        if (!strstr(fail_text(), bad[i].words)) fail_msg("%s", fail_text());
        fail_clear();
        chat_close(chat);
    }
    c = config_of(&e, 1, "completion"), e.field = (char *)(uintptr_t) "body", c.sequence_len = 1024;
    write_text(file, "{\"text\": 1, \"body\": \"ab\"}\n");
    ds = open_or_fail(&c, tok, NULL);
    assert_int_equal(ds.train[0].n, 3);
    dataset_close(&ds);
    tokenizer_close(tok);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_nothing_left),  TEST(test_bad_lines),   TEST(test_odd_lines), TEST(test_bad_files),
        TEST(test_bad_tokenized), TEST(test_bad_entries), TEST(test_bad_text),  TEST(test_mismatch),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
