"""The gate in front of every route: who may come in, from where, and with how much.

A pure ASGI middleware. It lets a request through only when its Host is one of ours (a name an attacker's DNS can move to
127.0.0.1 is not), its token is known, a browser's POST comes from our own page, and its body is JSON of a sane size that
arrived in time. Whatever leaves carries the headers that keep a page from running or fetching anything foreign.
"""

import asyncio
import html
import ipaddress
import re
from collections.abc import Iterable
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from litestar.types import ASGIApp, Message, Receive, Scope, Send

from fledge.feedback.records import Person
from fledge.serve.errors import Refused

BODY_BYTES = 1_000_000  # a conversation of 256 kB with its escapes fits four times
BODY_SECONDS = 10.0  # for a whole body: slower clients are cut
_DRAINED_BYTES = 8 << 20  # of a body that is refused, so that its sender reads why; beyond, the connection just ends
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")

_SEALED = [
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        b"frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
_NO_STORE = (b"cache-control", b"no-store")
_CLOSE = (b"connection", b"close")
_JSON = (b"content-type", b"application/json")
_HTML = (b"content-type", b"text/html; charset=utf-8")
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>fledge</title><h1>fledge</h1><p>{}</p>
"""
_AT_START = "open the address that `fledge chat` printed when it started (it ends with ?token=...)"


class Hosts:
    """Which values of the Host header are ours: loopback names, the address bound to, and names given by the user."""

    def __init__(self, host: str, port: int, names: Iterable[str] = ()):
        self.port, self._names = port, frozenset(name.lower() for name in names)
        bound = f"[{host}]" if ":" in host else host.lower()
        self._own = {*LOOPBACK, bound}
        self._any_address = bound in ("0.0.0.0", "[::]")

    def __contains__(self, host: str) -> bool:
        match = re.fullmatch(r"(\[[0-9a-f:.]+\]|[^:\[\]]+)(?::(\d{1,5}))?", host.lower())
        if not match:
            return False
        name, port = match[1], match[2]
        if name in self._names:  # behind a proxy the port is the proxy's
            return True
        if int(port or 80) != self.port:
            return False
        # an address cannot be moved by DNS, so any is safe where the server listens on all of them
        return name in self._own or (self._any_address and _is_address(name))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """True where only this machine can connect."""
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host.strip("[]")).is_loopback)


class Guard:
    """Wraps `app`. `person_of` tells whose secret a token is, None where nobody's."""

    def __init__(self, app: ASGIApp, person_of, hosts: Hosts):
        self.app, self.person_of, self.hosts = app, person_of, hosts
        self.cookie = f"fledge_{hosts.port}"  # cookies know no ports: two servers on one machine must not share a name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        if scope["type"] != "http":
            return await send({"type": "websocket.close", "code": 1008, "reason": "WebSockets are not served"})
        send = _sealed(scope["path"], send)
        headers = dict(scope["headers"])
        try:
            self._check_origin(scope, headers)
            if (token := _token_in_query(scope)) is not None:
                return await self._sign_in(token, send)
            scope["user"] = self._person(scope, headers)
            body = await _body(scope["method"], headers, receive)
        except Refused as refused:
            by_eye = scope["path"] == "/" and b"text/html" in headers.get(b"accept", b"")
            await _refuse(refused, send, by_eye)
        else:
            await self.app(scope, _replay(body, receive), send)

    def _check_origin(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        host = headers.get(b"host", b"").decode("latin-1")
        if host not in self.hosts:
            raise Refused(
                421,
                f"Host {host[:100]!r} is not this server: use http://127.0.0.1:{self.hosts.port}; through a tunnel keep the "
                f"port (ssh -L {self.hosts.port}:127.0.0.1:{self.hosts.port}), behind a proxy start with --names {host[:60]}",
                code="wrong_host",
            )
        if scope["path"] != "/" and headers.get(b"sec-fetch-site", b"none") not in (b"same-origin", b"none"):
            raise Refused(403, "requests from other sites are refused", code="foreign_origin")
        if scope["method"] not in ("GET", "HEAD") and b"origin" in headers:
            _, _, origin = headers[b"origin"].decode("latin-1").partition("://")
            if origin.lower() != host.lower():
                raise Refused(403, f"Origin {origin[:100]!r} is not this server", code="foreign_origin")

    def _person(self, scope: Scope, headers: dict[bytes, bytes]) -> Person:
        kind, _, secret = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        by_cookie = kind.lower() != "bearer"
        if by_cookie:
            secret = _cookie(headers.get(b"cookie", b""), self.cookie)
        person = self.person_of(secret.strip()) if secret else None
        if person is None:
            raise Refused(
                401, f"no valid token: {_AT_START}, or send Authorization: Bearer TOKEN", code="invalid_api_key"
            )
        if by_cookie and scope["method"] not in ("GET", "HEAD"):
            if headers.get(b"x-fledge") != b"1":
                raise Refused(403, "a POST by cookie needs the header X-Fledge: 1", code="missing_header")
            if b"origin" not in headers:
                raise Refused(403, "a POST by cookie needs an Origin header", code="foreign_origin")
        return person

    async def _sign_in(self, token: str, send: Send) -> None:
        if self.person_of(token) is None:
            raise Refused(401, f"this token is not valid (any more): {_AT_START}", code="invalid_api_key")
        cookie = f"{self.cookie}={token}; HttpOnly; SameSite=Strict; Path=/"
        headers = [(b"location", b"/"), (b"set-cookie", cookie.encode()), (b"content-length", b"0"), _NO_STORE]
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def _token_in_query(scope: Scope) -> str | None:
    if scope["path"] != "/" or scope["method"] != "GET" or b"token=" not in scope["query_string"]:
        return None
    token = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
    return (
        token if re.fullmatch(r"[\x21\x23-\x2b\x2d-\x3a\x3c-\x5b\x5d-\x7e]{1,512}", token) else ""
    )  # a cookie's octets


def _cookie(raw: bytes, name: str) -> str:
    try:
        found = SimpleCookie(raw.decode("latin-1")).get(name)
    except CookieError:
        return ""
    return found.value if found else ""


def _sealed(path: str, send: Send) -> Send:
    """`send` that adds the safety headers; what the API says is stored nowhere."""
    extra = [*_SEALED, _NO_STORE] if path.startswith(("/api", "/v1")) else _SEALED

    async def sealed(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), *extra]
        await send(message)

    return sealed


async def _refuse(refused: Refused, send: Send, by_eye: bool) -> None:
    """The error as JSON, or as a page for somebody's eyes; the connection ends, for the body may not have been read."""
    body = _PAGE.format(html.escape(refused.message)).encode() if by_eye else refused.body()
    headers = [_HTML if by_eye else _JSON, (b"content-length", str(len(body)).encode()), _CLOSE]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _body(method: str, headers: dict[bytes, bytes], receive: Receive) -> bytes:
    """The whole body, within its limits of size and time."""
    has_body = headers.get(b"content-length", b"0") != b"0" or b"transfer-encoding" in headers
    if method != "POST":
        if has_body:
            raise Refused(400, f"a {method} request has no body here", code="unexpected_body")
        return b""
    if b"content-encoding" in headers:
        raise Refused(415, "compressed bodies are not read: send plain JSON", code="unsupported_media_type")
    kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if kind != b"application/json":
        raise Refused(415, "the body must be JSON with Content-Type: application/json", code="unsupported_media_type")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _read(headers, receive)
    except TimeoutError:
        raise Refused(408, f"the body did not arrive within {BODY_SECONDS:.0f} s", code="too_slow") from None


async def _read(headers: dict[bytes, bytes], receive: Receive) -> bytes:
    told = int(headers.get(b"content-length", b"0"))  # h11 refuses what is no number
    parts: list[bytes] = []
    size, more = 0, told <= _DRAINED_BYTES
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(400, "the body is cut short", code="incomplete_body")
        chunk, more = message["body"], message["more_body"]
        size += len(chunk)
        if size <= BODY_BYTES:
            parts.append(chunk)
        else:  # read on for a while, without keeping it
            parts.clear()
            more = more and size <= _DRAINED_BYTES
    if max(size, told) > BODY_BYTES:
        raise Refused(413, f"the body has over {BODY_BYTES:,} bytes, the limit", code="body_too_large")
    return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body that was read, then whatever comes after it (the client leaving)."""
    waiting = True

    async def replayed() -> Message:
        nonlocal waiting
        if waiting:
            waiting = False
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return replayed
