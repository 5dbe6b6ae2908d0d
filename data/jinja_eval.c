/* Runs the tree of a Jinja template. Scopes: a loop's body (per turn), a macro, a block set, with and filter open one;
 * if does not. A name is looked up outwards, then in the context, then among the functions. */
#include "core/error.h"
#include "data/jinja_parts.h"

#include <stdlib.h>
#include <string.h>

typedef enum { FLOW_NEXT, FLOW_BREAK, FLOW_CONTINUE } jflow;
static jflow run_nodes(jrun *r, const jnodes *body);

static double clock_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

void jinja_step(jrun *r, int64_t work) {
    int64_t before = r->steps;
    r->steps += work;
    if (r->steps > r->limits.steps) jinja_stop(&r->mem, "does more than %lld steps", (long long)r->limits.steps);
    if (before >> 8 != r->steps >> 8 && clock_seconds() > r->deadline)
        jinja_stop(&r->mem, "takes longer than %g seconds", r->limits.seconds);
}

void jinja_enter(jrun *r) {
    if (++r->depth > JINJA_DEPTH) jinja_stop(&r->mem, "nested deeper than %d", JINJA_DEPTH);
}
void jinja_leave(jrun *r) { r->depth--; }

static jscope *push_scope(jrun *r, jscope *up) {
    jscope *s = jinja_alloc(&r->mem, sizeof *s), *old = r->scope;
    s->up = up;
    r->scope = s;
    return old;
}

static jbinding *find(jscope *s, const jstr *name) {
    for (; s; s = s->up)
        for (jbinding *b = s->vars; b; b = b->next)
            if (b->name->n == name->n && !memcmp(b->name->p, name->p, (size_t)name->n)) return b;
    return NULL;
}

void jinja_bind(jrun *r, const jstr *name, jval v) {
    jscope only = {.vars = r->scope->vars};
    jbinding *b = find(&only, name);
    if (!b) {
        b = jinja_alloc(&r->mem, sizeof *b);
        *b = (jbinding){.name = name, .next = r->scope->vars};
        r->scope->vars = b;
    }
    b->value = v;
}

static jval lookup(jrun *r, const jstr *name) {
    const jbinding *b = find(r->scope, name);
    if (b) return b->value;
    const jbuiltin *f = jinja_builtin(jinja_functions, name);
    return f ? (jval){J_FUNCTION, {.fn = f}} : j_undefined(name);
}

static void assign_attribute(jrun *r, const jnode *target, jval v) {
    jval ns = lookup(r, target->name);
    if (ns.type != J_NAMESPACE)
        jinja_stop(&r->mem, "cannot set an attribute of %s: only of a namespace", jinja_type_name(ns));
    if (target->value.u.s->p[0] == '_') jinja_stop(&r->mem, "name in a namespace starts with _");
    jinja_dict_set(r, ns.u.d, target->value, v);
}

void jinja_assign(jrun *r, const jnode *target, jval v) {
    if (target->kind == N_NAME) {
        jinja_bind(r, target->name, v);
    } else if (target->kind == N_NSREF) {
        assign_attribute(r, target, v);
    } else {
        const jlist *l = jinja_iterate(r, v);
        if (l->n != target->args.n) jinja_stop(&r->mem, "%lld values for %d names", (long long)l->n, target->args.n);
        for (int i = 0; i < target->args.n; i++) jinja_assign(r, target->args.at[i], l->at[i]);
    }
}

jargs jinja_eval_args(jrun *r, const jnodes *nodes) {
    jargs a = {0};
    if (!nodes->n) return a;
    a.at = jinja_alloc(&r->mem, (size_t)nodes->n * sizeof *a.at);
    a.names = jinja_alloc(&r->mem, (size_t)nodes->n * sizeof *a.names);
    for (int i = 0; i < nodes->n; i++) {
        const jnode *x = nodes->at[i];
        if (x->kind == N_KEYWORD) {
            a.names[a.n_names++] = x->name;
            x = x->a;
        } else {
            a.n++;
        }
        a.at[i] = jinja_eval(r, x);
    }
    return a;
}

/* Text written by a body, in a scope of its own. */
static jval capture(jrun *r, const jnodes *body) {
    jout o = {0}, *out = r->out;
    r->out = &o;
    run_nodes(r, body);
    r->out = out;
    return jinja_take(r, &o);
}

