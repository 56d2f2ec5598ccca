"""The page of a trained quality classifier: is it believable, what does it go by, and what would it keep."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from fledge.curate.ngrams import features_of
from fledge.curate.quality_training import Trained

_EXAMPLES = 6
_READ = 300  # pages of each side whose words are named
_NAMED = 24  # features shown of each side
_LEAST_PAGES = 3  # that a feature is seen in


def quality_page(trained: Trained) -> bytes:
    """The whole HTML file; it fetches nothing."""
    from fledge.stages.report_style import page

    title = "How good is the quality classifier?"
    parts = (_head(trained, title), _charts(trained), _tables(trained), _words(trained), _examples(trained))
    return page(title, "".join(parts) + _facts(trained))


def _head(trained: Trained, title: str) -> str:
    from fledge.stages.report_style import heading, paragraph, percent, plural

    all_, data = trained.model.card.metrics["all"], trained.model.card.data
    lead = (
        f"Of a good and an ordinary page it has not seen, it puts the good one first in <b>{percent(all_['roc_area'])}</b> "
        f"of all cases, and its probabilities are off by <b>{100 * all_['calibration_error']:.1f} points</b> on average."
    )
    eyebrow = f"fledge quality · {plural(data['good']['used'], 'good page')}, {data['ordinary']['used']:,} ordinary"
    about = (
        f"Measured on {plural(all_['good'] + all_['ordinary'], 'held-out page')}, both sides weighted alike. Quality here "
        "is likeness to the good folder, no more: what is good but unlike it scores low."
    )
    return (
        f'<header><p class="eyebrow">{eyebrow}</p>{heading(title, "品質分類器可信嗎？", 1)}'
        f'<p class="lead aligned">{lead}</p>{paragraph([about], "text note")}</header>\n'
    )


def _charts(trained: Trained) -> str:
    from fledge.stages.report_style import figure, section

    all_ = trained.model.card.metrics["all"]
    reliable = figure(
        "Said and true",
        "說的與實際的",
        reliability_chart(all_["reliability"], all_["reliability_uncalibrated"]),
        "Pages in bins by the probability they were given: on the diagonal, 70% means 70%. Bars are one standard error; "
        f"the mean distance is <b>{all_['calibration_error']:.3f}</b>, before calibration "
        f"{all_['error_uncalibrated']:.3f}.",
    )
    spread = figure(
        "Scores of both sides",
        "兩邊的分數",
        score_chart(trained.p, trained.good),
        "Share of each side's pages by score. Where the sides overlap, no limit is right for all.",
    )
    return section("Can it be believed?", "可信度", f'<div class="grid">{reliable}{spread}</div>')


def reliability_chart(bins: Sequence[dict[str, Any]], before: Sequence[dict[str, Any]]) -> str:
    """Said against true probability, as SVG."""
    from fledge.stages.charts import COLOURS, draw

    def paint(drawing: Any) -> None:
        ax = drawing.subplots()
        ax.plot((0, 1), (0, 1), color=COLOURS["dim"], linewidth=0.9, linestyle=(0, (2, 2)))
        ax.plot(
            [b["said"] for b in before], [b["was"] for b in before], color=COLOURS["control"], marker="s", markersize=3.5,
            linestyle=(0, (1.5, 1.5)), label="before calibration",
        )  # fmt: skip
        ax.errorbar(
            [b["said"] for b in bins], [b["was"] for b in bins], yerr=[b["error"] for b in bins],
            color=COLOURS["aligned"], marker="o", markersize=4.5, label="calibrated",
        )  # fmt: skip
        ax.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="P(good) said", ylabel="good in fact")
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:.0%}")
        ax.legend(loc="upper left")

    return draw("reliability", "True share of good pages against the probability said.", paint)


def score_chart(p: np.ndarray, good: np.ndarray) -> str:
    """How the scores of both sides are spread, as SVG."""
    from fledge.stages.charts import COLOURS, draw

    def paint(drawing: Any) -> None:
        ax = drawing.subplots()
        edges = np.linspace(0, 1, 21)
        for name, side, colour, line in (
            ("good", good, COLOURS["aligned"], "-"),
            ("ordinary", ~good, COLOURS["base"], (0, (5, 1.5))),
        ):
            share = np.histogram(p[side], edges)[0] / max(1, side.sum())
            ax.stairs(share, edges, color=colour, linestyle=line, linewidth=1.7, label=name)
        ax.set(xlim=(0, 1), xlabel="P(good)", ylabel="share of the pages")
        ax.set_ylim(bottom=0)
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_formatter(lambda value, _: f"{value:.0%}")
        ax.legend(loc="upper center")

    return draw("scores", "Share of the good and of the ordinary pages by score.", paint)


def _tables(trained: Trained) -> str:
    from fledge.stages.report_style import number, paragraph, percent, section, shown, table, whole

    metrics = trained.model.card.metrics
    rows = [
        [
            shown(name, 20), whole(row["good"]), whole(row["ordinary"]), number(row["roc_area"], 3),
            percent(row["accuracy"]), number(row["calibration_error"], 3), number(row["length_area"], 2),
        ]
        for name, row in {"all": metrics["all"], **metrics["languages"]}.items()
    ]  # fmt: skip
    head = ("", "good", "ordinary", "ROC area", "accuracy", "calibration error", "ROC area of length")
    by_language = section(
        "By language",
        "各語言",
        table(head, rows),
        paragraph(["A ROC area of length far from 0.50 says that the two sides differ in length too."], "note"),
    )
    limits = [[f"{row['limit']:.2f}", percent(row["good"]), percent(row["ordinary"])] for row in metrics["limits"]]
    top = metrics["top_tenth"]
    limits.append([f"{top['limit']:.3f} (the best tenth)", percent(top["good"]), "10%"])
    return by_language + section(
        "What a limit keeps", "門檻留下什麼", table(("quality at least", "good kept", "ordinary kept"), limits)
    )


def telling(trained: Trained) -> dict[str, list[tuple[str, float]]]:
    """The words and pairs that speak most for "good" and for "ordinary" on held-out pages, with their mean effect."""
    effect: dict[str, float] = {}
    seen: dict[str, int] = {}
    read = 0
    for side in (trained.good, ~trained.good):
        for head in trained.held_out.head[np.flatnonzero(side)[:_READ]]:
            named = features_of(head)
            read += 1
            for bucket, name in named.items():
                effect[name] = effect.get(name, 0.0) + float(trained.model.weights[bucket]) / np.sqrt(len(named))
                seen[name] = seen.get(name, 0) + 1
    ranked = sorted((total / read, name) for name, total in effect.items() if seen[name] >= _LEAST_PAGES)
    return {
        "good": [(name, value) for value, name in reversed(ranked[-_NAMED:]) if value > 0],
        "ordinary": [(name, value) for value, name in ranked[:_NAMED] if value < 0],
    }


def _words(trained: Trained) -> str:
    from fledge.stages.report_style import isolated, paragraph, section

    found = telling(trained)
    lines = [
        f'<p class="text"><b>{name}</b>: '
        + " · ".join(f"<code>{isolated(word, 40)}</code>" for word, _ in words)
        + "</p>"
        for name, words in found.items()
        if words
    ]
    note = (
        "Words and pairs of words that moved the scores of held-out pages most. Names, dates or the furniture of one site "
        "here mean that it learnt where pages come from, not how good they are."
    )
    return section("What it goes by", "依據", paragraph([note], "text"), *lines)


def _examples(trained: Trained) -> str:
    from fledge.stages.report_style import section

    order = np.argsort(trained.p, kind="stable")
    good, ordinary = order[trained.good[order]], order[~trained.good[order]]
    return "".join(
        section(english, chinese, *(_example(trained, int(page)) for page in pages))
        for english, chinese, pages in (
            ("Ordinary pages it likes best", "一般頁面中分數最高的", ordinary[::-1][:_EXAMPLES]),
            ("Ordinary pages it likes least", "一般頁面中分數最低的", ordinary[:_EXAMPLES]),
            ("Good pages it likes least", "好頁面中分數最低的", good[:_EXAMPLES]),
        )
    )


def _example(trained: Trained, page: int) -> str:
    from fledge.stages.report_style import isolated, whole

    out = trained.held_out
    about = (
        f"{isolated(out.source[page], 120)} · {isolated(out.language[page], 12)} · {whole(int(out.words[page]))} words"
    )
    said = re.sub(r"\s*\n\s*", "\n", out.head[page]).strip()
    return (
        f'<div class="ask"><header><p class="q">{trained.p[page]:.3f}</p><p class="meta">{about}</p></header>'
        f'<div class="cell control"><p class="said">{isolated(said, 400)}</p></div></div>'
    )


def _facts(trained: Trained) -> str:
    from fledge.stages.report_style import isolated, section, table, whole

    card = trained.model.card
    rows = [["classifier", f"<code>{trained.model.id[:16]}</code>"]]
    for side in ("good", "ordinary"):
        facts = card.data[side]
        paths = ", ".join(isolated(path, 200) for path in facts.get("paths", ()))
        rows.append([side, f"{paths} {whole(facts['used'])} of {whole(facts['seen'])} pages"])
    rows.append(["on both sides", f"{whole(card.data['on_both_sides'])} pages, left out"])
    rows.append(["held out by", isolated(card.data["settings"]["held_out_by"])])
    fit = card.fit
    rows.append(
        [
            "method",
            f"logistic regression on hashed words and pairs of words (as fastText, Joulin et al. 2016), AdaGrad, "
            f"{fit.epochs} epochs, learning rate {fit.lr:g}, seed {fit.seed}",
        ]
    )
    return section("How it was made", "怎麼做的", table([], rows, kind="facts"))
