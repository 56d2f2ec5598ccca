"""Scores of pages as columns: a trained classifier, perplexity under a checkpoint, educational value by a judge."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fledge.curate.pages import Kernel


class Scorer(NamedTuple):
    """A column of scores."""

    name: str  # of the column (float32, null = not judged): "quality", "perplexity" or "educational"
    kernel: Kernel  # adds it, rejects nothing
    higher_is_better: bool
    identity: str  # names the exact model and settings: belongs into the configuration a resume is compared with


def open_scorer(spec: str, scratch: Path | None = None) -> Scorer:
    """The scorer that `spec` names: quality:FOLDER, perplexity:RUN or judge:URL#MODEL.

    scratch: folder where a judge's points are kept, so that a resumed run asks nothing twice; None keeps them nowhere.
    Raises ValueError where there is none such.
    """
    kind, _, what = spec.partition(":")
    if kind == "quality" and what:
        from fledge.curate.quality import QualityModel, quality_kernel

        model = QualityModel.open(what)
        return Scorer("quality", quality_kernel(model), True, f"quality {model.id}")
    if kind == "perplexity" and what:
        from fledge.curate.perplexity import Perplexity
        from fledge.stages.common import open_model  # above this room: opening what an option names, as commands do

        opened = open_model(what, precision="float32")  # scores are compared: bfloat16 moves them by a percent
        scorer = Perplexity(opened.model, opened.tokenizer, str(opened.path))
        return Scorer("perplexity", scorer, False, f"perplexity {opened.id} {scorer.identity}")
    if kind == "judge" and what:
        from fledge.curate.educational import Educational, judge_config
        from fledge.generate.endpoint import split_address

        judge = Educational(judge_config(*split_address(what)), scratch)
        return Scorer("educational", judge, True, judge.identity)
    raise ValueError(
        f"scorer {spec!r}: must be quality:FOLDER (a classifier of `fledge quality`), perplexity:RUN (a trained model) "
        "or judge:URL#MODEL (an OpenAI-compatible endpoint)"
    )


def top_share(values: Iterable[np.ndarray], share: float, *, higher_is_better: bool = True) -> float:
    """The limit that keeps the best `share` of all pages: `score >= limit`, or `<=` where lower is better.

    values: arrays of float32 scores, NaN = not judged, which counts for nothing. At least `share` of the judged pages
    pass, for pages of equal score pass together (a judge gives few distinct ones). Exact, in 4 bytes a page. With none
    judged every limit is as good: -inf, or inf. Raises ValueError for a share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share = {share}: must be above 0 and at most 1, such as 0.1 for the best tenth")
    held = [part[~np.isnan(part)] for part in (np.asarray(column, np.float32) for column in values)]
    scores = np.concatenate(held) if held else np.zeros(0, np.float32)
    if not len(scores):
        return -np.inf if higher_is_better else np.inf
    count = int(np.ceil(share * len(scores) - 1e-9))
    place = len(scores) - count if higher_is_better else count - 1
    scores.partition(place)
    return float(scores[place])
