"""The store of votes: who said what about which answer of which exact weights. Rows are added, never changed.

    with Store.open(store_url(run)) as store:
        store.put_vote(person, NewVote(id=..., kind="thumb", draft=draft, value=1))

A vote is stored when `put_vote` has returned: that is after COMMIT. A change of mind is a new row that supersedes the
older one, and each row holds the digest of the row before (chain.py).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Table, func, insert, select, update

from fledge.feedback import schema
from fledge.feedback.answers import (
    chunks,
    insert_draft,
    insert_task,
    read_draft,
    read_drafts,
    read_task,
    read_vote,
)
from fledge.feedback.chain import canonical
from fledge.feedback.database import Database, Transaction, store_url
from fledge.feedback.forgetting import forget
from fledge.feedback.people import disable, insert_person, read_person
from fledge.feedback.records import (
    JUDGEMENTS,
    Choice,
    Conflict,
    Conversation,
    Draft,
    Export,
    Invalid,
    NewDraft,
    NewVote,
    Person,
    Report,
    Stored,
    StoredCheckpoint,
    Task,
    Unknown,
    Vote,
)
from fledge.feedback.texts import identifier, plain
from fledge.feedback.verifying import verify
from fledge.feedback.voting import cast

__all__ = [
    "JUDGEMENTS", "Choice", "Conflict", "Conversation", "Draft", "Export", "Invalid", "NewDraft", "NewVote", "Person",
    "Report", "Store", "Stored", "StoredCheckpoint", "Task", "Transaction", "Unknown", "Vote", "now_ms", "store_url",
]  # fmt: skip

_PAGE = 1000  # rows read at a time
_TITLE_BYTES = 1000


def now_ms() -> int:
    """Milliseconds since the epoch, UTC."""
    return time.time_ns() // 1_000_000


class Store:
    """All votes of a run and what they are about. Threads may share it; one writing process at a time holds the turn."""

    def __init__(self, database: Database):
        self.database = database

    @classmethod
    def open(cls, url: str, read_only: bool = False) -> Store:
        """Open `sqlite:///PATH` or `postgresql://...`, made if missing. Raises ValueError with the remedy."""
        return cls(Database(url, read_only))

    def close(self) -> None:
        self.database.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[Transaction]:
        """Everything put inside is committed together, or nothing is."""
        with self.database.write() as transaction:
            yield transaction

    # people

    def put_person(self, kind: str, name: str, role: str, secret: str | None = None, id: str | None = None) -> str:
        """Add a person, or give the person `id` this name and secret; a new secret enables a disabled person again.

        Only the secret's digest is kept.

        Raises Invalid, or Conflict where `id` has another kind or role or the secret is someone else's.
        """
        with self.transaction() as transaction:
            return insert_person(transaction, kind, name, role, secret, id, now_ms())

    def person(self, id: str) -> Person | None:
        return self._one(schema.person, Person, id)

    def person_of_secret(self, secret: str) -> Person | None:
        """Who holds this token; None for an unknown one and for a disabled person's."""
        try:
            with self.database.read() as connection:
                found = read_person(connection, secret)
        except UnicodeEncodeError:  # no token of ours has half a surrogate pair
            return None
        return found if found is not None and found.disabled_ms is None else None

    def people(self) -> list[Person]:
        return self._all(schema.person, Person, order=("created_ms", "id"))

    def disable_person(self, id: str) -> None:
        """Their token and their votes are refused from now on; what they said stays. Raises Unknown."""
        with self.transaction() as transaction:
            disable(transaction, id, now_ms())

    # answers

    def put_checkpoint(
        self,
        id: str,
        stage: str,
        step: int,
        path: str,
        parent: str | None,
        template_sha256: str,
        tokenizer_sha256: str,
        card: dict[str, Any],
    ) -> None:
        """Make weights known by their manifest's sha256; again is harmless."""
        row = {
            "id": identifier(id, "checkpoint"), "stage": stage, "step": step, "path": plain(path, "path", 4096),
            "parent_id": parent, "template_sha256": template_sha256, "tokenizer_sha256": tokenizer_sha256,
            "card_json": canonical(card),
        }  # fmt: skip
        with self.transaction() as transaction:
            if self._one(schema.checkpoint, StoredCheckpoint, id) is None:
                transaction.connection.execute(insert(schema.checkpoint).values(**row, created_ms=now_ms()))

    def checkpoints(self) -> list[StoredCheckpoint]:
        return self._all(schema.checkpoint, StoredCheckpoint, order=("created_ms", "id"))

    def decoding(self, id: str) -> dict[str, Any] | None:
        """How a draft was sampled."""
        with self.database.read() as connection:
            found = connection.execute(select(schema.decoding.c.json).where(schema.decoding.c.id == id)).scalar()
        return None if found is None else msgspec.json.decode(found)

    def put_draft(self, new: NewDraft) -> str:
        """Store an answer with its prompt and sampling. Raises Invalid, Unknown or Conflict (id used for another)."""
        with self.transaction() as transaction:
            return insert_draft(transaction, new, now_ms())

    def draft(self, id: str) -> Draft | None:
        with self.database.read() as connection:
            return read_draft(connection, id)

    def drafts(self, ids: Iterable[str]) -> dict[str, Draft]:
        """Those of `ids` that exist, by id."""
        with self.database.read() as connection:
            return {d.id: d for d in read_drafts(connection, list(ids))}

    def put_task(
        self,
        person: str,
        draft_a: str,
        draft_b: str,
        left: str,
        why: str,
        expected: str | None = None,
        id: str | None = None,
    ) -> str:
        """Ask a person to compare two drafts of one prompt, `left` ("a" or "b") shown on the left."""
        with self.transaction() as transaction:
            return insert_task(transaction, person, draft_a, draft_b, left, why, expected, id, now_ms())

    def task(self, id: str) -> Task | None:
        with self.database.read() as connection:
            return read_task(connection, id)

    def tasks(self, ids: Iterable[str]) -> dict[str, Task]:
        """Those of `ids` that exist, by id."""
        found: dict[str, Task] = {}
        for some in chunks(list(ids)):
            found |= {t.id: t for t in self._all(schema.task, Task, schema.task.c.id.in_(some))}
        return found

    def open_tasks(self, person: str) -> list[Task]:
        """Tasks of a person without a vote, oldest first."""
        vote = schema.vote.c
        voted = select(vote.seq).where(vote.person_id == person, vote.subject == "task:" + schema.task.c.id).exists()
        return self._all(schema.task, Task, schema.task.c.person_id == person, ~voted, order=("created_ms", "id"))

    # conversations

    def put_conversation(self, person: str, title: str, id: str | None = None) -> str:
        """Begin a conversation, or give the person's conversation `id` a new title. Raises Unknown for another's."""
        plain(title, "title", _TITLE_BYTES)
        id = identifier(id) if id is not None else f"c_{uuid.uuid4().hex}"
        table = schema.conversation
        with self.transaction() as transaction:
            found = transaction.connection.execute(select(table).where(table.c.id == id)).first()
            if found is not None and found.person_id != person:
                raise Unknown(f"conversation {id!r:.80}: not known")
            if found is None:
                if self._one(schema.person, Person, person) is None:
                    raise Unknown(f"person {person!r:.80}: not known")
                row = {"id": id, "person_id": person, "title": title, "created_ms": now_ms()}
                transaction.connection.execute(insert(table).values(**row))
            elif found.title != title and found.blanked_ms is None:
                transaction.connection.execute(update(table).where(table.c.id == id).values(title=title))
        return id

    def conversations(self, person: str) -> list[Conversation]:
        """A person's conversations, newest first, without their contents; forgotten ones are left out."""
        table = schema.conversation
        with self.database.read() as connection:
            rows = connection.execute(
                select(table)
                .where(table.c.person_id == person, table.c.blanked_ms.is_(None))
                .order_by(table.c.created_ms.desc(), table.c.id)
            )
            return [Conversation(*row) for row in rows]

    def conversation(self, person: str, id: str) -> Conversation | None:
        """A conversation with its drafts, tasks and the person's votes; None when it is not this person's."""
        draft, task, vote = schema.draft.c, schema.task.c, schema.vote.c
        with self.database.read() as connection:
            table = schema.conversation
            found = connection.execute(select(table).where(table.c.id == id, table.c.person_id == person)).first()
            if found is None or found.blanked_ms is not None:
                return None
            ids = select(draft.id).where(draft.conversation_id == id)
            drafts = read_drafts(
                connection, list(connection.execute(ids.order_by(draft.created_ms, draft.id)).scalars())
            )
            tasks = self._all(
                schema.task, Task, task.person_id == person, task.draft_a.in_(ids), order=("created_ms", "id")
            )
            about = [f"draft:{d.id}:{kind}" for d in drafts for kind in ("thumb", "score", "edit")]
            about += [f"task:{t.id}" for t in tasks]
            rows: list[Any] = []
            for some in chunks(about):
                where = (vote.person_id == person, vote.subject.in_(some))
                rows += connection.execute(select(schema.vote).where(*where))
            votes = sorted(map(read_vote, rows), key=lambda v: v.seq)
            return Conversation(*found, drafts=drafts, tasks=tasks, votes=votes)

    # votes

    def put_vote(self, person_id: str, new: NewVote, server_ms: int | None = None) -> Stored:
        """Store one vote; it is on disk when this returns. Raises Invalid, Unknown or Conflict, and stores nothing."""
        with self.transaction() as transaction:
            return cast(transaction, person_id, new, now_ms() if server_ms is None else server_ms)

    def put_votes(self, votes: Iterable[tuple[str, NewVote]]) -> list[Stored | Exception]:
        """Store (person, vote)s with one COMMIT; one that is refused gives its exception and hinders no other."""
        results: list[Stored | Exception] = []
        with self.transaction() as transaction:
            for person_id, new in votes:
                try:
                    with transaction.savepoint():
                        results.append(self.put_vote(person_id, new))
                except ValueError as error:
                    results.append(error)
        return results

    def vote(self, id: str) -> Vote | None:
        with self.database.read() as connection:
            row = connection.execute(select(schema.vote).where(schema.vote.c.id == id)).first()
        return None if row is None else read_vote(row)

    def votes(self, after_seq: int = 0, upto_seq: int | None = None) -> Iterator[Vote]:
        """Every row of the chain with after_seq < seq <= upto_seq (default: the newest now), by seq."""
        return self._votes(after_seq, upto_seq, current=False)

    def current_votes(self, after_seq: int = 0, upto_seq: int | None = None) -> Iterator[Vote]:
        """What people say as of `upto_seq`: per person and subject the newest row, unless that withdraws; by seq."""
        return self._votes(after_seq, upto_seq, current=True)

    def _votes(self, after_seq: int, upto_seq: int | None, current: bool) -> Iterator[Vote]:
        table, later = schema.vote, schema.vote.alias("later")
        end = self.last_seq() if upto_seq is None else upto_seq
        statement = select(table).where(table.c.seq <= end).order_by(table.c.seq).limit(_PAGE)
        if current:
            same = (later.c.person_id == table.c.person_id, later.c.subject == table.c.subject)
            replaced = select(later.c.seq).where(*same, later.c.seq > table.c.seq, later.c.seq <= end).exists()
            statement = statement.where(table.c.kind.in_(JUDGEMENTS), ~replaced)
        while True:
            with self.database.read() as connection:
                rows = connection.execute(statement.where(table.c.seq > after_seq)).all()
            yield from map(read_vote, rows)
            if len(rows) < _PAGE:
                return
            after_seq = rows[-1].seq

    def last_seq(self) -> int:
        """seq of the newest vote; 0 when there is none."""
        with self.database.read() as connection:
            return connection.execute(select(func.coalesce(func.max(schema.vote.c.seq), 0))).scalar_one()

    def forget(self, person_id: str) -> dict[str, int]:
        """Blank a person's texts and say so in the chain; returns how many of each were blanked. Raises Unknown."""
        with self.transaction() as transaction:
            return forget(transaction, person_id, now_ms())

    # exports

    def put_export(
        self,
        id: str,
        *,
        format: str,
        spec: dict[str, Any],
        rows: int,
        dropped: dict[str, int],
        first_seq: int,
        last_seq: int,
        path: str,
        votes: Sequence[Sequence[str]],
    ) -> None:
        """Record a data set and, for each of its rows, the ids of the votes it was made from; again is harmless.

        Raises Unknown for an id that is no vote's.
        """
        values = {
            "id": identifier(id, "export"), "format": format, "spec_json": canonical(spec), "rows": rows,
            "dropped_json": canonical(dropped), "first_seq": first_seq, "last_seq": last_seq,
            "path": plain(path, "path", 4096),
        }  # fmt: skip
        links = [{"export_id": id, "row": n, "vote_id": v} for n, ids in enumerate(votes) for v in dict.fromkeys(ids)]
        with self.transaction() as transaction:
            if self._one(schema.export, Export, id) is None:
                transaction.connection.execute(insert(schema.export).values(**values, created_ms=now_ms()))
                self._require_votes({link["vote_id"] for link in links})
                if links:
                    transaction.connection.execute(insert(schema.export_row), links)

    def _require_votes(self, ids: set[str]) -> None:
        known: set[str] = set()
        with self.database.read() as connection:
            for some in chunks(sorted(ids)):
                known.update(connection.execute(select(schema.vote.c.id).where(schema.vote.c.id.in_(some))).scalars())
        if ids - known:
            raise Unknown(f"vote {min(ids - known)!r:.80}: not known; an export names the votes it was made from")

    def exports(self) -> list[Export]:
        return self._all(schema.export, Export, order=("created_ms", "id"))

    def export_votes(self, id: str) -> list[list[str]]:
        """Ids of the votes behind each row of an export."""
        table = schema.export_row
        with self.database.read() as connection:
            count = connection.execute(select(schema.export.c.rows).where(schema.export.c.id == id)).scalar() or 0
            found: list[list[str]] = [[] for _ in range(count)]
            for row in connection.execute(select(table).where(table.c.export_id == id).order_by(table.c.vote_id)):
                found[row.row].append(row.vote_id)
        return found

    # care

    def counts(self) -> dict[str, int]:
        """Rows of each table."""
        with self.database.read() as connection:
            return {t.name: connection.execute(select(func.count()).select_from(t)).scalar_one() for t in schema.TABLES}

    def verify(self) -> Report:
        """Read everything and check every digest, link and reference; SQLite checks its own pages too."""
        with self.database.read() as connection:
            return verify(connection)

    def backup(self, path: Path | str) -> None:
        """Copy a SQLite store as of this moment, while others write."""
        self.database.backup(Path(path))

    def _one(self, table: Table, kind: type, id: str) -> Any:
        found = self._all(table, kind, table.c.id == id)
        return found[0] if found else None

    def _all(self, table: Table, kind: type, *where: Any, order: tuple[str, ...] = ("id",)) -> list[Any]:
        columns = [table.c[name] for name in kind.__struct_fields__]
        statement = select(*columns).where(*where).order_by(*(table.c[name] for name in order))
        with self.database.read() as connection:
            return [kind(*row) for row in connection.execute(statement)]
