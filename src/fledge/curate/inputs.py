"""What there is to read: paths, folders and URLs to pieces of files, and pieces to splits of even size.

A *piece* is what one reader takes: a byte range of a plain .jsonl file (cut at line ends), a range of row groups of a
.parquet file, else a whole file. A *split* is the unit of work and of resuming: many small pieces, or a part of a
large one. The list is the same for the same files, whatever the machine.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from fledge.core.config import Settings
from fledge.text.files import CHUNK_BYTES, is_text_encoding
from fledge.text.paths import file_type, shown_path, walk

SPLIT_BYTES = 16 << 20
SPLIT_PIECES = 4096  # so that a folder of a million tiny files is cut too
UNSUPPORTED = "unsupported file type"

KINDS = {
    **dict.fromkeys((".warc", ".wet"), ".warc"),
    **dict.fromkeys((".html", ".htm", ".xhtml"), ".html"),
    **dict.fromkeys((".jsonl", ".ndjson"), ".jsonl"),
    **dict.fromkeys((".arrow", ".feather", ".ipc"), ".arrow"),
    **dict.fromkeys((".txt", ".md", ".rst"), ".text"),
    **{kind: kind for kind in (".json", ".parquet", ".tar", ".zip")},
}
# what a remote filesystem says of a file's content, the surest first
_VERSIONS = (
    "ETag",
    "etag",
    "md5Hash",
    "content_md5",
    "generation",
    "mtime",
    "LastModified",
    "last_modified",
    "created",
)


class ReadSettings(Settings, frozen=True, kw_only=True):
    """How pages are read; every field belongs to the configuration that names the output."""

    encoding: str | None = None
    "Encoding of text, HTML and JSON files; none takes UTF-8, a stated charset, or the one that detection finds."
    text_field: str = "text"
    "Field of a row that holds the text; a row without it may hold a web page in `html`."
    main_text: bool = True
    "Keep the main text of a web page; false keeps all its text, menus and footers too."
    longest_bytes: int = 8 << 20
    "Longest line, web page or record held in memory; longer ones are rejected, plain text is cut at a blank line."
    ratio: int = 1000
    "Most bytes that one byte of an archive may unpack to."
    archive_bytes: int = 64 << 30
    "Most bytes read out of one archive or packed file."

    def problems(self) -> list[str]:
        """Every rule these settings break, in words."""
        found = []
        if self.encoding is not None and not is_text_encoding(self.encoding):
            found.append(f"encoding = {self.encoding!r}: is not known; use a name such as utf-16, latin-1 or gb18030")
        if not self.text_field:
            found.append("text_field = '': must name the field that holds the text; `text` is usual")
        if not 1 << 10 <= self.longest_bytes <= 1 << 30:
            found.append(f"longest_bytes = {self.longest_bytes}: must be between 1 KiB and 1 GiB; 8 MiB is usual")
        for name in ("ratio", "archive_bytes"):
            if getattr(self, name) < 1:
                found.append(f"{name} = {getattr(self, name)}: must be at least 1")
        return found


class Piece(msgspec.Struct, frozen=True):
    """A file, or the part of it from `start` to `end`: bytes of plain .jsonl, row groups of .parquet."""

    url: str  # absolute path, or a URL that fsspec opens
    name: str  # the path as the user gave it: what `source` of a page begins with
    kind: str  # ".jsonl", ".warc", ...: one of the values of KINDS
    packing: str  # "", ".gz" or ".zst"
    size: int  # bytes of the whole file
    version: str  # changes with the content: modification time of a local file, ETag or the like of a remote one
    start: int = 0
    end: int = -1  # -1: to the end of the file
    first_line: int = 1  # number of the line that begins at `start`
    bytes: int = 0  # of input in this part; of row groups their share of the file


class Split(msgspec.Struct, frozen=True):
    """One unit of work: pieces in order, `bytes` of input in all."""

    number: int
    pieces: tuple[Piece, ...]
    bytes: int


class Skipped(msgspec.Struct, frozen=True):
    """A file that is not read: where, why in few distinct words, and what was seen."""

    source: str
    reason: str
    sample: str = ""


def find_splits(
    paths: Sequence[str], split_bytes: int = SPLIT_BYTES, settings: ReadSettings | None = None
) -> tuple[list[Split], list[Skipped]]:
    """The splits of all files under `paths` (in the order given, each folder sorted), and the files not read.

    A path is a local file or folder, or a URL that fsspec opens (s3://bucket/folder; credentials as its package takes
    them from the environment). Of a folder of curated text only the pages kept are read. Large plain .jsonl files are
    read through once, for the places and numbers of their lines.

    Raises ValueError with every problem in one list: a path that does not exist, a type that cannot be read, an
    unknown encoding, a missing package, nothing usable at all.
    """
    settings = settings or ReadSettings()
    problems = settings.problems()
    if split_bytes < 1:
        problems.append(f"split_bytes = {split_bytes}: must be at least 1; 16 MiB is usual")
    if not paths:
        problems.append("no path given: name at least one file, folder or URL")
    files: dict[str, Piece] = {}
    skipped: list[Skipped] = []
    for path in paths:
        found = _remote(path) if "://" in path else _local(Path(path))
        for item in found:
            if isinstance(item, Piece):
                files.setdefault(item.url, item)  # a file named twice is read once
            elif isinstance(item, Skipped):
                skipped.append(item)
            else:
                problems.append(item)
    problems += _missing_packages(list(files.values()))
    if not problems and not any(piece.size for piece in files.values()):
        seen = (
            "; ".join(f"{skip.source}: {skip.reason}" for skip in skipped[:5])
            or "the files are empty, or there are none"
        )
        problems.append(
            f"0 usable files in {', '.join(paths[:5])} ({seen}): WARC, HTML, JSON, Parquet, Arrow and text are read, "
            "also packed as .gz or .zst and inside .tar or .zip"
        )
    if problems:
        raise ValueError(
            "\n  ".join([f"{len(problems)} problem{'s' * (len(problems) > 1)} with the input:", *problems])
        )
    cut = [part for piece in files.values() for part in _cut(piece, split_bytes, settings)]
    return _packed(cut, split_bytes), skipped


def open_piece(piece: Piece) -> BinaryIO:
    """The whole file, open for reading bytes; seekable."""
    if "://" in piece.url:
        filesystem, path = _filesystem(piece.url)
        return filesystem.open(path, "rb")
    return open(piece.url, "rb")


def same_input(piece: Piece) -> str | None:
    """None where the file is as it was listed, else what changed, in words."""
    try:
        if "://" in piece.url:
            filesystem, path = _filesystem(piece.url)
            info = filesystem.info(path)
            size, version = int(info["size"]), _version(info)
        else:
            stat = os.stat(piece.url)
            size, version = stat.st_size, str(stat.st_mtime_ns)
    except FileNotFoundError:
        return f"{piece.name} is gone since it was listed: bring it back, or start again in a fresh folder"
    if (size, version) == (piece.size, piece.version):
        return None
    return (
        f"{piece.name} has changed since it was listed ({piece.size:,} bytes then, {size:,} now, version "
        f"{piece.version} then, {version} now): restore it, or start again in a fresh folder"
    )


def _local(path: Path) -> Iterator[Piece | Skipped | str]:
    """Pieces and files not read; a str is a problem that the user must mend."""
    name = shown_path(path)
    if not path.exists():
        yield f"{name}: no such file or folder; check the path"
    elif not path.is_dir():
        piece = _local_piece(path)
        yield f"{name}: {piece.reason}; known are {' '.join(KINDS)}" if isinstance(piece, Skipped) else piece
    elif not os.access(path, os.R_OK | os.X_OK):
        yield f"{name}: permission denied; make the folder readable"
    else:
        for file, trouble in walk(path):
            yield Skipped(shown_path(file), trouble) if trouble else _local_piece(file)


def _local_piece(path: Path) -> Piece | Skipped | str:
    name, (kind, packing) = shown_path(path), kind_of(path.name)
    if kind is None:
        return Skipped(name, UNSUPPORTED)
    if not os.path.lexists(path):
        return f"{name} is missing: the manifest of its folder names it; restore it, or curate again"
    if not path.is_file():
        return Skipped(name, "not a regular file (a link to nothing, a pipe or a device)")
    if not os.access(path, os.R_OK):
        return f"{name}: permission denied; make the file readable"
    url = os.path.abspath(path)
    if shown_path(url) != url:
        return Skipped(name, "file name is not UTF-8")
    stat = path.stat()
    return Piece(url, name, kind, packing, stat.st_size, str(stat.st_mtime_ns), bytes=stat.st_size)


def kind_of(name: str) -> tuple[str | None, str]:
    """(kind, packing) that the name says; kind None where it is not one that can be read."""
    extension, packing = file_type(name)
    if extension == ".tgz" and not packing:
        return ".tar", ".gz"
    kind = KINDS.get(extension)
    return (None if kind == ".zip" and packing else kind), packing


def _filesystem(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs

    return url_to_fs(url)


def _remote(url: str) -> Iterator[Piece | Skipped | str]:
    try:
        filesystem, root = _filesystem(url)
    except ImportError as error:  # of fsspec itself, or of the package for this protocol
        yield f"{url}: needs a package that is not installed ({error}); pip install it, or copy the files here"
        return
    except ValueError as error:
        yield f"{url}: {error}; use a local path or a URL such as s3://bucket/folder"
        return
    if not filesystem.exists(root):
        yield f"{url}: no such file or folder; check the URL and the credentials"
        return
    found = filesystem.find(root, detail=True)
    alone = set(found) == {root}
    for path in sorted(found):
        info, file_url = found[path], filesystem.unstrip_protocol(path)
        kind, packing = kind_of(path)
        if kind is not None:
            size = int(info["size"])
            yield Piece(file_url, file_url, kind, packing, size, _version(info), bytes=size)
        elif alone:
            yield f"{url}: {UNSUPPORTED}; known are {' '.join(KINDS)}"
        else:
            yield Skipped(file_url, UNSUPPORTED)


def _version(info: dict[str, Any]) -> str:
    found = next((info[key] for key in _VERSIONS if info.get(key) is not None), "")
    # one filesystem may tell the same moment in two ways
    return str(found.timestamp() if isinstance(found, datetime) else found)


def _missing_packages(pieces: Sequence[Piece]) -> list[str]:
    packed = next((piece for piece in pieces if piece.packing == ".zst"), None)
    if packed is None:
        return []
    try:
        import zstandard  # noqa: F401
    except ImportError:
        return [f"{packed.name}: reading .zst needs the package zstandard: `pip install zstandard`, or pack it as .gz"]
    return []


def _cut(piece: Piece, split_bytes: int, settings: ReadSettings) -> list[Piece]:
    """The parts of a large file that can be read alone."""
    if piece.size <= split_bytes or piece.packing:
        return [piece]
    if piece.kind == ".parquet":
        return _row_groups(piece, split_bytes)
    # another encoding may hold the byte of a line end inside a character
    return _at_line_ends(piece, split_bytes) if piece.kind == ".jsonl" and settings.encoding is None else [piece]


def _at_line_ends(piece: Piece, split_bytes: int) -> list[Piece]:
    """Byte ranges of whole lines, each of at least `split_bytes` but for the last."""
    parts: list[Piece] = []
    start, first_line, line, position = 0, 1, 1, 0

    def add(end: int) -> None:
        parts.append(msgspec.structs.replace(piece, start=start, end=end, first_line=first_line, bytes=end - start))

    with open_piece(piece) as file:
        while block := file.read(CHUNK_BYTES):
            if position == 0 and block[:2] in (b"\xff\xfe", b"\xfe\xff"):  # UTF-16
                return [piece]
            counted = 0
            while (end := block.find(b"\n", max(0, start + split_bytes - position - 1)) + 1) > 0:
                line += block.count(b"\n", counted, end)
                add(position + end)
                start, first_line, counted = position + end, line, end
            line += block.count(b"\n", counted)
            position += len(block)
    if start < position:
        add(position)
    return parts


def _row_groups(piece: Piece, split_bytes: int) -> list[Piece]:
    """Ranges of row groups; the whole file where its footer cannot be read, for its reader to count."""
    import pyarrow as pa
    import pyarrow.parquet

    try:
        with open_piece(piece) as file:
            metadata = pyarrow.parquet.ParquetFile(file).metadata
        sizes = [metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)]
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        return [piece]
    parts, start, held, share = [], 0, 0, piece.size / max(1, sum(sizes))
    for number, size in enumerate(sizes):
        held += size
        if held >= split_bytes or number == len(sizes) - 1:
            parts.append(msgspec.structs.replace(piece, start=start, end=number + 1, bytes=int(held * share)))
            start, held = number + 1, 0
    return parts or [piece]


def _packed(pieces: Sequence[Piece], split_bytes: int) -> list[Split]:
    splits: list[Split] = []
    held: list[Piece] = []
    held_bytes = 0
    for piece in pieces:
        if held and (held_bytes + piece.bytes > split_bytes or len(held) == SPLIT_PIECES):
            splits.append(Split(len(splits), tuple(held), held_bytes))
            held, held_bytes = [], 0
        held.append(piece)
        held_bytes += piece.bytes
    splits.append(Split(len(splits), tuple(held), held_bytes))
    return splits
