"""The table of templates and contexts for chat_template_differential_test.py.

One-liners cover each feature; chat_template_families.py has whole templates in the style of the
published families.
"""
import dataclasses

import chat_template_families


@dataclasses.dataclass
class Case:
    template: str
    context: dict
    fails: bool | None = False  # None: as Jinja does
    mutable: bool = False


X = {"s": "Hello World", "u": "Zürich 日本 😀", "n": 7, "f": 2.5, "b": True, "z": None, "l": [3, 1, 2],
     "e": [], "d": {"b": 2, "a": 1, "C": [1, "x"]}, "q": "it's \"q\"\n\\",
     "rows": [{"k": "a", "v": 1, "t": {"x": 9}}, {"k": "B", "v": 2}, {"k": "a", "v": 3, "t": {"x": 7}}]}

EXPRESSIONS = r"""
1 + 2 * 3 - 4 / 2
7 // 2, -7 // 2, 7 % 3, -7 % 3, 7.5 // 2, -7.5 % 2
2 ** 10, 2 ** -1, 2 ** 3 ** 2, -2 ** 2
1 / 3, 1e20, 1e16, 1e15, 1.0, 0.1 + 0.2, 1e-5, 0.0001, 123456789.125
1_000, 0.5e3, "\x41\u00e9\t\n\\\'"
"a" "b" 'c'
1 ~ 2.0 ~ none ~ true ~ "x" ~ [1, "a"] ~ missing
1 < 2 < 3, 1 < 2 > 3, 1 == 1.0, true == 1, "a" == 'a', "1" == 1, none == none
1 in l, 9 not in l, "b" in d, "ell" in s, "x" in missing, not 1 in l
not true or false and true
"yes" if b else "no", "y" if z, ("a" if 0 else "b" if 0 else "c")
b and n, z or "fallback", e or d and 1
[1, 2.0, "a'b", none, true, [], {}, (), (1,), {"a": (1, 2)}]
{"a": 1, "b": [1, {"c": none}]}
{1: "a", true: "b", "x": 2}
(1, 2) + (3,), [1] + [2], "ab" * 3, 2 * [1, 2], 0 * "a"
l[0], l[-1], l[9], s[1], s[-1], u[7], u[-1], d["a"], d["zz"], d.a, d.C[1], rows.0.k
l[1:], l[:-1], l[::-1], l[::2], s[1:4], s[::-1], u[2:9], u[::-2], l[5:], l[-2:], s[:0]
s[10:2:-3], l[2:0:-1], [1,2,3,4,5,6][-5:-1:2]
-n, +f, - (3), -f, +b, -b
true, True, false, False, none, None
s.upper(), s.lower(), s.title(), s.capitalize(), s.swapcase(), "ß".upper(), u.upper()
"  a b ".strip(), "xxaxx".strip("x"), "xyaxy".lstrip("xy"), "abc\n\n".rstrip(), "\u3000a\u00a0".strip()
"a,b,,c".split(","), "a b  c ".split(), "a,b,c".split(",", 1), "a b c d".split(none, 2), "".split(), "".split(",")
"a b c d".rsplit(none, 2), "a,b,c".rsplit(",", 1), " a  b ".split(none, 1)
"a\nb\r\nc\n".splitlines(), "a\nb".splitlines(true), "".splitlines()
s.startswith("Hell"), s.endswith(("x", "ld")), s.startswith(""), s.find("o"), s.find("zz"), s.rfind("o"), u.find("日"), s.index("W"), s.find("o", 5), s.find("o", -3)
s.replace("l", "L"), s.replace("l", "L", 1), "abc".replace("", "-"), "aaa".replace("a", "")
s.count("l"), "aaaa".count("aa"), "abc".count("")
"-".join(["a", "b"]), "".join([]), ",".join("xyz")
"{} {}".format(1, "a"), "{1}{0}".format("a", "b"), "{x}={y}".format(x=1, y=[2]), "{{}}{}".format(3), "{:>5}|{:<5}|{:^5}|{:05d}|{:.2f}".format("a", "b", "c", 42, 3.14159)
"abc".removeprefix("a"), "abc".removesuffix("c"), "abc".removeprefix("x")
"a=b=c".partition("="), "a=b=c".rpartition("="), "abc".partition("=")
"12".isdigit(), "ab".isalpha(), "a1".isalnum(), " ".isspace(), "".isdigit(), "AB".isupper(), "ab1".islower()
"a".ljust(3) ~ "|", "a".rjust(3), "ab".center(5) ~ "|", "abc".center(6, "*")
d.items()|list, d.keys()|list, d.values()|list, d.get("a"), d.get("q"), d.get("q", 5)
l.index(1), l.count(3), (1, 2, 1).count(1), (5, 6).index(6)
s|upper, s|lower, "foo bar-baz (qux) o'neil"|title, "fOO bAR"|capitalize, 5|upper, none|lower
s|length, l|count, d|length, u|length, missing|length
missing|default("d"), z|default("d"), z|default("d", true), ""|d("x", boolean=true), ""|d("x"), missing|default
l|join, l|join(","), rows|join("-", attribute="k"), "abc"|join("."), [1, none, true]|join("/")
l|first, l|last, e|first is defined, s|first, d|first
l|sort, l|sort(reverse=true), ["b", "A", "c"]|sort, ["b", "A", "c"]|sort(case_sensitive=true), rows|sort(attribute="k")|map(attribute="v")|list, rows|sort(attribute="k,v", reverse=true)|map(attribute="v")|list
["a", "A", "b"]|unique|list, ["a", "A"]|unique(case_sensitive=true)|list, rows|unique(attribute="k")|map(attribute="v")|list
l|reverse|list, s|reverse, (1, 2)|reverse|list
l|sum, rows|sum(attribute="v"), l|sum(start=10), e|sum
l|min, l|max, ["b", "A"]|min, rows|max(attribute="v"), e|max is defined
rows|map(attribute="k")|list, rows|map(attribute="t.x", default="-")|list, ["a", "b"]|map("upper")|list, ["a-b"]|map("replace", "-", "+")|list, [[1, 2]]|map("first")|list
[0, 1, "", "a"]|select|list, [0, 1, ""]|reject|list, l|select("gt", 1)|list, l|reject("odd")|list, [1, "a"]|select("string")|list
rows|selectattr("t")|map(attribute="v")|list, rows|selectattr("k", "equalto", "a")|list|length, rows|rejectattr("v", "==", 1)|map(attribute="v")|list, rows|selectattr("t", "defined")|list|length
d|dictsort, d|dictsort(reverse=true), d|dictsort(case_sensitive=true), {"a": 2, "b": 1}|dictsort(by="value")
d|items|list, missing|items|list, d|list
"42"|int, "x"|int, "x"|int(-1), 3.9|int, "3.9"|int, " 12 "|int, "0x1F"|int(0, 16), "ff"|int(base=16), true|int, none|int(5), "-7"|int, "1_000"|int
"2.5"|float, "x"|float, "x"|float(1.5), 3|float, " 1e3 "|float, "1"|float
-3|abs, (-3.5)|abs, true|abs
2.5|round, 3.14159|round(2), 2.675|round(2), 1.5|round, 42.55|round(1, "floor"), 42.51|round(1, "ceil"), 7|round, 1234|round(-2), 0.5|round, -1.5|round
"a\nb\n\nc"|indent, "a\nb"|indent(2, true), "a\n\nb"|indent(2, blank=true), "a\nb"|indent("> "), "a\n"|indent(2)
5|string ~ 1, 1.0|string, none|string, [1]|string, true|string
"<a href='x'>&\"</a>"|e|length, "<b>"|escape ~ "", "a"|safe ~ "b"
"%s-%d-%.2f"|format("a", 3, 1.5), "%(x)s"|format(x=1), "%5d|%-5d|%05d" % (1, 2, 3), "%s" % "a", "%x %r" % (255, "q"), "100%%" % ()
"  a "|trim, "xxa"|trim("x"), missing|trim, none|trim, 5|trim
s|replace("o", "0"), s|replace("o", "0", 1), 5|replace("5", "6")
"a b c"|wordcount, [1, 2, 3, 4, 5]|batch(2)|map("list")|list, [1, 2, 3]|batch(2, 0)|list
d|tojson, q|tojson, u|tojson, [1, 1.0, none, true, "a/b<>&'"]|tojson, {}|tojson, []|tojson, "\x00\x1f\x7f"|tojson
d|tojson(indent=2)
{"a": [], "b": {}, "c": [[1], {"d": [2]}]}|tojson(indent=4)
d|tojson(sort_keys=true), u|tojson(ensure_ascii=true), d|tojson(separators=(",", ":")), {1: 2, none: 3, true: 4}|tojson, (1, 2)|tojson
rows|tojson, rows|map(attribute="v")|list|tojson, 1e16|tojson, 1e-7|tojson
n is number, n is integer, f is float, f is integer, b is integer, b is number, b is boolean, b is true, b is false, n is true
s is string, d is mapping, l is sequence, s is sequence, d is sequence, d is iterable, n is iterable, n is sequence, missing is iterable, l is string
missing is defined, missing is undefined, d.a is defined, d.zz is undefined, z is none, z is not none, d.zz is none
3 is odd, 3 is even, 9 is divisibleby 3, 9 is divisibleby(2), 1 is eq 1, 1 is ne(2), 1 is lt 2, 2 is ge 2, 3 is gt 2, 2 is le 1, 1 is in [1], 1 is not in([1]), "a" is equalto "a"
z is sameas none, b is sameas true, n is sameas 7, range is callable, n is callable, "abc" is lower, "ABC" is upper, "upper" is filter, "odd" is test
range(3)|list, range(2, 8, 3)|list, range(5, 0, -2)|list, range(0)|list
dict(a=1, b=2), dict({"x": 1}, y=2), namespace(a=1).a
strftime_now("%Y-%m-%d %H:%M:%S %d %B %Y %j")
q, [q], u, [u], ["\x7f\xad\u200b\U0001F600"], ["'"], ['"'], ["'\""]
"%s" % [1], "a%%b" % {}, "%(k)s %(k)s" % {"k": "v"}
(1, 2) < (1, 3), [1] == [1.0], {"a": 1} == {"a": 1.0}, "a" < "b", "B" < "a"
loop is defined, messages is defined and messages, (missing or {}).x is defined
rows|groupby("k")|map("first")|list
rows[-1].t.x, rows|map(attribute="v")|sum, (rows|last)["k"], rows[::-1][0].v, (s|upper)[:3]
s.split(" ")[-1].lower()|capitalize, "</think>" in "a</think>b", "a</think>b".split("</think>")[-1].lstrip("\n")
1 if missing is defined else 2 if n > 3 else 3
10 % 3 ** 2, 2 * 3 % 4, 10 - 2 - 3, 100 / 10 / 2, "a" ~ 1 + 2 ~ "b"
[1, 2, 3,], {"a": 1,}, (1, 2,), [[]]
9223372036854775807, -9223372036854775807 - 1, 7 // -2, 7 % -3, 0.0, -0.0, 1e300 * 1e10
"\u00e9\U0001F600"|length
d|tojson(indent="\t"), d|tojson(indent=0), d|tojson(true), d|tojson(false, 2), d|tojson(indent=none), d|tojson(indent=true)
d|tojson(indent=2, separators=(",", ": ")), d|tojson(separators=[",", ":"]), d|tojson(indent=1, sort_keys=true, ensure_ascii=true)
[[]]|tojson(indent=2), [{}]|tojson(indent=2), {"a": {}}|tojson(indent=2), [1, [2, [3]]]|tojson(indent="--")
{"b": 1, "a": {"d": 1, "c": 2}}|tojson(sort_keys=true), {none: 1, 1.5: 2, false: 3}|tojson, "\u2028\u2029"|tojson
dict(*[[("a", 1)]], **{"b": 2}), dict({"a": 1}, **d), namespace(**{"a": 5}).a, "{}{x}".format(*[1], **{"x": 2}), range(*[1, 4])|list
z|selectattr("a")|list, z|map("upper")|list, z|select|list, 0|map("upper")|list, ""|map("upper")|list, false|rejectattr("a")|list, z|reject("odd")|list
rows|groupby(attribute="k")|map(attribute="grouper")|list, rows|groupby("k")|map(attribute="list")|map("length")|list, (rows|groupby("k")|first).grouper
[1, 2, 3, 4, 5]|slice(2)|map("list")|list, [1, 2, 3]|slice(2, 0)|map("list")|list, l|slice(5)|map("list")|list
s|truncate(8), s|truncate(8, true), s|truncate(8, false, "!", 0), s|truncate(100), u|truncate(5, true, "", 0), s|truncate(3, leeway=0), s|truncate(length=6, end="", leeway=1)
d|attr("items") is callable, d|attr("a") is defined, rows|map("attr", "k")|list, s|center(20), s|center(3)|length
0x1F, 0b101, 0o17, 0XfF, "abcb".rindex("b"), "a-b_c"|title, s|list|length
(d.items()|list)[0][0], d.items()|first, d|items|map(attribute=0)|list, {"items": 1}["items"]
rows|map(attribute="t", default={})|map(attribute="x", default=0)|list, rows|selectattr("v", "in", [1, 3])|map(attribute="v")|list
l|map("string")|join(","), ["1", "2"]|map("int")|sum, [[3, 1], [2]]|map("sort")|list, [1, 2]|map("default", 3)|list
{"b": 1, "A": 2}|dictsort(true), {"b": 1, "A": 2}|dictsort(false, "value"), {"b": 1, "A": 2}|dictsort(case_sensitive=true, reverse=true)
3.0|int, 3|float, 1e20 // 1, 2.5e0, 7 // 2.0, 6 / 3, 6 // 3, 2 ** 3, 2.0 ** 3, 1 == 1.0, 1 is float, 1.0 is integer, true + 1
True, None, False, [True, None], {"a": None}, None is none, True is true, none|string, "x" ~ None
""".strip("\n").split("\n")

