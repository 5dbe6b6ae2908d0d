/* Importance matrices: collected, read and written (formats: imatrix.h). */
#include "model/imatrix.h"
#include "core/arena.h"
#include "core/error.h"
#include "core/gguf_write.h"
#include "core/text.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SUMS ".in_sum2"
#define COUNTS ".counts"
enum { CHANNELS_MAX = 1 << 24, ENTRIES_MAX = GGUF_TENSORS_MAX / 2, OLD_CHUNK = 512 };

/* ---- entries ---- */

static int by_name(const void *a, const void *b) {
    return strcmp(((const imatrix_entry *)a)->name, ((const imatrix_entry *)b)->name);
}

const imatrix_entry *imatrix_find(const imatrix *m, const char *name) {
    const imatrix_entry key = {.name = (char *)(uintptr_t)name};
    return m->n ? bsearch(&key, m->entry, (size_t)m->n, sizeof key, by_name) : NULL;
}

/* Keeps the order; takes the name over. */
static imatrix_entry *insert(imatrix *m, char *name, int64_t n) {
    m->entry = xrealloc(m->entry, (size_t)m->n + 1, sizeof *m->entry);
    int at = m->n++;
    while (at > 0 && strcmp(m->entry[at - 1].name, name) > 0) m->entry[at] = m->entry[at - 1], at--;
    m->entry[at] = (imatrix_entry){name, n, xcalloc((size_t)n, sizeof(double)), 0};
    return &m->entry[at];
}

void imatrix_free(imatrix *m) {
    for (int i = 0; i < m->n; i++) free(m->entry[i].name), free(m->entry[i].sum);
    free(m->entry), free(m->dataset);
    *m = (imatrix){0};
}

void imatrix_add(imatrix *m, const char *name, const float *x, int64_t rows, int64_t n, int64_t ld) {
    imatrix_entry *e = (imatrix_entry *)(uintptr_t)imatrix_find(m, name);
    if (!e) e = insert(m, xstrdup(name), n);
    CHECK(e->n == n, "%s: %ld channels, then %ld", name, (long)e->n, (long)n);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < n; i++) e->sum[i] += (double)x[r * ld + i] * (double)x[r * ld + i];
    e->count += (double)rows;
}

int imatrix_weights(const imatrix_entry *e, int64_t n, float *weights) {
    double mean = 0;
    if (e->n != n) return -1;
    for (int64_t i = 0; i < n; i++) mean += e->sum[i] / (double)n;
    for (int64_t i = 0; i < n; i++) /* on a scale where the mean is 1 */
        weights[i] = mean > 0 ? (float)fmax(e->sum[i] / mean, 1e-3) : 1;
    return 0;
}

/* ---- reading ---- */

static int check_sum(const char *where, const char *name, double v, int64_t i) {
    if (v >= 0 && v <= 3e38) return 0;
    return fail(EXIT_INPUT, "%s: '%s': channel %" PRId64 " has %g, expected a sum of squares", where, name, i, v);
}

static char *name_before(const char *name, const char *suffix) {
    size_t n = strlen(name), k = strlen(suffix);
    return n > k && !strcmp(name + n - k, suffix) ? xprintf("%.*s", (int)(n - k), name) : NULL;
}

static int read_gguf_entry(imatrix *m, const gguf *g, const gguf_tensor *sums, char *name) {
    const char *where = g->file.path;
    char *other = xprintf("%s" COUNTS, name);
    const gguf_tensor *counts = gguf_tensor_find(g, other);
    free(other);
    int bad = 0;
    float v;
    if (!counts || sums->ggml_type || counts->ggml_type)
        bad = fail(EXIT_INPUT, "%s: '%s': expected " SUMS " and " COUNTS " of type F32", where, name);
    else if (sums->ne[1] * sums->ne[2] * sums->ne[3] != 1 || counts->ne[0] * counts->ne[1] != 1)
        bad = fail(EXIT_INPUT, "%s: '%s' has entries of %ld experts, which are not supported", where, name,
                   (long)sums->ne[1]);
    if (bad) return free(name), -1;
    imatrix_entry *e = insert(m, name, sums->ne[0]);
    for (int64_t i = 0; i < e->n && !bad; i++) {
        memcpy(&v, sums->data + 4 * i, 4);
        e->sum[i] = (double)v;
        bad = check_sum(where, name, e->sum[i], i);
    }
    memcpy(&v, counts->data, 4);
    e->count = (double)v;
    if (!bad && !(v > 0 && v < 1e15f))
        bad = fail(EXIT_INPUT, "%s: '%s' counts %g rows, expected one or more", where, name, (double)v);
    return bad;
}

