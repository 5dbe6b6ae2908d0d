/* The Jinja interpreter against Python's jinja2 in transformers' environment (golden/jinja_cases.json, made by
 * golden/make_jinja.py), and against templates that mean harm. */
#include "core/error.h"
#include "core/json.h"
#include "data/jinja.h"

#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static int render(const char *template, size_t n, const json_t *context, const jinja_limits *limits, jinja_text *out) {
    fail_clear();
    *out = (jinja_text){0};
    jinja *j = jinja_compile("t", template, n);
    int rc = j ? jinja_render(j, context, limits, out) : -1;
    jinja_free(j);
    return rc;
}

static const json_t *shared(const json_t *golden, const json_t *made, const char *key) {
    return json_array_get(json_object_get(golden, "shared"), (size_t)json_integer_value(json_object_get(made, key)));
}

static void compare_spans(const jinja_text *t, const json_t *spans) {
    assert_int_equal(t->n_spans, json_array_size(spans));
    for (int i = 0; i < t->n_spans; i++) {
        const json_t *s = json_array_get(spans, (size_t)i);
        assert_int_equal(t->spans[i].begin, json_integer_value(json_array_get(s, 0)));
        assert_int_equal(t->spans[i].end, json_integer_value(json_array_get(s, 1)));
    }
}

static void golden_cases(void **state) {
    (void)state;
    setenv("TZ", "UTC", 1);
    json_t *golden = json_read("tests/golden/jinja_cases.json"), *cases = json_object_get(golden, "cases");
    jinja_limits limits = JINJA_LIMITS;
    limits.now = (time_t)json_integer_value(json_object_get(golden, "now"));
    assert_in_range(json_array_size(cases), 800, 5000);
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const json_t *made = json_array_get(cases, i), *wanted = json_object_get(made, "out");
        const char *text = json_string_value(shared(golden, made, "t"));
        jinja_text out;
        int rc = render(text, strlen(text), shared(golden, made, "c"), &limits, &out);
        if (json_is_null(wanted) != (rc != 0))
            fail_msg("%s: %s", text, rc ? fail_text() : "rendered, and jinja2 refuses");
        if (rc) {
            assert_int_equal(fail_code(), EXIT_INPUT);
            assert_memory_equal(fail_text(), "t:", 2); /* and line and column */
            continue;
        }
        if (strcmp(out.text, json_string_value(wanted)))
            fail_msg("%s\nrendered: %s\nexpected: %s", text, out.text, json_string_value(wanted));
        compare_spans(&out, json_object_get(made, "spans"));
        jinja_text_free(&out);
    }
    json_decref(golden);
}

/* What is refused, with the message's beginning: place and cause. */
static const struct {
    const char *template, *error;
} hostile[] = {
    {"{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "t:1:31: does more than"},
    {"{% for i in range(200) %}{{ 'x' * 100000 }}{% endfor %}", "t:1:26: writes more than 16777216"},
    {"{{ 'x' * 1000000000 }}", "t:1:8: needs more than"},
    {"{{ [[1] * 1000000] * 1000000000 }}", "t:1:"},
    {"{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}", "t:1:"},
    {"{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", "t:1:21: macros call each other deeper than 64"},
    {"{% set ns = namespace(x=[]) %}{% for i in range(5000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
     "t:1:92: nested deeper"},
    {"{% set ns = namespace(x=[]) %}{% for i in range(5000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x|tojson }}",
     "t:1:"},
    {"{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}", "t:1:46: nested deeper"},
    {"{{ range.__globals__.os }}", "t:1:21: '__globals__' is undefined"},
    {"{{ ''.__class__.__mro__[1].__subclasses__() }}", "t:1:16: '__class__' is undefined"},
    {"{{ raise_exception.__globals__['os'].system('x') }}", "t:1:31: '__globals__' is undefined"},
    {"{{ lipsum.__globals__ }}", "t:1:10: 'lipsum' is undefined"},
    {"{{ messages | attr('x') }}", "t:1:15: unknown filter 'attr'"},
    {"{{ 'x'.format(1) }}", "t:1:14: method 'format' is refused"},
    {"{{ [].append(1) }}", "t:1:13: method 'append' is refused"},
    {"{{ '%d' % 1 }}", "t:1:9: formatting with %"},
    {"{% include 'x' %}", "t:1:4: unknown statement 'include'"},
    {"{% for x in [] recursive %}{% endfor %}", "t:1:16: found 'recursive'"},
    {"{{ x.\n\n nope() }}", "t:1:5: 'x' is undefined"},
    {"\n{{ 9223372036854775807 + 1 }}", "t:2:24: integer does not fit"},
    {"{{ 99999999999999999999 }}", "t:1:4: integer"},
    {"{{ ('<' | safe) + '<' }}", "t:1:17: adding text to the result of |safe"},
    {"{{ '\\ud800' }}", "t:1:4: escape in a string is no Unicode"},
    {"{{ 'abc", "t:1:4: string is not closed"},
    {"{% if x", "t:1:1: tag is not closed"},
    {"a\n{% if x %}b", "t:2:11: block is not closed: expected {% elif"},
    {"{# x", "t:1:1: comment is not closed"},
    {"{% macro f() %}{% generation %}x{% endgeneration %}{% endmacro %}{{ f() }}", "t:1:19: generation block inside"},
    {"{{ strftime_now('%Y' * 1000) }}", "t:1:16: date is longer"},
    {"ab\xff{{ x }}", "t:1:3: byte 0xff is no UTF-8"},
    {"\xc0\x80", "t:1:1: byte 0xc0 is no UTF-8"},
    {"{{ x", "t:1:1: tag is not closed"},
};

static void hostile_templates(void **state) {
    (void)state;
    json_t *context = json_object();
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++) {
        jinja_text out;
        assert_int_equal(render(hostile[i].template, strlen(hostile[i].template), context, NULL, &out), -1);
        if (strncmp(fail_text(), hostile[i].error, strlen(hostile[i].error)))
            fail_msg("%s\nsays:     %s\nexpected: %s", hostile[i].template, fail_text(), hostile[i].error);
        assert_int_equal(fail_code(), EXIT_INPUT);
        assert_null(out.text);
    }
    json_decref(context);
}

