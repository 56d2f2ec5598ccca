"""Chats and preference pairs, whatever shape the row came in.

The shape is told by the keys of each row, in this order (null counts as absent); the first that fits decides:

    chosen + rejected                   a pair: with `prompt`, with `conversations`, alpaca, implicit, or hh dialogues
    label (true/false) or kto_tag, completions + labels, ground_truth or reward_model      other kinds: rejected here
    messages                            a chat: [{role, content}]
    conversations                       a chat: [{from, value}] (sharegpt) or [{role, content}]
    instruction                         a chat: instruction, input?, output, history? [[user, assistant]] (alpaca)
    prompt + completion                 a chat: strings or message lists
    question + answer                   a chat: strings (gsm8k)

Any of them may have a `system` string. A message's content is a string or a list of {type: "text", text}.
A row that breaks a rule is dropped and counted with its reason; text itself is never repaired or trimmed, save that
hh dialogues ("\\n\\nHuman: ...\\n\\nAssistant: ...") lose the spaces around each turn, which belong to their markup.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, TypeVar

import msgspec

from fledge.text.files import Row, RowRejected, brief
from fledge.text.readers import Paths, Rejects, keys_seen, kind_of, read_rows

Role = Literal["system", "user", "assistant"]
Item = TypeVar("Item")

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
UNREAD_FIELDS = ("tool_calls", "function_call", "reasoning_content")
_COLUMN_NAMES = (
    "chosen rejected margin label kto_tag completions labels ground_truth reward_model messages conversations "
    "instruction input output history system prompt completion question answer text"
)
COLUMNS = frozenset(_COLUMN_NAMES.split())

_HH_TURN = re.compile(r"\n\n(Human|Assistant):")


class Message(msgspec.Struct, frozen=True):
    """One turn. `content` is never blank in a Chat or Pair that was read from a file."""

    role: Role
    content: str


class Chat(msgspec.Struct, frozen=True):
    """Messages that alternate user, assistant after an optional system message, and end with assistant."""

    messages: tuple[Message, ...]
    source: str


class Pair(msgspec.Struct, frozen=True):
    """Two different answers to one prompt, which ends with a user message; `margin` is how much better chosen is."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    source: str
    margin: float | None = None


def read_chats(
    paths: Paths, *, encoding: str | None = None, skip_bad: int | None = None, rejects: Rejects | None = None
) -> Iterator[Chat]:
    """Stream the chats of .jsonl, .json and .parquet files (also .gz, .zst) and of folders.

    Rows that cannot be used are dropped and counted in `rejects`. Raises as `readers.read_documents` does.
    """
    return _read(_chat, paths, encoding, skip_bad, rejects)


def read_pairs(
    paths: Paths, *, encoding: str | None = None, skip_bad: int | None = None, rejects: Rejects | None = None
) -> Iterator[Pair]:
    """Stream the preference pairs of .jsonl, .json and .parquet files (also .gz, .zst) and of folders.

    Rows that cannot be used are dropped and counted in `rejects`. Raises as `readers.read_documents` does.
    """
    return _read(_pair, paths, encoding, skip_bad, rejects)


def to_row(item: Chat | Pair) -> Row:
    """The conversational shape that TRL and others read: {messages}, or {prompt, chosen, rejected, margin?}."""
    if isinstance(item, Chat):
        return {"messages": [_plain(message) for message in item.messages]}
    row: Row = {
        "prompt": [_plain(message) for message in item.prompt],
        "chosen": [{"role": "assistant", "content": item.chosen}],
        "rejected": [{"role": "assistant", "content": item.rejected}],
    }
    return row if item.margin is None else row | {"margin": item.margin}


def _plain(message: Message) -> dict[str, str]:
    return {"role": message.role, "content": message.content}


def _read(
    parse: Callable[[Row, str], Item],
    paths: Paths,
    encoding: str | None,
    skip_bad: int | None,
    rejects: Rejects | None,
) -> Iterator[Item]:
    rejects = Rejects() if rejects is None else rejects
    rows = read_rows(paths, encoding=encoding, skip_bad=skip_bad, rejects=rejects, columns=COLUMNS)
    return _parsed(parse, rows, rejects)


def _parsed(parse: Callable[[Row, str], Item], rows: Iterable[tuple[str, Row]], rejects: Rejects) -> Iterator[Item]:
    for source, row in rows:
        try:
            item = parse({key: value for key, value in row.items() if value is not None}, source)
        except RowRejected as error:
            rejects.add(source, error.reason, error.sample or keys_seen(row))
        else:
            yield item


