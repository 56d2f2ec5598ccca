"""R2: a reward model learns a taste from comparisons; pretraining pays, and best-of-n by it wins most of what gold would.

The taste is the gold score of the embedded world (content, courtesy, length, repetition). The SFT model's own answers are
compared by gold; reward models learn from 100 to 2000 comparisons, from the SFT model's weights and from random ones (the
control), and once from comparisons of which a part is turned round. All are asked about answers to prompts that no
comparison is about: only differences between answers to one prompt mean anything to a Bradley-Terry model, so accuracy and
rank correlation are taken within a prompt, and accuracy also among pairs of nearly the same length.

Bradley and Terry 1952; Ouyang et al. 2022, section 3.5; Nakano et al. 2021 (best-of-n).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from fledge.core.config import Settings, TrainConfig
from fledge.feedback.rewards import ModelReward, TaskReward
from fledge.generate.sampling import Sampling
from fledge.labs.bench import Bench
from fledge.labs.overoptimise import votes
from fledge.labs.verdict import Findings, Number, at_least, difference
from fledge.stages.best_of_n import answer_pool, best_of, score_pool, sizes_up_to
from fledge.stages.common import open_model
from fledge.stages.evaluate import sample_of
from fledge.stages.panels import Line, Panel, panel_chart
from fledge.stages.prefer import RewardRecipe, run_reward
from fledge.stages.worlds import world_behind
from fledge.tasks.world_tasks import WorldGold

_MAX_TOKENS = 48
_PAIRED = 16  # answers to a prompt that are compared with each other
_LIKE_LENGTH = 1.15  # pairs whose lengths differ by no more than this factor


class Setup(Settings, frozen=True, kw_only=True):
    """Comparisons, and what the reward models are asked."""

    pairs: tuple[int, ...] = (100, 500, 2000)
    "Comparisons a reward model learns from."
    noise: float = 0.2
    "Share of comparisons turned round in the noisy arm."
    prompts: int = 96
    "Held-out prompts."
    pool: int = 64
    "Answers to each of them."
    chosen_of: int = 16
    "The n of best-of-n in the check."
    lr: float = 5e-4
    "Learning rate of every reward model."
    fresh_lr: float = 1e-3
    "Learning rate where the weights begin at random."


SCALES = {
    "pocket": Setup(),
    "gpu": Setup(pairs=(100, 500, 2000, 8000), prompts=400, pool=256),
    "tiny": Setup(pairs=(12, 24), prompts=8, pool=16, chosen_of=4),
}


def measure(setup: Setup, bench: Bench) -> dict[str, Any]:
    """Each reward model on the same pool of answers."""
    sft = bench.journey() / "sft"
    opened = open_model(sft)
    task = WorldGold(world_behind(opened.path))
    rows = votes(opened, task, max(setup.pairs), 0.0, bench.seed)
    asked = sample_of(list(task.examples("test")), setup.prompts, bench.seed)
    sampling = Sampling(temperature=1.0, max_tokens=_MAX_TOKENS, seed=1000 + bench.seed)
    pool = answer_pool(opened, asked, setup.pool, sampling)
    gold = score_pool(TaskReward(task), asked, pool)
    arms = [(f"{start} {count}", rows[:count], start) for count in setup.pairs for start in ("pretrained", "random")]
    arms.append((f"noisy {max(setup.pairs)}", turned(rows, setup.noise, bench.seed), "pretrained"))
    sizes, found = sizes_up_to(setup.pool), {}
    for name, compared, start in arms:
        steps = max(40, round(3 * len(compared) / 64))  # small sets are read more often, as everywhere
        recipe = RewardRecipe(
            out=bench.out(name.replace(" ", "-")), parent=str(sft), fresh=start == "random",
            pairs=[bench.write(name.replace(" ", "-"), compared)],
            train=TrainConfig(steps=steps, lr=setup.fresh_lr if start == "random" else setup.lr, weight_decay=0.0,
                              batch_tokens=4096, seed=bench.seed),
        )  # fmt: skip
        model = open_model(run_reward(recipe, quiet=True), head="reward")
        scores = score_pool(ModelReward(model.model, model.tokenizer, name), asked, pool)
        found[name] = agreement(gold, scores, pool) | {"best": best_of(gold, scores, sizes).mean(0).tolist()}
    return {"arms": found, "sizes": sizes, "gold": best_of(gold, gold, sizes).mean(0).tolist()}


def turned(rows: Sequence[dict[str, Any]], share: float, seed: int) -> list[dict[str, Any]]:
    """The comparisons, each with probability `share` the other way round."""
    dice = random.Random(seed)
    return [
        row | {"chosen": row["rejected"], "rejected": row["chosen"]} if dice.random() < share else row for row in rows
    ]


def agreement(gold: np.ndarray, scores: np.ndarray, pool: Sequence[Sequence[str]]) -> dict[str, Any]:
    """How well scores [P,N] order answers as gold [P,N] does: share of pairs of one prompt that gold tells apart, also of
    like length; mean rank correlation within prompts; and by how far gold tells a pair apart."""
    from scipy.stats import spearmanr

    gaps, right, alike = [], [], []
    for g, s, texts in zip(gold, scores, pool, strict=True):
        for a, b in combinations(range(min(_PAIRED, len(texts))), 2):
            if g[a] != g[b] and texts[a].strip() and texts[b].strip():
                long, short = sorted((len(texts[a]), len(texts[b])), reverse=True)
                gaps.append(abs(g[a] - g[b]))
                right.append((g[a] > g[b]) == (s[a] > s[b]) if s[a] != s[b] else 0.5)
                alike.append(long <= _LIKE_LENGTH * short)
    told_apart = [(g, s) for g, s in zip(gold, scores, strict=True) if len(set(g)) > 1 and len(set(s)) > 1]
    correlations = [float(spearmanr(g, s).statistic) for g, s in told_apart]
    gap, hit, like = np.array(gaps), np.array(right, dtype=float), np.array(alike, dtype=bool)
    edges = np.quantile(gap, np.linspace(0, 1, 6))
    bins = [hit[(gap >= low) & (gap <= high)] for low, high in zip(edges, edges[1:], strict=False)]
    return {
        "accuracy": float(hit.mean()), "pairs": len(hit), "same_length": float(hit[like].mean()) if like.any() else None,
        "spearman": float(np.mean(correlations)) if correlations else 0.0,
        "by_gap": [[float(edges[i]), float(edges[i + 1]), float(bins[i].mean())] for i in range(5) if len(bins[i])],
    }  # fmt: skip


def judge(setup: Setup, seeds: Sequence[dict[str, Any]]) -> Findings:
    """Accuracy, what pretraining is worth with few comparisons, order, and the gain of best-of-n."""
    most, few, n = max(setup.pairs), min(setup.pairs), setup.chosen_of
    count = int(np.mean([s["arms"][f"pretrained {most}"]["pairs"] for s in seeds]))

    def of(arm: str, key: str = "accuracy", label: str = "") -> Number:
        values = [s["arms"][arm][key] for s in seeds]
        return Number(label=label or f"pairs ordered as gold does, {arm} comparisons", unit="%", of=count,
                      by_seed=[float("nan") if v is None else v for v in values])  # fmt: skip

    best, weak, control = of(f"pretrained {most}"), of(f"pretrained {few}"), of(f"random {few}")
    at = seeds[0]["sizes"].index(n)
    share = Number(
        label=f"gain of best-of-{n} by the reward model, of that by gold", unit="%",
        by_seed=[(s["arms"][f"pretrained {most}"]["best"][at] - s["gold"][0]) / max(1e-9, s["gold"][at] - s["gold"][0]) for s in seeds],
    )  # fmt: skip
    order = Number(label="Spearman correlation with gold within a prompt",
                   by_seed=[s["arms"][f"pretrained {most}"]["spearman"] for s in seeds])  # fmt: skip
    return Findings(
        numbers=[
            best, of(f"pretrained {most}", "same_length", "of them, pairs of like length"), weak, control,
            of(f"noisy {most}", label=f"{setup.noise:.0%} of {most} comparisons turned round"), order, share,
        ],
        checks=[
            at_least(f"{most} comparisons: 85% of held-out pairs ordered as gold does", best, 0.85),
            at_least(f"with {few} comparisons pretrained weights are 5 points ahead of random ones", difference("", weak, control), 0.05),
            at_least("the reward rises with gold: rank correlation of 0.8", order, 0.8),
            at_least(f"best-of-{n} by the reward model gains 60% of what gold would", share, 0.6),
        ],
        said=(
            f"From {most} comparisons a reward model orders {best.mean:.0%} of held-out pairs as gold does, and choosing "
            f"the best of {n} answers by it gains {share.mean:.0%} of what choosing by gold would. With {few} comparisons "
            f"the pretrained weights reach {weak.mean:.0%}, random ones {control.mean:.0%}."
        ),
    )  # fmt: skip


def draw(setup: Setup, seeds: Sequence[dict[str, Any]]) -> str:
    """Accuracy over comparisons, and gold of the answer that each reward model would choose."""

    def by_pairs(start: str, colour: str, marker: str) -> Line:
        values = {count: [s["arms"][f"{start} {count}"]["accuracy"] for s in seeds] for count in setup.pairs}
        return Line(f"{start} weights", [(float(c), sum(v) / len(v)) for c, v in values.items()], colour, marker=marker,
                    band=[(float(c), min(v), max(v)) for c, v in values.items()])  # fmt: skip

    lines = [by_pairs("pretrained", "sft", "o"), by_pairs("random", "control", "s")]
    return panel_chart(
        "R2", [Panel("held-out pairs ordered as gold does", lines, percent=True)],
        "Accuracy of reward models over the comparisons they learned from", over="comparisons", direct=True,
    ) + best_chart(setup, seeds)  # fmt: skip


def best_chart(setup: Setup, seeds: Sequence[dict[str, Any]]) -> str:
    """Gold score of the best of n answers, chosen by gold and by reward models."""
    sizes = seeds[0]["sizes"]

    def line(label: str, curves: Sequence[Sequence[float]], colour: str, dash: Any) -> Line:
        mean = [sum(column) / len(column) for column in zip(*curves, strict=True)]
        return Line(label, list(zip(map(float, sizes), mean, strict=True)), colour, dash)

    arms = ((f"pretrained {count}", colour, dash) for count, colour, dash in zip(
        (max(setup.pairs), min(setup.pairs)), ("sft", "base"), ("-", (0, (5, 1.5))), strict=True))  # fmt: skip
    lines = [line("gold itself", [s["gold"] for s in seeds], "aligned", (0, (1.2, 1.3)))]
    lines += [
        line(name.split()[1], [s["arms"][name]["best"] for s in seeds], colour, dash) for name, colour, dash in arms
    ]
    return panel_chart("R2 best", [Panel("gold score of the best of n by", lines)], "Gold score of best-of-n",
                       over="answers to choose from (n)", direct=True)  # fmt: skip
