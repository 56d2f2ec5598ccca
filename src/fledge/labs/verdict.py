"""Numbers with intervals, checks with a rule, and the verdict they add up to.

A number is a mean over seeds. Its 90% interval is a bootstrap over seeds and, where the number is a share of so many
questions, over the questions as well (a binomial draw each): three seeds alone would promise too much.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fledge.core.config import Settings

REPRODUCED, PARTLY, NOT_REPRODUCED = "REPRODUCED", "PARTLY", "NOT REPRODUCED"
_DRAWS, _LEVEL = 4000, 0.90

Unit = Literal["%", "points", "x", "nats", "bits", ""]


class Number(Settings, frozen=True, kw_only=True):
    """A measured number, and what the paper says where it says something."""

    label: str
    "What was measured."
    by_seed: list[float]
    "One value for each seed; shares are between 0 and 1."
    unit: Unit = ""
    "%: a share; points: a difference of shares; x: a ratio."
    of: int | None = None
    "Questions behind each share; None for what is no share of questions."
    paper: str | None = None
    "The paper's own number, in its words, where there is one."

    @property
    def mean(self) -> float:
        return float(np.mean(self.by_seed))

    def interval(self) -> tuple[float, float]:
        """90% interval of the mean."""
        return interval(self.by_seed, self.of)


def interval(by_seed: Sequence[float], of: int | None = None) -> tuple[float, float]:
    """90% bootstrap interval of the mean over seeds; with `of`, each share is drawn again from that many questions."""
    values = np.asarray(by_seed, dtype=float)
    if not np.isfinite(values).all():
        return float("-inf"), float("inf")
    dice = np.random.default_rng(0)
    drawn = values[dice.integers(len(values), size=(_DRAWS, len(values)))]
    if of:
        drawn = dice.binomial(of, np.clip(drawn, 0, 1)) / of
    low, high = np.quantile(drawn.mean(1), [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return float(low), float(high)


class Check(Settings, frozen=True, kw_only=True):
    """One condition of the claim, tested on the mean over seeds."""

    says: str
    "What must hold, in words."
    value: float
    "The mean it was tested on."
    low: float
    "Lower end of its 90% interval."
    high: float
    "Upper end of it."
    rule: str
    "The condition on the value, such as >= 0.7."
    held: bool
    "Whether the mean meets it."
    unit: Unit = ""
    "As of a Number."
    core: bool = True
    "Part of the claim itself; False: a detail, or a control."


def at_least(says: str, number: Number, bound: float, *, core: bool = True) -> Check:
    """The mean is `bound` or more."""
    return _check(says, number, f">= {bound:g}", number.mean >= bound, core)


def at_most(says: str, number: Number, bound: float, *, core: bool = True) -> Check:
    """The mean is `bound` or less."""
    return _check(says, number, f"<= {bound:g}", number.mean <= bound, core)


def between(says: str, number: Number, low: float, high: float, *, core: bool = True) -> Check:
    """The mean is in [low, high]."""
    return _check(says, number, f"in [{low:g}, {high:g}]", low <= number.mean <= high, core)


def difference(label: str, a: Number, b: Number, unit: Unit = "points") -> Number:
    """a less b, seed by seed."""
    return Number(label=label, by_seed=[x - y for x, y in zip(a.by_seed, b.by_seed, strict=True)], unit=unit)


def ratio(label: str, a: Number, b: Number) -> Number:
    """Mean of a over mean of b, the same for every seed's place: a ratio of seeds would blow up where b is near 0."""
    floor = 1e-9
    return Number(label=label, by_seed=[x / max(b.mean, floor) for x in a.by_seed], unit="x")


def _check(says: str, number: Number, rule: str, held: bool, core: bool) -> Check:
    low, high = number.interval()
    return Check(
        says=says, value=number.mean, low=low, high=high, rule=rule, held=bool(held), unit=number.unit, core=core
    )


class Findings(Settings, frozen=True, kw_only=True):
    """What a lab makes of its seeds."""

    numbers: list[Number]
    "The figures a reader wants first, at most eight."
    checks: list[Check]
    "The conditions of the claim and its controls."
    said: str
    "One or two sentences on what came out and what it means, made from the numbers."


def verdict(checks: Sequence[Check]) -> str:
    """REPRODUCED where every check holds, NOT REPRODUCED where no core check does, else PARTLY."""
    if all(check.held for check in checks):
        return REPRODUCED
    return PARTLY if any(check.held for check in checks if check.core) else NOT_REPRODUCED


def reason(checks: Sequence[Check]) -> str:
    """Which checks failed and by what; empty when all hold."""
    failed = [c for c in checks if not c.held]
    return "; ".join(f"{c.says}: {written(c.value, c.unit)}, must be {c.rule}" for c in failed)


def written(value: float, unit: Unit = "") -> str:
    """A value with its unit, as a reader expects it: 41%, +12 points, 3.2x, 1.204 nats."""
    if not np.isfinite(value):
        return "–"
    if unit == "%":
        return f"{value:.1%}" if 0 < abs(value) < 0.1 or 0.9 < value < 1 else f"{value:.0%}"
    if unit == "points":
        return f"{100 * value:+.1f} points".replace("-", "−")
    if unit == "x":
        return f"{value:.3g}×"
    return f"{value:.4g}" + (f" {unit}" if unit else "")


def span(low: float, high: float, unit: Unit = "") -> str:
    """An interval, its unit said once: 61% to 72%, 1.884 to 1.898."""
    ends = [written(end, "" if unit in ("nats", "bits") else unit) for end in (low, high)]
    if unit == "points":
        ends[0] = ends[0].removesuffix(" points")
    return " to ".join(ends)
