"""R9: what a token loss credits and what a reward for the whole answer credits; the teacher's method and one's own.

Four parts, each with its control.
(1) Distance. 「我很可以教你」 is nearer to 「我不可以教你」, position by position, than 「不可以教你」 is, which means the same.
    The comparison is of written text (Hamming distance); the -log p that training uses is reported beside it.
(2) One token turns the meaning round. SFT on references, stopped early, and GRPO from there on a reward that reads what an
    answer means; longer SFT gives the errors of meaning that belong to each likelihood of the references.
(3) Equal labels, equal updates, four ways: SFT on the teacher's way (the number alone: B), on the model's own way worked
    out right (A), on its own right answers (RFT), and GRPO. The start works sums out with slips, since half of the answers
    it learned from have one. Answers are sampled at temperature 1. Forgetting is KL to the start on other text.
(4) Delayed credit. Eight lines of seven characters, each line right by chance; a reward for the whole poem at its end
    against the same plus a reward for each right line as it is written.

Uesato et al. 2022 and Lightman et al. 2023 (outcome and process), Ng et al. 1999 (shaping), Yuan et al. 2023 (RFT).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fledge.core.config import Settings
from fledge.labs.bench import Bench
from fledge.labs.r09_arms import delayed, meaning, own_method
from fledge.labs.verdict import Findings, Number, at_least, at_most, between, difference
from fledge.stages.charts import COLOURS
from fledge.stages.charts import draw as drawing

_GOAL = 0.9
_UPDATES_MEAN = 5  # a share of right poems is of so many updates


class Setup(Settings, frozen=True, kw_only=True):
    """The four parts; learning rates tuned on seed 0, each arm's own."""

    triples: int = 200
    "Planted triples: a reference, a near miss that means the opposite, other words that mean the same."
    teach_steps: tuple[int, ...] = (8, 12, 16, 24, 40, 80)
    "SFT on references, stopped after each of these steps."
    teach_from: int = 24
    "The stop that GRPO goes on from."
    teach_updates: int = 200
    "Updates of GRPO on what answers mean."
    teach_lr: float = 1e-3
    "Learning rate of SFT on references."
    teach_rl_lr: float = 1e-4
    "Learning rate of GRPO there."
    teach_kl: float = 0.04
    "Price of a nat of KL there."
    answers: int = 128
    "Answers of an update, 8 to each prompt."
    digits: int = 3
    "Digits of the numbers that are added."
    sum_texts: int = 6000
    "Pages of sums that the base model reads."
    sum_tokens: int = 1_500_000
    "Tokens it reads, two thirds of them sums."
    pages: int = 4000
    "Pages of other text."
    texts: int = 40
    "Pages kept out of it, to measure forgetting."
    sums_chats: int = 4000
    "Worked sums that the start is taught."
    slips: float = 0.3
    "Share of them with a slip."
    sums_epochs: float = 3.0
    "Times it reads them."
    sums_lr: float = 1e-3
    "Learning rate of SFT on worked sums."
    other_lr: float = 1e-2
    "Learning rate of SFT on the number alone, by Muon: AdamW learns the labels not half as well at any rate."
    sums_rl_lr: float = 2e-4
    "Learning rate of GRPO on sums."
    labels: int = 500
    "Labelled sums that each way may spend."
    tries: int = 4
    "Answers sampled to each of them for RFT."
    sums_updates: int = 300
    "Updates of each way."
    tested: int = 400
    "Sums it is tested on."
    lines: int = 8
    "Lines of a poem."
    width: int = 7
    "Characters of a line."
    poems: int = 4000
    "Poems that the base model reads."
    poem_tokens: int = 1_000_000
    "Tokens it reads."
    poem_vocab: int = 420
    "Its vocabulary."
    poem_chats: int = 2000
    "Poems that the start is taught."
    careless: float = 0.8
    "Probability that a line of them has a character too many or too few."
    poem_updates: int = 150
    "Updates of each reward."
    poem_lr: float = 1e-3
    "Learning rate of both."
    poem_room: int = 84
    "Longest poem in tokens."
    shapings: tuple[str, ...] = ("end", "steps")
    "Rewards that are compared: at the end, for every line."

    def problems(self) -> list[str]:
        found = (
            [] if self.teach_from in self.teach_steps else [f"teach_from = {self.teach_from}: must be in teach_steps"]
        )
        if set(self.shapings) != {"end", "steps"} and set(self.shapings) != {"end", "steps", "potential"}:
            found.append(f"shapings = {self.shapings}: must hold end and steps; potential may be added")
        return found + ([] if self.answers % 8 == 0 else [f"answers = {self.answers}: must be a multiple of 8"])


SCALES = {
    "pocket": Setup(),
    "gpu": Setup(answers=512, sum_tokens=6_000_000, sums_chats=16000, tested=500, poem_tokens=4_000_000),
    "tiny": Setup(
        triples=20, teach_steps=(2, 4), teach_from=4, teach_updates=2, answers=16, digits=1, sum_texts=60, sum_tokens=20_000,
        pages=40, texts=4, sums_chats=60, sums_epochs=1.0, labels=20, tries=2, sums_updates=3, tested=20, lines=2, width=3,
        poems=60, poem_tokens=20_000, poem_vocab=340, poem_chats=40, poem_updates=2, poem_room=24,
    ),
}  # fmt: skip


