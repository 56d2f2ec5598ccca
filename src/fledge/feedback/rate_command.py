"""`fledge rate`: a program votes as people do, so that the loop can be tried, tested and filled."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from fledge.core.config import Settings
from fledge.core.log import say
from fledge.feedback.collecting import Collected, collect
from fledge.feedback.raters import KINDS, UNIT, JudgeRater, Rater, RewardRater, SelfRater
from fledge.feedback.simulated import WORLD, Simulated, accepted_ideal, world_ideal
from fledge.generate.sampling import Sampling

if TYPE_CHECKING:
    from fledge.stages.common import Parent
    from fledge.tasks.base import Example, Task

__all__ = ["Collected", "RateOptions", "collect", "open_rater", "run"]


class RateOptions(Settings, frozen=True, kw_only=True):
    """Let a program rate answers of a model; the votes go where people's votes go."""

    run: str
    "Run or checkpoint whose answers are rated."
    rater: str = "gold"
    "gold (the task's score), exact, file.py:function, a reward model's folder, judge:URL#MODEL, or self."
    kinds: list[str] = []
    "pair, thumb, score, edit, as one list with commas or one by one; none given: all that the rater can."
    count: int = 300
    "Votes of each kind."
    task: str | None = None
    "Task whose training prompts are asked; without it, and without prompts, those of the run's embedded world."
    prompts: list[str] = []
    "Own prompts instead: JSONL with prompt, and answer for the rater exact."
    noise: float = 0.0
    "Probability that a vote is wrong."
    position_bias: float = 0.0
    "Probability that the left answer is taken whatever stands there."
    tie_band: float = 0.0
    "Rewards no further apart than this are the same."
    store: str | None = None
    "Where the votes are: a path or postgresql://...; none: RUN/votes.sqlite3."
    sampling: Sampling = Sampling(temperature=1.0)
    "How answers are drawn; its seed is not used."
    device: str = "auto"
    "auto, cpu, cuda or cuda:1."
    seed: int = 0
    "Seed of prompts, answers and errors; the same seed again stores nothing twice."

    def problems(self) -> list[str]:
        found = self.sampling.problems()
        if wrong := [kind for kind in self.wanted() if kind not in KINDS]:
            found.append(f"kinds = {', '.join(wrong)}: must be of {', '.join(KINDS)}")
        if self.count < 1:
            found.append(f"count = {self.count}: must be at least 1")
        for name in ("noise", "position_bias"):
            if not 0 <= getattr(self, name) <= 1:
                found.append(f"{name} = {getattr(self, name)}: must be a probability between 0 and 1")
        if not self.tie_band >= 0:
            found.append(f"tie_band = {self.tie_band}: must be at least 0")
        if not 0 <= self.seed < 2**63:
            found.append(f"seed = {self.seed}: must be at least 0 and below 2**63")
        if self.task is not None and self.prompts:
            found.append("task and prompts: set one of them")
        if self.rater == "self" and (self.noise or self.position_bias or self.tie_band):
            found.append("rater self: noise, position_bias and tie_band belong to raters with a score; leave them out")
        return found

    def wanted(self) -> list[str]:
        """The kinds, cut at commas."""
        return [part.strip() for entry in self.kinds for part in entry.split(",") if part.strip()]


def open_task_of(options: RateOptions) -> Task:
    """The task that gives prompts, and the score of the rater gold."""
    from fledge.stages.worlds import world_behind
    from fledge.tasks.catalog import open_task
    from fledge.tasks.prompts import PromptFile
    from fledge.tasks.world_tasks import WorldGold

    if options.prompts:
        return PromptFile(options.prompts)
    return open_task(options.task) if options.task else WorldGold(world_behind(Path(options.run)))


def open_rater(options: RateOptions, task: Task, opened: Parent) -> Rater:
    """The rater that the options name. Raises ValueError where there is none such."""
    if options.rater == "self":
        return SelfRater(opened.model, opened.tokenizer, f"self {opened.id[:12]}")
    clean = _without_error(options, task)
    if options.rater in ("gold", "exact") or options.noise or options.position_bias:
        return Simulated(clean, options.noise, options.position_bias, seed=options.seed)
    return clean


def _without_error(options: RateOptions, task: Task) -> RewardRater:
    from fledge.feedback.judge import JudgeConfig, JudgeReward
    from fledge.feedback.rules import Rule, TaskReward
    from fledge.stages.rewarding import open_rewards
    from fledge.tasks.prompts import exact
    from fledge.tasks.world_tasks import WorldGold

    band: dict[str, Any] = {"tie_band": options.tie_band}
    if options.rater == "gold" and isinstance(task, WorldGold):
        return RewardRater(TaskReward(task, "gold"), scales=WORLD, ideal=world_ideal, **band)
    if options.rater in ("gold", "exact"):
        scored = task if options.rater == "gold" else SimpleNamespace(score=exact)
        return RewardRater(Rule(options.rater, scored.score), scales=UNIT, ideal=accepted_ideal, **band)
    if options.rater.startswith("judge:"):
        url, _, model = options.rater.removeprefix("judge:").rpartition("#")
        return JudgeRater(JudgeReward(JudgeConfig(url=url, model=model)))
    opened = open_rewards([options.rater], task, options.device)
    return RewardRater(opened.reward, kind="reward" if opened.opinion else "rule", **band)


def run(options: RateOptions) -> Collected:
    """Sample, rate and store; prints what was given."""
    from fledge.feedback.store import Store, store_url
    from fledge.stages.common import open_model

    opened = open_model(options.run, device=options.device)
    if opened.card["model"]["head"] != "tokens":
        raise ValueError(f"{opened.path} is a reward model: it writes no answers; rate a model that does")
    task = open_task_of(options)
    rater = open_rater(options, task, opened)
    examples: Sequence[Example] = task.examples("train")
    with Store.open(store_url(Path(options.run), options.store)) as store:
        kinds = options.wanted() or list(rater.kinds)
        found = collect(store, opened, rater, examples, kinds, options.count, options.seed, options.sampling)
    told = ", ".join(f"{count} {kind}" for kind, count in found.votes.items())
    say(f"{rater.name}: {told} votes, {found.new} of them new")
    if short := {kind: found.asked[kind] for kind, n in found.votes.items() if n < options.count}:
        say("; ".join(f"{asked} questions gave only {found.votes[kind]} {kind} votes" for kind, asked in short.items()))
    if found.skipped:
        say(f"{found.skipped} of {len(examples)} prompts are too long for the model and were left out")
    return found
