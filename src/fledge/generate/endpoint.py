"""A model elsewhere: any OpenAI-compatible endpoint, asked over HTTP, several questions at once.

What cannot be had is an error, never an empty answer. The key comes from an environment variable, goes to that endpoint
only, and is in no log and no error.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

from fledge.core.config import Settings

_RETRIED = (408, 409, 429, 500, 502, 503, 504, 529)
_OF_THE_QUESTION = (400, 413, 422)  # too long, filtered: another question may be answered
_LONGEST_WAIT_SECONDS = 60.0
_LARGEST_REPLY_BYTES = 4 << 20

T = TypeVar("T")


class EndpointConfig(Settings, frozen=True, kw_only=True):
    """Where a model elsewhere is and how it is asked."""

    url: str
    "Base of the API, such as http://localhost:8000/v1; /chat/completions is added."
    model: str
    "Name of the model there."
    key_variable: str = "FLEDGE_ENDPOINT_KEY"
    "Environment variable that holds the API key; without it no key is sent."
    temperature: float = 0.7
    "Temperature of the model there."
    top_p: float | None = None
    "Share of probability that is drawn from; None leaves it to the endpoint."
    max_tokens: int = 512
    "Longest reply, in tokens; a model that thinks aloud needs more."
    timeout_seconds: float = 60.0
    "Longest wait for one reply."
    retries: int = 5
    "Times a question is asked again after no reply, a busy server or a reply that cannot be read."
    backoff_seconds: float = 1.0
    "Wait before the first retry, doubled each time, at most 60 s."
    concurrency: int = 8
    "Questions under way at once."

    def problems(self) -> list[str]:
        """Every rule these settings break, in words."""
        parts = urllib.parse.urlsplit(self.url)
        found = []
        if parts.scheme not in ("http", "https") or not parts.netloc:
            found.append(f"url = {self.url!r}: must begin with http:// or https://, such as http://localhost:8000/v1")
        if parts.username or parts.password:
            found.append(f"url: must hold no password; put the key into the variable {self.key_variable}")
        if not self.model:
            found.append("model: empty; write URL#MODEL")
        for name in ("max_tokens", "concurrency"):
            if getattr(self, name) < 1:
                found.append(f"{name} = {getattr(self, name)}: must be at least 1")
        if self.retries < 0:
            found.append(f"retries = {self.retries}: must be at least 0")
        if not self.timeout_seconds > 0 or not self.backoff_seconds >= 0:
            found.append(
                f"timeout_seconds = {self.timeout_seconds}, backoff_seconds = {self.backoff_seconds}: "
                "must be above 0, and at least 0"
            )
        return found


class Reply(NamedTuple):
    """What came back for one question."""

    text: str  # "" where there is none
    finish: str  # finish_reason as the endpoint names it: "stop", "length", ...; "" where it names none
    refusal: str | None  # the endpoint's own field for a model that declines


class Unreadable(ValueError):
    """A reply that holds no answer to the question; asked again, for a model with a temperature may do better."""


class Unanswered(ValueError):
    """This one question gets no usable answer; another may."""


class _Busy(Exception):
    """No reply this time: asked again, after `wait_seconds` if the server named them."""

    def __init__(self, why: str, wait_seconds: float | None = None):
        super().__init__(why)
        self.wait_seconds = wait_seconds


class Endpoint:
    """Asks one model; safe to share between threads."""

    def __init__(self, config: EndpointConfig, name: str):
        """name: how errors call it, such as "judge:URL#MODEL". Nothing is asked yet."""
        self.config, self.name = config, name
        self._url = config.url.rstrip("/").removesuffix("/chat/completions") + "/chat/completions"

    def ask(self, messages: Sequence[dict[str, str]], read: Callable[[Reply], T], about: str) -> T:
        """What `read` makes of the reply; asked again, with growing waits, while that may help.

        about: names the question in errors. Raises Unanswered where this question gets none that `read` takes (it
        raises Unreadable), ConnectionError where the endpoint does not answer, ValueError where it refuses for good.
        """
        for attempt in range(self.config.retries + 1):
            last = attempt == self.config.retries
            try:
                return read(self._reply(messages))
            except Unreadable as error:
                if last:
                    raise Unanswered(
                        f"{self.name} gave {error} for {about}: it must follow the format it is asked for; use a model "
                        "that can, raise its max_tokens, or take these prompts out"
                    ) from None
            except _Busy as busy:
                if last:
                    raise ConnectionError(
                        f"{self.name} did not answer {attempt + 1} times, last: {busy}; check that it runs, or lower "
                        "its concurrency"
                    ) from None
                wait_seconds = busy.wait_seconds or self.config.backoff_seconds * 2**attempt
                time.sleep(min(_LONGEST_WAIT_SECONDS, wait_seconds))
        raise AssertionError("the last attempt returns or raises")

    def _reply(self, messages: Sequence[dict[str, str]]) -> Reply:
        """One question, one reply. Raises _Busy, Unreadable or, where asking again is no use, ValueError."""
        config = self.config
        asked = {
            "model": config.model, "messages": list(messages), "temperature": config.temperature,
            "max_tokens": config.max_tokens, **({} if config.top_p is None else {"top_p": config.top_p}),
        }  # fmt: skip
        request = urllib.request.Request(self._url, json.dumps(asked).encode(), {"Content-Type": "application/json"})
        if key := os.environ.get(config.key_variable):
            request.add_unredirected_header("Authorization", f"Bearer {key}")  # a redirect must not carry it elsewhere
        try:
            with urllib.request.urlopen(request, timeout=config.timeout_seconds) as reply:
                data = reply.read(_LARGEST_REPLY_BYTES)
        except urllib.error.HTTPError as error:
            raise self._refused(error) from None
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            why = getattr(error, "reason", None) or error
            slow = isinstance(why, TimeoutError | socket.timeout)
            raise _Busy(f"no reply within {config.timeout_seconds:g} s" if slow else str(why)) from None
        return _completion(data)

    def _refused(self, error: urllib.error.HTTPError) -> Exception:
        with error:
            said = error.read(300).decode("utf-8", "replace")
        if error.code in _RETRIED:
            wait = error.headers.get("Retry-After", "")
            return _Busy(f"HTTP {error.code}: {said}", float(wait) if re.fullmatch(r"\d+(\.\d+)?", wait) else None)
        hint = f"set {self.config.key_variable} to a valid key" if error.code in (401, 403) else "check url and model"
        kind = Unanswered if error.code in _OF_THE_QUESTION else ValueError
        return kind(f"{self.name} refused with HTTP {error.code}: {said!r}; {hint}")


def at_once(workers: int, jobs: Sequence[Callable[[], T]]) -> list[T]:
    """The results in order, `workers` jobs at a time; the first failure ends it, and what has not begun is left undone."""
    with ThreadPoolExecutor(max_workers=min(workers, max(1, len(jobs)))) as pool:
        running = [pool.submit(job) for job in jobs]
        try:
            return [job.result() for job in running]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def split_address(address: str) -> tuple[str, str]:
    """("http://host/v1", "org/model") of "http://host/v1#org/model"; the model is "" where none is named."""
    url, _, model = address.partition("#")
    return url, model


def require_text(reply: Reply) -> str:
    """The text of a reply. Raises Unreadable for a refusal and for an empty one."""
    if reply.text.strip():
        return reply.text
    raise Unreadable("an empty reply" if reply.refusal is None else f"a refusal ({brief(reply.refusal)})")


def brief(text: str) -> str:
    """The beginning of a text, quoted, for an error."""
    return repr(text if len(text) <= 200 else text[:200] + "...")


def _completion(data: bytes) -> Reply:
    """The first choice of a chat completion. Raises Unreadable for anything else."""
    try:
        held: Any = json.loads(data)
        choice = held["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        content, refusal = message.get("content"), message.get("refusal")
        f"{content}{refusal}".encode()  # half a surrogate pair could be stored nowhere
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise Unreadable(f"no chat completion ({brief(data.decode('utf-8', 'replace'))})") from None
    return Reply(
        content if isinstance(content, str) else "",
        finish if isinstance(finish, str) else "",
        refusal if isinstance(refusal, str) else None,
    )
