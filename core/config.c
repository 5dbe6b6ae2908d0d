/* From nodes to struct config: one walk over the file and the command line against the table, then the checks between
 * keys. Everything wrong is collected first and reported once. */
#include "core/config.h"
#include "core/config_names.h"

#include "core/arena.h"
#include "core/error.h"

#include <assert.h>
#include <errno.h>
#include <math.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- the table ---- */

#define SECTION(title)
#define KEY(name, type, def, range, help) BIT_##name,
#define FIELD(name, type, def, range, help)
enum {
#include "core/keys.def"
    BITS
};
#undef SECTION
#undef KEY
#undef FIELD
static_assert(BITS <= 8 * sizeof((config *)0)->set, "config.set is too small");

#define SECTION(title) {title, KEY_SECTION, NULL, NULL, NULL, 0, -1},
#define KEY(name, type, def, range, help) {#name, KEY_##type, def, range, help, offsetof(config, name), BIT_##name},
#define FIELD(name, type, def, range, help)                                                                            \
    {"datasets." #name, KEY_##type, def, range, help, offsetof(dataset_entry, name), -1},
const key_row config_rows[] = {
#include "core/keys.def"
};
#undef SECTION
#undef KEY
#undef FIELD
enum { ROWS = sizeof config_rows / sizeof *config_rows };
const int config_rows_n = ROWS;

bool key_row_is_field(const key_row *r) { return r->bit < 0 && r->type != KEY_SECTION; }

char *key_row_expected(const key_row *r) {
    static const char *const words[] = {[KEY_INT] = "an integer",
                                        [KEY_SIZE] = "a size such as 4GB (10^9) or 4GiB (2^30)",
                                        [KEY_REAL] = "a number",
                                        [KEY_BOOL] = "true or false",
                                        [KEY_STRING] = "text",
                                        [KEY_CHOICE] = "one of ",
                                        [KEY_STRINGS] = "a list of names or one string",
                                        [KEY_DATASETS] = "a list of entries with path and type"};
    bool number = r->type == KEY_INT || r->type == KEY_REAL || r->type == KEY_SIZE;
    if (r->type == KEY_STRING && r->range) return xprintf("an existing %s", strcmp(r->range, "file") ? "path" : "file");
    if (number && r->range) return xprintf("%s in %s", words[r->type], r->range);
    if (r->type != KEY_CHOICE || !r->range) return xstrdup(words[r->type]);
    char *s = xprintf("%s%s", strchr(r->range, '|') ? words[r->type] : "", r->range), *bar, *old;
    while ((bar = strchr(s, '|'))) old = s, s = xprintf("%.*s, %s", (int)(bar - s), s, bar + 1), free(old);
    return s;
}

/* ---- values ---- */

typedef union {
    int64_t i;
    double r;
    bool b;
    char *s;
    string_list strings;
    dataset_list sets;
} key_value;

static size_t value_size(key_type t) {
    static const size_t sizes[] = {[KEY_INT] = sizeof(config_INT),
                                   [KEY_SIZE] = sizeof(config_SIZE),
                                   [KEY_REAL] = sizeof(config_REAL),
                                   [KEY_BOOL] = sizeof(config_BOOL),
                                   [KEY_STRING] = sizeof(config_STRING),
                                   [KEY_CHOICE] = sizeof(config_CHOICE),
                                   [KEY_STRINGS] = sizeof(config_STRINGS),
                                   [KEY_DATASETS] = sizeof(config_DATASETS),
                                   [KEY_SECTION] = 0};
    return sizes[t];
}

static void value_put(const key_row *r, void *base, const key_value *v) {
    CHECK(base, "%s", r->name);
    memcpy((char *)base + r->offset, v, value_size(r->type)); /* every member of the union starts at its beginning */
}

static key_value value_get(const key_row *r, const void *base) {
    key_value v = {0};
    CHECK(base, "%s", r->name);
    memcpy(&v, (const char *)base + r->offset, value_size(r->type));
    return v;
}

static key_value value_unset(const key_row *r) {
    key_value v = {0};
    if (r->type == KEY_INT || r->type == KEY_SIZE) v.i = CONFIG_UNSET;
    if (r->type == KEY_REAL) v.r = NAN;
    return v;
}

static void entry_free(dataset_entry *e) { free(e->path), free(e->type), free(e->field); }

static void value_free(const key_row *r, key_value v) {
    if (r->type == KEY_STRING || r->type == KEY_CHOICE) free(v.s);
    if (r->type == KEY_STRINGS) {
        for (int i = 0; i < v.strings.n; i++) free(v.strings.item[i]);
        free(v.strings.item);
    }
    if (r->type == KEY_DATASETS) {
        for (int i = 0; i < v.sets.n; i++) entry_free(&v.sets.item[i]);
        free(v.sets.item);
    }
}

static void value_replace(const key_row *r, void *base, key_value v) {
    value_free(r, value_get(r, base));
    value_put(r, base, &v);
}

/* ---- reading ---- */

typedef struct {
    config *c;
    problem_list problems;
    place at[BITS];     /* of the value that counts; line 0 = not given */
    bool by_args[BITS]; /* the command line has spoken: what the file says is checked and dropped */
    bool look;          /* paths must exist on disk */
} loader;

static int expected(loader *l, const key_row *r, const yaml_node *v, const char *why) {
    static const char *const kinds[] = {[YAML_NODE_LIST] = "a list", [YAML_NODE_MAP] = "a map"};
    char *want = key_row_expected(r), *found = v->kind == YAML_NODE_SCALAR ? quoted(v->text) : xstrdup(kinds[v->kind]);
    problem_add(&l->problems, v->at, "%s: found %s%s%s%s, expected %s", r->name, found, why ? " (" : "", why ? why : "",
                why ? ")" : "", want);
    free(want), free(found);
    return -1;
}

static int read_number(loader *l, const key_row *r, const yaml_node *v, key_value *out) {
    const char *wrong;
    interval range = interval_parse(r->range);
    if (r->type == KEY_REAL)
        wrong = scalar_real(v->text, &out->r);
    else
        wrong = r->type == KEY_INT ? scalar_int(v->text, &out->i) : scalar_size(v->text, &out->i);
    if (wrong) return expected(l, r, v, wrong);
    if (!interval_has(range, r->type == KEY_REAL ? out->r : (double)out->i)) return expected(l, r, v, NULL);
    return 0;
}

static int read_string(loader *l, const key_row *r, const yaml_node *v, bool look, key_value *out) {
    const char *text = v->text, *refused = value_refused(r->name, text), *same = value_same(r->name, text);
    if (refused) {
        problem_add(&l->problems, v->at, "%s: '%s' is known to axolotl, not supported here: %s", r->name, text,
                    refused);
        return -1;
    }
    if (same) text = same;
    if (r->type == KEY_CHOICE) {
        if (!word_in(text, r->range)) {
            char *want = key_row_expected(r), *q = quoted(text), *near = value_nearest(text, r->range);
            problem_add(&l->problems, v->at, "%s: found %s, expected %s%s", r->name, q, want, near);
            free(want), free(q), free(near);
            return -1;
        }
    } else if (look && r->range && *text) {
        struct stat st;
        const char *why = access(text, R_OK) || stat(text, &st) ? strerror(errno) : NULL;
        if (!why && !strcmp(r->range, "file") && S_ISDIR(st.st_mode)) why = "a directory";
        if (why) {
            char *want = key_row_expected(r), *q = quoted(text);
            problem_add(&l->problems, v->at, "%s: found %s (%s), expected %s; nothing is downloaded", r->name, q, why,
                        want);
            free(want), free(q);
            return -1;
        }
    }
    out->s = *text ? xstrdup(text) : NULL;
    return 0;
}

static int read_strings(loader *l, const key_row *r, const yaml_node *v, key_value *out) {
    string_list s = {.scalar = v->kind == YAML_NODE_SCALAR};
    int n = s.scalar ? 1 : v->n;
    if (v->kind == YAML_NODE_MAP) return expected(l, r, v, NULL);
    if (n == 0) return expected(l, r, v, "empty");
    for (int i = 0; i < n; i++) {
        const yaml_node *item = s.scalar ? v : v->pair[i].value;
        if (item->kind != YAML_NODE_SCALAR || !*item->text || scalar_is_null(item)) {
            char *found = item->kind == YAML_NODE_SCALAR ? quoted(item->text) : xstrdup("a list or map");
            problem_add(&l->problems, item->at, "%s: found %s in the list, expected a name", r->name, found);
            free(found);
            value_free(r, (key_value){.strings = s});
            return -1;
        }
        s.item = xrealloc(s.item, (size_t)i + 1, sizeof *s.item);
        s.item[s.n++] = xstrdup(item->text);
    }
    out->strings = s;
    return 0;
}

static int read_datasets(loader *l, const key_row *r, const yaml_node *v, bool look, key_value *out);

static int read_value(loader *l, const key_row *r, const yaml_node *v, bool look, key_value *out) {
    *out = value_unset(r);
    if (r->type == KEY_STRINGS) return read_strings(l, r, v, out);
    if (r->type == KEY_DATASETS) return read_datasets(l, r, v, look, out);
    if (v->kind != YAML_NODE_SCALAR) return expected(l, r, v, NULL);
    if (r->type == KEY_STRING || r->type == KEY_CHOICE) return read_string(l, r, v, look, out);
    if (r->type != KEY_BOOL) return read_number(l, r, v, out);
    const char *refused = value_refused(r->name, v->text);
    if (!refused) return scalar_bool(v->text, &out->b) ? expected(l, r, v, NULL) : 0;
    problem_add(&l->problems, v->at, "%s: '%s' is known to axolotl, not supported here: %s", r->name, v->text, refused);
    return -1;
}

/* One map of the file: the top, an entry of datasets, or a map such as special_tokens whose keys are names with a dot.
 */
typedef struct {
    const char *scope;
    dataset_entry *entry;
    place seen[ROWS];
} map_scope;

static bool unset_text(const yaml_node *v) { return scalar_is_null(v) || (v->kind == YAML_NODE_SCALAR && !*v->text); }

static void read_row(loader *l, map_scope *m, const key_row *r, const yaml_pair *p) {
    place *seen = &m->seen[r - config_rows];
    if (seen->line && p->merged) return;
    if (seen->line) {
        if (p->key->at.line < 0)
            problem_add(&l->problems, p->key->at, "%s is given twice", r->name);
        else
            problem_add(&l->problems, p->key->at, "'%s' is another name of %s, given on line %d", p->key->text, r->name,
                        seen->line);
        return;
    }
    *seen = p->key->at;
    bool args = p->key->at.line < 0, dropped = r->bit >= 0 && l->by_args[r->bit] && !args;
    key_value v;
    if (r->bit >= 0 && !dropped) l->at[r->bit] = p->key->at, l->by_args[r->bit] = args;
    if (unset_text(p->value)) return;
    if (read_value(l, r, p->value, l->look && !dropped, &v)) return;
    if (dropped) {
        value_free(r, v);
        return;
    }
    value_replace(r, r->bit < 0 ? (void *)m->entry : (void *)l->c, v);
    if (r->bit >= 0 && (r->type > KEY_BOOL ? v.s != NULL : true)) l->c->set[r->bit / 64] |= 1ull << r->bit % 64;
}

static void read_axolotl(loader *l, const axolotl_key *a, const yaml_pair *p) {
    bool scalar = p->value->kind == YAML_NODE_SCALAR, flag = true;
    bool off = scalar && !scalar_bool(p->value->text, &flag) && !flag;
    if (unset_text(p->value) || !a->text) return;
    if (a->accept && off && word_in("false", a->accept)) return;
    if (a->accept && (!strcmp(a->accept, "*") || (scalar && word_in_anycase(p->value->text, a->accept))))
        problem_note(&l->problems, p->key->at, "'%s' has no effect here: %s", a->name, a->text);
    else
        problem_add(&l->problems, p->key->at, "'%s' is known to axolotl, not supported here: %s", a->name, a->text);
}

static void read_map(loader *l, map_scope *m, const yaml_node *map) {
    for (int i = 0; i < map->n; i++) {
        const yaml_pair *p = &map->pair[i];
        char *name = xprintf("%s%s", m->scope, p->key->text);
        const key_row *r = name_row(name);
        const axolotl_key *a = name_axolotl(name);
        if (r && key_row_is_field(r) && !m->entry) r = NULL; /* "datasets.path: x" at the top */
        if (r)
            read_row(l, m, r, p);
        else if (a)
            read_axolotl(l, a, p);
        else if (name_is_scope(name) && p->value->kind == YAML_NODE_MAP) {
            const char *outer = m->scope;
            char *inner = xprintf("%s.", name);
            m->scope = inner;
            read_map(l, m, p->value);
            m->scope = outer;
            free(inner);
        } else if (!(name_is_scope(name) && unset_text(p->value)) && !(p->value->anchor && p->value->used)) {
            char *text = name_unknown(m->scope, p->key->text, p->value); /* a key that only holds an anchor is fine */
            problem_add(&l->problems, p->key->at, "%s", text);
            free(text);
        }
        free(name);
    }
}

/* ---- datasets ---- */

static const yaml_node *map_find(const yaml_node *map, const char *key) {
    for (int i = 0; i < map->n; i++)
        if (!strcmp(map->pair[i].key->text, key)) return map->pair[i].value;
    return NULL;
}

static void required(loader *l, const char *name, place at, const char *in) {
    const key_row *r = name_row(name);
    char *want = key_row_expected(r);
    problem_add(&l->problems, at, "%s is missing%s, expected %s", name, in, want);
    free(want);
}

/* axolotl's way of naming the fields of a turn: {role: from, content: value} is what type sharegpt means. */
static void read_mappings(loader *l, dataset_entry *e, const yaml_node *v) {
    static const char *const pairs[2][2] = {{"role", "content"}, {"from", "value"}};
    if (!v || unset_text(v)) return;
    for (int i = 0; v->kind == YAML_NODE_MAP && i < 2; i++) {
        const yaml_node *role = map_find(v, "role"), *content = map_find(v, "content");
        bool same = v->n == (role != NULL) + (content != NULL);
        same = same && (role ? role->text && !strcmp(role->text, pairs[i][0]) : i == 0);
        same = same && (content ? content->text && !strcmp(content->text, pairs[i][1]) : i == 0);
        if (!same) continue;
        if (i == 1 && e->type && !strcmp(e->type, "chat_template")) {
            free(e->type);
            e->type = xstrdup("sharegpt");
        }
        return;
    }
    problem_add(
        &l->problems, v->at,
        "datasets.message_property_mappings: expected {role: role, content: content} or {role: from, content: value}");
}

static void read_entry(loader *l, dataset_entry *e, const yaml_node *v, bool look) {
    map_scope m = {.scope = "datasets.", .entry = e};
    bool outer = l->look;
    l->look = look;
    e->line = v->at.line < 0 ? 0 : v->at.line;
    read_map(l, &m, v);
    l->look = outer;
    for (int i = 0; i < 2; i++) {
        static const char *const needed[] = {"datasets.path", "datasets.type"};
        const yaml_node *x = map_find(v, strchr(needed[i], '.') + 1);
        if (!x || unset_text(x)) required(l, needed[i], x ? x->at : v->at, " in this entry");
    }
    read_mappings(l, e, map_find(v, "message_property_mappings"));
}

static int read_datasets(loader *l, const key_row *r, const yaml_node *v, bool look, key_value *out) {
    int errors = l->problems.errors;
    if (v->kind != YAML_NODE_LIST) return expected(l, r, v, NULL);
    if (v->n == 0) return expected(l, r, v, "empty");
    out->sets = (dataset_list){xcalloc((size_t)v->n, sizeof(dataset_entry)), v->n};
    for (int i = 0; i < v->n; i++) {
        const yaml_node *item = v->pair[i].value;
        if (item->kind == YAML_NODE_MAP)
            read_entry(l, &out->sets.item[i], item, look);
        else
            problem_add(&l->problems, item->at, "datasets: found %s, expected an entry with path and type",
                        item->kind == YAML_NODE_LIST ? "a list" : "text");
    }
    if (l->problems.errors == errors) return 0;
    value_free(r, *out);
    return -1;
}

/* ---- checks between keys ---- */

static const key_row *row_of_bit(int bit) {
    const key_row *r = config_rows;
    while (r->bit != bit) r++;
    return r;
}

static bool given(const loader *l, int bit) { return l->c->set[bit / 64] >> bit % 64 & 1; }

static void unset(loader *l, int bit) {
    const key_row *r = row_of_bit(bit);
    value_replace(r, l->c, value_unset(r));
    l->c->set[bit / 64] &= ~(1ull << bit % 64);
}

/* At most one of a and b. The command line beats the file; b's default gives way to a. */
static void exclusive(loader *l, int a, int b) {
    if (given(l, a) && given(l, b) && l->by_args[a] == l->by_args[b]) {
        bool swap = l->at[a].line > l->at[b].line;
        int first = swap ? b : a, second = swap ? a : b;
        char *line = l->by_args[a] ? xstrdup("") : xprintf(" on line %d", l->at[first].line);
        problem_add(&l->problems, l->at[second], "%s excludes %s%s; give one of them", row_of_bit(second)->name,
                    row_of_bit(first)->name, line);
        free(line);
        return;
    }
    if (given(l, a) && given(l, b))
        unset(l, l->by_args[a] ? b : a);
    else if (given(l, a))
        unset(l, b);
    else if (given(l, b))
        unset(l, a);
}

/* Below 1 a fraction, else a count. */
static void count_or_fraction(loader *l, int bit) {
    const key_row *r = row_of_bit(bit);
    double x = value_get(r, l->c).r;
    if (given(l, bit) && x >= 1 && x != floor(x))
        problem_add(&l->problems, l->at[bit], "%s: found %g, expected a fraction below 1 or a whole number", r->name,
                    x);
}

static void check_quantisation(loader *l) {
    config *c = l->c;
    bool qlora = c->adapter && !strcmp(c->adapter, "qlora");
    if (!qlora) return;
    if (given(l, BIT_load_in_4bit) && !c->load_in_4bit)
        problem_add(&l->problems, l->at[BIT_load_in_4bit],
                    "load_in_4bit: false contradicts adapter: qlora; use adapter: lora, or leave load_in_4bit out");
    c->load_in_4bit = true;
}

static void check_targets(loader *l) {
    config *c = l->c;
    bool linear = given(l, BIT_lora_target_linear) ? c->lora_target_linear : c->lora_target_modules.n == 0;
    if (!linear && !c->lora_target_modules.n && !given(l, BIT_lora_model_dir) && !l->at[BIT_lora_target_modules].line)
        problem_add(&l->problems, l->at[BIT_lora_target_linear],
                    "lora_target_linear: false without lora_target_modules leaves nothing to train; give one of them");
    c->lora_target_linear = linear;
}

static void check_schedule(loader *l) {
    config *c = l->c;
    exclusive(l, BIT_warmup_steps, BIT_warmup_ratio);
    exclusive(l, BIT_eval_steps, BIT_evals_per_epoch);
    exclusive(l, BIT_save_steps, BIT_saves_per_epoch);
    count_or_fraction(l, BIT_eval_steps);
    count_or_fraction(l, BIT_save_steps);
    count_or_fraction(l, BIT_val_set_size);
    int bit = given(l, BIT_warmup_steps) ? BIT_warmup_steps : BIT_warmup_ratio;
    bool warmup = given(l, bit) && (c->warmup_steps > 0 || c->warmup_ratio > 0);
    if (warmup && c->lr_scheduler && !strcmp(c->lr_scheduler, "constant"))
        problem_note(&l->problems, l->at[bit], "%s has no effect with lr_scheduler: constant; see constant_with_warmup",
                     row_of_bit(bit)->name);
}

static void check_batch(loader *l) {
    config *c = l->c;
    int64_t tokens = c->micro_batch_size * c->sequence_len; /* both are below 2^21 */
    if (tokens <= INT32_MAX) return;
    int bit = given(l, BIT_micro_batch_size) ? BIT_micro_batch_size : BIT_sequence_len;
    problem_add(&l->problems, l->at[bit], "micro_batch_size x sequence_len is %lld tokens, expected at most %d",
                (long long)tokens, INT32_MAX);
}

static void check_required(loader *l) {
    static const int bits[] = {BIT_base_model, BIT_datasets};
    for (int i = 0; i < 2; i++)
        if (!l->at[bits[i]].line || (!given(l, bits[i]) && !l->problems.errors))
            required(l, row_of_bit(bits[i])->name, l->at[bits[i]], "");
}

static void check(loader *l) {
    check_quantisation(l);
    check_targets(l);
    check_schedule(l);
    check_batch(l);
    if (l->c->path) check_required(l);
}

/* ---- opening ---- */

static void set_defaults(loader *l) {
    for (int i = 0; i < ROWS; i++) {
        const key_row *r = &config_rows[i];
        if (r->bit < 0) continue;
        key_value v = value_unset(r);
        yaml_node text = {.kind = YAML_NODE_SCALAR, .plain = true, .text = (char *)r->def};
        int wrong = r->def ? read_value(l, r, &text, false, &v) : 0;
        CHECK(!wrong, "keys.def: default '%s' of %s", r->def, r->name);
        value_put(r, l->c, &v);
    }
}

static void read_override(loader *l, map_scope *m, const char *text) {
    const place at = {PLACE_ARGS, 0};
    const char *equals = strchr(text, '=');
    yaml_doc d = {0};
    if (!equals || equals == text) {
        char *q = quoted(text);
        problem_add(&l->problems, at, "found %s, expected key=value", q);
        free(q);
        return;
    }
    yaml_node key = {.kind = YAML_NODE_SCALAR, .at = at, .text = xprintf("%.*s", (int)(equals - text), text)};
    yaml_node scalar = {.kind = YAML_NODE_SCALAR, .at = at, .plain = true, .text = (char *)equals + 1};
    const key_row *r = name_row(key.text);
    bool tree = r && r->type >= KEY_STRINGS && (equals[1] == '[' || equals[1] == '{');
    if (!tree || !yaml_tree(&d, equals + 1, strlen(equals + 1), true, &l->problems)) {
        yaml_pair p = {.key = &key, .value = tree ? d.root : &scalar};
        yaml_node map = {.kind = YAML_NODE_MAP, .at = at, .pair = &p, .n = 1};
        read_map(l, m, &map);
    }
    yaml_tree_free(&d);
    free(key.text);
}

static void read_file(loader *l, const char *path) {
    yaml_doc d = {0};
    map_scope m = {.scope = ""};
    size_t n;
    char *text = config_read_file(path, &n, &l->problems);
    if (!text) return;
    if (!yaml_tree(&d, text, n, false, &l->problems)) {
        if (d.root->kind == YAML_NODE_MAP)
            read_map(l, &m, d.root);
        else if (unset_text(d.root))
            problem_add(&l->problems, (place){0, 0}, "no keys: expected lines 'key: value'");
        else
            problem_add(&l->problems, d.root->at, "found %s, expected lines 'key: value'",
                        d.root->kind == YAML_NODE_LIST ? "a list" : "text");
        if (d.root->kind == YAML_NODE_MAP) check(l);
    }
    yaml_tree_free(&d);
    free(text);
}

static int open_looking(config *c, const char *path, const char *const *overrides, int n, FILE *problems, bool look) {
    loader l = {.c = c, .problems = {.path = path}, .look = look};
    map_scope args = {.scope = ""};
    *c = (config){.path = path ? xstrdup(path) : NULL};
    set_defaults(&l);
    for (int i = 0; i < n; i++) read_override(&l, &args, overrides[i]);
    if (path)
        read_file(&l, path);
    else
        check(&l);
    int errors = l.problems.errors;
    problem_print(&l.problems, problems);
    problem_free(&l.problems);
    if (!errors) return 0;
    config_close(c);
    return fail(EXIT_USAGE, "%s: %d problem%s in the configuration; nothing was written", path ? path : "command line",
                errors, errors > 1 ? "s" : "");
}

int config_open_to(config *c, const char *path, const char *const *overrides, int n, FILE *problems) {
    return open_looking(c, path, overrides, n, problems, path != NULL);
}

int config_open_unseen(config *c, const char *path, const char *const *overrides, int n) {
    return open_looking(c, path, overrides, n, stderr, false);
}

int config_open(config *c, const char *path, const char *const *overrides, int n) {
    return config_open_to(c, path, overrides, n, stderr);
}

void config_close(config *c) {
    for (int i = 0; i < ROWS; i++)
        if (config_rows[i].bit >= 0) value_free(&config_rows[i], value_get(&config_rows[i], c));
    free(c->path);
    *c = (config){0};
}

bool config_is_set(const config *c, const char *key) {
    const key_row *r = name_row(key);
    CHECK(r && r->bit >= 0, "no key '%s'", key);
    return c->set[r->bit / 64] >> r->bit % 64 & 1;
}

/* ---- intervals ---- */

static int64_t every(double steps, int64_t per_epoch, int64_t steps_per_epoch, int64_t steps_total) {
    if (per_epoch == 0) return 0;
    double x = !isnan(steps) ? (steps < 1 ? ceil(steps * (double)steps_total) : steps)
                             : ceil((double)steps_per_epoch / (per_epoch == CONFIG_UNSET ? 1 : (double)per_epoch));
    return x < 1 ? 1 : (int64_t)x;
}

int64_t config_eval_every(const config *c, int64_t steps_per_epoch, int64_t steps_total) {
    return every(c->eval_steps, c->evals_per_epoch, steps_per_epoch, steps_total);
}

int64_t config_save_every(const config *c, int64_t steps_per_epoch, int64_t steps_total) {
    return every(c->save_steps, c->saves_per_epoch, steps_per_epoch, steps_total);
}