FAILING = r"""
{{ missing.x }}
{{ missing["x"] }}
{{ d.zz.y }}
{{ missing() }}
{{ missing + 1 }}
{{ missing < 1 }}
{{ -missing }}
{{ 1 + "a" }}
{{ "a" + 1 }}
{{ "a" < 1 }}
{{ none + 1 }}
{{ 1 / 0 }}
{{ 1 // 0 }}
{{ 1.0 % 0 }}
{{ none|length }}
{{ 5|length }}
{% for x in none %}{% endfor %}
{% for x in 5 %}{% endfor %}
{% for a, b in [[1, 2, 3]] %}{% endfor %}
{{ 1 in 5 }}
{{ 1 in "a" }}
{{ l.nope() }}
{{ s() }}
{{ missing|tojson }}
{{ [missing]|tojson }}
{{ raise_exception("boom " ~ n) }}
{% if x %}
{% endif %}
{% for x in l %}
{{ 1 +
{{ (1 }}
{{ [1, }}
{{ "abc }}
{% nonsense %}
{# open
{{ 1 | nofilter }}
{{ 1 is notest }}
{% set 5 = 1 %}
{% set x.y = 1 %}
{% set l.y = 1 %}
{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}
{% macro m(a) %}{% endmacro %}{{ m(b=2) }}
{% macro m(a) %}{% endmacro %}{{ m(1, a=2) }}
{% macro m() %}{% endmacro %}{% call m() %}x{% endcall %}
{{ "%d" % "a" }}
{{ "%s %s" % "a" }}
{{ "%s" % (1, 2) }}
{{ "{} {}".format(1) }}
{{ "".join([1]) }}
{{ "a".split("") }}
{{ "abc".index("z") }}
{{ [1, "a"]|sort }}
{{ {[1]: 2} }}
{{ range(1, 2, 0) }}
{{ "a" if }}
{{ a b }}
{{ l[::0] }}
{{ none.x.y }}
{{ 1 is divisibleby 0 }}
{{ }}
{{ x is is y }}
{% else %}
{{ "a" * "b" }}
{{ dict(**5) }}
{{ dict(*5) }}
{{ dict(**{1: 2}) }}
{% macro m(a) %}{% endmacro %}{{ m(a=1, **{"a": 2}) }}
{% macro m(a) %}{% endmacro %}{{ m(**{"b": 2}) }}
{{ f(**d, **d) }}
{{ f(*l, *l) }}
{{ f(*l, 1) }}
{{ f(**d, a=1) }}
{% for a, (b, c) in [[1, 2]] %}{% endfor %}
{{ {"a": loop}.a(1) }}
{{ rows|map(attribute="t.x")|list }}
""".strip("\n").split("\n")

