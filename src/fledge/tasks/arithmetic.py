"""Sums of numbers of one to four digits: the smallest task where an answer is right or wrong and luck hardly helps.

The tokenizer cuts a number into digits, so a model sees places; "47+85=" is six tokens in any of our vocabularies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

from fledge.tasks.base import Example, Message, answered, known_split, share_right, user
from fledge.world.dice import Dice

OPERATIONS: dict[str, tuple[str, Callable[[int, int], int]]] = {
    "+": ("add", lambda a, b: a + b),
    "-": ("subtract", lambda a, b: a - b),
    "*": ("multiply", lambda a, b: a * b),
}
TEST_QUESTIONS, TRAIN_QUESTIONS = 500, 8000
"""Most questions of each split; the test split takes at most a fifth of what there is."""
LINES = 7
"""Sums of one plain document: with two digits about 60 tokens."""
_NEAR = (-10, -2, -1, 1, 2, 10)
"""Wrong answers are near misses, as people's are: a carry forgotten or a digit off."""


class Arithmetic:
    """Questions such as "47+85=" with numbers of exactly `digits` digits; differences are never negative."""

    def __init__(self, digits: int = 2, operations: str = "+", seed: int = 0):
        """operations: any of "+-*" without repeats. seed: which questions there are, and which are for tests.

        Raises ValueError for digits outside 1 to 4 and for other operations.
        """
        if not 1 <= digits <= 4:
            raise ValueError(
                f"digits = {digits}: must be between 1 and 4; tasks are named arithmetic:1 to arithmetic:4"
            )
        if not operations or set(operations) - set(OPERATIONS) or len(set(operations)) < len(operations):
            raise ValueError(f"operations = {operations!r}: must be one or more of + - *, each once")
        self.digits, self.operations, self.seed = digits, operations, seed

    @cached_property
    def _splits(self) -> dict[str, list[Example]]:
        """Both splits. 85+47 goes where 47+85 goes, or the test would ask what the training answered."""
        low, high = max(1, 10 ** (self.digits - 1)), 10**self.digits
        span = high - low
        pairs_there_are = len(self.operations) * span * (span + 1) // 2
        dice, seen = Dice(self.seed, 30), {}
        while len(seen) < min(pairs_there_are, TEST_QUESTIONS + TRAIN_QUESTIONS):
            sign, a, b = dice.pick(self.operations), low + dice.below(span), low + dice.below(span)
            seen.setdefault((sign, max(a, b), min(a, b)))
        groups = [[(s, a, b)] if s == "-" or a == b else [(s, a, b), (s, b, a)] for s, a, b in seen]
        wanted = min(TEST_QUESTIONS, sum(map(len, groups)) // 5)
        test: list[tuple[str, int, int]] = []
        while len(test) < wanted:
            test += groups.pop(0)
        train = [question for group in groups for question in group]
        return {
            "test": [_example(*question) for question in test[:wanted]],
            "train": [_example(*question) for question in train[:TRAIN_QUESTIONS]],
        }

    def examples(self, split: str) -> list[Example]:
        """Up to 8,000 questions for training, up to 500 for tests; no sum is in both, in either order."""
        return self._splits[known_split(split)]

    def score(self, example: Example, answer: str) -> float:
        """1.0 if the answer is the number and nothing else but spaces around it; else 0.0."""
        return float(answer.strip() == example.answers[0])

    def progress(self, example: Example, partial: str) -> float:
        """Share of the number's digits that are written and right; see `share_right`."""
        return share_right(example, partial)

    def texts(self, count: int) -> Iterator[str]:
        """Pages of seven sums, one a line."""
        dice, train = Dice(self.seed, 31), self.examples("train")
        for _ in range(count):
            chosen = (dice.pick(train) for _ in range(LINES))
            yield "\n".join(example.prompt[0]["content"] + example.answers[0] for example in chosen)

    def chats(self, count: int, wrong: float = 0.0) -> Iterator[list[Message]]:
        """A question and its number; the wrong ones are off by 1, 2 or 10."""
        dice, train = Dice(self.seed, 32), self.examples("train")
        for _ in range(count):
            example, off, missed = dice.pick(train), dice.pick(_NEAR), dice.chance(wrong)
            yield answered(example, str(int(example.answers[0]) + off) if missed else example.answers[0])


def _example(sign: str, a: int, b: int) -> Example:
    name, work = OPERATIONS[sign]
    question = f"{a}{sign}{b}="
    return Example(id=question, prompt=user(question), answers=(str(work(a, b)),), kind=name, language="en")
