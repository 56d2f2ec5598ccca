"""What the probes share: logits in float32, tokens as people read them, and contexts in exact token ids.

Shapes: B rows, T positions, N positions looked at, V vocabulary, D width.
"""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

import msgspec
import torch
from torch import Tensor
from torch.nn import functional

from fledge.core.model import Transformer
from fledge.text.messages import Message
from fledge.text.template import fit_prompt
from fledge.text.tokenizer import StreamDecoder, Tokenizer

Context = Literal["chat", "plain"]


class Opened(Protocol):
    """An opened model, as `stages.common.open_model` gives it."""

    @property
    def model(self) -> Transformer: ...
    @property
    def tokenizer(self) -> Tokenizer: ...
    @property
    def path(self) -> Path: ...


class Likely(msgspec.Struct):
    """One token of a distribution."""

    id: int
    text: str
    "For people: control tokens by name, bytes that are no whole character as \\xe4."
    p: float
    partial: bool
    "The token alone is not whole characters of UTF-8."
    control: bool


def in_float32(model: Transformer) -> Transformer:
    """The same weights, computing in float32: bfloat16 keeps 8 bits of a logit, and ranks would tie by rounding.

    The model itself stays as it is, so whoever serves it meanwhile notices nothing.
    """
    other = copy.copy(model)
    other.compute_dtype = torch.float32
    return other


def float32_logits(model: Transformer, hidden: Tensor) -> Tensor:
    """States [N,D] float32 -> [N,V] float32."""
    return functional.linear(hidden, model.head_weight.float())


def is_partial(tokenizer: Tokenizer, token: int) -> bool:
    """True where the token's bytes are not whole characters: Chinese characters and emoji may be cut in two."""
    try:
        tokenizer.token_bytes(token).decode("utf-8")
    except UnicodeDecodeError:
        return True
    return False


def pieces(tokenizer: Tokenizer, tokens: Sequence[int]) -> Iterator[str]:
    """What each token adds to the text, a cut character with the token that completes it; joined, they are the text."""
    decoder = StreamDecoder(tokenizer)
    for place, token in enumerate(tokens):
        piece = decoder.push(token)
        yield piece + decoder.finish() if place == len(tokens) - 1 else piece


def likeliest(tokenizer: Tokenizer, logp: Tensor, top: int) -> list[list[Likely]]:
    """The `top` likeliest tokens of each row of logp [N,V]; the likeliest first, equals by id."""
    found = logp.topk(min(top, logp.shape[-1]), -1)
    rows = zip(found.values.exp().tolist(), found.indices.tolist(), strict=True)
    ranked = [sorted(zip(values, ids, strict=True), key=lambda x: (-x[0], x[1])) for values, ids in rows]
    return [
        [Likely(i, tokenizer.token_text(i), p, is_partial(tokenizer, i), i in tokenizer.special_ids) for p, i in row]
        for row in ranked
    ]


def check_context(opened: Opened, tokens: Sequence[int], what: str) -> None:
    """Raise ValueError where the model cannot read these tokens."""
    context, vocab = opened.model.config.context_tokens, opened.model.config.vocab_size
    if not tokens:
        raise ValueError(f"{what} has no tokens: give at least one (texts and chats start with <|bos|>)")
    if len(tokens) > context:
        raise ValueError(f"{what} has {len(tokens)} tokens, the model reads {context}: shorten it")
    if min(tokens) < 0 or max(tokens) >= vocab:
        raise ValueError(f"{what} has token {min(tokens)} or {max(tokens)}: the vocabulary is 0 to {vocab - 1}")


def prompt_tokens(tokenizer: Tokenizer, messages: Sequence[Message], context: Context, room_tokens: int) -> list[int]:
    """A prompt up to where the answer begins, of at most `room_tokens`.

    chat: through the template, oldest turns dropped to fit, as a chat does. plain: every message as a line of text.
    Raises ValueError where it does not fit.
    """
    if context == "chat":
        return fit_prompt(tokenizer, messages, room_tokens)[0]
    tokens = [tokenizer.bos, *tokenizer.encode("".join(m.content + "\n" for m in messages))]
    if len(tokens) > room_tokens:
        raise ValueError(f"the prompt takes {len(tokens)} tokens as text, there is room for {room_tokens}: shorten it")
    return tokens
