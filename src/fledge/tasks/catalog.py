"""Tasks by name, as the command line writes them. A name always means the same questions and the same split: what was
taught from its training half is never in the half that tests."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import NamedTuple

from fledge.tasks.arithmetic import Arithmetic
from fledge.tasks.base import Lesson, Task
from fledge.tasks.gsm8k import Gsm8k
from fledge.tasks.poem import Poem
from fledge.tasks.prompts import PromptFile
from fledge.tasks.strings import CountLetters, Reverse
from fledge.tasks.teach import Teach
from fledge.tasks.worked import WorkedSums
from fledge.tasks.world_tasks import WorldFacts, WorldGold


class Entry(NamedTuple):
    """One family: how it is made from what follows the colon, which must match `argument` as a whole."""

    make: Callable[..., Task]  # of the groups of `argument`
    argument: str
    usage: str
    teaches: bool = False
    """Whether it is a `Lesson`, which makes its own training material."""


def _arithmetic(digits: str | None, operations: str | None) -> Task:
    return Arithmetic(int(digits or 2), operations or "+")


def _poem(lines: str | None, width: str | None) -> Task:
    return Poem(int(lines or 8), int(width or 7))


def _words(kind: type) -> Callable[..., Task]:
    return lambda shortest, longest: kind(int(shortest or 3), int(longest or 6))


def _world(kind: type) -> Callable[..., Task]:
    def made(quick: str | None) -> Task:
        from fledge.world import World, WorldConfig

        return kind(World(WorldConfig.quick() if quick else WorldConfig()))

    return made


CATALOG = {
    "arithmetic": Entry(
        _arithmetic, r"(?:(\d+)([+*-]*))?", "arithmetic, arithmetic:3, arithmetic:2+-* (digits, signs)", True
    ),
    "worked": Entry(
        lambda digits: WorkedSums(int(digits or 3)), r"(\d+)?", "worked, worked:2 (sums with their work)", True
    ),
    "poem": Entry(_poem, r"(?:(\d+)x(\d+))?", "poem, poem:4x5 (lines x characters)", True),
    "reverse": Entry(_words(Reverse), r"(?:(\d+)-(\d+))?", "reverse, reverse:3-6 (letters of a word)", True),
    "count": Entry(_words(CountLetters), r"(?:(\d+)-(\d+))?", "count, count:3-6 (letters of a word)", True),
    "teach": Entry(Teach, r"", "teach (requests to be declined or accepted, scored by what an answer means)"),
    "world": Entry(_world(WorldFacts), r"(quick)?", "world, world:quick (facts of the embedded world)"),
    "gold": Entry(_world(WorldGold), r"(quick)?", "gold, gold:quick (facts and requests, with the world's gold score)"),
    "gsm8k": Entry(Gsm8k, r"([^,]+)(?:,([^,]+))?", "gsm8k:FILE, gsm8k:TRAIN,TEST"),
    "prompts": Entry(lambda paths: PromptFile(paths.split(",")), r"(.+)", "prompts:FILE, prompts:FILE,FILE"),
}


def usages() -> str:
    """Every name there is, one a line."""
    return "\n".join(f"  {entry.usage}" for entry in CATALOG.values())


def entry_of(name: str) -> tuple[Entry, re.Match[str]]:
    """The catalog's entry for `name`, and what follows the colon. Raises ValueError as `open_task` does."""
    family, _, argument = name.partition(":")
    if family not in CATALOG:
        near = difflib.get_close_matches(family, CATALOG, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(f"no task {name!r}: {hint}The tasks are\n{usages()}")
    entry = CATALOG[family]
    match = re.fullmatch(entry.argument, argument)
    if match is None or name.endswith(":"):
        raise ValueError(f"task {name!r}: {argument!r} is not understood; write {entry.usage}")
    return entry, match


def open_task(name: str) -> Task:
    """The task a name such as "arithmetic:3" or "gsm8k:train.jsonl" stands for.

    Raises ValueError for an unknown name or argument, naming those there are, and what the task itself raises.
    """
    entry, match = entry_of(name)
    return entry.make(*match.groups())


def open_lesson(name: str) -> Lesson:
    """The same for tasks that make training material. Raises ValueError for one that does not."""
    if not entry_of(name)[0].teaches:
        able = ", ".join(family for family, entry in CATALOG.items() if entry.teaches)
        raise ValueError(
            f"task {name!r} makes no training material: world has `fledge world`, gsm8k and prompts have files of "
            f"their own; those that do are {able}"
        )
    return open_task(name)  # type: ignore[return-value]
