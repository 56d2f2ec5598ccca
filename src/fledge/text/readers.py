"""Files and folders to rows and documents, streamed: in memory is one line, one piece of text or one batch of a table.

Rows may also come from Python: a `datasets.Dataset` or `IterableDataset`, or a list of dicts, in place of paths.

Two kinds of trouble are kept apart:

- a *row* that is well formed but unusable is dropped and counted in `Rejects`, with its place and a reason;
- a *file* that cannot be trusted (broken JSON, wrong encoding, damaged archive) is a ValueError that names the file,
  the place, the rule and the remedy. Broken .jsonl lines can be waved through, up to a number: `skip_bad`.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from fledge.text import files
from fledge.text.curated import require_recorded
from fledge.text.files import Row, RowRejected
from fledge.text.given import given_name, given_rows
from fledge.text.paths import file_type, shown_path, walk
from fledge.text.tables import TABLE_TYPES, table_rows

SAMPLES_PER_REASON = 5
SAMPLE_CHARS = 160

TEXT_TYPES = (".txt", ".md", ".rst")
ROW_TYPES = (".jsonl", ".json", *TABLE_TYPES, ".ndjson")

UNSUPPORTED = "unsupported file type"
TOO_LONG = f"line longer than {files.MAX_LINE_BYTES // 1024**2} MiB"
BROKEN_JSON = "broken JSON line"
BLANK = "blank"

Paths = str | os.PathLike[str] | Iterable[str | os.PathLike[str]]  # or rows in memory: see `given.py`
_JSON_NAMES = {dict: "object", list: "list", str: "string", type(None): "null", bool: "true/false"}


class Document(msgspec.Struct, frozen=True):
    """One text to learn from. `source` is "path" for a whole file, else "path:line" (parquet: "path:row")."""

    text: str
    source: str


class Rejects:
    """Counts what was dropped, by file and reason, and keeps the first five samples of each reason."""

    def __init__(self) -> None:
        self._by_file: dict[str, Counter[str]] = {}
        self._samples: dict[str, list[dict[str, str]]] = {}

    def add(self, source: str, reason: str, sample: str = "") -> None:
        """Count one reject at `source`: "path", "path:line" or "path:line:column"."""
        file = re.sub(r"(:\d+){1,2}$", "", source)
        self._by_file.setdefault(file, Counter())[reason] += 1
        kept = self._samples.setdefault(reason, [])
        if len(kept) < SAMPLES_PER_REASON:
            kept.append({"source": source, "sample": _printable(sample)})

    @property
    def counts(self) -> dict[str, int]:
        """Rejects by reason, most frequent first."""
        return dict(sum(self._by_file.values(), Counter()).most_common())

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    def as_dict(self) -> dict[str, Any]:
        """The same facts as JSON-able values: total, by_reason, by_file, samples."""
        by_file = {file: dict(counts) for file, counts in self._by_file.items()}
        return {"total": self.total, "by_reason": self.counts, "by_file": by_file, "samples": self._samples}

    def summary(self) -> str:
        """The counts in plain words, one line per reason with the first place it was seen."""
        if not self._by_file:
            return "nothing dropped"
        lines = [f"{self.total:,} dropped:"]
        for reason, count in self.counts.items():
            first = self._samples[reason][0]
            seen = f": {first['sample']}" if first["sample"] else ""
            lines.append(f"  {count:,} {reason} (first at {first['source']}{seen})")
        return "\n".join(lines)


def require_some(items_count: int, paths: Paths, rejects: Rejects, what: str) -> None:
    """Raise ValueError "0 usable `what` in ..." with the reasons, where nothing was left to train on."""
    if items_count > 0:
        return
    names = given_name(paths) or ", ".join(shown_path(path) for path in _as_list(paths)[:5])
    why = rejects.summary() if rejects.total else "the files are empty, or there are none"
    raise ValueError(f"0 usable {what} in {names}: {why}\nAt least one is needed: check the path and the rows named.")


def read_documents(
    paths: Paths, *, encoding: str | None = None, skip_bad: int | None = None, rejects: Rejects | None = None
) -> Iterator[Document]:
    """Stream the texts of files and of folders (recursive, sorted by path).

    Accepts .txt .md .rst (one document a file; above 64 MiB cut at blank lines) and .jsonl .json .parquet .arrow (the
    field `text` of each row), each also as .gz or .zst. Other files inside a folder are counted as rejects, and so are
    blank documents. `encoding` replaces the rule that text is UTF-8; `skip_bad` is the number of broken .jsonl lines
    to drop over the whole call.

    Raises ValueError at the call for a file of another type, an unknown encoding or a negative `skip_bad`, and
    FileNotFoundError for a missing path; later ValueError for broken JSON, wrong encoding and damaged files.
    """
    rejects = Rejects() if rejects is None else rejects
    if given_name(paths):
        return (Document(t, s) for s, t in _written(_row_texts(given_rows(paths, rejects), rejects), rejects))
    reader = _Reader(paths, TEXT_TYPES + ROW_TYPES, encoding, skip_bad, rejects, columns=frozenset({"text"}))
    return _documents(reader, rejects)


def read_rows(
    paths: Paths, *, encoding: str | None, skip_bad: int | None, rejects: Rejects, columns: frozenset[str]
) -> Iterator[tuple[str, Row]]:
    """Stream (source, row) from .jsonl, .json (array, single object or JSON lines), .parquet and .arrow files.

    `columns` names the fields a table is asked for. Errors as in `read_documents`.
    """
    if given_name(paths):
        return given_rows(paths, rejects)
    reader = _Reader(paths, ROW_TYPES, encoding, skip_bad, rejects, columns)
    return chain.from_iterable(reader.rows(path) for path in reader.paths_found())


def _documents(reader: _Reader, rejects: Rejects) -> Iterator[Document]:
    for path in reader.paths_found():
        is_text = file_type(path.name)[0] in TEXT_TYPES
        pieces = reader.pieces(path) if is_text else _row_texts(reader.rows(path), rejects)
        for source, text in _written(pieces, rejects):
            yield Document(text, source)


def _written(pieces: Iterable[tuple[str, str]], rejects: Rejects) -> Iterator[tuple[str, str]]:
    for source, text in pieces:
        if text.strip():
            yield source, text
        else:
            rejects.add(source, BLANK)


def _row_texts(rows: Iterable[tuple[str, Row]], rejects: Rejects) -> Iterator[tuple[str, str]]:
    for source, row in rows:
        text = row.get("text")
        if isinstance(text, str):
            yield source, text
        elif text is None:
            rejects.add(source, "no `text` field", keys_seen(row))
        else:
            rejects.add(source, "`text` is not a string", f"text is {kind_of(text)}: {files.brief(text)}")


def keys_seen(row: Row) -> str:
    """The keys of a row for a message; those that hold null are marked, for they count as absent."""
    names = [f"{key} (null)" if value is None else key for key, value in row.items()]
    return "keys seen: " + (", ".join(names) or "none")


def kind_of(value: object) -> str:
    """The JSON name of a value's type."""
    return _JSON_NAMES.get(type(value), "number" if isinstance(value, int | float) else type(value).__name__)


