/* JSON lines: one value a line, read with a window of one line. A BOM, CRLF, blank lines and a last line without its
 * line feed are accepted; NUL bytes, invalid UTF-8, lines beyond the limit and files that are something else are
 * refused. */
#ifndef PEFT_DATA_JSONL_H
#define PEFT_DATA_JSONL_H

#include "core/json.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define JSONL_LINE_MAX (64u << 20)

typedef struct {
    char *path;
    int fd;
    char *buf; /* [cap] bytes [at, end) are read but not handed out */
    size_t cap, at, end;
    uint64_t offset; /* of buf[at] in the file */
    int line;        /* of the line last handed out, from 1 */
    bool eof;
} jsonl;

int jsonl_open(jsonl *j, const char *path);
void jsonl_close(jsonl *j);
/* The next line that is not blank, without its line end; valid until the next call. 1; 0 at the end; -1 after fail().
 */
int jsonl_next(jsonl *j, const char **text, size_t *n);
/* The same, parsed; it must be an object. The caller releases *row. */
int jsonl_next_object(jsonl *j, json_t **row);

#endif
