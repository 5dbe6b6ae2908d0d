/* The subset of Jinja2 that chat templates use, rendered as transformers renders them (trim_blocks, lstrip_blocks,
 * loop controls, generation blocks, the immutable sandbox). Values are plain data: nothing of the host can be reached
 * from a template, and steps, memory, output, depth and time are bounded. Equal to Python's jinja2 3.1 but for:
 * integers beyond 64 bits, mixing |safe text with characters that need escaping, include/import/extends/block,
 * recursive loops, *args and **kwargs, % and format() of strings, rare filters and methods: each is an error that names
 * it. One result differs: names are looked up when they are read, where Jinja decides when it compiles (a loop that
 * reads a context variable which the template sets only after the loop sees it; in Jinja it is undefined there, and a
 * block set that reads its own name is an error). Case mapping is one code point to one. */
#ifndef PEFT_DATA_JINJA_H
#define PEFT_DATA_JINJA_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>
#include <time.h>

typedef struct jinja jinja; /* constant once compiled: threads may render it at the same time */

/* Compiles UTF-8 text of n bytes; `where` names it in messages ("where:line:column: ..."). NULL after
 * fail(EXIT_INPUT). */
jinja *jinja_compile(const char *where, const char *text, size_t n);
void jinja_free(jinja *j); /* NULL is allowed */

typedef struct {
    int64_t steps;  /* nodes evaluated, items produced */
    size_t output;  /* bytes of the rendered text */
    size_t memory;  /* bytes of all values together */
    int depth;      /* macro calls inside each other */
    double seconds; /* wall time */
    time_t now;     /* what strftime_now sees; 0: the clock */
} jinja_limits;
#define JINJA_LIMITS                                                                                                   \
    ((jinja_limits){                                                                                                   \
        .steps = 1000000, .output = (size_t)16 << 20, .memory = (size_t)256 << 20, .depth = 64, .seconds = 10})

typedef struct {
    int64_t begin, end;
} jinja_span; /* bytes of the rendered text */
typedef struct {
    char *text; /* n bytes and a 0; heap */
    size_t n;
    jinja_span *spans; /* the outputs of {% generation %} blocks, in order; heap */
    int n_spans;
} jinja_text;

/* Renders with the members of `context` (an object) as variables. limits NULL: JINJA_LIMITS. -1 after fail(EXIT_INPUT)
 * with *out empty: the template's raise_exception, a limit, or what it does is unknown or an error in Jinja too. */
int jinja_render(const jinja *j, const json_t *context, const jinja_limits *limits, jinja_text *out);
void jinja_text_free(jinja_text *t);

#endif
