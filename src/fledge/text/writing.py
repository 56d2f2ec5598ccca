"""Rows to a file of any kind that is read here, streamed, and whole or not there at all.

.jsonl and .json, also .gz or .zst, take any rows. A .parquet or .arrow file has one schema, which is known only when all
rows are; so they go through a temporary .jsonl beside it. Equal rows give equal bytes.
"""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import msgspec

from fledge.core.durable import fsync_folder
from fledge.text.files import Row
from fledge.text.paths import file_type, shown_path

if TYPE_CHECKING:
    import pyarrow

KINDS = (".jsonl", ".ndjson", ".json", ".parquet", ".arrow")
_TABLES = (".parquet", ".arrow")
_BATCH_ROWS = 1024
_BATCH_BYTES = 32 << 20


def file_problems(path: Path) -> list[str]:
    """Why rows cannot be written to a file of this name; empty where they can."""
    kind, packing = file_type(path.name)
    if kind not in KINDS or (packing and kind in _TABLES):
        return [
            f"out = {shown_path(path)}: must end with {' '.join(KINDS)}, of which .jsonl and .json also take .gz or .zst"
        ]
    return []


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Write `rows`; an exception, theirs too, leaves what was there.

    Raises ValueError for another file name, and where rows do not fit into the columns of one table.
    """
    if problems := file_problems(path):
        raise ValueError("; ".join(problems))
    kind, packing = file_type(path.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(path) as temporary:
        if kind not in _TABLES:
            with _packed(temporary, packing, path) as file:
                _write_json(file, rows, array=kind == ".json")
            return
        spool = temporary.with_name(f"{temporary.name}.jsonl")
        try:
            with open(spool, "wb") as file:
                _write_json(file, rows, array=False)
            _write_table(kind, spool, temporary, path)
        finally:
            spool.unlink(missing_ok=True)


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place in the end."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


@contextmanager
def _packed(temporary: Path, packing: str, path: Path) -> Iterator[BinaryIO]:
    with open(temporary, "wb") as file:
        if packing == ".gz":  # without name and time, so that equal rows give equal bytes
            with gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as packed:
                yield packed
        elif packing == ".zst":
            try:
                import zstandard
            except ImportError as error:
                raise ValueError(
                    f"{shown_path(path)}: writing .zst needs the package zstandard: `pip install zstandard`, or use .gz"
                ) from error
            with zstandard.ZstdCompressor().stream_writer(file, closefd=False) as packed:
                yield packed
        else:
            yield file


def _write_json(file: BinaryIO, rows: Iterable[Row], array: bool) -> None:
    if array:
        file.write(b"[")
    for index, row in enumerate(rows):
        line = msgspec.json.encode(row)
        file.write((b",\n" if index else b"\n") + line if array else line + b"\n")
    if array:
        file.write(b"\n]\n")


def _batches(spool: Path) -> Iterator[list[Row]]:
    rows, held_bytes = [], 0
    with open(spool, "rb") as file:
        for line in file:
            rows.append(msgspec.json.decode(line))
            held_bytes += len(line)
            if len(rows) >= _BATCH_ROWS or held_bytes >= _BATCH_BYTES:
                yield rows
                rows, held_bytes = [], 0
    if rows:
        yield rows


def _columns(rows: list[Row]) -> dict[str, list[Any]]:
    """Every field of any of the rows; None where a row lacks it."""
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(key for row in rows for key in row)}


def _write_table(kind: str, spool: Path, temporary: Path, path: Path) -> None:
    import pyarrow
    import pyarrow.ipc
    import pyarrow.parquet

    schema = _schema(spool, path)
    if kind == ".parquet":
        writer: Any = pyarrow.parquet.ParquetWriter(temporary, schema, compression="zstd")
    else:
        writer = pyarrow.ipc.new_file(str(temporary), schema)
    with writer:
        for rows in _batches(spool):
            held = _columns(rows)
            columns = [(field, held.get(field.name, [None] * len(rows))) for field in schema]
            writer.write_table(pyarrow.Table.from_arrays([_array(path, *c) for c in columns], schema=schema))


def _schema(spool: Path, path: Path) -> pyarrow.Schema:
    """The columns of all rows, each with a type that holds all its values."""
    import pyarrow

    schema = pyarrow.schema([])
    for rows in _batches(spool):
        for name, values in _columns(rows).items():
            try:
                found = pyarrow.schema([(name, pyarrow.array(values).type)])
                schema = pyarrow.unify_schemas([schema, found], promote_options="permissive")
            except (pyarrow.ArrowException, OverflowError) as error:
                raise _no_type(path, repr(name), error) from error
    return schema


def _array(path: Path, field: pyarrow.Field, values: list[Any]) -> pyarrow.Array:
    import pyarrow

    try:
        return pyarrow.array(values, field.type)
    except pyarrow.ArrowException as error:  # a whole number among fractions that no float64 is equal to
        raise _no_type(path, repr(field.name), error) from error


def _no_type(path: Path, column: str, error: Exception) -> ValueError:
    why = " ".join(str(error).split())
    return ValueError(
        f"{shown_path(path)}: column {column} holds values that no one type of a table does ({why}): write .jsonl, where "
        "every row is free"
    )
