"""Prompts to practise on, with the answers that count as right, whatever shape the row came in.

    prompt                                     text or messages
    messages, conversations                    the last answer, where there is one, is a dummy and left out (minimind)
    instruction (+ input, history), question   alpaca's and gsm8k's

Accepted answers: `answer`, `answers`, `ground_truth` (open-instruct) or `reward_model.ground_truth` (verl), each text, a
number or a list of them. Every other column is `meta`: which reward to use, how hard it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from fledge.text.files import Row, RowRejected, brief
from fledge.text.formats import alpaca_prompt
from fledge.text.messages import Message, check_content, check_order, read_messages, read_turns, text_field, typed
from fledge.text.readers import Paths, Rejects, keys_seen, kind_of, read_rows
from fledge.text.tools import Policy, without_tools

ANSWER_KEYS = ("answer", "answers", "ground_truth")
_HOLDERS = {
    "prompt": ("prompt",),
    "messages": ("messages",),
    "conversations": ("conversations",),
    "instruction": ("instruction", "input", "history"),
    "question": ("question",),
}


class Prompt(msgspec.Struct, frozen=True):
    """Messages that end with a user message, and the answers that are right; `meta` is the row's other columns."""

    messages: tuple[Message, ...]
    answers: tuple[str, ...]
    source: str
    meta: dict[str, Any] = {}


def read_prompts(
    paths: Paths,
    *,
    encoding: str | None = None,
    skip_bad: int | None = None,
    rejects: Rejects | None = None,
    tools: Policy = "reject",
) -> Iterator[Prompt]:
    """Stream the prompts of files, folders and rows in memory; rows that cannot be used are counted in `rejects`.

    Raises as `readers.read_documents` does.
    """
    rejects = Rejects() if rejects is None else rejects
    # no columns named: a table gives all of them, for any may be wanted in meta
    rows = read_rows(paths, encoding=encoding, skip_bad=skip_bad, rejects=rejects, columns=frozenset())
    return _prompts(rows, rejects, tools)


def _prompts(rows: Iterator[tuple[str, Row]], rejects: Rejects, tools: Policy) -> Iterator[Prompt]:
    for source, row in rows:
        try:
            held = {key: value for key, value in row.items() if value is not None}
            prompt = prompt_of(without_tools(held, tools), source)
        except RowRejected as error:
            rejects.add(source, error.reason, error.sample or keys_seen(row))
        else:
            yield prompt


def prompt_of(row: Row, source: str) -> Prompt:
    """The prompt of a row without nulls. Raises RowRejected where there is none that can be used."""
    holder = next((name for name in _HOLDERS if name in row), None)
    if holder is None:
        raise RowRejected("no `prompt` field")
    if holder == "prompt":
        messages = read_turns(row["prompt"], "user", "prompt")
    elif holder == "instruction":
        messages = alpaca_prompt(row)
    elif holder == "question":
        messages = [Message("user", text_field(row, "question"))]
        if "\n####" in str(row.get("answer", "")):  # all of it would count as the answer, and nothing ever equal it
            raise RowRejected("answer with its working (gsm8k): use the task gsm8k, or keep what follows ####")
    else:
        messages = read_messages(row[holder], holder)
        messages = messages[:-1] if messages and messages[-1].role == "assistant" else messages
    if "system" in row and text_field(row, "system").strip():
        messages = [*read_turns(row["system"], "system", "system"), *messages]
    check_order(messages)
    check_content(messages)
    if messages[-1].role != "user":
        raise RowRejected("prompt does not end with a user message", f"last is by {messages[-1].role}")
    used = {*_HOLDERS[holder], "system", "reward_model", *ANSWER_KEYS}
    return Prompt(tuple(messages), _answers(row), source, {k: v for k, v in row.items() if k not in used})


def _answers(row: Row) -> tuple[str, ...]:
    held = [(key, row[key]) for key in ANSWER_KEYS if key in row]
    if "reward_model" in row:
        truth = typed(row["reward_model"], dict, "reward_model").get("ground_truth")
        held += [] if truth is None else [("reward_model.ground_truth", truth)]
    found: list[str] = []
    for key, value in held:
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, bool) or not isinstance(one, str | int | float):
                raise RowRejected("an answer is neither text nor a number", f"{key} is {kind_of(one)}: {brief(one)}")
            if not str(one).strip():
                raise RowRejected("empty answer", f"{key} is {brief(value)}")
            found.append(str(one))
    return tuple(dict.fromkeys(found))
