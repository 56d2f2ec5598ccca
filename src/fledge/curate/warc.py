"""Records of a WARC or WET file, as many as can be saved: reading goes on at the next whole record after damage.

Each is held whole, up to a number of bytes (ISO 28500:2017). Libraries end in silence at
a cut record or stop at the first damaged one; here every gap is told.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from fastwarc.warc import WarcRecord

from fledge.curate.packing import Break
from fledge.text.files import RowRejected

HEADER_BYTES = 64 << 10
_START = re.compile(rb"WARC/[01]\.\d{1,3}\r?\n")
_END = re.compile(rb"\r?\n\r?\n")
_FIELD = re.compile(rb"^([\w-]+)[ \t]*:[ \t]*(.*?)[ \t\r]*$", re.M)
_LONGEST_START = 16
SAMPLE_BYTES = 24


class Record(NamedTuple):
    """One record: its header fields (names in lower case) and its block; `block` None where it is too long to hold."""

    fields: dict[str, str]
    head: bytes
    block: bytes | None
    length: int


class Gap(NamedTuple):
    """Bytes that are no record: why, and how many of them."""

    why: str
    bytes: int
    sample: bytes


class Page(NamedTuple):
    """The payload of an HTTP response."""

    data: bytes
    status: int
    media_type: str
    charset: str | None


class _Window:
    """The part of the stream that is in memory."""

    def __init__(self, chunks: Iterable[bytes | Break]) -> None:
        self._chunks, self.data = iter(chunks), bytearray()
        self.broken: Break | None = None
        self.ended = False

    def grow(self) -> bool:
        """One more chunk; False at the end or before a break, which `mend` goes beyond."""
        if self.broken or self.ended:
            return False
        chunk = next(self._chunks, None)
        if not isinstance(chunk, bytes):
            self.broken, self.ended = chunk, chunk is None
            return False
        self.data += chunk
        return True

    def mend(self) -> None:
        self.broken = None

    def has(self, count: int) -> bool:
        while len(self.data) < count and self.grow():
            pass
        return len(self.data) >= count


def warc_records(chunks: Iterable[bytes | Break], longest: int) -> Iterator[Record | Gap]:
    """Every record in order, and a Gap for each run of bytes that is none.

    A record longer than `longest` comes without its block.
    """
    window = _Window(chunks)
    while True:
        _skip_line_ends(window)
        if not window.has(1):
            if window.broken:
                window.mend()
                yield _to_next_start(window, "damaged packing", 0)
                continue
            return
        window.has(SAMPLE_BYTES)
        if not _START.match(window.data):
            yield _to_next_start(window, "no WARC record", 0)
        else:
            yield _record(window, longest)


def _skip_line_ends(window: _Window) -> None:
    while window.has(1) and window.data[0] in b"\r\n":
        rest = window.data.lstrip(b"\r\n")
        del window.data[: len(window.data) - len(rest)]


def _to_next_start(window: _Window, why: str, skip: int) -> Gap:
    """Drop bytes up to the next record, over at least `skip` of them."""
    sample, dropped = bytes(window.data[:SAMPLE_BYTES]), 0
    while True:
        if found := _START.search(window.data, skip):
            del window.data[: found.start()]
            return Gap(why, dropped + found.start(), sample)
        drop = max(0, len(window.data) - _LONGEST_START)  # the start of a record may go on in the next chunk
        skip = max(0, skip - drop)
        del window.data[:drop]
        dropped += drop
        if window.grow():
            continue
        if window.broken:
            window.mend()
            dropped += len(window.data)
            window.data.clear()
            skip = 0
            continue
        dropped += len(window.data)
        window.data.clear()
        return Gap(why, dropped, sample)


def _record(window: _Window, longest: int) -> Record | Gap:
    while (end := _END.search(window.data)) is None and len(window.data) < HEADER_BYTES and window.grow():
        pass
    if end is None or end.start() > HEADER_BYTES or _START.search(window.data, 1, end.start()):
        return _to_next_start(window, "header of a record without an end", 1)
    head = bytes(window.data[: end.end()])
    fields = {name.decode("ascii").lower(): value.decode("utf-8", "backslashreplace")
              for name, value in _FIELD.findall(head)}  # fmt: skip
    digits = fields.get("content-length", "")
    if not (digits.isascii() and digits.isdecimal() and len(digits) < 19):
        return _to_next_start(window, "record without a length", 1)
    length = int(digits)
    if length > longest:
        return _long_record(window, fields, head, length)
    whole = len(head) + length
    if not window.has(whole):
        return _to_next_start(window, "record cut short", 1)
    if not _ends_well(window, whole):
        return _to_next_start(window, "record of another length than it states", 1)
    block = bytes(window.data[len(head) : whole])
    del window.data[:whole]
    return Record(fields, head, block, length)


def _ends_well(window: _Window, whole: int) -> bool:
    """Whether line ends follow the record (two, though some writers give one), and then another record or the end."""
    window.has(whole + 4 + _LONGEST_START)
    rest = bytes(window.data[whole : whole + 4 + _LONGEST_START])
    after = rest.lstrip(b"\r\n")
    if not after:
        return window.broken is not Break.INSIDE
    if after.startswith(b"WARC/"):
        return rest != after
    # perhaps it is the next record that is damaged: then no other begins inside this one
    return rest.startswith(b"\r\n\r\n") and not _START.search(window.data, 1, whole)


def _long_record(window: _Window, fields: dict[str, str], head: bytes, length: int) -> Record | Gap:
    """Go past a record too long to hold; where another begins inside it, its length was damaged."""
    left = len(head) + length
    skip = len(head)
    while True:
        found = _START.search(window.data, skip)
        if found and found.start() < left:
            del window.data[: found.start()]
            return Gap("record of another length than it states", found.start(), head[:SAMPLE_BYTES])
        drop = min(left, max(0, len(window.data) - _LONGEST_START))
        del window.data[:drop]
        left, skip = left - drop, max(0, skip - drop)
        if left <= _LONGEST_START and window.has(left):
            del window.data[:left]
            return Record(fields, head, None, length)
        if not window.grow():
            return _to_next_start(window, "record cut short", 0)


def http_page(record: Record, longest: int) -> Page:
    """The response in a record, its transfer and content encodings undone. Raises RowRejected where it is none."""
    parsed = WarcRecord.from_bytes(record.head + (record.block or b""))
    try:
        parsed.parse_http(auto_decode="all", max_header_len=HEADER_BYTES)
        headers = parsed.http_headers
        status = headers.status_code if headers is not None else None
        data = parsed.reader.read(longest + 1)
        media_type, charset = parsed.http_content_type, parsed.http_charset
    except (OSError, ValueError) as error:
        raise RowRejected("HTTP response damaged", str(error)) from error
    if status is None:
        raise RowRejected("HTTP response damaged", "no status line")
    if len(data) > longest:
        raise RowRejected("web page too long", f"more than {longest:,} bytes")
    return Page(data, status, (media_type or "").lower(), charset)
