"""What goes into the store of votes and what comes out, and the three ways it says no."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import msgspec

from fledge.text.messages import Message

Choice = Literal["left", "right", "same", "both_bad"]
VoteKind = Literal["thumb", "pair", "score", "edit", "retract", "forget"]
PersonKind = Literal["owner", "person", "simulated", "rule", "reward", "judge", "self", "import"]
JUDGEMENTS = ("thumb", "pair", "score", "edit")  # kinds that say something about an answer


class Invalid(ValueError):
    """Values the store does not take; nothing was stored."""


class Unknown(ValueError):
    """An id that names nothing this person may see; the text is the same whether it exists or not."""


class Conflict(ValueError):
    """An id that was used before for something else; the first row stands."""


class Stored(NamedTuple):
    """Where a vote lies. `new` is False when this id and content had been stored before."""

    seq: int
    id: str
    new: bool


class NewDraft(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One answer to a prompt, with everything that made it."""

    prompt: tuple[Message, ...]
    text: str
    tokens: list[int]
    finish: str
    person: str
    checkpoint: str | None = None
    decoding: dict[str, Any] | None = None
    seed: int | None = None
    stream: int | None = None
    logp: float | None = None
    origin: Literal["model", "human", "import"] = "model"
    parent: str | None = None
    conversation: str | None = None
    source: str = "page"
    language: str = ""
    took_ms: int = 0
    id: str | None = None


class NewVote(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A vote as a client sends it: `id` is a UUID the client makes, which makes sending it again harmless.

    thumb: draft, value -1 or 1. score: draft, value 0..5. edit: draft, text. pair: task, choice. retract: vote.
    """

    id: str
    kind: Literal["thumb", "pair", "score", "edit", "retract"]
    draft: str | None = None
    task: str | None = None
    value: int | None = None
    choice: Choice | None = None
    text: str | None = None
    reasons: list[str] = []
    comment: str = ""
    dwell_ms: int | None = None
    client_ms: int | None = None
    vote: str | None = None


class Person(msgspec.Struct, frozen=True):
    id: str
    kind: PersonKind
    name: str
    role: Literal["owner", "rater", "service"]
    created_ms: int
    disabled_ms: int | None


class StoredCheckpoint(msgspec.Struct, frozen=True):
    """The weights drafts come from; `id` is the sha256 of the checkpoint's manifest."""

    id: str
    stage: str
    step: int
    path: str
    parent_id: str | None
    template_sha256: str
    tokenizer_sha256: str
    card_json: str
    created_ms: int

    @property
    def card(self) -> dict[str, Any]:
        return msgspec.json.decode(self.card_json)


class Draft(msgspec.Struct, frozen=True):
    """An answer as stored, with its prompt. `blanked_ms` is set once its person asked to be forgotten: text is ""."""

    id: str
    prompt_id: str
    conversation_id: str | None
    person_id: str
    checkpoint_id: str | None
    decoding_id: str | None
    seed: int | None
    stream: int | None
    tokens_json: str
    tokens_sha256: str
    text: str
    text_sha256: str
    logp: float | None
    finish: str
    origin: str
    parent_id: str | None
    created_ms: int
    took_ms: int
    blanked_ms: int | None
    messages_json: str
    language: str
    source: str
    prompt_blanked_ms: int | None

    @property
    def tokens(self) -> list[int]:
        return msgspec.json.decode(self.tokens_json)

    @property
    def messages(self) -> tuple[Message, ...]:
        """The prompt, roles and contents."""
        return msgspec.json.decode(self.messages_json, type=tuple[Message, ...])


class Task(msgspec.Struct, frozen=True):
    """Two drafts of one prompt for one person; `left` says which of them stands on the left."""

    id: str
    prompt_id: str
    person_id: str
    draft_a: str
    draft_b: str
    left: Literal["a", "b"]
    why: Literal["random", "gold", "compare"]
    expected: Literal["a", "b"] | None
    created_ms: int

    @property
    def left_draft(self) -> str:
        return self.draft_a if self.left == "a" else self.draft_b

    @property
    def right_draft(self) -> str:
        return self.draft_b if self.left == "a" else self.draft_a


class Vote(msgspec.Struct, frozen=True):
    """One row of the chain. A pair's value is +1 where draft_a of its task is better, -1 for draft_b, 0 for the same."""

    seq: int
    id: str
    person_id: str
    kind: VoteKind
    subject: str
    draft_id: str | None
    task_id: str | None
    value: int | None
    both_bad: bool
    edit_draft_id: str | None
    supersedes: str | None
    reasons_json: str
    comment: str
    comment_sha256: str
    dwell_ms: int | None
    client_ms: int | None
    server_ms: int
    subject_sha256: str
    prev_sha256: str
    sha256: str

    @property
    def reasons(self) -> list[str]:
        return msgspec.json.decode(self.reasons_json)


class Conversation(msgspec.Struct, frozen=True):
    """Of one person. `drafts` by time, with the `tasks` over them and that person's `votes`, in order."""

    id: str
    person_id: str
    title: str
    created_ms: int
    blanked_ms: int | None
    drafts: list[Draft] = []
    tasks: list[Task] = []
    votes: list[Vote] = []


class Export(msgspec.Struct, frozen=True):
    """A data set made from votes; `id` is the sha256 of its file."""

    id: str
    format: str
    spec_json: str
    rows: int
    dropped_json: str
    first_seq: int
    last_seq: int
    path: str
    created_ms: int


class Report(NamedTuple):
    """What `Store.verify` read and what it found wrong; no problems means every digest and link holds."""

    rows: int
    problems: list[str]
