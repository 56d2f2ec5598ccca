"""Pair votes as Chatbot Arena writes them: two conversations, the names of two models, and who won."""

from __future__ import annotations

import hashlib
import uuid
from typing import TYPE_CHECKING, Any

from fledge.core.checkpoint import canonical_json
from fledge.feedback.agreement import Read
from fledge.feedback.leaderboard import model_name
from fledge.feedback.records import NewDraft, NewVote
from fledge.text.files import RowRejected, brief
from fledge.text.formats import Chat, to_row
from fledge.text.messages import Message, check_content, check_order, read_messages, text_field
from fledge.text.readers import Paths, Rejects, read_rows, require_some

if TYPE_CHECKING:
    from fledge.feedback.records import Vote
    from fledge.feedback.store import Store

SPACE = uuid.UUID("a7a4c7f0-58a1-5f7e-8d9e-6c6de2b7b3c4")
"""Name space of the ids made here (RFC 9562, version 5)."""
WINNERS = {"model_a": "left", "model_b": "right", "tie": "same", "tie (bothbad)": "both_bad"}
_COLUMNS = frozenset(
    {"model_a", "model_b", "winner", "conversation_a", "conversation_b", "judge", "question_id", "tstamp", "language"}
)


def arena_row(read: Read, vote: Vote) -> dict[str, Any]:
    """A pair vote; `judge` is the person's id, `tstamp` seconds since the epoch."""
    task = read.tasks[vote.task_id]
    drafts = [read.drafts[id] for id in (task.draft_a, task.draft_b)]
    names = [d.origin if d.checkpoint_id is None else model_name(read.checkpoints[d.checkpoint_id]) for d in drafts]
    talks = [to_row(Chat((*d.messages, Message("assistant", d.text)), ""))["messages"] for d in drafts]
    tie = "tie (bothbad)" if vote.both_bad else "tie"
    return {
        "question_id": task.prompt_id, "model_a": names[0], "model_b": names[1],
        "winner": tie if vote.value == 0 else "model_a" if vote.value > 0 else "model_b",
        "judge": vote.person_id, "turn": sum(m["role"] == "assistant" for m in talks[0]),
        "language": drafts[0].language,
        "tstamp": (vote.server_ms if vote.client_ms is None else vote.client_ms) / 1000,
        "conversation_a": talks[0], "conversation_b": talks[1],
    }  # fmt: skip


def import_arena(store: Store, paths: Paths, person: str, rejects: Rejects | None = None) -> int:
    """Take arena votes from files as votes of `person`; returns how many were new, so again gives 0.

    Models are made known as checkpoints of stage "import" under their names. The two conversations must be alike up to
    the last answer; others, and rows that are no votes, are counted in `rejects`.
    Raises ValueError as `readers.read_documents` does, and where no row could be used.
    """
    rejects = Rejects() if rejects is None else rejects
    new = taken = 0
    for source, row in read_rows(paths, encoding=None, skip_bad=None, rejects=rejects, columns=_COLUMNS):
        try:
            drafts, vote = _read(row, person)
        except RowRejected as error:
            rejects.add(source, error.reason, error.sample)
            continue
        with store.transaction():
            for draft, name in zip(drafts, (row["model_a"], row["model_b"]), strict=True):
                store.put_checkpoint(
                    draft.checkpoint, "import", 0, name, None, "", "", {"stage": "import", "name": name}
                )
                store.put_draft(draft)
            store.put_task(person, drafts[0].id, drafts[1].id, left="a", why="compare", id=vote.task)
            new += store.put_vote(person, vote).new
        taken += 1
    require_some(taken, paths, rejects, "arena votes")
    return new


def _read(row: dict[str, Any], person: str) -> tuple[list[NewDraft], NewVote]:
    """Raises RowRejected where the row is no vote over two answers to one prompt."""
    for name in ("model_a", "model_b", "winner", "conversation_a", "conversation_b"):
        if row.get(name) is None:
            raise RowRejected(f"no {name}: not an arena vote")
    models = [text_field(row, name) for name in ("model_a", "model_b")]
    if row["winner"] not in WINNERS:
        raise RowRejected("winner is not model_a, model_b, tie or tie (bothbad)", brief(row["winner"]))
    talks = [read_messages(row[name], name) for name in ("conversation_a", "conversation_b")]
    for talk in talks:
        check_order(talk)
        check_content(talk)
        if talk[-1].role != "assistant":
            raise RowRejected("conversation does not end with an answer")
    if talks[0][:-1] != talks[1][:-1]:
        raise RowRejected("the two conversations differ before the last answer")
    about = [person, models, row["winner"], talks, [row.get(name) for name in ("judge", "question_id", "tstamp")]]
    key = hashlib.sha256(canonical_json(about)).hexdigest()
    drafts = [
        NewDraft(
            id=f"d_{uuid.uuid5(SPACE, f'{key} {side}').hex}", prompt=tuple(talk[:-1]), text=talk[-1].content, tokens=[],
            finish="stop", person=person, checkpoint=imported_id(name), origin="import", source="import",
            language=text_field(row, "language") if row.get("language") is not None else "",
        )
        for side, name, talk in zip("ab", models, talks, strict=True)
    ]  # fmt: skip
    time = row.get("tstamp")
    timed = isinstance(time, int | float) and not isinstance(time, bool)
    return drafts, NewVote(
        id=str(uuid.uuid5(SPACE, key)), kind="pair", task=f"t_{uuid.uuid5(SPACE, f'{key} task').hex}",
        choice=WINNERS[row["winner"]], client_ms=round(time * 1000) if timed else None,
    )  # fmt: skip


def imported_id(name: str) -> str:
    """Id of a model of which only the name is known."""
    return hashlib.sha256(canonical_json({"imported model": name})).hexdigest()
