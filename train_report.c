#include "train_report.h"
#include "core/arena.h"
#include "core/error.h"
#include "core/file.h"
#include "core/json.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <time.h>

/* report_page.html as it stands in the tree; the mark in it gives way to the data */
__asm__(".section .rodata\n"
        "report_page: .incbin \"report_page.html\"\n"
        ".byte 0\n"
        ".text\n");
extern const char report_page[];
#define MARK "/*DATA*/"

/* ---- what a run leaves about itself ---- */

/* What stands behind `key` in a file of "key : value" lines. */
static void find_line(const char *path, const char *key, char *out, size_t size) {
    char line[512];
    FILE *f = fopen(path, "r");
    snprintf(out, size, "unknown");
    while (f && fgets(line, sizeof line, f)) {
        const char *value = strchr(line, ':');
        if (strncmp(line, key, strlen(key)) || !value) continue;
        value += 1 + strspn(value + 1, " \t");
        snprintf(out, size, "%.*s", (int)strcspn(value, "\n"), value);
        break;
    }
    if (f) fclose(f);
}

static int save_text(const char *dir, const char *name, const char *text) {
    char *path = path_join(dir, name);
    int bad = file_save(path, text, strlen(text));
    free(path);
    return bad;
}

int train_report_begin(const config *c, const session *s) {
    char cpu[128], memory[64], began[32];
    struct utsname os;
    time_t now = time(NULL);
    struct tm t;
    find_line("/proc/cpuinfo", "model name", cpu, sizeof cpu),
        find_line("/proc/meminfo", "MemTotal", memory, sizeof memory);
    uname(&os);
    strftime(began, sizeof began, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&now, &t));
    json_t *o = json_pack("{s:s,s:s,s:s,s:s,s:s,s:i,s:s,s:I}", "started", began, "processor", cpu, "memory", memory,
                          "system", os.release, "backend", s->k.be->name, "threads", s->k.threads, "compiler",
                          __VERSION__, "trainable_params", (json_int_t)s->ad.n);
    char *machine = json_dumps(o, JSON_INDENT(2)), *text = config_text(c);
    int bad = save_text(c->output_dir, "environment.json", machine) || save_text(c->output_dir, "config.yaml", text);
    json_decref(o);
    free(machine), free(text);
    return bad;
}

/* ---- the page ---- */

/* The text of a file, heap; NULL when there is none. */
static char *text_of(const char *dir, const char *name) {
    char *path = path_join(dir, name), *text = path_exists(path) ? file_text(path, NULL) : NULL;
    fail_clear();
    free(path);
    return text;
}

static json_t *rows_of(const char *dir) {
    char *text = text_of(dir, "metrics.jsonl");
    json_t *rows = json_array();
    for (char *line = text, *end; line && (end = strchr(line, '\n')); line = end + 1) {
        json_t *row = json_parse("metrics.jsonl", line, (size_t)(end - line), 0);
        if (row) json_array_append_new(rows, row);
        fail_clear();
    }
    bool none = !text;
    free(text);
    if (!none) return rows;
    json_decref(rows);
    fail(EXIT_INPUT, "%s: no metrics.jsonl: not the output directory of a training run", dir);
    return NULL;
}

static json_t *run_of(const char *dir) {
    json_t *rows = rows_of(dir), *run;
    if (!rows) return NULL;
    char *config = text_of(dir, "config.yaml"), *machine = text_of(dir, "environment.json");
    json_t *environment = machine ? json_parse("environment.json", machine, strlen(machine), 0) : NULL;
    run = json_pack("{s:s,s:o,s:s}", "name", dir, "rows", rows, "config", config ? config : "");
    if (environment) json_object_set_new(run, "environment", environment);
    fail_clear();
    free(config), free(machine);
    return run;
}

/* Inside a script element only < could end it or begin a comment. */
static void put_json(FILE *f, const json_t *o) {
    char *text = json_dumps(o, JSON_COMPACT | JSON_REAL_PRECISION(9));
    CHECK(text, "%s", "report");
    for (const char *p = text; *p; p++)
        if (*p == '<')
            fputs("\\u003c", f);
        else
            fputc(*p, f);
    free(text);
}

int train_report(const char *const *dirs, int n, const char *path) {
    json_t *runs = json_array();
    int bad = 0;
    for (int i = 0; i < n && !bad; i++) {
        json_t *run = run_of(dirs[i]);
        if (run)
            json_array_append_new(runs, run);
        else
            bad = -1;
    }
    const char *mark = strstr(report_page, MARK);
    CHECK(mark, "%s in the page", MARK);
    if (!bad) {
        char *text = NULL;
        size_t size = 0;
        FILE *f = open_memstream(&text, &size);
        fwrite(report_page, 1, (size_t)(mark - report_page), f);
        put_json(f, runs);
        fputs(mark + strlen(MARK), f);
        fclose(f);
        bad = file_save(path, text, size);
        free(text);
    }
    json_decref(runs);
    return bad;
}
