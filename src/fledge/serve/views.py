"""The three views beside the chat: the next token, what alignment changed, and the runs with their family tree.

They only read. Models are analysed one request at a time on a thread of their own, so that answers being written go on.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import msgspec
from litestar import Request, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from fledge.core.checkpoint import sha256
from fledge.feedback.agreement import read_votes
from fledge.feedback.leaderboard import leaderboard
from fledge.feedback.records import Draft, Person
from fledge.feedback.store import Store
from fledge.probe.next_token import context_tokens, next_token
from fledge.probe.reading import Context, is_partial, prompt_tokens
from fledge.probe.shift import greedy_answers, shift
from fledge.serve import run_view
from fledge.serve.errors import Refused, decode, plain
from fledge.serve.models import Shown
from fledge.serve.requests import Turn, bad, messages_of, text_of
from fledge.serve.service import Service
from fledge.stages.common import Parent
from fledge.text.messages import Message
from fledge.text.template import encode_answers
from fledge.text.tokenizer import Tokenizer

T = TypeVar("T")

_MODELS = 3  # compared side by side
_NEXT_TOP, _SHIFT_TOP = 50, 20  # tokens of a distribution; the shift view shows two of them at every place
_ANSWER_TOKENS = 64  # of an answer written for the shift view
_TEXT_CHARS = 20_000  # longer ones are beyond any context here, and cutting them into tokens takes time
_WAITING = 2  # analyses of one person at once
_STAGES = {"pretrain": 0, "sft": 1}  # then all others


class NextAsked(msgspec.Struct, forbid_unknown_fields=True):
    """Body of POST /api/next: the text so far, or the exact ids of an earlier reply with the token clicked on."""

    text: str = ""
    "Plain text; with messages, the beginning of the answer."
    messages: list[Turn] | None = None
    tokens: list[int] | None = None
    append: int | None = None
    models: list[str] | None = None
    top: int = 12


class ShiftAsked(msgspec.Struct, forbid_unknown_fields=True):
    """Body of POST /api/shift: a draft of mine, or a prompt with an answer or without."""

    draft: str | None = None
    prompt: str | list[Turn] | None = None
    answer: str | None = None
    model: str | None = None
    base: str | None = None
    context: Context = "chat"
    top: int = 5


class Analyst:
    """Runs analyses one after another on one thread, and refuses a person who has too many waiting."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, "analyst")
        self._waiting: Counter[str] = Counter()

    async def work(self, person: str, work: Callable[[], T]) -> T:
        """The result of `work`. Raises Refused: 429 at the limit, 400 for what a probe refuses."""
        if self._waiting[person] >= _WAITING:
            raise Refused(
                429,
                f"{_WAITING} analyses of yours are waiting: wait for one",
                code="rate_limit_exceeded",
                retry_seconds=1,
            )
        self._waiting[person] += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except ValueError as error:
            raise Refused(400, str(error), code="invalid_value") from None
        finally:
            self._waiting[person] -= 1
            self._waiting += Counter()  # forgets those with none waiting


_ANALYST = Analyst()
_kept: WeakKeyDictionary[Service, dict[str, tuple[int, Any]]] = WeakKeyDictionary()


def require_owner(request: Request) -> None:
    """Runs, votes and models of a run are its owner's. Raises Refused 403."""
    if request.user.role != "owner":
        raise Refused(403, "only the owner of the run sees this", code="owner_only")


# -------------------------------------------------------------------------------------------------------- which models


def visible_models(service: Service, person: Person) -> dict[str, Shown]:
    """Raters look into the served models only, the owner also into those they were raised from."""
    return {n: shown for n, shown in service.models.items() if shown.served or person.role == "owner"}


def by_stage(models: dict[str, Shown]) -> list[str]:
    """Names in the order models are raised in."""
    return sorted(models, key=lambda n: _STAGES.get(models[n].stage, 2))


