"""Every reward in one place, and how the command line writes them: "task", "0.5*length:200", "rules.py:score"."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable
from pathlib import Path

from fledge.feedback.judge import JudgeConfig, JudgeReward
from fledge.feedback.mixtures import Piecewise, Weighted, take_scale, unscaled
from fledge.feedback.model_reward import ModelReward
from fledge.feedback.rules import (
    Checked,
    Reward,
    Rule,
    TaskReward,
    UserReward,
    checked,
    contains,
    exact,
    length,
    pattern,
)
from fledge.tasks.base import Task

__all__ = [
    "Checked",
    "JudgeReward",
    "ModelReward",
    "Piecewise",
    "Reward",
    "Rule",
    "TaskReward",
    "UserReward",
    "Weighted",
    "checked",
    "contains",
    "exact",
    "length",
    "parse_rewards",
    "pattern",
    "take_scale",
    "unscaled",
]

FORMS = (
    "task, exact, regex:PATTERN, length:CHARACTERS, contains:TEXT, path/to/rules.py:function, judge:URL#MODEL, the "
    "folder of a reward model, piecewise(HELPFUL,SAFE); each may have a weight in front, such as 0.5*exact"
)
_WEIGHT = re.compile(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*\*\s*(.*)", re.S)
_KINDS = ("task", "exact", "regex", "length", "contains", "judge", "piecewise")

OpenRewardModel = Callable[[str], Reward]


def parse_rewards(entries: list[str], open_reward_model: OpenRewardModel, task: Task | None) -> Reward:
    """The reward that the entries stand for: the one there is, or their weighted sum.

    open_reward_model: makes a `ModelReward` of a checkpoint's folder; this room may not open checkpoints of stages.
    Raises one ValueError with every entry that cannot be used.
    """
    parts: list[tuple[float, Reward]] = []
    wrong: list[str] = [] if entries else [f"no reward given: name at least one of {FORMS}"]
    for entry in entries:
        match = _WEIGHT.fullmatch(entry)
        weight, name = (float(match[1]), match[2]) if match else (1.0, entry)
        try:
            if weight == 0 or math.isinf(weight):
                raise ValueError(
                    f"weight {weight}: must be a finite number other than 0; leave out what should not count"
                )
            parts.append((weight, _one(name.strip(), open_reward_model, task)))
        except (ValueError, OSError) as error:
            wrong.append(f"{entry!r}: {error}")
    if wrong:
        raise ValueError(f"{len(wrong)} reward{'s' * (len(wrong) > 1)} cannot be used:\n  " + "\n  ".join(wrong))
    return parts[0][1] if len(parts) == 1 and parts[0][0] == 1.0 else Weighted(parts)


def _one(name: str, open_reward_model: OpenRewardModel, task: Task | None) -> Reward:
    kind, colon, argument = name.partition(":")
    if name == "task":
        if task is None:
            raise ValueError("there is no task to score by; give --task, or another reward")
        return TaskReward(task)
    if name == "exact":
        return exact()
    if colon and kind == "regex":
        return pattern(argument)
    if colon and kind == "contains":
        return contains(argument)
    if colon and kind == "length":
        if not re.fullmatch(r"\d{1,9}", argument):
            raise ValueError("length needs a whole number of characters, such as length:200")
        return length(int(argument))
    if colon and kind == "judge":
        url, _, model = argument.rpartition("#")
        return JudgeReward(JudgeConfig(url=url, model=model))
    if name.startswith("piecewise(") and name.endswith(")"):
        return _piecewise(name.removeprefix("piecewise(")[:-1], open_reward_model, task)
    path, _, function = name.rpartition(":")
    if path.endswith(".py"):
        return UserReward(path, function)
    if name and Path(name).is_dir():
        return open_reward_model(name)
    near = difflib.get_close_matches(kind.partition("(")[0], _KINDS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise ValueError(f"no such reward and no such folder. {hint}Rewards are {FORMS}")


def _piecewise(inside: str, open_reward_model: OpenRewardModel, task: Task | None) -> Piecewise:
    parts = _split(inside)
    if len(parts) != 2:
        raise ValueError(
            f"piecewise has {len(parts)} parts: write piecewise(HELPFUL,SAFE), two rewards without weights"
        )
    helpful, safe = (_one(part, open_reward_model, task) for part in parts)
    return Piecewise(helpful, safe)


def _split(inside: str) -> list[str]:
    """Cut at commas outside brackets."""
    parts, depth = [""], 0
    for char in inside:
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]
