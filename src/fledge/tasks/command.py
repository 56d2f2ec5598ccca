"""`fledge task`: writes what a model needs to become good enough at a task for reinforcement learning to go on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fledge.core.checkpoint import write_atomically
from fledge.core.config import Settings
from fledge.core.log import say


class TaskOptions(Settings, frozen=True, kw_only=True):
    """Write the texts, conversations and prompts of a task, to raise a model that can do a part of it."""

    name: str
    "arithmetic, arithmetic:3, worked, poem, poem:4x5, reverse or count; what follows the colon is size."
    out: str
    "Folder for the files; made if missing."
    texts: int = 20000
    "Plain documents for pretraining."
    chats: int = 2000
    "Conversations for fine-tuning."
    wrong: float = 0.0
    "Share of the conversations whose answer is wrong; 0.5 leaves reinforcement learning something to do."

    def problems(self) -> list[str]:
        """Every rule these settings break, in words."""
        found = [f"{n} = {getattr(self, n)}: must be at least 1" for n in ("texts", "chats") if getattr(self, n) < 1]
        if not 0 <= self.wrong <= 1:
            found.append(f"wrong = {self.wrong}: must be a share between 0 and 1")
        return found


def run(options: TaskOptions) -> dict[str, int]:
    """Write text.jsonl, chats.jsonl and prompts.jsonl (training questions only); returns the rows of each."""
    from fledge.tasks.catalog import open_lesson

    task, out = open_lesson(options.name), Path(options.out)
    files = {
        "text.jsonl": ({"text": text} for text in task.texts(options.texts)),
        "chats.jsonl": ({"messages": chat} for chat in task.chats(options.chats, options.wrong)),
        "prompts.jsonl": (_prompt_row(e.prompt, e.answers) for e in task.examples("train")),
    }
    written = {name: _write(out / name, rows) for name, rows in files.items()}
    for name, count in written.items():
        say(f"{out / name}: {count:,} rows")
    return written


def _prompt_row(prompt: list[dict[str, str]], answers: tuple[str, ...]) -> dict[str, Any]:
    """As `PromptFile` reads it: one message is text, and no answers is no field."""
    row: dict[str, Any] = {"prompt": prompt[0]["content"] if len(prompt) == 1 else prompt}
    return row | ({} if not answers else {"answer": answers[0]} if len(answers) == 1 else {"answers": list(answers)})


def _write(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    write_atomically(path, "".join(line + "\n" for line in lines).encode())
    return len(lines)
