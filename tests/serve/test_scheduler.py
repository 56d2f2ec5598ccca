"""Many readers, one engine thread: the bytes of each answer, the ends of answers, limits, crashes."""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from fledge.core.model import Transformer
from fledge.generate.chat import chat_engine
from fledge.generate.live import Live
from fledge.generate.sampling import Sampling
from fledge.serve.scheduler import Busy, EngineStopped, Piece, Scheduler, StopText, Ticket
from fledge.stages.common import Parent
from fledge.text.tokenizer import Tokenizer

LONG, LONGEST = Sampling(temperature=1.0, max_tokens=2000, seed=3), Sampling(temperature=1.0, max_tokens=15000, seed=3)
KINDS = (
    Sampling(temperature=0.0, max_tokens=9),
    Sampling(temperature=1.0, max_tokens=40, seed=3),
    Sampling(temperature=0.9, top_k=30, top_p=0.9, max_tokens=1, seed=4),
    Sampling(temperature=1.3, top_p=0.95, max_tokens=70),
)


@pytest.fixture(scope="module")
def parent(make_model, tokenizer: Tokenizer) -> Callable[..., Parent]:
    """parent(seed, **config): an opened model; a `spread` of 0.1 ends some answers early."""

    def make(seed: int = 0, **config) -> Parent:
        model: Transformer = make_model(
            seed, **{"spread": 0.1, "vocab_size": tokenizer.vocab_size, "context_tokens": 160} | config
        )
        return Parent(model, tokenizer, f"{seed:064x}", Path("nowhere"), {"stage": "test"})

    return make


@pytest.fixture(scope="module")
def endless(parent) -> Parent:
    """A model that never ends an answer (its end tokens are 20 nats behind), with room for long ones."""
    opened = parent(context_tokens=16000, tied=False)
    with torch.no_grad():
        opened.model.unembedding[[opened.tokenizer.end, opened.tokenizer.eos]] = 0.0
        opened.model.unembedding *= 10.0
    return opened


@pytest.fixture
def prompts(tokenizer: Tokenizer, sentences) -> list[list[int]]:
    return [[tokenizer.bos, *tokenizer.encode(s)][:60] for s in sentences]


def run(work: Callable[..., Coroutine], models: dict[str, Parent], **limits) -> None:
    """Run work(scheduler) with the engine started and closed around it; nothing takes a minute."""

    async def around() -> None:
        scheduler = Scheduler(models, **limits)
        scheduler.start()
        try:
            async with asyncio.timeout(60):
                await work(scheduler)
        finally:
            scheduler.close()
        assert not scheduler._thread.is_alive()

    asyncio.run(around())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


def check(ticket: Ticket, pieces: list[Piece] | None = None) -> None:
    """What a ticket has is what the engine alone writes; cancelled, the beginning of it."""
    engine = chat_engine(ticket.parent.model, ticket.parent.tokenizer)
    sampling = ticket.sampling
    if ticket.finish == "stopped":  # only as much as is compared
        sampling = structs.replace(sampling, max_tokens=max(1, len(ticket.tokens)))
    alone = engine.sample([ticket.prompt], sampling, streams=[ticket.stream])
    tokens, logp, finish = alone.tokens[0].tolist(), alone.logp[0].tolist(), "stop" if alone.stopped[0] else "length"
    if ticket.finish == "stopped":
        tokens, logp = tokens[: len(ticket.tokens)], logp[: len(ticket.logp)]
    else:
        assert ticket.finish == finish and ticket.text == ticket.parent.tokenizer.decode(tokens)
    assert ticket.tokens == tokens
    assert ticket.logp == logp if engine.native else ticket.logp == pytest.approx(logp, abs=1e-4)
    if pieces is not None:
        assert "".join(p.text for p in pieces) == ticket.text
        assert [t for p in pieces for t in p.tokens] == ticket.tokens
        assert [x for p in pieces for x in p.logp] == ticket.logp
        assert [p.finish for p in pieces] == [None] * (len(pieces) - 1) + [ticket.finish]


# ------------------------------------------------------------------------------------------------------ bytes


