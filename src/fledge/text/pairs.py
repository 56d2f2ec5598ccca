"""Sources of preferences: two answers to one prompt (PairSource) and single votes (ThumbSource).

Shapes: B rows, T positions, P pairs, N votes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from fledge.core.batch import Batch
from fledge.core.checkpoint import sha256
from fledge.text.sources import Resumable, Sequences, order
from fledge.text.template import Rendered, answer_start

_PAD_TOKENS = 8  # few row lengths: memory of one step fits the next
_SCORED_TOKENS = 1024  # of one forward pass for the reference point: few, so that rows are alike in length
_VOTES_AT_LEAST = 2  # in a step of KTO

Score = Callable[[Batch], Tensor]  # Batch -> log p [B,T] of its targets under the policy as it is now, no gradient


def answer_rows(
    sequences: Sequences, members: Sequence[int], pad: int, ref_logp: np.ndarray | None = None
) -> dict[str, Tensor]:
    """Columns tokens, targets, weight (and ref_logp) [B,T] of the given sequences, padded to the longest of them.

    ref_logp: flat, aligned with sequences.tokens.
    """
    flat, counts, offsets = sequences.tokens, sequences.weights, sequences.offsets
    shape = (len(members), _padded(int(max(offsets[m + 1] - offsets[m] - 1 for m in members))))
    columns = {"tokens": np.full(shape, pad), "targets": np.full(shape, pad), "weight": np.zeros(shape, np.float32)}
    if ref_logp is not None:
        columns["ref_logp"] = np.zeros(shape, np.float32)
    for row, m in enumerate(members):
        first, last = int(offsets[m]), int(offsets[m + 1])
        size = last - first - 1
        columns["tokens"][row, :size] = flat[first : last - 1]
        columns["targets"][row, :size] = flat[first + 1 : last]
        columns["weight"][row, :size] = counts[first + 1 : last]
        if ref_logp is not None:
            columns["ref_logp"][row, :size] = ref_logp[first + 1 : last]
    return {name: torch.from_numpy(column) for name, column in columns.items()}


def end_rows(sequences: Sequences, members: Sequence[int], pad: int) -> dict[str, Tensor]:
    """The same for a reward head: weight 1 on each sequence's last token as input, where the score is read."""
    flat, offsets = sequences.tokens, sequences.offsets
    shape = (len(members), _padded(int(max(offsets[m + 1] - offsets[m] for m in members))))
    tokens, weight = np.full(shape, pad), np.zeros(shape, np.float32)
    for row, m in enumerate(members):
        size = int(offsets[m + 1] - offsets[m])
        tokens[row, :size] = flat[offsets[m] : offsets[m + 1]]
        weight[row, size - 1] = 1.0
    return {
        "tokens": torch.from_numpy(tokens), "targets": torch.full(shape, pad), "weight": torch.from_numpy(weight)
    }  # fmt: skip


