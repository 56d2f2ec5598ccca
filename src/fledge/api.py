"""The command in Python: a function for each verb, and `open_run` for a model to talk with.

    from fledge.api import open_run, sft

    sft(parent="runs/base", chats="chats.jsonl", out="runs/sft", adapter={"kind": "lora", "rank": 8})
    open_run("runs/sft").chat("Who is Ada?")

The keyword arguments of a function are the verb's options; a section such as `train` is a dict of its own options. They
go through the same checks as --flags do, and what is wrong is told in one ValueError. A verb that takes a recipe takes
`recipe="file.toml"`, over which the arguments win. Data may be rows in memory: a data set of `datasets`, or a list of
dicts; a run keeps them as a file in OUT/given, so that it can be resumed.

`import` is `import_model` here, and `best-of-n` is `best_of_n`. Nothing heavy is imported before a function is called.
"""

from __future__ import annotations

import inspect
import keyword
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from fledge.cli import TABLE, TRAINING, Verb, renamed

if TYPE_CHECKING:
    from os import PathLike

    from fledge.notebook.model import Model


def python_name(verb: str) -> str:
    """A verb as a name in Python: best_of_n; import_model, since `import` is a keyword."""
    return f"{verb}_model" if keyword.iskeyword(verb) else verb.replace("-", "_")


VERBS = {python_name(name): name for name in TABLE}

__all__ = ["Model", "open_run", *VERBS]


class VerbFunction:
    """A verb as a function whose signature and docstring are made of its options, when somebody looks at them."""

    def __init__(self, name: str):
        self.__name__ = self.__qualname__ = name
        self.__module__ = __name__
        self.verb = VERBS[name]

    def __call__(self, *args: Any, **given: Any) -> Any:
        from fledge.core.config import load_recipe
        from fledge.notebook.rows import in_files, plain, without_rows

        verb, function, kind = resolved(self.verb)
        given = self._bound(verb, args, given)
        track = given.pop("track", None) if self.verb in TRAINING else None
        recipe = given.pop("recipe", None) if "recipe" in verb.positional else None
        rows, given = without_rows(self.verb, renamed(kind, given))
        options = load_recipe(kind, recipe, plain(given))  # everything wrong is told before anything is written
        with _tracked(track):
            return function(in_files(self.verb, options, rows) if rows else options)

    def _bound(self, verb: Verb, args: tuple[Any, ...], given: dict[str, Any]) -> dict[str, Any]:
        """Arguments by name. Raises TypeError as a function does."""
        if len(args) > len(verb.positional):
            most = len(verb.positional)
            raise TypeError(f"{self.__name__}() takes {most} positional arguments, {len(args)} were given")
        found = dict(zip(verb.positional, args, strict=False))
        if twice := found.keys() & given.keys():
            raise TypeError(f"{self.__name__}() got several values for {', '.join(sorted(twice))}")
        return found | given

    def __get__(self, instance: Any, owner: Any = None) -> VerbFunction:
        return self  # makes it a routine to `help`, which then shows the signature

    def __repr__(self) -> str:
        return f"<fledge {self.verb}, as a function>"

    @property
    def __signature__(self) -> inspect.Signature:
        verb, function, kind = resolved(self.verb)
        return inspect.Signature(parameters(self.verb, verb, kind), return_annotation=returned(function))

    @property
    def __doc__(self) -> str:  # type: ignore[override]
        verb, function, kind = resolved(self.verb)
        return documentation(self.verb, verb, kind, function)


def resolved(name: str) -> tuple[Verb, Any, type]:
    """(verb, its function, the Struct of its options); imports the verb's module."""
    verb = TABLE[name]
    module = import_module(f"fledge.{verb.module}")
    return verb, getattr(module, verb.function), getattr(module, verb.options)


def returned(function: Any) -> Any:
    """What a verb's function returns, as a type."""
    from typing import get_type_hints

    return get_type_hints(function).get("return", Any)


