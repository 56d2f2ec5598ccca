"""Statements compiled once: a vote runs six of them, and building one anew costs more than running it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Dialect, Executable


class Prepared:
    """A SQLAlchemy statement as each driver's own text, run on the driver's connection; every value is a bound one.

    The drivers keep text they have seen parsed. Rows are tuples in the order of the statement's columns, as stored:
    text and numbers need no conversion, and the tables hold nothing else.
    """

    def __init__(self, statement: Executable):
        self._statement = statement
        self._texts: dict[str, tuple[str, list[str] | None, dict[str, Any]]] = {}

    def run(self, connection: Connection, values: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Rows, or none for an INSERT. Raises the driver's errors."""
        known = self._texts.get(connection.dialect.name)
        text, order, constants = known or self._compile(connection.dialect)
        named = constants | values if constants else values
        given: Any = named if order is None else [named[name] for name in order]
        cursor = connection.connection.driver_connection.execute(text, given)
        return cursor.fetchall() if cursor.description is not None else []

    def first(self, connection: Connection, values: dict[str, Any]) -> tuple[Any, ...] | None:
        rows = self.run(connection, values)
        return rows[0] if rows else None

    def _compile(self, dialect: Dialect) -> tuple[str, list[str] | None, dict[str, Any]]:
        """(text, names of its ? in order, values the statement itself holds); PostgreSQL's driver takes them by name."""
        compiled = self._statement.compile(dialect=dialect)
        constants = {name: value for name, value in compiled.params.items() if value is not None}
        found = (compiled.string, list(compiled.positiontup) if compiled.positional else None, constants)
        self._texts[dialect.name] = found
        return found
