"""P5: for a fixed compute there is a best size of model; it grows as a power of compute; repeated text teaches less.

Hoffmann et al. 2022: at each budget C = 6 N D the loss over the size N is a valley, the valleys' floors lie on a line
in log-log, and a law fitted to small runs foretells a larger one. Here the text is the source of Python's standard
library and numpy, read as bytes, each distinct line a document: among whole files small models learn at some point,
all at once, to copy from the lines above (Olsson et al. 2022), and a curve with such a step in it is no valley. What
was read is kept by version and hash, for another Python has other lines. Every size is trained at each budget with a
cosine of its own length, a batch that grows with the root of its tokens, and a learning rate tuned on two sizes and
then proportional to 1 / width: one rate for all would bend the valleys. So might a ladder with a step in it: all
models under 64 units have two heads. N counts the embedding, which is the output layer as well (tied) and half of the
smallest models; both counts are kept.

Muennighoff et al. 2023: up to 4 epochs are nearly as good as fresh text, later ones are worth less and less. One
model reads the same text 1 to 64 times, beside one that reads as much fresh text.

How long the world's text lasts (Villalobos et al. 2024) is arithmetic, `fledge laws --used 15e12 --growth 2.4`, no
result.

Budgets, the guess of the best sizes, the heads and how much text is repeated were chosen on seed 0.
"""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from fledge.core.config import Settings, TrainConfig
from fledge.core.model import Shape
from fledge.labs.bench import Bench
from fledge.labs.verdict import Findings, Number, at_least, at_most, between
from fledge.probe.laws import (
    Run,
    effective_tokens,
    fit_law,
    fit_repeats,
    frontier,
    isoflops,
    power_law,
    years_left,
)
from fledge.stages import pretrain
from fledge.stages.common import open_model
from fledge.stages.evaluate import bits_per_byte
from fledge.stages.law_charts import Repeats, laws_chart, scientific
from fledge.text.installed import content, python_sources, versions
from fledge.text.readers import read_documents
from fledge.text.tokenizer import SPECIALS

_VOCABULARY = 256 + len(SPECIALS)  # bytes: embeddings of a larger one would be most of a small model
_SHARDS = 64  # of the text; a run reads as many as it needs


class Setup(Settings, frozen=True, kw_only=True):
    """Budgets, sizes, and text to read."""

    budgets: tuple[float, ...] = (2e10, 6e10, 1.8e11, 5.4e11)
    "FLOPs of each curve, cheapest first."
    sizes: int = 6
    "Models of each budget."
    span: float = 3.0
    "The largest and the smallest model of a budget are this many times larger and smaller than the guess."
    guess: float = 0.09
    "Guess of the best number of parameters, over the square root of the budget."
    beyond: float = 3.0
    "The held-out run has this many times the largest budget."
    rates: tuple[float, ...] = (3e-3, 6e-3, 12e-3)
    "Peak learning rates to choose from, for width 64; the rate of other widths is proportional to 1 / width."
    batch: int = 192
    "Tokens of a step of a run of 60 thousand tokens; it grows with the root of the tokens."
    unique: int = 80_000
    "Tokens that are repeated."
    epochs: tuple[int, ...] = (1, 2, 4, 8, 16, 64)
    "How often they are read."
    repeater: float = 2e4
    "Parameters of the model that repeats."
    context: int = 128
    "Bytes of a row."
    validation: int = 120_000
    "Bytes the loss is measured on, from files that are not trained on."
    data: list[str] = []
    "Own text instead, files and folders; none takes the source of Python's standard library on this machine."
    packages: tuple[str, ...] = ("numpy",)
    "Installed packages whose source is read after the library's, there being no own text."

    def problems(self) -> list[str]:
        found = []
        if len(self.budgets) < 2 or list(self.budgets) != sorted(set(self.budgets)):
            found.append(f"budgets = {self.budgets}: must be two or more, ascending")
        if self.sizes < 4:
            found.append(f"sizes = {self.sizes}: must be at least 4 for a parabola with a rest")
        if self.epochs[:1] != (1,) or list(self.epochs) != sorted(set(self.epochs)) or len(self.epochs) < 4:
            found.append(f"epochs = {self.epochs}: must begin with 1, ascend, and be four or more")
        return found


