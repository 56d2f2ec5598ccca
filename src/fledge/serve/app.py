"""The web application: every route, how errors are told, and the gate around it all."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from litestar import Litestar, MediaType, Request, Response, Router
from litestar.di import Provide
from litestar.exceptions import HTTPException
from litestar.types import ASGIApp

from fledge.core.log import say
from fledge.feedback.records import Conflict, Invalid, Unknown
from fledge.serve import openai_api, page_api
from fledge.serve.errors import LOST, Refused, error_body
from fledge.serve.guard import Guard, Hosts
from fledge.serve.scheduler import Busy, EngineStopped
from fledge.serve.service import Service

_OWNERS = ("/api/runs", "/api/tree", "/api/leaderboard")  # of the views: what tells of models and of others' votes


def create_app(service: Service, hosts: Hosts) -> ASGIApp:
    """Everything a request passes through."""
    from fledge.serve.views import ROUTES

    def owners(handler: Any) -> bool:
        return any(path.startswith(_OWNERS) for path in handler.paths)

    app = Litestar(
        route_handlers=[
            *page_api.HANDLERS,
            *openai_api.HANDLERS,
            *(handler for handler in ROUTES if not owners(handler)),
            Router("/", route_handlers=[r for r in ROUTES if owners(r)], guards=[page_api.owner_only]),
        ],
        dependencies={"service": Provide(lambda: service, sync_to_thread=False)},
        exception_handlers={Exception: _failed, HTTPException: _told},
        lifespan=[lambda app: _following(service)],
        openapi_config=None,
        logging_config=None,
        request_max_body_size=None,  # the gate has read and measured it
        signature_namespace={"Service": Service},
    )
    app.state.service = service
    return Guard(app, service.person_of, hosts)


@asynccontextmanager
async def _following(service: Service) -> AsyncIterator[None]:
    """While the server runs, a promoted model is taken into service."""
    task = asyncio.create_task(service.follow())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def _answer(status: int, body: bytes, headers: dict[str, str] | None = None) -> Response[bytes]:
    return Response(body, status_code=status, media_type=MediaType.JSON, headers=headers)


def _told(_: Request, error: HTTPException) -> Response[bytes]:
    """litestar's own: unknown routes, wrong methods, bodies and parameters of a wrong shape."""
    extra = getattr(error, "extra", None)
    detail = f"{error.detail}: {extra}" if extra else error.detail
    return _answer(error.status_code, error_body(error.status_code, detail[:1000]), dict(error.headers or {}))


def _failed(request: Request, error: Exception) -> Response[bytes]:
    """Everything else that a handler may raise."""
    refused = _refusal(error)
    if refused is not None:
        return _answer(refused.status, refused.body(), refused.headers)
    import traceback

    say(f"{request.method} {request.url.path} failed:\n" + "".join(traceback.format_exception(error)))
    return _answer(500, error_body(500, "the server failed; its terminal says why"))


def _refusal(error: Exception) -> Refused | None:
    if isinstance(error, Refused):
        return error
    if isinstance(error, Busy):
        return Refused(429, str(error), code="rate_limit_exceeded", retry_seconds=1)
    if isinstance(error, EngineStopped):
        return Refused(503, str(error), code="engine_stopped")
    if isinstance(error, Unknown):
        return Refused(404, LOST, code="not_found")
    if isinstance(error, Conflict):
        return Refused(409, str(error), code="conflict")
    if isinstance(error, Invalid):
        return Refused(422, str(error), code="invalid_value")
    if isinstance(error, RecursionError):
        return Refused(400, "the JSON is nested too deeply", code="invalid_json")
    if isinstance(error, ValueError):
        return Refused(400, str(error), code="invalid_value")
    return None
