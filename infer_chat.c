#include "infer_chat.h"
#include "core/arena.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"
#include "infer_line.h"

#include <stdlib.h>
#include <string.h>

typedef struct talk {
    app *a;
    json_t *turns; /* messages */
    adapter_share share[SHARES_MAX];
    int shares;
    bool done;
} talk;

typedef struct command {
    const char *name, *arg, *help;
    int (*run)(talk *t, const char *arg); /* -1 after fail(): said, and the talk goes on */
} command;
static const command commands[];

static void say(talk *t, const char *role, const char *content, size_t n) {
    json_array_append_new(t->turns, json_pack("{s:s,s:s%}", "role", role, "content", content, n));
}

static const char *role_at(const talk *t, size_t i) {
    return json_string_value(json_object_get(json_array_get(t->turns, i), "role"));
}

/* A failure ends a command or an answer, not the talk. */
static int forgive(int bad) {
    if (bad) fprintf(stderr, "%s\n", fail_text());
    fail_clear();
    return 0;
}

static int answer(talk *t) {
    token_list ids = {0};
    reply r = {0};
    app *a = t->a;
    int bad = app_encode_chat(a, t->turns, NULL, &ids);
    request q = infer_request(&a->o);
    q.prompt = ids.id, q.n = (int)ids.n, q.adapter = t->share, q.adapters = t->shares;
    bad = bad || reply_run(a, &q, a->o.json, &r);
    if (!bad) {
        reply_report(a, &r);
        say(t, "assistant", r.text, r.length);
    }
    token_list_free(&ids);
    reply_free(&r);
    return bad ? -1 : 0;
}

/* The turn stays only when it is answered. */
static int user_turn(talk *t, const char *content) {
    size_t before = json_array_size(t->turns);
    say(t, "user", content, strlen(content));
    if (!answer(t)) return 0;
    json_array_remove(t->turns, before);
    return -1;
}

/* ---- commands ---- */

static int do_help(talk *t, const char *arg) {
    (void)t, (void)arg;
    for (const command *c = commands; c->name; c++) {
        char left[64];
        snprintf(left, sizeof left, "/%s %s", c->name, c->arg);
        fprintf(stderr, "  %-22s %s\n", left, c->help);
    }
    fprintf(
        stderr,
        "  a line that ends with \\ goes on in the next one; three quotes \"\"\" begin and end a text of many lines\n"
        "  Ctrl-C stops an answer, Ctrl-D ends the talk\n");
    return 0;
}

static int do_exit(talk *t, const char *arg) {
    (void)arg;
    t->done = true;
    return 0;
}

static void begin(talk *t) {
    json_array_clear(t->turns);
    if (t->a->o.system) say(t, "system", t->a->o.system, strlen(t->a->o.system));
}

static int do_clear(talk *t, const char *arg) {
    (void)arg;
    begin(t);
    return 0;
}

static int do_system(talk *t, const char *arg) {
    if (infer_options_set(&t->a->o, "system", arg)) return -1;
    begin(t);
    return 0;
}

/* Drops the last answer, and with `turn` what it answered. */
static bool drop_last(talk *t, bool turn) {
    size_t n = json_array_size(t->turns);
    if (n < 2 || strcmp(role_at(t, n - 1), "assistant")) return false;
    json_array_remove(t->turns, n - 1);
    if (turn) json_array_remove(t->turns, n - 2);
    return true;
}

static int do_undo(talk *t, const char *arg) {
    (void)arg;
    return drop_last(t, true) ? 0 : fail(EXIT_USAGE, "nothing was said yet");
}

static int do_again(talk *t, const char *arg) {
    (void)arg;
    if (!drop_last(t, false)) return fail(EXIT_USAGE, "nothing was answered yet");
    t->a->o.seed++; /* another draw */
    return answer(t);
}

static int do_set(talk *t, const char *arg) {
    char name[64];
    int used = 0;
    if (sscanf(arg, "%63s %n", name, &used) != 1 || !arg[used])
        return fail(EXIT_USAGE, "expected a name and a value: /set temperature 0.5");
    return infer_options_set(&t->a->o, name, arg + used);
}

static int do_file(talk *t, const char *arg) {
    char *text = file_text(arg, NULL);
    if (!text) return -1;
    int bad = user_turn(t, text);
    free(text);
    return bad;
}

static int do_save(talk *t, const char *arg) {
    if (!*arg) return fail(EXIT_USAGE, "expected a file's name");
    json_t *o = json_pack("{s:O}", "messages", t->turns);
    char *text = json_dumps(o, 0), *line = xprintf("%s\n", text);
    int bad = file_save(arg, line, strlen(line));
    free(text), free(line);
    json_decref(o);
    return bad;
}

