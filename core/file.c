#include "core/file.h"
#include "core/arena.h"
#include "core/error.h"
#include "core/text.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const char *kind_of(mode_t mode) {
    static const struct {
        mode_t type;
        const char *name;
    } kinds[] = {
        {S_IFDIR, "a directory"},    {S_IFIFO, "a FIFO"},    {S_IFCHR, "a character device"},
        {S_IFBLK, "a block device"}, {S_IFSOCK, "a socket"},
    };
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
        if ((mode & S_IFMT) == kinds[i].type) return kinds[i].name;
    return "something else";
}

/* A path that is not there, or that loops, is the user's to correct; the rest is the system refusing. */
static int open_failed(const char *path, int error) {
    struct stat st;
    if (error == ENOENT && !lstat(path, &st) && S_ISLNK(st.st_mode))
        return fail(EXIT_INPUT, "%s: not a regular file: a symbolic link to nothing", path);
    if (error == ENXIO)
        return fail(EXIT_INPUT, "%s: not a regular file: a socket or a device without its driver", path);
    int input = error == ENOENT || error == ENOTDIR || error == ELOOP || error == ENAMETOOLONG;
    return fail(input ? EXIT_INPUT : EXIT_IO, "%s: cannot open: %s", path, strerror(error));
}

static int64_t nanoseconds(struct timespec t) { return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec; }

static file_id id_of(const struct stat *st) {
    return (file_id){(uint64_t)st->st_dev, (uint64_t)st->st_ino, nanoseconds(st->st_mtim), nanoseconds(st->st_ctim)};
}

static int map_descriptor(file_map *m, const char *path, int fd) {
    struct stat st;
    if (fstat(fd, &st)) return fail(EXIT_IO, "%s: cannot stat: %s", path, strerror(errno));
    if (!S_ISREG(st.st_mode)) return fail(EXIT_INPUT, "%s: not a regular file: %s", path, kind_of(st.st_mode));
    if ((uint64_t)st.st_size > SIZE_MAX / 2)
        return fail(EXIT_INPUT, "%s: %" PRIu64 " bytes do not fit this machine's addresses", path,
                    (uint64_t)st.st_size);
    const uint8_t *data = NULL;
    if (st.st_size) {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED)
            return fail(EXIT_IO, "%s: cannot map %" PRIu64 " bytes: %s", path, (uint64_t)st.st_size, strerror(errno));
        data = p;
    }
    *m = (file_map){.path = xstrdup(path), .data = data, .size = (uint64_t)st.st_size, .id = id_of(&st)};
    file_guard_add(m);
    return 0;
}

int file_open(file_map *m, const char *path) {
    *m = (file_map){0};
    /* O_NONBLOCK: opening a FIFO that nobody writes must not hang */
    int fd;
    do fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    while (fd < 0 && errno == EINTR);
    if (fd < 0) return open_failed(path, errno);
    int r = map_descriptor(m, path, fd);
    close(fd); /* read only: nothing can be lost here */
    return r;
}

void file_close(file_map *m) {
    file_guard_remove(m);
    if (m->data) munmap((void *)(uintptr_t)m->data, (size_t)m->size);
    free(m->path);
    *m = (file_map){0};
}

char *file_text(const char *path, size_t *n) {
    file_map m;
    if (file_open(&m, path)) return NULL;
    char *text = xcalloc(m.size + 1, 1);
    if (m.size) memcpy(text, m.data, m.size);
    if (n) *n = (size_t)m.size;
    file_close(&m);
    return text;
}

bool file_unchanged(const file_map *m) {
    struct stat st;
    if (stat(m->path, &st) || (uint64_t)st.st_size != m->size) return false;
    const file_id now = id_of(&st), then = m->id;
    return now.device == then.device && now.inode == then.inode && now.mtime == then.mtime && now.ctime == then.ctime;
}

