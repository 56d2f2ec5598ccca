"""What serving costs: tokens per second through the scheduler and through HTTP, against the engine's own.

A pocket model (about 1M parameters, vocabulary 2,048, context 1,024) that never ends an answer. C clients chat at once,
each asking for its next answer as soon as it has one; the engine writes as many answers, C at a time, by one call of
Engine.generate. The three take turns, so that a busy machine slows all of them, and the ratios are taken turn by turn.
HTTP: `fledge chat` in a process of its own, POST /v1/chat/completions with stream, one kept connection per client; the
clients live in this process, so they share the machine's cores with the server. First token: from sending the request to
the first piece of text, of every request of a turn. "Per CPU second" is the same ratio by the CPU time of the process that
writes (the clients' own is left out), which a busy machine disturbs less.

    python benchmarks/serve.py [--chats 8 32] [--rounds 5] [--answers 3] [--max_tokens 900] [--json FILE]
"""

import argparse
import asyncio
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from fledge.core import runtime

runtime.prepare_process()  # its settings must come before torch

import msgspec  # noqa: E402
import torch  # noqa: E402

from fledge.core.checkpoint import save_checkpoint  # noqa: E402
from fledge.core.model import ModelConfig, Transformer  # noqa: E402
from fledge.generate.chat import chat_engine  # noqa: E402
from fledge.generate.sampling import Sampling  # noqa: E402
from fledge.serve.scheduler import Scheduler  # noqa: E402
from fledge.stages.common import Parent, open_model  # noqa: E402
from fledge.text.messages import Message  # noqa: E402
from fledge.text.template import render_prompt  # noqa: E402
from fledge.text.tokenizer import Tokenizer  # noqa: E402

VOCAB, CONTEXT = 2048, 1024
WORDS = (
    "the river harbour of Belmora flows past every old city where people write long letters about small stones".split()
)


class Turn(NamedTuple):
    """One way's answers of one turn."""

    tokens: int
    seconds: float
    first_seconds: list[float]  # of each answer
    cpu_seconds: float = 0.0  # of the process that writes them


