/* Statements of Jinja: one row per tag. */
#include "core/arena.h"
#include "data/jinja_parts.h"

#include <stdlib.h>
#include <string.h>

static const jtoken *now(const jtokens *t) { return &t->at[t->i]; }

static void block_end(jtokens *t) { jinja_expect(t, T_BLOCK_END, "%}"); }

/* The body after a tag up to {% END %}, all consumed. */
static jnodes body_until(jtokens *t, const char *end) {
    jnodes body = jinja_parse_block(t, (const char *const[]){end, NULL});
    t->i++;
    block_end(t);
    return body;
}

static jnodes *new_branch(jtokens *t, jnode *n) {
    jnodes *more = jinja_alloc(t->mem, (size_t)(n->n_branches + 1) * sizeof *more);
    if (n->n_branches) memcpy(more, n->branches, (size_t)n->n_branches * sizeof *more);
    n->branches = more;
    return &more[n->n_branches++];
}

static void parse_if(jtokens *t, jnode *n) {
    static const char *const ends[] = {"elif", "else", "endif", NULL};
    n->kind = N_IF;
    do {
        if (n->n_branches > 1000) jinja_stop(t->mem, "more than 1000 branches");
        jinja_push(t, &n->args, jinja_parse_tuple(t, false, false));
        block_end(t);
        jnodes body = jinja_parse_block(t, ends);
        *new_branch(t, n) = body;
    } while (jinja_skip_word(t, "elif"));
    if (jinja_skip_word(t, "else")) {
        block_end(t);
        jnodes body = body_until(t, "endif");
        *new_branch(t, n) = body;
        return;
    }
    t->i++;
    block_end(t);
}

static void parse_for(jtokens *t, jnode *n) {
    static const char *const ends[] = {"endfor", "else", NULL};
    n->kind = N_FOR;
    n->a = jinja_parse_target(t, true);
    if (!jinja_skip_word(t, "in")) jinja_unexpected(t, "in");
    n->b = jinja_parse_tuple(t, false, false);
    if (jinja_skip_word(t, "if")) n->c = jinja_parse_expression(t, true);
    if (jinja_is_word(now(t), "recursive")) jinja_unexpected(t, "%}: recursive loops are not supported");
    block_end(t);
    t->loops++;
    jnodes body = jinja_parse_block(t, ends);
    t->loops--;
    *new_branch(t, n) = body;
    bool other = jinja_skip_word(t, "else");
    if (!other) t->i++;
    block_end(t);
    if (!other) return;
    body = body_until(t, "endfor");
    *new_branch(t, n) = body;
}

static void parse_set(jtokens *t, jnode *n) {
    n->a = jinja_parse_target(t, true);
    if (jinja_skip(t, OP('='))) {
        n->kind = N_SET;
        n->b = jinja_parse_tuple(t, true, false);
        block_end(t);
        return;
    }
    n->kind = N_SETBLOCK;
    n->b = jinja_parse_filters(t, NULL, false);
    block_end(t);
    *new_branch(t, n) = body_until(t, "endset");
}

static jnodes signature(jtokens *t) {
    jnodes params = {0};
    jinja_expect(t, OP('('), "(");
    bool defaults = false;
    while (now(t)->kind != OP(')')) {
        if (params.n) jinja_expect(t, OP(','), "a comma or )");
        jnode *p = jinja_node(t, N_PARAM);
        p->name = jinja_expect(t, T_NAME, "the name of a parameter")->value.u.s;
        if (jinja_skip(t, OP('='))) {
            p->a = jinja_parse_expression(t, true);
            defaults = true;
        } else if (defaults) {
            jinja_unexpected(t, "a default: it follows a parameter with one");
        }
        jinja_push(t, &params, p);
    }
    t->i++;
    return params;
}

/* A macro's body is a function: break and continue do not reach a loop around it. */
static void function_body(jtokens *t, jnode *n, const char *end) {
    int loops = t->loops;
    t->loops = 0;
    *new_branch(t, n) = body_until(t, end);
    t->loops = loops;
}

static void parse_macro(jtokens *t, jnode *n) {
    n->kind = N_MACRO;
    n->name = jinja_expect(t, T_NAME, "the macro's name")->value.u.s;
    n->args = signature(t);
    block_end(t);
    function_body(t, n, "endmacro");
}

static void parse_call(jtokens *t, jnode *n) {
    jnode *caller = n->b = jinja_node(t, N_MACRO);
    n->kind = N_CALLBLOCK;
    caller->name = jinja_str_new(t->mem, "caller", 6, false);
    if (now(t)->kind == OP('(')) caller->args = signature(t);
    n->a = jinja_parse_expression(t, true);
    if (n->a->kind != N_CALL) jinja_unexpected(t, "a call of a macro before this");
    block_end(t);
    function_body(t, caller, "endcall");
}

