"""What SFT learns from besides conversations: text in parts, some of them trained, and rows that are tokens already.

    segments: [{text, label: true/false}]                axolotl's template-free rows
    input_ids + labels                                   tokens; labels repeat them, -100 where nothing is trained

Segments make a document, <bos> a b c <eos>, each encoded by itself; <eos> is trained where the last segment is. They say
themselves where lines and spaces go, but not where control tokens go: "<s>" written in one stays text, as everywhere.
Tokens are taken as they are, with the control tokens in them, so they must come from the very tokenizer that is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from fledge.text.files import Row, RowRejected, brief
from fledge.text.formats import Chat, chat_of, read_parsed, shape_of
from fledge.text.messages import text_field, typed
from fledge.text.readers import Paths, Rejects
from fledge.text.template import LossOn, Rendered, render_chats
from fledge.text.tokenizer import Tokenizer
from fledge.text.tools import Policy

NOT_TRAINED = -100
"""The label of a token that is not a target, in PyTorch's cross entropy and everybody's data."""


class Segments(msgspec.Struct, frozen=True):
    """Parts of a document, (text, trained) each; at least one is trained."""

    parts: tuple[tuple[str, bool], ...]
    source: str


class Tokens(msgspec.Struct, frozen=True):
    """A row in token ids, with its own control tokens; weights are 0 or 1."""

    tokens: tuple[int, ...]
    weights: tuple[int, ...]
    source: str


Trainable = Chat | Segments | Tokens


def read_trainable(
    paths: Paths,
    *,
    encoding: str | None = None,
    skip_bad: int | None = None,
    rejects: Rejects | None = None,
    tools: Policy = "reject",
) -> Iterator[Trainable]:
    """Stream chats, template-free rows and rows of tokens; what cannot be used is counted in `rejects`.

    Raises as `readers.read_documents` does.
    """
    return read_parsed(_trainable, paths, encoding, skip_bad, rejects, tools)


def render_trainable(tokenizer: Tokenizer, items: Sequence[Trainable], loss_on: LossOn = "answers") -> list[Rendered]:
    """Each item in tokens with the trained ones marked, in order; chats are encoded in bulk.

    loss_on: what of a chat is trained; other rows say so themselves. Raises ValueError naming the row whose tokens the tokenizer does not have.
    """
    chats = iter(render_chats(tokenizer, [item for item in items if isinstance(item, Chat)], loss_on))
    return [
        next(chats) if isinstance(item, Chat)
        else _document(tokenizer, item) if isinstance(item, Segments)
        else _checked(tokenizer, item)
        for item in items
    ]  # fmt: skip


def _document(tokenizer: Tokenizer, item: Segments) -> Rendered:
    tokens, weights = [tokenizer.bos], [0]
    for (_, trained), ids in zip(item.parts, tokenizer.encode_batch([text for text, _ in item.parts]), strict=True):
        tokens += ids
        weights += [int(trained)] * len(ids)
    return Rendered([*tokens, tokenizer.eos], [*weights, int(item.parts[-1][1])])


def _checked(tokenizer: Tokenizer, item: Tokens) -> Rendered:
    if max(item.tokens) >= tokenizer.vocab_size:
        raise ValueError(
            f"{item.source}: token {max(item.tokens)}, but the tokenizer has {tokenizer.vocab_size:,} (ids from 0): these "
            "rows were made with another tokenizer; give the text, or import the model they were made for"
        )
    return Rendered(list(item.tokens), list(item.weights))


def _trainable(row: Row, source: str) -> Trainable:
    shape = shape_of(row)
    if shape == "template-free row":
        return Segments(_parts(row), source)
    return Tokens(*_labelled(row), source) if shape == "row of tokens" else chat_of(row, source)


def _parts(row: Row) -> tuple[tuple[str, bool], ...]:
    parts = []
    for part in typed(row["segments"], list, "segments"):
        part = typed(part, dict, "a segment")
        if "label" not in part or "text" not in part:
            raise RowRejected("segment without text or label", brief(part))
        parts.append((text_field(part, "text"), typed(part["label"], bool, "label")))
    parts = [(text, trained) for text, trained in parts if text]
    if not any(trained for _, trained in parts):
        raise RowRejected("no segment to train on", f"{len(parts)} segment(s) with text")
    return tuple(parts)


def _labelled(row: Row) -> tuple[tuple[int, ...], tuple[int, ...]]:
    tokens, labels = (typed(row.get(name), list, name) for name in ("input_ids", "labels"))
    for name, ids in (("input_ids", tokens), ("labels", labels)):
        if any(type(i) is not int for i in ids):
            raise RowRejected("wrong field type", f"{name} holds {brief(ids)}, not whole numbers")
    if len(tokens) != len(labels):
        raise RowRejected("input_ids and labels of different lengths", f"{len(tokens)} and {len(labels)}")
    attended = typed(row.get("attention_mask", [1] * len(tokens)), list, "attention_mask")
    if len(attended) != len(tokens):
        raise RowRejected("input_ids and attention_mask of different lengths", f"{len(tokens)} and {len(attended)}")
    kept = [(t, label) for t, label, seen in zip(tokens, labels, attended, strict=True) if seen]  # the rest is padding
    wrong = [(t, label) for t, label in kept if t < 0 or label not in (t, NOT_TRAINED)]
    if wrong:
        raise RowRejected(f"a label that is neither its token nor {NOT_TRAINED}", f"token and label {wrong[0]}")
    if all(label == NOT_TRAINED for _, label in kept[1:]):  # the first token is never predicted
        raise RowRejected("no token to train on", f"{len(kept)} token(s)")
    return tuple(t for t, _ in kept), tuple(int(label != NOT_TRAINED) for _, label in kept)
