/* A YAML file as a tree of nodes with places, through libyaml's events. Stricter than YAML: one document, no tags,
 * bounds on size, depth and events. An alias shares its node and a merge key shares the pairs, so nothing is ever
 * expanded; what the expansion would be is counted and bounded. */
#include "core/config_parts.h"

#include "core/arena.h"
#include "core/error.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <yaml.h>

typedef struct {
    yaml_parser_t parser;
    yaml_doc *doc;
    problem_list *problems;
    const char *text;
    size_t n;
    bool at_args;
    int events;
} reader;

static place place_of(const reader *r, yaml_mark_t m) {
    return r->at_args ? (place){PLACE_ARGS, 0} : (place){(int)m.line + 1, (int)m.column + 1};
}

/* ---- the file ---- */

static char *read_all(int fd, size_t *n) {
    char *s = xcalloc(YAML_FILE_MAX + 2, 1);
    ssize_t got;
    for (*n = 0; *n <= YAML_FILE_MAX; *n += (size_t)got) {
        got = read(fd, s + *n, YAML_FILE_MAX + 1 - *n);
        if (got == 0) return s;
        if (got < 0 && errno == EINTR) got = 0;
        if (got < 0) break;
    }
    if (*n > YAML_FILE_MAX) return s;
    free(s);
    return NULL;
}

char *config_read_file(const char *path, size_t *n, problem_list *problems) {
    const place at = {0, 0};
    struct stat st;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO would otherwise wait for a writer */
    if (fd < 0 || fstat(fd, &st)) {
        problem_add(problems, at, "cannot be opened: %s", strerror(errno));
        if (fd >= 0) close(fd);
        return NULL;
    }
    char *s = NULL;
    if (S_ISDIR(st.st_mode))
        problem_add(problems, at, "found a directory, expected a YAML file");
    else if (!S_ISREG(st.st_mode))
        problem_add(problems, at, "found a device or pipe, expected a YAML file");
    else if (!(s = read_all(fd, n)))
        problem_add(problems, at, "cannot be read: %s", strerror(errno));
    else if (*n > YAML_FILE_MAX) {
        problem_add(problems, at, "more than %u MiB, expected a YAML configuration", YAML_FILE_MAX >> 20);
        free(s);
        s = NULL;
    }
    close(fd);
    return s;
}

/* Length of the UTF-8 sequence at s (RFC 3629: shortest form, no surrogates, up to U+10FFFF), 0 when invalid. */
static size_t utf8_length(const unsigned char *s, size_t n) {
    static const struct {
        unsigned char lo, hi, first_lo, first_hi;
        size_t n;
    } forms[] = {{0xc2, 0xdf, 0x80, 0xbf, 2}, {0xe0, 0xe0, 0xa0, 0xbf, 3}, {0xe1, 0xec, 0x80, 0xbf, 3},
                 {0xed, 0xed, 0x80, 0x9f, 3}, {0xee, 0xef, 0x80, 0xbf, 3}, {0xf0, 0xf0, 0x90, 0xbf, 4},
                 {0xf1, 0xf3, 0x80, 0xbf, 4}, {0xf4, 0xf4, 0x80, 0x8f, 4}};
    if (s[0] < 0x80) return 1;
    for (size_t i = 0; i < sizeof forms / sizeof *forms; i++) {
        if (s[0] < forms[i].lo || s[0] > forms[i].hi) continue;
        if (n < forms[i].n || s[1] < forms[i].first_lo || s[1] > forms[i].first_hi) return 0;
        for (size_t k = 2; k < forms[i].n; k++)
            if ((s[k] & 0xc0) != 0x80) return 0;
        return forms[i].n;
    }
    return 0;
}

/* What must be said before libyaml sees the bytes: it would report these less clearly or not at all. */
static int check_bytes(const reader *r) {
    place at = {1, 1};
    size_t line_start = 0;
    for (size_t i = 0; i < r->n;) {
        unsigned char c = (unsigned char)r->text[i];
        size_t step = utf8_length((const unsigned char *)r->text + i, r->n - i);
        place here = r->at_args ? (place){PLACE_ARGS, 0} : at;
        if (c == 0) return problem_add(r->problems, here, "found a NUL byte, expected a text file"), -1;
        if (!step)
            return problem_add(r->problems, here, "found byte 0x%02x, which is not UTF-8; save the file as UTF-8", c),
                   -1;
        if (i - line_start > YAML_LINE_MAX)
            return problem_add(r->problems, here, "a line of more than %u MiB", YAML_LINE_MAX >> 20), -1;
        i += step, at.col++;
        if (c == '\n') at.line++, at.col = 1, line_start = i;
    }
    return 0;
}

