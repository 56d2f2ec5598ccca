"""10,000 generated bodies over every JSON route: no 5xx, no hang, and memory stays where it was."""

import json
import random
import socket
import time
from typing import Any

import psutil
import pytest
from live_server import Served

COUNT = 10_000
GROWTH_BYTES = 50 << 20
SECONDS = 5.0  # longest answer to any body

WORDS = ("", "hi", "Who are you?", "泰斯克河", "🙂", "\u0000", "\u202e", "a" * 3000, "<img onerror=x>", "user", "assistant", "system",
         "left", "same", "thumb", "pair", "edit", "forget me", "default", "sft", "text", "image_url")  # fmt: skip
NUMBERS = (0, 1, -1, 2, 3, 5, 0.5, 1.0, -0.0, 1e-320, 1e308, 2**31, 2**53, 2**63, 2**64, 10**30, -(10**30), 100, 8, 16)
RAW = (b"", b"{", b"[]", b"null", b"NaN", b'{"a":NaN}', b"\xff\xfe", b'{"a":"\\ud800"}', b"[" * 20_000, b'{"a":' * 20_000, b"1e400",
       b'{"messages":[{"role":"user","content":"hi"}],"messages":[]}', b'{"a":1}{"b":2}', b"\x00" * 100, b'"' + b"x" * 50_000 + b'"')  # fmt: skip
# what each route knows, so that bodies get past the first check now and then
FIELDS = {
    "/api/ask": ("messages", "conversation", "drafts", "sampling", "regenerate"),
    "/api/votes": ("id", "kind", "draft", "task", "value", "choice", "text", "reasons", "comment", "dwell_ms", "client_ms", "vote"),
    "/api/forget": ("confirm",),
    "/api/next": ("text", "models", "messages", "tokens", "append", "top"),
    "/api/shift": ("draft", "prompt", "answer", "model", "base"),
    "/v1/chat/completions": ("model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature",
                             "top_p", "top_k", "n", "seed", "stop", "logprobs", "top_logprobs", "tools", "user", "logit_bias"),
    "/v1/completions": ("model", "prompt", "stream", "max_tokens", "temperature", "top_p", "n", "seed", "stop", "logprobs", "echo"),
}  # fmt: skip


class Bodies:
    """Seeded bodies: raw rubbish, random JSON, and good bodies with one or two things changed."""

    def __init__(self, seed: int, good: dict[str, list[dict[str, Any]]]):
        self.random, self.good = random.Random(seed), good

    def value(self, depth: int = 0) -> Any:
        kinds = (
            ("word", "number", "none", "bool") if depth > 2 else ("word", "number", "none", "bool", "list", "object")
        )
        kind = self.random.choice(kinds)
        if kind == "list":
            return [self.value(depth + 1) for _ in range(self.random.choice((0, 1, 2, 5, 40)))]
        if kind == "object":
            names = ("role", "content", "type", "text", "temperature", "max_tokens", "seed", "x")
            return {self.random.choice(names): self.value(depth + 1) for _ in range(self.random.randrange(4))}
        return {"word": self.random.choice(WORDS), "number": self.random.choice(NUMBERS), "none": None, "bool": True}[
            kind
        ]

    def next(self) -> tuple[str, bytes]:
        route = self.random.choice(list(FIELDS))
        lot = self.random.random()
        if lot < 0.05:
            return route, self.random.choice(RAW)
        if lot < 0.25:
            body = {name: self.value() for name in FIELDS[route] if self.random.random() < 0.4}
        else:
            body = json.loads(json.dumps(self.random.choice(self.good[route])))
            for _ in range(self.random.choice((1, 1, 2))):
                self._change(body, route)
        return route, json.dumps(body).encode()

    def _change(self, body: dict[str, Any], route: str) -> None:
        """Set, drop or add a field, here or in an object within."""
        inner = [v for v in body.values() if isinstance(v, dict)]
        inner += [item for v in body.values() if isinstance(v, list) for item in v if isinstance(item, dict)]
        target = self.random.choice(inner) if inner and self.random.random() < 0.5 else body
        names = [*target, self.random.choice((*FIELDS[route], "wizard"))]
        name = self.random.choice(names)
        if self.random.random() < 0.15:
            target.pop(name, None)
        else:
            target[name] = self.value()


