"""Words of many pages at once, as hashes, and the hashes of every run of n words, in any script.

One table over code points says what a character is: letters in lower case and without accents, every digit 0, Traditional
characters simplified, punctuation and space a break between words (as datatrove's text normalisation before MinHash). A
run of letters and digits is a word; so is every single character of a script written without spaces (Han, kana, Thai,
...), or a shingle of five "words" would be a whole Chinese clause and one changed character would spoil it.

Hashes are polynomials modulo 2^64 read off prefix sums (Karp & Rabin 1987): sum(c[j] * B^j) over a span, times
B^-start. So a run of n words costs the same for any n, and no step is a Python loop over pages.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fledge.curate.variants import CODE_POINTS, HAN, simplified_table

BLOCK_BYTES = 1 << 18  # of text worked on at a time: its arrays stay in the second-level cache
_ALONE = np.uint32(1 << 31)  # bit of a code: a word by itself
_PASSED_OVER = 1  # code of marks that neither stand for something nor part words
_BASE, _WORD_BASE = 0x9E3779B97F4A7C15 | 1, 0xD1342543DE82EF95 | 1
_UNSPACED = (  # half-open ranges besides Han whose every character is a word
    (0x0E00, 0x0F00),  # Thai, Lao
    (0x0F00, 0x1000),  # Tibetan
    (0x1000, 0x10A0),  # Myanmar
    (0x1780, 0x1800),  # Khmer
    (0x3040, 0x3100),  # kana
    (0x31F0, 0x3200),
)
_IGNORED = (  # accents written apart, soft hyphen, zero-width characters, variation selectors, byte order mark
    (0x0300, 0x0370), (0x00AD, 0x00AE), (0x200B, 0x2010), (0x2060, 0x2065), (0xFE00, 0xFE10), (0xFEFF, 0xFF00),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Words:
    """The words of some pages. N pages, M words, positions in characters of the block's text."""

    first_page: int  # row of the first of these pages in its column
    text: str  # of all pages, joined without anything between
    hashes: np.ndarray  # uint64 [M], evenly spread
    begins: np.ndarray  # int64 [M]: position in `text` of each word's first character
    offsets: np.ndarray  # int64 [N+1]: the words of page i are offsets[i]:offsets[i+1]
    pages: np.ndarray  # int64 [N+1]: where each page begins in `text`

    def grams(self, n: int) -> np.ndarray:
        """Hash of the n words from each word on, uint64 [M], evenly spread; only where whole(n) do they make sense."""
        m = len(self.hashes)
        power, inverse = _powers(m, _WORD_BASE)
        sums = np.zeros(m + n, np.uint64)
        np.multiply(self.hashes, power, out=sums[1 : m + 1])
        np.cumsum(sums, out=sums)
        return mixed((sums[n:] - sums[:m]) * inverse)

    def page_of(self, words: np.ndarray) -> np.ndarray:
        """Row in its column of the page that holds each of these words: int64, as `words`."""
        return self.first_page + np.searchsorted(self.offsets, words, side="right") - 1

    def written(self, first: int, count: int) -> str:
        """`count` words of one page from `first` on as they stand in its text, white space put in order."""
        page = int(np.searchsorted(self.offsets, first, side="right"))
        end = first + count
        stop = self.begins[end] if end < self.offsets[page] else self.pages[page]
        return " ".join(self.text[self.begins[first] : stop].split())

    def whole(self, n: int) -> np.ndarray:
        """Which words begin a run of n words of one page: bool [M]."""
        found = np.ones(len(self.hashes), bool)
        ends = np.repeat(self.offsets[1:], n - 1) - np.tile(np.arange(1, n), len(self.offsets) - 1)
        starts = np.repeat(self.offsets[:-1], n - 1)
        found[np.maximum(ends, starts)[ends >= starts]] = False
        return found


def mixed(hashes: np.ndarray) -> np.ndarray:
    """Spread uint64 evenly, in place (the finaliser of splitmix64, Steele et al. 2014); a bijection."""
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        hashes ^= hashes >> np.uint64(shift)
        hashes *= np.uint64(factor)
    hashes ^= hashes >> np.uint64(31)
    return hashes


