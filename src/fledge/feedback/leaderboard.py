"""Which checkpoint people like better: Bradley-Terry strengths with ties, and intervals that say how sure that is.

Shapes: M models, R results.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import numpy as np

from fledge.feedback.agreement import Read, read_votes, wilson

if TYPE_CHECKING:
    from fledge.feedback.records import StoredCheckpoint
    from fledge.feedback.store import Store

PRIOR_DEVIATION = 3.0
"""Standard deviation of the normal prior on each log-strength: wide (a gap of 3 is 95% wins), so that it moves little
where there are votes, and keeps a model finite that has won, or lost, all of its few."""
ELO = 400 / math.log(10)
"""Points per unit of log-strength: 400 points are odds of ten to one, as in chess and in Chatbot Arena."""
_NORMAL_95 = 1.959964
_LEAST_STEP, _MOST_STEPS = 1e-10, 200


class Result(NamedTuple):
    """One comparison of two models."""

    first: Hashable
    second: Hashable
    outcome: float
    """1 first won, 0 second won, 0.5 a tie."""
    cluster: Hashable = None
    """Results of one cluster (a prompt) may depend on each other; None stands alone."""


class Strength(msgspec.Struct, frozen=True):
    """Log-strength of a model: exp(a - b) are its odds against another, ties aside. The mean over models is 0."""

    strength: float
    low: float
    high: float


class BradleyTerry(NamedTuple):
    """Strengths by model, and Davidson's nu: two equal models tie with probability nu / (2 + nu)."""

    strengths: dict[Hashable, Strength]
    ties: float


def bradley_terry(results: Sequence[Result], prior_deviation: float = PRIOR_DEVIATION) -> BradleyTerry:
    """Strengths of all models in `results` with 95% intervals.

    With p = exp(strength), model i beats j with probability p_i / (p_i + p_j + nu sqrt(p_i p_j)) and ties with
    nu sqrt(p_i p_j) / (same) (Davidson 1970, eq. 2). Penalised likelihood by Newton's method; intervals are normal. Their
    covariance is the sandwich H^-1 (sum of squared cluster scores + prior) H^-1 (Huber 1967; White 1982), which stays
    right where votes on one prompt resemble each other, or H^-1 where that is wider: three wins of three leave nothing
    to estimate a spread from, and must not look certain.

    Raises ValueError for a model compared with itself and an outcome other than 0, 0.5 and 1.
    """
    for result in results:
        if result.first == result.second or result.outcome not in (0, 0.5, 1):
            raise ValueError(f"{result}: needs two different models and an outcome of 0, 0.5 or 1")
    names = sorted({name for r in results for name in r[:2]}, key=repr)
    if not names:
        return BradleyTerry({}, 0.0)
    place = {name: i for i, name in enumerate(names)}
    first = np.array([place[r.first] for r in results])
    second = np.array([place[r.second] for r in results])
    outcome = np.array([r.outcome for r in results], np.float64)
    tied = bool((outcome == 0.5).any())
    x = np.zeros(len(names) + tied)  # log-strengths, then log nu where there are ties
    prior = np.full(len(x), prior_deviation**-2.0)
    for _ in range(_MOST_STEPS):
        scores, hessian = _derivatives(x, first, second, outcome, tied)
        gradient = scores.sum(0) - prior * x
        step = np.linalg.solve(hessian + np.diag(prior), gradient)
        x = x + step * min(1.0, 2.0 / max(1e-300, float(np.abs(step).max())))  # far from the top Newton may overshoot
        if float(np.abs(step).max()) < _LEAST_STEP:
            break
    scores, hessian = _derivatives(x, first, second, outcome, tied)
    inverse = np.linalg.inv(hessian + np.diag(prior))
    summed = _by_cluster(scores, [i if r.cluster is None else (r.cluster,) for i, r in enumerate(results)])
    m = len(names)
    centre = np.eye(m) - 1 / m  # strengths are told relative to their mean
    sandwich = inverse @ (summed.T @ summed + np.diag(prior)) @ inverse
    variances = [np.diag(centre @ c[:m, :m] @ centre) for c in (sandwich, inverse)]
    deviation = np.sqrt(np.maximum(*variances))
    value = centre @ x[:m]
    strengths = {
        name: Strength(float(v), float(v - _NORMAL_95 * d), float(v + _NORMAL_95 * d))
        for name, v, d in zip(names, value, deviation, strict=True)
    }
    return BradleyTerry(strengths, math.exp(x[m]) if tied else 0.0)


