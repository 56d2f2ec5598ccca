"""OpenAI's /v1 for any client that speaks it: chat completions, completions, models. What is not supported is refused."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import Any

import msgspec
from litestar import Request, get, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp, Receive, Scope, Send

from fledge.generate.sampling import Sampling
from fledge.serve.alternatives import Likely, likely, seen_as_chat, seen_as_text
from fledge.serve.errors import Refused, decode, error_body
from fledge.serve.requests import Settings, Turn, bad, messages_of, settings, text_of
from fledge.serve.scheduler import EngineStopped, Piece, Ticket
from fledge.serve.service import Service
from fledge.serve.streams import Answers, EventStream, Order, encode, event
from fledge.stages.common import Parent
from fledge.text.template import render_prompt

MOST_ANSWERS = 8
MOST_PROMPTS = 32
MOST_ALTERNATIVES = 20
STOP_TEXTS, STOP_CHARS = 4, 256
_LONG_CHARS = 8000
# fields that change nothing about the answer here, whatever they hold
_HARMLESS = frozenset(
    "user metadata store service_tier safety_identifier prompt_cache_key prompt_cache_retention parallel_tool_calls "
    "prompt_cache_options".split()
)
# fields that change nothing while they hold one of these
_NEUTRAL: dict[str, tuple] = {
    "presence_penalty": (0,), "frequency_penalty": (0,), "repetition_penalty": (1,), "min_p": (0,), "best_of": (1,),
    "logit_bias": ({},), "tools": ([],), "functions": ([],), "tool_choice": ("none", "auto"), "echo": (False,),
    "function_call": ("none", "auto"), "response_format": ({"type": "text"},), "modalities": (["text"],), "suffix": ("",),
}  # fmt: skip


class StreamOptions(msgspec.Struct):
    """Extras of a stream."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # padding against eavesdroppers: none is added


class Wanted(msgspec.Struct):
    """What chat completions and completions have in common."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None


class ChatBody(Wanted, kw_only=True):
    """Body of POST /v1/chat/completions."""

    messages: list[Turn]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None


class TextBody(Wanted, kw_only=True):
    """Body of POST /v1/completions."""

    prompt: str | list[str | int | list[int]]
    logprobs: int | None = None


class Job(msgspec.Struct):
    """A checked request on its way."""

    service: Service
    answers: Answers
    opened: Parent
    chat: bool
    head: dict[str, Any]
    stream: bool
    usage: bool
    likely: int | None  # alternatives told per token; None: no log-probs at all
    prompts: list[list[int]]


@get("/v1/models", sync_to_thread=False)
def models(service: NamedDependency[Service]) -> dict[str, Any]:
    """The served models and "default", the run's own."""
    served = [shown for shown in service.models.values() if shown.served]
    rows = [("default", service.models[service.default]), *((shown.name, shown) for shown in served)]
    made = service.started_s
    data = [
        {"id": name, "object": "model", "created": made, "owned_by": "fledge", "stage": m.stage, "checkpoint": m.id}
        for name, m in rows
    ]
    return {"object": "list", "data": data}


@post("/v1/chat/completions")
async def chat_completions(request: Request, service: NamedDependency[Service]) -> ASGIApp:
    """Answer a conversation."""
    body = _decoded(await request.body(), ChatBody)
    name = service.resolve_name(body.model)
    messages = messages_of(body.messages)
    opened = service.scheduler.opened(name)
    if sum(len(m.content) for m in messages) < _LONG_CHARS:
        tokens = render_prompt(opened.tokenizer, messages)
    else:
        tokens = await asyncio.to_thread(render_prompt, opened.tokenizer, messages)
    alternatives = None
    if body.top_logprobs is not None and not body.logprobs:
        raise bad("top_logprobs needs logprobs: true", "top_logprobs")
    if body.logprobs:
        alternatives = _within(body.top_logprobs or 0, 0, MOST_ALTERNATIVES, "top_logprobs")
    if body.max_completion_tokens is not None:
        body.max_tokens = body.max_completion_tokens
    return _begin(service, request.user.id, body, name, [tokens], True, alternatives)


@post("/v1/completions")
async def completions(request: Request, service: NamedDependency[Service]) -> ASGIApp:
    """Continue a text, as a base model does."""
    body = _decoded(await request.body(), TextBody)
    name = service.resolve_name(body.model)
    opened = service.scheduler.opened(name)
    prompts = await asyncio.to_thread(_prompts, opened, body.prompt)
    alternatives = None if body.logprobs is None else _within(body.logprobs, 0, MOST_ALTERNATIVES, "logprobs")
    body.max_tokens = 16 if body.max_tokens is None else body.max_tokens  # OpenAI's default here
    return _begin(service, request.user.id, body, name, prompts, False, alternatives)


