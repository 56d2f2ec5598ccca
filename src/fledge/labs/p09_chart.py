"""The chart of P9: a dot for each arm with the paper's beside it, and what probes read off a biography from place to place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fledge.labs.verdict import Number
from fledge.stages.charts import COLOURS, draw


class Row(NamedTuple):
    """An arm's share of exact answers."""

    ours: Number
    paper: float | None


def chart(
    rows: Sequence[Row], probed: Mapping[str, Sequence[Sequence[float | None]]], attributes: Sequence[str]
) -> str:
    """The SVG. probed[title][place][attribute]: share read off before the value at that place; empty draws the dots alone."""

    def paint(figure: Any) -> None:
        if not probed:
            _dots(figure, rows)
            return
        above, below = figure.subfigures(2, 1, height_ratios=(1.5, 1))
        _dots(above, rows)
        below.suptitle("read off a biography by a probe, % right", color=COLOURS["dim"], fontsize=9)
        panels = below.subplots(1, len(probed), sharey=True)
        for ax, (title, shares) in zip(panels, probed.items(), strict=True):
            _triangle(ax, attributes, shares, title)

    told = ", ".join(f"{row.ours.label} {row.ours.mean:.0%}" for row in rows)
    alt = f"Exact answers about people whose questions were not taught: {told}"
    return draw("P9", alt, paint, (4.9, 5.6 if probed else 3.6))


def _dots(figure: Any, rows: Sequence[Row]) -> None:
    ax = figure.subplots()
    ax.grid(True, axis="x")
    shown: list[Any] = []
    for y, (number, paper) in enumerate(rows):
        low, high = number.interval()
        ax.plot([low, high], [y, y], color=COLOURS["aligned"], linewidth=2.4, alpha=0.45)
        ax.plot(number.by_seed, [y] * len(number.by_seed), "|", color=COLOURS["aligned"], markersize=8)
        handles = ax.plot([number.mean], [y], "o", color=COLOURS["aligned"], markersize=6.5)
        if paper is not None:
            handles += ax.plot([paper], [y], "D", markersize=6, markerfacecolor="none", color=COLOURS["base"])
            shown = handles
        ax.annotate(f"{number.mean:.0%}", (1.06, y), va="center", color=COLOURS["aligned"], annotation_clip=False)
    ax.set_yticks(range(len(rows)), [row.ours.label for row in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.set_xlim(-0.03, 1.03)
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    ax.grid(False, axis="y")
    ax.set_title("exact answers about people never asked about", loc="left", color=COLOURS["dim"])
    figure.legend(shown, ["here (ticks: seeds)", "paper"], loc="outside lower left", ncols=2)


def _triangle(ax: Any, names: Sequence[str], shares: Sequence[Sequence[float | None]], title: str) -> None:
    """Rows: where in the biography; columns: attribute read; stronger is more."""
    for place, row in enumerate(shares):
        for column, share in enumerate(row):
            if share is None:
                continue
            ax.bar(column, 0.94, 0.94, place - 0.47, color=COLOURS["aligned"], alpha=0.08 + 0.72 * share, linewidth=0)
            ax.annotate(
                f"{100 * share:.0f}", (column, place), ha="center", va="center", color=COLOURS["ink"], fontsize=8
            )
    ax.set_xlim(-0.5, len(names) - 0.5)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(names)), [f"before {name}" for name in names])
    ax.grid(False)
    ax.set_title(title, loc="left", color=COLOURS["dim"])
