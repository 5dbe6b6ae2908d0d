/* Operators, attributes, subscripts and slices of the Jinja interpreter, as Python's; integers are 64 bits and
 * overflow is an error. */
#include "data/jinja_parts.h"

#include <math.h>
#include <string.h>

static _Noreturn void no_operator(jrun *r, int op, jval a, jval b) {
    char text[3] = {(char)(op > 255 ? op >> 8 : op), (char)(op > 255 ? op : 0), 0};
    const jval *undefined = a.type == J_UNDEFINED ? &a : b.type == J_UNDEFINED ? &b : NULL;
    if (undefined && undefined->u.s)
        jinja_stop(&r->mem, "'%.60s' is undefined, and %s needs a value", undefined->u.s->p, text);
    jinja_stop(&r->mem, "cannot compute %s %s %s", jinja_type_name(a), text, jinja_type_name(b));
}

static _Noreturn void too_big(jrun *r) { jinja_stop(&r->mem, "integer does not fit 64 bits"); }

static jval add_strings(jrun *r, const jstr *a, const jstr *b) {
    if (a->safe != b->safe && strpbrk(a->safe ? b->p : a->p, "&<>\"'"))
        jinja_stop(&r->mem, "adding text to the result of |safe would escape it: put |safe last");
    char *p = jinja_alloc(&r->mem, (size_t)(a->n + b->n) + 1);
    memcpy(p, a->p, (size_t)a->n);
    memcpy(p + a->n, b->p, (size_t)b->n);
    jinja_step(r, (a->n + b->n) >> 10);
    jstr *s = jinja_str_new(&r->mem, p, a->n + b->n, false);
    s->safe = a->safe || b->safe;
    return (jval){J_STRING, {.s = s}};
}

static jval add_lists(jrun *r, const jlist *a, const jlist *b) {
    jval l = jinja_list(r, a->n + b->n, a->kind);
    for (int64_t i = 0; i < a->n; i++) jinja_add(l, a->at[i]);
    for (int64_t i = 0; i < b->n; i++) jinja_add(l, b->at[i]);
    return l;
}

static jval repeat(jrun *r, jval v, int64_t times) {
    int64_t n = v.type == J_STRING ? v.u.s->n : v.u.l->n, total;
    if (times < 0) times = 0;
    if (__builtin_mul_overflow(n, times, &total) || total > (int64_t)r->mem.limit)
        jinja_stop(&r->mem, "needs more than %zu MiB of memory", r->mem.limit >> 20);
    if (v.type == J_LIST) {
        jval l = jinja_list(r, total, v.u.l->kind);
        for (int64_t i = 0; i < total; i++) jinja_add(l, v.u.l->at[i % n]);
        return l;
    }
    char *p = jinja_alloc(&r->mem, (size_t)total + 1);
    for (int64_t i = 0; n && i < times; i++) memcpy(p + i * n, v.u.s->p, (size_t)n);
    jinja_step(r, total >> 10);
    return (jval){J_STRING, {.s = jinja_str_new(&r->mem, p, total, false)}};
}

static jval power(jrun *r, int64_t a, int64_t b) {
    if (b < 0) {
        if (!a) jinja_stop(&r->mem, "0 to a negative power");
        return j_float(pow((double)a, (double)b));
    }
    int64_t y = 1;
    for (int64_t i = 0; i < b && a != 0 && a != 1 && a != -1; i++)
        if (__builtin_mul_overflow(y, a, &y)) too_big(r);
    if (b && a == 0) y = 0;
    if (a == -1 && b & 1) y = -1;
    return j_int(y);
}

static jval integers(jrun *r, int op, int64_t a, int64_t b) {
    int64_t y = 0;
    bool overflow = false;
    if ((op == OP('/') || op == OP2('/', '/') || op == OP('%')) && !b) jinja_stop(&r->mem, "division by zero");
    switch (op) {
    case OP('+'): overflow = __builtin_add_overflow(a, b, &y); break;
    case OP('-'): overflow = __builtin_sub_overflow(a, b, &y); break;
    case OP('*'): overflow = __builtin_mul_overflow(a, b, &y); break;
    case OP('/'): return j_float((double)a / (double)b);
    case OP2('*', '*'): return power(r, a, b);
    case OP2('/', '/'):
        overflow = a == INT64_MIN && b == -1;
        if (!overflow) y = a / b - (a % b != 0 && (a % b < 0) != (b < 0));
        break;
    default: /* % has the sign of its right side */
        if (b != -1) y = a % b;
        if (y && (y < 0) != (b < 0)) y += b;
        break;
    }
    if (overflow) too_big(r);
    return j_int(y);
}

