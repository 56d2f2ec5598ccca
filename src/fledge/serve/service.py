"""What every route works with: the models, the engine, the votes, and who is asking."""

import asyncio
import hashlib
import hmac
import secrets
import time
import uuid
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fledge.core.checkpoint import resolve
from fledge.core.log import say
from fledge.feedback.collecting import decoding_of, put_checkpoint
from fledge.feedback.records import Draft, NewDraft, Person
from fledge.feedback.store import Store, store_url
from fledge.feedback.writer import Writer
from fledge.generate.chat import chat_engine
from fledge.generate.sampling import Sampling
from fledge.serve import serving
from fledge.serve.errors import Refused, lost
from fledge.serve.models import Shelf, Shown, catalogue, home_of, name_of, open_served, open_writer
from fledge.serve.rating import Rating, read_gold, read_prompts
from fledge.serve.scheduler import Busy, EngineStopped, Scheduler, Ticket
from fledge.stages.common import Parent
from fledge.text.messages import Message
from fledge.world.gold import in_language

_FOLLOW_SECONDS = 2.0
_KNOWN_SECONDS = 2.0  # how long a token's owner is remembered: a revoked one works no longer than that
_REMEMBERED = 4096
TITLE_CHARS = 40


class Recent(OrderedDict):
    """The newest entries of a dict."""

    def __setitem__(self, key: Any, value: Any) -> None:
        super().__setitem__(key, value)
        while len(self) > _REMEMBERED:
            self.popitem(last=False)


