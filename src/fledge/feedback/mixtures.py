"""Rewards made of rewards: a weighted sum, and safety before help as in Llama 2."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean, pstdev

from fledge.feedback.rules import Checked, Reward, Unit, shown
from fledge.tasks.base import Example

LOGIT_LIMIT = 10.0
"""Logits are held within +-10 (probability 0.99995): logit(0) and logit(1) are infinite. Tuned nowhere; a guard."""
THRESHOLD = 0.15
"""Below this probability of being safe an answer is judged on safety (Touvron et al. 2023, section 3.2.3: precision
0.89, recall 0.55 on Meta's safety test set)."""


class Weighted:
    """The sum of weight x reward. The parts keep their own scales: bring them to like size by their weights."""

    unit: Unit = "score"

    def __init__(self, parts: Sequence[tuple[float, Reward]]):
        """Raises ValueError for no parts and for a weight that is not finite."""
        wrong = [f"{weight}*{reward.name}" for weight, reward in parts if not math.isfinite(weight)]
        if wrong or not parts:
            raise ValueError(
                f"weighted sum of {', '.join(wrong) or 'nothing'}: each weight must be a finite number, one at least"
            )
        self.parts = list(parts)
        self.name = " + ".join(f"{weight:g}*{reward.name}" for weight, reward in parts)
        self.identity = " + ".join(f"{weight!r}*{reward.identity}" for weight, reward in parts)

    def __call__(self, examples: Sequence[Example], answers: Sequence[str]) -> list[float]:
        columns = [[weight * score for score in reward(examples, answers)] for weight, reward in self.parts]
        return [math.fsum(scores) for scores in zip(*columns, strict=True)]


def is_safety(example: Example) -> bool:
    """Whether a prompt was written to provoke harm: kind "dangerous", or a true `is_safety` in its row.

    The tag comes with the prompts, not from a reward model (Touvron et al. 2023, section 3.2.3).
    """
    return example.kind == "dangerous" or example.meta.get("is_safety") is True


def whiten(scores: Sequence[float], mean: float | None = None, std: float | None = None) -> list[float]:
    """(score - mean) / std; both from the scores themselves unless given. Equal scores give 0, not a division by 0."""
    mean = fmean(scores) if mean is None and scores else mean
    std = pstdev(scores) if std is None and scores else std
    return [(score - mean) / std if std > 0 else 0.0 for score in scores]


class Piecewise:
    """R_c = R_safe where the prompt is about safety or R_safe < threshold, else R_help; then R = whiten(logit(R_c)).

    Llama 2 (Touvron et al. 2023, section 3.2.3), with both rewards as probabilities. A part in logits (a reward model's
    score) is used as it is, for logit(sigmoid(s)) = s; any other part must give probabilities, between 0 and 1. Logits
    are held within +-10. The whitening makes rewards comparable with a KL penalty. It uses the mean and deviation of
    each call's batch, or fixed ones: with `statistics` an answer's reward does not depend on who is scored beside it.
    """

    unit: Unit = "score"

    def __init__(
        self,
        helpful: Reward,
        safe: Reward,
        is_safety: Callable[[Example], bool] = is_safety,
        threshold: float = THRESHOLD,
        statistics: tuple[float, float] | None = None,
    ):
        """statistics: (mean, standard deviation) of the logits of R_c; None takes each batch's own.

        Raises ValueError for a threshold outside (0, 1) and a deviation that is not above 0.
        """
        if not 0 < threshold < 1:
            raise ValueError(f"threshold = {threshold}: must be a probability between 0 and 1, such as {THRESHOLD}")
        if statistics is not None and not (all(map(math.isfinite, statistics)) and statistics[1] > 0):
            raise ValueError(f"statistics = {statistics}: must be a mean and a standard deviation above 0")
        self.helpful, self.safe, self.is_safety = helpful, safe, is_safety
        self.threshold, self.statistics = threshold, statistics
        self.name = f"piecewise({helpful.name},{safe.name})"
        self.identity = f"piecewise({helpful.identity},{safe.identity},{threshold!r},{statistics!r})"

    def __call__(self, examples: Sequence[Example], answers: Sequence[str]) -> list[float]:
        mean, std = self.statistics or (None, None)
        return whiten(self.logits(examples, answers), mean, std)

    def logits(self, examples: Sequence[Example], answers: Sequence[str]) -> list[float]:
        """logit(R_c) before the whitening, for finding fixed statistics."""
        helpful, safe = (_logits(part, examples, answers) for part in (self.helpful, self.safe))
        least = math.log(self.threshold / (1 - self.threshold))
        return [
            s if self.is_safety(example) or s < least else h
            for example, h, s in zip(examples, helpful, safe, strict=True)
        ]


def _logits(reward: Reward, examples: Sequence[Example], answers: Sequence[str]) -> list[float]:
    scores = reward(examples, answers)
    if reward.unit == "score":
        for example, answer, score in zip(examples, answers, scores, strict=True):
            if not 0 <= score <= 1:
                raise ValueError(
                    f"reward {reward.name} gave {score} for {shown(example, answer)}: inside piecewise it must be a "
                    "probability between 0 and 1, or a reward model's own score"
                )
        scores = [math.copysign(math.inf, p - 0.5) if p in (0, 1) else math.log(p) - math.log1p(-p) for p in scores]
    return [min(LOGIT_LIMIT, max(-LOGIT_LIMIT, score)) for score in scores]


def unscaled(reward: Reward) -> list[Piecewise]:
    """The piecewise mixtures within `reward` that whiten each batch by itself: their mean is 0 whatever is answered."""
    if isinstance(reward, Checked):
        return unscaled(reward.reward)
    if isinstance(reward, Weighted):
        return [found for _, part in reward.parts for found in unscaled(part)]
    return [reward] if isinstance(reward, Piecewise) and reward.statistics is None else []


def take_scale(reward: Reward, examples: Sequence[Example], answers: Sequence[str]) -> None:
    """Fix the mean and deviation of every piecewise mixture within `reward` by these answers, the model's before training.

    From then on its mean tells whether answers get better.
    """
    for mixture in unscaled(reward):
        logits = mixture.logits(examples, answers)
        mixture.statistics = (fmean(logits), pstdev(logits) or 1.0)
