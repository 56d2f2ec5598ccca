"""A folder of curated text as its manifest describes it: which shards there are, and whether they are the ones written.

clean/
    data/part-00000.parquet ...  rejected/part-00000.parquet ...  manifest.json
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import msgspec

FORMAT = "fledge curated text 1"
MANIFEST = "manifest.json"
UNFINISHED = "work/plan.json"  # while it is being made
_MARK = b'"format":"fledge curated text '  # of this version or another


class ShardRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is written down about one shard. `file` is relative to the folder; `bytes` and `sha256` are of the file."""

    file: str
    sha256: str
    bytes: int
    pages: int
    characters: int
    tokens: int  # estimated: words and Chinese characters


class Manifest(msgspec.Struct, frozen=True):
    """The shards of a curated folder; `facts` is everything else the manifest holds."""

    shards: list[ShardRecord]
    rejected: list[ShardRecord]
    facts: dict[str, Any]


def is_curated(folder: Path) -> bool:
    """Whether this folder holds curated text. Raises ValueError for one that is not finished: its manifest comes last."""
    try:
        return _MARK in (folder / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        pass
    if (folder / UNFINISHED).exists():
        raise ValueError(f"{folder} is not finished: `fledge resume {folder}` goes on with it")
    return False


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a curated folder. Raises ValueError where there is none, or one that cannot be used."""
    path = folder / MANIFEST
    try:
        held = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        if held["format"] != FORMAT:
            raise ValueError(f"its format is {held['format']!r}, this version reads {FORMAT!r}")
        shards, rejected = (msgspec.convert(held.pop(k), list[ShardRecord]) for k in ("shards", "rejected"))
    except FileNotFoundError:
        raise ValueError(f"{folder} holds no curated text (no {MANIFEST}): `fledge curate` writes it last") from None
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} cannot be used ({error}): restore it, or curate again into a fresh folder") from None
    return Manifest(shards, rejected, held)


def require_whole(folder: Path, record: ShardRecord) -> Path:
    """The shard's path, once its bytes are those that were recorded. Raises ValueError naming the shard."""
    path = folder / record.file
    try:
        with open(path, "rb") as file:
            seen, size = hashlib.file_digest(file, "sha256").hexdigest(), file.tell()
    except FileNotFoundError:
        raise ValueError(f"{path} is missing: its manifest names it; restore it, or curate again") from None
    if (seen, size) != (record.sha256, record.bytes):
        raise ValueError(
            f"{path} is not the shard that was written: {size:,} bytes with sha256 {seen[:12]}, its record says "
            f"{record.bytes:,} bytes, {record.sha256[:12]}. Restore it, or curate again into a fresh folder"
        )
    return path


def kept_shards(folder: Path) -> list[Path]:
    """What a curated folder offers to readers: its shards, without what was rejected."""
    return [folder / record.file for record in read_manifest(folder).shards]


def require_recorded(path: Path) -> None:
    """Raise ValueError naming the file where it is a shard of curated text, and not the one that was written."""
    folder = path.parent.parent
    if path.suffix == ".parquet" and is_curated(folder):
        for record in read_manifest(folder).shards:
            if folder / record.file == path:
                require_whole(folder, record)
