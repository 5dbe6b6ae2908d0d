/* The cached 4-bit base: its file written, checked and mapped. Modules are quantised one at a time into the file, so
 * that making it takes no more memory than the largest of them. */
#include "model/quant_cache.h"
#include "core/error.h"
#include "core/json.h"
#include "core/xxh64.h"
#include "model/nf4_layout.h"
#include "model/quant_key.h"
#include "model/rows.h"

#include <dirent.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#define CHECKSUMS "peft.c.checksums" /* I64 [modules], in the order of the modules' names */
#define ROOM_LEFT (64 << 20)         /* on the disk, beyond the file */

static uint64_t modules_bytes(const quant_module *m, int n, bool twice) {
    uint64_t sum = 0;
    int64_t sizes[NF4_PARTS];
    for (int i = 0; i < n; i++) {
        nf4_part_sizes(m[i].rows, m[i].cols, twice, sizes);
        for (int p = 0; p < NF4_PARTS; p++) sum += nf4_part_bytes(p, sizes);
    }
    return sum;
}

static uint64_t checksum(const void *const data[NF4_PARTS], const int64_t n[NF4_PARTS]) {
    uint64_t h = 0;
    for (int p = 0; p < NF4_PARTS; p++)
        if (n[p]) h = xxh64(data[p], (size_t)nf4_part_bytes(p, n), h);
    return h;
}

/* ---- which modules ---- */

static int by_name(const void *a, const void *b) {
    return strcmp(((const quant_module *)a)->name, ((const quant_module *)b)->name);
}

/* The linear layers of the model, from the code that loads it; -1: the model's files are at fault, and loading says
 * why. */
static int list_modules(quant_cache *q, const model_source *s) {
    const model_options o = {.positions = 1};
    arena plan;
    model m;
    arena_plan(&plan, "plan");
    int bad = model_open(&m, s, &o, &plan);
    q->modules = xcalloc((size_t)m.hp.layers * 7, sizeof *q->modules);
    for (int g = 0; g < m.n_groups && !bad; g++)
        for (int i = 0; i < m.groups[g].n; i++) {
            const proj *p = &m.groups[g].p[i];
            char *tensor = xprintf("%s.weight", p->name);
            q->modules[q->n++] = (quant_module){.name = xstrdup(p->name),
                                                .rows = p->w.rows,
                                                .cols = p->w.cols,
                                                .heads = model_source_permuted(s, tensor)};
            free(tensor);
        }
    qsort(q->modules, (size_t)q->n, sizeof *q->modules, by_name);
    model_close(&m);
    arena_close(&plan);
    return bad;
}

/* ---- reading ---- */

static int find_part(const safetensors *st, const quant_module *m, int part, const int64_t sizes[NF4_PARTS],
                     const void *data[NF4_PARTS]) {
    char name[ST_NAME_MAX];
    snprintf(name, sizeof name, "%s.weight%s", m->name, nf4_part_suffix(part));
    const st_tensor *t = safetensors_find(st, name);
    if (!t || t->dtype != nf4_part_dtype(part) || t->bytes != nf4_part_bytes(part, sizes))
        return fail(EXIT_INPUT, "%s: tensor '%s' is %s", st->files[0].path, name,
                    t ? "not as it was written" : "missing");
    data[part] = t->data;
    return 0;
}

static int read_state(const char *where, const char *text, int64_t n, float *offset) {
    json_t *o = json_parse(where, text, (size_t)n, 0);
    const json_t *v = json_object_get(o, "nested_offset");
    int bad = !o ? -1 : !json_is_number(v) ? fail(EXIT_INPUT, "%s: 'nested_offset' is %s", where, json_kind(v)) : 0;
    if (!bad) *offset = (float)json_number_value(v);
    json_decref(o);
    return bad;
}

