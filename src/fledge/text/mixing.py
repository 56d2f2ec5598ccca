"""Several sources of documents at a ratio: which row comes from where is a function of the weights and the row's number.

Row n goes to the source that is furthest behind its weight, so that the ratio holds in every batch and not only on
average. Each source goes through epochs of its own. The state is two integers per source: the rows taken from it, and
how many of those had nothing to learn from and do not count towards its cap.
Shapes: B rows, T positions, K sources.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from fledge.core.batch import Batch
from fledge.core.checkpoint import canonical_json, sha256
from fledge.text.sources import DocumentSource, packed_batch

_SEED_STEP = 1_000_003  # between the sources' seeds: two texts of one size are not read in the same order


class Part(NamedTuple):
    """One source of a mixture."""

    source: DocumentSource
    weight: float  # share of the rows, relative to the other weights
    most_rows: int | None  # cap; None: as many as are asked for


class Forecast(NamedTuple):
    """What a mixture will give, to a row."""

    rows: list[int]  # [K] taken from each source
    capped_at: list[int | None]  # [K] rows of the whole mixture after which the source has reached its cap


def seed_of(seed: int, number: int) -> int:
    """Seed of source `number`; the first has the run's own, so alone it gives the batches of an unmixed run."""
    return seed + _SEED_STEP * number


def picks(weights: np.ndarray, taken: np.ndarray, most: np.ndarray, count: int) -> np.ndarray:
    """[n <= count] int64: the sources of the next n rows, when `taken` [K] rows came from each and `most` [K] may.

    Row j of source k is due at (j + 1/2) / weight: the rows come in the order in which they are due (Webster's method of
    apportionment), whatever the size of the batches. Fewer than `count` where every source reaches its cap.
    """
    room = np.minimum(most - taken, count)  # [K]
    source = np.repeat(np.arange(len(weights)), room)
    nth = np.arange(len(source)) - np.repeat(np.cumsum(room) - room, room)  # 0, 1, 2 ... within each source
    due = (taken[source] + nth + 0.5) / weights[source]
    return source[np.lexsort((source, due))[:count]]


def forecast(weights: Sequence[float], most: Sequence[int | None], rows: int) -> Forecast:
    """Where `rows` rows will come from and when caps are reached, up to a row per source, without going through them.

    At time t source k has given min(most, weight * t) rows.
    """
    share = np.asarray(weights, np.float64)
    cap = np.array([np.inf if m is None else m for m in most])
    ends = cap / share  # the time at which each cap is reached

    def given(time: float) -> np.ndarray:
        return np.minimum(cap, share * time)

    before = max((t for t in ends if given(t).sum() <= rows), default=0.0)
    growing = share[ends > before].sum()
    time = before + ((rows - given(before).sum()) / growing if growing else 0.0)
    last = ends - 0.5 / share  # the time at which its last row is due
    reached = [round(float(given(t).sum())) if t <= time and np.isfinite(t) else None for t in last]
    return Forecast([round(float(r)) for r in given(time)], reached)


class MixedSource:
    """Rows of several DocumentSources at their weights; each batch says in its notes how many came from each."""

    def __init__(self, parts: Sequence[Part], *, rows: int, mask_repeats: int | None = None):
        """rows: B. mask_repeats: as in packed_batch. Raises ValueError for weights and caps that cannot work."""
        wrong = [f"weight {p.weight}" for p in parts if not (0 < p.weight < float("inf"))]
        wrong += [f"cap of {p.most_rows} rows" for p in parts if p.most_rows is not None and p.most_rows < 1]
        if wrong or not parts:
            raise ValueError(
                f"mixture with {', '.join(wrong) or 'no source'}: each source needs a finite weight above 0 and a cap "
                "that holds at least one row"
            )
        self.parts, self.rows, self.mask_repeats = list(parts), rows, mask_repeats
        self._weights = np.array([p.weight for p in parts], np.float64)
        unlimited = np.iinfo(np.int64).max // 2
        self._most = np.array([unlimited if p.most_rows is None else p.most_rows for p in parts], np.int64)
        self._taken = np.zeros(len(parts), np.int64)  # [K]
        self._skipped = np.zeros(len(parts), np.int64)  # [K], of those taken
        self.content = sha256(canonical_json([[p.source.content, p.weight, p.most_rows] for p in parts]))

    def state_dict(self) -> dict[str, Any]:
        return {
            "rows_taken": self._taken.tolist(),
            "rows_skipped": self._skipped.tolist(),
            "content": self.content,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError where texts, weights or caps are not those of the state."""
        if state["content"] != self.content:
            raise ValueError(
                f"the texts, their weights or their caps changed since the checkpoint (sha256 {self.content[:12]} now, "
                f"{state['content'][:12]} then): restore them, or start the stage again in another folder"
            )
        self._taken, self._skipped = (np.array(state[name], np.int64) for name in ("rows_taken", "rows_skipped"))
        for part, taken in zip(self.parts, state["rows_taken"], strict=True):
            part.source.epoch, part.source.position = divmod(taken, part.source.rows_per_epoch)

    def __iter__(self) -> Iterator[Batch]:
        """Batches of B rows; the last before every cap is reached may have fewer, then comes a ValueError."""
        empty = 0  # batches in a row without a target that counts
        while empty * self.rows <= sum(part.source.rows_per_epoch for part in self.parts):
            chosen = picks(self._weights, self._taken, self._most + self._skipped, self.rows)  # [B]
            if not len(chosen):
                raise ValueError(
                    f"every source of the mixture has reached its cap ({int(self._taken.sum())} rows in all): train on "
                    "fewer tokens, or raise the caps"
                )
            counts = np.bincount(chosen, minlength=len(self.parts))
            batch = self._batch(chosen, counts)
            self._taken += counts
            empty = 0 if batch.units else empty + 1
            if batch.units:
                yield batch
            else:  # every token lies in a span that repeats
                self._skipped += counts
        raise ValueError(
            f"every token of the texts lies in a span that repeats {self.mask_repeats} times or more: "
            "give other text, or set mask_repeats to none"
        )

    def _batch(self, chosen: np.ndarray, counts: np.ndarray) -> Batch:
        drawn, first = [], 0
        for part, count in zip(self.parts, counts.tolist(), strict=True):
            if count:
                tokens, document, ids = part.source.take(count)
                drawn.append((tokens.astype(np.int64), document, ids + first))
            first += int(part.source.store.offsets[-1])  # ids count through the texts as if they stood in one row
        places = np.argsort(np.argsort(chosen, kind="stable"), kind="stable")  # of each row among those drawn
        tokens, document, ids = (np.concatenate(columns)[places] for columns in zip(*drawn, strict=True))
        notes = {f"rows_of_{number}": float(count) for number, count in enumerate(counts)}
        return packed_batch(tokens, document, ids, notes=notes, mask_repeats=self.mask_repeats)
