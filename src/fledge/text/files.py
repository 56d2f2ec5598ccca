"""Bytes of a file to checked UTF-8, lines and JSON values, a bounded piece at a time.

unpacked -> utf8_chunks -> lines (.jsonl, plain text) or json_values (.json). A file that cannot be trusted is a
ValueError naming the file, the place, the rule and the remedy; a value that parses but that JSON leaves undefined
(repeated key, NaN, half a surrogate pair) is a RowRejected, for its neighbours are still good.
"""

from __future__ import annotations

import codecs
import gzip
import itertools
import json
import re
import reprlib
import zlib
from collections.abc import Iterable, Iterator
from typing import Any, BinaryIO

MAX_LINE_BYTES = 64 * 1024 * 1024  # longest line, JSON value or piece of plain text that is held in memory
CHUNK_BYTES = 1024 * 1024
ZST_INPUT_BYTES = 2048  # a zstd block can grow 30,000-fold: 2 KiB of input unpack to 64 MiB at most
MAX_NUMBER_DIGITS = 4000  # Python refuses to convert integers beyond 4,300 digits
SNIPPET_CHARS = 40

Row = dict[str, Any]
_SPACE = re.compile(r"[ \t\r\n]*")
_BRIEF = reprlib.Repr()
_BRIEF.maxstring = 160
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


class RowRejected(Exception):
    """A row that parses but cannot be used: `reason` in plain words (few distinct ones), `sample` what was seen."""

    def __init__(self, reason: str, sample: str = "") -> None:
        super().__init__(reason, sample)
        self.reason, self.sample = reason, sample


class BrokenJSON(ValueError):
    """A .json file that cannot be read on: `place` is "name:line:column", `trouble` what is there."""

    def __init__(self, place: str, trouble: str, rule: str) -> None:
        super().__init__(f"{place}: {trouble}. {rule}")
        self.place, self.trouble = place, trouble


def unpacked(file: BinaryIO, packing: str, name: str) -> Iterator[bytes]:
    """The bytes of `file` in chunks, unpacked where `packing` is ".gz" or ".zst".

    Raises ValueError for a damaged or cut archive, and for .zst without the package `zstandard`.
    """
    seen_bytes = 0
    try:
        for chunk in _zst_chunks(file, name) if packing == ".zst" else _plain_chunks(file, packing):
            seen_bytes += len(chunk)
            yield chunk
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(
            f"{name}: the {packing} data is cut short or damaged after {seen_bytes:,} unpacked bytes ({error}). "
            "An archive must be whole: copy or download it again."
        ) from error


def _plain_chunks(file: BinaryIO, packing: str) -> Iterator[bytes]:
    stream = gzip.GzipFile(fileobj=file) if packing == ".gz" else file
    while chunk := stream.read(CHUNK_BYTES):
        yield chunk


def _zst_chunks(file: BinaryIO, name: str) -> Iterator[bytes]:
    try:
        import zstandard
    except ImportError as error:
        raise ValueError(
            f"{name}: reading .zst needs the package zstandard: `pip install zstandard`, or pack the file as .gz"
        ) from error
    # zstandard's own stream reader takes a cut file for a whole one, so the frames are followed here
    frame = None
    try:
        while data := file.read(ZST_INPUT_BYTES):
            while data:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                if chunk := frame.decompress(data):
                    yield chunk
                data = frame.unused_data
                frame = None if frame.eof else frame
    except zstandard.ZstdError as error:
        raise zlib.error(str(error)) from error
    if frame is not None:
        raise EOFError("the last frame does not end")


def is_text_encoding(encoding: str) -> bool:
    """Whether Python can turn bytes into text under this name ("hex" and "zip" are codecs too, but not of text)."""
    try:
        " ".encode(encoding)
        codecs.getincrementaldecoder(encoding)
    except (LookupError, ValueError):
        return False
    return True


def utf8_chunks(name: str, chunks: Iterable[bytes], encoding: str | None) -> Iterator[bytes]:
    """Re-encode to UTF-8, whole characters a chunk, without the byte order mark.

    `encoding` None means the bytes must be UTF-8. Raises ValueError at the first byte that is not text.
    """
    decoder = codecs.getincrementaldecoder(encoding or "utf-8")()
    taken_bytes, started = 0, False
    for chunk in itertools.chain(chunks, (b"",)):  # the empty chunk says that the file ends here
        try:
            text = decoder.decode(chunk, final=not chunk)
            data = text.encode()
        except UnicodeError as error:
            raise ValueError(_encoding_trouble(name, error, encoding, taken_bytes + len(chunk))) from error
        taken_bytes += len(chunk)
        if not started and text:
            started, data = True, text.removeprefix("\ufeff").encode()
        if data:
            yield data


