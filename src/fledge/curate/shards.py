"""Shards of pages on disk: Parquet of the same bytes for the same pages, a record of each, and the manifest.

A shard is written under a temporary name, synced and renamed, so that a file with its name is whole. What is known
about a set of shards goes into a JSON sidecar, written after them; the manifest of a folder is written last of all.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fledge.core.durable import canonical_json, fsync_folder, write_atomically
from fledge.curate.pages import BATCH_BYTES, BATCH_PAGES, PAGE
from fledge.text.curated import FORMAT, MANIFEST, Manifest, ShardRecord, read_manifest, require_whole

__all__ = [
    "Curated", "ShardRecord", "ShardWriter", "aligned", "characters", "estimated_tokens", "read_sidecar",
    "remove_unfinished", "require_whole", "row_groups", "write_manifest", "write_shard", "write_sidecar",
]  # fmt: skip

_UNFINISHED = ".tmp"
_BLOCK_BYTES = 1 << 20  # of text counted at a time
_COMPRESSION_LEVEL = 3  # zstd's default
_FEW_VALUES = ("language", "step", "reason", "repaired", "style", "contaminated_by")  # worth a dictionary
T = TypeVar("T")


def estimated_tokens(text: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """[n] int64: words between spaces plus Chinese characters of each text, counted on its UTF-8 bytes.

    An estimate that needs no tokenizer and is the same for every recipe. Han is told by the first of its three bytes
    (E4..E9: U+4000 to U+9FFF).
    """
    array = text.combine_chunks() if isinstance(text, pa.ChunkedArray) else text
    array = array.cast(pa.large_string())
    counts = np.zeros(len(array), np.int64)
    if not len(array):
        return counts
    starts = np.frombuffer(array.buffers()[1], np.int64)[array.offset : array.offset + len(array) + 1]
    data = np.frombuffer(array.buffers()[2] or b"", np.uint8)
    for first in range(starts[0], starts[-1], _BLOCK_BYTES):
        block = data[first : min(first + _BLOCK_BYTES, starts[-1])]
        space = block <= 0x20
        begins = np.empty(len(block), bool)  # of a word
        begins[0] = data[first - 1] <= 0x20
        begins[1:] = space[:-1]
        pages = starts[:-1] - first
        begins[pages[(pages >= 0) & (pages < len(block))]] = True
        begins &= ~space
        begins |= (block - np.uint8(0xE4)) <= 5  # E4..E9; below, it wraps around
        counts += np.diff(np.searchsorted(np.flatnonzero(begins), starts - first))
    return counts


def characters(text: pa.ChunkedArray | pa.Array) -> np.ndarray:
    """[n] int64: code points of each text; 0 where it is null."""
    return pc.fill_null(pc.utf8_length(text), 0).to_numpy().astype(np.int64)


def aligned(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """`table` with exactly the columns of `schema`, in its order and types; those it lacks are null."""
    unknown = set(table.column_names) - set(schema.names)
    assert not unknown, f"columns {sorted(unknown)} are not in the shard's schema {schema.names}"
    columns = [
        table[field.name].cast(field.type) if field.name in table.column_names else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


class ShardWriter:
    """One Parquet file, written as tables come; the bytes depend on the tables alone.

    Row groups close at BATCH_PAGES pages or BATCH_BYTES bytes. Used as a context: left by an error, nothing remains.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self.path, self.schema = path, schema
        path.parent.mkdir(parents=True, exist_ok=True)
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}{_UNFINISHED}")
        few = [f.name for f in schema if f.name in _FEW_VALUES]
        figures = [f.name for f in schema if not (pa.types.is_string(f.type) or pa.types.is_large_string(f.type))]
        self._parquet = pq.ParquetWriter(
            self._temporary,
            schema,
            compression="zstd",
            compression_level=_COMPRESSION_LEVEL,
            use_dictionary=few,
            write_statistics=[*few, *figures],
        )
        self._waiting: list[pa.Table] = []
        self.pages = self.characters = self.tokens = 0

    def write(self, table: pa.Table) -> None:
        """Append pages; columns they lack are null."""
        if not len(table):
            return
        self._waiting.append(aligned(table, self.schema))
        self.pages += len(table)
        if "text" in self.schema.names:
            self.characters += int(characters(table["text"]).sum())
            self.tokens += int(estimated_tokens(table["text"]).sum())
        rows, size = (sum(f(t) for t in self._waiting) for f in (len, lambda t: t.nbytes))
        if rows >= BATCH_PAGES or size >= BATCH_BYTES:
            self._write_group()

    def _write_group(self) -> None:
        if self._waiting:
            rows = pa.concat_tables(self._waiting).combine_chunks()
            self._parquet.write_table(rows, row_group_size=max(1, len(rows)))
            self._waiting.clear()

    def close(self, folder: Path) -> ShardRecord:
        """Sync, rename and describe the shard; its `file` is relative to `folder`."""
        self._write_group()
        self._parquet.close()
        with open(self._temporary, "rb") as file:
            os.fsync(file.fileno())
            digest, size = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
        os.replace(self._temporary, self.path)
        fsync_folder(self.path.parent)
        file = self.path.relative_to(folder).as_posix()
        return ShardRecord(file, digest, size, self.pages, self.characters, self.tokens)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            try:
                self._parquet.close()
            finally:
                self._temporary.unlink(missing_ok=True)


