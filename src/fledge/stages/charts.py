"""The report's drawings as inline SVG: curves by matplotlib, the picture of the stages by hand.

Colours are the page's CSS variables and text is text, so one drawing serves light, dark and paper. Equal input gives
equal bytes. No CJK inside: a reader's fonts may lack it at these sizes.
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

Rows = Sequence[dict[str, Any]]  # of a stage's metrics.jsonl
Point = tuple[float, float]

_GROUPS = 140  # points a curve is thinned to; more cannot be seen at this width
_FEW_GROUPS = 48  # the same for figures of a handful of pairs a step, which jump
SIZE = (4.9, 3.1)  # inches of 72 units: text of 9 units is legible on a phone and on a page
# matplotlib wants real colours; each stands for a variable of the style sheet and is put back in _inline
COLOURS = {
    "ink": "#010101", "dim": "#020202", "line": "#030303", "base": "#040404", "sft": "#050505",
    "aligned": "#060606", "control": "#070707", "reward": "#080808", "card": "#090909",
}  # fmt: skip
_STYLE = {  # (line, marker): models are told apart without colour
    "base": ("-", "o"), "sft": ("-", "o"), "aligned": ((0, (5, 1.5)), "^"), "control": ((0, (1.5, 1.5)), "s"), "reward": ("-", "D"),
}  # fmt: skip
NAMES = {
    "base": "base", "sft": "SFT", "aligned": "aligned (DPO)", "control": "SFT from scratch", "reward": "reward model",
}  # fmt: skip


def points(rows: Rows, key: str, *, over: str = "tokens") -> list[Point]:
    """(x, value) of each row that has a finite value; x counts the tokens of all rows so far, or is the step."""
    found, read = [], 0
    for row in rows:
        read += row.get("tokens") or 0
        value = row.get(key)
        if isinstance(value, int | float) and math.isfinite(value):
            found.append((float(read if over == "tokens" else row["step"]), float(value)))
    return found


def thin(curve: Sequence[Point], most: int = _GROUPS) -> list[tuple[float, float, float, float]]:
    """At most `most` + 1 groups of neighbours as (mean x, mean, lowest, highest); the first point stays alone."""
    if not curve:
        return []
    size = max(1, math.ceil((len(curve) - 1) / most))
    groups = [curve[:1], *(curve[i : i + size] for i in range(1, len(curve), size))]
    return [
        (sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g), min(y for _, y in g), max(y for _, y in g))
        for g in groups
    ]


def wilson(share: float, questions: int) -> tuple[float, float]:
    """95% interval of a share of `questions` (Wilson 1927)."""
    z = 1.96
    scale = 1 + z * z / questions
    centre = (share + z * z / (2 * questions)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / questions + z * z / (4 * questions**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def _settings(name: str) -> dict[str, Any]:
    ink, dim, line = COLOURS["ink"], COLOURS["dim"], COLOURS["line"]
    return {
        "svg.fonttype": "none", "svg.hashsalt": f"fledge {name}", "font.size": 9, "text.color": ink,
        "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "axes.labelcolor": dim, "axes.edgecolor": line,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.grid.axis": "y", "grid.color": line,
        "grid.linewidth": 0.6, "axes.axisbelow": True, "axes.facecolor": "none", "figure.facecolor": "none",
        "xtick.color": line, "ytick.color": line, "xtick.labelcolor": dim, "ytick.labelcolor": dim, "xtick.major.size": 3,
        "ytick.major.size": 0, "legend.frameon": False, "legend.fontsize": 9, "legend.handlelength": 2.4,
        "axes.titlesize": 9, "text.parse_math": False, "lines.linewidth": 1.7, "path.simplify_threshold": 0.3,
    }  # fmt: skip


def draw(
    name: str, alt: str, paint: Callable[[Any], None], size: tuple[float, float] = SIZE, kind: str = "chart"
) -> str:
    """Let `paint` fill a figure and return it as SVG of class `kind`. A page draws each `name` once; `alt` is plain text."""
    import io
    import warnings

    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context(_settings(name)), warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "Glyph .* missing", UserWarning
        )  # the reader's fonts are used, not matplotlib's
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return _inline(file.getvalue().decode(), alt, kind)


def _inline(svg: str, alt: str, kind: str) -> str:
    """Leave out what belongs to a file of its own, and put the page's colours and fonts in."""
    svg = svg[svg.index("<svg") :]
    box = re.search(r'viewBox="([^"]+)"', svg).group(1)
    body = svg[svg.index(">") + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r' id="(?![mp][0-9a-f]{10}")[^"]*"', "", body)  # only what is referred to keeps its name
    body = re.sub(r"font: ((?:\w+ )?[\d.]+px) [^;\"]*", r"font: \1 var(--sans)", body)
    for variable, colour in COLOURS.items():
        body = body.replace(colour, f"var(--{variable})")
    body = re.sub(r"\n\s*\n+", "\n", body)
    return f'<svg class="{kind}" viewBox="{box}" role="img" aria-label="{alt}">{body.strip()}'


