"""Claim R5: optimising a reward model first helps, then harms; more votes and a KL penalty put the harm off.

Gao, Schulman and Hilton 2023, "Scaling laws for reward model over-optimization" (figures 1 and 3): a proxy trained on votes
of a known gold score is maximised by best-of-n and by policy gradients, while the gold score is only watched.
"""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from fledge.core.checkpoint import write_atomically
from fledge.core.config import Settings, TrainConfig
from fledge.core.log import read_jsonl, say
from fledge.feedback.rewards import ModelReward, TaskReward
from fledge.generate.sampling import Sampling
from fledge.labs import experiment
from fledge.labs.experiment import seeds_problems, verdict_of
from fledge.labs.worlds import Asked
from fledge.stages import reinforce
from fledge.stages.best_of_n import answer_pool, best_of, kl_of_best, score_pool, sizes_up_to
from fledge.stages.common import Parent, open_model
from fledge.stages.evaluate import sample_of
from fledge.stages.observer import Looking, Questions, looks_of
from fledge.stages.prefer import RewardRecipe, run_reward
from fledge.stages.rewarding import Opened
from fledge.stages.worlds import world_behind
from fledge.tasks.base import Example, Task
from fledge.tasks.world_tasks import WorldGold

_MAX_TOKENS = 48
_PAIR_PROMPTS, _PAIR_ANSWERS = 500, 8


class OveroptimiseSettings(Settings, frozen=True, kw_only=True):
    """The numbers of the experiment; see the options of the command for what it is."""

    pairs: tuple[int, ...] = (100, 500, 2000)
    "Votes each proxy is trained on."
    noise: float = 0.15
    "Share of votes that are flipped."
    kl_coefficients: tuple[float, ...] = (0.05, 0.2)
    "KL penalties tried against the weakest proxy, beside none."
    pool: int = 1024
    "Answers sampled to each held-out prompt for best-of-n."
    prompts: int = 64
    "Held-out prompts."
    updates: int = 150
    "Policy-gradient updates of 128 answers each."
    lr: float = 2e-4
    "Learning rate of the policy gradient."

    def problems(self) -> list[str]:
        found = []
        if not self.pairs or min(self.pairs) < 10:
            found.append(f"pairs = {self.pairs}: at least one size, each at least 10")
        if not 0 <= self.noise < 0.5:
            found.append(f"noise = {self.noise}: must be in [0, 0.5)")
        if any(not k > 0 for k in self.kl_coefficients):
            found.append(f"kl_coefficients = {self.kl_coefficients}: each must be above 0; none is always run")
        if not 0 < self.lr < 10:
            found.append(f"lr = {self.lr}: must be above 0 and below 10; 2e-4 is usual")
        for name, least in (("pool", 2), ("prompts", 8), ("updates", 10)):
            if getattr(self, name) < least:
                found.append(f"{name} = {getattr(self, name)}: must be at least {least}")
        return found


class OveroptimiseOptions(OveroptimiseSettings, frozen=True, kw_only=True):
    """Watch a reward model being over-optimised: proxy and gold reward against KL, with the chart."""

    out: str
    "Folder of the experiment; what is done is kept and the rest continues."
    parent: str
    "SFT model of a journey through the embedded world, whose gold score is known."
    seeds: int = 3
    "Repetitions, each with its own votes, proxies and answers."

    def problems(self) -> list[str]:
        return super().problems() + seeds_problems(self.seeds)