def _encoding_trouble(name: str, error: UnicodeError, encoding: str | None, end_byte: int) -> str:
    rule = "text must be UTF-8 unless you say otherwise" if encoding is None else f"you asked for {encoding}"
    if not isinstance(error, UnicodeDecodeError):  # UTF-16 without its mark, or half a surrogate pair
        return f"{name}: cannot be read as {encoding}: {error}. Try another `--encoding NAME`, such as utf-16-le."
    data, start = error.object, error.start
    at_byte = end_byte - len(data) + start
    seen = data[start : start + 4].hex(" ")
    where = f"{name}: not {encoding or 'UTF-8'} at byte {at_byte} (bytes {seen}: {error.reason}); {rule}."
    guess = f"{_guess(data, start, at_byte, error.reason)} " if encoding is None else ""
    return f"{where} {guess}Pass the right `--encoding NAME`, or save the file as UTF-8."


def _guess(data: bytes, start: int, at_byte: int, reason: str) -> str:
    if at_byte < 4:  # then the chunk begins where the file does
        for mark, guess in (
            (codecs.BOM_UTF32_LE, "utf-32"),
            (codecs.BOM_UTF32_BE, "utf-32"),
            (codecs.BOM_UTF16_LE, "utf-16"),
            (codecs.BOM_UTF16_BE, "utf-16"),
        ):
            if data.startswith(mark):
                return f"It starts with the byte order mark of {guess}."
    if reason == "unexpected end of data":
        return "The file ends inside a character: it is cut short, or it is latin-1."
    around = data[max(0, start - 200) : start + 200]
    if sum(byte >= 0x80 for byte in around) * 3 > len(around):
        return "Most bytes here are not ASCII: perhaps gb18030, big5, shift_jis or windows-1251."
    if any(0x80 <= byte < 0xA0 for byte in around):
        return "It looks like windows-1252."
    return "It looks like latin-1."


def lines(chunks: Iterable[bytes], longest: int | None = None) -> Iterator[tuple[int, bytes | None]]:
    """(line number from 1, the line with its b"\\n"); None for a line over `longest` bytes, which is never held."""
    longest = longest or MAX_LINE_BYTES
    number, pending, too_long = 1, bytearray(), False
    for chunk in chunks:
        for index, piece in enumerate(chunk.split(b"\n")):
            if index:  # every piece but the first begins after a line end
                pending += b"\n"
                yield number, None if too_long else bytes(pending)
                number, too_long = number + 1, False
                pending.clear()
            if len(pending) + len(piece) > longest:
                too_long = True
                pending.clear()
            elif not too_long:
                pending += piece
    if pending or too_long:
        yield number, None if too_long else bytes(pending)


class StrictJSON:
    """The standard decoder, which also sees repeated keys, NaN and Infinity, numbers too large, lone surrogates.

    Measured on chats of 2 kB: 12 us a row, against 8 us for msgspec, which keeps the last of two equal keys in
    silence; a second look for those costs the difference.
    """

    def __init__(self) -> None:
        self._problem: RowRejected | None = None
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object,
            parse_constant=self._constant,
            parse_float=self._float,
            parse_int=self._int,
        )

    def row(self, line: str) -> Row:
        """The one object on a line. Raises json.JSONDecodeError where it is broken, RowRejected where unusable."""
        start = _after_space(line, 0)
        value, end = self.value_at(line, start)
        end = _after_space(line, end)
        if end < len(line):
            raise json.JSONDecodeError("Extra data", line, end)
        return self.checked(value, line[start:end])

    def value_at(self, text: str, start: int) -> tuple[Any, int]:
        """The value that begins at `start`, and its end; `checked` says whether it may be used."""
        self._problem = None
        try:
            return self._decoder.raw_decode(text, start)
        except RecursionError:
            raise json.JSONDecodeError("Nested too deeply", text, start) from None

    def checked(self, value: Any, raw: str) -> Row:
        """`value`, just decoded from `raw`, or RowRejected."""
        if self._problem is not None:
            raise self._problem
        if not isinstance(value, dict):
            raise RowRejected("row is not a JSON object", brief(value))
        if half := _HALF_PAIR.search(raw):
            try:
                json.dumps(value, ensure_ascii=False).encode()
            except UnicodeEncodeError as error:
                raise RowRejected("lone surrogate (half a character)", raw[half.start() :][:6]) from error
            except RecursionError:
                raise RowRejected("nested too deeply", brief(value)) from None
        return value

    def _object(self, pairs: list[tuple[str, Any]]) -> Row:
        value = dict(pairs)
        if len(value) < len(pairs):
            keys = [key for key, _ in pairs]
            self._note("duplicate JSON key", ", ".join({key for key in keys if keys.count(key) > 1}))
        return value

    def _constant(self, name: str) -> float:
        self._note("NaN or Infinity is not a JSON number", name)
        return 0.0

    def _float(self, digits: str) -> float:
        value = float(digits)
        if value in (float("inf"), float("-inf")):
            self._note("number too large", digits)
        return value

    def _int(self, digits: str) -> int:
        if len(digits) > MAX_NUMBER_DIGITS:
            self._note("number too large", digits)
            return 0
        return int(digits)

    def _note(self, reason: str, sample: str) -> None:
        # noted, not raised: inside a .json array the end of this value is where the next one begins
        self._problem = self._problem or RowRejected(reason, sample)


