/* Reading safetensors: [u64 header bytes][JSON header][data]. Every number of the header is checked against the file
 * before it is used; the tensors must cover the data without hole or overlap, so that no two readers see different
 * models. */
#include "core/safetensors.h"
#include "core/arena.h"
#include "core/error.h"
#include "core/json.h"
#include "core/num.h"
#include "core/text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    int size;
} dtypes[ST_DTYPES] = {
    [ST_F64] = {"F64", 8}, [ST_F32] = {"F32", 4},   [ST_F16] = {"F16", 2}, [ST_BF16] = {"BF16", 2},
    [ST_I64] = {"I64", 8}, [ST_I32] = {"I32", 4},   [ST_I16] = {"I16", 2}, [ST_I8] = {"I8", 1},
    [ST_U8] = {"U8", 1},   [ST_BOOL] = {"BOOL", 1},
};

const char *st_dtype_name(st_dtype t) { return (unsigned)t < ST_DTYPES ? dtypes[t].name : "?"; }
int st_dtype_size(st_dtype t) { return (unsigned)t < ST_DTYPES ? dtypes[t].size : 0; }

/* where we are: one file of a model, its data section and the entry at hand */
typedef struct {
    safetensors *s;
    const file_map *m;
    int file;
    const uint8_t *data;
    uint64_t bytes;
    const char *name;
} entry_at;

static int entry_fail(const entry_at *at, const char *field, const json_t *found, const char *expected) {
    if (json_is_integer(found))
        return fail(EXIT_INPUT, "%s: tensor '%s': '%s' holds %lld, expected %s", at->m->path, at->name, field,
                    (long long)json_integer_value(found), expected);
    return fail(EXIT_INPUT, "%s: tensor '%s': '%s' is %s, expected %s", at->m->path, at->name, field,
                found ? json_kind(found) : "missing", expected);
}

static int read_dtype(const entry_at *at, const json_t *v, st_dtype *out) {
    if (!json_is_string(v)) return entry_fail(at, "dtype", v, "a string");
    const char *name = json_string_value(v);
    for (int t = 0; t < ST_DTYPES; t++) {
        if (strcmp(name, dtypes[t].name) != 0) continue;
        *out = (st_dtype)t;
        return 0;
    }
    return fail(EXIT_INPUT,
                "%s: tensor '%s': dtype '%.32s' is not supported (F64 F32 F16 BF16 I64 I32 I16 I8 U8 BOOL are)",
                at->m->path, at->name, name);
}

static int read_shape(const entry_at *at, const json_t *v, st_tensor *t) {
    if (!json_is_array(v)) return entry_fail(at, "shape", v, "an array of dimensions");
    if (json_array_size(v) > ST_DIMS_MAX)
        return fail(EXIT_INPUT, "%s: tensor '%s': %zu dimensions exceed %d", at->m->path, at->name, json_array_size(v),
                    ST_DIMS_MAX);
    int64_t elements = 1;
    bool none = false;
    t->dims = (int)json_array_size(v);
    for (int i = 0; i < t->dims; i++) {
        const json_t *d = json_array_get(v, (size_t)i);
        if (!json_is_integer(d) || json_integer_value(d) < 0) return entry_fail(at, "shape", d, "integers from 0 up");
        t->shape[i] = json_integer_value(d);
        none |= t->shape[i] == 0;
        if (t->shape[i]) elements = mul_checked(elements, t->shape[i]);
        if (elements < 0 || elements > ST_ELEMENTS_MAX)
            return fail(EXIT_INPUT, "%s: tensor '%s': the dimensions multiply to more than 2^48 elements", at->m->path,
                        at->name);
    }
    t->bytes = none ? 0 : (uint64_t)elements * (uint64_t)dtypes[t->dtype].size; /* below 2^51 */
    return 0;
}

