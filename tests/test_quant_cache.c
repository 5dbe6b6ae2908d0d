/* The cached 4-bit base: what it gives is what quantising anew gives, to the bit, and nothing stale, damaged, foreign
 * or half-written is ever used. XXH64 against libxxhash 0.8.1. */
#include "core/error.h"
#include "core/xxh64.h"
#include "model/inference.h"
#include "model/quant_cache.h"
#include "model/rows.h"

#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

static char root[64]; /* this program's scratch directory */
static const char tiny[] = "tests/golden/tiny_llama", tied[] = "tests/golden/tiny_tied";

static char *in_root(const char *name) { return xprintf("%s/%s", root, name); }

/* ---- helpers ---- */

static void copy_file(const char *from, const char *to) {
    file_map m;
    assert_int_equal(file_open(&m, from), 0);
    assert_int_equal(file_save(to, m.data, m.size), 0);
    file_close(&m);
}

static char *copy_model(const char *from, const char *name) {
    char *to = in_root(name);
    assert_int_equal(path_make_dirs(to), 0);
    DIR *d = opendir(from);
    for (const struct dirent *e; (e = readdir(d));) {
        if (*e->d_name == '.') continue;
        char *a = path_join(from, e->d_name), *b = path_join(to, e->d_name);
        copy_file(a, b);
        free(a), free(b);
    }
    closedir(d);
    return to;
}

/* Overwrites n bytes at `at` (from the end when negative) in place, and puts the times of last access and change back.
 */
static void poke(const char *path, long at, const void *bytes, size_t n) {
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    int fd = open(path, O_WRONLY);
    assert_int_equal(pwrite(fd, bytes, n, at < 0 ? st.st_size + at : at), (ssize_t)n);
    close(fd);
    const struct timespec times[2] = {st.st_atim, st.st_mtim};
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
}

/* Names in dir that hold `part`; the last one's path in *path when it is not NULL. */
static int count_files(const char *dir, const char *part, char **path) {
    DIR *d = opendir(dir);
    int n = 0;
    if (!d) return 0;
    for (const struct dirent *e; (e = readdir(d));) {
        if (*e->d_name == '.' || !strstr(e->d_name, part)) continue;
        n++;
        if (path) free(*path), *path = path_join(dir, e->d_name);
    }
    closedir(d);
    return n;
}

static char *only_file(const char *dir, const char *part) {
    char *path = NULL;
    assert_int_equal(count_files(dir, part, &path), 1);
    return path;
}

typedef struct {
    model_source src;
    quant_cache q;
    char notes[2048];
} opened;

/* Opens model and cache; what is said on stderr goes to notes. */
static void open_cache(opened *o, const char *model, const char *dir, bool twice, quant_cache_mode mode) {
    const quant_cache_options how = {mode, dir, 0};
    char *log = in_root("notes");
    if (model_source_open(&o->src, model)) fail_msg("%s", fail_text());
    fflush(stderr);
    int kept = dup(2), fd = open(log, O_CREAT | O_RDWR | O_TRUNC, 0600);
    dup2(fd, 2);
    quant_cache_open(&o->q, &o->src, twice, &how);
    fflush(stderr);
    dup2(kept, 2);
    ssize_t n = pread(fd, o->notes, sizeof o->notes - 1, 0);
    o->notes[n > 0 ? n : 0] = 0;
    close(kept), close(fd);
    free(log);
    assert_int_equal(fail_code(), 0); /* nothing of it is an error */
}

static void close_cache(opened *o) {
    quant_cache_close(&o->q);
    model_source_close(&o->src);
}

static bool same_scales(const nf4_meta *a, const nf4_meta *b, int64_t blocks) {
    if (a->nested_block != b->nested_block || a->blocksize != b->blocksize || a->map != b->map) return false;
    if (!a->nested_block) return !memcmp(a->absmax, b->absmax, (size_t)blocks * 4);
    return !memcmp(a->code, b->code, (size_t)blocks) && !memcmp(&a->offset, &b->offset, 4) &&
           !memcmp(a->nested_absmax, b->nested_absmax, (size_t)(blocks + 255) / 256 * 4);
}