def chosen_models(service: Service, person: Person, names: Sequence[str] | None) -> list[str]:
    """The models asked for; None: the served one with those it was raised from, at most three."""
    known = visible_models(service, person)
    if names is None:
        own = [n for n in by_stage(known) if n != service.default and not known[n].served]
        compared = [n for n in known if n != service.default and known[n].served]
        return by_stage({n: known[n] for n in [service.default, *own, *compared][:_MODELS]})
    if not 1 <= len(names) <= _MODELS:
        raise bad(f"models has {len(names)} names: must be 1 to {_MODELS}", "models")
    return list(dict.fromkeys(known_name(service, known, name, "models") for name in names))


def known_name(service: Service, known: dict[str, Shown], name: str, param: str) -> str:
    name = service.default if name == "default" else name
    if name not in known:
        message = f"no model {name[:100]!r} to look into: there are {', '.join(known)}"
        raise Refused(404, message, param=param, code="model_not_found")
    return name


def base_of(service: Service, model: str, name: str | None) -> str:
    """The model to compare with: the one named, else the base model of the run. Anyone may compare with it."""
    if name is not None:
        return known_name(service, service.models, name, "base")
    bases = [n for n, shown in service.models.items() if shown.stage == "pretrain" and n != model]
    if not bases:
        raise bad(f"{model} has no base model beside it: name one as base", "base")
    return bases[0]


def _check_top(value: int, most: int) -> None:
    if not 1 <= value <= most:
        raise bad(f"top = {value}: must be 1 to {most}", "top")


def _short(text: str, param: str) -> str:
    if len(text) > _TEXT_CHARS:
        raise bad(f"{param} has {len(text):,} characters: at most {_TEXT_CHARS:,}", param)
    return text_of(text, param)


def _turns(turns: Sequence[Turn]) -> tuple[Message, ...]:
    messages = messages_of(turns)
    _short("".join(m.content for m in messages), "messages")
    return messages


# ---------------------------------------------------------------------------------------------------------- next token


def _next(service: Service, names: Sequence[str], asked: NextAsked, messages: Any) -> dict[str, Any]:
    opened = {name: service.model(name) for name in names}
    own = (opened.get(service.default) or opened[names[0]]).tokenizer
    exact = asked.tokens is not None or asked.append is not None
    if exact:  # ids are those of one tokenizer
        others = [name for name, one in opened.items() if one.tokenizer.json != own.json]
        if others and asked.models is not None:
            raise ValueError(
                f"{', '.join(others)} cut text into other tokens: ids of one model mean nothing to another"
            )
        opened = {name: one for name, one in opened.items() if name not in others}
    rows, first = [], []
    for name, one in opened.items():
        context = context_tokens(one.tokenizer, text=asked.text, messages=messages, tokens=asked.tokens)
        context += [] if asked.append is None else [asked.append]
        found = next_token(one, tokens=context, top=asked.top)
        rows.append({"name": name, "stage": one.card["stage"], "context": context, **plain(found)})
        first = context if one.tokenizer is own else first
    return {"tokens": first, "text": own.decode(first), "shown": [shown_token(own, t) for t in first], "models": rows}


def shown_token(tokenizer: Tokenizer, token: int) -> dict[str, Any]:
    """A token of the context as people read it."""
    control, partial = token in tokenizer.special_ids, is_partial(tokenizer, token)
    return {"id": token, "text": tokenizer.token_text(token), "partial": partial, "control": control}


@post("/api/next", status_code=200)
async def next_(request: Request, service: NamedDependency[Service]) -> dict[str, Any]:
    """The distribution over the next token under each model: {"models": [{name, stage, context, tokens: [{id, text, p,
    partial, control}], rest, entropy}], "tokens", "text", "shown"}. `context` are the exact ids a model read, `tokens`
    those of the served one; to go on with a token of the list, send them back as `tokens` with its id as `append`."""
    asked = decode(await request.body(), NextAsked)
    person: Person = request.user
    names = chosen_models(service, person, asked.models)
    _check_top(asked.top, _NEXT_TOP)
    _short(asked.text, "text")
    messages = None if asked.messages is None else _turns(asked.messages)
    return await _ANALYST.work(person.id, lambda: _next(service, names, asked, messages))


