"""`fledge laws`: scaling laws of runs that were trained here or anywhere."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import msgspec

from fledge.core.checkpoint import canonical_json, list_checkpoints, load_checkpoint, write_atomically
from fledge.core.config import Settings
from fledge.core.log import read_jsonl, say
from fledge.core.shape import ModelConfig
from fledge.probe.laws import (
    IsoFlop,
    Run,
    fit_law,
    fit_repeats,
    frontier,
    isoflops,
    law_intervals,
    years_left,
)

_FIELDS = ("parameters", "tokens", "loss", "unique")
_TAIL = 0.05  # last share of a run's tokens whose loss is taken


class LawsOptions(Settings, frozen=True, kw_only=True):
    """Fit scaling laws: `fledge laws runs.csv --compute 1e20 --out laws`, or `fledge laws runs/sweep`, or `fledge laws --used 15e12`."""

    files: list[str] = []
    "Tables (.csv, .jsonl, .json, .parquet) of parameters, tokens, loss and perhaps unique, or folders of pretraining runs."
    out: str | None = None
    "Folder for laws.json and laws.html, which has the chart; none only prints."
    compute: list[float] = []
    "Budgets in FLOPs (6 N D) to tell the best size, tokens and loss of."
    draws: int = 100
    "Bootstrap draws behind the intervals of the law's constants; 0 leaves them out."
    used: float | None = None
    "Tokens of today's training sets, for how long text lasts; needs no files."
    stock: float = 300e12
    "Tokens of text there are (Villalobos et al. 2024: 300T, between 100T and 1000T)."
    growth: float = 2.4
    "Factor by which training sets grow in a year."
    stock_growth: float = 1.0
    "Factor by which the stock grows in a year."
    seed: int = 0
    "Seed of the bootstrap."

    def problems(self) -> list[str]:
        found = []
        if not self.files and self.used is None:
            found.append("files: none; name a table or runs, or say --used for how long text lasts")
        low = [n for n in ("stock", "growth", "stock_growth") if getattr(self, n) <= 0]
        found += [f"{name} = {getattr(self, name)}: must be above 0" for name in low]
        if self.used is not None and self.used <= 0:
            found.append(f"used = {self.used}: must be above 0")
        found += [f"compute = {value}: must be above 0" for value in self.compute if value <= 0]
        if self.draws < 0:
            found.append(f"draws = {self.draws}: must be at least 0")
        return found


def read_runs(paths: list[str]) -> list[Run]:
    """Runs of tables and of folders of pretraining runs. Raises ValueError naming the row or run that cannot be used.

    Of a folder's run the loss is that of the last twentieth of its tokens as it trained on them: of text read once it
    is as good as held out, of text that is repeated it is too low.
    """
    found = []
    for path in map(Path, paths):
        found += _of_folder(path) if path.is_dir() else [_of_row(source, row) for source, row in _rows(path)]
    if not found:
        raise ValueError(
            f"{', '.join(paths)}: no runs; a table has a row, a folder a finished `fledge pretrain` for each"
        )
    return found


def _rows(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """(place, row) of a table."""
    from fledge.text.readers import Rejects, read_rows

    if path.suffix.lower() == ".csv":
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [(f"{path}:{number}", row) for number, row in enumerate(csv.DictReader(file), 2)]
    return list(read_rows([str(path)], encoding=None, skip_bad=None, rejects=Rejects(), columns=frozenset(_FIELDS)))


def _of_row(source: str, row: dict[str, Any]) -> Run:
    values = {}
    for name in _FIELDS:
        given = row.get(name)
        if name == "unique" and given in (None, ""):
            continue
        try:
            values[name] = float(given)
        except (TypeError, ValueError):
            values[name] = math.nan
        if not (0 < values[name] < math.inf):
            raise ValueError(f"{source}: {name} is {given!r}: every row needs parameters, tokens and loss above 0")
    return Run(**values)


def _of_folder(folder: Path) -> list[Run]:
    from fledge.stages.history import recipes

    found = []
    for run, recipe in recipes(folder):
        if recipe["stage"] != "pretrain":
            continue
        if not (run / "done.json").exists():
            say(f"{run}: not finished, left out")
            continue
        card, rows = load_checkpoint(list_checkpoints(run)[-1]).card, read_jsonl(run / "metrics.jsonl")
        tokens = sum(row["tokens"] for row in rows)
        tail = rows[-max(1, round(_TAIL * len(rows))) :]
        count = msgspec.convert(card["model"], ModelConfig).parameter_count()
        found.append(Run(count, tokens, sum(row["loss"] for row in tail) / len(tail), card["data"]["tokens"]))
    return found


def analyse(runs: list[Run], compute: list[float], draws: int = 100, seed: int = 0) -> dict[str, Any]:
    """Every fit these runs allow, as plain JSON; what they do not allow is None, with the reason under `missing`."""
    fresh, missing = [r for r in runs if not r.repeats], {}
    curves = isoflops(fresh)

    def tried(name: str, make: Any) -> Any:
        try:
            return make()
        except ValueError as error:
            missing[name] = str(error)
            return None

    line = tried("frontier", lambda: frontier(curves, seed=seed))
    law = tried("law", lambda: fit_law(fresh))
    repeats = tried("repeats", lambda: fit_repeats(runs, law.loss)) if law else None
    told: dict[str, Any] = {
        "runs": len(runs),
        "isoflops": [
            {"flops": c.flops, "parameters": c.parameters, "tokens": c.tokens, "loss": c.loss, "interior": c.interior}
            for c in curves
        ],
        "frontier": line and {"parameters": line.parameters._asdict(), "tokens": line.tokens._asdict(), "interval": line.exponent},
        "law": law and law._asdict() | {"exponent": law.exponent},
        "intervals": law_intervals(fresh, draws=draws, seed=seed) if law and draws and law.A else None,
        "repeats": repeats and {"R*": repeats[0], "error": repeats[1]},
        "missing": missing,
    }  # fmt: skip
    told["compute"] = []
    for flops in compute:
        row: dict[str, Any] = {"flops": flops}
        if line:
            row["parabolas"] = {"parameters": line.parameters.at(flops), "tokens": line.tokens.at(flops)}
        if law and math.isfinite(best := law.best_parameters(flops)):
            row["law"] = {"parameters": best, "tokens": flops / 6 / best, "loss": law.loss(best, flops / 6 / best)}
        told["compute"].append(row)
    return told


def run(options: LawsOptions) -> dict[str, Any]:
    """Read, fit, print and write; returns what laws.json holds."""
    told: dict[str, Any] = {}
    if options.files:
        runs = read_runs(options.files)
        told = analyse(runs, options.compute, options.draws, options.seed)
    if options.used is not None:
        told["years_left"] = years_left(options.used, options.stock, options.growth, options.stock_growth)
    _show(told, options)
    if options.out:
        out = Path(options.out)
        write_atomically(out / "laws.json", canonical_json(_plain(told)))
        if options.files:
            write_atomically(out / "laws.html", _page(runs, told))
            say(f"chart: {out / 'laws.html'}")
    return told


def _plain(value: Any) -> Any:
    """Numbers JSON has no word for become null."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _lines(told: dict[str, Any]) -> list[str]:
    """The fits in words."""
    found = []
    if line := told["frontier"]:
        a, (low, high) = line["parameters"], line["interval"]
        found.append(
            f"best parameters = {a['factor']:.3g} C^{a['exponent']:.3f} (90% interval {low:.3f} to {high:.3f}, "
            f"R² {a['r2']:.3f})"
        )
    if law := told["law"]:
        spans = {k: f" ({low:.3g} to {high:.3g})" for k, (low, high) in (told["intervals"] or {}).items()}
        told_by = ", ".join(f"{k} {law[k]:.4g}{spans.get(k, '')}" for k in ("E", "A", "B", "alpha", "beta"))
        found.append(f"L = E + A/N^alpha + B/D^beta: {told_by}; error {law['error']:.2%}")
        if law["A"]:
            found.append(f"by the law, best parameters go as C^{law['exponent']:.3f}{spans.get('exponent', '')}")
    if repeats := told["repeats"]:
        found.append(f"repeats: R* {repeats['R*']:.3g}, error {repeats['error']:.2%}")
    for row in told["compute"]:
        for name in ("parabolas", "law"):
            if best := row.get(name):
                loss = f", loss {best['loss']:.4g}" if "loss" in best else ""
                found.append(
                    f"{row['flops']:.3g} FLOPs, by the {name}: {best['parameters']:.3g} parameters on {best['tokens']:.3g} "
                    f"tokens{loss}"
                )
    return found + [f"no {name}: {why}" for name, why in told["missing"].items() if name != "repeats"]