def _after_space(text: str, pos: int) -> int:
    match = _SPACE.match(text, pos)
    return match.end() if match else pos


def brief(value: Any) -> str:
    """The value for a message: short, and safe for one that is nested a thousand deep."""
    return _BRIEF.repr(value)


def json_trouble(error: json.JSONDecodeError) -> str:
    """What is wrong, and the text where it is."""
    return f"{error.msg} near {error.doc[max(0, error.pos - 10) : error.pos + SNIPPET_CHARS]!r}"


class _Window:
    """The part of a .json file that is in memory, with the line and column it has reached."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks, self.text, self.pos, self.line, self.column = iter(chunks), "", 0, 1, 1

    def advance(self, end: int) -> None:
        newlines = self.text.count("\n", self.pos, end)
        self.line += newlines
        self.column = end - self.text.rfind("\n", self.pos, end) if newlines else self.column + end - self.pos
        self.pos = end

    def grow(self) -> bool:
        """Double what lies ahead, so a value over many chunks is tried few times; False at the end of the file."""
        parts, wanted_chars = [self.text[self.pos :]], max(1, len(self.text) - self.pos)
        while wanted_chars > 0 and (chunk := next(self._chunks, None)) is not None:
            parts.append(chunk.decode())
            wanted_chars -= len(parts[-1])
        if len(parts) > 1:
            self.text, self.pos = "".join(parts), 0
        return len(parts) > 1

    def peek(self) -> str:
        """The next character that is not space, "" at the end of the file."""
        while True:
            self.advance(_after_space(self.text, self.pos))
            if self.pos < len(self.text):
                return self.text[self.pos]
            if not self.grow():
                return ""


def text_pieces(chunks: Iterable[bytes], longest: int | None = None) -> Iterator[tuple[str, str | None]]:
    """("", the whole text); above `longest` bytes (":LINE", piece) of pieces that end at a blank line, or at a line
    end where none is near. None stands for a line over `longest`, which is never held.
    """
    longest = longest or MAX_LINE_BYTES
    piece, piece_line, cut, cut_line = bytearray(), 1, 0, 1
    for number, line in lines(chunks, longest):
        if line is None:
            yield f":{number}", None
            continue
        while piece and len(piece) + len(line) > longest:
            if not cut:
                cut, cut_line = len(piece), number
            yield f":{piece_line}", piece[:cut].decode()
            del piece[:cut]
            piece_line, cut = cut_line, 0
        piece += line
        if line.isspace():
            cut, cut_line = len(piece), number + 1
    yield "" if piece_line == 1 else f":{piece_line}", piece.decode()


def json_values(
    name: str, chunks: Iterable[bytes], longest: int | None = None
) -> Iterator[tuple[int, Row | RowRejected]]:
    """(line number, row) for each element of a top-level array, or each of a sequence of top-level values.

    Raises BrokenJSON at a syntax error or a value over `longest` bytes: there is no telling where the next one begins.
    """
    longest = longest or MAX_LINE_BYTES
    window, strict, after_value = _Window(chunks), StrictJSON(), False
    in_array = window.peek() == "["
    if in_array:
        window.advance(window.pos + 1)
    while True:
        char = window.peek()
        if in_array and char == "]":
            window.advance(window.pos + 1)
            if window.peek():
                raise _broken_json(name, window, "text after the closing ]")
            return
        if in_array and after_value:
            if char != ",":
                raise _broken_json(name, window, "the next row or the closing ] should be here")
            window.advance(window.pos + 1)
            window.peek()
        elif not char and not in_array:
            return
        line = window.line
        value, end = _next_value(name, window, strict, longest)
        try:
            row: Row | RowRejected = strict.checked(value, window.text[window.pos : end])
        except RowRejected as error:
            row = error
        window.advance(end)
        yield line, row
        after_value = True


def _next_value(name: str, window: _Window, strict: StrictJSON, longest: int) -> tuple[Any, int]:
    while True:
        error, value, end = None, None, 0
        try:
            value, end = strict.value_at(window.text, window.pos)
        except json.JSONDecodeError as seen:
            error = seen
        # a number that touches the end of the window may go on behind it
        if error is None and (end < len(window.text) or isinstance(value, dict | list | str)):
            return value, end
        if len(window.text) - window.pos <= longest and window.grow():
            continue
        if error is None:
            return value, end
        started_at = window.line
        window.advance(error.pos)
        raise _broken_json(name, window, f"{json_trouble(error)}, in the row that starts at line {started_at:,}")


def _broken_json(name: str, window: _Window, trouble: str) -> BrokenJSON:
    return BrokenJSON(
        f"{name}:{window.line}:{window.column}",
        trouble,
        f"A .json file must be one whole array of rows, each under {MAX_LINE_BYTES // 1024**2} MiB. Repair it, or "
        "write one row per line as .jsonl, where `--skip-bad N` can drop broken lines.",
    )