SCALES = {
    "pocket": Setup(),
    "gpu": Setup(
        budgets=(3e12, 1e13, 3e13, 8e13), span=2.5, batch=1024, unique=500_000, repeater=1e6, context=512,
        validation=500_000, packages=("numpy", "scipy", "sympy", "torch"),
    ),
    "tiny": Setup(
        budgets=(5e8, 1.5e9), sizes=4, span=2.5, guess=0.5, beyond=2.0, rates=(4e-3,), batch=1024, unique=4000, epochs=(1, 2, 4, 8),
        repeater=5e3, context=32, validation=4000,
    ),
}  # fmt: skip


def shape(parameters: float, context: int) -> Shape:
    """The model of about that many parameters, embedding included, and about 24 units of width to a layer."""

    def of(width: int, layers: int) -> Shape:
        return Shape(
            layers=layers, width=width, heads=2 if width < 64 else 4, ffn_width=8 * round(width / 3),
            context_tokens=context, qk_norm=True, vocab_size=_VOCABULARY,
        )  # fmt: skip

    widths = (*range(8, 64, 4), *range(64, 1032, 8))
    choices = [of(width, layers) for width in widths for layers in (2, 3, 4, 5, 6, 8, 10, 12, 16)]

    def distance(s: Shape) -> float:
        return abs(math.log(s.parameter_count() / parameters)) + 0.3 * abs(math.log(s.width / s.layers / 24))

    return min(choices, key=distance)


def prepare(setup: Setup, bench: Bench) -> dict[str, Any]:
    """Write shards of shuffled lines to train on and keep lines of other files to validate on; says what was read."""
    documents = list(read_documents(setup.data) if setup.data else python_sources(setup.packages))
    about = {"sha256": content(documents), "files": len(documents)}
    about["versions"] = {} if setup.data else versions(setup.packages)
    dice = random.Random(bench.seed)
    dice.shuffle(documents)
    texts = [document.text for document in documents]
    apart: list[str] = []
    while len(texts) > 1 and sum(map(_size, apart)) < 2 * setup.validation:  # half may be known from other files
        apart += distinct([texts.pop()])
    lines = distinct(texts)
    known = set(lines)
    apart = [line for line in dict.fromkeys(apart) if line not in known]
    dice.shuffle(lines)
    dice.shuffle(apart)
    each, rest = math.ceil(sum(map(_size, lines)) / _SHARDS), lines
    for number in range(_SHARDS):
        shard = upto(rest, each)
        rest = rest[len(shard) :]
        bench.write(f"text-{number:02}", [{"text": line} for line in shard])
    bench.write("unique", [{"text": line} for line in upto(lines, setup.unique)])
    return about | {"shard": each, "bytes": sum(map(_size, lines)), "validation": upto(apart, setup.validation)}


def _size(text: str) -> int:
    """Tokens of a text: its bytes, a beginning and an end."""
    return len(text.encode("utf-8", "surrogatepass")) + 2


def distinct(texts: Sequence[str]) -> list[str]:
    """The different lines of the texts, without the space around them; those of under four characters are left out."""
    lines = (line.strip() for text in texts for line in text.splitlines())
    return list(dict.fromkeys(line for line in lines if len(line) >= 4))


def upto(texts: Sequence[str], tokens: int) -> list[str]:
    """The first texts, up to the one that reaches so many tokens."""
    kept, total = [], 0
    for text in texts:
        if total >= tokens:
            break
        kept.append(text)
        total += _size(text)
    return kept