/* n times `open`, then `close`: nesting of every kind ends in an error and not on the C stack. */
static void deep_nesting(void **state) {
    (void)state;
    static const char *const open[] = {"{{ (", "[", "-", "not ", "{% if 1 %}", "1 if 1 else ", "{{ x[", "{% for "};
    static const char *const before[] = {"", "{{ ", "{{ ", "{{ ", "", "{{ ", "", ""};
    for (size_t k = 0; k < sizeof open / sizeof *open; k++) {
        size_t each = strlen(open[k]), n = strlen(before[k]);
        char *text = malloc(n + 20000 * each);
        assert_non_null(text);
        memcpy(text, before[k], n);
        for (int i = 0; i < 20000; i++, n += each) memcpy(text + n, open[k], each);
        jinja_text out;
        assert_int_equal(render(text, n, NULL, NULL, &out), -1);
        free(text);
    }
    char *sum = malloc(40010); /* a long chain parses, and is too deep to evaluate */
    assert_non_null(sum);
    memcpy(sum, "{{ 1", 4);
    for (int i = 0; i < 10000; i++) memcpy(sum + 4 + 2 * i, "+1", 2);
    memcpy(sum + 20004, " }}", 4);
    json_t *context = json_object();
    jinja_text out;
    assert_int_equal(render(sum, 20007, context, NULL, &out), -1);
    assert_non_null(strstr(fail_text(), "nested deeper"));
    json_decref(context);
    free(sum);
}

/* Every prefix of a template, and every template with one byte replaced, ends in a text or an error. */
static void broken_templates(void **state) {
    (void)state;
    static const char text[] =
        "{%- set ns = namespace(a=[1, {'b': 2.5e3}], c='\\u00e9') -%}{# c #}{% macro f(x, y=1) %}{{ x[::-1] ~ y }}"
        "{% endmacro %}{% for m in ns.a if m is not string %}{{ loop.last|tojson }}{% else %}{{ f(m)|upper }}"
        "{% endfor %}{% raw %}{{{% endraw %}{% generation %}{{ f('ab') }}{% endgeneration %}";
    static const char bytes[] = "{}%#-+'\"\\|.[(:,x1 \n\xc3";
    json_t *context = json_object();
    jinja_text out;
    for (size_t n = 0; n < sizeof text; n++) {
        char *copy = malloc(n + 1); /* exact, so that a read past the end is seen */
        assert_non_null(copy);
        memcpy(copy, text, n);
        if (!render(copy, n, context, NULL, &out)) jinja_text_free(&out);
        for (size_t k = 0; n == sizeof text - 1 && k < n * (sizeof bytes - 1); k++) {
            char *at = &copy[k / (sizeof bytes - 1)], old = *at;
            *at = bytes[k % (sizeof bytes - 1)];
            if (!render(copy, n, context, NULL, &out)) jinja_text_free(&out);
            *at = old;
        }
        free(copy);
    }
    json_decref(context);
}

static void time_limit(void **state) {
    (void)state;
    static const char text[] = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    jinja_limits limits = JINJA_LIMITS;
    limits.steps = INT64_MAX;
    limits.memory = (size_t)1 << 40;
    limits.seconds = 0.05;
    json_t *context = json_object();
    jinja_text out;
    assert_int_equal(render(text, sizeof text - 1, context, &limits, &out), -1);
    assert_non_null(strstr(fail_text(), "takes longer than 0.05 seconds"));
    json_decref(context);
}

typedef struct {
    const jinja *j;
    const json_t *context;
    bool same;
} share;

static void *render_often(void *arg) {
    share *s = arg;
    for (int i = 0; i < 200; i++) {
        jinja_text out;
        if (jinja_render(s->j, s->context, NULL, &out)) return NULL;
        s->same &= !strcmp(out.text, "0:a|1:b|[a,b]");
        jinja_text_free(&out);
    }
    return s;
}

static void threads_share(void **state) {
    (void)state;
    static const char text[] =
        "{% set ns = namespace(i=0) %}{% for x in l %}{{ ns.i }}:{{ x }}|{% set ns.i = ns.i + 1 %}{% endfor %}"
        "{% macro f() %}[{{ l | join(',') }}]{% endmacro %}{{ f() }}";
    jinja *j = jinja_compile("t", text, sizeof text - 1);
    json_t *context = json_pack("{s:[s,s]}", "l", "a", "b");
    pthread_t threads[4];
    share shares[4];
    assert_non_null(j);
    for (int i = 0; i < 4; i++) {
        shares[i] = (share){j, context, true};
        assert_int_equal(pthread_create(&threads[i], NULL, render_often, &shares[i]), 0);
    }
    for (int i = 0; i < 4; i++) {
        void *done;
        assert_int_equal(pthread_join(threads[i], &done), 0);
        assert_non_null(done);
        assert_true(shares[i].same);
    }
    json_decref(context);
    jinja_free(j);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(golden_cases),     cmocka_unit_test(hostile_templates), cmocka_unit_test(deep_nesting),
        cmocka_unit_test(broken_templates), cmocka_unit_test(time_limit),        cmocka_unit_test(threads_share),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
