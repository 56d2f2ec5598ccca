"""How long a vote takes: from sending it to having its answer, which comes after COMMIT with fsync (SQLite, synchronous=FULL).

`fledge chat` runs in a process of its own; 32 clients send 200 votes each, every client one at a time, over one kept
connection. "pause": each client waits 0.5 to 1.5 s before a vote, which is faster than anybody reads two answers; without,
it sends the next as soon as the last is acknowledged, so that 32 always wait. Meanwhile nothing else runs, or two trainers
(`fledge pretrain`, size pocket, one thread each) keep two cores busy, at nice 10 as `fledge improve` runs, or at nice 0.
"writer" is the store alone: 32 coroutines and the writer thread, no HTTP. The clients share the cores with all of it.
--cores pins everything to so many cores. Linux ranks processes by nice only within a session where sched_autogroup is on, so
every trainer gets a session of its own with its nice value. --nice is added to everybody's: on a machine shared with strangers
-10 (as root) lifts the server and the clients 10 above them, and trainers "at nice 10" are their equals.
--folder chooses the disk; its bare fsync of 4 KiB is told beside the figures.

    python benchmarks/votes.py [--cores 2] [--votes 200] [--paused_votes 40] [--nice -10] [--folder DIR] [--json FILE]
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[1:1] = [str(ROOT / "src"), str(ROOT / "tests" / "reliability")]  # the clients are those of the kill test

import msgspec  # noqa: E402
from serve import make_run  # noqa: E402 - of this folder
from vote_clients import Answer, Voter, prepare, send_all  # noqa: E402

from fledge.feedback.store import NewVote, Store, store_url  # noqa: E402
from fledge.feedback.writer import Writer  # noqa: E402

CLIENTS = 32
PAUSE_SECONDS = (0.5, 1.5)
OWNER = "owner-" + "o" * 40
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}


@contextmanager
def server(run: Path) -> Iterator[int]:
    """The port of `fledge chat RUN`."""
    command = [sys.executable, "-m", "fledge", "chat", str(run), "--port", "0", "--token", OWNER, "--open", "false"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=ENVIRONMENT)
    try:
        yield int(process.stdout.readline().split("/?")[0].rpartition(":")[2])
    finally:
        process.terminate()
        process.wait(30)


def rank(pid: int, nice: int) -> None:
    """Set the nice value of a process and, where the kernel has such a thing, of its session."""
    os.setpriority(os.PRIO_PROCESS, pid, nice)
    session = Path(f"/proc/{pid}/autogroup")
    if session.exists():
        session.write_text(str(nice))


@contextmanager
def trainers(folder: Path, nice: int | None) -> Iterator[None]:
    """Two trainers at work, or none."""
    if nice is None:
        yield
        return
    text, chance = folder / "text.jsonl", random.Random(0)
    words = ["".join(chance.choices("abcdefghiklmnoprstuvw", k=6)) for _ in range(2000)]
    text.write_text("".join(json.dumps({"text": " ".join(chance.choices(words, k=200))}) + "\n" for _ in range(2000)))
    jobs = []
    for number in range(2):
        out = Path(tempfile.mkdtemp(dir=folder)) / "train"
        command = [sys.executable, "-m", "fledge", "pretrain", "--out", str(out), "--text", str(text)]
        command += [
            "--vocab_size",
            "2048",
            "--model.size",
            "pocket",
            "--train.steps",
            "1000000",
            "--train.threads",
            "1",
        ]
        command += ["--train.seed", str(number)]
        job = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.DEVNULL, start_new_session=True)
        rank(job.pid, os.getpriority(os.PRIO_PROCESS, 0) + nice)
        jobs.append((out, job))
    try:
        for out, job in jobs:
            while not (out / "metrics.jsonl").exists() or (out / "metrics.jsonl").stat().st_size == 0:
                if job.poll() is not None:
                    raise RuntimeError(f"a trainer ended with {job.returncode}")
                time.sleep(0.1)
        yield
    finally:
        for _, job in jobs:
            job.kill()
            job.wait()


def figures(seconds: list[float], wall: float) -> dict[str, Any]:
    ordered = sorted(seconds)

    def at(share: float) -> float:
        return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 2)

    return {
        "votes": len(ordered), "p50_ms": at(0.5), "p90_ms": at(0.9), "p99_ms": at(0.99), "max_ms": at(1.0),
        "votes_per_second": round(len(ordered) / wall, 1),
    }  # fmt: skip


def over_http(run: Path, folder: Path, nice: int | None, pause: bool, votes: int) -> dict[str, Any]:
    """Every client's votes through the real server."""
    chance, voters = random.Random(1), fresh(run, votes)
    answers: list[list[Answer]] = [[] for _ in voters]
    waiting = (lambda: chance.uniform(*PAUSE_SECONDS)) if pause else None

    async def clients(port: int) -> None:
        await asyncio.gather(*(send_all(v, port, a, waiting) for v, a in zip(voters, answers, strict=True)))

    with server(run) as port, trainers(folder, nice):
        start = time.perf_counter()
        asyncio.run(clients(port))
        wall = time.perf_counter() - start
    check(run, votes)
    return figures([a.seconds for some in answers for a in some], wall)


