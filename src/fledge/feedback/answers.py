"""Drafts and tasks: how an answer, its prompt and its sampling become rows, and how they are read back."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, Row, Table, bindparam, insert, select

from fledge.feedback import schema
from fledge.feedback.chain import canonical, digest, prompt_json
from fledge.feedback.database import Transaction
from fledge.feedback.prepared import Prepared
from fledge.feedback.records import Conflict, Draft, Invalid, NewDraft, Task, Unknown, Vote
from fledge.feedback.schema import ORIGINS, PROMPT_BYTES, TEXT_BYTES, WHYS
from fledge.feedback.texts import identifier, one_of, plain, shown, whole

_CHUNK = 500  # ids per statement: SQLite takes at most 999 parameters where it is old
_SEEDS = 2**63 - 1
_OF_PROMPT = ("messages_json", "language", "source")
_DRAFT_COLUMNS = [
    *(schema.draft.c[name] for name in Draft.__struct_fields__ if name in schema.draft.c),
    *(schema.prompt.c[name] for name in _OF_PROMPT),
    schema.prompt.c.blanked_ms,
]
_DRAFTS = select(*_DRAFT_COLUMNS).join_from(schema.draft, schema.prompt, schema.draft.c.prompt_id == schema.prompt.c.id)

_ONE_DRAFT = Prepared(_DRAFTS.where(schema.draft.c.id == bindparam("draft_id")))
_ONE_TASK = Prepared(
    select(*(schema.task.c[name] for name in Task.__struct_fields__)).where(schema.task.c.id == bindparam("task_id"))
)


def read_draft(connection: Connection, id: str) -> Draft | None:
    row = _ONE_DRAFT.first(connection, {"draft_id": id})
    return None if row is None else Draft(*row)


def read_task(connection: Connection, id: str) -> Task | None:
    row = _ONE_TASK.first(connection, {"task_id": id})
    return None if row is None else Task(*row)


def chunks(ids: Sequence[str]) -> Iterator[Sequence[str]]:
    """`ids` without repeats, in pieces a statement can hold."""
    once = list(dict.fromkeys(ids))
    return (once[i : i + _CHUNK] for i in range(0, len(once), _CHUNK))


def read_drafts(connection: Connection, ids: Sequence[str]) -> list[Draft]:
    """In the order of `ids`, without those that do not exist."""
    found: dict[str, Draft] = {}
    for some in chunks(ids):
        rows = connection.execute(_DRAFTS.where(schema.draft.c.id.in_(some)))
        found |= {draft.id: draft for draft in (Draft(*row) for row in rows)}
    return [found[id] for id in dict.fromkeys(ids) if id in found]


def read_vote(row: Row) -> Vote:
    return Vote(*row[:8], bool(row[8]), *row[9:])


def _text(write: Callable[[], str], name: str, bytes_at_most: int) -> str:
    """Canonical JSON as `write` gives it. Raises Invalid for what is none (half a surrogate pair) or too long."""
    try:
        return plain(write(), name, bytes_at_most)
    except (TypeError, UnicodeEncodeError) as error:
        raise Invalid(f"{name}: {error}") from None


def draft_row(new: NewDraft) -> dict[str, Any]:
    """Columns of a draft that do not depend on what is stored. Raises Invalid."""
    if not new.prompt:
        raise Invalid("prompt: must have at least one message")
    tokens = _text(lambda: canonical([whole(t, "token", 0) for t in new.tokens]), "tokens", PROMPT_BYTES)
    text = plain(shown(new.text) if new.origin == "model" and type(new.text) is str else new.text, "text", TEXT_BYTES)
    if new.logp is not None and not (isinstance(new.logp, int | float) and math.isfinite(new.logp)):
        raise Invalid(f"logp = {new.logp!r:.80}: must be a finite number")
    for name in ("seed", "stream"):
        if getattr(new, name) is not None:
            whole(getattr(new, name), name, 0, _SEEDS)
    return {
        "id": identifier(new.id) if new.id is not None else f"d_{uuid.uuid4().hex}",
        "prompt_id": digest(_text(lambda: prompt_json(new.prompt), "prompt", PROMPT_BYTES)),
        "conversation_id": new.conversation,
        "person_id": new.person,
        "checkpoint_id": new.checkpoint,
        "decoding_id": None
        if new.decoding is None
        else digest(_text(lambda: canonical(new.decoding), "decoding", TEXT_BYTES)),
        "seed": new.seed,
        "stream": new.stream,
        "tokens_json": tokens,
        "tokens_sha256": digest(tokens),
        "text": text,
        "text_sha256": digest(text),
        "logp": None if new.logp is None else float(new.logp),
        "finish": plain(new.finish, "finish", 100),
        "origin": one_of(new.origin, "origin", ORIGINS),
        "parent_id": new.parent,
        "took_ms": whole(new.took_ms, "took_ms", 0),
    }


def insert_draft(transaction: Transaction, new: NewDraft, created_ms: int) -> str:
    """Store a draft, and its prompt and sampling where they are new. Raises Invalid, Unknown or Conflict."""
    row, connection = draft_row(new), transaction.connection
    if new.id is not None:
        earlier = connection.execute(select(schema.draft).where(schema.draft.c.id == new.id)).mappings().first()
        if earlier is not None:
            told = {name: earlier[name] for name in row if name not in ("tokens_json", "text", "took_ms")}
            if told != {name: row[name] for name in told}:
                raise Conflict(f"draft {new.id} was stored before with other content: make a new id")
            return new.id
    known = ((schema.person, new.person), (schema.checkpoint, new.checkpoint), (schema.draft, new.parent))
    for table, id in known:
        if id is not None and not _exists(connection, table, id):
            raise Unknown(f"{table.name} {id!r:.80}: not known")
    if new.conversation is not None:
        table = schema.conversation
        owner = connection.execute(select(table.c.person_id).where(table.c.id == new.conversation)).scalar()
        if owner != new.person:
            raise Unknown(f"conversation {new.conversation!r:.80}: not known")
    _put_prompt(connection, row["prompt_id"], new)
    if row["decoding_id"] is not None and not _exists(connection, schema.decoding, row["decoding_id"]):
        connection.execute(insert(schema.decoding).values(id=row["decoding_id"], json=canonical(new.decoding)))
    connection.execute(insert(schema.draft).values(**row, created_ms=created_ms))
    return row["id"]


def _put_prompt(connection: Connection, id: str, new: NewDraft) -> None:
    """A prompt that was blanked and is asked anew by somebody gets its text back."""
    table, messages = schema.prompt, prompt_json(new.prompt)
    found = connection.execute(select(table.c.blanked_ms).where(table.c.id == id)).first()
    if found is None:
        texts = {"language": plain(new.language, "language", 100), "source": plain(new.source, "source", 100)}
        connection.execute(insert(table).values(id=id, messages_json=messages, **texts))
    elif found.blanked_ms is not None:
        connection.execute(table.update().where(table.c.id == id).values(messages_json=messages, blanked_ms=None))


def _exists(connection: Connection, table: Table, id: str) -> bool:
    return connection.execute(select(table.c.id).where(table.c.id == id)).first() is not None


def insert_task(
    transaction: Transaction,
    person: str,
    draft_a: str,
    draft_b: str,
    left: str,
    why: str,
    expected: str | None,
    id: str | None,
    created_ms: int,
) -> str:
    """Store a comparison of two drafts of one prompt. Raises Invalid, Unknown or Conflict."""
    one_of(left, "left", ("a", "b"))
    one_of(why, "why", WHYS)
    if expected is not None:
        one_of(expected, "expected", ("a", "b"))
    connection = transaction.connection
    if not _exists(connection, schema.person, person):
        raise Unknown(f"person {person!r:.80}: not known")
    drafts = {d.id: d for d in read_drafts(connection, [draft_a, draft_b])}
    for draft in (draft_a, draft_b):
        if draft not in drafts:
            raise Unknown(f"draft {draft!r:.80}: not known")
    if draft_a == draft_b:
        raise Invalid(f"draft_a and draft_b are both {draft_a}: a comparison needs two drafts")
    prompts = [drafts[d].prompt_id for d in (draft_a, draft_b)]
    if prompts[0] != prompts[1]:
        raise Invalid(f"drafts {draft_a} and {draft_b} answer different prompts: compare two answers to one prompt")
    new = Task(
        identifier(id) if id is not None else f"t_{uuid.uuid4().hex}",
        prompts[0], person, draft_a, draft_b, left, why, expected, created_ms,
    )  # fmt: skip
    table = schema.task
    columns = [table.c[name] for name in Task.__struct_fields__]
    earlier = connection.execute(select(*columns).where(table.c.id == new.id)).first()
    if earlier is None:
        row = {name: getattr(new, name) for name in Task.__struct_fields__}
        connection.execute(insert(table).values(**row))
    elif tuple(earlier)[:-1] != tuple(getattr(new, name) for name in Task.__struct_fields__)[:-1]:
        raise Conflict(f"task {new.id} was stored before with other content: make a new id")
    return new.id
