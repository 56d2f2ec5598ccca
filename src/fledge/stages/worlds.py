"""Which embedded world a model was raised in."""

from pathlib import Path

from fledge.stages.common import read_recipe
from fledge.world import World, WorldConfig


def world_behind(checkpoint: Path) -> World:
    """The world of the journey that a checkpoint, run or journey folder belongs to.

    Raises ValueError where there is none: a model raised on other text has no gold score.
    """
    for folder in (checkpoint, *checkpoint.resolve().parents):
        if (folder / "recipe.json").exists():
            held = read_recipe(folder)
            if held["stage"] == "journey" and not held["recipe"]["text"]:
                seed = held["recipe"]["seed"]
                return World(WorldConfig.quick(seed) if held["recipe"]["quick"] else WorldConfig(seed=seed))
    raise ValueError(
        f"{checkpoint} belongs to no journey through the embedded world: its gold score is needed here; "
        "make one with `fledge journey --quick --out runs/first` and take runs/first/sft"
    )
