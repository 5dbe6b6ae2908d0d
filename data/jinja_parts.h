/* What the files of the Jinja interpreter share. Memory: all that a compile or a render makes lies in its own chunks
 * (jinja_mem) and goes with it, so an error may leave through longjmp from any depth. Lists and dicts never change once
 * made (the sandbox refuses append, update, ...), so values share them; only namespaces and loops have state. */
#ifndef PEFT_DATA_JINJA_PARTS_H
#define PEFT_DATA_JINJA_PARTS_H

#include "data/jinja.h"
#include <setjmp.h>
#include <stdbool.h>

typedef struct {
    int line, col;
} jinja_pos;
typedef struct jinja_chunk jinja_chunk;
typedef struct {
    jinja_chunk *chunks;
    char *at;
    size_t left, used, limit;
    jmp_buf stop;
    const char *where;
    jinja_pos pos; /* of what is being done, for messages */
} jinja_mem;

void *jinja_alloc(jinja_mem *m, size_t n); /* zeroed, 16-byte aligned; beyond the limit: jinja_stop */
void jinja_mem_free(jinja_mem *m);
_Noreturn void jinja_stop(jinja_mem *m, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* values */
typedef enum {
    J_ABSENT, /* an argument that was not given */
    J_UNDEFINED,
    J_NONE,
    J_BOOL,
    J_INT,
    J_FLOAT,
    J_STRING,
    J_LIST,
    J_DICT,
    J_NAMESPACE,
    J_MACRO,
    J_METHOD,
    J_FUNCTION,
    J_LOOP,
    J_JOINER,
    J_CYCLER
} jtype;
typedef enum { SEQ_LIST, SEQ_TUPLE, SEQ_RANGE, SEQ_KEYS, SEQ_VALUES, SEQ_ITEMS, SEQ_ITERATOR } jseq;

typedef struct {
    const char *p;
    int64_t n, chars; /* bytes, code points */
    bool safe;        /* went through |safe: adding to it escapes in Jinja */
} jstr;
typedef struct jlist jlist;
typedef struct jdict jdict;
typedef struct jmacro jmacro;
typedef struct jmethod jmethod;
typedef struct jloop jloop;
typedef struct jcycle jcycle;
typedef struct jbuiltin jbuiltin;
typedef struct {
    jtype type;
    union {
        bool b;
        int64_t i;
        double f;
        const jstr *s; /* of an undefined: its name */
        jlist *l;
        jdict *d;
        jmacro *macro;
        jmethod *method;
        jloop *loop;
        jcycle *cycle;
        const jbuiltin *fn;
    } u;
} jval;
struct jlist {
    jval *at;
    int64_t n;
    jseq kind;
    bool spent; /* an iterator that was read */
};
struct jdict {
    struct {
        jval key, value;
    } * at;
    int64_t n, room;
};
struct jcycle {
    jval *at; /* joiner: the separator */
    int64_t n, i;
};

/* the tree */
typedef enum {
    N_CONST,
    N_NAME,
    N_LIST,
    N_TUPLE,
    N_DICT,   /* args: key, value, key, value ... */
    N_UNARY,  /* op */
    N_BINARY, /* op */
    N_AND,
    N_OR,
    N_NOT,
    N_COMPARE, /* a, then args: N_OPERAND (op, a) */
    N_OPERAND,
    N_COND,    /* a if b else c (c may be NULL) */
    N_CONCAT,  /* args */
    N_ATTR,    /* a . value */
    N_ITEM,    /* a [ b ] */
    N_SLICE,   /* a : b : c, each may be NULL */
    N_CALL,    /* a (args) */
    N_KEYWORD, /* value = a, last in args */
    N_FILTER,  /* a | fn(args); a NULL: of a block's text */
    N_TEST,    /* a is fn(args) */
    N_NSREF,   /* target: value . name */
    N_TEXT,
    N_OUTPUT,
    N_IF,        /* args: conditions, branches: their bodies; one more branch is else */
    N_FOR,       /* a in b if c: branches[0], else branches[1] */
    N_SET,       /* a = b */
    N_SETBLOCK,  /* a, filter b */
    N_MACRO,     /* value: name, args: N_PARAM */
    N_PARAM,     /* value: name, a: default or NULL */
    N_CALLBLOCK, /* a: call, b: the caller as N_MACRO */
    N_FILTERBLOCK,
    N_WITH, /* args: target, value ... */
    N_GENERATION,
    N_BREAK,
    N_CONTINUE
} jkind;
typedef struct jnode jnode;
typedef struct {
    jnode **at;
    int n;
} jnodes;
struct jnode {
    jkind kind;
    int op;
    jinja_pos pos;
    jval value;
    const jstr *name;
    const jbuiltin *fn;
    jnode *a, *b, *c;
    jnodes args, *branches;
    int n_branches;
};
struct jinja {
    jinja_mem mem;
    char *where;
    jnodes body;
};

/* tokens; an operator's kind is its characters as a number: OP('='), OP2('=', '=') */
#define OP(c) (c)
#define OP2(a, b) ((a) << 8 | (b))
typedef enum {
    T_END = 1 << 16,
    T_TEXT,
    T_BLOCK_BEGIN,
    T_BLOCK_END,
    T_VAR_BEGIN,
    T_VAR_END,
    T_NAME,
    T_STRING,
    T_INT,
    T_FLOAT
} jtoken_kind;
/* comparisons that are words */
#define OP_IN OP2('i', 'n')
#define OP_NOT_IN OP2('n', 'i')
typedef struct {
    int kind;
    jinja_pos pos;
    jval value; /* text, name, string, number */
} jtoken;
typedef struct {
    jinja_mem *mem;
    jtoken *at;
    int n, room, i; /* i: the parser's place */
    int depth, loops;
} jtokens;
void jinja_lex(jtokens *t, const char *text, size_t n);

/* parser: jinja_parse.c expressions, jinja_stmt.c statements */
jnode *jinja_node(jtokens *t, jkind kind);
void jinja_push(jtokens *t, jnodes *list, jnode *x);
bool jinja_is_word(const jtoken *t, const char *word);
bool jinja_skip(jtokens *t, int kind);
bool jinja_skip_word(jtokens *t, const char *word);
const jtoken *jinja_expect(jtokens *t, int kind, const char *what);
_Noreturn void jinja_unexpected(jtokens *t, const char *wanted);
jnode *jinja_parse_expression(jtokens *t, bool with_condition);
jnode *jinja_parse_tuple(jtokens *t, bool with_condition, bool parentheses);
jnode *jinja_parse_target(jtokens *t, bool with_tuple);
jnode *jinja_parse_filters(jtokens *t, jnode *of, bool started); /* started: the first name stands without a bar */
jnode *jinja_parse_postfix(jtokens *t, jnode *x);
jnode *jinja_parse_primary(jtokens *t);
jnodes jinja_parse_block(jtokens *t, const char *const *ends); /* stops at the word after {%, which is not consumed */

/* a render */
typedef struct jbinding {
    const jstr *name;
    jval value;
    struct jbinding *next;
} jbinding;
typedef struct jscope {
    struct jscope *up;
    jbinding *vars;
} jscope;
typedef struct {
    char *p;
    size_t n, room;
} jout;
typedef struct {
    jinja_mem mem;
    jinja_limits limits;
    int64_t steps;
    double deadline;
    int depth, calls;
    jscope *scope;
    jout *out, main;
    jinja_span *spans;
    int n_spans, room_spans;
    bool open_generation;
} jrun;
struct jmacro {
    const jnode *node;
    jscope *scope;
};
struct jmethod {
    jval self;
    const jbuiltin *fn;
};
struct jloop { /* lazy as Jinja's: a filter runs just before its item is needed */
    jlist *items;
    int64_t at, index0, length; /* length -1: not known yet */
    const jnode *node;          /* with a filter; NULL without */
    jscope *scope;
    jval previous, current, after, changed; /* after: read ahead */
};
#define JINJA_DEPTH 1000 /* nested evaluations of any kind; the C stack's bound */

typedef struct {
    jval *at;
    int n;
    const jstr **names; /* of the keywords, which follow the positional ones */
    int n_names;
} jargs;
typedef jval jfunction(jrun *r, jval self, const jval *arg, const jargs *all);
struct jbuiltin {
    const char *name, *params; /* names in order, "*": takes `all` as it is */
    int required;
    jfunction *fn; /* NULL: exists in Python, refused here */
};
#define JINJA_PARAMS 5
extern const jbuiltin jinja_filters[], jinja_tests[], jinja_functions[]; /* end with a NULL name */
extern const jbuiltin jinja_string_methods[], jinja_list_methods[], jinja_dict_methods[], jinja_loop_methods[],
    jinja_cycle_methods[];
const jbuiltin *jinja_builtin(const jbuiltin *table, const jstr *name);
jval jinja_call_builtin(jrun *r, const jbuiltin *b, jval self, const jargs *args);
jval jinja_call_value(jrun *r, jval f, const jargs *args);

/* jinja_value.c */
void jinja_step(jrun *r, int64_t work); /* counts work; every limit but memory is checked here */
void jinja_enter(jrun *r);              /* one level deeper; leave by jinja_leave */
void jinja_leave(jrun *r);
jstr *jinja_str_new(jinja_mem *m, const char *p, int64_t n, bool copy);
jval jinja_str(jrun *r, const char *p, int64_t n); /* copies */
jval jinja_text_of(jrun *r, const char *s);        /* a C string, not copied */
jval jinja_take(jrun *r, jout *o);                 /* the buffer as a string */
void jinja_put(jrun *r, jout *o, const char *p, int64_t n);
void jinja_puts(jrun *r, jout *o, const char *s);
jval jinja_list(jrun *r, int64_t room, jseq kind); /* room slots, n = 0 */
void jinja_add(jval list, jval x);                 /* there must be room */
jval jinja_dict(jrun *r, jtype type);
void jinja_dict_set(jrun *r, jdict *d, jval key, jval value);
bool jinja_dict_find(jrun *r, const jdict *d, jval key, jval *out);
jval jinja_from_json(jrun *r, const json_t *j);
bool jinja_same(const jstr *s, const char *word);
bool jinja_true(jval v);
bool jinja_equal(jrun *r, jval a, jval b);
bool jinja_less(jrun *r, jval a, jval b);
bool jinja_contains(jrun *r, jval list, jval x);
jlist *jinja_iterate(jrun *r, jval v); /* the items; an iterator is spent */
int64_t jinja_length(jrun *r, jval v);
const char *jinja_type_name(jval v);
static inline jval j_bool(bool b) { return (jval){J_BOOL, {.b = b}}; }
static inline jval j_int(int64_t i) { return (jval){J_INT, {.i = i}}; }
static inline jval j_float(double f) { return (jval){J_FLOAT, {.f = f}}; }
static inline jval j_none(void) { return (jval){.type = J_NONE}; }
static inline jval j_undefined(const jstr *name) { return (jval){J_UNDEFINED, {.s = name}}; }
static inline bool j_is_number(jval v) { return v.type == J_BOOL || v.type == J_INT || v.type == J_FLOAT; }
static inline bool j_is_int(jval v) { return v.type == J_BOOL || v.type == J_INT; }
static inline int64_t j_integer(jval v) { return v.type == J_BOOL ? v.u.b : v.u.i; }
static inline double j_real(jval v) { return v.type == J_FLOAT ? v.u.f : (double)j_integer(v); }

/* jinja_print.c: as Python writes values */
void jinja_print(jrun *r, jout *o, jval v); /* str() */
void jinja_repr(jrun *r, jout *o, jval v);
jval jinja_to_str(jrun *r, jval v);
jval jinja_to_json(jrun *r, jval v, const jval *arg);

/* jinja_ops.c */
jval jinja_binary(jrun *r, int op, jval a, jval b);
jval jinja_unary(jrun *r, int op, jval a);
bool jinja_compare(jrun *r, int op, jval a, jval b);
jval jinja_attribute(jrun *r, jval v, const jstr *name);
jval jinja_item(jrun *r, jval v, jval key);
jval jinja_slice(jrun *r, jval v, const jval *bounds); /* begin, end, step; J_NONE: open */

/* jinja_eval.c */
jval jinja_eval(jrun *r, const jnode *n);
bool jinja_loop_next(jrun *r, jloop *l, jval *out);
jval jinja_loop_attribute(jrun *r, jloop *l, const jstr *name);
void jinja_bind(jrun *r, const jstr *name, jval v);
void jinja_assign(jrun *r, const jnode *target, jval v);
jval jinja_render_macro(jrun *r, const jmacro *m, const jargs *args);
jargs jinja_eval_args(jrun *r, const jnodes *args);
void jinja_run_body(jrun *r, const jnodes *body);

/* jinja_string.c */
bool jinja_is_space(int32_t c); /* Python's str.isspace */
int64_t jinja_strip_left(const char *p, int64_t n);
int64_t jinja_strip_right(const char *p, int64_t n);     /* the new length */
int64_t jinja_offset(const jstr *s, int64_t chars);      /* bytes of the first `chars` code points */
jval jinja_case(jrun *r, jval s, int mode);              /* 'u'pper 'l'ower 'c'apitalize 't'itle */
jval jinja_trim(jrun *r, jval s, jval chars, int sides); /* 1 left, 2 right */
jval jinja_replace(jrun *r, jval s, jval from, jval to, int64_t count);
jval jinja_join(jrun *r, jval separator, jlist *items);
jval jinja_split_lines(jrun *r, jval s, bool keep);

#endif
