"""A tracker beside a training run: a process of its own, of low priority, that reads the run's files.

Nothing it does reaches the run, which waits for it nowhere and only passes on what it has to say. It sees the end of the
run, however that came, by its end of a pipe.
"""

import atexit
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec

from fledge.core.durable import canonical_json, write_atomically
from fledge.core.log import say
from fledge.stages.tracker_kinds import KINDS, Target, require_package
from fledge.stages.trackers import POLL_SECONDS, Followed, Follower, name_of

VARIABLE = "FLEDGE_TRACK"
FLAG = "--track"
OFF = "off"
_REMEMBERED = "track.json"
LAST_SECONDS = 120.0  # for what is still to be sent when the training process has ended
SILENT_SECONDS = 60.0  # after which it is said that a tracker does not answer
_told: set[str] = set()  # trackers whose trouble this process has spoken of
_beside: list["_Beside"] = []  # that may still have something to say


def parse_names(text: str) -> list[str]:
    """ "tensorboard,wandb" -> ["tensorboard", "wandb"]; "off" gives none. Raises ValueError for other words."""
    names = [word.strip() for word in text.split(",")]
    if names == [OFF]:
        return []
    if wrong := [name for name in names if name not in KINDS]:
        raise ValueError(f"{wrong[0]!r} is no tracker: name {', '.join(KINDS)}, several with commas, or {OFF}")
    return list(dict.fromkeys(names))


def take_setting(arguments: list[str]) -> list[str]:
    """The command line without --track; its value becomes FLEDGE_TRACK, for every run that the command trains.

    It is no field of a recipe: who watches a run changes nothing in it. Raises ValueError for an unknown tracker.
    """
    rest, words = [], iter(arguments)
    for word in words:
        name, equals, value = word.partition("=")
        if name != FLAG:
            rest.append(word)
            continue
        value = value if equals else next(words, "")
        try:
            parse_names(value)
        except ValueError as error:
            raise ValueError(f"{FLAG}: {error}") from None
        os.environ[VARIABLE] = value
    return rest


def remember(out: Path) -> None:
    """Keep what FLEDGE_TRACK says beside the recipe, so that `fledge resume` starts it again."""
    text = os.environ.get(VARIABLE)
    if text is None:
        return
    try:
        parse_names(text)
        write_atomically(out / _REMEMBERED, canonical_json({"track": text}))
    except (OSError, ValueError) as error:
        _warn(VARIABLE, str(error))


def _names(out: Path) -> list[str]:
    """What is to follow this run: by FLEDGE_TRACK, else as it or what it belongs to remembers. Raises ValueError."""
    if (text := os.environ.get(VARIABLE)) is not None:
        return parse_names(text)
    for folder in (out, *(p for p in out.parents if (p / "recipe.json").exists())):
        if (folder / _REMEMBERED).exists():
            return parse_names(msgspec.json.decode((folder / _REMEMBERED).read_bytes(), type=dict[str, str])["track"])
    return []


def _warn(name: str, text: str) -> None:
    """One line, once in this process for each tracker."""
    if name not in _told:
        _told.add(name)
        say(f"{name}: {' '.join(text.split())}; the run goes on without it")


class _Beside:
    """The process that follows `run`, as the training process sees it."""

    def __init__(self, run: Path, name: str):
        self.run, self.name, self.ended = run, name, False
        command = [
            sys.executable,
            "-m",
            "fledge.stages.tracking",
            str(run),
            name,
            str(LAST_SECONDS),
            str(SILENT_SECONDS),
        ]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
            start_new_session=True,  # Ctrl-C is for the run
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        os.set_blocking(self.process.stdout.fileno(), False)

    def look(self) -> None:
        """Pass on what it has to say, and that it is gone where it went before the run's end. Never waits."""
        code, text = self.process.poll(), self.process.stdout.read()
        if text or (code and not self.ended):
            words = (text or b"").decode("utf-8", "replace").strip() or f"its process ended with code {code}"
            _warn(self.name, f"{words}: `fledge follow {self.run} --to {self.name} --once` sends what is missing")
        if code is not None:
            self.process.stdout.close()
            _beside.remove(self)

    def end(self) -> None:
        """The run is over: what is there is sent, then the process ends. Nobody waits for it."""
        self.ended = True
        with suppress(OSError):
            self.process.stdin.close()


