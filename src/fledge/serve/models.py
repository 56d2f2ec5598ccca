"""The models a server knows: those it serves, and their relatives, loaded when a view asks for them."""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from fledge.core.checkpoint import list_checkpoints, resolve
from fledge.core.log import say
from fledge.stages.common import Parent, open_model

_KEPT = 4  # relatives in memory at once
_STAGES = ("base", "sft", "aligned")  # a journey's folders


class Shown(msgspec.Struct, frozen=True):
    """A model as clients see it."""

    name: str  # its run's folder, relative to the served run or to the working folder
    id: str  # sha256 of the manifest
    stage: str
    path: str
    served: bool = False  # whether it answers; the others are opened for the views only


def peek(checkpoint: Path) -> tuple[str, dict[str, Any]]:
    """(id, card) of a checkpoint without reading its weights. Raises ValueError naming a damaged one."""
    try:
        manifest = msgspec.json.decode((checkpoint / "MANIFEST.json").read_bytes())
        return manifest["sha256"], msgspec.json.decode((checkpoint / "card.json").read_bytes())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{checkpoint} cannot be read ({error}): restore it, or name another run") from None


def open_writer(checkpoint: Path) -> Parent:
    """A model that writes, verified. Raises ValueError for a reward model."""
    opened = open_model(checkpoint)
    if opened.card["model"]["head"] == "reward":  # open_model gave it a token head
        raise ValueError(
            f"{opened.path} is a reward model: it scores answers and writes none; chat with sft or aligned"
        )
    return opened


def home_of(path: Path) -> Path:
    """The folder that keeps a run's votes: the run itself, also where one of its checkpoints is named."""
    return path.parent.parent if (path / "MANIFEST.json").exists() and path.parent.name == "checkpoints" else path


def name_of(checkpoint: Path, run: Path) -> str:
    """The checkpoint's run folder relative to `run`, else to the working folder, else its last part."""
    folder = home_of(checkpoint).resolve()
    for root in (run.resolve(), Path.cwd()):
        if folder != root and folder.is_relative_to(root):
            return folder.relative_to(root).as_posix()
    return folder.name


def relatives(run: Path, served: Parent) -> Iterator[Path]:
    """Checkpoints of a journey's stages, then the served model's ancestors as far as they are still there."""
    for stage in _STAGES:
        yield from list_checkpoints(run / stage)[-1:]
    card, seen = served.card, set()
    while (parent := card.get("parent")) and parent["id"] not in seen:
        seen.add(parent["id"])
        folder = _moved(Path(parent["path"]), run)
        if folder is None or peek(folder)[0] != parent["id"]:
            return
        yield folder
        card = peek(folder)[1]


def _moved(path: Path, run: Path) -> Path | None:
    """A parent's folder as its child's card names it, or beside `run` where the whole tree was moved."""
    places = [path, *(run / Path(*path.parts[n:]) for n in range(1, len(path.parts)))]
    places += [run.parent / Path(*path.parts[n:]) for n in range(1, len(path.parts))]
    return next((place for place in places if (place / "MANIFEST.json").exists()), None)


class Shelf:
    """Opens models by name, a few at a time; used from any thread."""

    def __init__(self) -> None:
        self._opened: OrderedDict[str, Parent] = OrderedDict()
        self._lock = threading.Lock()

    def open(self, shown: Shown) -> Parent:
        """The model, from memory or verified from disk."""
        with self._lock:
            if shown.id not in self._opened:
                self._opened[shown.id] = open_model(shown.path)
                while len(self._opened) > _KEPT:
                    self._opened.popitem(last=False)
            self._opened.move_to_end(shown.id)
            return self._opened[shown.id]


def catalogue(run: Path, served: dict[str, Parent]) -> dict[str, Shown]:
    """name -> Shown: the served models first (their names are given), then the first one's relatives."""
    found = {name: Shown(name, p.id, p.card["stage"], str(p.path), True) for name, p in served.items()}
    ids = {shown.id for shown in found.values()}
    try:
        for folder in relatives(run, next(iter(served.values()))):
            id, card = peek(folder)
            name = name_of(folder, run)
            if id not in ids and card["model"]["head"] != "reward":
                name = name if name not in found else f"{name}@{id[:8]}"
                found[name] = Shown(name, id, card["stage"], str(folder))
                ids.add(id)
    except ValueError as error:
        say(f"views will miss some relatives of the model: {error}")
    return found


def open_served(run: Path, compare: list[str]) -> dict[str, Parent]:
    """The run's served model first, then those to compare it with, by name. Raises ValueError for the same one twice."""
    found: dict[str, Parent] = {}
    home = home_of(run)
    for path in (run, *map(Path, compare)):
        opened = open_writer(resolve(path))
        if twin := next((name for name, other in found.items() if other.id == opened.id), None):
            raise ValueError(f"--compare {path} is {twin} itself (checkpoint {opened.id[:12]}): name another run")
        name = name_of(opened.path, home)
        found[name if name not in found else f"{name}@{opened.id[:8]}"] = opened
    return found
