"""OUT/report.html: every claim on a screen of its own: chart first, our numbers beside the paper's, what it means."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from fledge.core.config import build
from fledge.core.durable import write_atomically
from fledge.labs.catalogue import LABS, Entry
from fledge.labs.verdict import REPRODUCED, span, written
from fledge.stages.report_style import heading, page, plural, shown, table

_CHINESE = {"REPRODUCED": "重現", "PARTLY": "部分重現", "NOT REPRODUCED": "未能重現"}
_COLOUR = {"REPRODUCED": "aligned", "PARTLY": "base", "NOT REPRODUCED": "control"}
_STYLE = """<style>
.lab { margin-top: 4.5rem; min-height: 92vh; } .lab .paper { color: var(--dim); font-size: 0.9rem; }
.lab .claim { font-size: 1.13rem; max-width: 52rem; margin-bottom: 0.9rem; }
.lab .sides { display: grid; grid-template-columns: minmax(0, 1.5fr) minmax(0, 1fr); gap: 1.4rem; align-items: start; }
.lab figure { padding: 1rem; } .lab .scroll { margin-top: 0.4rem; } .lab td small { color: var(--dim); display: block; }
.lab .sides td { padding-block: 0.32rem; } .lab .sides td:nth-child(2) { white-space: nowrap; }
main { max-width: 76rem; }
@media screen and (min-width: 46rem) { .lab .sides figure svg { max-height: max(60vh, 24rem); } }
.verdict { display: inline-block; border: 1.5px solid var(--own); color: var(--own); border-radius: 99px; padding: 0 0.7em;
  font-size: 0.8rem; font-weight: 650; white-space: nowrap; }
.contents { columns: 2; column-gap: 2.5rem; list-style: none; margin-top: 1.6rem; } .contents li { break-inside: avoid; padding: 0.3rem 0; }
.contents a { color: inherit; } .contents a:not(:hover) { text-decoration: none; } .lab details { margin-top: 0.9rem; }
summary { cursor: pointer; color: var(--dim); font-size: 0.9rem; }
@media (max-width: 46rem) { .lab .sides { grid-template-columns: 1fr; } .contents { columns: 1; } .lab { min-height: 0; } }
@media print { .lab { break-before: page; min-height: 0; margin: 0; } }
</style>
"""


def write_gallery(out: Path, known: Mapping[str, dict[str, Any]]) -> Path:
    """OUT/report.html from the result of each lab; a lab without one is named with the command that runs it."""
    screens = [screen(name, LABS[name], told) for name, told in known.items()]
    missing = [name for name in LABS if name not in known]
    body = _STYLE + _head(known) + "".join(screens) + _missing(missing)
    path = Path(out) / "report.html"
    write_atomically(path, page("fledge: published claims, rerun", body))
    return path


def _head(known: Mapping[str, dict[str, Any]]) -> str:
    held = sum(told["verdict"] == REPRODUCED for told in known.values())
    rows = "".join(
        f'<li class="{_COLOUR[told["verdict"]]}"><a href="#{name}"><b>{name}</b> {shown(LABS[name].title)}</a> '
        f"{badge(told['verdict'])}</li>"
        for name, told in known.items()
    )
    return (
        f"<header><p class=eyebrow>The labs of fledge</p>{heading('Published claims, rerun', '已發表的主張，重做一次', 1)}"
        f'<p class="lead aligned">{held} of {plural(len(known), "claim")} reproduced as stated. Each was tested on models '
        "trained from nothing, with several seeds and a control; what did not come out is shown "
        f'like what did.</p><ul class="contents">{rows}</ul></header>\n'
    )


def badge(verdict: str) -> str:
    """The verdict in both languages."""
    return f'<span class="verdict {_COLOUR[verdict]}">{verdict} {_CHINESE[verdict]}</span>'


def screen(name: str, listed: Entry, told: dict[str, Any]) -> str:
    """One claim."""
    return (
        f'<section class="lab" id="{name}">{heading(f"{name} · {shown(listed.title)}", listed.chinese)}\n'
        f'<p class="claim">{shown(listed.claim)} <span class="paper">{shown(listed.paper)}</span> {badge(told["verdict"])}</p>\n'
        f'<div class="sides">{chart(listed, told)}\n<div>{numbers(told)}</div></div>\n{details(told)}</section>\n'
    )


def chart(listed: Entry, told: dict[str, Any]) -> str:
    """The chart, and below it what came out and what it means; no chart of what another version of the lab measured."""
    lab = listed.load()
    try:
        svg = lab.draw(build(lab.Setup, told["setup"]), told["seeds"])
    except (ValueError, KeyError) as error:
        again = f"<code>{shown(told['command'])} --out OTHER</code>"
        svg = f'<p class="note">Measured by another version of this lab ({shown(error)}). With the present one: {again}</p>'
    return f"<figure>{svg}<figcaption>{shown(told['said'], 1200)}</figcaption></figure>"


def numbers(told: dict[str, Any]) -> str:
    """Ours with intervals, the paper's beside them, and which conditions are not met."""
    paper = any(n["paper"] for n in told["numbers"])
    rows = []
    for n in told["numbers"]:
        between = span(n["low"], n["high"], n["unit"])
        cells = [shown(n["label"]), f"<b>{written(n['mean'], n['unit'])}</b><small>{between}</small>"]
        rows.append(cells + [shown(n["paper"] or "–")] * paper)
    reason = f'<p class="note">Not met: {shown(told["reason"], 900)}.</p>' if told["reason"] else ""
    return table(["", "Here", *["Paper"] * paper], rows) + reason


def details(told: dict[str, Any]) -> str:
    """Every condition, what was run and how to run it again."""
    rows = [
        [f"{'✓' if c['held'] else '<b>✗</b>'} {shown(c['says'])}", written(c["value"], c["unit"]), shown(c["rule"])]
        for c in told["checks"]
    ]
    about = (
        f"{plural(len(told['seeds']), 'seed')}{_where(told)}; 90% intervals by bootstrap; "
        f"code {told['code'] or 'of an earlier version'}. Again: "
    )
    return (
        f"<details><summary>Conditions and command</summary>{table(['Condition', 'Here', 'Must be'], rows)}"
        f'<p class="note">{about}<code>{shown(told["command"])}</code></p>'
        f"<pre>{shown(msgspec.json.format(msgspec.json.encode(told['setup'])).decode(), 3000)}</pre></details>"
    )


def took(told: dict[str, Any]) -> str:
    """Time, where it is known: the results of commands do not hold it. A core that others used, too, counts for less."""
    if not told["minutes"]:
        return ""
    predicted = f", predicted {told['minutes_predicted']:.1f}" if told["minutes_predicted"] else ""
    return f", {sum(told['minutes']):.1f} minutes ({sum(told['core_minutes']):.1f} of a core{predicted})"


def _where(told: dict[str, Any]) -> str:
    machine = told["machine"]
    return took(told) + (f" on {plural(machine['cores'], 'core')} ({machine['device']})" if machine else "")


def _missing(names: list[str]) -> str:
    if not names:
        return ""
    rows = [[f"{name} {shown(LABS[name].title)}", f"<code>fledge lab run {name}</code>"] for name in names]
    return f"<section>{heading('Not run yet', '尚未執行')}{table([], rows, kind='facts')}</section>\n"
