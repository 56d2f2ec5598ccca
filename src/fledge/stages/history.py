"""What there is: runs, where they stand, who descends from whom, and how to go on."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from fledge.core.checkpoint import list_checkpoints, load_checkpoint
from fledge.core.config import Settings, build
from fledge.core.log import say
from fledge.stages.common import read_recipe


class RunsOptions(Settings, frozen=True, kw_only=True):
    """List the runs in a folder."""

    folder: str = "runs"
    "Folder to look in, two levels deep."


class LineageOptions(Settings, frozen=True, kw_only=True):
    """Print the family tree of a run's models."""

    run: str
    "A journey's folder, or any folder of runs."


class ResumeOptions(Settings, frozen=True, kw_only=True):
    """Continue an interrupted run, bit for bit."""

    run: str
    "The run's folder."


class Model(msgspec.Struct):
    """One model of a family tree."""

    id: str
    stage: str
    folder: str
    step: int
    parent: str | None


def _recipes(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: name one that holds runs")
    for pattern in ("recipe.json", "*/recipe.json", "*/*/recipe.json"):
        for path in sorted(folder.glob(pattern)):
            yield path.parent, read_recipe(path.parent)


def status(run: Path) -> tuple[str, int]:
    """("done", "interrupted" or "not started", steps saved) of one stage's folder."""
    found = list_checkpoints(run)
    step = int(found[-1].name.split("-")[1]) if found else 0
    return "done" if (run / "done.json").exists() else "interrupted" if found else "not started", step


_PIPED_WIDTH = 400  # where nobody's window ends a line


def _stdout():
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PIPED_WIDTH)


def runs(options: RunsOptions) -> None:
    """Print a line per run."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("run", "stage", "state", "step", box=None, header_style="bold")
    for folder, recipe in _recipes(Path(options.folder)):
        if recipe["stage"] == "journey":
            state, step = "done" if (folder / "journey.json").exists() else "interrupted", ""
        else:
            state, step = status(folder)
        table.add_row(escape(str(folder)), escape(recipe["stage"]), state, str(step))
    if not table.row_count:
        raise ValueError(f"no runs in {options.folder}: start one with `fledge journey --out {options.folder}/first`")
    _stdout().print(table)


def family(folder: Path) -> list[Model]:
    """Every verified model under `folder` with its parent's id."""
    models = []
    for run, recipe in _recipes(folder):
        if recipe["stage"] == "journey" or not list_checkpoints(run):
            continue
        found = load_checkpoint(run)
        parent = found.card["parent"]
        models.append(Model(found.id, found.card["stage"], str(run), found.step, parent["id"] if parent else None))
    return models


def lineage(options: LineageOptions) -> None:
    """Print the family tree; a parent outside the folder is shown by its id."""
    from rich.markup import escape
    from rich.tree import Tree

    models = family(Path(options.run))
    if not models:
        raise ValueError(f"no models in {options.run} yet: `fledge runs` shows what has started")
    known = {m.id for m in models}
    top = Tree(f"[bold]{escape(options.run)}")

    def grow(node: Tree, parent: str | None) -> None:
        for m in models:
            if m.parent == parent:
                grow(node.add(f"[bold]{escape(m.stage)}[/]  {escape(m.folder)}  step {m.step}  [dim]{m.id[:12]}"), m.id)

    grow(top, None)
    for outside in sorted({m.parent for m in models if m.parent} - known):
        grow(top.add(f"[dim]{outside[:12]} (elsewhere)"), outside)
    _stdout().print(top)


def resume(options: ResumeOptions) -> None:
    """Say what is there, then run the stored recipe again: done work is kept, the rest continues."""
    from fledge.stages import journey, prefer, pretrain, sft

    verbs = {
        "journey": (journey.JourneyRecipe, journey.run),
        "pretrain": (pretrain.PretrainRecipe, pretrain.run),
        "sft": (sft.SftRecipe, sft.run),
        "reward": (prefer.RewardRecipe, prefer.run_reward),
        "dpo": (prefer.DpoRecipe, prefer.run_dpo),
    }
    run = Path(options.run)
    if not (run / "recipe.json").exists():
        raise ValueError(f"{run} holds no run (no recipe.json): `fledge runs {run.parent}` lists what there is")
    stored = read_recipe(run)
    if stored["stage"] not in verbs:
        raise ValueError(f"{run} holds a stage {stored['stage']!r}: this version resumes {', '.join(verbs)}")
    kind, function = verbs[stored["stage"]]
    started = Path(stored["recipe"]["out"])
    if started.resolve() != run.resolve():  # else the work would go on in another folder
        raise ValueError(
            f"{run} was started as --out {started}, which from here is {started.resolve()}: change to the folder it was "
            "started in, or move it back"
        )
    if stored["stage"] == "journey":
        for folder, recipe in _recipes(run):
            if folder != run:
                state, step = status(folder)
                say(f"{folder}: {recipe['stage']} {state}, saved at step {step}")
    else:
        state, step = status(run)
        say(
            f"{run}: {stored['stage']} {state}, "
            + (f"continues after step {step}" if state != "done" else "nothing to do")
        )
    try:
        recipe = build(kind, stored["recipe"])
    except ValueError as error:
        raise ValueError(f"{run / 'recipe.json'}: {error}") from None
    function(recipe)