def test_many_readers_who_come_and_go_change_no_answer(path, parent, prompts):
    """Two models, more answers than slots, readers who leave in the middle: T27's slots and everybody else's bytes."""
    dice = random.Random(1)

    async def reader(scheduler: Scheduler, number: int) -> str:
        await asyncio.sleep(dice.random() * 0.1)
        leaves = dice.randrange(1, 4) if dice.random() < 0.3 else None
        sampling, model = dice.choice(KINDS), dice.choice("ab")
        ticket, pieces = scheduler.submit(model, dice.choice(prompts), sampling, stream=number), []
        async for piece in ticket:
            pieces.append(piece)
            if leaves == len(pieces):
                break
        if leaves is not None:
            await asyncio.sleep(0)  # the generator is closed by the loop
            await until(lambda: ticket.finish is not None)
        check(ticket, pieces if pieces[-1].finish else None)
        return ticket.finish

    async def work(scheduler: Scheduler) -> None:
        ends = await asyncio.gather(*(reader(scheduler, i) for i in range(60)))
        assert {"stop", "length"} <= set(ends)

    run(work, {"a": parent(0), "b": parent(1, spread=0.15)}, slots=5)


@pytest.mark.parametrize("chinese", [False, True])
def test_text_is_cut_at_a_stop_text(parent, prompts, tokenizer, chinese):
    """Taken from the middle of what the model writes, so it begins and ends inside tokens and pieces."""

    async def work(scheduler: Scheduler) -> None:
        sampling = Sampling(temperature=1.3, max_tokens=80, seed=9)
        free = await scheduler.submit("a", prompts[4 if chinese else 0], sampling).whole()
        for start in range(5, len(free.text) - 8, 7):
            stop = free.text[start : start + 3]
            if "\ufffd" in stop:  # half a character may yet become a whole one
                continue
            ticket, pieces = scheduler.submit("a", free.prompt, sampling, stop=("never there", stop)), []
            async for piece in ticket:
                pieces.append(piece)
                assert stop not in ticket.text
            assert ticket.text == free.text[: free.text.index(stop)] == "".join(p.text for p in pieces)
            assert ticket.finish == pieces[-1].finish == "stop"
            used = len(ticket.tokens)
            assert ticket.tokens == free.tokens[:used] == [t for p in pieces for t in p.tokens]
            assert ticket.logp == free.logp[:used]
            assert stop in tokenizer.decode(ticket.tokens) and stop not in tokenizer.decode(ticket.tokens[:-1])
        await until(lambda: not scheduler._active)

    run(work, {"a": parent()})


TEXTS = st.text(alphabet="ab 首都🙂.\ufffd", max_size=30)


@given(text=TEXTS, stops=st.lists(st.text(alphabet="ab 首都🙂.", max_size=4), max_size=3), data=st.data())
def test_stop_texts_and_whole_characters_across_all_borders(tokenizer, text, stops, data):
    """However the tokens are cut and grouped: the text before the first token that completes a stop text, cut there."""
    raw = text.encode()
    if data.draw(st.booleans(), label="broken bytes"):
        raw = raw[: data.draw(st.integers(0, len(raw)))]
    single = {tokenizer.token_bytes(t): t for t in range(tokenizer.vocab_size) if len(tokenizer.token_bytes(t)) == 1}
    tokens = [single[bytes([b])] for b in raw] if data.draw(st.booleans(), label="bytes") else tokenizer.encode(text)
    wanted, used, stopped = tokenizer.decode(tokens), len(tokens), False
    for count in range(1, len(tokens) + 1):
        so_far = tokenizer.decode(tokens[:count]).removesuffix("\ufffd") if count < len(tokens) else wanted
        if found := [so_far.index(s) for s in stops if s and s in so_far]:
            wanted, used, stopped = so_far[: min(found)], count, True
            break
    words, got, taken, at, ended = StopText(tokenizer, stops), "", 0, 0, False
    while at < len(tokens) and not ended:
        size = data.draw(st.integers(1, 5), label="piece")
        piece, count, ended = words.push(tokens[at : at + size])
        got, taken, at = got + piece, taken + count, at + size
        assert wanted.startswith(got)
    if not ended:
        rest, ended = words.finish()
        got += rest
    assert (got, ended) == (wanted, stopped) and taken == used


