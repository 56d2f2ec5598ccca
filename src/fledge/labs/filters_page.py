"""The page of `labs.filters`: what each step of curation kept, what it was worth at equal tokens, and the spikes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fledge.labs.page_parts import Total, again, checks, figures, head, mean, over_seeds, spread, values, write
from fledge.labs.spikes import ARMS as SPIKE_ARMS
from fledge.stages.charts import COLOURS, draw
from fledge.stages.panels import DASHES, MARKERS, Panel, panel_chart
from fledge.stages.report_style import dig, figure, heading, paragraph, percent, section, shown, table, whole

NAMES = {
    "raw": "raw",
    "rules": "+ rules",
    "duplicates": "+ duplicates out",
    "classifier": "+ classifier",
    "random": "random part of raw",
    "wrong": "wrong classifier",
}
_COLOURS = {"raw": "base", "rules": "sft", "duplicates": "sft", "classifier": "aligned"}
_SOURCES = {"facts": "facts", "web": "web", "grammar": "plain"}
_WIDE, _NARROW = (9.6, 3.0), (4.9, 5.0)  # inches


def filters_page(out: Path, total: Total) -> Path:
    """OUT/report.html of `labs.filters`; equal results give equal bytes, and what a result lacks leaves no gap."""
    claim = (
        "Claim: at equal compute a model learns more from curated text, and each step adds to it: rules, then "
        "duplicates, then a classifier (DCLM, Li et al. 2024, section 4)."
    )
    return write(out, "Clean against raw", (
        head(total, ("Clean against raw", "乾淨的文字與原始的文字"), claim, _found(total)),
        section("The same tokens, better text", "同樣多的詞元", _words(total), _ladder(total), _arms_table(total)),
        section("What each step removed", "每一步刪了什麼", _funnel_words(total), _funnel(total), _steps_table(total), _kinds_table(total)),
        section("Duplicates and the classifier, measured alone", "單獨測量", _alone(total)),
        section("A batch of noise", "一批雜訊", _spike_words(total), _spike_figure(total), _spike_table(total)),
        checks(total),
        again("filters", total),
    ))  # fmt: skip


def _seeds(total: Total) -> list[dict[str, Any]]:
    return list(total.get("seeds") or [])


def _by_seed(total: Total, *keys: str) -> list[float]:
    return values(dig(seed, *keys) for seed in _seeds(total))


def _found(total: Total) -> str:
    raw, best = (mean(_by_seed(total, "arms", arm, "bits_per_byte")) for arm in ("raw", "classifier"))
    facts = [mean(_by_seed(total, "arms", arm, "cloze")) for arm in ("raw", "classifier")]
    if raw is None or best is None or None in facts:
        return ""
    return (
        f"From raw to curated text bits per byte fall from {figures(raw, 3)} to {figures(best, 3)}, and facts completed "
        f"rise from {percent(facts[0])} to {percent(facts[1])}, with the same number of tokens."
    )


def _words(total: Total) -> str:
    options = total.get("options") or {}
    words = [
        f"A crawl of {whole(options.get('pages'))} pages of an invented world, {percent(options.get('junk'))} of them junk "
        f"of known kinds. {percent(options.get('bland'))} of the junk is made so that no rule of form can see it: forum "
        "talk that says nothing, and good pages with the words of each sentence in another order. Without such pages the "
        "rules would leave the classifier nothing to do. Steps see the text only.",
        f"Every model begins with the same weights and tokenizer and reads {shown(options.get('tokens'))} tokens; clean "
        "text is shorter and so is read several times. Measured are bits per byte of good pages that are in no arm, and "
        "facts of the world as sentences to complete, greedily; a guess is right in less than 3% of them.",
        "Two controls: a random part of the raw crawl as large as what the whole pipeline keeps, which tells better text "
        "from less text, and a classifier that was told that boilerplate is good, in the place of the right one.",
    ]
    return "".join(paragraph([w], "text") for w in words)


# --- at equal tokens ------------------------------------------------------------------------------------------------


def ladder_chart(total: Total, name: str, across: bool = False, kind: str = "chart") -> str:
    """Bits per byte and facts completed for each text, as SVG; side by side or one above the other."""
    rows = [arm for arm in NAMES if _by_seed(total, "arms", arm, "bits_per_byte")]
    if not rows:
        return ""
    keys = (("bits_per_byte", "bits per byte of unseen good pages"), ("cloze", "facts completed"))

    def paint(drawing: Any) -> None:
        axes = drawing.subplots(1, 2, sharey=True) if across else drawing.subplots(2, 1)
        for ax, (key, label) in zip(axes, keys, strict=True):
            for y, arm in enumerate(rows):
                found = _by_seed(total, "arms", arm, key)
                colour = COLOURS[_COLOURS.get(arm, "control")]
                middle = sum(found) / len(found)
                ax.plot(found, [y] * len(found), linestyle="", marker="|", markersize=9, color=colour)
                ax.plot(middle, y, linestyle="", marker="o" if arm in _COLOURS else "s", markersize=7, color=colour)
                told = f"{middle:.3f}" if key == "bits_per_byte" else f"{middle:.0%}"
                ax.annotate(told, (max(found), y), (8, 0), textcoords="offset points", va="center", color=colour)
            spread_of = [v for arm in rows for v in _by_seed(total, "arms", arm, key)]
            low, high = min(spread_of), max(spread_of)
            ax.set_xlim(low - 0.06 * (high - low or 1), high + 0.2 * (high - low or 1))
            if key == "cloze":
                ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
            ax.set_yticks(range(len(rows)), [NAMES[arm] for arm in rows])
            ax.set_ylim(len(rows) - 0.5, -0.5)
            ax.set_xlabel(label)
            ax.grid(False)

    alt = "Bits per byte and facts completed for each text"
    return draw(name, alt, paint, _WIDE if across else _NARROW, kind)


def _ladder(total: Total) -> str:
    drawn = ladder_chart(total, "ladder wide", True, "chart wide")
    drawn += ladder_chart(total, "ladder narrow", False, "chart narrow")
    if not drawn:
        return ""
    sentence = (
        "Large marks are means, ticks are seeds; squares are the controls. Fewer bits are better, more facts are."
    )
    return figure("What the same tokens teach", "同樣的詞元教會了什麼", drawn, sentence)


def _arms_table(total: Total) -> str:
    rows = []
    for arm, name in NAMES.items():
        held = {key: _by_seed(total, "arms", arm, key) for key in ("pages", "tokens", "bits_per_byte", "cloze")}
        if held["bits_per_byte"]:
            rows.append([
                shown(name), whole(mean(held["pages"])), whole(mean(held["tokens"])),
                spread(held["bits_per_byte"], lambda v: figures(v, 3)), spread(held["cloze"], percent),
                *(figures(mean(_by_seed(total, "arms", arm, "by_source", source)), 3) for source in _SOURCES),
            ])  # fmt: skip
    note = (
        "Means over seeds, with the lowest and the highest below. Tokens are those of the text, before it is repeated. "
        "Facts and web pages state or ask for facts; plain pages are those of which copies are made."
    )
    top = ["Text", "Pages", "Tokens", "Bits per byte", "Facts completed", *(f"Bits, {n}" for n in _SOURCES.values())]
    return table(top, rows, kind="scores") + f'<p class="note">{note}</p>' if rows else ""


# --- the funnel -----------------------------------------------------------------------------------------------------


def _funnel_words(total: Total) -> str:
    told = {key: mean(_by_seed(total, "curation", "duplicates", key)) for key in ("planted", "similar", "recall")}
    if None in told.values():
        return ""
    words = (
        "Precision: the share of what a step removed that is junk. Recall: the share of the junk it was shown that it "
        f"removed. Of the duplicates {percent(told['planted'])} are of a planted cluster, sometimes the original instead "
        f"of its copy, and {percent(told['similar'])} share half of their shingles with the page that stays: the others "
        "are pages of the world that say the same in the same words, which no label calls junk. Of the planted surplus "
        f"{percent(told['recall'])} went. False facts look like true ones, and no step finds them."
    )
    return paragraph([words], "text")


def _stages(total: Total) -> list[tuple[str, float, float]]:
    """(name, good pages, junk pages) after each step, means over seeds."""
    told = [seed.get("curation") or {} for seed in _seeds(total)]
    if not told:
        return []
    stages = [("raw", [t["raw"]["good"] for t in told], [t["raw"]["pages"] - t["raw"]["good"] for t in told])]
    for number, step in enumerate(told[0].get("steps") or []):
        rows = [t["steps"][number] for t in told]
        stages.append((step["step"], [r["good"] for r in rows], [r["pages"] - r["good"] for r in rows]))
    return [(name, mean(good) or 0.0, mean(junk) or 0.0) for name, good, junk in stages]


def _funnel(total: Total) -> str:
    stages = _stages(total)
    if not stages:
        return ""

    def paint(drawing: Any) -> None:
        ax = drawing.subplots()
        ys = range(len(stages))
        ax.barh(ys, [good for _, good, _ in stages], color=COLOURS["aligned"], label="good", height=0.62)
        left = [good for _, good, _ in stages]
        ax.barh(ys, [junk for *_, junk in stages], left=left, color=COLOURS["control"], label="junk", height=0.62)
        for y, (_, good, junk) in enumerate(stages):
            ax.annotate(f"{good:,.0f} + {junk:,.0f}", (good + junk, y), (6, 0), textcoords="offset points", va="center")
        ax.set_yticks(ys, [name.replace("_", " ") for name, *_ in stages])
        ax.set_ylim(len(stages) - 0.5, -0.5)
        ax.set_xlim(0, 1.25 * (stages[0][1] + stages[0][2]))
        ax.set_xlabel("pages")
        ax.grid(False)
        drawing.legend(loc="outside upper left", ncols=2, borderaxespad=0.2)

    alt = "Good and junk pages left after each step"
    size = 1.3 + 0.36 * len(stages)
    drawn = "".join(
        draw(f"funnel {kind}", alt, paint, (width, size), f"chart {kind}")
        for kind, width in (("wide", 9.6), ("narrow", 4.9))
    )
    return figure("Pages left after each step", "每一步之後剩下的頁", drawn, "Good pages, then junk: means over seeds.")


def _steps_table(total: Total) -> str:
    told = [seed["curation"]["steps"] for seed in _seeds(total) if seed.get("curation")]
    rows = []
    for number, step in enumerate(told[0] if told else []):
        held = [t[number] for t in told]
        rules = sorted(((r["removed"], r["rule"]) for r in step["rules"]), reverse=True)[:3]
        rows.append([
            shown(step["step"].replace("_", " ")), whole(mean(h["removed"] for h in held)),
            spread([h["precision"] for h in held], percent), spread([h["recall"] for h in held], percent),
            percent(mean(h["good_lost"] for h in held)), shown("; ".join(f"{rule} ({n})" for n, rule in rules), 200),
        ])  # fmt: skip
    top = ["Step", "Removed", "Precision", "Recall", "Good lost", "Most, of the first seed"]
    return table(top, rows, kind="scores") if rows else ""


def _kinds_table(total: Total) -> str:
    """Share of each kind of page that each step found, of those it was shown."""
    told = [seed["curation"]["steps"] for seed in _seeds(total) if seed.get("curation")]
    if not told:
        return ""
    kinds = sorted({kind for t in told for step in t for kind in step["removed_by_kind"]})
    rows = []
    for kind in kinds:
        cells = []
        for number in range(len(told[0])):
            pairs = [t[number]["removed_by_kind"].get(kind, [0, 0]) for t in told]
            removed, shown_to = sum(p[0] for p in pairs), sum(p[1] for p in pairs)
            cells.append(percent(removed / shown_to) if removed else "·" if shown_to else "")
        rows.append([shown(kind), *cells])
    note = "Share removed of the pages of a kind that came to the step, all seeds; a dot for none of them."
    return (
        heading("By kind of page", "各種頁", 3)
        + table(["Kind", *(shown(s["step"].replace("_", " ")) for s in told[0])], rows, kind="scores")
        + f'<p class="note">{note}</p>'
    )


def _alone(total: Total) -> str:
    told = [seed["curation"] for seed in _seeds(total) if seed.get("curation")]
    if not told:
        return ""
    rows = [
        [shown(f"planted pairs with Jaccard {band}"), whole(sum(t["pairs"][band]["pairs"] for t in told)),
         spread([t["pairs"][band]["found"] for t in told], percent)]
        for band in told[0]["pairs"]
    ]  # fmt: skip
    areas = [
        [
            name,
            whole(sum(t[key]["pages"] for t in told)),
            spread([t[key][which] for t in told], lambda v: figures(v, 3)),
        ]
        for name, key, which in (
            ("good against junk, copies and false facts apart", "roc_area", "tellable"),
            ("good against all junk", "roc_area", "all"),
            ("wrong classifier, copies and false facts apart", "roc_area_wrong", "tellable"),
        )
    ]
    words = (
        "MinHash is asked about pairs of a page and its planted copy. The classifier learns from good pages that are not "
        "in the crawl and from the crawl's own pages, junk and good alike, of three quarters of its hosts; the area under "
        "its ROC curve is of the other hosts. Its good pages are of the same world as those that the models are measured "
        "on, though never the same pages: a filter trained on the style of the test flatters itself."
    )
    return (
        paragraph([words], "text")
        + table(["MinHash", "Pairs", "Found"], rows, kind="scores")
        + table(["ROC area", "Pages", "Area"], areas, kind="scores")
    )


# --- spikes ---------------------------------------------------------------------------------------------------------


def _spike_words(total: Total) -> str:
    told = total.get("spikes")
    if not told:
        return ""
    words = [
        "Exploratory, and no part of the verdict: AdamW at twice the usual learning rate without clipping and without "
        "skipping bad steps; two batches are half rows of a page of thousands of m. The same run again with those pages "
        "kept out by the rules, and again with weight 0 on what repeats.",
        shown(told.get("said"), 600) + ".",
    ]
    return "".join(paragraph([w], "text") for w in words)


def _spike_figure(total: Total) -> str:
    lines = []
    for number, arm in enumerate(SPIKE_ARMS):
        curves = [c for seed in _seeds(total) if (c := dig(seed, "spikes", "arms", arm, "curve"))]
        look = {"label": arm, "colour": ("base", "sft", "aligned")[number]}
        if curves:
            lines.append(
                over_seeds(curves, "step", "step", "loss", **look, dash=DASHES[number], marker=MARKERS[number])
            )
    at = dig(_seeds(total)[0], "spikes", "at") if _seeds(total) else None
    alt = "Loss on clean pages around two bad batches"
    panels = [Panel("loss on clean pages, nats per token", lines, height=1.6)]
    marks = [(float(step), "noise") for step in at or []]
    drawn = "".join(
        panel_chart(f"spikes {kind}", panels, alt, over="step", marks=marks, size=size, kind=f"chart {kind}")
        for kind, size in (("wide", (9.6, 3.6)), ("narrow", (4.9, 3.8)))
    )
    return figure("Before and after a bad batch", "壞批次前後", drawn, "Means over seeds; the band spans them.")


def _spike_table(total: Total) -> str:
    told: dict[str, Any] = total.get("spikes") or {}
    rows: list[Sequence[str]] = []
    for arm in told.get("norm_ratio") or {}:
        rises = (spread(told[key][arm], lambda v: figures(v, 3)) for key in ("bump", "excess"))
        rows.append([shown(arm), spread(told["norm_ratio"][arm], lambda v: figures(v, 1)), *rises])
    held = [["✓ yes" if ok else "<b>✗ no</b>", shown(name, 200)] for name, ok in (told.get("checks") or {}).items()]
    top = ["Noise", "Gradient norm, in usual ones", "Rise of the loss", "More than without noise"]
    return (table(top, rows, kind="scores") if rows else "") + (table([], held, kind="facts") if held else "")
