"""The page of `labs.rephrasing`: facts and bits against tokens for real, rephrased and mixed text."""

from pathlib import Path
from typing import Any

from fledge.labs.page_parts import Total, again, checks, figures, head, mean, over_seeds, spread, values, write
from fledge.stages.panels import DASHES, MARKERS, Panel, panel_chart
from fledge.stages.report_style import dig, figure, heading, paragraph, percent, section, shown, table, whole

NAMES = {
    "raw": "raw",
    "repeated": "a quarter of raw, repeated",
    "wiki": "rephrased, wiki style",
    "qa": "rephrased, questions and answers",
    "mixed": "real and wiki style 1:1",
    "three": "real, wiki, questions 2:1:1",
}
_SHORT = {"repeated": "raw repeated", "wiki": "wiki", "qa": "Q/A", "mixed": "1:1", "three": "2:1:1"}
_COLOURS = {"raw": "base", "repeated": "control", "wiki": "sft", "qa": "reward", "mixed": "aligned", "three": "ink"}
_PANELS = (
    ("cloze", "facts completed", True),
    ("answers", "questions answered", True),
    ("clean_bits", "bits per byte, clean pages", False),
    ("noisy_bits", "bits per byte, noisy pages", False),
)


def rephrasing_page(out: Path, total: Total) -> Path:
    """OUT/report.html of `labs.rephrasing`; equal results give equal bytes, and what a result lacks leaves no gap."""
    claim = (
        "Claim: rephrased web text teaches as much with about a third of the tokens, best when half of the text stays "
        "real (WRAP, Maini et al. 2024)."
    )
    return write(out, "Rephrasing the web", (
        head(total, ("Rephrasing the web", "把網頁改寫一遍"), claim, _found(total)),
        section("Against tokens", "隨詞元數的變化", _words(total), _figure(total), _table(total)),
        section("How soon raw is caught up with", "多快追上原文", _shares(total)),
        section("The rephraser", "改寫者", _rephraser_words(), _styles(total), _example(total)),
        checks(total),
        again("rephrasing", total),
    ))  # fmt: skip


def _seeds(total: Total) -> list[dict[str, Any]]:
    return list(total.get("seeds") or [])


def _curves(total: Total, arm: str) -> list[list[dict[str, Any]]]:
    return [curve for seed in _seeds(total) if (curve := dig(seed, "arms", arm))]


def _ends(total: Total, arm: str, key: str) -> list[float]:
    return values(curve[-1].get(key) for curve in _curves(total, arm))


def _found(total: Total) -> str:
    facts = {arm: mean(_ends(total, arm, "cloze")) for arm in ("raw", "mixed")}
    shares = values((total.get("shares") or {}).get("mixed") or [])
    if None in facts.values():
        return ""
    reached = f"; it knows what raw knows at the end after {percent(mean(shares))} of the tokens" if shares else ""
    return (
        f"At equal tokens raw text completes {percent(facts['raw'])} of the facts, real and rephrased 1:1 "
        f"{percent(facts['mixed'])}{reached}."
    )


def _words(total: Total) -> str:
    words = [
        "Pages of facts as a careless site would show them: sentences in another order, words mistyped, three to seven of "
        "the site's phrases between the lines. The rephraser writes each page anew; every arm begins with the same "
        "weights and tokenizer and reads the same number of tokens. Each budget is a run of its own, whose learning "
        "rate ends where the budget does.",
        "Facts completed: sentences up to their value, finished greedily. Questions answered: “Question: … Answer:” without "
        "an example, of which raw text has none, so that raw cannot know what is asked of it. Bits per byte: pages held "
        "out, as they were before the noise and after it.",
        "A token of rephrased text costs what it takes to write it. With a language model that is much more than to train "
        "on it; these figures count training tokens only.",
    ]
    return "".join(paragraph([w], "text") for w in words) if _seeds(total) else ""


def rephrasing_chart(total: Total, name: str, size: tuple[float, float] = (4.9, 8.4), kind: str = "chart") -> str:
    """What each text teaches, against tokens, as SVG."""
    panels = []
    for key, title, share in _PANELS:
        lines = [
            over_seeds(_curves(total, arm), "tokens", "tokens", key, label=_SHORT.get(arm, arm), colour=_COLOURS[arm],
                       dash=DASHES[n % 5], marker=MARKERS[n % 5])
            for n, arm in enumerate(NAMES)
            if _curves(total, arm)
        ]  # fmt: skip
        panels.append(Panel(title, lines, percent=share, from_zero=share))
    alt = "Facts completed, questions answered, and bits per byte of clean and noisy pages, against tokens"
    return panel_chart(name, panels, alt, over="tokens", size=size, kind=kind)


