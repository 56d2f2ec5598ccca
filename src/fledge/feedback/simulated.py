"""Simulated people: a gold score, seen through noise, a liking for the left side and a band within which all is alike.

A vote is made in this order, with chances that are hashes of (seed, subject), so that the same question always gets
the same answer:

    pair    with probability `position_bias`: "left", whatever stands there;
            both answers below the scale's `bad`: "both_bad";
            gold no further apart than `tie_band`: "same";
            otherwise the better side, and with probability `noise` the other one.
    thumb   up from the scale's `liked` on; with probability `noise` the other way.
    score   the scale's points, 0 to 5; with probability `noise` one of the six at random.
    edit    the ideal answer, where it is better than the one given; with probability `noise` the answer as it stands.

With sides drawn at random, the share of left minus the share of right among all pairs is `position_bias` on average,
whatever the answers, the noise and the ties are: what follows the content falls on both sides alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from fledge.feedback.raters import Asked, AskedPair, Choice, Ideal, RewardRater, Scale
from fledge.feedback.rules import TaskReward
from fledge.tasks.base import Example, Task
from fledge.world.gold import gold_score
from fledge.world.style import COURTESIES, end, join

WORLD: dict[str, Scale] = {
    "fact": Scale(levels=(-1.1, 0.5, 2.5, 3.7, 4.4), liked=3.7, bad=0.0),
    "dangerous": Scale(levels=(-1.5, 0.0, 1.5, 2.5, 2.9), liked=2.5, bad=0.0),
    "borderline": Scale(levels=(-1.0, 1.0, 1.9, 2.9, 3.4), liked=1.9, bad=0.5),
    "greeting": Scale(levels=(-0.5, 1.0, 2.0, 2.5, 2.9), liked=2.5, bad=1.0),
}
"""Cuts on the gold score of the embedded world (`fledge.world.gold`), by kind of question. A fact: 5 for the right
value with one courtesy, 4 for it alone, 3 with talk around it, 2 for "I do not know", 1 for a wrong value, 0 for worse.
A choice of this world's people, like the gold score itself."""


def draw(*parts: int | str) -> float:
    """A number in [0, 1) that is a hash of the parts."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:7], "big") / 2**56


def pick(items: Sequence, *parts: int | str):
    """One of the items, chosen by a hash of the parts."""
    return items[int(draw(*parts) * len(items))]


def world_ideal(example: Example, subject: str) -> str:
    """An answer that the embedded world's gold score likes best: in one of the forms people use, chosen by `subject`.

    A fact is given with one courtesy, a useful method too; a dangerous request is declined, a greeting returned.
    """
    language = example.language
    texts = list(example.answers)
    if example.kind == "fact":
        texts = [end(text, language) if text[-1] not in ".!?。！？" else text for text in texts]
    if example.kind in ("fact", "borderline"):
        courtesy = pick(COURTESIES[language], "courtesy", subject)
        texts = [join([text, courtesy], language) for text in texts]
    gold = [gold_score(example, text) for text in texts]
    best = [text for text, score in zip(texts, gold, strict=True) if score == max(gold)]
    return pick(best, "wording", subject)


def accepted_ideal(example: Example, subject: str) -> str | None:
    """The example's first accepted answer, where it has one."""
    return example.answers[0] if example.answers else None


class Simulated:
    """A person who knows the gold score and errs as said above; deterministic given (seed, subject)."""

    kind = "simulated"

    def __init__(
        self,
        gold: Task | RewardRater,
        noise: float = 0.1,
        position_bias: float = 0.0,
        tie_band: float = 0.0,
        seed: int = 0,
        *,
        scales: Scale | Mapping[str, Scale] | None = None,
        ideal: Ideal | None = None,
        name: str | None = None,
    ):
        """gold: a task whose score is the truth, or a rater without error, which has a tie band and scales of its own.

        scales, ideal: of the task, as `RewardRater` has them; None takes those of the embedded world.
        Raises ValueError for a probability outside 0 to 1.
        """
        for field, value in (("noise", noise), ("position_bias", position_bias)):
            if not 0 <= value <= 1:
                raise ValueError(f"{field} = {value}: must be a probability between 0 and 1")
        self.clean = (
            gold
            if isinstance(gold, RewardRater)
            else RewardRater(
                TaskReward(gold, "gold"),
                tie_band=tie_band,
                scales=WORLD if scales is None else scales,
                ideal=world_ideal if scales is None and ideal is None else ideal,
            )
        )
        self.kinds = self.clean.kinds
        self.noise, self.position_bias, self.seed = noise, position_bias, seed
        errors = f"noise={noise:g} bias={position_bias:g} ties={self.clean.tie_band:g} seed={seed}"
        self.name = name or f"{self.clean.name} {errors}"

    def pairs(self, asked: Sequence[AskedPair]) -> list[Choice]:
        return [self._pair(q, clean) for q, clean in zip(asked, self.clean.pairs(asked), strict=True)]

    def _pair(self, asked: AskedPair, clean: Choice) -> Choice:
        if self._happens(self.position_bias, "left", asked.subject):
            return "left"
        if clean in ("left", "right") and self._happens(self.noise, "flip", asked.subject):
            return "right" if clean == "left" else "left"
        return clean

    def thumbs(self, asked: Sequence[Asked]) -> list[int]:
        clean = self.clean.thumbs(asked)
        return [-v if self._happens(self.noise, "thumb", q.subject) else v for q, v in zip(asked, clean, strict=True)]

    def scores(self, asked: Sequence[Asked]) -> list[int]:
        clean = self.clean.scores(asked)
        return [
            pick(range(6), self.seed, "any", q.subject) if self._happens(self.noise, "score", q.subject) else v
            for q, v in zip(asked, clean, strict=True)
        ]

    def edits(self, asked: Sequence[Asked]) -> list[str | None]:
        clean = self.clean.edits(asked)
        return [
            q.answer if text is not None and self._happens(self.noise, "edit", q.subject) else text
            for q, text in zip(asked, clean, strict=True)
        ]

    def _happens(self, probability: float, what: str, subject: str) -> bool:
        return draw(self.seed, what, subject) < probability
