"""Answers to conversations: template, context overflow and decoding around the engine."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fledge.core.model import Transformer
from fledge.generate.engine import Engine
from fledge.generate.sampling import Sampling
from fledge.text.formats import Message
from fledge.text.template import fit_prompt
from fledge.text.tokenizer import StreamDecoder, Tokenizer


class Answer(NamedTuple):
    """One answer of the assistant."""

    text: str
    finish: str  # "stop" or "length"
    dropped_turns: int  # oldest turns left out because the context was full


def chat_engine(model: Transformer, tokenizer: Tokenizer) -> Engine:
    """An engine that stops at the end of an answer or of a document."""
    return Engine(model, stop_ids=[tokenizer.end, tokenizer.eos])


def _room(engine: Engine, sampling: Sampling) -> int:
    context = engine.model.config.context_tokens
    return context - min(sampling.max_tokens, context // 2)


def answer(
    engine: Engine, tokenizer: Tokenizer, conversations: Sequence[Sequence[Message]], sampling: Sampling
) -> list[Answer]:
    """Answer many conversations in batches."""
    room = _room(engine, sampling)
    fitted = [fit_prompt(tokenizer, messages, room) for messages in conversations]
    done = engine.generate([tokens for tokens, _ in fitted], sampling)
    return [Answer(tokenizer.decode(c.tokens), c.finish, dropped) for c, (_, dropped) in zip(done, fitted, strict=True)]


def continue_text(
    engine: Engine, tokenizer: Tokenizer, texts: Sequence[str], sampling: Sampling, samples: int = 1
) -> list[Answer]:
    """Let a base model go on writing each text, `samples` times: what it writes after one text stands in a row."""
    prompts = [[tokenizer.bos, *body] for body in tokenizer.encode_batch(texts)]
    done = engine.generate(prompts, sampling, samples=samples)
    return [Answer(tokenizer.decode(c.tokens), c.finish, 0) for c in done]


def stream(
    engine: Engine, tokenizer: Tokenizer, messages: Sequence[Message], sampling: Sampling
) -> Iterator[str | Answer]:
    """Pieces of text as they are written, then the whole Answer."""
    prompt, dropped = fit_prompt(tokenizer, messages, _room(engine, sampling))
    decoder, pieces, finish = StreamDecoder(tokenizer), [], "length"
    for events in engine.steps([prompt], sampling):
        _, token, _, ended = events[0]
        finish = ended or finish
        pieces.append(decoder.push(token))
        yield pieces[-1]
    pieces.append(decoder.finish())
    yield pieces[-1]
    yield Answer("".join(pieces), finish, dropped)
