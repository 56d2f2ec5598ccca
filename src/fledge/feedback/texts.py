"""The rules for what the store takes as text, ids and numbers: the same on SQLite and PostgreSQL."""

from __future__ import annotations

import re
from typing import Any

from fledge.feedback.records import Invalid

_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ID = re.compile(r"[A-Za-z0-9_.:-]{1,200}")
_REASON = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_LARGEST = 2**53  # beyond it clients' numbers are no longer exact
MOST_REASONS = 16


def plain(value: Any, name: str, bytes_at_most: int) -> str:
    """`value` as text that both stores can hold. Raises Invalid."""
    if type(value) is not str:
        raise Invalid(f"{name} = {value!r:.80}: must be text")
    if "\0" in value:
        raise Invalid(f"{name} has a NUL character at {value.index(chr(0))}, which PostgreSQL cannot hold: remove it")
    try:
        size = len(value.encode())
    except UnicodeEncodeError as error:
        raise Invalid(
            f"{name} has half a surrogate pair at {error.start} ({value[error.start]!a}), which is no text: remove it"
        ) from None
    if size > bytes_at_most:
        raise Invalid(f"{name} has {size:,} bytes: at most {bytes_at_most:,}")
    return value


def shown(text: str) -> str:
    """A model's text with NUL characters, which PostgreSQL cannot hold, as the sign for NUL; its tokens stay exact."""
    return text.replace("\0", "\u2400")


def uuid_text(value: Any) -> str:
    """A client's id of a vote. Raises Invalid."""
    if type(value) is not str or not _UUID.fullmatch(value):
        raise Invalid(f"id = {value!r:.80}: must be a UUID in lower case, as crypto.randomUUID() makes it")
    return value


def identifier(value: Any, name: str = "id") -> str:
    """An id chosen by a caller inside the program. Raises Invalid."""
    if type(value) is not str or not _ID.fullmatch(value):
        raise Invalid(f"{name} = {value!r:.80}: must be 1 to 200 letters, digits or _ . : -")
    return value


def whole(value: Any, name: str, low: int, high: int = _LARGEST) -> int:
    """An integer within bounds; True, 2.5 and "5" are none. Raises Invalid."""
    if type(value) is not int or not low <= value <= high:
        raise Invalid(f"{name} = {value!r:.80}: must be a whole number from {low} to {high}")
    return value


def one_of(value: Any, name: str, known: tuple[str, ...]) -> str:
    """`value`, if it is one of the words `known`. Raises Invalid."""
    if type(value) is not str or value not in known:
        raise Invalid(f"{name} = {value!r:.80}: must be one of {', '.join(known)}")
    return value


def reasons_of(value: Any) -> list[str]:
    """Reasons are keys, not prose: they are never blanked. Raises Invalid."""
    if type(value) is not list or len(value) > MOST_REASONS:
        raise Invalid(f"reasons: must be a list of at most {MOST_REASONS}")
    for reason in value:
        if type(reason) is not str or not _REASON.fullmatch(reason):
            raise Invalid(f"reasons: {reason!r:.80} must be a key such as too_long: a-z, 0-9, _ and -, at most 40")
    if len(set(value)) != len(value):
        raise Invalid("reasons: each may be given once")
    return value
