"""OUT/report.html of the experiments on learning from scored answers; each is drawn from its result.json alone."""

from pathlib import Path
from typing import Any

from fledge.labs.charts import Arm, plane_chart, ratio_chart
from fledge.labs.overoptimise_page import overoptimise_page
from fledge.labs.page_parts import (
    Total,
    again,
    checks,
    figures,
    formula,
    head,
    mean,
    over_seeds,
    points_of,
    spread,
    values,
    write,
)
from fledge.stages.panels import DASHES, Line, Panel, panel_chart, plain
from fledge.stages.report_style import ABSENT, dig, duration, figure, heading, paragraph, percent, section, shown, table

__all__ = ["methods_page", "mixtures_page", "overoptimise_page"]

_WIDE, NARROW = (9.6, 4.3), (4.9, 4.4)  # inches: two drawings, of which the style sheet shows the one that can be read
_METHODS = {  # name, colour, dash, marker
    "reinforce": ("REINFORCE", "control", DASHES[2], "s"),
    "a2c": ("actor-critic", "base", DASHES[1], "^"),
    "ppo": ("PPO", "reward", DASHES[3], "D"),
    "grpo": ("GRPO", "sft", DASHES[0], "o"),
    "rloo": ("RLOO", "aligned", DASHES[4], "v"),
}
# What a reward is compared with, what the sum is divided by, times a rollout is used, bounds of the ratio; source
METHOD_WORDS = {
    "reinforce": ("the mean of all answers", "answers × longest answer", 1, "free", "Williams 1992"),
    "a2c": ("a learned value of each token", "tokens", 1, "free", "Mnih et al. 2016"),
    "ppo": ("a learned value of each token", "tokens", 4, "bounded to 0.8–1.2", "Schulman et al. 2017"),
    "grpo": (
        "the mean of the prompt's answers, in their deviations",
        "tokens, then answers",
        1,
        "bounded to 0.8–1.2",
        "Shao et al. 2024",
    ),
    "rloo": ("the mean of the prompt's other answers", "answers × longest answer", 1, "free", "Ahmadian et al. 2024"),
}


# --- five methods ---------------------------------------------------------------------------------------------------


def methods_page(out: Path, total: Total) -> Path:
    """OUT/report.html of `labs.methods`; equal results give equal bytes, and what a result lacks leaves no gap."""
    claim = (
        "Claim: REINFORCE, actor-critic, PPO, GRPO and RLOO, which are one formula with different baselines, all "
        "raise a model "
        "by its own scored answers; and a baseline calms the gradient (Williams 1992, section 4; Greensmith et al. "
        "2004)."
    )
    return write(out, "Five ways to learn from scored answers", (
        head(total, ("Five ways to learn from scored answers", "從評分中學習的五種方法"), claim, _methods_found(total)),
        section("Learning curves", "學習曲線", _methods_figure(total), _methods_table(total)),
        section("What they share, and where they differ", "相同與不同", _methods_words(_methods_of(total))),
        section("How much a baseline calms the gradient", "基準線能讓梯度安靜多少", _calmer(total)),
        checks(total),
        again("methods", total),
    ))  # fmt: skip


def _methods_of(total: Total) -> list[str]:
    return list(dict.fromkeys(m for seed in total.get("seeds") or [] for m in seed.get("methods") or {}))


def _runs(total: Total, method: str) -> list[dict[str, Any]]:
    found = (dig(seed, "methods", method) for seed in total.get("seeds") or [])
    return [run for run in found if run]


def _end(run: dict[str, Any], at: int) -> float | None:
    curve = run.get("curve") or []
    return curve[at].get("accuracy") if curve else None


def _methods_found(total: Total) -> str:
    starts = values(_end(run, 0) for m in _methods_of(total) for run in _runs(total, m))
    ends = values(mean(_end(run, -1) for run in _runs(total, m)) for m in _methods_of(total))
    if not starts or not ends:
        return ""
    reached = f"between {percent(min(ends))} and {percent(max(ends))}"
    return f"From {percent(mean(starts))} right on held-out questions to {reached}, method by method."


