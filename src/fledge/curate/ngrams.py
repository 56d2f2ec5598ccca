"""Words and pairs of words of many texts as hashed features, without a loop over words.

A *word* is what `shingles` makes of a text, and every symbol too: a page shows its quality in its punctuation (Chinese
poems against the same with a fifth of the characters exchanged: ROC area 0.84 with symbols, 0.79 without). A *feature* is
a word or a pair of neighbours, hashed into 2**20 buckets (Weinberger et al. 2009, as fastText's word n-grams). A *chunk*
is at most 512 words; features count once per chunk, so that neither a long page nor a repeated word outweighs the others
(English prose against the same with a fifth of the words exchanged: 0.99 so, 0.95 with counts).
Shapes: W words, F features, C chunks, P texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from fledge.core.durable import sha256
from fledge.curate.shingles import Words, code_table, word_blocks

BITS = 20
CHUNK_WORDS = 512
_SHIFT = np.uint64(64 - BITS)


class Features(NamedTuple):
    """The features of P texts, chunk after chunk."""

    buckets: np.ndarray  # uint32 [F], ascending inside each chunk, none twice
    sizes: np.ndarray  # int64 [C] features of each chunk, at least 1
    words: np.ndarray  # int64 [C] words of each chunk, at least 1
    text: np.ndarray  # int64 [C] which text each chunk is of, ascending; a text without words has none


@lru_cache(maxsize=1)
def fingerprint() -> str:
    """Names these rules: features made by others mean nothing to a model trained on these."""
    probe = next(word_blocks(pa.array(["Good, 好"], pa.large_string()), symbols=True))
    rules = f"{BITS} {CHUNK_WORDS} {_singles(probe).tolist()} {_pairs(probe).tolist()}"
    return sha256(rules.encode() + code_table(symbols=True).tobytes())


def _singles(words: Words) -> np.ndarray:
    """uint32 [W]: the bucket of each word."""
    return (words.hashes >> _SHIFT).astype(np.uint32)


def _pairs(words: Words) -> np.ndarray:
    """uint32 [W]: the bucket of each word with the next one; the last of a text goes alone."""
    pairs = (words.grams(2) >> _SHIFT).astype(np.uint32)
    last = ~words.whole(2)
    pairs[last] = _singles(words)[last]
    return pairs


def features(texts: Sequence[str]) -> Iterator[Features]:
    """The features of all texts in order, a block at a time; `text` counts through."""
    for words in word_blocks(pa.array(texts, pa.large_string()), symbols=True):
        counts = np.diff(words.offsets)  # [P]
        chunks = -(-counts // CHUNK_WORDS)
        size = -(-counts // np.maximum(chunks, 1))  # of chunks of like length
        place = np.arange(len(words.hashes)) - np.repeat(words.offsets[:-1], counts)
        chunk = np.repeat(np.cumsum(chunks) - chunks, counts) + place // np.repeat(size, counts)  # [W]
        total = int(chunks.sum())
        # chunk and bucket in one number, sorted and without repeats; 32 bits sort twice as fast where they do
        kind = np.uint32 if total <= 1 << (32 - BITS) else np.uint64
        above = chunk.astype(kind) << kind(BITS)
        keys = np.sort(np.concatenate([above | _singles(words), above | _pairs(words)]))
        new = np.ones(len(keys), bool)
        new[1:] = keys[1:] != keys[:-1]
        keys = keys[new]
        yield Features(
            (keys & kind((1 << BITS) - 1)).astype(np.uint32),
            np.bincount((keys >> kind(BITS)).astype(np.int64), minlength=total),
            np.bincount(chunk, minlength=total),
            np.repeat(words.first_page + np.arange(len(counts)), chunks),
        )


def identities(texts: Sequence[str]) -> np.ndarray:
    """[P] uint64: equal for texts of the same words and pairs of words, 0 for one without words."""
    found = np.zeros(len(texts), np.uint64)
    for words in word_blocks(pa.array(texts, pa.large_string()), symbols=True):
        hashes = np.where(words.whole(2), words.grams(2), words.hashes)
        filled = np.flatnonzero(np.diff(words.offsets))
        found[words.first_page + filled] = np.add.reduceat(hashes, words.offsets[filled]) if len(filled) else 0
    return found


def features_of(text: str) -> dict[int, str]:
    """Bucket -> the word or pair of words of a short text that falls there (the first of several), to be read."""
    named: dict[int, str] = {}
    for words in word_blocks(pa.array([text], pa.large_string()), symbols=True):
        for count, buckets in ((1, _singles(words)), (2, np.where(words.whole(2), _pairs(words), _singles(words)))):
            for first, bucket in enumerate(buckets.tolist()):
                if bucket not in named:
                    named[bucket] = words.written(first, count).lower()
    return named
