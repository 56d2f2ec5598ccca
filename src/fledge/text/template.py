"""The chat template, in this one place for training, chat, API and export.

    <bos>(<system>s<end>)?(<user>u<end><assistant>a<end>)*

is our own; an imported model's is the ChatFormat of its tokenizer, with the same properties.
Prefix-stable: rendering the first k messages gives the first tokens of rendering all. Roles are ids, so no text can forge
a turn. Trained tokens: the assistant's words and their end token.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from fledge.text.chat_format import JINJA, Turn
from fledge.text.formats import Chat, Message, Pair
from fledge.text.tokenizer import Tokenizer

__all__ = [
    "JINJA", "LossOn", "Rendered", "answer_beginning", "answer_start", "encode_answers", "fit_prompt", "render",
    "render_answers", "render_chats", "render_pairs", "render_prompt",
]  # fmt: skip


LossOn = Literal["answers", "last", "all"]
"""Which tokens of a conversation are trained: of every answer, of the last answer only, or all of them."""


class Rendered(NamedTuple):
    """Parallel lists: token ids and how much each counts as a target (0 or 1)."""

    tokens: list[int]
    weights: list[int]


def _turns_of(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[Turn]:
    """How each message is written. Raises ValueError for an order the template has no form for."""
    before = [None, *(m.role for m in messages)]
    return [tokenizer.turn(role, m.role) for role, m in zip(before, messages, strict=False)]


def _bodies(tokenizer: Tokenizer, messages: Sequence[Message], turns: Sequence[Turn]) -> list[list[int]]:
    """The messages' own tokens, encoded in bulk."""
    texts = [turn.text(m.content) for turn, m in zip(turns, messages, strict=True)]
    places = {turn.place for turn in turns}
    if len(places) < 2:
        return tokenizer.encode_batch(texts, *places)
    bodies: list[list[int]] = [[]] * len(texts)
    for place in places:
        rows = [i for i, turn in enumerate(turns) if turn.place == place]
        for i, body in zip(rows, tokenizer.encode_batch([texts[i] for i in rows], place), strict=True):
            bodies[i] = body
    return bodies


def _assemble(
    tokenizer: Tokenizer, messages: Sequence[Message], turns: Sequence[Turn], bodies: Sequence[list[int]]
) -> Rendered:
    tokens = list(tokenizer.turns.begin)
    weights = [0] * len(tokens)
    for message, turn, body in zip(messages, turns, bodies, strict=True):
        trained = int(message.role == "assistant")
        tokens += [*turn.opening, *body, *turn.closing]
        weights += [0] * len(turn.opening) + [trained] * (len(body) + len(turn.closing))
    return Rendered(tokens, weights)


def render(tokenizer: Tokenizer, messages: Sequence[Message]) -> Rendered:
    """All messages with their trained tokens marked."""
    turns = _turns_of(tokenizer, messages)
    return _assemble(tokenizer, messages, turns, _bodies(tokenizer, messages, turns))


def render_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Tokens up to where the assistant speaks."""
    return [*render(tokenizer, messages).tokens, *tokenizer.turns.assistant.opening]


def render_chats(tokenizer: Tokenizer, chats: Sequence[Chat], loss_on: LossOn = "answers") -> list[Rendered]:
    """render() of many chats, encoded in bulk, with the tokens of `loss_on` marked as trained."""
    turns = [_turns_of(tokenizer, c.messages) for c in chats]
    bodies = iter(_bodies(tokenizer, [m for c in chats for m in c.messages], [t for row in turns for t in row]))
    rendered = [
        _assemble(tokenizer, c.messages, t, [next(bodies) for _ in t]) for c, t in zip(chats, turns, strict=True)
    ]
    if loss_on == "all":  # the first token is never predicted
        return [Rendered(tokens, [0] + [1] * (len(tokens) - 1)) for tokens, _ in rendered]
    return [_last_only(row) for row in rendered] if loss_on == "last" else rendered


def _last_only(rendered: Rendered) -> Rendered:
    """Only the last answer trained, of a rendering that ends with one."""
    start = answer_start(rendered.weights)
    return Rendered(rendered.tokens, [0] * start + rendered.weights[start:])


def render_answers(tokenizer: Tokenizer, answers: Sequence[tuple[Sequence[Message], str]]) -> list[Rendered]:
    """(prompt, answer) each; only that answer is trained, not earlier turns of the prompt."""
    chats = [Chat(messages=(*prompt, Message("assistant", answer)), source="") for prompt, answer in answers]
    return render_chats(tokenizer, chats, "last")


def answer_start(weights: Sequence[int]) -> int:
    """Where the last run of trained tokens begins, in a rendering that ends with an answer."""
    return len(weights) - weights[::-1].index(0) if 0 in weights else 0


def encode_answers(tokenizer: Tokenizer, answers: Sequence[str]) -> list[list[int]]:
    """What follows a prompt: each answer's tokens and their end token."""
    turn = tokenizer.turns.assistant
    bodies = tokenizer.encode_batch([turn.text(answer) for answer in answers], turn.place)
    return [[*body, *turn.closing] for body in bodies]


def answer_beginning(tokenizer: Tokenizer, text: str) -> list[int]:
    """The tokens of an answer that begins with `text` and is not at its end."""
    turn = tokenizer.turns.assistant
    return tokenizer.encode(turn.lead + text, turn.place) if text else []


def render_pairs(tokenizer: Tokenizer, pairs: Sequence[Pair]) -> list[tuple[Rendered, Rendered]]:
    """(chosen, rejected); only the answers that differ are trained, not earlier turns of the prompt."""
    rendered = render_answers(tokenizer, [(p.prompt, answer) for p in pairs for answer in (p.chosen, p.rejected)])
    return list(zip(rendered[0::2], rendered[1::2], strict=True))


def fit_prompt(tokenizer: Tokenizer, messages: Sequence[Message], room_tokens: int) -> tuple[list[int], int]:
    """Prompt tokens that fit `room_tokens`, oldest turns dropped first; returns (tokens, turns dropped).

    A system message is kept. Raises ValueError when the last message alone does not fit.
    """
    turns = _turns_of(tokenizer, messages)
    bodies = _bodies(tokenizer, messages, turns)
    first = int(bool(messages) and messages[0].role == "system")
    start = first  # the first turn that stays
    form = tokenizer.turns
    sizes = [len(t.opening) + len(body) + len(t.closing) for t, body in zip(turns, bodies, strict=True)]
    size = len(form.begin) + len(form.assistant.opening) + sum(sizes)
    while size > room_tokens:
        if len(messages) - start <= 1:
            raise ValueError(
                f"the last message takes {size} tokens, the model has room for {room_tokens} before its answer: "
                "shorten it, or train with a larger model.context_tokens"
            )
        # a user turn leaves together with the answer to it, so that roles still alternate
        step = 2 if len(messages) - start > 2 and messages[start + 1].role == "assistant" else 1
        size -= sum(sizes[start : start + step])
        start += step
        # what is now the first turn may be written otherwise than in the middle
        turn = tokenizer.turn("system" if first else None, messages[start].role)
        if turn != turns[start]:
            turns[start], bodies[start] = turn, _bodies(tokenizer, [messages[start]], [turn])[0]
            size -= sizes[start]
            sizes[start] = len(turn.opening) + len(bodies[start]) + len(turn.closing)
            size += sizes[start]
    kept = [*range(first), *range(start, len(messages))]
    tokens = _assemble(tokenizer, *([row[i] for i in kept] for row in (messages, turns, bodies))).tokens
    return [*tokens, *form.assistant.opening], start - first
