/* Expressions of Jinja by recursive descent; precedence from weak to strong: a if b else c, or, and, not, comparisons,
 * + -, ~, * / // %, **, unary, then attributes, calls, filters and tests. Filters and tests are looked up here, so an
 * unknown one is an error of the template and not of a rendering. */
#include "core/error.h"
#include "data/jinja_parts.h"

#include <string.h>

enum { NESTING = 200 };

static const jtoken *now(const jtokens *t) { return &t->at[t->i]; }

static const jtoken *next(jtokens *t) {
    const jtoken *k = &t->at[t->i];
    if (k->kind != T_END) t->i++;
    t->mem->pos = k->pos;
    return k;
}

jnode *jinja_node(jtokens *t, jkind kind) {
    jnode *n = jinja_alloc(t->mem, sizeof *n);
    n->kind = kind;
    n->pos = now(t)->pos;
    return n;
}

void jinja_push(jtokens *t, jnodes *list, jnode *x) {
    if ((list->n & (list->n - 1)) == 0) { /* full at every power of two */
        jnode **more = jinja_alloc(t->mem, (size_t)(list->n ? 2 * list->n : 1) * sizeof *more);
        if (list->n) memcpy(more, list->at, (size_t)list->n * sizeof *more);
        list->at = more;
    }
    list->at[list->n++] = x;
}

bool jinja_is_word(const jtoken *t, const char *word) { return t->kind == T_NAME && jinja_same(t->value.u.s, word); }

bool jinja_skip(jtokens *t, int kind) {
    if (now(t)->kind != kind) return false;
    next(t);
    return true;
}

bool jinja_skip_word(jtokens *t, const char *word) {
    if (!jinja_is_word(now(t), word)) return false;
    next(t);
    return true;
}

_Noreturn void jinja_unexpected(jtokens *t, const char *wanted) {
    const jtoken *k = now(t);
    t->mem->pos = k->pos;
    if (k->kind == T_NAME || k->kind == T_STRING)
        jinja_stop(t->mem, "found '%.*s', expected %s", (int)(k->value.u.s->n < 60 ? k->value.u.s->n : 60),
                   k->value.u.s->p, wanted);
    char op[3] = {(char)(k->kind > 255 ? k->kind >> 8 : k->kind), (char)(k->kind > 255 ? k->kind : 0), 0};
    const char *found = k->kind == T_END                         ? "the end of the template"
                        : k->kind == T_BLOCK_END                 ? "%}"
                        : k->kind == T_VAR_END                   ? "}}"
                        : k->kind == T_INT || k->kind == T_FLOAT ? "a number"
                        : k->kind == T_TEXT                      ? "text"
                        : k->kind >= T_BLOCK_BEGIN               ? "a tag"
                                                                 : op;
    jinja_stop(t->mem, "found %s, expected %s", found, wanted);
}

const jtoken *jinja_expect(jtokens *t, int kind, const char *what) {
    if (now(t)->kind != kind) jinja_unexpected(t, what);
    return next(t);
}

static jnode *unary_of(jtokens *t, jkind kind, int op, jnode *a, jinja_pos pos) {
    jnode *n = jinja_node(t, kind);
    n->op = op;
    n->a = a;
    n->pos = pos;
    return n;
}

static jnode *binary_of(jtokens *t, jkind kind, int op, jnode *a, jnode *b, jinja_pos pos) {
    jnode *n = unary_of(t, kind, op, a, pos);
    n->b = b;
    return n;
}

static const jbuiltin *find_builtin(jtokens *t, const jbuiltin *table, const char *what, const jtoken *name) {
    const jbuiltin *b = jinja_builtin(table, name->value.u.s);
    t->mem->pos = name->pos;
    if (!b) jinja_stop(t->mem, "unknown %s '%.60s'", what, name->value.u.s->p);
    return b;
}

/* ( a, b, name=c ); the opening parenthesis is next */
static jnodes call_args(jtokens *t) {
    jnodes args = {0};
    bool keywords = false;
    jinja_expect(t, OP('('), "(");
    while (now(t)->kind != OP(')')) {
        if (args.n) jinja_expect(t, OP(','), "a comma or )");
        if (now(t)->kind == OP(')')) break;
        if (now(t)->kind == OP('*') || now(t)->kind == OP2('*', '*'))
            jinja_unexpected(t, "an argument: * and ** in calls are not supported");
        jnode *x;
        if (now(t)->kind == T_NAME && t->at[t->i + 1].kind == OP('=')) {
            x = jinja_node(t, N_KEYWORD);
            x->name = next(t)->value.u.s;
            next(t);
            x->a = jinja_parse_expression(t, true);
            keywords = true;
        } else {
            if (keywords) jinja_unexpected(t, "name=value: a positional argument cannot follow");
            x = jinja_parse_expression(t, true);
        }
        jinja_push(t, &args, x);
    }
    next(t);
    return args;
}