/* Every module of the cache against the source quantised anew. */
static bool equals_fresh(const opened *o, bool twice) {
    bool same = o->q.n > 0;
    for (int i = 0; i < o->q.n && same; i++) {
        const quant_module *m = &o->q.modules[i];
        char *name = xprintf("%s.weight", m->name);
        weight stored, cached;
        arena run;
        assert_int_equal(model_source_weight(&o->src, name, m->rows, m->cols, &stored), 0);
        assert_int_equal(arena_open(&run, "fresh", 1 << 20), 0);
        weight fresh = rows_nf4(&stored, model_source_permuted(&o->src, name), twice, &run);
        assert_true(quant_cache_weight(&o->q, m->name, m->rows, m->cols, &cached));
        same = !memcmp(fresh.data, cached.data, (size_t)weight_bytes(&fresh)) &&
               same_scales(fresh.meta, cached.meta, (m->rows * m->cols + 63) / 64);
        free((void *)(uintptr_t)fresh.meta), free((void *)(uintptr_t)cached.meta), free(name);
        arena_close(&run);
    }
    return same;
}

enum { HIT = 0, MADE = 1, NONE = 2 };

/* Opens once more and checks: what happened, that notes say `said` (NULL: nothing), and the bits. */
static void expect(const char *model, const char *dir, bool twice, quant_cache_mode mode, int what, const char *said) {
    opened o;
    open_cache(&o, model, dir, twice, mode);
    int found = !o.q.st.n ? NONE : o.q.made ? MADE : HIT;
    if (found != what) fail_msg("%s: %d, expected %d; notes: %s", model, found, what, o.notes);
    if (said ? !strstr(o.notes, said) : *o.notes) fail_msg("notes: '%s', expected '%s'", o.notes, said ? said : "");
    if (what != NONE && !equals_fresh(&o, twice)) fail_msg("%s: not what quantising anew gives", model);
    close_cache(&o);
}

static const char quantising[] = "note: quantising the base to NF4; kept for later starts in ";

/* ---- tests ---- */

static void test_xxh64(void **state) {
    (void)state;
    static const struct {
        size_t n;
        uint64_t hash, seeded;
    } want[] = {
        {0, 0xef46db3751d8e999, 0x51e24c0e9077a48c},   {1, 0xe934a84adb052768, 0xaffd9d6bd53cf137},
        {3, 0x28823e205e353f69, 0x6c818c22860a3e81},   {4, 0x91b65bbe720c34cf, 0x42ff862f66eb2e35},
        {7, 0xe2400cdea02ee3c5, 0x957acc807639a724},   {8, 0x521fd2878ea69d17, 0x1210f690eb184790},
        {15, 0x4ee77ab371d06e31, 0x914110f04e99399e},  {31, 0xb74baa9042b94dee, 0xe52837b89fac671f},
        {32, 0x4e13111ced6f735d, 0xff81a01dfc012343},  {33, 0xf7b9faf20b3bce63, 0xf8426d3a868a3841},
        {63, 0x35f935e6044a08ad, 0x9ffae9e2da3775bf},  {100, 0xd61ea92c5ae13676, 0x936ad1c87b8eb8a0},
        {200, 0xdc2d5a9de81b7d4c, 0x371bd5a064fc3735},
    };
    uint8_t bytes[200];
    for (uint64_t i = 0; i < 200; i++) bytes[i] = (uint8_t)(i * 2654435761u >> 13);
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        assert_true(xxh64(bytes, want[i].n, 0) == want[i].hash);
        assert_true(xxh64(bytes, want[i].n, 0x123456789abcdef) == want[i].seeded);
    }
    assert_true(xxh64("abc", 3, 0) == 0x44bc2cf5ad770999);
}

/* First start, later starts, a copy elsewhere, both kinds of scales, one shard and several: the same bits. */
static void test_hit(void **state) {
    (void)state;
    char *dir = in_root("hit"), *copy = copy_model(tiny, "copy");
    static const char *const models[] = {tiny, tied};
    for (int i = 0; i < 2; i++)
        for (int twice = 0; twice < 2; twice++) {
            expect(models[i], dir, twice, QUANT_CACHE_ON, MADE, quantising);
            expect(models[i], dir, twice, QUANT_CACHE_ON, HIT, NULL);
            expect(models[i], dir, twice, QUANT_CACHE_VERIFY, HIT, NULL);
        }
    expect(copy, dir, true, QUANT_CACHE_ON, HIT, NULL);
    expect(copy, dir, true, QUANT_CACHE_READ, HIT, NULL);
    assert_int_equal(count_files(dir, ".safetensors", NULL), 4);
    assert_int_equal(count_files(dir, ".tmp.", NULL), 0);
    free(dir), free(copy);
}