def by_writer(run: Path, folder: Path, nice: int | None, votes: int) -> dict[str, Any]:
    """The same votes without HTTP: 32 coroutines and the writer thread."""
    voters, seconds = fresh(run, votes), []

    async def client(writer: Writer, voter: Voter) -> None:
        for vote in voter.votes:
            start = time.perf_counter()
            await writer.vote(voter.person, msgspec.convert(vote, NewVote))
            seconds.append(time.perf_counter() - start)

    async def clients() -> int:
        writer = Writer(Store.open(store_url(run)))
        await asyncio.gather(*(client(writer, voter) for voter in voters))
        writer.close()
        return writer.commits

    with trainers(folder, nice):
        start = time.perf_counter()
        commits = asyncio.run(clients())
        wall = time.perf_counter() - start
    check(run, votes)
    return figures(seconds, wall) | {"votes_per_commit": round(len(seconds) / commits, 1)}


def fresh(run: Path, votes: int) -> list[Voter]:
    """An empty store, but for people and what they will judge."""
    for old in run.glob("votes.*"):
        old.unlink()
    with Store.open(store_url(run)) as store:
        return prepare(store, CLIENTS, votes)


def check(run: Path, votes: int) -> None:
    with Store.open(store_url(run), read_only=True) as store:
        assert store.verify() == (CLIENTS * votes, [])


def fsync_ms(folder: Path, count: int = 200) -> dict[str, float]:
    """A bare append and fsync of 4 KiB, for comparison."""
    seconds = []
    with tempfile.TemporaryFile(dir=folder) as file:
        for _ in range(count):
            start = time.perf_counter()
            file.write(b"x" * 4096)
            file.flush()
            os.fsync(file.fileno())
            seconds.append(time.perf_counter() - start)
    found = figures(seconds, sum(seconds))
    return {name: found[name] for name in ("p50_ms", "p99_ms")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--votes", type=int, default=200)
    parser.add_argument("--paused_votes", type=int, default=40)
    parser.add_argument("--folder", default=None)
    parser.add_argument("--json", default=None)
    parser.add_argument("--nice", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=None, help="cases by number")
    given = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: given.cores])
    if given.nice:
        if os.getpgid(0) != os.getpid():  # else the shell has given us a session's place already
            os.setsid()
        rank(os.getpid(), given.nice)
    load = (("alone", None), ("two trainers, nice 10", 10), ("two trainers, nice 0", 0))
    cases = [(name, nice, way) for name, nice in load for way in ("HTTP, pause", "HTTP, no pause", "writer, no pause")]
    rows = []
    with tempfile.TemporaryDirectory(prefix="fledge-bench-votes-", dir=given.folder) as name:
        folder = Path(name)
        run = make_run(folder / "run")
        for number, (busy, nice, way) in enumerate(cases):
            if given.only is not None and str(number) not in given.only:
                continue
            disk = fsync_ms(folder)
            if way.startswith("writer"):
                found = by_writer(run, folder, nice, given.votes)
            else:
                pause = way.endswith(", pause")
                found = over_http(run, folder, nice, pause, given.paused_votes if pause else given.votes)
            rows.append(
                {"case": number, "load": busy, "way": way, **found, "fsync": disk, "load_average": os.getloadavg()[0]}
            )
            print(json.dumps(rows[-1]), flush=True)
    if given.json:
        Path(given.json).write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