static bool tuple_ends(const jtokens *t) {
    const jtoken *k = now(t);
    return k->kind == T_VAR_END || k->kind == T_BLOCK_END || k->kind == OP(')') || jinja_is_word(k, "in") ||
           jinja_is_word(k, "recursive");
}

jnode *jinja_parse_tuple(jtokens *t, bool with_condition, bool parentheses) {
    jnode *tuple = jinja_node(t, N_TUPLE);
    bool comma = false;
    while (!tuple_ends(t)) {
        jinja_push(t, &tuple->args, jinja_parse_expression(t, with_condition));
        if (!jinja_skip(t, OP(','))) break;
        comma = true;
    }
    if (comma) return tuple;
    if (tuple->args.n) return tuple->args.at[0];
    if (!parentheses) jinja_unexpected(t, "an expression");
    return tuple;
}

static jnode *target_primary(jtokens *t) {
    jnode *n = jinja_node(t, N_NAME);
    if (jinja_skip(t, OP('('))) { /* a nested tuple */
        n = jinja_parse_target(t, true);
        jinja_expect(t, OP(')'), ")");
        return n;
    }
    static const char *const constants[] = {"true", "false", "none", "True", "False", "None"};
    const jtoken *name = jinja_expect(t, T_NAME, "a name to assign to");
    for (size_t i = 0; i < sizeof constants / sizeof *constants; i++)
        if (jinja_is_word(name, constants[i])) jinja_stop(t->mem, "cannot assign to %s", constants[i]);
    n->name = name->value.u.s;
    if (jinja_skip(t, OP('.'))) {
        n->kind = N_NSREF;
        n->value = jinja_expect(t, T_NAME, "the name of an attribute")->value;
    }
    return n;
}

jnode *jinja_parse_target(jtokens *t, bool with_tuple) {
    jnode *tuple = jinja_node(t, N_TUPLE);
    bool comma = false;
    if (++t->depth > NESTING) jinja_stop(t->mem, "nested deeper than %d", NESTING);
    while (!tuple->args.n || !(tuple_ends(t) || now(t)->kind == OP('='))) {
        jinja_push(t, &tuple->args, target_primary(t));
        if (!with_tuple || !jinja_skip(t, OP(','))) break;
        comma = true;
    }
    t->depth--;
    return comma ? tuple : tuple->args.at[0];
}

static jnode *list_or_dict(jtokens *t, jkind kind, int close) {
    jnode *n = jinja_node(t, kind);
    next(t);
    while (now(t)->kind != close) {
        if (n->args.n) jinja_expect(t, OP(','), kind == N_LIST ? "a comma or ]" : "a comma or }");
        if (now(t)->kind == close) break;
        jinja_push(t, &n->args, jinja_parse_expression(t, true));
        if (kind == N_LIST) continue;
        jinja_expect(t, OP(':'), "a colon");
        jinja_push(t, &n->args, jinja_parse_expression(t, true));
    }
    next(t);
    return n;
}

static jnode *string_constant(jtokens *t) {
    jnode *n = jinja_node(t, N_CONST);
    n->value = next(t)->value;
    while (now(t)->kind == T_STRING) { /* 'a' 'b' */
        const jstr *a = n->value.u.s, *b = next(t)->value.u.s;
        char *p = jinja_alloc(t->mem, (size_t)(a->n + b->n) + 1);
        memcpy(p, a->p, (size_t)a->n);
        memcpy(p + a->n, b->p, (size_t)b->n);
        n->value.u.s = jinja_str_new(t->mem, p, a->n + b->n, false);
    }
    return n;
}

static jnode *name_or_constant(jtokens *t) {
    jnode *n = jinja_node(t, N_CONST);
    const jtoken *k = next(t);
    if (jinja_is_word(k, "true") || jinja_is_word(k, "True"))
        n->value = j_bool(true);
    else if (jinja_is_word(k, "false") || jinja_is_word(k, "False"))
        n->value = j_bool(false);
    else if (jinja_is_word(k, "none") || jinja_is_word(k, "None"))
        n->value = j_none();
    else {
        n->kind = N_NAME;
        n->name = k->value.u.s;
    }
    return n;
}

