"""Rows of any accepted shape as rows of another.

    messages            {messages}; votes also kto_tag; pairs {chosen, rejected}, each the whole conversation
    sharegpt            {conversations: [{from, value}]}; votes also kto_tag; pairs also chosen, rejected
    alpaca              {instruction, input, output, system?, history?}; votes also kto_tag; pairs chosen, rejected
    prompt-completion   {prompt, completion}; votes also label; pairs {prompt, chosen, rejected}
    dpo                 {prompt, chosen, rejected, margin?}: pairs
    pairs               the same with ties, {..., tie: true}: what `fledge reward` reads
    kto                 {prompt, completion, label}: votes; a pair gives two
    prompts             {prompt, answer | answers, ...}: the prompt of anything; columns that no shape knows are kept
    text                {text}: documents

The first four change the words, not what is said: a chat stays a chat, a vote a vote, a pair a pair. The others are of
one kind, and what is of another is rejected. take="liked" makes chats of the answers that people liked.
A row that cannot be held is counted with its reason; what a row loses although it is held is counted as `left_out`.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from fledge.text.files import Row, RowRejected, brief
from fledge.text.formats import (
    COLUMNS,
    Chat,
    Pair,
    Thumb,
    chat_of,
    pair_of,
    shape_of,
    thumbs_of,
    to_row,
    usual_row,
)
from fledge.text.given import given_name
from fledge.text.messages import ROLES, Message, typed
from fledge.text.prompt_rows import Prompt, prompt_of
from fledge.text.readers import BLANK, Paths, Rejects, keys_seen, read_documents, read_rows, require_some
from fledge.text.stepwise import steps_of
from fledge.text.tools import Policy
from fledge.text.writing import write_rows

Target = Literal["messages", "sharegpt", "alpaca", "prompt-completion", "dpo", "pairs", "kto", "prompts", "text"]
Take = Literal["all", "liked"]
Item = Chat | Pair | Thumb | Prompt

ANY_KIND = ("messages", "sharegpt", "alpaca", "prompt-completion")
_PAIRS = ("preference pair", "arena battle")
_SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt"}


class Converted(msgspec.Struct, frozen=True):
    """What a conversion did. `left_out` counts what rows lost, `rejects` the rows that could not be held."""

    rows: int
    left_out: dict[str, int]
    rejects: dict[str, Any]


def convert(
    source: Paths,
    to: Target,
    out: Path | str,
    *,
    take: Take = "all",
    tools: Policy = "reject",
    rename: dict[str, str] | None = None,
    encoding: str | None = None,
    skip_bad: int | None = None,
    rejects: Rejects | None = None,
) -> Converted:
    """Write the rows of `source` to the file `out` in the shape `to`; its name says which kind of file.

    source: files, folders, a `datasets` object or a list of dicts. rename: {their column: ours}, before the shape is
    told. Raises ValueError where no row could be held, where `out` is one of the files that are read, and as
    `readers.read_documents` and `writing.write_rows` do; `out` is then as it was.
    """
    out, left_out, count = Path(out), Counter(), 0
    rejects = Rejects() if rejects is None else rejects
    source = source if given_name(source) or isinstance(source, str | os.PathLike) else list(source)
    _require_apart(source, out)
    rows = converted_rows(
        source, to, take=take, tools=tools, rename=rename, encoding=encoding, skip_bad=skip_bad, rejects=rejects,
        left_out=left_out,
    )  # fmt: skip

    def counted() -> Iterator[Row]:
        nonlocal count
        for row in rows:
            count += 1
            yield row
        require_some(count, source, rejects, "rows")  # before the file takes the place of another

    write_rows(out, counted())
    return Converted(count, dict((+left_out).most_common()), rejects.as_dict())


def converted_rows(
    source: Paths,
    to: Target,
    *,
    take: Take = "all",
    tools: Policy = "reject",
    rename: dict[str, str] | None = None,
    encoding: str | None = None,
    skip_bad: int | None = None,
    rejects: Rejects | None = None,
    left_out: Counter | None = None,
) -> Iterator[Row]:
    """The rows of `convert`, streamed. Raises ValueError at the call for a shape or policy that is not known."""
    for name, value, known in (("to", to, Target), ("take", take, Take), ("tools", tools, Policy)):
        if value not in get_args(known):
            raise ValueError(f"{name} = {value!r}: must be one of {', '.join(get_args(known))}")
    if take == "liked" and to not in ANY_KIND:
        raise ValueError(f"take = 'liked' makes conversations, to = {to!r}: must be one of {', '.join(ANY_KIND)}")
    rejects = Rejects() if rejects is None else rejects
    left_out = Counter() if left_out is None else left_out
    rename = rename or {}
    if to == "text" and not rename:  # plain text files too
        found = read_documents(source, encoding=encoding, skip_bad=skip_bad, rejects=rejects)
        return ({"text": document.text} for document in found)
    columns = frozenset() if to == "prompts" else COLUMNS | rename.keys()
    rows = read_rows(source, encoding=encoding, skip_bad=skip_bad, rejects=rejects, columns=columns)
    if to == "text":
        return _texts(rows, rename, rejects)
    return _converted(rows, to, take, tools, rename, rejects, left_out)


def _texts(rows: Iterator[tuple[str, Row]], rename: dict[str, str], rejects: Rejects) -> Iterator[Row]:
    for source, row in rows:
        try:
            text = typed(_renamed(row, rename).get("text", ""), str, "text")
        except RowRejected as error:
            rejects.add(source, error.reason, error.sample)
            continue
        if text.strip():
            yield {"text": text}
        else:
            rejects.add(source, BLANK, keys_seen(row))


def _converted(
    rows: Iterator[tuple[str, Row]],
    to: Target,
    take: Take,
    tools: Policy,
    rename: dict[str, str],
    rejects: Rejects,
    left_out: Counter,
) -> Iterator[Row]:
    write = _WRITERS[to]
    for source, row in rows:
        lost: Counter[str] = Counter()  # told only if the row is held
        try:
            held = usual_row(_renamed(row, rename), tools)
            items = _items(held, source, to, lost)
            written = [made for item in _taken(items, take, lost) for made in write(item, lost)]
        except RowRejected as error:
            rejects.add(source, error.reason, error.sample or keys_seen(row))
        else:
            left_out.update(lost)
            yield from written


def _renamed(row: Row, rename: dict[str, str]) -> Row:
    for theirs, ours in rename.items():
        if row.get(theirs) is not None and row.get(ours) is not None and theirs != ours:
            raise RowRejected(f"both {theirs} and {ours}, which {theirs} was to be renamed to")
    return {rename.get(key, key): value for key, value in row.items() if value is not None}


def _items(row: Row, source: str, to: Target, lost: Counter) -> list[Item]:
    """What the row says; a pair where votes are wanted is two votes."""
    shape = shape_of(row)
    if shape == "stepwise row":
        lost["judgements of single steps"] += 1
        return [steps_of(row, source).whole()]
    if shape in _PAIRS:
        pair = pair_of(row, source)
        if to != "kto":
            return [pair]
        lost["margins"] += pair.margin is not None
        return list(thumbs_of(row, source))
    if shape == "thumb (KTO) row":
        return list(thumbs_of(row, source))
    if to == "prompts":
        prompt = prompt_of(row, source)
        lost["answers of models"] += _has_answer(row)
        return [msgspec.structs.replace(prompt, meta=_unknown(prompt.meta))]
    if shape in ("reinforcement learning prompt", "prompt without an answer", "answers without a vote"):
        raise RowRejected(f"{shape}: only `--to prompts` holds it")
    if shape in ("template-free row", "row of tokens"):
        raise RowRejected(f"{shape}, which says nothing of who speaks: `fledge sft` reads it as it is")
    return [chat_of(row, source)]


def _has_answer(row: Row) -> bool:
    """Whether the row of a prompt also holds what a model answered."""
    talk = row.get("messages") or row.get("conversations")
    if isinstance(talk, list) and talk:
        return ROLES.get(str(talk[-1].get("role") or talk[-1].get("from"))) == "assistant"
    return any(name in row for name in ("completion", "completions", "output"))


def _unknown(row: Row) -> Row:
    """The columns that no shape gives a meaning to: they may matter to a reward."""
    return {key: value for key, value in row.items() if key not in COLUMNS}


def _taken(items: Sequence[Item], take: Take, lost: Counter) -> Sequence[Item]:
    if take == "all":
        return items
    chats: list[Item] = []
    for item in items:
        if isinstance(item, Pair) and not item.tie:
            lost["rejected answers"] += 1
            chats.append(_as_chat(item.prompt, item.chosen, item.source))
        elif isinstance(item, Thumb) and item.liked:
            lost["votes"] += 1
            chats.append(_as_chat(item.prompt, item.answer, item.source))
        elif isinstance(item, Pair):
            raise RowRejected("tie: no answer is the better one", brief(item.chosen))
        elif isinstance(item, Thumb):
            raise RowRejected("answer that was not liked", brief(item.answer))
        else:
            chats.append(item)
    return chats


def _as_chat(prompt: tuple[Message, ...], answer: str, source: str) -> Chat:
    return Chat((*prompt, Message("assistant", answer)), source)


def _no_tie(item: Item) -> None:
    if isinstance(item, Pair) and item.tie:
        raise RowRejected("tie: only `--to pairs` holds it", brief(item.chosen))


def _margin(item: Pair) -> Row:
    return {} if item.margin is None else {"margin": item.margin}


def _plain(messages: Sequence[Message]) -> list[Row]:
    return [{"role": m.role, "content": m.content} for m in messages]


def _turns(item: Chat | Thumb) -> tuple[Message, ...]:
    return item.messages if isinstance(item, Chat) else _as_chat(item.prompt, item.answer, "").messages


def _vote(item: Chat | Thumb) -> Row:
    return {"kto_tag": item.liked} if isinstance(item, Thumb) else {}


def _to_messages(item: Item, lost: Counter) -> list[Row]:
    _no_tie(item)
    if isinstance(item, Pair):
        sides = {"chosen": item.chosen, "rejected": item.rejected}
        whole = {name: _plain(_as_chat(item.prompt, text, "").messages) for name, text in sides.items()}
        return [{**whole, **_margin(item)}]
    return [{"messages": _plain(_turns(item)), **_vote(item)}]


def _to_sharegpt(item: Item, lost: Counter) -> list[Row]:
    _no_tie(item)
    if isinstance(item, Pair):
        sides = {"chosen": item.chosen, "rejected": item.rejected}
        answers = {name: {"from": "gpt", "value": text} for name, text in sides.items()}
        return [{"conversations": _sharegpt(item.prompt), **answers, **_margin(item)}]
    return [{"conversations": _sharegpt(_turns(item)), **_vote(item)}]


def _sharegpt(messages: Sequence[Message]) -> list[Row]:
    return [{"from": _SHAREGPT[m.role], "value": m.content} for m in messages]


def _to_alpaca(item: Item, lost: Counter) -> list[Row]:
    _no_tie(item)
    turns = list(item.prompt if isinstance(item, Pair) else _turns(item)[:-1])
    system = {"system": turns.pop(0).content} if turns[0].role == "system" else {}
    earlier = [[turns[i].content, turns[i + 1].content] for i in range(0, len(turns) - 1, 2)]
    row = {"instruction": turns[-1].content, "input": ""}
    if isinstance(item, Pair):
        row |= {"chosen": item.chosen, "rejected": item.rejected, **_margin(item)}
    else:
        row |= {"output": _turns(item)[-1].content, **_vote(item)}
    return [row | system | ({"history": earlier} if earlier else {})]


def _to_prompt_completion(item: Item, lost: Counter) -> list[Row]:
    _no_tie(item)
    if isinstance(item, Chat):
        return [{"prompt": _plain(item.messages[:-1]), "completion": _plain(item.messages[-1:])}]
    return [to_row(item)]


def _to_dpo(item: Item, lost: Counter) -> list[Row]:
    _no_tie(item)
    return _to_pairs(item, lost)


def _to_pairs(item: Item, lost: Counter) -> list[Row]:
    if not isinstance(item, Pair):
        raise RowRejected("one answer, not two to choose from", _kind(item))
    return [to_row(item)]


def _to_kto(item: Item, lost: Counter) -> list[Row]:
    if not isinstance(item, Thumb):
        raise RowRejected("answer without a vote", _kind(item))
    return [to_row(item)]


def _kind(item: Item) -> str:
    return {Chat: "a chat", Thumb: "a vote", Pair: "a pair", Prompt: "a prompt"}[type(item)]


def _to_prompts(item: Item, lost: Counter) -> list[Row]:
    if isinstance(item, Prompt):
        right = item.answers
        known = {"answer": right[0]} if len(right) == 1 else {"answers": list(right)} if right else {}
        return [{"prompt": _plain(item.messages), **known, **item.meta}]
    lost["answers of models"] += 1
    return [{"prompt": _plain(item.prompt)}]


_WRITERS: dict[str, Callable[[Any, Counter], list[Row]]] = {
    "messages": _to_messages, "sharegpt": _to_sharegpt, "alpaca": _to_alpaca,
    "prompt-completion": _to_prompt_completion, "dpo": _to_dpo, "pairs": _to_pairs, "kto": _to_kto, "prompts": _to_prompts,
}  # fmt: skip


def _require_apart(source: Paths, out: Path) -> None:
    """The file that is written must not be read: below a folder it would be a row of itself the next time."""
    if given_name(source):
        return
    here = out.resolve()
    for path in [source] if isinstance(source, str | os.PathLike) else source:
        read = Path(path).resolve()
        if here == read or (read.is_dir() and read in here.parents):
            raise ValueError(f"out = {out}: is read itself, as {path}; write to another file outside of it")