def votes(opened: Parent, task: Task, count: int, noise: float, seed: int) -> list[dict[str, Any]]:
    """`count` preference rows between two sampled answers, voted by gold, a share of them flipped."""
    examples = sample_of(list(task.examples("train")), _PAIR_PROMPTS, seed)
    pool = answer_pool(opened, examples, _PAIR_ANSWERS, Sampling(temperature=1.0, max_tokens=_MAX_TOKENS, seed=seed))
    scores = [[task.score(e, a) for a in answers if a.strip()] for e, answers in zip(examples, pool, strict=True)]
    if not any(len(set(of_one)) > 1 for of_one in scores):
        raise ValueError(
            f"{opened.path}: of {_PAIR_ANSWERS} answers to a prompt none is better than another; give an SFT model"
        )
    dice, rows = random.Random(seed), []
    while len(rows) < count:
        at = dice.randrange(len(examples))
        a, b = dice.sample(pool[at], 2)
        gold = [task.score(examples[at], text) for text in (a, b)]
        if gold[0] == gold[1] or not a.strip() or not b.strip():
            continue
        chosen, rejected = (a, b) if (gold[0] > gold[1]) != (dice.random() < noise) else (b, a)
        rows.append({"prompt": examples[at].prompt, "chosen": chosen, "rejected": rejected})
    return rows


def scaled(folder: Path, examples: Sequence[Example], pool: Sequence[Sequence[str]]) -> Opened:
    """A reward model with mean 0 and deviation 1 on answers of the SFT model."""
    found = open_model(folder, head="reward")
    raw = ModelReward(found.model, found.tokenizer, name=str(folder))
    scores = score_pool(raw, examples, pool)
    mean, std = float(scores.mean()), float(scores.std())
    return Opened(raw.calibrated(mean, std), True)


def _proxy(options: OveroptimiseOptions, folder: Path, rows: list[dict], count: int, seed: int) -> Path:
    """Train one reward model on the first `count` votes."""
    path = folder / f"votes-{count}.jsonl"
    write_atomically(path, b"".join(msgspec.json.encode(r) + b"\n" for r in rows[:count]))
    out = folder / f"proxy-{count}"
    steps = max(40, round(3 * count / 64))  # small sets are read more often, as everywhere
    train = TrainConfig(steps=steps, lr=5e-4, weight_decay=0.0, batch_tokens=4096, seed=seed)
    run_reward(RewardRecipe(out=str(out), parent=options.parent, pairs=[str(path)], train=train), quiet=True)
    return out


def _optimised(
    options: OveroptimiseOptions,
    folder: Path,
    name: str,
    proxy: Opened,
    task: WorldGold,
    held_out: list[Example],
    beta: float,
    seed: int,
) -> list[dict[str, float]]:
    """Maximise one proxy by RLOO; proxy, gold and KL at every look."""
    recipe = reinforce.ReinforceRecipe(
        out=str(folder / name), parent=options.parent, method="rloo", task="gold", reward=["proxy"],
        prompts_per_update=16, group_size=8, max_tokens=_MAX_TOKENS, cut_penalty=0.0,
        kl="reward" if beta else "measure", kl_coefficient=beta or None,
        train=TrainConfig(steps=options.updates, lr=options.lr, schedule="constant", weight_decay=0.0, batch_tokens=65536, seed=seed),
    )  # fmt: skip

    def ask_about(recipe: reinforce.ReinforceRecipe, parent: Parent) -> Questions:
        return reinforce.fitting(recipe, parent, Asked(task, held_out), proxy, most=len(held_out))

    looking = Looking(times=20, temperature=1.0, shown=len(held_out))
    reinforce.run(recipe, quiet=True, ask_about=ask_about, looking=looking)
    kl = {row["step"]: row["kl"] for row in read_jsonl(folder / name / "metrics.jsonl")}
    curve = []
    for look in looks_of(folder / name):
        near = [kl[s] for s in range(look.step - 4, look.step + 5) if s in kl]  # one update's KL is noisy
        curve.append({"step": look.step, "kl": max(0.0, float(np.mean(near))) if look.step else 0.0,
                      "proxy": look.scores["reward"], "gold": look.scores["score"]})  # fmt: skip
    return curve


