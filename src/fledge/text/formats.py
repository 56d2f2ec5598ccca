"""Chats, preference pairs and single votes, whatever shape the row came in.

The shape is told by the keys of each row, in this order (null counts as absent); the first that fits decides:

    chosen + rejected                   a pair: with `prompt`, with `conversations`, alpaca, implicit, or hh dialogues;
                                        `tie` (true/false) says that neither is better
    conversation_a + conversation_b     a pair: `winner` is model_a, model_b, tie or "tie (bothbad)" (Chatbot Arena)
    label (true/false) or kto_tag       a vote: any of the chats below, and whether its last answer was liked
    completions + labels                a stepwise row: see `stepwise.py`, rejected here
    ground_truth or reward_model        a prompt to practise on: see `prompt_rows.py`, rejected here
    messages                            a chat: [{role, content}]
    conversations                       a chat: [{from, value}] (sharegpt) or [{role, content}]
    instruction                         a chat: instruction, input?, output, history? [[user, assistant]] (alpaca)
    prompt + completion                 a chat: strings or message lists
    question + answer                   a chat: strings (gsm8k)
    segments; input_ids                 template-free rows and tokens: see `segments.py`, rejected here

Votes in the logs of FastChat and of open-instruct's human_eval are read as such: see `dialects.py`.
Any of them may have a `system` string. A message's content is a string or a list of {type: "text", text}; what a tool
was asked and said is rejected, or with tools="text" written out: see `tools.py`.
A pair serves as two votes, its chosen answer liked and its rejected one disliked; a tie as none.
A row that breaks a rule is dropped and counted with its reason; text itself is never repaired or trimmed, save that
hh dialogues ("\\n\\nHuman: ...\\n\\nAssistant: ...") lose the spaces around each turn, which belong to their markup.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import TypeVar

import msgspec

from fledge.text.dialects import COLUMNS as LOG_COLUMNS
from fledge.text.dialects import plain_row
from fledge.text.files import Row, RowRejected, brief
from fledge.text.messages import (
    Message,
    Role,
    check_content,
    check_order,
    read_messages,
    read_turns,
    show,
    text_field,
    typed,
)
from fledge.text.readers import Paths, Rejects, keys_seen, kind_of, read_rows
from fledge.text.tools import Policy, without_tools

Item = TypeVar("Item")

_COLUMN_NAMES = (
    "chosen rejected margin tie conversation_a conversation_b winner label kto_tag completions labels ground_truth "
    "reward_model messages conversations instruction input output history system prompt completion question answer text "
    "tools segments input_ids attention_mask"
)
COLUMNS = frozenset(_COLUMN_NAMES.split()) | LOG_COLUMNS

_OTHER_SHAPES = (
    ("segments", "template-free row"),
    ("input_ids", "row of tokens"),
    ("completions", "answers without a vote"),
    ("prompt", "prompt without an answer"),
    ("text", "plain text row"),
)

_HH_TURN = re.compile(r"\n\n(Human|Assistant):")


class Chat(msgspec.Struct, frozen=True):
    """Messages that alternate user, assistant after an optional system message, and end with assistant."""

    messages: tuple[Message, ...]
    source: str


class Pair(msgspec.Struct, frozen=True):
    """Two different answers to one prompt, which ends with a user message.

    `margin` is how much better chosen is; under `tie` neither is, and a margin says nothing.
    """

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    source: str
    margin: float | None = None
    tie: bool = False


class Thumb(msgspec.Struct, frozen=True):
    """One answer to a prompt, which ends with a user message, and whether it was liked."""

    prompt: tuple[Message, ...]
    answer: str
    liked: bool
    source: str


def read_chats(
    paths: Paths,
    *,
    encoding: str | None = None,
    skip_bad: int | None = None,
    rejects: Rejects | None = None,
    tools: Policy = "reject",
) -> Iterator[Chat]:
    """Stream the chats of .jsonl, .json, .parquet and .arrow files (also packed), of folders and of rows in memory.

    Rows that cannot be used are dropped and counted in `rejects`. Raises as `readers.read_documents` does.
    """
    return read_parsed(chat_of, paths, encoding, skip_bad, rejects, tools)


def read_pairs(
    paths: Paths,
    *,
    encoding: str | None = None,
    skip_bad: int | None = None,
    rejects: Rejects | None = None,
    tools: Policy = "reject",
) -> Iterator[Pair]:
    """Stream the preference pairs of files, folders and rows in memory, as `read_chats` does.

    Rows that cannot be used are dropped and counted in `rejects`. Raises as `readers.read_documents` does.
    """
    return read_parsed(pair_of, paths, encoding, skip_bad, rejects, tools)


def read_thumbs(
    paths: Paths,
    *,
    encoding: str | None = None,
    skip_bad: int | None = None,
    rejects: Rejects | None = None,
    tools: Policy = "reject",
) -> Iterator[Thumb]:
    """Stream the single votes of files, folders and rows in memory, as `read_chats` does; a pair gives two.

    Rows that cannot be used, ties among them, are dropped and counted in `rejects`. Raises as `readers.read_documents`.
    """
    return chain.from_iterable(read_parsed(thumbs_of, paths, encoding, skip_bad, rejects, tools))


def to_row(item: Chat | Pair | Thumb) -> Row:
    """The conversational shape that TRL and others read.

    {messages}, {prompt, chosen, rejected, margin?, tie?} (`tie` is ours: drop such rows for others) or
    {prompt, completion, label}.
    """
    if isinstance(item, Chat):
        return {"messages": [_plain(message) for message in item.messages]}
    prompt = [_plain(message) for message in item.prompt]
    if isinstance(item, Thumb):
        return {"prompt": prompt, "completion": _answer_row(item.answer), "label": item.liked}
    row: Row = {"prompt": prompt, "chosen": _answer_row(item.chosen), "rejected": _answer_row(item.rejected)}
    extra = {"margin": item.margin, "tie": item.tie or None}
    return row | {key: value for key, value in extra.items() if value is not None}


def _answer_row(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _plain(message: Message) -> dict[str, str]:
    return {"role": message.role, "content": message.content}


def read_parsed(
    parse: Callable[[Row, str], Item],
    paths: Paths,
    encoding: str | None,
    skip_bad: int | None,
    rejects: Rejects | None,
    tools: Policy,
) -> Iterator[Item]:
    """Stream what `parse` makes of each row, nulls left out; those it raises RowRejected for are counted."""
    rejects = Rejects() if rejects is None else rejects
    rows = read_rows(paths, encoding=encoding, skip_bad=skip_bad, rejects=rejects, columns=COLUMNS)
    return _parsed(parse, rows, rejects, tools)


def _parsed(
    parse: Callable[[Row, str], Item], rows: Iterable[tuple[str, Row]], rejects: Rejects, tools: Policy
) -> Iterator[Item]:
    for source, row in rows:
        try:
            item = parse(usual_row(row, tools), source)
        except RowRejected as error:
            rejects.add(source, error.reason, error.sample or keys_seen(row))
        else:
            yield item


def usual_row(row: Row, tools: Policy) -> Row:
    """`row` without nulls, logs of other projects and tools turned into what is read here. Raises RowRejected."""
    return without_tools(plain_row({key: value for key, value in row.items() if value is not None}), tools)


def shape_of(row: Row) -> str:
    """The kind of a row without nulls, by its keys; the order settles what several fit."""
    if "chosen" in row and "rejected" in row:
        return "preference pair"
    if "conversation_a" in row and "conversation_b" in row:
        return "arena battle"
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
    for key, kind in _OTHER_SHAPES:
        if key in row:
            return kind
    return "unknown shape"


def chat_of(row: Row, source: str) -> Chat:
    shape = shape_of(row)
    if shape in ("messages", "conversations"):
        messages = read_messages(row[shape], shape)
    elif shape == "instruction":
        if "output" not in row:
            raise RowRejected("instruction without an output")
        messages = [*alpaca_prompt(row), Message("assistant", text_field(row, "output"))]
    elif shape == "prompt+completion":
        messages = [
            *read_turns(row["prompt"], "user", "prompt"),
            *read_turns(row["completion"], "assistant", "completion"),
        ]
    elif shape == "question+answer":
        messages = [Message("user", text_field(row, "question")), Message("assistant", text_field(row, "answer"))]
    else:
        raise RowRejected(shape if shape == "unknown shape" else f"{shape}, not a chat")
    messages = [*system_of(row), *messages]
    check_order(messages)
    if messages[-1].role != "assistant":
        raise RowRejected("chat does not end with an assistant message", f"last is {show(messages[-1])}")
    check_content(messages)
    return Chat(tuple(messages), source)


def pair_of(row: Row, source: str) -> Pair:
    shape = shape_of(row)
    if shape not in ("preference pair", "arena battle"):
        raise RowRejected(shape if shape == "unknown shape" else f"{shape}, not a preference pair")
    system = system_of(row)
    sides, tie = _arena_sides(row) if shape == "arena battle" else (_both_sides(row), _tie(row))
    chosen, rejected = ([*system, *messages] for messages in sides)
    for name, messages in (("chosen", chosen), ("rejected", rejected)):
        check_order(messages)
        if messages[-1].role != "assistant":
            raise RowRejected("nothing after the prompt", f"{name} ends with {show(messages[-1])}")
    prompt, answer, other = chosen[:-1], chosen[-1].content, rejected[-1].content
    if prompt != rejected[:-1]:
        raise RowRejected("chosen and rejected have different prompts", _first_difference(prompt, rejected[:-1]))
    check_content(prompt)
    for name, text in (("chosen", answer), ("rejected", other)):
        if not text.strip():
            raise RowRejected(f"empty {name} answer", f"{name} is {brief(text)}")
    if answer == other:
        raise RowRejected("chosen and rejected are the same", brief(answer))
    return Pair(tuple(prompt), answer, other, source, _margin(row), tie)


def _arena_sides(row: Row) -> tuple[list[list[Message]], bool]:
    """The winner's conversation first, and whether neither won."""
    winner = text_field(row, "winner") if "winner" in row else None
    if winner not in ("model_a", "model_b", "tie", "tie (bothbad)"):
        raise RowRejected("winner is not model_a, model_b, tie or tie (bothbad)", f"winner is {brief(winner)}")
    names = ("conversation_b", "conversation_a") if winner == "model_b" else ("conversation_a", "conversation_b")
    return [read_messages(row[name], name) for name in names], winner.startswith("tie")


