"""What a lab works with: its folder, its seed, results that are kept, and models that labs share.

A lab is a module with

    Setup      a Settings struct: every number of the experiment, defaults are `pocket`
    SCALES     {"pocket": Setup(), "gpu": Setup(...), "tiny": Setup(...)}, and "full" where there is a version for real
               checkpoints; tiny only checks the machinery, in seconds, and its verdict means nothing
    measure(setup, bench) -> dict            the arms of one seed, as plain JSON
    judge(setup, seeds) -> Findings          numbers, checks and a sentence, from what was measured
    draw(setup, seeds) -> str                the chart as SVG, from the same

A lab has no training loop: its arms are recipes given to the stages, in folders of their own, so that they resume.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import msgspec

from fledge.core.config import Settings
from fledge.core.durable import canonical_json, write_atomically
from fledge.core.log import say
from fledge.labs.verdict import Findings

SCALES = ("pocket", "gpu", "full", "tiny")


class Lab(Protocol):
    """The names a lab's module has."""

    Setup: type[Settings]
    SCALES: Mapping[str, Settings]

    def measure(self, setup: Settings, bench: Bench) -> dict[str, Any]: ...
    def judge(self, setup: Settings, seeds: Sequence[dict[str, Any]]) -> Findings: ...
    def draw(self, setup: Settings, seeds: Sequence[dict[str, Any]]) -> str: ...


class Spent(NamedTuple):
    """Time on the clock, and of all cores of this process and of those it started and saw end."""

    seconds: float = 0.0
    core_seconds: float = 0.0

    @staticmethod
    def now() -> Spent:
        """Readings, of which differences mean something."""
        return Spent(time.monotonic(), time.process_time() + sum(os.times()[2:4]))

    def __sub__(self, other: Spent) -> Spent:
        return Spent(self.seconds - other.seconds, self.core_seconds - other.core_seconds)


class Bench:
    """One seed of one lab."""

    def __init__(self, folder: Path, shared: Path, seed: int, scale: str = "pocket"):
        """folder: of this seed. shared: of the models that labs share."""
        self.folder, self.shared, self.seed, self.scale = folder, shared, seed, scale
        self.shared_spent = Spent()  # on shared models, which are no lab's own

    def keep(self, name: str, make: Callable[[], Any]) -> Any:
        """`make()` as JSON in FOLDER/name.json; what is there already is read, not made again."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            write_atomically(path, canonical_json(make()))
        return msgspec.json.decode(path.read_bytes())

    def write(self, name: str, rows: Sequence[Any]) -> str:
        """Rows as JSON lines in FOLDER/name.jsonl, for a recipe to read; returns the path."""
        path = self.folder / f"{name}.jsonl"
        write_atomically(path, b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
        return str(path)

    def out(self, name: str) -> str:
        """Where an arm's run goes."""
        return str(self.folder / name)

    def journey(self) -> Path:
        """The folder of a journey through the embedded world with this seed: base, sft, control, reward, aligned.

        Quick at `pocket` (about 75 s on 2 cores), whole at `gpu`, a miniature at `tiny`; trained once for all labs.
        """
        from fledge.labs.first_journey import raise_miniature, recipe_of
        from fledge.stages import journey

        recipe = recipe_of(self.scale, self.seed)
        folder = self.shared / f"journey-{_digest(msgspec.to_builtins(recipe))}"
        tiny = self.scale == "tiny"
        if not (folder / ("aligned/done.json" if tiny else "journey.json")).exists():
            say(f"a journey that several labs start from: {folder}")
            with self._sharing():
                (raise_miniature if tiny else journey.run)(msgspec.structs.replace(recipe, out=str(folder)))
        return folder

    def longer_base(self, tokens: int) -> Path:
        """The run of the journey's base after `tokens` more, of the world's pages but junk; trained once for all labs.

        It knows what the quick journey's base, which reads little, has yet to learn; and it has met as many answered
        questions as the world wrote, of which curation takes half as copies of each other.
        """
        from fledge.stages.worlds import world_behind

        journey = self.journey()
        folder, pages = journey / f"base-and-{tokens}", journey / "world" / "pages.jsonl"
        with self._sharing():
            if not pages.exists():
                rows = (row["text"] for row in world_behind(journey).documents() if row["source"] != "junk")
                write_atomically(pages, b"".join(msgspec.json.encode({"text": text}) + b"\n" for text in rows))
            self._read_on(folder, pages, tokens, journey / "base")
        return folder

    def longer_sft(self, tokens: int) -> Path:
        """The run of that base's SFT, by the journey's own recipe on its conversations; trained once for all labs."""
        from fledge.stages import sft
        from fledge.stages.common import read_recipe

        base, journey = self.longer_base(tokens), self.journey()
        folder = journey / f"sft-and-{tokens}"
        recipe = msgspec.convert(read_recipe(journey / "sft")["recipe"], sft.SftRecipe)
        with self._sharing():
            sft.run(msgspec.structs.replace(recipe, out=str(folder), parent=str(base)), quiet=True)
        return folder

    def read_on(self, name: str, texts: Iterable[str], tokens: int, base: Path | None = None) -> Path:
        """The run of a base after `tokens` more of these documents, as an arm of this lab; None is the journey's base."""
        folder = Path(self.out(name))
        rows = [{"text": text} for text in texts]
        self._read_on(folder, self.write(f"{name}-text", rows), tokens, base or self.journey() / "base")
        return folder

    @contextmanager
    def _sharing(self) -> Iterator[None]:
        """What is done meanwhile is for a model that labs share, and counts for none of them."""
        start = Spent.now()
        yield
        self.shared_spent -= start - Spent.now()

    def _read_on(self, folder: Path, text: str | Path, tokens: int, base: Path) -> None:
        """By the base's own recipe, its schedule anew."""
        from fledge.stages import pretrain
        from fledge.stages.common import read_recipe

        recipe = msgspec.convert(read_recipe(base)["recipe"], pretrain.PretrainRecipe)
        train = msgspec.structs.replace(recipe.train, steps=None)
        longer = msgspec.structs.replace(
            recipe, out=str(folder), parent=str(base), text=[str(text)], tokens=tokens, train=train
        )
        pretrain.run(longer, quiet=True)


def _digest(value: Any) -> str:
    return sha256(canonical_json(value)).hexdigest()[:10]