def one_seed(options: OveroptimiseOptions, folder: Path, seed: int) -> dict[str, Any]:
    """One repetition in `folder`, as plain JSON."""
    opened = open_model(options.parent)
    task = WorldGold(world_behind(opened.path))
    held_out = sample_of(list(task.examples("test")), options.prompts, seed)
    say(f"seed {seed}: votes and {len(options.pairs)} proxies")
    rows = votes(opened, task, max(options.pairs), options.noise, seed)
    sampling = Sampling(temperature=1.0, max_tokens=_MAX_TOKENS, seed=1000 + seed)
    pool = answer_pool(opened, held_out, options.pool, sampling)
    gold = score_pool(TaskReward(task), held_out, pool)
    sizes = sizes_up_to(options.pool)
    result: dict[str, Any] = {"seed": seed, "best_of_n": {}, "policy_gradient": {}, "start": float(gold.mean())}
    best = best_of(gold, gold, sizes).mean(0)
    result["best_of_n"]["gold"] = [
        {"n": n, "kl": kl_of_best(n), "gold": float(g)} for n, g in zip(sizes, best, strict=True)
    ]
    proxies: dict[int, Opened] = {}
    for count in options.pairs:
        proxies[count] = proxy = scaled(_proxy(options, folder, rows, count, seed), held_out, [p[:32] for p in pool])
        scores = score_pool(proxy.reward, held_out, pool)
        curves = best_of(scores, scores, sizes).mean(0), best_of(gold, scores, sizes).mean(0)
        result["best_of_n"][str(count)] = [
            {"n": n, "kl": kl_of_best(n), "proxy": float(p), "gold": float(g)}
            for n, p, g in zip(sizes, *curves, strict=True)
        ]
    arms = [(count, 0.0) for count in options.pairs] + [(min(options.pairs), b) for b in options.kl_coefficients]
    for count, beta in arms:
        name = f"policy-{count}-kl{beta:g}"
        say(f"seed {seed}: {name}")
        curve = _optimised(options, folder, name, proxies[count], task, held_out, beta, seed)
        result["policy_gradient"][f"{count} {beta:g}"] = curve
    weakest = folder / f"policy-{min(options.pairs)}-kl0"
    result["hacked"] = _hacked(weakest, task, held_out)
    return result


def _hacked(run: Path, task: WorldGold, held_out: list[Example]) -> list[dict[str, Any]]:
    """Three answers of the over-optimised model that the proxy likes most among those gold likes less than before."""
    files = sorted((run / "looks").glob("*.json"))
    first, last = (msgspec.json.decode(files[i].read_bytes())["samples"] for i in (0, -1))
    found = []
    asked = {e.prompt[-1]["content"]: e for e in held_out}  # those too long for the context were left out
    for before, after in zip(first, last, strict=True):
        example = asked[after["prompt"]]
        gold = [task.score(example, s["answer"]) for s in (before, after)]
        if gold[1] < gold[0] and after["reward"] > before["reward"]:
            found.append({"prompt": after["prompt"], "before": before["answer"], "after": after["answer"], "gold": gold,
                          "proxy": [before["reward"], after["reward"]]})  # fmt: skip
    found.sort(key=lambda f: f["gold"][1] - f["gold"][0] - f["proxy"][1] + f["proxy"][0])
    return found[:3]


