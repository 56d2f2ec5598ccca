"""The funnel of a curated folder, printed: what stays after each step, and what each rule dropped, with samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table

from fledge.core.log import visible
from fledge.curate.funnel import Amount, Funnel, merged
from fledge.curate.plan import LANGUAGE_STEP
from fledge.curate.shards import read_sidecar
from fledge.curate.sifting import Finished, Sifted
from fledge.text.curated import MANIFEST, read_manifest

_PIPED_WIDTH = 200  # where nobody's window ends a line
_SAMPLE_WIDTH = 100
_SHOWN_PASSAGES = 5
_SAMPLES = 2  # of each rule on the screen; the manifest holds five


class Shown(NamedTuple):
    """A funnel and what belongs beside it."""

    funnel: Funnel
    facts: dict[str, Any]
    shards: tuple[int, int] | None  # (sifted, kept) of a folder that is not finished


def open_funnel(folder: Path) -> Shown:
    """The funnel of a finished folder, or of one at work so far. Raises ValueError where there is none."""
    if (folder / MANIFEST).exists():
        facts = read_manifest(folder).facts
        return Shown(msgspec.convert(facts["funnel"], Funnel), facts, None)
    found: list[list[Any]] = [
        [held for path in sorted((folder / "work").glob(f"{prefix}-*.json")) if (held := read_sidecar(path, kind))]
        for prefix, kind in (("sifted", Sifted), ("kept", Finished))
    ]
    sifted, finished = found
    if not sifted:
        raise ValueError(f"{folder} holds no curated text and none at work: name the --out of `fledge curate`")
    funnels = [each.funnel for each in (*sifted, *finished)]
    steps = list(dict.fromkeys(step for funnel in funnels for step in funnel.steps))
    return Shown(merged(funnels, steps), {}, (len(sifted), len(finished)))


def show(folder: Path) -> None:
    """Print the funnel in figures, by language, and rule by rule."""
    shown = open_funnel(folder)
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PIPED_WIDTH)
    if shown.shards is not None:
        console.print(f"not finished: {shown.shards[0]} shards sifted, {shown.shards[1]} kept", style="bold")
    console.print(_steps(shown.funnel))
    languages = shown.funnel.languages()
    if len(languages) > 1:
        console.print(_by_language(shown.funnel, languages[:8]))
    console.print(_rules(shown.funnel))
    for line in _notes(shown):
        console.print(line, markup=False)


def summary_line(folder: Path) -> str:
    """One line on a finished folder."""
    funnel = open_funnel(folder).funnel
    came, stays = funnel.came(), funnel.after(funnel.steps[-1])
    return (
        f"{folder}: {stays.pages:,} of {came.pages:,} pages stay, about {stays.tokens:,} tokens "
        f"({_share(stays.tokens, came.tokens)}); `fledge curate --show {folder}` tells where the others went"
    )


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def rows(funnel: Funnel) -> Iterator[tuple[str, Amount, Amount]]:
    """(step, what stays after it, what came to it), beginning with all that was read."""
    came = funnel.came()
    yield "input", came, came
    for step in funnel.steps:
        after = funnel.after(step)
        yield step, after, came
        came = after


def _steps(funnel: Funnel) -> Table:
    table = Table(title="what stays", title_justify="left", box=None, header_style="bold")
    table.add_column("step")
    for name in ("pages", "characters", "tokens", "of input", "of step before", "dropped"):
        table.add_column(name, justify="right")
    for step, after, came in rows(funnel):
        lost = Amount() if step == "input" else funnel.lost(step)
        table.add_row(
            step,
            f"{after.pages:,}",
            f"{after.characters:,}",
            f"{after.tokens:,}",
            _share(after.tokens, funnel.came().tokens),
            _share(after.tokens, came.tokens),
            f"{lost.pages:,}" if lost.pages else "",
        )
    return table


def _by_language(funnel: Funnel, languages: list[str]) -> Table:
    """Pages of each language after each step from the language step on."""
    table = Table(title="\npages by language", title_justify="left", box=None, header_style="bold")
    table.add_column("step")
    for name in languages:
        table.add_column(visible(name), justify="right")
    begin = funnel.steps.index(LANGUAGE_STEP)
    table.add_row("found", *(f"{_found(funnel, name).pages:,}" for name in languages))
    for step in funnel.steps[begin:]:
        table.add_row(step, *(f"{funnel.after(step, name).pages:,}" for name in languages))
    return table


def _found(funnel: Funnel, language: str) -> Amount:
    return funnel.after(LANGUAGE_STEP, language) + funnel.lost(LANGUAGE_STEP, language)


def _rules(funnel: Funnel) -> Table:
    """Every rule that dropped something, by step, the strongest first, with its first samples."""
    table = Table(title="\nwhat was dropped", title_justify="left", box=None, header_style="bold")
    for name, side in (("step", "left"), ("rule", "left"), ("pages", "right"), ("tokens", "right"), ("value", "right")):
        table.add_column(name, justify=side)
    table.add_column("for example", no_wrap=True, max_width=_SAMPLE_WIDTH)
    sums: dict[tuple[str, str], Amount] = {}
    for dropped in funnel.dropped:
        key = (dropped.step, dropped.reason)
        sums[key] = sums.get(key, Amount()) + dropped.amount
    for (step, reason), amount in sorted(sums.items(), key=lambda e: (funnel.steps.index(e[0][0]), -e[1].pages)):
        samples = [s for s in funnel.samples if (s.step, s.reason) == (step, reason)][:_SAMPLES]
        cells = [step, visible(reason), f"{amount.pages:,}", f"{amount.tokens:,}"]
        for sample in samples or [None]:
            if sample is None:
                table.add_row(*cells, "", "")
                continue
            value = "" if sample.value is None else f"{sample.value:.4g}"
            text = visible(f"{sample.source}: {' '.join(sample.text.split())}"[:_SAMPLE_WIDTH])
            table.add_row(*cells, value, text)
            cells = [""] * 4
    return table


def _notes(shown: Shown) -> Iterator[str]:
    if counted := {name: number for name, number in shown.funnel.counted.items() if number}:
        yield "\ncounted in pages that stay: " + ", ".join(f"{name} {number:,}" for name, number in counted.items())
    if duplicates := shown.facts.get("duplicates"):
        yield _duplicates(duplicates)
    if limit := shown.facts.get("limit"):
        yield f"limit: {limit['column']} {limit['value']:.6g}"
    if skipped := shown.facts.get("skipped"):
        reasons: dict[str, int] = {}
        for each in skipped:
            reasons[each["reason"]] = reasons.get(each["reason"], 0) + 1
        yield "files not read: " + ", ".join(f"{count:,} {visible(reason)}" for reason, count in reasons.items())
    if repeats := shown.facts.get("repeats"):
        yield f"\n{repeats['share']:.2%} of the tokens stand in passages that several pages share; the most repeated:"
        for passage in repeats["passages"][:_SHOWN_PASSAGES]:
            text = visible(" ".join(passage["text"].split())[:_SAMPLE_WIDTH])
            yield f"  {passage['pages']:,} pages, {passage['tokens']:,} tokens: {text}"


def _duplicates(summary: dict[str, Any]) -> str:
    """One line on clusters of copies."""
    sizes = ", ".join(f"{count:,} of {size}" for size, count in summary["clusters"].items()) or "none"
    largest = summary["largest_cluster"]
    of = f"; the largest has {largest['pages']:,} ({largest['id']})" if largest else ""
    left = f"; {summary['not_compared']:,} pages not compared" if summary["not_compared"] else ""
    return f"clusters of copies (pages in each): {sizes}{of}{left}"