/* ---- nodes ---- */

static yaml_node *node_new(reader *r, yaml_kind kind, yaml_mark_t mark, const yaml_char_t *anchor) {
    yaml_doc *d = r->doc;
    yaml_node *v = xcalloc(1, sizeof *v);
    *v = (yaml_node){.kind = kind, .at = place_of(r, mark), .weight = 1};
    d->node = xrealloc(d->node, (size_t)d->n + 1, sizeof(yaml_node *));
    d->node[d->n++] = v;
    if (anchor) v->anchor = xstrdup((const char *)anchor);
    return v;
}

void yaml_tree_free(yaml_doc *d) {
    for (int i = 0; i < d->n; i++) {
        free(d->node[i]->text), free(d->node[i]->pair), free(d->node[i]->anchor);
        free(d->node[i]);
    }
    free(d->node);
    *d = (yaml_doc){0};
}

static int pair_add(reader *r, yaml_node *to, yaml_pair p) {
    to->pair = xrealloc(to->pair, (size_t)to->n + 1, sizeof *to->pair);
    to->pair[to->n++] = p;
    to->weight += p.value->weight + (p.key != NULL);
    if (to->weight <= YAML_EVENTS_MAX) return 0;
    problem_add(r->problems, to->at, "more than %d values, counting each alias in full", YAML_EVENTS_MAX);
    return -1;
}

/* ---- environment ---- */

