/* Which row a written name means, and what to say when it means none. Included by config*.c only, as config_parts.h. */
#ifndef PEFT_CORE_CONFIG_NAMES_H
#define PEFT_CORE_CONFIG_NAMES_H

#include "core/config_parts.h"

/* Names are full: scope and key, "datasets.path". Each returns NULL when there is none. */
const key_row *name_row(const char *name); /* row or alias */
bool name_is_scope(const char *name);      /* some alias or axolotl key begins with "name." */
typedef struct {
    const char *name, *accept, *text;
} axolotl_key;
const axolotl_key *name_axolotl(const char *name);
const char *value_same(const char *key, const char *value);    /* what value means; "" = the default */
const char *value_refused(const char *key, const char *value); /* why a value known to axolotl is not supported */
char *name_unknown(const char *scope, const char *key, const yaml_node *value); /* heap: the message */
char *value_nearest(const char *value, const char *choices);                    /* heap: "; did you mean 'x'?" or "" */

#endif
