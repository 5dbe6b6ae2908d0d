/* What the files of the configuration share; nobody else includes it. config_yaml.c: bytes -> tree of nodes;
 * config_text.c: scalars, names, the list of problems; config.c: tree -> struct config; config_print.c: the way back.
 */
#ifndef PEFT_CORE_CONFIG_PARTS_H
#define PEFT_CORE_CONFIG_PARTS_H

#include "core/config.h"

#include <stddef.h>

/* ---- places and problems ---- */

typedef struct {
    int line, col;
} place; /* from 1; line 0 = the file as a whole, PLACE_ARGS = the command line */
enum { PLACE_ARGS = -1, PROBLEMS_SHOWN = 20 };

typedef struct {
    place at;
    bool note;
    char *text;
} problem;
typedef struct {
    const char *path;
    problem *item;
    int n, errors;
} problem_list;

void problem_add(problem_list *l, place at, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void problem_note(problem_list *l, place at, const char *fmt, ...) __attribute__((format(printf, 3, 4)));
void problem_print(problem_list *l,
                   FILE *f); /* in the order of their places, control bytes escaped, at most 20 errors */
void problem_free(problem_list *l);

/* ---- YAML as a tree ---- */

#define YAML_FILE_MAX (4u << 20)
#define YAML_LINE_MAX (1u << 20)
enum { YAML_EVENTS_MAX = 10000, YAML_DEPTH_MAX = 32 };

typedef enum { YAML_NODE_SCALAR, YAML_NODE_LIST, YAML_NODE_MAP } yaml_kind;

typedef struct yaml_node yaml_node;
typedef struct {
    yaml_node *key, *value;
    bool merged;
} yaml_pair; /* key is a scalar; merged: it came through "<<" */
struct yaml_node {
    yaml_kind kind;
    place at;
    char *text;      /* of a scalar, environment expanded */
    bool plain;      /* written without quotes */
    bool used;       /* an alias or a merge key refers to it */
    yaml_pair *pair; /* [n] of a map; only value is set in a list */
    int n;
    int weight; /* nodes below it with every alias counted in full: the bound against alias bombs */
    char *anchor;
};

typedef struct {
    yaml_node **node;
    int n;
    yaml_node *root;
} yaml_doc;

/* Parses one document. Aliases share nodes; merge keys are resolved. at_args: places are the command line, where
 * ${NAME} is left alone because the shell has expanded it. -1 after problem_add. */
int yaml_tree(yaml_doc *d, const char *text, size_t n, bool at_args, problem_list *problems);
void yaml_tree_free(yaml_doc *d);
char *config_read_file(const char *path, size_t *n, problem_list *problems); /* heap, or NULL after problem_add */

/* ---- scalars and names ---- */

typedef struct {
    double lo, hi;
    bool open_lo, open_hi;
} interval;
interval interval_parse(const char *text); /* "[0, 1)"; NULL = everything */
bool interval_has(interval r, double x);

/* The scalar rule of this configuration: the key, not the spelling, decides what a scalar is. Each returns NULL, or
 * what is wrong with the text. */
const char *scalar_int(const char *s, int64_t *out);  /* decimal; 4096.0 and 2e3 are integers too */
const char *scalar_real(const char *s, double *out);  /* finite decimal */
const char *scalar_bool(const char *s, bool *out);    /* true false yes no on off in any case */
const char *scalar_size(const char *s, int64_t *out); /* bytes; 4GB = 4 * 10^9, 4GiB = 4 * 2^30 */
bool scalar_is_null(const yaml_node *v);              /* empty, ~ or null, not in quotes */
bool word_in(const char *word, const char *list);     /* list "a|b|c" */
bool word_in_anycase(const char *word, const char *list);
int edit_distance(const char *a, const char *b, int limit); /* optimal string alignment; limit + 1 when above */
char *quoted(const char *s);                                /* heap: 's', cut at 60 bytes on a UTF-8 border */

/* ---- the table ---- */

typedef enum {
    KEY_INT,
    KEY_SIZE,
    KEY_REAL,
    KEY_BOOL,
    KEY_STRING,
    KEY_CHOICE,
    KEY_STRINGS,
    KEY_DATASETS,
    KEY_SECTION
} key_type;
/* name: a key, or "datasets." and a field of an entry, or the title of a section. offset: in config or dataset_entry */
typedef struct {
    const char *name;
    key_type type;
    const char *def, *range, *help;
    size_t offset;
    int bit;
} key_row;

extern const key_row config_rows[]; /* in the order of keys.def */
extern const int config_rows_n;
bool key_row_is_field(const key_row *r);
char *key_row_expected(const key_row *r); /* heap: "a number in (0, 1]" */

#endif
