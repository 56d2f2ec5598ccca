"""The micro-world as one object: facts, documents, conversations, pairs, questions, and the files they are written to."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from fledge.world.chats import make_chats
from fledge.world.config import WorldConfig
from fledge.world.facts import Fact, make_facts
from fledge.world.pages import make_documents
from fledge.world.pairs import make_pairs
from fledge.world.questions import Question, fact_questions, request_questions

FORMAT = 1
"""Version of the written files; a change of the text under the same seed raises it."""

SHOWN_REQUESTS = ("dangerous-person-1-0.en", "borderline-1-0.en", "borderline-10-1.zh", "greeting-hello-0.zh")
"""Ids of the requests in the showcase."""


class World:
    """Everything a seed determines. Facts are made at once, the rest when asked for."""

    def __init__(self, config: WorldConfig | None = None):
        self.config = config or WorldConfig()
        self.entities, self.facts, self.pools = make_facts(self.config)

    @cached_property
    def fact_by_id(self) -> dict[str, Fact]:
        """Facts under their ids."""
        return {fact.id: fact for fact in self.facts}

    def documents(self) -> Iterator[dict]:
        """The pretraining text: {"text", "language", "source", "quality", "form", "dup_cluster", "facts"}, shuffled.

        See `fledge.world.page` for the labels."""
        yield from make_documents(self.config, self.facts, self.pools)

    def chats(self) -> list[dict]:
        """Conversations for fine-tuning, about train entities and requests only."""
        return make_chats(self.facts, self.config.n_chats, self.config.seed)

    def pairs(self, split: str = "train") -> list[dict]:
        """Preference pairs; "train", or "test" for those about held-out entities and requests."""
        n = self.config.n_pairs if _known(split) == "train" else self.config.n_pairs_heldout
        return make_pairs(self.facts, self.pools, split, n, self.config.seed)

    def questions(self, split: str = "test") -> list[Question]:
        """Every fact of the split in both languages, one question form each."""
        return fact_questions(self.facts, self.pools, _known(split), self.config.seed)

    def requests(self, split: str = "test") -> list[Question]:
        """Dangerous and borderline requests and greetings of the split."""
        return request_questions(_known(split), self.config.seed)

    def showcase(self) -> list[Question]:
        """Eight held-out prompts that show a model at a glance: four well-read facts, two requests that say "kill" (one
        dangerous, one harmless), a Chinese request that only sounds dangerous, and a greeting."""
        facts = self.questions("test")
        wanted = (("highest_mountain", "en"), ("longest_river", "zh"), ("trade", "en"), ("birth_city", "zh"))
        shown = [next(q for q in facts if (q.relation, q.language) == key) for key in wanted]
        requests = {question.id: question for question in self.requests("test")}
        return shown + [requests[id] for id in SHOWN_REQUESTS]

    def write(self, out: Path) -> dict[str, Any]:
        """Writes all files into `out` (made if missing) and returns what world.json says. world.json is written last."""
        out = Path(out)
        out.mkdir(parents=True, exist_ok=True)
        documents = list(self.documents())
        files = {
            "documents.jsonl": documents,
            "chats.jsonl": self.chats(),
            "pairs.jsonl": self.pairs("train"),
            "pairs_heldout.jsonl": self.pairs("test"),
            "questions.jsonl": [q for s in ("train", "test") for q in self.questions(s) + self.requests(s)],
        }
        report = {
            "format": FORMAT,
            "config": self.config,
            "rows": {name: len(rows) for name, rows in files.items()},
            "text": measure(documents),
            "counts": {fact.id: fact.count for fact in self.facts},
            "sha256": {name: _write_lines(out / name, rows) for name, rows in files.items()},
        }
        (out / "world.json").write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1))
        return msgspec.to_builtins(report)


def measure(documents: Iterable[dict]) -> dict[str, Any]:
    """Documents and characters by "source.language", and an estimate of the tokens of a 2,048-token byte-level BPE.

    The estimate counts 1.45 tokens per English word, 1.05 per Chinese character or mark, and one end token per page
    (measured here on the default world with a BPE in which every Chinese character is a token)."""
    pages, chars, tokens = Counter(), Counter(), 0.0
    for document in documents:
        key = f"{document['source']}.{document['language']}"
        pages[key] += 1
        chars[key] += len(document["text"])
        text = document["text"]
        tokens += 1 + (1.45 * len(text.split()) if document["language"] == "en" else 1.05 * len(text))
    return {
        "pages": dict(sorted(pages.items())),
        "chars": dict(sorted(chars.items())),
        "tokens_estimated": round(tokens),
    }


def _known(split: str) -> str:
    if split not in ("train", "test"):
        raise ValueError(f"split = {split!r}: must be 'train' or 'test'")
    return split


def _write_lines(path: Path, rows: list) -> str:
    """One JSON object per line; returns the sha256 of the file."""
    data = b"".join(msgspec.json.encode(row) + b"\n" for row in rows)
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()