def sequence_sums(sequences: Sequences, logp: np.ndarray) -> np.ndarray:
    """[N] float64: a flat column of log-probs, 0 where not trained, summed over each sequence."""
    return np.add.reduceat(logp.astype(np.float64), sequences.offsets[:-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class PaddedBatch(Batch):
    """Rows that end in padding, for a causal model: nothing behind a row's last weighted token changes its loss.

    So a micro-batch takes units of like length and only as many positions as its longest row needs. The rows of a step
    stay a random draw: steps of like length would be cheaper still, but they rank held-out pairs worse (85% against 88%
    right, reward models on the world's pairs, 15 seeds each).
    """

    forward_tokens: int | None = None  # positions of one forward pass where that is less than the loop's micro_tokens

    def split(self, max_tokens: int) -> Iterator[Batch]:
        """Micro-batches of at most `max_tokens` positions (at least one unit's rows); their gradients add up."""
        limit = min(max_tokens, self.forward_tokens or max_tokens)
        reach = ((self.weight > 0) * torch.arange(1, self.weight.shape[1] + 1)).amax(1)  # [B] positions that count
        longest = reach.view(-1, self.rows_per_unit).amax(1)  # [units]
        waiting: list[int] = []
        for unit in longest.argsort(stable=True).tolist():
            if waiting and (len(waiting) + 1) * self.rows_per_unit * _padded(int(longest[unit])) > limit:
                yield self._units(waiting, longest)
                waiting = []
            waiting.append(unit)
        yield self._units(waiting, longest)

    def _units(self, units: list[int], longest: Tensor) -> Batch:
        width = _padded(int(longest[units].max()))
        rows = (torch.tensor(units)[:, None] * self.rows_per_unit + torch.arange(self.rows_per_unit)).flatten()
        cut = {f.name: value[rows] for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, **{name: value[:, :width] if value.ndim == 2 else value for name, value in cut.items()})


def _padded(longest: int) -> int:
    return -(-longest // _PAD_TOKENS) * _PAD_TOKENS


class _Steps(Resumable):
    """Every item once an epoch in random order, in steps of equal count (to one); `position` counts the epoch's steps."""

    def __init__(self, content: str, items: int, seed: int):
        super().__init__(content)
        self._items, self.seed, self._ready = items, seed, -1

    def steps_per_epoch(self) -> int:
        raise NotImplementedError

    def batch(self, items: Sequence[int]) -> Batch:
        raise NotImplementedError

    def __iter__(self) -> Iterator[Batch]:
        while True:
            if self._ready != self.epoch:
                self._parts = np.array_split(order(self.seed, self.epoch, self._items), self.steps_per_epoch())
                self._ready = self.epoch
            items = self._parts[self.position].tolist()
            self.position += 1
            if self.position >= len(self._parts):
                self.epoch, self.position = self.epoch + 1, 0
            yield self.batch(items)


class PairSource(_Steps):
    """(chosen, rejected) in neighbouring rows, padded to the longest of the step.

    read="answers" weights the answers' tokens (DPO); read="end" weights the end token as input, where a reward head
    reads its score.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[Rendered, Rendered]],
        *,
        limit: int,
        batch_tokens: int,
        seed: int,
        pad: int,
        read: str = "answers",
        margins: Sequence[float | None] = (),
        ties: Sequence[bool] = (),
    ):
        """margins: by how much each chosen answer is better, where the data says so; None counts as 0. ties: neither is."""
        fits = [max(len(chosen.tokens), len(rejected.tokens)) <= limit for chosen, rejected in pairs]
        fitting = [p for p, fit in zip(pairs, fits, strict=True) if fit]
        self.dropped = len(pairs) - len(fitting)
        if not fitting:
            raise ValueError(
                f"none of {len(pairs)} pairs fits model.context_tokens = {limit - 1}: raise it or shorten the answers"
            )
        kept = [m for m, fit in zip(margins, fits, strict=True) if fit] if margins else []
        self.margins = np.array([m or 0.0 for m in kept], np.float32) if any(m is not None for m in kept) else None
        tied = [t for t, fit in zip(ties, fits, strict=True) if fit] if ties else []
        self.win = np.where(tied, 0.5, 1.0).astype(np.float32) if any(tied) else None
        self.sequences = Sequences([side for pair in fitting for side in pair], limit)
        votes = b"".join(column.tobytes() for column in (self.margins, self.win) if column is not None)
        sizes = np.diff(self.sequences.offsets)
        content = sha256(self.sequences.content.encode() + votes) if votes else self.sequences.content
        super().__init__(content, len(fitting), seed)
        self.pad, self.read = pad, read
        self.pairs = len(fitting)
        self.pairs_per_step = max(1, min(self.pairs, int(batch_tokens / (2 * sizes.mean()))))
        self.forward_tokens: int | None = None  # see PaddedBatch
        self.ref_logp: np.ndarray | None = None  # flat, aligned with sequences.tokens

    @property
    def ties(self) -> int:
        return 0 if self.win is None else int((self.win < 1).sum())

    def steps_per_epoch(self) -> int:
        return -(-self.pairs // self.pairs_per_step)

    def batch(self, pairs: Sequence[int]) -> Batch:
        """The given pairs as rows 2i (chosen) and 2i+1 (rejected)."""
        members = [2 * p + side for p in pairs for side in (0, 1)]
        if self.read == "end":
            columns = end_rows(self.sequences, members, self.pad)
        else:
            columns = answer_rows(self.sequences, members, self.pad, self.ref_logp)
        both = np.repeat(pairs, 2)
        return PaddedBatch(
            **columns,
            margin=None if self.margins is None else torch.from_numpy(self.margins[both]),
            win=None if self.win is None else torch.from_numpy(self.win[both]),
            units=float(len(pairs)),
            ids=torch.from_numpy(both),
            rows_per_unit=2,
            forward_tokens=self.forward_tokens,
        )


class ThumbSource(_Steps):
    """Single votes, liked or not, with KTO's reference point measured on every step (Ethayarajh et al. 2024, sec. 4.1).

    z0 = max(0, mean over the step of log pi(y_j|x_i)/pi_ref(y_j|x_i)): row i's prompt with the answer of its partner j,
    which has another prompt. It takes the policy as it is when the step is drawn, so the source holds a way to score.
    Measured here, on the whole step, it is the same number in every micro-batch and on every rank.
    """

    def __init__(
        self,
        votes: Sequence[Rendered],
        liked: Sequence[bool],
        *,
        limit: int,
        batch_tokens: int,
        seed: int,
        pad: int,
        score: Score,
    ):
        """votes: prompt and answer, trained on the answer. limit: longest sequence in tokens; longer votes are dropped."""
        fits = [len(v.tokens) <= limit for v in votes]
        fitting = [v for v, fit in zip(votes, fits, strict=True) if fit]
        self.dropped = len(votes) - len(fitting)
        if not fitting:
            raise ValueError(
                f"none of {len(votes)} votes fits model.context_tokens = {limit - 1}: raise it or shorten the answers"
            )
        self.liked = np.array([up for up, fit in zip(liked, fits, strict=True) if fit], bool)
        self.sequences = Sequences(fitting, limit)
        # a prompt that fits with its own answer leaves room for at least the first token of any other: none is lost
        self.mismatched = Sequences(_mismatched(fitting), limit)
        assert len(self.mismatched) == len(self.sequences) == len(fitting)
        sizes = np.diff(self.sequences.offsets)
        super().__init__(sha256(self.sequences.content.encode() + self.liked.tobytes()), len(fitting), seed)
        self.pad, self.score = pad, score
        self.votes = len(fitting)
        self.votes_per_step = min(self.votes, int(batch_tokens / sizes.mean()))
        if self.votes_per_step < _VOTES_AT_LEAST:
            raise ValueError(
                f"train.batch_tokens = {batch_tokens}: a step of KTO would hold {max(1, self.votes_per_step)} vote, and its "
                f"reference point is a mean over at least {_VOTES_AT_LEAST}, with different prompts; set it to "
                f"{int(np.ceil(_VOTES_AT_LEAST * sizes.mean()))} or more"
            )
        self.forward_tokens: int | None = None  # see PaddedBatch
        self.ref_logp: np.ndarray | None = None  # flat, aligned with sequences.tokens
        self.ref_mismatched: np.ndarray | None = None  # [N] float64  sums over the mismatched answers

    def set_reference(self, ref_logp: np.ndarray, mismatched: np.ndarray) -> None:
        """Both flat columns of the reference's log-probs, aligned with sequences and mismatched."""
        self.ref_logp, self.ref_mismatched = ref_logp, sequence_sums(self.mismatched, mismatched)

    def steps_per_epoch(self) -> int:
        return min(-(-self.votes // self.votes_per_step), self.votes // _VOTES_AT_LEAST)

    def batch(self, votes: Sequence[int]) -> Batch:
        """The given votes as one step, a row each."""
        if self.ref_logp is None:
            raise ValueError("ThumbSource has no reference: score the votes with it and call set_reference first")
        return PaddedBatch(
            **answer_rows(self.sequences, votes, self.pad, self.ref_logp),
            liked=torch.from_numpy(self.liked[votes]),
            kto_kl=torch.full((len(votes),), self.reference_point(votes)),
            units=float(len(votes)),
            ids=torch.tensor(votes),
            forward_tokens=self.forward_tokens,
        )

    def reference_point(self, votes: Sequence[int]) -> float:
        """z0 of a step of these votes, at least 0, in nats."""
        sizes = np.diff(self.mismatched.offsets)[votes]
        by_length = np.asarray(votes)[np.argsort(sizes, kind="stable")]
        total = 0.0
        for group in np.array_split(by_length, min(len(votes), max(1, int(sizes.sum()) // _SCORED_TOKENS))):
            rows = Batch(**answer_rows(self.mismatched, group, self.pad), units=float(len(group)))
            total += float((self.score(rows).double() * rows.weight).sum())
        return max(0.0, (total - float(self.ref_mismatched[votes].sum())) / len(votes))


def _mismatched(votes: Sequence[Rendered]) -> list[Rendered]:
    """Each vote's prompt with the answer of its partner, the next vote of another prompt in an order fixed for good.

    The order is shuffled once: files made from pairs alternate liked and disliked, and in such an order every partner
    would be a liked answer. So each answer is (nearly) once a partner, and z0 averages over the answers that r does.
    """
    starts = [answer_start(v.weights) for v in votes]
    prompts = [tuple(v.tokens[:start]) for v, start in zip(votes, starts, strict=True)]
    if len(set(prompts)) < 2:
        raise ValueError(
            f"all {len(votes)} votes have the same prompt: KTO's reference point needs answers to at least 2 different "
            "prompts; add votes on another prompt, or train on pairs of these answers with `fledge dpo`"
        )
    shuffled = order(0, 0, len(votes)).tolist()
    partner: dict[int, int] = {}
    following = shuffled[0]
    for place in (*reversed(shuffled), *reversed(shuffled)):  # twice: the end of the order goes on at its start
        if prompts[place] != prompts[following]:
            partner[place] = following
        elif following in partner:
            partner[place] = partner[following]
        following = place
    mixed = []
    for index, vote in enumerate(votes):
        other, start = votes[partner[index]], starts[partner[index]]
        answer = other.tokens[start:]
        mixed.append(Rendered(vote.tokens[: starts[index]] + answer, [0] * starts[index] + [1] * len(answer)))
    return mixed
