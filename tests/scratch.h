/* A test program's scratch directory, and a program's main run inside the test with what it prints in a file. */
#ifndef PEFT_TESTS_SCRATCH_H
#define PEFT_TESTS_SCRATCH_H

#include "core/arena.h"
#include "core/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char dir[64]; /* the program's name stands in it */

static inline int make_dir(void **state) {
    (void)state;
    snprintf(dir, sizeof dir, "/tmp/%.40s.XXXXXX", program_invocation_short_name);
    return mkdtemp(dir) ? 0 : -1;
}

static inline int remove_dir(void **state) {
    (void)state;
    char command[96];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    return system(command);
}

/* Appends the space-separated words of text, which it cuts up, to argv; the new argc. */
static inline int add_words(char **argv, int argc, char *text) {
    for (char *p = strtok(text, " "); p; p = strtok(NULL, " ")) argv[argc++] = p;
    return argc;
}

/* From capture_begin to capture_end standard output and error go to the file; flags: O_TRUNC or O_APPEND. */
typedef struct capture {
    int kept[2];
} capture;
static inline capture capture_begin(const char *path, int flags) {
    fflush(NULL);
    capture c = {{dup(1), dup(2)}};
    int fd = open(path, O_CREAT | O_WRONLY | flags, 0600);
    dup2(fd, 1), dup2(fd, 2);
    close(fd);
    return c;
}
static inline void capture_end(const capture *c) {
    fflush(NULL);
    for (int i = 0; i < 2; i++) dup2(c->kept[i], i + 1), close(c->kept[i]);
}

/* What the last run printed into DIR/log: heap, NULL after fail(). */
static inline char *printed(void) {
    char *path = xprintf("%s/log", dir), *text = file_text(path, NULL);
    free(path);
    return text;
}

#endif
