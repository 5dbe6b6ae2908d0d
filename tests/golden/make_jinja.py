"""Makes jinja_cases.json: templates rendered by Python's jinja2 in the environment that transformers builds for chat
templates (its own compile function is called). Each case: t (template), c (context), out (text, or null where jinja2
refuses) and spans of generation blocks in bytes. The time zone is UTC and the clock stands at 1700000000.

    python tests/golden/make_jinja.py > tests/golden/jinja_cases.json
"""
import datetime
import json
import os
import sys

os.environ["TZ"] = "UTC"
import transformers.utils.chat_template_utils as hf  # noqa: E402

NOW = 1700000000


class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.utcfromtimestamp(NOW)


hf.datetime = Clock


def render(template, context):
    """(text, spans) or None where jinja2 refuses."""
    try:
        compiled = hf._compile_jinja_template(template)
        blocks, spans = [], []
        with compiled.environment.activate_tracker(blocks, spans):
            for block in compiled.generate(**context):
                blocks.append(block)
        text = "".join(blocks)
        text.encode()
        return text, [[len(text[:a].encode()), len(text[:b].encode())] for a, b in spans]
    except Exception:
        return None


DATA = {
    "a": 7, "b": -3, "f": 2.5, "t": True, "n": None, "s": "Hello, World", "u": "Größe 日本 ñ", "e": "",
    "l": [3, 1, 2], "w": ["b", "A", "c"], "d": {"k": "v", "x": 1, "nested": {"y": [1, {"z": "deep"}]}},
    "m": [{"role": "user", "content": "hi", "n": 2}, {"role": "assistant", "content": "yo", "n": 1},
          {"role": "user", "content": "", "n": 3}],
    "q": "it's \"quoted\" \\ \n\t\u00e9\u200b\U0001f600",
}

