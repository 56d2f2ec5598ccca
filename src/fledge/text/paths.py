"""Names of files: which there are below a folder, what type a name says, and how it is shown."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from fledge.text.curated import is_curated, kept_shards
from fledge.text.saved import saved_files

PACKINGS = (".gz", ".zst")


def walk(folder: Path) -> Iterator[tuple[Path, str]]:
    """(path, "") of every file below `folder`, sorted by path; where it is not to be opened, why, in place of "".

    Of a folder of curated text only the shards that its manifest names, of a saved `datasets.Dataset` only its tables.
    Raises ValueError for a folder that is not finished, or holds several splits.
    """
    if is_curated(folder):
        yield from ((path, "") for path in kept_shards(folder))
        return
    if (saved := saved_files(folder)) is not None:
        yield from ((path, "") for path in saved)
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.is_symlink():  # a link to a parent would never end
            yield path, "linked folder, not followed"
        elif path.is_dir():
            yield from walk(path)
        elif not path.is_file():  # opening a named pipe would wait for ever
            yield path, "not a regular file (a link to nothing, a pipe or a device)"
        else:
            yield path, ""


def file_type(name: str) -> tuple[str, str]:
    """(".jsonl", ".gz") for "a.jsonl.gz", (".txt", "") for "A.TXT"."""
    stem, extension = os.path.splitext(name.lower())
    return (os.path.splitext(stem)[1], extension) if extension in PACKINGS else (extension, "")


def shown_path(path: str | os.PathLike[str]) -> str:
    """The path as text that can always be written: a name that is not UTF-8 shows its odd bytes as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
