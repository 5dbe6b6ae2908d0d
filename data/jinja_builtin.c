/* Tests, functions and the methods of lists, dicts and loops; and how a row of any table is called. */
#include "data/jinja_parts.h"

#include <ctype.h>
#include <math.h>
#include <string.h>

const jbuiltin *jinja_builtin(const jbuiltin *table, const jstr *name) {
    for (; table->name; table++)
        if (jinja_same(name, table->name)) return table;
    return NULL;
}

/* The place of a name in "a b c", -1 when it is not there. */
static int param_index(const char *params, const jstr *name) {
    for (int i = 0; *params; i++) {
        size_t n = strcspn(params, " ");
        if ((int64_t)n == name->n && !memcmp(params, name->p, n)) return i;
        params += n + (params[n] == ' ');
    }
    return -1;
}

static int param_count(const char *params) {
    int n = *params != 0;
    for (; *params; params++) n += *params == ' ';
    return n;
}

jval jinja_call_builtin(jrun *r, const jbuiltin *b, jval self, const jargs *args) {
    jval arg[JINJA_PARAMS] = {{0}};
    if (!b->fn) jinja_stop(&r->mem, "method '%s' is refused here", b->name);
    if (*b->params == '*') return b->fn(r, self, arg, args);
    int most = param_count(b->params);
    if (args->n > most) jinja_stop(&r->mem, "%d arguments for '%s', expected at most %d", args->n, b->name, most);
    for (int i = 0; i < args->n; i++) arg[i] = args->at[i];
    for (int k = 0; k < args->n_names; k++) {
        int i = param_index(b->params, args->names[k]);
        const char *wrong = i < 0 ? "is unknown" : arg[i].type != J_ABSENT ? "is given twice" : NULL;
        if (wrong) jinja_stop(&r->mem, "argument '%.60s' of '%s' %s", args->names[k]->p, b->name, wrong);
        arg[i] = args->at[args->n + k];
    }
    for (int i = 0; i < b->required; i++)
        if (arg[i].type == J_ABSENT) jinja_stop(&r->mem, "'%s' needs %d arguments", b->name, b->required);
    return b->fn(r, self, arg, args);
}

#define BUILTIN(name) static jval name(jrun *r, jval v, const jval *arg, const jargs *all)
#define UNUSED (void)r, (void)v, (void)arg, (void)all
#define IS(name, condition)                                                                                            \
    BUILTIN(name) { return UNUSED, j_bool(condition); }

static bool is_multiple(jrun *r, jval v, jval by, int rest) {
    jval m = jinja_binary(r, OP('%'), v, by);
    return m.type == J_FLOAT ? m.u.f == rest : j_integer(m) == rest;
}

static bool is_same(jval a, jval b) {
    if (a.type != b.type) return false;
    return a.type == J_NONE || (a.type == J_BOOL ? a.u.b == b.u.b : a.type == J_INT ? a.u.i == b.u.i : a.u.d == b.u.d);
}

static bool has_case(jrun *r, jval v, const char *method) {
    jval s = jinja_to_str(r, v);
    const jbuiltin *b = jinja_builtin(jinja_string_methods, jinja_text_of(r, method).u.s);
    return jinja_true(jinja_call_builtin(r, b, s, &(jargs){0}));
}

IS(t_defined, v.type != J_UNDEFINED)
IS(t_undefined, v.type == J_UNDEFINED)
IS(t_none, v.type == J_NONE)
IS(t_string, v.type == J_STRING)
IS(t_mapping, v.type == J_DICT)
IS(t_sequence,
   v.type == J_STRING || v.type == J_DICT || v.type == J_UNDEFINED || (v.type == J_LIST && v.u.l->kind <= SEQ_RANGE))
IS(t_iterable, v.type == J_STRING || v.type == J_DICT || v.type == J_UNDEFINED || v.type == J_LIST || v.type == J_LOOP)
IS(t_number, j_is_number(v))
IS(t_integer, v.type == J_INT)
IS(t_float, v.type == J_FLOAT)
IS(t_boolean, v.type == J_BOOL)
IS(t_true, v.type == J_BOOL && v.u.b)
IS(t_false, v.type == J_BOOL && !v.u.b)
IS(t_callable, v.type == J_UNDEFINED || v.type == J_MACRO || v.type == J_METHOD || v.type == J_FUNCTION ||
                   v.type == J_JOINER || v.type == J_LOOP)