static void bind_params(jrun *r, const jnode *n, const jargs *args) {
    if (args->n > n->args.n)
        jinja_stop(&r->mem, "%d arguments for '%.60s', which takes %d", args->n, n->name->p, n->args.n);
    int used = 0;
    for (int i = 0; i < n->args.n; i++) {
        const jnode *p = n->args.at[i];
        jval v = i < args->n ? args->at[i] : (jval){0};
        for (int k = 0; k < args->n_names; k++) {
            if (args->names[k]->n != p->name->n || memcmp(args->names[k]->p, p->name->p, (size_t)p->name->n)) continue;
            if (v.type != J_ABSENT) jinja_stop(&r->mem, "argument '%.60s' is given twice", p->name->p);
            v = args->at[args->n + k];
            used++;
        }
        if (v.type == J_ABSENT) v = p->a ? jinja_eval(r, p->a) : j_undefined(p->name);
        jinja_bind(r, p->name, v);
    }
    for (int k = 0; k < args->n_names; k++) {
        if (!jinja_same(args->names[k], "caller")) continue;
        jinja_bind(r, args->names[k], args->at[args->n + k]);
        used++;
    }
    if (used < args->n_names) jinja_stop(&r->mem, "'%.60s' has no parameter of that name", n->name->p);
}

jval jinja_render_macro(jrun *r, const jmacro *m, const jargs *args) {
    if (++r->calls > r->limits.depth) jinja_stop(&r->mem, "macros call each other deeper than %d", r->limits.depth);
    jscope *old = push_scope(r, m->scope);
    bind_params(r, m->node, args);
    jval text = capture(r, &m->node->branches[0]);
    r->scope = old;
    r->calls--;
    return text;
}

jval jinja_call_value(jrun *r, jval f, const jargs *args) {
    switch (f.type) {
    case J_MACRO: return jinja_render_macro(r, f.u.macro, args);
    case J_METHOD: return jinja_call_builtin(r, f.u.method->fn, f.u.method->self, args);
    case J_FUNCTION: return jinja_call_builtin(r, f.u.fn, (jval){0}, args);
    case J_JOINER:
        if (f.u.cycle->i++) return f.u.cycle->at[0];
        return jinja_text_of(r, "");
    case J_UNDEFINED: jinja_stop(&r->mem, "'%.60s' is undefined and cannot be called", f.u.s ? f.u.s->p : "value");
    default: jinja_stop(&r->mem, "%s cannot be called", jinja_type_name(f));
    }
}

static jval eval_call(jrun *r, const jnode *n, const jmacro *caller) {
    jval f = jinja_eval(r, n->a);
    jargs args = jinja_eval_args(r, &n->args);
    if (caller) { /* one more keyword */
        int k = args.n + args.n_names;
        jval *at = jinja_alloc(&r->mem, (size_t)(k + 1) * sizeof *at);
        const jstr **names = jinja_alloc(&r->mem, (size_t)(k + 1) * sizeof *names);
        if (k) memcpy(at, args.at, (size_t)k * sizeof *at);
        if (k) memcpy(names, args.names, (size_t)k * sizeof *names);
        at[k] = (jval){J_MACRO, {.macro = (jmacro *)caller}};
        names[args.n_names] = caller->node->name;
        args = (jargs){at, args.n, names, args.n_names + 1};
    }
    r->mem.pos = n->pos;
    return jinja_call_value(r, f, &args);
}

static jval eval_list(jrun *r, const jnode *n) {
    jval l = jinja_list(r, n->args.n, n->kind == N_LIST ? SEQ_LIST : SEQ_TUPLE);
    for (int i = 0; i < n->args.n; i++) jinja_add(l, jinja_eval(r, n->args.at[i]));
    return l;
}

static jval eval_dict(jrun *r, const jnode *n) {
    jval d = jinja_dict(r, J_DICT);
    for (int i = 0; i < n->args.n; i += 2) {
        jval key = jinja_eval(r, n->args.at[i]);
        jinja_dict_set(r, d.u.d, key, jinja_eval(r, n->args.at[i + 1]));
    }
    return d;
}

static jval eval_compare(jrun *r, const jnode *n) {
    jval a = jinja_eval(r, n->a);
    for (int i = 0; i < n->args.n; i++) {
        jval b = jinja_eval(r, n->args.at[i]->a);
        r->mem.pos = n->args.at[i]->pos;
        if (!jinja_compare(r, n->args.at[i]->op, a, b)) return j_bool(false);
        a = b;
    }
    return j_bool(true);
}