def _derivatives(
    x: np.ndarray, first: np.ndarray, second: np.ndarray, outcome: np.ndarray, tied: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Gradient of each result's log-likelihood [R,P], and minus the Hessian of their sum [P,P]; P = M (+ 1 with ties).

    A multinomial logit with the three utilities s_i, s_j and log nu + (s_i + s_j) / 2: concave, so Newton finds the top.
    """
    rows, size = len(first), len(x)
    design = np.zeros((rows, 3, size))  # utilities of first, second, tie
    at = np.arange(rows)
    design[at, 0, first] = design[at, 1, second] = 1.0
    design[at, 2, first] = design[at, 2, second] = 0.5
    if tied:
        design[:, 2, -1] = 1.0
    utility = design @ x
    if not tied:
        utility[:, 2] = -np.inf
    chance = np.exp(utility - utility.max(1, keepdims=True))
    chance /= chance.sum(1, keepdims=True)
    happened = np.stack([outcome == 1, outcome == 0, outcome == 0.5], 1)
    mean = np.einsum("rk,rkp->rp", chance, design)
    scores = np.einsum("rk,rkp->rp", happened.astype(np.float64), design) - mean
    hessian = np.einsum("rk,rkp,rkq->pq", chance, design, design) - mean.T @ mean
    return scores, hessian


def _by_cluster(scores: np.ndarray, clusters: Sequence[Hashable]) -> np.ndarray:
    """Sum of the scores of each cluster, [C,P]."""
    order: dict[Hashable, int] = {}
    member = np.array([order.setdefault(cluster, len(order)) for cluster in clusters])
    summed = np.zeros((len(order), scores.shape[1]))
    np.add.at(summed, member, scores)
    return summed


class Place(msgspec.Struct, frozen=True):
    """One checkpoint on the leaderboard. None: no vote of that kind."""

    id: str
    name: str
    stage: str
    comparisons: int
    wins: int
    losses: int
    ties: int
    strength: float | None
    low: float | None
    high: float | None
    elo: float | None
    """1000 + 400 log10 of the odds against the mean of all models."""
    elo_low: float | None
    elo_high: float | None
    thumbs: int
    up: float | None
    """Share of thumbs up, with its 95% interval (Wilson 1927)."""
    up_low: float | None
    up_high: float | None
    scores: int
    score: float | None
    """Mean of the 0-5 scores."""


def leaderboard(store: Store, upto_seq: int | None = None) -> list[Place]:
    """Every checkpoint that was judged, the strongest first; those never compared with another follow by thumbs.

    Votes of people whose votes count for nothing (`agreement.statistics` says who and why) are left out.
    """
    read = read_votes(store, upto_seq)
    results = comparisons(read)
    found = bradley_terry(results).strengths
    places = [_place(c, read, results, found.get(c.id)) for c in read.checkpoints.values()]
    judged = [p for p in places if p.comparisons or p.thumbs or p.scores]
    return sorted(
        judged, key=lambda p: (-math.inf if p.strength is None else p.strength, p.up or 0.0, p.id), reverse=True
    )


def comparisons(read: Read) -> list[Result]:
    """Pair votes over answers of two different checkpoints."""
    found = []
    for vote in read.counted("pair"):
        task = read.tasks[vote.task_id]
        a, b = (read.drafts[d].checkpoint_id for d in (task.draft_a, task.draft_b))
        if a is not None and b is not None and a != b:
            found.append(Result(a, b, (vote.value + 1) / 2, task.prompt_id))
    return found


def model_name(checkpoint: StoredCheckpoint) -> str:
    """How a checkpoint is called in tables and files: its run and the beginning of its id; of imported ones the name."""
    if checkpoint.stage == "import":
        return checkpoint.path
    parts = [part for part in PurePath(checkpoint.path).parts if part != "checkpoints" and not part.startswith("step-")]
    return f"{parts[-1] if parts else checkpoint.stage}-{checkpoint.id[:8]}"


def _place(checkpoint: StoredCheckpoint, read: Read, results: Sequence[Result], strength: Strength | None) -> Place:
    own = [r.outcome if r.first == checkpoint.id else 1 - r.outcome for r in results if checkpoint.id in r[:2]]
    thumbs, scores = (
        [v.value for v in read.counted(kind) if read.drafts[v.draft_id].checkpoint_id == checkpoint.id]
        for kind in ("thumb", "score")
    )
    up = thumbs.count(1)
    low, high = wilson(up, len(thumbs)) if thumbs else (None, None)
    elo = [None] * 3 if strength is None else [1000 + ELO * s for s in (strength.strength, strength.low, strength.high)]
    return Place(
        checkpoint.id, model_name(checkpoint), checkpoint.stage, len(own), own.count(1), own.count(0), own.count(0.5),
        *((None, None, None) if strength is None else (strength.strength, strength.low, strength.high)), *elo,
        len(thumbs), up / len(thumbs) if thumbs else None, low, high,
        len(scores), sum(scores) / len(scores) if scores else None,
    )  # fmt: skip