EXPRESSIONS = r"""
1 + 2 * 3 - 4
2 ** 3 ** 2
-2 ** 2
7 // 2
-7 // 2
-7 % 3
7 % -3
7.5 // 2
-7.5 % 2
7 / 2
6 / 2
1e3
1.5e-7
1e16
123456789012345680.0
0.1 + 0.2
1_000
1e22
true + true
'a' * 3
3 * 'ab'
[1] * 3
'a' 'b' "c"
'tab\tnew\nq\'\"\\ \x41 \u00e9 \101 \q'
a + f
a ~ b ~ n ~ t ~ f
'x' ~ 1.0 ~ [1, 'a', none, true]
(1,)
()
(1, 2) + (3,)
[1, 2] + [3]
{'a': 1, 'b': [1, 2], 3: none}
{'a': 1, 'a': 2}
q
[q]
[u, "it's", 'say "x"']
a > b
1 < 2 < 3
1 < 3 < 2
1 == 1.0
1 == true
'a' == 'a'
[1, 2] == [1, 2]
(1, 2) == [1, 2]
{'a': 1} == {'a': 1.0}
'b' < 'c'
[1, 2] < [1, 3]
'o' in s
'zz' not in s
3 in l
'k' in d
'v' in d
not t
not n
t and a
n or 'x'
n and 'x'
0 or '' or 'last'
'a' if t else 'b'
'a' if n else 'b'
'a' if n
1 if n else 2 if t else 3
d.k
d['k']
d.nested.y[1].z
d.nested['y'][0]
d.missing
d.missing is defined
d.missing.more
missing
missing.more
missing ~ 'x'
missing + 'x'
[missing]
missing == missing2
missing | length
l[0]
l[-1]
l[5]
l.0
s[0]
s[-1]
s[1:4]
s[:-2]
s[::-1]
s[::2]
s[-3:]
s[10:2:-2]
u[1:4]
u[::-1]
u[-2]
l[::-1]
l[1:]
l[:-1]
l[-2:]
l[5:]
l[-10:2]
l[:-10:-1]
l[1:-10:-1]
s | upper
s | lower
u | upper
u | lower
'straße' | upper
'the quick-brown (fox) JUMPS' | title
"they're here".title()
'hELLO wORLD' | capitalize
'  x \n' | trim
'xxaxx' | trim('x')
s | replace('l', 'L')
s | replace('l', 'L', 1)
s | replace('', '-')
l | join(', ')
m | join('|', attribute='role')
w | sort | join
w | sort(case_sensitive=true) | join
w | sort(reverse=true) | list
m | sort(attribute='n') | map(attribute='content') | list
l | first
l | last
[] | first
'' | last
l | reverse | list
s | reverse
l | length
u | length
d | length
a | length
d | items | list
d.items() | list
d.keys()
d.values() | list
d.items()
d | dictsort
{'b': 1, 'A': 2, 'c': 0} | dictsort(by='value')
{'b': 1, 'A': 2, 'c': 0} | dictsort(true)
{'b': 1, 'A': 2} | dictsort(reverse=true)
m | map(attribute='role') | join(',')
m | map(attribute='missing', default='-') | join(',')
m | map(attribute='nested.x', default='-') | join(',')
w | map('upper') | join
w | map('replace', 'b', 'B') | list
m | selectattr('role', 'equalto', 'user') | list | length
m | selectattr('role', '==', 'user') | map(attribute='n') | list
m | rejectattr('role', 'equalto', 'user') | list
m | selectattr('content') | list | length
m | rejectattr('content') | list | length
m | selectattr('tool_calls', 'defined') | list
l | select('odd') | list
l | reject('odd') | list
[0, 1, '', 'a', none] | select | list
l | select('greaterthan', 1) | list
l | select('in', [1, 2]) | list
missing | default('x')
n | default('x')
n | default('x', true)
'' | d('y', boolean=true)
missing | d
a | string
[1, 'x'] | string
'42' | int
' 42 ' | int
'4_2' | int
'4.9' | int
'x' | int
'x' | int(-1)
'ff' | int(0, 16)
4.9 | int
-4.9 | int
none | int
true | int
'2.5' | float
'x' | float
'1e3' | float
3 | float
'a\nb\n\nc' | indent
'a\nb\n\nc' | indent(2, true)
'a\nb\n\nc' | indent(2, blank=true)
'a\nb' | indent('> ')
'a\nb\n' | indent(1)
'<b>' | safe
['b', 'a', 'B', 'b'] | unique | list
[1, 2, 1.0] | unique | list
2.567 | round(2)
2.5 | round
3.5 | round
-2.5 | round
2 | round
2.1 | round(0, 'ceil')
2.9 | round(method='floor')
2.675 | round(2)
-5 | abs
-2.5 | abs
l | min
l | max
w | max
[] | max
m | max(attribute='n')
l | sum
m | sum(attribute='n')
l | sum(start=10)
d | tojson
d | tojson(indent=2)
d | tojson(indent=4)
q | tojson
u | tojson
u | tojson(ensure_ascii=true)
q | tojson(ensure_ascii=true)
[1.0, 1e20, 0.1, true, none, -0.0] | tojson
{'b': 1, 'a': [], 'c': {}} | tojson(sort_keys=true, indent=1)
[1, [2, [3]]] | tojson(separators=(',', ':'))
[] | tojson(indent=2)
{1: 2, none: 3, true: 4, 1.5: 5} | tojson
(1, 2) | tojson
missing | tojson
range(3) | tojson
'<a&b>' | tojson
a is defined
missing is defined
missing is undefined
n is none
n is not none
s is string
d is mapping
l is mapping
l is sequence
s is sequence
d is sequence
missing is sequence
d.items() is sequence
l is iterable
s is iterable
a is iterable
missing is iterable
a is number
t is number
f is number
t is integer
a is integer
f is float
t is boolean
a is boolean
t is true
t is false
a is true
a is equalto 7
a is eq(7)
a is ne 7
a is gt 3
a is in l
3 is in l
a is odd
a is even
a is divisibleby 7
a is divisibleby(2)
'ABC' is upper
'abc' is lower
'x' is sameas 'y'
n is sameas none
namespace is callable
namespace() is mapping
not a is none
a is not number and t
s.strip()
'  x '.strip()
'  x '.lstrip() ~ '|'
'  x '.rstrip() ~ '|'
'xyxhixy'.strip('xy')
'xyxhixy'.lstrip('x')
'éxé'.strip('é')
s.split(', ')
s.split()
'  a  b '.split()
'a b c'.split(' ', 1)
' a b c '.split(none, 1)
'a,b,,c'.split(',')
'a<x>b<x>c'.split('<x>')[-1]
'a</think>b'.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n')
'a.b.c'.rsplit('.', 1)
'a\nb\r\nc\n'.splitlines()
s.startswith('Hell')
s.endswith('x')
s.startswith(('a', 'H'))
s.upper()
s.lower()
s.title()
s.capitalize()
s.replace('o', '0', 1)
s.find('o')
s.find('zz')
u.find('ñ')
s.rfind('o')
s.count('l')
', '.join(w)
''.join([1])
'prefix-x'.removeprefix('prefix-')
'x.py'.removesuffix('.py')
'12'.isdigit()
'a1'.isalpha()
' '.isspace()
'Ab'.isupper()
d.get('k')
d.get('zz')
d.get('zz', 'dflt')
d.update({'a': 1})
l.append(4)
l.index(2)
l.count(2)
''.__class__
''.__class__.__mro__
d.__class__.__name__
range(5) | list
range(2, 8, 3) | list
range(5, 0, -2) | list
range(3)[1]
range(1000000000) | list
dict(a=1, b='x')
dict([('a', 1)], b=2)
dict(d, x=5).x
namespace(a=1).a
namespace(_a=1)
joiner('|')()
raise_exception('no')
strftime_now('%d %b %Y')
strftime_now('%Y-%m-%d %H:%M:%S')
1 / 0
1 // 0
'a' + 1
1 + 'a'
l + 'a'
none + 1
l < 1
s.nope
s.nope()
nope()
l()
[1, 2, 3,]
{'a': 1,}
(a)
((1, 2), 3)
'%}' ~ '}}'
{'a': {'b': 1}}['a']['b']
[[1, 2], [3, 4]][1][0]
m[0].role ~ m[-1]['role']
m[0]['content'] | trim | length
loop is defined
messages is defined and messages | length > 0
-a | abs
(-a) | abs
1 in [1] == true
'a' in 'abc' and 'b' in 'abc'
not 'a' in 'abc'
a is defined and a is number or missing.x
'x' * -1
1.0
100.0
1e15
1e-4
0.00001
3.0 * 2
2 ** 0.5
2 ** -1
10 ** 18
'a' < 1
l[a:]
l['x']
d[0]
d[l]
{'x': {'type': 'string', 'enum': ['a', 'b']}} | tojson(indent=2) | indent(4)
'a' ~ ('<b>' | safe)
""".strip("\n").split("\n")

