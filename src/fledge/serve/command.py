"""`fledge chat RUN`: one local address where people talk with a model and vote; or the chat in the terminal."""

import asyncio
import os
import resource
import secrets
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from fledge.core.config import Settings
from fledge.core.log import say
from fledge.generate.sampling import Sampling
from fledge.serve.app import create_app
from fledge.serve.guard import Hosts, is_loopback
from fledge.serve.protocol import Protocol
from fledge.serve.service import Service, open_service

TOKEN_VARIABLE = "FLEDGE_TOKEN"
_TOKEN_CHARS = 32
_CONNECTIONS = 4096
_HEADER_BYTES = 32 << 10


class ChatOptions(Settings, frozen=True, kw_only=True):
    """Talk with a run's model in the browser, vote on its answers, and serve it to OpenAI's clients."""

    run: str
    "A run, a journey, a stage's folder or a checkpoint."
    compare: list[str] = []
    "Other runs: two drafts at once then come from the run's model and one of these, blind."
    port: int = 8000
    "Port of the page and the API; 0 takes a free one."
    host: str = "127.0.0.1"
    "Address to listen on; others than this machine's own need --token."
    names: list[str] = []
    "Host names under which a proxy offers this server."
    token: str | None = None
    "The owner's token, at least 32 characters; none makes one. Better in the environment variable FLEDGE_TOKEN."
    store: str | None = None
    "Where votes are kept: none is RUN/votes.sqlite3; or postgresql://USER@HOST/NAME."
    prompts: str | None = None
    "File of prompts ({prompt}) whose answers are rated pair by pair."
    gold: str | None = None
    "File of questions with known answers ({prompt, good, bad}), which rate the raters."
    gold_share: float = 0.05
    "How often a gold question comes among the pairs to rate."
    open: bool = True
    "Open the page in the browser when started from a terminal."
    slots: int = 32
    "Answers written at the same time, per model."
    queue: int = 256
    "Answers that may wait for a slot; more are refused with 429."
    per_person: int = 4
    "Answers one person (or one program with the person's token) may have open at once."
    terminal: bool = False
    "Chat here in the terminal instead; nothing is stored."
    system: str | None = None
    "Terminal: a system message, kept when old turns are dropped."
    sampling: Sampling = Sampling(max_tokens=256)
    "How tokens are drawn where a client does not say."

    def problems(self) -> list[str]:
        found = self.sampling.problems()
        if not 0 <= self.port < 65536:
            found.append(f"port = {self.port}: must be 1 to 65535, or 0 for a free one")
        if not 0 <= self.gold_share <= 1:
            found.append(f"gold_share = {self.gold_share}: must be a share from 0 to 1")
        if self.slots < 1 or self.queue < 0 or self.per_person < 1:
            found.append(
                f"slots = {self.slots}, queue = {self.queue}, per_person = {self.per_person}: at least 1, 0 and 1"
            )
        if self.token is not None and len(self.token) < _TOKEN_CHARS:
            found.append(f"token has {len(self.token)} characters: at least {_TOKEN_CHARS}, or none to have one made")
        return found


def run(options: ChatOptions) -> None:
    """Serve until Ctrl-C."""
    if options.terminal:
        from fledge.serve import terminal

        terminal.run(terminal.ChatOptions(run=options.run, system=options.system, sampling=options.sampling))
        return
    token = owner_token(options)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)  # a manager's stop closes as Ctrl-C does
    _allow_connections()
    listening = listen(options)
    try:
        service = open_service(options, token)
        try:
            _announce(options, service, listening)
            _serve(make_server(options, service, listening), listening)
        finally:
            service.close()
    except KeyboardInterrupt:
        pass  # the server may also have ended by itself on the signal
    finally:
        listening.close()
        signal.signal(signal.SIGTERM, before)
    say("closed; every vote is stored")


