"""The labs' pages, one for each line of the catalogue, from results/labs/*.json when the site is built."""

import json
from inspect import cleandoc
from typing import Any

from site_parts import figures, sources

from fledge.labs import gallery
from fledge.labs.catalogue import LABS


def result(name: str) -> dict[str, Any] | None:
    """results/labs/NAME.json, or None where nobody has put it there yet."""
    path = figures.RESULTS / "labs" / f"{name}.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def pages() -> dict[str, str]:
    """Path in the site -> Markdown of the page of each lab."""
    return {f"labs/{name.lower()}.md": f"# {name} · {entry.title}\n\n{{{{ lab {name} }}}}\n" for name, entry in LABS.items()}


def overview() -> str:
    """All labs with claim, paper and verdict, as one HTML table."""
    rows = []
    for name, entry in LABS.items():
        told = result(name)
        verdict, count = "not run yet", ""
        if told:
            verdict, held = told["verdict"], [check["held"] for check in told["checks"]]
            count = f"<br>{sum(held)} of {len(held)} conditions"
        rows.append(
            f'<tr><td><a href="{name.lower()}.html">{name} · {entry.title}</a><br><span lang="zh-Hant">{entry.chinese}</span></td>'
            f"<td>{entry.claim}<br><small>{entry.paper}</small></td><td><strong>{verdict}</strong>{count}</td></tr>"
        )
    head = "<thead><tr><th>Lab</th><th>Claim</th><th>Verdict</th></tr></thead>"
    return f'<table class="verdicts">{head}<tbody>{"".join(rows)}</tbody></table>'


def parts(name: str) -> tuple[str, str, str]:
    """(Markdown above the chart, HTML of chart and figures, Markdown below) of a lab's page."""
    entry, told = LABS[name], result(name)
    head = f'*{entry.claim}*\n\n<span lang="zh-Hant">{entry.chinese}</span> · {entry.paper}\n\n'
    if told:
        head += f"**{told['verdict']}**\n\n"
        drawn = figures.lab(gallery.chart(entry, told) + gallery.numbers(told) + gallery.details(told))
    else:
        head += f'!!! note "Not run yet"\n\n    `fledge lab run {name}` measures it.\n\n'
        drawn = ""
    said = cleandoc(entry.load().__doc__ or "").partition("\n\n")[2]  # the claim has been told
    module = entry.load()
    own = [part for part in ("Setup", "measure", "judge") if getattr(module, part).__module__ == module.__name__]
    code = sources.source(f"labs/{entry.module}.py", *own)
    below = f"## How it is done\n\n{said}\n\n```fledge\nfledge lab run {name}\n```\n\n## Its code\n\n{code}\n"
    return head, drawn, below
