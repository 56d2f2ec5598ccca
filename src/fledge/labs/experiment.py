"""What experiments that are commands share: seeds that are done are read, the others run; summary, page and verdict.

Where an experiment is a lab too, the lab runs the same function for each seed, with options from `options_in`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from fledge.core.config import Settings
from fledge.core.durable import canonical_json, write_atomically
from fledge.core.runtime import set_threads
from fledge.labs.bench import Bench
from fledge.labs.verdict import NOT_REPRODUCED, PARTLY, REPRODUCED
from fledge.stages.common import fix_recipe
from fledge.stages.journey import Clock

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T", bound=Settings)


def options_in(kind: type[T], setup: Settings, bench: Bench, **more: Any) -> T:
    """The command's options for one seed of a lab whose Setup is the part of them that is no folder and no count."""
    return kind(**{f.name: getattr(setup, f.name) for f in msgspec.structs.fields(setup)}, out=bench.out(""), **more)


def seeds_problems(seeds: int) -> list[str]:
    """What is wrong with this number of repetitions."""
    return [] if seeds >= 1 else [f"seeds = {seeds}: must be at least 1"]


def verdict_of(checks: Mapping[str, bool]) -> str:
    """REPRODUCED where every check holds, NOT REPRODUCED where none does, else PARTLY."""
    if all(checks.values()):
        return REPRODUCED
    return PARTLY if any(checks.values()) else NOT_REPRODUCED


def run(
    verb: str,
    options: Any,
    one_seed: Callable[[Any, Path, int], dict[str, Any]],
    summary: Callable[[Sequence[dict[str, Any]]], dict[str, Any]],
    page: Callable[[Path, dict[str, Any]], Path],
    show: Callable[[Console, dict[str, Any]], None],
    *,
    refuse: Callable[[], Any] = lambda: None,
    done: str = "result.json",
) -> dict[str, Any]:
    """Every seed in OUT/seed-N, then the summary (with checks and verdict), OUT/result.json and the page.

    one_seed(options, folder, seed) measures; what it returns is kept in the folder's file `done`. refuse raises for
    what cannot be done, before a new folder is touched: a mended command may use it. Returns what result.json holds.
    """
    from rich.console import Console

    out = Path(options.out)
    if not (out / "recipe.json").exists():
        refuse()
    fix_recipe(out, verb, options)
    set_threads(None)
    clock = Clock(out / "clock.json")

    def measured(seed: int) -> dict[str, Any]:
        folder = out / f"seed-{seed}"
        if (folder / done).exists():
            return msgspec.json.decode((folder / done).read_bytes())
        found = clock.time(f"seed {seed}", lambda: one_seed(options, folder, seed))
        write_atomically(folder / done, canonical_json(found))
        return found  # its keys in their order, which the file sorts

    results = [measured(seed) for seed in range(options.seeds)]
    total = {"options": msgspec.to_builtins(options), "seeds": results, **summary(results)}
    write_atomically(out / "result.json", canonical_json(total))
    path, console = page(out, total), Console(highlight=False)
    show(console, total)
    for name, passed in total["checks"].items():
        console.print(f"{'yes' if passed else 'NO '}  {name}")
    console.print(f"{total['verdict']}, in {sum(clock.seconds.values()) / 60:.1f} minutes. Page: {path}")
    return total
