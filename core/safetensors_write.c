/* Writing safetensors: the header is known from the declarations, so data go to disk as they come. Tensors are
 * contiguous and in the order declared; the header is padded with spaces so that the data start at a multiple of 8. */
#include "core/arena.h"
#include "core/error.h"
#include "core/num.h"
#include "core/safetensors.h"
#include "core/text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int by_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static uint64_t decl_bytes(const st_decl *d) {
    int64_t n = st_dtype_size(d->dtype);
    CHECK(n > 0 && d->dims >= 0 && d->dims <= ST_DIMS_MAX, "tensor %s: dtype %d, %d dimensions", d->name, d->dtype,
          d->dims);
    for (int i = 0; i < d->dims; i++) n = mul_checked(n, d->shape[i]);
    CHECK(n >= 0, "tensor %s: its size overflows", d->name);
    return (uint64_t)n;
}

/* Names may come from a file, so a bad one is that file's fault. */
static int check_decls(const char *path, const st_decl *decls, int n) {
    CHECK(n >= 0 && n <= ST_TENSORS_MAX, "%d tensors", n);
    const char **names = xcalloc((size_t)n, sizeof *names);
    int r = 0;
    for (int i = 0; i < n && !r; i++) {
        const char *name = names[i] = decls[i].name;
        size_t len = strlen(name);
        if (!len || len > ST_NAME_MAX || !text_is_name(name, len) || strstr(name, "..") ||
            !strcmp(name, "__metadata__"))
            r = fail(EXIT_INPUT, "%s: a tensor cannot be written under the name '%.512s'", path, name);
    }
    if (n && !r) qsort(names, (size_t)n, sizeof *names, by_text);
    for (int i = 1; i < n && !r; i++)
        if (!strcmp(names[i - 1], names[i])) r = fail(EXIT_INPUT, "%s: two tensors have the name '%s'", path, names[i]);
    free(names);
    return r;
}

static void put_json_string(FILE *f, const char *s) {
    CHECK(utf8_valid((const uint8_t *)s, strlen(s)) == strlen(s), "not UTF-8: '%s'", s);
    fputc('"', f);
    for (; *s; s++) {
        if (*s == '"' || *s == '\\')
            fprintf(f, "\\%c", *s);
        else if ((unsigned char)*s < 0x20)
            fprintf(f, "\\u%04x", (unsigned)*s);
        else
            fputc(*s, f);
    }
    fputc('"', f);
}

static uint64_t put_header(FILE *f, const st_decl *decls, int n, const char *const *metadata, int n_meta) {
    uint64_t at = 0;
    fprintf(f, "{%s", n_meta ? "\"__metadata__\":{" : "");
    for (int i = 0; i < n_meta; i++) {
        if (i) fputc(',', f);
        put_json_string(f, metadata[2 * i]);
        fputc(':', f);
        put_json_string(f, metadata[2 * i + 1]);
    }
    if (n_meta) fputs(n ? "}," : "}", f);
    for (int i = 0; i < n; i++) {
        const st_decl *d = &decls[i];
        uint64_t bytes = decl_bytes(d);
        CHECK(bytes <= INT64_MAX - at, "the tensors up to %s overflow", d->name);
        if (i) fputc(',', f);
        put_json_string(f, d->name);
        fprintf(f, ":{\"dtype\":\"%s\",\"shape\":[", st_dtype_name(d->dtype));
        for (int k = 0; k < d->dims; k++) fprintf(f, "%s%" PRId64, k ? "," : "", d->shape[k]);
        fprintf(f, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", at, at + bytes);
        at += bytes;
    }
    fputc('}', f);
    return at;
}

int st_writer_open(st_writer *w, const char *path, const st_decl *decls, int n, const char *const *metadata,
                   int n_meta) {
    *w = (st_writer){.out.fd = -1};
    if (check_decls(path, decls, n)) return -1;
    char *header = NULL;
    size_t length = 0;
    FILE *f = open_memstream(&header, &length);
    if (!f) return fail(EXIT_MEMORY, "%s: no memory for the header", path);
    uint64_t data = put_header(f, decls, n, metadata, n_meta);
    while (ftell(f) % 8) fputc(' ', f); /* after the 8 bytes of the length, which keep the residue */
    bool bad = ferror(f);
    bad |= fclose(f) != 0;
    int r = bad ? fail(EXIT_MEMORY, "%s: no memory for the header", path) : 0;
    if (!r && length > ST_HEADER_MAX)
        r = fail(EXIT_INPUT, "%s: a header of %zu bytes exceeds %d", path, length, ST_HEADER_MAX);
    uint8_t prefix[8];
    for (int i = 0; i < 8; i++) prefix[i] = (uint8_t)((uint64_t)length >> 8 * i);
    if (!r)
        r = file_create(&w->out, path) || file_write(&w->out, prefix, 8) || file_write(&w->out, header, length) ? -1
                                                                                                                : 0;
    free(header);
    w->left = data;
    return r;
}

int st_writer_data(st_writer *w, const void *data, uint64_t bytes) {
    CHECK(bytes <= w->left, "%" PRIu64 " bytes of data, %" PRIu64 " were declared", bytes, w->left);
    w->left -= bytes;
    return file_write(&w->out, data, bytes);
}

int st_writer_close(st_writer *w) {
    if (!w->left) return file_commit(&w->out);
    if (w->out.path)
        fail(EXIT_INTERNAL, "%s: %" PRIu64 " bytes of declared data were never written", w->out.path, w->left);
    st_writer_abandon(w);
    return -1;
}

void st_writer_abandon(st_writer *w) {
    file_abandon(&w->out);
    w->left = 0;
}
