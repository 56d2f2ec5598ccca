"""A split to batches of judged pages: whatever is in the files, every record comes out as a page or a counted reject.

    for table in read_split(split, settings):   # schema READ, at most pages.BATCH_PAGES rows and BATCH_BYTES of text
        stays, rejected = parted(table)

`source` is "path" for a whole file, else "path:number" of a line, row or WARC record from 1 ("path:line:column" of
broken JSON), and "archive!member" stands for the path of an archive's member. A reject's `text` is a short sample.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

from fledge.curate import archives, packing, warc
from fledge.curate.columnar import table_rows
from fledge.curate.encoding import UNKNOWN, decoded, proper
from fledge.curate.extraction import main_text
from fledge.curate.inputs import UNSUPPORTED, Piece, ReadSettings, Split, kind_of, open_piece, same_input
from fledge.curate.pages import BATCH_BYTES, BATCH_PAGES, PAGE, REASON, VALUE
from fledge.text import files
from fledge.text.curated import require_recorded
from fledge.text.files import RowRejected
from fledge.text.readers import BLANK, BROKEN_JSON, keys_seen
from fledge.text.readers import kind_of as json_kind_of

REPAIRED = "repaired"  # how a text was read where that is not what its source states; null otherwise
READ = pa.schema([*PAGE, (REPAIRED, pa.string()), (REASON, pa.string()), (VALUE, pa.float64())])

EMPTY = "no page in the file"
DAMAGED = "damaged file"
TOO_LONG = "longer than can be held"
SAMPLE_CHARS = 200
# what damaged content makes the readers raise; an OSError with a number is the disk's or the network's
CONTENT = (ValueError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile, pa.ArrowException, OverflowError,
           NotImplementedError)  # fmt: skip


class Row(NamedTuple):
    """A page, or with `reason` a reject and the sample of it."""

    source: str
    text: str
    url: str | None = None
    language: str = ""
    id: str = ""
    repaired: str | None = None
    reason: str | None = None
    value: float | None = None


class Stream(NamedTuple):
    """Bytes to be read as one kind of file."""

    name: str  # what `source` begins with
    kind: str
    packing: str
    file: BinaryIO
    first_line: int = 1
    end: int = -1  # of the bytes to read; -1 for all


def read_split(split: Split, settings: ReadSettings) -> Iterator[pa.Table]:
    """Judged tables (schema READ) of at most one batch each, in the order of the pieces and of their records.

    Never raises for content. Raises ValueError for a file that is gone or has changed since it was listed, and for a
    shard of curated text that is not the one its manifest names; OSError for one that the disk or the network does not give.
    """
    rows, held_bytes = [], 0
    for row in itertools.chain.from_iterable(_piece_rows(piece, settings) for piece in split.pieces):
        size = len(row.text) if row.text.isascii() else len(row.text.encode())
        if rows and (len(rows) == BATCH_PAGES or held_bytes + size > BATCH_BYTES):
            yield _table(rows)
            rows, held_bytes = [], 0
        rows.append(row)
        held_bytes += size
    if rows:
        yield _table(rows)


def _table(rows: list[Row]) -> pa.Table:
    source, text, url, language, ids, repaired, reason, value = zip(*rows, strict=True)
    ids = [own or hashlib.sha256(place.encode()).hexdigest()[:16] for own, place in zip(ids, source, strict=True)]
    return pa.table([text, ids, source, url, language, repaired, reason, value], schema=READ)


def _piece_rows(piece: Piece, settings: ReadSettings) -> Iterator[Row]:
    if change := same_input(piece):
        raise ValueError(change)
    if "://" not in piece.url:
        require_recorded(Path(piece.url))
    with open_piece(piece) as file:
        if piece.kind in (".parquet", ".arrow") and not piece.packing:
            rows = _columnar(piece.name, piece.kind, file, settings, piece.start, piece.end)
        elif piece.kind == ".zip":
            rows = _members(
                piece.name, archives.zip_members(file, piece.size, settings.ratio, settings.archive_bytes), settings
            )
        else:
            file.seek(piece.start)
            rows = _stream_rows(
                Stream(piece.name, piece.kind, piece.packing, file, piece.first_line, piece.end), settings
            )
        yield from _safely(piece.name, rows, whole=piece.end < 0)


def _safely(name: str, rows: Iterator[Row], whole: bool = True) -> Iterator[Row]:
    """The rows, then one reject where reading them ends in trouble, or where there was none."""
    count = 0
    try:
        for row in rows:
            count += 1
            yield row
    except RowRejected as error:
        yield _reject(name, error.reason, f"after {count:,} records: {error.sample}" if count else error.sample)
    except (*CONTENT, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        yield _reject(name, DAMAGED, f"after {count:,} records: {' '.join(str(error).split())}")
    else:
        if count == 0 and whole:
            yield _reject(name, EMPTY)


def _reject(source: str, reason: str, sample: str = "", url: str | None = None, value: float | None = None) -> Row:
    sample = sample[:SAMPLE_CHARS].encode("utf-8", "backslashreplace").decode()
    return Row(source, sample, url, reason=reason, value=value)


def _stream_rows(stream: Stream, settings: ReadSettings) -> Iterator[Row]:
    chunks = _chunks(stream, settings)
    if stream.kind == ".warc":
        return _warc_rows(stream.name, chunks, settings)
    if stream.kind == ".jsonl":
        return _jsonl_rows(stream, chunks, settings)
    if stream.kind == ".json":
        return _json_rows(stream.name, chunks, settings)
    if stream.kind == ".text":
        return _text_rows(stream.name, chunks, settings)
    if stream.kind == ".html":
        return _html_rows(stream.name, chunks, settings)
    if stream.kind == ".tar":
        return _members(stream.name, archives.tar_members(chunks), settings)
    return _columnar_held(stream, chunks, settings)


def _chunks(stream: Stream, settings: ReadSettings) -> Iterator[Any]:
    if not stream.packing:
        return _plain(stream)
    if stream.kind == ".warc" and stream.packing == ".gz":
        unpacked: Iterator[Any] = packing.gzip_members(stream.file)
    else:
        unpacked = packing.whole_chunks(stream.file, stream.packing, stream.name)
    return packing.capped(unpacked, stream.file.tell, settings.ratio, settings.archive_bytes)


def _plain(stream: Stream) -> Iterator[bytes]:
    left = stream.end - stream.file.tell() if stream.end >= 0 else 1 << 62
    while left > 0 and (chunk := stream.file.read(min(left, files.CHUNK_BYTES))):
        left -= len(chunk)
        yield chunk


def _members(name: str, members: Iterable[archives.Member], settings: ReadSettings) -> Iterator[Row]:
    for member in members:
        place = f"{name}!{member.name}".encode("utf-8", "backslashreplace").decode()
        kind, packed = kind_of(member.name)
        if member.file is None:
            yield _reject(place, member.refused, member.sample)
        elif kind in (".tar", ".zip"):
            yield _reject(place, "archive inside an archive")
        elif kind is None:
            yield _reject(place, UNSUPPORTED)
        else:
            yield from _safely(place, _stream_rows(Stream(place, kind, packed, member.file), settings))


# --- one page ---


def _page(source: str, text: str, read: str | None = None, url: str | None = None, **given: str) -> Row:
    """A page, or why its text is none."""
    try:
        text, repaired = proper(text, read)
    except RowRejected as error:
        return _reject(source, error.reason, error.sample, url)
    if not text or text.isspace():
        return _reject(source, BLANK, url=url)
    return Row(source, text, url, repaired=repaired, **given)


def _web_page(
    source: str, html: str, read: str | None, settings: ReadSettings, url: str | None = None, **given: str
) -> Row:
    try:
        text = main_text(html, settings.main_text)
    except RowRejected as error:
        return _reject(source, error.reason, error.sample, url)
    return _page(source, text, read, url, **given)


def _decoded(data: bytes, settings: ReadSettings, web: bool = False) -> tuple[str, str | None]:
    """(text, how it was read); an encoding that the user names is the only one tried."""
    if settings.encoding is None:
        return decoded(data, web=web)
    try:
        text = data.decode(settings.encoding).removeprefix("\ufeff")
        text.encode()  # utf-7 and the like can make halves of characters
        return text, None
    except UnicodeError as error:
        raise RowRejected(UNKNOWN, f"not {settings.encoding}: {error}") from None


# --- one file ---


def _warc_rows(name: str, chunks: Iterable[Any], settings: ReadSettings) -> Iterator[Row]:
    """Responses that hold a web page or plain text, conversions (WET) and resources; the rest of a crawl's bookkeeping
    (warcinfo, request, metadata) is no page and not counted."""
    for number, record in enumerate(warc.warc_records(chunks, settings.longest_bytes), 1):
        source = f"{name}:{number}"
        if isinstance(record, warc.Gap):
            yield _reject(source, record.why, ascii(record.sample), value=record.bytes)
            continue
        kind, url = (
            record.fields.get("warc-type", "").lower(),
            record.fields.get("warc-target-uri", "").strip("<>") or None,
        )
        if kind in ("warcinfo", "request", "metadata"):
            continue
        if record.block is None:
            yield _reject(source, TOO_LONG, f"{record.length:,} bytes", url, record.length)
        elif kind in ("response", "conversion", "resource"):
            try:
                yield _warc_page(source, record, kind, url, settings)
            except RowRejected as error:
                yield _reject(source, error.reason, error.sample, url)
        else:
            yield _reject(source, "WARC record without a page", kind, url)


def _warc_page(source: str, record: warc.Record, kind: str, url: str | None, settings: ReadSettings) -> Row:
    if kind == "response" and record.fields.get("content-type", "").lower().startswith("application/http"):
        page = warc.http_page(record, settings.longest_bytes)
        if not 200 <= page.status < 300:
            return _reject(source, "HTTP status is not 2xx", f"status {page.status}", url, page.status)
    else:
        media_type, _, rest = record.fields.get("content-type", "").partition(";")
        charset = rest.partition("charset=")[2].strip(" \"'") or None
        page = warc.Page(record.block, 200, media_type.strip().lower(), charset)
    if page.media_type in ("text/html", "application/xhtml+xml") or (not page.media_type and b"<" in page.data[:1024]):
        html, read = decoded(page.data, page.charset, web=True)
        return _web_page(source, html, read, settings, url)
    if page.media_type in ("text/plain", ""):
        return _page(source, *decoded(page.data, page.charset), url)
    return _reject(source, "not a web page or text", page.media_type, url)


def _jsonl_rows(stream: Stream, chunks: Iterator[bytes], settings: ReadSettings) -> Iterator[Row]:
    strict = files.StrictJSON()
    chunks, codec = _without_mark(chunks, settings)
    if codec is not None:  # line ends are not single bytes
        chunks = files.utf8_chunks(stream.name, chunks, codec)
    for number, line in files.lines(chunks, settings.longest_bytes):
        source = f"{stream.name}:{number + stream.first_line - 1}"
        if line is None:
            yield _reject(source, TOO_LONG, f"a line over {settings.longest_bytes:,} bytes")
            continue
        if line.isspace():
            continue
        try:
            text, read = (line.decode(), None) if codec is not None else _decoded(line, settings)
            yield _json_page(source, strict.row(text.rstrip("\r\n")), read, settings)
        except RowRejected as error:
            yield _reject(source, error.reason, error.sample)
        except json.JSONDecodeError as error:
            yield _reject(f"{source}:{error.colno}", BROKEN_JSON, files.json_trouble(error))


def _without_mark(chunks: Iterator[bytes], settings: ReadSettings) -> tuple[Iterator[bytes], str | None]:
    """(the chunks without the mark of UTF-8, the codec where it is one of more than a byte per line end)."""
    first = next(chunks, b"")
    if settings.encoding is not None:
        wide = "\n".encode(settings.encoding) != b"\n"
        return itertools.chain((first,), chunks), settings.encoding if wide else None
    if first[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return itertools.chain((first,), chunks), "utf-32" if first[2:4] == b"\0\0" else "utf-16"
    return itertools.chain((first.removeprefix(b"\xef\xbb\xbf"),), chunks), None


def _json_rows(name: str, chunks: Iterator[bytes], settings: ReadSettings) -> Iterator[Row]:
    chunks, codec = _without_mark(chunks, settings)
    utf8 = files.utf8_chunks(name, chunks, codec or settings.encoding)
    try:
        for line, row in files.json_values(name, utf8, settings.longest_bytes):
            if isinstance(row, RowRejected):
                yield _reject(f"{name}:{line}", row.reason, row.sample)
            else:
                yield _json_page(f"{name}:{line}", row, None, settings)
    except files.BrokenJSON as error:
        yield _reject(error.place, "broken JSON file", error.trouble)


def _json_page(source: str, row: files.Row, read: str | None, settings: ReadSettings) -> Row:
    """The page a row of JSON, Parquet or Arrow holds; its own id, url and language stay where they are strings."""
    text, html, own_id = row.get(settings.text_field), row.get("html"), row.get("id")
    url, language = row.get("url"), row.get("language")
    if isinstance(own_id, int) and not isinstance(own_id, bool):
        own_id = str(own_id)
    given = {
        "url": url if isinstance(url, str) else None,
        "language": language if isinstance(language, str) else "",
        "id": own_id if isinstance(own_id, str) else "",
    }
    if isinstance(text, str) and len(text) <= settings.longest_bytes:
        return _page(source, text, read, **given)
    if isinstance(text, str):
        return _reject(source, TOO_LONG, f"{len(text):,} characters", given["url"])
    if text is not None:
        sample = f"{settings.text_field} is {json_kind_of(text)}: {files.brief(text)}"
        return _reject(source, f"`{settings.text_field}` is not a string", sample)
    if isinstance(html, str):
        return _web_page(source, html, read, settings, **given)
    return _reject(source, f"no `{settings.text_field}` field", keys_seen(row))


def _text_rows(name: str, chunks: Iterator[bytes], settings: ReadSettings) -> Iterator[Row]:
    held = _held(chunks, settings.longest_bytes)
    if len(held) <= settings.longest_bytes:
        if held:
            yield _page(name, *_decoded(held, settings))
        return
    chunks, codec = _without_mark(itertools.chain((held,), chunks), settings)
    utf8 = files.utf8_chunks(name, chunks, codec or settings.encoding)
    for place, text in files.text_pieces(utf8, settings.longest_bytes):
        if text is None:
            yield _reject(name + place, TOO_LONG, f"a line over {settings.longest_bytes:,} bytes")
        else:
            yield _page(name + place, text)


def _held(chunks: Iterator[bytes], longest: int) -> bytes:
    """All of a small file; of a larger one a little more than `longest` bytes."""
    held = bytearray()
    for chunk in chunks:
        held += chunk
        if len(held) > longest:
            break
    return bytes(held)


def _html_rows(name: str, chunks: Iterator[bytes], settings: ReadSettings) -> Iterator[Row]:
    data = _held(chunks, settings.longest_bytes)
    if len(data) > settings.longest_bytes:
        yield _reject(name, TOO_LONG, f"a page over {settings.longest_bytes:,} bytes")
    elif data:
        html, read = _decoded(data, settings, web=True)
        yield _web_page(name, html, read, settings)


def _columnar(
    name: str, kind: str, file: BinaryIO, settings: ReadSettings, start: int = 0, end: int = -1
) -> Iterator[Row]:
    columns = (settings.text_field, "html", "id", "url", "language")
    for number, row in table_rows(kind, file, columns, settings.ratio, start, end):
        source = f"{name}:{number}"
        yield (
            _reject(source, row.reason, row.sample)
            if isinstance(row, RowRejected)
            else _json_page(source, row, None, settings)
        )


def _columnar_held(stream: Stream, chunks: Iterator[bytes], settings: ReadSettings) -> Iterator[Row]:
    """Parquet and Arrow are read from their end, so a packed one is held in memory."""
    most = 8 * settings.longest_bytes
    data = _held(chunks, most)
    if len(data) > most:
        yield _reject(stream.name, TOO_LONG, f"a packed table over {most:,} bytes")
    elif data:
        yield from _columnar(stream.name, stream.kind, io.BytesIO(data), settings)
