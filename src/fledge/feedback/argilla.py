"""Votes as Argilla's records and back, so that people can go on rating there.

FILE is JSONL of records as `argilla.Record.from_dict` reads them, FILE.settings.json what `argilla.Settings.from_json`
reads. A record is one answer, or two to one prompt. Argilla knows no user of ours: `user_id` is a UUID made of the
person's id.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fledge.feedback.agreement import Read, read_votes
from fledge.feedback.records import Invalid, NewVote, Unknown
from fledge.text.files import RowRejected, brief
from fledge.text.messages import typed
from fledge.text.readers import Paths, Rejects, read_rows, require_some

if TYPE_CHECKING:
    from fledge.feedback.records import Vote
    from fledge.feedback.store import Store

SPACE = uuid.UUID("6b1d0f5e-3c52-5d0e-9a43-2f8f0c6f7a11")
"""Name space of the UUIDs made here (RFC 9562, version 5)."""
_TWO = {"a": "Answer A is better", "b": "Answer B is better", "same": "They are alike", "both_bad": "Both are bad"}
_ONE = {"up": "Good answer", "down": "Bad answer", "none": "No opinion on the whole"}
_CHOICES = {1: "a", -1: "b"}


def settings() -> dict[str, Any]:
    """Fields and questions of the data set; only the verdict is required, which Argilla wants of one question."""
    verdict = [{"value": value, "text": text, "description": None} for value, text in (_TWO | _ONE).items()]
    return {
        "guidelines": "With two answers, say which is better. With one, say whether it is good; rate or rewrite it.",
        "fields": [
            _item("prompt", "Conversation", True, {"type": "chat", "use_markdown": False}),
            _item("answer_a", "Answer A", True, {"type": "text", "use_markdown": False}),
            _item("answer_b", "Answer B", False, {"type": "text", "use_markdown": False}),
        ],
        "questions": [
            _item(
                "verdict", "Verdict", True,
                {"type": "label_selection", "options": verdict, "visible_options": len(verdict)},
            ),
            _item("rating", "Score of a single answer", False, {"type": "rating", "options": _points()}),
            _item("edit", "A better answer", False, {"type": "text", "use_markdown": False}),
        ],
        "vectors": [], "metadata": [], "allow_extra_metadata": True, "distribution": {"strategy": "overlap", "min_submitted": 1},
    }  # fmt: skip


def _item(name: str, title: str, required: bool, how: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "title": title, "required": required, "description": None, "settings": how}


def _points() -> list[dict[str, int]]:
    return [{"value": value} for value in range(6)]


def user_of(person: str) -> str:
    """The UUID under which Argilla knows a person."""
    return str(uuid.uuid5(SPACE, person))


def argilla_rows(read: Read, votes: Sequence[Vote]) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """One record for each answer or pair of answers judged, in the order of their first votes."""
    about: dict[tuple[str, ...], list[Vote]] = {}
    for vote in votes:
        task = read.tasks[vote.task_id] if vote.kind == "pair" else None
        about.setdefault((task.draft_a, task.draft_b) if task else (vote.draft_id,), []).append(vote)
    for ids, own in about.items():
        drafts = [read.drafts[i] for i in ids]
        sides = dict(zip("ab", drafts, strict=False))
        row = {
            "id": "+".join(ids),
            "fields": {"prompt": [{"role": m.role, "content": m.content} for m in drafts[0].messages]}
            | {f"answer_{side}": draft.text for side, draft in sides.items()},
            "metadata": {f"draft_{side}": draft.id for side, draft in sides.items()}
            | {f"model_{side}": draft.checkpoint_id or draft.origin for side, draft in sides.items()},
            "responses": _responses(read, own),
            "suggestions": {},
            "vectors": {},
        }
        yield row, [vote.id for vote in own]


def _responses(read: Read, votes: Sequence[Vote]) -> dict[str, list[dict[str, Any]]]:
    """{question: [{value, user_id, status}]}, at most one per person and question: the last one stands."""
    said: dict[str, dict[str, Any]] = {}
    for vote in votes:
        question, value = _answer(read, vote)
        said.setdefault(vote.person_id, {})[question] = value
    found: dict[str, list[dict[str, Any]]] = {}
    for person, answers in said.items():
        for question, value in ({"verdict": "none"} | answers).items():
            found.setdefault(question, []).append({"value": value, "user_id": user_of(person), "status": "submitted"})
    return found


def _answer(read: Read, vote: Vote) -> tuple[str, Any]:
    """A vote as (question, value)."""
    if vote.kind == "pair":
        return "verdict", _CHOICES.get(vote.value, "both_bad" if vote.both_bad else "same")
    if vote.kind == "thumb":
        return "verdict", "up" if vote.value > 0 else "down"
    return ("rating", vote.value) if vote.kind == "score" else ("edit", read.drafts[vote.edit_draft_id].text)


def import_argilla(store: Store, paths: Paths, rejects: Rejects | None = None) -> int:
    """Take the responses in records that came from this store as votes; returns how many were new.

    Rows are records, as JSON or JSONL. Users known here are the people they were; others become people of kind
    "import". Only submitted responses count, and what the store holds already is no new vote. Records about drafts that
    are not in the store are counted in `rejects`.
    """
    rejects = Rejects() if rejects is None else rejects
    rows = list(read_rows(paths, encoding=None, skip_bad=None, rejects=rejects, columns=frozenset()))
    require_some(len(rows), paths, rejects, "records")
    read = read_votes(store)
    people = {user_of(person.id): person.id for person in read.people.values()}
    standing = {_opinion(read, vote): vote for vote in read.votes}
    new = 0
    for source, row in rows:
        met = dict(people)  # whom a refused row brings is forgotten with it
        try:
            with store.transaction():
                new += _take(store, read, row, met, standing)
        except RowRejected as error:
            rejects.add(source, error.reason, error.sample)
        except Unknown as error:
            rejects.add(source, "unknown draft", str(error))
        except Invalid as error:
            rejects.add(source, "response that does not fit its record", str(error))
        else:
            people = met
    return new


Opinion = tuple[str, tuple[str, ...], str]
"""(person, drafts, question): of which there is one answer at a time."""


def _opinion(read: Read, vote: Vote) -> Opinion:
    task = read.tasks[vote.task_id] if vote.kind == "pair" else None
    return vote.person_id, (task.draft_a, task.draft_b) if task else (vote.draft_id,), _answer(read, vote)[0]


def _take(
    store: Store, read: Read, row: dict[str, Any], people: dict[str, str], standing: Mapping[Opinion, Vote]
) -> int:
    """Votes of one record; returns how many were new. Adds people it meets."""
    metadata = typed(row.get("metadata"), dict, "metadata")
    ids = tuple(typed(metadata[name], str, name) for name in ("draft_a", "draft_b") if metadata.get(name) is not None)
    if not ids:
        raise RowRejected("record without metadata.draft_a: it was not exported from here")
    new = 0
    for question, responses in typed(row.get("responses"), dict, "responses").items():
        for response in typed(responses, list, question):
            said = typed(response, dict, f"a response to {question}")
            value, user = said.get("value"), str(said.get("user_id"))
            if said.get("status", "submitted") != "submitted" or (question, value) == ("verdict", "none"):
                continue
            person = people.get(user)
            if person is None:
                person = people[user] = store.put_person("import", f"argilla {user}", "rater", id=f"p_argilla_{user}")
            before = standing.get((person, ids, question))
            if before is None or _answer(read, before)[1] != value:
                new += store.put_vote(person, _vote(store, read, (person, ids, question), value, before)).new
    return new


def _vote(store: Store, read: Read, opinion: Opinion, value: Any, before: Vote | None) -> NewVote:
    """A response as a vote. Its id is made of what is said and what it takes the place of, so again is harmless."""
    person, ids, question = opinion
    key = "\0".join((person, *ids, question))
    id = str(uuid.uuid5(SPACE, f"{key}\0{value}\0{before.id if before else ''}"))
    if not isinstance(value, str | int):
        raise RowRejected("response that does not fit its record", f"{question} is {brief(value)}")
    if question == "verdict" and len(ids) == 2 and value in _TWO:
        task = f"t_{uuid.uuid5(SPACE, key).hex}" if before is None else before.task_id
        a_is_left = before is None or read.tasks[task].left == "a"
        if before is None and store.task(task) is None:
            store.put_task(person, *ids, left="a", why="random", id=task)
        choice = value if value in ("same", "both_bad") else "left" if (value == "a") == a_is_left else "right"
        return NewVote(id=id, kind="pair", task=task, choice=choice)
    if question == "verdict" and len(ids) == 1 and value in ("up", "down"):
        return NewVote(id=id, kind="thumb", draft=ids[0], value=1 if value == "up" else -1)
    if question == "rating" and len(ids) == 1:
        return NewVote(id=id, kind="score", draft=ids[0], value=value)
    if question == "edit" and len(ids) == 1:
        return NewVote(id=id, kind="edit", draft=ids[0], text=value)
    raise RowRejected(
        "response that does not fit its record", f"{question} = {brief(value)} about {len(ids)} answer(s)"
    )