IS(t_in, jinja_contains(r, arg[0], v))
IS(t_eq, jinja_equal(r, v, arg[0]))
IS(t_ne, !jinja_equal(r, v, arg[0]))
IS(t_lt, jinja_less(r, v, arg[0]))
IS(t_gt, jinja_less(r, arg[0], v))
IS(t_le, jinja_compare(r, OP2('<', '='), v, arg[0]))
IS(t_ge, jinja_compare(r, OP2('>', '='), v, arg[0]))
IS(t_odd, is_multiple(r, v, j_int(2), 1))
IS(t_even, is_multiple(r, v, j_int(2), 0))
IS(t_divisibleby, is_multiple(r, v, arg[0], 0))
IS(t_sameas, is_same(v, arg[0]))
IS(t_upper, has_case(r, v, "isupper"))
IS(t_lower, has_case(r, v, "islower"))
IS(t_filter, v.type == J_STRING && jinja_builtin(jinja_filters, v.u.s))
IS(t_test, v.type == J_STRING && jinja_builtin(jinja_tests, v.u.s))

const jbuiltin jinja_tests[] = {
    {"defined", "", 0, t_defined},
    {"undefined", "", 0, t_undefined},
    {"none", "", 0, t_none},
    {"string", "", 0, t_string},
    {"mapping", "", 0, t_mapping},
    {"sequence", "", 0, t_sequence},
    {"iterable", "", 0, t_iterable},
    {"number", "", 0, t_number},
    {"integer", "", 0, t_integer},
    {"float", "", 0, t_float},
    {"boolean", "", 0, t_boolean},
    {"true", "", 0, t_true},
    {"false", "", 0, t_false},
    {"callable", "", 0, t_callable},
    {"in", "seq", 1, t_in},
    {"equalto", "other", 1, t_eq},
    {"eq", "other", 1, t_eq},
    {"==", "other", 1, t_eq},
    {"ne", "other", 1, t_ne},
    {"!=", "other", 1, t_ne},
    {"lt", "other", 1, t_lt},
    {"lessthan", "other", 1, t_lt},
    {"<", "other", 1, t_lt},
    {"le", "other", 1, t_le},
    {"<=", "other", 1, t_le},
    {"gt", "other", 1, t_gt},
    {"greaterthan", "other", 1, t_gt},
    {">", "other", 1, t_gt},
    {"ge", "other", 1, t_ge},
    {">=", "other", 1, t_ge},
    {"odd", "", 0, t_odd},
    {"even", "", 0, t_even},
    {"divisibleby", "num", 1, t_divisibleby},
    {"sameas", "other", 1, t_sameas},
    {"upper", "", 0, t_upper},
    {"lower", "", 0, t_lower},
    {"filter", "", 0, t_filter},
    {"test", "", 0, t_test},
    {0},
};

static int64_t index_arg(jrun *r, jval v) {
    if (!j_is_int(v)) jinja_stop(&r->mem, "argument is %s, expected an integer", jinja_type_name(v));
    return j_integer(v);
}

BUILTIN(g_range) {
    UNUSED;
    int64_t a = index_arg(r, arg[0]), b = a, step = arg[2].type == J_ABSENT ? 1 : index_arg(r, arg[2]);
    if (arg[1].type == J_ABSENT)
        a = 0;
    else
        b = index_arg(r, arg[1]);
    if (!step) jinja_stop(&r->mem, "range with step 0");
    double count = ceil(((double)b - (double)a) / (double)step);
    if (count > 100000) jinja_stop(&r->mem, "range of more than 100000 items, which the sandbox refuses");
    int64_t n = count > 0 ? (int64_t)count : 0;
    jval l = jinja_list(r, n, SEQ_RANGE);
    for (int64_t i = 0; i < n; i++) jinja_add(l, j_int(a + i * step));
    return l;
}