STATEMENTS = [
    "  {% if b %}\n  yes\n  {% else %}\n  no\n  {% endif %}\nend\n",
    "a {% if b %} b {% endif %} c",
    "a\n  {%- if b %}\n b\n {%- endif -%}\n  c",
    "a\n  {%+ if b +%}\n b\n  {%+ endif %}\n c\n\n",
    "a\n   {# comment #}\nb {# c #} d {#- x -#} e",
    "x {{- 1 -}} y {{ 2 }}\n\n{{ 3 }}\n",
    "  {{ 1 }}\n  {{- 2 }}\n\t{% set x = 1 %}\n{{ x }}",
    "{% raw %} {{ x }} {% if %} {% endraw %}|{%- raw -%}  a  {%- endraw -%}  b",
    "a\n  {% raw %}\nb\n  {% endraw %}\nc",
    "\r\na\rb\r\n",
    "\n\n{% if b %}\n\n\nx{% endif %}\n\n",
    "{%- if b -%}   x   {%- endif -%}   y",
    "{% for x in l %}{{ x }}{{ ',' if not loop.last }}{% endfor %}",
    "{% for x in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.depth }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.cycle('a', 'b') }};{% endfor %}",
    "{% for x in e %}x{% else %}none{% endfor %}{% for x in l %}{{ x }}{% else %}none{% endfor %}",
    "{% for x in l if x > 1 %}{{ loop.index }}:{{ x }}/{{ loop.length }} {% else %}-{% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{% for k in d %}{{ k }}{% endfor %}",
    "{% for c in u %}[{{ c }}]{% endfor %}{% for x in missing %}x{% endfor %}",
    "{% for x in l %}{% if x == 1 %}{% continue %}{% endif %}{{ x }}{% endfor %}",
    "{% for x in l %}{% if x == 1 %}{% break %}{% endif %}{{ x }}{% endfor %}!",
    "{% for a in [1,2] %}{% for b in [3,4] %}{% if b == 4 %}{% break %}{% endif %}{{ a }}{{ b }}{{ loop.index }} {% endfor %}{{ loop.index }}{% endfor %}",
    "{% set x = 1 %}{% for i in l %}{% set x = x + i %}{{ x }} {% endfor %}{{ x }}",
    "{% set ns = namespace(x=0, y='a') %}{% for i in l %}{% set ns.x = ns.x + i %}{% endfor %}{{ ns.x }}{{ ns.y }}{{ ns.q }}",
    "{% set ns = namespace() %}{% if b %}{% set ns.z = 1 %}{% set w = 2 %}{% endif %}{{ ns.z }}{{ w }}",
    "{% set a, b2 = 1, 2 %}{{ a }}{{ b2 }}{% set t = 1, 2 %}{{ t }}{% set (p, q) = [3, 4] %}{{ p }}{{ q }}",
    "{% set x %}  block {{ n }} {% endset %}[{{ x }}]{% set y | upper | trim %} abc {% endset %}[{{ y }}]",
    "{% macro m(a, b='d', c=none) %}{{ a }}-{{ b }}-{{ c }};{% endmacro %}{{ m(1) }}{{ m(1, 2) }}{{ m(c=3, a=1) }}{{ m() }}",
    "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, x=3) }}",
    "{% macro m(x) %}<{{ caller() }}{{ x }}>{% endmacro %}{% call m(1) %}in {{ n }}{% endcall %}",
    "{% macro m() %}{{ caller('a', 2) }}{% endmacro %}{% call(p, q) m() %}{{ p }}{{ q }}{% endcall %}",
    "{% macro m() %}{{ caller is defined }}{% endmacro %}{{ m() }}",
    "{% macro fact(k) %}{{ 1 if k < 2 else k * fact(k - 1)|int }}{% endmacro %}{{ fact(6) }}",
    "{% set g = 1 %}{% macro m() %}{{ g }}{{ n }}{% endmacro %}{% set g = 2 %}{{ m() }}",
    "{% macro m(x, y=x) %}{{ y }}{% endmacro %}{{ m(3) }}",
    "{% macro m() %}{% set inner = 5 %}{{ inner }}{% endmacro %}{{ m() }}{{ inner }}",
    "{% macro m() %}\n  a\n{% endmacro %}[{{ m() }}][{{ m()|trim }}]",
    "{% filter upper %}abc {{ s }}{% endfilter %}{% filter replace('a', 'b')|trim %} aa {% endfilter %}",
    "{% with a = 1, c = n %}{{ a }}{{ c }}{% endwith %}{{ a }}",
    "{% if 0 %}a{% elif n == 7 %}b{% elif b %}c{% else %}d{% endif %}",
    "{% generation %}x {{ n }}\n{% endgeneration %}\ny",
    "{% for m in rows %}{% if loop.first %}F{% elif loop.last %}L{% else %}M{% endif %}{{ loop.changed(m.k) }}{% endfor %}",
    "{% for row in rows|batch(2) %}{% for r in row %}{{ r.v }}{% endfor %};{% endfor %}",
    "{% for g in rows|groupby('k') %}{{ g.0 }}:{{ g[1]|length }} {% endfor %}{% for k, items in rows|groupby('k') %}{{ k }}{{ items|map(attribute='v')|join }}{% endfor %}",
    "{{ 'a' }}{{ \"}}\" }}{{ '{%' }}{{ {'a': {'b': 1}}['a']['b'] }}{{ {} }}",
    "{ { } } {a} %} }} #}",
    "{{ n\n  +\n 1 }}{%\n if b\n%}x{%\nendif\n%}",
    "{% set x = [] %}{% for i in l %}{{ x|length }}{% set x = x + [i] %}{% endfor %}{{ x }}",
    "{% set ns = namespace(found=false) %}{% for x in l if not ns.found %}{{ x }}{% set ns.found = true %}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for x in l if x > ns.n %}{{ x }}{{ loop.last }}{% set ns.n = 5 %}{% endfor %}",
    "{% set ns = namespace(n=0) %}{% for x in l if x > ns.n %}{{ x }}/{{ loop.length }}{% set ns.n = 5 %}{{ loop.nextitem }}{% else %}none{% endfor %}",
    "{% for x in l if x > 1 %}{{ loop.previtem }}{{ x }}{{ loop.revindex }}{{ loop|length }}{% endfor %}",
    "{% for r in [{'n': 'a', 'c': [{'n': 'b'}, {'n': 'c', 'c': [{'n': 'd'}]}]}] recursive %}{{ r.n }}{{ loop.depth }}{{ loop.depth0 }}{% if r.c %}({{ loop(r.c) }}){% endif %}{% endfor %}",
    "{% for x in [1, [2, [3]]] recursive %}{% if x is number %}{{ x }}{% else %}[{{ loop(x) }}]{% endif %}{% else %}-{% endfor %}",
    "{% for k, (a, (b2, c)) in [('x', (1, (2, 3)))] %}{{ k }}{{ a }}{{ b2 }}{{ c }}{% endfor %}{% set p, (q, r) = 1, [2, 3] %}{{ p }}{{ q }}{{ r }}",
    "{% for (a, b2) in [[1, 2]] %}{{ a }}{{ b2 }}{% endfor %}",
    "{% macro m(a, b=2) %}{{ a }}{{ b }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(*[1, 2, 3], **{'z': 1}) }}{{ m(1, *[5]) }}{{ m(a=1, **{'b': 7}) }}",
    "{% for x in range(3) %}{% for y in range(x) %}{{ loop.depth }}{{ x }}{{ y }} {% endfor %}{% endfor %}",
]

