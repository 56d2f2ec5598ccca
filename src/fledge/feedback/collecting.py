"""Votes of a rater that is no person: answers are sampled, asked about and stored, the same ones each time.

Every id is made of (what was asked, seed, number), so a run that was killed and is begun again stores nothing twice,
and two raters with one seed judge the same answers.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec

from fledge import __version__
from fledge.core.checkpoint import canonical_json, sha256, step_of
from fledge.feedback.raters import KINDS, Asked, AskedPair, Rater
from fledge.feedback.records import NewDraft, NewVote
from fledge.feedback.simulated import draw
from fledge.feedback.texts import shown
from fledge.generate.chat import chat_engine
from fledge.generate.engine import Engine
from fledge.generate.sampling import Sampling
from fledge.tasks.base import Example
from fledge.text.messages import Message
from fledge.text.template import fit_prompt

if TYPE_CHECKING:
    from pathlib import Path

    from fledge.core.model import Transformer
    from fledge.feedback.store import Store
    from fledge.text.tokenizer import Tokenizer

SPACE = uuid.UUID("2f4be2b5-53d0-5b8a-8f0b-5a3ad36e9d21")
"""Name space of the ids made here (RFC 9562, version 5)."""
PAIR_DRAWS = 4
"""Answers drawn for a pair: the first, and the first after it that differs, so that there is something to compare."""
MOST_ASKED = 4
"""Up to so many questions per vote wanted, where a question may give none: two equal answers, nothing to edit."""
_NAME_BYTES = 200  # the store takes no longer ones
_COMMIT_ROWS = 16
"""Votes per transaction: a server that shares the store waits for one at most, some 20 ms."""


class Opened(Protocol):
    """A model as `stages.common.open_model` gives it."""

    model: Transformer
    tokenizer: Tokenizer
    id: str
    path: Path
    card: dict[str, Any]


class Collected(msgspec.Struct, frozen=True):
    """What a rater gave."""

    person: str
    checkpoint: str
    asked: dict[str, int]
    """Questions, by kind."""
    votes: dict[str, int]
    """Votes in the store for them, by kind; the new ones among them are `new`."""
    new: int
    skipped: int
    """Prompts that are too long for the model."""


class _Question(NamedTuple):
    """One question about to be asked; `drafts` are one answer, or two of which `left` stands on the left."""

    key: str
    example: Example
    drafts: list[NewDraft]
    left: str


def collect(
    store: Store,
    opened: Opened,
    rater: Rater,
    examples: Sequence[Example],
    kinds: Sequence[str],
    count: int,
    seed: int,
    sampling: Sampling,
) -> Collected:
    """`count` votes of each kind by `rater` on answers that `opened` samples to `examples`.

    Prompts are taken in a random order, all once before any twice. sampling: its seed is replaced by `seed`. Fewer
    votes than `count` are given where 4 x `count` questions do not bring so many.
    Raises ValueError for a kind the rater cannot give, and where no prompt fits the model.
    """
    if not count >= 1:
        raise ValueError(f"count = {count}: must be at least 1")
    for kind in kinds:
        if kind not in rater.kinds:
            raise ValueError(f"kind {kind!r}: rater {rater.name} can give {', '.join(rater.kinds)}")
    sampling = msgspec.structs.replace(sampling, seed=seed)
    if problems := sampling.problems():
        raise ValueError("; ".join(problems))
    fitted = _fitted(opened, examples, sampling)
    if not fitted:
        raise ValueError(
            f"none of the {len(examples)} prompts fits the model's context of {opened.model.config.context_tokens} tokens: "
            "give shorter ones, at least one"
        )
    person = _put_rater(store, rater)
    put_checkpoint(store, opened)
    sampler = _Sampler(opened, sampling, fitted, person)
    known = {vote.id for vote in store.votes()}
    asked, votes, new = {}, {}, 0
    for kind in [k for k in KINDS if k in kinds]:
        asked[kind], votes[kind], fresh = _collect_kind(store, sampler, rater, kind, count, known)
        new += fresh
    return Collected(person, opened.id, asked, votes, new, len(examples) - len(fitted))


def put_checkpoint(store: Store, opened: Opened) -> str:
    """Make the model known to the store; returns its id."""
    parent = opened.card.get("parent")
    step = step_of(opened.path) if opened.path.name.startswith("step-") else 0  # a checkpoint may be kept under any name
    store.put_checkpoint(
        opened.id, opened.card["stage"], step, str(opened.path.resolve()), parent["id"] if parent else None,
        sha256(opened.tokenizer.format.template.encode()), sha256(opened.tokenizer.json), opened.card,
    )  # fmt: skip
    return opened.id


def decoding_of(engine: Engine, sampling: Sampling) -> dict[str, Any]:
    """How answers are drawn, as the store keeps it; the seed is the draft's."""
    return {
        "temperature": float(sampling.temperature), "top_k": sampling.top_k, "top_p": sampling.top_p,
        "max_tokens": sampling.max_tokens, "stop": [], "engine": "native" if engine.native else "torch",
        "dtype": str(engine.dtype).removeprefix("torch."), "version": __version__,
    }  # fmt: skip


