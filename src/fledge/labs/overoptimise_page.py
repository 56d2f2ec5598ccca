"""The page of `labs.overoptimise`: proxy and gold reward against KL, and answers that fooled the proxy."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fledge.labs.page_parts import Total, again, checks, figures, head, mean, over_seeds, spread, values, write
from fledge.stages.panels import DASHES, MARKERS, Line, Panel, panel_chart, plain
from fledge.stages.report_style import (
    ABSENT,
    dig,
    figure,
    heading,
    paragraph,
    section,
    shown,
    table,
    whole,
)

_COLOURS = ("base", "sft", "aligned", "reward", "control")
_KL = "KL to the SFT model, nats per answer (square-root scale)"


def overoptimise_page(out: Path, total: Total) -> Path:
    """OUT/report.html of `labs.overoptimise`; equal results give equal bytes, and what a result lacks leaves no gap."""
    claim = (
        "Claim: optimising a reward model first helps, then harms; more votes and a KL penalty put the harm off "
        "(Gao, Schulman and Hilton 2023, figures 1 and 3)."
    )
    return write(out, "When a reward model is taken too far", (
        head(total, ("When a reward model is taken too far", "過度最佳化獎勵模型"), claim, _found(total)),
        section("Proxy and gold against distance", "代理獎勵與真實分數", _words(), _figures(total)),
        section("Every arm in figures", "數字", _arms_table(total), _best_table(total)),
        section("Answers that fool the proxy", "騙過代理獎勵的回答", _hacked(total)),
        checks(total),
        again("overoptimise", total),
    ))  # fmt: skip


def _arms(total: Total, only: str | None = None) -> list[tuple[str, str]]:
    """(votes, price of KL) of the arms of policy gradients, named "VOTES PRICE"; on request those of one price."""
    names = dict.fromkeys(a for seed in total.get("seeds") or [] for a in seed.get("policy_gradient") or {})
    names |= dict.fromkeys(total.get("arms") or {})
    pairs = [name.split(" ", 1) for name in names if " " in name]
    return [(votes, price) for votes, price in pairs if only in (None, price)]


def _count(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0


def _votes(total: Total) -> list[str]:
    """Sizes of the proxies, smallest first."""
    best = (n for seed in total.get("seeds") or [] for n in seed.get("best_of_n") or {} if n != "gold")
    return sorted(dict.fromkeys([*best, *(v for v, _ in _arms(total))]), key=_count)


def _weakest(total: Total) -> str:
    sizes = [v for v, _ in _arms(total)]
    return min(sizes, key=_count) if sizes else ""


def _found(total: Total) -> str:
    a = (total.get("arms") or {}).get(f"{_weakest(total)} 0") or {}
    if len(values(a.get(k) for k in ("gold_start", "gold_peak", "gold_end", "kl_at_peak", "kl_end"))) < 5:
        return ""
    return (
        f"With {shown(_named(_weakest(total)))} the gold score goes from {figures(a['gold_start'])} to "
        f"{figures(a['gold_peak'])} at "
        f"{figures(a['kl_at_peak'], 1)} nats, and ends at {figures(a['gold_end'])} at {figures(a['kl_end'], 1)} nats."
    )


def _named(votes: str) -> str:
    return f"{whole(_count(votes))} votes" if _count(votes) else plain(votes)


def _words() -> str:
    words = [
        "The gold score is what people really want, here a rule that is known. The proxy is a reward model trained on "
        "votes that follow gold, some of them flipped. Only the proxy is optimised; gold is only watched. While an "
        "answer's "
        "distribution is near what the votes were about, a better proxy is a better answer; further out the proxy is "
        "guessing, and the policy finds exactly the places where it guesses too high.",
        "Distance is KL to the SFT model on a square-root scale, as in the paper: it gives room to the first steps, "
        "where the good "
        "is done. Gold and proxy have panels of their own, for their units differ: gold has its points, the proxy is "
        "in deviations "
        "of its score on the SFT model's answers. Rings mark where gold is highest; the thin line below tells where "
        "the proxy was then. "
        "Curves run in the order of training, and turn back where KL does.",
    ]
    return "".join(paragraph([w], "text") for w in words)


# --- figures --------------------------------------------------------------------------------------------------------


def _pair_of_panels(curves: dict[str, list[list[dict[str, Any]]]], by: str) -> list[Panel]:
    """Gold above, solid, with its peak; the proxy below, dashed. curves: of each name, one per seed."""
    gold, proxy = [], []
    for i, (name, seeds) in enumerate(curves.items()):
        look = {"label": name, "colour": _COLOURS[i % 5], "marker": MARKERS[i % 5]}
        gold.append(over_seeds(seeds, by, "kl", "gold", **look, peak=True))
        proxy.append(over_seeds(seeds, by, "kl", "proxy", **look, dash=DASHES[1]))
    return [Panel("gold score (solid)", gold, height=1.45), Panel("proxy score, deviations (dashed)", proxy)]


def _seeds(total: Total, *keys: str) -> list[list[dict[str, Any]]]:
    found = (dig(seed, *keys) for seed in total.get("seeds") or [])
    return [curve for curve in found if curve]


def _peaks(panels: Sequence[Panel]) -> str:
    """Where each gold curve is highest and how much of its gain is left at the end."""
    said = []
    for line in panels[0].lines:
        if line.points:
            x, y = max(line.points, key=lambda point: point[1])
            last = line.points[-1][1]
            fall = f", down to {figures(last)} at the end" if last < y else ", at the very end"
            said.append(f"{shown(line.label)}: <b>{figures(y)}</b> at {figures(x, 1)} nats{fall}")
    return f"Highest gold: {'; '.join(said)}."


def best_panels(total: Total) -> list[Panel]:
    """Gold and proxy of best-of-n against KL, by votes."""
    best = {_named(v): curves for v in _votes(total) if (curves := _seeds(total, "best_of_n", v))}
    return _pair_of_panels(best, "n")


def best_chart(panels: list[Panel], name: str) -> str:
    """The panels as SVG, KL in proportion to its root; nothing where there is nothing."""
    return panel_chart(name, panels, "Gold and proxy score of best-of-n against KL", over=_KL, root=True)


def _figures(total: Total) -> str:
    made, panels = [], best_panels(total)
    if svg := best_chart(panels, "best"):
        ceiling = mean(c[-1].get("gold") for c in _seeds(total, "best_of_n", "gold"))
        told = f" Choosing by gold itself would reach {figures(ceiling)}." if ceiling is not None else ""
        made.append(figure("Best of n answers", "多選一", svg, _peaks(panels) + told))
    free = {_named(v): _seeds(total, "policy_gradient", f"{v} 0") for v, _ in _arms(total, "0")}
    panels = _pair_of_panels(free, "step")
    if svg := panel_chart("free", panels, "Gold and proxy score of policy gradients against KL", over=_KL, root=True):
        made.append(figure("Policy gradient, KL free of charge", "策略梯度", svg, _peaks(panels)))
    weakest = _weakest(total)
    priced = {_price(p): _seeds(total, "policy_gradient", f"{weakest} {p}") for v, p in _arms(total) if v == weakest}
    if len(priced) > 1:
        panels = _pair_of_panels(priced, "step")
        title = f"Policy gradient, {_named(weakest)}, KL at a price"
        svg = panel_chart(
            "priced", panels, "Gold and proxy score against KL at several prices of KL", over=_KL, root=True
        )
        made.append(figure(shown(title), "KL 懲罰", svg, _peaks(panels)))
        made.append(_over_updates(priced))
    return f'<div class="grid">{"".join(made)}</div>' if made else ""


def _price(price: str) -> str:
    return "no penalty" if _count(price) == 0 else f"{plain(price)} per nat"


def _over_updates(priced: dict[str, list[list[dict[str, Any]]]]) -> str:
    """The same arms over time: gold above, KL below."""

    def lines(key: str, peak: bool, dash: Any) -> list[Line]:
        return [
            over_seeds(
                seeds,
                "step",
                "step",
                key,
                label=name,
                colour=_COLOURS[i % 5],
                marker=MARKERS[i % 5],
                peak=peak,
                dash=dash,
            )
            for i, (name, seeds) in enumerate(priced.items())
        ]

    panels = [
        Panel("gold score", lines("gold", True, "-"), height=1.45),
        Panel("KL, nats per answer", lines("kl", False, "-"), from_zero=True),
    ]
    svg = panel_chart("updates", panels, "Gold score and KL over updates at several prices of KL", over="updates")
    far = "; ".join(f"{shown(li.label)}: <b>{figures(li.points[-1][1], 1)}</b>" for li in panels[1].lines if li.points)
    return figure(
        "The same over time",
        "隨更新次數",
        svg,
        f"KL at the end, in nats: {far}. A penalty holds the model back; it does not repair the proxy.",
    )


# --- tables and samples ---------------------------------------------------------------------------------------------


def _arms_table(total: Total) -> str:
    rows = []
    for votes, price in _arms(total):
        a = (total.get("arms") or {}).get(f"{votes} {price}") or {}
        rows.append([
            f"{shown(_named(votes))}, {shown(_price(price))}",
            *(figures(a.get(k)) for k in ("gold_start", "gold_peak")),
            _by_seed(a, "gold_end", 2), _by_seed(a, "kl_at_peak", 1), _by_seed(a, "kl_end", 1),
            figures(a.get("proxy_start")), figures(a.get("proxy_end")),
        ])  # fmt: skip
    top = [
        "",
        "Gold at start",
        "Gold at peak",
        "Gold at end",
        "KL at peak",
        "KL at end",
        "Proxy at start",
        "Proxy at end",
    ]
    note = (
        "Policy gradient. Below a mean stand the lowest and the highest seed; each seed's peak is its own, so "
        "the mean over seeds may peak elsewhere."
    )
    return (
        heading("Policy gradient", "策略梯度", 3) + table(top, rows, kind="scores") + f'<p class="note">{note}</p>'
        if rows
        else ""
    )


def _by_seed(arm: dict[str, Any], key: str, digits: int) -> str:
    told, seeds = figures(arm.get(key), digits), values(arm.get(f"{key}_by_seed") or [])
    return (
        told
        if len(seeds) < 2
        else f'{told}<br><small class="dim">{figures(min(seeds), digits)}–{figures(max(seeds), digits)}</small>'
    )


def _best_table(total: Total) -> str:
    rows, largest = [], 0.0
    for votes in _votes(total):
        curves = _seeds(total, "best_of_n", votes)
        line = over_seeds(curves, "n", "n", "gold", label="")
        if not line.points:
            continue
        at, peak = max(line.points, key=lambda point: point[1])
        largest = max(largest, line.points[-1][0])
        ends = [c[-1].get("gold") for c in curves]
        kl = {row.get("n"): row.get("kl") for curve in curves for row in curve}
        rows.append([
            shown(_named(votes)), figures(line.points[0][1]), figures(peak), whole(at), figures(kl.get(int(at)), 1),
            spread(ends), figures(mean(c[-1].get("proxy") for c in curves)),
        ])  # fmt: skip
    top = ["", "Gold, n = 1", "Gold at peak", "n at peak", "KL at peak", f"Gold, n = {whole(largest)}", "Proxy there"]
    return (
        f'<div style="margin-top:1.6rem">{heading("Best of n", "多選一", 3)}{table(top, rows, kind="scores")}</div>'
        if rows
        else ""
    )


def _pair(found: Any) -> list[str]:
    """Before and after."""
    known = values(found or [])
    return [figures(v) for v in known] if len(known) == 2 else [ABSENT, ABSENT]


def _hacked(total: Total) -> str:
    seeds = total.get("seeds") or []
    samples = (seeds[0].get("hacked") or [])[:3] if seeds else []
    cards = []
    for sample in samples:
        cells = []
        for at, (key, name, kind) in enumerate((("before", "Before", "sft"), ("after", "After", "reward"))):
            said = str(sample.get(key) or "").strip()
            text = shown(said, 480) if said else '<span class="dim">(nothing: it ended at once)</span>'
            scores = [f"{word} {_pair(sample.get(word))[at]}" for word in ("gold", "proxy")]
            cells.append(f'<div class="cell {kind}"><h4>{name}<span class="mark">{", ".join(scores)}</span></h4>'
                         f'<p class="said" dir="auto">{text}</p></div>')  # fmt: skip
        meta = " · ".join(f"{word} {' → '.join(_pair(sample.get(word)))}" for word in ("gold", "proxy"))
        cards.append(
            f'<article class="ask"><header><p class="q" dir="auto">{shown(sample.get("prompt") or "")}</p>'
            f'<p class="meta">{meta}</p></header>\n<div class="three">{"".join(cells)}</div></article>'
        )
    if not cards:
        return ""
    arm = f"Of the first seed, {shown(_named(_weakest(total)))}, no penalty"
    words = f"{arm}: answers the proxy likes better than before and gold likes less."
    return paragraph([words], "text") + "".join(cards)
