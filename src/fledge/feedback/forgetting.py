"""Delete-me: a person's texts are blanked, their digests stay, and a row of the chain says when and why."""

from __future__ import annotations

from sqlalchemy import Connection, Update, func, select, update

from fledge.feedback.database import Transaction
from fledge.feedback.records import Unknown
from fledge.feedback.schema import conversation, draft, person, prompt, task, vote
from fledge.feedback.voting import append, forget_row


def forget(transaction: Transaction, person_id: str, now_ms: int) -> dict[str, int]:
    """Blank what this person wrote and what was written for them; returns how many rows of each. Raises Unknown.

    Drafts and edits of the person, comments, titles, and prompts that no one else's draft or task uses. What they
    voted stays, and so do the rows of others.
    """
    connection = transaction.connection
    if connection.execute(select(person.c.id).where(person.c.id == person_id)).first() is None:
        raise Unknown(f"person {person_id!r:.80}: not known")
    transaction.fold = True
    append(transaction, forget_row(person_id, now_ms))
    mine = select(draft.c.prompt_id).where(draft.c.person_id == person_id)
    others = select(draft.c.id).where(draft.c.prompt_id == prompt.c.id, draft.c.person_id != person_id).exists()
    tasked = select(task.c.id).where(task.c.prompt_id == prompt.c.id, task.c.person_id != person_id).exists()
    blank = {"blanked_ms": now_ms}
    edits = draft.c.origin == "human"
    drafts = update(draft).where(draft.c.person_id == person_id, draft.c.blanked_ms.is_(None))
    wiped = {"text": "", "tokens_json": "[]", **blank}
    titles = update(conversation).where(conversation.c.person_id == person_id, conversation.c.blanked_ms.is_(None))
    comments = update(vote).where(vote.c.person_id == person_id, func.length(vote.c.comment) > 0)
    prompts = update(prompt).where(prompt.c.id.in_(mine), prompt.c.blanked_ms.is_(None), ~others, ~tasked)
    return {
        "prompts": _count(connection, prompts.values(messages_json="[]", **blank)),
        "edits": _count(connection, drafts.where(edits).values(**wiped)),
        "drafts": _count(connection, drafts.where(~edits).values(**wiped)),
        "conversations": _count(connection, titles.values(title="", **blank)),
        "comments": _count(connection, comments.values(comment="")),
    }


def _count(connection: Connection, statement: Update) -> int:
    return connection.execute(statement).rowcount
