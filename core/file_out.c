/* Writing files: the paths half of core/file.h. The order that survives a crash at any point is: write a temporary,
 * fsync it, rename it over the target, fsync the directory. A failed fsync voids the file (pages may have been
 * dropped): never retried. */
#include "core/arena.h"
#include "core/error.h"
#include "core/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define WRITE_MAX ((uint64_t)1 << 30) /* one write(2) takes at most 0x7ffff000 bytes on Linux */

bool path_exists(const char *path) {
    struct stat st;
    return !stat(path, &st);
}

bool path_is_dir(const char *path) {
    struct stat st;
    return !stat(path, &st) && S_ISDIR(st.st_mode);
}

char *path_join(const char *dir, const char *name) {
    size_t n = strlen(dir);
    return xprintf("%s%s%s", dir, n && dir[n - 1] != '/' ? "/" : "", name);
}

static int make_dir(const char *dir) {
    if (!mkdir(dir, 0777)) return 0;
    int error = errno; /* an existing directory may also answer EROFS or EACCES */
    if (path_is_dir(dir)) return 0;
    return fail(EXIT_IO, "%s: cannot create the directory: %s", dir,
                error == EEXIST ? "something else has this name" : strerror(error));
}

int path_make_dirs(const char *dir) {
    char *p = xstrdup(dir);
    int r = *p ? 0 : fail(EXIT_IO, "cannot create a directory without a name");
    for (char *s = p; !r && *s; s++) {
        if (*s != '/' || s == p) continue;
        *s = 0;
        r = make_dir(p);
        *s = '/';
    }
    if (!r) r = make_dir(p);
    free(p);
    return r;
}

static int open_retry(const char *path, int flags, mode_t mode) {
    int fd;
    do fd = open(path, flags | O_CLOEXEC, mode);
    while (fd < 0 && errno == EINTR);
    return fd;
}

static int fsync_retry(int fd) {
    int r;
    do r = fsync(fd);
    while (r && errno == EINTR);
    return r;
}

int file_create(file_out *o, const char *path) {
    *o = (file_out){.fd = -1};
    if (path_is_dir(path)) return fail(EXIT_IO, "%s: cannot write: a directory has this name", path);
    const int flags = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW;
    char *tmp = xprintf("%s.tmp.%ld", path, (long)getpid());
    int fd = open_retry(tmp, flags, 0666);
    if (fd < 0 && errno == EEXIST && !unlink(tmp))
        fd = open_retry(tmp, flags, 0666); /* a dead process had our number */
    if (fd < 0) {
        fail(EXIT_IO, "%s: cannot create: %s", tmp, strerror(errno));
        free(tmp);
        return -1;
    }
    *o = (file_out){.path = xstrdup(path), .tmp = tmp, .fd = fd};
    return 0;
}

void file_abandon(file_out *o) {
    if (o->fd >= 0) close(o->fd);
    if (o->tmp) unlink(o->tmp);
    free(o->path), free(o->tmp);
    *o = (file_out){.fd = -1};
}

static int out_failed(file_out *o, const char *doing, int error) {
    fail(EXIT_IO, "%s: cannot %s: %s; what stood there is untouched", o->path, doing, strerror(error));
    file_abandon(o);
    return -1;
}

int file_write(file_out *o, const void *data, uint64_t n) {
    CHECK(n <= UINT64_MAX - o->written, "%llu bytes", (unsigned long long)n);
    if (!o->path) return fail(EXIT_IO, "cannot write: the file was abandoned");
    const char *p = data;
    while (n) {
        ssize_t r = write(o->fd, p, (size_t)(n < WRITE_MAX ? n : WRITE_MAX));
        if (r < 0 && errno == EINTR) continue;
        if (r <= 0) return out_failed(o, "write", r ? errno : ENOSPC);
        p += r, n -= (uint64_t)r, o->written += (uint64_t)r;
    }
    return 0;
}

static int open_parent(const char *path) {
    const char *slash = strrchr(path, '/');
    char *dir = slash ? xstrdup(path) : xstrdup(".");
    if (slash) dir[slash == path ? 1 : slash - path] = 0;
    int fd = open_retry(dir, O_RDONLY | O_DIRECTORY, 0);
    int error = errno;
    free(dir);
    errno = error;
    return fd;
}

int file_commit(file_out *o) {
    if (!o->path) return fail(EXIT_IO, "cannot save: the file was abandoned");
    if (fsync_retry(o->fd)) return out_failed(o, "flush to disk", errno);
    int fd = o->fd;
    o->fd = -1;
    if (close(fd) && errno != EINTR) return out_failed(o, "close", errno); /* Linux closes even when interrupted */
    int dir = open_parent(o->path); /* before the rename, so that as little as possible can fail after it */
    if (dir < 0) return out_failed(o, "open the directory", errno);
    if (rename(o->tmp, o->path)) {
        int error = errno;
        close(dir);
        return out_failed(o, "rename into place", error);
    }
    free(o->tmp);
    o->tmp = NULL;
    /* some network and FUSE file systems have no flush for directories and say EINVAL */
    int r =
        fsync_retry(dir) && errno != EINVAL && errno != ENOTSUP
            ? fail(EXIT_IO, "%s: written, but its directory cannot be flushed to disk: %s", o->path, strerror(errno))
            : 0;
    close(dir);
    file_abandon(o);
    return r;
}

int file_save(const char *path, const void *data, uint64_t n) {
    file_out o;
    if (file_create(&o, path) || file_write(&o, data, n)) return -1;
    return file_commit(&o);
}