def _decoded(raw: bytes, kind: type) -> Any:
    """The body, once it holds nothing that would change the answer and that we do not do."""
    body = decode(raw, kind)
    fields = {field.name for field in msgspec.structs.fields(kind)}
    for name, value in decode(raw, dict[str, Any]).items():
        if name in fields or name in _HARMLESS or value is None or value in _NEUTRAL.get(name, ()):
            continue
        message = f"{name[:60]!r} is not supported" + (" with this value" if name in _NEUTRAL else "")
        raise Refused(400, message, param=name[:60], code="unsupported_parameter")
    return body


def _within(value: int, low: int, high: int, name: str) -> int:
    if not low <= value <= high:
        raise bad(f"{name} = {str(value)[:40]}: must be from {low} to {high}", name)
    return value


def _stops(given: str | list[str] | None) -> tuple[str, ...]:
    stops = [given] if isinstance(given, str) else given or []
    if len(stops) > STOP_TEXTS:
        raise bad(f"stop has {len(stops)} texts: at most {STOP_TEXTS}", "stop")
    if any(len(text) > STOP_CHARS for text in stops):
        raise bad(f"stop has a text of over {STOP_CHARS} characters", "stop")
    return tuple(filter(None, stops))


def _prompts(opened: Parent, given: str | list) -> list[list[int]]:
    """Token ids of each prompt: text is encoded behind the begin token, ids are taken as they are."""
    if isinstance(given, str):
        given = [given]
    elif given and all(isinstance(item, int) for item in given):
        given = [given]
    if not 1 <= len(given) <= MOST_PROMPTS:
        raise bad(f"prompt has {len(given)} entries: must be 1 to {MOST_PROMPTS}", "prompt")
    tokenizer, found = opened.tokenizer, []
    for item in given:
        if isinstance(item, int):
            raise bad("prompt mixes token ids with texts or lists: give one kind", "prompt")
        if isinstance(item, str):
            found.append([tokenizer.bos, *tokenizer.encode(text_of(item, "prompt"))])
            continue
        if not item or min(item) < 0 or max(item) >= tokenizer.vocab_size:
            raise bad(f"a prompt of token ids needs at least one, each from 0 to {tokenizer.vocab_size - 1}", "prompt")
        found.append(item)
    return found


def _begin(
    service: Service,
    person: str,
    body: Wanted,
    name: str,
    prompts: list[list[int]],
    chat: bool,
    alternatives: int | None,
) -> ASGIApp:
    """Check what is left to check, ask the engine, and answer as a stream or whole."""
    opened = service.scheduler.opened(name)
    context = opened.model.config.context_tokens
    for prompt in prompts:
        if len(prompt) >= context:
            raise Refused(
                400, f"the prompt has {len(prompt):,} tokens, the model's context is {context:,}: shorten it",
                param="messages" if chat else "prompt", code="context_length_exceeded",
            )  # fmt: skip
    n = _within(1 if body.n is None else body.n, 1, MOST_ANSWERS, "n")
    default = Sampling(temperature=1.0, max_tokens=context)  # OpenAI's, so that clients get what they expect
    given = Settings(body.temperature, body.top_p, body.top_k, body.max_tokens, body.seed)
    sampling, stop = settings(given, default, context), _stops(body.stop)
    orders = [Order(name, prompt, sampling, j, stop) for prompt in prompts for j in range(n)]
    head = {
        "id": f"{'chatcmpl' if chat else 'cmpl'}-{uuid.uuid4().hex}",
        "object": "chat.completion" if chat else "text_completion",
        "created": int(time.time()),
        "model": name,
        "system_fingerprint": opened.id[:12],
    }
    usage = bool(body.stream_options and body.stream_options.include_usage)
    answers = Answers(service, person, orders)
    job = Job(service, answers, opened, chat, head, bool(body.stream), usage, alternatives, prompts)
    if job.stream:
        return EventStream(_streamed(job), answers.leave)
    return Whole(job)


