/* The system calls that change files, replaced in a test program: recorded, made to fail or to kill the process at the
 * n-th of them. Calls outside the directory `root` pass. Written for one thread. */
#ifndef PEFT_TESTS_RECORDER_H
#define PEFT_TESTS_RECORDER_H

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef enum {
    REC_CREATE,
    REC_WRITE,
    REC_FSYNC,
    REC_RENAME,
    REC_EXCHANGE,
    REC_UNLINK,
    REC_MKDIR,
    REC_RMDIR,
    REC_ACK
} rec_kind;
typedef struct {
    rec_kind kind;
    char *path, *to; /* below root, without it */
    char *data;      /* WRITE */
    size_t n;
    long ack;
} rec_op;

enum { REC_FDS = 256, REC_OPS = 4096 };
static struct {
    char root[128];
    bool recording;
    rec_op op[REC_OPS];
    int n;
    char *fd_path[REC_FDS];
    /* faults: the at-th call of `kinds` (bits of rec_kind), counted from 1, fails with error, or kills */
    unsigned kinds;
    long at, seen;
    int error; /* 0: SIGKILL */
    bool sticky;
} rec;

static inline const char *rec_below(const char *path) {
    size_t n = strlen(rec.root);
    return n && !strncmp(path, rec.root, n) ? path + n + (path[n] == '/') : NULL;
}

static inline void rec_add(rec_kind kind, const char *path, const char *to, const void *data, size_t n) {
    if (!rec.recording || rec.n == REC_OPS) return;
    rec_op *o = &rec.op[rec.n++];
    *o = (rec_op){kind, strdup(path), to ? strdup(to) : NULL, NULL, n, 0};
    if (data) o->data = memcpy(malloc(n + 1), data, n);
}

/* true: this call shall fail, errno is set */
static inline bool rec_fault(rec_kind kind) {
    if (!(rec.kinds >> kind & 1)) return false;
    rec.seen++;
    if (rec.seen != rec.at && !(rec.sticky && rec.seen > rec.at)) return false;
    if (!rec.error) raise(SIGKILL);
    errno = rec.error;
    return true;
}

static inline void rec_start(const char *root) {
    for (int i = 0; i < rec.n; i++) free(rec.op[i].path), free(rec.op[i].to), free(rec.op[i].data);
    memset(&rec, 0, sizeof rec);
    snprintf(rec.root, sizeof rec.root, "%s", root);
}

static inline void rec_ack(long step) {
    rec_add(REC_ACK, "", NULL, NULL, 0);
    if (rec.recording) rec.op[rec.n - 1].ack = step;
}

int open(const char *path, int flags, ...) {
    mode_t mode = 0;
    if (flags & O_CREAT) {
        va_list ap;
        va_start(ap, flags);
        mode = va_arg(ap, mode_t);
        va_end(ap);
    }
    const char *below = rec_below(path);
    bool makes = below && flags & O_CREAT && syscall(SYS_faccessat, AT_FDCWD, path, F_OK) != 0;
    if (makes && rec_fault(REC_CREATE)) return -1;
    int fd = (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    if (fd >= 0 && fd < REC_FDS && below) {
        free(rec.fd_path[fd]);
        rec.fd_path[fd] = strdup(below);
        if (makes) rec_add(REC_CREATE, below, NULL, NULL, 0);
    }
    return fd;
}

static inline const char *rec_fd(int fd) { return fd >= 0 && fd < REC_FDS ? rec.fd_path[fd] : NULL; }

ssize_t write(int fd, const void *p, size_t n) {
    const char *path = rec_fd(fd);
    if (path && rec.kinds >> REC_WRITE & 1 && !rec.error && rec.seen + 1 == rec.at) n = n / 2; /* killed inside */
    ssize_t r = path && rec.error && rec_fault(REC_WRITE) ? -1 : syscall(SYS_write, fd, p, n);
    if (path && !rec.error) rec_fault(REC_WRITE);
    if (path && r > 0) rec_add(REC_WRITE, path, NULL, p, (size_t)r);
    return r;
}

int fsync(int fd) {
    const char *path = rec_fd(fd);
    if (path && rec_fault(REC_FSYNC)) return -1;
    int r = (int)syscall(SYS_fsync, fd);
    if (path && !r) rec_add(REC_FSYNC, path, NULL, NULL, 0);
    return r;
}

int close(int fd) {
    if (rec_fd(fd)) free(rec.fd_path[fd]), rec.fd_path[fd] = NULL;
    return (int)syscall(SYS_close, fd);
}

static inline int rec_rename(const char *from, const char *to, unsigned flags) {
    const char *a = rec_below(from), *b = rec_below(to);
    rec_kind kind = flags ? REC_EXCHANGE : REC_RENAME;
    if (a && rec_fault(kind)) return -1;
    int r = (int)syscall(SYS_renameat2, AT_FDCWD, from, AT_FDCWD, to, flags);
    if (!r && a && b) rec_add(kind, a, b, NULL, 0);
    return r;
}

int rename(const char *from, const char *to) { return rec_rename(from, to, 0); }
int renameat2(int fa, const char *from, int fb, const char *to, unsigned flags) {
    (void)fa, (void)fb;
    return rec_rename(from, to, flags);
}

int unlink(const char *path) {
    const char *below = rec_below(path);
    if (below && rec_fault(REC_UNLINK)) return -1;
    int r = (int)syscall(SYS_unlinkat, AT_FDCWD, path, 0);
    if (!r && below) rec_add(REC_UNLINK, below, NULL, NULL, 0);
    return r;
}

int mkdir(const char *path, mode_t mode) {
    const char *below = rec_below(path);
    if (below && rec_fault(REC_MKDIR)) return -1;
    int r = (int)syscall(SYS_mkdirat, AT_FDCWD, path, mode);
    if (!r && below) rec_add(REC_MKDIR, below, NULL, NULL, 0);
    return r;
}

int rmdir(const char *path) {
    const char *below = rec_below(path);
    if (below && rec_fault(REC_RMDIR)) return -1;
    int r = (int)syscall(SYS_unlinkat, AT_FDCWD, path, AT_REMOVEDIR);
    if (!r && below) rec_add(REC_RMDIR, below, NULL, NULL, 0);
    return r;
}

#endif
