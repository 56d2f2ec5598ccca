"""Rendering chat templates that came with a model: they are programs, so they run in a child that can do no harm.

The child is this file, run by itself without any of our modules. jinja2's immutable sandbox keeps templates away from
Python; limits on its time, memory, output and open files hold where the sandbox does not (nested loops, doubled strings).
The surroundings are those of `transformers`, save for the clock, which stands still.
"""

import contextlib
import json
import os
import re
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

CPU_SECONDS = 3
WALL_SECONDS = 30
MEMORY_BYTES = 512 * 1024 * 1024
OUTPUT_CHARS = 2_000_000
"""Of all renderings together."""
TEMPLATE_CHARS = 200_000
DATE = (2024, 7, 26)
"""What strftime_now tells: the date Llama 3's template falls back on, so that a template gives the same text any day."""


class Asked(NamedTuple):
    """One rendering: messages as {"role", "content"}, and whether the assistant's turn shall be opened at its end."""

    messages: Sequence[Mapping[str, str]]
    add_generation_prompt: bool = False


class Refusal(NamedTuple):
    """The template raised this for a chat."""

    why: str


def render_all(template: str, asked: Sequence[Asked], tokens: Mapping[str, str]) -> list[str | Refusal]:
    """Each chat as the template writes it. tokens: texts by name ("bos_token"), as the tokenizer's settings hold them.

    Raises ValueError for a template that cannot be read, and for one that asks for more than the limits allow.
    """
    if len(template) > TEMPLATE_CHARS:
        raise ValueError(f"the chat template has {len(template):,} characters: at most {TEMPLATE_CHARS:,} are read")
    jobs = [{"messages": [dict(m) for m in a.messages], "ask": a.add_generation_prompt} for a in asked]
    question = json.dumps({"template": template, "jobs": jobs, "tokens": dict(tokens)}).encode()
    command = [sys.executable, "-I", "-S", str(Path(__file__).resolve()), json.dumps(_search_path())]
    try:
        done = subprocess.run(
            command, input=question, capture_output=True, timeout=WALL_SECONDS, env={}, cwd="/", check=False
        )
    except subprocess.TimeoutExpired:
        raise ValueError(f"the chat template ran for more than {WALL_SECONDS} s and was stopped") from None
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise ValueError(_death(done.returncode, done.stderr)) from None
    if "error" in answer:
        raise ValueError(answer["error"])
    return [Refusal(one["why"]) if "why" in one else one["text"] for one in answer["texts"]]


def _search_path() -> list[str]:
    """Where jinja2 and what it needs are found: the child gets these folders and no others."""
    from importlib.metadata import version
    from importlib.util import find_spec

    found = [find_spec(name) for name in ("jinja2", "markupsafe")]
    if any(spec is None or spec.origin is None for spec in found):
        raise ValueError("jinja2 is not installed, which reads chat templates: pip install jinja2")
    if tuple(map(int, re.findall(r"\d+", version("jinja2"))[:3])) < (3, 1, 6):
        raise ValueError(f"jinja2 {version('jinja2')} lets templates out of its sandbox: install 3.1.6 or later")
    return sorted({str(Path(spec.origin).parents[1]) for spec in found})


def _death(code: int, stderr: bytes) -> str:
    """What ended a child that gave no answer."""
    if code in (-9, -24, 137, 152):  # SIGKILL, SIGXCPU
        return f"the chat template used more than {CPU_SECONDS} s of computing and was stopped"
    told = stderr.decode("utf-8", "replace").strip().splitlines()[-1:] or ["without a word"]
    if code == -11 or "MemoryError" in told[0]:
        return f"the chat template used more than {MEMORY_BYTES // 2**20} MiB of memory or stack and was stopped"
    return f"the chat template's process ended with code {code}: {told[0][:300]}"


# ------------------------------------------------------------------------------------------------- in the child


_USUAL = r"""{% set ns = namespace(x='\n\u4e2d' ~ 'a'|trim|upper) %}{% macro f(x) %}{{ x|tojson }}{% endmacro %}{{ f([1]) }}
{% for a in [1, 2] %}{% if loop.first and not a is string %}{% continue %}{% endif %}{{ '%s'|format(a) }}{% endfor %}
{{ strftime_now('%d %B %Y') }}{{ 'a{}'.format(1).split('a')[-1].strip() }}{{ [{'a': 1}]|selectattr('a')|list|length }}"""


class _TooMuch(Exception):
    """More was written than OUTPUT_CHARS."""


def _environment() -> Any:
    """jinja2 as `transformers` sets it up (utils/chat_template_utils.py, 5.x)."""
    import datetime

    import jinja2
    import jinja2.ext
    import jinja2.sandbox

    class Generation(jinja2.ext.Extension):
        """{% generation %} marks what the assistant says; here it only lets it through."""

        tags = {"generation"}

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(form: str) -> str:
        return datetime.datetime(*DATE).strftime(form)

    made = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    made.filters["tojson"] = tojson
    made.globals.update(raise_exception=raise_exception, strftime_now=strftime_now)
    for template in (_USUAL, "{{ ''.__class__.x }}", "{{ raise_exception('x') }}", "{% for"):
        with contextlib.suppress(jinja2.exceptions.TemplateError):  # loads what these need while files are in reach
            made.from_string(template).render()
    return made


def _limit() -> None:
    """No more than these from here on; no files, sockets or processes at all."""
    for what, most in (
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, 3),  # stdin, stdout, stderr
    ):
        resource.setrlimit(what, (most, most))


def _one(template: Any, job: dict[str, Any], tokens: dict[str, str], room: int) -> str:
    """The text of one chat. Raises _TooMuch beyond `room` characters."""
    parts, size = [], 0
    for part in template.generate(
        messages=job["messages"], add_generation_prompt=job["ask"], tools=None, documents=None, **tokens
    ):
        size += len(part)
        if size > room:
            raise _TooMuch
        parts.append(part)
    return "".join(parts)


def _answer(question: dict[str, Any], environment: Any) -> dict[str, Any]:
    """{"texts": [{"text"} or {"why"}]}, or {"error"} for what would meet any chat."""
    try:
        template = environment.from_string(question["template"])
    except Exception as error:  # TemplateSyntaxError, RecursionError, whatever a broken program meets
        return {"error": f"the chat template cannot be read: {type(error).__name__}: {str(error)[:300]}"}
    texts, room = [], OUTPUT_CHARS
    for job in question["jobs"]:
        try:
            text = _one(template, job, question["tokens"], room)
            text.encode()  # half a surrogate pair is no text
        except _TooMuch:
            return {"error": f"the chat template writes more than {OUTPUT_CHARS:,} characters and was stopped"}
        except MemoryError:
            return {"error": f"the chat template used more than {MEMORY_BYTES // 2**20} MiB of memory and was stopped"}
        except Exception as error:
            texts.append({"why": f"{type(error).__name__}: {str(error)[:300]}"})
            continue
        room -= len(text)
        texts.append({"text": text})
    return {"texts": texts}


def _child() -> None:
    sys.path += json.loads(sys.argv[1])
    environment = _environment()
    data = sys.stdin.buffer.read()
    _limit()
    out = json.dumps(_answer(json.loads(data), environment)).encode()
    while out:
        out = out[os.write(1, out) :]


if __name__ == "__main__":
    _child()