def _show(told: dict[str, Any], options: LawsOptions) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if told.get("isoflops"):
        table = Table("FLOPs", "best parameters", "tokens", "tokens each", "loss", "", box=None, header_style="bold")
        for c in told["isoflops"]:
            note = "" if c["interior"] else "not inside the range of sizes"
            each = c["tokens"] / c["parameters"]
            table.add_row(*(f"{v:.3g}" for v in (c["flops"], c["parameters"], c["tokens"], each, c["loss"])), note)
        console.print(table)
    for line in _lines(told) if options.files else ():
        console.print(line, markup=False)
    if "years_left" in told:
        console.print(
            f"text lasts {told['years_left']:.1f} years: from {options.used:.3g} to {options.stock:.3g} tokens, sets growing "
            f"by {options.growth:g} a year and the stock by {options.stock_growth:g}"
        )


def _page(runs: list[Run], told: dict[str, Any]) -> bytes:
    """The chart and the fits as one offline page."""
    from fledge.stages.law_charts import laws_chart
    from fledge.stages.report_style import figure, heading, page, shown

    curves: list[IsoFlop] = isoflops([r for r in runs if not r.repeats])
    line = frontier(curves).parameters if told["frontier"] else None
    svg = laws_chart("laws", curves, line, "Loss over parameters at each budget, and the best size over compute")
    body = heading("Scaling laws", "縮放定律", 1) + f"<p class=text>{len(runs)} runs.</p>"
    body += figure(
        "The best size for a budget",
        "給定算力的最佳大小",
        svg,
        "Each curve is one budget; its lowest point is the best size.",
    )
    body += '<ul class="plain">' + "".join(f"<li>{shown(words, 900)}</li>" for words in _lines(told)) + "</ul>"
    return page("fledge: scaling laws", body)
