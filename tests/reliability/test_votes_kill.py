"""32 people vote while the server is killed 20 times: what was acknowledged is stored once, and the chain is whole."""

import asyncio
import random
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest
from support import Trainers
from vote_clients import Answer, Voter, prepare, send_all

from fledge.feedback.exports import write_export
from fledge.feedback.store import JUDGEMENTS, Store, Vote, store_url

CLIENTS, VOTES_EACH, KILLS = 32, 200, 20
_OWNER = "owner-token-" + "o" * 32


class _Server:
    """`fledge chat`, forked; killed and started again on the same port."""

    def __init__(self, trainers: Trainers, run: Path, url: str):
        self._trainers, self._folder = trainers, run.parent
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        words = ["chat", str(run), "--port", self.port, "--token", _OWNER, "--open", "false", "--store", url]
        self._command = [str(word) for word in words]
        self.pid = 0

    def start(self) -> None:
        self.pid = self._trainers.start("command", self._folder, arguments=self._command)

    def kill(self, number: int = signal.SIGKILL) -> None:
        sent = self._trainers.send(self.pid, number)
        ended = self._trainers.wait(self.pid)
        expected = 128 + number if number == signal.SIGKILL else 0
        assert sent and ended.code == expected, ended
        assert "Traceback" not in ended.said, ended.said


async def _kill_now_and_then(server: _Server, answers: list[list[Answer]], url: str) -> None:
    """After every so many acknowledged votes, at a random moment: kill -9, look whether all are there, start again."""
    chance, total = random.Random(5), CLIENTS * VOTES_EACH
    for number in range(1, KILLS + 1):
        while sum(map(len, answers)) < number * total // (KILLS + 1):
            await asyncio.sleep(0.001)
        await asyncio.sleep(chance.uniform(0, 0.03))
        acknowledged = [answer for some in answers for answer in some]
        await asyncio.to_thread(server.kill)
        with Store.open(url, read_only=True) as store:  # what the dead server left behind, before anybody mends it
            found = {v.id: v.seq for v in store.votes()}
        lost = [a for a in acknowledged if found.get(a.vote["id"]) != a.seq]
        assert not lost, f"kill {number}: {len(lost)} of {len(acknowledged)} acknowledged votes are not stored"
        await asyncio.to_thread(server.start)


def _look_after(url: str, folder: Path, stop: asyncio.Event, done: list[str]) -> None:
    """What other processes do meanwhile: exports recorded in the store (a second writer), backups, checks of them."""
    number = 0
    while not stop.is_set():
        number += 1
        with Store.open(url) as store:
            write_export(store, "kto" if number % 2 else "dpo", folder / f"export-{number}.jsonl")
            done.append("export")
            if store.database.is_sqlite:
                store.backup(folder / f"backup-{number}.sqlite3")
                done.append("backup")
        if url.startswith("sqlite"):
            with Store.open(store_url("", str(folder / f"backup-{number}.sqlite3")), read_only=True) as copy:
                assert copy.verify().problems == []
        time.sleep(0.2)


async def _vote_through_kills(server: _Server, voters: list[Voter], url: str, folder: Path) -> list[list[Answer]]:
    answers: list[list[Answer]] = [[] for _ in voters]
    stop, cared = asyncio.Event(), []
    caring = asyncio.create_task(asyncio.to_thread(_look_after, url, folder, stop, cared))
    killing = asyncio.create_task(_kill_now_and_then(server, answers, url))
    sending = [asyncio.create_task(send_all(v, server.port, a)) for v, a in zip(voters, answers, strict=True)]
    try:
        await asyncio.wait_for(asyncio.gather(killing, *sending), 500)
    finally:
        stop.set()
        for task in (killing, *sending):
            task.cancel()
        await caring
    assert cared.count("export") >= 3
    return answers


def _expected(voter: Voter) -> dict[str, str]:
    """Subject -> id of the vote that must stand in the end."""
    standing: dict[str, str] = {}
    for vote in voter.votes:
        if vote["kind"] == "retract":
            standing = {subject: id for subject, id in standing.items() if id != vote["vote"]}
        else:
            subject = f"task:{vote['task']}" if vote["kind"] == "pair" else f"draft:{vote['draft']}:{vote['kind']}"
            standing[subject] = vote["id"]
    return standing


def _same_content(stored: Vote, sent: dict) -> bool:
    value = sent.get("value") if sent["kind"] != "pair" else stored.value
    return (stored.kind, stored.value, stored.comment) == (sent["kind"], value, sent["comment"])


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_20_kills_lose_no_acknowledged_vote_and_double_none(
    kind: str, place: Path, grown: Path, trainers: Trainers, request: pytest.FixtureRequest
):
    run = Path(shutil.copytree(grown / "sft", place / "run"))
    url = store_url(run) if kind == "sqlite" else request.getfixturevalue("postgres_url")
    with Store.open(url) as store:
        voters = prepare(store, CLIENTS, VOTES_EACH)
    server = _Server(trainers, run, url)
    server.start()
    answers = asyncio.run(_vote_through_kills(server, voters, url, place))
    server.kill(signal.SIGINT)

    with Store.open(url, read_only=True) as store:
        stored = {v.id: v for v in store.votes()}
        current = {(v.person_id, v.subject): v.id for v in store.current_votes()}
        report, counts = store.verify(), store.counts()
    assert report == (CLIENTS * VOTES_EACH, [])  # as many rows as votes: none lost, none doubled
    for voter, got in zip(voters, answers, strict=True):
        assert [a.vote["id"] for a in got] == [v["id"] for v in voter.votes]
        seqs = [a.seq for a in got]
        assert seqs == sorted(set(seqs)) and all(stored[a.vote["id"]].seq == a.seq for a in got)
        assert all(_same_content(stored[v["id"]], v) for v in voter.votes)
        assert {s: id for (person, s), id in current.items() if person == voter.person} == _expected(voter)
    edits = sum(v["kind"] == "edit" for voter in voters for v in voter.votes)
    assert counts["draft"] == CLIENTS * 20 + edits  # an edit sent twice made one draft
    assert all(stored[i].kind in JUDGEMENTS for i in current.values())
    repeated = sum(a.status == 200 for got in answers for a in got)
    assert repeated  # kills fell between a COMMIT and its answer, and the retries were harmless
    print(f"{kind}: {report.rows} votes, {KILLS} kills, {repeated} sent again after they had been stored")