class Arms:
    """Trains and measures; a run's figures are kept and its folder is removed then, there being so many."""

    def __init__(self, setup: Setup, bench: Bench):
        self.setup, self.bench = setup, bench
        self.corpus = bench.keep("corpus", lambda: prepare(setup, bench))

    def run(self, name: str, form: Shape, tokens: float, rate: float, unique: str | None = None) -> dict[str, Any]:
        """Figures of one model trained on `tokens`, each read once, or as often as it takes where `unique` names a file.

        Raises ValueError where there is less text than that.
        """
        return self.bench.keep(name, lambda: self._train(name, form, tokens, rate, unique))

    def _train(self, name: str, form: Shape, tokens: float, rate: float, unique: str | None) -> dict[str, Any]:
        setup, row = self.setup, form.context_tokens
        if not unique and tokens > self.corpus["bytes"]:
            raise ValueError(
                f"{tokens:,.0f} tokens are to be read once, and the text has {self.corpus['bytes']:,}: name more of it with "
                "--set.data or --set.packages, or lower the budgets"
            )
        shards = min(_SHARDS, math.ceil(tokens / self.corpus["shard"]))
        names = [unique] if unique else [f"text-{number:02}" for number in range(shards)]
        batch = row * max(1, round(setup.batch * math.sqrt(tokens / 60_000) / row))
        train = TrainConfig(
            lr=rate * 64 / form.width, optimizer="muon", batch_tokens=batch, warmup=0.05,
            steps=max(1, round(tokens / batch)), seed=self.bench.seed,
        )  # fmt: skip
        recipe = pretrain.PretrainRecipe(
            out=self.bench.out(name), text=[str(self.bench.folder / f"{n}.jsonl") for n in names], train=train,
            vocab_size=_VOCABULARY, mask_repeats=None, model=msgspec.structs.replace(form, vocab_size=None),
        )  # fmt: skip
        opened = open_model(pretrain.run(recipe, quiet=True))
        loss = bits_per_byte(opened, self.corpus["validation"]) * math.log(2)
        shutil.rmtree(recipe.out)
        count = form.parameter_count()
        return {
            "parameters": count, "without_embedding": count - _VOCABULARY * form.width, "width": form.width,
            "layers": form.layers, "tokens": train.steps * batch, "batch": batch, "lr": train.lr, "loss": loss,
        }  # fmt: skip


def measure(setup: Setup, bench: Bench) -> dict[str, Any]:
    """Tune the rate, train the sizes of each budget, then the held-out run, then the repeats."""
    arms = Arms(setup, bench)
    rates, rate = tune(setup, arms)
    curves = []
    for i, budget in enumerate(setup.budgets):
        forms = sizes(setup, budget)
        curves.append([arms.run(f"c{i}-{j}-{rate:g}", f, _tokens(budget, f), rate) for j, f in enumerate(forms)])
    flops = setup.beyond * setup.budgets[-1]
    try:
        best = frontier(isoflops([_run(r) for curve in curves for r in curve])).parameters.at(flops)
    except ValueError:  # no valley at all: the judge will say so, and the guess is as good a size as any
        best = setup.guess * math.sqrt(flops)
    form = shape(best, setup.context)
    held = arms.run("held-out", form, _tokens(flops, form), rate)
    form, repeats = shape(setup.repeater, setup.context), []
    for epochs in setup.epochs:
        tokens = epochs * setup.unique
        again = arms.run(f"repeat-{epochs}", form, tokens, rate, "unique")
        fresh = again if epochs == 1 else arms.run(f"fresh-{epochs}", form, tokens, rate)
        repeats.append({"epochs": epochs, "tokens": again["tokens"], "repeated": again["loss"], "fresh": fresh["loss"]})
    bench.write("runs", [{k: r[k] for k in ("parameters", "tokens", "loss")} for c in curves for r in c])
    about = {k: v for k, v in arms.corpus.items() if k != "validation"}
    return {"text": about, "rates": rates, "rate": rate, "curves": curves, "held": held, "repeats": repeats,
            "repeater": form.parameter_count()}  # fmt: skip


def sizes(setup: Setup, budget: float) -> list[Shape]:
    """Models of one budget, evenly spaced in the logarithm."""
    guess, ends = setup.guess * math.sqrt(budget), math.log(setup.span)
    steps = [2 * j / (setup.sizes - 1) - 1 for j in range(setup.sizes)]
    return [shape(guess * math.exp(step * ends), setup.context) for step in steps]


def _tokens(budget: float, form: Shape) -> float:
    return budget / 6.0 / form.parameter_count()


