"""`fledge follow`: a run's metrics.jsonl sent to TensorBoard, trackio or wandb, by a process that only reads the run.

How far it came stands beside the tracker's data: started again it goes on there, with no point lost or sent twice. A
resumed run cuts its log at the checkpoint and writes on: TensorBoard takes the points after it back, the others keep
them, which are the same ones.
"""

import hashlib
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Literal

import msgspec

from fledge.core.config import Settings, flat
from fledge.core.durable import canonical_json, run_lock, sha256, write_atomically
from fledge.core.log import read_jsonl, say
from fledge.stages.tracker_kinds import KINDS, Begin, Target, Texts, Tracker, require_package

_CHUNK_BYTES = 1 << 20
_TAIL_BYTES = 256  # about a row
_MARKS = 32
POLL_SECONDS = 2.0


class FollowOptions(Settings, frozen=True, kw_only=True):
    """Send a run's metrics to a tracker until the run is done."""

    run: str
    "Folder of a run, or of several: a journey, an experiment; it may not exist yet."
    to: Literal["tensorboard", "trackio", "wandb"]
    "Tracker to send to."
    project: str | None = None
    "Project in trackio or wandb; None is that of WANDB_PROJECT or TRACKIO_PROJECT, else fledge."
    folder: str | None = None
    "Where TensorBoard's or wandb's files go; None is inside each run."
    once: bool = False
    "Send what is there and end, whether the run is done or not."


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """A place in the log that was reached, by which it is told later how much of the log is still the same."""

    offset: int
    "Bytes before it."
    digest: str
    "Their sha256."
    step: int
    "Of the row before it."


class Position(msgspec.Struct):
    """How far one run was sent to one tracker."""

    marks: list[Mark] = []
    "The last places that were reached, and some before them; the newest is where to go on."
    first: str = ""
    "sha256 of the first line, by which a run started anew in the same folder is told apart."
    step: int = 0
    "Highest step that was sent."
    texts: int = 0
    "Highest step whose samples were sent."
    id: str = ""
    "The run's id in the tracker, drawn once."
    name: str = ""
    "Its name there."

    @property
    def offset(self) -> int:
        """Bytes of metrics.jsonl that were read."""
        return self.marks[-1].offset if self.marks else 0


def name_of(run: Path) -> str:
    """A run's name in trackers: its folder, below that of the journey or experiment it belongs to (first/sft)."""
    run = run.resolve()
    top = ([run] + [p for p in run.parents if (p / "recipe.json").exists()])[-1]
    return run.relative_to(top.parent).as_posix()


def settle(position: Position, log: Path, rewinds: bool) -> tuple[Position, Any]:
    """(where to go on in a log that may have been cut or replaced since, the hash over what is before that).

    A log cut at a checkpoint and written on is the same up to the last mark that still holds. Where another run wrote it
    the position is a fresh one. rewinds: the tracker takes points back, so that rows read again are sent again; else
    their steps are passed over.
    """
    hashed, good, held = hashlib.sha256(), hashlib.sha256(), []
    with open(log, "rb") as file:
        line = file.readline()
        if position.first and line.endswith(b"\n") and sha256(line) != position.first:
            return Position(), good
        file.seek(0)
        for mark in position.marks:
            while file.tell() < mark.offset and (data := file.read(min(_CHUNK_BYTES, mark.offset - file.tell()))):
                hashed.update(data)
            if file.tell() < mark.offset or hashed.hexdigest() != mark.digest:
                break
            held.append(mark)
            good = hashed.copy()
    moved = msgspec.structs.replace(position, marks=held)
    if rewinds and len(held) < len(position.marks):
        step = held[-1].step if held else 0
        moved.step, moved.texts = min(moved.step, step), min(moved.texts, step)
    return moved, good