def _put_rater(store: Store, rater: Rater) -> str:
    id = f"p_{uuid.uuid5(SPACE, f'{rater.kind} {rater.name}').hex}"
    name = rater.name.encode()[:_NAME_BYTES].decode(errors="ignore")
    return store.put_person(rater.kind, name, "service", id=id)


def _fitted(opened: Opened, examples: Sequence[Example], sampling: Sampling) -> list[tuple[Example, list[int]]]:
    """Examples with the tokens of their prompts; those too long for the model are left out."""
    context = opened.model.config.context_tokens
    room, found = context - min(sampling.max_tokens, context // 2), []
    for example in examples:
        try:
            found.append((example, fit_prompt(opened.tokenizer, _messages(example), room)[0]))
        except ValueError:  # the last message alone is too long; counted in `skipped`
            continue
    return found


def _messages(example: Example) -> tuple[Message, ...]:
    return tuple(Message(m["role"], m["content"]) for m in example.prompt)


class _Sampler:
    """Numbered questions about a model's answers: which prompt, which answers, from which random streams."""

    def __init__(self, opened: Opened, sampling: Sampling, fitted: list[tuple[Example, list[int]]], person: str):
        self.opened, self.sampling, self.fitted, self.person = opened, sampling, fitted, person
        self.engine = chat_engine(opened.model, opened.tokenizer)
        self.decoding = decoding_of(self.engine, sampling)
        self._base = canonical_json([opened.id, self.decoding, sampling.seed]).decode()
        self._orders: dict[tuple[str, int], list[int]] = {}

    def questions(self, store: Store, kind: str, numbers: range) -> list[_Question]:
        """Questions `numbers` of a kind; pairs of which all answers are the same are left out."""
        draws = PAIR_DRAWS if kind == "pair" else 1
        chosen = [self._prompt(kind, n) for n in numbers]
        keys = [
            f"{self._base}\0{kind}\0{n}\0{canonical_json(e.prompt)!r}"
            for n, (e, _) in zip(numbers, chosen, strict=True)
        ]
        streams = [_stream(key, side) for key in keys for side in range(draws)]
        samples = self.engine.sample([tokens for _, tokens in chosen], self.sampling, samples=draws, streams=streams)
        bodies = [row[:n] for row, n in zip(samples.tokens.tolist(), samples.lengths.tolist(), strict=True)]
        texts = [shown(self.opened.tokenizer.decode(body)) for body in bodies]  # as the store keeps them
        found = []
        for i, (key, (example, _)) in enumerate(zip(keys, chosen, strict=True)):
            rows = list(range(i * draws, (i + 1) * draws))
            if kind == "pair":
                rows = [rows[0], *[r for r in rows if texts[r] != texts[rows[0]]][:1]]
                if len(rows) < 2:
                    continue
            drafts = [
                NewDraft(
                    id=f"d_{uuid.uuid5(SPACE, f'{key} {streams[r]}').hex}", prompt=_messages(example), text=texts[r],
                    tokens=bodies[r], finish="stop" if samples.stopped[r] else "length", person=self.person,
                    checkpoint=self.opened.id, decoding=self.decoding, seed=self.sampling.seed, stream=streams[r],
                    logp=float(samples.logp[r, : len(bodies[r])].double().sum()), source="rate", language=example.language,
                )
                for r in rows
            ]  # fmt: skip
            found.append(_Question(key, example, drafts, "a" if draw("left", key) < 0.5 else "b"))
        return _as_stored(store, found)

    def _prompt(self, kind: str, number: int) -> tuple[Example, list[int]]:
        turn, place = divmod(number, len(self.fitted))
        if (kind, turn) not in self._orders:
            seed = self.sampling.seed
            self._orders[kind, turn] = sorted(
                range(len(self.fitted)), key=lambda i: draw("order", seed, kind, turn, i, self.fitted[i][0].id)
            )
        return self.fitted[self._orders[kind, turn][place]]


def _stream(key: str, side: int) -> int:
    """A random stream of its own for each answer, within what both stores hold."""
    return int(draw("stream", key, side) * 2**48)


def _as_stored(store: Store, questions: list[_Question]) -> list[_Question]:
    """The answers that an earlier run stored under these ids stand: another machine may round differently."""
    stored = store.drafts([d.id for q in questions for d in q.drafts])
    for question in questions:
        for draft in question.drafts:
            if (found := stored.get(draft.id)) is not None:
                draft.text, draft.tokens, draft.finish, draft.logp = found.text, found.tokens, found.finish, found.logp
                draft.person = found.person_id
    return questions


def _collect_kind(
    store: Store, sampler: _Sampler, rater: Rater, kind: str, count: int, known: set[str]
) -> tuple[int, int, int]:
    """(questions asked, votes there are, new ones)."""
    asked = votes = new = 0
    while votes < count and asked < MOST_ASKED * count:
        numbers = range(asked, min(asked + count - votes, MOST_ASKED * count))
        questions = sampler.questions(store, kind, numbers)
        asked = numbers.stop
        there = [q for q in questions if _vote_id(sampler.person, q) in known]
        votes += len(there)
        waiting = [q for q in questions if _vote_id(sampler.person, q) not in known]
        for start in range(0, len(waiting), _COMMIT_ROWS):
            some = waiting[start : start + _COMMIT_ROWS]
            made = _store(store, sampler.person, some, _ASK[kind](rater, some), kind)
            votes, new = votes + made, new + made
    return asked, votes, new


def _vote_id(person: str, question: _Question) -> str:
    return str(uuid.uuid5(SPACE, f"vote\0{person}\0{question.key}"))


def _task_id(person: str, question: _Question) -> str:
    return f"t_{uuid.uuid5(SPACE, f'task{chr(0)}{person}{chr(0)}{question.key}').hex}"


def _subject(question: _Question) -> str:
    """What a rater's chances are drawn by: the same question gets the same answer in every store."""
    return question.key


def _ask_pairs(rater: Rater, questions: Sequence[_Question]) -> Sequence[Any]:
    sides = [q.drafts if q.left == "a" else q.drafts[::-1] for q in questions]
    return rater.pairs(
        [
            AskedPair(_subject(q), q.example, left.text, right.text)
            for q, (left, right) in zip(questions, sides, strict=True)
        ]
    )


def _asked(questions: Sequence[_Question]) -> list[Asked]:
    return [Asked(_subject(q), q.example, q.drafts[0].text) for q in questions]


_ASK: dict[str, Callable[[Rater, Sequence[_Question]], Sequence[Any]]] = {
    "pair": _ask_pairs,
    "thumb": lambda rater, questions: rater.thumbs(_asked(questions)),
    "score": lambda rater, questions: rater.scores(_asked(questions)),
    "edit": lambda rater, questions: rater.edits(_asked(questions)),
}


def _store(store: Store, person: str, questions: Sequence[_Question], said: Sequence[Any], kind: str) -> int:
    """Drafts, tasks and votes of some questions, all or none; returns how many votes. No opinion (None) is no vote."""
    given = [(q, value) for q, value in zip(questions, said, strict=True) if value is not None]
    with store.transaction():
        for question, _ in given:
            for draft in question.drafts:
                store.put_draft(draft)
            if kind == "pair":
                a, b = question.drafts
                store.put_task(person, a.id, b.id, left=question.left, why="random", id=_task_id(person, question))
        done = store.put_votes([(person, _new_vote(person, q, kind, value)) for q, value in given])
        for one in done:
            if isinstance(one, Exception):
                raise one
    return len(done)


def _new_vote(person: str, question: _Question, kind: str, said: Any) -> NewVote:
    id = _vote_id(person, question)
    if kind == "pair":
        return NewVote(id=id, kind="pair", task=_task_id(person, question), choice=said)
    field = {"text": said} if kind == "edit" else {"value": said}
    return NewVote(id=id, kind=kind, draft=question.drafts[0].id, **field)
