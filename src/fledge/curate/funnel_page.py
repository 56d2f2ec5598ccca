"""The funnel as a chart and tables: OUT/funnel.html of curated text, and the first section of a journey's report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fledge.core.durable import write_atomically
from fledge.curate.funnel import Amount, Dropped, Funnel, Sample
from fledge.curate.plan import LANGUAGE_STEP
from fledge.curate.showing import Shown, open_funnel, rows

_LANGUAGES = 4  # told apart in the chart; the others together
_SAMPLES = 2  # of each rule
_SAMPLE_CHARACTERS = 140


def write_funnel_page(folder: Path) -> Path:
    """Draw FOLDER/funnel.html from its manifest; equal manifests give equal bytes."""
    from fledge.stages.report_style import heading, page, shown

    held = open_funnel(folder)
    funnel, title = held.funnel, "Where every page went"
    recipe = shown(held.facts.get("recipe", ""), 60)
    head = (
        f'<header><p class="eyebrow">fledge curate · recipe {recipe}</p>{heading(title, "每一頁去了哪裡", 1)}'
        f'<p class="lead base">{sentence(funnel)}</p></header>\n'
    )
    path = folder / "funnel.html"
    write_atomically(path, page(title, head + funnel_sections(held)))
    return path


def sentence(funnel: Funnel) -> str:
    """What came and what stays, as HTML."""
    from fledge.stages.report_style import large, percent, plural

    came, stays = funnel.came(), funnel.after(funnel.steps[-1])
    share = f" ({percent(stays.tokens / came.tokens)} of the text)" if came.tokens else ""
    return (
        f"Of <b>{plural(came.pages, 'page')}</b>, <b>{stays.pages:,}</b> stay: about <b>{large(stays.tokens)} tokens</b>"
        f"{share}. Every page that was dropped is counted below, with the step, the reason and the figure that decided."
    )


def funnel_sections(held: Shown) -> str:
    """Chart, steps by language, and every rule with samples."""
    from fledge.stages.report_style import section

    funnel = held.funnel
    return (
        section("What stays after each step", "每一步之後還剩多少", funnel_chart(funnel), _steps(funnel))
        + section("What each rule dropped", "每條規則丟掉了什麼", _rules(funnel))
        + section("Duplicates and masks", "重複與遮蔽", _counted(held))
    )  # fmt: skip


def _shown_languages(funnel: Funnel) -> list[str]:
    stays = {name: funnel.after(funnel.steps[-1], name).pages for name in funnel.languages()}
    return [name for name in funnel.languages() if stays[name]][:_LANGUAGES]


def _told_apart(funnel: Funnel) -> list[str]:
    """The steps from which on languages are told apart."""
    return funnel.steps[funnel.steps.index(LANGUAGE_STEP) :]


def funnel_chart(funnel: Funnel) -> str:
    """Bars of tokens after each step, by language from the step on that tells them apart; SVG in a figure."""
    from fledge.stages.charts import COLOURS, draw
    from fledge.stages.report_style import figure, large

    steps = [(step, after) for step, after, _ in rows(funnel)]
    languages, colours = _shown_languages(funnel), ("sft", "aligned", "base", "reward")
    known = _told_apart(funnel)

    def paint(drawing: Any) -> None:
        ax = drawing.subplots()
        widest = max(1, *(after.tokens for _, after in steps))
        labelled: set[str] = set()
        for place, (step, after) in enumerate(steps):
            left = 0
            told = {name: funnel.after(step, name).tokens for name in languages} if step in known else {}
            for name, colour in zip(languages, colours, strict=False):
                if width := told.get(name, 0):
                    label = None if name in labelled else name
                    labelled.add(name)
                    ax.barh(place, width, left=left, height=0.62, color=COLOURS[colour], linewidth=0, label=label)
                    left += width
            if after.tokens > left:
                label = None if "other" in labelled else "not told apart yet, or another language"
                labelled.add("other")
                ax.barh(place, after.tokens - left, left=left, height=0.62, color=COLOURS["dim"], alpha=0.45,
                        linewidth=0, label=label)  # fmt: skip
            share = f"  {large(after.tokens)}"
            ax.annotate(share, (after.tokens, place), (3, 0), textcoords="offset points", va="center", fontsize=8)
        ax.set_yticks(range(len(steps)), [step.replace("_", " ") for step, _ in steps])
        ax.invert_yaxis()
        ax.set_xlim(0, 1.16 * widest)
        ax.xaxis.set_major_formatter(lambda value, _: large(value))
        ax.grid(False)
        ax.set_xlabel("tokens (words and Chinese characters)")
        ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3)

    svg = draw("funnel", "Tokens that stay after each step, by language.", paint, (8.4, 0.9 + 0.34 * len(steps)))
    return figure("The funnel", "漏斗", svg, "From what was read at the top to what a model will read at the bottom.")


def _share(part: int, whole: int) -> str:
    from fledge.stages.report_style import ABSENT, percent

    return percent(part / whole) if whole else ABSENT


def _steps(funnel: Funnel) -> str:
    from fledge.stages.report_style import large, shown, table

    languages, came = _shown_languages(funnel), funnel.came()
    known = _told_apart(funnel)
    body = []
    for step, after, before in rows(funnel):
        told = [f"{funnel.after(step, n).pages:,}" if step in known else "" for n in languages]
        body.append([
            shown(step.replace("_", " "), 40), f"{after.pages:,}", large(after.characters), large(after.tokens),
            _share(after.tokens, came.tokens), _share(after.tokens, before.tokens), *told,
        ])  # fmt: skip
    head = ["After the step", "Pages", "Characters", "Tokens", "Of input", "Of the step before"]
    return table(head + [f"{shown(name, 12)} pages" for name in languages], body)


def _rules(funnel: Funnel) -> str:
    from fledge.stages.report_style import isolated, large, table

    sums: dict[tuple[str, str], Amount] = {}
    for dropped in funnel.dropped:
        sums[_rule(dropped)] = sums.get(_rule(dropped), Amount()) + dropped.amount
    body = []
    for key, amount in sorted(sums.items(), key=lambda e: (funnel.steps.index(e[0][0]), -e[1].pages, e[0])):
        samples = [s for s in funnel.samples if _rule(s) == key][:_SAMPLES]
        told = "".join(_told(sample) for sample in samples)
        body.append([
            isolated(key[0].replace("_", " "), 40), isolated(key[1], 80) + told, f"{amount.pages:,}",
            large(amount.tokens), _share(amount.pages, funnel.came().pages),
        ])  # fmt: skip
    return table(["Step", "Rule, with samples", "Pages", "Tokens", "Of all pages"], body, kind="reasons")


def _rule(counted: Dropped | Sample) -> tuple[str, str]:
    return counted.step, counted.reason


def _told(sample: Sample) -> str:
    from fledge.stages.report_style import isolated

    text = isolated(" ".join(sample.text.split())[:_SAMPLE_CHARACTERS], 200)
    return f'<small class="dim">{"" if sample.value is None else f"{sample.value:.4g} · "}{text}</small>'


def _counted(held: Shown) -> str:
    from fledge.stages.report_style import shown, table

    found = [[shown(name.replace("_", " "), 60), f"{n:,}"] for name, n in held.funnel.counted.items() if n]
    for name, value in (held.facts.get("duplicates") or {}).items():
        if isinstance(value, int | float):
            found.append([f"duplicates: {shown(name.replace('_', ' '), 60)}", f"{value:,}"])
    return table(["Counted", "Number"], found) if found else ""
