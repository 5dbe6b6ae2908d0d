/* Saving, finding and checking checkpoints. The order of system calls is the point: tests/test_checkpoint.c records it
 * and walks through every state in which a crash may leave the disk. */
#include "core/checkpoint.h"
#include "core/arena.h"
#include "core/error.h"
#include "core/file.h"
#include "core/xxh64.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define HEAD "peft.c checkpoint 1\n"
#define PREFIX "checkpoint-"
enum { FILES_MAX = 64, EXCHANGE = 2 /* RENAME_EXCHANGE of linux/fs.h */ };

/* ---- directories ---- */

typedef struct {
    char **item;
    int n;
} names;

static int by_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

static void names_free(names *l) {
    for (int i = 0; i < l->n; i++) free(l->item[i]);
    free(l->item);
    *l = (names){0};
}

/* All entries but . and .., sorted. */
static int names_of(names *l, const char *dir) {
    *l = (names){0};
    DIR *d = opendir(dir);
    if (!d) return fail(EXIT_IO, "%s: cannot read the directory: %s", dir, strerror(errno));
    for (struct dirent *e; (e = readdir(d));) {
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..")) continue;
        l->item = xrealloc(l->item, (size_t)l->n + 1, sizeof *l->item);
        l->item[l->n++] = xstrdup(e->d_name);
    }
    closedir(d);
    if (l->n) qsort(l->item, (size_t)l->n, sizeof *l->item, by_text);
    return 0;
}

/* A directory of plain files. */
static int remove_dir(const char *dir) {
    names l;
    if (names_of(&l, dir)) return -1;
    for (int i = 0; i < l.n; i++) {
        char *path = path_join(dir, l.item[i]);
        unlink(path);
        free(path);
    }
    names_free(&l);
    return rmdir(dir) ? fail(EXIT_IO, "%s: cannot remove the directory: %s", dir, strerror(errno)) : 0;
}

static int flush_dir(const char *dir) {
    int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC), r;
    if (fd < 0) return fail(EXIT_IO, "%s: cannot open the directory: %s", dir, strerror(errno));
    do r = fsync(fd);
    while (r && errno == EINTR);
    if (r && (errno == EINVAL || errno == ENOTSUP)) r = 0; /* network and FUSE file systems without it */
    if (r) fail(EXIT_IO, "%s: cannot flush the directory to disk: %s", dir, strerror(errno));
    close(fd);
    return r ? -1 : 0;
}

/* ---- making ---- */

int checkpoint_begin(checkpoint *c, const char *parent, int64_t step, int64_t micro) {
    char tail[32] = "";
    if (micro) snprintf(tail, sizeof tail, ".%" PRId64, micro);
    c->path = xprintf("%s/" PREFIX "%" PRId64 "%s", parent, step, tail);
    c->tmp = xprintf("%s.tmp.%ld", c->path, (long)getpid());
    if ((!path_exists(c->tmp) || !remove_dir(c->tmp)) && !path_make_dirs(c->tmp)) return 0;
    checkpoint_abandon(c);
    return -1;
}

void checkpoint_abandon(checkpoint *c) {
    if (c->tmp && path_is_dir(c->tmp)) remove_dir(c->tmp);
    free(c->path), free(c->tmp);
    *c = (checkpoint){0};
}

/* "SUM SIZE NAME" of one file appended to *text. */
static int manifest_line(char **text, const char *dir, const char *name) {
    char *path = path_join(dir, name);
    file_map m;
    int bad = file_open(&m, path);
    if (!bad) {
        char *more = xprintf("%s%016" PRIx64 " %" PRIu64 " %s\n", *text, xxh64(m.data, m.size, 0), m.size, name);
        free(*text);
        *text = more;
        file_close(&m);
    }
    free(path);
    return bad;
}

