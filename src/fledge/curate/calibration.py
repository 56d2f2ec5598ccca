"""How far a score can be believed: ranking (ROC area), and whether a probability of 0.8 is right 8 times in 10.

Weights count pages: classes of unlike size are weighted so that both have the same mass, which makes every probability
one among as many good as ordinary pages. Shapes: P pages, B bins.
"""

from __future__ import annotations

import math

import msgspec
import numpy as np

_NEWTON_STEPS = 100
_PRIOR = 0.1  # of the change of slope with length, in pages: enough to be defined where all pages have one length
REFERENCE_WORDS = 512


class Calibration(msgspec.Struct, frozen=True):
    """P(good) = sigmoid(slope x score + shift), where the slope grows with the page's length.

    Platt 1999 with one parameter more: the mean over a long page is surer than that over a few words (measured on prose
    with a fifth of its words exchanged: the best slope is 1.2 at 13 words and 5.1 at 700).
    """

    slope: float = 1.0
    per_doubling: float = 0.0
    "Added to the slope for each doubling of the page's words over 512."
    shift: float = 0.0
    shortest: float = 1.0
    "Words; pages beyond this and the next are taken for as long as it, for nothing is known about them."
    longest: float = 1e9

    def __call__(self, score: np.ndarray, words: np.ndarray) -> np.ndarray:
        """Scores and words of each page [P] -> probabilities, float64 [P]."""
        slope = self.slope + self.per_doubling * self._doublings(words)
        return sigmoid(np.maximum(slope, 0.0) * score + self.shift)

    def _doublings(self, words: np.ndarray) -> np.ndarray:
        return np.log2(np.clip(words, self.shortest, self.longest) / REFERENCE_WORDS)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) without overflow."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(x, np.float64)))


def balanced(good: np.ndarray) -> np.ndarray:
    """Weights [P] under which both classes of `good` (bool [P]) have the same mass, P in all."""
    share = np.mean(good) if len(good) else 0.0
    return np.where(good, 0.5 / max(share, 1e-12), 0.5 / max(1 - share, 1e-12))


def fit_calibration(score: np.ndarray, words: np.ndarray, good: np.ndarray) -> Calibration:
    """Maximum likelihood by Newton's method (Lin, Lin, Weng 2007), classes weighted alike.

    score, words float [P]; good bool [P]. Targets are Platt's smoothed ones, so that few pages give no certainty.
    Raises ValueError where one of the classes has no page.
    """
    positives, negatives = int(good.sum()), int((~good).sum())
    if not positives or not negatives:
        raise ValueError(f"{positives} good and {negatives} ordinary pages to calibrate on: both must have some")
    shortest, longest = np.quantile(words, (0.01, 0.99))
    blank = Calibration(shortest=max(1.0, float(shortest)), longest=max(1.0, float(longest)))
    columns = np.stack([score, score * blank._doublings(words), np.ones(len(score))], 1)  # [P,3]
    target = np.where(good, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    weight = balanced(good)
    prior = np.array([1e-6, _PRIOR, 1e-6])
    found = np.array([1.0, 0.0, 0.0])
    loss = math.inf
    for _ in range(_NEWTON_STEPS):
        p = sigmoid(columns @ found)
        gradient = columns.T @ (weight * (p - target)) + prior * found
        curvature = (columns * (weight * p * (1 - p))[:, None]).T @ columns + np.diag(prior)
        step = np.linalg.solve(curvature, gradient)
        for _ in range(30):  # halved until it helps
            now = _loss(columns @ (found - step), target, weight) + prior @ (found - step) ** 2 / 2
            if now <= loss:
                break
            step = step / 2
        if loss - now < 1e-9 * len(score):
            break
        found, loss = found - step, now
    slope, per_doubling, shift = map(float, found)
    return msgspec.structs.replace(blank, slope=slope, per_doubling=per_doubling, shift=shift)


def _loss(logit: np.ndarray, target: np.ndarray, weight: np.ndarray) -> float:
    return float(weight @ (np.logaddexp(0.0, logit) - target * logit))


def roc_area(score: np.ndarray, good: np.ndarray) -> float:
    """P(a good page scores above an ordinary one), ties half (Mann and Whitney 1947). NaN where a class is empty."""
    positives, negatives = int(good.sum()), int((~good).sum())
    if not positives or not negatives:
        return math.nan
    _, place, count = np.unique(score, return_inverse=True, return_counts=True)
    rank = np.cumsum(count) - (count - 1) / 2  # mean rank of equal scores, from 1
    return float((rank[place][good].sum() - positives * (positives + 1) / 2) / (positives * negatives))


class Bin(msgspec.Struct, frozen=True):
    """One row of the reliability table."""

    low: float
    high: float
    pages: int
    weight: float  # share of all weight
    said: float  # mean probability
    was: float  # weighted share that is good
    error: float  # standard error of `was`


def reliability(p: np.ndarray, good: np.ndarray, weight: np.ndarray | None = None, bins: int = 10) -> list[Bin]:
    """Bins of equal width that hold pages (DeGroot and Fienberg 1983). p float [P] in [0,1], good bool [P]."""
    weight = balanced(good) if weight is None else weight
    place = np.clip((np.asarray(p) * bins).astype(np.int64), 0, bins - 1)
    rows = []
    for number in range(bins):
        here = place == number
        if not here.any():
            continue
        w = weight[here]
        mass = w.sum()
        was = float(w @ good[here] / mass)
        pages_worth = mass**2 / (w @ w)  # Kish's effective number
        # as if one page more of each kind had been seen: none of few is not none at all
        eased = (was * pages_worth + 1) / (pages_worth + 2)
        error = math.sqrt(eased * (1 - eased) / pages_worth)
        said = float(w @ p[here] / mass)
        rows.append(
            Bin(number / bins, (number + 1) / bins, int(here.sum()), float(mass / weight.sum()), said, was, error)
        )
    return rows


def expected_error(bins: list[Bin]) -> float:
    """Expected calibration error: mean |said - was|, bins weighted by their share (Guo et al. 2017, section 2)."""
    return sum(row.weight * abs(row.said - row.was) for row in bins)
