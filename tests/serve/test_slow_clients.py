"""Clients that dawdle, flood or leave: the others are answered meanwhile, and nothing is left behind."""

import contextlib
import gzip
import json
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from live_server import OWNER_TOKEN, Served, until

from fledge.generate.sampling import Sampling
from fledge.serve import protocol

SLOW = 200
ANSWER_SECONDS = 2.0
HELLO = [{"role": "user", "content": "Who are you?"}]


def connect(served: Served) -> socket.socket:
    name, port = served.url.removeprefix("http://").split(":")
    return socket.create_connection((name, int(port)), timeout=10)


def head(served: Served, route: str = "/v1/chat/completions", **headers: str) -> bytes:
    lines = [
        f"POST {route} HTTP/1.1",
        f"Host: {served.url.removeprefix('http://')}",
        f"Authorization: Bearer {OWNER_TOKEN}",
    ]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n"


def chat_seconds(served: Served) -> float:
    """How long a normal chat takes now."""
    started = time.monotonic()
    body = {"messages": HELLO, "max_tokens": 16}
    assert served.client("other").post("/v1/chat/completions", json=body).status_code == 200
    return time.monotonic() - started


@contextlib.contextmanager
def slow_headers(served: Served) -> Iterator[None]:
    """200 connections that send one byte of an endless header now and then."""
    with contextlib.ExitStack() as stack:
        opened = [stack.enter_context(connect(served)) for _ in range(SLOW)]
        for one in opened:
            one.sendall(b"GET / HTTP/1.1\r\nX-a: ")
        yield
        for one in opened:
            with contextlib.suppress(OSError):
                one.sendall(b"b")


@contextlib.contextmanager
def slow_bodies(served: Served) -> Iterator[None]:
    """200 connections that announce a body and send its first byte."""
    with contextlib.ExitStack() as stack:
        for _ in range(SLOW):
            one = stack.enter_context(connect(served))
            one.sendall(head(served, Content_Type="application/json", Content_Length="1000") + b"\r\n{")
        yield


@contextlib.contextmanager
def slow_readers(served: Served) -> Iterator[None]:
    """Connections that ask for streams and never read them."""
    body = json.dumps({"messages": HELLO, "stream": True, "max_tokens": 2000}).encode()
    with contextlib.ExitStack() as stack:
        for _ in range(4):
            one = stack.enter_context(connect(served))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            length = str(len(body))
            one.sendall(head(served, Content_Type="application/json", Content_Length=length) + b"\r\n" + body)
        yield


def flood(served: Served, first: bytes, chunk: bytes, chunks: int) -> bytes:
    """Send `first`, then `chunk` again and again; what the server answered before it cut the connection."""
    with connect(served) as one:
        try:
            one.sendall(first)
            for _ in range(chunks):
                one.sendall(chunk)
        except OSError:
            pass  # cut: as it should be
        with contextlib.suppress(OSError):
            return one.recv(65536)
    return b""


@contextlib.contextmanager
def huge_bodies(served: Served) -> Iterator[None]:
    """Bodies of 1 GB: announced, sent in chunks, and packed."""
    chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
    bomb = gzip.compress(b"x" * (64 << 20))
    threads = [
        threading.Thread(target=flood, args=(served, *given))
        for given in (
            (head(served, Content_Type="application/json", Content_Length=str(10**9)) + b"\r\n", b"x" * (1 << 20), 1000),
            (head(served, Content_Type="application/json", Transfer_Encoding="chunked") + b"\r\n", chunk, 1000),
            (head(served, Content_Type="application/json", Content_Encoding="gzip", Content_Length=str(len(bomb))) + b"\r\n", bomb, 1),
        )
    ]  # fmt: skip
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join(timeout=20)
        assert not thread.is_alive(), "1 GB was read to its end"


@contextlib.contextmanager
def huge_headers(served: Served) -> Iterator[None]:
    """A header line of 1 MB, and a thousand lines."""
    assert flood(served, b"GET / HTTP/1.1\r\nX-a: ", b"b" * 65536, 16)[9:12] in (b"400", b"")
    assert flood(served, b"GET / HTTP/1.1\r\n", b"X-a: b\r\n" * 1000, 16)[9:12] in (b"400", b"")
    yield


@contextlib.contextmanager
def huge_wishes(served: Served) -> Iterator[None]:
    """Requests for a million answers and a billion tokens."""
    for wish in ({"n": 10**6}, {"max_tokens": 10**9}, {"n": 10**6, "max_tokens": 10**9, "stream": True}):
        answer = served.client().post("/v1/chat/completions", json={"messages": HELLO, **wish})
        assert answer.status_code == 400 and "from 1 to" in answer.json()["error"]["message"]
    long = {"messages": [{"role": "user", "content": "a" * 250_000}]}
    for route in ("/v1/chat/completions", "/api/ask"):
        assert served.client().post(route, json=long).status_code == 400
    yield


@pytest.mark.parametrize(
    "trouble",
    [slow_headers, slow_bodies, slow_readers, huge_bodies, huge_headers, huge_wishes],
    ids=lambda t: t.__name__,
)
def test_a_normal_chat_is_answered_meanwhile(served: Served, trouble: Callable):
    process = psutil.Process()
    before = process.memory_info().rss
    with trouble(served):
        assert chat_seconds(served) < ANSWER_SECONDS
        assert chat_seconds(served) < ANSWER_SECONDS
        assert process.memory_info().rss - before < 300 << 20
    assert chat_seconds(served) < ANSWER_SECONDS


