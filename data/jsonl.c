#include "data/jsonl.h"
#include "core/arena.h"
#include "core/error.h"
#include "core/file.h"
#include "core/text.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define WINDOW ((size_t)1 << 20)

/* Reads more behind what is there; 0 also at the end of the file. */
static int fill(jsonl *j) {
    if (j->at) {
        memmove(j->buf, j->buf + j->at, j->end - j->at);
        j->end -= j->at, j->at = 0;
    }
    if (j->end == j->cap) {
        j->cap = j->cap ? j->cap * 2 : WINDOW;
        j->buf = xrealloc(j->buf, j->cap, 1);
    }
    ssize_t n;
    do n = read(j->fd, j->buf + j->end, j->cap - j->end);
    while (n < 0 && errno == EINTR);
    if (n < 0) return fail(EXIT_IO, "%s: cannot read: %s", j->path, strerror(errno));
    j->end += (size_t)n;
    j->eof = n == 0;
    return 0;
}

/* What stands at the beginning of the file that no line of JSON can be. */
static int check_start(jsonl *j) {
    while (j->end < 512 && !j->eof)
        if (fill(j)) return -1;
    const char *guess = file_guess((const uint8_t *)j->buf, j->end);
    if (guess && j->buf[0] != '{')
        return fail(EXIT_INPUT, "%s: expected JSON lines; this looks like %s", j->path, guess);
    if (j->end >= 3 && !memcmp(j->buf, "\xef\xbb\xbf", 3)) j->at = 3, j->offset = 3;
    size_t first = j->at;
    while (first < j->end && is_blank((uint8_t)j->buf[first])) first++;
    if (first < j->end && j->buf[first] == '[')
        return fail(EXIT_INPUT,
                    "%s: found a JSON array, expected JSON lines: one object a line (jq -c '.[]' converts it)",
                    j->path);
    return 0;
}

int jsonl_open(jsonl *j, const char *path) {
    /* O_NONBLOCK: opening a FIFO must not wait for a writer */
    *j = (jsonl){.path = xstrdup(path), .fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY)};
    struct stat st;
    if (j->fd < 0 || fstat(j->fd, &st)) {
        int missing = errno == ENOENT || errno == ENOTDIR || errno == ELOOP;
        fail(missing ? EXIT_INPUT : EXIT_IO, "%s: cannot open: %s (paths are relative to the current directory)", path,
             strerror(errno));
    } else if (S_ISDIR(st.st_mode)) {
        fail(EXIT_INPUT, "%s: is a directory, expected a file of JSON lines", path);
    } else if (!S_ISREG(st.st_mode)) {
        fail(EXIT_INPUT, "%s: is no regular file, expected a file of JSON lines", path);
    } else if (!check_start(j)) {
        return 0;
    }
    jsonl_close(j);
    return -1;
}

void jsonl_close(jsonl *j) {
    if (j->fd >= 0) close(j->fd); /* only read from */
    free(j->path), free(j->buf);
    *j = (jsonl){.fd = -1};
}

/* A line of text: no NUL, valid UTF-8. The offset is that of the byte in the file. */
static int check_line(const jsonl *j, const char *text, size_t n, uint64_t offset) {
    const char *nul = memchr(text, 0, n);
    if (nul)
        return fail(EXIT_INPUT, "%s:%d: byte offset %" PRIu64 ": a NUL byte, expected text", j->path, j->line,
                    offset + (uint64_t)(nul - text));
    size_t bad = utf8_valid((const uint8_t *)text, n);
    if (bad == n) return 0;
    return fail(EXIT_INPUT, "%s:%d: byte offset %" PRIu64 ": invalid UTF-8 (byte 0x%02x)", j->path, j->line,
                offset + bad, (unsigned)(unsigned char)text[bad]);
}

/* The next line, blank or not, with its end cut off. */
static int raw_line(jsonl *j, const char **text, size_t *n) {
    size_t seen = 0;
    const char *lf;
    while (!(lf = j->end > j->at + seen ? memchr(j->buf + j->at + seen, '\n', j->end - j->at - seen) : NULL)) {
        seen = j->end - j->at;
        if (j->eof || seen > JSONL_LINE_MAX) break;
        if (fill(j)) return -1;
    }
    *text = j->buf + j->at;
    *n = lf ? (size_t)(lf - *text) : j->end - j->at;
    if (!lf && !*n) return 0;
    if (*n > JSONL_LINE_MAX)
        return fail(EXIT_INPUT, "%s:%d: a line of more than %u MiB, which is the limit", j->path, j->line + 1,
                    JSONL_LINE_MAX >> 20);
    if (j->line == INT_MAX) return fail(EXIT_INPUT, "%s: more than %d lines", j->path, INT_MAX);
    j->line++;
    int bad = check_line(j, *text, *n, j->offset);
    size_t taken = *n + (lf != NULL);
    j->at += taken, j->offset += taken;
    return bad ? -1 : 1;
}

static bool all_blank(const char *text, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (!is_blank((uint8_t)text[i])) return false;
    return true;
}

int jsonl_next(jsonl *j, const char **text, size_t *n) {
    int r;
    do r = raw_line(j, text, n);
    while (r == 1 && all_blank(*text, *n));
    if (r == 1 && (*text)[*n - 1] == '\r') --*n;
    return r;
}

int jsonl_next_object(jsonl *j, json_t **row) {
    const char *text;
    size_t n;
    int r = jsonl_next(j, &text, &n);
    if (r != 1) return r;
    *row = json_parse(j->path, text, n, j->line - 1);
    if (!*row) return -1;
    if (json_is_object(*row)) return 1;
    fail(EXIT_INPUT, "%s:%d: found %s, expected an object", j->path, j->line, json_kind(*row));
    json_decref(*row);
    return -1;
}
