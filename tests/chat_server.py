"""An OpenAI-compatible endpoint in a thread, whose answers a test decides."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

Reply = str | tuple[int, dict, str]


class ChatServer:
    """`answer(text of the user's message, number of the request)` gives the content, or (status, headers, body)."""

    def __init__(self, answer: Callable[[str, int], Reply]):
        self.answer, self.requests, self.busy, self.most = answer, [], 0, 0
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer.lock:
                    number = len(outer.requests)
                    outer.requests.append((self.path, dict(self.headers), body))
                    outer.busy += 1
                    outer.most = max(outer.most, outer.busy)
                reply = outer.answer(body["messages"][-1]["content"], number)
                with outer.lock:
                    outer.busy -= 1
                if isinstance(reply, str):
                    reply = (200, {}, json.dumps({"choices": [{"message": {"role": "assistant", "content": reply}}]}))
                status, headers, text = reply
                data = text.encode()
                try:
                    self.send_response(status)
                    for key, value in {"Content-Length": str(len(data)), **headers}.items():
                        self.send_header(key, value)
                    self.end_headers()
                    self.wfile.write(data)
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the slow test hangs up

            def do_GET(self):  # what a redirect makes of a POST
                outer.requests.append((self.path, dict(self.headers), None))
                self.send_error(404)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()


@pytest.fixture
def endpoint(monkeypatch) -> Iterator[Callable[[Callable[[str, int], Reply]], ChatServer]]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    for name in ("FLEDGE_JUDGE_KEY", "FLEDGE_ENDPOINT_KEY"):
        monkeypatch.delenv(name, raising=False)
    made: list[ChatServer] = []

    def start(answer: Callable[[str, int], Reply]) -> ChatServer:
        made.append(ChatServer(answer))
        return made[-1]

    yield start
    for one in made:
        one.server.shutdown()
        one.server.server_close()
