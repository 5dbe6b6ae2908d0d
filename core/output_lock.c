/* The owner of an output directory, and room for what it will write: the last part of core/checkpoint.h. */
#include "core/arena.h"
#include "core/checkpoint.h"
#include "core/error.h"
#include "core/file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

static void read_owner(int fd, char *text, size_t size) {
    ssize_t n = pread(fd, text, size - 1, 0);
    text[n > 0 ? n : 0] = 0;
    text[strcspn(text, "\n")] = 0;
}

static int write_owner(int fd, const char *path) {
    char host[65] = "?", began[32] = "?", text[160];
    time_t now = time(NULL);
    struct tm t;
    gethostname(host, sizeof host - 1);
    if (gmtime_r(&now, &t)) strftime(began, sizeof began, "%Y-%m-%dT%H:%M:%SZ", &t);
    int n = snprintf(text, sizeof text, "process %ld on %s since %s\n", (long)getpid(), host, began);
    if (ftruncate(fd, 0) || pwrite(fd, text, (size_t)n, 0) != n)
        return fail(EXIT_IO, "%s: cannot write: %s", path, strerror(errno));
    return 0;
}

int output_lock_take(output_lock *l, const char *dir) {
    char *path = path_join(dir, ".lock"), owner[160];
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666), bad = 0;
    l->fd = -1;
    if (fd < 0)
        bad = fail(EXIT_IO, "%s: cannot open: %s", path, strerror(errno));
    else if (flock(fd, LOCK_EX | LOCK_NB)) {
        read_owner(fd, owner, sizeof owner);
        bad = errno == EWOULDBLOCK || errno == EAGAIN
                  ? fail(EXIT_LOCKED, "%s: in use by %s: wait for it, stop it, or give another output_dir", dir,
                         *owner ? owner : "another process")
                  : fail(EXIT_IO, "%s: cannot lock: %s", path, strerror(errno));
    } else {
        read_owner(fd, owner, sizeof owner);
        if (*owner) fprintf(stderr, "note: %s: taken over from %s, which ended without giving it back\n", dir, owner);
        bad = write_owner(fd, path);
    }
    free(path);
    if (bad && fd >= 0) close(fd);
    if (!bad) l->fd = fd;
    return bad;
}

void output_lock_give(output_lock *l) {
    if (l->fd < 0) return;
    if (ftruncate(l->fd, 0)) {} /* an empty file: given back in order; a full one is noted by the next owner, no more */
    close(l->fd);
    l->fd = -1;
}

int output_room(const char *dir, uint64_t bytes) {
    struct statvfs v;
    if (statvfs(dir, &v)) return fail(EXIT_IO, "%s: cannot be asked for its room: %s", dir, strerror(errno));
    uint64_t room = (uint64_t)v.f_bavail * v.f_frsize;
    if (room >= bytes) return 0;
    return fail(EXIT_IO,
                "%s: %" PRIu64 " MB are free, and saving needs %" PRIu64 " MB: make room or give another output_dir",
                dir, room / 1000000, (bytes + 999999) / 1000000);
}
