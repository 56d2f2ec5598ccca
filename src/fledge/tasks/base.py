"""What a task is: a family of questions whose answers are scored by a program. The metric and the RL reward are one function."""

from __future__ import annotations

from collections.abc import Sequence
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