def _called(method: str) -> str:
    return _METHODS[method][0] if method in _METHODS else plain(method)


def _methods_lines(total: Total) -> list[Line]:
    lines = []
    for method in _methods_of(total):
        label, colour, dash, marker = _METHODS.get(method, (plain(method), "ink", "-", "o"))
        curves = [run.get("curve") or [] for run in _runs(total, method)]
        line = over_seeds(
            curves, "answers", "answers", "accuracy", label=label, colour=colour, dash=dash, marker=marker
        )
        if line.points:
            lines.append(line)
    return lines


def methods_chart(total: Total, name: str, size: tuple[float, float] = NARROW, kind: str = "chart") -> str:
    """Held-out accuracy of each method over sampled answers, as SVG."""
    panels = [Panel("right on held-out questions", _methods_lines(total), percent=True, from_zero=True, height=1.5)]
    alt = "Held-out accuracy of each method over the answers it was trained on"
    return panel_chart(name, panels, alt, over="answers sampled", direct=True, size=size, kind=kind)


def _methods_figure(total: Total) -> str:
    said = [f"{shown(li.label)} <b>{percent(li.points[-1][1])}</b>" for li in _methods_lines(total)]
    drawn = "".join(
        methods_chart(total, f"methods {kind}", size, f"chart {kind}")
        for kind, size in (("wide", _WIDE), ("narrow", NARROW))
    )
    sentence = (
        f"Mean over seeds at the end: {', '.join(said)}. Every method was given the same number of answers; bands "
        "reach from the "
        "lowest to the highest seed."
    )
    return figure("Accuracy over sampled answers", "答對率", drawn, sentence)


def _methods_table(total: Total) -> str:
    rows = []
    for method in _methods_of(total):
        runs = _runs(total, method)
        gains = ", ".join(points_of(gain) for gain in values((total.get("gains") or {}).get(method) or []))
        rows.append([
            shown(_called(method)), *(percent(mean(_end(run, at) for run in runs)) for at in (0, -1)), gains or ABSENT,
            duration(mean(run.get("seconds") for run in runs)), figures(mean(run.get("kl_end") for run in runs), 1),
            figures(mean(run.get("entropy_end") for run in runs)),
        ])  # fmt: skip
    top = [
        "",
        "Start",
        "End",
        "Gain by seed, points",
        "Time of a run",
        "KL at the end, nats",
        "Entropy at the end, nats",
    ]
    note = "KL is of a whole answer against the model it started from, entropy of a token; time is the mean of a run."
    return table(top, rows, kind="scores") + f'<p class="note">{note}</p>' if rows else ""


def _methods_words(methods: list[str]) -> str:
    words = [
        "Each method samples several answers to each prompt, scores them, and makes the better ones likelier and the "
        "worse ones "
        "less likely. A says how much better an answer was than expected; the ratio is the probability of a token "
        "now, divided by "
        "what it was when it was sampled. All five minimise",
    ]
    rest = (
        "They differ in what “expected” means (the baseline, which makes A), in what the sum is divided by (the "
        "weight), in how "
        "often a rollout is used before new answers are sampled, and in whether the ratio is bounded: reusing "
        "answers moves the "
        "model away from the one that gave them, and the bound ends the reward for going on. Where a rollout is used "
        "once, the "
        "ratio is 1 and the bound idle."
    )
    rows = []
    for method in methods:
        if method in METHOD_WORDS:
            baseline, divisor, epochs, bound, source = METHOD_WORDS[method]
            used = "used once" if epochs == 1 else f"used {epochs} times"
            told = f"compared with <b>{baseline}</b>; divided by {divisor}; each rollout {used}; ratio {bound}"
            rows.append([f"{_called(method)}<small>{source}</small>", told])
    told = formula("−Σ weight · min(ratio · A, clip(ratio) · A)", rest)
    return paragraph(words, "text") + told + table([], rows, kind="facts")


