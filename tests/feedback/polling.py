"""A poll for tests of exports and statistics: answers, people and what they say, one short call each."""

import uuid
from pathlib import Path
from typing import Any

from fledge.feedback.raters import Scale
from fledge.feedback.store import NewDraft, NewVote, Store
from fledge.stages.common import Parent
from fledge.tasks.base import Example, user
from fledge.text.messages import Message

WIDE = Scale(levels=(-2.0, -1.0, 0.0, 1.0, 2.0), liked=0.0, bad=-99.0)


class Said:
    """A task whose answers say themselves how good they are."""

    def examples(self, split: str) -> list[Example]:
        return []

    def score(self, example: Example, answer: str) -> float:
        return float(answer)


def question(text: str = "How much?", kind: str = "number") -> Example:
    return Example(id=text, prompt=user(text), answers=(), kind=kind, language="en")


class Poll:
    """Writes into a store; ids and clocks are numbers counted up, so that two polls alike have equal bytes."""

    def __init__(self, store: Store):
        self.store, self.number = store, 0
        self.asker = self.person("asker")

    def model(self, name: str) -> str:
        id = uuid.uuid5(uuid.NAMESPACE_URL, name).hex * 2
        path = f"runs/{name}/checkpoints/step-0000010"
        self.store.put_checkpoint(id, "sft", 10, path, None, "t" * 64, "k" * 64, {"stage": "sft"})
        return id

    def person(self, name: str, kind: str = "person") -> str:
        return self.store.put_person(kind, name, "rater", id=f"p_{name}")

    def draft(self, text: str, prompt: str = "Why?", **over: Any) -> str:
        self.number += 1
        given = {
            "prompt": (Message("user", prompt),), "text": text, "tokens": [self.number], "finish": "stop",
            "person": self.asker, "id": f"d_{self.number:06}",
        }  # fmt: skip
        return self.store.put_draft(NewDraft(**given | over))

    def task(self, person: str, a: str, b: str, left: str = "a", why: str = "random", **over: Any) -> str:
        self.number += 1
        return self.store.put_task(person, a, b, left=left, why=why, id=f"t_{self.number:06}", **over)

    def vote(self, person: str, kind: str, client_ms: int | None = None, **fields: Any) -> str:
        """Minutes apart by the client's clock, unless a time is given."""
        self.number += 1
        id = str(uuid.UUID(int=self.number))
        when = self.number * 60_000 if client_ms is None else client_ms
        self.store.put_vote(person, NewVote(id=id, kind=kind, client_ms=when, **fields), server_ms=when)
        return id

    def pair(
        self,
        person: str,
        choice: str,
        chosen: str = "good",
        rejected: str = "bad",
        prompt: str = "Why?",
        left: str = "a",
        finish: tuple[str, str] = ("stop", "stop"),
        **fields: Any,
    ) -> str:
        """Two new drafts a and b, and what the person says to them."""
        a, b = (self.draft(t, prompt, finish=f) for t, f in zip((chosen, rejected), finish, strict=True))
        return self.vote(person, "pair", task=self.task(person, a, b, left), choice=choice, **fields)

    def score(self, person: str, value: int, text: str = "so", prompt: str = "Why?", **over: Any) -> str:
        return self.vote(person, "score", draft=self.draft(text, prompt, **over), value=value)

    def thumb(self, person: str, value: int, text: str = "so", prompt: str = "Why?", **over: Any) -> str:
        return self.vote(person, "thumb", draft=self.draft(text, prompt, **over), value=value)

    def edit(self, person: str, wanted: str, text: str = "so", prompt: str = "Why?", **over: Any) -> str:
        return self.vote(person, "edit", draft=self.draft(text, prompt, **over), text=wanted)


def parent_of(model, tokenizer, name: str = "tiny", **card: Any) -> Parent:
    """A model as a checkpoint gives it, without one."""
    path = Path(f"runs/{name}/checkpoints/step-0000010")
    id = uuid.uuid5(uuid.NAMESPACE_URL, name).hex * 2
    return Parent(model, tokenizer, id, path, {"stage": "sft", "parent": None, "model": {"head": "tokens"}} | card)