def count_axis(axis: Any, label: str, largest: float) -> None:
    """An axis from 0 to `largest` in ones, thousands or millions of `label`."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    scale, unit = (1e6, "million ") if largest >= 2e6 else (1e3, "thousand ") if largest >= 2e3 else (1, "")
    axis.axes.set_xlim(0, 1.03 * largest)
    axis.set_major_locator(MaxNLocator(5, integer=scale == 1))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / scale:g}"))
    axis.set_label_text(f"{unit}{label}" if scale > 1 else label)


def _curve(ax: Any, who: str, curve: Sequence[Point], label: str, style: Any = None, most: int = _GROUPS) -> None:
    """A line through the means of neighbouring steps over a band from their lowest to their highest."""
    groups = thin(curve, most)
    xs, means, lows, highs = (list(column) for column in zip(*groups, strict=True))
    colour, (line, marker) = COLOURS[who], _STYLE[who]
    if len(groups) > 1:
        ax.fill_between(xs, lows, highs, color=colour, alpha=0.16, linewidth=0)
    ax.plot(
        xs,
        means,
        color=colour,
        linestyle=style or line,
        marker=marker if len(groups) < 4 else "",
        markersize=4,
        label=label,
    )


def loss_chart(name: str, curves: dict[str, list[Point]], alt: str, guessing: int | None = None) -> str:
    """Loss in nats over tokens, one curve per model; `guessing` draws where a guess among that many tokens stands."""

    def paint(figure: Any) -> None:
        ax = figure.subplots()
        for who, curve in curves.items():
            _curve(ax, who, curve, NAMES[who])
        if guessing:
            level = math.log(guessing)
            ax.axhline(level, color=COLOURS["dim"], linewidth=0.9, linestyle=(0, (2, 2)))
            ax.annotate(f"blind guess among {guessing:,} tokens: {level:.2f}", (1, level), (0, 3), xycoords=("axes fraction", "data"),
                        textcoords="offset points", ha="right", color=COLOURS["dim"], fontsize=8)  # fmt: skip
        ax.set_ylim(
            bottom=0, top=1.12 * max(y for c in curves.values() for _, y in [*c, (0, math.log(guessing or 1))]) or 1
        )
        count_axis(ax.xaxis, "tokens", max(c[-1][0] for c in curves.values()))
        ax.set_ylabel("loss, nats per token")
        if len(curves) > 1:
            ax.legend(loc="upper right")

    return draw(name, alt, paint) if (curves := {k: c for k, c in curves.items() if c}) else ""


def step_chart(
    name: str, curves: dict[tuple[str, str], list[Point]], alt: str, label: str, *, chance: float | None = None
) -> str:
    """Any figure over training steps; curves are named (model, label). `chance` draws the level of a coin toss."""

    def paint(figure: Any) -> None:
        ax = figure.subplots()
        for i, ((who, text), curve) in enumerate(curves.items()):
            _curve(ax, who, curve, text, ("-", (0, (5, 1.5)))[i % 2], _FEW_GROUPS)
        if chance is not None:
            ax.axhline(chance, color=COLOURS["dim"], linewidth=0.9, linestyle=(0, (2, 2)))
            ax.annotate("coin toss", (1, chance), (0, 3), xycoords=("axes fraction", "data"), textcoords="offset points",
                        ha="right", color=COLOURS["dim"], fontsize=8)  # fmt: skip
            ax.set_ylim(0, 1.04)
            ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        else:
            ax.axhline(0, color=COLOURS["dim"], linewidth=0.7)
        count_axis(ax.xaxis, "training steps", max(c[-1][0] for c in curves.values()))
        ax.set_ylabel(label)
        ax.legend(loc="lower right" if chance is not None else "best")

    return draw(name, alt, paint) if (curves := {k: c for k, c in curves.items() if c}) else ""


def count_chart(buckets: Rows, alt: str) -> str:
    """Exact match by how often the text states a fact (log2 buckets), over the number of questions in each bucket."""
    buckets = [b for b in buckets if b.get("questions")]
    models = [m for m in ("sft", "aligned", "control") if any(b.get(m) is not None for b in buckets)]
    if not models:
        return ""

    def paint(figure: Any) -> None:
        top, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1.1))
        place = [math.log2(b["low"]) for b in buckets]
        for i, model in enumerate(models):
            known = [(x, b) for x, b in zip(place, buckets, strict=True) if b.get(model) is not None]
            xs = [x + 0.13 * (i - (len(models) - 1) / 2) for x, _ in known]
            shares = [b[model] for _, b in known]
            ends = [wilson(b[model], b["questions"]) for _, b in known]
            colour, (line, marker) = COLOURS[model], _STYLE[model]
            top.vlines(xs, [low for low, _ in ends], [high for _, high in ends], color=colour, linewidth=1, alpha=0.55)
            top.plot(xs, shares, color=colour, linestyle=line, marker=marker, markersize=4.5, label=NAMES[model],
                     markerfacecolor=colour if model == "sft" else COLOURS["card"])  # fmt: skip
        top.set_ylim(-0.04, 1.04)
        top.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        top.set_ylabel("exactly right")
        top.legend(loc="upper left")
        below.bar(place, [b["questions"] for b in buckets], width=0.62, color=COLOURS["dim"], alpha=0.45, linewidth=0)
        for x, b in zip(place, buckets, strict=True):
            below.annotate(f"{b['questions']}", (x, b["questions"]), (0, 2), textcoords="offset points", ha="center",
                           fontsize=7.5, color=COLOURS["dim"])  # fmt: skip
        below.set(ylim=(0, 1.45 * max(b["questions"] for b in buckets)), yticks=[], ylabel="questions")
        below.grid(False)
        below.set_xlim(place[0] - 0.6, place[-1] + 0.6)
        below.set_xticks(place, [bucket_name(b, short=True) for b in buckets])
        below.set_xlabel("times the text states the fact (first count of each bucket)")

    return draw("count", alt, paint, (4.9, 4.0))


def bucket_name(bucket: dict[str, Any], short: bool = False) -> str:
    """ "64–127", or "64" under a chart's axis."""
    low, high = bucket["low"], bucket["high"]
    if short:
        return f"{low // 1024}k" if low >= 1024 else f"{low}"
    return f"{low:,}" if low == high else f"{low:,}–{high:,}"


