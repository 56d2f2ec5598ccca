"""What there is: runs, where they stand, who descends from whom, and how to go on."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from fledge.core.checkpoint import list_checkpoints, load_checkpoint, read_serving
from fledge.core.config import Settings
from fledge.core.shown import Listing
from fledge.stages.common import read_recipe
from fledge.text.curated import UNFINISHED

_PATTERNS = ("recipe.json", "*/recipe.json", "*/*/recipe.json", "rounds/*/*/recipe.json", "*/rounds/*/*/recipe.json")
_LEARNT_FROM = ("chats", "pairs", "votes")  # fields of recipes that name files
_LAST_WRITTEN = ("done.json", "journey.json", "result.json", "manifest.json")  # stage, journey, experiment, text


class RunsOptions(Settings, frozen=True, kw_only=True):
    """List the runs in a folder."""

    folder: str = "runs"
    "Folder to look in, two levels deep."


class LineageOptions(Settings, frozen=True, kw_only=True):
    """Print the family tree of a run's models."""

    run: str
    "A journey's folder, or any folder of runs."


class Learnt(msgspec.Struct, frozen=True):
    """An export of votes that a model learnt from."""

    id: str
    format: str
    rows: int
    votes: int
    first_seq: int
    last_seq: int


class Model(msgspec.Struct, omit_defaults=True):
    """One model of a family tree."""

    id: str
    stage: str
    folder: str
    step: int
    parent: str | None
    exports: list[Learnt] = []
    served: bool = False


def recipes(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: name one that holds runs")
    for path in dict.fromkeys(path for pattern in _PATTERNS for path in sorted(folder.glob(pattern))):
        yield path.parent, read_recipe(path.parent)


def status(run: Path) -> tuple[str, int]:
    """("done", "interrupted" or "not started", steps saved) of the folder of a stage, a journey or an experiment."""
    found = list_checkpoints(run)
    step = int(found[-1].name.split("-")[1]) if found else 0
    if any((run / name).exists() for name in _LAST_WRITTEN):
        return "done", step
    begun = found or (run / UNFINISHED).exists() or any(run.glob("*/**/recipe.json"))
    return "interrupted" if begun else "not started", step


class Run(NamedTuple):
    """A run and where it stands."""

    folder: Path
    stage: str
    state: str
    step: int


def runs(options: RunsOptions) -> Listing[Run]:
    """Every run, shown as a line each. Raises ValueError where there is none."""
    found = [Run(f, recipe["stage"], *status(f)) for f, recipe in recipes(Path(options.folder))]
    if not found:
        raise ValueError(f"no runs in {options.folder}: start one with `fledge journey --out {options.folder}/first`")
    return Listing(found, lambda: _runs_table(found))


def _runs_table(found: Sequence[Run]) -> Any:
    from rich.markup import escape
    from rich.table import Table

    table = Table("run", "stage", "state", "step", box=None, header_style="bold")
    for run in found:
        table.add_row(escape(str(run.folder)), escape(run.stage), run.state, str(run.step or ""))
    return table


def family(folder: Path) -> list[Model]:
    """Every verified model under `folder` with its parent's id, and the exports of votes it learnt from."""
    models = []
    for run, recipe in recipes(folder):
        own = list_checkpoints(run)
        if recipe["stage"] == "journey" or not own:
            continue
        found = load_checkpoint(own[-1])  # not what the run serves, which is a model of another folder
        parent, exports = found.card["parent"], _exports(found.card["recipe"])
        models.append(
            Model(found.id, found.card["stage"], str(run), found.step, parent["id"] if parent else None, exports)
        )
    served = {s.id for place in {folder, *(Path(m.folder) for m in models)} if (s := read_serving(place)) is not None}
    return [msgspec.structs.replace(m, served=m.id in served) for m in models]


def _exports(recipe: dict[str, Any]) -> list[Learnt]:
    """What stands beside those of a recipe's files that were exported from votes."""
    names = [name for field in _LEARNT_FROM for name in recipe.get(field) or []]
    beside = [Path(f"{name}.export.json") for name in names]
    return [msgspec.json.decode(path.read_bytes(), type=Learnt) for path in beside if path.exists()]


def lineage(options: LineageOptions) -> Listing[Model]:
    """Every model, shown as the family tree; a parent outside the folder by its id. Raises ValueError where there is none."""
    models = family(Path(options.run))
    if not models:
        raise ValueError(f"no models in {options.run} yet: `fledge runs` shows what has started")
    return Listing(models, lambda: _tree(options.run, models))


def _tree(folder: str, models: Sequence[Model]) -> Any:
    from rich.markup import escape
    from rich.tree import Tree

    known = {m.id for m in models}
    top = Tree(f"[bold]{escape(folder)}")

    def grow(node: Tree, parent: str | None) -> None:
        for m in models:
            if m.parent == parent:
                told = f"[bold]{escape(m.stage)}[/]  {escape(m.folder)}  step {m.step}  [dim]{m.id[:12]}[/]"
                below = node.add(told + "  [bold]served[/]" * m.served)
                for e in m.exports:
                    below.add(
                        f"[dim]\u2190 {e.rows} rows for {e.format} ({e.id[:12]}) \u2190 {e.votes} of the votes {e.first_seq} to "
                        f"{e.last_seq}[/]"
                    )
                grow(below, m.id)

    grow(top, None)
    for outside in sorted({m.parent for m in models if m.parent} - known):
        grow(top.add(f"[dim]{outside[:12]} (elsewhere)"), outside)
    return top