class Service:
    """Built once per server by `open_service`; `store` only reads, `writer` writes."""

    def __init__(self, run: Path, options: Any, models: dict[str, Parent], url: str, owner: Person, token: str):
        self.run, self.options, self.url, self.owner, self.token = run, options, url, owner, token
        self.models: dict[str, Shown] = catalogue(run, models)
        self.default = next(iter(models))
        self.scheduler = Scheduler(models, options.slots, options.queue, options.per_person)
        self.rating = Rating(
            read_prompts(options.prompts) if options.prompts else [],
            read_gold(options.gold) if options.gold else [],
            options.gold_share,
        )
        self.store = Store.open(url, read_only=True)
        self.writer = Writer(Store.open(url))
        self.shelf = Shelf()
        self.asked_by: Recent = Recent()  # draft -> person; the newest, so that a vote needs no look-up
        self.sides: Recent = Recent()  # task -> names of the models on the left and on the right
        self._owner_digest = _digest(token)
        self._known: dict[bytes, tuple[float, Person | None]] = {}
        self._founding: dict[str, tuple[str, asyncio.Future]] = {}  # conversations whose row is being written
        self._tickets: weakref.WeakSet[Ticket] = weakref.WeakSet()
        self._stamp = serving.stamp(run)
        self.started_s = int(time.time())

    def start(self) -> None:
        """Start the engine; needs no event loop."""
        self.scheduler.start()

    @property
    def where(self) -> str:
        """Where the votes lie, without a password."""
        return self.store.database.name

    def end_answers(self) -> None:
        """Stop every answer that is being written; on the event loop."""
        for ticket in self._tickets:
            ticket.cancel()

    def close(self) -> None:
        """End every answer, write what waits, close the store."""
        self.scheduler.close()
        self.store.close()
        self.writer.close()  # last, so that SQLite folds its log into the database

    # ------------------------------------------------------------------------------------------------------ people

    def person_of(self, secret: str) -> Person | None:
        """Whose token this is; a token is compared and remembered by its digest only."""
        digest = _digest(secret)
        if hmac.compare_digest(digest, self._owner_digest):
            return self.owner
        now = time.monotonic()
        until, person = self._known.get(digest, (0.0, None))
        if until < now:
            person = self.store.person_of_secret(secret)
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[digest] = (now + _KNOWN_SECONDS, person)
        return person

    # ------------------------------------------------------------------------------------------------------ models

    def resolve_name(self, name: str | None) -> str:
        """The served model meant by `name`; None and "default" are the run's own. Raises Refused 404."""
        if name is None or name == "default":
            return self.default
        if name not in self.models or not self.models[name].served:
            known = ", ".join(["default", *(n for n, shown in self.models.items() if shown.served)])
            raise Refused(404, f"no model {name[:100]!r} is served: {known}", param="model", code="model_not_found")
        return name

    def model(self, name: str) -> Parent:
        """A served model or a relative of it, loaded if need be; blocks, so call it off the event loop."""
        name = self.default if name == "default" else name
        if name not in self.models:
            raise Refused(404, f"no model {name[:100]!r}: there are {', '.join(self.models)}", code="model_not_found")
        shown = self.models[name]
        return self.scheduler.opened(name) if shown.served else self.shelf.open(shown)

    def compared(self) -> str | None:
        """One of the --compare models, at random; None where there are none."""
        others = [name for name, shown in self.models.items() if shown.served and name != self.default]
        return secrets.choice(others) if others else None

    def name_of_checkpoint(self, id: str | None) -> str:
        """What people call a checkpoint; "file" for answers that no model of ours wrote."""
        if id is None:
            return "file"
        known = next((shown.name for shown in self.models.values() if shown.id == id), None)
        if known is None:
            known = next((name_of(Path(c.path), self.run) for c in self.store.checkpoints() if c.id == id), id[:12])
        return known

    async def follow(self) -> None:
        """Serve what RUN/serving.json names, whenever it changes; for ever."""
        while True:
            await asyncio.sleep(_FOLLOW_SECONDS)
            await self.reload()

    async def reload(self) -> None:
        """Serve the checkpoint RUN/serving.json names now. A broken one is told of, and the old model stays."""
        stamp = serving.stamp(self.run)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        old = self.scheduler.opened(self.default)
        try:
            opened = await asyncio.to_thread(lambda: open_writer(resolve(self.run)))
            if opened.id == old.id:
                return
            await self.writer.do(lambda store: put_checkpoint(store, opened))
        except (ValueError, OSError) as error:
            say(f"the new model is not served, {self.default} stays: {error}")
            return
        name, before = name_of(opened.path, self.run), self.default
        if name != before and name in self.scheduler.names():  # compared so far, promoted now
            name = f"{name}@{opened.id[:8]}"
        others = {n: self.scheduler.opened(n) for n in self.scheduler.names() if n != before}
        self.scheduler.replace(name, opened)
        self.default = name
        if name != before:
            self.scheduler.remove(before)
        self.models = catalogue(self.run, {name: opened, **others})
        say(f"now serving {name} ({opened.card['stage']}, {opened.id[:12]})")

    # ----------------------------------------------------------------------------------------------------- answers

    def submit(
        self, model: str, prompt: Sequence[int], sampling: Sampling, stop: Sequence[str], stream: int, person: str
    ) -> Ticket:
        """Ask the engine. Raises Refused: 429 at a limit, 400 for a prompt or settings it cannot take, 503 stopped."""
        try:
            ticket = self.scheduler.submit(model, prompt, sampling, stop=stop, stream=stream, person=person)
            self._tickets.add(ticket)
            return ticket
        except Busy as busy:
            raise Refused(429, str(busy), code="rate_limit_exceeded", retry_seconds=1) from None
        except EngineStopped as stopped:
            raise Refused(503, str(stopped), code="engine_stopped") from None
        except ValueError as error:
            raise Refused(400, str(error), code="invalid_value") from None

    def new_draft(self, ticket: Ticket, messages: Sequence[Message], **more: Any) -> NewDraft:
        """What the store keeps of an answer: exact weights, settings, random stream, tokens, and the text shown."""
        return NewDraft(
            prompt=tuple(messages),
            text=ticket.text,
            tokens=list(ticket.tokens),
            finish=ticket.finish or "stopped",
            person=ticket.person,
            checkpoint=ticket.parent.id,
            decoding=decoding_of(chat_engine(ticket.parent.model, ticket.parent.tokenizer), ticket.sampling),
            seed=ticket.sampling.seed,
            stream=ticket.stream,
            logp=sum(ticket.logp),
            language="zh" if in_language(messages[-1].content, "zh") else "en",
            **more,
        )

    def remember(self, person: str, drafts: Sequence[str], task: str | None, names: dict[str, str] | None) -> None:
        """Keep at hand whose these drafts are and which models stand left and right in their task."""
        for id in drafts:
            self.asked_by[id] = person
        if task is not None:
            self.sides[task] = names

    def owns(self, person: str, draft: str) -> bool:
        """Whether this draft was written for this person."""
        if draft in self.asked_by:
            return self.asked_by[draft] == person
        found = self.store.draft(draft)
        return found is not None and found.person_id == person

    def names_of_task(self, id: str) -> dict[str, str]:
        """{"left": model, "right": model} of a task that exists."""
        if id not in self.sides:
            task = self.store.task(id)
            drafts = self.store.drafts([task.draft_a, task.draft_b])
            left, right = (
                self.name_of_checkpoint(drafts[d].checkpoint_id) for d in (task.left_draft, task.right_draft)
            )
            self.sides[id] = {"left": left, "right": right}
        return self.sides[id]

    def draft_of(self, person: Person, id: str) -> Draft:
        """A draft this person may see (the owner sees all). Raises Refused 404, alike for unknown ids and others'."""
        draft = self.store.draft(id)
        if draft is None or (draft.person_id != person.id and person.role != "owner"):
            raise lost()
        return draft

    # ----------------------------------------------------------------------------------------------- conversations

    def found(self, person: str, title: str) -> str:
        """Begin a conversation and return its id at once; its row is written meanwhile (see `belongs`)."""
        id = f"c_{uuid.uuid4().hex}"
        writing = asyncio.ensure_future(self.writer.do(lambda store: store.put_conversation(person, title, id=id)))
        self._founding[id] = (person, writing)
        writing.add_done_callback(lambda _: self._founding.pop(id, None))
        return id

    async def founded(self, conversation: str) -> None:
        """Wait until the row of a conversation that was just begun is there."""
        if conversation in self._founding:
            await asyncio.shield(self._founding[conversation][1])

    async def check_mine(self, person: str, conversation: str) -> str:
        """The title. Raises Refused 404 for a conversation that is not there or someone else's."""
        if conversation in self._founding and self._founding[conversation][0] == person:
            await self.founded(conversation)
        mine = await asyncio.to_thread(self.store.conversations, person)
        title = next((c.title for c in mine if c.id == conversation and c.blanked_ms is None), None)
        if title is None:
            raise lost()
        return title

    async def read_apart(self, work: Callable[[Store], Any]) -> Any:
        """Run a long reading on a connection and a thread of its own."""

        def reading() -> Any:
            with Store.open(self.url, read_only=True) as store:
                return work(store)

        return await asyncio.to_thread(reading)


def open_service(options: Any, token: str | None = None) -> Service:
    """Load the models, open the store, find its owner. Raises ValueError for whatever the user can mend."""
    models = open_served(Path(options.run), options.compare)
    run = home_of(Path(options.run))
    url = store_url(run, options.store)
    with Store.open(url) as store:
        owner = next((p for p in store.people() if p.kind == "owner" and p.disabled_ms is None), None)
        if owner is None:
            id = store.put_person("owner", "owner", "owner")
            owner = next(p for p in store.people() if p.id == id)
        for opened in models.values():
            put_checkpoint(store, opened)
    service = Service(run, options, models, url, owner, token or secrets.token_urlsafe(32))
    service.start()
    return service


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def title_of(messages: Sequence[Message]) -> str:
    """The first 40 characters of what the person said first, on one line."""
    first = next((m.content for m in messages if m.role == "user"), "")
    return " ".join(first.split())[:TITLE_CHARS]
