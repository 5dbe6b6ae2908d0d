/* Prints the ids of each line of a file, one JSON list a line, so that a script can compare them with another
 * tokenizer's. tool_tokenize MODEL FILE [--json] [--no-special] [--add] [--spans] MODEL is a Hugging Face directory or
 * a GGUF file. --json: each line is a JSON string, so that text may hold newlines. */
#include "core/arena.h"
#include "core/error.h"
#include "core/json.h"
#include "data/tokenizer.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    bool json, spans;
    int flags;
} options;

static void print_ids(const token_list *l) {
    putchar('[');
    for (int64_t i = 0; i < l->n; i++) printf(i ? ", %d" : "%d", l->id[i]);
    putchar(']');
}

static void print_places(const int64_t *v, int64_t n) {
    putchar('[');
    for (int64_t i = 0; i < n; i++) printf(i ? ", %ld" : "%ld", (long)v[i]);
    putchar(']');
}

static int tokenize_line(const tokenizer *t, const options *o, const char *line, size_t n, int number) {
    token_list l = {0};
    json_t *value = NULL;
    if (o->json) {
        char *wrapped = xprintf("[%.*s]", (int)n, line);
        value = json_parse("line", wrapped, strlen(wrapped), number);
        free(wrapped);
        const json_t *s = json_array_get(value, 0);
        if (!json_is_string(s)) return fail(EXIT_INPUT, "line %d: expected a JSON string", number);
        line = json_string_value(s), n = json_string_length(s);
    }
    int rc = tokenizer_encode(t, line, (int64_t)n, o->flags, &l);
    if (!rc && o->spans) {
        putchar('[');
        print_ids(&l);
        fputs(", ", stdout);
        print_places(l.begin, l.n);
        fputs(", ", stdout);
        print_places(l.end, l.n);
        puts("]");
    } else if (!rc) {
        print_ids(&l);
        putchar('\n');
    }
    json_decref(value);
    token_list_free(&l);
    return rc;
}

static int tokenize_file(const tokenizer *t, const options *o, const char *path) {
    FILE *f = fopen(path, "rb");
    if (!f) return fail(EXIT_IO, "%s: cannot be opened", path);
    char *line = NULL;
    size_t cap = 0;
    ssize_t n;
    int rc = 0;
    for (int number = 1; !rc && (n = getline(&line, &cap, f)) >= 0; number++) {
        if (n && line[n - 1] == '\n') n--;
        rc = tokenize_line(t, o, line, (size_t)n, number);
    }
    free(line);
    fclose(f);
    return rc;
}

int main(int argc, char **argv) {
    options o = {.flags = TOKENIZE_SPECIAL};
    for (int i = 3; i < argc; i++) {
        if (!strcmp(argv[i], "--json"))
            o.json = true;
        else if (!strcmp(argv[i], "--spans"))
            o.spans = true;
        else if (!strcmp(argv[i], "--add"))
            o.flags |= TOKENIZE_ADD;
        else if (!strcmp(argv[i], "--no-special"))
            o.flags &= ~TOKENIZE_SPECIAL;
        else
            argc = 0;
    }
    if (argc < 3) {
        fputs("usage: tool_tokenize MODEL FILE [--json] [--no-special] [--add] [--spans]\n", stderr);
        return EXIT_USAGE;
    }
    gguf g = {0};
    size_t n = strlen(argv[1]);
    bool file = n > 5 && !strcmp(argv[1] + n - 5, ".gguf");
    if (file && gguf_open(&g, argv[1])) return fail_report("tool_tokenize");
    tokenizer *t = file ? tokenizer_open_gguf(&g) : tokenizer_open_dir(argv[1]);
    int rc = t ? tokenize_file(t, &o, argv[2]) : -1;
    tokenizer_close(t);
    if (file) gguf_close(&g);
    return rc ? fail_report("tool_tokenize") : 0;
}