/* dict(mapping or pairs, name=value ...) and namespace(...), which refuses names that start with _ */
static jval make_dict(jrun *r, const jargs *all, jtype type) {
    jval d = jinja_dict(r, type);
    if (all->n > 1) jinja_stop(&r->mem, "%d arguments, expected a mapping and name=value", all->n);
    if (all->n && (all->at[0].type == J_DICT || all->at[0].type == J_NAMESPACE)) {
        const jdict *from = all->at[0].u.d;
        for (int64_t i = 0; i < from->n; i++) jinja_dict_set(r, d.u.d, from->at[i].key, from->at[i].value);
    } else if (all->n) {
        const jlist *l = jinja_iterate(r, all->at[0]);
        for (int64_t i = 0; i < l->n; i++) {
            const jlist *p = jinja_iterate(r, l->at[i]);
            if (p->n != 2)
                jinja_stop(&r->mem, "item %lld has %lld values, expected a key and a value", (long long)i,
                           (long long)p->n);
            jinja_dict_set(r, d.u.d, p->at[0], p->at[1]);
        }
    }
    for (int k = 0; k < all->n_names; k++)
        jinja_dict_set(r, d.u.d, (jval){J_STRING, {.s = all->names[k]}}, all->at[all->n + k]);
    for (int64_t i = 0; type == J_NAMESPACE && i < d.u.d->n; i++) {
        jval key = d.u.d->at[i].key;
        if (key.type == J_STRING && key.u.s->n && key.u.s->p[0] == '_')
            jinja_stop(&r->mem, "name '%.60s' in a namespace starts with _", key.u.s->p);
    }
    return d;
}
BUILTIN(g_dict) { return UNUSED, make_dict(r, all, J_DICT); }
BUILTIN(g_namespace) { return UNUSED, make_dict(r, all, J_NAMESPACE); }

BUILTIN(g_raise_exception) {
    UNUSED;
    jval text = jinja_to_str(r, arg[0]);
    jinja_stop(&r->mem, "the template refuses: %.*s", (int)(text.u.s->n < 800 ? text.u.s->n : 800), text.u.s->p);
}

BUILTIN(g_strftime_now) {
    UNUSED;
    time_t now = r->limits.now ? r->limits.now : time(NULL);
    struct tm tm;
    char text[1024];
    if (arg[0].type != J_STRING) jinja_stop(&r->mem, "format is %s, expected a string", jinja_type_name(arg[0]));
    if (!arg[0].u.s->n) return arg[0];
    localtime_r(&now, &tm);
    jval format = jinja_str(r, arg[0].u.s->p, arg[0].u.s->n); /* ends with a 0 */
    size_t n = strftime(text, sizeof text, format.u.s->p, &tm);
    if (!n) jinja_stop(&r->mem, "date is longer than %zu bytes", sizeof text);
    return jinja_str(r, text, (int64_t)n);
}

static jval make_cycle(jrun *r, jtype type, const jval *at, int n) {
    jcycle *c = jinja_alloc(&r->mem, sizeof *c);
    c->at = jinja_alloc(&r->mem, (size_t)n * sizeof *c->at + 1);
    memcpy(c->at, at, (size_t)n * sizeof *c->at);
    c->n = n;
    return (jval){type, {.cycle = c}};
}

BUILTIN(g_joiner) {
    UNUSED;
    jval separator = arg[0].type == J_ABSENT ? jinja_text_of(r, ", ") : arg[0];
    return make_cycle(r, J_JOINER, &separator, 1);
}

BUILTIN(g_cycler) {
    UNUSED;
    if (!all->n || all->n_names) jinja_stop(&r->mem, "cycler needs items");
    return make_cycle(r, J_CYCLER, all->at, all->n);
}

const jbuiltin jinja_functions[] = {
    {"range", "start stop step", 1, g_range},
    {"dict", "*", 0, g_dict},
    {"namespace", "*", 0, g_namespace},
    {"raise_exception", "message", 1, g_raise_exception},
    {"strftime_now", "format", 1, g_strftime_now},
    {"joiner", "sep", 0, g_joiner},
    {"cycler", "*", 0, g_cycler},
    {0},
};

