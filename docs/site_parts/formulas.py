"""Formulas as SVG paths at build time, by matplotlib's mathtext: no script and no font is needed to read them."""

import html
import re
from functools import cache

from matplotlib.font_manager import FontProperties
from matplotlib.path import Path as Outline
from matplotlib.textpath import TextToPath
from mkdocs.exceptions import PluginError

_EM = 100  # units per em of TextToPath's outlines
_SETTING = FontProperties(size=_EM, math_fontfamily="cm")
_LETTERS = {Outline.MOVETO: "M", Outline.LINETO: "L", Outline.CURVE3: "Q", Outline.CURVE4: "C"}
_POINTS = {Outline.MOVETO: 1, Outline.LINETO: 1, Outline.CURVE3: 2, Outline.CURVE4: 3}
# What pymdownx.arithmatex (generic) leaves in a page
_INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.S)
_BLOCK = re.compile(r'<div class="arithmatex">\s*\\\[(.*?)\\\]\s*</div>', re.S)


def _drawn(outline: tuple) -> str:
    """Vertices and codes of a path as the `d` of an SVG path; y points down there."""
    vertices, codes = outline
    parts, i = [], 0
    while i < len(codes):
        if codes[i] == Outline.CLOSEPOLY:
            parts.append("Z")
            i += 1
            continue
        count = _POINTS[codes[i]]
        points = " ".join(f"{x:.1f} {-y:.1f}" for x, y in vertices[i : i + count])
        parts.append(_LETTERS[codes[i]] + points)
        i += count
    return "".join(parts)


@cache
def svg(tex: str) -> str:
    """One line of TeX as inline SVG in the text's colour and size; its source is what a screen reader reads.

    Raises PluginError for what mathtext does not know, so that no page shows a broken formula.
    """
    line = " ".join(tex.split())
    drawing = TextToPath()
    try:
        outline = drawing.get_text_path(_SETTING, f"${line}$", ismath=True)
        width, height, descent = drawing.get_text_width_height_descent(f"${line}$", _SETTING, True)
    except ValueError as error:
        raise PluginError(f"formula {line!r} cannot be drawn: {error}") from None
    pad = 4.0  # strokes reach a little over the box that mathtext tells
    box = f"{-pad} {descent - height - pad} {width + 2 * pad} {height + 2 * pad}"
    look = f"width:{(width + 2 * pad) / _EM:.3f}em;vertical-align:{-(descent + pad) / _EM:.3f}em"
    return (
        f'<svg class="formula" viewBox="{box}" style="{look}" role="img" aria-label="{html.escape(line)}">'
        f'<path d="{_drawn(outline)}"/></svg>'
    )


def replace(page: str) -> str:
    """A page's HTML with every formula drawn. A display of several lines is cut at `\\\\`, one drawing for each."""

    def block(found: re.Match) -> str:
        lines = [line for line in re.split(r"\\\\(?![a-zA-Z])", html.unescape(found[1])) if line.strip()]
        return f'<div class="formulas">{"".join(f"<div>{svg(line)}</div>" for line in lines)}</div>'

    return _INLINE.sub(lambda found: svg(html.unescape(found[1])), _BLOCK.sub(block, page))