class Box(NamedTuple):
    """A model, or what it came from, in the picture of the stages."""

    kind: str  # "source", "base", "sft", "aligned", "control", "blank" or "reward"
    title: str
    headline: str = ""
    caption: str = ""
    fed: str = ""


_LINKS = (("source", "base"), ("base", "sft"), ("sft", "aligned"), ("blank", "control"), ("sft", "reward"))
_W, _H = 196, 122
_WIDE = {k: (c * 255, r * 168) for k, (c, r) in {
    "source": (0, 0), "base": (1, 0), "sft": (2, 0), "aligned": (3, 0), "blank": (1, 1), "control": (2, 1), "reward": (3, 1)
}.items()}  # fmt: skip
_NARROW = {k: (c * 218, r * 162) for k, (c, r) in {
    "source": (0, 0), "base": (0, 1), "sft": (0, 2), "aligned": (0, 3), "blank": (1, 1), "control": (1, 2), "reward": (1, 3)
}.items()}  # fmt: skip


def _box(box: Box, x: float, y: float) -> str:
    own = f"var(--{box.kind})" if box.kind in NAMES else "var(--dim)"
    dashed = ' stroke-dasharray="5 4"' if box.kind in ("blank", "control") else ""
    lines = [
        (26, 15, 650, "", box.title), (63, 27, 700, f' style="fill:{own}"', box.headline),
        (84, 12.5, 400, "", box.caption), (107, 12, 400, ' class="small"', box.fed),
    ]  # fmt: skip
    texts = "".join(
        f'<text x="{x + 14}" y="{y + dy}" font-size="{size}" font-weight="{weight}"{extra}>{text}</text>'
        for dy, size, weight, extra, text in lines if text
    )  # fmt: skip
    frame = f'<rect x="{x}" y="{y}" width="{_W}" height="{_H}" rx="10" style="fill:var(--card);stroke:{own}" stroke-width="1.6"{dashed}/>'
    return frame + texts


