"""A sample of pages to train the quality classifier on, with their features, and on which side of the split each lies.

Pages are sampled by the hash of their words, so the sample is the same in whatever order they come, holds no page twice,
and needs memory for the sample alone. Shapes: P pages, C chunks.
"""

from __future__ import annotations

import hashlib
import urllib.parse
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from fledge.core.durable import sha256
from fledge.curate.languages import identify
from fledge.curate.ngrams import Features, features, identities
from fledge.curate.quality import family
from fledge.curate.shingles import mixed

HELD_OUT, CALIBRATE, TRAIN = 0, 1, 2
SplitBy = Literal["page", "source"]
_SHARES = (0.2, 0.1)  # of the pages: held out for the figures, and for the calibration
_CHUNKS = 8  # of one page that are trained on, spread evenly
_HEAD_CHARS = 600
_SALT = np.uint64(0x5EED0F5117)


class Sample(NamedTuple):
    """Pages in ascending order of `identity`, none twice."""

    identity: np.ndarray  # uint64 [P]
    part: np.ndarray  # int8 [P] HELD_OUT, CALIBRATE or TRAIN
    words: np.ndarray  # int64 [P]
    language: np.ndarray  # object [P] str, the part before "-"
    source: np.ndarray  # object [P] str
    head: np.ndarray  # object [P] the beginning of the text
    found: np.ndarray  # object [P] Features of each page by itself; of long ones to train on, of some chunks

    def take(self, pages: np.ndarray) -> Sample:
        """The pages of these numbers (or of this mask)."""
        return Sample(*(column[pages] for column in self))

    def features(self) -> Features:
        """The chunks of all pages, one page after another."""
        held: Sequence[Features] = self.found
        columns = [np.concatenate([page[i] for page in held]) for i in range(3)]
        return Features(*columns, np.repeat(np.arange(len(held)), [len(page.sizes) for page in held]))


def joined(parts: Sequence[Sample]) -> Sample:
    """The pages of all parts, as they come."""
    return Sample(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def collect(tables: Iterable[pa.Table], most: int, by: SplitBy = "page") -> tuple[Sample, dict[str, Any]]:
    """A sample of at most `most` distinct pages with words; how many were seen, without words and used, and the sha256
    of the identities of those.

    Raises ValueError where there is none.
    """
    held: list[Sample] = []
    counts, limit = Counter(seen=0, without_words=0), np.uint64(2**64 - 1)
    for pages in tables:
        identity = identities(pages["text"].to_pylist())
        counts["seen"] += len(pages)
        counts["without_words"] += int((identity == 0).sum())
        wanted = np.flatnonzero((identity != 0) & (identity <= limit))
        if len(wanted):
            held.append(_sampled(pages.take(pa.array(wanted)), identity[wanted], by))
        if sum(len(part.identity) for part in held) > 1.25 * most:
            held = [_smallest(held, most)]
            limit = held[0].identity[-1] if len(held[0].identity) == most else limit
    if not held:
        raise ValueError(f"{counts['seen']} pages, none of them with words")
    sample = _smallest(held, most)
    return sample, {**counts, "used": len(sample.identity), "sha256": sha256(sample.identity.tobytes())}


def _smallest(parts: Sequence[Sample], most: int) -> Sample:
    """The `most` pages of the smallest identities, each once (the first that came)."""
    whole = joined(parts)
    _, first = np.unique(whole.identity, return_index=True)
    return whole.take(first[:most])


def _sampled(pages: pa.Table, identity: np.ndarray, by: SplitBy) -> Sample:
    """All of these pages, which have words."""
    texts = pages["text"].to_pylist()
    told = [name or "" for name in pages["language"].to_pylist()]
    if untold := [i for i, name in enumerate(told) if name in ("", "und")]:
        for i, name in zip(untold, identify([texts[i] for i in untold])[0], strict=True):
            told[i] = name
    drawn = mixed(_groups(pages, identity, by) ^ _SALT) / 2.0**64
    part = np.digitize(drawn, np.cumsum(_SHARES)).astype(np.int8)
    found, words = np.empty(len(texts), object), np.zeros(len(texts), np.int64)
    for page, own in _page_by_page(texts):
        words[page] = own.words.sum()
        found[page] = _spread(own) if part[page] == TRAIN else own
    columns = ([family(name) for name in told], pages["source"].to_pylist(), [text[:_HEAD_CHARS] for text in texts])
    return Sample(identity, part, words, *(np.array(column, object) for column in columns), found)


def _groups(pages: pa.Table, identity: np.ndarray, by: SplitBy) -> np.ndarray:
    """uint64 [P]: what decides on which side of the split a page lies."""
    if by == "page":
        return identity
    rows = zip(pages["url"].to_pylist(), pages["source"].to_pylist(), strict=True)
    names = [(url and _host(url)) or source.rpartition(":")[0] or source for url, source in rows]
    digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names]
    return np.frombuffer(b"".join(digests), np.uint64)


def _host(url: str) -> str | None:
    try:
        return urllib.parse.urlsplit(url).hostname
    except ValueError:  # such as http://[
        return None


def _page_by_page(texts: Sequence[str]) -> Iterator[tuple[int, Features]]:
    """(page, its features), for pages with words."""
    for block in features(texts):
        ends = np.cumsum(block.sizes)
        pages, first, chunks = np.unique(block.text, return_index=True, return_counts=True)
        for page, start, count in zip(pages.tolist(), first.tolist(), chunks.tolist(), strict=True):
            own = slice(start, start + count)
            buckets = block.buckets[ends[start] - block.sizes[start] : ends[start + count - 1]]
            columns = (buckets, block.sizes[own], block.words[own], np.zeros(count, np.int64))
            yield page, Features(*(column.copy() for column in columns))  # a view would keep the whole block


def _spread(page: Features) -> Features:
    """At most _CHUNKS chunks of a page, evenly spread."""
    count = len(page.sizes)
    if count <= _CHUNKS:
        return page
    chosen = np.arange(_CHUNKS) * count // _CHUNKS
    ends = np.cumsum(page.sizes)
    buckets = np.concatenate([page.buckets[ends[c] - page.sizes[c] : ends[c]] for c in chosen])
    return Features(buckets, page.sizes[chosen], page.words[chosen], page.text[chosen])
