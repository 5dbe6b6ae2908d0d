/* Files: whole-file mappings that were checked first, and writing that leaves the old file or the new one, never half.
 */
#ifndef PEFT_CORE_FILE_H
#define PEFT_CORE_FILE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Which file it was when it was mapped, and when it had last been changed (ns since 1970). */
typedef struct {
    uint64_t device, inode;
    int64_t mtime, ctime;
} file_id;
typedef struct {
    char *path;
    const uint8_t *data;
    uint64_t size;
    file_id id;
} file_map; /* read-only, private; data NULL when size is 0 */

/* Maps a regular file (not a directory, FIFO or device: opened O_NONBLOCK, then fstat). -1: EXIT_INPUT, or EXIT_IO when
 * the system refuses. What it looks like when it is not what was wanted (pickle, zip, Git LFS pointer, HTML) is said by
 * file_guess(). */
int file_open(file_map *m, const char *path);
void file_close(file_map *m);
/* A whole file as text: heap, a 0 behind it, its bytes in *n when n is not NULL. NULL after fail(), as file_open. */
char *file_text(const char *path, size_t *n);
bool file_unchanged(const file_map *m); /* the path still names this file, and nothing was written to it since */
/* Gives the whole pages of n bytes of a mapping back to the system: they are read again when they are needed. */
void file_drop(const void *data, uint64_t n);
/* A mapped file that another process cuts short, or whose disk fails, raises SIGBUS when it is read. After file_guard()
 * the process then says so in one line, names the file and leaves with EXIT_IO. Call once, first thing in main. */
void file_guard(const char *program);
void file_guard_add(const file_map *m); /* file_open and file_close call these */
void file_guard_remove(const file_map *m);
const char *file_guess(const uint8_t *data, uint64_t size); /* "a Git LFS pointer: run git lfs pull" ..., or NULL */

bool path_exists(const char *path);
bool path_is_dir(const char *path);
char *path_join(const char *dir, const char *name); /* heap */
int path_make_dirs(const char *dir);                /* like mkdir -p; -1 EXIT_IO */

/* An output that appears under its name only when file_commit() has flushed it to disk: write to "path.tmp.PID", fsync,
 * rename, fsync of the directory. On any failure the temporary is removed and what stood at path is untouched. */
typedef struct {
    char *path, *tmp;
    int fd;
    uint64_t written;
} file_out;
int file_create(file_out *o, const char *path);
int file_write(file_out *o, const void *data, uint64_t n);
int file_commit(file_out *o);
void file_abandon(file_out *o);
int file_save(const char *path, const void *data, uint64_t n); /* create + write + commit */

#endif
