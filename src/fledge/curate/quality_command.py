"""`fledge quality`: train a classifier from a folder of good and a folder of ordinary text, and show how good it is."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from fledge.core.config import Settings
from fledge.core.durable import write_atomically
from fledge.core.log import say, visible
from fledge.curate.inputs import ReadSettings, find_splits
from fledge.curate.pages import parted
from fledge.curate.quality import Card, QualityModel
from fledge.curate.quality_page import quality_page
from fledge.curate.quality_training import TrainSettings, train_quality
from fledge.curate.records import read_split

_FAR_FROM_CHANCE = 0.8  # ROC area of length alone from which it is told
_TELL_SECONDS = 10.0
PAGE = "quality.html"


class QualityOptions(Settings, frozen=True, kw_only=True):
    """Train a quality classifier; `fledge curate --quality OUT` then scores every page with it."""

    good: list[str]
    "Files or folders of text that is as one wants it."
    ordinary: list[str]
    "Files or folders of text as it comes, such as a crawl after `fledge curate`."
    out: str
    "Folder of the classifier: weights, card.json, and quality.html to look at."
    train: TrainSettings = TrainSettings()
    "What it learns from, and how."
    read: ReadSettings = ReadSettings()
    "How files become pages."

    def problems(self) -> list[str]:
        """Every rule these options break, in words."""
        found = [
            f"{name}: name at least one file or folder" for name in ("good", "ordinary") if not getattr(self, name)
        ]
        return found + self.train.problems() + self.read.problems()


class Reading:
    """The pages of one side, table by table, with a count of what could not be read."""

    def __init__(self, name: str, paths: Sequence[str], settings: ReadSettings):
        """Raises ValueError with everything wrong about the paths."""
        self.name, self.settings, self.rejected = name, settings, 0
        self.splits, skipped = find_splits(paths, settings=settings)
        self.facts: dict[str, Any] = {
            "paths": list(paths),
            "bytes": sum(split.bytes for split in self.splits),
            "files_not_read": [file.source for file in skipped],
        }

    def __iter__(self) -> Iterator[pa.Table]:
        told, pages, done_bytes = time.monotonic(), 0, 0
        for split in self.splits:
            for table in read_split(split, self.settings):
                kept, rejected = parted(table)
                self.rejected += len(rejected)
                pages += len(kept)
                if len(kept):
                    yield kept
            done_bytes += split.bytes
            if time.monotonic() - told > _TELL_SECONDS:
                told = time.monotonic()
                say(f"{self.name}: {pages:,} pages, {done_bytes / 1e6:.0f} of {self.facts['bytes'] / 1e6:.0f} MB")


def run(options: QualityOptions) -> Path:
    """Read, train, measure; writes the classifier and its page, prints the figures and returns the folder."""
    out = Path(options.out)
    sides = {name: Reading(name, getattr(options, name), options.read) for name in ("good", "ordinary")}
    say(", ".join(f"{name}: {side.facts['bytes'] / 1e6:.1f} MB" for name, side in sides.items()))
    trained = train_quality(sides["good"], sides["ordinary"], options.train)
    card = trained.model.card
    for name, side in sides.items():
        card.data[name] |= side.facts | {"not_read": side.rejected}
    model = QualityModel(trained.model.weights, trained.model.bias, card)
    model.save(out)
    write_atomically(out / PAGE, quality_page(trained))
    show(out, card)
    return out


def _percent(share: float) -> str:
    return f"{share:.1%}"


def show(out: Path, card: Card) -> None:
    """The figures as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    metrics = card.metrics
    table = Table("held-out pages", "good", "ordinary", "ROC area", "accuracy", "calibration error", box=None,
                  header_style="bold")  # fmt: skip
    for name, row in {"all": metrics["all"], **metrics["languages"]}.items():
        error = f"{row['calibration_error']:.3f} ({row['error_uncalibrated']:.3f} before)"
        counts = (f"{row['good']:,}", f"{row['ordinary']:,}")
        table.add_row(visible(name), *counts, f"{row['roc_area']:.3f}", _percent(row["accuracy"]), error)
    console.print(table)
    bins = Table("P(good) said", "pages", "mean", "good in fact", box=None, header_style="bold")
    for row in metrics["all"]["reliability"]:
        was = f"{_percent(row['was'])} ± {_percent(row['error'])}"
        bins.add_row(f"{row['low']:.1f} to {row['high']:.1f}", f"{row['pages']:,}", _percent(row["said"]), was)
    console.print(bins)
    limits = Table("quality at least", "good kept", "ordinary kept", box=None, header_style="bold")
    for row in metrics["limits"]:
        limits.add_row(f"{row['limit']:.2f}", _percent(row["good"]), _percent(row["ordinary"]))
    top = metrics["top_tenth"]
    limits.add_row(f"{top['limit']:.3f}", _percent(top["good"]), "10% (the best tenth)")
    console.print(limits)
    for line in warnings(card):
        say(line)
    say(f"{out}: score pages with `fledge curate .. --quality {out}`; {out / PAGE} shows the best and the worst")


def warnings(card: Card) -> list[str]:
    """What whoever uses this classifier should know."""
    found = []
    data, metrics = card.data, card.metrics
    for name, row in metrics["languages"].items():
        area = row["length_area"]
        if not 1 - _FAR_FROM_CHANCE < area < _FAR_FROM_CHANCE:
            longer = "longer" if area > 0.5 else "shorter"
            found.append(
                f"{name}: good pages are {longer} (ROC area of length alone {area:.2f}), so the two sides differ in more "
                "than quality: cut both into pages of like length"
            )
    if data["on_both_sides"]:
        found.append(f"pages on both sides, which were left out: {data['on_both_sides']}")
    for name, (good, ordinary) in data["left_out"].items():
        if good + ordinary >= 10:
            found.append(
                f"{name}: {good} good and {ordinary} ordinary pages are too few, so pages in it get no score (null)"
            )
    for side in ("good", "ordinary"):
        if data[side]["not_read"]:
            found.append(f"{side}: records that could not be read and were left out: {data[side]['not_read']}")
        if files := data[side]["files_not_read"]:
            found.append(f"{side}: files that are not read, such as {files[0]}: {len(files)}")
    return found
