"""What tests of the server share: a server at work, clients of its people, and the bodies they send."""

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from fledge.serve.service import Service

CONTEXT_TOKENS = 2048
OWNER_TOKEN = "owner-token-of-the-tests-0123456789abcdef"
RATERS = {"rater": "rater-token-of-the-tests", "other": "other-token-of-the-tests"}
QUESTIONS = ("Who wrote The Silent Harbour?", "What is the capital of Arvania?", "泰斯克河有多長？")


@dataclass
class Served:
    """A server at work."""

    url: str
    service: Service
    run: Path
    tokens: dict[str, str]  # owner, rater, other
    clients: list[httpx.Client] = field(default_factory=list)

    def client(self, who: str | None = "owner", **headers: str) -> httpx.Client:
        """An HTTP client with the token of `who` (None: without one) and these headers."""
        given = {"Authorization": f"Bearer {self.tokens[who]}"} if who else {}
        client = httpx.Client(base_url=self.url, headers=given | headers, timeout=30)
        self.clients.append(client)
        return client

    def ask(self, text: str = "Who are you?", who: str = "owner", **more: Any) -> dict[str, Any]:
        """Ask, read the stream to its end: {"events", "conversation", "texts", "drafts", "task"}."""
        body = {"messages": [{"role": "user", "content": text}], **more}
        with self.client(who).stream("POST", "/api/ask", json=body) as answer:
            assert answer.status_code == 200, answer.read()
            events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
        assert events[-1].get("done"), events[-1]
        texts, drafts = {}, {}
        for event in events:
            if "text" in event:
                texts[event["draft"]] = texts.get(event["draft"], "") + event["text"]
            elif "finish" in event:
                drafts[event["draft"]] = event["id"]
        task = (events[-1]["task"] or {}).get("id")
        return {
            "events": events, "conversation": events[0]["conversation"], "texts": texts, "drafts": drafts, "task": task,
        }  # fmt: skip


def new_vote(kind: str, **more: Any) -> dict[str, Any]:
    """Body of a vote with an id of its own."""
    return {"id": str(uuid.uuid4()), "kind": kind, **more}


def until(true: Callable[[], Any], seconds: float = 10.0) -> Any:
    """What `true` returns once it is something; fails after `seconds`. A server not up yet counts as nothing."""
    end = time.monotonic() + seconds
    while True:
        try:
            if found := true():
                return found
        except httpx.TransportError:
            pass
        assert time.monotonic() < end, f"nothing within {seconds} s"
        time.sleep(0.01)