def tune(setup: Setup, arms: Arms) -> tuple[list[dict[str, float]], float]:
    """Every rate on the second and the last size but one of the second budget; the rate whose log losses add up to least."""
    forms, rows = sizes(setup, setup.budgets[1]), []
    for j in (1, setup.sizes - 2):
        for rate in setup.rates:
            run = arms.run(f"c1-{j}-{rate:g}", forms[j], _tokens(setup.budgets[1], forms[j]), rate)
            rows.append({"rate": rate, "width": run["width"], "loss": run["loss"]})
    return rows, min(setup.rates, key=lambda rate: sum(math.log(r["loss"]) for r in rows if r["rate"] == rate))


def _run(row: dict[str, Any]) -> Run:
    return Run(row["parameters"], row["tokens"], row["loss"])


def worn(parameters: float, rows: Sequence[dict[str, Any]]) -> tuple[float, list[float]]:
    """R* of the repeats, and the losses it gives; the law of fresh text is that of this one model."""
    law = fit_law([Run(parameters, row["tokens"], row["fresh"]) for row in rows])
    unique = rows[0]["tokens"]
    half, _ = fit_repeats([Run(parameters, row["tokens"], row["repeated"], unique) for row in rows], law.loss)
    return half, [law.loss(parameters, effective_tokens(unique, row["tokens"], half)) for row in rows]


class Fitted:
    """What the laws make of one seed."""

    def __init__(self, setup: Setup, found: dict[str, Any]):
        rows, held = [row for curve in found["curves"] for row in curve], found["held"]
        self.curves = isoflops([_run(row) for row in rows])
        self.law = fit_law([_run(row) for row in rows])
        self.interior = float(sum(curve.interior for curve in self.curves))
        try:
            self.frontier = frontier(self.curves)
        except ValueError:
            self.frontier = None
        self.error = abs(self.law.loss(held["parameters"], held["tokens"]) / held["loss"] - 1)
        self.half = worn(found["repeater"], found["repeats"])[0]
        self.gaps = {row["epochs"]: row["repeated"] / row["fresh"] - 1 for row in found["repeats"]}

    @property
    def exponent(self) -> float:
        return self.frontier.parameters.exponent if self.frontier else math.nan

    @property
    def bytes_each(self) -> float:
        """Bytes read per parameter at the floor of the last valley."""
        return self.curves[-1].tokens / self.curves[-1].parameters

    @property
    def r2(self) -> float:
        return self.frontier.parameters.r2 if self.frontier else math.nan


