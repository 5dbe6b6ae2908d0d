/* The second table, axolotl_keys.def, and the words for names that are not in any. */
#include "core/config_names.h"

#include "core/arena.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *name, *key;
} other_name;
typedef struct {
    const char *key, *value, *text;
} known_value;

#define AXOLOTL(name, accept, text)
#define ALIAS(name, key)
#define HINT(name, key)
#define SAME(key, value, name)
#define REFUSE(key, value, text)

static const axolotl_key axolotl_keys[] = {
#undef AXOLOTL
#define AXOLOTL(name, accept, text) {name, accept, text},
#include "core/axolotl_keys.def"
#undef AXOLOTL
#define AXOLOTL(name, accept, text)
};

static const other_name aliases[] = {
#undef ALIAS
#define ALIAS(name, key) {name, key},
#include "core/axolotl_keys.def"
#undef ALIAS
#define ALIAS(name, key)
};

static const other_name hints[] = {
#undef HINT
#define HINT(name, key) {name, key},
#include "core/axolotl_keys.def"
#undef HINT
#define HINT(name, key)
};

static const known_value same[] = {
#undef SAME
#define SAME(key, value, name) {key, value, name},
#include "core/axolotl_keys.def"
#undef SAME
#define SAME(key, value, name)
};

static const known_value refused[] = {
#undef REFUSE
#define REFUSE(key, value, text) {key, value, text},
#include "core/axolotl_keys.def"
};

#define COUNT(a) (sizeof(a) / sizeof *(a))

static const key_row *row_named(const char *name) {
    for (int i = 0; i < config_rows_n; i++)
        if (config_rows[i].type != KEY_SECTION && !strcmp(config_rows[i].name, name)) return &config_rows[i];
    return NULL;
}

const key_row *name_row(const char *name) {
    for (size_t i = 0; i < COUNT(aliases); i++)
        if (!strcmp(aliases[i].name, name)) return row_named(aliases[i].key);
    return row_named(name);
}

const axolotl_key *name_axolotl(const char *name) {
    for (size_t i = 0; i < COUNT(axolotl_keys); i++)
        if (!strcmp(axolotl_keys[i].name, name)) return &axolotl_keys[i];
    return NULL;
}

bool name_is_scope(const char *name) {
    size_t n = strlen(name);
    for (size_t i = 0; i < COUNT(axolotl_keys); i++)
        if (!strncmp(axolotl_keys[i].name, name, n) && axolotl_keys[i].name[n] == '.') return true;
    for (size_t i = 0; i < COUNT(aliases); i++)
        if (!strncmp(aliases[i].name, name, n) && aliases[i].name[n] == '.') return true;
    return false;
}

static const char *value_find(const known_value *v, size_t n, const char *key, const char *value) {
    for (size_t i = 0; i < n; i++)
        if (!strcmp(v[i].key, key) && !strcmp(v[i].value, value)) return v[i].text;
    return NULL;
}

const char *value_same(const char *key, const char *value) { return value_find(same, COUNT(same), key, value); }
const char *value_refused(const char *key, const char *value) {
    return value_find(refused, COUNT(refused), key, value);
}

/* ---- did you mean ---- */

typedef struct {
    const char *word, *best;
    int distance;
    size_t scope;
} search;

/* Two typing errors, but one in a word of three letters: everything is near to those. */
static search search_begin(const char *word, size_t scope) {
    return (search){word, NULL, strlen(word + scope) > 3 ? 3 : 2, scope};
}

static void search_try(search *s, const char *name) {
    if (strncmp(name, s->word, s->scope) != 0 || (!s->scope && strchr(name, '.'))) return; /* another scope */
    int d = edit_distance(s->word + s->scope, name + s->scope, s->distance - 1);
    if (d < s->distance) s->distance = d, s->best = name;
}

char *value_nearest(const char *value, const char *choices) {
    search s = search_begin(value, 0);
    char *copy = xstrdup(choices), *save = NULL;
    for (char *w = strtok_r(copy, "|", &save); w; w = strtok_r(NULL, "|", &save)) search_try(&s, w);
    char *text = s.best ? xprintf("; did you mean '%s'?", s.best) : xstrdup("");
    free(copy);
    return text;
}

/* A name that would be right in another place: the message's second half, or NULL. */
static char *elsewhere(const char *scope, const char *key, const yaml_node *value) {
    char *field = xprintf("datasets.%s", key);
    const key_row *in_entry = *scope ? NULL : name_row(field);
    free(field);
    if (in_entry) return xstrdup("it belongs into an entry of datasets");
    if (*scope && name_row(key)) return xstrdup("it is a key of the file itself: write it without indentation");
    for (int i = 0; !*scope && value->kind == YAML_NODE_MAP && i < value->n; i++)
        if (name_row(value->pair[i].key->text))
            return xprintf("keys are not nested here: write %s without indentation", value->pair[i].key->text);
    return NULL;
}

char *name_unknown(const char *scope, const char *key, const yaml_node *value) {
    char *name = xprintf("%s%s", scope, key), *q = quoted(key), *text, *home = elsewhere(scope, key, value);
    size_t n = strlen(scope);
    search s = search_begin(name, n);
    for (size_t i = 0; i < COUNT(hints); i++)
        if (!strcmp(hints[i].name, name)) s.best = hints[i].key, s.distance = 0;
    for (int i = 0; i < config_rows_n; i++)
        if (config_rows[i].type != KEY_SECTION) search_try(&s, config_rows[i].name);
    for (size_t i = 0; i < COUNT(aliases); i++) search_try(&s, aliases[i].name);
    search known = s;
    for (size_t i = 0; i < COUNT(axolotl_keys); i++) search_try(&known, axolotl_keys[i].name);
    if (home)
        text = xprintf("unknown key %s: %s", q, home);
    else if (s.best)
        text = xprintf("unknown key %s; did you mean '%s'?", q, s.best + n);
    else if (known.best)
        text = xprintf("unknown key %s; did you mean axolotl's '%s'? It is not supported here", q, known.best + n);
    else
        text = xprintf("unknown key %s; --help lists the keys", q);
    free(name), free(q), free(home);
    return text;
}
