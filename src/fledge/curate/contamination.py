"""Pages that contain evaluation text: word n-grams they share with it, and which those are.

As GPT-3 (Brown et al. 2020, appendix C): 13 words, and 8 to 12 where a field is shorter; a Chinese character is a word.
Case, accents, punctuation and the Chinese script do not matter, digits do: a sum with other numbers is another sum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from fledge.curate.pages import Kernel, judged
from fledge.curate.shingles import Words, word_blocks
from fledge.text.readers import Rejects, read_rows, require_some

CONTAMINATED, CONTAMINATED_BY = "contaminated", "contaminated_by"
FOUND = "contains evaluation text"
LEAST_WORDS = 8  # GPT-3's floor; a field of fewer words says nothing
_DIFFERENT_WORDS = 5  # an n-gram of fewer, such as a row of zeros, is not text
_COMMON_SHARE, _COMMON_ITEMS = 0.1, 10  # an n-gram in more items than both is their instruction, not their content
_FIELDS = 1024  # hashed at a time


class Evaluations:
    """The n-grams of evaluation items: rows of JSONL, JSON or Parquet files, every string in them a field.

    Read once; the same object serves every batch. I items, G pairs of an n-gram and an item it is in.
    """

    def __init__(self, paths: Sequence[str | Path], ngram: int = 13):
        """Raises ValueError for a file that cannot be trusted (text/readers.py) and where nothing is usable."""
        if not LEAST_WORDS <= ngram <= 255:
            raise ValueError(f"ngram = {ngram}: must be between {LEAST_WORDS} and 255 words; 13 is usual")
        self.items: list[str] = []  # "path:line" of each
        rejects = Rejects()
        grams, owners, sizes, heads = _item_grams(self.items, paths, ngram, rejects)
        order = np.lexsort((owners, grams))
        order = order[_first_of_each(grams[order], owners[order])]
        order = order[~_common(grams[order], len(self.items))]
        require_some(len(order), paths, rejects, f"evaluation texts of {LEAST_WORDS} words or more")
        self._grams, self._owners, self._sizes = grams[order], owners[order], sizes[order]
        self._per_item = np.bincount(self._owners, minlength=len(self.items))
        bits = min(24, max(12, len(order).bit_length() + 6))
        self._shift = np.uint64(64 - bits)
        self._heads = np.unique(heads[order])  # the first LEAST_WORDS words of each n-gram
        self._may_be_head = np.zeros(1 << bits, bool)  # by their first bits
        self._may_be_head[self._heads >> self._shift] = True
        self._lengths = np.unique(self._sizes).tolist()

    def matches(self, words: Words) -> tuple[np.ndarray, np.ndarray]:
        """(word it begins with, which of the G pairs it is) for every n-gram of these pages that is in an item."""
        firsts, pairs = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        heads = words.grams(LEAST_WORDS)
        candidates = np.flatnonzero(self._may_be_head[heads >> self._shift])
        nearest = np.searchsorted(self._heads, heads[candidates]).clip(max=len(self._heads) - 1)
        candidates = candidates[self._heads[nearest] == heads[candidates]]  # none on a clean page
        for size in self._lengths if len(candidates) else ():
            maybe = candidates[words.whole(size)[candidates]]
            grams = words.grams(size)[maybe]
            low = np.searchsorted(self._grams, grams, side="left")
            counts = np.searchsorted(self._grams, grams, side="right") - low
            nth = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            firsts.append(np.repeat(maybe, counts))
            pairs.append(np.repeat(low, counts) + nth)
        return np.concatenate(firsts), np.concatenate(pairs)

    def worst(self, words: Words) -> Iterator[tuple[int, float, str]]:
        """(page, share, evidence) of every page with a match: for the item of which it has the largest share.

        share: of the item's n-grams that are on the page. evidence: "path:line: " and the first of them as it is there.
        """
        firsts, pairs = self.matches(words)
        if len(firsts) == 0:
            return
        order = np.lexsort((firsts, pairs, words.page_of(firsts)))
        firsts, pairs = firsts[order], pairs[order]
        pages, owners = words.page_of(firsts), self._owners[pairs]
        new = _first_of_each(pages, pairs)  # an n-gram counts once a page, however often it is there
        keys, group = np.unique(pages * len(self.items) + owners, return_inverse=True)
        shares = np.bincount(group, weights=new) / self._per_item[keys % len(self.items)]
        first_words = np.full(len(keys), len(words.hashes))
        np.minimum.at(first_words, group, firsts)
        for page in np.unique(keys // len(self.items)):
            low, high = np.searchsorted(keys, (page * len(self.items), (page + 1) * len(self.items)))
            best = low + int(np.argmax(shares[low:high]))
            size = int(self._sizes[pairs[(firsts == first_words[best]) & (group == best)][0]])
            text = words.written(int(first_words[best]), size)
            yield int(page), float(shares[best]), f"{self.items[keys[best] % len(self.items)]}: {text}"


def contamination_kernel(evaluations: Evaluations, reject: bool, least_share: float = 0.0) -> Kernel:
    """Adds contaminated (float32) and contaminated_by (string, null = none): Evaluations.worst of each page.

    `reject`: a page with any match, and at least `least_share` of an item's n-grams, goes; value = the share.
    """

    def kernel(pages: pa.Table) -> pa.Table:
        share = np.zeros(len(pages), np.float32)
        by: list[str | None] = [None] * len(pages)
        for words in word_blocks(pages["text"], digits=True):
            for page, part, evidence in evaluations.worst(words):
                share[page], by[page] = part, evidence
        pages = pages.append_column(CONTAMINATED, pa.array(share))
        pages = pages.append_column(CONTAMINATED_BY, pa.array(by, pa.string()))
        gone = (share > 0) & (share >= least_share) & reject
        reason = pa.array(np.where(gone, FOUND, ""), pa.string(), mask=~gone)
        return judged(pages, reason, pa.array(share.astype(np.float64), mask=~gone))

    return kernel


def _item_grams(items: list[str], paths: Sequence[str | Path], ngram: int, rejects: Rejects) -> tuple[np.ndarray, ...]:
    """(n-grams uint64, items int64, words uint8, first words uint64) of all fields, with repetitions; fills `items`."""
    found = [tuple(np.zeros(0, dtype) for dtype in (np.uint64, np.int64, np.uint8, np.uint64))]
    fields: list[str] = []
    owners: list[int] = []
    for source, row in read_rows(paths, encoding=None, skip_bad=None, rejects=rejects, columns=frozenset()):
        items.append(source)
        for text in _strings(row):
            fields.append(text)
            owners.append(len(items) - 1)
        if len(fields) >= _FIELDS:
            found += _hashed(fields, owners, ngram)
            fields, owners = [], []
    found += _hashed(fields, owners, ngram)
    return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))


def _hashed(fields: list[str], owners: list[int], ngram: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Columns of _item_grams for some fields: n-grams of `ngram` words, or the whole of a shorter field."""
    for words in word_blocks(pa.array(fields, pa.large_string()), digits=True):
        counts = np.diff(words.offsets)
        for size in range(LEAST_WORDS, ngram + 1):
            here = counts == size if size < ngram else counts >= ngram
            if not here.any():
                continue
            firsts = np.flatnonzero(words.whole(size) & np.repeat(here, counts))
            firsts = firsts[_is_text(words.hashes, firsts, size)]
            whose = np.asarray(owners)[words.page_of(firsts)]
            sizes = np.full(len(firsts), size, np.uint8)
            yield words.grams(size)[firsts], whose, sizes, words.grams(LEAST_WORDS)[firsts]


def _is_text(hashes: np.ndarray, firsts: np.ndarray, size: int) -> np.ndarray:
    """Whether the `size` words from each of `firsts` on are different enough."""
    windows = np.sort(np.lib.stride_tricks.sliding_window_view(hashes, size)[firsts], axis=1)
    return (windows[:, 1:] != windows[:, :-1]).sum(axis=1) + 1 >= _DIFFERENT_WORDS


def _strings(value: Any) -> Iterator[str]:
    """Every string inside a row, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _strings(inner)


def _first_of_each(*columns: np.ndarray) -> np.ndarray:
    """Where any of some sorted columns changes: bool, the first always."""
    changes = np.zeros(len(columns[0]), bool)
    changes[:1] = True
    for column in columns:
        changes[1:] |= column[1:] != column[:-1]
    return changes


def _common(grams: np.ndarray, items: int) -> np.ndarray:
    """Which n-grams (sorted, once per item) are in too many items to be the content of one."""
    _, place, counts = np.unique(grams, return_inverse=True, return_counts=True)
    return counts[place] > max(_COMMON_ITEMS, _COMMON_SHARE * items)