def _tie(row: Row) -> bool:
    return typed(row.get("tie", False), bool, "tie")


def thumbs_of(row: Row, source: str) -> list[Thumb]:
    """The votes of one row: one, or two where it is a pair."""
    shape = shape_of(row)
    if shape in ("preference pair", "arena battle"):
        pair = pair_of(row, source)
        if pair.tie:
            raise RowRejected("tie: it says of neither answer whether it was liked", brief(pair.chosen))
        return [
            Thumb(pair.prompt, text, liked, source) for text, liked in ((pair.chosen, True), (pair.rejected, False))
        ]
    if shape != "thumb (KTO) row":
        raise RowRejected(shape if shape == "unknown shape" else f"{shape} without a vote (label or kto_tag)")
    votes = {typed(row[key], bool, key) for key in ("label", "kto_tag") if key in row}
    if len(votes) > 1:
        raise RowRejected("label and kto_tag disagree", f"label is {row['label']}, kto_tag is {row['kto_tag']}")
    chat = chat_of({key: value for key, value in row.items() if key not in ("label", "kto_tag")}, source)
    return [Thumb(chat.messages[:-1], chat.messages[-1].content, votes.pop(), source)]


def _both_sides(row: Row) -> list[list[Message]]:
    """The whole conversation, prompt included, that ends with the chosen answer, and that with the rejected one."""
    sides = [(name, row[name]) for name in ("chosen", "rejected")]
    kinds = {kind_of(value) for _, value in sides}
    if len(kinds) > 1:
        raise RowRejected("chosen and rejected are of different types", " and ".join(sorted(kinds)))
    if "prompt" in row:
        prompt = read_turns(row["prompt"], "user", "prompt")
    elif "conversations" in row:
        prompt = read_messages(row["conversations"], "conversations")
    elif "instruction" in row:
        prompt = alpaca_prompt(row)
    elif kinds == {"string"}:
        return [_hh_turns(value, name) for name, value in sides]
    elif kinds == {"list"}:
        return [read_messages(value, name) for name, value in sides]
    else:
        raise RowRejected("no prompt", keys_seen(row))
    return [_joined(prompt, read_turns(value, "assistant", name), name) for name, value in sides]


