/* JSON through jansson with the limits of hostile input: size and depth are bounded before parsing, duplicate keys are
 * errors, a BOM is skipped, positions are reported as path:line:column. */
#ifndef PEFT_CORE_JSON_H
#define PEFT_CORE_JSON_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define JSON_DEPTH_MAX 64
#define JSON_FILE_MAX (256u << 20)

/* Parses text; `where` names it in messages; line0 is added to reported lines (JSONL). NULL after fail(EXIT_INPUT). */
json_t *json_parse(const char *where, const char *text, size_t n, int line0);
json_t *json_read(const char *path); /* a whole file; top level must be an object */

/* The same with other bounds: nesting, and an estimate (too high rather than too low) of the parsed tree's memory,
 * which can be a hundred times the text. Both are checked before anything is allocated. json_parse: JSON_DEPTH_MAX,
 * JSON_MEMORY_MAX. */
#define JSON_MEMORY_MAX (768u << 20)
typedef struct {
    int depth;
    uint64_t memory;
} json_limits;
json_t *json_parse_limited(const char *where, const char *text, size_t n, int line0, json_limits limits);

/* Typed getters. `where` is the file; messages say "where: key 'a': found null, expected an integer from lo to hi".
 * A missing key is an error unless the default variant is used; a present key of another type is always an error
 * (an integral real such as 4096.0 is accepted as an integer). All return 0 or -1. */
int json_get_int(const char *where, const json_t *o, const char *key, int64_t lo, int64_t hi, int64_t *out);
int json_get_int_or(const char *where, const json_t *o, const char *key, int64_t lo, int64_t hi, int64_t def,
                    int64_t *out);
int json_get_real_or(const char *where, const json_t *o, const char *key, double lo, double hi, double def,
                     double *out);
int json_get_bool_or(const char *where, const json_t *o, const char *key, bool def, bool *out);
int json_get_string_or(const char *where, const json_t *o, const char *key, const char *def,
                       const char **out); /* borrowed */
const char *json_kind(const json_t *v);   /* "an object", "null", ... for messages */

#endif
