"""One thread that writes: what waits is committed together, and each is answered after its COMMIT."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

from fledge.feedback.records import NewVote, Stored
from fledge.feedback.store import Store

T = TypeVar("T")
_TOGETHER = 128  # writes per COMMIT at most: bounds how long the first of them waits


class Closed(RuntimeError):
    """The writer has been closed, or its thread died; nothing is stored any more."""


class _Wish(NamedTuple):
    work: Callable[[Store], Any]
    loop: asyncio.AbstractEventLoop
    answer: asyncio.Future


class Writer:
    """Owns a writing Store in a thread of its own; coroutines of one event loop hand it work and wait for the COMMIT.

    Beyond `queue` pieces of work at once callers wait for room. Work that raises is undone alone, and its caller gets
    the exception. `close` finishes what waits, then closes the store.
    """

    def __init__(self, store: Store, queue: int = 1024):
        self._store = store
        self._room = asyncio.Semaphore(queue)
        self._waiting: deque[_Wish] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._failed: BaseException | None = None
        self._writing = False
        self.commits = 0  # for benchmarks: how many votes share one
        self._thread = threading.Thread(target=self._run, name="votes", daemon=True)
        self._thread.start()

    async def do(self, work: Callable[[Store], T]) -> T:
        """Run `work(store)` in the writer's next transaction; returns its result once that is committed."""
        async with self._room:
            loop = asyncio.get_running_loop()
            wish = _Wish(work, loop, loop.create_future())
            with self._changed:
                if self._closing:
                    raise Closed("the store of votes is closed") from self._failed
                self._waiting.append(wish)
                self._changed.notify()
            return await wish.answer

    async def vote(self, person_id: str, new: NewVote) -> Stored:
        """Store one vote; it is on disk when this returns. Raises Invalid, Unknown or Conflict."""
        return await self.do(lambda store: store.put_vote(person_id, new))

    def close(self) -> None:
        """Finish what waits, refuse what comes, close the store. Twice is harmless."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self._store.close()

    def _run(self) -> None:
        group: list[_Wish] = []
        try:
            while group := self._next():
                self._writing = True
                self._commit(group)
                self._writing, group = False, []
        except BaseException as error:  # whoever waits must hear of it, or they would wait for ever
            with self._changed:
                self._closing, self._failed = True, error
                left = [*group, *self._waiting]
                self._waiting.clear()
            end = Closed("the thread that writes votes died; what was not acknowledged may not be stored")
            end.__cause__ = error
            _answer([(wish, end) for wish in left])
            raise

    @property
    def busy(self) -> bool:
        """Is a group being written?"""
        return self._writing

    def _next(self) -> list[_Wish]:
        """All that waits, at most _TOGETHER; empty when closing and done."""
        with self._changed:
            while not self._waiting and not self._closing:
                self._changed.wait()
            return [self._waiting.popleft() for _ in range(min(len(self._waiting), _TOGETHER))]

    def _commit(self, group: list[_Wish]) -> None:
        results: list[tuple[_Wish, Any]] = []
        try:
            with self._store.transaction() as transaction:
                for wish in group:
                    try:
                        with transaction.savepoint():
                            results.append((wish, wish.work(self._store)))
                    except Exception as error:
                        results.append((wish, error))
        except Exception as error:  # no COMMIT: nobody's work is stored
            results = [(wish, error) for wish in group]
        self.commits += 1
        _answer(results)


def _answer(results: list[tuple[_Wish, Any]]) -> None:
    """Wake the waiting coroutines, once per event loop."""
    for loop in {wish.loop for wish, _ in results}:
        mine = [(wish.answer, result) for wish, result in results if wish.loop is loop]
        if not loop.is_closed():
            loop.call_soon_threadsafe(_settle, mine)


def _settle(answers: list[tuple[asyncio.Future, Any]]) -> None:
    for answer, result in answers:
        if answer.done():  # its caller went away
            continue
        if isinstance(result, BaseException):
            answer.set_exception(result)
        else:
            answer.set_result(result)
