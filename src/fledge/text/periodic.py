"""Periodic spans: stretches where a few values repeat over and over, as in a page of thousands of m.

OLMo 2 drops such instances from the loss because they make it spike (OLMo et al. 2024, section 3.1; OLMo-core,
find_periodic_sequences: period 1 to 13, 32 repeats). The slow twin is in the tests.
"""

import numpy as np

LONGEST_PERIOD = 13
LEAST_REPEATS = 32
FEWEST_REPEATS = 16
"Fewest repeats that can be asked for: with fewer, ordinary text has such spans, and they could be missed."

_FULL = np.uint64(0x0101010101010101)  # eight True in a row


def periodic_spans(values: np.ndarray, longest: int = LONGEST_PERIOD, repeats: int = LEAST_REPEATS) -> np.ndarray:
    """int64 [K,2]: (start, end) of every span of `values` [N] that is 1 to `longest` values, repeated `repeats` times or
    more, the last repeat perhaps in part. Ascending by start; spans of different periods overlap.

    Raises ValueError where fewer than 16 repeats are asked for.
    """
    if repeats < FEWEST_REPEATS:
        raise ValueError(f"repeats = {repeats}: must be at least {FEWEST_REPEATS}; {LEAST_REPEATS} is usual")
    found = [
        _runs(values[period:] == values[:-period], (repeats - 1) * period, period)
        for period in range(1, min(longest, (len(values) - 1) // repeats + 1) + 1)
    ]
    spans = np.concatenate([np.zeros((0, 2), np.int64), *found])
    return spans[np.argsort(spans[:, 0], kind="stable")]


def _runs(equal: np.ndarray, least: int, period: int) -> np.ndarray:
    """int64 [K,2]: spans whose values equal those one period before, `least` (15 or more) times in a row or more.

    Eight comparisons are read as one number; a run of 15 holds eight in one word that are all True.
    """
    eights = len(equal) // 8
    full = np.flatnonzero(equal[: 8 * eights].view(np.uint64) == _FULL)
    if not len(full):
        return np.zeros((0, 2), np.int64)
    first = np.flatnonzero(np.diff(full, prepend=-9) > 1)
    count = np.diff(first, append=len(full))
    long = count >= (least - 7) // 8
    start = 8 * full[first[long]]
    end = start + 8 * count[long]
    for _ in range(7):
        start = start - ((start > 0) & equal[start - 1])
        end = end + ((end < len(equal)) & equal[np.minimum(end, len(equal) - 1)])
    long = end - start >= least
    return np.stack([start[long], end[long] + period], 1)


def periodic(tokens: np.ndarray, longest: int = LONGEST_PERIOD, repeats: int = LEAST_REPEATS) -> np.ndarray:
    """bool [n,T]: which of the tokens [n,T] lie in a periodic span of their row."""
    rows, length = tokens.shape
    apart = np.empty((rows, length + 1), np.int64)
    apart[:, :length] = tokens
    apart[:, length] = -1 - np.arange(rows)  # no span crosses rows
    spans = periodic_spans(apart.ravel(), longest, repeats)
    if not len(spans):
        return np.zeros(tokens.shape, bool)
    change = np.zeros(apart.size + 1, np.int32)
    np.add.at(change, spans[:, 0], 1)
    np.add.at(change, spans[:, 1], -1)
    return (np.cumsum(change[:-1]) > 0).reshape(apart.shape)[:, :length]
