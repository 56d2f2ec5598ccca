"""Passages that several pages have word for word (Lee et al. 2022, "Deduplicating training data"), as a report.

Lee et al. sort all suffixes of the corpus; here every run of 50 words has a hash, and one hash in eight is kept, chosen
by its value alone, so that copies of a passage keep the same ones. A passage of n words is missed with probability
(7/8)^(n-49): 12% at 65 words, 2% at 80, 0.1% at 100. What is kept is sorted on disk, part by part, so memory does not
grow with the corpus: 16 bytes of scratch for every eight words, and 24 for every eight that are repeated.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa

from fledge.core.config import Settings
from fledge.curate.shingles import word_blocks

_ONE_IN = 8  # hashes are kept
_PARTS = 64  # of the scratch files
_SAMPLE = np.dtype([("hash", "<u8"), ("page", "<u4"), ("word", "<u4")])
_REPEAT = np.dtype([("page", "<u4"), ("word", "<u4"), ("hash", "<u8"), ("count", "<u4"), ("pages", "<u4")])
_SHOWN_CHARACTERS = 300


class RepeatSettings(Settings, frozen=True, kw_only=True):
    """Which repeated passages are reported."""

    tokens: int = 50
    "Least length of a passage, in words or Chinese characters; Lee et al.: 50 BPE tokens."
    shown: int = 20
    "Passages listed, those that most pages have first."

    def problems(self) -> list[str]:
        """Every rule these settings break, in words."""
        found = [] if self.tokens >= 10 else [f"repeats.tokens = {self.tokens}: must be at least 10; 50 is usual"]
        return found + ([] if self.shown >= 0 else [f"repeats.shown = {self.shown}: must be at least 0"])


class Passage(msgspec.Struct, frozen=True):
    """A passage that several pages have, and where one of them has it."""

    pages: int
    count: int  # of its occurrences, two in one page included
    tokens: int
    hash: int  # the least of its sampled hashes: its name
    page: int
    word: int

    def rank(self) -> tuple[int, ...]:
        return (-self.pages, -self.tokens, self.page, self.word)


def find_repeats(
    read: Callable[[], Iterable[pa.Table]], scratch: Path, settings: RepeatSettings | None = None
) -> dict[str, Any]:
    """What pages share: pages, tokens, repeated_tokens, share (of the tokens), passages [{text, tokens, count, pages, id}].

    read() gives tables of pages (pages.py), twice the same. repeated_tokens counts those within a found passage, its
    first occurrence included; it misses 7 on average at either end of one. `scratch`: a folder for temporary files.
    """
    settings = settings or RepeatSettings()
    if problems := settings.problems():
        raise ValueError("\n".join(problems))
    folder = scratch / "repeats"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        pages, tokens = _sample(read(), settings.tokens, folder)
        _select(folder, pages)
        covered, passages = 0, []
        for part in _parts(folder, "repeat", _REPEAT):
            more, found = _passages(part, settings.tokens)
            covered += more
            passages = _most_repeated([*passages, *found], settings.shown)
    finally:
        shutil.rmtree(folder)
    return {
        "pages": pages,
        "tokens": tokens,
        "repeated_tokens": covered,
        "share": covered / max(tokens, 1),
        "passages": _shown(read(), passages),
    }


def _sample(tables: Iterable[pa.Table], length: int, folder: Path) -> tuple[int, int]:
    """Write the hashes kept of all pages, parted by their first bits; returns (pages, tokens)."""
    pages = tokens = 0
    for table in tables:
        for words in word_blocks(table["text"], digits=True):
            tokens += len(words.hashes)
            hashes = words.grams(length)
            kept = np.flatnonzero(words.whole(length) & (hashes % np.uint64(_ONE_IN) == 0))
            hashes, rows = hashes[kept], np.empty(len(kept), _SAMPLE)
            holders = np.searchsorted(words.offsets, kept, side="right") - 1
            rows["hash"], rows["page"] = hashes, pages + words.first_page + holders
            rows["word"] = kept - words.offsets[holders]
            _append(folder, "sample", rows, (hashes >> np.uint64(58)).astype(np.int64))
        pages += len(table)
    return pages, tokens


def _append(folder: Path, name: str, rows: np.ndarray, part: np.ndarray) -> None:
    """Add rows to the scratch files that `part` (int [N], below _PARTS) says."""
    order = np.argsort(part, kind="stable")
    edges = np.searchsorted(part[order], np.arange(_PARTS + 1))
    for number in range(_PARTS):
        if edges[number] < edges[number + 1]:
            with open(folder / f"{name}-{number:02d}", "ab") as file:
                rows[order[edges[number] : edges[number + 1]]].tofile(file)


def _parts(folder: Path, name: str, dtype: np.dtype) -> Iterator[np.ndarray]:
    for path in sorted(folder.glob(f"{name}-*")):
        yield np.fromfile(path, dtype)


def _select(folder: Path, pages: int) -> None:
    """Of the samples keep those that two pages have, parted by page."""
    for samples in _parts(folder, "sample", _SAMPLE):
        samples = samples[np.lexsort((samples["word"], samples["page"], samples["hash"]))]
        hashes, first, group, count = np.unique(
            samples["hash"], return_index=True, return_inverse=True, return_counts=True
        )
        new = np.ones(len(samples), np.int64)
        new[1:] = (samples["page"][1:] != samples["page"][:-1]) | (group[1:] != group[:-1])
        holders = np.add.reduceat(new, first) if len(hashes) else new
        again = holders[group] > 1
        rows = np.empty(int(again.sum()), _REPEAT)
        for field in ("page", "word", "hash"):
            rows[field] = samples[field][again]
        rows["count"], rows["pages"] = count[group][again], holders[group][again]
        _append(folder, "repeat", rows, rows["page"].astype(np.int64) * _PARTS // max(pages, 1))


def _passages(rows: np.ndarray, length: int) -> tuple[int, list[Passage]]:
    """(tokens inside repeated runs, passages) of some pages: overlapping runs that equally many pages have are one."""
    rows = rows[np.lexsort((rows["word"], rows["page"]))]
    if len(rows) == 0:
        return 0, []
    word = rows["word"].astype(np.int64)
    step = np.minimum(np.diff(word), length)
    same_page = rows["page"][1:] == rows["page"][:-1]
    covered = int(np.where(same_page, step, length).sum()) + length
    joined = same_page & (np.diff(word) <= length) & (rows["pages"][1:] == rows["pages"][:-1])
    first = np.flatnonzero(np.concatenate([[True], ~joined]))
    last = np.append(first[1:] - 1, len(rows) - 1)
    names = np.minimum.reduceat(rows["hash"], first)
    tokens = word[last] + length - word[first]
    columns = (rows["pages"][first], rows["count"][first], tokens, names, rows["page"][first], word[first])
    return covered, [Passage(*values) for values in zip(*(column.tolist() for column in columns), strict=True)]


def _most_repeated(passages: list[Passage], shown: int) -> list[Passage]:
    """The first `shown` by rank, each passage once."""
    best: dict[int, Passage] = {}
    for passage in sorted(passages, key=Passage.rank):
        best.setdefault(passage.hash, passage)
    return list(best.values())[:shown]


def _shown(tables: Iterable[pa.Table], passages: list[Passage]) -> list[dict[str, Any]]:
    """The passages as they stand in the page named, cut at 300 characters."""
    texts: dict[Passage, tuple[str, str]] = {}
    start = 0
    for table in tables:
        for passage in passages:
            if start <= passage.page < start + len(table):
                row = table.slice(passage.page - start, 1)
                (words,) = word_blocks(row["text"], digits=True)
                text = words.written(passage.word, passage.tokens)
                texts[passage] = (text[:_SHOWN_CHARACTERS], row["id"][0].as_py())
        start += len(table)
    return [
        {"text": texts[p][0], "tokens": p.tokens, "count": p.count, "pages": p.pages, "id": texts[p][1]}
        for p in passages
    ]
