"""Claim R3: REINFORCE, actor-critic, PPO, GRPO and RLOO all raise a model by its own scored answers.

One start (a small model that can add a little), one budget of samples, five methods, several seeds; and how much a baseline
calms the gradient (Williams 1992, section 4; Greensmith et al. 2004).
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fledge.core.config import Settings, TrainConfig
from fledge.core.log import read_jsonl, say
from fledge.core.model import Shape
from fledge.core.policy import Baseline, policy_gradient
from fledge.core.runtime import set_threads
from fledge.feedback.rewards import TaskReward
from fledge.generate.rollout import RolloutConfig, Rollouts
from fledge.labs import experiment
from fledge.labs.experiment import seeds_problems, verdict_of
from fledge.stages import pretrain, reinforce, sft
from fledge.stages.common import Parent, open_model
from fledge.stages.evaluate import messages_of
from fledge.stages.observer import Looking, Questions, looks_of
from fledge.stages.rewarding import open_rewards
from fledge.tasks.catalog import open_lesson, open_task
from fledge.tasks.command import TaskOptions as MaterialOptions
from fledge.tasks.command import run as write_material
from fledge.text.template import render_prompt

# what a right and a wrong answer earn: the same order, another zero; a baseline makes the zero not matter
CODINGS = {"rewards 1 and 0": (1.0, 0.0), "rewards 1 and -1": (1.0, -1.0), "rewards 0 and -1": (0.0, -1.0)}
_BASELINES: tuple[Baseline, ...] = ("none", "mean", "group", "leave-one-out")


class MethodsSettings(Settings, frozen=True, kw_only=True):
    """The numbers of the experiment; see the options of the command for what it is."""

    task: str = "arithmetic"
    "Built-in task; it must be able to make its own text and chats where there is no parent."
    methods: tuple[str, ...] = tuple(reinforce.METHODS)
    "Methods compared."
    updates: int = 200
    "Rollouts per method."
    answers: int = 256
    "Answers of a rollout, 8 to each prompt."
    max_tokens: int = 8
    "Longest answer in tokens."
    lr: float = 3e-4
    "Learning rate of every method."
    variance_rollouts: int = 32
    "Rollouts from which the spread of the gradient is taken."
    start_tokens: int = 2_000_000
    "Tokens the base model reads where there is no parent."
    start_chats: int = 8000
    "Conversations it is then taught, of which 70% end with a wrong answer."

    def problems(self) -> list[str]:
        found = [
            f"methods: {m!r} is not one of {', '.join(reinforce.METHODS)}"
            for m in self.methods
            if m not in reinforce.METHODS
        ]
        if not self.methods:
            found.append(f"methods: empty; name at least one of {', '.join(reinforce.METHODS)}")
        if not 0 < self.lr < 10:
            found.append(f"lr = {self.lr}: must be above 0 and below 10; 3e-4 is usual")
        if self.answers % 8 or self.answers < 16:
            found.append(f"answers = {self.answers}: must be a multiple of 8, at least 16")
        for name, least in (
            ("updates", 1),
            ("max_tokens", 1),
            ("variance_rollouts", 2),
            ("start_tokens", 1),
            ("start_chats", 1),
        ):
            if getattr(self, name) < least:
                found.append(f"{name} = {getattr(self, name)}: must be at least {least}")
        return found


class MethodsOptions(MethodsSettings, frozen=True, kw_only=True):
    """Five policy-gradient methods from one start with the same number of samples, and the curves in one chart."""

    out: str
    "Folder of the experiment; what is done is kept and the rest continues."
    parent: str | None = None
    "SFT model to start from; none makes one for the task in about a minute."
    seeds: int = 3
    "Repetitions, each with its own start and answers."

    def problems(self) -> list[str]:
        return super().problems() + seeds_problems(self.seeds)


def make_start(folder: Path, task_name: str, seed: int, tokens: int = 2_000_000, chats: int = 8000) -> Path:
    """A base model from the task's own text, and an SFT model from chats of which 70% end with a wrong answer.

    It knows more than it says: 27% to 30% of sampled answers are right (settings tuned here on arithmetic, seeds 0 to 2).
    """
    data = folder / "data"
    write_material(MaterialOptions(name=task_name, out=str(data), chats=chats, wrong=0.7))
    pretrain.run(
        pretrain.PretrainRecipe(
            out=str(folder / "base"), text=[str(data / "text.jsonl")], vocab_size=264, tokens=tokens,
            model=Shape(size="tiny", context_tokens=64), train=TrainConfig(lr=1e-2, optimizer="muon", seed=seed),
        ),
        quiet=True,
    )  # fmt: skip
    sft.run(
        sft.SftRecipe(
            out=str(folder / "sft"), parent=str(folder / "base"), chats=[str(data / "chats.jsonl")], epochs=8.0,
            train=TrainConfig(lr=2e-3, weight_decay=0.0, batch_tokens=1024, seed=seed),
        ),
        quiet=True,
    )  # fmt: skip
    return folder / "sft"


def gradient_spread(
    model_path: Path | str, task_name: str, baseline: Baseline, coding: tuple[float, float], *, rollouts: int, answers: int, max_tokens: int
) -> float:  # fmt: skip
    """Mean squared distance of a rollout's gradient from the mean gradient: the trace of its covariance.

    coding: what a right and a wrong answer earn.
    """
    set_threads(None)
    opened, task = open_model(model_path), open_task(task_name)
    reward, room = TaskReward(task), opened.model.config.context_tokens - max_tokens
    rendered = [(e, render_prompt(opened.tokenizer, messages_of(e))) for e in task.examples("train")]
    examples = [e for e, tokens in rendered if len(tokens) <= room]
    source = Rollouts(
        opened.model, opened.tokenizer, [tokens for _, tokens in rendered if len(tokens) <= room],
        lambda numbers, texts: [coding[1 - int(right)] for right in reward([examples[i] for i in numbers], texts)],
        RolloutConfig(prompts_per_update=answers // 8, group_size=8, max_tokens=max_tokens, baseline=baseline, kl="off", divisor="fixed", cut_penalty=0.0),
    )  # fmt: skip
    objective, gradients = policy_gradient(), []
    for _, batch in zip(range(rollouts), source, strict=False):
        batch = batch.to(opened.model.embedding.device)
        opened.model.zero_grad()
        (objective(opened.model(batch), batch)[0] / batch.units).backward()
        gradients.append(torch.cat([p.grad.flatten() for p in opened.model.parameters() if p.grad is not None]))
    stacked = torch.stack(gradients)  # [rollouts, parameters]
    return float((stacked - stacked.mean(0)).square().sum(1).mean() * rollouts / (rollouts - 1))


def _one_run(options: MethodsOptions, folder: Path, method: str, start: str, seed: int) -> dict[str, Any]:
    """One method from one start; held-out accuracy at every look, and what the run cost."""
    kind = reinforce.METHODS[method]
    whole = options.answers * open_model(start).model.config.context_tokens  # a rollout cut into steps would get fewer
    recipe = reinforce.ReinforceRecipe(
        out=str(folder / method), parent=start, method=method, task=options.task, max_tokens=options.max_tokens,
        prompts_per_update=options.answers // 8, group_size=8, kl="measure",
        train=TrainConfig(
            steps=options.updates * kind.epochs, lr=options.lr, schedule="constant", weight_decay=0.0,
            batch_tokens=max(65536, whole), seed=seed,
        ),
    )  # fmt: skip

    def ask_about(recipe: reinforce.ReinforceRecipe, parent: Parent) -> Questions:
        task = open_task(options.task)
        return reinforce.fitting(recipe, parent, task, open_rewards(["task"], task), most=500)

    looking = Looking(times=15, temperature=1.0, shown=3)  # pass@1: what is sampled, not the likeliest
    reinforce.run(recipe, quiet=True, ask_about=ask_about, looking=looking)
    curve = [{"answers": look.step // kind.epochs * options.answers, "accuracy": look.scores["score"]}
             for look in looks_of(folder / method)]  # fmt: skip
    rows, speed = read_jsonl(folder / method / "metrics.jsonl"), read_jsonl(folder / method / "speed.jsonl")
    clock = [row["seconds"] for row in speed]
    seconds = clock[-1] + sum(a for a, b in zip(clock, clock[1:], strict=False) if b < a)  # resumed: from 0 again
    return {"curve": curve, "seconds": seconds, "kl_end": rows[-1]["kl"], "entropy_end": rows[-1]["entropy"]}


def one_seed(options: MethodsOptions, folder: Path, seed: int) -> dict[str, Any]:
    """One repetition in `folder`, as plain JSON."""
    say(f"seed {seed}: a model to start from")
    start = options.parent or str(make_start(folder, options.task, seed, options.start_tokens, options.start_chats))
    result: dict[str, Any] = {"seed": seed, "methods": {}, "spread": {}}
    for method in options.methods:
        result["methods"][method] = found = _one_run(options, folder, method, start, seed)
        first, last = found["curve"][0]["accuracy"], found["curve"][-1]["accuracy"]
        say(f"seed {seed}: {method}: {first:.1%} -> {last:.1%} in {found['seconds']:.0f} s")
    size = {"rollouts": options.variance_rollouts, "answers": options.answers, "max_tokens": options.max_tokens}
    for name, coding in CODINGS.items():
        result["spread"][name] = {b: gradient_spread(start, options.task, b, coding, **size) for b in _BASELINES}
    return result


def summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Gains by method and seed, how much each baseline calms the gradient, and the checks."""
    gains = {
        m: [r["methods"][m]["curve"][-1]["accuracy"] - r["methods"][m]["curve"][0]["accuracy"] for r in results]
        for m in results[0]["methods"]
    }
    calmer = {
        place: {b: [_ratio(r["spread"][place]["none"], r["spread"][place][b]) for r in results] for b in _BASELINES[1:]}
        for place in results[0]["spread"]
    }
    starts = [r["methods"][m]["curve"][0]["accuracy"] for r in results for m in r["methods"]]
    best = {place: max(float(np.mean(by_seed)) for by_seed in by.values()) for place, by in calmer.items()}
    checks = {
        "every start is between 5% and 40%": 0.05 <= min(starts) and max(starts) <= 0.40,
        "every method gains 30 points on every seed": all(min(g) >= 0.30 for g in gains.values()),
        "every run takes 5 minutes at most": max(f["seconds"] for r in results for f in r["methods"].values()) <= 300,
    } | {f"a baseline halves the gradient's variance, {place}": ratio >= 2.0 for place, ratio in best.items()}
    return {"gains": gains, "calmer": calmer, "checks": checks, "verdict": verdict_of(checks)}