def _shape(row: Row) -> str:
    """The kind of row, by its keys; the order settles what several fit."""
    if "chosen" in row and "rejected" in row:
        return "preference pair"
    if isinstance(row.get("label"), bool) or "kto_tag" in row:
        return "thumb (KTO) row"
    if "completions" in row and "labels" in row:
        return "stepwise row"
    if "ground_truth" in row or "reward_model" in row:
        return "reinforcement learning prompt"
    for shape in ("messages", "conversations", "instruction"):
        if shape in row:
            return shape
    for shape in (("prompt", "completion"), ("question", "answer")):
        if shape[0] in row and shape[1] in row:
            return "+".join(shape)
    for key, kind in (("prompt", "prompt without an answer"), ("text", "plain text row")):
        if key in row:
            return kind
    return "unknown shape"


def _chat(row: Row, source: str) -> Chat:
    shape = _shape(row)
    if shape in ("messages", "conversations"):
        messages = _messages(row[shape], shape)
    elif shape == "instruction":
        if "output" not in row:
            raise RowRejected("instruction without an output")
        messages = [*_alpaca_prompt(row), Message("assistant", _string(row, "output"))]
    elif shape == "prompt+completion":
        messages = [*_turns(row["prompt"], "user", "prompt"), *_turns(row["completion"], "assistant", "completion")]
    elif shape == "question+answer":
        messages = [Message("user", _string(row, "question")), Message("assistant", _string(row, "answer"))]
    else:
        raise RowRejected(shape if shape == "unknown shape" else f"{shape}, not a chat")
    messages = [*_system(row), *messages]
    _check_order(messages)
    if messages[-1].role != "assistant":
        raise RowRejected("chat does not end with an assistant message", f"last is {_show(messages[-1])}")
    _check_content(messages)
    return Chat(tuple(messages), source)


def _pair(row: Row, source: str) -> Pair:
    shape = _shape(row)
    if shape != "preference pair":
        raise RowRejected(shape if shape == "unknown shape" else f"{shape}, not a preference pair")
    system = _system(row)
    chosen, rejected = ([*system, *messages] for messages in _both_sides(row))
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        _check_order(messages)
        if messages[-1].role != "assistant":
            raise RowRejected("nothing after the prompt", f"{name} ends with {_show(messages[-1])}")
    prompt, answer, other = chosen[:-1], chosen[-1].content, rejected[-1].content
    if prompt != rejected[:-1]:
        raise RowRejected("chosen and rejected have different prompts", _first_difference(prompt, rejected[:-1]))
    _check_content(prompt)
    for name, text in (("chosen", answer), ("rejected", other)):
        if not text.strip():
            raise RowRejected(f"empty {name} answer", f"{name} is {brief(text)}")
    if answer == other:
        raise RowRejected("chosen and rejected are the same", brief(answer))
    return Pair(tuple(prompt), answer, other, source, _margin(row))


def _both_sides(row: Row) -> list[list[Message]]:
    """The whole conversation, prompt included, that ends with the chosen answer, and that with the rejected one."""
    sides = [(name, row[name]) for name in ("chosen", "rejected")]
    kinds = {kind_of(value) for _, value in sides}
    if len(kinds) > 1:
        raise RowRejected("chosen and rejected are of different types", " and ".join(sorted(kinds)))
    if "prompt" in row:
        prompt = _turns(row["prompt"], "user", "prompt")
    elif "conversations" in row:
        prompt = _messages(row["conversations"], "conversations")
    elif "instruction" in row:
        prompt = _alpaca_prompt(row)
    elif kinds == {"string"}:
        return [_hh_turns(value, name) for name, value in sides]
    elif kinds == {"list"}:
        return [_messages(value, name) for name, value in sides]
    else:
        raise RowRejected("no prompt", keys_seen(row))
    return [_joined(prompt, _turns(value, "assistant", name), name) for name, value in sides]


def _joined(prompt: list[Message], answer: list[Message], name: str) -> list[Message]:
    """`answer` may repeat the prompt it belongs to (UltraFeedback) or begin after it."""
    if not prompt or not answer or answer == prompt:
        raise RowRejected("nothing after the prompt" if prompt else "no prompt", f"{name} has {len(answer)} message(s)")
    if answer[: len(prompt)] == prompt:
        return answer
    if prompt[-1].role == "user" and answer[0].role != "assistant":
        raise RowRejected(f"{name} begins another conversation than the prompt", f"with {_show(answer[0])}")
    return prompt + answer


