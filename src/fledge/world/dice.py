"""Random draws that are the same on every machine and every Python version.

Only `random.Random.random()` is used: the standard library promises that this stream never changes for a given
integer seed, while `choice`, `shuffle` and `sample` may change between versions.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TypeVar

T = TypeVar("T")


class Dice:
    """A seeded stream of draws. Each part of the world has its own stream, so editing one part leaves the others alone."""

    def __init__(self, seed: int, stream: int):
        self.random = random.Random(seed * 1_000_003 + stream).random

    def below(self, n: int) -> int:
        """An integer in [0, n)."""
        return int(self.random() * n)

    def pick(self, items: Sequence[T]) -> T:
        """One item, all equally likely."""
        return items[int(self.random() * len(items))]

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.random() < probability

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """A new list in random order (Fisher-Yates)."""
        out = list(items)
        for i in range(len(out) - 1, 0, -1):
            j = int(self.random() * (i + 1))
            out[i], out[j] = out[j], out[i]
        return out

    def sample(self, items: Sequence[T], k: int) -> list[T]:
        """`k` different items (fewer if there are fewer) in random order."""
        out = list(items)
        k = min(k, len(out))
        for i in range(k):
            j = i + int(self.random() * (len(out) - i))
            out[i], out[j] = out[j], out[i]
        return out[:k]


class Weighted:
    """Draws items in proportion to positive integer or float weights."""

    def __init__(self, items: Sequence[T], weights: Sequence[float]):
        if not items or len(items) != len(weights):
            raise ValueError(
                f"{len(items)} items and {len(weights)} weights; give the same number of each, at least one"
            )
        self.items = items
        self.cumulative = list(accumulate(weights))

    def draw(self, dice: Dice) -> T:
        """One item."""
        return self.items[bisect_right(self.cumulative, dice.random() * self.cumulative[-1])]
