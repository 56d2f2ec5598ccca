"""R3: policy-gradient methods raise a model by its own scored answers; a baseline calms the gradient.

The measurements are those of `fledge methods`: five methods from one start that is right in some 28% of sampled sums, the
same number of sampled answers each, and the variance of the gradient with and without a baseline for three codings of the
same reward. Williams 1992 (section 4), Schulman et al. 2017, Shao et al. 2024, Ahmadian et al. 2024.

Whether a baseline calms the gradient depends on where the reward's zero is: where wrong answers earn 0 and right ones 1,
and most are wrong, they already weigh nothing, and there is little to subtract.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fledge.labs.bench import Bench
from fledge.labs.experiment import options_in
from fledge.labs.methods import CODINGS, MethodsOptions, one_seed, summary
from fledge.labs.methods import MethodsSettings as Setup
from fledge.labs.pages import methods_chart
from fledge.labs.rephrasing import tokens_to_reach
from fledge.labs.verdict import Findings, Number, at_least, at_most, between

NAMES = {"reinforce": "REINFORCE", "a2c": "actor-critic", "ppo": "PPO", "grpo": "GRPO", "rloo": "RLOO"}
SCALES = {
    "pocket": Setup(),
    "gpu": Setup(answers=1024, updates=400, task="arithmetic:3"),
    "tiny": Setup(
        methods=("reinforce", "ppo"),
        task="arithmetic:1",
        updates=3,
        answers=16,
        max_tokens=4,
        variance_rollouts=2,
        start_tokens=60_000,
        start_chats=200,
    ),
}


def measure(setup: Setup, bench: Bench) -> dict[str, Any]:
    """Each method's curve, and how far rollouts' gradients spread with each baseline."""
    return one_seed(options_in(MethodsOptions, setup, bench), bench.folder, bench.seed)


def share_needed(curves: dict[str, Any]) -> float:
    """Answers PPO needs to get where REINFORCE ends, as a share of REINFORCE's; looks are joined by straight lines."""
    end = curves["reinforce"][-1]
    needed = tokens_to_reach(curves["ppo"], "accuracy", end["accuracy"], over="answers")
    return float("inf") if needed is None else needed / end["answers"]


def judge(setup: Setup, seeds: Sequence[dict[str, Any]]) -> Findings:
    """30 points for each method, half of the variance, and PPO's reuse of answers against REINFORCE."""
    told = summary(seeds)
    gains = {
        method: Number(label=f"gain, {NAMES[method]}", by_seed=by_seed, unit="points")
        for method, by_seed in told["gains"].items()
    }
    calmer = {
        coding: max(
            (Number(label=f"variance without a baseline ÷ with the best one, {coding}", by_seed=found, unit="x")
             for found in told["calmer"][coding].values()),
            key=lambda number: number.mean,
        )
        for coding in CODINGS
    }  # fmt: skip
    curves = [{m: found["curve"] for m, found in s["methods"].items()} for s in seeds]
    starts = Number(label="right before", unit="%", of=500, by_seed=[c["reinforce"][0]["accuracy"] for c in curves])
    sooner = Number(label="answers PPO needs to get where REINFORCE ends, as a share", unit="%",
                    by_seed=[share_needed(c) for c in curves])  # fmt: skip
    worst = min(gains.values(), key=lambda number: number.mean)
    best = max(calmer.values(), key=lambda number: number.mean)
    checks = [at_least(f"{NAMES[method]} gains 30 points", gain, 0.30) for method, gain in gains.items()]
    checks += [at_least(f"a baseline halves the gradient's variance, {coding}", n, 2.0) for coding, n in calmer.items()]
    checks += [
        at_most("PPO, which uses each answer four times, needs half of the answers", sooner, 0.5),
        between("the start is right in 5% to 40%", starts, 0.05, 0.40, core=False),
    ]
    return Findings(
        numbers=[starts, *gains.values(), best, sooner][:8],
        checks=checks,
        said=(
            f"Every method lifts the same start ({starts.mean:.0%} right) with the same number of its own answers, the "
            f"least of them by {100 * worst.mean:.0f} points. A baseline cuts the variance of the gradient "
            f"{best.mean:.1f} times where wrong answers are punished, and not where they already earn nothing: what it "
            "subtracts is then nearly nothing."
        ),
    )


def draw(setup: Setup, seeds: Sequence[dict[str, Any]]) -> str:
    """Held-out accuracy over sampled answers."""
    return methods_chart({"seeds": seeds}, "R3")