BUILTIN(m_next) {
    UNUSED;
    jcycle *c = v.u.cycle;
    jval x = c->at[c->i];
    c->i = (c->i + 1) % c->n;
    return x;
}

BUILTIN(m_reset) {
    UNUSED;
    v.u.cycle->i = 0;
    return j_none();
}

BUILTIN(m_cycle) {
    UNUSED;
    if (!all->n || all->n_names) jinja_stop(&r->mem, "loop.cycle needs items");
    return all->n > 0 ? all->at[v.u.loop->index0 % all->n] : j_none();
}

BUILTIN(m_changed) {
    UNUSED;
    jval now = jinja_list(r, all->n, SEQ_TUPLE), before = v.u.loop->changed;
    for (int i = 0; i < all->n; i++) jinja_add(now, all->at[i]);
    v.u.loop->changed = now;
    return j_bool(before.type == J_ABSENT || !jinja_equal(r, before, now));
}

BUILTIN(m_list_count) {
    UNUSED;
    int64_t n = 0;
    for (int64_t i = 0; i < v.u.l->n; i++) n += jinja_equal(r, v.u.l->at[i], arg[0]);
    return j_int(n);
}

BUILTIN(m_list_index) {
    UNUSED;
    for (int64_t i = 0; i < v.u.l->n; i++)
        if (jinja_equal(r, v.u.l->at[i], arg[0])) return j_int(i);
    jinja_stop(&r->mem, "value is not in the list");
}

BUILTIN(m_get) {
    UNUSED;
    jval out;
    return jinja_dict_find(r, v.u.d, arg[0], &out) ? out : arg[1].type == J_ABSENT ? j_none() : arg[1];
}

static jval view(jrun *r, const jdict *d, jseq kind) {
    jval l = jinja_list(r, d->n, kind);
    for (int64_t i = 0; i < d->n; i++) {
        jval pair = {0};
        if (kind == SEQ_ITEMS) {
            pair = jinja_list(r, 2, SEQ_TUPLE);
            jinja_add(pair, d->at[i].key);
            jinja_add(pair, d->at[i].value);
        }
        jinja_add(l, kind == SEQ_ITEMS ? pair : kind == SEQ_KEYS ? d->at[i].key : d->at[i].value);
    }
    return l;
}
BUILTIN(m_items) { return UNUSED, view(r, v.u.d, SEQ_ITEMS); }
BUILTIN(m_keys) { return UNUSED, view(r, v.u.d, SEQ_KEYS); }
BUILTIN(m_values) { return UNUSED, view(r, v.u.d, SEQ_VALUES); }
BUILTIN(m_copy) { return UNUSED, v; } /* nothing can change it */

const jbuiltin jinja_list_methods[] = {
    {"count", "value", 1, m_list_count},
    {"index", "value", 1, m_list_index},
    {"copy", "", 0, m_copy},
    {"append", "", 0, NULL},
    {"clear", "", 0, NULL},
    {"extend", "", 0, NULL},
    {"insert", "", 0, NULL},
    {"pop", "", 0, NULL},
    {"remove", "", 0, NULL},
    {"reverse", "", 0, NULL},
    {"sort", "", 0, NULL},
    {0},
};
const jbuiltin jinja_dict_methods[] = {
    {"get", "key default", 1, m_get}, {"items", "", 0, m_items}, {"keys", "", 0, m_keys},
    {"values", "", 0, m_values},      {"copy", "", 0, m_copy},   {"clear", "", 0, NULL},
    {"fromkeys", "", 0, NULL},        {"pop", "", 0, NULL},      {"popitem", "", 0, NULL},
    {"setdefault", "", 0, NULL},      {"update", "", 0, NULL},   {0},
};
const jbuiltin jinja_loop_methods[] = {{"cycle", "*", 0, m_cycle}, {"changed", "*", 0, m_changed}, {0}};
const jbuiltin jinja_cycle_methods[] = {{"next", "", 0, m_next}, {"reset", "", 0, m_reset}, {0}};
