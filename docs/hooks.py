"""What mkdocs calls while it builds the site: parts that the code and the results know better than a page would.

Each lab gets a page (labs/p9.md) by itself. In a page, on a line of its own:
    {{ source core/objectives.py dpo }}       the function's source, from the file
    {{ curve dpo }}                           a chart computed by calling that code
    {{ section methods Learning curves }}     a section of an experiment's report, from results/methods.json
    {{ experiment methods }}                  the whole report
    {{ experiments }}  {{ commands }}         all experiments with their verdicts; all verbs with all options
    {{ labs }}  {{ lab P9 }}                  all labs with their verdicts; one lab, from results/labs/P9.json
    {{ families }}  {{ refused }}  {{ recipes }}  {{ functions }}
    {{ guide }}                               docs/guide.ipynb
and ```fledge blocks: commands, shown beside the same in Python. A part that cannot be made fails the build.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from site_parts import claims, commands, curves, figures, formulas, notebook, sources, tables

DOCS = Path(__file__).resolve().parent
_PART = re.compile(r"^\{\{ (\w+) ?(.*?) \}\}$", re.M)
_PLACE = re.compile(r'<div data-part="(\d+)"></div>')
_HAN = "\u3000-\u30ff\u4e00-\u9fff\uff00-\uffef"
_WRAPPED = re.compile(rf"(?<=[{_HAN}])\n *(?=[{_HAN}\[])")  # a browser would show a space there
_held: list[str] = []  # charts and reports: put in last, so that neither Markdown nor the search index reads them


def _keep(made: str) -> str:
    _held.append(made)
    return f'<div data-part="{len(_held) - 1}"></div>'


def _experiment(verb: str) -> str:
    found = figures.report(verb)
    if found is None:
        return figures.absent(verb)
    parts = [_keep(figures.lab(f'<p class="text">{found.claim}</p>{found.lead}'))]
    for heading, body in found.sections.items():
        parts += [f"## {heading}", _keep(figures.lab(body))]
    return "\n\n".join(parts)


def _section(words: str) -> str:
    verb, _, heading = words.partition(" ")
    made = figures.section(verb, heading)
    return figures.absent(verb) if made is None else _keep(made)


def _curve(name: str) -> str:
    if name not in curves.CURVES:
        raise PluginError(f"no curve {name!r}: {', '.join(curves.CURVES)}")
    return _keep(figures.lab(f'<figure class="curve">{curves.CURVES[name]()}</figure>'))


def _lab(name: str) -> str:
    if name not in claims.LABS:
        raise PluginError(f"no lab {name!r}: {', '.join(claims.LABS)}")
    above, drawn, below = claims.parts(name)
    return f"{above}{_keep(drawn)}\n\n{below}"


def _guide(_: str) -> str:
    path = DOCS / "guide.ipynb"
    if not path.is_file():
        return '!!! note "Not in this copy"\n\n    There is no `docs/guide.ipynb` here.\n'
    return notebook.as_markdown(path)


_MAKERS = {
    "source": lambda words: sources.source(*words.split()),
    "curve": _curve,
    "section": _section,
    "experiment": _experiment,
    "lab": _lab,
    "labs": lambda _: claims.overview(),
    "experiments": lambda _: figures.overview(),
    "commands": lambda _: commands.reference(),
    "families": lambda _: tables.families(),
    "recipes": lambda _: tables.recipes(),
    "refused": lambda _: tables.refused(),
    "functions": lambda _: tables.functions(),
    "guide": _guide,
}


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    _held.clear()
    figures.result.cache_clear(), figures.report.cache_clear()  # `mkdocs serve` builds again and again
    labs = next(part["Labs"] for part in config.nav if "Labs" in part)
    labs += [page for page in claims.pages() if page not in labs]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The reports' style sheet is written from the one that the reports carry; the labs' pages from the catalogue."""
    files.append(File.generated(config, "assets/lab.css", content=figures.style()))
    for path, text in claims.pages().items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    def made(found: re.Match) -> str:
        if found[1] not in _MAKERS:
            raise PluginError(f"{page.file.src_path}: no part {found[1]!r}: {', '.join(_MAKERS)}")
        return _MAKERS[found[1]](found[2])

    return commands.tabs(_PART.sub(made, _WRAPPED.sub("", markdown)))


def on_page_content(html: str, **_: object) -> str:
    return formulas.replace(html)


def on_post_page(output: str, **_: object) -> str:
    return _PLACE.sub(lambda found: _held[int(found[1])], output)
