/* ./infer as a whole, each run in a process of its own: what the modes print, commands of a talk, and what is refused.
 */
#include <stdlib.h>
int infer_main(int argc, char **argv);
#define main infer_main
#include "../infer.c"
#undef main
static int counted_step(engine *e);
#define engine_step counted_step
#include "../infer_reply.c"
#undef engine_step
#include "core/json.h"

#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

int infer_main(int argc, char **argv);

#define MODEL "--model tests/golden/tiny_llama --threads 1 --temperature 0 "
static char dir[64], out[96], err[96], in[96];

static void write_text(const char *path, const char *text) { assert_int_equal(file_save(path, text, strlen(text)), 0); }

static char *read_text(const char *path) {
    char *text = file_text(path, NULL);
    if (!text) fail_msg("%s", fail_text());
    return text;
}

/* Words of `line` as arguments; input is what stands on standard input. The exit code; stdout and stderr in files. */
static int run_infer(const char *line, const char *input) {
    char text[1024], *argv[64] = {(char *)(uintptr_t) "infer"};
    int argc = 1, status;
    write_text(in, input);
    snprintf(text, sizeof text, "%s", line);
    for (char *p = strtok(text, " "); p; p = strtok(NULL, " ")) argv[argc++] = p;
    fflush(NULL);
    pid_t child = fork();
    if (!child) {
        const char *const path[] = {in, out, err};
        for (int i = 0; i < 3; i++) {
            int fd = open(path[i], i ? O_CREAT | O_TRUNC | O_WRONLY : O_RDONLY, 0600);
            if (fd < 0 || dup2(fd, i) != i) _exit(99);
        }
        fail_clear();
        int code = infer_main(argc, argv);
        fflush(NULL);
        _exit(code);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!WIFEXITED(status)) fail_msg("%s: signal %d: %s", line, WTERMSIG(status), read_text(err));
    return WEXITSTATUS(status);
}

static void expect_ok(const char *line, const char *input) {
    int code = run_infer(line, input);
    if (code) fail_msg("%s: exit %d: %s", line, code, read_text(err));
}

/* The i-th line of standard output as JSON; -1: the last one. */
static json_t *json_line(int i) {
    char *text = read_text(out), *line = text, *next;
    for (int k = 0; (i < 0 || k < i) && (next = strchr(line, '\n')) && next[1]; k++) line = next + 1;
    json_t *o = json_parse("stdout", line, strcspn(line, "\n"), 0);
    if (!o) fail_msg("%s", fail_text());
    free(text);
    return o;
}

static const char *string_of(const json_t *o, const char *key) { return json_string_value(json_object_get(o, key)); }
static double number_of(const json_t *o, const char *key) { return json_number_value(json_object_get(o, key)); }

static int set_up(void **state) {
    (void)state;
    setenv("GOMP_SPINCOUNT", "1000", 1); /* else threads_settle would start this program anew */
    snprintf(dir, sizeof dir, "/tmp/test_infer.XXXXXX");
    if (!mkdtemp(dir)) return -1;
    snprintf(out, sizeof out, "%s/out", dir), snprintf(err, sizeof err, "%s/err", dir),
        snprintf(in, sizeof in, "%s/in", dir);
    return 0;
}

static int tear_down(void **state) {
    (void)state;
    char command[96];
    snprintf(command, sizeof command, "rm -rf '%s'", dir);
    return system(command);
}

/* The object of --json, the plain text, and the same prompt from a file and from standard input. */
static void one_shot(void **state) {
    (void)state;
    expect_ok(MODEL "--prompt abc --max-tokens 12 --ignore-eos --json --logprobs 2", "");
    json_t *o = json_line(-1), *top;
    assert_int_equal(number_of(o, "completion_tokens"), 12);
    assert_string_equal(string_of(o, "finish_reason"), "length");
    static const char *const positive[] = {"prompt_tokens", "prefill_tokens_per_second", "decode_tokens_per_second",
                                           "time_to_first_token_seconds", "peak_rss_bytes"};
    for (size_t i = 0; i < sizeof positive / sizeof *positive; i++) assert_true(number_of(o, positive[i]) > 0);
    json_t *all = json_object_get(o, "logprobs"), *one;
    size_t i;
    assert_int_equal(json_array_size(all), 12);
    json_array_foreach(all, i, one) { /* greedy: the chosen one is the most probable one */
        top = json_array_get(json_object_get(one, "top"), 0);
        assert_int_equal(json_array_size(json_object_get(one, "top")), 2);
        assert_true(number_of(one, "logprob") <= 0 && number_of(one, "id") == number_of(top, "id"));
    }
    expect_ok(MODEL "--prompt abc --max-tokens 12 --ignore-eos", "");
    char *text = read_text(out), *figures = read_text(err);
    assert_string_equal(text, string_of(o, "text"));
    assert_non_null(strstr(figures, "answer 12 tokens"));
    expect_ok(MODEL "--file - --max-tokens 12 --ignore-eos", "abc");
    char *again = read_text(out);
    assert_string_equal(again, text);
    free(text), free(figures), free(again);
    json_decref(o);
}

