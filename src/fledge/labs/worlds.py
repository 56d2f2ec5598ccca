"""Tasks over chosen prompts of a world."""

from collections.abc import Sequence

from fledge.tasks.base import Example, Task


class Asked:
    """A task with other prompts: the same score."""

    def __init__(self, task: Task, test: Sequence[Example], train: Sequence[Example] | None = None):
        """train: None keeps the task's own."""
        self.task, self.score = task, task.score
        self._examples = {"test": test, "train": task.examples("train") if train is None else train}

    def examples(self, split: str) -> Sequence[Example]:
        """The prompts of "train" or "test"."""
        return self._examples[split]
