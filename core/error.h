/* Errors of input and of the machine, and the exit codes that every program of this tree shares.
 *
 * A function that reads something from outside (file, YAML, command line) returns -1 through fail(); main prints the
 * one line and leaves with its code. A programmer's mistake is CHECK: it prints where and stops with EXIT_INTERNAL. */
#ifndef PEFT_CORE_ERROR_H
#define PEFT_CORE_ERROR_H

enum {
    EXIT_DONE = 0,
    EXIT_USAGE = 2,     /* command line or configuration */
    EXIT_INPUT = 3,     /* a model, tokenizer, adapter or data file */
    EXIT_IO = 4,        /* disk, permission */
    EXIT_MEMORY = 5,    /* host or device memory */
    EXIT_DEVICE = 6,    /* the device was lost */
    EXIT_DIVERGED = 7,  /* loss, gradient or weights not finite */
    EXIT_LOCKED = 8,    /* another process owns the output directory */
    EXIT_PEER = 9,      /* another rank died */
    EXIT_INTERNAL = 70, /* a bug */
    EXIT_STOPPED = 75   /* stopped by a signal, resumable */
};

/* Records one line "place: what was found, what was expected, what to do" with its exit code and returns -1. The first
 * failure since fail_clear() is kept, so that a caller may add nothing and still report the cause. Control bytes of the
 * formatted text are escaped. Per thread; never allocates. */
int fail(int code, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
const char *fail_text(void); /* "" when nothing failed */
int fail_code(void);         /* 0 when nothing failed */
void fail_clear(void);
int fail_report(const char *program); /* prints "program: error: text" to stderr once and returns the exit code */

void check_failed(const char *file, int line, const char *cond, const char *fmt, ...)
    __attribute__((noreturn, format(printf, 4, 5)));
#define CHECK(cond, ...)                                                                                               \
    do {                                                                                                               \
        if (!(cond)) check_failed(__FILE__, __LINE__, #cond, __VA_ARGS__);                                             \
    } while (0)

#endif
