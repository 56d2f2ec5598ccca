"""Packed bytes from outside: what was good before the damage is given, and what may be unpacked is bounded."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import BinaryIO, TypeVar

from fledge.text.files import CHUNK_BYTES, RowRejected, unpacked

OVER_CAP = "archive unpacks beyond its cap"
CAP_SLACK_BYTES = 1 << 20  # read ahead by a decompressor before the ratio can be judged
FEED_BYTES = 4 << 10  # packed bytes at a time: what one call has unpacked before it meets damage is lost
FRAME_BYTES = 1 << 20  # of a gzip member kept to look for the next one, should it be damaged
_MAGIC = b"\x1f\x8b\x08"

T = TypeVar("T")


class Break(Enum):
    """Something is missing from a stream of bytes."""

    INSIDE = "inside a gzip member: what came of it so far may be wrong"
    BETWEEN = "between two members: what came before it is whole"


def whole_chunks(file: BinaryIO, packing: str, name: str) -> Iterator[bytes]:
    """Unpacked bytes up to the first damage, which is a ValueError."""
    seen_bytes = 0
    for chunk in gzip_members(file) if packing == ".gz" else unpacked(file, packing, name):
        if isinstance(chunk, Break):
            raise ValueError(f"the {packing} data is cut short or damaged after {seen_bytes:,} unpacked bytes")
        seen_bytes += len(chunk)
        yield chunk


def capped(chunks: Iterable[T], packed_bytes: Callable[[], int], ratio: int, most: int) -> Iterator[T]:
    """The chunks, as long as they stay below `most` bytes and `ratio` times the packed bytes read for them.

    Raises RowRejected beyond that. Chunks that are not bytes pass.
    """
    seen = 0
    for chunk in chunks:
        if isinstance(chunk, bytes):
            seen += len(chunk)
            if seen > most or seen > ratio * packed_bytes() + CAP_SLACK_BYTES:
                raise RowRejected(OVER_CAP, f"{seen:,} bytes from {packed_bytes():,}")
        yield chunk


def gzip_members(file: BinaryIO) -> Iterator[bytes | Break]:
    """Unpacked bytes (RFC 1952); a Break at damage or a cut end: what came before it and what comes next do not join.

    A member's bytes come before its checksum is known, which Break.INSIDE then takes back.
    """
    held, at_end = bytearray(), False  # of the packed bytes, from the start of the member where that is near
    while True:
        if not at_end and len(held) < CHUNK_BYTES:
            at_end = not _more(file, held)
        start = 0
        while start < len(held) and held[start] == 0:  # padding
            start += 1
        if start < len(held):
            if held[start : start + 3] == _MAGIC[: len(held) - start]:
                start = yield from _member(file, held, start)
            else:
                yield Break.BETWEEN
                start = _next_magic(held, start)
        del held[:start]
        if not held and not _more(file, held):
            return


def _more(file: BinaryIO, held: bytearray) -> bool:
    data = file.read(CHUNK_BYTES)
    held += data
    return bool(data)


def _next_magic(held: bytearray, start: int) -> int:
    found = held.find(_MAGIC, start + 1)
    return found if found >= 0 else max(start + 1, len(held) - len(_MAGIC) + 1)


def _member(file: BinaryIO, held: bytearray, start: int) -> Iterator[bytes | Break]:
    """One member, which begins at `start` of `held`; returns where in `held` the next one is to be looked for."""
    member, fed, kind = zlib.decompressobj(wbits=31), start, Break.BETWEEN
    try:
        while not member.eof:
            if fed == len(held):
                if fed - start > FRAME_BYTES:  # a long member: forget its beginning
                    held.clear()
                    start = fed = 0
                if not _more(file, held):  # cut short
                    yield kind
                    return _next_magic(held, start)
            piece = bytes(held[fed : fed + FEED_BYTES])
            fed += len(piece)
            while piece:
                if data := member.decompress(piece, CHUNK_BYTES):
                    kind = Break.INSIDE
                    yield data
                piece = member.unconsumed_tail
    except zlib.error:
        yield kind
        return _next_magic(held, start)
    return fed - len(member.unused_data)
