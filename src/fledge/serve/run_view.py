"""What run folders say, for the page: which runs there are, where they stand, their curves and samples. Only reads.

A run may be written, resumed or killed at any moment meanwhile: every file is read as it is found, a line that is torn is
left out, and no lock is ever waited for.
"""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec

from fledge.core.checkpoint import list_checkpoints, step_of
from fledge.serve.models import peek

State = Literal["running", "done", "interrupted", "stopped"]
POINTS = 400  # of a curve
_DEEP = 4  # folders below the run: rounds/001/dpo is 3
_INSIDE = frozenset({"checkpoints", "data", "looks", "world"})  # parts of a run, not runs
_TAIL_BYTES = 1 << 16


class RunSummary(msgspec.Struct):
    """One line of the list of runs."""

    name: str
    stage: str
    state: State
    step: int
    "Steps in the log."
    steps: int | None
    "Of the whole run; None while nothing tells."
    updated_ms: int
    "When its log or its samples were last written, milliseconds since the epoch."
    parent: str | None
    "Name of the run it was raised from, or a path where that is elsewhere."


class ModelNode(msgspec.Struct):
    """One model of the family tree: the newest checkpoint of a run."""

    id: str
    name: str
    stage: str
    step: int
    parent: str | None
    "Id of the model it was raised from."
    exports: list[dict[str, Any]]
    "What it learnt from votes: id, format, rows, first_seq, last_seq."


def run_folders(top: Path) -> dict[str, Path]:
    """Folders of training runs under `top`, itself included, by name: the path below `top`, or `top`'s own name.

    These are all names a client can ask for, so none leads elsewhere. Links are not followed.
    """
    found: dict[str, Path] = {}
    for folder, inner, files in os.walk(top):
        path = Path(folder)
        below = path.relative_to(top)
        if len(below.parts) >= _DEEP:
            inner.clear()
        inner[:] = sorted(n for n in inner if n not in _INSIDE and not n.startswith("."))
        if "recipe.json" in files and _recipe(path) is not None:
            found[below.as_posix()] = path
    own = found.pop(".", None)
    if own is None:
        return found
    name = top.resolve().name
    while name in found:
        name += "-itself"
    return {name: own, **found}


def _json(path: Path) -> Any:
    """What a file holds, or None where there is none or it is damaged: a view shows what it can."""
    try:
        return msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def _recipe(run: Path) -> dict[str, Any] | None:
    """{"stage", "recipe"} of a folder that a stage trains in; None of a journey's or an experiment's."""
    held = _json(run / "recipe.json")
    if not isinstance(held, dict) or not isinstance(held.get("stage"), str):
        return None
    recipe = held.get("recipe")
    return held if isinstance(recipe, dict) and isinstance(recipe.get("train"), dict) else None


def is_locked(path: Path) -> bool:
    """True while a process holds the lock file of `core.checkpoint.run_lock`.

    Its owner's name stands in it, and an owner on this machine is looked up in /proc: trying the lock takes it for an
    instant, in which a trainer that starts would be refused. It is tried where /proc cannot tell.
    """
    try:
        words = path.read_bytes()[:300].decode("utf-8", "replace").split()
        if (
            len(words) == 4
            and words[1].isdecimal()
            and words[3] == socket.gethostname()
            and Path("/proc/self/fd").exists()
        ):
            with suppress(PermissionError):  # another user's process
                return _has_open(words[1], path)
        with open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def _has_open(pid: str, path: Path) -> bool:
    wanted, folder = path.stat(), Path("/proc", pid, "fd")
    try:
        handles = os.listdir(folder)
    except FileNotFoundError:
        return False
    for handle in handles:
        with suppress(FileNotFoundError):  # closed meanwhile
            if os.path.samestat(wanted, (folder / handle).stat()):
                return True
    return False


