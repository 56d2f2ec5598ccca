"""Answers on their way to a client: several written side by side, told as server-sent events, ended when it leaves."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any, NamedTuple

import msgspec
from litestar.types import Receive, Scope, Send

from fledge.core.log import say
from fledge.generate.sampling import Sampling
from fledge.serve.errors import Refused, error_body
from fledge.serve.scheduler import EngineStopped, Piece, Ticket
from fledge.serve.service import Service

_AGAIN_SECONDS = 0.05
SEND_SECONDS = 30.0  # a client that reads nothing for so long has left

encode = msgspec.json.Encoder().encode


def event(value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + encode(value) + b"\n\n"


class Order(NamedTuple):
    """One answer that is wanted."""

    model: str
    prompt: Sequence[int]
    sampling: Sampling
    stream: int = 0
    stop: Sequence[str] = ()


class Answers:
    """The answers to some orders of one person: as many at once as the person's limit allows, the rest as those end.

    Raises Refused (429) where not even the first can be asked for now.
    """

    def __init__(self, service: Service, person: str, orders: Sequence[Order]):
        self._service, self._person = service, person
        self._orders = list(enumerate(orders))
        self.tickets: list[Ticket | None] = [None] * len(orders)
        self._left = False
        self._open = 0
        try:
            self._submit(first=True)
        except BaseException:
            self.leave()
            raise

    def _submit(self, first: bool = False) -> list[int]:
        """Ask for what the limits allow; returns which answers have begun. Raises Refused, but 429 only at `first`."""
        begun: list[int] = []
        while self._orders and not self._left:
            index, order = self._orders[0]
            try:
                ticket = self._service.submit(
                    order.model, order.prompt, order.sampling, order.stop, order.stream, self._person
                )
            except Refused as refused:
                if refused.status == 429 and (self._open or not first):  # there will be room
                    break
                raise
            self.tickets[index] = ticket
            self._open += 1
            self._orders.pop(0)
            begun.append(index)
        return begun

    def leave(self) -> None:
        """Nobody reads on: stop writing, and begin nothing more."""
        self._left = True
        for ticket in self.tickets:
            if ticket is not None:
                ticket.cancel()

    async def pieces(self) -> AsyncGenerator[tuple[int, Piece], None]:
        """(which answer, piece) as they come; raises EngineStopped."""
        begun = [index for index, ticket in enumerate(self.tickets) if ticket is not None]
        if len(self.tickets) == 1:
            async for piece in self.tickets[0]:
                yield 0, piece
            return
        news: asyncio.Queue = asyncio.Queue()
        tasks = [asyncio.create_task(self._pump(index, news)) for index in begun]
        try:
            while self._open or (self._orders and not self._left):
                if not self._open:  # someone else took the room ours had left
                    await asyncio.sleep(_AGAIN_SECONDS)
                    tasks += [asyncio.create_task(self._pump(i, news)) for i in self._submit()]
                    continue
                index, piece = await news.get()
                if isinstance(piece, Exception):
                    raise piece
                yield index, piece
                if piece.finish:
                    self._open -= 1
                    tasks += [asyncio.create_task(self._pump(i, news)) for i in self._submit()]
        finally:
            for task in tasks:
                task.cancel()

    async def _pump(self, index: int, news: asyncio.Queue) -> None:
        try:
            async for piece in self.tickets[index]:
                news.put_nowait((index, piece))
        except Exception as error:  # handed to whoever reads the pieces
            news.put_nowait((index, error))

    async def whole(self) -> list[Ticket]:
        """All tickets, once every answer has ended."""
        async with aclosing(self.pieces()) as pieces:
            async for _ in pieces:
                pass
        return [ticket for ticket in self.tickets if ticket is not None]


class EventStream:
    """An ASGI response: events as they come. When the client leaves, `leave` is called at once, and the events go on to
    their end unheard, so that what was written is kept."""

    def __init__(self, events: AsyncGenerator[bytes, None], leave: Callable[[], None]):
        self._events, self._leave = events, leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        watcher = asyncio.create_task(self._watch(receive))
        heard = True
        try:
            async with aclosing(told(self._events)) as events:
                async for data in events:
                    if heard:
                        heard = await self._send(send, data, True)
            await self._send(send, b"", False)
        finally:
            watcher.cancel()
            self._leave()

    async def _send(self, send: Send, data: bytes, more: bool) -> bool:
        try:
            async with asyncio.timeout(SEND_SECONDS):
                await send({"type": "http.response.body", "body": data, "more_body": more})
        except TimeoutError:
            self._leave()
            return False
        return True

    async def _watch(self, receive: Receive) -> None:
        with suppress(Exception):
            while (await receive())["type"] != "http.disconnect":
                pass
        self._leave()


async def told(events: AsyncGenerator[bytes, None]) -> AsyncIterator[bytes]:
    """The events; an error after the headers are out is an event too, then the stream ends."""
    try:
        async with aclosing(events):
            async for data in events:
                yield data
    except Refused as refused:
        yield b"data: " + refused.body() + b"\n\n"
    except EngineStopped as stopped:
        yield b"data: " + error_body(503, str(stopped), code="engine_stopped") + b"\n\n"
    except Exception as error:
        say(f"an answer ended with {type(error).__name__}: {error}")
        yield b"data: " + error_body(500, "the server failed; its terminal says why") + b"\n\n"