def write_shard(
    path: Path, tables: Iterable[pa.Table], *, schema: pa.Schema | None = None, folder: Path | None = None
) -> ShardRecord:
    """Write one shard whole; `schema` is that of the first table unless given, `file` relative to `folder`.

    `folder` is the one that will hold the manifest; without it, the one above the shard's (clean/ of clean/data/x).
    """
    tables = iter(tables)
    first = next(tables, None)
    kept = schema or (PAGE if first is None else first.schema)
    with ShardWriter(path, kept.remove_metadata()) as writer:
        if first is not None:
            writer.write(first)
        for table in tables:
            writer.write(table)
        return writer.close(folder or path.parent.parent)


def row_groups(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """The pages of one shard, a row group at a time."""
    with pq.ParquetFile(path) as shard:
        for group in range(shard.num_row_groups):
            yield shard.read_row_group(group, columns=None if columns is None else list(columns))


def remove_unfinished(folder: Path) -> None:
    """Delete what killed writers left in `folder`; only for who knows that none is at work."""
    for left in folder.glob(f".*{_UNFINISHED}"):
        left.unlink(missing_ok=True)


def write_sidecar(path: Path, facts: msgspec.Struct) -> None:
    """What is known about finished shards, written after them."""
    write_atomically(path, canonical_json(facts))


def read_sidecar(path: Path, kind: type[T]) -> T | None:
    """A sidecar as a `kind`; None where it is not there, or not one of this version: its work is done again."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def write_manifest(
    folder: Path, shards: Sequence[ShardRecord], *, rejected: Sequence[ShardRecord] = (), facts: Mapping[str, Any]
) -> Path:
    """Write manifest.json, which makes `folder` curated text; `facts` says how it came to be."""
    path = folder / MANIFEST
    write_atomically(path, canonical_json({**facts, "format": FORMAT, "shards": shards, "rejected": rejected}))
    return path


class Curated:
    """A folder of curated text. Every shard is checked against the manifest before it is read."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest

    @classmethod
    def open(cls, folder: Path | str) -> Curated:
        """Raises ValueError where the folder holds no curated text, or a shard is missing or of another size."""
        folder = Path(folder)
        manifest = read_manifest(folder)
        for record in manifest.shards:
            path = folder / record.file
            if not path.exists() or path.stat().st_size != record.bytes:
                require_whole(folder, record)  # says what is wrong
        return cls(folder, manifest)

    @property
    def pages_count(self) -> int:
        return sum(record.pages for record in self.manifest.shards)

    def tables(self, columns: Sequence[str] | None = None, *, rejected: bool = False) -> Iterator[pa.Table]:
        """The pages, shard by shard, at most a row group at a time. Raises ValueError naming a shard that differs."""
        for record in self.manifest.rejected if rejected else self.manifest.shards:
            yield from row_groups(require_whole(self.folder, record), columns)

    def texts(self) -> Iterator[str]:
        """The text of every page, in order."""
        for table in self.tables(["text"]):
            yield from table["text"].to_pylist()
