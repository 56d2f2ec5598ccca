"""Rewards as the commands name them: rules, own functions, reward models, judges and mixtures."""

from collections.abc import Sequence
from typing import NamedTuple

from fledge.feedback.rewards import ModelReward, Reward, checked, parse_rewards
from fledge.stages.common import open_model
from fledge.tasks.base import Task


class Opened(NamedTuple):
    """A reward ready to score."""

    reward: Reward
    opinion: bool  # a model's or a judge's view is part of it, so it can be gamed


def open_rewards(entries: Sequence[str], task: Task | None, device: str = "auto") -> Opened:
    """The reward that `entries` name, their weighted sum where there are several."""
    opened: list[str] = []

    def model(folder: str) -> Reward:
        found = open_model(folder, head="reward", device=device)
        if found.card["model"]["head"] != "reward":
            raise ValueError(f"{folder} holds a {found.card['stage']} model, not a reward model: train one with `fledge reward`")
        opened.append(folder)
        return ModelReward(found.model, found.tokenizer, name=folder)

    reward = checked(parse_rewards(list(entries), model, task))
    return Opened(reward, bool(opened) or any("judge:" in entry for entry in entries))
