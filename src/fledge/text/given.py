"""Rows that a Python program has in its hands: a data set of `datasets`, or a list of dicts."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from fledge.text.files import Row, brief

if TYPE_CHECKING:
    from fledge.text.readers import Rejects


def given_name(source: Any) -> str | None:
    """What rows in memory are called in messages; None for paths."""
    if _from_datasets(source):
        return f"{type(source).__name__}"
    if isinstance(source, list | tuple) and source and isinstance(source[0], dict):
        return "rows"
    return None


def given_rows(source: Any, rejects: Rejects) -> Iterator[tuple[str, Row]]:
    """("NAME:ROW", row) of what `given_name` has a name for. Rows that no file could hold are rejected.

    A data set is read as stored, whatever format (torch, numpy) it was set to. Raises ValueError for several splits.
    """
    name = given_name(source)
    if _from_datasets(source):
        if isinstance(source, dict):
            names = ", ".join(repr(split) for split in source)
            raise ValueError(
                f"a {name} holds several splits, {names}: give one of them, as data[{next(iter(source))!r}]"
            )
        return _named(name, source.with_format(None))
    return _checked(name, source, rejects)


def _from_datasets(source: Any) -> bool:
    """Whether it is an object of `datasets`, which then has been imported; we do not import it."""
    module = sys.modules.get("datasets")
    if module is None:
        return False
    kinds = (module.Dataset, module.IterableDataset, module.DatasetDict, module.IterableDatasetDict)
    return isinstance(source, kinds)


def _named(name: str, rows: Iterable[Row]) -> Iterator[tuple[str, Row]]:
    for number, row in enumerate(rows, 1):
        yield f"{name}:{number}", row


def _checked(name: str, rows: Iterable[Any], rejects: Rejects) -> Iterator[tuple[str, Row]]:
    for source, row in _named(name, rows):
        try:
            if not isinstance(row, dict):
                raise TypeError(f"it is a {type(row).__name__}, not a dict")
            json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
            rejects.add(source, "row that JSON cannot hold", f"{error}: {brief(row)}")
        else:
            yield source, row