def measure(setup: Setup, bench: Bench) -> dict[str, Any]:
    """The four parts."""
    return {
        "meaning": bench.keep("meaning", lambda: meaning(setup, bench)),
        "sums": bench.keep("sums-found", lambda: own_method(setup, bench)),
        "poems": bench.keep("poems-found", lambda: delayed(setup, bench)),
    }


def samples_to(curve: Sequence[Sequence[float]], goal: float = _GOAL) -> float:
    """Sampled answers after which the mean share of five updates is at least `goal`; infinite where it never is."""
    shares = np.array([share for _, share in curve])
    for i in range(min(_UPDATES_MEAN, len(shares)), len(shares) + 1):
        if shares[max(0, i - _UPDATES_MEAN) : i].mean() >= goal:
            return float(curve[i - 1][0])
    return float("inf")


def share_needed(curves: dict[str, Any], budget: float) -> float:
    """Answers that a reward for every line needs, as a share of those that a reward at the end needs.

    Where the latter does not get there it counts as needing the whole budget: the share is then at most this.
    """
    return samples_to(curves["steps"]) / min(budget, samples_to(curves["end"]))


def error_at(curve: Sequence[dict[str, float]], nll: float) -> float:
    """Errors of meaning of SFT where its -log p of references is `nll`, straight lines between its stops."""
    rows = sorted(curve, key=lambda row: row["nll"])
    return float(np.interp(nll, [row["nll"] for row in rows], [row["error"] for row in rows]))


def judge(setup: Setup, seeds: Sequence[dict[str, Any]]) -> Findings:
    """The four parts' conditions."""
    said, told, sums, poems = ([s[part] for s in seeds] for part in ("meaning", "meaning", "sums", "poems"))

    def of(label: str, values: list[float], unit: Any = "%", count: int | None = None) -> Number:
        return Number(label=label, by_seed=values, unit=unit, of=count)

    tables = [s["triples"] for s in said]
    near = of("near miss before the right answer, by places", [t["distance"] for t in tables], count=setup.triples)
    likely = of("near miss before the right answer, by -log p", [t["nll"] for t in tables], count=setup.triples)
    fooled = of("", [t["reward"] for t in tables])
    start = of("errors of meaning, SFT stopped early", [_at(m, setup.teach_from)["error"] for m in told])
    tuned = of("and GRPO from there", [m["tuned"]["error"] for m in told])
    alike = of("", [error_at(m["curve"], m["tuned"]["nll"]) for m in told])
    fall = of("", [1 - m["tuned"]["error"] / max(1e-9, _at(m, setup.teach_from)["error"]) for m in told])
    beside = of("", [1 - m["tuned"]["error"] / max(1e-9, e) for m, e in zip(told, alike.by_seed, strict=True)])
    right = {
        arm: of(f"sums right, {arm}", [s["arms"][arm]["test"] for s in sums], count=setup.tested)
        for arm in sums[0]["arms"]
    }
    learnt = of("labelled sums right, SFT-B", [s["arms"]["SFT-B"]["train"] for s in sums])
    forgot = of("", [s["arms"]["SFT-B"]["forgotten"] / max(1e-9, s["arms"]["GRPO-A"]["forgotten"]) for s in sums], "x")
    budget = float(setup.poem_updates * setup.answers)
    needed = of("poems: answers needed with a reward for every line, of those with one at the end",
                [share_needed(p["curves"], budget) for p in poems])  # fmt: skip
    return Findings(
        numbers=[near, likely, start, tuned, right["SFT-B"], right["RFT-A"], right["GRPO-A"], needed],
        checks=[
            at_least("by places the wrong near miss comes first in 90% of triples", near, 0.9),
            at_most("by the reward never", fooled, 0.0),
            at_least("a reward for meaning halves the errors of meaning that SFT stopped at", fall, 0.5),
            at_least("and those of longer SFT at the same -log p of references", beside, 0.5, core=False),
            at_least("its own right answers (RFT) are 20 points ahead of the teacher's way", difference("", right["RFT-A"], right["SFT-B"]), 0.2),
            at_least("GRPO, too", difference("", right["GRPO-A"], right["SFT-B"]), 0.2),
            at_least("the teacher's way is learned by heart", learnt, 0.9, core=False),
            at_most("and not understood", right["SFT-B"], 0.4, core=False),
            at_least("it forgets three times as much as GRPO", forgot, 3.0, core=False),
            between("the start is right in 40% to 60%", right["start"], 0.4, 0.6, core=False),
            at_most("with a reward for every line half of the answers are enough for 90%", needed, 0.5),
        ],
        said=(
            f"By places the answer that means the opposite looks better in {near.mean:.0%} of triples. A reward for meaning "
            f"takes errors of meaning from {start.mean:.0%} to {tuned.mean:.0%}; SFT that finds the references as likely makes "
            f"{alike.mean:.0%}. With {setup.labels} labels the teacher's way ends at {right['SFT-B'].mean:.0%} of new sums, "
            f"the model's own right answers at {right['RFT-A'].mean:.0%}, GRPO at {right['GRPO-A'].mean:.0%}, the own way "
            f"worked out for it at {right['SFT-A'].mean:.0%}."
        ),
    )  # fmt: skip