static int read_gguf_keys(imatrix *m, const gguf *g) {
    gguf_str type;
    const gguf_kv *sets;
    if (gguf_get_string_or(g, "general.type", (gguf_str){"", 0}, &type)) return -1;
    if (type.n != 7 || memcmp(type.data, "imatrix", 7) != 0)
        return fail(EXIT_INPUT, "%s: key 'general.type': found '%.*s', expected 'imatrix'", g->file.path,
                    (int)(type.n < 64 ? type.n : 64), type.data);
    if (gguf_get_int_or(g, "imatrix.chunk_count", 0, INT64_MAX, 0, &m->chunks) ||
        gguf_get_int_or(g, "imatrix.chunk_size", 0, INT64_MAX, 0, &m->chunk_size) ||
        gguf_get_array_or(g, "imatrix.datasets", GGUF_STRING, -1, &sets))
        return -1;
    if (sets && sets->n && text_is_name(sets->strings[0].data, sets->strings[0].n))
        m->dataset = xprintf("%.*s", (int)sets->strings[0].n, sets->strings[0].data);
    return 0;
}

static int read_gguf(imatrix *m, const char *path) {
    gguf g;
    if (gguf_open(&g, path)) return -1;
    int bad = read_gguf_keys(m, &g), used = 0;
    for (int i = 0; i < g.n_tensors && !bad; i++) {
        char *name = name_before(g.tensors[i].name, SUMS);
        if (!name) continue;
        bad = read_gguf_entry(m, &g, &g.tensors[i], name);
        used += 2;
    }
    if (!bad && (used != g.n_tensors || !used))
        bad = fail(EXIT_INPUT, "%s: %d tensors, %d of them pairs of " SUMS " and " COUNTS, path, g.n_tensors, used);
    gguf_close(&g);
    return bad;
}

/* The older file: int32 entries; each: int32 length, name, int32 calls, int32 n, float[n] of means times calls. Behind
 * them, if at all: int32 chunks, int32 length, name of the text. */
typedef struct {
    const file_map *f;
    uint64_t at;
} old_cursor;

static int take(old_cursor *c, void *out, uint64_t n, const char *what) {
    if (n > c->f->size - c->at)
        return fail(EXIT_INPUT, "%s: at byte %" PRIu64 ": the file ends inside %s", c->f->path, c->at, what);
    memcpy(out, c->f->data + c->at, n);
    c->at += n;
    return 0;
}

static int take_int(old_cursor *c, int32_t lo, int32_t hi, const char *what, int32_t *v) {
    uint64_t at = c->at;
    if (take(c, v, 4, what)) return -1;
    if (*v >= lo && *v <= hi) return 0;
    return fail(EXIT_INPUT, "%s: at byte %" PRIu64 ": %s is %d, expected %d to %d", c->f->path, at, what, *v, lo, hi);
}

static int take_text(old_cursor *c, int32_t hi, const char *what, char **text) {
    int32_t n;
    *text = NULL;
    if (take_int(c, 0, hi, what, &n)) return -1;
    char *s = xcalloc((size_t)n + 1, 1);
    int bad = take(c, s, (uint64_t)n, what);
    if (!bad && !text_is_name(s, (size_t)n)) bad = fail(EXIT_INPUT, "%s: %s is no text", c->f->path, what);
    if (bad) return free(s), -1;
    *text = s;
    return 0;
}

static int read_old_entry(imatrix *m, old_cursor *c) {
    char *name;
    int32_t calls, n;
    if (take_text(c, 4096, "a name", &name)) return -1;
    int bad = take_int(c, 1, INT32_MAX, "a number of calls", &calls) ||
              take_int(c, 1, CHANNELS_MAX, "a number of channels", &n);
    if (!bad && (uint64_t)n * 4 > c->f->size - c->at)
        bad = fail(EXIT_INPUT, "%s: '%s': the file ends inside its %d channels", c->f->path, name, n);
    if (!bad && imatrix_find(m, name)) bad = fail(EXIT_INPUT, "%s: '%s' is there twice", c->f->path, name);
    if (bad) return free(name), -1;
    imatrix_entry *e = insert(m, name, n);
    for (int64_t i = 0; i < n && !bad; i++) {
        float v = 0;
        bad = take(c, &v, 4, "a channel");
        e->sum[i] = (double)v;
        if (!bad) bad = check_sum(c->f->path, name, e->sum[i], i);
    }
    e->count = calls;
    return bad;
}