static size_t name_length(const char *s) {
    size_t n = strspn(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_0123456789");
    return *s >= '0' && *s <= '9' ? 0 : n;
}

/* ${NAME} becomes the variable's value; any other $ stays, since regular expressions end in it. */
static char *expand(reader *r, char *s, place at) {
    char *dollar = s;
    while ((dollar = strstr(dollar, "${"))) {
        size_t n = name_length(dollar + 2), before = (size_t)(dollar - s);
        if (!n || dollar[2 + n] != '}') {
            dollar += 2;
            continue;
        }
        char *name = xprintf("%.*s", (int)n, dollar + 2);
        const char *value = getenv(name);
        if (!value)
            problem_add(r->problems, at,
                        "environment variable %s is not set; set it, or write '${%s}' in single quotes", name, name);
        char *t = xprintf("%.*s%s%s", (int)before, s, value ? value : "", dollar + n + 3);
        free(name), free(s);
        s = t, dollar = s + before + (value ? strlen(value) : 0);
    }
    return s;
}

/* ---- events ---- */

static bool tab_indented(const reader *r, size_t line) {
    const char *s = r->text, *end = r->text + r->n;
    for (; line && s < end; s++) line -= *s == '\n';
    for (; s < end && (*s == ' ' || *s == '\t'); s++)
        if (*s == '\t') return true;
    return false;
}

static int parser_failed(reader *r) {
    const yaml_parser_t *p = &r->parser;
    CHECK(p->error != YAML_MEMORY_ERROR, "libyaml: out of memory");
    place at = place_of(r, p->problem_mark);
    if (tab_indented(r, p->problem_mark.line))
        problem_add(r->problems, at, "found a tab in the indentation, expected spaces");
    else if (p->context && p->context_mark.line != p->problem_mark.line && !r->at_args)
        problem_add(r->problems, at, "not YAML: %s (%s that begins on line %zu)", p->problem, p->context,
                    p->context_mark.line + 1);
    else
        problem_add(r->problems, at, "not YAML: %s", p->problem ? p->problem : "unreadable");
    return -1;
}

static int next(reader *r, yaml_event_t *e) {
    if (!yaml_parser_parse(&r->parser, e)) return parser_failed(r);
    if (++r->events <= YAML_EVENTS_MAX) return 0;
    problem_add(r->problems, place_of(r, e->start_mark), "more than %d values, expected a configuration",
                YAML_EVENTS_MAX);
    yaml_event_delete(e);
    return -1;
}

static int resolve_alias(reader *r, const yaml_event_t *e, yaml_node **out) {
    const char *name = (const char *)e->data.alias.anchor;
    for (int i = r->doc->n - 1; i >= 0; i--) { /* the last one of that name, as YAML has it */
        yaml_node *v = r->doc->node[i];
        if (!v->anchor || strcmp(v->anchor, name) != 0) continue;
        if (v->weight == 0) break; /* still being read: it would hold itself */
        v->used = true;
        *out = v;
        return 0;
    }
    problem_add(r->problems, place_of(r, e->start_mark), "alias *%s: no anchor &%s ends before it", name, name);
    return -1;
}

static int read_tail(reader *r, yaml_node *v, int depth);

/* The node that event e begins. Takes e over. */
static int read_node(reader *r, yaml_event_t *e, int depth, yaml_node **out) {
    int rc = 0;
    const yaml_char_t *tag = NULL;
    if (e->type == YAML_SCALAR_EVENT) {
        tag = e->data.scalar.tag;
        yaml_node *v = *out = node_new(r, YAML_NODE_SCALAR, e->start_mark, e->data.scalar.anchor);
        v->plain = e->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
        v->text = xstrdup((const char *)e->data.scalar.value);
        if (strlen(v->text) != e->data.scalar.length)
            problem_add(r->problems, v->at, "found \\0 in a string, expected text"), rc = -1;
        else if (!r->at_args && e->data.scalar.style != YAML_SINGLE_QUOTED_SCALAR_STYLE)
            v->text = expand(r, v->text, v->at);
    } else if (e->type == YAML_ALIAS_EVENT) {
        rc = resolve_alias(r, e, out);
    } else if (e->type == YAML_SEQUENCE_START_EVENT) {
        tag = e->data.sequence_start.tag;
        *out = node_new(r, YAML_NODE_LIST, e->start_mark, e->data.sequence_start.anchor);
    } else {
        tag = e->data.mapping_start.tag;
        *out = node_new(r, YAML_NODE_MAP, e->start_mark, e->data.mapping_start.anchor);
    }
    if (tag) {
        problem_add(r->problems, (*out)->at, "found the tag %s, expected a value without a tag", (const char *)tag);
        rc = -1;
    }
    bool open = e->type == YAML_SEQUENCE_START_EVENT || e->type == YAML_MAPPING_START_EVENT;
    yaml_event_delete(e);
    return rc || !open ? rc : read_tail(r, *out, depth + 1);
}

/* Pairs of the map (or of each map in the list) behind "<<" that stand nowhere in `to` yet. */
static int merge(reader *r, yaml_node *to, const yaml_node *from, place at, bool nested) {
    if (from->kind == YAML_NODE_LIST && !nested) {
        for (int i = 0; i < from->n; i++)
            if (merge(r, to, from->pair[i].value, at, true)) return -1;
        return 0;
    }
    if (from->kind != YAML_NODE_MAP) {
        problem_add(r->problems, at, "merge key << found a %s, expected an alias of a map, or a list of such",
                    from->kind == YAML_NODE_LIST ? "list in a list" : "scalar");
        return -1;
    }
    for (int i = 0; i < from->n; i++) {
        bool there = false;
        for (int k = 0; k < to->n && !there; k++) there = !strcmp(to->pair[k].key->text, from->pair[i].key->text);
        yaml_pair p = from->pair[i];
        p.merged = true;
        if (!there && pair_add(r, to, p)) return -1;
    }
    return 0;
}

/* Reports and drops the second of two pairs of one key. */
static void drop_duplicates(reader *r, yaml_node *map) {
    int n = 0;
    for (int i = 0; i < map->n; i++) {
        const yaml_node *key = map->pair[i].key;
        int k = 0;
        while (k < n && strcmp(key->text, map->pair[k].key->text) != 0) k++;
        map->pair[n] = map->pair[i];
        if (k == n) {
            n++;
            continue;
        }
        char *q = quoted(key->text);
        if (r->at_args)
            problem_add(r->problems, key->at, "key %s is given twice", q);
        else
            problem_add(r->problems, key->at, "key %s is given twice, first on line %d", q, map->pair[k].key->at.line);
        free(q);
    }
    map->n = n;
}

/* Merge keys come last, whatever their place, because a map's own keys win. */
static int finish_map(reader *r, yaml_node *map, yaml_node **sources, int n) {
    drop_duplicates(r, map);
    for (int i = 0; i < n; i++)
        if (merge(r, map, sources[i], sources[i]->at, false)) return -1;
    return 0;
}

static int read_pair(reader *r, yaml_event_t *e, yaml_node *map, int depth, yaml_node **sources, int *n_sources) {
    yaml_pair p = {0};
    if (read_node(r, e, depth, &p.key)) return -1;
    if (p.key->kind != YAML_NODE_SCALAR) {
        problem_add(r->problems, p.key->at, "found a %s as a key, expected a name",
                    p.key->kind == YAML_NODE_LIST ? "list" : "map");
        return -1;
    }
    yaml_event_t value;
    if (next(r, &value)) return -1;
    place at = place_of(r, value.start_mark);
    bool alias = value.type == YAML_ALIAS_EVENT;
    if (read_node(r, &value, depth, &p.value)) return -1;
    if (alias && p.value->kind == YAML_NODE_SCALAR) { /* a message should point at the alias, not at its anchor */
        yaml_node *copy = node_new(r, YAML_NODE_SCALAR, (yaml_mark_t){0}, NULL);
        copy->at = at, copy->plain = p.value->plain, copy->text = xstrdup(p.value->text);
        p.value = copy;
    }
    if (p.key->plain && !strcmp(p.key->text, "<<")) {
        if (*n_sources == YAML_DEPTH_MAX)
            return problem_add(r->problems, at, "more than %d merge keys in one map", YAML_DEPTH_MAX), -1;
        sources[(*n_sources)++] = p.value;
        return 0;
    }
    return pair_add(r, map, p);
}

/* Items of a list or pairs of a map up to its end event. */
static int read_tail(reader *r, yaml_node *v, int depth) {
    yaml_node *sources[YAML_DEPTH_MAX];
    int n_sources = 0, rc = 0;
    bool map = v->kind == YAML_NODE_MAP;
    if (depth > YAML_DEPTH_MAX) return problem_add(r->problems, v->at, "nested more than %d deep", YAML_DEPTH_MAX), -1;
    v->weight = 0; /* marks it as unfinished for resolve_alias */
    yaml_node whole = {.kind = v->kind, .at = v->at, .weight = 1};
    while (!rc) {
        yaml_event_t e;
        if ((rc = next(r, &e))) break;
        if (e.type == (map ? YAML_MAPPING_END_EVENT : YAML_SEQUENCE_END_EVENT)) {
            yaml_event_delete(&e);
            break;
        }
        if (map) {
            rc = read_pair(r, &e, &whole, depth, sources, &n_sources);
        } else {
            yaml_pair p = {0};
            rc = read_node(r, &e, depth, &p.value);
            if (!rc) rc = pair_add(r, &whole, p);
        }
    }
    if (!rc && map) rc = finish_map(r, &whole, sources, n_sources);
    v->pair = whole.pair, v->n = whole.n, v->weight = whole.weight;
    return rc;
}

/* STREAM-START, then DOCUMENT-START node DOCUMENT-END, then STREAM-END. */
static int read_document(reader *r) {
    yaml_event_t e;
    if (next(r, &e)) return -1;
    yaml_event_delete(&e);
    if (next(r, &e)) return -1;
    bool empty = e.type == YAML_STREAM_END_EVENT;
    yaml_event_delete(&e);
    if (empty)
        return problem_add(r->problems, (place){r->at_args ? PLACE_ARGS : 0, 0},
                           "no keys: expected lines 'key: value'"),
               -1;
    if (next(r, &e) || read_node(r, &e, 0, &r->doc->root)) return -1;
    if (next(r, &e)) return -1;
    yaml_event_delete(&e);
    if (next(r, &e)) return -1;
    place at = place_of(r, e.start_mark);
    bool end = e.type == YAML_STREAM_END_EVENT;
    yaml_event_delete(&e);
    if (!end) return problem_add(r->problems, at, "a second document begins, expected one"), -1;
    return 0;
}

int yaml_tree(yaml_doc *d, const char *text, size_t n, bool at_args, problem_list *problems) {
    *d = (yaml_doc){0};
    if (n >= 3 && !memcmp(text, "\xef\xbb\xbf", 3)) text += 3, n -= 3;
    reader r = {.doc = d, .problems = problems, .text = text, .n = n, .at_args = at_args};
    if (check_bytes(&r)) return -1;
    CHECK(yaml_parser_initialize(&r.parser), "libyaml: out of memory");
    yaml_parser_set_input_string(&r.parser, (const unsigned char *)text, n);
    yaml_parser_set_encoding(&r.parser, YAML_UTF8_ENCODING);
    int rc = read_document(&r);
    yaml_parser_delete(&r.parser);
    return rc;
}