def _ratio(without: float, with_one: float) -> float:
    """Infinite where a baseline leaves no variance, as where every answer is wrong; 1 where there was none before."""
    return without / with_one if with_one else math.inf if without else 1.0


def run(options: MethodsOptions) -> dict[str, Any]:
    """Every seed, then the summary, the page and the verdict; returns what result.json holds."""
    from fledge.labs.pages import methods_page

    def refuse() -> None:
        _ = open_task(options.task) if options.parent else open_lesson(options.task)
        _ = options.parent and open_model(options.parent)

    return experiment.run("methods", options, one_seed, summary, methods_page, _show, refuse=refuse)


def _show(console: Any, total: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table("method", "start", "end", "gain by seed", "seconds", box=None)
    for method, gains in total["gains"].items():
        runs = [r["methods"][method] for r in total["seeds"]]
        ends = [np.mean([run["curve"][i]["accuracy"] for run in runs]) for i in (0, -1)]
        points = ", ".join(f"{100 * g:+.0f}" for g in gains)
        table.add_row(
            method, f"{ends[0]:.1%}", f"{ends[1]:.1%}", points, f"{np.mean([r['seconds'] for r in runs]):.0f}"
        )
    console.print(table)
    for place, by_baseline in total["calmer"].items():
        told = ", ".join(f"{b} {np.mean(values):.2f}x" for b, values in by_baseline.items())
        console.print(f"{place}: variance of the gradient without a baseline over that with one: {told}")
