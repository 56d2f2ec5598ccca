"""Sums worked out column by column, from the right: 47+85= is "7+5=12;4+8+1=13;132", a carry being the third addend.

A method a small model can learn, beside the number alone, which it cannot: what counts is only the number at the end.
"""

from __future__ import annotations

from collections.abc import Iterator

from fledge.tasks.arithmetic import LINES, Arithmetic
from fledge.tasks.base import Example, Message, answered
from fledge.world.dice import Dice

MARK = ";"
"""Between the columns, and before the number."""


class WorkedSums(Arithmetic):
    """The additions of `Arithmetic` with answers that show their work; the number alone is right as well."""

    def __init__(self, digits: int = 3, seed: int = 0):
        """digits: of both numbers. Raises ValueError as Arithmetic does."""
        super().__init__(digits, "+", seed)

    def score(self, example: Example, answer: str) -> float:
        """1.0 if what stands after the last mark is the number; what stands before it does not count."""
        return super().score(example, answer.rpartition(MARK)[2])

    def progress(self, example: Example, partial: str) -> float:
        """Share of the columns and the number that are written and right, up to the first wrong one."""
        right, written = worked(example).split(MARK), partial.strip().split(MARK)
        same = 0
        while same < min(len(right), len(written)) and right[same] == written[same]:
            same += 1
        return same / len(right) if len(written) <= len(right) else 0.0

    def texts(self, count: int) -> Iterator[str]:
        """Pages of seven sums with their work, one a line."""
        dice, train = Dice(self.seed, 33), self.examples("train")
        for _ in range(count):
            chosen = (dice.pick(train) for _ in range(LINES))
            yield "\n".join(example.prompt[0]["content"] + worked(example) for example in chosen)

    def chats(self, count: int, wrong: float = 0.0) -> Iterator[list[Message]]:
        """A question and its work; in the wrong ones a column is off by one, and all that follows goes on from there."""
        dice, train = Dice(self.seed, 34), self.examples("train")
        for _ in range(count):
            example = dice.pick(train)
            slip = dice.below(self.digits) if dice.chance(wrong) else None
            yield answered(example, worked(example, slip, -1 if dice.chance(0.5) else 1))


def worked(example: Example, slip: int | None = None, off: int = 1) -> str:
    """The answer to a question such as "47+85=", column by column; the sum of column number `slip` is off by `off`.

    A sum of 0 is never one too small.
    """
    numbers = example.prompt[-1]["content"].rstrip("=").split("+")
    parts, digits, carry = [], "", 0
    for column, pair in enumerate(zip(*(reversed(number) for number in numbers), strict=True)):
        total = sum(map(int, pair)) + carry
        if column == slip:
            total += off if total else 1
        parts.append(f"{'+'.join(pair)}{'+1' if carry else ''}={total}")
        digits, carry = f"{total % 10}{digits}", total // 10
    return MARK.join([*parts, f"{carry or ''}{digits}"])