def _look() -> None:
    for beside in list(_beside):
        with suppress(OSError, ValueError):
            beside.look()


atexit.register(_look)


@contextmanager
def tracked(out: Path) -> Iterator[Callable[[Any], None]]:
    """Have the run in `out` followed while the block runs, by one process for each tracker that was asked for.

    Gives a hook of the loop, which says what the trackers have to say.
    """
    started, looked_at = [], time.monotonic()
    try:
        if os.environ.get("RANK", "0") == "0":  # of torchrun
            started = _start(out.resolve())
    except Exception as error:  # whatever it is, no run stops for want of a tracker
        _warn(VARIABLE, str(error))

    def hook(_: Any) -> None:
        nonlocal looked_at
        if _beside and time.monotonic() - looked_at > 1.0:
            looked_at = time.monotonic()
            _look()

    try:
        yield hook
    finally:
        for beside in started:
            beside.end()
        _look()


def _start(run: Path) -> list[_Beside]:
    """The processes that follow `run`; one whose package is missing is left out, which is said."""
    started = []
    for name in _names(run):
        try:
            require_package(name)
        except ValueError as error:
            _warn(name, str(error))
            continue
        started.append(_Beside(run, name))
        _beside.append(started[-1])
    return started


class _Watch:
    """In the follower's process: sees the end of the run, and does not let a tracker that hangs outlive it for long."""

    def __init__(self, tell: Any, last_seconds: float, silent_seconds: float):
        self.ended = threading.Event()
        self.follower: Follower | None = None
        self.busy = False  # a tracker is at work
        self.tell, self._last, self._silent = tell, last_seconds, silent_seconds
        threading.Thread(target=self._wait, daemon=True).start()
        threading.Thread(target=self._listen, daemon=True).start()

    def _wait(self) -> None:
        sys.stdin.buffer.read()  # ends with the block in `tracked`, or with the training process
        self.ended.set()
        time.sleep(self._last)
        os._exit(1)

    def _listen(self) -> None:
        """Say it once when a tracker has taken nothing for long."""
        before, since = -1, time.monotonic()
        while time.monotonic() - since < self._silent:
            time.sleep(min(1.0, self._silent))
            step = self.follower.position.step if self.follower else 0
            if step != before or not self.busy:
                before, since = step, time.monotonic()
        self.tell(f"no answer for {self._silent:g} s")


def _accompany(run: Path, name: str, watch: _Watch) -> None:
    watch.busy = True
    watch.follower = follower = Follower(Target(run, name_of(run), None, None), name, tell=lambda _: None)
    while True:
        ended = watch.ended.is_set()
        watch.busy = True
        with suppress(Followed):  # `fledge follow` by hand: when that ends, it is our turn
            follower.poll()
        if ended:
            break
        watch.busy = False
        watch.ended.wait(POLL_SECONDS)
    follower.close()


def main(run: str, name: str, last_seconds: str, silent_seconds: str) -> int:
    """The follower's process: what it prints goes nowhere but for one line about what went wrong."""
    os.nice(19)
    told = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)

    def tell(text: str) -> None:
        with suppress(OSError):  # the training process is gone
            print(" ".join(text.split()), file=told, flush=True)

    watch = _Watch(tell, float(last_seconds), float(silent_seconds))
    try:
        _accompany(Path(run), name, watch)
    except BaseException as error:
        tell(f"{type(error).__name__}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    os._exit(main(*sys.argv[1:]))  # a tracker's own end-of-process work must not hold this one
