/* A progress line on stderr, redrawn in place on a terminal, one line per report elsewhere; and durations as people
 * read them. */
#ifndef PEFT_CORE_PROGRESS_H
#define PEFT_CORE_PROGRESS_H

#include <stdbool.h>

typedef struct progress {
    const char *what;
    long total;
    double started;
    bool terminal;
} progress;

void progress_begin(progress *p, const char *what, long total);
/* done of total, and a text beside the bar. `line`: print it for good (always so when stderr is no terminal). */
void progress_show(progress *p, long done, const char *text, bool line);
void progress_end(progress *p);                                 /* leaves the cursor on an empty line */
double seconds_now(void);                                       /* monotonic */
const char *duration_text(double seconds, char buf[static 40]); /* "2:05", "1:02:05" */

#endif
