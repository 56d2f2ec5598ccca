"""Commands in the pages: as Python beside the shell, and every verb with every option, both from cli.TABLE."""

import html
import re
import shlex
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec
from mkdocs.exceptions import PluginError

from fledge import cli
from fledge.api import python_name
from fledge.core.config import parse_overrides
from fledge.stages.tracking import parse_names

DOCS = Path(__file__).resolve().parents[1]
_FENCE = re.compile(r"^( *)```fledge\n(.*?)^\1```$", re.S | re.M)
_ANY_FENCE = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```$", re.S | re.M)
_OPTION = re.compile(r"^  (--\S+) +(.*) \[(.*)\]$", re.M)  # a line of `fledge VERB --help`
_WIDTH = 92


def options_of(verb: str) -> type[msgspec.Struct]:
    """The Struct whose fields are the options of a verb."""
    entry = cli.TABLE[verb]
    return getattr(import_module(f"fledge.{entry.module}"), entry.options)


def command_lines(text: str) -> list[list[str]]:
    """The words after `fledge` of every command in the code blocks of a page; Python, TOML and JSON are no commands."""
    blocks = [block for language, block in _ANY_FENCE.findall(text) if language in ("", "fledge", "sh")]
    lines = [shlex.split(line, comments=True) for block in blocks for line in _joined(block)]
    return [words[1:] for words in lines if words[:1] == ["fledge"]]


def _joined(block: str) -> list[str]:
    """Lines of a block, those that end in a backslash put together."""
    return re.sub(r"\\\n\s*", " ", block).splitlines()


def given(words: list[str]) -> tuple[list[Any], dict[str, Any]]:
    """(arguments by position, arguments by name) of a command, after the command line's own checks."""
    verb, *arguments = words
    if verb not in cli.TABLE:
        raise PluginError(f"`fledge {shlex.join(words)}`: no verb {verb!r} in cli.TABLE")
    entry, kind = cli.TABLE[verb], options_of(verb)
    if verb in cli.TRAINING and "--track" in arguments:  # no setting of the verb: see stages/tracking.py
        at = arguments.index("--track")
        parse_names("".join(arguments[at + 1 : at + 2]))
        del arguments[at : at + 2]
    try:
        cli.parse(entry, kind, list(arguments))
    except ValueError as error:
        raise PluginError(f"`fledge {shlex.join(words)}` in a page: {error}") from None
    first = next((i for i, word in enumerate(arguments) if word.startswith("--")), len(arguments))
    leading: list[Any] = arguments[:first]
    if (most := len(entry.positional)) < len(leading):
        leading[most - 1 :] = [leading[most - 1 :]]
    return leading, cli.renamed(kind, parse_overrides(arguments[first:]))


def as_python(words: list[str]) -> str:
    """The call of fledge.api that does what a command does."""
    leading, named = given(words)
    parts = [*map(_literal, leading), *(f"{name}={_literal(value)}" for name, value in named.items())]
    name = python_name(words[0])
    call = f"{name}({', '.join(parts)})"
    return call if len(call) <= _WIDTH else f"{name}(\n" + "".join(f"    {part},\n" for part in parts) + ")"


def _literal(value: Any) -> str:
    """A value as Python source with double quotes, as the code here has them."""
    if isinstance(value, str):
        return msgspec.json.encode(value).decode()
    if isinstance(value, list):
        return f"[{', '.join(map(_literal, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_literal(k)}: {_literal(v)}' for k, v in value.items())}}}"
    return repr(value)


def tabs(page: str) -> str:
    """Every ```fledge block as two tabs: the commands, and the same in Python. Raises PluginError for a bad command."""

    def both(found: re.Match) -> str:
        indent, block = found[1], re.sub(rf"^{found[1]}", "", found[2], flags=re.M)
        commands = [words for line in _joined(block) if (words := shlex.split(line, comments=True))[:1] == ["fledge"]]
        names = sorted({python_name(words[1]) for words in commands})
        calls = [as_python(words[1:]) for words in commands]
        between = "\n\n" if any("\n" in call for call in calls) else "\n"
        python = f"from fledge.api import {', '.join(names)}\n\n{between.join(calls)}\n"
        tabbed = f'=== "Command"\n\n{_in(f"```sh{chr(10)}{block}```")}\n=== "Python"\n\n{_in(f"```python{chr(10)}{python}```")}'
        return _in(tabbed, indent)

    return _FENCE.sub(both, page)


def _in(text: str, indent: str = "    ") -> str:
    return "".join(f"{indent}{line}\n" if line else "\n" for line in text.split("\n"))


def inline(text: str) -> str:
    """A sentence of ours as HTML: escaped, `code` marked."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text, quote=False))


def table(rows: list[tuple[str, str, str]]) -> str:
    """(flag, default, sentence) as an HTML table."""
    body = "".join(
        f"<tr><td><code>{html.escape(flag)}</code></td><td>{_default(value)}</td><td>{inline(doc)}</td></tr>"
        for flag, value, doc in rows
    )
    return f'<table class="options"><thead><tr><th>Option</th><th>Default</th><th></th></tr></thead><tbody>{body}</tbody></table>'


def _default(value: str) -> str:
    return "<strong>required</strong>" if value == "required" else f"<code>{html.escape(value)}</code>"


def options(verb: str) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """(section, rows) as `fledge VERB --help` tells them: own options under "", then each section's (train, model, ...)."""
    found: dict[str, list[tuple[str, str, str]]] = {"": []}
    for flag, doc, default in _OPTION.findall(cli.verb_usage(verb, cli.TABLE[verb], options_of(verb))):
        head, dot, _ = flag[2:].partition(".")
        found.setdefault(head if dot else "", []).append((flag, default, doc))
    return [(section, rows) for section, rows in found.items() if rows]


def mentions() -> dict[str, list[Path]]:
    """verb -> pages whose code blocks use it, in the order of their paths, this reference apart."""
    found: dict[str, list[Path]] = {verb: [] for verb in cli.TABLE}
    for path in sorted(DOCS.rglob("*.md")):
        for verb in {words[0] for words in command_lines(path.read_text("utf-8"))} & found.keys():
            found[verb].append(path.relative_to(DOCS))
    return found


def title_of(path: Path) -> str:
    """The first heading of a page."""
    return next(line[2:] for line in (DOCS / path).read_text("utf-8").splitlines() if line.startswith("# "))


def reference() -> str:
    """All verbs with all options as Markdown for docs/reference/commands.md."""
    pages = mentions()
    parts = []
    for verb, entry in cli.TABLE.items():
        kind = options_of(verb)
        words = " ".join("[RECIPE.toml]" if p == "recipe" else p.upper() for p in entry.positional)
        doc = (kind.__doc__ or "").split("\n")[0]
        parts += [
            f"## {verb} {{#{verb}}}",
            f"```text\nfledge {verb} {words} [options]\n```".replace("  ", " "),
            inline(doc),
            "",
        ]
        if used := [f"[{title_of(p)}](../{p})" for p in pages[verb]]:
            parts.append(f"Used in: {', '.join(used)}.")
        for section, rows in options(verb):
            if section:
                parts.append(f'??? note "--{section}.*: {len(rows)} settings"\n\n    {table(rows)}')
            else:
                parts.append(table(rows))
    names = ", ".join(f"`--{alias}` for `--{field}`" for alias, field in cli.ALIASES.items())
    parts.append(f"## Other names {{#aliases}}\n\nWhere a verb has the field: {names}.")
    return "\n\n".join(parts)