/* The layout that bitsandbytes reads; the tensors of one module. */
static void test_layout(void **state) {
    (void)state;
    static const struct {
        const char *suffix;
        st_dtype dtype;
        int64_t n;
    } want[] = {
        {"", ST_U8, 64 * 64 / 2},           {".absmax", ST_U8, 64},
        {".nested_absmax", ST_F32, 1},      {".quant_map", ST_F32, 16},
        {".nested_quant_map", ST_F32, 256},
    };
    char *dir = in_root("layout");
    safetensors st;
    expect(tiny, dir, true, QUANT_CACHE_ON, MADE, quantising);
    char *path = only_file(dir, ".safetensors");
    assert_int_equal(safetensors_open(&st, path), 0);
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        char name[128];
        snprintf(name, sizeof name, "model.layers.1.self_attn.q_proj.weight%s", want[i].suffix);
        const st_tensor *t = safetensors_find(&st, name);
        assert_true(t && t->dtype == want[i].dtype && t->shape[0] == want[i].n);
        if (t->dtype == ST_F32) assert_int_equal((uintptr_t)t->data % 4, 0);
    }
    const st_tensor *map = safetensors_find(&st, "model.layers.0.mlp.down_proj.weight.quant_map");
    assert_memory_equal(map->data, nf4_codes, sizeof nf4_codes);
    const st_tensor *s = safetensors_find(&st, "model.layers.0.mlp.down_proj.weight.quant_state.bitsandbytes__nf4");
    assert_memory_equal(s->data, "{\"quant_type\": \"nf4\", \"blocksize\": 64, ", 39);
    safetensors_close(&st);
    free(path), free(dir);
}

/* dir NULL: no cache. */
static void score(const char *model, const char *dir, int what, float *logprob, size_t *run) {
    static const int32_t ids[] = {1, 5, 9, 200, 31, 77, 4, 4, 100, 3};
    const inference_options o = {.backend = "auto",
                                 .threads = 2,
                                 .load_in_4bit = true,
                                 .double_quant = true,
                                 .cache = {dir ? QUANT_CACHE_ON : QUANT_CACHE_OFF, dir, 0}};
    model_source src;
    scorer r;
    assert_int_equal(model_source_open(&src, model), 0);
    if (scorer_open(&r, &src, &o, 10)) fail_msg("%s", fail_text());
    assert_int_equal(!r.quant.st.n ? NONE : r.quant.made ? MADE : HIT, what);
    assert_int_equal(r.s.run.used, r.s.run.size); /* the plan is the allocation, cached or not */
    *run = r.s.run.size;
    scorer_run(&r, ids, 10);
    memcpy(logprob, r.logprob, 9 * sizeof *logprob);
    scorer_close(&r);
    model_source_close(&src);
}

static void test_model(void **state) {
    (void)state;
    char *dir = in_root("model");
    float fresh[9], first[9], later[9];
    size_t all, made, hit;
    score(tiny, NULL, NONE, fresh, &all);
    score(tiny, dir, MADE, first, &made);
    score(tiny, dir, HIT, later, &hit);
    assert_memory_equal(fresh, first, sizeof fresh);
    assert_memory_equal(fresh, later, sizeof fresh);
    assert_true(made == hit && hit < all); /* codes and scales are not in the arena any more */
    free(dir);
}

/* Content changes, size and mtime do not. Times settle first, so that the hash is remembered and has to be distrusted.
 */
static void test_stale(void **state) {
    (void)state;
    char *dir = in_root("stale"), *model = copy_model(tiny, "changing"), *file = path_join(model, "model.safetensors");
    file_map m;
    assert_int_equal(file_open(&m, file), 0);
    uint8_t old[4];
    memcpy(old, m.data + m.size - 4, 4);
    file_close(&m);
    expect(model, dir, true, QUANT_CACHE_ON, MADE, quantising);
    assert_int_equal(count_files(dir, "base-", NULL), 0); /* changed too recently to be remembered */
    nanosleep(&(struct timespec){2, 100000000}, NULL);
    expect(model, dir, true, QUANT_CACHE_ON, HIT, NULL);
    assert_int_equal(count_files(dir, "base-", NULL), 1);
    expect(model, dir, true, QUANT_CACHE_ON, HIT, NULL);
    for (long at = 4; at <= 400004; at += 100000) { /* in quantised matrices and elsewhere */
        poke(file, -at, "\x12\x34\x56\x41", 4);
        opened o;
        open_cache(&o, model, dir, true, QUANT_CACHE_ON);
        if (!o.q.made || !equals_fresh(&o, true))
            fail_msg("a change %ld bytes from the end was not seen: %s", at, o.notes);
        close_cache(&o);
    }
    free(dir), free(model), free(file);
}

