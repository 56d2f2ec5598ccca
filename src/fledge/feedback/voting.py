"""A vote's way into the chain: checked, tied to what it judges and to the row before, inserted."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

from sqlalchemy import bindparam, insert, or_, select

from fledge.feedback.chain import JUDGED, NOTHING_SHA256, canonical, digest, judged_sha256, row_sha256
from fledge.feedback.database import Transaction
from fledge.feedback.prepared import Prepared
from fledge.feedback.records import JUDGEMENTS, Conflict, Invalid, NewVote, Stored, Unknown
from fledge.feedback.schema import COMMENT_BYTES, TEXT_BYTES, draft, person, task, vote
from fledge.feedback.texts import plain, reasons_of, uuid_text, whole

_FIELDS = {  # per kind: what must be given, and what may be
    "thumb": ({"draft", "value"}, {"task"}),
    "score": ({"draft", "value"}, {"task"}),
    "edit": ({"draft", "text"}, {"task"}),
    "pair": ({"task", "choice"}, set()),
    "retract": ({"vote"}, set()),
}
_CHOOSABLE = ("draft", "task", "value", "choice", "text", "vote")
_CHOICES = ("left", "right", "same", "both_bad")
_CLOCK_MS = 2**53

_A, _B = draft.alias("a"), draft.alias("b")
_PERSON = Prepared(select(person.c.disabled_ms).where(person.c.id == bindparam("person_id")))
_SAID = (
    "seq",
    "person_id",
    "kind",
    "subject",
    "task_id",
    "value",
    "both_bad",
    "reasons_json",
    "comment_sha256",
    "supersedes",
)
_EARLIER = Prepared(
    select(*(vote.c[name] for name in _SAID), draft.c.text_sha256.label("edit_sha256"))
    .join_from(vote, draft, vote.c.edit_draft_id == draft.c.id, isouter=True)
    .where(vote.c.id == bindparam("vote_id"))
)
_OF_DRAFT = (*JUDGED, "person_id", "conversation_id")
_DRAFT = Prepared(select(*(draft.c[name] for name in _OF_DRAFT)).where(draft.c.id == bindparam("draft_id")))
_TASKED = Prepared(
    select(task.c.id).where(
        task.c.person_id == bindparam("person_id"),
        or_(task.c.draft_a == bindparam("draft_id"), task.c.draft_b == bindparam("draft_id")),
    )
)
_A, _B = draft.alias("a"), draft.alias("b")
_PAIR = Prepared(
    select(task.c.left, *(side.c[name] for side in (_A, _B) for name in JUDGED))
    .join_from(task, _A, task.c.draft_a == _A.c.id)
    .join(_B, task.c.draft_b == _B.c.id)
    .where(task.c.id == bindparam("task_id"), task.c.person_id == bindparam("person_id"))
)
_OF_VOTE = ("kind", "subject", "subject_sha256", "draft_id", "task_id")
_MINE = Prepared(
    select(*(vote.c[name] for name in _OF_VOTE)).where(
        vote.c.id == bindparam("vote_id"), vote.c.person_id == bindparam("person_id")
    )
)
_NEWEST = Prepared(
    select(vote.c.id)
    .where(vote.c.person_id == bindparam("person_id"), vote.c.subject == bindparam("subject"))
    .order_by(vote.c.seq.desc())
    .limit(1)
)
_INSERT, _INSERT_DRAFT = Prepared(insert(vote)), Prepared(insert(draft))
_NO_DRAFT = dict.fromkeys(draft.c.keys())


class _Case(NamedTuple):
    """What a vote judges, and what it says about it."""

    subject: str
    judged_sha256: str
    draft_id: str | None
    task_id: str | None
    value: int | None
    both_bad: int
    edited: Mapping[str, Any] | None = None  # the draft an edit starts from


def check(new: NewVote) -> None:
    """Everything that can be said about a vote without looking into the store. Raises Invalid."""
    uuid_text(new.id)
    if new.kind not in _FIELDS:
        raise Invalid(f"kind = {new.kind!r:.80}: must be one of {', '.join(_FIELDS)}")
    must, may = _FIELDS[new.kind]
    given = {name for name in _CHOOSABLE if getattr(new, name) is not None}
    if must - given:
        raise Invalid(f"a {new.kind} needs {' and '.join(sorted(must - given))}")
    if given - must - may:
        raise Invalid(f"a {new.kind} has no {' and no '.join(sorted(given - must - may))}: leave it out")
    for name in given & {"draft", "task", "vote"}:
        plain(getattr(new, name), name, 200)
    if new.kind == "thumb" and (type(new.value) is not int or new.value not in (-1, 1)):
        raise Invalid(f"value = {new.value!r:.80}: a thumb is 1 (up) or -1 (down)")
    if new.kind == "score":
        whole(new.value, "value", 0, 5)
    if new.kind == "pair" and new.choice not in _CHOICES:
        raise Invalid(f"choice = {new.choice!r:.80}: must be one of {', '.join(_CHOICES)}")
    if new.kind == "edit" and not plain(new.text, "text", TEXT_BYTES).strip():
        raise Invalid("text: an edited answer is not blank")
    plain(new.comment, "comment", COMMENT_BYTES)
    reasons_of(new.reasons)
    if new.dwell_ms is not None:
        whole(new.dwell_ms, "dwell_ms", 0)
    if new.client_ms is not None:
        whole(new.client_ms, "client_ms", -_CLOCK_MS)


def cast(transaction: Transaction, person_id: str, new: NewVote, server_ms: int) -> Stored:
    """Put one vote at the end of the chain, or find it there. Raises Invalid, Unknown or Conflict."""
    check(new)
    connection = transaction.connection
    _known_person(transaction, person_id)
    earlier = _EARLIER.first(connection, {"vote_id": new.id})
    case = _RESOLVE[new.kind](connection, person_id, new)
    if earlier is not None:
        before = dict(zip((*_SAID, "edit_sha256"), earlier, strict=True))
        if not _same(before, person_id, new, case):
            raise Conflict(
                f"vote {new.id} was stored before with other content: a change of mind needs an id of its own"
            )
        return Stored(before["seq"], new.id, False)
    (newest,) = _NEWEST.first(connection, {"person_id": person_id, "subject": case.subject}) or (None,)
    if new.kind == "retract" and newest != new.vote:
        raise Invalid(f"vote {new.vote} was replaced or withdrawn before: there is nothing to withdraw")
    edit_id = _store_edit(connection, person_id, new, case.edited, server_ms) if case.edited is not None else None
    seq = append(
        transaction,
        {
            "id": new.id,
            "person_id": person_id,
            "kind": new.kind,
            "subject": case.subject,
            "draft_id": case.draft_id,
            "task_id": case.task_id,
            "value": case.value,
            "both_bad": case.both_bad,
            "edit_draft_id": edit_id,
            "supersedes": newest,
            "reasons_json": canonical(new.reasons),
            "comment": new.comment,
            "comment_sha256": digest(new.comment),
            "dwell_ms": new.dwell_ms,
            "client_ms": new.client_ms,
            "server_ms": server_ms,
            "subject_sha256": case.judged_sha256,
        },
    )
    return Stored(seq, new.id, True)


def append(transaction: Transaction, row: dict[str, Any]) -> int:
    """Give a row its place in the chain and insert it; returns its seq."""
    seq, previous = transaction.end_of_chain()
    row = {"seq": seq + 1, **row, "prev_sha256": previous}
    row["sha256"] = row_sha256(row)
    _INSERT.run(transaction.connection, row)
    transaction.advance(row["seq"], row["sha256"])
    return row["seq"]


def forget_row(person_id: str, server_ms: int) -> dict[str, Any]:
    """The row that says why texts before it are blank."""
    return {
        "id": str(uuid.uuid4()),
        "person_id": person_id,
        "kind": "forget",
        "subject": f"person:{person_id}",
        "draft_id": None,
        "task_id": None,
        "value": None,
        "both_bad": 0,
        "edit_draft_id": None,
        "supersedes": None,
        "reasons_json": "[]",
        "comment": "",
        "comment_sha256": digest(""),
        "dwell_ms": None,
        "client_ms": None,
        "server_ms": server_ms,
        "subject_sha256": NOTHING_SHA256,
    }


def _known_person(transaction: Transaction, person_id: str) -> None:
    """Once per person and transaction: is this somebody who may vote?"""
    if person_id in transaction.people:
        return
    row = _PERSON.first(transaction.connection, {"person_id": person_id})
    if row is None:
        raise Unknown(f"person {person_id!r:.80}: not known")
    if row[0] is not None:
        raise Invalid(f"person {person_id!r:.80} was disabled: invite again")
    transaction.people.add(person_id)


def _judge_draft(connection, person_id: str, new: NewVote) -> _Case:
    """A draft may be judged by who asked for it, by who has a task with it, and outside conversations by everyone."""
    row = _DRAFT.first(connection, {"draft_id": new.draft})
    found = dict(zip(_OF_DRAFT, row, strict=True)) if row is not None else None
    free = found is not None and (found["person_id"] == person_id or found["conversation_id"] is None)
    tasks: set[str] = set()
    if not free or new.task is not None:
        tasks = {id for (id,) in _TASKED.run(connection, {"person_id": person_id, "draft_id": new.draft})}
    if found is None or not (free or tasks):
        raise Unknown(f"draft {new.draft!r:.80}: not known")
    if new.task is not None and new.task not in tasks:
        if _PAIR.first(connection, {"task_id": new.task, "person_id": person_id}) is None:
            raise Unknown(f"task {new.task!r:.80}: not known")
        raise Invalid(f"draft {new.draft} is not one of the two of task {new.task}")
    subject = f"draft:{new.draft}:{new.kind}"
    edited = found if new.kind == "edit" else None
    return _Case(subject, judged_sha256([found]), new.draft, new.task, new.value, 0, edited)


def _judge_pair(connection, person_id: str, new: NewVote) -> _Case:
    found = _PAIR.first(connection, {"task_id": new.task, "person_id": person_id})
    if found is None:
        raise Unknown(f"task {new.task!r:.80}: not known")
    left, both = found[0], (found[1 : 1 + len(JUDGED)], found[1 + len(JUDGED) :])
    judged = judged_sha256([dict(zip(JUDGED, side, strict=True)) for side in both])
    a_side = "left" if left == "a" else "right"
    value = 0 if new.choice in ("same", "both_bad") else 1 if new.choice == a_side else -1
    return _Case(f"task:{new.task}", judged, None, new.task, value, int(new.choice == "both_bad"))


def _judge_vote(connection, person_id: str, new: NewVote) -> _Case:
    row = _MINE.first(connection, {"vote_id": new.vote, "person_id": person_id})
    if row is None:
        raise Unknown(f"vote {new.vote!r:.80}: not known")
    found = dict(zip(_OF_VOTE, row, strict=True))
    if found["kind"] not in JUDGEMENTS:
        raise Invalid(f"vote {new.vote} is a {found['kind']}: it cannot be withdrawn")
    return _Case(found["subject"], found["subject_sha256"], found["draft_id"], found["task_id"], None, 0)


_RESOLVE = {
    "thumb": _judge_draft,
    "score": _judge_draft,
    "edit": _judge_draft,
    "pair": _judge_pair,
    "retract": _judge_vote,
}


def _same(earlier: Mapping[str, Any], person_id: str, new: NewVote, case: _Case) -> bool:
    """Is this the vote stored before? Clocks do not matter: a client may stamp each attempt anew."""
    said = (person_id, new.kind, case.subject, case.task_id, case.value, case.both_bad, canonical(new.reasons))
    names = ("person_id", "kind", "subject", "task_id", "value", "both_bad", "reasons_json")
    texts = earlier["comment_sha256"] == digest(new.comment) and (
        new.kind != "edit" or earlier["edit_sha256"] == digest(new.text)
    )
    withdrawn = new.kind != "retract" or earlier["supersedes"] == new.vote
    return tuple(earlier[name] for name in names) == said and texts and withdrawn


def _store_edit(connection, person_id: str, new: NewVote, edited: Mapping[str, Any], server_ms: int) -> str:
    """The edited text as a draft by a human, of the same prompt; in the conversation where it is the person's own."""
    own = edited["person_id"] == person_id
    row = _NO_DRAFT | {
        "id": f"d_{uuid.UUID(new.id).hex}",
        "prompt_id": edited["prompt_id"],
        "conversation_id": edited["conversation_id"] if own else None,
        "person_id": person_id,
        "tokens_json": "[]",
        "tokens_sha256": NOTHING_SHA256,
        "text": new.text,
        "text_sha256": digest(new.text),
        "finish": "stop",
        "origin": "human",
        "parent_id": edited["id"],
        "created_ms": server_ms,
        "took_ms": new.dwell_ms or 0,
    }
    _INSERT_DRAFT.run(connection, row)
    return row["id"]
