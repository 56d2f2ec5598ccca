"""Arguments from Python: rows in memory as files that a run can be resumed from, and values as TOML would give them."""

from __future__ import annotations

import hashlib
import numbers
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from fledge.core.log import say
from fledge.text.files import Row
from fledge.text.given import given_name, given_rows
from fledge.text.readers import Rejects
from fledge.text.writing import write_rows

# Options that take rows in memory. These runs keep them in OUT/given, so that `fledge resume` finds them.
KEPT = {
    "journey": ("text", "chats", "pairs"), "curate": ("inputs",), "quality": ("good", "ordinary"),
    "rephrase": ("inputs",), "pretrain": ("text",), "sft": ("chats",), "reward": ("pairs",), "dpo": ("pairs",),
    "kto": ("votes",), "reinforce": ("prompts",), "best-of-n": ("prompts",), "shift": ("prompts",),
}  # fmt: skip
READ = {"convert": ("inputs",), "show": ("chats",)}  # these read them where they are
TAKES_ROWS = KEPT | READ


def without_rows(verb: str, given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(the arguments that are rows in memory, all arguments with names in place of those)."""
    rows = {name: given[name] for name in TAKES_ROWS.get(verb, ()) if _holds_rows(given.get(name))}
    return rows, given | {name: _named(value) for name, value in rows.items()}


def _holds_rows(value: Any) -> bool:
    inside = isinstance(value, list | tuple) and any(given_name(part) is not None for part in value)
    return given_name(value) is not None or inside


def _named(value: Any) -> Any:
    """As `_holds_rows` values look while the other arguments are checked."""
    if (name := given_name(value)) is not None:
        return name
    return [given_name(part) or plain(part) for part in value]


def in_files(verb: str, options: Any, rows: dict[str, Any]) -> Any:
    """`options` with the rows in memory: as they are for a verb that reads them so, else as files in its folder."""
    if verb in READ:
        for name, value in rows.items():
            if given_name(value) is None:
                raise ValueError(f"{name}: a list of several data sets or of files and rows; give one of them")
        return msgspec.structs.replace(options, **rows)
    folder = Path(options.out) / "given"
    return msgspec.structs.replace(options, **{name: _kept(folder, name, value) for name, value in rows.items()})


def _kept(folder: Path, name: str, value: Any) -> list[str]:
    parts = [value] if given_name(value) is not None else value
    return [plain(part) if given_name(part) is None else str(keep_rows(folder, name, part)) for part in parts]


def keep_rows(folder: Path, name: str, rows: Any) -> Path:
    """Write rows in memory to FOLDER/NAME-<hash>.jsonl, streamed; other rows get another name, so a run sees the change.

    Rows that JSON cannot hold are left out of a list, and told; in a data set they are a ValueError, for there it is a
    whole column.
    """
    rejects, draft = Rejects(), folder / f".{name}.jsonl"
    write_rows(draft, _encodable(given_rows(rows, rejects)))
    with open(draft, "rb") as file:
        content = hashlib.file_digest(file, "sha256").hexdigest()
    path = folder / f"{name}-{content[:12]}.jsonl"
    os.replace(draft, path)
    if rejects.total:
        say(f"{name}: {rejects.summary()}")
    return path


def _encodable(rows: Iterator[tuple[str, Row]]) -> Iterator[Row]:
    for source, row in rows:
        try:
            msgspec.json.encode(row)
        except (TypeError, ValueError) as error:
            kinds = {key: type(value).__name__ for key, value in row.items()}
            raise ValueError(
                f"{source}: a row that JSON cannot hold ({error}); its columns are {kinds}: remove those that are not "
                "text or numbers, as with `remove_columns`"
            ) from None
        yield row


def plain(value: Any) -> Any:
    """A value as TOML would give it: paths as text, Settings and dicts as dicts, numbers of numpy as Python's."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [plain(inner) for inner in value]
    if isinstance(value, bool):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) else value