jnode *jinja_parse_primary(jtokens *t) {
    jnode *n;
    switch (now(t)->kind) {
    case T_NAME: return name_or_constant(t);
    case T_STRING: return string_constant(t);
    case T_INT:
    case T_FLOAT: n = jinja_node(t, N_CONST); return n->value = next(t)->value, n;
    case OP('('):
        next(t);
        n = jinja_parse_tuple(t, true, true);
        jinja_expect(t, OP(')'), ")");
        return n;
    case OP('['): return list_or_dict(t, N_LIST, OP(']'));
    case OP('{'): return list_or_dict(t, N_DICT, OP('}'));
    default: jinja_unexpected(t, "an expression");
    }
}

static bool slice_ends(const jtokens *t) {
    return now(t)->kind == OP(':') || now(t)->kind == OP(']') || now(t)->kind == OP(',');
}

static jnode *subscript(jtokens *t, jnode *of, jinja_pos pos) {
    jnode *item = binary_of(t, N_ITEM, 0, of, NULL, pos);
    jnode *begin = now(t)->kind == OP(':') ? NULL : jinja_parse_expression(t, true);
    item->b = begin;
    if (jinja_skip(t, OP(':'))) {
        jnode *s = item->b = binary_of(t, N_SLICE, 0, begin, NULL, pos);
        if (!slice_ends(t)) s->b = jinja_parse_expression(t, true);
        if (jinja_skip(t, OP(':')) && !slice_ends(t)) s->c = jinja_parse_expression(t, true);
    }
    jinja_expect(t, OP(']'), "]");
    return item;
}

static jnode *attribute(jtokens *t, jnode *of, jinja_pos pos) {
    jnode *n = unary_of(t, N_ATTR, 0, of, pos);
    if (now(t)->kind == T_INT) {
        n->kind = N_ITEM;
        n->b = jinja_parse_primary(t);
    } else {
        n->name = jinja_expect(t, T_NAME, "the name of an attribute")->value.u.s;
    }
    return n;
}

jnode *jinja_parse_postfix(jtokens *t, jnode *x) {
    for (;;) {
        jinja_pos pos = now(t)->pos;
        if (jinja_skip(t, OP('.'))) {
            x = attribute(t, x, pos);
        } else if (jinja_skip(t, OP('['))) {
            x = subscript(t, x, pos);
        } else if (now(t)->kind == OP('(')) {
            x = unary_of(t, N_CALL, 0, x, pos);
            x->args = call_args(t);
        } else {
            return x;
        }
    }
}

static jnode *test(jtokens *t, jnode *of) {
    jinja_pos pos = next(t)->pos;
    bool negated = jinja_skip_word(t, "not");
    jnode *n = unary_of(t, N_TEST, 0, of, pos);
    n->fn = find_builtin(t, jinja_tests, "test", jinja_expect(t, T_NAME, "the name of a test"));
    int k = now(t)->kind;
    bool word =
        k == T_NAME && !jinja_is_word(now(t), "else") && !jinja_is_word(now(t), "or") && !jinja_is_word(now(t), "and");
    if (k == OP('(')) {
        n->args = call_args(t);
    } else if (word || k == T_STRING || k == T_INT || k == T_FLOAT || k == OP('[') || k == OP('{')) {
        if (jinja_is_word(now(t), "is")) jinja_unexpected(t, "no second 'is': tests cannot be chained");
        jinja_push(t, &n->args, jinja_parse_postfix(t, jinja_parse_primary(t)));
    }
    return negated ? unary_of(t, N_NOT, 0, n, pos) : n;
}

jnode *jinja_parse_filters(jtokens *t, jnode *of, bool started) {
    while (started || jinja_skip(t, OP('|'))) {
        jnode *n = unary_of(t, N_FILTER, 0, of, now(t)->pos);
        n->fn = find_builtin(t, jinja_filters, "filter", jinja_expect(t, T_NAME, "the name of a filter"));
        if (now(t)->kind == OP('(')) n->args = call_args(t);
        of = n;
        started = false;
    }
    return of;
}

static jnode *filters_and_tests(jtokens *t, jnode *x) {
    for (;;) {
        jinja_pos pos = now(t)->pos;
        if (now(t)->kind == OP('|')) {
            x = jinja_parse_filters(t, x, false);
        } else if (jinja_is_word(now(t), "is")) {
            x = test(t, x);
        } else if (now(t)->kind == OP('(')) {
            x = unary_of(t, N_CALL, 0, x, pos);
            x->args = call_args(t);
        } else {
            return x;
        }
    }
}

