/* The YAML configuration: one table of keys (keys.def) gives parsing, defaults, ranges, --help and
 * configs/reference.yaml. Names are axolotl's; peft's field names for adapter internals are accepted as aliases.
 * Parsing is libyaml's events with marks; every problem of a file is collected and reported as path:line:column, what
 * was found, what is expected. */
#ifndef PEFT_CORE_CONFIG_H
#define PEFT_CORE_CONFIG_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/* scalar: given as one string, not as a list (lora_target_modules: a regular expression or all-linear) */
typedef struct {
    char **item;
    int n;
    bool scalar;
} string_list;

typedef struct {
    char *path, *type; /* type: chat_template | sharegpt | alpaca | completion | tokenized; never NULL */
    char *field;       /* completion: key of the text; chat: key of the turns; NULL = the usual one of the type */
    int line;          /* of the YAML file, for messages; 0 = command line */
} dataset_entry;

typedef struct {
    dataset_entry *item;
    int n;
} dataset_list;

/* Types of keys.def rows and the C type of the field they make. Sizes are bytes. An unset number that has no default is
 * NAN (REAL) or CONFIG_UNSET (INT, SIZE). */
#define CONFIG_UNSET INT64_MIN
typedef int64_t config_INT, config_SIZE;
typedef double config_REAL;
typedef bool config_BOOL;
typedef char *config_STRING;        /* NULL = unset */
typedef char *config_CHOICE;        /* one of the names in the row's range */
typedef string_list config_STRINGS; /* a scalar is a list of one with .scalar set */
typedef dataset_list config_DATASETS;

typedef struct config {
    char *path; /* of the YAML file; NULL without one */
#define SECTION(title)
#define KEY(name, type, def, range, help) config_##type name;
#define FIELD(name, type, def, range, help)
#include "core/keys.def"
#undef KEY
#undef FIELD
#undef SECTION
    uint64_t set[4]; /* bit i: row i of keys.def was given (file or command line) with a value, not empty or null */
} config;

/* Reads path (NULL = defaults and overrides only; then nothing is required and no path is looked for on disk), then the
 * n overrides "key=value" from the command line, which win. All problems (20 at most, then their number) and notes go
 * to `problems`, one line each; the result is -1 with fail_code() EXIT_USAGE and a fail_text() that counts them; c is
 * then empty. Of two exclusive keys the one that lost is unset: warmup_ratio is NAN when warmup_steps was given. */
int config_open_to(config *c, const char *path, const char *const *overrides, int n, FILE *problems);
int config_open(config *c, const char *path, const char *const *overrides, int n); /* problems to stderr */
/* config_open for a plan: files and directories need not exist. */
int config_open_unseen(config *c, const char *path, const char *const *overrides, int n);
void config_close(config *c);
bool config_is_set(const config *c, const char *key); /* CHECKs that the key exists */

/* Steps between evaluations / saves, 0 = never: eval_steps (a count, or a fraction of steps_total rounded up), else
 * evals_per_epoch times an epoch, else once an epoch. Likewise save_steps and saves_per_epoch. At least 1. */
int64_t config_eval_every(const config *c, int64_t steps_per_epoch, int64_t steps_total);
int64_t config_save_every(const config *c, int64_t steps_per_epoch, int64_t steps_total);

void config_help(FILE *f);                   /* every key: type, default, range, help; 100 columns */
void config_reference(FILE *f);              /* configs/reference.yaml */
void config_print(const config *c, FILE *f); /* the resolved configuration as YAML that config_open reads back */
char *config_text(const config *c);          /* the same as text; heap */

#endif