def _calmer(total: Total) -> str:
    found: dict[str, dict[str, list[float]]] = {
        plain(place): {plain(baseline): values(by_seed or []) for baseline, by_seed in (rows or {}).items()}
        for place, rows in (total.get("calmer") or {}).items()
    }
    svg = ratio_chart("calmer", found, "Gradient variance without a baseline, relative to each baseline",
                      "variance without a baseline ÷ with it", 2.0)  # fmt: skip
    if not svg:
        return ""
    means = {(b, place): mean(v) for place, rows in found.items() for b, v in rows.items() if v}
    (best, place), ratio = max(means.items(), key=lambda item: item[1])
    sentence = (
        f"Most with baseline <b>{shown(best)}</b> ({shown(place)}): without one the variance is "
        f"<b>{figures(ratio)}</b> times as "
        "large. Large marks are means, ticks are seeds; the solid line is no change, the dashed one the factor of 2 "
        "that is checked."
    )
    words = [
        "A baseline is subtracted from every reward. It leaves the mean of the gradient where it was, for what is "
        "known "
        "before an answer is drawn says nothing about that answer, but takes away the part of the reward that "
        "all answers share, and with it much of the noise.",
        "Measured as the mean squared distance of a rollout's gradient from the mean gradient of many rollouts, all "
        "weights "
        "together. Leave-one-out and group use the same differences; group keeps a share (n − 1)/n of them.",
    ]
    rows = [
        [shown(b), *(spread(rows.get(b, [])) for rows in found.values())] for b in dict.fromkeys(b for b, _ in means)
    ]
    tile = (
        f'<div class="tile">{heading("The same in figures", "數字", 3)}'
        f"{table(['Baseline', *map(shown, found)], rows)}"
        f"{''.join(paragraph([w]) for w in words)}</div>"
    )
    return f'<div class="grid">{figure("Variance without a baseline, in multiples", "梯度變異", svg, sentence)}{tile}</div>'


# --- helpful against safe -------------------------------------------------------------------------------------------


def mixtures_page(out: Path, total: Total) -> Path:
    """OUT/report.html of `labs.mixtures`; equal results give equal bytes, and what a result lacks leaves no gap."""
    claim = (
        "Claim: being helpful and being safe pull apart, and two reward models combined piecewise beat every "
        "weighted sum of them "
        "(Llama 2, Touvron et al. 2023, section 3.2.3)."
    )
    return write(out, "Helpful against safe", (
        head(total, ("Helpful against safe", "有用與安全"), claim, _mixtures_found(total)),
        section("The front", "取捨的邊界", _mixtures_figure(total), _mixtures_table(total)),
        section("What this means", "這代表什麼", _mixtures_words()),
        checks(total),
        again("mixtures", total),
    ))  # fmt: skip


def _weight(arm: str) -> float | None:
    """Weight of helpfulness of a sum; None for what is no sum."""
    try:
        return float(arm)
    except ValueError:
        return None


def _arms(total: Total) -> dict[str, dict[str, Any]]:
    """The weighted sums from all safety to all helpfulness, then the arms that are no sums."""
    known = {arm: found for arm, found in (total.get("arms") or {}).items() if found}
    return dict(sorted(known.items(), key=lambda item: (_weight(item[0]) is None, _weight(item[0]) or 0.0)))


def _arm_name(arm: str) -> str:
    if (weight := _weight(arm)) is not None:
        return f"{weight:g} helpful + {1 - weight:g} safe"
    return {"sft": "SFT, before", "piecewise": "piecewise"}.get(arm, plain(arm))


def _mixtures_found(total: Total) -> str:
    arms = _arms(total)
    ours, sums = arms.get("piecewise") or {}, [found for arm, found in arms.items() if _weight(arm) is not None]
    if not values((ours.get("safe"), ours.get("helpful"))) or not sums:
        return ""
    found = f"Piecewise: safe in {percent(ours.get('safe'))} of dangerous requests"
    found += f" and {percent(ours.get('helpful'))} helpful"
    rivals = values(a.get("helpful") for a in sums if (a.get("safe") or 0.0) >= (ours.get("safe") or 0.0) - 0.01)
    return (
        f"{found}; of the sums as safe as that the best is {percent(max(rivals))} helpful."
        if rivals
        else f"{found}; no sum is as safe."
    )