static int read_offsets(const entry_at *at, const json_t *v, st_tensor *t) {
    if (!json_is_array(v) || json_array_size(v) != 2) return entry_fail(at, "data_offsets", v, "an array [begin, end]");
    uint64_t span[2];
    for (size_t i = 0; i < 2; i++) {
        const json_t *d = json_array_get(v, i);
        if (!json_is_integer(d) || json_integer_value(d) < 0)
            return entry_fail(at, "data_offsets", d, "integers from 0 up");
        span[i] = (uint64_t)json_integer_value(d);
    }
    if (span[0] > span[1])
        return fail(EXIT_INPUT, "%s: tensor '%s': data begins at %" PRIu64 " and ends before, at %" PRIu64, at->m->path,
                    at->name, span[0], span[1]);
    if (span[1] > at->bytes)
        return fail(EXIT_INPUT,
                    "%s: tensor '%s': data ends at %" PRIu64 " of a data section of %" PRIu64
                    " bytes: the file is cut short",
                    at->m->path, at->name, span[1], at->bytes);
    if (span[1] - span[0] != t->bytes)
        return fail(EXIT_INPUT, "%s: tensor '%s': %" PRIu64 " bytes of data, but shape and dtype %s make %" PRIu64,
                    at->m->path, at->name, span[1] - span[0], dtypes[t->dtype].name, t->bytes);
    t->data = at->data + span[0];
    return 0;
}

static int check_name(const char *path, const char *name) {
    size_t n = strlen(name);
    if (!n || n > ST_NAME_MAX)
        return fail(EXIT_INPUT, "%s: a tensor name of %zu bytes ('%.64s'), expected 1 to %d", path, n, name,
                    ST_NAME_MAX);
    if (!text_is_name(name, n) || strstr(name, ".."))
        return fail(EXIT_INPUT, "%s: tensor name '%s' has control characters or '..'", path, name);
    return 0;
}

static void take_note(safetensors *s, char *note) {
    if (s->note)
        free(note);
    else
        s->note = note;
}

static int read_entry(entry_at *at, const json_t *v, st_tensor *t) {
    if (check_name(at->m->path, at->name)) return -1;
    if (!json_is_object(v))
        return fail(EXIT_INPUT, "%s: tensor '%s': found %s, expected an object with dtype, shape and data_offsets",
                    at->m->path, at->name, json_kind(v));
    t->file = at->file;
    if (read_dtype(at, json_object_get(v, "dtype"), &t->dtype) || read_shape(at, json_object_get(v, "shape"), t) ||
        read_offsets(at, json_object_get(v, "data_offsets"), t))
        return -1;
    if (json_object_size(v) > 3)
        take_note(at->s, xprintf("%s: tensor '%s' has keys besides dtype, shape and data_offsets; they are ignored",
                                 at->m->path, at->name));
    t->name = xstrdup(at->name);
    return 0;
}

static int read_metadata(safetensors *s, const file_map *m, json_t *v) {
    if (!json_is_object(v))
        return fail(EXIT_INPUT, "%s: __metadata__ is %s, expected an object of strings", m->path, json_kind(v));
    const char *key;
    json_t *value;
    size_t total = 0;
    json_object_foreach(v, key, value) {
        if (!json_is_string(value))
            return fail(EXIT_INPUT, "%s: __metadata__ key '%.128s' is %s, expected a string", m->path, key,
                        json_kind(value));
        total += strlen(key) + json_string_length(value);
        if (total > ST_METADATA_MAX)
            return fail(EXIT_INPUT, "%s: __metadata__ exceeds %d bytes", m->path, ST_METADATA_MAX);
    }
    if (s->meta_keys) return 0; /* the first shard's counts */
    s->meta_keys = xcalloc(json_object_size(v), sizeof *s->meta_keys);
    s->meta_values = xcalloc(json_object_size(v), sizeof *s->meta_values);
    json_object_foreach(v, key, value) {
        s->meta_keys[s->n_meta] = xstrdup(key);
        s->meta_values[s->n_meta++] = xstrdup(json_string_value(value));
    }
    return 0;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const st_tensor *)a)->name, ((const st_tensor *)b)->name);
}