static jval eval_concat(jrun *r, const jnode *n) {
    jout o = {0};
    for (int i = 0; i < n->args.n; i++) jinja_print(r, &o, jinja_eval(r, n->args.at[i]));
    return jinja_take(r, &o);
}

static jval eval_item(jrun *r, const jnode *n) {
    jval v = jinja_eval(r, n->a);
    if (n->b->kind != N_SLICE) {
        jval key = jinja_eval(r, n->b);
        r->mem.pos = n->pos;
        return jinja_item(r, v, key);
    }
    const jnode *parts[] = {n->b->a, n->b->b, n->b->c};
    jval bounds[3];
    for (int i = 0; i < 3; i++) bounds[i] = parts[i] ? jinja_eval(r, parts[i]) : j_none();
    r->mem.pos = n->pos;
    return jinja_slice(r, v, bounds);
}

static jval eval_builtin(jrun *r, const jnode *n, jval self) {
    jargs args = jinja_eval_args(r, &n->args);
    r->mem.pos = n->pos;
    return jinja_call_builtin(r, n->fn, self, &args);
}

static jval eval_binary(jrun *r, const jnode *n) {
    jval a = jinja_eval(r, n->a), b = jinja_eval(r, n->b);
    r->mem.pos = n->pos;
    return jinja_binary(r, n->op, a, b);
}

static jval eval_node(jrun *r, const jnode *n) {
    jval a;
    switch (n->kind) {
    case N_CONST: return n->value;
    case N_NAME: return lookup(r, n->name);
    case N_LIST:
    case N_TUPLE: return eval_list(r, n);
    case N_DICT: return eval_dict(r, n);
    case N_BINARY: return eval_binary(r, n);
    case N_AND: a = jinja_eval(r, n->a); return jinja_true(a) ? jinja_eval(r, n->b) : a;
    case N_OR: a = jinja_eval(r, n->a); return jinja_true(a) ? a : jinja_eval(r, n->b);
    case N_NOT: return j_bool(!jinja_true(jinja_eval(r, n->a)));
    case N_COMPARE: return eval_compare(r, n);
    case N_COND:
        if (jinja_true(jinja_eval(r, n->b))) return jinja_eval(r, n->a);
        return n->c ? jinja_eval(r, n->c) : j_undefined(NULL);
    case N_CONCAT: return eval_concat(r, n);
    case N_ITEM: return eval_item(r, n);
    case N_CALL: return eval_call(r, n, NULL);
    case N_FILTER:
    case N_TEST: return eval_builtin(r, n, jinja_eval(r, n->a));
    default: break;
    }
    a = jinja_eval(r, n->a);
    r->mem.pos = n->pos;
    return n->kind == N_ATTR ? jinja_attribute(r, a, n->name) : jinja_unary(r, n->op, a);
}

jval jinja_eval(jrun *r, const jnode *n) {
    r->mem.pos = n->pos;
    jinja_step(r, 1);
    jinja_enter(r);
    jval v = eval_node(r, n);
    jinja_leave(r);
    return v;
}

/* The filters after {% set x | ... %} and {% filter ... %}, innermost first, on a text. */
static jval apply_filters(jrun *r, const jnode *n, jval text) {
    if (!n) return text;
    text = apply_filters(r, n->a, text);
    return eval_builtin(r, n, text);
}

static bool loop_pull(jrun *r, jloop *l, jval *out) {
    while (l->at < l->items->n) {
        *out = l->items->at[l->at++];
        jinja_step(r, 1);
        if (!l->node) return true;
        jscope *old = push_scope(r, l->scope);
        jinja_assign(r, l->node->a, *out);
        bool keep = jinja_true(jinja_eval(r, l->node->c));
        r->scope = old;
        if (keep) return true;
    }
    return false;
}

bool jinja_loop_next(jrun *r, jloop *l, jval *out) {
    if (l->after.type != J_ABSENT) {
        *out = l->after;
        l->after = (jval){0};
    } else if (!loop_pull(r, l, out)) {
        return false;
    }
    l->index0++;
    l->previous = l->current;
    l->current = *out;
    return true;
}

static bool loop_peek(jrun *r, jloop *l) {
    return l->after.type != J_ABSENT || loop_pull(r, l, &l->after) || (l->after = (jval){0}, false);
}

