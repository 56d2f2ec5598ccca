"""The next pair a rater sees: the one open already, a gold question, or two fresh drafts of a prompt."""

import asyncio
import secrets
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from fledge.core.log import say
from fledge.feedback.records import NewDraft, Person
from fledge.serve.asking import Pair, orders_for, put_pair
from fledge.serve.errors import Refused
from fledge.serve.rating import Gold
from fledge.serve.requests import Settings
from fledge.serve.scheduler import Ticket
from fledge.serve.service import Service
from fledge.serve.streams import Answers
from fledge.text.messages import Message

_TRIES = 4  # two drafts of the same words are no pair: so often others are written


class _Dealt(NamedTuple):
    messages: Sequence[Message]
    drafts: list[NewDraft]  # a, then b
    pair: Pair
    why: str
    expected: str | None
    checkpoint: str | None  # the served weights; None for gold, whose answers no model wrote


async def next_task(service: Service, person: Person) -> dict[str, Any] | None:
    """{task, messages, drafts: [left, right]}, the same until it is voted on; None when there is nothing (left)."""
    rating = service.rating
    if not rating:
        return None
    if not rating.known(person.id):
        await asyncio.to_thread(rating.learn, person.id, service.store)
    async with rating.turn(person.id):  # two tabs get the same task
        shown = rating.open.get(person.id)
        if shown is None and (dealt := await _deal(service, person)) is not None:
            shown = await _store(service, person, dealt)
    return None if shown is None else {k: shown[k] for k in ("task", "messages", "drafts")}


async def _deal(service: Service, person: Person) -> _Dealt | None:
    served = service.scheduler.opened(service.default).id
    while (chosen := service.rating.choose(person.id, served)) is not None:
        if isinstance(chosen, Gold):
            return _gold(person, chosen)
        if (dealt := await _fresh(service, person, chosen, served)) is not None:
            return dealt
        service.rating.judged(person.id, chosen, served)
    return None


def _gold(person: Person, question: Gold) -> _Dealt:
    expected = secrets.choice("ab")
    texts = [question.good, question.bad] if expected == "a" else [question.bad, question.good]
    made = {"prompt": question.prompt, "person": person.id, "origin": "import", "source": "gold"}
    drafts = [NewDraft(text=text, tokens=[], finish="stop", **made) for text in texts]
    return _Dealt(question.prompt, drafts, Pair(["file", "file"]), "gold", expected, None)


async def _fresh(service: Service, person: Person, prompt: Sequence[Message], served: str) -> _Dealt | None:
    """Two different drafts, or None for a prompt that gives none."""
    models = [service.default, service.compared() or service.default]
    for _ in range(_TRIES):
        started = time.monotonic()
        try:
            orders, _ = await orders_for(service, prompt, models, Settings())
        except Refused as refused:
            say(f"a prompt is left out: {refused.message}")
            return None
        tickets = await _written(Answers(service, person.id, orders))
        if tickets[0].text != tickets[1].text:
            took_ms = int(1000 * (time.monotonic() - started))
            drafts = [service.new_draft(ticket, prompt, took_ms=took_ms, source="file") for ticket in tickets]
            pair = Pair(models)
            return _Dealt(prompt, drafts, pair, pair.why, None, served)
    return None


async def _written(answers: Answers) -> list[Ticket]:
    try:
        return await answers.whole()
    finally:
        answers.leave()


async def _store(service: Service, person: Person, dealt: _Dealt) -> dict[str, Any]:
    drafts, pair = dealt.drafts, dealt.pair
    ids, task = await service.writer.do(
        lambda store: put_pair(store, person.id, drafts, pair, dealt.why, dealt.expected)
    )
    service.remember(person.id, ids, task, pair.names)
    shown = {
        "task": task,
        "messages": [{"role": m.role, "content": m.content} for m in dealt.messages],
        "drafts": [{"id": ids[n], "text": drafts[n].text} for n in sorted((0, 1), key=pair.side)],
        "key": (dealt.messages, dealt.checkpoint),
    }
    service.rating.open[person.id] = shown
    return shown
