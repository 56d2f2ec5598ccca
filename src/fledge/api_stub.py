"""Writes api.pyi, by which editors complete verbs, options and the keys of sections: `python -m fledge.api_stub`."""

from __future__ import annotations

import inspect
import json
import sys
import types
import typing
from pathlib import Path
from typing import Any

import msgspec

from fledge.api import VERBS, documentation, parameters, resolved, returned
from fledge.cli import Verb
from fledge.core.config import field_docs, struct_of
from fledge.notebook.rows import TAKES_ROWS

STUB = Path(__file__).with_name("api.pyi")
_STANDARD = {
    "collections.abc": ("Mapping", "Sequence"), "os": ("PathLike",),
    "typing": ("Any", "Literal", "TypeAlias", "TypedDict", "overload"),
}  # fmt: skip

_HEAD = '''"""Written by `python -m fledge.api_stub` from the options of every verb; do not edit."""

# fmt: off
{standard}

from datasets import Dataset, IterableDataset

{imports}

Text: TypeAlias = str | PathLike[str]
Texts: TypeAlias = Text | Sequence[Text]
Rows: TypeAlias = Dataset | IterableDataset | Sequence[Mapping[str, Any]]
Data: TypeAlias = Texts | Rows | Sequence[Text | Rows]

def open_run(run: Text, *, device: str = "auto", precision: str = "auto") -> Model:
{open_run}
'''


class _Stub:
    """What is collected while the verbs are written."""

    def __init__(self) -> None:
        self.imports = {
            "Model": ("fledge.notebook.model", "Model")
        }  # module and name of each class, by how it is called
        for module, names in _STANDARD.items():
            self.imports |= {name: (module, name) for name in names}
        self.sections: dict[str, str] = {}  # TypedDicts by name

    def named(self, kind: type) -> str:
        """A class by its name, imported."""
        if kind.__module__ == "builtins":
            return kind.__name__
        place = (kind.__module__, kind.__name__)
        called = kind.__name__
        if self.imports.setdefault(called, place) != place:  # two classes of one name
            called = kind.__module__.rpartition(".")[2].capitalize() + kind.__name__
            self.imports[called] = place
        return called

    def import_lines(self, standard: bool) -> str:
        """`from module import a, b as c` of the standard library, or of what is ours."""
        lines = []
        for module in sorted({module for module, _ in self.imports.values()}):
            if (module.partition(".")[0] in sys.stdlib_module_names) is standard:
                names = {called: name for called, (m, name) in sorted(self.imports.items()) if m == module}
                lines += [f"from {module} import {n} as {called}" for called, n in names.items() if n != called]
                if plain := [called for called, n in names.items() if n == called]:
                    lines.append(f"from {module} import {', '.join(plain)}")
        return "\n".join(lines)

    def annotation(self, kind: Any, rows: bool = False) -> str:
        """A type as one writes it; options that are text take paths, lists a single value, sections a dict."""
        origin, inner = typing.get_origin(kind), typing.get_args(kind)
        if kind is None or kind is type(None):
            return "None"
        if kind is Any:
            return "Any"
        if origin is typing.Literal:
            return f"Literal[{', '.join(map(_quoted, inner))}]"
        if origin in (types.UnionType, typing.Union):
            return " | ".join(dict.fromkeys(self.annotation(part) for part in inner))
        if kind is str:
            return "Data" if rows else "Text"
        if origin in (list, tuple):
            part = self.annotation(inner[0])
            return ("Data" if rows else "Texts") if part == "Text" else f"{part} | Sequence[{part}]"
        if (section := struct_of(kind)) is not None:
            short = " | str" if "kind" in section.__struct_fields__ else ""
            return f"{self.named(section)} | {self.section(section)}{short}"
        return self.named(kind)

    def result(self, kind: Any) -> str:
        """The type of what comes back."""
        origin, inner = typing.get_origin(kind), typing.get_args(kind)
        if origin in (types.UnionType, typing.Union):
            return " | ".join(map(self.result, inner))
        if origin is not None:
            return f"{self.named(origin)}[{', '.join(map(self.result, inner))}]"
        return "None" if kind in (None, type(None)) else "Any" if kind is Any else self.named(kind)

    def section(self, kind: type[msgspec.Struct]) -> str:
        """The TypedDict of a section's keys."""
        name, docs = f"{kind.__name__}Dict", field_docs(kind)
        if name not in self.sections:
            self.sections[name] = ""  # before its own sections
            lines = [f"class {name}(TypedDict, total=False):", *_doc((kind.__doc__ or "").split("\n")[0])]
            for field in msgspec.structs.fields(kind):
                lines += [f"    {field.name}: {self.annotation(field.type)}", *_doc(docs.get(field.name, ""))]
            self.sections[name] = "\n".join(lines)
        return name

    def verb(self, name: str) -> str:
        """The function of a verb; one that takes a recipe needs nothing else, so it is written twice."""
        verb, function, kind = resolved(VERBS[name])
        result = self.result(returned(function))
        body = "\n".join(_doc(documentation(VERBS[name], verb, kind, function)))
        found = list(parameters(VERBS[name], verb, kind))
        with_recipe = "recipe" in verb.positional and "recipe" not in kind.__struct_fields__
        if not with_recipe:
            return f"def {name}({self.arguments(verb, name, found)}) -> {result}:\n{body}\n"
        alone = self.arguments(verb, name, found[1:])
        over = self.arguments(verb, name, found[1:], optional=True)
        return (
            f"@overload\ndef {name}({alone}) -> {result}:\n{body}\n"
            f"@overload\ndef {name}(recipe: Text, {over}) -> {result}: ...\n"
        )

    def arguments(self, verb: Verb, name: str, found: list[inspect.Parameter], optional: bool = False) -> str:
        """`a: Text, *, out: Text, epochs: float = 4.0`; `optional`: none of them is needed."""
        written, by_name = [], False
        rows = TAKES_ROWS.get(VERBS[name], ())
        for one in found:
            if one.kind is one.KEYWORD_ONLY and not by_name:
                written.append("*")
                by_name = True
            default = "" if one.default is one.empty and not optional else f" = {_literal(one.default)}"
            written.append(f"{one.name}: {self.annotation(one.annotation, one.name in rows)}{default}")
        return ", ".join(written)


def _quoted(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _literal(value: Any) -> str:
    """A default that can be read at a glance, else `...`."""
    plain = value is None or isinstance(value, bool | int | float | str)
    return _quoted(value) if plain and value is not inspect.Parameter.empty else "..."


def _doc(text: str) -> list[str]:
    """`text` as an indented docstring; none for none."""
    if not text:
        return []
    lines = text.replace("\\", "\\\\").replace('"""', "'''").split("\n")
    if len(lines) == 1:
        return [f'    """{lines[0]}"""' if not lines[0].endswith('"') else f'    """{lines[0]} """']
    return [f'    """{lines[0]}', *(f"    {line}".rstrip() for line in lines[1:]), '    """']


def stub() -> str:
    """The text of api.pyi."""
    from fledge.api import open_run

    made = _Stub()
    verbs = [made.verb(name) for name in VERBS]
    head = _HEAD.format(
        standard=made.import_lines(True),
        imports=made.import_lines(False),
        open_run="\n".join(_doc(inspect.getdoc(open_run) or "")),
    )
    return "\n".join([head, *(f"{section}\n" for section in made.sections.values()), *verbs])


if __name__ == "__main__":
    STUB.write_text(stub(), "utf-8")
    print(f"{STUB} written")
