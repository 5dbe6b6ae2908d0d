/* Lines from the person at the terminal: with editing and history where libedit is (infer_line_edit.c), plain elsewhere
 * (infer_line_plain.c); the Makefile chooses. */
#ifndef PEFT_INFER_LINE_H
#define PEFT_INFER_LINE_H

/* The next line without its line feed, heap; NULL at the end of input. No prompt is shown where input is no terminal.
 */
char *line_read(const char *prompt);

#endif
