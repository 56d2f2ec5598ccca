"""S12: fine-tuning on facts that a model does not know harms what it knows, once it has learned them (Gekhman et al. 2024).

Invented people are told of in shuffled wordings, some often and some seldom (a power law of the rank). What the base
model knows of them is sorted by `probe.knowledge` (SliCK): questions in the form of its text, after worked examples.
Equal numbers of facts of each category, and of all categories as they come, are then taught in that form; one
training stops where questions about other facts (the dev set) are answered best, one goes on to convergence. Both are
asked about facts of each category that nobody taught. Then: mixtures of Unknown and known facts, and a straight line
through what they give. Two more claims on the same facts: HAR, INC and SELF (Ren et al. 2024), fine-tuning on what
the base model chooses right of four values, on what it chooses wrong, and on its own wrong choices; and the false
promise of imitation (Gudibande et al. 2023), a teacher's style learned from answers about people whom no text tells
of.

Values are one word: guessing is right in 2.5% or less, of four choices in 25%. Choices are compared by their
likelihood. Early stopping chooses among trainings of different length, each with its own schedule; the test set
chooses nothing. HAR, INC, SELF and the imitator are trained as long as the arms at convergence.

Tuned on seed 0: how often people are told of, for the categories' shares, and the fine-tuning's learning rate and
batch. What it showed: the harm grows with how little was known, well-known facts answered by 5 points less after
HighlyKnown, 10 after MaybeKnown, 17 after WeaklyKnown and 16 after Unknown ones; between learning rates of 1e-4 and
5e-4 MaybeKnown ones always did 0.4 to 0.6 of the harm of Unknown ones, so that no rate has 15 points of the one and
less than 5 of the other. MaybeKnown rows are compared with HighlyKnown ones at early stop; at convergence they are further
behind. Unknown facts also teach, before they harm: they stand in the text a few times, and to be asked for them makes
others of their kind answerable. That is why at early stop their arm is the best, and why right answers that the model
does not know (INC) serve better than its own wrong ones (SELF), which in the paper they do not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fledge.labs.bench import Bench
from fledge.labs.s12_arms import PARTS, Item, Setup, agreement, arm, cast, imitation, mixtures, raise_base, sort_items
from fledge.labs.verdict import Findings, Number, at_least, at_most, difference
from fledge.probe.knowledge import CATEGORIES
from fledge.stages.charts import COLOURS
from fledge.stages.charts import draw as drawing
from fledge.stages.common import open_model
from fledge.stages.evaluate import rate
from fledge.world.dice import Dice

ARMS = (*CATEGORIES, "Natural")
AGREEMENT = {"HAR": "54.3%", "INC": "31.1%", "SELF": "46.0%"}  # LLaMA-2 7B on history, in domain
PAPER = {  # table 2: accuracy on all test questions at early stop and at convergence
    "HighlyKnown": (0.405, 0.400), "MaybeKnown": (0.436, 0.432), "WeaklyKnown": (0.392, 0.354),
    "Unknown": (0.375, 0.258), "Natural": (0.435, 0.418),
}  # fmt: skip

SCALES = {
    "pocket": Setup(),
    "gpu": Setup(people=4000, most=300, famous=700, asked=400, strangers=400, size="small", tokens=150_000_000, batch_tokens=65_536,
                 lr=2e-3, prompts=10, samples=16, taught=1000, sft_batch_tokens=4096),
    "tiny": Setup(people=20, most=4, famous=2, asked=8, strangers=2, tokens=4_000, size="tiny", batch_tokens=512, prompts=2, shots=2,
                  samples=1, taught=4, early=(1.0,), epochs=2.0, shares=(0.0, 0.5)),
}  # fmt: skip


def measure(setup: Setup, bench: Bench) -> dict[str, Any]:
    """One base model; its facts sorted; then all fine-tunings of it."""
    people = cast(setup, bench.seed)
    base = str(raise_base(setup, people, bench))
    parts = bench.keep("sorted", lambda: sort_items(setup, open_model(base, precision="float32"), people, bench.seed))
    items = {
        part: {c: [Item(people.people.all[number], a) for number, a in some] for c, some in by.items()}
        for part, by in parts.items()
    }
    train = items["train"]
    size = min(setup.taught, *(len(some) for some in train.values() if some))
    mixed = Dice(bench.seed, 141).shuffled([item for some in train.values() for item in some])
    chosen = {c: some[:size] for c, some in (*train.items(), ("Natural", mixed)) if some}
    return {
        "counts": {part: {c: len(some) for c, some in by.items()} for part, by in items.items()},
        "taught": size,
        "arms": {
            name: bench.keep(f"arm-{name}", lambda name=name, some=some: arm(setup, bench, base, name, some, items))
            for name, some in chosen.items()
        },
        "mixtures": bench.keep("mixtures", lambda: mixtures(setup, bench, base, size, items)),
        "agreement": bench.keep("agreement", lambda: agreement(setup, bench, base, people, items)),
        "imitation": bench.keep("imitation", lambda: imitation(setup, bench, base, people, items)),
    }


def epochs_to(curve: Sequence[Mapping[str, Any]], share: float) -> float:
    """Times of reading at which the trained questions reach this share, on straight lines; the last where none does."""
    before = {"epochs": 0.0, "train": 0.0}
    for at in curve:
        if at["train"] >= share:
            part = (share - before["train"]) / (at["train"] - before["train"])
            return before["epochs"] + part * (at["epochs"] - before["epochs"])
        before = dict(at)
    return float(curve[-1]["epochs"])


def line(seed: Mapping[str, Any]) -> tuple[float, float, float]:
    """Slope, value at 0 and R² of the straight line of the mean of categories over the share of Unknown facts."""
    points = [*seed["mixtures"], [1.0, _share(seed, "Unknown", "converged", "all")]]
    x, y = np.array([[a, math.nan if b is None else b] for a, b in points], dtype=float).T
    if not np.isfinite(y).all() or len(set(x)) < 2:
        return math.nan, math.nan, math.nan
    slope, start = np.polyfit(x, y, 1)
    around = float(((y - y.mean()) ** 2).sum())
    return float(slope), float(start), 1 - float(((y - start - slope * x) ** 2).sum()) / around if around else 0.0


def judge(setup: Setup, seeds: Sequence[dict[str, Any]]) -> Findings:
    """Unknown facts must harm the known ones at convergence, MaybeKnown ones must not, and serve better than HighlyKnown."""

    def share(label: str, name: str, when: str, kind: str, paper: str | None = None) -> Number:
        of = min(sum(n for c, n in s["counts"]["test"].items() if kind in ("all", c)) for s in seeds)
        return Number(
            label=label, by_seed=[_share(s, name, when, kind) for s in seeds], unit="%", of=of or None, paper=paper
        )

    def drop(name: str) -> Number:
        ends = (share("", name, when, "HighlyKnown") for when in ("early", "converged"))
        return difference(f"HighlyKnown lost from early stop to convergence, taught {name}", *ends)

    def told(key: str, name: str, label: str = "", paper: str | None = None) -> Number:
        found = [s[key][name] for s in seeds]
        of = min(sum(s["counts"]["test"].values()) for s in seeds)
        return Number(label=label, by_seed=[math.nan if f is None else f for f in found], unit="%", of=of, paper=paper)

    unknown, maybe = drop("Unknown"), drop("MaybeKnown")
    better = difference("", *(share("", name, "early", "MaybeKnown") for name in ("MaybeKnown", "HighlyKnown")))
    slower = Number(label="times read until half is learned, Unknown against HighlyKnown", unit="x", by_seed=[
        _slower(seed) for seed in seeds])  # fmt: skip
    rarest = Number(label="the rarest category's share of all facts", unit="%", by_seed=[
        min(counted(s).values()) / sum(counted(s).values()) for s in seeds])  # fmt: skip
    slope, straight = (
        Number(label="", by_seed=[line(s)[i] for s in seeds], unit=u) for i, u in ((0, "points"), (2, ""))
    )
    har, inc, own = (told("agreement", n, f"right of four choices, {n}", AGREEMENT[n]) for n in ("HAR", "INC", "SELF"))
    style = difference("", told("imitation", "style_after"), told("imitation", "style_before"))
    facts = difference("", told("imitation", "facts_after"), told("imitation", "facts_before"))
    ends = [
        share(f"all categories, taught {name}, at convergence", name, "converged", "all", f"{PAPER[name][1]:.1%}")
        for name in ("HighlyKnown", "MaybeKnown", "Unknown")
    ]
    return Findings(
        numbers=[*ends, unknown, maybe, har, own, inc],
        checks=[
            at_least("taught what it does not know, it loses what it knew well", unknown, 0.15),
            at_most("taught what it may know, it does not", maybe, 0.05),
            at_least("at early stop, MaybeKnown facts teach more about their like than HighlyKnown ones", better, 0.03),
            at_least("unknown facts are learned half as fast", slower, 2.0),
            at_most("each share of Unknown facts costs as much as the last: the line falls", slope, 0.0),
            at_least("and is straight (R²)", straight, 0.7, core=False),
            at_least("what the base model chooses right serves better than what it chooses wrong (HAR, INC)",
                     difference("", har, inc), 0.0),
            at_least("its own wrong choices serve better than right ones that it does not know (SELF, INC)",
                     difference("", own, inc), 0.0),
            at_least("a teacher's style is learned", style, 0.5),
            at_most("and no facts with it", facts, 0.03),
            at_least("each category holds 15% of the facts", rarest, 0.15, core=False),
        ],
        said=(
            f"Taught facts it does not know, the model loses {100 * unknown.mean:.0f} points of what it knew well between "
            f"early stop and convergence; taught facts it may know, {100 * maybe.mean:.0f}. At convergence the arms "
            f"answer {ends[2].mean:.0%} and {ends[1].mean:.0%}; rows that are all Unknown instead of none cost "
            f"{-100 * slope.mean:.0f} points. An imitator of a teacher's answers about strangers has "
            f"{100 * style.mean:.0f} points more of the style and {100 * facts.mean:+.0f} of the facts."
        ),
    )  # fmt: skip


def counted(seed: Mapping[str, Any]) -> dict[str, int]:
    """Facts of each category."""
    return {c: sum(seed["counts"][part][c] for part in PARTS) for c in CATEGORIES}


def _share(seed: Mapping[str, Any], name: str, when: str, kind: str) -> float:
    """NaN where the base model left a category empty: what is not there passes no check."""
    at = seed["arms"].get(name, {}).get(when)
    found = None if at is None else at["test"][kind]
    return math.nan if found is None else found


def _slower(seed: Mapping[str, Any]) -> float:
    arms = seed["arms"]
    if not {"Unknown", "HighlyKnown"} <= set(arms):
        return math.nan
    return epochs_to(arms["Unknown"]["curve"], 0.5) / epochs_to(arms["HighlyKnown"]["curve"], 0.5)


def draw(setup: Setup, seeds: Sequence[dict[str, Any]]) -> str:
    """Trained and well-known facts over the times of reading; below, mixtures with their line, and the four choices."""
    colours = dict(zip(ARMS, ("aligned", "sft", "reward", "control", "base"), strict=True))

    def curves(ax: Any, title: str, pick: Any) -> None:
        lengths = (*setup.early, setup.epochs)
        for (name, colour), marker in zip(colours.items(), "o^sDv", strict=True):
            found = [[pick(at) for at in s["arms"][name]["curve"]] for s in seeds if name in s["arms"]]
            means = [rate(v for v in column if v is not None) for column in zip(*found, strict=True)]
            points = [(x, y) for x, y in zip(lengths, means, strict=False) if y is not None]
            if points:
                ax.plot(*zip(*points, strict=True), marker=marker, markersize=5, color=COLOURS[colour], label=name)
        ax.set_title(title, loc="left", color=COLOURS["dim"])
        ax.set_xscale("log", base=2)
        ax.set_xticks(lengths, [f"{x:g}" for x in lengths])
        ax.minorticks_off()
        ax.set_xlabel("times read")

    def paint(figure: Any) -> None:
        axes = figure.subplots(2, 2)
        curves(axes[0][0], "taught, answered", lambda at: at["train"])
        curves(axes[0][1], "HighlyKnown, untaught", lambda at: at["test"]["HighlyKnown"])
        mixed, bars = axes[1]
        for seed in seeds:
            points = [*seed["mixtures"], [1.0, _share(seed, "Unknown", "converged", "all")]]
            mixed.plot(*zip(*points, strict=True), linestyle="", marker="o", markersize=5, color=COLOURS["control"])
        slope, start = (float(np.mean([line(s)[i] for s in seeds])) for i in (0, 1))
        mixed.plot([0, 1], [start, start + slope], color=COLOURS["control"])
        mixed.set_title("all, by share of Unknown", loc="left", color=COLOURS["dim"])
        mixed.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        names = ["HAR", "SELF", "INC"]
        heights = [rate(s["agreement"][n] for s in seeds if s["agreement"][n] is not None) or 0.0 for n in names]
        bars.bar(names, heights, color=[COLOURS[c] for c in ("aligned", "sft", "control")], width=0.6)
        bars.axhline(0.25, color=COLOURS["dim"], linewidth=0.9, linestyle=(0, (2, 2)))
        bars.set_title("right of four choices", loc="left", color=COLOURS["dim"])
        for ax in axes.flat:
            if ax is not mixed:
                ax.set_ylim(0.46 if ax is axes[0][1] else -0.04, 1.04)  # the losses are small beside the whole
            ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower left", ncols=3)

    return drawing(
        "S12", "Facts answered after fine-tuning on what the model knows more or less well", paint, (5.6, 5.4)
    )