/* Reads the rest of a filtered loop, as Jinja does when a template asks for the length. */
static int64_t loop_length(jrun *r, jloop *l) {
    if (l->length >= 0) return l->length;
    jval rest = jinja_list(r, l->items->n - l->at, SEQ_LIST), x;
    while (loop_pull(r, l, &x)) jinja_add(rest, x);
    l->items = rest.u.l;
    l->at = 0;
    l->node = NULL;
    return l->length = rest.u.l->n + l->index0 + 1 + (l->after.type != J_ABSENT);
}

jval jinja_loop_attribute(jrun *r, jloop *l, const jstr *name) {
    if (jinja_same(name, "index")) return j_int(l->index0 + 1);
    if (jinja_same(name, "index0")) return j_int(l->index0);
    if (jinja_same(name, "first")) return j_bool(!l->index0);
    if (jinja_same(name, "last")) return j_bool(!loop_peek(r, l));
    if (jinja_same(name, "length")) return j_int(loop_length(r, l));
    if (jinja_same(name, "revindex")) return j_int(loop_length(r, l) - l->index0);
    if (jinja_same(name, "revindex0")) return j_int(loop_length(r, l) - l->index0 - 1);
    if (jinja_same(name, "depth")) return j_int(1);
    if (jinja_same(name, "depth0")) return j_int(0);
    if (jinja_same(name, "previtem")) return l->index0 ? l->previous : j_undefined(name);
    if (jinja_same(name, "nextitem")) return loop_peek(r, l) ? l->after : j_undefined(name);
    return j_undefined(name);
}

static jflow run_for(jrun *r, const jnode *n) {
    jval source = jinja_eval(r, n->b), item;
    jloop *l = jinja_alloc(&r->mem, sizeof *l);
    jscope *outer = r->scope;
    const jstr *loop_name = jinja_str_new(&r->mem, "loop", 4, false);
    jflow flow = FLOW_NEXT;
    r->mem.pos = n->pos;
    *l = (jloop){.items = jinja_iterate(r, source), .index0 = -1, .scope = outer, .node = n->c ? n : NULL};
    l->length = n->c || (source.type == J_LIST && source.u.l->kind == SEQ_ITERATOR) ? -1 : l->items->n;
    while (flow != FLOW_BREAK && jinja_loop_next(r, l, &item)) {
        push_scope(r, outer);
        jinja_bind(r, loop_name, (jval){J_LOOP, {.loop = l}});
        r->mem.pos = n->pos;
        jinja_assign(r, n->a, item);
        flow = run_nodes(r, &n->branches[0]);
        r->scope = outer;
    }
    if (l->index0 >= 0 || n->n_branches < 2) return FLOW_NEXT;
    push_scope(r, outer);
    flow = run_nodes(r, &n->branches[1]);
    r->scope = outer;
    return flow;
}

static jflow run_if(jrun *r, const jnode *n) {
    for (int i = 0; i < n->n_branches; i++)
        if (i >= n->args.n || jinja_true(jinja_eval(r, n->args.at[i]))) return run_nodes(r, &n->branches[i]);
    return FLOW_NEXT;
}

static void run_call_block(jrun *r, const jnode *n) {
    jmacro *caller = jinja_alloc(&r->mem, sizeof *caller);
    *caller = (jmacro){n->b, r->scope};
    jinja_print(r, r->out, eval_call(r, n->a, caller));
}

static void run_generation(jrun *r, const jnode *n) {
    if (r->out != &r->main)
        jinja_stop(&r->mem, "generation block inside a macro, a block set or another generation block");
    jscope *old = push_scope(r, r->scope);
    jval text = capture(r, &n->branches[0]);
    r->scope = old;
    if (r->n_spans == r->room_spans) {
        int room = r->room_spans ? 2 * r->room_spans : 16;
        jinja_span *more = jinja_alloc(&r->mem, (size_t)room * sizeof *more);
        if (r->n_spans) memcpy(more, r->spans, (size_t)r->n_spans * sizeof *more);
        r->spans = more;
        r->room_spans = room;
    }
    r->spans[r->n_spans++] = (jinja_span){(int64_t)r->out->n, (int64_t)r->out->n + text.u.s->n};
    jinja_print(r, r->out, text);
}

