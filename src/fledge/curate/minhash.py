"""Fingerprints of pages, many at once: keys by which alike pages meet, and a sketch that tells how alike they are.

Keys: MinHash (Broder 1997), its hashes taken together in bands (Indyk & Motwani 1998). Sketch: one permutation hashing
(Li, Owen & Zhang 2012): the least shingle hash in each of 256 bins, of which 4 bits are kept (b-bit minwise hashing, Li &
König 2010). In 128 bytes it estimates Jaccard similarity with a standard deviation of 0.033 at 0.5, and better where a
page has few shingles for the bins; the 112 hashes themselves would give 0.047.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha256

import numpy as np
import pyarrow as pa

from fledge.core.config import Settings
from fledge.curate.shingles import Words, mixed, word_blocks

BINS = 256  # of a sketch: by the first 8 bits of a shingle
_EMPTY = np.uint32(0xFFFFFFFF)
_VALUES = 15  # that a filled bin may have
_LOWER, _SPACE = bytes(range(256)).lower(), b" \t\n\v\f\r"


class DuplicateSettings(Settings, frozen=True, kw_only=True):
    """What counts as a duplicate page, and how it is looked for."""

    exact: bool = True
    "Remove pages whose text another page has had already, white space and the case of ASCII letters aside."
    near: bool = True
    "Remove pages that share most of their shingles with an earlier page."
    bands: int = 28
    "Bands of hashes; two pages are compared when one whole band is equal. FineWeb: 14."
    rows: int = 4
    "Hashes in a band; bands * rows hashes per page. FineWeb: 8."
    verify: float = 0.52
    "Least Jaccard similarity, as estimated, with the page that stays (tuned here); 0 trusts the bands, as FineWeb does."
    shingle_tokens: int = 5
    "Words, or Chinese characters, in a shingle."
    fold_digits: bool = True
    "Take all digits as equal, so that a page with another date or count is a near duplicate; FineWeb does."

    def problems(self) -> list[str]:
        """Every rule these settings break, in words."""
        found = []
        if not 1 <= self.bands <= 256:
            found.append(f"duplicates.bands = {self.bands}: must be between 1 and 256")
        if not 1 <= self.rows <= 64:
            found.append(f"duplicates.rows = {self.rows}: must be between 1 and 64")
        if not 0 <= self.verify <= 1:
            found.append(f"duplicates.verify = {self.verify}: must be between 0 and 1; 0.52 is usual")
        if not 1 <= self.shingle_tokens <= 64:
            found.append(f"duplicates.shingle_tokens = {self.shingle_tokens}: must be between 1 and 64; 5 is usual")
        return found


FINEWEB = DuplicateSettings(bands=14, rows=8, verify=0.0)


def keys_schema(settings: DuplicateSettings) -> pa.Schema:
    """Columns of a table of fingerprints; its metadata says what two of them must share to be compared."""
    made = f"{settings.bands} bands of {settings.rows}, shingles of {settings.shingle_tokens}, " + (
        "digits folded" if settings.fold_digits else "digits kept"
    )
    columns = [
        ("id", pa.string()),
        ("exact", pa.binary(16)),
        ("bands", pa.binary(4 * settings.bands)),
        ("sketch", pa.binary(BINS // 2)),
        ("tokens", pa.int32()),
    ]
    return pa.schema(columns, metadata={"minhash": made})


def fingerprints(pages: pa.Table, settings: DuplicateSettings) -> pa.Table:
    """What find_duplicates needs to know of each page (pages.py), in the same order: the columns of keys_schema.

    exact: SHA-256, cut to 128 bits, of the text without ASCII white space, ASCII letters in lower case.
    bands: a little-endian uint32 each, a hash of the band's hashes; sketch: as similarity() reads it; both are of no use
    for a page without a word. tokens: words, each Han character one (shingles.py).
    """
    texts = pages["text"].combine_chunks()
    bands = np.zeros((len(pages), settings.bands), "<u4")
    sketches = np.zeros((len(pages), BINS // 2), np.uint8)
    tokens = np.zeros(len(pages), np.int32)
    for words in word_blocks(texts, digits=not settings.fold_digits):
        counts = np.diff(words.offsets)
        some = np.flatnonzero(counts)
        tokens[words.first_page + some] = counts[some]
        if len(some):
            shingles, starts = _shingles(words, settings.shingle_tokens), words.offsets[:-1][some]
            bands[words.first_page + some] = _band_keys(_signatures(shingles, starts, settings), settings)
            sketches[words.first_page + some] = _sketches(shingles, starts)
    columns = [pages["id"], _exact(texts), _binary(bands), _binary(sketches), pa.array(tokens)]
    return pa.table(columns, schema=keys_schema(settings))


def similarity(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Estimated Jaccard similarity of pairs of sketches: uint8 [N, BINS / 2] twice -> float32 [N] in [0, 1].

    Of the bins that either page has something in, the share with the same least shingle; one in _VALUES of those where
    both have another has the same value by chance and is taken off again. Equal sketches give exactly 1.
    """
    same, both, either = (np.zeros(len(one), np.int64) for _ in range(3))
    for a, b in ((one & 15, other & 15), (one >> 4, other >> 4)):
        filled = (a > 0) & (b > 0)
        same += np.count_nonzero(filled & (a == b), axis=1)
        both += np.count_nonzero(filled, axis=1)
        either += np.count_nonzero(a | b, axis=1)
    share = (_VALUES * same - both) / ((_VALUES - 1) * np.maximum(either, 1))
    return share.clip(0, 1).astype(np.float32)


