"""Experiments in the pages: the labs' own report pages, drawn from results/*.json when the site is built."""

import json
import re
import tempfile
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from mkdocs.exceptions import PluginError

from fledge import cli
from fledge.stages.report_style import STYLE

RESULTS = Path(__file__).resolve().parents[2] / "results"
LABS = Path(__file__).resolve().parents[2] / "src" / "fledge" / "labs"

_REM = 0.76  # the site's rem is 20 to 24 pixels, the reports' 16


class Report(NamedTuple):
    """An experiment's page in parts; HTML."""

    title: str
    lead: str  # the verdict
    claim: str
    sections: dict[str, str]  # heading -> what stands under it


def labs() -> list[str]:
    """The verbs that are experiments of their own."""
    return [verb for verb, entry in cli.TABLE.items() if entry.module.startswith("labs.") and verb != "lab"]


@cache
def result(verb: str) -> dict[str, Any] | None:
    """results/VERB.json, or None where nobody has put it there yet."""
    path = RESULTS / f"{verb}.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


@cache
def report(verb: str) -> Report | None:
    """The page that the lab itself writes for this result; None without a result."""
    total = result(verb)
    if total is None:
        return None
    own = (LABS / f"{verb}_page.py").is_file()  # the pages of the smaller labs share a file
    module = import_module(f"fledge.labs.{verb}_page" if own else "fledge.labs.pages")
    with tempfile.TemporaryDirectory() as folder:
        page = getattr(module, f"{verb}_page")(Path(folder), total).read_text("utf-8")
    header = _cut(page, "<header>", "</header>")
    sections = {}
    for part in re.findall(r"<section>(.*?)</section>", page, re.S):
        heading, _, body = part.partition("</h2>")
        sections[re.sub(r"<span.*|<[^>]+>", "", heading, flags=re.S).strip()] = body.strip()
    title = re.sub(r"<span.*|<[^>]+>", "", _cut(header, "<h1>", "</h1>"), flags=re.S).strip()
    lead = re.search(r'<p class="lead[^"]*">.*?</p>', header, re.S)
    return Report(title, lead[0] if lead else "", _cut(header, '<p class="text note">', "</p>"), sections)


def _cut(text: str, start: str, end: str) -> str:
    return text.split(start, 1)[1].split(end, 1)[0] if start in text else ""


def lab(body: str) -> str:
    """HTML of a report inside a page, where its style sheet holds; its Chinese headings stay in the report."""
    english = re.sub(r'\s*<span class="zh"[^>]*>.*?</span>', "", body, flags=re.S)
    return f'<div class="lab">{english}</div>'


def absent(verb: str) -> str:
    """What a page says in place of a chart that has no figures yet."""
    return (
        '!!! note "Not measured yet"\n\n'
        f"    There is no `results/{verb}.json` in this copy. `fledge {verb} --out runs/{verb}` measures it; the chart is\n"
        f"    drawn here from the `result.json` it leaves, put at that place.\n"
    )


def section(verb: str, heading: str) -> str | None:
    """One section of a lab's report as HTML; None without a result. Raises PluginError for an unknown heading."""
    found = report(verb)
    if found is None:
        return None
    if heading not in found.sections:
        raise PluginError(
            f"the report of `fledge {verb}` has no section {heading!r}; it has {', '.join(found.sections)}"
        )
    return lab(found.sections[heading])


def overview() -> str:
    """All experiments with claim and verdict, as one HTML table."""
    rows = []
    for verb in labs():
        found, total = report(verb), result(verb) or {}
        held = total.get("checks") or {}
        verdict = str(total.get("verdict") or "not measured yet")
        count = f"{sum(map(bool, held.values()))} of {len(held)} checks" if held else ""
        claim = re.sub(r"^Claim:\s*", "", found.claim) if found else cli.TABLE[verb].help.partition(": ")[2]
        claim = claim[:1].upper() + claim[1:]
        rows.append(
            f'<tr><td><a href="{verb}.html">{found.title if found else verb}</a></td><td>{claim}</td>'
            f"<td><strong>{verdict}</strong><br>{count}</td></tr>"
        )
    head = "<thead><tr><th>Experiment</th><th>Claim</th><th>Verdict</th></tr></thead>"
    return f'<table class="verdicts">{head}<tbody>{"".join(rows)}</tbody></table>'


def style() -> str:
    """The reports' own style sheet, inside `.lab`, with the site's light and dark and its larger rem, as CSS."""
    dark = re.search(r"@media \(prefers-color-scheme: dark\) \{ :root \{(.*?)\} \}", STYLE, re.S)
    rules = STYLE.replace(dark[0], f'[data-md-color-scheme="slate"] & {{{dark[1]}}}').replace(":root", "&")
    rules = re.sub(r"(?<!width: )\b([\d.]+)rem", lambda size: f"{_REM * float(size[1]):.3g}rem", rules)
    return f".md-typeset .lab {{\n{rules}\n}}\n"