@contextmanager
def _tracked(track: str | Sequence[str] | None) -> Iterator[None]:
    """Runs trained meanwhile are followed by these trackers. Raises ValueError for an unknown one."""
    if track is None:
        yield
        return
    from fledge.stages.tracking import OFF, VARIABLE, parse_names

    names = track if isinstance(track, str) else ",".join(track) or OFF
    try:
        parse_names(names)
    except ValueError as error:
        raise ValueError(f"track: {error}") from None
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = names
    try:
        yield
    finally:
        if before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = before


def parameters(verb_name: str, verb: Verb, kind: type) -> list[inspect.Parameter]:
    """The positionals of a verb in their order, then the other options by name only."""
    import msgspec

    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    found = []
    for name in dict.fromkeys((*verb.positional, *fields)):
        way = inspect.Parameter.POSITIONAL_OR_KEYWORD if name in verb.positional else inspect.Parameter.KEYWORD_ONLY
        if name not in fields:  # the recipe, a TOML file
            found.append(inspect.Parameter(name, way, default=None, annotation=str | None))
            continue
        found.append(inspect.Parameter(name, way, default=_default(fields[name]), annotation=fields[name].type))
    if verb_name in TRAINING:
        trackers = str | list[str] | None
        found.append(inspect.Parameter("track", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=trackers))
    return found


def documentation(name: str, verb: Verb, kind: type, function: Any) -> str:
    """What `fledge VERB --help` says, in the words of a docstring."""
    about = inspect.cleandoc(kind.__doc__ or "").split("\n")[0]
    lines = [about, "", f"`fledge {name}` in Python: {verb.help}.", "", "Arguments:"]
    if "recipe" in verb.positional and "recipe" not in kind.__struct_fields__:
        lines.append("    recipe: TOML file of these settings; arguments win over it.")
    lines += [f"    {line}" for line in _told(kind, None)]
    if name in TRAINING:
        lines.append(
            "    track: Trackers beside the run: tensorboard, trackio, wandb, several in a list; or off. [none]"
        )
    if result := inspect.getdoc(function):
        lines += ["", "What it does and returns:", *(f"    {line}".rstrip() for line in result.split("\n"))]
    return "\n".join(lines)


def _told(kind: type, section: Any) -> Iterator[str]:
    """A line for each field of `kind`, its sections indented; `section`: the values that a section begins with."""
    import msgspec

    from fledge.core.config import field_docs, shown_value, struct_of

    docs = field_docs(kind)
    for field in msgspec.structs.fields(kind):
        default = _default(field) if section is None else getattr(section, field.name)
        if inner := struct_of(field.type):
            yield f"{field.name}: {docs.get(field.name, '')} A dict of"
            yield from (f"    {line}" for line in _told(inner, default or inner()))
        else:
            shown = "required" if default is inspect.Parameter.empty else shown_value(default)
            yield f"{field.name}: {docs.get(field.name, '')} [{shown}]"


def _default(field: Any) -> Any:
    """A field's default; `inspect.Parameter.empty` where it has none."""
    import msgspec

    if field.required:
        return inspect.Parameter.empty
    return field.default_factory() if field.default is msgspec.NODEFAULT else field.default


def open_run(run: str | PathLike[str], *, device: str = "auto", precision: str = "auto") -> Model:
    """The newest (or served) model of a run, a journey's last, or a checkpoint, to talk with and to look into.

    device: auto, cpu, cuda or cuda:1. precision: auto, float32 or bfloat16. Raises ValueError where there is no model,
    or its checkpoint is damaged, naming the file.
    """
    from fledge.notebook.model import open_run as opened

    return opened(run, device=device, precision=precision)


def __getattr__(name: str) -> Any:
    if name == "Model":
        return import_module("fledge.notebook.model").Model
    if name not in VERBS:
        import difflib

        near = difflib.get_close_matches(name, __all__, n=1)
        raise AttributeError(f"fledge.api has no {name!r}" + (f"; did you mean {near[0]}?" if near else ""))
    function = globals()[name] = VerbFunction(name)
    return function


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