static int by_data(const void *a, const void *b) {
    const st_tensor *x = a, *y = b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    return (x->bytes > y->bytes) - (x->bytes < y->bytes); /* those without bytes first */
}

/* t[0..n) are the tensors of one file: together they must be its whole data section. */
static int check_cover(const entry_at *at, st_tensor *t, int n) {
    if (n) qsort(t, (size_t)n, sizeof *t, by_data);
    uint64_t end = 0;
    const char *before = "the header";
    for (int i = 0; i < n; i++) {
        uint64_t begin = (uint64_t)(t[i].data - at->data);
        if (begin > end)
            return fail(EXIT_INPUT,
                        "%s: a hole of %" PRIu64 " bytes at data offset %" PRIu64 ", between %s and tensor '%s'",
                        at->m->path, begin - end, end, before, t[i].name);
        if (begin < end && t[i].bytes)
            return fail(EXIT_INPUT, "%s: tensors '%s' and '%s' overlap at data offset %" PRIu64, at->m->path, before,
                        t[i].name, begin);
        if (begin < end)
            return fail(EXIT_INPUT, "%s: empty tensor '%s' lies inside tensor '%s'", at->m->path, t[i].name, before);
        end = begin + t[i].bytes;
        before = t[i].name;
    }
    if (end != at->bytes)
        return fail(EXIT_INPUT, "%s: %" PRIu64 " bytes after the last tensor (%s), expected the end of the file",
                    at->m->path, at->bytes - end, before);
    return 0;
}

static int read_entries(safetensors *s, entry_at *at, json_t *header) {
    json_t *meta = json_object_get(header, "__metadata__");
    size_t n = json_object_size(header) - (meta != NULL);
    if (meta && read_metadata(s, at->m, meta)) return -1;
    if (n > (size_t)(ST_TENSORS_MAX - s->n))
        return fail(EXIT_INPUT, "%s: more than %d tensors", at->m->path, ST_TENSORS_MAX);
    s->tensors = xrealloc(s->tensors, (size_t)s->n + n, sizeof *s->tensors);
    memset(s->tensors + s->n, 0, n * sizeof *s->tensors);
    int first = s->n;
    const char *name;
    json_t *v;
    json_object_foreach(header, name, v) {
        if (v == meta) continue;
        at->name = name;
        if (read_entry(at, v, &s->tensors[s->n++])) return -1;
    }
    return check_cover(at, s->tensors + first, s->n - first);
}

static int not_safetensors(const file_map *m, const char *found) {
    const char *guess = file_guess(m->data, m->size);
    if (guess) return fail(EXIT_INPUT, "%s: not a safetensors file: it looks like %s", m->path, guess);
    return fail(EXIT_INPUT, "%s: not a safetensors file: %s", m->path, found);
}

/* Finds the header: its text and length, or says what the file is instead. */
static int find_header(const file_map *m, const char **text, uint64_t *length) {
    char found[128];
    if (m->size < 8) {
        snprintf(found, sizeof found, "a file of %" PRIu64 " bytes is too short for a header", m->size);
        return not_safetensors(m, found);
    }
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--) n = n << 8 | m->data[i];
    if (n < 2 || n > ST_HEADER_MAX || n > m->size - 8) {
        snprintf(found, sizeof found, "offset 0x0 (0): header length %" PRIu64 ", expected 2 to %" PRIu64, n,
                 m->size - 8 < ST_HEADER_MAX ? m->size - 8 : ST_HEADER_MAX);
        return not_safetensors(m, found);
    }
    uint64_t i = 8;
    while (i < 8 + n && is_blank(m->data[i])) i++; /* some writers pad in front */
    if (i == 8 + n || m->data[i] != '{') {
        snprintf(found, sizeof found, "offset 0x%" PRIx64 " (%" PRIu64 "): expected the '{' of a JSON object", i, i);
        return not_safetensors(m, found);
    }
    *text = (const char *)m->data + 8, *length = n;
    return 0;
}