# ------------------------------------------------------------------------------------------------- ends of answers


def test_a_thousand_answers_cancelled_leave_no_slot_behind(parent, endless, prompts):
    dice = random.Random(4)

    async def work(scheduler: Scheduler) -> None:
        open_tickets: list[Ticket] = []
        for number in range(1000):
            open_tickets.append(scheduler.submit("a", prompts[number % 9], LONGEST, person=f"p{number % 5}"))
            while len(open_tickets) > dice.randrange(12):
                open_tickets.pop(dice.randrange(len(open_tickets))).cancel()
            if number % 10 == 0:
                await asyncio.sleep(0.001)
        for ticket in open_tickets:
            ticket.cancel()
            ticket.cancel()
        await until(lambda: not scheduler._active)
        served = scheduler._models["a"]
        assert (served.live.free, served.live.busy, served.open, len(served.waiting)) == (4, 0, 0, 0)
        assert not scheduler._open and not scheduler._persons and not served.writing
        check(await scheduler.submit("a", prompts[0], KINDS[1]).whole())

    run(work, {"a": endless}, slots=4, per_person=50)


def test_a_reader_who_goes_away_ends_its_answer_at_once(endless, prompts):
    """By break, and as a task that is cancelled while it waits."""

    async def work(scheduler: Scheduler) -> None:
        async def read(ticket: Ticket, pieces: int) -> None:
            async for _ in ticket:
                if not (pieces := pieces - 1):
                    break

        first = scheduler.submit("a", prompts[0], LONGEST)
        await read(first, 2)
        await until(lambda: first.finish == "stopped")
        second = scheduler.submit("a", prompts[1], LONGEST)
        task = asyncio.create_task(read(second, -1))
        await until(lambda: len(second.tokens) > 2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert second.finish == "stopped"
        await until(lambda: not scheduler._active)
        for ticket in (first, second):
            assert 0 < len(ticket.tokens) < 15000
            check(ticket)

    run(work, {"a": endless})


def test_a_slow_reader_blocks_nobody_and_gets_everything(endless, prompts):
    async def work(scheduler: Scheduler) -> None:
        slow = scheduler.submit("a", prompts[0], LONG)
        pieces = slow.__aiter__()
        first = await anext(pieces)
        for prompt in prompts:
            check(await scheduler.submit("a", prompt, KINDS[1]).whole())
        await until(lambda: slow.finish is not None)
        rest = [piece async for piece in pieces]
        assert len(rest) == (first.finish is None)  # all of it in one piece
        assert len(slow.tokens) == 2000
        check(slow, [first, *rest])

    run(work, {"a": endless}, slots=2)


def test_a_long_answer_does_not_hold_up_another_model(parent, endless, prompts):
    async def work(scheduler: Scheduler) -> None:
        long = [scheduler.submit("a", prompts[0], LONGEST, stream=i) for i in range(4)]
        await until(lambda: all(t.tokens for t in long))
        check(await scheduler.submit("b", prompts[1], KINDS[0]).whole())
        assert all(t.finish is None for t in long)

    run(work, {"a": endless, "b": parent(1)}, slots=4)


# ------------------------------------------------------------------------------------------- models, limits, failures


def test_answers_being_written_keep_their_weights_when_a_model_is_replaced(parent, endless, prompts):
    new = parent(7)

    async def work(scheduler: Scheduler) -> None:
        old = [
            scheduler.submit("a", prompts[0], LONG, stream=i) for i in range(3)
        ]  # one of them still waits for a slot
        await until(lambda: bool(old[0].tokens))
        scheduler.replace("a", new)
        scheduler.replace("b", new)
        assert scheduler.opened("a") is new and scheduler.names() == ("a", "b")
        fresh = scheduler.submit("a", prompts[0], KINDS[3])
        for ticket in (*old, fresh):
            check(await ticket.whole())
        assert fresh.parent is new and all(t.parent is endless for t in old)
        scheduler.remove("b")
        with pytest.raises(ValueError, match="no model 'b' is served: there are a"):
            scheduler.submit("b", prompts[0], LONG)
        await until(lambda: not scheduler._active)

    run(work, {"a": endless}, slots=2)


def test_limits_of_a_person_and_of_the_queue(endless, prompts):
    async def work(scheduler: Scheduler) -> None:
        mine = [scheduler.submit("a", prompts[0], LONGEST, person="p") for _ in range(2)]
        with pytest.raises(Busy, match="you have 2 answers being written, the limit is 2 at once"):
            scheduler.submit("a", prompts[0], LONGEST, person="p")
        mine[0].cancel()
        mine[0] = scheduler.submit("a", prompts[0], LONGEST, person="p")
        others = [scheduler.submit("a", prompts[0], LONGEST) for _ in range(3)]  # nobody: not counted
        with pytest.raises(Busy, match="2 answers are waiting, the limit of the queue is 2"):
            scheduler.submit("a", prompts[0], LONGEST, person="q")
        for ticket in (*mine, *others):
            ticket.cancel()
        check(await scheduler.submit("a", prompts[0], KINDS[0], person="p").whole())

    run(work, {"a": endless}, slots=3, queue=2, per_person=2)


def test_bad_requests_are_refused_before_they_reach_the_engine(parent, prompts):
    async def work(scheduler: Scheduler) -> None:
        for asked, message in (
            ((prompts[0], Sampling(temperature=-1.0)), "temperature = -1.0"),
            (([], KINDS[0]), "no tokens"),
            (([5] * 160, KINDS[0]), "160 tokens, the model's context is 160"),
            (([10**6], KINDS[0]), "the vocabulary is"),
        ):
            with pytest.raises(ValueError, match=message):
                scheduler.submit("a", *asked)
        assert not scheduler._open

    run(work, {"a": parent()})
    with pytest.raises(ValueError, match="per_person = 0"):
        Scheduler({}, per_person=0)


def test_a_crash_ends_every_answer_and_says_why(endless, prompts, monkeypatch, capfd):
    calls, go = [], Live.go

    def breaks(live: Live, *limits):
        calls.append(1)
        if len(calls) > 5:
            raise FloatingPointError("the disk is on fire")
        return go(live, *limits)

    monkeypatch.setattr(Live, "go", breaks)

    async def work(scheduler: Scheduler) -> None:
        tickets = [scheduler.submit(m, prompts[0], LONGEST, person="p") for m in "aab"]
        done = await asyncio.gather(*(t.whole() for t in tickets), return_exceptions=True)
        message = "the engine has crashed: FloatingPointError: the disk is on fire"
        assert [(type(e), str(e)) for e in done] == [(EngineStopped, message)] * 3
        assert tickets[0].tokens and tickets[0].finish is None and not scheduler._open
        with pytest.raises(EngineStopped, match=message):
            scheduler.submit("a", prompts[0], LONGEST)

    run(work, {"a": endless, "b": endless}, slots=1)
    shown = capfd.readouterr().err
    assert "the engine thread has crashed" in shown and "the disk is on fire" in shown


def test_close_ends_open_answers_in_a_moment(endless, prompts):
    async def work(scheduler: Scheduler) -> None:
        tickets = [scheduler.submit("a", prompts[0], LONGEST) for _ in range(3)]
        await until(lambda: bool(tickets[0].tokens))
        begun = time.monotonic()
        scheduler.close()
        scheduler.close()
        assert time.monotonic() - begun < 2.0
        for ticket in tickets:
            with pytest.raises(EngineStopped, match="the engine was closed"):
                await ticket.whole()
        with pytest.raises(EngineStopped, match="closed"):
            scheduler.submit("a", prompts[0], LONGEST)

    run(work, {"a": endless}, slots=2)


def test_nothing_is_taken_before_start(endless, prompts):
    async def work() -> None:
        scheduler = Scheduler({"a": endless})
        with pytest.raises(EngineStopped, match=r"call start\(\) first"):
            scheduler.submit("a", prompts[0], LONGEST)
        scheduler.close()

    asyncio.run(work())
