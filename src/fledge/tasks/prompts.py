"""The user's own questions: a file of prompts, with answers where there are any."""

from __future__ import annotations

import hashlib
import json
import os
from typing import Any

from fledge.tasks.base import Example, known_split
from fledge.text.files import Row, RowRejected
from fledge.text.prompt_rows import prompt_of
from fledge.text.readers import Paths, Rejects, keys_seen, read_rows, require_some
from fledge.world.gold import in_language

HELD_OUT_EVERY = 10
"""One row in ten, told by the hash of its content, is for tests."""


def exact(example: Example, answer: str) -> float:
    """1.0 if the answer, without spaces around it, is one of the accepted answers; else 0.0.

    Raises ValueError where the example has no answers to compare with.
    """
    if not example.answers:
        raise ValueError(
            f"example {example.id} has no answer to compare with: give its row an `answer`, or score with another "
            "--reward (regex:PATTERN, your_rules.py:function, judge:URL#MODEL or a reward model's folder)"
        )
    return float(answer.strip() in {right.strip() for right in example.answers})


class PromptFile:
    """Rows {"prompt": text or messages, "system"?, "answer"?, ...} from .jsonl, .json, .parquet and .arrow files.

    `text/prompt_rows.py` says which other shapes are read, and where accepted answers are found. Every other column goes
    to `Example.meta`. One row in ten, chosen by the hash of its content, is held out for tests; of 10 rows or more at
    least one is, of fewer none.
    """

    def __init__(self, paths: Paths, *, encoding: str | None = None, skip_bad: int | None = None):
        """Read all rows at once; unusable ones are counted in `rejects`.

        Raises as `readers.read_documents` does, and ValueError where no prompt is left.
        """
        paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        self.rejects = Rejects()
        found: dict[str, Example] = {}
        # no columns named: a parquet file gives all of them, for any may be wanted in meta
        rows = read_rows(paths, encoding=encoding, skip_bad=skip_bad, rejects=self.rejects, columns=frozenset())
        for source, row in rows:
            try:
                example = _example({key: value for key, value in row.items() if value is not None}, source)
                if example.id in found:
                    raise RowRejected("the same prompt and answers again", example.prompt[-1]["content"])
            except RowRejected as error:
                self.rejects.add(source, error.reason, error.sample or keys_seen(row))
            else:
                found[example.id] = example
        require_some(len(found), paths, self.rejects, "prompts")
        self._splits = held_out(list(found.values()))

    def examples(self, split: str) -> list[Example]:
        """The rows of the split in the order of the files."""
        return self._splits[known_split(split)]

    def score(self, example: Example, answer: str) -> float:
        """See `exact`."""
        return exact(example, answer)


def content_id(*parts: Any) -> str:
    """16 hex digits of the sha256 of `parts` as JSON."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False, sort_keys=True).encode()).hexdigest()[:16]


def held_out(examples: list[Example]) -> dict[str, list[Example]]:
    """{"train", "test"} by id, which must be a `content_id`; adding rows leaves the others where they are."""
    if len(examples) < HELD_OUT_EVERY:
        return {"train": examples, "test": []}
    test = {e.id for e in examples if int(e.id, 16) % HELD_OUT_EVERY == 0} or {min(e.id for e in examples)}
    return {"train": [e for e in examples if e.id not in test], "test": [e for e in examples if e.id in test]}


def _example(row: Row, source: str) -> Example:
    found = prompt_of(row, source)
    prompt = [{"role": m.role, "content": m.content} for m in found.messages]
    return Example(
        id=content_id(prompt, found.answers),
        prompt=prompt,
        answers=found.answers,
        kind="prompt",
        language="zh" if in_language(found.messages[-1].content, "zh") else "en",
        meta=found.meta,
    )
