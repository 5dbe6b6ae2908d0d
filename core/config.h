/* The YAML configuration: one table of keys (keys.def) gives parsing, defaults, ranges, --help and configs/reference.yaml.
 * Names are axolotl's; peft's field names for adapter internals are accepted as aliases. Parsing is libyaml's events with
 * marks; every problem of a file is collected and reported as path:line:column, what was found, what is expected. */
#ifndef PEFT_CORE_CONFIG_H
#define PEFT_CORE_CONFIG_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

typedef struct { char **item; int n; } string_list;

typedef struct {
    char *path, *type; /* type: chat_template | sharegpt | alpaca | completion | tokenized | ... */
    char *field;       /* completion: key of the text, default "text"; messages: key of the turns */
    int line;          /* of the YAML file, for messages */
} dataset_entry;

typedef struct { dataset_entry *item; int n; } dataset_list;

/* Types of keys.def rows and the C type of the field they make. Sizes are bytes. An unset number that has no default is
 * NAN (REAL) or CONFIG_UNSET (INT, SIZE). */
#define CONFIG_UNSET INT64_MIN
typedef int64_t config_INT, config_SIZE;
typedef double config_REAL;
typedef bool config_BOOL;
typedef char *config_STRING; /* NULL = unset */
typedef char *config_CHOICE; /* one of the names in the row's range */
typedef string_list config_STRINGS; /* a scalar is a list of one */
typedef dataset_list config_DATASETS;

typedef struct config {
    char *path; /* of the YAML file */
#define KEY(name, type, def, range, help) config_##type name;
#include "core/keys.def"
#undef KEY
    uint64_t set[4]; /* bit i: row i of keys.def was given (file or command line) */
} config;

/* Reads path (NULL = defaults only), then the n overrides "key=value" from the command line. All problems go to stderr,
 * one line each, and the result is -1 with fail_code() EXIT_USAGE; c is then empty. */
int config_open(config *c, const char *path, const char *const *overrides, int n);
void config_close(config *c);
bool config_is_set(const config *c, const char *key);
void config_help(FILE *f);      /* every key: type, default, range, help */
void config_reference(FILE *f); /* configs/reference.yaml */
void config_print(const config *c, FILE *f); /* the resolved configuration as YAML that config_open reads back */

#endif
