"""Repetition within a page: copied lines and paragraphs, n-grams that recur, periodic spans, compressibility.

Gopher's rules (Rae et al. 2021, appendix A.1.1) in both countings in use: later copies over the whole text (datatrove,
FineWeb), and every copy over the words alone (DCLM). Slow twins of the n-grams and the periods are in the tests.

Shapes: P pages, W words, K candidates.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from fledge.curate.scan import SYMBOL, Scan, mix, salted
from fledge.text.periodic import periodic_spans

COMPRESSED_FROM = 200
"Bytes below which a page's compressibility says nothing."

_FACTORS = mix(np.arange(1, 11, dtype=np.uint64)) | np.uint64(1)  # one odd factor per place in an n-gram


def copied_segments(page: np.ndarray, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(later [K], copied [K]): segments that an earlier one of the same page equals; those and the first of each."""
    order, begins = _groups(salted(hashes, page))
    later, copied = np.zeros(len(page), bool), np.zeros(len(page), bool)
    later[order[~begins]] = True
    copied[order[_paired(begins)]] = True
    return later, copied


def _groups(hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(order [K], begins [K]): places sorted by hash and then by place, and where in it another hash begins.

    The place is packed into the low bits, so one plain sort does it, several times faster than argsort.
    """
    count = len(hashes)
    low = np.uint64((1 << count.bit_length()) - 1)
    packed = hashes & ~low
    packed |= np.arange(count, dtype=np.uint64)
    packed.sort()
    packed &= low
    order = packed.view(np.int64)
    ranked = hashes[order]
    begins = np.empty(count, bool)
    begins[:1] = True
    np.not_equal(ranked[1:], ranked[:-1], out=begins[1:])
    return order, begins


def _paired(begins: np.ndarray) -> np.ndarray:
    """[K] members of groups of two or more."""
    paired = ~begins
    paired[:-1] |= paired[1:]
    return paired


class _Sequence(NamedTuple):
    """The words whose n-grams are counted, in order, and what their characters are a share of."""

    hashes: np.ndarray  # [W]
    page: np.ndarray  # [W]
    stop: np.ndarray  # [W] the first word of the next page
    sums: np.ndarray  # [W+1] characters before each word
    first: np.ndarray  # [P+1]
    whole: np.ndarray  # [P]


def ngram_shares(scan: Scan) -> dict[str, np.ndarray]:
    """Gopher's top 2- to 4-gram and duplicate 5- to 10-gram character shares as datatrove counts them, each [P]."""
    words = scan.words
    sizes = words.end - words.start
    sequence = _Sequence(
        scan.word_hashes,
        words.page,
        words.first[1:][words.page],
        np.append(0, np.cumsum(sizes)),
        words.first,
        np.maximum(scan.size, 1),
    )
    top, duplicate = _repeated(sequence, every=False)
    return {f"top_{n}gram": top[n] for n in top} | {f"duplicate_{n}grams": duplicate[n] for n in duplicate}


def dclm_ngram_shares(scan: Scan) -> dict[str, np.ndarray]:
    """The same as DCLM counts them: words that begin with a letter or digit, every copy, over these words."""
    words = scan.words
    chosen = np.flatnonzero(scan.kind[words.start] != SYMBOL)
    page = words.page[chosen]
    sizes = (words.end - words.start)[chosen]
    first = np.searchsorted(page, np.arange(scan.pages + 1))
    sums = np.append(0, np.cumsum(sizes))
    whole = np.maximum(np.diff(sums[first]), 1)
    top, duplicate = _repeated(
        _Sequence(scan.word_hashes[chosen], page, first[1:][page], sums, first, whole), every=True
    )
    return {f"repeated_{n}gram": top[n] for n in top} | {f"repeated_{n}grams": duplicate[n] for n in duplicate}


def _repeated(sequence: _Sequence, every: bool) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
    """({2..4: top n-gram's share [P]}, {5..10: share in repeated n-grams [P]}).

    An n-gram recurs only where both (n-1)-grams inside it do, so few candidates are left after the words themselves.
    """
    top, duplicate = {}, {}
    at = np.arange(len(sequence.hashes))  # [K] where the candidates begin
    gram = sequence.hashes * _FACTORS[0]  # [K] their hashes
    repeats = np.zeros(len(at) + 1, bool)
    for n in range(1, 11):
        if n > 1:
            likely = repeats[at] & repeats[at + 1] & (at + n <= sequence.stop[at])
            at = at[likely]
            gram = gram[likely] + sequence.hashes[at + n - 1] * _FACTORS[n - 1]
        order, begins = _groups(salted(gram, sequence.page[at]))
        paired = _paired(begins)
        if n in (2, 3, 4):
            top[n] = _top(sequence, at[order[paired]], begins[paired], n, every)
        if n >= 5:
            counted = np.zeros(len(at), bool)
            counted[order[paired if every else ~begins]] = True
            duplicate[n] = _covered(sequence, at[counted], n)
        repeats = np.zeros(len(repeats), bool)
        repeats[at[order[paired]]] = True
    return top, duplicate


def _top(sequence: _Sequence, at: np.ndarray, begins: np.ndarray, n: int, every: bool) -> np.ndarray:
    """[P] share of the most frequent n-gram: `at` [K] are the places of those that recur, group after group.

    Of equally frequent ones the earliest counts, with the spaces between its words, and one that occurs once if none
    recurs; with `every`, the longest counts, without spaces, and only if it recurs.
    """
    pages = len(sequence.whole)
    group = np.flatnonzero(begins)
    first = at[group]
    times = np.diff(group, append=len(at))
    size = sequence.sums[first + n] - sequence.sums[first]
    best = np.zeros(pages, np.int64)
    low = (1 << 32) - 1
    np.maximum.at(best, sequence.page[first], (times << 32) | (size if every else low - first))
    times, tie = best >> 32, best & low
    if every:
        return times * tie / sequence.whole
    opening = sequence.first[:-1]
    has = opening + n <= sequence.first[1:]
    chosen = np.where(times > 0, low - tie, np.where(has, opening, 0))
    size = sequence.sums[np.minimum(chosen + n, len(sequence.sums) - 1)] - sequence.sums[chosen] + n - 1
    return np.where(has, np.maximum(times, 1) * size, 0) / sequence.whole


def _covered(sequence: _Sequence, at: np.ndarray, n: int) -> np.ndarray:
    """[P] share of the characters in the union of the n-grams that begin at the ascending places `at` [K]."""
    fresh = at.copy()  # where the part begins that the n-gram before does not cover
    np.maximum(fresh[1:], at[:-1] + n, out=fresh[1:])
    size = sequence.sums[at + n] - sequence.sums[fresh]
    return np.bincount(sequence.page[at], size, len(sequence.whole)) / sequence.whole


def periodic_shares(scan: Scan) -> dict[str, np.ndarray]:
    """Share of each page's characters in periodic spans and the longest of them in characters, each [P].

    A span repeats 1 to 13 characters 32 times or more, the last repeat perhaps in part.
    """
    code = scan.code.copy()
    code[scan.last] = (1 << 31) + np.arange(scan.pages)  # no period crosses pages
    start, end = periodic_spans(code).T
    page = np.searchsorted(scan.last, start)
    longest = np.zeros(scan.pages, np.int64)
    np.maximum.at(longest, page, end - start)
    covered = np.maximum.accumulate(np.append(0, end))[:-1]  # how far the spans before reach
    share = scan.per_page(page, np.maximum(end - np.maximum(start, covered), 0)) / np.maximum(scan.size, 1)
    return {"periodic": share, "longest_periodic": longest}


def compressed(texts: pa.ChunkedArray) -> np.ndarray:
    """float64 [P]: bytes after zlib (level 1) per byte of UTF-8 text; 1 for pages of fewer than 200 bytes."""
    ratio = np.ones(len(texts))
    row = 0
    for chunk in texts.cast(pa.large_string()).chunks:
        if not len(chunk):
            continue
        ends = np.frombuffer(chunk.buffers()[1], np.int64)[chunk.offset : chunk.offset + len(chunk) + 1].tolist()
        data = memoryview(chunk.buffers()[2] or b"")
        for start, end in zip(ends, ends[1:], strict=False):
            if end - start >= COMPRESSED_FROM:
                ratio[row] = len(zlib.compress(data[start:end], 1)) / (end - start)
            row += 1
    return ratio
