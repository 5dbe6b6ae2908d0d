#include "infer_line.h"

#include <unistd.h>

char *line_read(const char *prompt) {
    if (isatty(STDIN_FILENO)) fputs(prompt, stderr);
    return line_plain();
}