def _signatures(shingles: np.ndarray, starts: np.ndarray, settings: DuplicateSettings) -> np.ndarray:
    """uint32 [K, N]: each page's least value of each of K hashes over its shingles; page i's begin at starts[i].

    Hash k of a shingle x is a[k] * x modulo 2^32 with a[k] odd, a permutation; x is itself an evenly spread hash.
    """
    factors = _factors(settings.bands * settings.rows)
    least, product = np.empty((len(factors), len(starts)), np.uint32), np.empty_like(shingles)
    for factor, row in zip(factors, least, strict=True):
        np.minimum.reduceat(np.multiply(shingles, factor, out=product), starts, out=row)
    return least


def _band_keys(signatures: np.ndarray, settings: DuplicateSettings) -> np.ndarray:
    """uint32 [N, bands]: a hash of each `rows` hashes of a signature (uint32 [K, N])."""
    weights = mixed(np.arange(1, settings.rows + 1, dtype=np.uint64)) | np.uint64(1)
    bands = signatures.reshape(settings.bands, settings.rows, -1)
    sums = mixed((bands * weights[:, None]).sum(axis=1, dtype=np.uint64))
    return (sums >> np.uint64(32)).astype(np.uint32).T


def _sketches(shingles: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """uint8 [N, BINS / 2]: 1 to 15 for the least shingle of each bin, 0 for an empty one, two bins a byte."""
    pages = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(shingles)))
    least = np.full(len(starts) * BINS, _EMPTY, np.uint32)
    np.minimum.at(least, pages * BINS + (shingles >> np.uint32(24)), shingles & np.uint32(0xFFFFFF))
    values = ((least & np.uint32(0xFFFF)) * np.uint32(_VALUES) >> np.uint32(16)) + np.uint32(1)
    values[least == _EMPTY] = 0
    pairs = values.astype(np.uint8).reshape(len(starts), -1, 2)
    return pairs[..., 0] | pairs[..., 1] << 4


def _shingles(words: Words, n: int) -> np.ndarray:
    """uint32 [M]: the shingle from each word on; where it would leave its page, the page's first shingle again.

    A page of fewer than n words has one shingle, all of it.
    """
    grams = words.grams(n)
    counts = np.diff(words.offsets)
    for length in range(1, n):
        if len(short := words.offsets[:-1][counts == length]):
            grams[short] = words.grams(length)[short]
    firsts = np.repeat(words.offsets[:-1], counts)
    outside = np.flatnonzero(~words.whole(n))
    grams[outside] = grams[firsts[outside]]
    return (grams >> np.uint64(32)).astype(np.uint32)


@lru_cache(maxsize=4)
def _factors(count: int) -> np.ndarray:
    """The odd multipliers of the hashes: mixed counters, so that more hashes begin with the same ones."""
    return (mixed(np.arange(1, count + 1, dtype=np.uint64)) >> np.uint64(32)).astype(np.uint32) | np.uint32(1)


def _exact(texts: pa.LargeStringArray) -> pa.Array:
    """binary(16) of each text."""
    plain = (text.translate(_LOWER, _SPACE) for text in texts.cast(pa.large_binary()).to_pylist())
    return pa.array((sha256(text).digest()[:16] for text in plain), pa.binary(16), size=len(texts))


def _binary(rows: np.ndarray) -> pa.Array:
    """The bytes of each row of a matrix: [N, W] -> binary(W * itemsize) [N]."""
    rows = np.ascontiguousarray(rows)
    return pa.Array.from_buffers(pa.binary(rows.shape[1] * rows.itemsize), len(rows), [None, pa.py_buffer(rows)])
