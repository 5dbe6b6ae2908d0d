#include "infer_line.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

char *line_read(const char *prompt) {
    char *line = NULL;
    size_t room = 0;
    if (isatty(STDIN_FILENO)) fputs(prompt, stderr);
    ssize_t n = getline(&line, &room, stdin);
    if (n < 0) return free(line), NULL;
    if (n && line[n - 1] == '\n') line[--n] = 0;
    if (n && line[n - 1] == '\r') line[n - 1] = 0;
    return line;
}
