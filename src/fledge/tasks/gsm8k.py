"""Grade-school maths as in GSM8K (Cobbe et al. 2021): {"question", "answer"}, the final number after "####"."""

from __future__ import annotations

import re
from decimal import Decimal
from pathlib import Path

from fledge.tasks.base import Example, known_split, user
from fledge.tasks.prompts import content_id, held_out
from fledge.text.files import Row, RowRejected
from fledge.text.messages import text_field
from fledge.text.readers import Rejects, keys_seen, read_rows, require_some

MARK = "####"
_NUMBER = re.compile(r"(?:(?<![\w)])-)?(?:\d[\d,]*)?\.?\d+")  # the minus of "9-3" is none of 3's


def final_number(text: str) -> Decimal | None:
    """The number an answer ends with: the first one after the last "####", else the last one in the text.

    GSM8K's own evaluation reads "#### (-?[0-9.,]+)" and drops commas; a model that was not taught the mark is read by
    its last number, as is usual. "$1,200.00." gives 1200.
    """
    _, mark, after = text.rpartition(MARK)
    numbers = _NUMBER.findall(after)
    if not numbers:
        return None
    return Decimal((numbers[0] if mark else numbers[-1]).replace(",", ""))


class Gsm8k:
    """Questions from a file, and tests from a second one or else from a tenth of the first, told by hash."""

    def __init__(self, train: str | Path, test: str | Path | None = None):
        """Read both files (.jsonl, .json, .parquet, also packed); rows that cannot be used are counted in `rejects`.

        Raises as `readers.read_documents` does, and ValueError where a file holds no question.
        """
        self.rejects = Rejects()
        rows = self._read(train)
        self._splits = held_out(rows) if test is None else {"train": rows, "test": self._read(test)}

    def _read(self, path: str | Path) -> list[Example]:
        found: dict[str, Example] = {}
        columns = frozenset({"question", "answer"})
        for source, row in read_rows([path], encoding=None, skip_bad=None, rejects=self.rejects, columns=columns):
            try:
                example = _example(row)
                if example.id in found:
                    raise RowRejected("the same question again", example.prompt[0]["content"])
            except RowRejected as error:
                self.rejects.add(source, error.reason, error.sample or keys_seen(row))
            else:
                found[example.id] = example
        require_some(len(found), [path], self.rejects, "questions with a final answer")
        return list(found.values())

    def examples(self, split: str) -> list[Example]:
        """The questions of the split in the order of their file."""
        return self._splits[known_split(split)]

    def score(self, example: Example, answer: str) -> float:
        """1.0 if the answer's final number equals the right one, as numbers ("18.00" is 18); else 0.0."""
        return float(final_number(answer) == Decimal(example.answers[0]))


def _example(row: Row) -> Example:
    if row.get("question") is None or row.get("answer") is None:
        raise RowRejected("no `question` and `answer`")
    question, worked = text_field(row, "question"), text_field(row, "answer")
    if not question.strip():
        raise RowRejected("empty question")
    number = final_number(worked) if MARK in worked else None
    if number is None:
        raise RowRejected(f"no number after {MARK}", worked[-80:])
    return Example(
        id=content_id(question),
        prompt=user(question),
        answers=(format(number, "f"),),
        kind="maths",
        language="en",
        meta={"worked": worked},
    )
