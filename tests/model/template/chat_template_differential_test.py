"""Renders a table of templates with python3-jinja2, set up as transformers does, and with ours.

Texts must be equal byte by byte; where Jinja raises, ours must fail too, and only there.
Usage: chat_template_differential_test.py RENDER_BINARY
"""
import datetime
import json
import subprocess
import sys

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2 import nodes

import chat_template_cases


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("_render"), [], [], body).set_lineno(line)

    def _render(self, caller):
        return caller()


def environment(mutable):
    base = jinja2.sandbox.SandboxedEnvironment if mutable else jinja2.sandbox.ImmutableSandboxedEnvironment
    env = base(trim_blocks=True, lstrip_blocks=True,
               extensions=[Generation, jinja2.ext.loopcontrols])

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                          sort_keys=sort_keys)

    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def strftime_now(pattern):
        return datetime.datetime.fromtimestamp(1750000000, datetime.timezone.utc).strftime(pattern)

    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["strftime_now"] = strftime_now
    return env


ENVIRONMENTS = {mutable: environment(mutable) for mutable in (False, True)}


def expected(case):
    try:
        template = ENVIRONMENTS[case.mutable].from_string(case.template)
        return {"text": template.render(**json.loads(json.dumps(case.context)))}
    except Exception as error:  # whatever Jinja or Python raises, ours must fail too
        return {"error": f"{type(error).__name__}: {error}"}


def main():
    cases = chat_template_cases.all_cases()
    assert len(cases) >= 150, len(cases)
    requests = "".join(json.dumps({"template": c.template, "context": c.context}) + "\n" for c in cases)
    run = subprocess.run([sys.argv[1]], input=requests, capture_output=True, text=True, check=True)
    answers = [json.loads(line) for line in run.stdout.splitlines()]
    assert len(answers) == len(cases), f"{len(answers)} answers to {len(cases)} cases"
    failures = errors = 0
    for case, answer in zip(cases, answers):
        wanted = expected(case)
        errors += "error" in wanted
        if case.fails is not None and case.fails != ("error" in wanted):
            failures += 1
            print(f"the table is wrong about {case.template!r}: jinja2 gives {wanted}")
        elif "error" in wanted and "error" in answer:
            continue
        elif answer != wanted:
            failures += 1
            print(f"--- {case.template!r}\n  context {json.dumps(case.context)[:300]}\n"
                  f"  jinja2 {wanted}\n  ours   {answer}")
    print(f"{len(cases)} cases, {errors} of them errors, {failures} failures")
    return failures > 0


if __name__ == "__main__":
    sys.exit(main())
