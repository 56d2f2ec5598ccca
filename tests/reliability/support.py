"""What the reliability tests share: tiny data and recipes, comparing runs byte by byte, and forked trainers."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import fledge

ENVIRONMENT = {
    **os.environ,
    "PYTHONPATH": os.pathsep.join([str(Path(fledge.__file__).parents[1]), str(Path(__file__).parent)]),
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
FLEDGE = [sys.executable, "-m", "fledge"]


class Ended(NamedTuple):
    """How a child ended: exit code (128 + n for signal n), last step it logged, what it printed."""

    code: int
    step: int
    said: str


class Trainers:
    """Client of fork_server.py."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("fork_server.py"))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT,
        )  # fmt: skip
        self._server.stdout.readline()

    def _ask(self, **request: Any) -> dict[str, Any]:
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def start(self, job: str, folder: Path, environment: dict[str, str] | None = None, **arguments: Any) -> int:
        folder.mkdir(parents=True, exist_ok=True)
        request = {"start": job, "with": arguments, "folder": str(folder), "env": environment or {}}
        return self._ask(**request)["pid"]

    def send(self, pid: int, number: int, *, step: int = 0, after_seconds: float = 0.0) -> bool:
        """Signal a child once it has logged `step`, or later; False when it had ended before."""
        return self._ask(pid=pid, signal=int(number), step=step, after_seconds=after_seconds)["sent"]

    def wait(self, pid: int) -> Ended:
        done = self._ask(wait=pid)
        return Ended(done["code"], done["step"], done["said"])

    def run(self, job: str, folder: Path, **arguments: Any) -> Ended:
        """Run a job to its end, which must be a good one."""
        ended = self.wait(self.start(job, folder, **arguments))
        assert ended.code == 0, ended.said
        return ended

    def kill(self, job: str, folder: Path, *, step: int, after_seconds: float, **arguments: Any) -> Ended:
        """Run a job and SIGKILL it; fails when it ended by itself."""
        pid = self.start(job, folder, **arguments)
        sent = self.send(pid, signal.SIGKILL, step=step, after_seconds=after_seconds)
        ended = self.wait(pid)
        assert sent and ended.code == 128 + signal.SIGKILL, (sent, ended)
        return ended

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait(30)


def words(seed: int, count: int = 120) -> list[str]:
    chance = random.Random(seed)
    return ["".join(chance.choice("abcdefghijklmnop") for _ in range(chance.randint(2, 6))) for _ in range(count)]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_texts(path: Path, documents: int = 200, seed: int = 1) -> Path:
    chance, known = random.Random(seed), words(seed)
    return write_rows(path, [{"text": " ".join(chance.choices(known, k=30))} for _ in range(documents)])


def write_chats(path: Path, chats: int = 60, seed: int = 2) -> Path:
    chance, known = random.Random(seed), words(1)

    def turn(role: str, count: int) -> dict[str, str]:
        return {"role": role, "content": " ".join(chance.choices(known, k=count))}

    return write_rows(path, [{"messages": [turn("user", 3), turn("assistant", 2)]} for _ in range(chats)])


def write_pairs(path: Path, pairs: int = 60, seed: int = 3) -> Path:
    chance, known = random.Random(seed), words(1)

    def pick(count: int) -> str:
        return " ".join(chance.choices(known, k=count))

    rows = [{"prompt": pick(2), "chosen": "yes " + pick(1), "rejected": "no " + pick(1)} for _ in range(pairs)]
    return write_rows(path, rows)


def loop(steps: int, **over: Any) -> dict[str, Any]:
    """The [train] section of a recipe: small steps on one thread."""
    return {"steps": steps, "batch_tokens": 256, "threads": 1, "save_seconds": 0.05, **over}


def pretrain_recipe(text: Path, steps: int, out: str = "run", **train: Any) -> dict[str, Any]:
    """Size tiny, context 32. `out` is relative, so that the recipe is the same bytes in every folder."""
    model = {"size": "tiny", "context_tokens": 32}
    return {"out": out, "text": [str(text)], "vocab_size": 300, "model": model, "train": loop(steps, **train)}


def command_line(verb: str, recipe: dict[str, Any]) -> list[str]:
    """The recipe as a command: fledge VERB --section.key value ..."""
    words = [*FLEDGE, verb]
    for key, value in recipe.items():
        for name, inner in value.items() if isinstance(value, dict) else [(None, value)]:
            for one in inner if isinstance(inner, list) else [inner]:
                words += [f"--{key}.{name}" if name else f"--{key}", str(one)]
    return words


def result_of(run: Path, recipe: bool = True) -> dict[str, bytes]:
    """Every file of a finished run that must not depend on how it got there."""
    newest = sorted((run / "checkpoints").glob("step-*"))[-1]
    found = {f"{newest.name}/{p.name}": p.read_bytes() for p in sorted(newest.iterdir())}
    names = ("metrics.jsonl", "done.json", *(["recipe.json"] if recipe else []))
    return found | {name: (run / name).read_bytes() for name in names}


def assert_same_run(one: Path, other: Path) -> None:
    """Byte-identical weights, optimiser state, loop state, card, manifest and loss curve."""
    a, b = result_of(one), result_of(other)
    assert list(a) == list(b)
    different = [name for name in a if a[name] != b[name]]
    assert not different, f"{one} and {other} differ in {different}"