static int read_module(quant_cache *q, quant_module *m, bool twice, const void *data[NF4_PARTS]) {
    int64_t sizes[NF4_PARTS];
    nf4_part_sizes(m->rows, m->cols, twice, sizes);
    for (int p = 0; p < NF4_PARTS; p++)
        if (sizes[p] && find_part(&q->st, m, p, sizes, data)) return -1;
    m->codes = data[NF4_CODES];
    m->meta = (nf4_meta){.blocksize = 64, .map = nf4_dynamic_map};
    if (!twice) {
        m->meta.absmax = data[NF4_PLAIN];
        return 0;
    }
    m->meta.nested_block = 256, m->meta.code = data[NF4_SCALES], m->meta.nested_absmax = data[NF4_NESTED];
    return read_state(q->st.files[0].path, data[NF4_STATE], sizes[NF4_STATE], &m->meta.offset);
}

/* Every byte, in all threads; the pages are given back, since not all may be needed, or not now. */
static int check_bytes(const quant_cache *q, bool twice, const void *const (*data)[NF4_PARTS], const st_tensor *sums) {
    int wrong = q->n;
#pragma omp parallel for schedule(dynamic) reduction(min : wrong)
    for (int i = 0; i < q->n; i++) {
        int64_t sizes[NF4_PARTS];
        uint64_t want;
        nf4_part_sizes(q->modules[i].rows, q->modules[i].cols, twice, sizes);
        memcpy(&want, sums->data + 8 * i, 8);
        bool same = checksum(data[i], sizes) == want;
        if (!same && i < wrong) wrong = i;
        file_drop(data[i][NF4_CODES], nf4_part_bytes(NF4_CODES, sizes));
    }
    return wrong == q->n ? 0
                         : fail(EXIT_INPUT, "%s: module '%s' is damaged: its checksum is another", q->st.files[0].path,
                                q->modules[wrong].name);
}

static int read_modules(quant_cache *q, bool twice) {
    const void *(*data)[NF4_PARTS] = xcalloc((size_t)q->n, sizeof *data);
    const st_tensor *sums = safetensors_find(&q->st, CHECKSUMS);
    int bad = !sums || sums->dtype != ST_I64 || sums->bytes != 8 * (uint64_t)q->n
                  ? fail(EXIT_INPUT, "%s: tensor '" CHECKSUMS "' is missing or misshapen", q->st.files[0].path)
                  : 0;
    for (int i = 0; i < q->n && !bad; i++) bad = read_module(q, &q->modules[i], twice, data[i]);
    if (!bad) bad = check_bytes(q, twice, (const void *const(*)[NF4_PARTS])data, sums);
    free(data);
    return bad;
}

static int check_key(const safetensors *st, const quant_key *key) {
    for (int i = 0; i < st->n_meta; i++)
        if (!strcmp(st->meta_keys[i], "key"))
            return strcmp(st->meta_values[i], key->text)
                       ? fail(EXIT_INPUT, "%s: it belongs to another base", st->files[0].path)
                       : 0;
    return fail(EXIT_INPUT, "%s: its key is missing", st->files[0].path);
}

static int read_cache(quant_cache *q, const char *path, const quant_key *key, bool twice) {
    if (safetensors_open(&q->st, path)) return -1;
    if (!check_key(&q->st, key) && !read_modules(q, twice)) return 0;
    safetensors_close(&q->st);
    return -1;
}

/* ---- writing ---- */

static int write_module(st_writer *w, const model_source *s, const quant_module *m, bool twice, arena *a,
                        int64_t *sum) {
    char *name = xprintf("%s.weight", m->name), state[NF4_STATE_BYTES + 8];
    weight stored;
    int64_t sizes[NF4_PARTS];
    int bad = model_source_weight(s, name, m->rows, m->cols, &stored);
    free(name);
    if (bad) return -1;
    arena_release(a, 0);
    weight made = rows_nf4(&stored, m->heads, twice, a);
    nf4_meta meta = *(const nf4_meta *)made.meta;
    free((void *)(uintptr_t)made.meta);
    file_drop(stored.data, (uint64_t)weight_bytes(&stored));
    nf4_part_sizes(m->rows, m->cols, twice, sizes);
    if (nf4_print_state(m->name, m->rows, m->cols, "float32", twice, meta.offset, sizes[NF4_STATE], state)) return -1;
    const void *data[NF4_PARTS] = {meta.absmax, meta.nested_absmax, nf4_dynamic_map, nf4_codes, made.data, meta.code,
                                   state};
    *sum = (int64_t)checksum(data, sizes);
    for (int p = 0; p < NF4_PARTS; p++)
        if (sizes[p] && st_writer_data(w, data[p], nf4_part_bytes(p, sizes))) return -1;
    return 0;
}

