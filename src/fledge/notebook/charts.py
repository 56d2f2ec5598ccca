"""The report's charts as drawings of their own, for a notebook or a file."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fledge.stages.charts import loss_chart, points, step_chart
from fledge.stages.report_style import STYLE, dig

_WIDTH = 560  # pixels
_WHO = {"sft": "sft", "reward": "reward", "dpo": "aligned", "kto": "aligned", "reinforce": "aligned"}


class Chart:
    """A drawing; `svg` is a file of its own."""

    def __init__(self, svg: str):
        self.svg = svg

    def _repr_svg_(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return f"<chart, {len(self.svg):,} bytes of SVG; save(path) writes it>"

    def save(self, path: Path | str) -> Path:
        """Write the SVG and return its path."""
        Path(path).write_text(self.svg, "utf-8")
        return Path(path)


def standalone(drawing: str) -> Chart:
    """A drawing for a page, whose colours are the page's variables, with the light page's colours on white."""
    colours = dict(reversed(re.findall(r"--(\w+): (#[0-9a-f]{6})", STYLE)))  # of what stands twice the first: light
    svg = drawing.replace("var(--sans)", "sans-serif")
    svg = re.sub(r"var\(--(\w+)\)", lambda found: colours[found[1]], svg)
    box = [float(number) for number in re.search(r'viewBox="([^"]+)"', svg).group(1).split()]
    size = f'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" width="{_WIDTH}" height="{_WIDTH * box[3] / box[2]:.0f}"'
    svg = svg.replace("<svg ", f"<svg {size} ", 1)
    ground = f'<rect x="{box[0]:g}" y="{box[1]:g}" width="{box[2]:g}" height="{box[3]:g}" fill="{colours["card"]}"/>'
    return Chart(svg.replace(">", ">" + ground, 1))


def history_chart(rows: Sequence[dict[str, Any]], figures: Sequence[str], card: dict[str, Any], run: Path) -> Chart:
    """The loss over tokens, or each of `figures` over steps. Raises ValueError where the run has no such figures."""
    known = sorted({key for row in rows for key, value in row.items() if isinstance(value, float)})
    if not rows:
        raise ValueError(f"{run} has no metrics.jsonl: it was not trained here")
    for name in figures or ("loss",):
        if not points(rows, name):
            raise ValueError(f"{run} has no figure {name!r}: it has {', '.join(known)}")
    who = _WHO.get(card["stage"], "base")
    if figures:
        curves = {(who, name): points(rows, name, over="step") for name in figures}
        return standalone(step_chart("figures", curves, f"{', '.join(figures)} over steps", figures[0]))
    guessing = dig(card, "model", "vocab_size") if card["stage"] == "pretrain" else None
    alt = f"Loss of {run.name} over the tokens it was trained on"
    return standalone(loss_chart("loss", {who: points(rows, "loss")}, alt, guessing))
