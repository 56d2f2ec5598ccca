"""Which pages repeat an earlier one, over any number of shards, in bounded memory.

Exact copies share a hash. Near ones share one of the keys of their fingerprints (minhash.py): the keys are sorted band
after band, pages that meet in one are compared by their sketches, and those alike are joined into groups. A group may be
a chain whose ends have little in common, so no page is removed for being in it: the first page of a group stays and
takes with it those like it; of the rest the first stays, and so on. Every removed page thus names a page that stays and
is like it.

Memory: about 100 bytes a page. Keys and sketches lie in scratch files; of the sketches the parts being compared are
mapped into memory, 128 bytes a page at most: 3 million pages take 0.7 GB at the peak.
"""

from __future__ import annotations

import mmap
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from fledge.curate.minhash import DuplicateSettings, keys_schema, similarity

EXACT, NEAR = "exact duplicate", "near duplicate"
DECISION = pa.schema(
    [
        ("keep", pa.bool_()),
        ("reason", pa.string()),  # EXACT, NEAR or null
        ("of", pa.string()),  # id of the page that stays instead; null for pages kept
        ("value", pa.float64()),  # estimated Jaccard similarity with that page; null for pages kept
        ("cluster", pa.int64()),  # how many pages have the same page staying for them, that one included; 1 = alone
    ]
)
_READ_ROWS = 1 << 14  # fingerprints decoded at a time: 4 MB
_PAIRS = 1 << 14  # compared at a time
_UNLIKE = 0.1  # pages less alike did not meet in a band but in keys that fell together
_LEADERS = 5000  # pages of one group that may stay before the rest is no longer compared


class Duplicates:
    """The decisions of find_duplicates: one table (DECISION) per shard, rows in the shard's order.

    summary: pages, exact_duplicates, near_duplicates, not_compared (pages kept since their group had too many different
    ones), clusters (pages in a cluster -> how many such clusters, in powers of two), largest_cluster (its pages and the
    id of the one that stays), largest_group (pages joined before the first ones were chosen).
    """

    def __init__(self, keys: Sequence[Path], stays: np.ndarray, value: np.ndarray, copies: np.ndarray, notes: dict):
        """`stays` int64 [n]: the page that stays for each page; `value` float32 [n]; `copies` bool [n]: exact ones."""
        self._rows = np.cumsum([0, *(pq.read_metadata(path).num_rows for path in keys)])
        self._stays, self._value, self._copies = stays, value, copies
        self._size = np.bincount(stays, minlength=len(stays))
        self._shown = np.flatnonzero(self._size > 1)
        self._ids = pa.concat_arrays([pa.array([], pa.string()), *self._shown_ids(keys)])
        removed = stays != np.arange(len(stays))
        largest = int(np.argmax(self._size)) if len(self._shown) else None
        self.summary: dict[str, Any] = {
            "pages": len(stays),
            "exact_duplicates": int((removed & copies).sum()),
            "near_duplicates": int((removed & ~copies).sum()),
            **notes,
            "clusters": _histogram(self._size[self._shown]),
            "largest_cluster": None
            if largest is None
            else {"id": self._id(largest), "pages": int(self._size[largest])},
        }

    def __len__(self) -> int:
        """Shards."""
        return len(self._rows) - 1

    def __iter__(self) -> Iterator[pa.Table]:
        return (self.table(shard) for shard in range(len(self)))

    def table(self, shard: int) -> pa.Table:
        """The decisions on one shard's pages."""
        rows = slice(self._rows[shard], self._rows[shard + 1])
        stays = self._stays[rows]
        keep = stays == np.arange(rows.start, rows.stop)
        reason = np.where(self._copies[rows], EXACT, NEAR)
        of = self._ids.take(pa.array(np.searchsorted(self._shown, stays), mask=keep))
        columns = [
            pa.array(keep),
            pa.array(reason, pa.string(), mask=keep),
            of,
            pa.array(self._value[rows].astype(np.float64), mask=keep),
            pa.array(self._size[stays]),
        ]
        return pa.table(columns, schema=DECISION)

    def _shown_ids(self, keys: Sequence[Path]) -> Iterator[pa.Array]:
        for shard, path in enumerate(keys):
            low, high = np.searchsorted(self._shown, self._rows[shard : shard + 2])
            if low < high:
                ids = pq.read_table(path, columns=["id"])["id"].combine_chunks()
                yield ids.take(pa.array(self._shown[low:high] - self._rows[shard])).cast(pa.string())

    def _id(self, page: int) -> str:
        return self._ids[int(np.searchsorted(self._shown, page))].as_py()