static st_decl *declare(const quant_cache *q, bool twice, int *n) {
    st_decl *d = xcalloc((size_t)q->n * NF4_PARTS + 1, sizeof *d);
    int64_t sizes[NF4_PARTS];
    *n = 0;
    for (int i = 0; i < q->n; i++) {
        nf4_part_sizes(q->modules[i].rows, q->modules[i].cols, twice, sizes);
        for (int p = 0; p < NF4_PARTS; p++)
            if (sizes[p])
                d[(*n)++] = (st_decl){xprintf("%s.weight%s", q->modules[i].name, nf4_part_suffix(p)),
                                      nf4_part_dtype(p),
                                      p == NF4_CODES ? 2 : 1,
                                      {sizes[p], 1}};
    }
    d[(*n)++] = (st_decl){xstrdup(CHECKSUMS), ST_I64, 1, {q->n}};
    return d;
}

/* Room for the largest module, counted by the code that fills it. */
static int open_scratch(arena *a, const quant_cache *q, bool twice) {
    arena plan;
    arena_plan(&plan, "quantise");
    for (int i = 0; i < q->n; i++) {
        const weight w = {.rows = q->modules[i].rows, .cols = q->modules[i].cols};
        arena_release(&plan, 0);
        free((void *)(uintptr_t)rows_nf4(&w, 0, twice, &plan).meta);
    }
    size_t peak = plan.peak;
    arena_close(&plan);
    return arena_open(a, "quantise", peak);
}

static int write_modules(st_writer *w, const quant_cache *q, const model_source *s, bool twice) {
    arena a;
    int64_t *sums = xcalloc((size_t)q->n, sizeof *sums);
    int n_files, bad = open_scratch(&a, q, twice);
    const file_map *files = model_source_files(s, &n_files);
    for (int i = 0; i < q->n && !bad; i++) bad = write_module(w, s, &q->modules[i], twice, &a, &sums[i]);
    if (!bad) bad = st_writer_data(w, sums, (uint64_t)q->n * sizeof *sums);
    for (int i = 0; i < n_files && !bad; i++)
        if (!file_unchanged(&files[i])) bad = fail(EXIT_INPUT, "%s: it was changed while it was read", files[i].path);
    arena_close(&a);
    free(sums);
    return bad;
}

static int check_room(const char *dir, uint64_t bytes) {
    struct statvfs v;
    if (statvfs(dir, &v)) return 0; /* writing will tell */
    uint64_t room = (uint64_t)v.f_bavail * v.f_frsize;
    return room >= bytes + ROOM_LEFT ? 0
                                     : fail(EXIT_IO, "%s: %.1f MiB are free, %.1f MiB are needed", dir,
                                            (double)room / 1048576, (double)(bytes + ROOM_LEFT) / 1048576);
}

/* What processes that were killed left behind: temporaries that nobody has written to for an hour. */
static void sweep(const char *dir) {
    DIR *d = opendir(dir);
    struct stat st;
    if (!d) return;
    for (const struct dirent *e; (e = readdir(d));) {
        if (!strstr(e->d_name, ".safetensors.tmp.")) continue;
        char *path = path_join(dir, e->d_name);
        if (!lstat(path, &st) && S_ISREG(st.st_mode) && time(NULL) - st.st_mtime > 3600) unlink(path);
        free(path);
    }
    closedir(d);
}

