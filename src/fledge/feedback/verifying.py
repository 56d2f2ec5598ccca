"""`fledge votes check`: every digest of the store computed again, every link followed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Table, func, select
from sqlalchemy.exc import DBAPIError

from fledge.feedback.chain import JUDGED, NOTHING_SHA256, START, digest, judged_sha256, row_sha256
from fledge.feedback.records import Report
from fledge.feedback.schema import TABLES, conversation, decoding, draft, head, prompt, task, vote

_PAGE = 1000
_MOST_PROBLEMS = 100  # a store damaged all over need not be listed row by row


def verify(connection: Connection) -> Report:
    """Rows of the chain read, and what is wrong in words (the first hundred)."""
    problems: list[str] = []
    count = 0
    try:
        for problem in _problems(connection):
            if isinstance(problem, int):
                count += problem
            elif len(problems) < _MOST_PROBLEMS:
                problems.append(problem)
    except DBAPIError as error:  # so damaged that it cannot be read to the end
        problems.append(f"cannot be read: {str(error.orig).strip()}")
    return Report(count, problems)


def _problems(connection: Connection) -> Iterator[str | int]:
    yield from _pages(connection)
    forgotten = {
        row.person_id: row.seq
        for row in connection.execute(
            select(vote.c.person_id, func.max(vote.c.seq).label("seq"))
            .where(vote.c.kind == "forget")
            .group_by(vote.c.person_id)
        )
    }
    yield from _texts(connection, forgotten)
    yield from _chain(connection, forgotten)
    yield from _references(connection)


def _pages(connection: Connection) -> Iterator[str]:
    if connection.dialect.name == "sqlite":
        found = connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
        yield from (f"SQLite integrity_check: {line}" for line in found if line != "ok")


def _rows(connection: Connection, table: Table, key: str = "id") -> Iterator[Any]:
    """Rows as mappings, a page at a time, by key."""
    column, after = table.c[key], None
    while True:
        statement = select(table).order_by(column).limit(_PAGE)
        rows = connection.execute(statement if after is None else statement.where(column > after)).mappings().all()
        yield from rows
        if len(rows) < _PAGE:
            return
        after = rows[-1][key]


def _texts(connection: Connection, forgotten: dict[str, int]) -> Iterator[str]:
    for row in _rows(connection, decoding):
        if digest(row["json"]) != row["id"]:
            yield f"decoding {row['id']}: its settings are not those of its id"
    for row in _rows(connection, prompt):
        if row["blanked_ms"] is None and digest(row["messages_json"]) != row["id"]:
            yield f"prompt {row['id']}: its messages are not those of its id"
        if row["blanked_ms"] is not None and (row["messages_json"] != "[]" or not forgotten):
            yield f"prompt {row['id']}: said to be blanked, but it is not, or nobody asked for it"
    for row in _rows(connection, conversation):
        if row["blanked_ms"] is not None and (row["title"] or row["person_id"] not in forgotten):
            yield f"conversation {row['id']}: said to be blanked, but it is not, or nobody asked for it"
    for row in _rows(connection, draft):
        if row["blanked_ms"] is None:
            for name, text in (("text", row["text"]), ("tokens", row["tokens_json"])):
                if digest(text) != row[f"{name}_sha256"]:
                    yield f"draft {row['id']}: its {name} changed after it was stored"
        elif row["text"] or row["tokens_json"] != "[]" or row["person_id"] not in forgotten:
            yield f"draft {row['id']}: said to be blanked, but it is not, or nobody asked for it"


def _chain(connection: Connection, forgotten: dict[str, int]) -> Iterator[str | int]:
    expected, previous = 1, START
    page: list[Any] = []
    for row in _rows(connection, vote, "seq"):
        seq, where = row["seq"], f"vote {row['seq']} ({row['id']})"
        yield 1
        if seq != expected:
            yield f"votes {expected} to {seq - 1} are missing"
        elif row["prev_sha256"] != previous:
            yield f"{where}: does not follow vote {seq - 1}: one of them was replaced"
        if row_sha256(row) != row["sha256"]:
            yield f"{where}: was changed after it was stored"
        blanked = row["comment"] == "" and forgotten.get(row["person_id"], 0) > seq
        if digest(row["comment"]) != row["comment_sha256"] and not blanked:
            yield f"{where}: its comment was changed after it was stored"
        expected, previous = seq + 1, row["sha256"]
        page.append(row)
        if len(page) == _PAGE:
            yield from _judged(connection, page)
            page = []
    yield from _judged(connection, page)
    end = connection.execute(select(head.c.seq, head.c.sha256)).one()
    if end.seq != expected - 1:
        yield f"the chain ends at vote {expected - 1}, but {end.seq} were stored: the last are missing or were added"
    elif end.sha256 != previous:
        yield f"vote {end.seq} is not the one that was stored last"


def _judged(connection: Connection, rows: list[Any]) -> Iterator[str]:
    """Do votes still point at what was judged?"""
    tasks = _by_id(connection, task, ("id", "draft_a", "draft_b"), {r["task_id"] for r in rows})
    ids = {r["draft_id"] for r in rows} | {t[side] for t in tasks.values() for side in ("draft_a", "draft_b")}
    drafts = _by_id(connection, draft, JUDGED, ids)
    for row in rows:
        if row["draft_id"] is not None:
            about = [row["draft_id"]]
        elif row["task_id"] is not None:
            about = [tasks[row["task_id"]][s] for s in ("draft_a", "draft_b")] if row["task_id"] in tasks else [None]
        else:
            about = []
        if any(id not in drafts for id in about):
            yield f"vote {row['seq']} ({row['id']}): what it judges is missing"
        elif (judged_sha256(drafts[id] for id in about) if about else NOTHING_SHA256) != row["subject_sha256"]:
            yield f"vote {row['seq']} ({row['id']}): what it judges was changed after it was judged"


def _by_id(connection: Connection, table: Table, names: tuple[str, ...], ids: set[str | None]) -> dict[str, Any]:
    known, found = sorted(id for id in ids if id is not None), {}
    for i in range(0, len(known), 500):
        statement = select(*(table.c[name] for name in names)).where(table.c.id.in_(known[i : i + 500]))
        found |= {row["id"]: row for row in connection.execute(statement).mappings()}
    return found


def _references(connection: Connection) -> Iterator[str]:
    """Every foreign key names a row (both stores refuse others; a hand that edits the file does not)."""
    for table in TABLES:
        for key in table.foreign_keys:
            other, column = key.column.table.alias("other"), key.parent
            missing = ~select(other.c.id).where(other.c.id == column).exists()
            statement = select(func.count()).select_from(table).where(column.is_not(None), missing)
            if count := connection.execute(statement).scalar_one():
                yield f"{table.name}.{column.name}: {count} rows name a {key.column.table.name} that is not there"