def _link(start: tuple[float, float], end: tuple[float, float], dashed: bool) -> str:
    """An arrow between facing sides; a box below and to the right is entered from the left by an elbow."""
    (x0, y0), (x1, y1) = start, end
    if y0 == y1:
        path, tip = f"M{x0 + _W} {y0 + _H / 2}H{x1 - 9}", (x1, y1 + _H / 2, "right")
    elif x0 == x1:
        path, tip = f"M{x0 + _W / 2} {y0 + _H}V{y1 - 9}", (x1 + _W / 2, y1, "down")
    else:
        turn = x1 - (x1 - x0 - _W) / 2
        if turn - x0 - _W < 15:  # columns too close for an elbow: leave by the foot, enter by the head
            middle = y1 - (y1 - y0 - _H) / 2
            path, tip = f"M{x0 + _W - 22} {y0 + _H}V{middle}H{x1 + _W / 2}V{y1 - 9}", (x1 + _W / 2, y1, "down")
        else:
            path, tip = (
                f"M{x0 + _W - 22} {y0 + _H}V{y0 + _H + 16}H{turn}V{y1 + _H / 2}H{x1 - 9}",
                (x1, y1 + _H / 2, "right"),
            )
    x, y, way = tip
    head = (
        f"M{x - 9} {y - 5}L{x - 1} {y}L{x - 9} {y + 5}Z"
        if way == "right"
        else f"M{x - 5} {y - 9}L{x} {y - 1}L{x + 5} {y - 9}Z"
    )
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<path d="{path}" fill="none" style="stroke:var(--dim)" stroke-width="1.6"{dash}/>'
        f'<path d="{head}" style="fill:var(--dim)"/>'
    )


def stages_picture(boxes: Sequence[Box], alt: str) -> str:
    """The stages twice, side by side for a wide page and stacked for a narrow one; the style sheet shows one."""
    kinds = [b.kind for b in boxes]
    parts = []
    for name, places in (("wide", _WIDE), ("narrow", _NARROW)):
        width = max(places[k][0] for k in kinds) + _W + 2
        height = max(places[k][1] for k in kinds) + _H + 2
        links = "".join(_link(places[a], places[b], a == "blank") for a, b in _LINKS if a in kinds and b in kinds)
        drawn = "".join(_box(b, *places[b.kind]) for b in boxes)
        limit = f' style="max-width:{width}px"'
        parts.append(
            f'<svg class="{name}" viewBox="-1 -1 {width} {height}"{limit} role="img" aria-label="{alt}">{links}{drawn}</svg>'
        )
    return f'<div class="picture">{"".join(parts)}</div>'