def find_duplicates(keys: Sequence[Path], settings: DuplicateSettings, scratch: Path) -> Duplicates:
    """Decide for every page of the fingerprint files `keys` (Parquet, one per shard) whether it stays.

    Of pages that count as equal the first in (shard, row) order stays. The answer depends on nothing else. `scratch`: a
    folder for temporary files, 4 * bands + 128 bytes a page; what is made there is removed.
    """
    pages = sum(pq.read_metadata(path).num_rows for path in keys)
    _check(keys, settings)
    first = _first_copies(keys, pages) if settings.exact else np.arange(pages)
    stays, value = first.copy(), np.ones(pages, np.float32)
    notes = {"not_compared": 0, "largest_group": 1 if pages else 0}
    if settings.near:
        folder = scratch / "bands"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            rows = _spread(keys, settings, first, folder)  # which pages the files in `folder` are about
            with _Sketches(folder / "sketches", len(rows)) as sketches:
                group = _groups(folder, settings, sketches)
                leader, alike, left = _leaders(group, sketches, settings.verify)
        finally:
            shutil.rmtree(folder)
        notes = {"not_compared": left, "largest_group": int(np.bincount(group, minlength=1).max())}
        stays[rows], value[rows] = rows[leader], alike
        value = value[first]
        stays = stays[first]
    return Duplicates(keys, stays, value, first != np.arange(pages), notes)


def _check(keys: Sequence[Path], settings: DuplicateSettings) -> None:
    """Raise ValueError naming the first file of fingerprints that were made with other settings."""
    wanted = keys_schema(settings)
    for path in keys:
        found = pq.read_schema(path)
        if not found.equals(wanted, check_metadata=True):
            raise ValueError(
                f"{path}: holds {_described(found)}; these settings need {_described(wanted)}: make the fingerprints "
                "again with these settings"
            )


def _described(schema: pa.Schema) -> str:
    made = (schema.metadata or {}).get(b"minhash", b"no fingerprints").decode()
    return f"{made} ({', '.join(f'{field.name} {field.type}' for field in schema)})"


def _first_copies(keys: Sequence[Path], pages: int) -> np.ndarray:
    """The first page with the same exact hash, int64 [pages]."""
    halves = np.empty((2, pages), np.uint64)
    start = 0
    for path in keys:
        for chunk in pq.read_table(path, columns=["exact"])["exact"].chunks:
            halves[:, start : start + len(chunk)] = _matrix(chunk, np.uint64).T
            start += len(chunk)
    order = np.lexsort(halves)  # stable: equal hashes in the order of their pages
    new = np.arange(pages) == 0
    for half in halves:
        ordered = half[order]
        new[1:] |= ordered[1:] != ordered[:-1]
    first = np.empty(pages, np.int64)
    first[order] = order[np.maximum.accumulate(np.where(new, np.arange(pages), 0))]
    return first


def _spread(keys: Sequence[Path], settings: DuplicateSettings, first: np.ndarray, folder: Path) -> np.ndarray:
    """Write a file of uint32 keys per band, and `sketches`; returns the pages (int64) they are about.

    Those are the pages with words that copy none before them.
    """
    rows, start = [np.zeros(0, np.int64)], 0
    with ExitStack() as opened:
        sketches, *bands = (
            opened.enter_context(open(folder / name, "wb")) for name in ("sketches", *map(str, range(settings.bands)))
        )
        for path in keys:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(_READ_ROWS, columns=["bands", "sketch", "tokens"]):
                    here = np.arange(start, start + len(batch))
                    chosen = (first[here] == here) & (batch["tokens"].to_numpy() > 0)
                    sketches.write(_matrix(batch["sketch"], np.uint8)[chosen].tobytes())
                    for out, band in zip(bands, _matrix(batch["bands"], np.uint32)[chosen].T, strict=True):
                        out.write(band.tobytes())
                    rows.append(here[chosen])
                    start += len(batch)
    return np.concatenate(rows)


