"""One engine thread writes every answer; asyncio readers take them piece by piece.

    scheduler = Scheduler({"mine": open_model("runs/mine")})
    scheduler.start()
    ticket = scheduler.submit("mine", prompt, Sampling(), stop=("\\n\\n",), person="p_1")
    async for piece in ticket: ...
    scheduler.close()

The engine thread takes orders (join, leave) between calls of Live.go, each of a few milliseconds, and hands everything
written since to the event loop in one callback. Everything about a ticket that a reader sees changes on the event loop
only, so no lock is held anywhere.
"""

import asyncio
import itertools
import sys
import threading
import time
import traceback
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import NamedTuple

from fledge.generate.chat import chat_engine
from fledge.generate.live import Live, Written
from fledge.generate.sampling import Sampling
from fledge.stages.common import Parent
from fledge.text.tokenizer import StreamDecoder, Tokenizer

_TURN_SECONDS = 0.01  # a call of the engine: after so long it looks who joins and who leaves
_SHORTEST_TURN_SECONDS = (
    0.002  # with many models at work each gets less, but not so little that turns cost more than steps
)
_HANDOVER_SECONDS = (
    0.02  # readers get their pieces so often: each costs the event loop some 50 us, and no eye is faster
)
_STEPS = 1 << 20  # of a call at most: the clock ends it


class Busy(Exception):
    """Too much at once; the message names the limit. Worth another try a little later."""


class EngineStopped(RuntimeError):
    """The engine thread has ended (it crashed, or the scheduler was closed): nothing more will be written."""


class Piece(NamedTuple):
    """What was written since the piece before."""

    text: str  # whole characters, without stop texts
    tokens: list[int]
    logp: list[float]  # of each token, under the distribution really sampled from, nats
    finish: str | None  # "stop", "length" or "stopped" (cancelled) in the last piece