void file_drop(const void *data, uint64_t n) {
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t begin = ((uintptr_t)data + page - 1) / page * page, end = ((uintptr_t)data + n) / page * page;
    if (end > begin) madvise((void *)begin, end - begin, MADV_DONTNEED); /* advice: refusal costs memory only */
}

static bool looks_like_safetensors(const uint8_t *d, uint64_t size) {
    if (size < 10) return false;
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--) n = n << 8 | d[i];
    return n >= 2 && n <= size - 8 && d[8] == '{';
}

static bool all_zero(const uint8_t *d, uint64_t size) {
    uint64_t n = size < 4096 ? size : 4096;
    for (uint64_t i = 0; i < n; i++)
        if (d[i]) return false;
    return n > 0;
}

static bool looks_like_html(const uint8_t *d, uint64_t size) {
    uint64_t i = 0;
    while (i < size && is_blank(d[i])) i++;
    const char *s = (const char *)d + i;
    return (size - i >= 9 && !strncasecmp(s, "<!doctype", 9)) || (size - i >= 5 && !strncasecmp(s, "<html", 5));
}

const char *file_guess(const uint8_t *data, uint64_t size) {
    static const struct {
        uint16_t at, n;
        const char *magic, *what;
    } magics[] = {
        {0, 23, "version https://git-lfs", "a Git LFS pointer, not the file itself: run `git lfs pull`"},
        {0, 4, "GGUF", "a GGUF file"},
        {0, 4, "lmgg", "an old ggml file from before GGUF: convert the original model again"},
        {0, 4, "fmgg", "an old ggmf file from before GGUF: convert the original model again"},
        {0, 4, "tjgg", "an old ggjt file from before GGUF: convert the original model again"},
        {0, 4, "algg", "an old ggla adapter from before GGUF: convert the original adapter again"},
        {0, 4, "PK\3\4", "a zip archive (PyTorch's .pt, .pth and .bin are such): convert it to safetensors"},
        {0, 4, "PK\5\6", "an empty zip archive"},
        {0, 2, "\x80\x02", "a Python pickle (PyTorch's old .bin): convert it to safetensors"},
        {0, 2, "\x80\x03", "a Python pickle: convert it to safetensors"},
        {0, 2, "\x80\x04", "a Python pickle: convert it to safetensors"},
        {0, 2, "\x80\x05", "a Python pickle: convert it to safetensors"},
        {0, 2, "\x1f\x8b", "gzip-compressed: unpack it first"},
        {0, 4, "\x28\xb5\x2f\xfd", "zstd-compressed: unpack it first"},
        {0, 3, "BZh", "bzip2-compressed: unpack it first"},
        {0, 6,
         "\xfd"
         "7zXZ\0",
         "xz-compressed: unpack it first"},
        {0, 4, "PAR1", "a Parquet file: convert it to JSON lines"},
        {0, 6, "ARROW1", "an Arrow file: convert it to JSON lines"},
        {0, 8, "\x89HDF\r\n\x1a\n", "an HDF5 file (Keras)"},
        {0, 6, "\x93NUMPY", "a NumPy array"},
        {257, 5, "ustar", "a tar archive: unpack it first"},
        {0, 2, "\xff\xfe", "text in UTF-16: convert it to UTF-8"},
        {0, 2, "\xfe\xff", "text in UTF-16: convert it to UTF-8"},
        {0, 4,
         "\x7f"
         "ELF",
         "a program"},
        {0, 5, "%PDF-", "a PDF document"},
    };
    if (!size) return NULL;
    for (size_t i = 0; i < sizeof magics / sizeof *magics; i++)
        if (size >= (uint64_t)magics[i].at + magics[i].n && !memcmp(data + magics[i].at, magics[i].magic, magics[i].n))
            return magics[i].what;
    if (looks_like_safetensors(data, size)) return "a safetensors file";
    if (looks_like_html(data, size)) return "an HTML page (a download that met a login or error page)";
    if (all_zero(data, size)) return "zero bytes only (an interrupted download)";
    if (data[0] == '{') return "JSON text";
    return NULL;
}