static int write_manifest(const char *dir) {
    names l;
    if (names_of(&l, dir)) return -1;
    CHECK(l.n <= FILES_MAX, "%d files in a checkpoint", l.n);
    char *text = xstrdup(HEAD);
    int bad = 0;
    for (int i = 0; i < l.n && !bad; i++) bad = manifest_line(&text, dir, l.item[i]);
    char *all = xprintf("%send %016" PRIx64 "\n", text, xxh64(text, strlen(text), 0)),
         *path = path_join(dir, CHECKPOINT_MANIFEST);
    bad = bad || file_save(path, all, strlen(all));
    free(text), free(all), free(path);
    names_free(&l);
    return bad ? -1 : 0;
}

/* Gives tmp the name path; the old one, if any, is then called *old. */
static int put_in_place(const char *tmp, const char *path, char **old) {
    *old = NULL;
    if (!path_exists(path)) return rename(tmp, path);
    if (!renameat2(AT_FDCWD, tmp, AT_FDCWD, path, EXCHANGE)) {
        *old = xstrdup(tmp);
        return 0;
    }
    if (errno != EINVAL && errno != ENOSYS) return -1;
    char *aside = xprintf("%s.trash.%ld", path, (long)getpid()); /* a file system that cannot exchange names */
    if (rename(path, aside) || rename(tmp, path)) {
        int error = errno;
        if (!path_exists(path)) rename(aside, path);
        free(aside);
        errno = error;
        return -1;
    }
    *old = aside;
    return 0;
}

int checkpoint_commit(checkpoint *c) {
    char *parent = xstrdup(c->path), *old = NULL;
    *strrchr(parent, '/') = 0;
    int bad = write_manifest(c->tmp) || flush_dir(c->tmp);
    if (!bad && put_in_place(c->tmp, c->path, &old))
        bad =
            fail(EXIT_IO, "%s: cannot rename into place: %s; what stood there is untouched", c->path, strerror(errno));
    if (!bad) {
        free(c->tmp);
        c->tmp = old;
        bad = flush_dir(parent);
        if (bad) free(c->tmp), c->tmp = NULL; /* which of both names the disk has is unknown: the old one stays */
    }
    free(parent);
    checkpoint_abandon(c);
    return bad ? -1 : 0;
}

/* ---- checking ---- */

static int verify_file(const char *dir, const char *name, uint64_t sum, uint64_t size) {
    char *path = path_join(dir, name);
    file_map m;
    int bad = file_open(&m, path);
    if (!bad) {
        if (m.size != size)
            bad = fail(EXIT_INPUT, "%s: found %" PRIu64 " bytes, expected %" PRIu64 " by the checkpoint's MANIFEST",
                       path, m.size, size);
        else if (xxh64(m.data, m.size, 0) != sum)
            bad = fail(EXIT_INPUT, "%s: damaged: its checksum is not that of the checkpoint's MANIFEST", path);
        file_close(&m);
    }
    free(path);
    return bad;
}

static int verify_lines(const char *dir, const char *path, char *text, size_t n) {
    char *end = n > sizeof HEAD ? text + n - 1 : text, *line = text + sizeof HEAD - 1, last[32];
    while (end > text && end[-1] != '\n') end--; /* the last line */
    uint64_t sum, size;
    if (strncmp(text, HEAD, sizeof HEAD - 1))
        return fail(EXIT_INPUT, "%s: found \"%.24s\", expected \"%.*s\": not a checkpoint of this version", path, text,
                    (int)sizeof HEAD - 2, HEAD);
    snprintf(last, sizeof last, "end %016" PRIx64 "\n", xxh64(text, (size_t)(end - text), 0));
    if (strcmp(end, last)) return fail(EXIT_INPUT, "%s: cut short or damaged", path);
    for (; line < end; line = strchr(line, '\n') + 1) {
        char name[256];
        if (sscanf(line, "%16" SCNx64 " %" SCNu64 " %255[^\n]", &sum, &size, name) != 3 || strchr(name, '/'))
            return fail(EXIT_INPUT, "%s: line \"%.80s\" is not a checksum, a size and a file", path, line);
        if (verify_file(dir, name, sum, size)) return -1;
    }
    return 0;
}