STATEMENTS = [
    "a\n", "a\n\n", "a\r\nb\r", "{{ a }}\n", "  {{ a }}  \n x", "{% if t %}\nyes\n{% endif %}\nend\n",
    "x\n  {% if t %}\n  yes\n  {% endif %}\nend", "x  {% if t %}  y  {% endif %}  z", "x  {%- if t -%}  y  {%- endif -%}  z",
    "x \n {{- a -}} \n y", "x\n   {%+ if t %}y{% endif +%}\nz", "a{# c #}\nb", "a\n  {# c #}\n  b", "a {#- c -#} b", "{#\nx\n#}y",
    "{% raw %}{{ a }}{% x %}{% endraw %}", "a\n {% raw %}\n {{ x }}\n {% endraw %}\nb", "{%- raw -%} {{ x }} {%- endraw -%} b",
    "{% set x = 5 %}{{ x }}", "{% set x, y = 1, 'b' %}{{ y }}{{ x }}", "{% set x = 1, 2 %}{{ x }}",
    "{% set x %}a{{ a }}b{% endset %}[{{ x }}]", "{% set x | upper | replace('A', 'z') %}a{{ a }}b{% endset %}[{{ x }}]",
    "{% set ns = namespace(i=0, s='') %}{% for x in l %}{% set ns.i = ns.i + x %}{% set ns.s = ns.s ~ x %}{% endfor %}{{ ns.i }}{{ ns.s }}{{ ns.zz }}",
    "{% set ns = namespace() %}{% set ns.x %}q{{ a }}{% endset %}{{ ns.x }}{{ ns }}", "{% set d.x = 1 %}", "{% set zz.x = 1 %}", "{% set ns = namespace() %}{% set ns._x = 1 %}",
    "{% set x = 1 %}{% for i in l %}{{ x }}{% set x = x + 1 %}{{ x }};{% endfor %}{{ x }}",
    "{% set x = 1 %}{% if t %}{% set x = 2 %}{% endif %}{{ x }}", "{% for i in l %}{% set q = i %}{% endfor %}{{ q }}",
    "{% if n %}1{% elif a == 7 %}2{% elif t %}3{% else %}4{% endif %}", "{% if n %}1{% elif n %}2{% else %}4{% endif %}",
    "{% if missing %}1{% endif %}{% if l and d %}2{% endif %}",
    "{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.previtem }}{{ loop.nextitem }};{% endfor %}",
    "{% for x in l if x > 1 %}{{ loop.index }}{{ loop.last }}{{ loop.length }}{{ loop.nextitem }}{{ loop.previtem }}:{{ x }};{% endfor %}",
    "{% set ns = namespace(stop=false) %}{% for x in l if not ns.stop %}{{ x }}{% set ns.stop = true %}{% endfor %}",
    "{% set ns = namespace(stop=false) %}{% for x in l if not ns.stop %}{{ x }}{{ loop.last }}{% set ns.stop = true %}{% endfor %}",
    "{% set ns = namespace(stop=false) %}{% for x in l if not ns.stop %}{{ x }}{{ loop.length }}{% set ns.stop = true %}{% endfor %}",
    "{% for x in [] %}a{% else %}none{% endfor %}", "{% for x in l if x > 9 %}a{% else %}none{% endfor %}", "{% for x in l %}{{ x }}{% else %}none{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k in d %}{{ k }};{% endfor %}", "{% for (a, b), c in [((1, 2), 3)] %}{{ a }}{{ b }}{{ c }}{% endfor %}",
    "{% for a, b in [(1, 2, 3)] %}{% endfor %}", "{% for c in u %}{{ c }}|{% endfor %}", "{% for x in missing %}a{% endfor %}b", "{% for x in 5 %}a{% endfor %}", "{% for x in none %}a{% endfor %}",
    "{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}", "{% for x in l %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% endfor %}", "{% for x in l %}{% for y in l %}{% if y == 2 %}{% break %}{% endif %}{{ x }}{{ y }} {% endfor %}{% endfor %}", "{% break %}",
    "{% for x in l %}{% for y in w %}{{ loop.index }}{% endfor %}{{ loop.index }};{% endfor %}", "{% for x in l %}{% set o = loop %}{% for y in w %}{{ o.index }}{% endfor %}{% endfor %}",
    "{% for x in l %}{{ loop.cycle('a', 'b') }}{{ loop.changed(x > 1) }}{% endfor %}", "{% for x in range(3) %}{{ x }}{% endfor %}", "{% for x in l | reverse %}{{ x }}{{ loop.length }}{% endfor %}",
    "{% for x in l, 5 %}{{ x }}{% endfor %}", "{% for x in (l if t else w) %}{{ x }}{% endfor %}",
    "{% for x in m | selectattr('role', 'equalto', 'user') %}{{ x.n }}{{ loop.last }}{% endfor %}", "{% set g = l | map('string') %}{{ g | list }}{{ g | list }}", "{% set g = l | map('string') %}{{ g | first }}{{ g | list }}", "{% if [] | select %}true{% endif %}", "{{ (l | select) | length }}",
    "{% macro f(x, y=2, z='q') %}[{{ x }}{{ y }}{{ z }}]{% endmacro %}{{ f(1) }}{{ f(1, z=5) }}{{ f() }}{{ f(x=3, y=4) }}", "{% macro f(x) %}{{ x }}{% endmacro %}{{ f(1, 2) }}", "{% macro f(x) %}{{ x }}{% endmacro %}{{ f(q=2) }}", "{% macro f(x) %}{{ x }}{% endmacro %}{{ f(1, x=2) }}",
    "{% macro f(x, y=x) %}{{ x }}{{ y }}{% endmacro %}{{ f(1) }}", "{% macro f(n) %}{{ n }}{% if n > 0 %}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(5) }}", "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(5) }}",
    "{% set g = 1 %}{% macro f() %}{{ g }}{{ a }}{% set g = 9 %}{% endmacro %}{% set g = 2 %}{{ f() }}{{ g }}", "{% macro f() %}{{ caller() }}|{{ caller() }}{% endmacro %}{% call f() %}x{{ a }}{% endcall %}", "{% macro f() %}{{ caller(1, 2) }}{% endmacro %}{% call(p, q) f() %}{{ p }}{{ q }}{% endcall %}",
    "{% macro f(x) -%}\n  {{ x }}\n{%- endmacro %}\n{{ f(1) ~ f(2) | upper }}", "{% macro a1() %}x{% endmacro %}{{ a1() | length }}{{ a1.name }}", "{{ f(1) }}{% macro f(x) %}{{ x }}{% endmacro %}",
    "{% filter upper %}a{{ s }}b{% endfilter %}", "{% filter trim | replace('l', 'L') %}  {{ s }}  {% endfilter %}", "{% with x = 1, y = a %}{{ x }}{{ y }}{% endwith %}{{ x }}", "{% with %}{% set z = 1 %}{{ z }}{% endwith %}{{ z }}",
    "é{% generation %}ü{{ s }}{% endgeneration %}x{% generation %}b{% endgeneration %}", "{% for x in m %}{{ x.role }}:{% if x.role == 'assistant' %}{% generation %}{{ x.content }}<e>{% endgeneration %}\n{% endif %}{% endfor %}", "{% generation %}{% set q1 = 1 %}{% endgeneration %}{{ q1 }}", "{% for x in l %}{% generation %}{% break %}{% endgeneration %}{% endfor %}",
    "{% set j = joiner(', ') %}{% for x in l %}{{ j() }}{{ x }}{% endfor %}", "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.next() }}{% set _ = c.reset() %}{{ c.next() }}",
    "{% if a %}", "{% endif %}", "{{ a", "{% if %}", "{{ }}", "{% set %}", "{% foo %}", "{{ a | nope }}", "{{ a is nope }}", "{{ 'abc }}", "{{ a b }}", "{% for x in %}{% endfor %}", "{# x", "{{ (a }}", "{{ a) }}", "{{ a | }}", "{{ [1, }}", "{% macro f(x=1, y) %}{% endmacro %}", "{{ f(x=1, 2) }}", "{{ 1 is odd is even }}", "{% set true = 1 %}", "{{ $ }}", "{{ a.}}", "{{ 01 }}",
    "{{ {'a': {'b': 1}} }}", "{{ {} }}{{ [] }}", "{{ {'a': 1}['a']}}", "{{'}}'}}{{ \"{%\" }}", "{{ a }}{{ b }}{{- f -}}  {{ t }}", "}} %} #} { % {", "{{ a -}}\n\n  b", "  {%- set x = 1 %}\n  y", "{{ a -}}   ", "\n\n{% set x = 1 %}\n\ny", "{% set x = 1 -%}\n\n\n y", "{%set x=1%}{{x}}", "{{-a-}}", "{{ 'a\nb' }}", "{% if a\n  and\n t %}x{% endif %}", "{%- if t %}\n    {{- 'x' }}\n{%- else %}\n    {{- 'y' }}\n{%- endif %}\n",
]