def judge(setup: Setup, seeds: Sequence[dict[str, Any]]) -> Findings:
    """Valleys inside the range, a power law through their floors, a larger run foretold, and what repeats cost."""
    fits = [Fitted(setup, found) for found in seeds]
    few, many = 4 if 4 in setup.epochs else setup.epochs[1], setup.epochs[-1]

    def number(label: str, values: Sequence[float], unit: str = "", paper: str | None = None) -> Number:
        return Number(label=label, by_seed=[float(v) for v in values], unit=unit, paper=paper)

    interior = number("budgets whose best size is inside the range", [f.interior for f in fits])
    exponent = number("exponent a of the best size, by parabolas", [f.exponent for f in fits], "", "0.49")
    r2 = number("R² of that line", [f.r2 for f in fits])
    by_law = number("exponent a by the law of all runs", [f.law.exponent for f in fits], "", "0.46")
    bare = number("exponent a, embedding not counted", [_bare_exponent(found) for found in seeds])
    error = number("error of the foretold loss of a larger run", [f.error for f in fits], "%")
    gap_few = number(f"loss above fresh text's, {few} epochs", [f.gaps[few] for f in fits], "%", "nearly none")
    gap_many = number(f"loss above fresh text's, {many} epochs", [f.gaps[many] for f in fits], "%")
    half = number("R*, repeats that wear text out", [f.half for f in fits], "", "15.4")
    per = number("best bytes per parameter, largest budget", [f.bytes_each for f in fits], "", "20 tokens of ~4 bytes")
    lost = number("what the chosen rate loses against the best of each size", [_lost(found) for found in seeds], "%")
    held = f"{setup.beyond:g} times the largest budget"
    read = ", ".join(f"{name} {number}" for name, number in seeds[0]["text"]["versions"].items())
    return Findings(
        numbers=[exponent, by_law, bare, per, error, gap_few, gap_many, half],
        checks=[
            at_least(f"of {len(setup.budgets)} budgets, the best size is inside the range of", interior, 3),
            between("the best size grows as a power of compute", exponent, 0.3, 0.7),
            at_least("and lies on a line in log-log (R²)", r2, 0.9),
            at_most(f"the law foretells a run of {held}, within 2%", error, 0.02),
            at_most(f"{few} epochs are nearly as good as fresh text", gap_few, 0.02),
            at_least(f"{many} epochs are not", gap_many, 0.05),
            at_most("one rate over width serves small and large models", lost, 0.02, core=False),
        ],
        said=(
            f"The best model for a budget grows as compute to the power {exponent.mean:.2f}: neither size nor text alone. The "
            f"law fitted to runs of up to {scientific(setup.budgets[-1])} FLOPs foretells one of {held} with an error of "
            f"{error.mean:.1%}. Reading the same {setup.unique:,} bytes {few} times costs {gap_few.mean:.1%} of the loss that "
            f"fresh text gives, {many} times {gap_many.mean:.0%}. By arithmetic alone, text for 15 trillion tokens of 300 "
            f"lasts {years_left(15e12, 300e12, 2.4):.1f} years if sets grow 2.4 times a year, {years_left(15e12, 300e12, 10):.1f} "
            "if they grow tenfold." + (f" The text is the source of {read}." if read else "")
        ),
    )


def _bare_exponent(found: dict[str, Any]) -> float:
    """The exponent where N leaves out the embedding (as Kaplan et al. 2020 counted) and C does not."""
    curves = isoflops([_run(row) for curve in found["curves"] for row in curve])
    best = [c.parameters for c in curves]
    rows = sorted((row["parameters"], row["without_embedding"]) for curve in found["curves"] for row in curve)
    full, bare = (np.log([row[i] for row in rows]) for i in (0, 1))
    if len(best) < 2 or not np.isfinite(best).all():
        return math.nan
    return power_law([c.flops for c in curves], np.exp(np.interp(np.log(best), full, bare))).exponent


def _lost(found: dict[str, Any]) -> float:
    """The larger of the two sizes' losses at the chosen rate, relative to its best rate."""
    worst = 0.0
    for width in {row["width"] for row in found["rates"]}:
        losses = {row["rate"]: row["loss"] for row in found["rates"] if row["width"] == width}
        worst = max(worst, losses[found["rate"]] / min(losses.values()) - 1)
    return worst


def draw(setup: Setup, seeds: Sequence[dict[str, Any]]) -> str:
    """Valleys, floors and repeats, with losses averaged over seeds: all seeds train the same sizes."""

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    first, count = seeds[0], len(seeds)
    runs = [
        Run(row["parameters"], row["tokens"], mean([seeds[s]["curves"][i][j]["loss"] for s in range(count)]))
        for i, curve in enumerate(first["curves"]) for j, row in enumerate(curve)
    ]  # fmt: skip
    curves = isoflops(runs)
    line = frontier(curves).parameters if sum(math.isfinite(c.parameters) for c in curves) >= 2 else None
    rows = [
        {k: mean([s["repeats"][i][k] for s in seeds]) for k in ("tokens", "epochs", "repeated", "fresh")}
        for i in range(len(first["repeats"]))
    ]
    held = Run(*(mean([s["held"][k] for s in seeds]) for k in ("parameters", "tokens", "loss")))
    repeats = Repeats(
        *([row[k] for row in rows] for k in ("tokens", "epochs", "repeated", "fresh")), worn(first["repeater"], rows)[1]
    )
    return laws_chart(
        "P5", curves, line, "Loss over model size is a valley at each budget; its floor moves to larger models with compute",
        held=held, repeats=repeats,
    )  # fmt: skip