def _figure(total: Total) -> str:
    sentence = "Marks are means over seeds, bands reach from the lowest to the highest seed."
    drawn = "".join(
        rephrasing_chart(total, f"rephrasing {kind}", size, f"chart {kind}")
        for kind, size in (("wide", (9.6, 7.6)), ("narrow", (4.9, 8.4)))
    )
    return figure("The same tokens of different text", "同樣的詞元數", drawn, sentence)


def _table(total: Total) -> str:
    rows = []
    for arm, name in NAMES.items():
        if _curves(total, arm):
            cells = [spread(_ends(total, arm, key), percent if share else _three) for key, _, share in _PANELS]
            rows.append([shown(name), figures(mean(_ends(total, arm, "epochs")), 1), *cells])
    top = ["Text", "Times read", "Facts", "Answers", "Bits, clean", "Bits, noisy"]
    note = "At the largest budget: means over seeds, with the lowest and the highest below."
    return table(top, rows, kind="scores") + f'<p class="note">{note}</p>' if rows else ""


def _three(value: float | None) -> str:
    return figures(value, 3)


def _shares(total: Total) -> str:
    shares = total.get("shares") or {}
    rows = []
    for arm, found in shares.items():
        cells = [percent(share) if share is not None else "never" for share in found]
        rows.append([shown(NAMES.get(arm, arm)), *cells])
    words = (
        "Tokens after which a text completes as many facts as raw does at the largest budget, as a share of that budget; "
        "straight lines between the budgets, from nothing at no tokens. The paper's figure is about a third."
    )
    top = ["Text", *(f"Seed {seed.get('seed')}" for seed in _seeds(total))]
    return paragraph([words], "text") + table(top, rows, kind="scores") if rows else ""


def _rephraser_words() -> str:
    words = (
        "It is made of rules: it knows the wordings of the world's statements, mends mistyped words that are no names, "
        "leaves out the site's phrases, and writes what it read in other wordings. It knows no fact, so what a model "
        "learns from its text is in the pages; a language model in its place would add its own knowledge, which is "
        "distillation. The checks of <code>fledge rephrase</code> look at every text."
    )
    return paragraph([words], "text")


def _styles(total: Total) -> str:
    rows = []
    styles = dict.fromkeys(style for seed in _seeds(total) for style in seed.get("rephrased") or {})
    for style in styles:
        told = [seed["rephrased"][style] for seed in _seeds(total) if style in (seed.get("rephrased") or {})]
        reasons: dict[str, int] = {}
        for one in told:
            for reason, count in one["rejected"].items():
                reasons[reason] = reasons.get(reason, 0) + count
        most = sorted(reasons.items(), key=lambda item: -item[1])[:3]
        rows.append([
            shown(style), whole(sum(t["passages"] for t in told)), percent(mean(t["sentences_read"] for t in told)),
            percent(sum(t["kept"] for t in told) / max(1, sum(t["passages"] for t in told))),
            shown("; ".join(f"{reason} ({count})" for reason, count in most), 200),
        ])  # fmt: skip
    top = ["Style", "Passages", "Sentences understood", "Pass the checks", "Most rejected for"]
    note = "easy and hard are written and checked for comparison; no arm is trained on them."
    return table(top, rows, kind="scores") + f'<p class="note">{note}</p>' if rows else ""


def _example(total: Total) -> str:
    told = dig(_seeds(total)[0], "rephrased") if _seeds(total) else None
    if not told:
        return ""
    first = next(iter(told.values()))["example"]["passage"]
    cells = [("a noisy page", first)] + [(style, one["example"]["written"]) for style, one in told.items()]
    blocks = "".join(
        f'<div class="tile"><h4>{shown(name)}</h4><pre dir="auto">{shown(text, 900)}</pre></div>'
        for name, text in cells
    )
    return heading("One page in four styles", "一頁四種寫法", 3) + f'<div class="grid">{blocks}</div>'