static jnode *unary(jtokens *t, bool with_filter) {
    jinja_pos pos = now(t)->pos;
    int op = now(t)->kind;
    jnode *x;
    if (++t->depth > NESTING) jinja_stop(t->mem, "nested deeper than %d", NESTING);
    if (op == OP('-') || op == OP('+')) {
        next(t);
        x = unary_of(t, N_UNARY, op, unary(t, false), pos);
    } else {
        x = jinja_parse_primary(t);
    }
    x = jinja_parse_postfix(t, x);
    if (with_filter) x = filters_and_tests(t, x);
    t->depth--;
    return x;
}

static jnode *power(jtokens *t) {
    jnode *x = unary(t, true);
    for (;;) {
        jinja_pos pos = now(t)->pos;
        if (!jinja_skip(t, OP2('*', '*'))) return x;
        x = binary_of(t, N_BINARY, OP2('*', '*'), x, unary(t, true), pos);
    }
}

static jnode *product(jtokens *t) {
    jnode *x = power(t);
    for (;;) {
        jinja_pos pos = now(t)->pos;
        int op = now(t)->kind;
        if (op != OP('*') && op != OP('/') && op != OP2('/', '/') && op != OP('%')) return x;
        next(t);
        x = binary_of(t, N_BINARY, op, x, power(t), pos);
    }
}

static jnode *concat(jtokens *t) {
    jnode *n = jinja_node(t, N_CONCAT);
    do jinja_push(t, &n->args, product(t));
    while (jinja_skip(t, OP('~')));
    return n->args.n == 1 ? n->args.at[0] : n;
}

static jnode *sum(jtokens *t) {
    jnode *x = concat(t);
    for (;;) {
        jinja_pos pos = now(t)->pos;
        int op = now(t)->kind;
        if (op != OP('+') && op != OP('-')) return x;
        next(t);
        x = binary_of(t, N_BINARY, op, x, concat(t), pos);
    }
}

static int comparison(jtokens *t) { /* 0: none; words are consumed, operators too */
    static const int ops[] = {OP2('=', '='), OP2('!', '='), OP('<'), OP2('<', '='), OP('>'), OP2('>', '=')};
    for (size_t i = 0; i < sizeof ops / sizeof *ops; i++)
        if (jinja_skip(t, ops[i])) return ops[i];
    if (jinja_skip_word(t, "in")) return OP_IN;
    if (!jinja_is_word(now(t), "not") || !jinja_is_word(now(t) + 1, "in")) return 0;
    next(t);
    next(t);
    return OP_NOT_IN;
}

static jnode *compare(jtokens *t) {
    jnode *x = sum(t), *n = NULL;
    for (;;) {
        jinja_pos pos = now(t)->pos;
        int op = comparison(t);
        if (!op) return n ? n : x;
        if (!n) n = unary_of(t, N_COMPARE, 0, x, pos);
        jinja_push(t, &n->args, unary_of(t, N_OPERAND, op, sum(t), pos));
    }
}

static jnode *negation(jtokens *t) {
    jinja_pos pos = now(t)->pos;
    if (!jinja_skip_word(t, "not")) return compare(t);
    if (++t->depth > NESTING) jinja_stop(t->mem, "nested deeper than %d", NESTING);
    jnode *n = unary_of(t, N_NOT, 0, negation(t), pos);
    t->depth--;
    return n;
}

static jnode *conjunction(jtokens *t) {
    jnode *x = negation(t);
    for (;;) {
        jinja_pos pos = now(t)->pos;
        if (!jinja_skip_word(t, "and")) return x;
        x = binary_of(t, N_AND, 0, x, negation(t), pos);
    }
}

static jnode *disjunction(jtokens *t) {
    jnode *x = conjunction(t);
    for (;;) {
        jinja_pos pos = now(t)->pos;
        if (!jinja_skip_word(t, "or")) return x;
        x = binary_of(t, N_OR, 0, x, conjunction(t), pos);
    }
}

jnode *jinja_parse_expression(jtokens *t, bool with_condition) {
    if (++t->depth > NESTING) jinja_stop(t->mem, "nested deeper than %d", NESTING);
    jnode *x = disjunction(t);
    for (;;) {
        jinja_pos pos = now(t)->pos;
        if (!with_condition || !jinja_skip_word(t, "if")) break;
        x = binary_of(t, N_COND, 0, x, disjunction(t), pos);
        if (jinja_skip_word(t, "else")) x->c = jinja_parse_expression(t, true);
    }
    t->depth--;
    return x;
}
