"""What a reward is; rules, tasks and the user's own function as rewards; and one check for all rewards.

A reward that cannot score an answer says so; no error is ever turned into a number.
"""

from __future__ import annotations

import hashlib
import importlib.util
import math
import numbers
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

from fledge.tasks.base import Example, Task
from fledge.tasks.prompts import exact as exact_answer

Unit = Literal["logit", "score"]
_SHOWN_CHARS = 200


class Reward(Protocol):
    """Scores many answers at once; pure in the sense that equal calls give equal scores, save for a judge elsewhere."""

    name: str
    """As it was asked for, for logs and errors."""
    identity: str
    """Equal only for rewards that score alike: a resumed run must not go on under another."""
    unit: Unit
    """"logit": sigmoid of the score is a probability (a reward model's); "score": anything else."""

    def __call__(self, examples: Sequence[Example], answers: Sequence[str]) -> list[float]:
        """One finite score per answer, higher is better. Raises ValueError where an answer cannot be scored."""
        ...


def _short(text: str) -> str:
    return repr(text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS] + "...")


def shown(example: Example, answer: str) -> str:
    """The prompt's last message and the answer, shortened, for an error."""
    return f"the prompt {_short(example.prompt[-1]['content'])} (id {example.id}) and the answer {_short(answer)}"


def as_number(value: Any, name: str, example: Example, answer: str) -> float:
    """`value` as a float; true and false count as 1 and 0. Raises ValueError where it is no finite number."""
    if not isinstance(value, numbers.Real) or not math.isfinite(value):
        given = (
            f"{value!r}"[:_SHOWN_CHARS] if isinstance(value, numbers.Real) or value is None else type(value).__name__
        )
        raise ValueError(
            f"reward {name} gave {given} for {shown(example, answer)}: it must be a finite number (or true or false); "
            "return one for every answer, such as 0.0 where there is nothing to reward"
        )
    return float(value)


class Rule:
    """One score per answer from a function of one (example, answer), the same shape as `Task.score`."""

    unit: Unit = "score"

    def __init__(self, name: str, function: Callable[[Example, str], float]):
        self.name, self.identity, self.function = name, name, function

    def __call__(self, examples: Sequence[Example], answers: Sequence[str]) -> list[float]:
        return [as_number(self.function(e, a), self.name, e, a) for e, a in zip(examples, answers, strict=True)]


class TaskReward(Rule):
    """A task's own score, so that what is trained is what is measured."""

    def __init__(self, task: Task, name: str = "task"):
        super().__init__(name, task.score)


def exact() -> Rule:
    """1.0 for an accepted answer of the example, without spaces around it; see `fledge.tasks.prompts.exact`."""
    return Rule("exact", exact_answer)


def pattern(expression: str) -> Rule:
    """1.0 where the whole answer matches the regular expression, "." being any character but a new line; else 0.0.

    Raises ValueError for an expression that is none.
    """
    try:
        compiled = re.compile(expression)
    except re.error as error:
        raise ValueError(f"regex:{expression}: not a regular expression: {error}") from None
    return Rule(f"regex:{expression}", lambda example, answer: float(compiled.fullmatch(answer) is not None))


def length(limit: int) -> Rule:
    """Prefers short answers: 1.0 up to `limit` characters, then falling in a straight line to 0.0 at twice as many.

    Raises ValueError for a limit below 1.
    """
    if limit < 1:
        raise ValueError(f"length:{limit}: must be at least 1 character, such as length:200")
    return Rule(f"length:{limit}", lambda example, answer: min(1.0, max(0.0, 2.0 - len(answer) / limit)))


def contains(text: str) -> Rule:
    """1.0 where `text` occurs in the answer, letter for letter; else 0.0. Raises ValueError for no text."""
    if not text:
        raise ValueError("contains: needs a text, such as contains:because")
    return Rule(f"contains:{text}", lambda example, answer: float(text in answer))


class UserReward(Rule):
    """A function (example, answer) -> number in a Python file of the user's; what that file imports is not watched."""

    def __init__(self, path: str | Path, function: str):
        """Load the file under a module name of its own; it runs as Python, so use only files you trust.

        Raises ValueError where the file is missing or fails, or has no such function.
        """
        self.path = Path(path).resolve()
        name = f"{path}:{function}"
        if not self.path.is_file():
            raise ValueError(f"reward {name}: {path} does not exist; write it as path/to/rules.py:function")
        found = getattr(_load(self.path, name), function, None)
        if not callable(found):
            kind = "has no" if found is None else f"has a {type(found).__name__}, not a function,"
            raise ValueError(
                f"reward {name}: {path} {kind} {function!r}; define `def {function}(example, answer)` there"
            )
        super().__init__(name, self._explained(found))
        self.identity = f"{function} {hashlib.sha256(self.path.read_bytes()).hexdigest()}"

    def _explained(self, function: Callable[[Example, str], float]) -> Callable[[Example, str], float]:
        def score(example: Example, answer: str) -> float:
            try:
                return function(example, answer)
            except Exception as error:  # whatever the user's code raises; told with its line, never swallowed
                raise ValueError(
                    f"reward {self.name} failed for {shown(example, answer)}: {_told(error, self.path)}"
                ) from error

        return score


def _load(path: Path, name: str) -> Any:
    """The module in `path`; the same file is loaded anew, so that an edited one is not an old one."""
    private = f"_fledge_reward_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(private, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"reward {name}: {path} is no Python file; its name must end with .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[private] = module  # dataclasses and pickling look a class's module up
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[private]
        raise ValueError(f"reward {name}: {path} cannot be loaded: {_told(error, path)}") from error
    return module


def _told(error: Exception, path: Path) -> str:
    """ "ZeroDivisionError: division by zero (rules.py line 3: return 1 / 0)"."""
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{text} (line {error.lineno} of {path})"
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if frame.filename == str(path):
            return f"{text} (line {frame.lineno} of {path}: {frame.line})"
    return text


class Checked:
    """A reward whose results have been looked at: as many as answers, and finite. The rollouts call this one."""

    def __init__(self, reward: Reward):
        self.reward, self.name, self.identity, self.unit = reward, reward.name, reward.identity, reward.unit

    def __call__(self, examples: Sequence[Example], answers: Sequence[str]) -> list[float]:
        if len(examples) != len(answers):
            raise ValueError(f"{len(examples)} examples and {len(answers)} answers: give one answer to each example")
        scores = list(self.reward(examples, answers))
        if len(scores) != len(answers):
            raise ValueError(
                f"reward {self.name} gave {len(scores)} scores for {len(answers)} answers: it must give one for each"
            )
        return [as_number(s, self.name, e, a) for s, e, a in zip(scores, examples, answers, strict=True)]


def checked(reward: Reward) -> Checked:
    """`reward` with every score verified; an error names the prompt and the answer."""
    return reward if isinstance(reward, Checked) else Checked(reward)