def _hh_turns(text: str, name: str) -> list[Message]:
    before, *turns = _HH_TURN.split(text)
    if before or not turns:
        raise RowRejected("strings without a prompt", f"{name} is {brief(text)}")
    roles: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
    return [Message(roles[who], said.strip()) for who, said in zip(turns[::2], turns[1::2], strict=True)]


def _alpaca_prompt(row: Row) -> list[Message]:
    """History, then the instruction with its input on a line of its own, as LLaMA-Factory joins them."""
    messages = []
    history = _typed(row.get("history", []), list, "history")
    for turn in history:
        if not isinstance(turn, list) or [type(text) for text in turn] != [str, str]:
            raise RowRejected("wrong field type", f"a turn of history is {brief(turn)}, not [user, assistant]")
        messages += [Message("user", turn[0]), Message("assistant", turn[1])]
    parts = [_string(row, "instruction"), _string(row, "input") if "input" in row else ""]
    return [*messages, Message("user", "\n".join(part for part in parts if part.strip()))]


def _turns(value: Any, role: Role, name: str) -> list[Message]:
    """A string is one message by `role`; an object is one message, a list several."""
    if isinstance(value, str):
        return [Message(role, value)]
    return [_message(value, name)] if isinstance(value, dict) else _messages(value, name)


def _messages(value: Any, name: str) -> list[Message]:
    return [_message(item, name) for item in _typed(value, list, name)]


def _message(value: Any, name: str) -> Message:
    value = _typed(value, dict, f"a message of {name}")
    role_key, content_key = ("from", "value") if value.get("role") is None else ("role", "content")
    if value.get(role_key) is None:
        raise RowRejected("message without a role", keys_seen(value))
    role = _typed(value[role_key], str, role_key)
    if role in TOOL_ROLES:
        raise RowRejected("tool or function messages are not supported", f"role is {role!r}")
    if role not in ROLES:
        raise RowRejected("unknown role", f"{brief(role)}, known are {', '.join(ROLES)}")
    for field in UNREAD_FIELDS:
        if value.get(field):
            raise RowRejected(f"message with {field}, which is not supported", brief(value[field]))
    return Message(ROLES[role], _content(value.get(content_key), content_key))


def _content(value: Any, name: str) -> str:
    if not isinstance(value, list):
        return _typed(value, str, name)
    for part in value:
        if _typed(part, dict, f"a part of {name}").get("type") != "text":
            raise RowRejected("content part that is not text", f"type is {brief(part.get('type'))}")
    return "".join(_typed(part.get("text"), str, "text") for part in value)


def _typed(value: Any, kind: type, name: str) -> Any:
    if not isinstance(value, kind):
        raise RowRejected("wrong field type", f"{name} is {kind_of(value)}, not {kind_of(kind())}: {brief(value)}")
    return value


def _string(row: Row, key: str) -> str:
    return _typed(row[key], str, key)


def _system(row: Row) -> list[Message]:
    """The row's own `system` field; datasets write "" where there is none."""
    text = _string(row, "system") if "system" in row else ""
    return [Message("system", text)] if text.strip() else []


def _margin(row: Row) -> float | None:
    margin = row.get("margin")
    if margin is None:
        return None
    if isinstance(margin, bool) or not isinstance(margin, int | float):
        raise RowRejected("wrong field type", f"margin is {kind_of(margin)}, not number: {brief(margin)}")
    try:
        value = float(margin)
    except OverflowError:  # an integer of 400 digits
        value = math.inf
    if not math.isfinite(value):  # parquet can hold NaN
        raise RowRejected("margin is not a finite number", brief(margin))
    return value


def _check_order(messages: list[Message]) -> None:
    turns = messages[1:] if messages and messages[0].role == "system" else messages
    if not turns:
        raise RowRejected("no user or assistant messages", f"{len(messages)} message(s)")
    for index, message in enumerate(turns):
        expected = "assistant" if index % 2 else "user"
        if message.role != expected:
            place = f"message {index + 1 + len(messages) - len(turns)} is by {message.role}, not {expected}"
            raise RowRejected("roles out of order", place)


def _check_content(messages: list[Message]) -> None:
    for index, message in enumerate(messages):
        if not message.content.strip():
            raise RowRejected("empty message", f"message {index + 1} by {message.role} is {brief(message.content)}")


def _show(message: Message) -> str:
    return f"{message.role}: {message.content[:80]!r}"


def _first_difference(one: list[Message], other: list[Message]) -> str:
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return f"at message {index + 1}: {_show(left)} and {_show(right)}"
    return f"{len(one)} and {len(other)} messages"