def _matrix(column: pa.FixedSizeBinaryArray, dtype: type[np.generic]) -> np.ndarray:
    """The numbers in each value of a column of fixed_size_binary: [N, width / itemsize]."""
    width = column.type.byte_width
    data = column.buffers()[1][column.offset * width : (column.offset + len(column)) * width]
    return np.frombuffer(data, dtype).reshape(len(column), width // np.dtype(dtype).itemsize)


class _Sketches:
    """The sketches of all rows, read from disk where needed."""

    def __init__(self, path: Path, rows: int):
        self.rows = rows
        self._map = None
        if rows:
            with open(path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._bytes = np.frombuffer(self._map, np.uint8).reshape(rows, -1)

    def __enter__(self) -> _Sketches:
        return self

    def __exit__(self, *_: object) -> None:
        if self._map is not None:
            del self._bytes
            self._map.close()

    def similarity(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Estimated Jaccard similarity of each pair of rows, float32."""
        found = np.empty(len(a), np.float32)
        for start in range(0, len(a), _PAIRS):
            part = slice(start, start + _PAIRS)
            found[part] = similarity(self._bytes[a[part]], self._bytes[b[part]])
            self._map.madvise(mmap.MADV_DONTNEED)  # what was read need not stay in memory
        return found


def _groups(folder: Path, settings: DuplicateSettings, sketches: _Sketches) -> np.ndarray:
    """The first row of the group each row belongs to, int64 [rows]: joined where two meet in a band and are alike."""
    group = np.arange(sketches.rows)
    for band in range(settings.bands):
        a, b = _meetings(np.fromfile(folder / f"{band}", np.uint32))
        apart = group[a] != group[b]
        a, b = a[apart], b[apart]
        alike = sketches.similarity(a, b) >= max(settings.verify, _UNLIKE)
        _join(group, a[alike], b[alike])
    return group


def _meetings(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows with one key: each row with the one before it in its bucket and with the bucket's first."""
    order = keys.astype(np.uint64) << np.uint64(32)
    order |= np.arange(len(keys), dtype=np.uint64)
    order.sort()
    rows = (order & np.uint64(0xFFFFFFFF)).astype(np.int64)
    order >>= np.uint64(32)
    again = np.flatnonzero(order[1:] == order[:-1]) + 1
    opens = np.flatnonzero(np.diff(again, prepend=-1) > 1)  # where `again` enters another bucket
    firsts = np.repeat(again[opens] - 1, np.diff(opens, append=len(again)))
    third = firsts < again - 1
    return np.concatenate([rows[again - 1], rows[firsts[third]]]), np.concatenate([rows[again], rows[again[third]]])


def _join(group: np.ndarray, a: np.ndarray, b: np.ndarray) -> None:
    """Merge the groups of each pair, in place; a group goes by its first row."""
    if len(a) == 0:
        return
    names, ends = np.unique(np.concatenate([group[a], group[b]]), return_inverse=True)
    half = len(a)
    edges = coo_matrix((np.ones(half, np.int8), (ends[:half], ends[half:])), shape=(len(names), len(names)))
    _, part = connected_components(edges, directed=False)
    first = np.full(int(part.max()) + 1, len(group))
    np.minimum.at(first, part, names)
    renamed = np.arange(len(group))
    renamed[names] = first[part]
    group[:] = renamed[group]


def _leaders(group: np.ndarray, sketches: _Sketches, verify: float) -> tuple[np.ndarray, np.ndarray, int]:
    """(row that stays for each row, similarity to it, rows left uncompared).

    In every group at once: the first undecided row stays, rows like it are decided; and again.
    """
    stays, alike = np.arange(len(group)), np.ones(len(group), np.float32)
    left = np.flatnonzero(group != stays)
    left = left[np.argsort(group[left], kind="stable")]
    leader = group[left]
    for _ in range(_LEADERS):
        if len(left) == 0:
            break
        share = sketches.similarity(leader, left)
        like = share >= verify
        stays[left[like]], alike[left[like]] = leader[like], share[like]
        left, leader = left[~like], leader[~like]
        opens = np.diff(leader, prepend=-1) != 0
        leader = left[np.maximum.accumulate(np.where(opens, np.arange(len(left)), 0))]
        left, leader = left[~opens], leader[~opens]
    return stays, alike, len(left)


def _histogram(sizes: np.ndarray) -> dict[str, int]:
    """Clusters by pages: "2", "3-4", "5-8", ..."""
    counts = np.bincount(np.ceil(np.log2(sizes)).astype(int)) if len(sizes) else []
    names = ["1", "2", *(f"{2 ** (i - 1) + 1}-{2**i}" for i in range(2, len(counts)))]
    return {name: int(count) for name, count in zip(names, counts, strict=False) if count}
