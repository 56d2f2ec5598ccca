"""People of a store: known by the digest of a secret, renamed, disabled, never removed."""

from __future__ import annotations

import uuid
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from fledge.feedback.chain import digest
from fledge.feedback.database import Transaction
from fledge.feedback.prepared import Prepared
from fledge.feedback.records import Conflict, Invalid, Person, Unknown
from fledge.feedback.schema import KINDS, ROLES, person
from fledge.feedback.texts import identifier, one_of, plain

_NAME_BYTES = 200
_COLUMNS = [person.c[name] for name in Person.__struct_fields__]
_OF_SECRET = Prepared(select(*_COLUMNS).where(person.c.secret_sha256 == bindparam("secret_sha256")))


def read_person(connection: Connection, secret: str) -> Person | None:
    """Who holds this secret, disabled or not."""
    row = _OF_SECRET.first(connection, {"secret_sha256": digest(secret)})
    return None if row is None else Person(*row)


def insert_person(
    transaction: Transaction, kind: str, name: str, role: str, secret: str | None, id: str | None, now_ms: int
) -> str:
    """Add a person, or give the person `id` this name and secret. Raises Invalid or Conflict."""
    one_of(kind, "kind", KINDS)
    one_of(role, "role", ROLES)
    if not plain(name, "name", _NAME_BYTES).strip():
        raise Invalid("name: must not be blank")
    id = identifier(id) if id is not None else f"p_{uuid.uuid4().hex}"
    connection, row = transaction.connection, dict[str, Any](name=name)
    if secret is not None:
        row |= {"secret_sha256": digest(secret), "disabled_ms": None}
        holder = read_person(connection, secret)
        if holder is not None and holder.id != id:
            raise Conflict("secret: belongs to another person; make a new one")
    found = connection.execute(select(person.c.kind, person.c.role).where(person.c.id == id)).first()
    if found is None:
        connection.execute(insert(person).values(id=id, kind=kind, role=role, created_ms=now_ms, **row))
    elif (found.kind, found.role) != (kind, role):
        raise Conflict(f"person {id} is a {found.kind} with role {found.role}, not a {kind} with role {role}")
    else:
        connection.execute(update(person).where(person.c.id == id).values(**row))
    return id


def disable(transaction: Transaction, id: str, now_ms: int) -> None:
    """Refuse this person's secret and votes from now on. Raises Unknown."""
    if transaction.connection.execute(select(person.c.id).where(person.c.id == id)).first() is None:
        raise Unknown(f"person {id!r:.80}: not known")
    once = update(person).where(person.c.id == id, person.c.disabled_ms.is_(None))
    transaction.connection.execute(once.values(disabled_ms=now_ms))
    transaction.people.discard(id)
