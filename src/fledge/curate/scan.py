"""A batch of pages as one array of code points, and where its words and lines are: what every rule reads.

There is one tokenisation, the same for all languages and rules: a Han character is a word; a run of letters, digits,
marks and underscores is a word, with an apostrophe inside it (don't); any other run of symbols is a word.

Shapes: P pages, N code points with one separator after each page, W words, L lines.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np

from fledge.curate.variants import CODE_POINTS, HAN

BLOCK = 1 << 18
"Code points scanned at once, where pages are shorter: the arrays of a block then stay in the processor's cache."

KIND = 3  # the two lowest bits: 0 white space, else one of
ALNUM, SYMBOL, IDEOGRAPH = 1, 2, 3
LETTER, PLAIN, ENDING, BREAK, UPPER, DIGIT = 4, 8, 16, 32, 64, 128
"Flags: str.isalpha, not punctuation, ends a sentence, ends a line for str.splitlines, str.isupper, str.isdigit."

# Characters that end a sentence: Unicode's property Sentence_Terminal with the full-width forms, as FineWeb lists them.
_ENDINGS = """21 2e 3f 589 61d-61f 6d4 700-702 7f9 837 839 83d-83e 964-965 104a-104b 1362 1367-1368 166e 1735-1736
17d4-17d6 17d9-17da 1803 1809 1944-1945 1aa8-1aab 1b5a-1b5b 1b5e-1b5f 1b7d-1b7e 1c3b-1c3c 1c7e-1c7f 203c-203d 2047-2049
2e2e 2e3c 2e53-2e54 3002 a4ff a60e-a60f a6f3 a6f7 a876-a877 a8ce-a8cf a92f a9c8-a9c9 aa5d-aa5f aaf0-aaf1 abeb fe52
fe56-fe57 ff01 ff0e ff1f ff61 10a56-10a57 10f55-10f59 10f86-10f89 11047-11048 110be-110c1 11141-11143 111c5-111c6 111cd
111de-111df 11238-11239 1123b-1123c 112a9 1144b-1144c 115c2-115c3 115c9-115d7 11641-11642 1173c-1173e 11944 11946
11a42-11a43 11a9b-11a9c 11c41-11c42 11ef7-11ef8 11f43-11f44 16a6e-16a6f 16af5 16b37-16b38 16b44 16e98 1bc9f 1da88"""
# What counts as punctuation when a word is only that (FineWeb's list, from CCNet), with the endings and control codes.
_PUNCTUATION = "!/—”:％１〈&(、━\\【#%「」，】；+^]~“《„';’{|∶´[=-`*．（–？！：$～«〉,><》)?）。…@_.\"}►»"

_CHUNK = 1 << 16  # code points
_FACTOR = np.uint64(0x9E3779B97F4A7C15)
_BASE = 0xD1342543DE82EF95
_INVERSE = pow(_BASE, -1, 1 << 64)
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))
_PAGE_SALT = np.uint64(0xA24BAED4963EE407)


@lru_cache(maxsize=1)
def character_flags() -> np.ndarray:
    """Code point -> kind and flags, uint8 [0x110000]; about 0.1 seconds, once per process."""
    flags = np.full(CODE_POINTS, SYMBOL | PLAIN, np.uint8)
    for first, end in ((0, 0x3400), (0xA000, 0xAC00), (0xD7A4, 0xD800), (0xE000, 0xE010), (0xF900, 0x20000)):
        flags[first:end] = [_flags_of(chr(code)) for code in range(first, end)]
    flags[0xAC00:0xD7A4] = ALNUM | LETTER | PLAIN  # Hangul syllables
    for first, end in HAN:
        han = slice(first, end)
        flags[han] = np.where(flags[han] & KIND, (flags[han] & ~np.uint8(KIND)) | IDEOGRAPH, flags[han])
    for first, end in ((0x3400, 0x4DC0), (0x4E00, 0xA000), (0x20000, 0x323B0)):
        flags[first:end] = IDEOGRAPH | LETTER | PLAIN
    for part in _ENDINGS.split():
        first, _, last = part.partition("-")
        ending = slice(int(first, 16), int(last or first, 16) + 1)
        flags[ending] = (flags[ending] & ~np.uint8(PLAIN)) | ENDING
    controls = [*range(9), 11, 12, *range(13, 32), *range(127, 160)]
    flags[[*map(ord, _PUNCTUATION), *controls]] &= ~np.uint8(PLAIN)
    flags.flags.writeable = False
    return flags


def _flags_of(character: str) -> int:
    category = unicodedata.category(character)
    if character.isspace():
        kind = 0
    elif category[0] in "LNM" or category == "Cf" or character == "_":  # Cf: joiners and soft hyphens, inside words
        kind = ALNUM
    else:
        kind = SYMBOL
    return (
        kind
        | LETTER * character.isalpha()
        | PLAIN
        | BREAK * (len(f"a{character}a".splitlines()) == 2)
        | UPPER * character.isupper()
        | DIGIT * character.isdigit()
    )


def mix(x: np.ndarray) -> np.ndarray:
    """A bijection of uint64 that makes every bit depend on all (the finaliser of splitmix64, Steele et al. 2014)."""
    x = (x ^ (x >> np.uint64(30))) * _MIX[0]
    x = (x ^ (x >> np.uint64(27))) * _MIX[1]
    return x ^ (x >> np.uint64(31))


def salted(hashes: np.ndarray, page: np.ndarray) -> np.ndarray:
    """Hashes that are equal only within a page: uint64 [K], page number [K] -> uint64 [K]."""
    return mix(hashes + page.astype(np.uint64) * _PAGE_SALT)


class Words(NamedTuple):
    """Words of all pages in order; word w is code[start[w]:end[w]]."""

    start: np.ndarray  # [W]
    end: np.ndarray  # [W]
    page: np.ndarray  # [W]
    first: np.ndarray  # [P+1] the words of page p are first[p]..first[p+1]-1


class Lines(NamedTuple):
    """Lines of all pages in order, without what ends them; a page with b line breaks has b + 1, any of them empty."""

    start: np.ndarray  # [L]
    end: np.ndarray  # [L]
    page: np.ndarray  # [L]
    visible: np.ndarray  # [L] first character that is no white space; of a blank line, something at or after its end
    shown: np.ndarray  # [L] end of the last one; only for lines that are not blank

    @property
    def blank(self) -> np.ndarray:
        """[L] lines without a visible character."""
        return self.visible >= self.end


class Scan:
    """One block of pages; everything beyond the code points is computed when first asked for."""

    def __init__(self, texts: Sequence[str]):
        self.pages = len(texts)
        sizes = np.fromiter(map(len, texts), np.int64, len(texts))
        self.last = np.cumsum(sizes + 1) - 1  # [P] the separator: page p is code[first[p]:last[p]]
        self.first = self.last - sizes  # [P]
        self.size = sizes  # [P] characters
        self.code = np.frombuffer(("\0".join(texts) + "\0").encode("utf-32-le"), np.uint32)  # [N]
        flags = character_flags().take(self.code)
        flags[self.last] = BREAK
        inside = np.flatnonzero((self.code == 0x27) | (self.code == 0x2019))
        if len(inside):  # an apostrophe is part of the word when a letter or digit stands on both sides
            inside = inside[(inside > 0) & (flags[inside - 1] & KIND == ALNUM) & (flags[inside + 1] & KIND == ALNUM)]
            flags[inside] = (flags[inside] & ~np.uint8(KIND)) | ALNUM
        self.flags = flags  # [N]
        self.kind = flags & KIND  # [N]

    @cached_property
    def words(self) -> Words:
        """The words of the one tokenisation."""
        kind = self.kind
        begins = np.empty(len(kind), bool)
        begins[0] = True
        np.not_equal(kind[1:], kind[:-1], out=begins[1:])
        begins |= kind == IDEOGRAPH
        start = np.flatnonzero(begins)
        end = np.append(start[1:], len(kind))
        word = kind[start] > 0
        return self._words(start[word], end[word])

    @cached_property
    def spaced(self) -> Words:
        """The runs of characters that are not white space: what str.split gives."""
        visible = self.kind > 0
        change = np.flatnonzero(visible[1:] != visible[:-1]) + 1
        if visible[0]:
            change = np.insert(change, 0, 0)
        return self._words(change[0::2], change[1::2])  # the last character is a separator, so every run ends

    @cached_property
    def word_hashes(self) -> np.ndarray:
        """uint64 [W]: equal words have equal hashes."""
        return self.hashes(self.words.start, self.words.end)

    def _words(self, start: np.ndarray, end: np.ndarray) -> Words:
        first = np.searchsorted(start, np.append(self.first, len(self.code)))
        return Words(start, end, np.repeat(np.arange(self.pages), np.diff(first)), first)

    @cached_property
    def newline(self) -> np.ndarray:
        """Where the newlines are, ascending."""
        return np.flatnonzero(self.code == 10)

    @cached_property
    def lines(self) -> Lines:
        """Lines as split by newlines alone, the last one of a page included."""
        ends = self.code == 10
        ends[self.last] = True
        return self._lines(np.flatnonzero(ends))

    @cached_property
    def split_lines(self) -> Lines:
        """Lines as split by every line break of Unicode; of a carriage return and newline, the line keeps the first."""
        ends = np.flatnonzero(self.flags & BREAK)
        ends = ends[(self.code[ends] != 13) | (self.code[np.minimum(ends + 1, len(self.code) - 1)] != 10)]
        return self.lines if np.array_equal(ends, self.lines.end) else self._lines(ends)

    def _lines(self, end: np.ndarray) -> Lines:
        start = np.append(0, end[:-1] + 1)
        after = np.searchsorted(end, self.last)  # [P] a page's last line
        page = np.repeat(np.arange(self.pages), np.diff(after, prepend=-1))
        runs = self.spaced
        visible = np.append(runs.start, len(self.code))[np.searchsorted(runs.start, start)]
        shown = np.append(runs.end, 0)[np.searchsorted(runs.start, end) - 1]
        return Lines(start, end, page, visible, shown)

    @cached_property
    def _sums(self) -> np.ndarray:
        """[N+1] uint64: sums of character hash * base^place, of which every segment's hash is a difference."""
        sums = np.empty(len(self.code) + 1, np.uint64)
        sums[0] = 0
        chunks = -(-len(self.code) // _CHUNK)
        small, large = _powers(_BASE, _CHUNK), _powers(pow(_BASE, _CHUNK, 1 << 64), chunks)
        for number, power in enumerate(large):  # in chunks, so that what is in between stays in the cache
            first = number * _CHUNK
            value = self.code[first : first + _CHUNK] * _FACTOR  # uint64
            value ^= value >> np.uint64(32)
            value *= _MIX[0]
            value *= small[: len(value)]
            value *= power
            np.cumsum(value, out=value)
            np.add(value, sums[first], out=sums[first + 1 : first + 1 + len(value)])
        return sums

    def hashes(self, start: np.ndarray, end: np.ndarray) -> np.ndarray:
        """uint64 [K]: equal segments code[start:end] have equal hashes, others almost never do."""
        value = self._sums[end] - self._sums[start]
        value *= _powers(_INVERSE, _CHUNK).take(start % _CHUNK)
        value *= _powers(pow(_INVERSE, _CHUNK, 1 << 64), len(self.code) // _CHUNK + 1).take(start // _CHUNK)
        return mix(value + (end - start).astype(np.uint64))

    def count(self, places: np.ndarray) -> np.ndarray:
        """[P] how many of the ascending places in `code` lie in each page."""
        return np.searchsorted(places, self.last) - np.searchsorted(places, self.first)

    def per_page(self, page: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """[P] how many of the page numbers are each page's, or the sum of their weights."""
        return np.bincount(page, weights, self.pages)


@lru_cache(maxsize=64)
def _powers(base: int, count: int) -> np.ndarray:
    """uint64 [count]: base^0, base^1, ... modulo 2^64."""
    factors = np.full(count, base, np.uint64)
    factors[0] = 1
    return np.cumprod(factors, dtype=np.uint64)


def text_hash(text: str) -> int:
    """Scan.hashes of a text by itself."""
    scan = Scan([text])
    return int(scan.hashes(scan.first, scan.last)[0])


def blocks(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """(first, last + 1) of consecutive texts that make a block: about BLOCK code points, at least one text."""
    first, size = 0, 0
    for i, text in enumerate(texts):
        if size and size + len(text) > BLOCK:
            yield first, i
            first, size = i, 0
        size += len(text) + 1
    if first < len(texts):
        yield first, len(texts)
