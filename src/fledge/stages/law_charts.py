"""Drawings of scaling laws: valleys of loss over size, their floors over compute, and repeated beside fresh text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fledge.probe.laws import IsoFlop, PowerLaw, Run
from fledge.stages.charts import COLOURS, draw
from fledge.stages.panels import MARKERS

_CYCLE = ("control", "sft", "base", "aligned", "reward")
_RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


class Repeats(NamedTuple):
    """One model on the same text again and again, and on as much fresh text."""

    tokens: Sequence[float]
    epochs: Sequence[int]
    repeated: Sequence[float]  # loss, nats per token
    fresh: Sequence[float]
    law: Sequence[float]  # what the fitted law gives for the repeated ones


def scientific(value: float) -> str:
    """3·10¹¹, and 10¹¹ where the factor is 1."""
    power = math.floor(math.log10(value) + 1e-9)
    factor, ten = f"{value / 10**power:.2g}", f"10{str(power).translate(_RAISED)}"
    return ten if factor == "1" else f"{factor}·{ten}"


def compact(value: float) -> str:
    """800, 30k, 1.2M, 70B."""
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * scale:
            return f"{value / scale:.3g}{letter}"
    return f"{value:.3g}"


def laws_chart(
    name: str, curves: Sequence[IsoFlop], line: PowerLaw | None, alt: str, *, held: Run | None = None,
    repeats: Repeats | None = None,
) -> str:  # fmt: skip
    """Up to three panels: each budget's parabola, the best sizes with the power law `line`, and the repeats.

    held: a larger run that was trained at the size the line gives. Nothing where there is no curve and no repeat.
    """
    panels = [(2.9, lambda ax: _valleys(ax, curves))] if curves else []
    if line is not None:
        panels.append((1.7, lambda ax: _floors(ax, curves, line, held)))
    if repeats is not None:
        panels.append((2.0, lambda ax: _repeats(ax, repeats)))
    if not panels:
        return ""

    def paint(figure: Any) -> None:
        axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=[height for height, _ in panels])[:, 0]
        for ax, (_, fill) in zip(axes, panels, strict=True):
            ax.set_xscale("log")
            fill(ax)

    return draw(name, alt, paint, (4.9, 0.3 + sum(height for height, _ in panels)))


def _log_ticks(axis: Any, low: float, high: float, write: Any) -> None:
    """A tick at 1, 2 and 5 times each power of ten; at 1 and 3 where those are too many, at 1 where they still are."""
    for digits in ((1, 2, 5), (1, 3), (1,)):
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [d * 10.0**p for p in powers for d in digits if low <= d * 10.0**p <= high]
        if len(ticks) <= 7:
            break
    axis.set_ticks(ticks, [write(t) for t in ticks])
    axis.set_ticks([], minor=True)


def _valleys(ax: Any, curves: Sequence[IsoFlop]) -> None:
    for i, curve in enumerate(curves):
        colour, marker = COLOURS[_CYCLE[i % 5]], MARKERS[i % 5]
        counts = [r.parameters for r in curve.runs]
        x = np.geomspace(counts[0], counts[-1], 60)
        ax.plot(x, [curve.at(v) for v in x], color=colour, linewidth=1.3)
        ax.plot(counts, [r.loss for r in curve.runs], linestyle="", marker=marker, markersize=4, color=colour)
        ax.annotate(scientific(curve.flops), (counts[-1], curve.at(counts[-1])), (5, 0), textcoords="offset points",
                    va="center", color=colour)  # fmt: skip
    floors = [(c.parameters, c.loss) for c in curves if c.interior]
    if floors:
        ax.plot(*zip(*floors, strict=True), color=COLOURS["ink"], linewidth=0.9, linestyle=(0, (3, 2)), marker="*",
                markersize=8, label="lowest point", zorder=4)  # fmt: skip
        ax.legend(loc="upper right")
    counts = [r.parameters for c in curves for r in c.runs]
    ax.set_xlim(0.85 * min(counts), 2.2 * max(counts))  # room for the last label
    _log_ticks(ax.xaxis, *ax.get_xlim(), compact)
    ax.set_xlabel("parameters")
    ax.set_title("loss, nats per token, one curve a budget (FLOPs)", loc="left")


def _floors(ax: Any, curves: Sequence[IsoFlop], line: PowerLaw, held: Run | None) -> None:
    ax.set_yscale("log")
    known = [c for c in curves if math.isfinite(c.parameters)]
    low, high = min(c.flops for c in known), max([c.flops for c in known] + ([held.flops] if held else []))
    ax.plot([low, high], [line.at(low), line.at(high)], color=COLOURS["dim"], linewidth=1.1, linestyle=(0, (4, 2)))
    for i, curve in enumerate(curves):
        ax.plot(curve.flops, curve.parameters, linestyle="", marker=MARKERS[i % 5], color=COLOURS[_CYCLE[i % 5]])
    if held:
        ax.plot(held.flops, held.parameters, linestyle="", marker="o", markersize=7, markerfacecolor=COLOURS["card"],
                color=COLOURS["ink"])  # fmt: skip
        ax.annotate("held-out run", (held.flops, held.parameters), (-8, 5), textcoords="offset points", ha="right",
                    va="bottom")  # fmt: skip
    counts = [c.parameters for c in known] + ([held.parameters] if held else [])
    ax.set_xlim(0.7 * low, 1.4 * high)
    ax.set_ylim(0.6 * min(counts), (3.0 if held else 1.6) * max(counts))  # room for its label
    _log_ticks(ax.xaxis, *ax.get_xlim(), scientific)
    _log_ticks(ax.yaxis, *ax.get_ylim(), compact)
    ax.set_xlabel("compute, FLOPs")
    ax.set_title(f"best parameters: compute to the {line.exponent:.2f}", loc="left")


def _repeats(ax: Any, found: Repeats) -> None:
    x = list(found.tokens)
    ax.plot(x, found.fresh, color=COLOURS["aligned"], marker="o", markersize=4, label="fresh text")
    ax.plot(
        x,
        found.repeated,
        color=COLOURS["sft"],
        marker="^",
        markersize=4,
        linestyle=(0, (5, 1.5)),
        label="the same text",
    )
    ax.plot(x, found.law, color=COLOURS["dim"], linewidth=1.0, linestyle=(0, (1.5, 1.5)), label="law of repeats")
    ax.set_xlim(0.8 * x[0], 1.25 * x[-1])
    ax.set_xticks(x, [f"{e:g}" for e in found.epochs])
    ax.set_xticks([], minor=True)
    ax.set_xlabel(f"times {compact(x[0])} tokens")
    ax.set_title("loss, nats per token", loc="left")
    ax.legend(loc="upper right")