/* Guesses change no token, and --json says how they went. */
static void guesses(void **state) {
    (void)state;
#define LONG MODEL "--precise --prompt ababababababababab --max-tokens 60 --ignore-eos --json "
    static const char *const other[] = {"--lookup", "--draft-model tests/golden/tiny_llama"};
    expect_ok(LONG, "");
    json_t *plain = json_line(-1);
    for (int i = 0; i < 2; i++) {
        char line[256];
        snprintf(line, sizeof line, LONG "%s", other[i]);
        expect_ok(line, "");
        json_t *o = json_line(-1);
        assert_string_equal(string_of(o, "text"), string_of(plain, "text"));
        assert_true(number_of(o, "drafted_tokens") >= number_of(o, "accepted_tokens"));
        if (i) assert_true(number_of(o, "acceptance") == 1); /* the draft is the model itself */
        json_decref(o);
    }
    json_decref(plain);
}

/* Rows in the order of the file whatever ends first, each as if it were alone; a bad row costs nothing but itself. */
static void batch_rows(void **state) {
    (void)state;
    char path[96], line[256];
    snprintf(path, sizeof path, "%s/rows.jsonl", dir);
    write_text(path,
               "{\"prompt\": \"abc\", \"max_tokens\": 20}\n{\"prompt\": \"x\", \"max_tokens\": 1}\n{\"prompt\": 1}\n"
               "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}], \"max_tokens\": 5, \"seed\": 3}\n"
               "{\"prompt\": \"abc\", \"max_tokens\": 7, \"adapter\": 2}\n{\"prompt\": \"abc\", \"top_p\": 2}\n");
    for (int parallel = 1; parallel <= 4; parallel += 3) {
        snprintf(line, sizeof line, MODEL "--ignore-eos --json --parallel %d --batch %s", parallel, path);
        expect_ok(line, "");
        static const char *const errors[] = {NULL,
                                             NULL,
                                             "rows.jsonl:3: expected either 'prompt'",
                                             NULL,
                                             "rows.jsonl:5: key 'adapter': expected numbers below 0",
                                             "rows.jsonl:6: key 'top_p': expected a number from 0 to 1"};
        static const int tokens[] = {20, 1, 0, 5, 0, 0};
        for (int i = 0; i < 6; i++) {
            json_t *o = json_line(i);
            assert_int_equal(number_of(o, "index"), i);
            if (errors[i])
                assert_non_null(strstr(string_of(o, "error"), errors[i]));
            else
                assert_int_equal(number_of(o, "completion_tokens"), tokens[i]);
            json_decref(o);
        }
        json_t *sum = json_line(-1), *first = json_line(0);
        assert_int_equal(number_of(sum, "rows"), 6);
        assert_int_equal(number_of(sum, "completion_tokens"), 26);
        expect_ok(MODEL "--prompt abc --max-tokens 20 --ignore-eos", "");
        char *alone = read_text(out);
        assert_string_equal(alone, string_of(first, "text"));
        free(alone);
        json_decref(sum), json_decref(first);
    }
}

