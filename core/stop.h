/* Being asked to stop: the first SIGTERM or SIGINT is noted, for a program that asks often and ends in order; the
 * second ends it at once. SIGHUP and SIGPIPE are ignored: a terminal or a reader of the log that goes away stops no
 * run. */
#ifndef PEFT_CORE_STOP_H
#define PEFT_CORE_STOP_H

void stop_listen(void); /* from here on */
void stop_unlisten(void);
int stop_signal(void); /* the signal that came, 0 for none */

#endif