class _Reader:
    """One reading job: its checked paths and settings, and the budget of broken lines they share."""

    def __init__(
        self,
        paths: Paths,
        accepted: tuple[str, ...],
        encoding: str | None,
        skip_bad: int | None,
        rejects: Rejects,
        columns: frozenset[str],
    ) -> None:
        self.paths, self.accepted = [Path(path) for path in _as_list(paths)], accepted
        self.encoding, self.rejects, self.columns = encoding, rejects, columns
        self.skip_bad, self.skipped = skip_bad or 0, 0
        problems = [] if self.paths else ["no path given: name at least one file or folder"]
        if skip_bad is not None and (isinstance(skip_bad, bool) or not isinstance(skip_bad, int) or skip_bad < 0):
            problems.append(f"skip_bad is {skip_bad!r}: it must be a whole number of lines, 0 or more")
        if encoding is not None and not files.is_text_encoding(encoding):
            problems.append(f"encoding {encoding!r} is not known: use a name such as utf-16, latin-1 or gb18030")
        for path in self.paths:
            if not path.exists():
                raise FileNotFoundError(f"{shown_path(path)}: no such file or folder; check the path")
            if not path.is_dir() and file_type(path.name)[0] not in accepted:
                kinds = " ".join(accepted)
                problems.append(f"{shown_path(path)}: {UNSUPPORTED}; accepted are {kinds}, each also with .gz or .zst")
        if problems:
            raise ValueError("; ".join(problems))

    def paths_found(self) -> Iterator[Path]:
        for given in self.paths:
            for path in self._walk(given) if given.is_dir() else (given,):
                require_recorded(path)
                yield path

    def _walk(self, folder: Path) -> Iterator[Path]:
        for path, trouble in walk(folder):
            if file_type(path.name)[0] not in self.accepted:
                self.rejects.add(shown_path(path), trouble or UNSUPPORTED)
            elif trouble:
                self.rejects.add(shown_path(path), trouble)
            else:
                yield path

    def pieces(self, path: Path) -> Iterator[tuple[str, str]]:
        return _text_pieces(shown_path(path), self._chunks(path), self.rejects)

    def rows(self, path: Path) -> Iterator[tuple[str, Row]]:
        kind, _ = file_type(path.name)
        if kind in TABLE_TYPES:
            return table_rows(path, self.columns, _unpacked)
        if kind == ".json":
            return _json_rows(shown_path(path), self._chunks(path), self.rejects)
        return self._jsonl_rows(shown_path(path), self._chunks(path))

    def _chunks(self, path: Path) -> Iterator[bytes]:
        return files.utf8_chunks(shown_path(path), _unpacked(path), self.encoding)

    def _jsonl_rows(self, name: str, chunks: Iterator[bytes]) -> Iterator[tuple[str, Row]]:
        strict, broken, first = files.StrictJSON(), 0, ""
        for number, line in files.lines(chunks):
            source = f"{name}:{number}"
            if line is None:
                self.rejects.add(source, TOO_LONG)
            elif not line.isspace():
                try:
                    row = strict.row(line.decode().rstrip("\r\n"))
                except RowRejected as error:
                    self.rejects.add(source, error.reason, error.sample)
                except json.JSONDecodeError as error:
                    broken += 1
                    self.skipped += 1
                    first = first or f"{source}:{error.colno}: {files.json_trouble(error)}"
                    if self.skipped <= self.skip_bad:
                        self.rejects.add(f"{source}:{error.colno}", BROKEN_JSON, files.json_trouble(error))
                else:
                    if self.skipped <= self.skip_bad:  # past the budget we only count, for the message
                        yield source, row
        if self.skipped > self.skip_bad:
            raise ValueError(
                f"{first}\n{broken:,} broken line(s) in {name}, {self.skip_bad:,} allowed: every line of a .jsonl file "
                f"must be one whole JSON object. Repair the file, or drop them with `--skip-bad {self.skipped}`."
            )


def _as_list(paths: Paths) -> list[str | os.PathLike[str]]:
    return [paths] if isinstance(paths, str | os.PathLike) else list(paths)


def _printable(text: str) -> str:
    """Escaped for a terminal: data must not move the cursor or hide its own order."""
    cut = text if len(text) <= SAMPLE_CHARS else text[:SAMPLE_CHARS] + "..."
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in cut)


def _text_pieces(name: str, chunks: Iterable[bytes], rejects: Rejects) -> Iterator[tuple[str, str]]:
    for place, text in files.text_pieces(chunks):
        if text is None:
            rejects.add(name + place, TOO_LONG)
        else:
            yield name + place, text


def _unpacked(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from files.unpacked(file, file_type(path.name)[1], shown_path(path))


def _json_rows(name: str, chunks: Iterable[bytes], rejects: Rejects) -> Iterator[tuple[str, Row]]:
    for line, row in files.json_values(name, chunks):
        if isinstance(row, RowRejected):
            rejects.add(f"{name}:{line}", row.reason, row.sample)
        else:
            yield f"{name}:{line}", row
