/* Several files of one directory that appear together: each is written to its temporary and flushed, and only when all
 * are complete do they get their names. On failure nothing new stands under a final name. */
#ifndef PEFT_CORE_FILE_SET_H
#define PEFT_CORE_FILE_SET_H

#include "core/file.h"

typedef struct file_set {
    char *dir;
    bool made; /* the directory did not exist before */
    file_out *out;
    int n;
} file_set;

int file_set_open(file_set *s, const char *dir);          /* makes the directory; -1 EXIT_IO */
char *file_set_path(const file_set *s, const char *name); /* heap */
void file_set_take(file_set *s,
                   file_out *o); /* takes over a file of the directory that has been written, not committed */
int file_set_add(file_set *s, const char *name, const void *data, uint64_t n);
bool file_set_has(const file_set *s, const char *name);
int file_set_commit(file_set *s);   /* names them in the order added; the set is empty then, also after a failure */
void file_set_abandon(file_set *s); /* removes temporaries, and the directory if it was made and holds nothing */

#endif