def _row(line: bytes) -> dict[str, Any] | None:
    """A line of the log; None where it is none."""
    try:
        row = msgspec.json.decode(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int else None


def _figures(row: dict[str, Any]) -> dict[str, float]:
    """The numbers of a row; what is not finite stands as null in the log and is left out."""
    return {k: v for k, v in row.items() if k != "step" and type(v) in (int, float)}


class Followed(ValueError):
    """Another process sends this run to this tracker."""


class Follower:
    """Sends one run to one tracker; `poll` after `poll`, from where the one before it stopped, in this process or not."""

    def __init__(self, target: Target, to: str, tell: Callable[[str], None] = say):
        """tell: where it is said that a line of the log cannot be read. Raises ValueError where the package is missing."""
        require_package(to)
        self.target, self.kind, self.tell = target, KINDS[to], tell
        self.log, self.place = target.run / "metrics.jsonl", self.kind.home(target)
        self.tracker: Tracker | None = None
        self.position = Position()
        self._hashed, self._tail = hashlib.sha256(), b""
        self._held = ExitStack()  # the lock

    def poll(self) -> int:
        """Send what is new; returns the number of rows. Raises Followed while another process sends this run."""
        if not self.log.exists() or not self.log.stat().st_size:
            return 0
        if self.tracker is None:
            self._open()
        elif self._changed():
            self._go_back()
        sent = 0
        while lines := self._new_lines():
            sent += self._send(lines)
            self.tracker.flush()
            self._save()
        return sent

    def close(self, failed: bool = False) -> None:
        """Send samples that came after their row, unless sending has failed, and let the tracker finish."""
        if self.tracker is not None:
            if late := [] if failed else self._texts(self.position.step):
                self.tracker.send(self.position.step, {}, late)
                self.tracker.flush()
                self.position.texts = late[-1].step
                self._save()
            tracker, self.tracker = self.tracker, None
            tracker.close()
        self._held.close()

    def _open(self) -> None:
        try:
            self._held.enter_context(run_lock(self.place))
        except ValueError:
            raise Followed(
                f"{self.target.name} is being sent there by another process, named in {self.place / 'lock'}: let it go on, "
                "or stop it first"
            ) from None
        path = self.place / "position.json"
        try:
            position = msgspec.json.decode(path.read_bytes(), type=Position)
        except FileNotFoundError:
            position = Position()
        except ValueError:
            self.tell(f"{path} is damaged: {self.target.name} is sent from its first step on")
            position = Position()
        self.position, self._hashed = settle(position, self.log, self.kind.rewinds)
        self._begin()

    def _begin(self) -> None:
        """Open the tracker at the position."""
        position = self.position
        if not position.id:
            position.id = secrets.token_hex(8)
            position.name = self.kind.unused_name(self.target, position.id)
        self._tail = self._before()
        self._save()  # these first: a follower killed from here on goes on with the same run
        self.tracker = self.kind(self.target, Begin(position.step, position.id, position.name, self._config()))
        position.step = max(position.step, self.tracker.held or 0)

    def _go_back(self) -> None:
        """The log was cut or replaced while it was followed."""
        before = self.position.step
        self.position, self._hashed = settle(self.position, self.log, self.kind.rewinds)
        if not self.position.id:  # another run's
            tracker, self.tracker = self.tracker, None
            tracker.close()
            self._begin()
            return
        if self.position.step < before:
            self.tracker.purge(self.position.step + 1)
        self._tail = self._before()
        self._save()

    def _before(self) -> bytes:
        """The bytes of the log that end at the position, as many as tell that it is the same log."""
        with open(self.log, "rb") as file:
            file.seek(max(0, self.position.offset - _TAIL_BYTES))
            return file.read(min(_TAIL_BYTES, self.position.offset))

    def _changed(self) -> bool:
        """True where the log is no longer what was read of it: shorter, or something else before the position."""
        return self._before() != self._tail if self.position.offset else bool(self.position.first)

    def _new_lines(self) -> list[bytes]:
        """Whole lines after the position, about a megabyte of them."""
        with open(self.log, "rb") as file:
            file.seek(self.position.offset)
            return [line for line in file.readlines(_CHUNK_BYTES) if line.endswith(b"\n")]

    def _send(self, lines: list[bytes]) -> int:
        position, sent, offset = self.position, 0, self.position.offset
        steps = [row["step"] for line in lines if (row := _row(line))]
        texts = self._texts(max(steps, default=0))
        for line in lines:
            row = _row(line)
            if row is None:
                self.tell(f"{self.log}: the line at byte {offset} is no row of figures, left out")
            elif row["step"] > position.step:
                due = [t for t in texts if position.texts < t.step <= row["step"]]
                self.tracker.send(row["step"], _figures(row), due)
                position.step, position.texts = row["step"], due[-1].step if due else position.texts
                sent += 1
            position.first = position.first or sha256(line)
            offset += len(line)
            self._hashed.update(line)
        position.marks = [*position.marks, Mark(offset, self._hashed.hexdigest(), max([position.step, *steps]))]
        if len(position.marks) > _MARKS:  # dense near the end, where a log is cut, and sparse before
            position.marks = position.marks[: -_MARKS // 2 : 2] + position.marks[-_MARKS // 2 :]
        self._tail = (self._tail + b"".join(lines))[-_TAIL_BYTES:]
        return sent

    def _texts(self, last: int) -> list[Texts]:
        """Samples up to step `last` that were not sent yet."""
        try:
            rows = read_jsonl(self.target.run / "samples.jsonl")
            texts = [Texts(row["step"], row["samples"]) for row in rows]
        except (ValueError, KeyError, TypeError):
            self.tell(f"{self.target.run / 'samples.jsonl'} is damaged: samples are left out")
            return []
        return [t for t in texts if self.position.texts < t.step <= last]

    def _save(self) -> None:
        write_atomically(self.place / "position.json", canonical_json(self.position))

    def _config(self) -> dict[str, Any]:
        """The recipe, setting by setting."""
        try:
            held = msgspec.json.decode((self.target.run / "recipe.json").read_bytes())
            return {"stage": held["stage"], **flat(held["recipe"])}
        except (OSError, ValueError, KeyError, TypeError):
            return {}


def _runs(folder: Path) -> Iterator[Path]:
    """The runs in a folder that have written metrics, itself included."""
    from fledge.stages.history import recipes  # it needs torch, the process beside a training run does not

    if folder.is_dir():
        yield from (run for run, _ in recipes(folder) if (run / "metrics.jsonl").exists())


def _done(folder: Path) -> bool:
    """True where nothing in the folder will write any more."""
    from fledge.stages.history import status

    runs = list(_runs(folder))
    whole = not (folder / "recipe.json").exists() or status(folder)[0] == "done"
    return bool(runs) and whole and all((run / "done.json").exists() for run in runs)


def follow(options: FollowOptions) -> dict[str, int]:
    """Send until all is done, or once; returns the last step of each run that was sent.

    Raises ValueError where the tracker's package is missing, and with `once` where there is nothing to send or another
    process sends it.
    """
    require_package(options.to)
    top = Path(options.run).resolve()
    folder = None if options.folder is None else Path(options.folder).resolve()
    if options.once and not any(_runs(top)):
        raise ValueError(f"{options.run} holds no metrics.jsonl to send; without --once it is waited for")
    if not options.once and not any(_runs(top)):
        say(f"{options.run}: waiting for its first step")
    followers: dict[Path, Follower] = {}
    looks: list[str] = []
    try:
        with _closed(followers, looks):
            while True:
                done = options.once or _done(top)  # before it is read: what is written until then is read below
                for run in _runs(top):
                    if run not in followers:
                        followers[run] = Follower(Target(run, name_of(run), options.project, folder), options.to)
                    with nullcontext() if options.once else suppress(Followed):  # until the other process ends
                        followers[run].poll()
                if done:
                    break
                time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        say("stopped; the same command goes on")
    except (ValueError, OSError):
        raise
    except Exception as error:  # of the tracker's own kind: no trusted login, a server that refuses
        raise ValueError(f"{options.to}: {error}; the same command goes on from there") from error
    for follower in followers.values():
        say(f"{follower.target.name}: in {options.to} up to step {follower.position.step}")
    if looks:
        say(f"To look: {looks[0]}")
    return {f.target.name: f.position.step for f in followers.values()}


@contextmanager
def _closed(followers: dict[Path, Follower], looks: list[str]) -> Iterator[None]:
    """Close the followers, however the block ends; notes how to see what they sent."""
    try:
        yield
    except Exception:
        for follower in followers.values():
            with suppress(Exception):  # the first error is the one to tell
                follower.close(failed=True)
        raise
    except KeyboardInterrupt:
        for follower in followers.values():
            follower.close()
        raise
    looks += [f.tracker.look for f in followers.values() if f.tracker is not None]
    for follower in followers.values():
        follower.close()