static int do_load(talk *t, const char *arg) {
    json_t *o = json_read(arg), *turns = json_object_get(o, "messages"), *turn;
    size_t i;
    int bad = o ? 0 : -1;
    if (!bad && !json_is_array(turns)) bad = fail(EXIT_INPUT, "%s: key 'messages': expected an array of turns", arg);
    json_array_foreach(turns, i, turn) if (!bad && (!json_is_string(json_object_get(turn, "role")) ||
                                                    !json_is_string(json_object_get(turn, "content")))) bad =
        fail(EXIT_INPUT, "%s: turn %zu: expected role and content", arg, i + 1);
    if (!bad) {
        json_array_clear(t->turns);
        json_array_extend(t->turns, turns);
    }
    json_decref(o);
    return bad;
}

/* DIR[:SCALE] beside those that are used; nothing: none any more. */
static int do_adapter(talk *t, const char *arg) {
    if (!*arg) {
        t->shares = 0;
        return 0;
    }
    if (t->shares == SHARES_MAX)
        return fail(EXIT_USAGE, "%d adapters are in use: /adapter alone puts them away", SHARES_MAX);
    char *dir = xstrdup(arg), *colon = strrchr(dir, ':'), *end = NULL;
    float scale = 1;
    if (colon && !path_exists(dir)) {
        scale = strtof(colon + 1, &end);
        *colon = 0;
    }
    int n = end && *end ? fail(EXIT_USAGE, "'%s': expected DIR or DIR:SCALE", arg) : engine_adapter_load(t->a->e, dir);
    if (n >= 0) t->share[t->shares++] = (adapter_share){n, scale};
    free(dir);
    return n < 0 ? -1 : 0;
}

static int do_show(talk *t, const char *arg) {
    (void)arg;
    engine_stats s = engine_figures(t->a->e);
    fprintf(stderr,
            "  %zu turns, %d adapters; %ld tokens read, %ld of them known before; %ld written; %d of %d pages of the "
            "cache held; %.0f MiB\n",
            json_array_size(t->turns), t->shares, (long)(s.prompt_tokens), (long)s.cached_tokens,
            (long)s.completion_tokens, s.pages_held, s.pages, (double)peak_rss_bytes() / 1048576);
    return 0;
}

static const command commands[] = {
    {"help", "", "this list", do_help},
    {"exit", "", "end the talk", do_exit},
    {"clear", "", "begin anew", do_clear},
    {"system", "TEXT", "begin anew with this system turn", do_system},
    {"again", "", "another answer to the last turn", do_again},
    {"undo", "", "forget the last turn and its answer", do_undo},
    {"set", "NAME VALUE", "an option of the command line: temperature, top-p, max-tokens, seed, stop ...", do_set},
    {"file", "PATH", "say the text of a file", do_file},
    {"save", "PATH", "write the conversation as JSON, a row for training", do_save},
    {"load", "PATH", "go on with a conversation that was saved", do_load},
    {"adapter", "[DIR[:X]]", "use one adapter more; without a name, none", do_adapter},
    {"show", "", "figures", do_show},
    {NULL, "", NULL, NULL}};

static int run_command(talk *t, const char *line) {
    size_t n = strcspn(line, " ");
    const char *arg = line + n + strspn(line + n, " ");
    for (const command *c = commands; c->name; c++)
        if (strlen(c->name) == n && !strncmp(c->name, line, n)) return c->run(t, arg);
    return fail(EXIT_USAGE, "/%.*s is unknown; /help lists what there is", (int)n, line);
}

/* ---- lines ---- */

static char *join(char *a, const char *b) {
    char *both = a ? xprintf("%s\n%s", a, b) : xstrdup(b);
    free(a);
    return both;
}

/* The lines up to one of three quotes; takes over nothing. */
static char *read_quoted(void) {
    char *all = NULL, *line;
    while ((line = line_read(". ")) && strcmp(line, "\"\"\"")) {
        all = join(all, line);
        free(line);
    }
    free(line);
    return all ? all : xstrdup("");
}

/* What is said: a line, lines ended by a backslash, or the text between two lines of three quotes. NULL at the end. */
static char *read_turn(void) {
    char *line = line_read("> "), *all = NULL;
    if (line && !strcmp(line, "\"\"\"")) {
        free(line);
        return read_quoted();
    }
    for (bool more = true; line && more; line = more ? line_read(". ") : NULL) {
        size_t n = strlen(line);
        more = n && line[n - 1] == '\\';
        if (more) line[n - 1] = 0;
        all = join(all, line);
        free(line);
    }
    return all;
}

int chat_run(app *a, const char *first) {
    talk t = {.a = a, .turns = json_array()};
    request q = REQUEST_PLAIN;
    engine_default_adapters(a->e, &q);
    for (; t.shares < q.adapters; t.shares++) t.share[t.shares] = q.adapter[t.shares];
    begin(&t);
    int bad = first ? user_turn(&t, first) : 0;
    while (!first && !t.done) {
        char *line = read_turn();
        if (!line) break;
        if (*line == '/')
            forgive(run_command(&t, line + 1));
        else if (*line)
            forgive(user_turn(&t, line));
        free(line);
    }
    json_decref(t.turns);
    return bad;
}