def _last_row(path: Path) -> dict[str, Any]:
    """The last whole line of a log, {} where there is none."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
    except OSError:
        return {}
    return next(_rows(reversed(lines)), {})


def _rows(lines: Any) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            row = msgspec.json.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            yield row


def state_of(run: Path, logged: int) -> State:
    """running: its lock is held. stopped: asked to stop, all it did is saved. interrupted: some of it will be done again."""
    if (run / "done.json").exists():
        return "done"
    if is_locked(run / "lock") or is_locked(run / "data" / "lock"):  # the latter while text is being tokenized
        return "running"
    saved = list_checkpoints(run)
    return "stopped" if saved and step_of(saved[-1]) >= logged else "interrupted"


def _steps(run: Path, recipe: dict[str, Any]) -> int | None:
    done = _json(run / "done.json")
    told = (done or {}).get("step") or recipe["recipe"]["train"].get("steps")
    return told or _last_row(run / "samples.jsonl").get("steps")


def _parent(recipe: dict[str, Any], folders: dict[str, Path]) -> str | None:
    given = recipe["recipe"].get("parent")
    if not isinstance(given, str):
        return None
    wanted = Path(given).resolve()
    places = {path.resolve(): name for name, path in folders.items()}
    return next((places[p] for p in (wanted, *wanted.parents) if p in places), given)


def _changed_ms(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns // 1_000_000
    except OSError:
        return 0


def summarise(name: str, folders: dict[str, Path]) -> RunSummary:
    """Where one run stands."""
    run = folders[name]
    recipe = _recipe(run) or {"stage": "unknown", "recipe": {"train": {}}}
    step = _last_row(run / "metrics.jsonl").get("step", 0)
    written = max(_changed_ms(run / part) for part in ("recipe.json", "metrics.jsonl", "samples.jsonl"))
    return RunSummary(
        name, recipe["stage"], state_of(run, step), step, _steps(run, recipe),
        written, _parent(recipe, folders),
    )  # fmt: skip


def list_runs(top: Path) -> list[RunSummary]:
    """Every run under `top`."""
    folders = run_folders(top)
    return [summarise(name, folders) for name in folders]


def curve(path: Path, after: int = 0, points: int = POINTS) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl with a step above `after`, evenly thinned to at most `points`; the newest is always there.

    Only the rows given are decoded, so a poll of a long run costs little more than reading its file.
    """
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError:
        return []
    low, high = 0, len(lines)  # steps rise from line to line
    while low < high:
        middle = (low + high) // 2
        if next(_rows([lines[middle]]), {"step": 0})["step"] > after:
            high = middle
        else:
            low = middle + 1
    fresh = lines[low:]
    if len(fresh) > points:
        fresh = [fresh[(i + 1) * len(fresh) // points - 1] for i in range(points)]
    return [{k: v for k, v in row.items() if k != "ids"} for row in _rows(fresh) if row["step"] > after]


def details(name: str, folders: dict[str, Path], after: int = 0) -> dict[str, Any]:
    """What the page shows of one run; rows and samples only of steps above `after`.

    Samples are those of samples.jsonl, and of a reinforcement run those of its looks.
    """
    run = folders[name]
    looks = [look for look in map(_json, sorted((run / "looks").glob("*.json"))) if isinstance(look, dict)]
    shown = [*_rows(_lines(run / "samples.jsonl")), *(look for look in looks if look.get("samples"))]
    return {
        **msgspec.structs.asdict(summarise(name, folders)),
        "recipe": (_recipe(run) or {}).get("recipe"),
        "rows": curve(run / "metrics.jsonl", after),
        "samples": sorted((row for row in shown if row["step"] > after), key=lambda row: row["step"]),
        "looks": looks,
        "flags": _json(run / "flags.json") or [],
    }


def _lines(path: Path) -> list[bytes]:
    try:
        return path.read_bytes().split(b"\n")[:-1]
    except OSError:
        return []


def models(folders: dict[str, Path]) -> list[ModelNode]:
    """The newest checkpoint of every run, by what its manifest and card say (weights are not read)."""
    found = []
    for name, run in folders.items():
        saved = list_checkpoints(run)
        if not saved:
            continue
        try:
            id_, card = peek(saved[-1])
        except ValueError:  # damaged, or replaced by a newer one just now: then the next poll sees that
            continue
        parent = card["parent"]["id"] if card.get("parent") else None
        exports = [e for path in _data_files(card.get("recipe") or {}) if (e := _export(path))]
        found.append(ModelNode(id_, name, card["stage"], step_of(saved[-1]), parent, exports))
    return found


def _data_files(recipe: dict[str, Any]) -> Iterator[Path]:
    """Files that a recipe learns from."""
    for key in ("chats", "pairs", "votes", "prompts"):
        listed = recipe.get(key)
        yield from (Path(p) for p in (listed if isinstance(listed, list) else ()) if isinstance(p, str))


def _export(path: Path) -> dict[str, Any] | None:
    """What stands beside a data file that was exported from votes."""
    held = _json(path.with_name(path.name + ".export.json"))
    if not isinstance(held, dict):
        return None
    return {key: held.get(key) for key in ("id", "format", "rows", "first_seq", "last_seq")}
