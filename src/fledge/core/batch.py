"""One batch for every stage: whatever a loss needs is a column.

Shapes: B rows, T positions.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One rank's share of one optimiser step.

    Example, SFT on "<user>hi<end><assistant>hello<end>" (tokens 2 7 4 3 8 4): tokens = 2 7 4 3 8,
    targets = 7 4 3 8 4, weight = 0 0 0 1 1, units = 2.0 (the two trained tokens).
    """

    tokens: Tensor  # [B,T] int64    input
    targets: Tensor  # [B,T] int64   what position t predicts; shifted by the source (masked LM: not shifted)
    weight: Tensor  # [B,T] float32  >= 0: how much the token counts
    units: float  # divisor of this rank's whole step: tokens, sequences or pairs
    advantage: Tensor | None = None  # [B,T] float32  signed credit; None = imitate
    doc: Tensor | None = None  # [B,T] int32    attention stays inside one document; -1 = padding
    old_logp: Tensor | None = None  # [B,T] float32  under the policy that sampled
    ref_logp: Tensor | None = None  # [B,T] float32  under the frozen reference
    returns: Tensor | None = None  # [B,T] float32  target of the value head
    old_value: Tensor | None = None  # [B,T] float32  what the value head said when the answer was sampled
    liked: Tensor | None = None  # [B]   bool     thumb up or down (KTO)
    kto_kl: Tensor | None = None  # [B]   float32  KTO's reference point, the same in every row of a step
    margin: Tensor | None = None  # [B]   float32  by how much the chosen answer is better (reward model)
    win: Tensor | None = None  # [B]   float32  votes for the chosen answer: 1, or 0.5 for a tie; None = 1
    label: Tensor | None = None  # [B]   int64    class of the row (class head)
    ids: Tensor | None = None  # [B]   int64    where the row came from, to name it in an error
    rows_per_unit: int = 1  # 2 keeps (chosen, rejected) together when the step is split
    kl_weight: float = 0.0  # price of a nat away from the reference, where it is part of the loss
    want_entropy: bool = False  # ask the model for the entropy at weighted positions: one more pass over the vocabulary
    notes: dict[str, float] | None = None  # figures of the source for this step's line in the log, kept as they are

    def check(self) -> None:
        """Raise ValueError if no token counts: such a batch would divide 0 by 0 and train on NaN."""
        if not bool((self.weight > 0).any()):
            rows = "unknown" if self.ids is None else self.ids.tolist()[:16]
            raise ValueError(
                f"batch of {self.tokens.shape[0]} rows has no weighted token (rows {rows}): every token has weight 0; "
                "raise context_tokens so that answers are not cut off, or drop these rows from the data"
            )
        if not self.units > 0:
            raise ValueError(f"batch.units = {self.units}: must be > 0, the number of tokens, sequences or pairs")

    def rows(self, start: int, stop: int) -> "Batch":
        """Rows start..stop-1 with every column cut alike; `units` stays that of the whole step."""
        cut = {f.name: value[start:stop] for f in fields(self) if isinstance(value := getattr(self, f.name), Tensor)}
        return replace(self, **cut)

    def split(self, max_tokens: int) -> Iterator["Batch"]:
        """Micro-batches of at most `max_tokens` positions (at least one unit's rows); their gradients add up."""
        total, length = self.tokens.shape
        step = max(1, max_tokens // (length * self.rows_per_unit)) * self.rows_per_unit
        if step >= total:
            yield self
            return
        for start in range(0, total, step):
            yield self.rows(start, min(start + step, total))

    def shard(self, rank: int, world_size: int) -> "Batch":
        """This rank's rows of a global batch; together the ranks see the same rows whatever their number."""
        if world_size == 1:
            return self
        groups = self.tokens.shape[0] // self.rows_per_unit
        first, last = groups * rank // world_size, groups * (rank + 1) // world_size
        part = self.rows(first * self.rows_per_unit, last * self.rows_per_unit)
        return replace(part, units=self.units / world_size)  # the sum over ranks is the global divisor again

    def to(self, device: torch.device) -> "Batch":
        """The same batch with every column on `device`."""
        if self.tokens.device == device:
            return self
        moved = {
            f.name: value.to(device, non_blocking=True)
            for f in fields(self)
            if isinstance(value := getattr(self, f.name), Tensor)
        }
        return replace(self, **moved)


class Source(Protocol):
    """An endless iterator of batches whose place is a few integers and a content hash, and resumes exactly.

    A source that is in the middle of something no integer can name (answers sampled by weights that have moved on
    since) may put tensors in its state; they are kept with the checkpoint.
    """

    def __iter__(self) -> Iterator[Batch]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
