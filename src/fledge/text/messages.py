"""Messages as other projects write them, read into ours; what cannot be read is rejected with its reason."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from fledge.text.files import Row, RowRejected, brief
from fledge.text.readers import keys_seen, kind_of

Role = Literal["system", "user", "assistant"]

ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "ai": "assistant",
}
TOOL_ROLES = frozenset({"tool", "function", "observation", "function_call", "tool_call", "tool_response"})
# fields of a message that carry more than its content: dropping them would teach half an answer
UNREAD_FIELDS = ("tool_calls", "function_call", "reasoning_content", "tools")
AS_TEXT = "`fledge convert --tools text` writes it as text"


class Message(msgspec.Struct, frozen=True):
    """One turn. `content` is never blank in a Chat, Pair or Thumb that was read from a file."""

    role: Role
    content: str


def read_turns(value: Any, role: Role, name: str) -> list[Message]:
    """A string is one message by `role`; an object is one message, a list several."""
    if isinstance(value, str):
        return [Message(role, value)]
    return [read_message(value, name)] if isinstance(value, dict) else read_messages(value, name)


def read_messages(value: Any, name: str) -> list[Message]:
    """`value` must be a list of messages; `name` is the field it comes from."""
    return [read_message(item, name) for item in typed(value, list, name)]


def read_message(value: Any, name: str) -> Message:
    """{role, content} or {from, value}; content is text or a list of text parts."""
    value = typed(value, dict, f"a message of {name}")
    role_key, content_key = ("from", "value") if value.get("role") is None else ("role", "content")
    if value.get(role_key) is None:
        raise RowRejected("message without a role", keys_seen(value))
    role = typed(value[role_key], str, role_key)
    if role in TOOL_ROLES:
        raise RowRejected(f"tool or function messages are not supported as they are: {AS_TEXT}", f"role is {role!r}")
    if role not in ROLES:
        raise RowRejected("unknown role", f"{brief(role)}, known are {', '.join(ROLES)}")
    for field in UNREAD_FIELDS:
        if value.get(field):
            raise RowRejected(f"message with {field}, which is not supported as it is: {AS_TEXT}", brief(value[field]))
    if ROLES[role] == "assistant" and (value.get("weight") == 0 or value.get("train") is False):
        raise RowRejected("message marked as not trained (weight 0 or train false), which is not supported")
    return Message(ROLES[role], read_content(value.get(content_key), content_key))


def read_content(value: Any, name: str) -> str:
    if not isinstance(value, list):
        return typed(value, str, name)
    for part in value:
        if typed(part, dict, f"a part of {name}").get("type") != "text":
            hint = f"; {AS_TEXT}" if part.get("type") in ("python", "python_output") else ""
            raise RowRejected(f"content part that is not text{hint}", f"type is {brief(part.get('type'))}")
    return "".join(typed(part.get("text"), str, "text") for part in value)


def typed(value: Any, kind: type, name: str) -> Any:
    """`value`, or the row rejected where it is not of `kind`."""
    if not isinstance(value, kind):
        raise RowRejected("wrong field type", f"{name} is {kind_of(value)}, not {kind_of(kind())}: {brief(value)}")
    return value


def text_field(row: Row, key: str) -> str:
    return typed(row[key], str, key)


def check_order(messages: list[Message]) -> None:
    """Reject a row unless user and assistant alternate after an optional system message."""
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if not turns:
        raise RowRejected("no user or assistant messages", f"{len(messages)} message(s)")
    for index, message in enumerate(turns):
        expected = "assistant" if index % 2 else "user"
        if message.role != expected:
            place = f"message {index + 1 + len(messages) - len(turns)} is by {message.role}, not {expected}"
            raise RowRejected("roles out of order", place)


def check_content(messages: list[Message]) -> None:
    """Reject a row with a blank message."""
    for index, message in enumerate(messages):
        if not message.content.strip():
            raise RowRejected("empty message", f"message {index + 1} by {message.role} is {brief(message.content)}")


def show(message: Message) -> str:
    return f"{message.role}: {message.content[:80]!r}"