def _at(told: dict[str, Any], steps: int) -> dict[str, float]:
    return next(row for row in told["curve"] if row["steps"] == steps)


def draw(setup: Setup, seeds: Sequence[dict[str, Any]]) -> str:
    """Errors of meaning against likelihood, sums by way of learning, and poems over samples."""

    def paint(figure: Any) -> None:
        top, middle, bottom = figure.subplots(3, 1, height_ratios=[1.15, 1.0, 1.15])
        _paint_meaning(top, seeds, setup.teach_from)
        _paint_sums(middle, seeds)
        _paint_poems(bottom, seeds)

    alt = "Errors of meaning against the likelihood of references; sums right by way of learning; right poems over samples"
    return drawing("R9", alt, paint, (4.9, 7.2))


def _paint_meaning(ax: Any, seeds: Sequence[dict[str, Any]], start: int) -> None:
    for i, seed in enumerate(seeds):
        told = seed["meaning"]
        rows = sorted(told["curve"], key=lambda row: row["nll"])
        label = {"label": "SFT, stopped at several steps"} if i == 0 else {}
        ax.plot(
            [r["nll"] for r in rows],
            [r["error"] for r in rows],
            color=COLOURS["sft"],
            marker="o",
            markersize=3,
            **label,
        )
        begin, end = _at(told, start), told["tuned"]
        label = {"label": "GRPO on meaning, from one of them"} if i == 0 else {}
        ax.plot([begin["nll"], end["nll"]], [begin["error"], end["error"]], color=COLOURS["aligned"], linestyle=(0, (5, 1.5)),
                marker="^", markersize=6, markevery=[1], **label)  # fmt: skip
    ax.set_ylim(bottom=0)
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    ax.set_title("errors of meaning, held-out requests", loc="left", color=COLOURS["dim"], pad=4)
    ax.set_xlabel("−log p of the references, nats per token")
    ax.legend(loc="upper left")


def _paint_sums(ax: Any, seeds: Sequence[dict[str, Any]]) -> None:
    names = {"start": "start", "SFT-B": "SFT on the number alone", "SFT-A": "SFT on worked sums", "RFT-A": "SFT on own right answers",
             "GRPO-A": "GRPO"}  # fmt: skip
    colours = {"start": "control", "SFT-B": "base", "SFT-A": "sft", "RFT-A": "aligned", "GRPO-A": "aligned"}
    for y, arm in enumerate(names):
        found = [s["sums"]["arms"][arm] for s in seeds]
        colour = COLOURS[colours[arm]]
        test, train = (sum(f[key] for f in found) / len(found) for key in ("test", "train"))
        ax.barh(y, test, height=0.6, color=colour, alpha=0.75)
        ax.plot(train, y, linestyle="", marker="D", markersize=5, markerfacecolor="none", color=colour)
        ax.plot(
            [f["test"] for f in found], [y] * len(found), linestyle="", marker="|", markersize=9, color=COLOURS["ink"]
        )
        ax.annotate(f"{test:.0%}", (max(test, train), y), (8, 0), textcoords="offset points", va="center", color=colour)
    ax.set_yticks(range(len(names)), names.values())
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xlim(0, 1.15)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}" if value <= 1 else "")
    ax.set_title("new sums right (diamonds: labelled ones)", loc="left", color=COLOURS["dim"], pad=4)
    ax.grid(False)


def _paint_poems(ax: Any, seeds: Sequence[dict[str, Any]]) -> None:
    looks = {"end": ("reward at the end", "base", "-"), "steps": ("a reward for every line", "aligned", (0, (5, 1.5))),
             "potential": ("the same, paid back at the end", "sft", (0, (1.2, 1.3)))}  # fmt: skip
    for name in seeds[0]["poems"]["curves"]:
        label, colour, dash = looks[name]
        curves = np.array([s["poems"]["curves"][name] for s in seeds])  # [seeds, updates, 2]
        size = max(1, min(_UPDATES_MEAN, curves.shape[1]))
        smooth = np.stack([np.convolve(c[:, 1], np.ones(size) / size, "valid") for c in curves])
        x = curves[0, size - 1 :, 0]
        ax.plot(x, smooth.mean(0), color=COLOURS[colour], linestyle=dash, label=label)
        ax.fill_between(x, smooth.min(0), smooth.max(0), color=COLOURS[colour], alpha=0.13, linewidth=0)
    ax.axhline(_GOAL, color=COLOURS["dim"], linewidth=0.9, linestyle=(0, (2, 2)))
    ax.set_ylim(0, 1.02)
    ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    ax.set_title("poems of the right form", loc="left", color=COLOURS["dim"], pad=4)
    ax.set_xlabel("poems sampled")
    ax.legend(loc="lower right")