def mixtures_chart(total: Total, name: str, size: tuple[float, float] = NARROW, kind: str = "chart") -> str:
    """Safety against helpfulness, one point for each way to combine the rewards, as SVG."""
    arms = []
    looks = {"sft": ("control", "s", 7.0), "piecewise": ("aligned", "D", 9.0)}
    for arm, found in _arms(total).items():
        at = values((found.get("helpful"), found.get("safe")))
        if len(at) == 2:
            by_seed = (
                values((dig(s, "arms", arm, "helpful"), dig(s, "arms", arm, "safe"))) for s in total.get("seeds") or []
            )
            seeds = [(p[0], p[1]) for p in by_seed if len(p) == 2]
            weight = _weight(arm)
            colour, marker, width = looks.get(arm, ("sft", "o", 6.0))
            label = {"sft": "SFT"}.get(arm, plain(arm)) if weight is None else f"{weight:g}"
            arms.append(Arm(label, (at[0], at[1]), seeds, colour, marker, width, joined=weight is not None))
    alt = "Share of dangerous requests refused against helpfulness, one point for each way to combine the rewards"
    labels = ("helpful: facts right and borderline requests helped, mean", "safe: dangerous requests refused")
    return plane_chart(name, arms, alt, labels, "piecewise", size, kind)


def _mixtures_figure(total: Total) -> str:
    drawn = "".join(
        mixtures_chart(total, f"front {kind}", size, f"chart {kind}")
        for kind, size in (("wide", _WIDE), ("narrow", NARROW))
    )
    sentence = (
        "The line joins the weighted sums, each named by its weight of helpfulness (the rest is safety's); the "
        "diamond is "
        "piecewise, the square the model before. Small marks are seeds. In the shaded corner a sum would be at least "
        "as "
        "safe and as helpful as piecewise."
    )
    return figure("Safety against helpfulness", "安全與有用", drawn, sentence)


def _mixtures_table(total: Total) -> str:
    columns = {
        "safe": "Safe", "helpful": "Helpful", "facts_right": "Facts right",
        "borderline_helped": "Border&shy;line helped",
        "refused_facts": "Facts refused", "refused_borderline": "Border&shy;line refused",
    }  # fmt: skip
    rows = []
    for arm, found in _arms(total).items():
        by_seed = {key: values(dig(s, "arms", arm, key) for s in total.get("seeds") or []) for key in columns}
        cells = [
            spread(by_seed[k], percent) if k in ("safe", "helpful") and by_seed[k] else percent(found.get(k))
            for k in columns
        ]
        rows.append([shown(_arm_name(arm)), *cells])
    note = "Shares of greedy answers to held-out prompts: means over seeds, with the lowest and the highest seed below."
    return table(["Reward", *columns.values()], rows, kind="scores") + f'<p class="note">{note}</p>' if rows else ""


def _mixtures_words() -> str:
    words = [
        "One group of raters asks only whether they were helped, the other only whether the answer could do harm; "
        "each group's "
        "votes train a reward model, and a policy is trained on a combination of the two. A weighted sum prices "
        "safety alike "
        "everywhere: with much of it, requests that merely sound dangerous are declined too (the borderline ones), "
        "with little, "
        "dangerous ones are met. No weight is right for both kinds of prompt.",
        "Piecewise asks first what is at stake:",
    ]
    rule = "R = R_safe      where the prompt is about safety, or R_safe < 0.15\nR = R_helpful   otherwise"
    rest = (
        "so that on ordinary prompts the safety model keeps out of the way unless it sees a real danger. A logit and "
        "whitening then "
        "bring both kinds of reward to one scale. Dangerous requests: refusing is safe. Borderline requests sound "
        "dangerous "
        "and are harmless (“how do I kill a weed?”): helping is right."
    )
    return "".join(paragraph([w], "text") for w in words) + formula(rule, rest)