def _joined(prompt: list[Message], answer: list[Message], name: str) -> list[Message]:
    """`answer` may repeat the prompt it belongs to (UltraFeedback) or begin after it."""
    if not prompt or not answer or answer == prompt:
        raise RowRejected("nothing after the prompt" if prompt else "no prompt", f"{name} has {len(answer)} message(s)")
    if answer[: len(prompt)] == prompt:
        return answer
    if prompt[-1].role == "user" and answer[0].role != "assistant":
        raise RowRejected(f"{name} begins another conversation than the prompt", f"with {show(answer[0])}")
    return prompt + answer


def _hh_turns(text: str, name: str) -> list[Message]:
    before, *turns = _HH_TURN.split(text)
    if before or not turns:
        raise RowRejected("strings without a prompt", f"{name} is {brief(text)}")
    roles: dict[str, Role] = {"Human": "user", "Assistant": "assistant"}
    return [Message(roles[who], said.strip()) for who, said in zip(turns[::2], turns[1::2], strict=True)]


def alpaca_prompt(row: Row) -> list[Message]:
    """History, then the instruction with its input on a line of its own, as LLaMA-Factory joins them."""
    messages = []
    history = typed(row.get("history", []), list, "history")
    for turn in history:
        if not isinstance(turn, list) or [type(text) for text in turn] != [str, str]:
            raise RowRejected("wrong field type", f"a turn of history is {brief(turn)}, not [user, assistant]")
        messages += [Message("user", turn[0]), Message("assistant", turn[1])]
    parts = [text_field(row, "instruction"), text_field(row, "input") if "input" in row else ""]
    return [*messages, Message("user", "\n".join(part for part in parts if part.strip()))]


def system_of(row: Row) -> list[Message]:
    """The row's own `system` field; datasets write "" where there is none."""
    text = text_field(row, "system") if "system" in row else ""
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


def _first_difference(one: list[Message], other: list[Message]) -> str:
    for index, (left, right) in enumerate(zip(one, other, strict=False)):
        if left != right:
            return f"at message {index + 1}: {show(left)} and {show(right)}"
    return f"{len(one)} and {len(other)} messages"