static int read_old(imatrix *m, const file_map *f) {
    old_cursor c = {f, 0};
    int32_t entries, chunks = 0;
    if (take_int(&c, 1, ENTRIES_MAX, "a number of entries", &entries)) return -1;
    for (int32_t i = 0; i < entries; i++)
        if (read_old_entry(m, &c)) return -1;
    if (c.at == f->size) return 0;
    if (take_int(&c, 0, INT32_MAX, "a number of chunks", &chunks)) return -1;
    m->chunks = chunks;
    if (c.at < f->size && take_text(&c, 65536, "the name of the text", &m->dataset)) return -1;
    return c.at == f->size ? 0 : fail(EXIT_INPUT, "%s: %" PRIu64 " bytes behind its end", f->path, f->size - c.at);
}

int imatrix_read(imatrix *m, const char *path) {
    file_map f;
    *m = (imatrix){0};
    if (file_open(&f, path)) return -1;
    bool is_gguf = f.size >= 4 && !memcmp(f.data, "GGUF", 4);
    int bad = is_gguf ? 0 : read_old(m, &f);
    file_close(&f);
    if (is_gguf) bad = read_gguf(m, path);
    if (bad) imatrix_free(m);
    return bad ? -1 : 0;
}

/* ---- writing ---- */

static float *floats_of(const imatrix_entry *e, double factor) {
    float *v = xcalloc((size_t)e->n, sizeof *v);
    for (int64_t i = 0; i < e->n; i++) v[i] = (float)(e->sum[i] * factor);
    return v;
}

static int write_gguf(const imatrix *m, const char *path) {
    gguf_meta keys = {0};
    gguf_writer w;
    int n = 2 * m->n;
    char **names = xcalloc((size_t)n, sizeof *names);
    gguf_decl *decls = xcalloc((size_t)n, sizeof *decls);
    gguf_put_text(&keys, "general.type", "imatrix");
    const gguf_str set = {m->dataset, m->dataset ? strlen(m->dataset) : 0};
    gguf_put_strings(&keys, "imatrix.datasets", &set, m->dataset ? 1 : 0);
    gguf_put_u32(&keys, "imatrix.chunk_count", (uint32_t)m->chunks);
    gguf_put_u32(&keys, "imatrix.chunk_size", (uint32_t)m->chunk_size);
    for (int i = 0; i < m->n; i++) {
        names[2 * i] = xprintf("%s" SUMS, m->entry[i].name), names[2 * i + 1] = xprintf("%s" COUNTS, m->entry[i].name);
        decls[2 * i] = (gguf_decl){names[2 * i], 0, 2, {m->entry[i].n, 1, 1, 1}};
        decls[2 * i + 1] = (gguf_decl){names[2 * i + 1], 0, 2, {1, 1, 1, 1}};
    }
    int bad = gguf_writer_open(&w, path, &keys, decls, n), opened = !bad;
    for (int i = 0; i < m->n && !bad; i++) {
        const imatrix_entry *e = &m->entry[i];
        const float count = (float)e->count;
        float *v = floats_of(e, 1);
        bad = gguf_writer_data(&w, v, (uint64_t)e->n * sizeof *v) || gguf_writer_data(&w, &count, sizeof count);
        free(v);
    }
    if (!bad)
        bad = gguf_writer_close(&w);
    else if (opened)
        gguf_writer_abandon(&w);
    for (int i = 0; i < n; i++) free(names[i]);
    free(names), free(decls), gguf_meta_free(&keys);
    return bad ? -1 : 0;
}

static int put_int(file_out *o, int64_t v) {
    const int32_t i = (int32_t)v;
    return file_write(o, &i, sizeof i);
}

static int put_text(file_out *o, const char *s) {
    return put_int(o, (int64_t)strlen(s)) || file_write(o, s, strlen(s));
}

static int put_old_entry(file_out *o, const imatrix_entry *e, int64_t chunk) {
    int64_t calls = ((int64_t)e->count + chunk - 1) / chunk;
    if (calls < 1) calls = 1;
    if (put_text(o, e->name) || put_int(o, calls) || put_int(o, e->n)) return -1;
    float *v = floats_of(e, e->count > 0 ? (double)calls / e->count : 1);
    int bad = file_write(o, v, (uint64_t)e->n * sizeof *v);
    free(v);
    return bad;
}

static int write_old(const imatrix *m, const char *path) {
    file_out o;
    int64_t chunk = m->chunk_size > 0 ? m->chunk_size : OLD_CHUNK;
    if (file_create(&o, path) || put_int(&o, m->n)) return -1;
    for (int i = 0; i < m->n; i++)
        if (put_old_entry(&o, &m->entry[i], chunk)) return -1;
    if (put_int(&o, m->chunks) || put_text(&o, m->dataset ? m->dataset : "")) return -1;
    return file_commit(&o);
}

int imatrix_write(const imatrix *m, const char *path) {
    size_t n = strlen(path);
    return n > 4 && !strcmp(path + n - 4, ".dat") ? write_old(m, path) : write_gguf(m, path);
}
