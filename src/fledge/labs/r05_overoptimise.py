"""R5: optimising a reward model first helps, then harms; more votes and a price on KL put the harm off.

The measurements are those of `fledge overoptimise`: proxies trained on noisy votes of a gold score that is known are
maximised by best-of-n (one pool of samples, the unbiased order statistic) and by policy gradients, while gold is only
watched. Gao, Schulman and Hilton 2023, figures 1 and 3; Stiennon et al. 2020, figure 5.

Here all proxies have one size, that of the policy: how the peak moves with the proxy's size is not tested.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fledge.labs.bench import Bench
from fledge.labs.experiment import options_in
from fledge.labs.overoptimise import OveroptimiseOptions, one_seed, summary
from fledge.labs.overoptimise import OveroptimiseSettings as Setup
from fledge.labs.overoptimise_page import best_chart, best_panels
from fledge.labs.verdict import Findings, Number, at_least, difference

SCALES = {
    "pocket": Setup(),
    "gpu": Setup(pairs=(100, 500, 2000, 8000), prompts=256, pool=4096, updates=400),
    "tiny": Setup(pairs=(10, 20), kl_coefficients=(0.2,), pool=4, prompts=8, updates=10, lr=2e-3),
}
_NEAR = 0.3  # distances below this are left out of the fit, as its form has no meaning there


def measure(setup: Setup, bench: Bench) -> dict[str, Any]:
    """Gold and proxy score of best-of-n and of policies, against KL."""
    parent = str(bench.journey() / "sft")
    return one_seed(options_in(OveroptimiseOptions, setup, bench, parent=parent), bench.folder, bench.seed)


def fit_of(curve: Sequence[dict[str, float]], log: bool) -> float:
    """R² of gold - start = d (α - β d), or d (α - β ln d) with `log`, where d is the root of KL (Gao et al., section 3).

    NaN where fewer than four points are far enough.
    """
    points = [(math.sqrt(row["kl"]), row["gold"] - curve[0]["gold"]) for row in curve if row["kl"] > _NEAR**2]
    if len(points) < 4:
        return float("nan")
    d, gold = np.array(points).T
    columns = np.stack((d, -d * (np.log(d) if log else d)), 1)
    found, *_ = np.linalg.lstsq(columns, gold, rcond=None)
    spread = float(((gold - gold.mean()) ** 2).sum())
    return 1 - float(((gold - columns @ found) ** 2).sum()) / spread if spread else float("nan")


def mean_curve(curves: Sequence[Sequence[dict[str, float]]]) -> list[dict[str, float]]:
    """The mean over seeds, point by point."""
    return [
        {key: float(np.mean([row[key] for row in rows])) for key in ("kl", "gold")}
        for rows in zip(*curves, strict=True)
    ]


def judge(setup: Setup, seeds: Sequence[dict[str, Any]]) -> Findings:
    """The weakest proxy's peak and fall, where it lies with more votes, and what a price on KL changes."""
    weak, strong = str(min(setup.pairs)), str(max(setup.pairs))
    best = {count: [s["best_of_n"][count] for s in seeds] for count in (weak, strong)}

    def of_best(label: str, count: str, read: Any) -> Number:
        return Number(label=f"{label}, {count} votes", by_seed=[float(read(curve)) for curve in best[count]])

    def at_peak(key: str) -> Any:
        return lambda curve: max(curve, key=lambda row: row["gold"])[key]

    start = of_best("gold of one answer", weak, lambda c: c[0]["gold"])
    peak, end = (
        of_best("gold at its peak", weak, at_peak("gold")),
        of_best("gold of the best by proxy of most answers", weak, lambda c: c[-1]["gold"]),
    )
    lost = Number(
        label="",
        by_seed=[p - e - 0.2 * (p - s) for s, p, e in zip(start.by_seed, peak.by_seed, end.by_seed, strict=True)],
    )
    peak_strong = of_best("gold at its peak", strong, at_peak("gold"))
    where = [of_best("KL at the peak in nats", count, at_peak("kl")) for count in (weak, strong)]
    step = Number(
        label="", by_seed=[min(b["proxy"] - a["proxy"] for a, b in zip(c, c[1:], strict=False)) for c in best[weak]]
    )
    fit = Number(label="R² of the paper's form for best-of-n, curves averaged over seeds",
                 by_seed=[min(fit_of(mean_curve(best[count]), log=False) for count in best)])  # fmt: skip
    ended = {arm: Number(label=f"KL at the end in nats, {arm.replace(' ', ' votes, price ')}", by_seed=[s["policy_gradient"][arm][-1]["kl"] for s in seeds])
             for arm in seeds[0]["policy_gradient"]}  # fmt: skip
    free = ended[f"{weak} 0"]
    priced = [n for arm, n in ended.items() if arm.startswith(f"{weak} ") and n is not free]
    policy = summary(seeds, setup.pairs)["arms"]
    checks = [
        at_least("the proxy never falls as n grows", step, 0.0),
        at_least("gold of the weakest proxy's choice falls from its peak by a fifth of its gain, or more", lost, 0.0),
        at_least("more votes move the peak out, in nats", difference("", where[1], where[0], ""), 0.01),
        at_least("and raise it", difference("", peak_strong, peak, ""), 0.0),
        at_least("the paper's form fits", fit, 0.9, core=False),
    ]
    checks += [
        at_least(
            f"{n.label.rpartition(' ')[2]} per nat of KL keeps the policy nearer", difference("", free, n, "nats"), 1e-9
        )
        for n in priced
    ]
    arm = policy[f"{weak} 0"]
    return Findings(
        numbers=[start, peak, end, *where, peak_strong, fit, free],
        checks=checks,
        said=(
            f"Choosing by a proxy of {weak} votes lifts gold from {start.mean:.2f} to {peak.mean:.2f}, and to "
            f"{end.mean:.2f} where it has the most to choose from; {strong} votes carry to {peak_strong.mean:.2f}. Policy "
            f"gradients do the same: gold {arm['gold_start']:.2f}, {arm['gold_peak']:.2f} at its peak, {arm['gold_end']:.2f} "
            "at the end, while the proxy still rises."
        ),
    )


def draw(setup: Setup, seeds: Sequence[dict[str, Any]]) -> str:
    """Gold and proxy of best-of-n against KL, by votes."""
    return best_chart(best_panels({"seeds": seeds}), "R5")