def word_blocks(texts: pa.ChunkedArray | pa.Array, *, digits: bool = False, symbols: bool = False) -> Iterator[Words]:
    """The words of a column of texts, block by block in order; a block is whole pages, about BLOCK_BYTES in all.

    `digits` keeps digits apart from each other, where every digit is 0 otherwise. `symbols` makes every punctuation mark
    and symbol a word, where they are breaks otherwise.
    """
    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    texts = texts.cast(pa.large_string()).fill_null("")
    if len(texts) == 0:
        return
    _, spans, data = texts.buffers()
    at = np.frombuffer(spans, np.int64)[texts.offset : texts.offset + len(texts) + 1]
    characters = np.zeros(len(texts) + 1, np.int64)
    np.cumsum(pc.utf8_length(texts).to_numpy(zero_copy_only=False), out=characters[1:])
    first = 0
    while first < len(texts):
        end = max(first + 1, int(np.searchsorted(at, at[first] + BLOCK_BYTES, side="right")) - 1)
        text = "" if data is None else str(data[at[first] : at[end]], "utf-8")
        yield _words(first, text, characters[first : end + 1] - characters[first], code_table(digits, symbols))
        first = end


def _words(first_page: int, text: str, pages: np.ndarray, table: np.ndarray) -> Words:
    """`pages` [N+1]: where each page begins in `text`, in characters."""
    codes = table.take(np.frombuffer(text.encode("utf-32-le"), np.uint32))
    edges, where = pages, None
    if (passed := codes == _PASSED_OVER).any():
        where = np.flatnonzero(~passed)
        codes, edges = codes[where], np.searchsorted(where, pages)
    begins = _word_begins(codes, edges)
    offsets = np.searchsorted(begins, edges)
    power, inverse = _powers(len(codes), _BASE)
    sums = np.zeros(len(codes) + 1, np.uint64)
    np.multiply(codes, power, out=sums[1:])
    np.cumsum(sums, out=sums)  # breaks are zeros: a word's sum may run on to where the next begins
    hashes = np.diff(sums.take(begins), append=sums[-1])
    hashes *= inverse.take(begins)
    return Words(first_page, text, mixed(hashes), begins if where is None else where[begins], offsets, pages)


def _word_begins(codes: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Positions of the first character of each word."""
    word = codes != 0
    running = word > (codes >= _ALONE)  # letters and digits that join their like
    begin = word.copy()
    begin[1:] &= ~(running[1:] & running[:-1])
    firsts = edges[:-1][edges[:-1] < len(codes)]
    begin[firsts] = word[firsts]
    return np.flatnonzero(begin)


def _powers(n: int, base: int) -> tuple[np.ndarray, np.ndarray]:
    """base^0 ... base^(n-1) and their inverses modulo 2^64 (base is odd), both uint64 [n]."""
    power, inverse = (
        _usual_powers(BLOCK_BYTES, base) if n <= BLOCK_BYTES else _new_powers(n, base)
    )  # longer: one large page
    return power[:n], inverse[:n]


@lru_cache(maxsize=2)
def _usual_powers(n: int, base: int) -> tuple[np.ndarray, np.ndarray]:
    return _new_powers(n, base)


def _new_powers(n: int, base: int) -> tuple[np.ndarray, np.ndarray]:
    factors = np.ones((2, n), np.uint64)
    factors[0, 1:], factors[1, 1:] = base, pow(base, -1, 1 << 64)
    power, inverse = np.cumprod(factors, axis=1)
    return power, inverse


@lru_cache(maxsize=4)
def code_table(digits: bool = False, symbols: bool = False) -> np.ndarray:
    """Code point -> code, uint32 [0x110000]: 0 for a break, 1 for what is passed over, else the folded character.

    `digits`: 1, ١ and １ are 1; otherwise every digit is 0. `symbols`: they are words by themselves, otherwise breaks.
    """
    table = np.zeros(CODE_POINTS, np.uint32)
    for code in (*range(0x3400), *range(0xA000, 0xAC00), *range(0xD7B0, 0xD800), *range(0xFB00, 0x20000)):
        table[code] = _folded(chr(code), digits, symbols)
    table[0xAC00:0xD7A4] = np.arange(0xAC00, 0xD7A4)  # a Hangul syllable is not its first consonant
    for first, end in HAN:
        letters = table[first:end] > 0 if end <= 0x3400 else True  # below lie radicals and punctuation too
        table[first:end] = np.where(letters, simplified_table()[first:end] | _ALONE, 0)
    for first, end in _UNSPACED:
        table[first:end] |= np.where(table[first:end] > 0, _ALONE, 0).astype(np.uint32)
    for first, end in _IGNORED:
        table[first:end] = _PASSED_OVER
    table.flags.writeable = False
    return table


def _folded(character: str, digits: bool, symbols: bool) -> int:
    """Code of one character outside the ranges of Han and Hangul."""
    category = unicodedata.category(character)[0]
    if category not in "LMN":
        return ord(character) | int(_ALONE) if symbols and category in "PS" else 0
    base = unicodedata.normalize("NFKD", character.lower())[0]
    if base.isdecimal():
        return ord("0") + (unicodedata.decimal(base) if digits else 0)
    return ord(base)