/* No number of a header is negative, and the parser would take the offset -0 for 0: only names may hold this sign. */
static int check_signs(const file_map *m, const char *text, uint64_t length) {
    bool quoted = false;
    if (!memchr(text, '-', length)) return 0;
    for (uint64_t i = 0; i < length; i++) {
        if (text[i] == '"')
            quoted = !quoted;
        else if (quoted && text[i] == '\\')
            i++;
        else if (!quoted && text[i] == '-')
            return fail(EXIT_INPUT, "%s: offset 0x%" PRIx64 " (%" PRIu64 "): a negative number in the header", m->path,
                        i + 8, i + 8);
    }
    return 0;
}

/* s->files[file] is mapped */
static int read_file(safetensors *s, int file) {
    const file_map *m = &s->files[file];
    const char *text = "";
    uint64_t length = 0;
    if (find_header(m, &text, &length)) return -1;
    if (check_signs(m, text, length)) return -1;
    char *where = xprintf("%s: header", m->path);
    json_t *header = json_parse_limited(where, text, length, 0, (json_limits){8, length + (128u << 20)});
    free(where);
    if (!header) return -1;
    entry_at at = {.s = s, .m = m, .file = file, .data = m->data + 8 + length, .bytes = m->size - 8 - length};
    int r = read_entries(s, &at, header);
    json_decref(header);
    return r;
}

static int check_unique(const safetensors *s) {
    for (int i = 1; i < s->n; i++) {
        const st_tensor *a = &s->tensors[i - 1], *b = &s->tensors[i];
        if (!strcmp(a->name, b->name))
            return fail(EXIT_INPUT, "%s and %s both hold tensor '%s'", s->files[a->file].path, s->files[b->file].path,
                        a->name);
    }
    return 0;
}

static int read_files(safetensors *s) {
    for (int i = 0; i < s->n_files; i++)
        if (read_file(s, i)) return -1;
    if (s->n) qsort(s->tensors, (size_t)s->n, sizeof *s->tensors, by_name);
    return check_unique(s);
}

int safetensors_open(safetensors *s, const char *path) {
    *s = (safetensors){.files = xcalloc(1, sizeof *s->files), .n_files = 1};
    if (!file_open(s->files, path) && !read_files(s)) return 0;
    safetensors_close(s);
    return -1;
}

/* ---- models in several files: model.safetensors.index.json maps every tensor to the shard beside it ---- */

static int by_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

/* A shard's name comes from the file: one path component, or it could name any file of the machine. */
static int check_shard_name(const char *path, const char *tensor, const json_t *v) {
    const char *name = json_string_value(v);
    if (!name)
        return fail(EXIT_INPUT, "%s: weight_map: '%.128s' is %s, expected the name of a shard", path, tensor,
                    json_kind(v));
    size_t n = strlen(name);
    if (!n || n > 255 || strpbrk(name, "/\\") || !strcmp(name, ".") || !strcmp(name, "..") || !text_is_name(name, n))
        return fail(EXIT_INPUT, "%s: weight_map: '%.128s' lies in '%.255s', expected a file name without a directory",
                    path, tensor, name);
    return 0;
}

/* The distinct shard names, sorted; the array is the caller's, its strings are borrowed from map. NULL after fail(). */
static const char **shard_names(const char *path, json_t *map, int *n) {
    size_t total = json_object_size(map), i = 0;
    if (!total || total > ST_TENSORS_MAX) {
        fail(EXIT_INPUT, "%s: weight_map names %zu tensors, expected 1 to %d", path, total, ST_TENSORS_MAX);
        return NULL;
    }
    const char **all = xcalloc(total, sizeof *all), *tensor;
    json_t *v;
    json_object_foreach(map, tensor, v) {
        if (check_shard_name(path, tensor, v)) {
            free(all);
            return NULL;
        }
        all[i++] = json_string_value(v);
    }
    qsort(all, total, sizeof *all, by_text);
    *n = 0;
    for (i = 0; i < total; i++)
        if (!i || strcmp(all[i], all[*n - 1]) != 0) all[(*n)++] = all[i];
    return all;
}