SYSTEM = {"role": "system", "content": "  Be brief.\n"}
USER = {"role": "user", "content": "What is 2 + 2? <b>ü</b>  "}
BOT = {"role": "assistant", "content": " Four.\n"}
THINK = {"role": "assistant", "content": "<think>\nadd them\n</think>\n\nFour."}
CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "id": "abc123def", "function": {
    "name": "add", "arguments": {"x": 2, "y": [1.5, None, "é\n"]}}}]}
TOOL = {"role": "tool", "name": "add", "tool_call_id": "abc123def", "content": "{\"sum\": 4}"}
PARTS = {"role": "user", "content": [{"type": "text", "text": " look "}, {"type": "image"}, {"type": "text", "text": "here"}]}
TOOLS = [{"type": "function", "function": {"name": "add", "description": "Adds \"two\" numbers.", "parameters": {
    "type": "object", "properties": {"x": {"type": "number", "description": "é"}, "y": {"type": ["number", "null"], "enum": [1, 2.5]}},
    "required": ["x"]}}}]
CHATS = [[USER], [SYSTEM, USER], [USER, BOT, USER], [SYSTEM, USER, BOT, USER, THINK], [USER, CALL, TOOL, BOT, USER],
         [USER, USER], [BOT], [PARTS], [SYSTEM, USER, CALL, TOOL, TOOL], [SYSTEM], [dict(SYSTEM, content="/no_think hi"), USER, BOT]]


