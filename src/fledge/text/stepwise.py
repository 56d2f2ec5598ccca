"""Answers whose single steps were judged: {prompt, completions: [step, ...], labels: [true/false, ...]} (TRL, axolotl)."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from fledge.text.files import Row, RowRejected
from fledge.text.formats import Thumb, read_parsed, shape_of, system_of
from fledge.text.messages import Message, check_content, check_order, read_turns, typed
from fledge.text.readers import Paths, Rejects

SEPARATOR = "\n"
"""Between steps, as TRL's `step_separator`."""


class Steps(msgspec.Struct, frozen=True):
    """Steps of an answer to a prompt that ends with a user message, and whether each is right."""

    prompt: tuple[Message, ...]
    steps: tuple[str, ...]
    right: tuple[bool, ...]
    source: str

    def whole(self) -> Thumb:
        """One vote on the whole answer: liked where every step is right."""
        return Thumb(self.prompt, SEPARATOR.join(self.steps), all(self.right), self.source)


def read_steps(
    paths: Paths, *, encoding: str | None = None, skip_bad: int | None = None, rejects: Rejects | None = None
) -> Iterator[Steps]:
    """Stream judged steps; rows that cannot be used are counted in `rejects`. Raises as `readers.read_documents` does."""
    return read_parsed(steps_of, paths, encoding, skip_bad, rejects, "reject")


def steps_of(row: Row, source: str) -> Steps:
    """The steps of a row without nulls. Raises RowRejected where it holds none that can be used."""
    shape = shape_of(row)
    if shape != "stepwise row":
        raise RowRejected(shape if shape == "unknown shape" else f"{shape}, not a stepwise row")
    if "prompt" not in row:
        raise RowRejected("no prompt")
    prompt = [*system_of(row), *read_turns(row["prompt"], "user", "prompt")]
    check_order(prompt)
    check_content(prompt)
    if prompt[-1].role != "user":
        raise RowRejected("prompt does not end with a user message", f"last is by {prompt[-1].role}")
    steps = [typed(step, str, "a step") for step in typed(row["completions"], list, "completions")]
    right = [typed(label, bool, "a label") for label in typed(row["labels"], list, "labels")]
    if len(steps) != len(right):
        raise RowRejected("not one label for each step", f"{len(steps)} step(s), {len(right)} label(s)")
    if not steps or not all(step.strip() for step in steps):
        raise RowRejected("no step" if not steps else "empty step")
    return Steps(tuple(prompt), tuple(steps), tuple(right), source)