class Connection:
    """One kept-alive HTTP/1.1 connection by hand: a client library would cost more than the server."""

    def __init__(self, served: Served):
        self._host = served.url.removeprefix("http://")
        self._head = f"Host: {self._host}\r\nAuthorization: Bearer {served.tokens['rater']}\r\nContent-Type: application/json\r\n"
        self._socket: socket.socket | None = None

    def post(self, route: str, body: bytes) -> int:
        """The status, once the whole answer is read."""
        if self._socket is None:
            name, port = self._host.split(":")
            self._socket = socket.create_connection((name, int(port)), timeout=SECONDS)
            self._file = self._socket.makefile("rb")
        head = f"POST {route} HTTP/1.1\r\n{self._head}Content-Length: {len(body)}\r\n\r\n"
        self._socket.sendall(head.encode() + body)
        status = int(self._file.readline().split(b" ")[1])
        headers = dict(line.lower().strip().split(b": ", 1) for line in iter(self._file.readline, b"\r\n"))
        if b"content-length" in headers:
            self._file.read(int(headers[b"content-length"]))
        elif status != 204:
            while size := int(self._file.readline(), 16):
                self._file.read(size + 2)
            self._file.readline()
        if headers.get(b"connection") == b"close":
            self._socket.close()
            self._socket = None
        return status


@pytest.fixture(scope="module")
def good(served: Served) -> dict[str, list[dict[str, Any]]]:
    """Bodies that are answered with 200."""
    made = served.ask("Who are you?", who="rater", drafts=2, sampling={"max_tokens": 4})
    messages = [{"role": "user", "content": "Who are you?"}]
    sampling = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 2, "seed": 1}
    id = "0190163d-8694-739b-aea5-966c26f8ad9"
    return {
        "/api/ask": [{"messages": messages, "sampling": sampling, "drafts": n} for n in (1, 2)]
        + [{"messages": messages, "sampling": sampling, "conversation": made["conversation"]}],
        "/api/votes": [
            {"id": f"{id}1", "kind": "thumb", "draft": made["drafts"][0], "value": 1, "reasons": ["clear"], "comment": "c"},
            {"id": f"{id}2", "kind": "pair", "task": made["task"], "choice": "left", "dwell_ms": 5, "client_ms": 5},
            {"id": f"{id}3", "kind": "edit", "draft": made["drafts"][0], "text": "I am."},
            {"id": f"{id}4", "kind": "retract", "vote": f"{id}1"},
        ],
        "/api/forget": [{"confirm": "forget you"}],
        "/api/next": [{"text": "The capital", "top": 5}],
        "/api/shift": [{"prompt": "Who?", "answer": "I am.", "model": "aligned", "base": "sft"}],
        "/v1/chat/completions": [{"model": "default", "messages": messages, **sampling, "n": 2, "stop": ["x"], "stream": stream}
                                 for stream in (False, True)]
        + [{"messages": messages, **sampling, "logprobs": True, "top_logprobs": 2}],
        "/v1/completions": [{"model": "sft", "prompt": prompt, "max_tokens": 2, "logprobs": 1} for prompt in ("The", [1, 20, 30])],
    }  # fmt: skip


def test_ten_thousand_bodies(served: Served, good: dict[str, list[dict[str, Any]]]):
    connection, bodies, process = Connection(served), Bodies(0, good), psutil.Process()
    for _ in range(500):  # caches fill, pools open
        connection.post(*bodies.next())
    before, statuses, longest = process.memory_info().rss, {}, 0.0
    for n in range(COUNT):
        route, body = bodies.next()
        started = time.monotonic()
        status = connection.post(route, body)
        longest = max(longest, time.monotonic() - started)
        statuses[status] = statuses.get(status, 0) + 1
        assert status < 500, f"{n}: {status} for {route} {body[:500]!r}"
    growth = process.memory_info().rss - before
    assert growth < GROWTH_BYTES, f"{growth / 2**20:.0f} MB"
    assert longest < SECONDS
    assert statuses[200] > COUNT / 50 and statuses[400] > COUNT / 10, statuses  # both sides of the checks were met
    assert set(statuses) <= {200, 201, 400, 403, 404, 409, 422}, statuses
    assert served.ask("Still there?", sampling={"max_tokens": 2})["drafts"]
    assert served.service.store.verify().problems == []