/* set block, filter block and with: a body in a scope of its own */
static jflow run_scoped(jrun *r, const jnode *n) {
    jscope *old = push_scope(r, r->scope), *mine = r->scope;
    jflow flow = FLOW_NEXT;
    for (int i = 0; n->kind == N_WITH && i < n->args.n; i += 2) { /* values see the scope outside */
        r->scope = old;
        jval v = jinja_eval(r, n->args.at[i + 1]);
        r->scope = mine;
        jinja_assign(r, n->args.at[i], v);
    }
    if (n->kind == N_WITH) {
        flow = run_nodes(r, &n->branches[0]);
        r->scope = old;
        return flow;
    }
    jval text = capture(r, &n->branches[0]);
    text = apply_filters(r, n->b, text);
    r->scope = old;
    if (n->kind == N_SETBLOCK)
        jinja_assign(r, n->a, text);
    else
        jinja_print(r, r->out, text);
    return FLOW_NEXT;
}

static jflow run_node(jrun *r, const jnode *n) {
    jmacro *m;
    jval v;
    switch (n->kind) {
    case N_TEXT: jinja_put(r, r->out, n->value.u.s->p, n->value.u.s->n); break;
    case N_OUTPUT:
        v = jinja_eval(r, n->a);
        r->mem.pos = n->pos;
        jinja_print(r, r->out, v);
        break;
    case N_IF: return run_if(r, n);
    case N_FOR: return run_for(r, n);
    case N_SET:
        v = jinja_eval(r, n->b);
        r->mem.pos = n->pos;
        jinja_assign(r, n->a, v);
        break;
    case N_MACRO:
        m = jinja_alloc(&r->mem, sizeof *m);
        *m = (jmacro){n, r->scope};
        jinja_bind(r, n->name, (jval){J_MACRO, {.macro = m}});
        break;
    case N_CALLBLOCK: run_call_block(r, n); break;
    case N_GENERATION: run_generation(r, n); break;
    case N_BREAK: return FLOW_BREAK;
    case N_CONTINUE: return FLOW_CONTINUE;
    default: return run_scoped(r, n);
    }
    return FLOW_NEXT;
}

static jflow run_nodes(jrun *r, const jnodes *body) {
    jflow flow = FLOW_NEXT;
    jinja_enter(r);
    for (int i = 0; i < body->n && flow == FLOW_NEXT; i++) {
        r->mem.pos = body->at[i]->pos;
        jinja_step(r, 1);
        flow = run_node(r, body->at[i]);
    }
    jinja_leave(r);
    return flow;
}

static void bind_context(jrun *r, const json_t *context) {
    const char *key;
    json_t *member;
    json_object_foreach((json_t *)context, key, member) {
        jinja_bind(r, jinja_text_of(r, key).u.s, jinja_from_json(r, member));
    }
}

static void copy_out(jrun *r, jinja_text *out) {
    out->text = malloc(r->main.n + 1);
    out->spans = r->n_spans ? malloc((size_t)r->n_spans * sizeof *out->spans) : NULL;
    if (!out->text || (r->n_spans && !out->spans)) jinja_stop(&r->mem, "out of memory");
    if (r->main.n) memcpy(out->text, r->main.p, r->main.n);
    out->text[out->n = r->main.n] = 0;
    if (r->n_spans) memcpy(out->spans, r->spans, (size_t)r->n_spans * sizeof *out->spans);
    out->n_spans = r->n_spans;
}

int jinja_render(const jinja *j, const json_t *context, const jinja_limits *limits, jinja_text *out) {
    jrun *r = calloc(1, sizeof *r); /* on the heap: nothing of it is lost by the jump */
    *out = (jinja_text){0};
    if (!r) return fail(EXIT_MEMORY, "%s: out of memory", j->where);
    r->limits = limits ? *limits : JINJA_LIMITS;
    r->deadline = clock_seconds() + r->limits.seconds;
    r->mem.where = j->where;
    r->mem.limit = r->limits.memory;
    r->mem.pos = (jinja_pos){1, 1};
    r->out = &r->main;
    bool stopped = setjmp(r->mem.stop);
    if (!stopped) {
        push_scope(r, NULL);
        bind_context(r, context);
        push_scope(r, r->scope);
        run_nodes(r, &j->body);
        copy_out(r, out);
    }
    jinja_mem_free(&r->mem);
    free(r);
    if (stopped) jinja_text_free(out);
    return stopped ? -1 : 0;
}

void jinja_text_free(jinja_text *t) {
    free(t->text);
    free(t->spans);
    *t = (jinja_text){0};
}