int checkpoint_verify(const char *dir) {
    char *path = path_join(dir, CHECKPOINT_MANIFEST), *text = NULL;
    size_t n = 0;
    int bad = path_exists(path) ? !(text = file_text(path, &n))
                                : fail(EXIT_INPUT, "%s: no %s: not a checkpoint, or one that was not finished", dir,
                                       CHECKPOINT_MANIFEST);
    if (!bad)
        bad = strlen(text) != n ? fail(EXIT_INPUT, "%s: holds a NUL byte", path) : verify_lines(dir, path, text, n);
    free(path), free(text);
    return bad ? -1 : 0;
}

/* ---- finding, rotating, sweeping ---- */

static int newest_first(const void *a, const void *b) {
    const checkpoint_name *x = a, *y = b;
    if (x->step != y->step) return x->step > y->step ? -1 : 1;
    return (x->micro < y->micro) - (x->micro > y->micro);
}

/* checkpoint-STEP or checkpoint-STEP.MICRO and nothing more */
static bool parse_name(const char *name, checkpoint_name *out) {
    char again[64];
    *out = (checkpoint_name){0};
    int got = sscanf(name, PREFIX "%9" SCNd64 ".%9" SCNd64, &out->step, &out->micro);
    if (got < 1 || out->step < 0 || out->micro < 0) return false;
    snprintf(again, sizeof again, got == 2 ? PREFIX "%" PRId64 ".%" PRId64 : PREFIX "%" PRId64, out->step, out->micro);
    return !strcmp(again, name);
}

int checkpoint_find(checkpoint_list *l, const char *parent) {
    names all;
    *l = (checkpoint_list){0};
    if (names_of(&all, parent)) return -1;
    for (int i = 0; i < all.n; i++) {
        checkpoint_name name;
        if (!parse_name(all.item[i], &name)) continue;
        name.path = path_join(parent, all.item[i]);
        l->item = xrealloc(l->item, (size_t)l->n + 1, sizeof *l->item);
        l->item[l->n++] = name;
    }
    names_free(&all);
    if (l->n) qsort(l->item, (size_t)l->n, sizeof *l->item, newest_first);
    return 0;
}

void checkpoint_list_free(checkpoint_list *l) {
    for (int i = 0; i < l->n; i++) free(l->item[i].path);
    free(l->item);
    *l = (checkpoint_list){0};
}

/* Out of the way first, so that a removal which is interrupted leaves no half of a checkpoint under its name. */
static int discard(const char *parent, const char *path) {
    char *aside = xprintf("%s.trash.%ld", path, (long)getpid());
    int bad = rename(path, aside) ? fail(EXIT_IO, "%s: cannot rename: %s", path, strerror(errno)) : 0;
    bad = bad || flush_dir(parent) || remove_dir(aside);
    free(aside);
    return bad ? -1 : 0;
}

int checkpoint_rotate(const char *parent, int keep) {
    CHECK(keep >= 1, "%d checkpoints to keep", keep);
    checkpoint_list l;
    int bad = checkpoint_find(&l, parent), whole = 0;
    for (int i = 0; i < l.n && !bad; i++) {
        if (whole < keep) {
            whole += !checkpoint_verify(l.item[i].path);
            fail_clear();
        } else
            bad = discard(parent, l.item[i].path);
    }
    checkpoint_list_free(&l);
    return bad;
}

int checkpoint_sweep(const char *parent) {
    names all;
    int bad = names_of(&all, parent);
    for (int i = 0; i < all.n && !bad; i++) {
        const char *name = all.item[i], *dot = strstr(name, ".tmp.");
        if (!dot) dot = strstr(name, ".trash.");
        if (strncmp(name, PREFIX, sizeof PREFIX - 1) || !dot) continue;
        char *path = path_join(parent, name);
        bad = remove_dir(path);
        free(path);
    }
    names_free(&all);
    return bad;
}