/* Where every number of the file system lies, and so do the pages looked at: verify reads the whole base. */
static void test_verify(void **state) {
    (void)state;
    char *dir = in_root("verify"), *a = copy_model(tiny, "verify_a"), *b = copy_model(tiny, "verify_b");
    char *fa = path_join(a, "model.safetensors"), *fb = path_join(b, "model.safetensors"), *memo, *forged;
    static const float big = 3;
    file_map m;
    poke(fb, -200000, &big, 4); /* in a matrix, in none of the pages that are looked at */
    nanosleep(&(struct timespec){2, 100000000}, NULL);
    expect(a, dir, true, QUANT_CACHE_ON, MADE, quantising);
    memo = only_file(dir, "base-");
    assert_int_equal(file_open(&m, memo), 0);
    assert_int_equal(unlink(memo), 0);
    expect(b, dir, true, QUANT_CACHE_ON, MADE, quantising);
    forged = only_file(dir, "base-");
    poke(forged, -17, m.data + m.size - 17, 16); /* "b holds what a holds" */
    file_close(&m);
    opened o;
    open_cache(&o, b, dir, true, QUANT_CACHE_ON);
    assert_false(equals_fresh(&o, true)); /* it was believed: the memory is worth no more than the file system */
    close_cache(&o);
    expect(b, dir, true, QUANT_CACHE_VERIFY, HIT, NULL);
    expect(b, dir, true, QUANT_CACHE_ON, HIT, NULL); /* and it has been put right */
    free(dir), free(a), free(b), free(fa), free(fb), free(memo), free(forged);
}

static void test_damaged(void **state) {
    (void)state;
    char *dir = in_root("damaged");
    expect(tiny, dir, true, QUANT_CACHE_ON, MADE, quantising);
    char *path = only_file(dir, ".safetensors");
    file_map m;
    assert_int_equal(file_open(&m, path), 0);
    long data = 8, size = (long)m.size;
    for (int i = 7; i >= 0; i--) data += (long)m.data[i] << 8 * i;
    const char *key = memmem(m.data, m.size, "version 1,", 10),
               *offset = memmem(m.data, m.size, "nested_offset\": 0.", 18);
    assert_true(key && offset);
    const struct {
        long at;
        const char *what;
    } cases[] = {
        {data + 40, "checksum is another"},
        {data + 3000, "checksum is another"},
        {size - 100, "checksum is another"},
        {size - 3, "checksum is another"},
        {(long)(offset - (const char *)m.data) + 18, "checksum is another"},
        {key - (const char *)m.data + 8, "it belongs to another base"},
        {0, "header"},
        {9, "header"},
    };
    file_close(&m);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *kept = in_root("kept");
        copy_file(path, kept);
        assert_int_equal(file_open(&m, path), 0);
        const uint8_t other = m.data[cases[i].at] == '7' ? '8' : '7';
        file_close(&m);
        poke(path, cases[i].at, &other, 1);
        expect(tiny, dir, true, QUANT_CACHE_ON, MADE, cases[i].what);
        expect(tiny, dir, true, QUANT_CACHE_ON, HIT, NULL);
        file_map a, b;
        assert_int_equal(file_open(&a, path) | file_open(&b, kept), 0);
        assert_true(a.size == b.size && !memcmp(a.data, b.data, a.size)); /* made anew, byte for byte */
        file_close(&a), file_close(&b);
        free(kept);
    }
    static const long lengths[] = {0, 7, 100, 5000, -1};
    for (int i = 0; i < 5; i++) {
        assert_int_equal(truncate(path, lengths[i] < 0 ? size - 1 : lengths[i]), 0);
        expect(tiny, dir, true, QUANT_CACHE_READ, NONE, "it is quantised into memory");
        expect(tiny, dir, true, QUANT_CACHE_ON, MADE, "it is made anew");
        expect(tiny, dir, true, QUANT_CACHE_ON, HIT, NULL);
    }
    free(path), free(dir);
}

/* No place, no wish, no worth, no model. */
static void test_without(void **state) {
    (void)state;
    char *file = in_root("a_file"), *under = in_root("a_file/dir"), *dir = in_root("without"),
         *model = copy_model(tiny, "broken");
    char *weights = path_join(model, "model.safetensors");
    opened o;
    assert_int_equal(file_save(file, "x", 1), 0);
    expect(tiny, under, true, QUANT_CACHE_ON, NONE, "it is quantised into memory");
    expect(tiny, dir, true, QUANT_CACHE_OFF, NONE, NULL);
    expect(tiny, dir, true, QUANT_CACHE_READ, NONE, NULL);
    assert_int_equal(model_source_open(&o.src, tiny), 0);
    quant_cache_open(&o.q, &o.src, true, &(quant_cache_options){QUANT_CACHE_ON, dir, 1 << 20});
    assert_true(!o.q.st.n && !o.q.n);
    weight w;
    assert_false(quant_cache_weight(&o.q, "model.layers.0.self_attn.q_proj", 64, 64, &w));
    assert_false(quant_cache_weight(NULL, "model.layers.0.self_attn.q_proj", 64, 64, &w));
    close_cache(&o);
    assert_false(path_exists(dir));
    poke(weights, -200000, "\x00\x00\xc0\x7f", 4); /* a NaN in a matrix: loading will say where */
    expect(model, dir, true, QUANT_CACHE_ON, NONE, "values that are not finite");
    assert_int_equal(count_files(dir, ".safetensors", NULL), 0);
    free(file), free(under), free(dir), free(model), free(weights);
}