def cases():
    for e in EXPRESSIONS:
        yield "{{ " + e + " }}", DATA
    for s in STATEMENTS:
        yield s, DATA
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "jinja_templates")
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), encoding="utf-8") as f:
            text = f.read()
        for chat in CHATS:
            for tools in (None, TOOLS):
                for prompt in (False, True):
                    c = {"messages": chat, "add_generation_prompt": prompt, "bos_token": "<s>", "eos_token": "</s>"}
                    if tools:
                        c["tools"] = tools
                    yield text, c
                    if prompt and chat is CHATS[1]:
                        yield text, dict(c, enable_thinking=False, date_string="26 Jul 2024", documents=[{"title": "T", "text": "x"}])


def main():
    out = []
    for t, c in cases():
        made = render(t, c)
        case = {"t": t, "c": c, "out": made[0] if made else None}
        if made and made[1]:
            case["spans"] = made[1]
        out.append(case)
    shared = []  # each template and context once
    rows = []
    for case in out:
        for key in ("t", "c"):
            if case[key] not in shared:
                shared.append(case[key])
            case[key] = shared.index(case[key])
        rows.append(json.dumps(case, ensure_ascii=False))
    parts = ",\n".join(json.dumps(s, ensure_ascii=False) for s in shared)
    sys.stdout.write('{"now": %d, "shared": [\n%s\n], "cases": [\n%s\n]}\n' % (NOW, parts, ",\n".join(rows)))


if __name__ == "__main__":
    main()
