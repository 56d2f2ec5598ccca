"""The writer thread: many coroutines, one COMMIT, answers only after it."""

import asyncio
import threading
from pathlib import Path

import pytest
from voters import Voters

from fledge.feedback.store import Invalid, Store, Stored, Unknown, store_url
from fledge.feedback.writer import Closed, Writer


def run(work):
    return asyncio.run(asyncio.wait_for(work, 30))


def test_many_votes_share_a_commit_and_each_gets_its_own_answer(store: Store, voters: Voters, address: str):
    async def all_of_them():
        writer = Writer(store)
        gate = threading.Event()
        first = asyncio.ensure_future(writer.do(lambda _: gate.wait(20)))
        while not writer.commits and not writer.busy:
            await asyncio.sleep(0.001)
        votes = [voters.thumb(draft=voters.a, value=1 - 2 * (n % 2)) for n in range(20)]
        waiting = [asyncio.ensure_future(writer.vote(voters.bo, v)) for v in votes]
        waiting.append(asyncio.ensure_future(writer.vote(voters.bo, voters.new("score", draft=voters.a, value=6))))
        waiting.append(asyncio.ensure_future(writer.vote("p_none", voters.thumb())))
        waiting.append(asyncio.ensure_future(writer.vote(voters.bo, votes[3])))
        await asyncio.sleep(0.05)
        assert not any(w.done() for w in waiting)
        gate.set()
        results = await asyncio.gather(*waiting, return_exceptions=True)
        assert await first and writer.commits == 2
        writer.close()
        return votes, results

    votes, results = run(all_of_them())
    assert results[:20] == [Stored(n + 1, v.id, True) for n, v in enumerate(votes)]
    assert isinstance(results[20], Invalid) and isinstance(results[21], Unknown)
    assert results[22] == Stored(4, votes[3].id, False)
    with Store.open(address, read_only=True) as reader:
        assert reader.verify() == (20, [])


def test_nobody_is_answered_when_the_commit_fails(place: Path, monkeypatch: pytest.MonkeyPatch):
    async def fail():
        store = Store.open(store_url(place))
        voters, writer = Voters(store), Writer(store)
        finish = "fledge.feedback.database.Transaction.finish"
        with monkeypatch.context() as patched:
            patched.setattr(finish, lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            for _ in range(2):
                with pytest.raises(OSError, match="No space"):
                    await writer.vote(voters.ann, voters.thumb())
        assert (await writer.vote(voters.ann, voters.thumb())).seq == 1  # it goes on once there is room
        writer.close()

    run(fail())
    with Store.open(store_url(place), read_only=True) as reader:
        assert reader.verify() == (1, [])


def test_work_that_fails_is_undone_alone(place: Path):
    async def work():
        store = Store.open(store_url(place))
        voters, writer = Voters(store), Writer(store)

        def half(opened: Store) -> None:
            opened.put_vote(voters.ann, voters.thumb())
            opened.put_conversation(voters.ann, "half")
            raise RuntimeError("half done")

        results = await asyncio.gather(
            writer.vote(voters.ann, voters.pair()), writer.do(half), writer.vote(voters.ann, voters.pair("same")),
            return_exceptions=True,
        )  # fmt: skip
        assert [type(r) for r in results] == [Stored, RuntimeError, Stored] and results[2].seq == 2
        assert await writer.do(lambda s: [c.title for c in s.conversations(voters.ann)]) == ["Capitals"]
        writer.close()

    run(work())
    with Store.open(store_url(place), read_only=True) as reader:
        assert reader.verify() == (2, [])


def test_a_caller_that_left_hinders_nobody_and_close_finishes_what_waits(place: Path):
    async def leave():
        store = Store.open(store_url(place))
        voters, writer = Voters(store), Writer(store)
        gone = asyncio.ensure_future(writer.vote(voters.ann, voters.thumb()))
        await asyncio.sleep(0)
        gone.cancel()
        waiting = asyncio.ensure_future(writer.vote(voters.ann, voters.pair()))
        await asyncio.sleep(0)
        await asyncio.to_thread(writer.close)
        assert (await waiting).new and gone.cancelled()
        writer.close()
        with pytest.raises(Closed, match="closed"):
            await writer.vote(voters.ann, voters.thumb())

    run(leave())
    with Store.open(store_url(place), read_only=True) as reader:
        assert reader.verify() == (2, [])  # the vote of the caller that left is stored: sent again, it is a repeat


def test_beyond_the_queue_callers_wait_for_room(place: Path):
    async def crowd():
        store = Store.open(store_url(place))
        voters, writer = Voters(store), Writer(store, queue=3)
        votes = [voters.thumb(draft=voters.a, value=1 - 2 * (n % 2)) for n in range(30)]
        results = await asyncio.gather(*(writer.vote(voters.bo, v) for v in votes))
        assert [r.seq for r in results] == list(range(1, 31)) and writer.commits >= 10
        writer.close()

    run(crowd())


def test_a_dead_thread_ends_every_wait(place: Path):
    class Stop(BaseException):
        pass

    async def die():
        store = Store.open(store_url(place))
        writer = Writer(store)

        def stop(_: Store) -> None:
            raise Stop("the thread dies")

        with pytest.raises(Closed, match="died"):
            await writer.do(stop)
        with pytest.raises(Closed):
            await writer.do(lambda _: None)
        writer.close()

    hook, threading.excepthook = threading.excepthook, lambda _: None
    try:
        run(die())
    finally:
        threading.excepthook = hook
