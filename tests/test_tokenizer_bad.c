/* Tokenizer files and texts that must be refused with one clear line, or that cost too much when read naively. */
#include "core/arena.h"
#include "core/error.h"
#include "core/json.h"
#include "data/tokenizer.h"
#include "tests/tokenizer_files.h"

#include <time.h>

#define SMALL "tests/golden/tokenizer_small"

/* --- tokenizer.json --- */

#define VOCAB "\"vocab\":{\"a\":0,\"b\":1,\"ab\":2}"
#define MERGES "\"merges\":[\"a b\"]"
#define MODEL "\"model\":{\"type\":\"BPE\"," VOCAB "," MERGES "}"
#define PRE "\"pre_tokenizer\":{\"type\":\"ByteLevel\",\"add_prefix_space\":false}"
#define DECODER "\"decoder\":{\"type\":\"ByteLevel\"}"
#define BYTES PRE "," DECODER
#define WITH_MODEL(m) "{\"model\":{\"type\":\"BPE\"," m "}," BYTES "}"
#define WITH_PRE(p)                                                                                                    \
    "{" MODEL "," DECODER ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[" p                            \
    ",{\"type\":\"ByteLevel\"}]}}"
#define WITH_REGEX(r) WITH_PRE("{\"type\":\"Split\",\"pattern\":{\"Regex\":\"" r "\"},\"behavior\":\"Isolated\"}")
#define WITH(x) "{" MODEL "," BYTES "," x "}"
#define ADDED(id, text) WITH("\"added_tokens\":[{\"id\":" id ",\"content\":\"" text "\"}]")

static const struct {
    const char *json, *said;
} bad_json[] = {
    {"", "empty"},
    {"[]", "array"},
    {"{", "tokenizer.json:1"},
    {"{}", "'model'"},
    {"{\"model\":7}", "'model'"},
    {"{\"model\":{\"type\":\"Unigram\"}}", "'Unigram', expected 'BPE'"},
    {"{\"model\":{" VOCAB "," MERGES "}}", "(missing)"},
    {WITH_MODEL(MERGES), "model.vocab"},
    {WITH_MODEL("\"vocab\":[]," MERGES), "model.vocab"},
    {WITH_MODEL("\"vocab\":{},"
                "\"merges\":[]"),
     "vocabulary is empty"},
    {WITH_MODEL("\"vocab\":{\"a\":0,\"b\":1,\"ab\":-1}," MERGES), "id -1"},
    {WITH_MODEL("\"vocab\":{\"a\":0,\"b\":1,\"ab\":1}," MERGES), "two tokens: 'b' and 'ab'"},
    {WITH_MODEL("\"vocab\":{\"a\":0,\"b\":1,\"ab\":3}," MERGES), "id 3, but there are only 3"},
    {WITH_MODEL("\"vocab\":{\"a\":0,\"b\":1,\"ab\":2147483648}," MERGES), "id 2147483648"},
    {WITH_MODEL("\"vocab\":{\"a\":0,\"b\":1,\"ab\":\"2\"}," MERGES), "the id of 'ab' is"},
    {WITH_MODEL("\"vocab\":{\"a\":0,\"b\":1,\"ab\":2.5}," MERGES), "the id of 'ab' is"},
    {WITH_MODEL("\"vocab\":{\"a\":0,\"a\":1,\"ab\":2}," MERGES), "duplicate"},
    {WITH_MODEL("\"vocab\":{\"a\":0,\"b\":1,\"\":2}," MERGES), "token 2 is empty"},
    {WITH_MODEL(VOCAB), "model.merges"},
    {WITH_MODEL(VOCAB ",\"merges\":{}"), "model.merges"},
    {WITH_MODEL(VOCAB ",\"merges\":[\"ab\"]"), "merge 0: 'ab' is not two"},
    {WITH_MODEL(VOCAB ",\"merges\":[\"a b b\"]"), "merge 0"},
    {WITH_MODEL(VOCAB ",\"merges\":[\"a b\",[\"a\"]]"), "merge 1 is"},
    {WITH_MODEL(VOCAB ",\"merges\":[\"a b\",7]"), "merge 1 is"},
    {WITH_MODEL(VOCAB ",\"merges\":[[\"a\",\"c\"]]"), "right side 'c' is not in the vocabulary"},
    {WITH_MODEL(VOCAB ",\"merges\":[[\"b\",\"a\"]]"), "result 'ba' is not in the vocabulary"},
    {WITH_MODEL(VOCAB ",\"merges\":[[\"\",\"a\"]]"), "merge 0 is not a pair"},
    {WITH_MODEL(VOCAB "," MERGES ",\"dropout\":0.1"), "dropout"},
    {WITH_MODEL(VOCAB "," MERGES ",\"byte_fallback\":true"), "byte_fallback"},
    {WITH_MODEL(VOCAB "," MERGES ",\"end_of_word_suffix\":\"</w>\""), "end_of_word_suffix"},
    {WITH_MODEL(VOCAB "," MERGES ",\"unk_token\":\"<unk>\""), "unk_token '<unk>'"},
    {WITH_MODEL(VOCAB "," MERGES ",\"ignore_merges\":1"), "ignore_merges"},
    {"{" MODEL "," DECODER "}", "no ByteLevel pre_tokenizer"},
    {"{" MODEL "," PRE "}", "no ByteLevel decoder"},
    {"{" MODEL "," DECODER ",\"pre_tokenizer\":{\"type\":\"Metaspace\"}}", "'Metaspace'"},
    {"{" MODEL "," DECODER ",\"pre_tokenizer\":{}}", "'type'"},
    {"{" MODEL "," PRE ",\"decoder\":{\"type\":\"WordPiece\"}}", "'WordPiece'"},
    {WITH("\"normalizer\":{\"type\":\"Precompiled\",\"precompiled_charsmap\":\"AA==\"}"), "'Precompiled'"},
    {WITH("\"normalizer\":{\"type\":\"Replace\",\"pattern\":{},\"content\":\"\"}"), "pattern"},
    {WITH("\"post_processor\":{\"type\":\"RobertaProcessing\"}"), "'RobertaProcessing'"},
    {WITH("\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[]}"), "the text 0 times"},
    {WITH("\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"x\"}}]}"),
     "token 'x'"},
    {WITH(
         "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":\"x\"}},{\"Sequence\":{\"id\":"
         "\"A\"}}],\"special_tokens\":{\"x\":{\"ids\":[9]}}}"),
     "is 9, expected an id from 0 to 2"},
    {ADDED("7", "<x>"), "id 7, expected 3 (the next free id)"},
    {ADDED("1", "a"), "id 1, expected 0 (its id in the vocabulary)"},
    {ADDED("-1", "<x>"), "'id'"},
    {ADDED("3", ""), "empty"},
    {WITH("\"added_tokens\":[{\"content\":\"x\"}]"), "'id'"},
    {WITH("\"added_tokens\":[7]"), "added_tokens[0]"},
    {WITH_PRE("{\"type\":\"ByteLevel\"}"), "ByteLevel"},
    {WITH_PRE("{\"type\":\"Split\",\"pattern\":{\"String\":\"\"},\"behavior\":\"Isolated\"}"), "pattern"},
    {WITH_PRE("{\"type\":\"Split\",\"pattern\":{\"String\":\"x\"},\"behavior\":\"Sideways\"}"), "'Sideways'"},
    {WITH_REGEX("(a"), "regular expression"},
    {WITH_REGEX("[a&&b]"), "a set operation at byte 2"},
    {WITH_REGEX("[[:alpha:]]"), "a set operation"},
    {WITH_REGEX("a{2,3}+"), "quantifier"},
    {WITH_REGEX("(a)\\\\1"), "this escape"},
    {WITH_REGEX("\\\\h"), "this escape"},
    {WITH_REGEX("(?i)a"), "this kind of group"},
    {WITH_REGEX("(?R)"), "this kind of group"},
    {WITH_REGEX("\\\\p{Nonsense}"), "Nonsense"},
    {WITH_REGEX("\\\\pL"), "without braces"},
    {WITH_REGEX("\\\\p{L"), "closing brace"},
    {WITH_REGEX("\\\\"), "this escape"},
    {WITH_REGEX("[a"), "regular expression"},
    {WITH_REGEX("\\\\x{110000}"), "regular expression"},
    {WITH_REGEX("\\\\xff"), "a raw byte"},
    {WITH_REGEX("((a{1000}){1000}){1000}"), "regular expression"},
};

static void expect_refused(const char *dir, const char *said) {
    fail_clear();
    tokenizer *t = tokenizer_open_dir(dir);
    if (t) fail_msg("accepted what should say: %s", said);
    if (!strstr(fail_text(), said)) fail_msg("said '%s', expected '%s'", fail_text(), said);
    assert_int_equal(fail_code(), EXIT_INPUT);
    fail_clear();
}

static void bad_tokenizer_json(void **state) {
    (void)state;
    char *dir = temp_dir();
    for (size_t i = 0; i < sizeof bad_json / sizeof *bad_json; i++) {
        save_text(dir, "tokenizer.json", bad_json[i].json, strlen(bad_json[i].json));
        expect_refused(dir, bad_json[i].said);
    }
    static const char good[] = WITH("\"normalizer\":null");
    save_text(dir, "tokenizer.json", good, sizeof good - 1);
    tokenizer *t = tokenizer_open_dir(dir);
    if (!t) fail_msg("%s", fail_text());
    tokenizer_close(t);
    variant_remove(dir);
    expect_refused("/nonexistent", "no tokenizer.json");
}

static const struct {
    const char *file, *json, *said;
} bad_config[] = {
    {"tokenizer_config.json", "[]", "expected an object"},
    {"tokenizer_config.json", "{\"eos_token\":\"<gone>\"}", "eos_token '<gone>' is not in tokenizer.json"},
    {"tokenizer_config.json", "{\"bos_token\":7}", "'bos_token'"},
    {"tokenizer_config.json", "{\"chat_template\":7}", "chat_template"},
    {"tokenizer_config.json", "{\"chat_template\":[{\"name\":\"default\"}]}", "chat_template[0]"},
    {"tokenizer_config.json", "{\"added_tokens_decoder\":{\"9\":{\"content\":\"<x>\"}}}", "id 9, expected 3"},
    {"tokenizer_config.json", "{\"added_tokens_decoder\":{\"x\":{\"content\":\"<x>\"}}}", "'x' is not an id"},
    {"generation_config.json", "{\"eos_token_id\":3}", "eos_token_id is 3, expected an id from 0 to 2"},
    {"generation_config.json", "{\"eos_token_id\":[0,-1]}", "eos_token_id is -1"},
    {"generation_config.json", "{\"eos_token_id\":\"a\"}", "eos_token_id"},
    {"special_tokens_map.json", "{\"pad_token\":{\"content\":\"<gone>\"}}", "pad_token '<gone>'"},
};

static void bad_files_beside(void **state) {
    (void)state;
    static const char good[] = WITH("\"normalizer\":null");
    for (size_t i = 0; i < sizeof bad_config / sizeof *bad_config; i++) {
        char *dir = temp_dir();
        save_text(dir, "tokenizer.json", good, sizeof good - 1);
        save_text(dir, bad_config[i].file, bad_config[i].json, strlen(bad_config[i].json));
        expect_refused(dir, bad_config[i].said);
        variant_remove(dir);
    }
}

/* Every file that is cut short is refused, or is the whole one. */
static void truncated_json(void **state) {
    (void)state;
    file_map m;
    assert_int_equal(file_open(&m, SMALL "/tokenizer.json"), 0);
    char *dir = temp_dir();
    for (uint64_t n = 0; n < m.size; n += 97) {
        save_text(dir, "tokenizer.json", (const char *)m.data, n);
        fail_clear();
        assert_null(tokenizer_open_dir(dir));
        assert_true(*fail_text());
    }
    fail_clear();
    file_close(&m);
    variant_remove(dir);
}

/* Every byte in turn replaced: opened or refused, never worse; what opens also encodes or refuses. */
static void damaged_json(void **state) {
    (void)state;
    file_map m;
    assert_int_equal(file_open(&m, SMALL "/tokenizer.json"), 0);
    char *dir = temp_dir(), *text = xcalloc(m.size, 1);
    uint32_t r = 1;
    for (int i = 0; i < 300; i++) {
        memcpy(text, m.data, m.size);
        for (int k = 0; k < 3; k++) {
            r = r * 1664525 + 1013904223;
            text[r % m.size] = "{}[]\",:0-\\x9 "[r >> 16 & 7 ? (r >> 20) % 13 : 0];
        }
        save_text(dir, "tokenizer.json", text, m.size);
        tokenizer *t = tokenizer_open_dir(dir);
        token_list l = {0};
        if (t) tokenizer_encode(t, "Hello 12 <|im_start|>\xc3\xa9", 24, TOKENIZE_SPECIAL, &l);
        token_list_free(&l);
        tokenizer_close(t);
        fail_clear();
    }
    free(text);
    file_close(&m);
    variant_remove(dir);
}

/* --- GGUF --- */

static const struct {
    gguf_change change;
    const char *said;
} bad_gguf[] = {
    {{.pre = "no-such-pre", .bos = -1}, "'no-such-pre', which is not known"},
    {{.no_pre = true, .bos = -1}, "tokenizer.ggml.pre is missing"},
    {{.model = "llama", .bos = -1}, "'llama', expected 'gpt2'"},
    {{.bos = 99999}, "bos_token_id is 99999, expected an id from 0 to"},
    {{.bos = 4294967295}, "bos_token_id is 4294967295"},
    {{.no_bos = true, .add_bos = true, .bos = -1}, "tokenizer.ggml.bos_token_id is missing"},
    {{.pre = "llama-bpe", .no_bos = true, .bos = -1}, "tokenizer.ggml.bos_token_id is missing"},
    {{.types_less = 1, .bos = -1}, "token types for"},
    {{.types_as_strings = true, .bos = -1}, "not an array of integers"},
    {{.id = 9, .type = 77, .bos = -1}, "token 9 has type 77"},
    {{.id = 590, .text = "", .bos = -1}, "token 590 is empty"},
    {{.id = 590, .text = "<s>", .bos = -1}, "two ids"},
    {{.id = 590, .text = "\xff", .bos = -1}, "not valid UTF-8"},
    {{.merge = "!", .bos = -1}, "is not two tokens"},
    {{.merge = "! no-such-token", .bos = -1}, "right side 'no-such-token'"},
    {{.merge = "! ", .bos = -1}, "not a pair"},
};

static void bad_gguf_keys(void **state) {
    (void)state;
    gguf base;
    assert_int_equal(gguf_open(&base, SMALL ".gguf"), 0);
    for (size_t i = 0; i < sizeof bad_gguf / sizeof *bad_gguf; i++) {
        char *path = gguf_variant(&base, &bad_gguf[i].change);
        gguf g;
        fail_clear();
        tokenizer *t = NULL;
        bool opened = !gguf_open(&g, path);
        if (opened) t = tokenizer_open_gguf(&g);
        if (t) fail_msg("accepted what should say: %s", bad_gguf[i].said);
        if (!strstr(fail_text(), bad_gguf[i].said)) fail_msg("said '%s', expected '%s'", fail_text(), bad_gguf[i].said);
        if (opened) gguf_close(&g);
        file_remove(path);
    }
    fail_clear();
    gguf_close(&base);
}

/* --- texts --- */

static void bad_texts(void **state) {
    (void)state;
    tokenizer *t = tokenizer_open_dir(SMALL);
    assert_non_null(t);
    static const char *const bad[] = {"\xff", "a\xc3", "\xed\xa0\x80", "\xc0\xaf", "ok \xf4\x90\x80\x80"};
    token_list l = {0};
    for (size_t i = 0; i < 5; i++) {
        fail_clear();
        assert_int_equal(tokenizer_encode(t, bad[i], (int64_t)strlen(bad[i]), 0, &l), -1);
        assert_non_null(strstr(fail_text(), "not valid UTF-8 at byte"));
        assert_int_equal(l.n, 0);
    }
    fail_clear();
    assert_int_equal(tokenizer_encode(t, bad[0], (int64_t)1 << 33, 0, &l), -1); /* refused before a byte is read */
    assert_non_null(strstr(fail_text(), "cut it into documents"));
    fail_clear();
    assert_int_equal(tokenizer_encode(t, "", 0, TOKENIZE_ADD, &l), 0);
    assert_int_equal(l.n, 2); /* BOS and EOS around nothing */
    assert_int_equal(tokenizer_encode(t, "\0", 1, 0, &l), 0);
    assert_int_equal(l.n, 3);
    token_list_free(&l);
    tokenizer_close(t);
}

static double seconds(void) {
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + 1e-9 * (double)ts.tv_nsec;
}

static tokenizer *open_text(const char *json) {
    char *dir = temp_dir();
    save_text(dir, "tokenizer.json", json, strlen(json));
    tokenizer *t = tokenizer_open_dir(dir);
    if (!t) fail_msg("%s", fail_text());
    variant_remove(dir);
    return t;
}

/* (a+)+$ on a run that ends otherwise takes 2^n steps; the match limit stops it. */
static void runaway_pattern(void **state) {
    (void)state;
    tokenizer *t = open_text(WITH_REGEX("(a+)+$"));
    char text[64];
    memset(text, 'a', sizeof text);
    text[sizeof text - 1] = '!';
    token_list l = {0};
    double began = seconds();
    assert_int_equal(tokenizer_encode(t, text, sizeof text, 0, &l), -1);
    assert_non_null(strstr(fail_text(), "match limit"));
    assert_true(seconds() - began < 20);
    fail_clear();
    token_list_free(&l);
    tokenizer_close(t);
}

/* Runs of one character, through patterns that backtrack over them, and one long word: about n log n. */
static void long_runs_are_not_quadratic(void **state) {
    (void)state;
    static const char llama3[] =
        "[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+";
    char *json = xprintf(
        "{" MODEL "," DECODER
        ",\"pre_tokenizer\":{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{"
        "\"Regex\":\"%s\"},\"behavior\":\"Isolated\"},{\"type\":\"ByteLevel\",\"use_regex\":false,\"add_prefix_space\":false}]}}",
        llama3);
    tokenizer *t = open_text(json);
    free(json);
    int64_t n = 2000000;
    char *text = xcalloc((size_t)n, 1);
    for (int k = 0; k < 4; k++) {
        for (int64_t i = 0; i < n; i++)
            text[i] = "a a \n"[k == 3 ? i & 1 : k]; /* a run of a, of spaces, of a; "a a a" */
        if (k == 2)
            for (int64_t i = 0; i < n; i++) text[i] = i & 1 ? 'b' : 'a'; /* a million merges in one word */
        token_list l = {0};
        double began = seconds();
        if (tokenizer_encode(t, text, n, TOKENIZE_SPECIAL, &l)) fail_msg("%s", fail_text());
        if (k == 2) assert_int_equal(l.n, n / 2);
        assert_true(seconds() - began < 20);
        token_list_free(&l);
    }
    free(text);
    tokenizer_close(t);
}

/* Bytes without a token: tokenizers leaves them out before merging, so their neighbours meet. */
static void missing_bytes(void **state) {
    (void)state;
    tokenizer *t = open_text(WITH("\"normalizer\":null"));
    token_list l = {0};
    assert_int_equal(tokenizer_encode(t, "acb", 3, 0, &l), 0);
    assert_int_equal(l.n, 1);
    assert_int_equal(l.id[0], 2);
    token_list_free(&l);
    tokenizer_close(t);
    t = open_text(
        WITH_MODEL("\"vocab\":{\"a\":0,\"b\":1,\"ab\":2,\"?\":3}," MERGES ",\"unk_token\":\"?\",\"fuse_unk\":true"));
    assert_int_equal(tokenizer_encode(t, "accb", 4, 0, &l), 0);
    assert_int_equal(l.n, 3);
    assert_int_equal(l.id[1], 3);
    token_list_free(&l);
    tokenizer_close(t);
}

/* In a GGUF file such a byte keeps its neighbours apart, as in llama.cpp: "t", then U+07CA = DF 8A, whose DF is
 * missing, with a merge of "t" and 8A. */
static void missing_bytes_of_gguf(void **state) {
    (void)state;
    gguf base;
    assert_int_equal(gguf_open(&base, SMALL ".gguf"), 0);
    for (int gap = 0; gap < 2; gap++) {
        gguf_change c = {
            .id = 4, .text = "t\xc4\xac", .type = 1, .merge = "t \xc4\xac", .gap = gap ? "\xc3\x9f" : NULL, .bos = -1};
        char *path = gguf_variant(&base, &c);
        gguf g;
        assert_int_equal(gguf_open(&g, path), 0);
        tokenizer *t = tokenizer_open_gguf(&g);
        if (!t) fail_msg("%s", fail_text());
        token_list l = {0};
        assert_int_equal(tokenizer_encode(t, "t\xdf\x8a", 3, 0, &l), 0);
        assert_int_equal(l.n, gap ? 2 : 3);
        for (int64_t i = 0; i < l.n; i++) assert_int_not_equal(l.id[i], 4);
        token_list_free(&l);
        tokenizer_close(t);
        gguf_close(&g);
        file_remove(path);
    }
    gguf_close(&base);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bad_tokenizer_json), cmocka_unit_test(bad_files_beside),
        cmocka_unit_test(truncated_json),     cmocka_unit_test(damaged_json),
        cmocka_unit_test(bad_gguf_keys),      cmocka_unit_test(bad_texts),
        cmocka_unit_test(runaway_pattern),    cmocka_unit_test(long_runs_are_not_quadratic),
        cmocka_unit_test(missing_bytes),      cmocka_unit_test(missing_bytes_of_gguf)};
    return cmocka_run_group_tests_name("tokenizer_bad", tests, NULL, NULL);
}