MUTATING = [
    "{% set x = [1] %}{% set _ = x.append(2) %}{{ x }}{{ x.pop() }}{{ x }}",
    "{% set x = [1, 2] %}{{ x.insert(1, 'a') or '' }}{{ x.extend([5, 6]) or '' }}{{ x }}{{ x.pop(0) }}{{ x }}{{ x.remove('a') or '' }}{{ x }}",
    "{% set d2 = {'a': 1} %}{% set _ = d2.update({'b': 2}) %}{% set _ = d2.update(c=3) %}{{ d2 }}{{ d2.pop('a') }}{{ d2.setdefault('z', 9) }}{{ d2 }}",
    "{% set x = [3, 1] %}{% set _ = x.reverse() %}{{ x }}{% set y = x.copy() %}{% set _ = y.clear() %}{{ x }}{{ y }}",
    "{% set ns = namespace(tools=[]) %}{% for r in rows %}{% if r.get('t') %}{% set _ = ns.tools.append(r.t if r.get('t') else r) %}{% endif %}{% endfor %}{{ ns.tools|tojson }}",
    "{% set ns = namespace(l=[]) %}{% for i in l %}{% set _ = ns.l.append(i * 2) %}{% endfor %}{{ ns.l|tojson }}",
]


def all_cases():
    cases = [Case("{{ [" + line + "] }}", X) for line in EXPRESSIONS]
    cases += [Case(template, X, fails=True) for template in FAILING]
    cases += [Case(template, X) for template in STATEMENTS]
    cases += [Case(template, X, mutable=True) for template in MUTATING]
    for name, template, context in chat_template_families.cases():
        cases.append(Case(template, context, mutable=name in chat_template_families.MUTABLE,
                          fails=None))
    return cases