def cpu_seconds(process: int) -> float:
    """CPU time that all threads of a process have used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def question(number: int) -> str:
    return " ".join(WORDS[(number * 7 + i * (number % 5 + 1)) % len(WORDS)] for i in range(24)) + "?"


def make_run(folder: Path) -> Path:
    """A checkpoint of an untrained model that writes all of its vocabulary, but practically never a control token."""
    dice = random.Random(0)
    words = ["".join(dice.choices("abcdefghiklmnoprstuvw", k=dice.randrange(2, 9))) for _ in range(3000)]
    lines = [question(i) + "河水流過城市。" + " ".join(dice.choices(words, k=20)) for i in range(2000)]
    tokenizer = Tokenizer.train(lines, VOCAB)
    config = ModelConfig(size="pocket", vocab_size=tokenizer.vocab_size, context_tokens=CONTEXT, tied=False)
    model = Transformer(config).initialise(0)
    with torch.no_grad():
        model.unembedding.mul_(20.0)
        model.unembedding[list(tokenizer.special_ids)] = 0.0
    card = {"stage": "sft", "parent": None, "model": msgspec.to_builtins(config)}
    save_checkpoint(folder, 1, model=model.state_dict(), optimizer={}, state={}, card=card, tokenizer=tokenizer.json)
    return folder


# ------------------------------------------------------------------------------------------------------------ the ways


def by_engine(opened: Parent, prompts: list[list[int]], sampling: Sampling, chats: int) -> Turn:
    """All answers in one call, `chats` at a time."""
    start = time.perf_counter()
    found = chat_engine(opened.model, opened.tokenizer).generate(prompts, sampling, batch_rows=chats)
    return Turn(sum(len(c.tokens) for c in found), time.perf_counter() - start, [])


async def in_chats(
    ask: Callable[[int, int], Coroutine[None, None, tuple[int, float]]], chats: int, answers: int
) -> Turn:
    """`chats` clients at once, each with so many answers one after another; ask(client, question) -> (tokens, first)."""
    firsts: list[float] = []

    async def client(number: int) -> int:
        total = 0
        for i in range(answers):
            tokens, first = await ask(number, number + i * chats)
            firsts.append(first)
            total += tokens
        return total

    start = time.perf_counter()
    total = sum(await asyncio.gather(*map(client, range(chats))))
    return Turn(total, time.perf_counter() - start, firsts)


def by_scheduler(scheduler: Scheduler, prompts: list[list[int]], sampling: Sampling):
    async def ask(client: int, number: int) -> tuple[int, float]:
        start, first = time.perf_counter(), 0.0
        ticket = scheduler.submit("bench", prompts[number], sampling, stream=number)
        async for _ in ticket:
            first = first or time.perf_counter() - start
        return len(ticket.tokens), first

    return ask


class Browser:
    """A client that speaks just enough HTTP to cost nearly nothing."""

    def __init__(self, port: int, token: str, sampling: Sampling):
        self._port, self._token, self._sampling = port, token, sampling
        self._open: dict[int, tuple[asyncio.StreamReader, asyncio.StreamWriter]] = {}

    async def ask(self, client: int, number: int) -> tuple[int, float]:
        if client not in self._open:
            self._open[client] = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._open[client]
        body = json.dumps({
            "model": "default", "messages": [{"role": "user", "content": question(number)}], "stream": True,
            "stream_options": {"include_usage": True}, "max_tokens": self._sampling.max_tokens,
            "temperature": self._sampling.temperature, "seed": number,
        }).encode()  # fmt: skip
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nAuthorization: Bearer {self._token}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        start, first, seen = time.perf_counter(), 0.0, b""
        writer.write(head.encode() + body)
        while not seen.endswith(b"\r\n0\r\n\r\n"):
            got = await reader.read(1 << 16)
            seen = seen[-4000:] + got if first else seen + got
            if not first and re.search(rb'"content":"[^"]', seen):
                first = time.perf_counter() - start
            if not got or (not first and b"HTTP/1.1 200" not in seen[:100]):
                raise RuntimeError(f"the server answered {seen[:2000]!r}")
        (tokens,) = re.findall(rb'"completion_tokens":(\d+)', seen)
        return int(tokens), first

    def close(self) -> None:
        for _, writer in self._open.values():
            writer.close()


@contextmanager
def served(run: Path) -> Iterator[tuple[int, int, str]]:
    """(process, port, token) of `fledge chat` in a process of its own."""
    command = [sys.executable, "-m", "fledge", "chat", str(run), "--port", "0", "--open", "false", "--per_person", "64"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        for line in server.stdout:
            if found := re.search(r"127\.0\.0\.1:(\d+)/\?token=(\S+)", line):
                yield server.pid, int(found[1]), found[2]
                return
        raise RuntimeError("the server ended before it printed its address")
    finally:
        server.terminate()
        server.wait(10)


# ------------------------------------------------------------------------------------------------------------- turns


async def turns(opened: Parent, run: Path, chats: int, options: argparse.Namespace) -> list[dict[str, Turn]]:
    """Turn by turn: engine, scheduler, HTTP; the first turn warms up and does not count."""
    texts = [question(i) for i in range(chats * options.answers)]
    prompts = [render_prompt(opened.tokenizer, [Message("user", text)]) for text in texts]
    sampling = Sampling(temperature=0.7, max_tokens=options.max_tokens, seed=1)
    scheduler = Scheduler({"bench": opened})
    scheduler.start()
    found = []

    async def timed(way: Callable[[], Coroutine[None, None, Turn]], process: int) -> Turn:
        before = cpu_seconds(process)
        turn = await way()
        return turn._replace(cpu_seconds=cpu_seconds(process) - before)

    async def alone() -> Turn:
        return by_engine(opened, prompts, sampling, chats)

    with served(run) as (process, port, token):
        browser = Browser(port, token, sampling)
        for _ in range(options.rounds + 1):
            ask = by_scheduler(scheduler, prompts, sampling)
            found.append({
                "engine": await timed(alone, os.getpid()),
                "scheduler": await timed(lambda ask=ask: in_chats(ask, chats, options.answers), os.getpid()),
                "http": await timed(lambda: in_chats(browser.ask, chats, options.answers), process),
            })  # fmt: skip
        browser.close()
    scheduler.close()
    return found[1:]


def figures(chats: int, found: list[dict[str, Turn]]) -> dict:
    """Medians over the turns; the ratios are those of single turns."""
    row: dict = {"chats": chats, "engine": statistics.median(t["engine"].tokens / t["engine"].seconds for t in found)}
    for way in ("scheduler", "http"):
        ratios, cpu = [], []
        for turn in found:
            ours, engine = turn[way], turn["engine"]
            assert ours.tokens == engine.tokens, "every answer has max_tokens, or the sides did not do the same work"
            ratios.append(engine.seconds / ours.seconds)
            cpu.append(engine.cpu_seconds / ours.cpu_seconds)
        firsts = sorted(1000 * s for t in found for s in t[way].first_seconds)
        row[way] = {
            "ratio": statistics.median(ratios), "ratio_min": min(ratios), "ratio_max": max(ratios),
            "cpu_ratio": statistics.median(cpu),
            "first_ms": statistics.median(firsts), "first_ms_p95": firsts[int(0.95 * len(firsts))], "first_ms_max": firsts[-1],
        }  # fmt: skip
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--chats", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--answers", type=int, default=3)
    parser.add_argument("--max_tokens", type=int, default=900)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder) / "bench")
        opened = open_model(run)
        print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {opened.model.compute_dtype}\n")
        print(
            "| chats | engine, tokens/s | way | of the engine's (min..max) | per CPU second | first token, ms: median | p95 | max |"
        )
        print("|---|---|---|---|---|---|---|---|")
        for chats in options.chats:
            rows.append(row := figures(chats, asyncio.run(turns(opened, run, chats, options))))
            for way in ("scheduler", "http"):
                w = row[way]
                print(
                    f"| {chats} | {row['engine']:,.0f} | {way} | {w['ratio']:.2f} ({w['ratio_min']:.2f}..{w['ratio_max']:.2f}) | {w['cpu_ratio']:.2f} | "
                    f"{w['first_ms']:.0f} | {w['first_ms_p95']:.0f} | {w['first_ms_max']:.0f} |",
                    flush=True,
                )
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
