"""Settings of the loop, and how a recipe is read: TOML, then `--section.key value`, then every error in one list."""

import difflib
import re
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every recipe and option set: one sentence under each field, and rules that are all told at once."""

    def problems(self) -> list[str]:
        """Every rule these settings break, in words; empty when they can be used."""
        return []


T = TypeVar("T", bound=Settings)


class TrainConfig(Settings, frozen=True, kw_only=True):
    """How a stage is trained; the same fields for every stage."""

    steps: int | None = None
    "Optimiser steps; None lets the stage derive them from its tokens or epochs."
    batch_tokens: int = 4096
    "Positions per optimiser step over all ranks."
    micro_tokens: int = 16384
    "Positions per forward pass; smaller saves memory and gives the same gradient."
    lr: float = 1e-3
    "Peak learning rate."
    min_lr: float = 0.1
    "Final learning rate as a share of the peak."
    warmup: float = 0.02
    "Share of the steps spent warming up."
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    "Shape of the decay."
    optimizer: Literal["adamw", "muon"] = "adamw"
    "AdamW, or Muon for the blocks' matrices with AdamW for the rest."
    beta1: float = 0.9
    "AdamW's decay of the gradient's mean."
    beta2: float = 0.95
    "AdamW's decay of the gradient's square."
    weight_decay: float = 0.1
    "Decoupled weight decay of matrices."
    clip: float = 1.0
    "Largest gradient norm; larger ones are scaled down."
    spike_sigma: float | None = 8.0
    "Skip a step whose loss or gradient norm is this many deviations above the last 128; None turns it off."
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    "Dtype of activations and products; weights stay float32."
    device: str = "auto"
    "auto, cpu, cuda or cuda:1."
    threads: int | None = None
    "CPU threads; None takes all usable cores."
    compile: bool = False
    "Compile the model with torch.compile: worth its 20-80 s start from about 5 minutes of training on."
    save_seconds: float = 120.0
    "Time between checkpoints, in seconds."
    seed: int = 0
    "Seed of the initial weights and the order of the data."

    def problems(self) -> list[str]:
        """Every rule these settings break, in words."""
        found = []

        def rule(ok: bool, name: str, must: str) -> None:
            if not ok:
                found.append(f"train.{name} = {getattr(self, name)!r}: must be {must}")

        rule(self.steps is None or 1 <= self.steps <= 10**9, "steps", "between 1 and 1e9")
        rule(self.batch_tokens >= 1, "batch_tokens", "at least 1")
        rule(self.micro_tokens >= 1, "micro_tokens", "at least 1")
        rule(0 < self.lr < 10, "lr", "above 0 and below 10; 1e-3 is usual")
        rule(0 <= self.min_lr <= 1, "min_lr", "a share between 0 and 1 of lr")
        rule(0 <= self.warmup < 1, "warmup", "a share of the steps in [0, 1)")
        rule(0 <= self.beta1 < 1, "beta1", "in [0, 1)")
        rule(0 <= self.beta2 < 1, "beta2", "in [0, 1)")
        rule(self.weight_decay >= 0, "weight_decay", "at least 0; 0 turns it off")
        rule(self.clip > 0, "clip", "above 0; inf turns it off")
        rule(self.spike_sigma is None or self.spike_sigma > 0, "spike_sigma", "above 0, or none to turn it off")
        rule(self.save_seconds > 0, "save_seconds", "above 0")
        rule(self.threads is None or self.threads >= 1, "threads", "at least 1")
        rule(bool(re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device)), "device", "auto, cpu, cuda or cuda:1")
        rule(0 <= self.seed < 2**63, "seed", "at least 0 and below 2**63")
        return found


def parse_count(text: int | str | None) -> int | None:
    """5M, 200k, 1_000_000 or a plain number of tokens."""
    if text is None or isinstance(text, int):
        if isinstance(text, int) and text < 1:
            raise ValueError(f"tokens = {text}: must be at least 1")
        return text
    scale = {"k": 10**3, "m": 10**6, "b": 10**9}.get(text[-1:].lower(), 1)
    digits = (text[:-1] if scale > 1 else text).replace("_", "")
    try:
        count = int(float(digits) * scale)
    except (ValueError, OverflowError):
        count = 0
    if count < 1:
        raise ValueError(f"tokens = {text!r}: must be a number of tokens such as 5M, 200k or 1_000_000")
    return count


def count_problems(text: int | str | None) -> list[str]:
    """What is wrong with a token count, as a list for problems()."""
    try:
        parse_count(text)
    except ValueError as error:
        return [str(error)]
    return []


def struct_of(kind: Any) -> type[msgspec.Struct] | None:
    """The Struct of a field that is a section, None of any other field."""
    options = typing.get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, msgspec.Struct)), None)


def _check(kind: type[msgspec.Struct], data: dict[str, Any], prefix: str, errors: list[str]) -> dict[str, Any]:
    """Collect unknown keys (with the nearest known one) and wrong types of `data` as a `kind`; returns the rest of it.

    A section given in part is completed with the defaults of `kind`, which may differ from those of the section's type.
    """
    known, usable = {f.name: f for f in msgspec.structs.fields(kind)}, {}
    for key, value in data.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {prefix}{near[0]}?" if near else f"known keys: {', '.join(known)}"
            errors.append(f"{prefix}{key}: unknown key; {hint}")
            continue
        inner = struct_of(known[key].type)
        if inner and isinstance(value, str) and "kind" in inner.__struct_fields__:
            value = _section(value)
        if inner and isinstance(value, dict):
            given = _check(inner, _wrap_lists(inner, value), f"{prefix}{key}.", errors)
            default = known[key].default
            usable[key] = (msgspec.to_builtins(default) if isinstance(default, inner) else {}) | given
            continue
        try:
            msgspec.convert(value, known[key].type)
            usable[key] = value
        except msgspec.ValidationError as error:
            errors.append(f"{prefix}{key} = {value!r}: {str(error).split(' - at ')[0]}")
    for name, field in known.items():
        if field.required and name not in data:
            errors.append(f"{prefix}{name}: required; set it in the recipe or with --{prefix}{name}")
    return usable


def _broken_rules(kind: type[Settings], data: dict[str, Any]) -> list[str]:
    """problems() of `data`; where a required field is missing, those of its sections."""
    fields = msgspec.structs.fields(kind)
    if not any(f.required and f.name not in data for f in fields):
        return msgspec.convert(data, kind).problems()
    sections = [(f.name, inner) for f in fields if isinstance(data.get(f.name), dict) and (inner := struct_of(f.type))]
    return [p for name, inner in sections for p in _broken_rules(inner, data[name])]


def _literal(text: str) -> Any:
    """A command-line value by TOML's rules: 1e-3, 1_000, true, "text", [..]; `none`; anything else is text."""
    if text.lower() == "none":
        return None
    try:
        value = tomllib.loads(f"x = {text}")["x"]
    except tomllib.TOMLDecodeError:
        return text
    return value if isinstance(value, bool | int | float | str | list | dict) else text  # a folder named 2026-01-31


