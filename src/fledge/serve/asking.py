"""From a question to stored drafts: which models write, on which side each stands, what is kept."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Sequence

from fledge.feedback.records import NewDraft, Person
from fledge.feedback.store import Store
from fledge.serve.errors import Refused
from fledge.serve.requests import Asked, Settings, bad, settings
from fledge.serve.service import Service, title_of
from fledge.serve.streams import Answers, Order, encode, event
from fledge.text.messages import Message
from fledge.text.template import fit_prompt
from fledge.text.tokenizer import Tokenizer

_LONG_CHARS = 8000  # cutting more text than this into tokens would hold up others' answers: a thread does it


async def fitted(
    tokenizer: Tokenizer, messages: Sequence[Message], context_tokens: int, max_tokens: int
) -> tuple[list[int], int]:
    """(prompt tokens, messages left out) with room for the answer. Raises Refused 400 where the last one is too long."""
    room = context_tokens - min(max_tokens, context_tokens // 2)
    try:
        if sum(len(m.content) for m in messages) < _LONG_CHARS:
            return fit_prompt(tokenizer, messages, room)
        return await asyncio.to_thread(fit_prompt, tokenizer, messages, room)
    except ValueError as error:
        raise Refused(400, str(error), param="messages", code="context_length_exceeded") from None


async def orders_for(
    service: Service, messages: Sequence[Message], models: Sequence[str], given: Settings
) -> tuple[list[Order], list[int]]:
    """(an order per model, messages left out of each); equal models draw from different streams of one seed."""
    orders, dropped, sampling = [], [], None
    for stream, name in enumerate(models):
        opened = service.scheduler.opened(name)
        context_tokens = opened.model.config.context_tokens
        seed = sampling.seed if sampling else given.seed
        sampling = settings(_seeded(given, seed), service.options.sampling, context_tokens)
        tokens, left_out = await fitted(opened.tokenizer, messages, context_tokens, sampling.max_tokens)
        orders.append(Order(name, tokens, sampling, stream))
        dropped.append(left_out)
    return orders, dropped


def _seeded(given: Settings, seed: int | None) -> Settings:
    return Settings(given.temperature, given.top_p, given.top_k, given.max_tokens, seed)


class Pair:
    """Two answers, a and b, shown left and right at random."""

    def __init__(self, models: Sequence[str]):
        self.left = secrets.choice("ab")
        self.names = {"left": models[self.left == "b"], "right": models[self.left == "a"]}
        self.why = "random" if models[0] == models[1] else "compare"

    def side(self, index: int) -> int:
        """Where answer `index` (0: a, 1: b) stands: 0 left, 1 right."""
        return index if self.left == "a" else 1 - index


def put_pair(
    store: Store, person: str, drafts: Sequence[NewDraft], pair: Pair, why: str, expected: str | None = None
) -> tuple[list[str], str]:
    """Store two drafts and the task of comparing them; returns (ids of the drafts, id of the task)."""
    ids = [store.put_draft(draft) for draft in drafts]
    return ids, store.put_task(person, ids[0], ids[1], pair.left, why, expected)


class Asking:
    """One question of the page on its way."""

    def __init__(self, service: Service, person: Person, messages: Sequence[Message]):
        self.service, self.person, self.messages = service, person, messages
        self.answers: Answers
        self.pair: Pair | None = None
        self.dropped: list[int] = []
        self.conversation, self.title = "", ""
        self._started = time.monotonic()

    @classmethod
    async def begin(cls, service: Service, person: Person, asked: Asked, messages: Sequence[Message]) -> "Asking":
        """Check everything that can be refused, and set the engine to work."""
        if asked.drafts not in (1, 2):
            raise bad(f"drafts = {str(asked.drafts)[:20]}: must be 1 or 2", "drafts")
        self = cls(service, person, messages)
        if asked.conversation is not None:
            self.conversation = asked.conversation
            self.title = await service.check_mine(person.id, asked.conversation)
        models = [service.default]
        if asked.drafts == 2:
            models.append(service.compared() or service.default)
            self.pair = Pair(models)
        orders, self.dropped = await orders_for(service, messages, models, asked.sampling or Settings())
        self.answers = Answers(service, person.id, orders)
        if not self.conversation:
            self.title = title_of(messages)
            self.conversation = service.found(person.id, self.title)
        return self

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The conversation, pieces of each draft, how each ended, and the task of comparing them."""
        yield event({"conversation": self.conversation, "title": self.title})
        heads = [b'data: {"draft":%d,"text":' % self._side(n) for n in range(len(self.answers.tickets))]
        async for index, piece in self.answers.pieces():
            if piece.text:
                yield heads[index] + encode(piece.text) + b"}\n\n"
        # shielded: what was written is kept even when the server is being closed
        ids, task = await asyncio.shield(asyncio.ensure_future(self._record()))
        for index in sorted(ids, key=self._side):
            ticket = self.answers.tickets[index]
            ended = {"draft": self._side(index), "finish": ticket.finish, "id": ids[index]}
            yield event({**ended, "dropped_turns": self.dropped[index]})
        yield event({"done": True, "task": {"id": task} if task else None})

    def _side(self, index: int) -> int:
        return self.pair.side(index) if self.pair else 0

    async def _record(self) -> tuple[dict[int, str], str | None]:
        """Store what was written: (draft ids by answer, task); a pair cut short is no task."""
        service, person, tickets = self.service, self.person.id, self.answers.tickets
        took_ms = int(1000 * (time.monotonic() - self._started))
        written = [n for n, t in enumerate(tickets) if t is not None and (t.tokens or t.finish != "stopped")]
        drafts = [
            service.new_draft(tickets[n], self.messages, conversation=self.conversation, took_ms=took_ms)
            for n in written
        ]
        whole = self.pair and len(written) == 2 and all(tickets[n].finish != "stopped" for n in written)
        await service.founded(self.conversation)

        def put(store: Store) -> tuple[list[str], str | None]:
            if whole:
                return put_pair(store, person, drafts, self.pair, self.pair.why)
            return [store.put_draft(draft) for draft in drafts], None

        if not drafts:
            return {}, None
        ids, task = await service.writer.do(put)
        service.remember(person, ids, task, self.pair.names if whole else None)
        return dict(zip(written, ids, strict=True)), task
