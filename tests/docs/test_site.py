"""The documentation: builds strictly, holds together, shows every verb, and needs nothing from outside."""

import ast
import json
import os
import re
import sys
import textwrap
import time
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec
import pytest
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import PluginError

from fledge import api, cli
from fledge.core.config import describe

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))  # as mkdocs does for its hooks
from site_parts import claims, commands, curves, docstrings, figures, formulas, notebook, sources  # noqa: E402

CPU_SECONDS = 40
PAGES = sorted(path.relative_to(DOCS) for path in DOCS.rglob("*.md"))
METHODS = sorted((DOCS / "methods").glob("*.md"))
LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data", "embed": "src"}


class Read(HTMLParser):
    """What of a page matters here: anchors, links, and whatever a browser fetches by itself."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.ids |= {value for name in ("id", "name") if (value := found.get(name))}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        if found.get(LOADING.get(tag, "")):
            self.loaded.append(found[LOADING[tag]])
        if tag == "link" and found.get("href") and found.get("rel") not in ("next", "prev", "canonical"):
            self.loaded.append(found["href"])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it: a warning is an error."""
    out, before, began = tmp_path_factory.mktemp("site"), Path.cwd(), time.process_time()
    os.environ["NO_MKDOCS_2_WARNING"] = "1"
    os.chdir(ROOT)  # the snippets' base
    try:
        build(load_config(str(ROOT / "mkdocs.yml"), site_dir=str(out), strict=True))
    finally:
        os.chdir(before)
    assert time.process_time() - began < CPU_SECONDS
    return out


@pytest.fixture(scope="module")
def read(site: Path) -> dict[Path, Read]:
    return {path: Read(path.read_text("utf-8")) for path in sorted(site.rglob("*.html"))}


def test_every_page_is_built(site: Path):
    assert len(PAGES) > 40
    assert [page for page in PAGES if not (site / page).with_suffix(".html").is_file()] == []


def test_internal_links_lead_somewhere(site: Path, read: dict[Path, Read]):
    broken = []
    for path, page in read.items():
        if path.name == "404.html":  # has addresses of a server's root
            continue
        for link in page.links + page.loaded:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            known = read[target].ids if target in read else set()
            if not target.is_file() or (parts.fragment and target in read and unquote(parts.fragment) not in known):
                broken.append((path.relative_to(site).as_posix(), link))
    assert broken == []