def _section(value: Any) -> Any:
    """A section named by a word alone is one of that kind: --adapter lora is --adapter.kind lora."""
    return {"kind": value} if isinstance(value, str) else value


def parse_overrides(arguments: list[str]) -> dict[str, Any]:
    """["--train.steps", "200", "--name=x"] -> {"train": {"steps": 200}, "name": "x"}. A key given twice makes a list."""
    found: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--") or len(flag) < 3:
            raise ValueError(f"{flag!r}: expected --section.key value, for example --train.steps 200")
        key, equals, value = flag[2:].partition("=")
        if not equals:
            if not rest or (rest[0].startswith("--") and len(rest[0]) > 2):
                value = "true"
            else:
                value = rest.pop(0)
        node = found
        *sections, last = key.replace("-", "_").split(".")
        for section in sections:
            node[section] = node = _section(node.get(section, {}))
            if not isinstance(node, dict):
                raise ValueError(f"{flag}: --{section} was given a value before; set it or its fields, not both")
        parsed = _literal(value)
        if isinstance(node.get(last), dict) and isinstance(parsed, str):
            node[last] = _section(parsed) | node[last]
            continue
        if isinstance(node.get(last), dict):
            raise ValueError(f"{flag}: fields of it were set before; set it or its fields, not both")
        if last in node:
            before = node[last] if isinstance(node[last], list) else [node[last]]
            node[last] = [*before, parsed]
        else:
            node[last] = parsed
    return found


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` wins, section by section."""
    result = dict(base)
    for key, value in over.items():
        one, other = result.get(key), value
        if isinstance(one, dict) or isinstance(other, dict):
            one, other = _section(one), _section(other)
        both = isinstance(one, dict) and isinstance(other, dict)
        result[key] = merge(one, other) if both else value
    return result


def flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by their names on the command line: {"train": {"lr": 1}} -> {"train.lr": 1}."""
    if not isinstance(value, dict):
        return {prefix: value}
    return {k: v for key, inner in value.items() for k, v in flat(inner, f"{prefix}.{key}" if prefix else key).items()}


def differences(there: Any, now: Any) -> list[str]:
    """Where two recipes differ, setting by setting, in words; both may be Structs or what JSON made of them."""
    old, new = (flat(msgspec.json.decode(msgspec.json.encode(value))) for value in (there, now))
    return [f"{k}: {old.get(k)!r} there, {new.get(k)!r} now" for k in sorted({*old, *new}) if old.get(k) != new.get(k)]


def _wrap_lists(kind: type[msgspec.Struct], data: dict[str, Any]) -> dict[str, Any]:
    """A single value given for a list field (`--text docs/`) is a list of one."""
    result = dict(data)
    for field in msgspec.structs.fields(kind):
        listed = typing.get_origin(field.type) in (list, tuple)
        if listed and field.name in result and not isinstance(result[field.name], list | tuple):
            result[field.name] = [result[field.name]]
    return result


def build(kind: type[T], data: dict[str, Any]) -> T:
    """`data` as a `kind`, or one ValueError listing every unknown key, wrong type and broken rule."""
    errors: list[str] = []
    usable = _check(kind, _wrap_lists(kind, data), "", errors)
    errors += _broken_rules(kind, usable)
    if not errors:
        return msgspec.convert(usable, kind)
    lines = "\n  ".join(errors)
    raise ValueError(f"{len(errors)} setting{'s' * (len(errors) > 1)} cannot be used:\n  {lines}")


def load_recipe(kind: type[T], path: Path | str | None, overrides: dict[str, Any]) -> T:
    """A TOML recipe (or none) with command-line overrides on top; the command line wins."""
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = tomllib.loads(Path(path).read_text("utf-8"))
        except FileNotFoundError:
            raise ValueError(f"recipe {path} does not exist") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"recipe {path} is not valid TOML: {error}") from None
    return build(kind, merge(data, overrides))


def field_docs(kind: type[msgspec.Struct]) -> dict[str, str]:
    """The sentence under each field of a Struct, its bases included, read from the source."""
    import ast
    import inspect
    import textwrap

    docs: dict[str, str] = {}
    for owner in reversed([c for c in kind.__mro__ if issubclass(c, msgspec.Struct) and c is not msgspec.Struct]):
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0].body
        for field, text in zip(body, body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                docs[field.target.id] = text.value.value
    return docs


def describe(kind: type[msgspec.Struct], prefix: str = "--") -> list[tuple[str, str, str]]:
    """(flag, default, sentence) of every field reachable from `kind`, for --help."""
    rows = []
    docs = field_docs(kind)
    for field in msgspec.structs.fields(kind):
        default = field.default if field.default is not msgspec.NODEFAULT else None
        if inner := struct_of(field.type):
            shown = {f"{prefix}{field.name}.{k}": v for k, v in msgspec.structs.asdict(default or inner()).items()}
            rows += [
                (flag, shown_value(shown.get(flag, old)), doc)
                for flag, old, doc in describe(inner, f"{prefix}{field.name}.")
            ]
        else:
            shown = (
                "required" if field.required else shown_value(default if field.default is not msgspec.NODEFAULT else [])
            )
            rows.append((prefix + field.name, shown, docs.get(field.name, "")))
    return rows


def shown_value(value: Any) -> str:
    """A default as one would type it after its flag."""
    if isinstance(value, str):
        return value if value.isprintable() else msgspec.json.encode(value).decode()  # as TOML, on one line
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
