"""Bytes to text without silent loss: a stated charset, UTF-8, detection; then text that was decoded wrongly before.

What was not read as stated is named (the column `repaired`); what cannot be read is a RowRejected, never a text with
replacement characters. Names of charsets follow the WHATWG Encoding Standard, section 4.2.
"""

from __future__ import annotations

import codecs
import re

from resiliparse.parse.encoding import detect_encoding, map_encoding_to_html5

from fledge.text.files import RowRejected

UNKNOWN = "encoding not known"
NOT_TEXT = "not text"
REPLACED = "replacement characters"
GARBLED = "garbled encoding"

MOST_CONTROLS = 0.02  # of a text's characters; tuned here: binary files have a tenth and more
MOST_REPLACED = 0.001  # tuned here: one page in French or curly quotes that lost its accents has 0.002 and more
MOST_GARBLED = 0.005
SAMPLE_BYTES, SAMPLE_CHARS = 24, 200

_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF32_BE, "utf-32-be"),
          (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))  # fmt: skip
# the decoders browsers use under these names take more characters than Python's of the same name
_WIDER = {"gbk": ("gb18030",), "gb2312": ("gb18030",), "big5": ("cp950", "big5hkscs"), "shift_jis": ("cp932",),
          "euc_kr": ("cp949",), "iso8859-1": ("cp1252",), "ascii": ("cp1252",)}  # fmt: skip
_ONE_BYTE = re.compile(r"cp125\d|iso8859-\d+|mac-|koi8|ascii")
_CHARSET = re.compile(
    rb"<meta[^>]{0,200}?charset\s*=\s*[\"']?\s*([\w:.-]{2,40})|<\?xml[^>]{0,100}?encoding=[\"']([\w.-]{2,40})", re.I
)
_DOS = re.compile(r"cp(?:437|7\d\d|8(?!66)\d\d)")  # on no page of the web (WHATWG has none but cp866)
_TYPOGRAPHY = bytes([*range(128), 0x85, *range(0x91, 0x98), 0x99, 0xA0, 0xA9, 0xAE, 0xB7])  # … ‘’“”•–— ™ NBSP © ® ·
_CONTROLS = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_C1 = re.compile(r"[\x80-\x84\x86-\x9f]")  # without the line end of mainframes
_EAST = ("gbk", "gb18030", "gb2312", "big5", "shift_jis", "euc_jp", "euc_kr")
_COMMON = re.compile(
    "[的一是不了在人有我他中大上來来國国個个為为這这們们時时會会，。、：「」のはにをがでと은는이가을를다에]"
)
_REPLACED = re.compile("\ufffd|锟斤拷|锟叫")  # the latter is U+FFFD in UTF-8, read as GBK

_BYTE_OF = {ord(bytes([byte]).decode("cp1252", "ignore") or chr(byte)): byte for byte in range(0x80, 0xA0)}
_TAIL = "[\x80-\xbf" + "".join(chr(char) for char in _BYTE_OF if char > 0xFF) + "]"
_UTF8_AS_1252 = re.compile(f"[\xc2-\xdf]{_TAIL}|[\xe0-\xef]{_TAIL}{_TAIL}|[\xf0-\xf4]{_TAIL}{_TAIL}{_TAIL}")
_HIGH_LATIN = re.compile("[\x80-\xff" + "".join(chr(char) for char in _BYTE_OF if char > 0xFF) + "]")


def decoded(data: bytes, stated: str | None = None, *, web: bool = False) -> tuple[str, str | None]:
    """(text, how it was read where that is not what was stated, else None).

    `stated` is the charset of the HTTP header; with `web` the page's own <meta charset> counts after it. Raises
    RowRejected with the place of the first byte that is no UTF-8.
    """
    for mark, name in _MARKS:
        if data.startswith(mark):
            text, cut = _strict(data[len(mark) :], name)
            return (text, cut) if text is not None else _detected(data)
    if data.count(0, 0, 4096) * 5 > len(data[:4096]):  # UTF-16 without its mark: of Latin text every other byte is 0
        return _detected(data)
    if data.isascii() and b"\x1b" not in data:
        return _without_controls(data.decode(), data), None
    names = [name for name in (_known(stated), _known(_own_charset(data)) if web else None) if name]
    utf8, utf8_cut = _strict(data, "utf-8")
    for number, name in enumerate(names):
        if name == "utf-8":
            continue
        if utf8 is not None and not utf8.isascii() and _ONE_BYTE.match(name):
            return _without_controls(utf8, data), f"utf-8 stated as {name}"  # by chance it would not be valid UTF-8
        text, cut = _strict(data, name)
        if text is not None:
            if name in _EAST and (other := _likelier(data, name, text)):
                return _without_controls(other[0], data), f"{other[1]} stated as {names[0]}"
            return _without_controls(text, data), cut or (f"{name} stated as {names[0]}" if number else None)
    if utf8 is not None:
        misnamed = bool(names) and names[0] != "utf-8"
        return _without_controls(utf8, data), utf8_cut or (f"utf-8 stated as {names[0]}" if misnamed else None)
    return _detected(data)


def proper(text: str, read: str | None = None) -> tuple[str, str | None]:
    """(text, repairs in words or None): text that was decoded with the wrong charset and saved again, set right where
    that can be undone. `read` is what `decoded` said. Raises RowRejected for text that is lost.
    """
    if text.isascii():
        return text, read
    text, repaired = _undone(text)
    lost = sum(len(match) for match in _REPLACED.findall(text))
    if lost > MOST_REPLACED * len(text):
        raise RowRejected(REPLACED, text[:SAMPLE_CHARS])
    if max(_weight(text), len(_C1.findall(text))) > max(3, MOST_GARBLED * len(text)):
        raise RowRejected(GARBLED, text[:SAMPLE_CHARS])
    return text, "; ".join(filter(None, (read, repaired))) or None


