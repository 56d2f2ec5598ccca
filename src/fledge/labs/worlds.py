"""Which embedded world a model was raised in, and tasks over chosen prompts of it."""

from collections.abc import Sequence
from pathlib import Path

from fledge.stages.common import read_recipe
from fledge.tasks.base import Example, Task
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
        f"{checkpoint} belongs to no journey through the embedded world: this experiment needs its gold score; "
        "make one with `fledge journey --quick --out runs/first` and take runs/first/sft"
    )


class Asked:
    """A task with other prompts: the same score."""

    def __init__(self, task: Task, test: Sequence[Example], train: Sequence[Example] | None = None):
        """train: None keeps the task's own."""
        self.task, self.score = task, task.score
        self._examples = {"test": test, "train": task.examples("train") if train is None else train}

    def examples(self, split: str) -> Sequence[Example]:
        """The prompts of "train" or "test"."""
        return self._examples[split]
