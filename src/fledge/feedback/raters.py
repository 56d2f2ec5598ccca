"""Raters that are no people: any reward, a judge elsewhere, or the model itself, asked the questions people are asked.

A rater is asked many questions at once. Its answers must depend on the question and its `subject` alone, never on what
else is asked beside it, so that a run killed half-way and begun again gives the same votes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Literal, Protocol

import msgspec
import torch

from fledge.core.batch import Batch
from fledge.feedback.judge import JudgeReward, judge_pairs
from fledge.feedback.rules import Reward
from fledge.tasks.base import Example
from fledge.text.messages import Message
from fledge.text.template import answer_beginning, render_prompt

if TYPE_CHECKING:
    from fledge.core.model import Transformer
    from fledge.text.tokenizer import Tokenizer

Choice = Literal["left", "right", "same", "both_bad"]
KINDS = ("pair", "thumb", "score", "edit")
"""What people and raters can be asked; the kinds of votes with a meaning of their own."""


class Asked(msgspec.Struct, frozen=True):
    """One answer to be judged: thumb, score or edit."""

    subject: str
    """Id of what is judged; a rater's chances are drawn by it."""
    example: Example
    answer: str


class AskedPair(msgspec.Struct, frozen=True):
    """Two answers to be compared, as they stand on the screen."""

    subject: str
    example: Example
    left: str
    right: str


class Rater(Protocol):
    """Whoever answers the four questions. Each method gives one answer per question, in order."""

    name: str
    """Shown as the person's name."""
    kind: str
    """Kind of person in the store: simulated, rule, reward, judge or self."""
    kinds: tuple[str, ...]
    """What it can be asked, of `KINDS`."""

    def pairs(self, asked: Sequence[AskedPair]) -> list[Choice]:
        """The better side, "same", or "both_bad"."""
        ...

    def thumbs(self, asked: Sequence[Asked]) -> list[int]:
        """+1 up, -1 down."""
        ...

    def scores(self, asked: Sequence[Asked]) -> list[int]:
        """0 to 5."""
        ...

    def edits(self, asked: Sequence[Asked]) -> list[str | None]:
        """What the answer should have been; None where nothing is to be changed."""
        ...


class Scale(msgspec.Struct, frozen=True):
    """How a reward's number becomes a vote.

    `levels` are the least rewards of 1, 2, 3, 4 and 5 points. Thumbs go up from `liked` on; two answers are both bad
    below `bad`.
    """

    levels: tuple[float, float, float, float, float]
    liked: float
    bad: float

    def points(self, reward: float) -> int:
        """0 to 5."""
        return sum(reward >= level for level in self.levels)


UNIT = Scale(levels=(0.1, 0.3, 0.5, 0.7, 0.9), liked=0.5, bad=0.3)
"""For rewards between 0 and 1, such as a rule, a judge's points or a probability."""
LOGIT = Scale(levels=(-2.2, -0.85, 0.0, 0.85, 2.2), liked=0.0, bad=-0.85)
"""The same cuts on a logit: log(p / (1 - p)) of 0.1, 0.3, 0.5, 0.7 and 0.9. A reward model's zero means nothing by
itself (only differences were learnt), so calibrate it or trust its pairs only."""

Ideal = Callable[[Example, str], str | None]
"""(example, subject) -> the best answer there is, or None where it is not known."""