def summary(results: Sequence[dict[str, Any]], pairs: Sequence[int]) -> dict[str, Any]:
    """Means over seeds of what the claim is about, for each proxy and penalty."""
    arms: dict[str, Any] = {}
    for arm in results[0]["policy_gradient"]:
        curves = [r["policy_gradient"][arm] for r in results]
        gold = np.array([[look["gold"] for look in c] for c in curves])
        proxy = np.array([[look["proxy"] for look in c] for c in curves])
        kl = np.array([[look["kl"] for look in c] for c in curves])
        mean, at = gold.mean(0), int(gold.mean(0).argmax())
        arms[arm] = {
            "gold_start": float(mean[0]), "gold_peak": float(mean[at]), "gold_end": float(mean[-1]),
            "kl_at_peak": float(kl[:, at].mean()), "kl_end": float(kl[:, -1].mean()),
            "proxy_start": float(proxy[:, 0].mean()), "proxy_end": float(proxy[:, -1].mean()),
            "kl_end_by_seed": kl[:, -1].tolist(), "gold_end_by_seed": gold[:, -1].tolist(),
            "kl_at_peak_by_seed": [float(k[g.argmax()]) for k, g in zip(kl, gold, strict=True)],
        }  # fmt: skip
    best = {str(count): _best_of_n(results, str(count)) for count in pairs}
    weak, strong = best[str(min(pairs))], best[str(max(pairs))]
    gain = weak["gold_peak"] - weak["gold_start"]
    free = arms[f"{min(pairs)} 0"]
    penalised = [a for arm, a in arms.items() if not arm.endswith(" 0")]
    checks = {
        "the proxy rises, under best-of-n and policy gradients": all(
            a["proxy_end"] > a["proxy_start"] for a in (*best.values(), *arms.values())
        ),
        "best-of-n by the weakest proxy: gold peaks, then loses 20% of its gain or more": gain > 0
        and weak["gold_end"] <= weak["gold_peak"] - 0.2 * gain,
    }
    if max(pairs) > min(pairs):
        checks["more votes move that peak out"] = strong["kl_at_peak"] > weak["kl_at_peak"]
        checks["more votes raise that peak"] = strong["gold_peak"] > weak["gold_peak"]
    if penalised:
        checks["a KL penalty lowers the policy's final KL"] = all(a["kl_end"] < free["kl_end"] for a in penalised)
    return {"arms": arms, "best_of_n": best, "checks": checks, "verdict": verdict_of(checks)}


def _best_of_n(results: Sequence[dict[str, Any]], count: str) -> dict[str, float]:
    """Start, peak and end of gold and proxy over n, means over seeds."""
    curves = [r["best_of_n"][count] for r in results]
    gold, proxy = (np.array([[point[key] for point in c] for c in curves]).mean(0) for key in ("gold", "proxy"))
    at = int(gold.argmax())
    return {
        "gold_start": float(gold[0]), "gold_peak": float(gold[at]), "gold_end": float(gold[-1]),
        "n_at_peak": curves[0][at]["n"], "kl_at_peak": curves[0][at]["kl"], "kl_end": curves[0][-1]["kl"],
        "proxy_start": float(proxy[0]), "proxy_end": float(proxy[-1]),
    }  # fmt: skip


def run(options: OveroptimiseOptions) -> dict[str, Any]:
    """Every seed, then the summary, the page and the verdict; returns what result.json holds."""
    from fledge.labs.pages import overoptimise_page

    return experiment.run(
        "overoptimise", options, one_seed, lambda results: summary(results, options.pairs), overoptimise_page, _show,
        refuse=lambda: world_behind(open_model(options.parent).path),
    )  # fmt: skip


def _show(console: Any, total: dict[str, Any]) -> None:
    from rich.table import Table

    table = Table(
        "optimised by",
        "votes",
        "KL price",
        "gold: start",
        "peak",
        "end",
        "KL at peak",
        "KL at end",
        "proxy at end",
        box=None,
    )
    figures = ("gold_start", "gold_peak", "gold_end", "kl_at_peak", "kl_end", "proxy_end")
    for count, a in total["best_of_n"].items():
        table.add_row("best-of-n", count, "", *(f"{a[key]:.2f}" for key in figures))
    for arm, a in total["arms"].items():
        table.add_row("policy gradient", *arm.split(), *(f"{a[key]:.2f}" for key in figures))
    console.print(table)
    for sample in total["seeds"][0]["hacked"]:
        said = f"{sample['prompt']}\n  before: {sample['before']}\n  after:  {sample['after']}\n"
        console.print(said + f"  gold {sample['gold'][0]:.2f} -> {sample['gold'][1]:.2f}, proxy {sample['proxy'][0]:.2f} -> "
                      f"{sample['proxy'][1]:.2f}", markup=False)  # fmt: skip
