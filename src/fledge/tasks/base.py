"""What a task is: a family of questions whose answers are scored by a program. The metric and the RL reward are one function."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import msgspec

Message = dict[str, str]
"""{"role": "system" | "user" | "assistant", "content": text}."""


class Example(msgspec.Struct, frozen=True, kw_only=True):
    """One question with everything needed to score an answer."""

    id: str
    """Unique within its task and the same in every run."""
    prompt: list[Message]
    """The conversation so far; the last message is the user's."""
    answers: tuple[str, ...]
    """Accepted answers; what "accepted" means is up to the task. Empty if any answer of some form will do."""
    kind: str
    """Sub-family, for tables: "fact", "dangerous", "borderline", "greeting", ..."""
    language: str
    """"en" or "zh"."""
    meta: dict[str, Any] = {}
    """Whatever else the score needs."""


class Task(Protocol):
    """A family of examples with one score."""

    def examples(self, split: str) -> Sequence[Example]:
        """The examples of "train" or "test"; the same list in every call."""
        ...

    def score(self, example: Example, answer: str) -> float:
        """How good `answer` is; pure, so it may run in any process."""
        ...


class Shaped(Task, Protocol):
    """A task that can also say how far an unfinished answer has come, the potential of reward shaping."""

    def progress(self, example: Example, partial: str) -> float:
        """Phi in [0, 1] for `partial`, the text written so far; pure. 0 for nothing, 1 for a right answer.

        Paid as Phi(s') - Phi(s) and taken back at the end, it leaves the best policy as it is (Ng et al. 1999,
        section 3); it may fall again when what is added spoils what was right.
        """
        ...


class Lesson(Task, Protocol):
    """A task that makes its own training material, from which a model that can do a part of it is raised.

    Neither texts nor chats hold a question of the test split.
    """

    def texts(self, count: int) -> Iterator[str]:
        """`count` plain documents for pretraining."""
        ...

    def chats(self, count: int, wrong: float = 0.0) -> Iterator[list[Message]]:
        """`count` conversations for fine-tuning, of which about the share `wrong` end with a wrong answer."""
        ...


def known_split(split: str) -> str:
    """`split` itself, or a ValueError that names the two there are."""
    if split not in ("train", "test"):
        raise ValueError(f"split = {split!r}: must be 'train' or 'test'")
    return split


def user(text: str) -> list[Message]:
    """A conversation of one message by the user."""
    return [{"role": "user", "content": text}]


def answered(example: Example, answer: str) -> list[Message]:
    """The conversation of `example` with the assistant's answer."""
    return [*example.prompt, {"role": "assistant", "content": answer}]


def share_right(example: Example, partial: str) -> float:
    """Share of the one right answer that `partial` has written, from the left up to the first wrong character.

    What is longer than the answer gets 0: it can no longer become right.
    """
    written, right = partial.strip(), example.answers[0]
    same = next(
        (i for i, (a, b) in enumerate(zip(written, right, strict=False)) if a != b), min(len(written), len(right))
    )
    return same / len(right) if len(written) <= len(right) else 0.0
