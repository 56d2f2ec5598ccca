"""A small cast for tests of the store: two people, one set of weights, prompts with two drafts each, comparisons."""

import uuid
from typing import Any

from fledge.feedback.store import NewDraft, NewVote, Store
from fledge.text.messages import Message

WEIGHTS = "c" * 64
DECODING = {"temperature": 0.8, "top_k": None, "top_p": 0.95, "max_tokens": 64, "stop": [], "engine": "native"}


def vote_id(number: int) -> str:
    """The same UUID for the same number."""
    return str(uuid.UUID(int=number))


def prompt(text: str = "What is the capital of Arvania?") -> tuple[Message, ...]:
    return (Message("user", text),)


def draft(person: str, text: str = "Belmora.", **over: Any) -> NewDraft:
    given = {"prompt": prompt(), "tokens": [1, 2, 3], "finish": "stop", "checkpoint": WEIGHTS, "decoding": DECODING}
    return NewDraft(person=person, text=text, **{**given, "seed": 7, "stream": 0, "logp": -1.25, **over})


class Voters:
    """`ann` and `bo` with a draft each in a conversation (`hers`, `his`), two shared drafts a, b and a task for Ann."""

    def __init__(self, store: Store):
        self.store = store
        self._number = 1000
        self.ann = store.put_person("person", "Ann", "rater", secret="a" * 40, id="p_ann")
        self.bo = store.put_person("person", "Bo 波", "rater", secret="b" * 40, id="p_bo")
        store.put_checkpoint(
            WEIGHTS, "sft", 120, "run/checkpoints/step-0000120", None, "t" * 64, "k" * 64, {"size": "tiny"}
        )
        self.talk = store.put_conversation(self.ann, "Capitals", id="c_ann")
        self.his_talk = store.put_conversation(self.bo, "Rivers", id="c_bo")
        self.hers = store.put_draft(draft(self.ann, conversation=self.talk, id="d_hers"))
        self.his = store.put_draft(
            draft(self.bo, "The Tesk.", prompt=prompt("Which river?"), conversation=self.his_talk, id="d_his")
        )
        self.a = store.put_draft(draft(self.ann, "It is Belmora.", id="d_a", stream=1))
        self.b = store.put_draft(draft(self.ann, "貝爾莫拉", id="d_b", stream=2))
        self.task = store.put_task(self.ann, self.a, self.b, "b", "random", id="t_ann")

    def new(self, kind: str, **fields: Any) -> NewVote:
        """A vote with a fresh id."""
        self._number += 1
        return NewVote(**{"id": vote_id(self._number), "kind": kind, **fields})

    def thumb(self, value: int = 1, draft: str | None = None, **fields: Any) -> NewVote:
        return self.new("thumb", draft=draft or self.hers, value=value, **fields)

    def pair(self, choice: str = "left", **fields: Any) -> NewVote:
        return self.new("pair", **{"task": self.task, "choice": choice, **fields})

    def said(self) -> list[tuple[str, str, int | None]]:
        """What stands: (person, kind, value) in order."""
        return [(v.person_id, v.kind, v.value) for v in self.store.current_votes()]
