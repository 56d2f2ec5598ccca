"""Curves in stacked panels over one x axis, with bands, peaks and marks: what runs and experiments are drawn with.

The look is that of `charts`; here a curve is anything that has a name, whatever model it belongs to.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from fledge.stages.charts import COLOURS, SIZE, Point, count_axis, draw, thin

DASHES = ("-", (0, (5, 1.5)), (0, (1.2, 1.3)), (0, (6, 1.5, 1.2, 1.5)), (0, (9, 2)))
MARKERS = ("o", "^", "s", "D", "v")
_UNITS = 72  # of a drawing to the inch; text has 9, on phones 10
_LABEL_UNITS = 12.5  # from one line of text to the next
_NICE = (
    0.0,
    0.05,
    0.1,
    0.2,
    0.5,
    1,
    2,
    3,
    5,
    7,
    10,
    15,
    20,
    30,
    40,
    50,
    70,
    100,
    150,
    200,
    300,
    500,
    700,
    1000,
    2000,
    5000,
)


class Line(NamedTuple):
    """A curve; those of one panel differ in dash and marker too, so that colour is not needed."""

    label: str
    points: Sequence[Point]
    colour: str = "sft"  # a name of charts.COLOURS
    dash: Any = "-"
    marker: str = ""
    band: Sequence[tuple[float, float, float]] = ()  # (x, lowest, highest); where empty, of thinned neighbours
    peak: bool = False  # ring its highest point and let it down through the panels below


class Panel(NamedTuple):
    """One y axis."""

    title: str
    lines: Sequence[Line]
    percent: bool = False
    height: float = 1.0
    from_zero: bool = False


def plain(text: Any, limit: int = 28) -> str:
    """Foreign text for a drawing: what hides or reorders is written out, long text is cut."""
    told = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(text)[: 4 * limit])
    return told if len(told) <= limit else told[: limit - 1] + "…"


def ends(curve: Sequence[Point]) -> tuple[float, float]:
    """Means of the first and the last tenth: a single update is noisy."""
    size = max(1, len(curve) // 10)
    values = [y for _, y in curve]
    return sum(values[:size]) / size, sum(values[-size:]) / size


def spaced(wanted: Sequence[float], gap: float, highest: float = 1.0) -> list[float]:
    """Ascending places moved as little as one pass up and one down allow until neighbours are `gap` apart."""
    places: list[float] = []
    for want in wanted:
        places.append(max(want, places[-1] + gap) if places else want)
    limit = highest
    for i in reversed(range(len(places))):
        places[i] = min(places[i], limit)
        limit = places[i] - gap
    return places


def panel_chart(
    name: str,
    panels: Sequence[Panel],
    alt: str,
    *,
    over: str,
    root: bool = False,
    marks: Sequence[tuple[float, str]] = (),
    direct: bool = False,
    size: tuple[float, float] | None = None,
    kind: str = "chart",
) -> str:
    """The panels that have points, stacked; nothing when none has.

    root: x in proportion to its square root, ticks in its own units. marks: dotted verticals with a word at the top.
    direct: names and last values at the curves' ends instead of a legend.
    """
    panels = [p._replace(lines=[li for li in p.lines if li.points]) for p in panels]
    panels = [p for p in panels if p.lines]
    if not panels:
        return ""
    largest = max(x for p in panels for li in p.lines for x, _ in li.points) or 1.0

    def paint(figure: Any) -> None:
        axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False, height_ratios=[p.height for p in panels])[
            :, 0
        ]
        for ax, panel in zip(axes, panels, strict=True):
            _fill(ax, panel)
            for x, _ in marks:
                ax.axvline(x, color=COLOURS["dim"], linewidth=0.9, linestyle=(0, (1, 2)))
        _peaks(axes, panels)
        _root_axis(axes[-1], over, largest) if root else count_axis(axes[-1].xaxis, over, largest)
        _name_marks(axes[0], marks, largest)
        if direct:
            for ax, panel in zip(axes, panels, strict=True):
                _end_labels(figure, ax, panel)
        else:
            _legend(figure, axes, panels)

    tall = 1.15 + 1.55 * sum(p.height for p in panels)
    return draw(name, alt, paint, size or (SIZE[0], max(2.7, tall)), kind)


def _fill(ax: Any, panel: Panel) -> None:
    for line in panel.lines:
        groups = thin(line.points)
        xs, means = [g[0] for g in groups], [g[1] for g in groups]
        band = sorted(line.band) or [(x, low, high) for x, _, low, high in groups]
        if any(high > low for _, low, high in band):
            ax.fill_between(*zip(*band, strict=True), color=COLOURS[line.colour], alpha=0.13, linewidth=0)
        marker = line.marker or ("o" if len(groups) < 4 else "")
        ax.plot(
            xs,
            means,
            color=COLOURS[line.colour],
            linestyle=line.dash,
            marker=marker,
            label=line.label,
            markersize=3.6,
            markevery=max(1, len(groups) // 16),
            markeredgewidth=0,
        )
    if panel.percent:
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    if panel.from_zero:
        _from_zero(ax, panel)
    ax.locator_params(axis="y", nbins=max(4, round(4.5 * panel.height)))
    ax.set_title(panel.title, loc="left", color=COLOURS["dim"], pad=4)


def _from_zero(ax: Any, panel: Panel) -> None:
    values = [y for line in panel.lines for _, y in line.points] + [h for line in panel.lines for _, _, h in line.band]
    top = max(values)
    ax.set_ylim(0, min(1.04, max(0.05, 1.12 * top)) if panel.percent else 1.08 * top or 1.0)


def _peaks(axes: Sequence[Any], panels: Sequence[Panel]) -> None:
    """A ring where a curve is highest, and a thin line from there down through the panels below."""
    for at, panel in enumerate(panels):
        for line in (li for li in panel.lines if li.peak):
            x, y = max(line.points, key=lambda point: point[1])
            colour = COLOURS[line.colour]
            axes[at].plot(
                [x],
                [y],
                marker="o",
                markersize=9,
                markerfacecolor="none",
                markeredgecolor=colour,
                markeredgewidth=1.5,
                clip_on=False,
            )
            for ax in axes[at:]:
                # from the peak to the foot in its own panel, from head to foot in those below
                low, high = ax.get_ylim()
                ax.vlines(x, low, y if ax is axes[at] else high, color=colour, linewidth=0.8, linestyle=(0, (2, 2)))
                ax.set_ylim(low, high)


def _name_marks(ax: Any, marks: Sequence[tuple[float, str]], largest: float) -> None:
    """The word of each vertical at its head, lower where the one before is close."""
    level, before = 0, -largest
    for x, text in marks:
        level = level + 1 if x - before < 0.1 * largest else 0
        before = x
        ax.annotate(
            text,
            (x, 1),
            (3, -7 - 11 * level),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            va="center",
            color=COLOURS["ink"],
            fontsize=8,
            fontweight="bold",
            bbox={"facecolor": COLOURS["card"], "edgecolor": "none", "pad": 0.8},
        )


def _root_axis(ax: Any, label: str, largest: float) -> None:
    """Square-root scale from 0, with round ticks far enough apart to be read."""
    ax.set_xscale("function", functions=(lambda x: _roots(x), lambda x: _squares(x)))
    ax.set_xlim(0, 1.05 * largest)
    ticks: list[float] = []
    for tick in _NICE:
        if tick <= 1.04 * largest and (not ticks or math.sqrt(tick) - math.sqrt(ticks[-1]) >= math.sqrt(largest) / 8.5):
            ticks.append(tick)
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set_xlabel(label)


def _roots(x: Any) -> Any:
    import numpy as np

    return np.sign(x) * np.sqrt(np.abs(x))


def _squares(x: Any) -> Any:
    import numpy as np

    return np.sign(x) * np.square(x)


def _legend(figure: Any, axes: Sequence[Any], panels: Sequence[Panel]) -> None:
    """Above the panels, each name once; none for a lone unnamed curve."""
    handles = {}
    for ax, panel in zip(axes, panels, strict=True):
        for handle, line in zip(ax.get_lines(), panel.lines, strict=False):
            if line.label:
                handles.setdefault(line.label, handle)
    if handles:
        columns = 1 if max(map(len, handles)) > 18 else min(4, len(handles))
        figure.legend(
            list(handles.values()),
            list(handles),
            loc="outside upper left",
            ncols=columns,
            borderaxespad=0.2,
            handlelength=2.8,
            columnspacing=1.6,
        )


def _end_labels(figure: Any, ax: Any, panel: Panel) -> None:
    """Name and last value beside each curve's end, pushed apart where ends meet."""
    figure.draw_without_rendering()
    height = ax.get_window_extent().height / figure.dpi * _UNITS
    low, high = ax.get_ylim()
    lines = sorted(panel.lines, key=lambda line: line.points[-1][1])
    wanted = [(line.points[-1][1] - low) / (high - low) for line in lines]
    for line, place in zip(lines, spaced(wanted, _LABEL_UNITS / height), strict=True):
        x, y = line.points[-1]
        value = f"{y:.0%}" if panel.percent else f"{y:.2f}"
        ax.annotate(
            f"{line.label} {value}",
            (x, y),
            (1.035, place),
            textcoords="axes fraction",
            va="center",
            fontsize=9,
            color=COLOURS[line.colour],
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": COLOURS[line.colour],
                "linewidth": 0.7,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 3,
            },
        )