class Whole:
    """An ASGI response: the whole answer at once; a client that leaves before it ends it."""

    def __init__(self, job: Job):
        self._job = job

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        watcher = asyncio.create_task(self._watch(receive))
        status = 200
        try:
            tickets = await self._job.answers.whole()
            body = encode(await _completion(self._job, tickets))
        except EngineStopped as stopped:
            status, body = 503, error_body(503, str(stopped), code="engine_stopped")
        except Refused as refused:
            status, body = refused.status, refused.body()
        finally:
            watcher.cancel()
            self._job.answers.leave()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _watch(self, receive: Receive) -> None:
        with suppress(Exception):
            while (await receive())["type"] != "http.disconnect":
                pass
        self._job.answers.leave()


def _usage(job: Job, tickets: Sequence[Ticket | None]) -> dict[str, int]:
    prompt = sum(map(len, job.prompts))
    written = sum(len(ticket.tokens) for ticket in tickets if ticket is not None)
    return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}


def _finish(ticket: Ticket) -> str:
    return "length" if ticket.finish == "length" else "stop"


async def _completion(job: Job, tickets: Sequence[Ticket]) -> dict[str, Any]:
    choices = []
    for index, ticket in enumerate(tickets):
        told = None
        if job.likely is not None:
            tokens = await asyncio.to_thread(likely, job.opened, ticket.prompt, ticket.tokens, 0, job.likely)
            told = _seen(job, tokens, 0)
        choice: dict[str, Any] = {"index": index, "logprobs": told, "finish_reason": _finish(ticket)}
        choice |= {"message": {"role": "assistant", "content": ticket.text}} if job.chat else {"text": ticket.text}
        choices.append(choice)
    return {**job.head, "choices": choices, "usage": _usage(job, tickets)}


def _seen(job: Job, tokens: list[Likely], offset: int) -> dict[str, Any]:
    return seen_as_chat(tokens) if job.chat else seen_as_text(tokens, offset)


async def _streamed(job: Job) -> AsyncGenerator[bytes, None]:
    """Chunks as OpenAI sends them: the role first (chat), pieces, the finish, the usage if asked for, [DONE]."""
    head = {**job.head, "object": "chat.completion.chunk" if job.chat else "text_completion"}
    start = encode(head)[:-1]  # the rest of each chunk is glued on: encoding it whole would cost several times more
    field = b'"delta":{"content":' if job.chat else b'"text":'
    close = b"}" if job.chat else b""
    middle = [b',"choices":[{"index":%d,' % n + field for n in range(len(job.answers.tickets))]
    tail = close + b',"logprobs":null,"finish_reason":null}]' + (b',"usage":null' if job.usage else b"") + b"}\n\n"
    parts = [b"data: " + start + one for one in middle]
    if job.chat:
        for index in range(len(parts)):
            yield event({**head, "choices": [_chunk(index, {"role": "assistant", "content": ""})]})
    told = [0] * len(parts)
    texts = [0] * len(parts)
    last = b""  # the last piece, its finish, the usage and [DONE] leave as one: each sending costs more than its making
    async for index, piece in job.answers.pieces():
        out, ticket = b"", job.answers.tickets[index]
        if piece.text or (job.likely is not None and piece.tokens):
            if job.likely is None:
                out = parts[index] + encode(piece.text) + tail
            else:
                until = told[index] + len(piece.tokens)  # more may be written by now: they come with the next piece
                seen = await _alternatives(job, index, told[index], until, texts[index])
                told[index] = until
                texts[index] += len(piece.text)
                out = event({**head, "choices": [_piece(job, index, piece, seen)]})
        if piece.finish:
            ended = _chunk(index, {}, _finish(ticket)) if job.chat else _text_chunk(index, "", _finish(ticket))
            out += event({**head, "choices": [ended]})
            if all(t is not None and t.finish for t in job.answers.tickets):
                last += out
                continue
        if out:
            yield out
    if job.usage:
        last += event({**head, "choices": [], "usage": _usage(job, job.answers.tickets)})
    yield last + b"data: [DONE]\n\n"


async def _alternatives(job: Job, index: int, start: int, until: int, offset: int) -> dict[str, Any]:
    """Log-probs of the tokens of an answer from number `start` to before `until`."""
    ticket = job.answers.tickets[index]
    tokens = await asyncio.to_thread(likely, job.opened, ticket.prompt, ticket.tokens[:until], start, job.likely)
    return _seen(job, tokens, offset)


def _piece(job: Job, index: int, piece: Piece, seen: dict[str, Any]) -> dict[str, Any]:
    made = _chunk(index, {"content": piece.text}) if job.chat else _text_chunk(index, piece.text)
    return {**made, "logprobs": seen}


def _chunk(index: int, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


def _text_chunk(index: int, text: str, finish: str | None = None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}


HANDLERS = (models, chat_completions, completions)
