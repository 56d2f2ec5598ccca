"""Moving a store: every table copied to an empty one, then counted, digested and its chain checked on the other side."""

from __future__ import annotations

import hashlib
from typing import NamedTuple

from sqlalchemy import Connection, Table, func, insert, select

from fledge.feedback.chain import canonical
from fledge.feedback.schema import TABLES, head
from fledge.feedback.store import Store
from fledge.feedback.verifying import verify

_PAGE = 1000


class Moved(NamedTuple):
    """What was proved equal in both stores."""

    counts: dict[str, int]
    digests: dict[str, str]  # sha256 of each table's rows, by primary key
    last_seq: int
    head_sha256: str


def migrate(source: Store, target: Store) -> Moved:
    """Copy all of `source` into the empty `target`, in one transaction: a failure or a kill leaves it empty.

    Writers of `source` wait meanwhile where it was opened for writing. Raises ValueError when the target holds
    anything, when the source is damaged, or when the two differ afterwards.
    """
    with source.database.write() if not source.database.read_only else source.database.read() as opened:
        reading = opened if isinstance(opened, Connection) else opened.connection
        report = verify(reading)
        if report.problems:
            raise ValueError(f"{source.database.name} is damaged, nothing was copied: {report.problems[0]}")
        with target.transaction() as transaction:
            connection = transaction.connection
            for table in TABLES:
                if table is not head and connection.execute(select(func.count()).select_from(table)).scalar_one():
                    raise ValueError(f"{target.database.name} is not empty ({table.name}): give a new store")
            connection.execute(head.delete())
            for table in TABLES:
                _copy(reading, connection, table)
            moved, arrived = _state(reading), _state(connection)
            if moved != arrived:
                wrong = [n for n in moved.digests if moved.digests[n] != arrived.digests[n]]
                raise ValueError(f"{target.database.name} differs in {', '.join(wrong)}: nothing was kept there")
            problems = verify(connection).problems
            if problems:
                raise ValueError(f"{target.database.name}: {problems[0]}: nothing was kept there")
    return moved


def _pages(connection: Connection, table: Table):
    """Rows as dicts by primary key, a page at a time."""
    keys, done = list(table.primary_key.columns), 0
    with connection.execute(select(table).order_by(*keys).execution_options(yield_per=_PAGE)) as result:
        for rows in result.mappings().partitions(_PAGE):
            done += len(rows)
            yield [dict(row) for row in rows]


def _copy(source: Connection, target: Connection, table: Table) -> None:
    for rows in _pages(source, table):
        target.execute(insert(table), rows)


def _state(connection: Connection) -> Moved:
    counts, digests = {}, {}
    for table in TABLES:
        count, sha = 0, hashlib.sha256()
        for rows in _pages(connection, table):
            count += len(rows)
            for row in rows:
                sha.update(canonical(row).encode() + b"\n")
        counts[table.name], digests[table.name] = count, sha.hexdigest()
    end = connection.execute(select(head.c.seq, head.c.sha256)).one()
    return Moved(counts, digests, end.seq, end.sha256)