def test_nothing_is_loaded_from_elsewhere(site: Path, read: dict[Path, Read]):
    """No script, style, font or picture of another host; links that people click are another matter."""
    assert sum(len(page.loaded) for page in read.values()) > len(read)
    outside = [(path.name, url) for path, page in read.items() for url in page.loaded if re.match(r"(https?:)?//", url)]
    styles = [*site.rglob("*.css"), *read]
    outside += [
        (path.name, found)
        for path in styles
        for found in re.findall(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')\s]+)""", path.read_text("utf-8"))
    ]
    assert outside == []


def test_every_verb_and_option_is_in_the_reference(site: Path, read: dict[Path, Read]):
    path = site / "reference" / "commands.html"
    assert read[path].ids >= cli.TABLE.keys()
    parts = re.split(r'<h2 id="([^"]+)"', path.read_text("utf-8"))
    sections = dict(zip(parts[1::2], parts[2::2], strict=True))
    for verb in cli.TABLE:
        for flag, _, _ in describe(commands.options_of(verb)):
            assert f"<code>{flag}</code>" in sections[verb], (verb, flag)
    assert "<code>--track</code>" in sections["sft"]


def test_every_verb_is_used_in_a_page():
    unused = {verb for verb, pages in commands.mentions().items() if not pages}
    assert unused == set()


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_commands_are_understood(page: Path):
    for words in commands.command_lines((DOCS / page).read_text("utf-8")):
        commands.given(words)


def test_python_beside_the_commands_calls_what_there_is():
    """Each call in the Python tabs names a function of fledge.api and options that its verb has."""
    calls = 0
    for page in PAGES:
        text = commands.tabs((DOCS / page).read_text("utf-8"))
        for block in re.findall(r"^ *```python\n( *from fledge\.api import .*?)^ *```$", text, re.S | re.M):
            for node in ast.walk(ast.parse(textwrap.dedent(block))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in api.VERBS:
                    fields = {f.name for f in msgspec.structs.fields(commands.options_of(api.VERBS[node.func.id]))}
                    assert {k.arg for k in node.keywords} <= fields, (page, ast.unparse(node))
                    calls += 1
    assert calls > 60


def test_python_of_a_command():
    words = [
        "sft",
        "--out",
        "runs/a",
        "--from",
        "runs/b",
        "--chats",
        "a.jsonl",
        "--chats",
        "b.jsonl",
        "--train.lr",
        "1e-3",
    ]
    assert commands.as_python([*words, "--adapter", "lora"]) == (
        'sft(\n    out="runs/a",\n    parent="runs/b",\n    chats=["a.jsonl", "b.jsonl"],\n'
        '    train={"lr": 0.001},\n    adapter="lora",\n)'
    )
    assert commands.as_python(["import", "models/x", "--dry"]) == 'import_model("models/x", dry=True)'
    assert commands.as_python(["curate", "a", "b", "--out", "c"]) == 'curate(["a", "b"], out="c")'


def test_formulas_are_drawn(site: Path):
    for page in (*METHODS, DOCS / "architecture.md", DOCS / "stages" / "pretrain.md"):
        text = (site / page.relative_to(DOCS)).with_suffix(".html").read_text("utf-8")
        assert text.count('<svg class="formula"') >= 1, page
        assert "arithmatex" not in text, page


@pytest.mark.parametrize("page", METHODS, ids=lambda p: p.stem)
def test_a_method_has_its_formula_code_command_and_chart(page: Path, site: Path):
    source = page.read_text("utf-8")
    assert "$$" in source and "```fledge" in source and "## When" in source
    assert re.search(r"^## Source|\| source \|", source, re.M)
    text = (site / "methods" / page.name).with_suffix(".html").read_text("utf-8")
    assert re.search(r'<span class="filename">src/fledge/\S+\.py</span>', text)
    assert '<div class="lab">' in text or "Not measured yet" in text
    assert "data-part" not in text and "{{" not in text


def test_every_experiment_has_a_page_with_its_verdict(site: Path):
    assert len(figures.labs()) >= 7
    overview = (site / "experiments" / "index.html").read_text("utf-8")
    for verb in figures.labs():
        text = (site / "experiments" / f"{verb}.html").read_text("utf-8")
        total = figures.result(verb)
        assert f'href="{verb}.html"' in overview
        assert "Not measured yet" in text if total is None else total["verdict"] in text


def test_every_lab_has_a_page_with_its_verdict(site: Path):
    overview = (site / "labs" / "index.html").read_text("utf-8")
    for name, entry in claims.LABS.items():
        text = (site / "labs" / f"{name.lower()}.html").read_text("utf-8")
        told = claims.result(name)
        assert f'href="{name.lower()}.html"' in overview and entry.chinese in overview
        assert entry.chinese in text and "How it is done" in text
        assert f"fledge lab run {name}" in re.sub("<[^>]+>", "", text)
        assert "Not run yet" in text if told is None else told["verdict"] in text and "<svg" in text


def test_charts_follow_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = json.loads((figures.RESULTS / "methods.json").read_text("utf-8"))
    before = figures.section("methods", "Learning curves")
    for seed in whole["seeds"]:
        for run in seed["methods"].values():
            run["curve"][-1]["accuracy"] = 0.123
    (tmp_path / "methods.json").write_text(json.dumps(whole), "utf-8")
    monkeypatch.setattr(figures, "RESULTS", tmp_path)
    try:
        figures.result.cache_clear(), figures.report.cache_clear()
        assert "<b>12%</b>" in figures.section("methods", "Learning curves") != before
        assert figures.section("loop", "Round by round") is None and "results/loop.json" in figures.absent("loop")
        with pytest.raises(PluginError, match="no section 'Nothing'; it has Learning curves"):
            figures.section("methods", "Nothing")
    finally:
        figures.result.cache_clear(), figures.report.cache_clear()


def test_the_chart_of_adapters_needs_only_its_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Pages show a section of it before the experiment was run: its name must be that of the report."""
    arm = {"facts": 0.5, "trained": 10, "parameters": 100, "forgotten": 0.1, "seconds": 3.0, "file_bytes": 9000}
    arms = {"full": arm | {"trained": 100}, "lora": arm}
    (tmp_path / "adapters.json").write_text(json.dumps({"arms": arms, "seeds": [{"seed": 0, "arms": arms}]}), "utf-8")
    monkeypatch.setattr(figures, "RESULTS", tmp_path)
    try:
        figures.result.cache_clear(), figures.report.cache_clear()
        asked = {
            found[1]
            for page in PAGES
            for found in re.finditer(r"{{ section adapters (.*) }}", (DOCS / page).read_text("utf-8"))
        }
        assert asked and all("<svg" in figures.section("adapters", heading) for heading in asked)
    finally:
        figures.result.cache_clear(), figures.report.cache_clear()


def test_code_is_that_of_the_source():
    shown = sources.source("core/policy.py", "kl_estimate", "Baseline")
    text = (sources.PACKAGE / "core" / "policy.py").read_text("utf-8")
    for part in (
        shown.removeprefix('```python title="src/fledge/core/policy.py"\n').removesuffix("\n```").split("\n\n\n")
    ):
        assert part in text
    assert sources.source("generate/rollout.py", "Rollouts._adapt").split("\n")[1].startswith("def _adapt(self")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: sources.source("core/policy.py", "gone"), "no such name"),
        (lambda: sources.source("core/gone.py", "x"), "not in"),
        (lambda: formulas.svg(r"\begin{cases}"), "cannot be drawn"),
        (lambda: commands.given(["dpoo"]), "no verb 'dpoo'"),
        (lambda: commands.given(["dpo", "--out", "x"]), "required"),
    ],
    ids=["name", "file", "formula", "verb", "option"],
)
def test_what_is_gone_or_wrong_fails_the_build(make, said: str):
    with pytest.raises(PluginError, match=said):
        make()


def test_curves_are_the_objectives():
    """A changed objective changes the chart: DPO's curve passes ln 2 at the reference, IPO's is 0 at its gap."""
    import torch

    from fledge.core.objectives import dpo

    assert curves._preferred(dpo(), torch.tensor([0.0])) == pytest.approx([0.6931472], abs=1e-6)
    assert curves._preferred(dpo(loss="ipo", beta=0.5), torch.tensor([1.0])) == pytest.approx([0.0], abs=1e-6)
    view = curves.token_view()
    assert view.count('class="trained"') >= 4 and '<span class="given">&lt;|user|&gt;</span>' in view


def test_a_notebook_as_a_page(tmp_path: Path):
    cells = [
        {"cell_type": "markdown", "source": ["# Guide\n", "Text."]},
        {"cell_type": "code", "source": "print(1)\n", "outputs": [
            {"output_type": "stream", "name": "stdout", "text": ["\x1b[32m<b>\x1b[0m\n"]},
            {"output_type": "display_data", "data": {"image/png": "iVBO\n", "text/plain": "figure"}},
            {"output_type": "execute_result", "data": {"text/plain": ["{'a': 1}"]}},
        ]},
        {"cell_type": "code", "source": "", "outputs": []},
    ]  # fmt: skip
    path = tmp_path / "guide.ipynb"
    path.write_text(json.dumps({"nbformat": 4, "cells": cells}), "utf-8")
    made = notebook.as_markdown(path)
    assert made.startswith("# Guide\nText.\n\n```python\nprint(1)\n```\n\n<pre")
    assert "&lt;b&gt;</code>" in made and "\x1b" not in made
    assert 'src="data:image/png;base64,iVBO"' in made and "figure" not in made
    assert "{'a': 1}" in made and made.count("```python") == 1


def test_chinese_lines_are_joined_without_spaces(site: Path):
    text = (site / "index.zh-TW.html").read_text("utf-8")
    assert 'href="index.html"' in text and 'href="index.zh-TW.html"' in (site / "index.html").read_text("utf-8")
    assert not re.search("[\u4e00-\u9fff\uff0c\u3002]\\n *[\u4e00-\u9fff]", text)


def test_docstrings_are_text():
    assert docstrings.escaped("from <user> to `<end>`\n\n    code <x>") == "from &lt;user> to `<end>`\n\n    code <x>"
