"""What a run leaves to read: metrics.jsonl (the same bytes for the same run), speed.jsonl (clock), and a live bar."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import msgspec

_NOTEBOOK_SECONDS = 0.5  # between two states of a notebook's line
_LONGEST_TORN_BYTES = 1 << 16  # far more than a line of speed.jsonl


class MetricsLog:
    """Append-only JSON lines, one per step. Deterministic figures and clock figures are kept in separate files."""

    def __init__(self, run: Path, offset: int):
        """Open for appending at byte `offset`: lines after it belong to steps that will be done again."""
        self._file: IO[bytes] = open(run / "metrics.jsonl", "ab")
        if self._file.tell() < offset:
            raise ValueError(
                f"{run / 'metrics.jsonl'} has {self._file.tell()} bytes, the checkpoint was saved at {offset}: "
                "the log was cut or replaced; restore it, or start the stage again in another folder"
            )
        self._file.truncate(offset)
        self._speed: IO[bytes] = _open_after_last_line(run / "speed.jsonl")
        self._run = run

    def write(self, row: dict[str, Any], speed: dict[str, Any]) -> None:
        with self._explained():
            self._file.write(msgspec.json.encode(row) + b"\n")
            self._speed.write(msgspec.json.encode(speed) + b"\n")

    def flush(self, durably: bool = False) -> int:
        """Push to the kernel (and to the disk if `durably`); returns the offset to keep in a checkpoint."""
        with self._explained():
            self._file.flush()
            self._speed.flush()
            if durably:
                os.fsync(self._file.fileno())
        return os.fstat(self._file.fileno()).st_size

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OSError(
                error.errno,
                f"could not write the log in {self._run}: {error.strerror}; checkpoints are intact. "
                f"Free space or make the folder writable, then `fledge resume {self._run}`",
            ) from error

    def close(self) -> None:
        """Rows a checkpoint counts on are in the file already; a disk that is full now has been told of, or is later."""
        for file in (self._file, self._speed):
            with suppress(OSError):
                file.close()


def _open_after_last_line(path: Path) -> IO[bytes]:
    """Open for appending; a last line torn by a kill is cut off, or it would spoil the next one."""
    file = open(path, "a+b")
    file.seek(max(0, file.tell() - _LONGEST_TORN_BYTES))
    tail = file.read()
    file.truncate(file.tell() - len(tail) + tail.rfind(b"\n") + 1)
    return file


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Rows of a log; a torn last line (a run still writing, or killed) is left out."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    return [msgspec.json.decode(line) for line in lines[:-1] if line]


def console():
    """One rich console for the program, on stderr so that stdout stays for results."""
    global _console
    if _console is None:
        from rich.console import Console

        _console = Console(stderr=True, highlight=False)
    return _console


_console = None


def say(text: str) -> None:
    """A plain line for the user."""
    console().print(text, markup=False, soft_wrap=True)


def visible(text: str) -> str:
    """Text for a rich table: markup escaped, unprintable characters by their code."""
    from rich.markup import escape

    shown = "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text.strip())
    return escape(shown)


class NotebookLine:
    """A line in a notebook's output that is written over: hundreds of them would bury the cells."""

    def __init__(self) -> None:
        from IPython.display import display  # there wherever a notebook runs

        self._handle = display({"text/plain": ""}, raw=True, display_id=True)

    def write(self, text: str) -> None:
        self._handle.update({"text/plain": text}, raw=True)


class Bar:
    """A stage's live bar (tokens done, loss, tokens/s, time left).

    In a notebook one line that is written over; elsewhere off a terminal plain lines every `every_seconds`.
    """

    def __init__(self, name: str, *, steps: int, first_step: int = 0, every_seconds: float = 10.0):
        self.name, self.steps, self.first = name, steps, first_step
        self.every = every_seconds
        self.start = self.last = time.monotonic()
        self.tokens = 0
        self.live = self.line = None
        if console().is_jupyter:
            self.line, self.every = NotebookLine(), _NOTEBOOK_SECONDS
        elif console().is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            self.live = Progress(
                TextColumn("[bold]{task.description:<12}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%  {task.fields[note]}"),
                TimeRemainingColumn(),
                console=console(),
            )
            self.live.start()
            self.task = self.live.add_task(name, total=steps, completed=first_step, note="")

    def update(self, step: int, tokens: int, figures: dict[str, float]) -> None:
        """`step` steps are done; `tokens` were in this one."""
        self.tokens += tokens
        now = time.monotonic()
        rate = self.tokens / max(1e-9, now - self.start)
        shown = "  ".join(f"{k} {v:.3f}" for k, v in figures.items())
        note = f"{self.tokens:,} tokens  {shown}  {rate:,.0f} tokens/s"
        if self.live:
            self.live.update(self.task, completed=step, note=note)
        elif now - self.last >= self.every or step == self.steps:
            left = (self.steps - step) * (now - self.start) / max(1, step - self.first)
            tell = self.line.write if self.line else say
            tell(f"{self.name}: step {step}/{self.steps}  {note}  {left:.0f} s left")
            self.last = now

    def close(self) -> None:
        if self.live:
            self.live.stop()
        sys.stderr.flush()