static jval reals(jrun *r, int op, double a, double b) {
    if ((op == OP('/') || op == OP2('/', '/') || op == OP('%')) && b == 0) jinja_stop(&r->mem, "division by zero");
    double m;
    switch (op) {
    case OP('+'): return j_float(a + b);
    case OP('-'): return j_float(a - b);
    case OP('*'): return j_float(a * b);
    case OP('/'): return j_float(a / b);
    case OP2('*', '*'):
        m = pow(a, b);
        if (!isfinite(m) || (a == 0 && b < 0)) jinja_stop(&r->mem, "power is out of range");
        return j_float(m);
    default: break;
    }
    m = fmod(a, b);
    if (m != 0 && (m < 0) != (b < 0)) m += b;
    if (m == 0) m = copysign(0, b);
    if (op == OP('%')) return j_float(m);
    double q = (a - fmod(a, b)) / b, whole; /* CPython's float_floor_div */
    if (fmod(a, b) != 0 && (b < 0) != (fmod(a, b) < 0)) q -= 1;
    if (q == 0) return j_float(copysign(0, a / b));
    whole = floor(q);
    return j_float(q - whole > 0.5 ? whole + 1 : whole);
}

jval jinja_binary(jrun *r, int op, jval a, jval b) {
    if (j_is_int(a) && j_is_int(b)) return integers(r, op, j_integer(a), j_integer(b));
    if (j_is_number(a) && j_is_number(b)) return reals(r, op, j_real(a), j_real(b));
    if (op == OP('+') && a.type == J_STRING && b.type == J_STRING) return add_strings(r, a.u.s, b.u.s);
    bool lists = a.type == J_LIST && b.type == J_LIST && a.u.l->kind == b.u.l->kind && a.u.l->kind <= SEQ_TUPLE;
    if (op == OP('+') && lists) return add_lists(r, a.u.l, b.u.l);
    if (op == OP('*') && j_is_int(a)) {
        jval swap = a;
        a = b;
        b = swap;
    }
    bool sequence = a.type == J_STRING || (a.type == J_LIST && a.u.l->kind <= SEQ_TUPLE);
    if (op == OP('*') && sequence && j_is_int(b)) return repeat(r, a, j_integer(b));
    if (op == OP('%') && a.type == J_STRING) jinja_stop(&r->mem, "formatting with %% is not supported: use ~");
    no_operator(r, op, a, b);
}

jval jinja_unary(jrun *r, int op, jval a) {
    if (a.type == J_FLOAT) return j_float(op == OP('-') ? -a.u.f : a.u.f);
    if (!j_is_int(a)) jinja_stop(&r->mem, "%s has no sign", jinja_type_name(a));
    return op == OP('-') ? integers(r, op, 0, j_integer(a)) : j_int(j_integer(a));
}

bool jinja_compare(jrun *r, int op, jval a, jval b) {
    switch (op) {
    case OP2('=', '='): return jinja_equal(r, a, b);
    case OP2('!', '='): return !jinja_equal(r, a, b);
    case OP('<'): return jinja_less(r, a, b);
    case OP('>'): return jinja_less(r, b, a);
    case OP2('<', '='): return jinja_less(r, a, b) || (jinja_equal(r, a, b));
    case OP2('>', '='): return jinja_less(r, b, a) || (jinja_equal(r, a, b));
    case OP_IN: return jinja_contains(r, b, a);
    default: return !jinja_contains(r, b, a);
    }
}

static const jbuiltin *method_of(jval v, const jstr *name) {
    switch (v.type) {
    case J_STRING: return jinja_builtin(jinja_string_methods, name);
    case J_LIST: return v.u.l->kind <= SEQ_TUPLE ? jinja_builtin(jinja_list_methods, name) : NULL;
    case J_DICT: return jinja_builtin(jinja_dict_methods, name);
    case J_LOOP: return jinja_builtin(jinja_loop_methods, name);
    case J_CYCLER: return jinja_builtin(jinja_cycle_methods, name);
    default: return NULL;
    }
}

static bool find_method(jrun *r, jval v, const jstr *name, jval *out) {
    const jbuiltin *fn = method_of(v, name);
    if (!fn) return false;
    jmethod *m = jinja_alloc(&r->mem, sizeof *m);
    *m = (jmethod){v, fn};
    *out = (jval){J_METHOD, {.method = m}};
    return true;
}

