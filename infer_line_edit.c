/* Over libedit's readline interface. An interrupt at the prompt drops the line that was begun. */
#include "infer_line.h"

#include <editline/readline.h>
#include <setjmp.h>
#include <signal.h>
#include <unistd.h>

static sigjmp_buf again;
static void interrupt(int sig) {
    (void)sig;
    siglongjmp(again, 1);
}

char *line_read(const char *prompt) {
    if (!isatty(STDIN_FILENO)) return line_plain();
    const struct sigaction ours = {.sa_handler = interrupt};
    if (sigsetjmp(again, 1)) putchar('\n');
    sigaction(SIGINT, &ours, NULL);
    char *line = readline(prompt);
    signal(SIGINT, SIG_DFL);
    if (line && *line) add_history(line);
    return line;
}
