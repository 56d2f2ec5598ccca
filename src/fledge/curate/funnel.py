"""Where every page went: counts after each step, by language, and each rule with what it dropped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fledge.curate.pages import REASON, VALUE
from fledge.curate.shards import characters, estimated_tokens

SAMPLES = 5  # of each rule
SAMPLE_CHARACTERS = 160
EVIDENCE = "contaminated_by"  # tells more than the start of a page


class Sizes(NamedTuple):
    """Characters and estimated tokens of each page of a table, int64 [n]."""

    characters: np.ndarray
    tokens: np.ndarray

    @classmethod
    def of(cls, pages: pa.Table) -> Sizes:
        return cls(characters(pages["text"]), estimated_tokens(pages["text"]))

    def at(self, rows: np.ndarray) -> Sizes:
        return Sizes(self.characters[rows], self.tokens[rows])


class Amount(msgspec.Struct, frozen=True):
    """How much text."""

    pages: int = 0
    characters: int = 0
    tokens: int = 0

    def __add__(self, other: Amount) -> Amount:
        return Amount(self.pages + other.pages, self.characters + other.characters, self.tokens + other.tokens)

    def __sub__(self, other: Amount) -> Amount:
        return Amount(self.pages - other.pages, self.characters - other.characters, self.tokens - other.tokens)


class Kept(msgspec.Struct, frozen=True):
    """What stays after a step, in one language ("" before it is identified)."""

    step: str
    language: str
    amount: Amount


class Dropped(msgspec.Struct, frozen=True):
    """What a rule of a step took away, in one language."""

    step: str
    reason: str
    language: str
    amount: Amount


class Sample(msgspec.Struct, frozen=True):
    """One of the first pages that a rule dropped."""

    step: str
    reason: str
    id: str
    source: str
    value: float | None
    text: str  # its start, or the evaluation text in it


class Funnel(msgspec.Struct, frozen=True):
    """Counts of some pages, in the order of the steps. Every page that came is in `dropped` or goes on."""

    steps: list[str]
    kept: list[Kept]
    dropped: list[Dropped]
    samples: list[Sample]
    counted: dict[
        str, int
    ]  # sums of the counting columns (masked items, removed lines) over the pages a step was given

    def after(self, step: str, language: str | None = None) -> Amount:
        """What stays after `step`, in one language or in all."""
        return _total(k.amount for k in self.kept if k.step == step and language in (None, k.language))

    def lost(self, step: str, language: str | None = None) -> Amount:
        """What the rules of `step` took away."""
        return _total(d.amount for d in self.dropped if d.step == step and language in (None, d.language))

    def came(self) -> Amount:
        """What went into the first step."""
        return self.after(self.steps[0]) + self.lost(self.steps[0])

    def languages(self) -> list[str]:
        """Those seen, the most pages first."""
        pages: dict[str, int] = {}
        for count in (*self.kept, *self.dropped):
            pages[count.language] = pages.get(count.language, 0) + count.amount.pages
        return sorted((name for name in pages if name), key=lambda name: (-pages[name], name))

    def check(self) -> None:
        """Every page that entered a step left it as kept or as dropped; our own bug if not."""
        before = None
        for step in self.steps:
            after, lost = self.after(step).pages, self.lost(step).pages
            assert before in (None, after + lost), f"{step}: {before} pages came, {after} stay, {lost} were dropped"
            before = after
        strangers = {count.step for count in (*self.kept, *self.dropped)} - set(self.steps)
        assert not strangers, f"counts of {strangers}, which are no steps"


def _total(amounts: Iterable[Amount]) -> Amount:
    return sum(amounts, Amount())


class Tally:
    """Counts pages as they pass the steps."""

    def __init__(self, steps: Sequence[str]) -> None:
        self.steps = list(steps)
        self._kept: dict[tuple[str, str], Amount] = {}
        self._dropped: dict[tuple[str, str, str], Amount] = {}
        self._samples: dict[tuple[str, str], list[Sample]] = {}
        self._counted: dict[str, int] = {}

    def keep(self, step: str, pages: pa.Table, sizes: Sizes) -> None:
        """`pages` stay after `step`."""
        for (language,), amount in _grouped([pages["language"]], sizes):
            self._add(self._kept, (step, language), amount)

    def drop(self, step: str, rejected: pa.Table, sizes: Sizes) -> None:
        """`rejected` (with reason and value) end at `step`."""
        for (reason, language), amount in _grouped([rejected[REASON], rejected["language"]], sizes):
            self._add(self._dropped, (step, reason, language), amount)
            samples = self._samples.setdefault((step, reason), [])
            if len(samples) < SAMPLES:
                some = rejected.filter(pc.equal(rejected[REASON], reason)).slice(0, SAMPLES - len(samples))
                samples += _samples(step, some.slice(0, SAMPLES - len(samples)))

    def count(self, column: str, number: int) -> None:
        """`number` more of what a counting column counts."""
        self._counted[column] = self._counted.get(column, 0) + number

    @staticmethod
    def _add(counts: dict, key: tuple, amount: Amount) -> None:
        counts[key] = counts.get(key, Amount()) + amount

    def add(self, funnel: Funnel) -> None:
        """The counts of other pages that passed the same steps, or some of them."""
        for kept in funnel.kept:
            self._add(self._kept, (kept.step, kept.language), kept.amount)
        for column, number in funnel.counted.items():
            self.count(column, number)
        for dropped in funnel.dropped:
            self._add(self._dropped, (dropped.step, dropped.reason, dropped.language), dropped.amount)
        for sample in funnel.samples:
            samples = self._samples.setdefault((sample.step, sample.reason), [])
            if len(samples) < SAMPLES:
                samples.append(sample)

    def funnel(self) -> Funnel:
        """The counts so far, ordered by step, then by name."""
        place = {step: number for number, step in enumerate(self.steps)}

        def ordered(counts: dict) -> list:
            return sorted(counts.items(), key=lambda entry: (place[entry[0][0]], *entry[0][1:]))

        return Funnel(
            self.steps,
            [Kept(*key, amount) for key, amount in ordered(self._kept)],
            [Dropped(*key, amount) for key, amount in ordered(self._dropped)],
            [sample for _, samples in ordered(self._samples) for sample in samples],
            dict(sorted(self._counted.items())),
        )


def _grouped(keys: Sequence[pa.ChunkedArray], sizes: Sizes) -> list[tuple[tuple[str, ...], Amount]]:
    """(values of the key columns, what has them), sorted; null counts as ""."""
    if not len(keys[0]):
        return []
    names = [f"key{number}" for number in range(len(keys))]
    columns = [pc.fill_null(key, "") for key in keys]
    table = pa.table([*columns, sizes.characters, sizes.tokens], [*names, "characters", "tokens"])
    sums = table.group_by(names, use_threads=False).aggregate(
        [([], "count_all"), ("characters", "sum"), ("tokens", "sum")]
    )
    return sorted(
        (tuple(row[name] for name in names), Amount(row["count_all"], row["characters_sum"], row["tokens_sum"]))
        for row in sums.to_pylist()
    )


def _samples(step: str, rejected: pa.Table) -> list[Sample]:
    shown = pc.fill_null(rejected["text"], "")
    if EVIDENCE in rejected.column_names:
        shown = pc.coalesce(rejected[EVIDENCE].cast(shown.type), shown)
    texts = pc.utf8_slice_codeunits(shown, 0, SAMPLE_CHARACTERS).to_pylist()
    columns = (rejected[name].to_pylist() for name in (REASON, "id", "source", VALUE))
    return [
        Sample(step, reason, id, source, value, text)
        for reason, id, source, value, text in zip(*columns, texts, strict=True)
    ]


def merged(funnels: Iterable[Funnel], steps: Sequence[str]) -> Funnel:
    """The counts of all pages of several shards; samples are the first ones."""
    tally = Tally(steps)
    for funnel in funnels:
        tally.add(funnel)
    return tally.funnel()