@pytest.mark.parametrize(
    "text", ["a" * 250_000, " " * 250_000, "!" * 250_000, "1" * 250_000, "的" * 80_000, "a\n" * 125_000]
)
def test_long_runs_of_one_character_do_not_hold_up_others(served: Served, text: str):
    done: list[int] = []

    def send() -> None:
        answer = served.client().post(
            "/v1/chat/completions", json={"messages": [{"role": "user", "content": "x" + text}]}
        )
        done.append(answer.status_code)

    thread = threading.Thread(target=send)
    thread.start()
    assert chat_seconds(served) < ANSWER_SECONDS
    thread.join()
    assert done == [400]


def test_a_connection_that_sends_no_whole_header_is_cut(served: Served, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.3)
    for first in (b"", b"GET / HTTP/1.1\r\n"):
        with connect(served) as one:
            started = time.monotonic()
            one.sendall(first)
            if first:  # a second request on a kept connection is timed as well
                host = served.url.removeprefix("http://")
                one.sendall(f"Host: {host}\r\n\r\n".encode())
                assert b"401" in one.recv(65536)
                continue
            with contextlib.suppress(ConnectionResetError):
                assert one.recv(65536) == b""
            assert 0.2 < time.monotonic() - started < 5


def test_a_request_on_a_kept_connection_is_timed_too(served: Served, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(protocol, "HEADER_SECONDS", 0.3)
    host = served.url.removeprefix("http://")
    with connect(served) as one:
        one.sendall(f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {OWNER_TOKEN}\r\n\r\n".encode())
        got = b""
        while not got.endswith(b"]}"):
            got += one.recv(65536)
        assert got.startswith(b"HTTP/1.1 200")
        time.sleep(0.5)  # idle between requests: not a slow header
        one.sendall(b"GET /v1/models HTTP/1.1\r\n")
        started = time.monotonic()
        with contextlib.suppress(ConnectionResetError):
            assert one.recv(65536) == b""
        assert 0.2 < time.monotonic() - started < 5


@pytest.fixture
def narrow(serve: Callable, journey: Path, tmp_path: Path) -> Iterator[Served]:
    """A server that writes one answer at a time and lets nobody wait."""
    import shutil

    shutil.copytree(journey / "sft", tmp_path / "sft")
    with serve(tmp_path / "sft", slots=1, queue=0, per_person=1, sampling=Sampling(max_tokens=2000)) as served:
        yield served


def test_a_client_that_leaves_frees_its_slot_at_once_many_times(narrow: Served, slow_engine: None):
    """With one slot and no queue the next client is let in only when the one before has really gone."""
    requests = [
        ("/v1/chat/completions", {"messages": HELLO, "stream": True, "max_tokens": 2000}),
        ("/api/ask", {"messages": HELLO, "drafts": 2}),
        ("/v1/completions", {"prompt": "The", "stream": True, "max_tokens": 2000, "n": 4}),
        ("/v1/chat/completions", {"messages": HELLO, "max_tokens": 2000}),  # leaves before the answer
    ]
    process, slowest = psutil.Process(), 0.0

    def idle() -> bool:
        """Nothing is being written, nor begins again: an answer may end by itself just before its reader has left."""
        seen = []
        for _ in range(3):
            seen.append(narrow.service.scheduler.busy)
            time.sleep(0.005)
        return not any(seen)

    for number in range(100):
        route, body = requests[number % len(requests)]
        raw = json.dumps(body).encode()
        with connect(narrow) as one:
            one.sendall(
                head(narrow, route, Content_Type="application/json", Content_Length=str(len(raw))) + b"\r\n" + raw
            )
            if route == "/v1/chat/completions" and not body.get("stream"):
                # a short answer may be there before anybody looked: then it is an answer, not a refusal
                until(lambda: narrow.service.scheduler.busy or select.select([one], [], [], 0)[0])
                if select.select([one], [], [], 0)[0]:
                    assert one.recv(65536).startswith(b"HTTP/1.1 200")
            else:
                got = b""
                while b'"text":' not in got and b'"content":"' not in got:
                    got += one.recv(65536)
                assert got.startswith(b"HTTP/1.1 200")
        left = time.monotonic()
        until(lambda: not narrow.service.scheduler.busy, seconds=2)
        slowest = max(slowest, time.monotonic() - left)
        until(idle)
        if number == 20:
            threads, files, memory = process.num_threads(), process.num_fds(), process.memory_info().rss
    assert slowest < 1
    assert narrow.client().post("/v1/chat/completions", json={"messages": HELLO, "max_tokens": 2}).status_code == 200
    assert process.num_threads() <= threads + 4 and process.num_fds() <= files + 8
    assert process.memory_info().rss - memory < 30 << 20
    assert narrow.service.scheduler.busy == 0
    stopped = [d for c in narrow.service.store.conversations(narrow.service.owner.id)
               for d in narrow.service.store.conversation(narrow.service.owner.id, c.id).drafts]  # fmt: skip
    assert stopped and {d.finish for d in stopped} <= {"stopped", "stop"}
