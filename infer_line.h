/* Lines from the person at the terminal: with editing and history where libedit is (infer_line_edit.c), plain elsewhere
 * (infer_line_plain.c); the Makefile chooses. */
#ifndef PEFT_INFER_LINE_H
#define PEFT_INFER_LINE_H

#include <stdio.h>
#include <stdlib.h>

/* The next line without its line feed, heap; NULL at the end of input. No prompt is shown where input is no terminal.
 */
char *line_read(const char *prompt);

/* A line of standard input as it comes, without its end; heap, NULL at the end of input. */
static inline char *line_plain(void) {
    char *line = NULL;
    size_t room = 0;
    ssize_t n = getline(&line, &room, stdin);
    if (n < 0) return free(line), NULL;
    if (n && line[n - 1] == '\n') line[--n] = 0;
    if (n && line[n - 1] == '\r') line[n - 1] = 0;
    return line;
}

#endif
