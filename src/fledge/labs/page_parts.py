"""What the pages of all experiments share: the head with its verdict, checks, the command, means over seeds."""

import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fledge.core.checkpoint import write_atomically
from fledge.stages.charts import Point
from fledge.stages.panels import Line
from fledge.stages.report_style import (
    ABSENT,
    dig,
    heading,
    isolated,
    number,
    page,
    paragraph,
    plural,
    section,
    shown,
    table,
)

Total = Mapping[str, Any]  # what an experiment's result.json holds
PROGRAM = "fledge"  # before the verb in the command that makes a page again
_VERDICTS = {
    "REPRODUCED": ("重現", "aligned"),
    "PARTLY": ("部分重現", "base"),
    "NOT REPRODUCED": ("未能重現", "control"),
}


def values(found: Iterable[Any]) -> list[float]:
    """The finite numbers among them."""
    return [float(v) for v in found if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)]


def mean(found: Iterable[Any]) -> float | None:
    known = values(found)
    return sum(known) / len(known) if known else None


def over_seeds(curves: Sequence[Sequence[dict[str, Any]]], by: str, x: str, y: str, **look: Any) -> Line:
    """Mean of `y` over seeds at the mean of `x`, for each value of `by` that every seed has; the band spans them."""
    places: dict[float, list[Point]] = {}
    for curve in curves:
        for row in curve:
            if len(known := values((row.get(by), row.get(x), row.get(y)))) == 3:
                places.setdefault(known[0], []).append((known[1], known[2]))
    points, band = [], []
    for _, found in sorted(places.items()):
        if len(found) == len(curves):
            at = sum(p[0] for p in found) / len(found)
            points.append((at, sum(p[1] for p in found) / len(found)))
            band.append((at, min(p[1] for p in found), max(p[1] for p in found)))
    return Line(points=points, band=band if len(curves) > 1 else (), **look)


def figures(value: float | None, digits: int = 2) -> str:
    """`number` with a real minus sign."""
    return number(value, digits).replace("-", "−")


def formula(text: str, *after: str) -> str:
    """A formula on lines of its own, and what is said after it."""
    said = "".join(f'<p class="text" style="margin-top: 0.9rem">{words}</p>' for words in after)
    return f'<pre dir="ltr">{shown(text)}</pre>{said}'


def spread(found: Sequence[Any], write: Callable[[float | None], str] = figures) -> str:
    """The mean, with lowest and highest below where there are several."""
    known = values(found)
    if len(known) < 2:
        return write(mean(known))
    return f'{write(mean(known))}<br><small class="dim">{write(min(known))}–{write(max(known))}</small>'


def points_of(share: float) -> str:
    """+61, for a change of a share in percentage points."""
    return f"{100 * share:+.0f}".replace("-", "−")


def head(total: Total, title: tuple[str, str], claim: str, found: str) -> str:
    """Title, the claim with its source, and what came out; everything but options and seeds is HTML."""
    seeds = total.get("seeds") or []
    about = [plural(len(seeds), "seed")]
    about += [f"{word} {isolated(value, 80)}" for word in ("task", "parent") if (value := dig(total, "options", word))]
    verdict, checks = str(total.get("verdict") or ""), total.get("checks") or {}
    lead = ""
    if verdict:
        chinese, colour = _VERDICTS.get(verdict, ("", "control"))
        count = f": {sum(map(bool, checks.values()))} of {len(checks)} checks hold." if checks else "."
        told = f'<b>{shown(verdict, 40)}</b> <span class="zh" lang="zh-Hant">{chinese}</span>'
        lead = f'<p class="lead {colour}">{told}{count} {found}</p>'
    return (
        f'<header><p class="eyebrow">An experiment of fledge · {" · ".join(about)}</p>\n{heading(*title, 1)}\n{lead}'
        f'<p class="text note">{claim}</p></header>\n'
    )


def checks(total: Total) -> str:
    """Each check with yes or no, in words and by symbol."""
    rows = [
        ["✓ yes" if held else "<b>✗ no</b>", shown(name, 200)] for name, held in (total.get("checks") or {}).items()
    ]
    words = (
        "What the claim says, as the experiment's code tests it. Where one fails, the claim was not reproduced here to "
        "that extent."
    )
    return section("Checks", "檢驗", paragraph([words], "text") + table([], rows, kind="facts") if rows else "")


def again(verb: str, total: Total) -> str:
    """The command with every option, so that it means the same when defaults change."""
    options = total.get("options") or {}
    flags = [f"--{name.replace('_', '-')} {_written(value)}" for name, value in options.items() if value is not None]
    if not flags:
        return ""
    words = "The same options on the same machine give the same result; what the folder already holds is kept."
    return section(
        "Do it again",
        "再跑一次",
        f'<p class="text">{words}</p><pre dir="ltr">{shown(" ".join((PROGRAM, verb, *flags)), 2000)}</pre>',
    )


def _written(value: Any) -> str:
    """A value as the command line takes it: lists in TOML's brackets, in one shell word."""
    if isinstance(value, list):
        inner = ", ".join(f'"{item}"' if isinstance(item, str) else f"{item}" for item in value)
        return shlex.quote(f"[{inner}]")
    return shlex.quote(str(value).lower() if isinstance(value, bool) else str(value))


def write(out: Path, title: str, parts: Iterable[str]) -> Path:
    """OUT/report.html."""
    report = Path(out) / "report.html"
    words = f"{ABSENT} stands for what was not measured. A line is the mean over seeds; the band spans them."
    write_atomically(report, page(title, "".join(parts) + f"<footer>{words}</footer>\n"))
    return report
