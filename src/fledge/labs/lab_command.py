"""`fledge lab list`, `fledge lab run P9`, `fledge lab run all`, `fledge lab report`, `fledge lab adopt`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from fledge.core.config import Settings
from fledge.core.log import say
from fledge.labs.catalogue import LABS, Entry, entry


class LabOptions(Settings, frozen=True, kw_only=True):
    """Rerun published claims: list them, run one or all, see them on one page."""

    action: Literal["list", "run", "report", "adopt"]
    "list, run or report; adopt takes the results of commands that share a lab's measurements, such as filters.json."
    ids: list[str] = []
    "Labs to run, such as P9 S11, or all; labs to adopt, where not all of them."
    out: str = "runs/labs"
    "Folder of all labs; what is done is kept and the rest continues."
    scale: Literal["pocket", "gpu", "full", "tiny"] = "pocket"
    "pocket: 2 cores, minutes. gpu: larger, from scratch. full: real checkpoints, given with --set. tiny: machinery only."
    seeds: int = 3
    "Repetitions, each with its own data, start and order."
    set: dict[str, Any] = {}
    "Change a setting of the lab, as in --set.people 500; see the top of its file for what there is."
    results: str = "results/labs"
    "Published results to show beside your own."

    def problems(self) -> list[str]:
        found = [] if self.seeds >= 1 else [f"seeds = {self.seeds}: must be at least 1"]
        if self.action == "run" and not self.ids:
            found.append("ids: name the labs to run, such as `fledge lab run P9`, or all")
        if self.action in ("list", "report") and self.ids:
            found.append(f"ids: {self.action} takes none")
        if self.set and [i.lower() for i in self.ids] == ["all"]:
            found.append("set: belongs to one lab; run it alone")
        return found


def run(options: LabOptions) -> Any:
    """Do what is asked; returns results (run), the page (report), what is known of labs (list), files (adopt)."""
    if options.action == "list":
        return _list(options)
    if options.action == "report":
        return _report(options)
    if options.action == "adopt":
        from fledge.labs.adopting import adopt_all

        written = adopt_all(Path(options.results), options.ids)
        say(f"written: {', '.join(map(str, written)) or 'nothing'}")
        return written
    return _run(options)


def known_results(options: LabOptions) -> dict[str, dict[str, Any]]:
    """result.json of every lab: your own at a scale that means something, else the published one."""
    found: dict[str, dict[str, Any]] = {}
    for name in LABS:
        for path in (Path(options.out) / name / "result.json", Path(options.results) / f"{name}.json"):
            if path.exists():
                told = msgspec.json.decode(path.read_bytes())
                if told["scale"] != "tiny":
                    found[name] = told
                    break
    return found


def _list(options: LabOptions) -> list[dict[str, Any]]:
    from rich import box
    from rich.console import Group
    from rich.table import Table

    from fledge.core.shown import Listing
    from fledge.labs.speed import known_slowness

    known, times, rows = known_results(options), known_slowness(Path(options.out)), []
    for name, listed in LABS.items():
        told = known.get(name, {})
        own = told if (Path(options.out) / name / "result.json").exists() and told.get("scale") == "pocket" else {}
        took = sum(own["minutes"]) / len(own["minutes"]) if own else listed.minutes * (times or 1)
        rows.append({"id": name, "claim": listed.claim, "paper": listed.paper, "minutes": took,
                     "verdict": told.get("verdict", "")})  # fmt: skip

    def look() -> Any:
        table = Table("id", "claim", "paper", "minutes a seed", "last verdict", box=box.SIMPLE)
        for row in rows:
            table.add_row(row["id"], row["claim"], row["paper"], f"{row['minutes']:.1f}", row["verdict"])
        note = "Minutes are those of 2 cores of the reference machine; this one is measured when a lab is run."
        return Group(table, *([note] if times is None else []))

    return Listing(rows, look)


def _run(options: LabOptions) -> list[dict[str, Any]]:
    from fledge.labs.running import LabRun, run

    everything = [i.lower() for i in options.ids] == ["all"]
    names = list(LABS) if everything else [i.upper() for i in options.ids]
    chosen: list[tuple[str, Entry]] = [(name, entry(name)) for name in names]  # refuse unknown ones before any work
    told, failed = [], []
    for name, listed in chosen:
        if everything and options.scale not in listed.load().SCALES:
            say(f"{name}: has no scale {options.scale!r}, left out")
            continue
        lab = LabRun(
            id=name, out=str(Path(options.out) / name), shared=str(Path(options.out) / "shared"), scale=options.scale,
            seeds=options.seeds, set=options.set,
        )  # fmt: skip
        try:
            told.append(run(lab))
        except ValueError as error:
            if not everything:
                raise
            failed.append(f"{name}: {error}")
            continue
        show(told[-1])
    page = _report(options)
    if failed:
        raise ValueError("not all labs ran:\n  " + "\n  ".join(failed))
    say(f"all of them on one page: {page}")
    return told


def show(told: dict[str, Any]) -> None:
    """A lab's numbers, checks and verdict on the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from fledge.labs.gallery import took
    from fledge.labs.verdict import span, written

    console = Console(highlight=False)
    table = Table("", "here", "90% interval", "paper", box=box.SIMPLE)
    for n in told["numbers"]:
        table.add_row(n["label"], written(n["mean"], n["unit"]), span(n["low"], n["high"], n["unit"]), n["paper"] or "")
    console.print(table)
    for check in told["checks"]:
        value = written(check["value"], check["unit"])
        console.print(f"{'yes' if check['held'] else 'NO '}  {check['says']}: {value}, must be {check['rule']}")
    console.print(f"{told['id']} {told['title']}: {told['verdict']}{took(told)}. {told['said']}")


def _report(options: LabOptions) -> Path:
    from fledge.labs.gallery import write_gallery

    return write_gallery(Path(options.out), known_results(options))
