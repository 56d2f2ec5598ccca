"""Training of the quality classifier: a fair split, calibration, and figures on pages it has not seen.

Classes are weighted alike inside each language: otherwise a language of which there is more good than ordinary text would
itself be quality. Shapes: P pages, C chunks.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import msgspec
import numpy as np
import pyarrow as pa

from fledge.core.config import Settings
from fledge.curate.calibration import balanced, expected_error, fit_calibration, reliability, roc_area, sigmoid
from fledge.curate.quality import ANY, FitSettings, QualityModel, chunk_scores, fit_weights
from fledge.curate.quality_sample import CALIBRATE, HELD_OUT, TRAIN, Sample, SplitBy, collect, joined

_LEAST = {TRAIN: 20, CALIBRATE: 3, HELD_OUT: 3}  # pages of each side, for a language to be learnt
_MOST_SHARED = 0.05
_LIMITS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


class TrainSettings(Settings, frozen=True, kw_only=True):
    """What the classifier learns from."""

    pages: int = 30_000
    "Pages of each side that are used at most, drawn by the hash of their words; 6 kB of memory each, 30 kB for long ones."
    held_out_by: SplitBy = "page"
    "What lies wholly on one side of the split: a page, or all pages of a web host (of a file where there is no URL)."
    fit: FitSettings = FitSettings()
    "How it is trained."

    def problems(self) -> list[str]:
        """Every rule these settings break, in words."""
        found = [] if self.pages >= 100 else [f"pages = {self.pages}: must be at least 100"]
        return found + self.fit.problems()


class Trained(NamedTuple):
    """A model, and the held-out pages its figures come from, with P(good) of each."""

    model: QualityModel
    held_out: Sample
    good: np.ndarray  # bool [P]
    p: np.ndarray  # float64 [P]


def train_quality(
    good: Iterable[pa.Table], ordinary: Iterable[pa.Table], settings: TrainSettings | None = None
) -> Trained:
    """Train on tables of pages (columns of `curate.pages.PAGE`), calibrate, and measure on a held-out fifth.

    A page that is on both sides is used on neither. Raises ValueError where the sides share more than a twentieth of
    their pages, or where no language has enough pages on both.
    """
    settings = settings or TrainSettings()
    sides, facts = zip(
        *(collect(tables, settings.pages, settings.held_out_by) for tables in (good, ordinary)), strict=True
    )
    pages, is_good, left_out = _usable(*sides)
    shared = len(np.intersect1d(sides[0].identity, sides[1].identity))
    weights, bias = _fitted(pages, is_good, settings.fit)

    rest = np.flatnonzero(pages.part != TRAIN)
    others, others_good = pages.take(rest), is_good[rest]
    found = others.features()
    score = np.bincount(found.text, chunk_scores(found, weights, bias) * found.words, len(rest)) / others.words
    asked = others.part == CALIBRATE
    groups = {ANY: asked} | {str(name): asked & (others.language == name) for name in sorted(set(others.language))}
    calibrations = {k: fit_calibration(score[m], others.words[m], others_good[m]) for k, m in groups.items()}
    data: dict[str, Any] = {"good": facts[0], "ordinary": facts[1], "on_both_sides": shared, "left_out": left_out}
    data["settings"] = {"pages": settings.pages, "held_out_by": settings.held_out_by}
    card = {"languages": calibrations, "fit": settings.fit, "data": data}
    model = QualityModel.trained(weights, bias, **card, metrics={})

    held = others.part == HELD_OUT
    out = others.take(held)
    p = model.calibrated(score[held], out.words, list(out.language)).astype(np.float64)
    metrics = measured(out, others_good[held], score[held], p)
    metrics["parts"] = {
        name: [int(((pages.part == part) & (is_good == side)).sum()) for side in (True, False)]
        for name, part in (("train", TRAIN), ("calibrate", CALIBRATE), ("held_out", HELD_OUT))
    }
    return Trained(QualityModel.trained(weights, bias, **card, metrics=metrics), out, others_good[held], p)


def _usable(good: Sample, ordinary: Sample) -> tuple[Sample, np.ndarray, dict[str, list[int]]]:
    """(pages on one side only in languages that can be learnt, which are good: bool [P], counts of the others)."""
    shared = np.intersect1d(good.identity, ordinary.identity)
    if len(shared) > _MOST_SHARED * min(len(good.identity), len(ordinary.identity)):
        raise ValueError(
            f"{len(shared)} of {len(good.identity)} good pages are among the {len(ordinary.identity)} ordinary ones too: "
            "nothing tells them apart; give folders that do not overlap"
        )
    sides = [side.take(~np.isin(side.identity, shared)) for side in (good, ordinary)]
    languages, left_out = _learnable(*sides)
    sides = [side.take(np.isin(side.language, languages)) for side in sides]
    return joined(sides), np.repeat([True, False], [len(side.identity) for side in sides]), left_out


def _fitted(pages: Sample, good: np.ndarray, settings: FitSettings) -> tuple[np.ndarray, float]:
    """Weights and bias from the training pages; the chunks of a page share its weight."""
    training = np.flatnonzero(pages.part == TRAIN)
    learnt = pages.take(training).features()
    good, language = good[training][learnt.text], pages.language[training][learnt.text]
    share = 1 / np.bincount(learnt.text)[learnt.text]
    return fit_weights(learnt, good, _alike(language, good, share), settings)


def _alike(language: np.ndarray, good: np.ndarray, weight: np.ndarray | None = None) -> np.ndarray:
    """Weights of mean 1 under which both sides have the same mass in each language, and languages keep theirs."""
    found = np.ones(len(good)) if weight is None else weight * len(weight) / weight.sum()
    for name in set(language):
        here = language == name
        whole = found[here].sum()
        for side in (here & good, here & ~good):
            found[side] *= whole / 2 / max(found[side].sum(), 1e-12)
    return found


def _learnable(good: Sample, ordinary: Sample) -> tuple[list[str], dict[str, list[int]]]:
    """Languages with enough pages on both sides in every part, and [good, ordinary] pages of the others."""
    enough, others = [], {}
    for name in sorted({*good.language, *ordinary.language}):
        counts = [[int(((s.language == name) & (s.part == part)).sum()) for part in _LEAST] for s in (good, ordinary)]
        if all(n >= least for side in counts for n, least in zip(side, _LEAST.values(), strict=True)):
            enough.append(name)
        else:
            others[name] = [sum(side) for side in counts]
    if not enough:
        told = ", ".join(f"{name} {a} and {b}" for name, (a, b) in others.items())
        raise ValueError(
            f"no language has enough good and ordinary pages ({told}): about 100 distinct pages of each side are needed "
            "to train, calibrate and measure in a language, and of several sources with held_out_by = source"
        )
    return enough, others


def measured(pages: Sample, good: np.ndarray, score: np.ndarray, p: np.ndarray) -> dict[str, Any]:
    """Figures of held-out pages, over all and by language: JSON-able.

    Weights make both sides count alike. `length_area` is the ROC area of the number of words alone.
    """
    names, weight = sorted(set(pages.language)), _alike(pages.language, good)
    found: dict[str, Any] = {"all": _figures(p, score, pages.words, good, weight)}
    found["languages"] = {
        n: _figures(*(c[pages.language == n] for c in (p, score, pages.words, good, weight))) for n in names
    }
    found["limits"] = [
        {"limit": limit, "good": float((p[good] >= limit).mean()), "ordinary": float((p[~good] >= limit).mean())}
        for limit in _LIMITS
    ]
    tenth = float(np.quantile(p[~good], 0.9))
    found["top_tenth"] = {"limit": tenth, "good": float((p[good] >= tenth).mean())}
    return found


def _figures(p: np.ndarray, score: np.ndarray, words: np.ndarray, good: np.ndarray, weight: np.ndarray) -> dict:
    bins = reliability(p, good, weight)
    before = sigmoid(score)
    return {
        "good": int(good.sum()),
        "ordinary": int((~good).sum()),
        "roc_area": roc_area(p, good),
        "accuracy": float(balanced(good) @ ((p > 0.5) == good) / len(good)),
        "calibration_error": expected_error(bins),
        "error_uncalibrated": expected_error(reliability(before, good, weight)),
        "length_area": roc_area(words, good),
        "reliability": msgspec.to_builtins(bins),
        "reliability_uncalibrated": msgspec.to_builtins(reliability(before, good, weight)),
    }