static void talk(void **state) {
    (void)state;
    char path[96], text[1024];
    snprintf(path, sizeof path, "%s/talk.json", dir);
    snprintf(
        text, sizeof text,
        "hello\n/set max-tokens 3\n/undo\none \\\ntwo\n\"\"\"\nmany\nlines\n\"\"\"\n/again\n/save %s\n/nonsense\n/set "
        "threads 4\n/set temperature hot\n/clear\n/load %s\n/show\n/undo\n/undo\n/undo\n/exit\nnever\n",
        path, path);
    expect_ok(MODEL "--chat --max-tokens 5 --ignore-eos --system be", text);
    char *said = read_text(err);
    static const char *const words[] = {"answer 5 tokens",
                                        "answer 3 tokens",
                                        "/nonsense is unknown",
                                        "'threads' cannot be set here",
                                        "--temperature: found 'hot'",
                                        "5 turns, 0 adapters",
                                        "nothing was said yet"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (!strstr(said, words[i])) fail_msg("'%s' is not in:\n%s", words[i], said);
    free(said);
    json_t *o = json_read(path), *turns = json_object_get(o, "messages");
    assert_int_equal(json_array_size(turns), 5);
    assert_string_equal(string_of(json_array_get(turns, 0), "content"), "be");
    assert_string_equal(string_of(json_array_get(turns, 1), "content"), "one \ntwo");
    assert_string_equal(string_of(json_array_get(turns, 3), "content"), "many\nlines");
    assert_string_equal(string_of(json_array_get(turns, 4), "role"), "assistant");
    json_decref(o);
}

static int steps, interrupt_at; /* SIGINT comes before that step, 0: never */
static int counted_step(engine *e) {
    if (++steps == interrupt_at) raise(SIGINT);
    return engine_step(e);
}

/* Ctrl-C ends the answer; the talk goes on with what was said. */
static void interrupted_answer(void **state) {
    (void)state;
    interrupt_at = 5;
    expect_ok(MODEL "--chat --ignore-eos --max-tokens 100", "hello\n/show\nmore\n");
    interrupt_at = 0;
    char *said = read_text(err);
    if (!strstr(said, "answer 5 tokens") || !strstr(said, "; stopped]") || !strstr(said, "2 turns") ||
        !strstr(said, "answer 100 tokens"))
        fail_msg("%s", said);
    free(said);
}

static void refused(void **state) {
    (void)state;
    static const struct {
        const char *line, *words;
        int code;
    } rows[] = {
        {"--prompt x", "--model is missing", EXIT_USAGE},
        {MODEL, "expected one of --prompt, --file, --chat, --batch, --score and --imatrix", EXIT_USAGE},
        {MODEL "--prompt x --score y", "expected one of", EXIT_USAGE},
        {MODEL "--prompt x --file y", "exclude each other", EXIT_USAGE},
        {MODEL "--prompt x --top-p 2", "--top-p: found '2', expected a number from 0 to 1", EXIT_USAGE},
        {MODEL "--prompt x --seed -1", "--seed: found '-1', expected a whole number", EXIT_USAGE},
        {MODEL "--prompt x --logit-bias 5", "--logit-bias: found '5'", EXIT_USAGE},
        {MODEL "--prompt x --logit-bias 500000+1", "500000", EXIT_USAGE},
        {MODEL "--prompt x --bogus", "unknown option '--bogus'", EXIT_USAGE},
        {MODEL "--prompt x --logprobs 1", "--logprobs needs --json or --batch", EXIT_USAGE},
        {MODEL "--prompt", "--prompt: expected TEXT behind it", EXIT_USAGE},
        {MODEL "--prompt x --merge", "--merge needs --adapter", EXIT_USAGE},
        {MODEL "--imatrix x", "--imatrix and --text belong together", EXIT_USAGE},
        {MODEL "--prompt x --adapter-type q4", "--adapter-type: found 'q4', expected f32 or bf16", EXIT_USAGE},
        {MODEL "--prompt x y", "unexpected argument 'y'", EXIT_USAGE},
        {MODEL "--chat --chat-template vicuna", "chat template 'vicuna' is unknown", EXIT_USAGE},
        {MODEL "--prompt x --context 100000000", "positions", EXIT_USAGE},
        {MODEL "--file /nowhere", "--file: /nowhere: No such file", EXIT_INPUT},
        {MODEL "--batch /nowhere", "/nowhere", EXIT_INPUT},
        {MODEL "--prompt x --adapter /nowhere", "/nowhere", EXIT_INPUT},
        {"--model /nowhere --prompt x", "/nowhere", EXIT_INPUT},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        int code = run_infer(rows[i].line, "");
        char *said = read_text(err);
        if (code != rows[i].code || !strstr(said, rows[i].words) || strncmp(said, "infer: error: ", 14))
            fail_msg("%s: exit %d: %s", rows[i].line, code, said);
        free(said);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(one_shot),           cmocka_unit_test(guesses),
        cmocka_unit_test(batch_rows),         cmocka_unit_test(talk),
        cmocka_unit_test(interrupted_answer), cmocka_unit_test(refused),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