static void parse_filter(jtokens *t, jnode *n) {
    n->kind = N_FILTERBLOCK;
    n->b = jinja_parse_filters(t, NULL, true);
    block_end(t);
    *new_branch(t, n) = body_until(t, "endfilter");
}

static void parse_with(jtokens *t, jnode *n) {
    n->kind = N_WITH;
    while (now(t)->kind != T_BLOCK_END) {
        if (n->args.n) jinja_expect(t, OP(','), "a comma or %}");
        jinja_push(t, &n->args, jinja_parse_target(t, false));
        jinja_expect(t, OP('='), "=");
        jinja_push(t, &n->args, jinja_parse_expression(t, true));
    }
    block_end(t);
    *new_branch(t, n) = body_until(t, "endwith");
}

static void parse_generation(jtokens *t, jnode *n) {
    n->kind = N_GENERATION;
    block_end(t);
    function_body(t, n, "endgeneration");
}

static void parse_jump(jtokens *t, jnode *n, jkind kind) {
    n->kind = kind;
    if (!t->loops) jinja_stop(t->mem, "%s outside of a loop", kind == N_BREAK ? "break" : "continue");
    block_end(t);
}

static void parse_break(jtokens *t, jnode *n) { parse_jump(t, n, N_BREAK); }
static void parse_continue(jtokens *t, jnode *n) { parse_jump(t, n, N_CONTINUE); }

static const struct {
    const char *word;
    void (*parse)(jtokens *t, jnode *n);
} statements[] = {
    {"if", parse_if},
    {"for", parse_for},
    {"set", parse_set},
    {"macro", parse_macro},
    {"call", parse_call},
    {"filter", parse_filter},
    {"with", parse_with},
    {"break", parse_break},
    {"continue", parse_continue},
    {"generation", parse_generation},
};

static jnode *statement(jtokens *t) {
    jnode *n = jinja_node(t, N_TEXT);
    const jtoken *word = jinja_expect(t, T_NAME, "the name of a statement");
    for (size_t i = 0; i < sizeof statements / sizeof *statements; i++)
        if (jinja_is_word(word, statements[i].word)) return statements[i].parse(t, n), n;
    jinja_stop(t->mem, "unknown statement '%.60s'", word->value.u.s->p);
}

static bool at_end(const jtokens *t, const char *const *ends) {
    for (int i = 0; ends && ends[i]; i++)
        if (jinja_is_word(&t->at[t->i + 1], ends[i])) return true;
    return false;
}

jnodes jinja_parse_block(jtokens *t, const char *const *ends) {
    jnodes body = {0};
    jinja_pos begin = now(t)->pos;
    if (++t->depth > 200) jinja_stop(t->mem, "blocks are nested deeper than 200");
    for (;;) {
        const jtoken *k = now(t);
        jnode *n;
        t->mem->pos = k->pos;
        if (k->kind == T_END) {
            if (!ends) break;
            t->mem->pos = begin;
            jinja_stop(t->mem, "block is not closed: expected {%% %s %%}", ends[0]);
        }
        if (k->kind == T_TEXT) {
            n = jinja_node(t, N_TEXT);
            n->value = k->value;
            t->i++;
        } else if (k->kind == T_VAR_BEGIN) {
            n = jinja_node(t, N_OUTPUT);
            t->i++;
            n->a = jinja_parse_tuple(t, true, false);
            jinja_expect(t, T_VAR_END, "}}");
        } else {
            if (at_end(t, ends)) break;
            t->i++;
            n = statement(t);
        }
        jinja_push(t, &body, n);
    }
    if (ends) t->i++; /* {% */
    t->depth--;
    return body;
}

/* False after an error, which jumps back to here. */
static bool compile(jinja *j, const char *text, size_t n) {
    if (setjmp(j->mem.stop)) return false;
    if (n > (size_t)1 << 20) jinja_stop(&j->mem, "template of %zu bytes, expected at most 1 MiB", n);
    jtokens t = {.mem = &j->mem};
    jinja_lex(&t, text, n);
    j->body = jinja_parse_block(&t, NULL);
    return true;
}

jinja *jinja_compile(const char *where, const char *text, size_t n) {
    jinja *j = xcalloc(1, sizeof *j);
    j->where = xstrdup(where);
    j->mem.where = j->where;
    j->mem.pos = (jinja_pos){1, 1};
    j->mem.limit = (size_t)256 << 20;
    if (compile(j, text, n)) return j;
    jinja_free(j);
    return NULL;
}

void jinja_free(jinja *j) {
    if (!j) return;
    jinja_mem_free(&j->mem);
    free(j->where);
    free(j);
}
