/* Over libedit's readline interface. An interrupt at the prompt drops the line that was begun. */
#include "infer_line.h"

#include <editline/readline.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static sigjmp_buf again;
static void interrupt(int sig) {
    (void)sig;
    siglongjmp(again, 1);
}

static char *piped(void) {
    char *line = NULL;
    size_t room = 0;
    ssize_t n = getline(&line, &room, stdin);
    if (n < 0) return free(line), NULL;
    if (n && line[n - 1] == '\n') line[--n] = 0;
    if (n && line[n - 1] == '\r') line[n - 1] = 0;
    return line;
}

char *line_read(const char *prompt) {
    if (!isatty(STDIN_FILENO)) return piped();
    struct sigaction ours = {.sa_handler = interrupt}, before;
    if (sigsetjmp(again, 1)) putchar('\n');
    sigaction(SIGINT, &ours, &before);
    char *line = readline(prompt);
    signal(SIGINT, SIG_DFL);
    if (line && *line) add_history(line);
    return line;
}