static _Noreturn void of_undefined(jrun *r, jval v, const jstr *name) {
    jinja_stop(&r->mem, "'%.60s' is undefined and has no '%.60s'", v.u.s ? v.u.s->p : "value", name ? name->p : "item");
}

/* v.name: a method, then a member; nothing else exists, so __class__ and its like are undefined. */
jval jinja_attribute(jrun *r, jval v, const jstr *name) {
    jval out;
    if (v.type == J_UNDEFINED) of_undefined(r, v, name);
    if (find_method(r, v, name, &out)) return out;
    jval key = {J_STRING, {.s = name}};
    if ((v.type == J_DICT || v.type == J_NAMESPACE) && jinja_dict_find(r, v.u.d, key, &out)) return out;
    if (v.type == J_LOOP) return jinja_loop_attribute(r, v.u.loop, name);
    if (v.type == J_CYCLER && jinja_same(name, "current")) return v.u.cycle->at[v.u.cycle->i];
    if (v.type == J_MACRO && jinja_same(name, "name")) return (jval){J_STRING, {.s = v.u.macro->node->name}};
    return j_undefined(name);
}

static jval item_at(jrun *r, jval v, int64_t i) {
    int64_t n = jinja_length(r, v);
    if (i < 0) i += n;
    if (i < 0 || i >= n) return j_undefined(NULL);
    if (v.type == J_LIST) return v.u.l->at[i];
    int64_t begin = jinja_offset(v.u.s, i), end = begin + 1;
    while (end < v.u.s->n && (v.u.s->p[end] & 0xc0) == 0x80) end++;
    return (jval){J_STRING, {.s = jinja_str_new(&r->mem, v.u.s->p + begin, end - begin, false)}};
}

jval jinja_item(jrun *r, jval v, jval key) {
    jval out;
    const jstr *name = key.type == J_STRING ? key.u.s : NULL;
    if (v.type == J_UNDEFINED) of_undefined(r, v, name);
    bool hashable = key.type != J_DICT && (key.type != J_LIST || key.u.l->kind == SEQ_TUPLE);
    if (v.type == J_DICT && hashable && jinja_dict_find(r, v.u.d, key, &out)) return out;
    if (j_is_int(key) && (v.type == J_STRING || (v.type == J_LIST && v.u.l->kind <= SEQ_RANGE)))
        return item_at(r, v, j_integer(key));
    return name && v.type != J_DICT                ? jinja_attribute(r, v, name)
           : name && find_method(r, v, name, &out) ? out
                                                   : j_undefined(name);
}

static int64_t slice_bound(jrun *r, jval v, int64_t open, int64_t n, bool down) {
    if (v.type == J_NONE) return open;
    if (!j_is_int(v)) jinja_stop(&r->mem, "slice bound is %s, expected an integer", jinja_type_name(v));
    int64_t i = j_integer(v);
    if (i < 0) i = i < -n ? -1 : i + n;
    if (i < 0) return down ? -1 : 0;
    return i >= n ? n - down : i;
}

jval jinja_slice(jrun *r, jval v, const jval *bounds) {
    if (v.type == J_UNDEFINED) of_undefined(r, v, NULL);
    if (v.type != J_STRING && (v.type != J_LIST || v.u.l->kind > SEQ_RANGE))
        jinja_stop(&r->mem, "cannot slice %s", jinja_type_name(v));
    if (bounds[2].type != J_NONE && !j_is_int(bounds[2]))
        jinja_stop(&r->mem, "slice step is %s, expected an integer", jinja_type_name(bounds[2]));
    int64_t step = bounds[2].type == J_NONE ? 1 : j_integer(bounds[2]), n = jinja_length(r, v);
    if (!step) jinja_stop(&r->mem, "slice step is 0");
    if (step > n + 1) step = n + 1; /* the same items, and no overflow */
    if (step < -n - 1) step = -n - 1;
    bool down = step < 0;
    int64_t begin = slice_bound(r, bounds[0], down ? n - 1 : 0, n, down);
    int64_t end = slice_bound(r, bounds[1], down ? -1 : n, n, down);
    if (v.type == J_STRING && step == 1) {
        int64_t from = jinja_offset(v.u.s, begin), to = end > begin ? jinja_offset(v.u.s, end) : from;
        return jinja_str(r, v.u.s->p + from, to - from);
    }
    jlist *all = jinja_iterate(r, v);
    jval l = jinja_list(r, n, all->kind);
    for (int64_t i = begin; down ? i > end : i < end; i += step) jinja_add(l, all->at[i]);
    return v.type == J_STRING ? jinja_join(r, jinja_text_of(r, ""), l.u.l) : l;
}