def _known(name: str | None) -> str | None:
    """Python's name of a charset that browsers know; None for others, and for what is no charset ("hex")."""
    return _known_codec(map_encoding_to_html5(name, fallback_utf8=False) or "") if name else None


def _own_charset(data: bytes) -> str | None:
    match = _CHARSET.search(data, 0, 4096)
    if match is None:
        return None
    name = (match[1] or match[2]).decode("ascii", "ignore")
    return None if name.lower().startswith(("utf-16", "utf-32", "ucs")) else name  # it could not be read here then


def _strict(data: bytes, name: str) -> tuple[str | None, str | None]:
    """(text or None, note): a last character that was cut in two is left out, and said."""
    for codec in _WIDER.get(name, (name,)):
        try:
            return data.decode(codec), None
        except UnicodeDecodeError as error:
            at_end = error.end == len(data) and 0 < len(data) - error.start < 4
            if at_end and not _ONE_BYTE.match(codec) and not data[: error.start].isascii():
                return data[: error.start].decode(codec), "cut inside its last character"
    return None, None


def _likelier(data: bytes, stated: str, text: str) -> tuple[str, str] | None:
    """(text, codec) that detection names, where that makes better sense than `text`, read as stated."""
    name = _known_codec(detect_encoding(data, html5_compatible=False) or "")
    if name not in _EAST or {stated, name} <= {"gbk", "gb18030", "gb2312"}:
        return None
    other, _ = _strict(data, name)
    if other is None or len(_COMMON.findall(other)) <= 2 * len(_COMMON.findall(text)):
        return None
    return other, name


def _detected(data: bytes) -> tuple[str, str]:
    name = None
    if data.count(0, 0, 4096) * 5 > len(data[:4096]):
        name = "utf-16-le" if data[1:4096:2].count(0) > data[0:4096:2].count(0) else "utf-16-be"
    name = name or _typographic(data) or detect_encoding(data, html5_compatible=False)
    if name and (name := _known_codec(name)) and name != "utf-8" and not _DOS.match(name):
        text, cut = _strict(data, name)
        if text is not None and not _C1.search(text):
            return _without_controls(text, data), f"read as {name}" + (f", {cut}" if cut else "")
    raise _unknown(data)


def _typographic(data: bytes) -> str | None:
    """cp1252 for ASCII with a few curly quotes, dashes and the like, on which detection guesses at random."""
    high = data.translate(None, bytes(range(128)))
    return "cp1252" if high and len(high) * 20 < len(data) and not high.translate(None, _TYPOGRAPHY) else None


def _known_codec(name: str) -> str | None:
    try:
        return codecs.lookup(name).name
    except LookupError:
        return None


def _unknown(data: bytes) -> RowRejected:
    try:
        data.decode()
        start, why = 0, "starts with the mark of another encoding"
    except UnicodeDecodeError as error:
        start, why = error.start, error.reason
    return RowRejected(UNKNOWN, f"byte {start:,} ({why}): {data[start : start + SAMPLE_BYTES].hex(' ')}")


def _without_controls(text: str, data: bytes) -> str:
    """`text`, which must not be a binary file that some charset happens to cover. NUL and a few others are kept."""
    if _CONTROLS.search(text) and len(_CONTROLS.findall(text)) > max(4, MOST_CONTROLS * len(text)):
        raise RowRejected(NOT_TEXT, data[:SAMPLE_BYTES].hex(" "))
    return text


def _bytes_of(text: str) -> bytes | None:
    """The bytes that reading them as windows-1252 made `text` of; None where that made no such text."""
    try:
        return text.translate(_BYTE_OF).encode("latin-1")
    except UnicodeEncodeError:
        return None


def _undone(text: str) -> tuple[str, str | None]:
    repaired = None
    for _ in range(2):  # it happens twice, too
        if not _UTF8_AS_1252.search(text):
            break
        lines, weight = [], 0.0
        for line in text.split("\n"):
            lines.append(fixed := _utf8_line(line))
            weight += 0.0 if fixed == line else _weight(line)
        if weight < 1:
            break
        text, repaired = "\n".join(lines), "utf-8 read as windows-1252"
    return (text, repaired) if repaired else _undone_east(text)


def _utf8_line(line: str) -> str:
    """A line all of whose characters outside ASCII are UTF-8 read as windows-1252, set right; else as it is."""
    if line.isascii() or (data := _bytes_of(line)) is None:
        return line
    try:
        return data.decode()
    except UnicodeDecodeError:
        return line


def _weight(line: str) -> float:
    """How sure one line makes it: "É…" is the end of a French sentence before it is a letter of three bytes."""
    return sum(1.0 if len(match) > 2 or match[0] in "ÂÃ" else 0.3 for match in _UTF8_AS_1252.findall(line))


def _undone_east(text: str) -> tuple[str, str | None]:
    """GBK, Big5, Cyrillic... read as windows-1252; and UTF-8 read as GBK."""
    start = text[:400]
    high = len(_HIGH_LATIN.findall(start))
    if high * 10 > 3 * len(start) and (data := _bytes_of(text)) is not None:
        name = _known_codec(detect_encoding(data, html5_compatible=False) or "")
        if name and not re.match(r"cp1252|iso8859-|utf", name):
            right, _ = _strict(data, name)
            if right is not None and not _C1.search(right):
                return right, f"{name} read as windows-1252"
    head = "".join(char for char in text[:200] if char > "\x7f")[:40].encode("gb18030")
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
        return text.encode("gb18030").decode(), "utf-8 read as gb18030"
    except UnicodeError:
        return text, None
