"""The chat template, in this one place for training, chat, API and export.

    <bos>(<system>s<end>)?(<user>u<end><assistant>a<end>)*

Prefix-stable: rendering the first k messages gives the first tokens of rendering all. Roles are ids, so no text can forge
a turn. Trained tokens: the assistant's words and their end token.
"""

from collections.abc import Sequence
from typing import NamedTuple

from fledge.text.formats import Chat, Message, Pair
from fledge.text.tokenizer import Tokenizer

JINJA = (
    "<|bos|>{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)  # the same template for the ecosystem's tokenizer_config.json


class Rendered(NamedTuple):
    """Parallel lists: token ids and how much each counts as a target (0 or 1)."""

    tokens: list[int]
    weights: list[int]


def _assemble(tokenizer: Tokenizer, messages: Sequence[Message], bodies: Sequence[list[int]]) -> Rendered:
    role_ids = {"system": tokenizer.system, "user": tokenizer.user, "assistant": tokenizer.assistant}
    tokens, weights = [tokenizer.bos], [0]
    for message, body in zip(messages, bodies, strict=True):
        trained = int(message.role == "assistant")
        tokens += [role_ids[message.role], *body, tokenizer.end]
        weights += [0] + [trained] * (len(body) + 1)
    return Rendered(tokens, weights)


def render(tokenizer: Tokenizer, messages: Sequence[Message]) -> Rendered:
    """All messages with their trained tokens marked."""
    return _assemble(tokenizer, messages, tokenizer.encode_batch([m.content for m in messages]))


def render_prompt(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """Tokens up to where the assistant speaks."""
    return [*render(tokenizer, messages).tokens, tokenizer.assistant]


def render_chats(tokenizer: Tokenizer, chats: Sequence[Chat]) -> list[Rendered]:
    """render() of many chats, encoded in bulk."""
    bodies = iter(tokenizer.encode_batch([m.content for c in chats for m in c.messages]))
    return [_assemble(tokenizer, c.messages, [next(bodies) for _ in c.messages]) for c in chats]


def render_answers(tokenizer: Tokenizer, answers: Sequence[tuple[Sequence[Message], str]]) -> list[Rendered]:
    """(prompt, answer) each; only that answer is trained, not earlier turns of the prompt."""
    chats = [Chat(messages=(*prompt, Message("assistant", answer)), source="") for prompt, answer in answers]
    rendered = []
    for tokens, weights in render_chats(tokenizer, chats):
        start = answer_start(weights)
        rendered.append(Rendered(tokens, [0] * start + weights[start:]))
    return rendered


def answer_start(weights: Sequence[int]) -> int:
    """Where the last run of trained tokens begins, in a rendering that ends with an answer."""
    return len(weights) - weights[::-1].index(0) if 0 in weights else 0


def render_pairs(tokenizer: Tokenizer, pairs: Sequence[Pair]) -> list[tuple[Rendered, Rendered]]:
    """(chosen, rejected); only the answers that differ are trained, not earlier turns of the prompt."""
    rendered = render_answers(tokenizer, [(p.prompt, answer) for p in pairs for answer in (p.chosen, p.rejected)])
    return list(zip(rendered[0::2], rendered[1::2], strict=True))


def fit_prompt(tokenizer: Tokenizer, messages: Sequence[Message], room_tokens: int) -> tuple[list[int], int]:
    """Prompt tokens that fit `room_tokens`, oldest turns dropped first; returns (tokens, turns dropped).

    A system message is kept. Raises ValueError when the last message alone does not fit.
    """
    bodies = tokenizer.encode_batch([m.content for m in messages])
    first = int(bool(messages) and messages[0].role == "system")
    start = first  # the first turn that stays
    size = 2 + sum(len(body) + 2 for body in bodies)  # <bos> and the assistant's role; each message has a role and an end
    while size > room_tokens:
        if len(messages) - start <= 1:
            raise ValueError(
                f"the last message takes {size} tokens, the model has room for {room_tokens} before its answer: "
                "shorten it, or train with a larger model.context_tokens"
            )
        # a user turn leaves together with the answer to it, so that roles still alternate
        step = 2 if len(messages) - start > 2 and messages[start + 1].role == "assistant" else 1
        size -= sum(len(body) + 2 for body in bodies[start : start + step])
        start += step
    kept = [*range(first), *range(start, len(messages))]
    tokens = _assemble(tokenizer, [messages[i] for i in kept], [bodies[i] for i in kept]).tokens
    return [*tokens, tokenizer.assistant], start - first