/* Both ways: what the map promises is there, and a tensor lies where the map says. */
static int check_map(safetensors *s, const char *path, json_t *map, const char *const *shards) {
    const char *name;
    json_t *v;
    json_object_foreach(map, name, v) {
        const st_tensor *t = safetensors_find(s, name);
        const char *shard = json_string_value(v);
        if (!t || strcmp(shards[t->file], shard) != 0)
            return fail(EXIT_INPUT, "%s: weight_map: tensor '%.512s' is not in %s%s%s", path, name, shard,
                        t ? ", but in " : "", t ? shards[t->file] : "");
    }
    for (int i = 0; i < s->n && !s->note; i++)
        if (!json_object_get(map, s->tensors[i].name))
            s->note = xprintf("%s: weight_map does not list tensor '%s' of %s", path, s->tensors[i].name,
                              shards[s->tensors[i].file]);
    return 0;
}

static int open_shards(safetensors *s, const char *path, json_t *map, const char *const *shards, int n) {
    const char *slash = strrchr(path, '/');
    s->files = xcalloc((size_t)n, sizeof *s->files);
    for (int i = 0; i < n; i++) {
        int dir = slash ? (int)(slash - path) + 1 : 0;
        char *shard = xprintf("%.*s%s", dir, path, shards[i]);
        int r = path_exists(shard) ? file_open(&s->files[i], shard)
                                   : fail(EXIT_INPUT, "%s: shard '%s' is missing beside it", path, shards[i]);
        free(shard);
        if (r) return -1;
        s->n_files = i + 1;
    }
    return read_files(s) ? -1 : check_map(s, path, map, shards);
}

int safetensors_open_index(safetensors *s, const char *path) {
    *s = (safetensors){0};
    json_t *index = json_read(path);
    if (!index) return -1;
    const char **shards = NULL;
    int n = 0;
    json_t *map = json_object_get(index, "weight_map");
    if (json_is_object(map))
        shards = shard_names(path, map, &n);
    else
        fail(EXIT_INPUT, "%s: key 'weight_map': found %s, expected an object of tensor and file names", path,
             json_kind(map));
    int r = shards ? open_shards(s, path, map, shards, n) : -1;
    free(shards);
    json_decref(index);
    if (r) safetensors_close(s);
    return r;
}

int safetensors_open_dir(safetensors *s, const char *dir, const char *stem) {
    *s = (safetensors){0};
    char *one = xprintf("%s/%s.safetensors", dir, stem), *index = xprintf("%s/%s.safetensors.index.json", dir, stem);
    int r;
    if (path_exists(one))
        r = safetensors_open(s, one);
    else if (path_exists(index))
        r = safetensors_open_index(s, index);
    else
        r = fail(EXIT_INPUT, "%s: neither %s.safetensors nor %s.safetensors.index.json is there", dir, stem, stem);
    free(one), free(index);
    return r;
}

void safetensors_close(safetensors *s) {
    for (int i = 0; i < s->n_files; i++) file_close(&s->files[i]);
    for (int i = 0; i < s->n; i++) free(s->tensors[i].name);
    for (int i = 0; i < s->n_meta; i++) free(s->meta_keys[i]), free(s->meta_values[i]);
    free(s->files), free(s->tensors), free(s->meta_keys), free(s->meta_values), free(s->note);
    *s = (safetensors){0};
}

const st_tensor *safetensors_find(const safetensors *s, const char *name) {
    const st_tensor key = {.name = (char *)(uintptr_t)name};
    return s->n ? bsearch(&key, s->tensors, (size_t)s->n, sizeof key, by_name) : NULL;
}