static void test_directory(void **state) {
    (void)state;
    char *xdg = in_root("xdg"), *home = in_root("home"), *a = in_root("xdg/peft.c/nf4"),
         *b = in_root("home/.cache/peft.c/nf4");
    setenv("XDG_CACHE_HOME", xdg, 1), setenv("HOME", home, 1);
    expect(tiny, NULL, true, QUANT_CACHE_ON, MADE, a);
    assert_int_equal(count_files(a, ".safetensors", NULL), 1);
    setenv("XDG_CACHE_HOME", "not/absolute", 1);
    expect(tiny, NULL, true, QUANT_CACHE_ON, MADE, b);
    unsetenv("XDG_CACHE_HOME"), unsetenv("HOME");
    expect(tiny, NULL, true, QUANT_CACHE_ON, NONE, "neither XDG_CACHE_HOME nor HOME");
    free(xdg), free(home), free(a), free(b);
}

static void test_sweep(void **state) {
    (void)state;
    char *dir = in_root("sweep"), *dead = in_root("sweep/0.safetensors.tmp.1"),
         *live = in_root("sweep/0.safetensors.tmp.2");
    const struct timespec ago[2] = {{time(NULL) - 7200, 0}, {time(NULL) - 7200, 0}};
    assert_int_equal(path_make_dirs(dir) | file_save(dead, "x", 1) | file_save(live, "x", 1), 0);
    assert_int_equal(utimensat(AT_FDCWD, dead, ago, 0), 0);
    expect(tiny, dir, true, QUANT_CACHE_ON, MADE, quantising);
    assert_true(!path_exists(dead) && path_exists(live));
    free(dir), free(dead), free(live);
}

/* Processes that find nothing at the same time: each is right, and one whole file is left. */
static int child(const char *dir) {
    const quant_cache_options how = {QUANT_CACHE_ON, dir, 0};
    opened o;
    if (model_source_open(&o.src, tiny)) return 1;
    quant_cache_open(&o.q, &o.src, true, &how);
    int bad = !o.q.st.n || !equals_fresh(&o, true);
    close_cache(&o);
    return bad;
}

static void test_together(void **state) {
    (void)state;
    enum { PROCESSES = 4 };
    pid_t pid[PROCESSES];
    for (int round = 0; round < 3; round++) {
        char name[32];
        snprintf(name, sizeof name, "together%d", round);
        char *dir = in_root(name);
        for (int i = 0; i < PROCESSES; i++)
            if (!(pid[i] = fork())) {
                dup2(open("/dev/null", O_WRONLY), 2);
                execl("/proc/self/exe", "test_quant_cache", "--child", dir, (char *)NULL);
                _exit(99);
            }
        for (int i = 0; i < PROCESSES; i++) {
            int status;
            assert_int_equal(waitpid(pid[i], &status, 0), pid[i]);
            assert_int_equal(status, 0);
        }
        expect(tiny, dir, true, QUANT_CACHE_ON, HIT, NULL);
        assert_int_equal(count_files(dir, ".safetensors", NULL), 1);
        free(dir);
    }
}

static int make_dir(void **state) {
    (void)state;
    snprintf(root, sizeof root, "/tmp/peft-test-quant-XXXXXX");
    return mkdtemp(root) ? 0 : -1;
}

static int remove_dir(void **state) {
    (void)state;
    char *command = xprintf("rm -rf %s", root);
    int bad = system(command);
    free(command);
    return bad;
}

int main(int argc, char **argv) {
    if (argc == 3 && !strcmp(argv[1], "--child")) return child(argv[2]);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_xxh64),   cmocka_unit_test(test_hit),      cmocka_unit_test(test_layout),
        cmocka_unit_test(test_model),   cmocka_unit_test(test_stale),    cmocka_unit_test(test_verify),
        cmocka_unit_test(test_damaged), cmocka_unit_test(test_without),  cmocka_unit_test(test_directory),
        cmocka_unit_test(test_sweep),   cmocka_unit_test(test_together),
    };
    return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
