"""What clients may ask for, checked before the engine sees it; every rule broken is a 400 that names the range."""

import secrets
from collections.abc import Sequence

import msgspec

from fledge.generate.sampling import Sampling
from fledge.serve.errors import Refused
from fledge.text.messages import Message

MESSAGES = 512
CONTENT_BYTES = 256 << 10  # of all messages together
MAX_TOKENS = 1 << 20  # larger numbers are mistakes; those beyond the context are cut to it
SEEDS = 1 << 53  # what JavaScript's numbers hold exactly
_LEAST = 1e-6  # smaller temperatures and top_p vanish in the engine's 32-bit numbers


class Part(msgspec.Struct):
    """A part of a message's content."""

    type: str
    text: str | None = None


class Turn(msgspec.Struct):
    """A message as OpenAI's clients send it."""

    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list | None = None
    function_call: dict | None = None


class Settings(msgspec.Struct, forbid_unknown_fields=True):
    """Sampling as the page sends it; what is missing or null is the server's default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    seed: int | None = None


class Asked(msgspec.Struct, forbid_unknown_fields=True):
    """Body of POST /api/ask."""

    messages: list[Turn]
    conversation: str | None = None
    drafts: int = 1
    sampling: Settings | None = None
    regenerate: bool = False


def bad(message: str, param: str) -> Refused:
    return Refused(400, message, param=param, code="invalid_value")


def messages_of(turns: Sequence[Turn]) -> tuple[Message, ...]:
    """Messages the template can hold: an optional system message, then user and assistant in turn, user last."""
    if not 1 <= len(turns) <= MESSAGES:
        raise bad(f"messages has {len(turns)} entries: must be 1 to {MESSAGES}", "messages")
    found = tuple(_message(turn, f"messages[{n}]") for n, turn in enumerate(turns))
    size = sum(len(m.content.encode()) for m in found)
    if size > CONTENT_BYTES:
        raise bad(f"messages hold {size:,} bytes of text: at most {CONTENT_BYTES:,}", "messages")
    body = found[1:] if found[0].role == "system" else found
    for n, message in enumerate(body):
        expected = "assistant" if n % 2 else "user"
        if message.role != expected:
            place = n + len(found) - len(body)
            raise bad(
                f"messages[{place}] is by {message.role}: after an optional system message, user and assistant take turns",
                f"messages[{place}].role",
            )
    if not body or body[-1].role != "user":
        raise bad("the last message must be by user", "messages")
    return found


def _message(turn: Turn, where: str) -> Message:
    role = "system" if turn.role == "developer" else turn.role
    if role not in ("system", "user", "assistant"):
        raise bad(f"role {turn.role[:40]!r} is not supported: system, user or assistant", f"{where}.role")
    if turn.tool_calls or turn.function_call:
        raise Refused(400, "tool and function calls are not supported", param=where, code="unsupported_value")
    content = turn.content
    if isinstance(content, list):
        if wrong := next((part.type for part in content if part.type != "text" or part.text is None), None):
            raise Refused(
                400, f"content parts of type {wrong[:40]!r} are not supported: text only", param=f"{where}.content",
                code="unsupported_value",
            )  # fmt: skip
        content = "".join(part.text for part in content)
    if content is None or (role != "assistant" and not content.strip()):  # a model may have answered with nothing
        raise bad(f"{where} has no content: it must be text that is not blank", f"{where}.content")
    return Message(role, text_of(content, f"{where}.content"))


def text_of(text: str, where: str) -> str:
    """Text the store can hold."""
    if "\0" in text:
        raise bad(f"{where} has a NUL character at {text.index(chr(0))}: remove it", where)
    return text


def settings(given: Settings, default: Sampling, context_tokens: int) -> Sampling:
    """The default with what is given; without a seed a random one, so that every answer can be written again."""

    def within(name: str, low: float, high: float, least_open: bool = False) -> None:
        value = getattr(given, name)
        if value is None:
            return
        if value > high or value < low or (least_open and value == low):
            raise bad(f"{name} = {str(value)[:40]}: must be {'above' if least_open else 'from'} {low} to {high}", name)

    within("temperature", 0, 100)
    within("top_p", 0, 1, least_open=True)
    within("top_k", -1, MAX_TOKENS)
    within("max_tokens", 1, MAX_TOKENS)
    within("seed", 0, SEEDS - 1)
    temperature = default.temperature if given.temperature is None else given.temperature
    top_p = default.top_p if given.top_p is None else max(given.top_p, _LEAST)
    top_k = default.top_k if given.top_k is None else given.top_k if given.top_k > 0 else None
    return Sampling(
        temperature=0.0 if temperature < _LEAST else temperature,
        top_p=None if top_p == 1 else top_p,
        top_k=top_k,
        max_tokens=min(default.max_tokens if given.max_tokens is None else given.max_tokens, context_tokens),
        seed=secrets.randbelow(SEEDS) if given.seed is None else given.seed,
    )