# --------------------------------------------------------------------------------------------------------------- shift


def _shift(
    aligned: Parent,
    base: Parent,
    asked: ShiftAsked,
    messages: Sequence[Message],
    written: Sequence[int] | None,
    room: int,
) -> dict[str, Any]:
    """written: the answer's token ids, None to write it now. room: positions kept for the answer."""
    tokenizer, own = aligned.tokenizer, aligned.model.config.context_tokens
    if sha256(tokenizer.json) != sha256(base.tokenizer.json):
        raise ValueError("the two models have different tokenizers: shifts are told token by token; name another base")
    prompt = prompt_tokens(tokenizer, messages, asked.context, own - min(room, own // 2))
    answer = list(written) if written is not None else greedy_answers(aligned, [prompt], room)[0].tokens
    least = min(own, base.model.config.context_tokens)
    if len(prompt) + len(answer) - 1 > least:
        raise ValueError(
            f"prompt and answer have {len(prompt)} and {len(answer)} tokens, the models read {least}: shorten them"
        )
    found = shift(aligned, base, prompt, answer, top=asked.top)
    return {"context": asked.context, "text": tokenizer.decode(answer), **plain(found)}


def _written(tokenizer: Tokenizer, text: str) -> list[int]:
    """A whole answer in token ids, its end included."""
    return encode_answers(tokenizer, [text])[0]


@post("/api/shift", status_code=200)
async def shift_(request: Request, service: NamedDependency[Service]) -> dict[str, Any]:
    """An answer token by token, with what the base model would have written in the same context: {"model", "base",
    "context", "text", "shares", "tokens": [{id, text, piece, partial, control, rank, category, kl, p, base_p, top,
    base_top}]}. For a draft the names are left out: which model wrote it may still be hidden from who rates it."""
    asked = decode(await request.body(), ShiftAsked)
    person: Person = request.user
    _check_top(asked.top, _SHIFT_TOP)
    if (asked.draft is None) == (asked.prompt is None):
        raise bad("draft and prompt: give one of them", "prompt")
    known = visible_models(service, person)
    if asked.draft is not None:
        if asked.answer is not None:
            raise bad("a draft has its answer: leave answer out", "answer")
        draft = await asyncio.to_thread(service.draft_of, person, asked.draft)
        model = _writer(service, known, draft, asked.model)
        base = base_of(service, model, asked.base)
        room = await asyncio.to_thread(_room_of, service.store, draft)
        messages, told = draft.messages, {}
    else:
        model = known_name(service, known, asked.model or "default", "model")
        base = base_of(service, model, asked.base)
        messages, told = _prompt(asked.prompt), {"model": model, "base": base}
        room, draft = _ANSWER_TOKENS, None

    def work() -> dict[str, Any]:
        aligned = service.model(model)
        written = draft.tokens if draft is not None else None
        if asked.answer is not None:
            written = _written(aligned.tokenizer, _short(asked.answer, "answer"))
        space = room if written is None or draft is not None else len(written)
        return _shift(aligned, service.model(base), asked, messages, written, space)

    return {**told, **await _ANALYST.work(person.id, work)}


def _prompt(prompt: str | list[Turn]) -> tuple[Message, ...]:
    return _turns([Turn("user", prompt)] if isinstance(prompt, str) else prompt)


def _writer(service: Service, known: dict[str, Shown], draft: Draft, name: str | None) -> str:
    """The model that wrote a draft, or the one named to look at its text."""
    if not draft.tokens or draft.blanked_ms is not None or draft.prompt_blanked_ms is not None:
        raise Refused(400, "this draft has no tokens to look at: no model of ours wrote it", code="no_tokens")
    if name is not None:
        return known_name(service, known, name, "model")
    writers = [n for n, shown in known.items() if shown.id == draft.checkpoint_id]
    if not writers:
        raise Refused(404, "the model that wrote this draft is not here any more", code="model_not_found")
    return writers[0]


def _room_of(store: Store, draft: Draft) -> int:
    """How many positions were kept for the answer when the draft was written, which decides what of the chat fitted."""
    decoding = store.decoding(draft.decoding_id) if draft.decoding_id else None
    return max((decoding or {}).get("max_tokens", _ANSWER_TOKENS), 1)


# ---------------------------------------------------------------------------------------------------------------- runs


@get("/api/runs")
async def runs(request: Request, service: NamedDependency[Service]) -> list[dict[str, Any]]:
    """Every run under the served one: [{name, stage, state, step, steps, updated_ms, parent}]."""
    require_owner(request)
    return plain(await asyncio.to_thread(run_view.list_runs, service.run))


@get("/api/runs/{name:path}")
async def run(request: Request, service: NamedDependency[Service], name: FromPath[str], after: FromQuery[int] = 0) -> dict[str, Any]:
    """One run: its summary, recipe, rows of its log above step `after` thinned to 400, samples, looks and red flags."""
    require_owner(request)

    def read() -> dict[str, Any]:
        folders = run_view.run_folders(service.run)
        wanted = str(name).removeprefix("/")
        if wanted not in folders:
            raise Refused(404, "there is no such run", code="not_found")
        return run_view.details(wanted, folders, after)

    return await asyncio.to_thread(read)


async def _of_votes(service: Service, what: str, work: Callable[[Store], T]) -> T:
    """`work` on the store, done again only when there are new votes."""
    kept, seq = _kept.setdefault(service, {}), await asyncio.to_thread(service.store.last_seq)
    if what not in kept or kept[what][0] != seq:
        kept[what] = (seq, await service.read_apart(work))
    return kept[what][1]


def votes_by_model(store: Store) -> dict[str, dict[str, int]]:
    """Checkpoint id -> how many votes that stand were about its answers, by kind; a pair counts for both models."""
    read, found = read_votes(store), {}
    for vote in read.votes:
        judged = {d.checkpoint_id for d in read.judged(vote) if d.checkpoint_id is not None}
        for checkpoint in judged:
            found.setdefault(checkpoint, Counter())[vote.kind] += 1
    return {checkpoint: dict(sorted(counts.items())) for checkpoint, counts in found.items()}


@get("/api/tree")
async def tree(request: Request, service: NamedDependency[Service]) -> dict[str, Any]:
    """The family: {"models": [{id, name, stage, step, parent, exports, votes, served}], "exports": [...]}; `exports` of a
    model are the data sets from votes that it learnt from, `votes` those about its answers, by kind."""
    require_owner(request)
    folders = await asyncio.to_thread(run_view.run_folders, service.run)
    nodes = await asyncio.to_thread(run_view.models, folders)
    votes = await _of_votes(service, "votes", votes_by_model)
    served = {shown.id for shown in service.models.values() if shown.served}
    known = {node.id for node in nodes}
    for stored in await asyncio.to_thread(service.store.checkpoints):  # replaced since, or of another run
        if stored.id not in known and (stored.id in votes or stored.id in served):
            name = service.name_of_checkpoint(stored.id)
            nodes.append(run_view.ModelNode(stored.id, name, stored.stage, stored.step, stored.parent_id, []))
    exported = await asyncio.to_thread(service.store.exports)
    kept = ("id", "format", "rows", "first_seq", "last_seq", "created_ms")
    return {
        "models": [{**plain(n), "votes": votes.get(n.id, {}), "served": n.id in served} for n in nodes],
        "exports": [{key: getattr(export, key) for key in kept} for export in exported],
    }


@get("/api/leaderboard")
async def leaderboard_(request: Request, service: NamedDependency[Service]) -> list[dict[str, Any]]:
    """Checkpoints by what people voted: see `feedback.leaderboard.Place`."""
    require_owner(request)
    return plain(await _of_votes(service, "leaderboard", leaderboard))


ROUTES = [next_, shift_, runs, run, tree, leaderboard_]
