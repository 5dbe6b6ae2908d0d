/* Checkpoints: directories that appear whole, and are known to be whole when they are read again.
 *
 *     PARENT/NAME.tmp.PID/    its files are written here, each flushed (file_save, st_writer)
 *     .../MANIFEST            size and XXH64 of every file, and of itself; flushed last
 *     rename to PARENT/NAME   then PARENT is flushed: only now is the checkpoint saved
 *
 * Whatever stops the program, and wherever, a checkpoint whose checkpoint_commit has returned 0 is there, and a
 * directory that is not complete is not taken for one. Names are checkpoint-STEP, or checkpoint-STEP.K after K
 * micro-batches of the next step. */
#ifndef PEFT_CORE_CHECKPOINT_H
#define PEFT_CORE_CHECKPOINT_H

#include <stdbool.h>
#include <stdint.h>

#define CHECKPOINT_MANIFEST "MANIFEST"

typedef struct checkpoint {
    char *path, *tmp; /* its final place; where it is being made */
} checkpoint;
int checkpoint_begin(checkpoint *c, const char *parent, int64_t step, int64_t micro); /* makes c->tmp, empty */
/* Writes the manifest and gives the directory its name; one that stood there is exchanged for it in one step and
 * removed afterwards. On failure c->tmp is removed and what stood there is untouched. c is empty afterwards. */
int checkpoint_commit(checkpoint *c);
void checkpoint_abandon(checkpoint *c);

/* Every file of the manifest is there with its size and sum. -1 after fail(EXIT_INPUT) naming the file. */
int checkpoint_verify(const char *dir);

typedef struct checkpoint_name {
    char *path;
    int64_t step, micro;
} checkpoint_name;
typedef struct checkpoint_list {
    checkpoint_name *item; /* newest first; not verified */
    int n;
} checkpoint_list;
int checkpoint_find(checkpoint_list *l, const char *parent); /* -1 EXIT_IO: the directory cannot be read */
void checkpoint_list_free(checkpoint_list *l);

/* Removes the oldest whole checkpoints but `keep` (at least 1); broken ones do not count and are left alone. */
int checkpoint_rotate(const char *parent, int keep);
/* Removes what interrupted saves and rotations have left. Only for the owner of the directory (output_lock). */
int checkpoint_sweep(const char *parent);

/* One process owns an output directory: flock on DIR/.lock, which says who. The system gives it back when the process
 * ends in any way. */
typedef struct output_lock {
    int fd;
} output_lock;
/* -1 EXIT_LOCKED: another process holds it (named in the message), EXIT_IO. A lock that a dead process left is taken
 * over with a note. */
int output_lock_take(output_lock *l, const char *dir);
void output_lock_give(output_lock *l);
int output_room(const char *dir, uint64_t bytes); /* -1 EXIT_IO: the file system has less room, with both numbers */

#endif