class RewardRater:
    """A reward as a rater without error: the higher reward is better, and `Scale` makes votes of numbers."""

    def __init__(
        self,
        reward: Reward,
        *,
        kind: str = "rule",
        tie_band: float = 0.0,
        scales: Scale | Mapping[str, Scale] | None = None,
        ideal: Ideal | None = None,
    ):
        """tie_band: rewards no further apart than this are "same".

        scales: one for all, or one per kind of example, "" for kinds that are not named; None takes `LOGIT` for a
        reward in logits and `UNIT` for any other. ideal: gives edits; without it there are none.
        """
        if tie_band < 0:
            raise ValueError(f"tie_band = {tie_band}: must be at least 0, in units of the reward")
        self.reward, self.name, self.kind, self.tie_band, self.ideal = reward, reward.name, kind, tie_band, ideal
        self._scales = (LOGIT if reward.unit == "logit" else UNIT) if scales is None else scales
        self.kinds = KINDS if ideal else KINDS[:3]

    def scale(self, example: Example) -> Scale:
        """The scale for this kind of example. Raises ValueError where none is given."""
        if isinstance(self._scales, Scale):
            return self._scales
        found = self._scales.get(example.kind, self._scales.get(""))
        if found is None:
            raise ValueError(
                f"example {example.id} is of kind {example.kind!r}, and scales are given for "
                f'{", ".join(self._scales)}: give one for it, or one under "" for all others'
            )
        return found

    def pairs(self, asked: Sequence[AskedPair]) -> list[Choice]:
        both = self.reward([q.example for q in asked for _ in range(2)], [a for q in asked for a in (q.left, q.right)])
        return [self.choose(q.example, *both[2 * i : 2 * i + 2]) for i, q in enumerate(asked)]

    def choose(self, example: Example, left: float, right: float) -> Choice:
        """The vote that two rewards make."""
        if max(left, right) < self.scale(example).bad:
            return "both_bad"
        if abs(left - right) <= self.tie_band:
            return "same"
        return "left" if left > right else "right"

    def thumbs(self, asked: Sequence[Asked]) -> list[int]:
        rewards = self._rewards(asked)
        return [1 if r >= self.scale(q.example).liked else -1 for q, r in zip(asked, rewards, strict=True)]

    def scores(self, asked: Sequence[Asked]) -> list[int]:
        return [self.scale(q.example).points(r) for q, r in zip(asked, self._rewards(asked), strict=True)]

    def edits(self, asked: Sequence[Asked]) -> list[str | None]:
        """The ideal answer, where the one given is worse by the reward."""
        if self.ideal is None:
            raise ValueError(f"rater {self.name} knows no better answers: ask it for {', '.join(self.kinds)}")
        ideals = [self.ideal(q.example, q.subject) for q in asked]
        known = [i for i, text in enumerate(ideals) if text is not None]
        examples = [asked[i].example for i in known]
        best = self.reward(examples, [ideals[i] for i in known])
        given = self.reward(examples, [asked[i].answer for i in known])
        found: list[str | None] = [None] * len(asked)
        for i, wanted, had in zip(known, best, given, strict=True):
            found[i] = ideals[i] if had < wanted else None
        return found

    def _rewards(self, asked: Sequence[Asked]) -> list[float]:
        return self.reward([q.example for q in asked], [q.answer for q in asked])


class JudgeRater(RewardRater):
    """A judge elsewhere: pairs are asked in both orders (`judge_pairs`), thumbs and scores come from its points."""

    def __init__(self, judge: JudgeReward):
        super().__init__(judge, kind="judge")
        self.judge = judge

    def pairs(self, asked: Sequence[AskedPair]) -> list[Choice]:
        verdicts = judge_pairs(self.judge, [(q.example, q.left, q.right) for q in asked])
        return [{"first": "left", "second": "right", "tie": "same"}[verdict] for verdict in verdicts]


_COMPARE = (
    "Which answer is better?\n\n[The conversation]\n{prompt}\n\n[Answer A]\n{a}\n\n[Answer B]\n{b}\n\n"
    "Reply with A or B only."
)
_WORTH = (
    "Is this a good answer?\n\n[The conversation]\n{prompt}\n\n[The answer]\n{answer}\n\n"
    "Reply with {yes} for yes or {no} for no only."
)
_NONE_SURE = 0.02
"""A model whose two letters are this close to even does not tell the answers apart. A choice, tuned nowhere."""