def _serve(server: "Server", listening: socket.socket) -> None:
    """Serve until it is told to stop; in a thread where this one has an event loop at work, as a notebook's has."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        server.run(sockets=[listening])
        return
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="server", daemon=True)
    thread.start()
    try:
        thread.join()
    finally:
        server.should_exit = True
        thread.join()


def _allow_connections() -> None:
    """Shells often allow 1,024 open files; idle connections alone could use them up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * _CONNECTIONS if hard == resource.RLIM_INFINITY else min(2 * _CONNECTIONS, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def owner_token(options: ChatOptions) -> str:
    """The owner's token: given, from the environment, or made. Raises ValueError where a given one is required."""
    token = options.token or os.environ.get(TOKEN_VARIABLE) or None
    if token is not None:
        _check(token)
    if token is None and not is_loopback(options.host):
        raise ValueError(
            f"host = {options.host!r}: others could connect from the network, so the owner's token must be yours: set "
            f"{TOKEN_VARIABLE} (or --token) to at least {_TOKEN_CHARS} random characters, and put TLS in front. From one "
            f"other machine rather: ssh -L {options.port}:127.0.0.1:{options.port} THIS_MACHINE"
        )
    return token or secrets.token_urlsafe(32)


def _check(token: str) -> None:
    if len(token) < _TOKEN_CHARS:
        raise ValueError(f"{TOKEN_VARIABLE} has {len(token)} characters: at least {_TOKEN_CHARS}, or unset it")
    if not all(c.isascii() and (c.isalnum() or c in "-._~+/=") for c in token):
        raise ValueError(f"{TOKEN_VARIABLE}: a token is made of letters, digits and -._~+/=")


def listen(options: ChatOptions) -> socket.socket:
    """The bound socket, before any model is loaded. Raises ValueError naming a free port where this one is taken."""
    host = options.host.strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # named a TCP socket, or asyncio would leave Nagle's algorithm on and each answer would wait 40 ms for an ACK
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, options.port))
        listening.listen(2048)
    except OSError as error:
        listening.close()
        if options.port and _free(family, host, 0):
            free = next((p for p in range(options.port + 1, options.port + 100) if _free(family, host, p)), 0)
            raise ValueError(f"port {options.port} cannot be had ({error.strerror}): give --port {free}") from None
        raise ValueError(f"host = {options.host!r} cannot be listened on: {error.strerror or error}") from None
    return listening


def _free(family: int, host: str, port: int) -> bool:
    with socket.socket(family) as trial:
        try:
            trial.bind((host, port))
        except OSError:
            return False
    return True


def _announce(options: ChatOptions, service: Service, listening: socket.socket) -> None:
    host = options.host if is_loopback(options.host) else options.host.replace("0.0.0.0", "127.0.0.1")
    shown = f"[{host}]" if ":" in host and not host.startswith("[") else host
    url = f"http://{shown}:{listening.getsockname()[1]}/?token={service.token}"
    names = ", ".join(f"{m.name} ({m.stage}, {m.id[:12]})" for m in service.models.values() if m.served)
    say(f"serving {names}; votes in {service.where}; Ctrl-C closes")
    print(url, flush=True)
    if options.open and sys.stdout.isatty():
        import webbrowser

        threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()


class Server(uvicorn.Server):
    """Ends open answers first when it is told to stop, so that closing takes moments and what was written is kept."""

    def __init__(self, config: uvicorn.Config, service: Service):
        super().__init__(config)
        self._service = service

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._service.end_answers()
        await super().shutdown(sockets)


def make_server(options: ChatOptions, service: Service, listening: socket.socket) -> Server:
    """The server for a bound socket."""
    hosts = Hosts(options.host, listening.getsockname()[1], options.names)
    config = uvicorn.Config(
        create_app(service, hosts),
        http=Protocol,
        ws="none",
        lifespan="on",
        log_level="error",
        access_log=False,  # addresses hold tokens
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_CONNECTIONS,
        h11_max_incomplete_event_size=_HEADER_BYTES,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=3,
    )
    return Server(config, service)


@contextmanager
def serving_in_thread(options: ChatOptions) -> Iterator[tuple[str, Service]]:
    """(url, service) of a server that runs in a thread of this process while the context is open."""
    with listen(options) as listening:
        service = open_service(options, owner_token(options))
        server = make_server(options, service, listening)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, name="server", daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", service
        finally:
            server.should_exit = True
            thread.join()
            service.close()