static int make_cache(const quant_cache *q, const model_source *s, const char *dir, const char *path,
                      const quant_key *key, bool twice) {
    const char *const metadata[] = {"format", "pt", "writer", "peft.c", "key", key->text};
    uint64_t bytes = modules_bytes(q->modules, q->n, twice);
    st_writer w;
    int n;
    if (path_make_dirs(dir) || check_room(dir, bytes)) return -1;
    sweep(dir);
    st_decl *d = declare(q, twice, &n);
    int bad = st_writer_open(&w, path, d, n, metadata, 3);
    if (!bad) {
        fprintf(stderr, "note: quantising the base to NF4; kept for later starts in %s (%.1f MiB)\n", path,
                (double)bytes / 1048576);
        bad = write_modules(&w, q, s, twice);
        if (bad)
            st_writer_abandon(&w);
        else
            bad = st_writer_close(&w);
    }
    for (int i = 0; i < n; i++) free(d[i].name);
    free(d);
    return bad;
}

/* ---- all ---- */

/* Absolute, as the XDG base directory specification wants it; NULL: no place is known. */
static char *default_dir(void) {
    const char *xdg = getenv("XDG_CACHE_HOME"), *home = getenv("HOME");
    if (xdg && *xdg == '/') return xprintf("%s/peft.c/nf4", xdg);
    return home && *home == '/' ? xprintf("%s/.cache/peft.c/nf4", home) : NULL;
}

static void note(const char *then) {
    fprintf(stderr, "note: 4-bit base not from the cache: %s; %s\n", fail_text(), then);
    fail_clear();
}

static int find_or_make(quant_cache *q, const model_source *s, bool twice, const char *dir, quant_cache_mode mode) {
    quant_key key;
    if (mode != QUANT_CACHE_READ && path_make_dirs(dir))
        fail_clear(); /* for the remembered hashes; making the file says why it cannot be */
    quant_key_make(&key, s, dir, mode == QUANT_CACHE_VERIFY, q->modules, q->n, twice);
    char *path = xprintf("%s/%016" PRIx64 ".safetensors", dir, key.hash);
    bool there = path_exists(path), make = mode != QUANT_CACHE_READ;
    int bad = there ? read_cache(q, path, &key, twice) : 0;
    if (bad && make) note("it is made anew");
    if (make && (bad || !there)) {
        bad = make_cache(q, s, dir, path, &key, twice) || read_cache(q, path, &key, twice);
        q->made = !bad;
    }
    free(path);
    return bad;
}

void quant_cache_open(quant_cache *q, const model_source *s, bool double_quant, const quant_cache_options *o) {
    *q = (quant_cache){0};
    if (o->mode == QUANT_CACHE_OFF || s->n_nf4) return; /* a base in NF4 is its own file */
    int bad = list_modules(q, s);
    if (bad)
        fail_clear();
    else if (modules_bytes(q->modules, q->n, double_quant) >= (uint64_t)o->min_bytes) {
        char *dir = o->dir && *o->dir ? xstrdup(o->dir) : default_dir();
        bad = dir ? find_or_make(q, s, double_quant, dir, o->mode)
                  : fail(EXIT_IO, "neither XDG_CACHE_HOME nor HOME names a directory");
        if (bad) note("it is quantised into memory");
        free(dir);
    }
    if (!q->st.n) quant_cache_close(q);
}

void quant_cache_close(quant_cache *q) {
    for (int i = 0; i < q->n; i++) free(q->modules[i].name);
    free(q->modules);
    safetensors_close(&q->st);
    *q = (quant_cache){0};
}

bool quant_cache_weight(const quant_cache *q, const char *module, int64_t rows, int64_t cols, weight *w) {
    const quant_module key = {.name = (char *)(uintptr_t)module};
    const quant_module *m = q && q->n ? bsearch(&key, q->modules, (size_t)q->n, sizeof key, by_name) : NULL;
    if (!m || m->rows != rows || m->cols != cols) return false;
    nf4_meta *meta = xcalloc(1, sizeof *meta);
    *meta = m->meta;
    *w = (weight){&weight_formats[FMT_NF4], rows, cols, 1, m->codes, meta};
    return true;
}

bool quant_cache_mode_by_name(const char *name, quant_cache_mode *mode) {
    static const char *const names[] = {"false", "true", "verify"};
    for (int i = 0; i < 3; i++)
        if (!strcmp(name, names[i])) return *mode = (quant_cache_mode)i, true;
    return false;
}