class SelfRater:
    """The model judges its own answers: the probability of "A" against "B" as the next token after a judging prompt.

    Every question is asked in both orders and the two probabilities are averaged, since models favour a letter and a
    place (Zheng et al. 2023, section 3.4; Yuan et al. 2024 train on a model's own verdicts).
    """

    kind = "self"
    kinds = KINDS[:3]

    def __init__(self, model: Transformer, tokenizer: Tokenizer, name: str = "self"):
        """model: with head "tokens". Raises ValueError where "A" and "B" begin with the same token."""
        self.model, self.tokenizer, self.name = model, tokenizer, name
        self._letters = [answer_beginning(tokenizer, letter)[0] for letter in "AB"]
        if self._letters[0] == self._letters[1]:
            raise ValueError(f"{name}: the letters A and B begin with one token; this model cannot name an answer")

    def pairs(self, asked: Sequence[AskedPair]) -> list[Choice]:
        found = self.preferences(asked)
        return ["same" if abs(p - 0.5) <= _NONE_SURE else "left" if p > 0.5 else "right" for p in found]

    def preferences(self, asked: Sequence[AskedPair]) -> list[float]:
        """Probability that the left answer is the better one."""
        texts = []
        for q in asked:
            prompt = _conversation(q.example)
            texts.append(_COMPARE.format(prompt=prompt, a=q.left, b=q.right))
            texts.append(_COMPARE.format(prompt=prompt, a=q.right, b=q.left))
        return self._averaged(texts)

    def worth(self, asked: Sequence[Asked]) -> list[float]:
        """Probability that the answer is a good one."""
        texts = []
        for q in asked:
            prompt = _conversation(q.example)
            texts += [_WORTH.format(prompt=prompt, answer=q.answer, yes=y, no=n) for y, n in ("AB", "BA")]
        return self._averaged(texts)

    def thumbs(self, asked: Sequence[Asked]) -> list[int]:
        return [1 if p >= UNIT.liked else -1 for p in self.worth(asked)]

    def scores(self, asked: Sequence[Asked]) -> list[int]:
        return [UNIT.points(p) for p in self.worth(asked)]

    def edits(self, asked: Sequence[Asked]) -> list[str | None]:
        raise ValueError(f"rater {self.name} knows no better answers: ask it for {', '.join(self.kinds)}")

    def _averaged(self, texts: Sequence[str]) -> list[float]:
        """Texts come in twos, the second with the letters changed over: mean of P(A) and 1 - P(A)."""
        first = self._chance_of_a(texts)
        return [(one + 1 - other) / 2 for one, other in zip(first[0::2], first[1::2], strict=True)]

    @torch.no_grad()
    def _chance_of_a(self, texts: Sequence[str]) -> list[float]:
        """P("A") / (P("A") + P("B")) as the answer's first token, each prompt cut at its start to fit the context."""
        room, pad, chances = self.model.config.context_tokens, self.tokenizer.pad, []
        for start in range(0, len(texts), 32):
            rows = [render_prompt(self.tokenizer, [Message("user", text)]) for text in texts[start : start + 32]]
            rows = [row if len(row) <= room else [self.tokenizer.bos, *row[1 - room :]] for row in rows]
            tokens = torch.full((2 * len(rows), max(map(len, rows))), pad)
            targets, weight = torch.full_like(tokens, pad), torch.zeros(tokens.shape)
            for i, row in enumerate(chain.from_iterable((row, row) for row in rows)):
                tokens[i, : len(row)] = torch.tensor(row)
                targets[i, len(row) - 1], weight[i, len(row) - 1] = self._letters[i % 2], 1.0
            batch = Batch(tokens=tokens, targets=targets, weight=weight, units=1.0)
            logp = self.model(batch.to(self.model.embedding.device)).logp.float().cpu()
            ends = (logp * weight).sum(1)
            chances += torch.sigmoid(ends[0::2] - ends[1::2]).tolist()
        return chances


def _conversation(example: Example) -> str:
    return "\n".join(f"{m['role']}: {m['content']}" for m in example.prompt)
