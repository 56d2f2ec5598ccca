"""Drawings that only experiments need: ratios on a doubling scale, two scores against each other, shares as bars."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from fledge.stages.charts import COLOURS, Point, draw
from fledge.stages.panels import MARKERS

_COLOURS = ("sft", "base", "reward", "aligned", "control")
_LETTER_UNITS = (5.8, 6.6)  # mean width of a letter of 10 units, as phones show them, and of a bold one


class Arm(NamedTuple):
    """A point of the plane: its mean, and what each seed found."""

    label: str
    at: Point
    seeds: Sequence[Point] = ()
    colour: str = "sft"
    marker: str = "o"
    size: float = 6.0
    joined: bool = False  # to the joined arm before it


class Bar(NamedTuple):
    """A share as a bar: the mean, and what each seed found."""

    label: str
    seeds: Sequence[float]
    colour: str = "sft"


def share_bars(name: str, groups: Mapping[str, Sequence[Bar]], alt: str) -> str:
    """Bars from 0 to 100% under the heading of their group: the mean, written at the end, and a tick for each seed."""
    groups = {title: [b for b in bars if b.seeds] for title, bars in groups.items()}
    groups = {title: bars for title, bars in groups.items() if bars}
    if not groups:
        return ""

    def paint(figure: Any) -> None:
        ax, y, ticks = figure.subplots(), 0.0, []
        for title, bars in groups.items():
            ax.text(-0.01, y, title, color=COLOURS["dim"], va="center", ha="left", fontweight="bold")
            for bar in bars:
                y += 1
                mean, colour = sum(bar.seeds) / len(bar.seeds), COLOURS[bar.colour]
                ax.barh(y, mean, color=colour, height=0.62, alpha=0.8)
                if len(bar.seeds) > 1:
                    ax.plot(
                        bar.seeds, [y] * len(bar.seeds), linestyle="", marker="|", markersize=8, color=COLOURS["ink"]
                    )
                at = max([mean, *bar.seeds]), y
                ax.annotate(f"{mean:.0%}", at, (5, 0), textcoords="offset points", va="center", color=colour)
                ticks.append((y, bar.label))
            y += 1.35
        ax.set_yticks([at for at, _ in ticks], [label for _, label in ticks])
        ax.set_ylim(y - 0.7, -0.6)
        ax.set_xlim(0, 1.12)
        ax.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0%", "25%", "50%", "75%", "100%"])
        ax.grid(True, axis="x")
        ax.grid(False, axis="y")

    rows = sum(len(bars) for bars in groups.values())
    return draw(name, alt, paint, (4.9, 0.7 + 0.24 * rows + 0.32 * len(groups)))


def ratio_chart(
    name: str, found: Mapping[str, Mapping[str, Sequence[float]]], alt: str, label: str, goal: float
) -> str:
    """found[series][row] = ratios by seed; a large mark at the mean, small ones for seeds; 1 and `goal` are drawn."""
    series = {s: {r: v for r, v in rows.items() if v} for s, rows in found.items()}
    rows = list(dict.fromkeys(r for by_row in series.values() for r in by_row))
    if not rows:
        return ""
    every = [v for by_row in series.values() for values in by_row.values() for v in values]

    def paint(figure: Any) -> None:
        ax = figure.subplots()
        for level, dash in ((1.0, "-"), (goal, (0, (2, 2)))):
            ax.axvline(level, color=COLOURS["dim"], linewidth=0.9, linestyle=dash)
        handles = []
        for i, by_row in enumerate(series.values()):
            shift = 0.34 * (i - (len(series) - 1) / 2)
            ys = [rows.index(r) + shift for r in by_row]
            colour, marker = COLOURS[_COLOURS[i % 5]], MARKERS[i % 5]
            means = [sum(values) / len(values) for values in by_row.values()]
            handles += ax.plot(means, ys, linestyle="", marker=marker, markersize=7, color=colour)
            for y, mean, values in zip(ys, means, by_row.values(), strict=True):
                ax.plot(values, [y] * len(values), linestyle="", marker="|", markersize=9, color=colour)
                ax.annotate(
                    f"{mean:.2g}×",
                    (max([*values, mean]), y),
                    (7, 0),
                    textcoords="offset points",
                    va="center",
                    color=colour,
                )
        low, high = min([0.8, 0.9 * min(every)]), max([1.3 * goal, 1.45 * max(every)])
        ax.set_xscale("log", base=2)
        ax.set_xlim(low, high)
        powers = [2.0**p for p in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]
        ax.set_xticks(powers, [f"{p:g}×" for p in powers])
        ax.minorticks_off()
        ax.set_yticks(range(len(rows)), rows)
        ax.set_ylim(len(rows) - 0.45, -0.55)
        ax.set_xlabel(label)
        ax.grid(False)
        figure.legend(
            handles,
            list(series),
            loc="outside upper left",
            ncols=min(2, len(series)),
            borderaxespad=0.2,
            handlelength=1,
        )

    return draw(name, alt, paint, (4.9, 1.5 + 0.55 * len(rows)))


def plane_chart(
    name: str, arms: Sequence[Arm], alt: str, labels: tuple[str, str], best: str, size: tuple[float, float], kind: str
) -> str:
    """Shares against each other. Beyond the arm labelled `best` in both, the plane is shaded: none should be there."""
    arms = [a for a in arms if all(math.isfinite(v) for v in a.at)]
    if not arms:
        return ""

    def paint(figure: Any) -> None:
        ax = figure.subplots()
        ax.grid(True, axis="both")
        joined = [a for a in arms if a.joined]
        if len(joined) > 1:
            ax.plot(
                *zip(*(a.at for a in joined), strict=True), color=COLOURS[joined[0].colour], linewidth=1.4, zorder=2
            )
        for arm in arms:
            colour = COLOURS[arm.colour]
            if len(arm.seeds) > 1:
                ax.plot(
                    *zip(*arm.seeds, strict=True),
                    linestyle="",
                    marker=arm.marker,
                    markersize=2.8,
                    color=colour,
                    alpha=0.55,
                    markeredgewidth=0,
                    zorder=3,
                )
            ax.plot(
                *arm.at,
                linestyle="",
                marker=arm.marker,
                markersize=arm.size,
                color=colour,
                markeredgecolor=COLOURS["card"],
                markeredgewidth=0.8,
                zorder=4,
            )
        points = [p for a in arms for p in (a.at, *a.seeds)]
        for which, (setter, axis) in enumerate(((ax.set_xlim, ax.xaxis), (ax.set_ylim, ax.yaxis))):
            setter(*_limits([p[which] for p in points]))
            axis.set_major_formatter(lambda value, _: f"{value:.0%}")
        for arm in (a for a in arms if a.label == best):
            ax.fill_between(
                [arm.at[0], ax.get_xlim()[1]],
                arm.at[1],
                ax.get_ylim()[1],
                color=COLOURS[arm.colour],
                alpha=0.12,
                linewidth=0,
            )
        ax.set_xlabel(labels[0])
        ax.set_ylabel(labels[1])
        name_points(figure, ax, arms)

    return draw(name, alt, paint, size, kind)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    """Room around the values; at least 30 points of the axis, and little beyond none and all."""
    low, high = min(values), max(values)
    widen = max(0.0, 0.3 - (high - low)) / 2
    room = 0.08 * (high - low + 2 * widen)
    return max(-0.06, low - widen - room), min(1.07, high + widen + room)


def name_points(figure: Any, ax: Any, arms: Sequence[Arm]) -> None:
    """Each arm's name where it covers the fewest points and names: beside, above or below its point."""
    figure.draw_without_rendering()
    scale = 72 / figure.dpi
    frame = [v * scale for v in ax.get_window_extent().extents]

    def place(point: Point) -> Point:
        x, y = ax.transData.transform(point)
        return float(x) * scale, float(y) * scale

    marks = [(x - 3, y - 3, x + 3, y + 3) for a in arms for x, y in map(place, a.seeds)]
    marks += [(x - 5, y - 5, x + 5, y + 5) for x, y in (place(a.at) for a in arms)]
    line = [place(a.at) for a in arms if a.joined]
    for (x0, y0), (x1, y1) in zip(line, line[1:], strict=False):  # the line that joins them is covered last
        marks += [
            (x - 1, y - 1, x + 1, y + 1)
            for x, y in ((x0 + (x1 - x0) * t / 12, y0 + (y1 - y0) * t / 12) for t in range(1, 12))
        ]
    for arm in arms:
        (x, y), width = place(arm.at), _LETTER_UNITS[arm.size > 7] * len(arm.label)

        def box(offset: Point, x=x, y=y, width=width) -> tuple[float, float, float, float]:
            return x + offset[0], y + offset[1] - 6, x + offset[0] + width, y + offset[1] + 6

        side = 8 + arm.size / 3
        left, middle = -side - width, -width / 2
        choices = [
            (dx * far if dx != middle else dx, dy * far)
            for far in (1.0, 1.8, 3.0)
            for dx, dy in ((side, 0), (left, 0), (middle, 1.2 * side), (middle, -1.2 * side),
                           (side, side), (side, -side), (left, side), (left, -side))
        ]  # fmt: skip
        offset = min(choices, key=lambda c: (_covered(box(c), marks, frame), choices.index(c)))
        marks.append(box(offset))
        ax.annotate(
            arm.label,
            arm.at,
            offset,
            textcoords="offset points",
            va="center",
            color=COLOURS[arm.colour],
            zorder=5,
            fontweight="bold" if arm.size > 7 else "normal",
        )


def _covered(
    box: tuple[float, float, float, float], marks: Sequence[tuple[float, ...]], frame: Sequence[float]
) -> float:
    """How much of what is drawn a name would cover; leaving the frame is worse than anything."""
    left, low, right, high = box
    outside = left < frame[0] + 2 or right > frame[2] - 2 or low < frame[1] + 2 or high > frame[3] - 2
    areas = ((min(right, x1) - max(left, x0), min(high, y1) - max(low, y0)) for x0, y0, x1, y1 in marks)
    return 1e6 * outside + sum(w * h for w, h in areas if w > 0 and h > 0)
