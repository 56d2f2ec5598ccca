"""`fledge resume`: the stored recipe of any run is run again; done work is kept, the rest continues."""

from importlib import import_module
from pathlib import Path
from typing import Any

from fledge.cli import PARTS, TABLE
from fledge.core.config import Settings, build
from fledge.core.log import say
from fledge.stages.common import read_recipe
from fledge.stages.history import recipes, status


class ResumeOptions(Settings, frozen=True, kw_only=True):
    """Continue an interrupted run, bit for bit."""

    run: str
    "The run's folder."


def resume(options: ResumeOptions) -> Any:
    """Say what is there, then run the stored recipe again; gives what its verb gives."""
    run = Path(options.run)
    if not (run / "recipe.json").exists():
        raise ValueError(f"{run} holds no run (no recipe.json): `fledge runs {run.parent}` lists what there is")
    stored = read_recipe(run)
    if stored["stage"] not in TABLE | PARTS:
        raise ValueError(f"{run} holds a stage {stored['stage']!r}: this version resumes {', '.join(TABLE)}")
    started = Path(stored["recipe"]["out"])
    if started.resolve() != run.resolve():  # else the work would go on in another folder
        raise ValueError(
            f"{run} was started as --out {started}, which from here is {started.resolve()}: change to the folder it was "
            "started in, or move it back"
        )
    inside = [(folder, recipe) for folder, recipe in recipes(run) if folder != run]
    for folder, recipe in inside:  # a journey or an experiment of several runs
        state, step = status(folder)
        say(f"{folder}: {recipe['stage']} {state}, saved at step {step}")
    if not inside:
        state, step = status(run)
        going_on = f"continues after step {step}" if state != "done" else "nothing to do"
        say(f"{run}: {stored['stage']} {state}, {going_on}")
    verb = (TABLE | PARTS)[stored["stage"]]
    module = import_module(f"fledge.{verb.module}")
    try:
        recipe = build(getattr(module, verb.options), stored["recipe"])
    except ValueError as error:
        raise ValueError(f"{run / 'recipe.json'}: {error}") from None
    return getattr(module, verb.function)(recipe)
