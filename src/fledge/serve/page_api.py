"""What the page asks for: who I am, votes, conversations, pairs to rate, and the page itself. Everything else is JSON."""

import asyncio
from pathlib import Path
from typing import Any, Literal

import msgspec
from litestar import Request, Response, get, post
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency
from litestar.handlers import BaseRouteHandler
from litestar.params import FromPath, FromQuery
from litestar.types import ASGIApp

from fledge.feedback.records import Conflict, Invalid, NewVote, Unknown
from fledge.serve.asking import Asking
from fledge.serve.dealing import next_task
from fledge.serve.errors import Refused, decode, lost
from fledge.serve.requests import CONTENT_BYTES, Asked, messages_of
from fledge.serve.service import Service
from fledge.serve.streams import EventStream
from fledge.serve.turns import conversation_view

STATIC = Path(__file__).parent / "static"
_KINDS = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
    ".json": "application/json",
}


class Forget(msgspec.Struct, forbid_unknown_fields=True):
    """Body of POST /api/forget."""

    confirm: Literal["forget me"]


def owner_only(connection: ASGIConnection, _: BaseRouteHandler) -> None:
    """A litestar guard: raters may chat and rate, the owner may see everything."""
    if connection.scope["user"].role != "owner":
        raise Refused(403, "only the owner of this run may see this", code="owner_only")


@get("/", sync_to_thread=False)
def page() -> Response[bytes]:
    """The page."""
    return _file("index.html")


@get("/static/{name:str}", sync_to_thread=False)
def static(name: FromPath[str]) -> Response[bytes]:
    """One of the page's files; the folder's own list says which there are, so no name can lead out of it."""
    return _file(name)


def _file(name: str) -> Response[bytes]:
    known = {path.name: path for path in STATIC.iterdir() if path.suffix in _KINDS and not path.name.startswith(".")}
    if name not in known:
        raise Refused(404, "there is no such file", code="not_found")
    media_type = _KINDS[known[name].suffix]
    return Response(known[name].read_bytes(), media_type=media_type, headers={"cache-control": "no-cache"})


@get("/api/me", sync_to_thread=False)
def me(request: Request, service: NamedDependency[Service]) -> dict[str, Any]:
    """Who is asking, and what there is to talk with."""
    person, owner = request.user, request.user.role == "owner"
    models = [
        {"name": m.name, "stage": m.stage, "id": m.id, "default": m.name == service.default, "served": m.served}
        for m in service.models.values()
        if m.served or owner
    ]
    opened = service.scheduler.opened(service.default)
    return {
        "person": {"id": person.id, "name": person.name, "role": person.role},
        "run": service.run.name or str(service.run),
        "models": models,
        "compare": service.compared() is not None,
        "rate": bool(service.rating),
        "views": {"next": True, "shift": len(service.models) > 1, "runs": owner},
        "sampling": msgspec.to_builtins(service.options.sampling),
        "limits": {
            "answers": service.options.per_person,
            "message_bytes": CONTENT_BYTES,
            "context_tokens": opened.model.config.context_tokens,
        },
    }


@post("/api/ask")
async def ask(request: Request, service: NamedDependency[Service]) -> ASGIApp:
    """One or two drafts as a stream of events; they and their task are stored before the last one."""
    asked = decode(await request.body(), Asked)
    asking = await Asking.begin(service, request.user, asked, messages_of(asked.messages))
    return EventStream(asking.events(), asking.answers.leave)


@post("/api/votes")
async def vote(request: Request, service: NamedDependency[Service]) -> Response[dict[str, Any]]:
    """Store a vote: 201 once it is on disk, 200 where it was before."""
    new, person = decode(await request.body(), NewVote, invalid=422), request.user
    if new.draft is not None and not service.owns(person.id, new.draft):
        raise lost()
    try:
        stored = await service.writer.vote(person.id, new)
    except Unknown:
        raise lost() from None
    except Conflict as conflict:
        raise Refused(409, str(conflict), code="conflict") from None
    except Invalid as invalid:
        raise Refused(422, str(invalid), code="invalid_value") from None
    revealed = None
    if new.kind == "pair":
        service.rating.voted(person.id, new.task)
        revealed = service.names_of_task(new.task)
    body = {"seq": stored.seq, "id": stored.id, "revealed": revealed}
    return Response(body, status_code=201 if stored.new else 200)


@get("/api/conversations", sync_to_thread=True)
def conversations(request: Request, service: NamedDependency[Service]) -> list[dict[str, Any]]:
    """Mine, newest first."""
    mine = service.store.conversations(request.user.id)
    return [{"id": c.id, "title": c.title, "created_ms": c.created_ms} for c in mine]


@get("/api/conversations/{id:str}")
async def conversation(request: Request, service: NamedDependency[Service], id: FromPath[str]) -> dict[str, Any]:
    """One of mine with its turns, drafts and my votes."""
    await service.founded(id)
    held = await asyncio.to_thread(service.store.conversation, request.user.id, id)
    if held is None:
        raise lost()
    judged = {v.task_id for v in held.votes if v.kind == "pair"}
    return conversation_view(held, {t.id: service.names_of_task(t.id) for t in held.tasks if t.id in judged})


@post("/api/forget", status_code=200)
async def forget(request: Request, service: NamedDependency[Service]) -> dict[str, int]:
    """Blank everything this person wrote; votes stay, without their texts."""
    decode(await request.body(), Forget)
    person = request.user.id
    return await service.writer.do(lambda store: store.forget(person))


@get("/api/task")
async def task(request: Request, service: NamedDependency[Service]) -> Response[dict[str, Any] | None]:
    """The next pair to rate; 204 when there is none (left)."""
    shown = await next_task(service, request.user)
    return Response(shown, status_code=200 if shown else 204)


@get("/api/votes/summary", guards=[owner_only])
async def summary(service: NamedDependency[Service]) -> Any:
    """What `fledge votes` prints."""
    from fledge.feedback.agreement import statistics

    return msgspec.to_builtins(await service.read_apart(statistics))


@get("/api/export", guards=[owner_only])
async def export(service: NamedDependency[Service], format: FromQuery[str] = "dpo") -> Response[bytes]:
    """The votes as a data set, one JSON row a line."""
    from fledge.core.checkpoint import canonical_json
    from fledge.feedback.exports import FORMATS, export_rows

    if format not in FORMATS:
        raise Refused(400, f"format = {format[:40]!r}: must be one of {', '.join(FORMATS)}", param="format")
    made = await service.read_apart(lambda store: export_rows(store, format))
    headers = {"content-disposition": f'attachment; filename="{format}.jsonl"'}
    return Response(b"".join(map(canonical_json, made.rows)), media_type="application/jsonl", headers=headers)


HANDLERS = (page, static, me, ask, vote, conversations, conversation, forget, task, summary, export)
