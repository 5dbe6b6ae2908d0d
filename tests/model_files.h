/* Model directories put together for one case: links to a golden model's files, some of them replaced. */
#ifndef PEFT_TESTS_MODEL_FILES_H
#define PEFT_TESTS_MODEL_FILES_H

#include "core/json.h"
#include "engine/runner.h"
#include "tests/hostile.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>

#define GOLDEN "tests/golden/"

static char scratch[64]; /* this program's directory */

static inline int make_scratch(void **state) {
    (void)state;
    snprintf(scratch, sizeof scratch, "/tmp/peft-test-source-XXXXXX");
    return mkdtemp(scratch) ? 0 : -1;
}

static inline int remove_scratch(void **state) {
    (void)state;
    char command[96];
    snprintf(command, sizeof command, "rm -rf %s", scratch);
    return system(command);
}

/* scratch/NAME with links to everything in tests/golden/MODEL; static buffer. */
static inline const char *link_model(const char *name, const char *model) {
    static char dir[128];
    char from[PATH_MAX], to[512], command[160], golden[128];
    snprintf(golden, sizeof golden, GOLDEN "%s", model);
    snprintf(dir, sizeof dir, "%s/%s", scratch, name);
    snprintf(command, sizeof command, "rm -rf %s", dir);
    assert_int_equal(system(command), 0);
    assert_int_equal(mkdir(dir, 0700), 0);
    DIR *d = opendir(golden);
    assert_non_null(d);
    for (struct dirent *e; (e = readdir(d));) {
        if (e->d_name[0] == '.') continue;
        char path[512];
        snprintf(path, sizeof path, "%s/%s", golden, e->d_name);
        assert_non_null(realpath(path, from));
        snprintf(to, sizeof to, "%s/%s", dir, e->d_name);
        assert_int_equal(symlink(from, to), 0);
    }
    closedir(d);
    return dir;
}

static inline void replace_file(const char *dir, const char *file, const void *data, size_t n) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", dir, file);
    unlink(path);
    if (file_save(path, data, n)) fail_msg("%s", fail_text());
}

/* A copy of a file that may be written to; heap. */
static inline uint8_t *read_whole(const char *path, size_t *n) {
    file_map m;
    if (file_open(&m, path)) fail_msg("%s", fail_text());
    uint8_t *data = xcalloc(m.size + 1, 1);
    memcpy(data, m.data, m.size);
    *n = m.size;
    file_close(&m);
    return data;
}

/* config.json of MODEL with keys of `patch` set; "DELETE" removes one. */
static inline const char *patch_config(const char *name, const char *model, const char *patch) {
    char path[128];
    const char *key, *dir = link_model(name, model);
    json_t *v, *with = json_loads(patch, 0, NULL);
    snprintf(path, sizeof path, GOLDEN "%s/config.json", model);
    json_t *cfg = json_read(path);
    assert_non_null(cfg);
    if (!with) fail_msg("not JSON: %s", patch);
    json_object_foreach(with, key, v) {
        if (json_is_string(v) && !strcmp(json_string_value(v), "DELETE"))
            json_object_del(cfg, key);
        else
            json_object_set(cfg, key, v);
    }
    char *text = json_dumps(cfg, JSON_INDENT(2));
    replace_file(dir, "config.json", text, strlen(text));
    free(text), json_decref(cfg), json_decref(with);
    return dir;
}

static inline void close_source(model_source *s) {
    model_source_close(s);
    assert_null(s->path);
}

/* What a call prints to stderr, until taken. */
typedef struct {
    int kept, fd;
} listening;

static inline listening listen_stderr(void) {
    listening l = {dup(2), memfd_create("stderr", MFD_CLOEXEC)};
    fflush(stderr);
    dup2(l.fd, 2);
    return l;
}

static inline char *heard(listening l) { /* static buffer */
    static char text[8192];
    fflush(stderr);
    dup2(l.kept, 2);
    ssize_t n = pread(l.fd, text, sizeof text - 1, 0);
    text[n > 0 ? n : 0] = 0;
    close(l.fd), close(l.kept);
    return text;
}

/* One sequence fed in pieces, as ./infer feeds a prompt. */
typedef struct {
    runner r;
    track at;
    int32_t ids[4096];
} feeder;

static inline void feeder_open(feeder *f, const model_source *s, const inference_options *how, int context) {
    const runner_options o = {.src = s,
                              .how = *how,
                              .kv = {.pages = context, .rows_max = context, .seqs_max = 1, .context = context},
                              .logit_rows = 1};
    if (runner_open(&f->r, &o)) fail_msg("%s", fail_text());
    track_open(&f->at, &f->r);
}

/* Logits after the last of n more tokens. */
static inline const float *feeder_feed(feeder *f, const int32_t *ids, int n) {
    memcpy(f->ids + f->at.cached, ids, (size_t)n * sizeof *ids);
    assert_int_equal(track_reserve(&f->at, &f->r, f->at.cached + n), 0);
    runner_begin(&f->r);
    runner_add(&f->r, &f->at, f->ids, n, -1, 1);
    runner_run(&f->r);
    track_advance(&f->at, &f->r, 0, f->ids, f->at.cached + n);
    return runner_logits(&f->r, 0);
}

static inline void feeder_close(feeder *f) {
    track_close(&f->at, &f->r);
    runner_close(&f->r);
}

/* Logits after each of n tokens, fed one by one; heap [n][vocab]. */
static inline float *logits_of(const char *model, const int32_t *ids, int n, int64_t *vocab) {
    model_source s;
    static feeder f;
    const inference_options o = {.backend = "auto", .threads = 2, .double_quant = true};
    if (model_source_open(&s, model)) fail_msg("%s", fail_text());
    feeder_open(&f, &s, &o, n);
    *vocab = s.hp.vocab;
    float *all = xcalloc((size_t)(n * s.hp.vocab), sizeof *all);
    for (int i = 0; i < n; i++)
        memcpy(all + i * s.hp.vocab, feeder_feed(&f, ids + i, 1), (size_t)s.hp.vocab * sizeof *all);
    feeder_close(&f);
    model_source_close(&s);
    return all;
}

#endif