class StopText:
    """Tokens in, text out: whole characters, cut before the first stop text, held back while one may be beginning."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]):
        self._decoder, self._stop, self._held = StreamDecoder(tokenizer), tuple(filter(None, stop)), ""

    def push(self, tokens: Sequence[int]) -> tuple[str, int, bool]:
        """(text that is final, how many of the tokens belong to the answer, whether a stop text ended it)."""
        if not self._stop:
            return self._decoder.push_all(tokens), len(tokens), False
        text = ""
        for count, token in enumerate(tokens, 1):
            final, stopped = self._take(self._decoder.push(token))
            text += final
            if stopped:
                return text, count, True
        return text, len(tokens), False

    def finish(self) -> tuple[str, bool]:
        """What was held back, once no more tokens come; True if even then a stop text ended it."""
        text, stopped = self._take(self._decoder.finish())
        return (text, True) if stopped else (text + self._held, False)

    def _take(self, new: str) -> tuple[str, bool]:
        held = self._held + new
        found = [at for at in map(held.find, self._stop) if at >= 0]
        if found:
            self._held = ""
            return held[: min(found)], True
        keep = max((_overlap(held, stop) for stop in self._stop), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], False


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


class _Served:
    """One model at work. `live`, `waiting` and `writing` belong to the engine thread, `open` to the event loop."""

    def __init__(self, parent: Parent):
        self.parent, self.engine = parent, chat_engine(parent.model, parent.tokenizer)
        self.live: Live | None = None  # made at its first answer: packing the weights takes a while
        self.waiting: deque[Ticket] = deque()
        self.writing: dict[int, Ticket] = {}
        self.open = 0


class Ticket:
    """One answer being written. Read it by `async for piece in ticket` or `await ticket.whole()`, in one place only.

    tokens, logp, text and finish hold everything written so far; parent is the model that writes it, whatever is
    served under its name by then.
    """

    def __init__(
        self, scheduler: "Scheduler", served: _Served, number: int, prompt: Sequence[int], sampling: Sampling,
        stop: Sequence[str], stream: int, person: str,
    ):  # fmt: skip
        self.parent, self.number, self.prompt, self.sampling = served.parent, number, tuple(prompt), sampling
        self.stream, self.person = stream, person
        self.tokens: list[int] = []
        self.logp: list[float] = []
        self.text, self.finish, self.error = "", None, None
        self._scheduler, self._served = scheduler, served
        self._words, self._news = StopText(served.parent.tokenizer, stop), asyncio.Event()
        self._read = (0, 0)  # characters and tokens the reader has had

    def cancel(self) -> None:
        """Stop writing; what is written stays, finish is "stopped". Nothing happens to an answer that has ended."""
        if self.finish is None and self.error is None:
            self._scheduler._leave(self)
            self._end("stopped")

    async def __aiter__(self) -> AsyncIterator[Piece]:
        """Pieces until the answer ends; a reader that goes away cancels it. Raises EngineStopped if the engine did."""
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                piece = self._piece()
                if piece.text or piece.finish:
                    yield piece
                if self.error is not None:
                    raise self.error
                if piece.finish:
                    return
        finally:
            self.cancel()

    async def whole(self) -> "Ticket":
        """This ticket, once its answer has ended. Cancelled while waiting, it cancels the answer too."""
        async for _ in self:
            pass
        return self

    def _piece(self) -> Piece:
        characters, tokens = self._read
        self._read = len(self.text), len(self.tokens)
        return Piece(self.text[characters:], self.tokens[tokens:], self.logp[tokens:], self.finish)

    def _take(self, written: Written) -> None:
        """On the event loop: add what the engine wrote."""
        if self.finish is not None or self.error is not None:
            return  # written before the engine heard that it has ended
        text, used, stopped = self._words.push(written.tokens)
        finish = "stop" if stopped else written.finish
        if finish and not stopped:
            rest, stopped = self._words.finish()
            text, finish = text + rest, "stop" if stopped else finish
        self.tokens += written.tokens[:used]
        self.logp += written.logp[:used]
        self.text += text
        if finish:
            if written.finish is None:
                self._scheduler._leave(self)
            self._end(finish)
        elif text:
            self._news.set()

    def _end(self, finish: str | None, error: Exception | None = None) -> None:
        self.finish, self.error = finish, error
        self._scheduler._ended(self)
        self._news.set()


class Scheduler:
    """Answers of all served models, batched per model; models take turns. Used from one event loop.

    At most `slots` answers of a model are written at once, `queue` more may wait (over all models), and one person may
    have `per_person` answers open (person "" is nobody: not counted).
    """

    def __init__(self, models: dict[str, Parent], slots: int = 32, queue: int = 256, per_person: int = 4):
        if min(slots, queue + 1, per_person) < 1:
            raise ValueError(
                f"slots = {slots}, queue = {queue}, per_person = {per_person}: at least 1, 0 and 1 are needed"
            )
        self._models = {name: _Served(parent) for name, parent in models.items()}
        self._slots, self._queue, self._per_person = slots, queue, per_person
        self._numbers = itertools.count()
        self._open: dict[Ticket, None] = {}
        self._persons: Counter[str] = Counter()
        self._orders: SimpleQueue[tuple[str, Ticket | None]] = SimpleQueue()
        self._active: dict[_Served, None] = {}  # of the engine thread: models with answers, in the order of their turns
        self._fresh: set[Ticket] = set()  # of the engine thread: without a token yet
        self._written: dict[Ticket, Written] = {}  # since the last hand-over
        self._urgent, self._handed_over = False, 0.0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped: Exception | None = None
        self._thread = threading.Thread(target=self._work, name="fledge-engine", daemon=True)

    # --------------------------------------------------------------------------------------------- the event loop

    def start(self) -> None:
        """Start the engine thread."""
        self._thread.start()

    def close(self) -> None:
        """End the engine thread (within one call of the engine) and, with EngineStopped, every answer still open."""
        self._orders.put(("close", None))
        if self._thread.ident is not None:
            self._thread.join()
        self._stop(EngineStopped("the engine was closed"))

    @property
    def busy(self) -> int:
        """Answers asked for and not ended."""
        return len(self._open)

    def names(self) -> tuple[str, ...]:
        return tuple(self._models)

    def opened(self, name: str) -> Parent:
        """The model served under this name. Raises ValueError for an unknown one."""
        return self._named(name).parent

    def replace(self, name: str, parent: Parent) -> None:
        """Serve `parent` under this name, new or known, from now on; answers already asked for end on the old weights."""
        self._models[name] = _Served(parent)

    def remove(self, name: str) -> None:
        """Serve this name no longer; its open answers are still written."""
        self._named(name)
        del self._models[name]

    def submit(
        self, model: str, prompt: Sequence[int], sampling: Sampling, stop: Sequence[str] = (), stream: int = 0,
        person: str = "",
    ) -> Ticket:  # fmt: skip
        """Ask for an answer. `stop`: texts that end it and are not part of it; `stream`: which of the seed's streams.

        Raises Busy when a limit is reached, ValueError for an unknown model, a bad prompt or bad sampling, EngineStopped.
        """
        served = self._named(model)
        served.engine.check([prompt], sampling)
        if self._stopped is not None or not self._thread.is_alive():
            raise self._stopped or EngineStopped("the engine is not running: call start() first")
        if person and self._persons[person] >= self._per_person:
            raise Busy(
                f"you have {self._persons[person]} answers being written, the limit is {self._per_person} at once"
            )
        waiting = sum(max(0, s.open - self._slots) for s in {t._served for t in self._open})
        if served.open >= self._slots and waiting >= self._queue:
            raise Busy(f"{waiting} answers are waiting, the limit of the queue is {self._queue}")
        self._loop = asyncio.get_running_loop()
        ticket = Ticket(self, served, next(self._numbers), prompt, sampling, stop, stream, person)
        self._open[ticket] = None
        served.open += 1
        if person:
            self._persons[person] += 1
        self._orders.put(("join", ticket))
        return ticket

    def _named(self, name: str) -> _Served:
        if name not in self._models:
            raise ValueError(f"no model {name!r} is served: there are {', '.join(self._models) or 'none'}")
        return self._models[name]

    def _leave(self, ticket: Ticket) -> None:
        self._orders.put(("leave", ticket))

    def _ended(self, ticket: Ticket) -> None:
        del self._open[ticket]
        ticket._served.open -= 1
        if ticket.person:
            self._persons[ticket.person] -= 1
            if not self._persons[ticket.person]:
                del self._persons[ticket.person]

    def _receive(self, batch: dict[Ticket, Written]) -> None:
        for ticket, written in batch.items():
            ticket._take(written)

    def _stop(self, error: Exception) -> None:
        self._stopped = self._stopped or error
        for ticket in list(self._open):
            ticket._end(None, self._stopped)

    # ------------------------------------------------------------------------------------------ the engine thread

    def _work(self) -> None:
        try:
            while self._heed_orders():
                for served in list(self._active):
                    self._turn(served)
                self._hand_over()
        except BaseException as error:  # whatever it is, nobody may wait for ever
            print("fledge: the engine thread has crashed; every open answer ends here", file=sys.stderr)
            traceback.print_exception(error)
            stopped = EngineStopped(f"the engine has crashed: {type(error).__name__}: {error}")
            self._stopped = stopped
            if self._loop is not None:
                with suppress(RuntimeError):  # the loop is closed: then nobody waits
                    self._loop.call_soon_threadsafe(self._stop, stopped)

    def _hand_over(self) -> None:
        """Everything written since, in one callback: first tokens and ends at once, the rest a few times per look."""
        due = self._urgent or time.monotonic() >= self._handed_over + _HANDOVER_SECONDS
        if self._written and due:
            self._loop.call_soon_threadsafe(self._receive, self._written)
            self._written, self._urgent, self._handed_over = {}, False, time.monotonic()

    def _heed_orders(self) -> bool:
        """Take in what was asked since; with nothing to write, sleep until something is. False: close."""
        while True:
            try:
                what, ticket = self._orders.get(block=not self._active)
            except Empty:
                return True
            if what == "close":
                return False
            served = ticket._served
            if what == "join":
                served.waiting.append(ticket)
                self._active[served] = None
            elif ticket.number in served.writing:
                del served.writing[ticket.number]
                served.live.remove(ticket.number)
                self._fresh.discard(ticket)
            else:
                with suppress(ValueError):  # it ended before the order came
                    served.waiting.remove(ticket)

    def _turn(self, served: _Served) -> None:
        """One call of a model's engine."""
        if served.live is None:
            served.live = Live(served.engine, self._slots)
        while served.waiting and served.live.free:
            ticket = served.waiting.popleft()
            served.writing[ticket.number] = ticket
            served.live.add(ticket.number, ticket.prompt, ticket.sampling, ticket.stream)
            self._fresh.add(ticket)
        seconds = max(_SHORTEST_TURN_SECONDS, _TURN_SECONDS / len(self._active))
        for written in served.live.go(_STEPS, seconds):
            ticket = served.writing[written.key]
            if written.finish:
                del served.writing[written.key]
            if written.finish or ticket in self._fresh:
                self._fresh.discard(ticket)
                self._urgent = True
            if before := self._written.get(ticket):
                tokens, logp = before.tokens + written.tokens, before.logp + written.logp
                written = Written(written.key, tokens, logp, written.finish)
            self._written[ticket] = written
        if not served.writing and not served.waiting:
            del self._active[served]
